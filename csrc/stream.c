/* Streams: a state of their own, one step a call, nothing allocated on the way, nor locked but by a step so large that
 * it is split among threads. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

struct fl_stream {
    fl_layer *layer;
    fl_pack *pack;
    int version; /* of the layer's weights that `pack` is */
    atomic_flag busy;
    int64_t B, workers; /* that there is scratch for */
    void *memory;
    char *initial_h, *initial_c; /* [L, B, P], [L, B, H]: what reset goes back to */
    const char **x;              /* [B] */
    int64_t *steps;              /* [B], all 1 */
    const void *step_x;          /* of the step that runs */
    void *step_y;
    fl_scan scan[];              /* [L] */
};

static fl_status enter(fl_stream *stream) {
    if (!stream) return fl_fail(FL_BAD_ARGUMENT, "stream: NULL");
    if (atomic_flag_test_and_set_explicit(&stream->busy, memory_order_acquire))
        return fl_fail(FL_BUSY, "stream: another call is using it");
    return FL_OK;
}

static void leave(fl_stream *stream) { atomic_flag_clear_explicit(&stream->busy, memory_order_release); }

static void set_rows(fl_stream *stream, int64_t b) {
    const fl_layer *l = stream->layer;
    const int64_t size = l->kernels->element_bytes;
    for (int64_t i = 0; i < l->config.num_layers; i++) {
        const int64_t row = i * stream->B + b;
        fl_scan_set_state(&stream->scan[i], b, stream->initial_h + row * l->output_size * size,
                          stream->initial_c + row * l->config.hidden_size * size);
    }
}

/* Remembers h and c (NULL: zeros) as the state to return to, and goes there. */
static void set_initial(fl_stream *stream, const void *h, const void *c) {
    const fl_layer *l = stream->layer;
    const size_t rows = (size_t)(l->config.num_layers * stream->B * l->kernels->element_bytes);
    const size_t h_bytes = rows * (size_t)l->output_size, c_bytes = rows * (size_t)l->config.hidden_size;
    if (h) memcpy(stream->initial_h, h, h_bytes);
    else memset(stream->initial_h, 0, h_bytes);
    if (c && l->cell->has_c) memcpy(stream->initial_c, c, c_bytes);
    else memset(stream->initial_c, 0, c_bytes);
    for (int64_t b = 0; b < stream->B; b++) set_rows(stream, b);
}

fl_status fl_stream_create(const fl_layer *layer, int64_t B, const void *h0, const void *c0, fl_stream **out) {
    if (!out) return fl_fail(FL_BAD_ARGUMENT, "stream: NULL");
    *out = NULL;
    if (!layer) return fl_fail(FL_BAD_ARGUMENT, "layer: NULL");
    if (layer->directions == 2 || layer->config.reverse)
        return fl_fail(FL_UNSUPPORTED, "stream: a layer that reads backwards needs the whole sequence");
    const int64_t L = layer->config.num_layers, size = layer->kernels->element_bytes;
    /* With int8 weights each worker has rows of its own. fl_most_step_threads says how many, at most this. */
    const int64_t row_bytes = (16 + 4 * FL_MOST_THREADS) * (layer->hidden_stride + layer->config.input_size + 128);
    int64_t n;
    if (B < 0 || !fl_mul(L * row_bytes, B, &n)) return fl_fail(FL_BAD_ARGUMENT, "B is %lld", (long long)B);
    const int64_t workers = fl_most_step_threads(layer, B);
    if (workers < 0) return FL_BAD_ARGUMENT;
    const int64_t scan = fl_round_up(fl_scan_bytes(layer, B, 1, workers), 64);
    const int64_t h_bytes = fl_round_up(L * B * layer->output_size * size, 64);
    const int64_t c_bytes = fl_round_up(L * B * layer->config.hidden_size * size, 64);
    const int64_t x_bytes = fl_round_up(B * (int64_t)sizeof(void *), 64);
    const int64_t step_bytes = B * (int64_t)sizeof(int64_t);
    fl_stream *s = calloc(1, sizeof *s + (size_t)L * sizeof s->scan[0]);
    char *memory = s ? fl_os_alloc(L * scan + h_bytes + c_bytes + x_bytes + step_bytes) : NULL;
    if (!memory) {
        free(s);
        return fl_fail(FL_NO_MEMORY, "stream: no memory for B = %lld", (long long)B);
    }
    s->pack = fl_layer_pack(layer);
    if (!s->pack) {
        fl_os_free(memory);
        free(s);
        return FL_NO_WEIGHTS;
    }
    s->layer = fl_layer_retain(layer);
    s->version = -1;
    s->B = B;
    s->workers = workers;
    fl_start_threads(workers); /* now, for it allocates */
    s->memory = memory;
    atomic_flag_clear(&s->busy);
    for (int64_t i = 0; i < L; i++, memory += scan)
        fl_scan_init(&s->scan[i], layer, &s->pack->direction[i], B, 1, workers, memory);
    s->initial_h = memory;
    s->initial_c = memory + h_bytes;
    s->x = (const char **)(memory + h_bytes + c_bytes);
    s->steps = (int64_t *)(memory + h_bytes + c_bytes + x_bytes);
    for (int64_t b = 0; b < B; b++) s->steps[b] = 1;
    set_initial(s, h0, c0);
    *out = s;
    return FL_OK;
}

void fl_stream_free(fl_stream *s) {
    if (!s) return;
    fl_pack_release(s->pack);
    fl_free(s->layer);
    fl_os_free(s->memory);
    free(s);
}

/* New weights, if the layer has some: the only time that a step takes the layer's lock. */
static void take_weights(fl_stream *s) {
    const int version = atomic_load_explicit(&s->layer->version, memory_order_acquire);
    if (version == s->version) return;
    fl_pack *pack = fl_layer_pack(s->layer);
    fl_pack_release(s->pack);
    s->pack = pack;
    s->version = version;
    for (int64_t i = 0; i < s->layer->config.num_layers; i++) {
        s->scan[i].weights = &pack->direction[i];
        s->scan[i].active = -1; /* what was filled in points to the old ones */
    }
}

static void run_step(void *context, fl_team *team) {
    fl_stream *s = context;
    const fl_layer *l = s->layer;
    const int64_t size = l->kernels->element_bytes, y_bytes = l->output_size * size;
    fl_rows rows = {.count = s->B, .x = s->x, .steps = s->steps, .end = 1};
    const void *x = s->step_x;
    int64_t x_bytes = l->config.input_size * size;
    for (int64_t i = 0; i < l->config.num_layers; i++) {
        for (int64_t b = 0; b < s->B; b++) {
            s->x[b] = (const char *)x + b * x_bytes;
            s->scan[i].y_rows[b] = (char *)s->step_y + b * y_bytes;
        }
        fl_scan_run(&s->scan[i], &rows, team);
        x = s->step_y; /* the next layer writes over what it has read */
        rows.in_place = true;
        x_bytes = y_bytes;
    }
}

fl_status fl_stream_step(fl_stream *s, const void *x, void *y) {
    const fl_status status = enter(s);
    if (status) return status;
    if (s->B && (!x || !y)) {
        leave(s);
        return fl_fail(FL_BAD_ARGUMENT, "%s: NULL", x ? "y" : "x");
    }
    take_weights(s);
    s->step_x = x;
    s->step_y = y;
    int64_t threads = s->workers > 1 ? fl_step_threads(s->layer, s->B) : 1;
    if (threads > s->workers) threads = s->workers;
    const fl_fp_mode mode = fl_fp_begin();
    if (threads > 1) fl_parallel_stages(threads, run_step, s);
    else run_step(s, NULL);
    fl_fp_end(mode);
    leave(s);
    return FL_OK;
}

fl_status fl_stream_get_state(fl_stream *s, void *h, void *c) {
    const fl_status status = enter(s);
    if (status) return status;
    const fl_layer *l = s->layer;
    const int64_t size = l->kernels->element_bytes, h_bytes = l->output_size * size;
    const int64_t c_bytes = l->config.hidden_size * size;
    for (int64_t i = 0; i < l->config.num_layers; i++)
        for (int64_t b = 0; b < s->B; b++) {
            const int64_t row = i * s->B + b;
            if (h) memcpy((char *)h + row * h_bytes, fl_scan_h(&s->scan[i], b, 0), (size_t)h_bytes);
            if (c && l->cell->has_c) memcpy((char *)c + row * c_bytes, fl_scan_c(&s->scan[i], b, 0), (size_t)c_bytes);
        }
    leave(s);
    return FL_OK;
}

fl_status fl_stream_set_state(fl_stream *s, const void *h, const void *c) {
    const fl_status status = enter(s);
    if (status) return status;
    set_initial(s, h, c);
    leave(s);
    return FL_OK;
}

fl_status fl_stream_reset(fl_stream *s, const int64_t *rows, int64_t count) {
    const fl_status status = enter(s);
    if (status) return status;
    for (int64_t i = 0; rows && i < count; i++)
        if (rows[i] < 0 || rows[i] >= s->B) {
            leave(s);
            return fl_fail(FL_BAD_ARGUMENT, "rows[%lld] is %lld, wanted 0 to %lld", (long long)i, (long long)rows[i],
                           (long long)s->B - 1);
        }
    const int64_t n = rows ? count : s->B;
    for (int64_t i = 0; i < n; i++) set_rows(s, rows ? rows[i] : i);
    leave(s);
    return FL_OK;
}

fl_status fl_stream_copy(fl_stream *s, fl_stream **out) {
    if (!out) return fl_fail(FL_BAD_ARGUMENT, "copy: NULL");
    *out = NULL;
    fl_status status = enter(s);
    if (status) return status;
    fl_stream *copy = NULL;
    status = fl_stream_create(s->layer, s->B, s->initial_h, s->initial_c, &copy);
    for (int64_t i = 0; !status && i < s->layer->config.num_layers; i++)
        for (int64_t b = 0; b < s->B; b++)
            fl_scan_set_state(&copy->scan[i], b, fl_scan_h(&s->scan[i], b, 0), fl_scan_c(&s->scan[i], b, 0));
    leave(s);
    *out = copy;
    return status;
}
