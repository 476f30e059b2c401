/* fl_forward: checks, the order of rows, and how the work is split among threads. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    MOST_ROWS = 128, /* of one scan: more gain nothing and leave the cache */
    ALONE_US = 40,   /* calls below this stay in the calling thread */
    STEP_US = 2,     /* steps below this do not repay a barrier */
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
    int64_t chunks, workers;
    int64_t rows;      /* of the largest chunk */
    int64_t chunk_bytes;
    char *memory;      /* [workers][chunk_bytes] */
    fl_team *team;
} forward_call;

static int64_t chunk_begin(const forward_call *f, int64_t chunk) { return f->q->B * chunk / f->chunks; }

/* --- one chunk of rows through all layers --- */

typedef struct chunk_memory {
    void *scan;
    const char **x;
    int64_t *steps;
    char *between_layers; /* [T, rows, D P], only for a stack of bidirectional layers */
} chunk_memory;

static int64_t lay_out_chunk(const forward_call *f, int64_t team_size, char *base, chunk_memory *m) {
    const fl_layer *l = f->layer;
    const int64_t scan = fl_round_up(fl_scan_bytes(l, f->rows, f->q->T, team_size), 64);
    const int64_t pointers = fl_round_up(f->rows * (int64_t)sizeof(void *), 64);
    const int64_t steps = fl_round_up(f->rows * (int64_t)sizeof(int64_t), 64);
    const bool stack = l->directions == 2 && l->config.num_layers > 1;
    if (base) { /* else only the size is wanted */
        m->scan = base;
        m->x = (const char **)(base + scan);
        m->steps = (int64_t *)(base + scan + pointers);
        m->between_layers = base + scan + pointers + steps;
    }
    return scan + pointers + steps +
           (stack ? fl_round_up(f->q->T * f->rows * 2 * l->output_size * l->kernels->element_bytes, 64) : 0);
}

/* A [T, rows, features] array: where row r of the chunk has its step t. */
typedef struct sequence_view {
    char *data;
    int64_t stride_t, stride_row; /* elements; of the batch, or of the chunk */
    bool by_chunk;
} sequence_view;

static void run_direction(const forward_call *f, const chunk_memory *m, int64_t chunk, int64_t layer, int64_t direction,
                          const sequence_view *x, const sequence_view *y) {
    const fl_layer *l = f->layer;
    const fl_sequence *q = f->q;
    const int64_t size = l->kernels->element_bytes, first = chunk_begin(f, chunk);
    const int64_t count = chunk_begin(f, chunk + 1) - first, item = layer * l->directions + direction;
    const bool backwards = direction == 1 || l->config.reverse;
    const int64_t P = l->output_size, H = l->config.hidden_size;
    fl_scan s;
    fl_scan_init(&s, l, &f->pack->direction[item], f->rows, q->T, f->team ? f->workers : 1, m->scan);
    for (int64_t r = 0; r < count; r++) {
        const int64_t b = f->order[first + r], n = f->length[b], begin = backwards && n ? n - 1 : 0;
        const int64_t state = item * q->B + b;
        m->steps[r] = n;
        m->x[r] = x->data + (begin * x->stride_t + (x->by_chunk ? r : b) * x->stride_row) * size;
        s.y_rows[r] = y->data + (begin * y->stride_t + (y->by_chunk ? r : b) * y->stride_row + direction * P) * size;
        fl_scan_set_state(&s, r, q->h0 ? (const char *)q->h0 + state * P * size : NULL,
                          q->c0 ? (const char *)q->c0 + state * H * size : NULL);
    }
    const int64_t sign = backwards ? -1 : 1;
    const fl_rows rows = {count,
                          m->x,
                          sign * x->stride_t * size,
                          sign * y->stride_t,
                          m->steps,
                          x->data == y->data && x->by_chunk == y->by_chunk};
    fl_scan_run(&s, &rows, f->team);
    for (int64_t r = 0; r < count; r++) {
        const int64_t state = item * q->B + f->order[first + r];
        if (q->h_n)
            memcpy((char *)q->h_n + state * P * size, fl_scan_h(&s, r, m->steps[0] - m->steps[r]), (size_t)(P * size));
        if (q->c_n && l->cell->has_c) memcpy((char *)q->c_n + state * H * size, fl_scan_c(&s, r), (size_t)(H * size));
    }
}

static void clear_padding(const forward_call *f, int64_t chunk) {
    const fl_sequence *q = f->q;
    const int64_t size = f->layer->kernels->element_bytes;
    const int64_t width = f->layer->directions * f->layer->output_size * size;
    for (int64_t r = chunk_begin(f, chunk); r < chunk_begin(f, chunk + 1); r++)
        for (int64_t t = f->length[f->order[r]]; t < q->T; t++)
            memset((char *)q->y + (t * q->y_stride_t + f->order[r] * q->y_stride_b) * size, 0, (size_t)width);
}

/* One direction may write where it reads: a tile's input is projected before its output is written. Two directions
 * read everything twice, so their layers take turns between y and a buffer, the last one writing y. */
static void run_chunk(void *context, int64_t chunk, int64_t worker) {
    const forward_call *f = context;
    const fl_layer *l = f->layer;
    const fl_sequence *q = f->q;
    const int64_t D = l->directions, L = l->config.num_layers;
    chunk_memory m;
    lay_out_chunk(f, f->team ? f->workers : 1, f->memory + worker * f->chunk_bytes, &m);
    const sequence_view result = {q->y, q->y_stride_t, q->y_stride_b, false};
    const sequence_view buffer = {m.between_layers, f->rows * D * l->output_size, D * l->output_size, true};
    sequence_view x = {(char *)q->x, q->x_stride_t, q->x_stride_b, false};
    for (int64_t layer = 0; layer < L; layer++) {
        const sequence_view y = D == 1 || (L - 1 - layer) % 2 == 0 ? result : buffer;
        for (int64_t d = 0; d < D; d++) run_direction(f, &m, chunk, layer, d, &x, &y);
        x = y;
    }
    clear_padding(f, chunk);
}

static void run_in_team(void *context, fl_team *team) {
    forward_call *f = context;
    f->team = team;
    for (int64_t chunk = 0; chunk < f->chunks; chunk++) run_chunk(f, chunk, 0);
}

/* --- rows and threads --- */

typedef struct row_length {
    int64_t row, length;
} row_length;

/* Falling length; equal ones stay in place, so that the order is everywhere the same. */
static int by_length(const void *a, const void *b) {
    const row_length *x = a, *y = b;
    if (x->length != y->length) return x->length < y->length ? 1 : -1;
    return (x->row > y->row) - (x->row < y->row);
}

/* Fills order; with several chunks, rows are dealt out so that each chunk gets long and short ones. */
static bool order_rows(forward_call *f) {
    const fl_sequence *q = f->q;
    if (!q->lengths) {
        for (int64_t b = 0; b < q->B; b++) f->order[b] = b;
        return true;
    }
    row_length *rows = malloc((size_t)q->B * sizeof *rows);
    if (!rows) return false;
    for (int64_t b = 0; b < q->B; b++) rows[b] = (row_length){b, f->length[b]};
    qsort(rows, (size_t)q->B, sizeof *rows, by_length);
    int64_t taken = 0;
    for (int64_t r = 0; taken < q->B; r++)
        for (int64_t chunk = 0; chunk < f->chunks; chunk++) {
            const int64_t begin = chunk_begin(f, chunk), count = chunk_begin(f, chunk + 1) - begin;
            if (r < count) f->order[begin + r] = rows[taken++].row;
        }
    free(rows);
    return true;
}

/* One core's microseconds for `steps` steps of a sequence, by the rates of a current core: near the peak in a batch,
 * half of it where one row waits for the weights. */
static double estimate_us(const fl_layer *l, double steps, int64_t batch) {
    const double H = (double)l->config.hidden_size, P = (double)l->output_size, D = (double)l->directions;
    const double G = l->cell->gates, L = (double)l->config.num_layers;
    const double inputs = (double)l->config.input_size + (L - 1) * D * P;
    const double products = D * G * H * (inputs + L * P) + (l->config.proj_size ? L * D * H * P : 0);
    const double rate = (batch >= 4 ? 100e3 : 50e3) * 4 / l->kernels->element_bytes; /* flop per microsecond */
    return steps * (2 * products / rate + L * D * G * H * 5e-4);
}

double fl_estimate_us(const fl_layer *layer, int64_t T, int64_t B) {
    return layer && T > 0 && B > 0 ? estimate_us(layer, (double)T * (double)B, B) : 0;
}

/* Splitting the batch needs no barrier, but each worker should fill a tile of the product kernel; else split units. */
static fl_split choose_split(const fl_layer *l, const fl_sequence *q, int64_t steps, int64_t threads) {
    const int forced = atomic_load(&forced_split);
    if (forced != FL_SPLIT_AUTO) return (fl_split)forced;
    const double us = estimate_us(l, (double)steps, q->B);
    if (threads < 2 || us < ALONE_US) return FL_SPLIT_NONE;
    if (q->B >= 4 * threads) return FL_SPLIT_BATCH;
    const double step_us = us / (double)(q->T * l->config.num_layers * l->directions);
    if (step_us >= STEP_US) return FL_SPLIT_UNITS;
    return q->B >= 2 * threads ? FL_SPLIT_BATCH : FL_SPLIT_NONE;
}

static fl_status check_sequence(const fl_layer *l, const fl_sequence *q) {
    if (!l) return fl_fail(FL_BAD_ARGUMENT, "layer: NULL");
    if (!q) return fl_fail(FL_BAD_ARGUMENT, "sequence: NULL");
    if (q->size != sizeof *q) return fl_fail(FL_BAD_ARGUMENT, "sequence: size is not sizeof(fl_sequence)");
    if (q->T < 0) return fl_fail(FL_BAD_ARGUMENT, "T is %lld, wanted 0 or more", (long long)q->T);
    if (q->B < 0) return fl_fail(FL_BAD_ARGUMENT, "B is %lld, wanted 0 or more", (long long)q->B);
    const int64_t widest = l->config.hidden_size > l->config.input_size ? l->config.hidden_size : l->config.input_size;
    const int64_t states = l->config.num_layers * l->directions;
    int64_t n;
    if (q->T == INT64_MAX || !fl_mul(q->T + 1, q->B, &n) || !fl_mul(n, 16 * widest, &n) || !fl_mul(states, q->B, &n) ||
        !fl_mul(n, 16 * widest, &n))
        return fl_fail(FL_BAD_ARGUMENT, "T is %lld and B %lld: too large", (long long)q->T, (long long)q->B);
    if (q->T && q->B && !q->x) return fl_fail(FL_BAD_ARGUMENT, "x: NULL");
    if (q->T && q->B && !q->y) return fl_fail(FL_BAD_ARGUMENT, "y: NULL");
    return FL_OK;
}

/* Copies and checks the lengths; their sum goes to *steps. */
static fl_status take_lengths(forward_call *f, int64_t *steps) {
    const fl_sequence *q = f->q;
    *steps = 0;
    f->order = malloc((size_t)(q->B ? q->B : 1) * sizeof *f->order);
    f->length = malloc((size_t)(q->B ? q->B : 1) * sizeof *f->length);
    if (!f->order || !f->length) return fl_fail(FL_NO_MEMORY, "forward: no memory for B = %lld", (long long)q->B);
    for (int64_t b = 0; b < q->B; b++) {
        const int64_t n = f->length[b] = q->lengths ? q->lengths[b] : q->T;
        if (n < 0 || n > q->T)
            return fl_fail(FL_BAD_ARGUMENT, "lengths[%lld] is %lld, wanted 0 to %lld", (long long)b, (long long)n,
                           (long long)q->T);
        *steps += n;
    }
    return FL_OK;
}

static fl_status run_forward(forward_call *f) {
    const fl_layer *layer = f->layer;
    const fl_sequence *q = f->q;
    const int64_t threads = fl_get_num_threads();
    int64_t steps, bytes;
    if (threads < 0) return FL_BAD_ARGUMENT;
    const fl_status status = take_lengths(f, &steps);
    if (status) return status;
    const fl_split split = last_split = choose_split(layer, q, steps, threads);
    f->chunks = (q->B + MOST_ROWS - 1) / MOST_ROWS;
    f->workers = threads;
    if (split == FL_SPLIT_BATCH) {
        f->chunks = fl_round_up(f->chunks, threads);
        if (f->chunks > q->B) f->chunks = q->B;
    }
    if (f->chunks < 1) f->chunks = 1;
    f->rows = (q->B + f->chunks - 1) / f->chunks;
    const int64_t team = split == FL_SPLIT_UNITS ? threads : 1, copies = split == FL_SPLIT_BATCH ? threads : 1;
    f->chunk_bytes = lay_out_chunk(f, team, NULL, NULL);
    f->memory = fl_mul(f->chunk_bytes, copies, &bytes) ? fl_os_alloc(bytes) : NULL;
    if (!f->memory || !order_rows(f))
        return fl_fail(FL_NO_MEMORY, "forward: no memory for %lld bytes of work space", (long long)f->chunk_bytes);
    f->pack = fl_layer_pack(layer);
    if (!f->pack) return FL_NO_WEIGHTS;
    const fl_fp_mode mode = fl_fp_begin();
    if (split == FL_SPLIT_UNITS) fl_parallel_stages(threads, run_in_team, f);
    else fl_parallel_tasks(split == FL_SPLIT_BATCH ? threads : 1, f->chunks, run_chunk, f);
    fl_fp_end(mode);
    return FL_OK;
}

fl_status fl_forward(const fl_layer *layer, const fl_sequence *q) {
    fl_status status = check_sequence(layer, q);
    if (status) return status;
    forward_call f = {.layer = layer, .q = q};
    status = run_forward(&f);
    fl_pack_release(f.pack);
    fl_os_free(f.memory);
    free(f.length);
    free(f.order);
    return status;
}
