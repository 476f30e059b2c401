/* fl_forward and fl_record: how the work of a call is split among threads, chunks of rows, layers and directions. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    MOST_ROWS = 128, /* of one scan: more gain nothing and leave the cache */
    FIT_BYTES = 12 << 20, /* weights that several cores may each read from the cache that they share */
    MEMORY_RATE = 25000, /* bytes per microsecond, one core */
    STEP_US = 6,     /* steps below this do not repay a barrier: 0.3 us on some machines, 2 to 3 on others */
};

static _Atomic int forced_split = FL_SPLIT_AUTO;
static _Thread_local fl_split last_split;

void fl_force_split(fl_split split) { atomic_store(&forced_split, split); }
fl_split fl_last_split(void) { return last_split; }

typedef struct forward_call {
    const fl_layer *layer;
    const fl_sequence *q;
    fl_pack *pack;
    int64_t *order;  /* rows of the batch, in each chunk by falling length */
    int64_t *length; /* our own copy: the caller's array may change while we run */
    int64_t *begin;  /* [chunks + 1]: each one's first in `order` */
    int64_t chunks, workers;
    int64_t rows;      /* of the largest chunk */
    int64_t chunk_bytes;
    char *memory;      /* [workers][chunk_bytes] */
    fl_team *team;
    int64_t first_layer, layers; /* to run; x is the first one's input */
    fl_tape *tape;               /* of the one layer; NULL: none */
    const fl_memory *again;      /* [D]: where the tape's steps from first_step on go when run again; NULL: all run */
    int64_t first_step;
} forward_call;

/* --- one chunk of rows through all layers --- */

typedef struct chunk_memory {
    void *scan;
    const char **x;
    int64_t *steps;
    char *between_layers; /* [T, rows, D P], only for a stack of bidirectional layers */
    char *unread;         /* [P]: output that nobody wants */
} chunk_memory;

static int64_t lay_out_chunk(const forward_call *f, int64_t team_size, char *base, chunk_memory *m) {
    const fl_layer *l = f->layer;
    const int64_t scan = fl_round_up(fl_scan_bytes(l, f->rows, f->q->T, team_size), 64);
    const int64_t pointers = fl_round_up(f->rows * (int64_t)sizeof(void *), 64);
    const int64_t steps = fl_round_up(f->rows * (int64_t)sizeof(int64_t), 64);
    const int64_t unread = fl_round_up(l->output_size * l->kernels->element_bytes, 64);
    const bool stack = l->directions == 2 && f->layers > 1;
    if (base) { /* else only the size is wanted */
        m->scan = base;
        m->x = (const char **)(base + scan);
        m->steps = (int64_t *)(base + scan + pointers);
        m->unread = base + scan + pointers + steps;
        m->between_layers = m->unread + unread;
    }
    return scan + pointers + steps + unread +
           (stack ? fl_round_up(f->q->T * f->rows * 2 * l->output_size * l->kernels->element_bytes, 64) : 0);
}

/* A [T, rows, features] array: where row r of the chunk has its step t. */
typedef struct sequence_view {
    char *data;
    int64_t stride_t, stride_row; /* elements; of the batch, or of the chunk */
    bool by_chunk;
} sequence_view;

/* Runs the steps block by block, and keeps the states before each. */
static void run_with_checkpoints(const forward_call *f, fl_scan *s, fl_rows *rows, int64_t first, int64_t direction) {
    const fl_tape *tape = f->tape;
    for (int64_t block = 0; block * tape->every < tape->steps; block++) {
        rows->begin = block * tape->every;
        rows->end = rows->begin + tape->every;
        for (int64_t r = 0; r < rows->count && rows->steps[r] > rows->begin; r++)
            fl_tape_keep(tape, direction, block, first + r, fl_scan_now_h(s, r), fl_scan_c(s, r, 0));
        fl_scan_run(s, rows, f->team);
    }
}

static void run_direction(const forward_call *f, const chunk_memory *m, int64_t chunk, int64_t layer, int64_t direction,
                          const sequence_view *x, const sequence_view *y) {
    const fl_layer *l = f->layer;
    const fl_sequence *q = f->q;
    const int64_t size = l->kernels->element_bytes, first = f->begin[chunk];
    const int64_t item = layer * l->directions + direction, states = item - f->first_layer * l->directions;
    const bool backwards = direction == 1 || l->config.reverse;
    const int64_t P = l->output_size, H = l->config.hidden_size;
    int64_t count = f->begin[chunk + 1] - first;
    while (f->again && count > 0 && f->length[f->order[first + count - 1]] <= f->first_step) count--;
    fl_scan s;
    fl_scan_init(&s, l, &f->pack->direction[item], f->rows, q->T, f->team ? f->workers : 1, m->scan);
    if (f->again) s.memory = &f->again[direction];
    else if (f->tape && !f->tape->every) s.memory = &f->tape->memory[direction];
    s.memory_row = first;
    for (int64_t r = 0; r < count; r++) {
        const int64_t b = f->order[first + r], n = f->length[b], begin = backwards && n ? n - 1 : 0;
        const int64_t state = states * q->B + b;
        const void *h = q->h0 ? (const char *)q->h0 + state * P * size : NULL;
        const void *c = q->c0 ? (const char *)q->c0 + state * H * size : NULL;
        if (f->again) fl_tape_kept(f->tape, direction, f->first_step / f->tape->every, first + r, &h, &c);
        m->steps[r] = n;
        m->x[r] = x->data + (begin * x->stride_t + (x->by_chunk ? r : b) * x->stride_row) * size;
        s.y_rows[r] =
            f->again ? m->unread
                     : y->data + (begin * y->stride_t + (y->by_chunk ? r : b) * y->stride_row + direction * P) * size;
        fl_scan_set_state(&s, r, h, c);
    }
    const int64_t sign = backwards ? -1 : 1;
    fl_rows rows = {.count = count,
                    .x = m->x,
                    .x_step_bytes = sign * x->stride_t * size,
                    .y_step = f->again ? 0 : sign * y->stride_t,
                    .steps = m->steps,
                    .begin = f->first_step,
                    .end = f->again ? f->first_step + f->tape->every : q->T,
                    .in_place = !f->again && x->data == y->data && x->by_chunk == y->by_chunk};
    if (f->tape && f->tape->every && !f->again) run_with_checkpoints(f, &s, &rows, first, direction);
    else fl_scan_run(&s, &rows, f->team);
    for (int64_t r = 0; r < count && !f->again; r++) {
        const int64_t state = states * q->B + f->order[first + r], ago = m->steps[0] - m->steps[r];
        if (q->h_n) memcpy((char *)q->h_n + state * P * size, fl_scan_h(&s, r, ago), (size_t)(P * size));
        if (q->c_n && l->cell->has_c)
            memcpy((char *)q->c_n + state * H * size, fl_scan_c(&s, r, ago), (size_t)(H * size));
    }
}

static void clear_padding(const forward_call *f, int64_t chunk) {
    const fl_sequence *q = f->q;
    const int64_t size = f->layer->kernels->element_bytes;
    const int64_t width = f->layer->directions * f->layer->output_size * size;
    for (int64_t r = f->begin[chunk]; r < f->begin[chunk + 1]; r++)
        for (int64_t t = f->length[f->order[r]]; t < q->T; t++)
            memset((char *)q->y + (t * q->y_stride_t + f->order[r] * q->y_stride_b) * size, 0, (size_t)width);
}

/* One direction may write where it reads: a tile's input is projected before its output is written. Two directions
 * read everything twice, so their layers take turns between y and a buffer, the last one writing y. */
static void run_chunk(void *context, int64_t chunk, int64_t worker) {
    const forward_call *f = context;
    const fl_layer *l = f->layer;
    const fl_sequence *q = f->q;
    const int64_t D = l->directions, last = f->first_layer + f->layers - 1;
    chunk_memory m;
    lay_out_chunk(f, f->team ? f->workers : 1, f->memory + worker * f->chunk_bytes, &m);
    const sequence_view result = {q->y, q->y_stride_t, q->y_stride_b, false};
    const sequence_view buffer = {m.between_layers, f->rows * D * l->output_size, D * l->output_size, true};
    sequence_view x = {(char *)q->x, q->x_stride_t, q->x_stride_b, false};
    for (int64_t layer = f->first_layer; layer <= last; layer++) {
        const sequence_view y = D == 1 || (last - layer) % 2 == 0 ? result : buffer;
        for (int64_t d = 0; d < D; d++) run_direction(f, &m, chunk, layer, d, &x, &y);
        x = y;
    }
    if (!f->again) clear_padding(f, chunk);
}

static void run_in_team(void *context, fl_team *team) {
    forward_call *f = context;
    f->team = team;
    for (int64_t chunk = 0; chunk < f->chunks; chunk++) run_chunk(f, chunk, 0);
}

/* --- rows and threads --- */

/* Chunks of equally many rows, dealt out so that each gets long and short ones. */
static bool deal_rows(forward_call *f) {
    const int64_t B = f->q->B;
    for (int64_t i = 0; i <= f->chunks; i++) f->begin[i] = B * i / f->chunks;
    f->rows = (B + f->chunks - 1) / f->chunks;
    for (int64_t b = 0; b < B; b++) f->order[b] = b;
    if (!f->q->lengths) return true;
    int64_t *sorted = malloc((size_t)(B ? B : 1) * sizeof *sorted), taken = 0;
    if (!sorted || !fl_sort_rows(B, f->length, sorted)) {
        free(sorted);
        return false;
    }
    for (int64_t r = 0; taken < B; r++)
        for (int64_t chunk = 0; chunk < f->chunks; chunk++)
            if (r < f->begin[chunk + 1] - f->begin[chunk]) f->order[f->begin[chunk] + r] = sorted[taken++];
    free(sorted);
    return true;
}

/* A tape's rows lie in one order for all: each chunk is a stretch of it, of equally many steps. */
static void share_rows(forward_call *f) {
    fl_share_rows(f->q->B, f->order, f->length, f->chunks, f->begin);
    f->rows = 0;
    for (int64_t i = 0; i < f->chunks; i++)
        if (f->begin[i + 1] - f->begin[i] > f->rows) f->rows = f->begin[i + 1] - f->begin[i];
}

/* One core's microseconds for `steps` steps of a sequence, by the rates of a current core: near the peak in a batch,
 * half of it where one row waits for the weights. */
double fl_estimate_steps_us(const fl_layer *l, double steps, int64_t batch) {
    const double H = (double)l->config.hidden_size, P = (double)l->output_size, D = (double)l->directions;
    const double G = l->cell->gates, L = (double)l->config.num_layers;
    const double inputs = (double)l->config.input_size + (L - 1) * D * P;
    const double products = D * G * H * (inputs + L * P) + (l->config.proj_size ? L * D * H * P : 0);
    /* flop per microsecond; small weights come faster, and integers are multiplied faster */
    const double full = (batch >= 4 ? 100e3 : 50e3) * 4 / l->kernels->element_bytes;
    const double rate = full * (l->integers                                ? (l->config.activation_bits == 8 ? 3 : 2)
                                : l->format.weight_bytes == 2 && batch < 4 ? 1.6
                                                                           : 1);
    const double us = steps * (2 * products / rate + L * D * G * H * 5e-4);
    /* Weights that no cache keeps come from memory at every step; those of the input once for many, if there are. */
    const double times = batch ? steps / (double)batch : 0;
    const double bytes = (products - (times > 1 ? D * G * H * inputs : 0)) * l->format.weight_bytes;
    const double read_us = bytes > FIT_BYTES ? times * bytes / MEMORY_RATE : 0;
    return us > read_us ? us : read_us;
}

double fl_estimate_us(const fl_layer *layer, int64_t T, int64_t B) {
    return layer && T > 0 && B > 0 ? fl_estimate_steps_us(layer, (double)T * (double)B, B) : 0;
}

/* Splitting the batch needs no barrier, but each worker reads all weights and should fill a tile of the product kernel;
 * else split units. */
fl_split fl_choose_split(const fl_layer *l, int64_t stages, int64_t B, double us, int64_t *threads) {
    const int forced = atomic_load(&forced_split);
    if (forced != FL_SPLIT_AUTO) return last_split = (fl_split)forced;
    *threads = fl_threads_for(us);
    if (*threads < 2) return last_split = FL_SPLIT_NONE;
    const double step_us = us / (double)stages;
    const int64_t weights = l->cell->gates * l->config.hidden_size * (l->config.input_size + l->output_size);
    const bool fit = weights * l->format.weight_bytes <= FIT_BYTES;
    if (B >= 4 * *threads && (fit || step_us < STEP_US)) return last_split = FL_SPLIT_BATCH;
    if (step_us >= STEP_US) return last_split = FL_SPLIT_UNITS;
    return last_split = B >= 2 * *threads ? FL_SPLIT_BATCH : FL_SPLIT_NONE;
}

int64_t fl_most_step_threads(const fl_layer *l, int64_t B) {
    const bool large = fl_estimate_steps_us(l, (double)B, B) >= FL_SHORT_US;
    return large || atomic_load(&forced_split) == FL_SPLIT_UNITS ? fl_get_num_threads() : 1;
}

int64_t fl_step_threads(const fl_layer *l, int64_t B) {
    const int forced = atomic_load(&forced_split);
    const double us = fl_estimate_steps_us(l, (double)B, B);
    int64_t threads = 1;
    if (forced == FL_SPLIT_UNITS) threads = fl_get_num_threads();
    else if (forced == FL_SPLIT_AUTO && us >= STEP_US * (double)l->config.num_layers) threads = fl_threads_for(us);
    last_split = threads > 1 ? FL_SPLIT_UNITS : FL_SPLIT_NONE;
    return threads;
}

/* Runs f->layers layers; order and length are f's own or the tape's, and filled in for a tape. */
static fl_status run_forward(forward_call *f, int64_t steps) {
    const fl_layer *layer = f->layer;
    const fl_sequence *q = f->q;
    int64_t threads = fl_get_num_threads(), bytes;
    if (threads < 0) return FL_BAD_ARGUMENT;
    const double us =
        fl_estimate_steps_us(layer, (double)steps, q->B) * (double)f->layers / (double)layer->config.num_layers;
    const fl_split split = fl_choose_split(layer, q->T * f->layers * layer->directions, q->B, us, &threads);
    f->chunks = (q->B + MOST_ROWS - 1) / MOST_ROWS;
    f->workers = threads;
    if (split == FL_SPLIT_BATCH) {
        f->chunks = fl_round_up(f->chunks, threads);
        if (f->chunks > q->B) f->chunks = q->B;
    }
    if (f->chunks < 1) f->chunks = 1;
    f->begin = malloc((size_t)(f->chunks + 1) * sizeof *f->begin);
    if (f->begin && f->tape) share_rows(f);
    if (!f->begin || (!f->tape && !deal_rows(f))) return fl_fail(FL_NO_MEMORY, "forward: no memory");
    const int64_t team = split == FL_SPLIT_UNITS ? threads : 1, copies = split == FL_SPLIT_BATCH ? threads : 1;
    f->chunk_bytes = lay_out_chunk(f, team, NULL, NULL);
    f->memory = fl_mul(f->chunk_bytes, copies, &bytes) ? fl_os_alloc(bytes) : NULL;
    if (!f->memory)
        return fl_fail(FL_NO_MEMORY, "forward: no memory for %lld bytes of work space", (long long)f->chunk_bytes);
    const fl_fp_mode mode = fl_fp_begin();
    if (split == FL_SPLIT_UNITS) fl_parallel_stages(threads, run_in_team, f);
    else fl_parallel_tasks(split == FL_SPLIT_BATCH ? threads : 1, f->chunks, run_chunk, f);
    fl_fp_end(mode);
    return FL_OK;
}

fl_status fl_forward(const fl_layer *layer, const fl_sequence *q) {
    fl_status status = fl_check_sequence(layer, q);
    if (status) return status;
    forward_call f = {.layer = layer, .q = q, .layers = layer->config.num_layers};
    int64_t steps;
    f.length = fl_take_lengths(q, &steps);
    if (!f.length) return steps < 0 ? FL_BAD_ARGUMENT : FL_NO_MEMORY;
    f.order = malloc((size_t)(q->B ? q->B : 1) * sizeof *f.order);
    if (!f.order) status = fl_fail(FL_NO_MEMORY, "forward: no memory for B = %lld", (long long)q->B);
    else if (!(f.pack = fl_layer_pack(layer))) status = FL_NO_WEIGHTS;
    else status = run_forward(&f, steps);
    fl_pack_release(f.pack);
    fl_os_free(f.memory);
    free(f.begin);
    free(f.length);
    free(f.order);
    return status;
}

static fl_status run_for_tape(forward_call *f, int64_t steps) {
    f->layer = f->tape->layer;
    f->q = &f->tape->sequence;
    f->pack = f->tape->pack;
    f->order = f->tape->order;
    f->length = f->tape->length;
    f->first_layer = f->tape->index;
    f->layers = 1;
    const fl_status status = run_forward(f, steps);
    fl_os_free(f->memory);
    free(f->begin);
    return status;
}

fl_status fl_record(const fl_layer *layer, int64_t index, const fl_sequence *q, int64_t checkpoint, fl_tape **out) {
    if (!out) return fl_fail(FL_BAD_ARGUMENT, "tape: NULL");
    *out = NULL;
    fl_status status = fl_check_sequence(layer, q);
    if (status) return status;
    if (layer->format.type != FL_FULL)
        return fl_fail(FL_UNSUPPORTED, "record: a layer with bfloat16 or int8 weights cannot be trained");
    if (index < 0 || index >= layer->config.num_layers)
        return fl_fail(FL_BAD_ARGUMENT, "index is %lld, wanted 0 to %lld", (long long)index,
                       (long long)layer->config.num_layers - 1);
    if (checkpoint < 0) return fl_fail(FL_BAD_ARGUMENT, "checkpoint is %lld, wanted 0 or more", (long long)checkpoint);
    forward_call f = {0};
    status = fl_tape_create(layer, index, q, checkpoint, &f.tape);
    if (status) return status;
    status = run_for_tape(&f, f.tape->place[f.tape->steps]);
    /* The caller's arrays are done with, but for x. */
    f.tape->sequence.y = f.tape->sequence.h_n = f.tape->sequence.c_n = NULL;
    f.tape->sequence.h0 = f.tape->sequence.c0 = NULL;
    if (status) fl_tape_free(f.tape);
    else *out = f.tape;
    return status;
}

fl_status fl_forward_again(fl_tape *tape, int64_t block, const fl_memory *memory) {
    const int64_t first = block * tape->every,
                  end = first + tape->every < tape->steps ? first + tape->every : tape->steps;
    forward_call f = {.tape = tape, .again = memory, .first_step = first};
    return run_for_tape(&f, tape->place[end] - tape->place[first]);
}
