/* The public interface alone, as a user of the C library meets it: create, set weights, run, step, free; every bad
 * argument refused with its status and a message that names it; nothing allocated or freed by a step; user buffers
 * between guard pages. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "allocations.h"
#include "check.h"
#include "fastlstm.h"

#include <sys/mman.h>
#include <unistd.h>

static void *copy_of(const void *from, int64_t bytes) {
    void *memory = malloc((size_t)(bytes ? bytes : 1));
    if (!memory) exit(2);
    if (from) memcpy(memory, from, (size_t)bytes);
    return memory;
}

/* --- layers to test with --- */

enum { I = 5, H = 19, T = 6, B = 4, P = 7, MOST_ROWS = 4 * H };

typedef struct kind {
    const char *name;
    fl_cell_kind cell;
    int64_t gates, layers, proj;
    int bidirectional, reset_before;
} kind;

static const kind kinds[] = {
    {"lstm", FL_LSTM, 4, 2, 0, 0, 0},      {"lstm projection", FL_LSTM, 4, 2, P, 0, 0},
    {"gru", FL_GRU, 3, 1, 0, 0, 0},        {"gru reset before", FL_GRU, 3, 2, 0, 0, 1},
    {"rnn", FL_RNN, 1, 1, 0, 0, 0},        {"gated rnn", FL_GATED_RNN, 2, 3, 0, 0, 0},
    {"lstm both", FL_LSTM, 4, 2, 0, 1, 0}, {"gru both", FL_GRU, 3, 1, 0, 1, 0},
};
enum { KINDS = sizeof kinds / sizeof kinds[0], MOST_ITEMS = 6 };

static float numbers[4 * H * 64];

/* How all layers keep their weights. */
static struct {
    int type, activation_bits;
} small;

/* A matrix in that form, in memory of its own. */
static void shrink(fl_array *matrix, fl_array *scale, int64_t rows, int64_t item, int which) {
    static uint16_t halves[MOST_ITEMS][3][4 * H * 64];
    static int8_t bytes[MOST_ITEMS][3][4 * H * 64];
    static float scales[MOST_ITEMS][3][MOST_ROWS];
    if (!small.type || !matrix->count) return;
    if (small.type == FL_BFLOAT16) {
        fl_to_bfloat16(matrix->data, matrix->count, halves[item][which]);
        matrix->data = halves[item][which];
        return;
    }
    fl_to_int8(matrix->data, rows, matrix->count / rows, bytes[item][which], scales[item][which]);
    matrix->data = bytes[item][which];
    *scale = (fl_array){scales[item][which], rows};
}

static fl_config config_of(const kind *k) {
    fl_config c;
    fl_config_init(&c, k->cell, I, H);
    c.num_layers = k->layers;
    c.proj_size = k->proj;
    c.bidirectional = k->bidirectional;
    c.reset_after = !k->reset_before;
    c.weight_type = small.type;
    c.activation_bits = small.activation_bits;
    return c;
}

static int64_t weights_of(const kind *k, fl_weights *w) {
    const int64_t D = k->bidirectional ? 2 : 1, out = k->proj ? k->proj : H, rows = k->gates * H;
    for (int64_t i = 0; i < k->layers * D; i++) {
        const int64_t inputs = i < D ? I : D * out;
        w[i] = (fl_weights){
            .size = sizeof *w,
            .weight_ih = {numbers + i, rows * inputs},
            .weight_hh = {numbers + 11 + i, rows * out},
            .bias_ih = {numbers + 23, rows},
            .bias_hh = {numbers + 47, rows},
            .weight_hr = {k->proj ? numbers + 59 : NULL, k->proj * H},
        };
        shrink(&w[i].weight_ih, &w[i].scale_ih, rows, i, 0);
        shrink(&w[i].weight_hh, &w[i].scale_hh, rows, i, 1);
        shrink(&w[i].weight_hr, &w[i].scale_hr, k->proj, i, 2);
    }
    return k->layers * D;
}

static fl_layer *layer_of(const kind *k) {
    const fl_config config = config_of(k);
    fl_weights w[MOST_ITEMS];
    fl_layer *layer = NULL;
    check(fl_create(&config, &layer) == FL_OK && layer, "%s: not created: %s", k->name, fl_last_error());
    const int64_t count = weights_of(k, w);
    check(fl_set_weights(layer, w, count) == FL_OK, "%s: weights: %s", k->name, fl_last_error());
    return layer;
}

/* --- it runs --- */

static void test_step_is_forward(const kind *k) {
    if (k->bidirectional) return;
    const int64_t out = k->proj ? k->proj : H;
    fl_layer *layer = layer_of(k);
    static float x[T * B * I], y[T * B * H], h[3 * B * H], c[3 * B * H], h_step[3 * B * H], c_step[3 * B * H];
    memcpy(x, numbers, sizeof x);
    fl_sequence q = dense(T, B, x, I, y, out);
    q.h_n = h;
    q.c_n = c;
    check(fl_forward(layer, &q) == FL_OK, "%s: forward: %s", k->name, fl_last_error());

    fl_stream *stream = NULL, *copy = NULL;
    check(fl_stream_create(layer, B, NULL, NULL, &stream) == FL_OK, "%s: stream: %s", k->name, fl_last_error());
    float step[B * H];
    bool same = true;
    for (int64_t t = 0; t < T; t++) {
        memset(step, 0xff, sizeof step);
        if (t == T / 2) {
            check(fl_stream_copy(stream, &copy) == FL_OK, "%s: copy", k->name);
            fl_stream_free(stream);
            stream = copy;
        }
        const long before = allocations_so_far();
        const fl_status status = fl_stream_step(stream, x + t * B * I, step);
        const long after = allocations_so_far();
        check(status == FL_OK, "%s: step: %s", k->name, fl_last_error());
        check(after == before, "%s: step %d allocated or freed %ld times", k->name, (int)t, after - before);
        same = same && memcmp(step, y + t * B * out, sizeof(float) * (size_t)(B * out)) == 0;
    }
    check(same, "%s: steps are not the call", k->name);
    check(fl_stream_get_state(stream, h_step, k->cell == FL_LSTM ? c_step : NULL) == FL_OK, "%s: state", k->name);
    check(memcmp(h, h_step, sizeof(float) * (size_t)(k->layers * B * out)) == 0, "%s: h differs", k->name);
    check(memcmp(c, c_step, sizeof(float) * (size_t)(k->layers * B * H)) == 0, "%s: c differs", k->name);

    /* Back to the beginning: one row, then all. */
    const int64_t row = 2;
    check(fl_stream_reset(stream, &row, 1) == FL_OK, "%s: reset", k->name);
    fl_stream_step(stream, x, step);
    check(memcmp(step + row * out, y + row * out, sizeof(float) * (size_t)out) == 0, "%s: row not reset", k->name);
    check(memcmp(step, y, sizeof(float) * (size_t)out) != 0, "%s: another row reset", k->name);
    fl_stream_reset(stream, NULL, 0);
    fl_stream_step(stream, x, step);
    check(memcmp(step, y, sizeof(float) * (size_t)(B * out)) == 0, "%s: not reset", k->name);
    check(fl_stream_set_state(stream, h, c) == FL_OK, "%s: state", k->name);
    fl_stream_get_state(stream, h_step, NULL);
    check(memcmp(h, h_step, sizeof(float) * (size_t)(k->layers * B * out)) == 0, "%s: state not set", k->name);
    fl_free(layer); /* the stream lives on */
    check(fl_stream_step(stream, x, step) == FL_OK, "%s: a stream outlives the layer's handle", k->name);
    fl_stream_free(stream);
}

/* One input, one unit, weights 1: the numbers can be followed by hand. */
static void test_known_answer(void) {
    const float one[4] = {1, 1, 1, 1}, x[2] = {0.5f, -1};
    float y[2] = {0}, h = 0, c = 0;
    fl_config config;
    fl_config_init(&config, FL_LSTM, 1, 1);
    config.bias = 0;
    fl_layer *layer = NULL;
    fl_create(&config, &layer);
    const fl_weights w = {.size = sizeof w, .weight_ih = {one, 4}, .weight_hh = {one, 4}};
    check(fl_set_weights(layer, &w, 1) == FL_OK, "known answer: %s", fl_last_error());
    fl_sequence q = dense(2, 1, x, 1, y, 1);
    q.h_n = &h;
    q.c_n = &c;
    check(fl_forward(layer, &q) == FL_OK, "known answer: %s", fl_last_error());
    double hidden = 0, cell = 0;
    for (int t = 0; t < 2; t++) {
        const double z = (double)x[t] + hidden, s = 1 / (1 + exp(-z));
        cell = s * cell + s * tanh(z);
        hidden = s * tanh(cell);
        check(fabs((double)y[t] - hidden) < 1e-6, "known answer: y[%d] is %g, wanted %g", t, (double)y[t], hidden);
    }
    check(h == y[1] && fabs((double)c - cell) < 1e-6, "known answer: final state");
    fl_free(layer);
}

static void test_nothing_to_do(void) {
    fl_layer *layer = layer_of(&kinds[0]);
    float h[2 * B * H], c[2 * B * H], x = 0, y = 0;
    fl_sequence q = {.size = sizeof q, .T = 0, .B = B, .h0 = numbers, .c0 = numbers + 9, .h_n = h, .c_n = c};
    check(fl_forward(layer, &q) == FL_OK, "T = 0: %s", fl_last_error());
    check(memcmp(h, numbers, sizeof h) == 0 && memcmp(c, numbers + 9, sizeof c) == 0,
          "T = 0: state not handed through");
    q.B = 0;
    q.T = 3;
    check(fl_forward(layer, &q) == FL_OK, "B = 0: %s", fl_last_error());
    const int64_t lengths[1] = {0};
    q.B = 1;
    q.T = 1;
    q.x = &x;
    q.y = &y;
    q.lengths = lengths;
    fl_stream *stream = NULL;
    check(fl_stream_create(layer, 0, NULL, NULL, &stream) == FL_OK, "a stream of nobody: %s", fl_last_error());
    check(fl_stream_step(stream, NULL, NULL) == FL_OK, "a step of nobody: %s", fl_last_error());
    check(fl_stream_reset(stream, NULL, 0) == FL_OK, "a reset of nobody");
    fl_stream_free(stream);
    fl_stream_free(NULL);
    fl_free(layer);
    fl_free(NULL);
}

/* --- guard pages --- */

typedef struct fenced {
    char *map, *data;
    size_t bytes;
} fenced;

/* Flush against a page that nobody may touch, after it or before it. */
static fenced fence(const void *from, size_t bytes, bool at_end, bool hidden) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page + (bytes == 0) * page;
    char *map = mmap(NULL, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + page, room, PROT_READ | PROT_WRITE) != 0) exit(2);
    char *data = map + page + (at_end ? room - bytes : 0);
    if (from) memcpy(data, from, bytes);
    else memset(data, 0xff, bytes);
    if (hidden) mprotect(map + page, room, PROT_NONE);
    return (fenced){map, data, room + 2 * page};
}

static void test_guard_pages(const kind *k) {
    enum { LONG_T = 1100 };
    const int64_t D = k->bidirectional ? 2 : 1, out = k->proj ? k->proj : H, items = k->layers * D;
    fl_layer *layer = layer_of(k);
    for (int at_end = 0; at_end < 2; at_end++)
        for (int ragged = 0; ragged < 2; ragged++) {
            const int64_t lengths[B] = {ragged ? 3 : T, ragged ? 0 : T, T, ragged ? 1 : T};
            float wanted_y[T * B * 2 * H], wanted_h[MOST_ITEMS * B * H];
            fl_sequence q = dense(T, B, numbers, I, wanted_y, D * out);
            q.lengths = lengths;
            q.h0 = numbers;
            q.c0 = numbers + 3;
            q.h_n = wanted_h;
            check(fl_forward(layer, &q) == FL_OK, "%s: %s", k->name, fl_last_error());

            const size_t y_bytes = sizeof(float) * (size_t)(T * B * D * out);
            const size_t h_bytes = sizeof(float) * (size_t)(items * B * out);
            const size_t c_bytes = sizeof(float) * (size_t)(items * B * H);
            fenced f[] = {
                fence(numbers, sizeof(float) * T * B * I, at_end, false),
                fence(NULL, y_bytes, at_end, false),
                fence(lengths, sizeof lengths, at_end, false),
                fence(numbers, h_bytes, at_end, false),
                fence(numbers + 3, c_bytes, at_end, false),
                fence(NULL, h_bytes, at_end, false),
                fence(NULL, c_bytes, at_end, false),
            };
            q.x = f[0].data;
            q.y = f[1].data;
            q.lengths = (const int64_t *)(void *)f[2].data;
            q.h0 = f[3].data;
            q.c0 = k->cell == FL_LSTM ? f[4].data : NULL;
            q.h_n = f[5].data;
            q.c_n = k->cell == FL_LSTM ? f[6].data : NULL;
            check(fl_forward(layer, &q) == FL_OK, "%s: %s", k->name, fl_last_error());
            check(memcmp(q.y, wanted_y, y_bytes) == 0, "%s: y differs between guard pages", k->name);
            check(memcmp(q.h_n, wanted_h, h_bytes) == 0, "%s: h differs between guard pages", k->name);
            for (size_t i = 0; i < sizeof f / sizeof f[0]; i++) munmap(f[i].map, f[i].bytes);
        }
    /* Padding on pages that nobody may read: sequence b of a [B, T, I] array ends where they begin. */
    const size_t row = sizeof(float) * LONG_T * I, page = (size_t)sysconf(_SC_PAGESIZE);
    const int64_t n = (int64_t)(page / sizeof(float) / I);
    const size_t stride = (row + page - 1) / page * page;
    const fenced x = fence(NULL, 2 * stride, false, true);
    float *y = copy_of(NULL, (int64_t)sizeof(float) * 2 * LONG_T * D * out);
    for (int b = 0; b < 2; b++) {
        mprotect(x.data + (size_t)b * stride, page, PROT_READ | PROT_WRITE);
        memcpy(x.data + (size_t)b * stride, numbers, page);
    }
    const int64_t lengths[2] = {n, n - 3};
    const fl_sequence q = {.size = sizeof q,
                           .T = LONG_T,
                           .B = 2,
                           .x = x.data,
                           .x_stride_t = I,
                           .x_stride_b = (int64_t)(stride / sizeof(float)),
                           .y = y,
                           .y_stride_t = D * out,
                           .y_stride_b = LONG_T * D * out,
                           .lengths = lengths};
    check(fl_forward(layer, &q) == FL_OK, "%s: hidden padding: %s", k->name, fl_last_error());
    bool zero = true;
    for (int b = 0; b < 2; b++)
        for (int64_t i = lengths[b] * D * out; i < LONG_T * D * out; i++)
            zero = zero && y[b * LONG_T * D * out + i] == 0;
    check(zero, "%s: padded output is not zero", k->name);
    munmap(x.map, x.bytes);
    free(y);
    fl_free(layer);
}

/* --- it refuses --- */

static void refused(fl_status got, fl_status wanted, const char *name, const char *what) {
    check(got == wanted, "%s: status %d, wanted %d", what, got, wanted);
    check(strstr(fl_last_error(), name) != NULL, "%s: '%s' does not name %s", what, fl_last_error(), name);
}

static void test_bad_config(void) {
    fl_layer *layer = (fl_layer *)&numbers;
#define REFUSE(field, value, name)                                                  \
    do {                                                                            \
        fl_config c = config_of(&kinds[0]);                                         \
        c.field = value;                                                            \
        refused(fl_create(&c, &layer), FL_BAD_ARGUMENT, name, #field " = " #value); \
        check(layer == NULL, #field ": the handle is not NULL");                    \
    } while (0)
    REFUSE(size, 0, "size");
    REFUSE(size, sizeof(fl_config) + 8, "size");
    REFUSE(cell, 4, "cell");
    REFUSE(cell, -1, "cell");
    REFUSE(dtype, 2, "dtype");
    REFUSE(dtype, -1, "dtype");
    REFUSE(input_size, 0, "input_size");
    REFUSE(input_size, INT64_MAX, "input_size");
    REFUSE(hidden_size, 0, "hidden_size");
    REFUSE(hidden_size, -5, "hidden_size");
    REFUSE(hidden_size, INT64_MIN, "hidden_size");
    REFUSE(proj_size, -1, "proj_size");
    REFUSE(proj_size, H, "proj_size");
    REFUSE(num_layers, 0, "num_layers");
    REFUSE(num_layers, INT64_MAX, "num_layers");
    REFUSE(reset_after, 0, "reset_after");
    REFUSE(clip, -1, "clip");
    REFUSE(clip, NAN, "clip");
    REFUSE(clip, INFINITY, "clip");
    fl_config c = config_of(&kinds[0]);
    c.bidirectional = c.reverse = 1;
    refused(fl_create(&c, &layer), FL_BAD_ARGUMENT, "reverse", "reverse and bidirectional");
    c = config_of(&kinds[0]);
    c.forget_gate = 0;
    c.coupled_gates = 1;
    refused(fl_create(&c, &layer), FL_BAD_ARGUMENT, "coupled_gates", "coupled without forget gate");
    c = config_of(&kinds[2]);
    c.peepholes = 1;
    refused(fl_create(&c, &layer), FL_BAD_ARGUMENT, "peepholes", "peepholes of a GRU");
    c = config_of(&kinds[2]);
    c.proj_size = 1;
    refused(fl_create(&c, &layer), FL_BAD_ARGUMENT, "proj_size", "projection of a GRU");
    c = config_of(&kinds[0]);
    c.own_activations = 1;
    c.activations[1].kind = 11;
    refused(fl_create(&c, &layer), FL_BAD_ARGUMENT, "activation", "activation 11");
    c.activations[1] = (fl_activation){FL_ELU, NAN, 0};
    refused(fl_create(&c, &layer), FL_BAD_ARGUMENT, "alpha", "alpha NaN");
    refused(fl_create(NULL, &layer), FL_BAD_ARGUMENT, "config", "no config");
    refused(fl_create(&c, NULL), FL_BAD_ARGUMENT, "layer", "no layer");
    fl_config_init(NULL, FL_LSTM, 1, 1);
}

static void test_bad_weights(void) {
    const kind *k = &kinds[1];
    const fl_config config = config_of(k);
    fl_layer *layer = NULL;
    fl_weights w[MOST_ITEMS];
    const int64_t count = weights_of(k, w);
    check(fl_create(&config, &layer) == FL_OK, "create");
    float x[I] = {0}, y[P];
    const fl_sequence q = dense(1, 1, x, I, y, P);
    refused(fl_forward(layer, &q), FL_NO_WEIGHTS, "weights", "forward without weights");
    fl_stream *stream;
    refused(fl_stream_create(layer, 1, NULL, NULL, &stream), FL_NO_WEIGHTS, "weights", "stream without weights");
    refused(fl_set_weights(NULL, w, count), FL_BAD_ARGUMENT, "layer", "no layer");
    refused(fl_set_weights(layer, NULL, count), FL_BAD_ARGUMENT, "weights", "no weights");
    refused(fl_set_weights(layer, w, count + 1), FL_BAD_ARGUMENT, "count", "too many");
    refused(fl_set_weights(layer, w, -1), FL_BAD_ARGUMENT, "count", "too few");
#define REFUSE_WEIGHT(field, array, n)                                                      \
    do {                                                                                    \
        weights_of(k, w);                                                                   \
        w[1].field = (fl_array){array, n};                                                  \
        refused(fl_set_weights(layer, w, count), FL_BAD_ARGUMENT, #field, #field " wrong"); \
    } while (0)
    REFUSE_WEIGHT(weight_ih, numbers, 4 * H * P - 1);
    REFUSE_WEIGHT(weight_ih, NULL, 4 * H * P);
    REFUSE_WEIGHT(weight_hh, numbers, 4 * H * H);
    REFUSE_WEIGHT(weight_hh, NULL, 4 * H * P);
    REFUSE_WEIGHT(bias_ih, numbers, 0);
    REFUSE_WEIGHT(bias_ih, NULL, 4 * H);
    REFUSE_WEIGHT(bias_hh, numbers, -4 * H);
    REFUSE_WEIGHT(weight_hr, NULL, P * H);
    REFUSE_WEIGHT(weight_hr, numbers, H);
    REFUSE_WEIGHT(weight_peephole, numbers, 3 * H);
    weights_of(k, w);
    w[0].size = 8;
    refused(fl_set_weights(layer, w, count), FL_BAD_ARGUMENT, "size", "size of weights");
    weights_of(k, w);
    check(fl_set_weights(layer, w, count) == FL_OK, "the right ones: %s", fl_last_error());
    check(fl_forward(layer, &q) == FL_OK, "after that: %s", fl_last_error());
    fl_free(layer);
}

static void test_bad_small_weights(void) {
    const kind *k = &kinds[1];
    fl_layer *layer = NULL;
    fl_weights w[MOST_ITEMS];
    REFUSE(weight_type, 3, "weight_type");
    REFUSE(weight_type, -1, "weight_type");
    REFUSE(activation_bits, 8, "activation_bits");
    REFUSE(weight_type, FL_INT8, "activation_bits");
    fl_config c = config_of(k);
    c.weight_type = FL_BFLOAT16;
    c.dtype = FL_FLOAT64;
    refused(fl_create(&c, &layer), FL_BAD_ARGUMENT, "weight_type", "bfloat16 of float64");
    c = config_of(k);
    c.weight_type = FL_INT8;
    c.activation_bits = 8;
    c.input_size = FL_MOST_INT8 + 1;
    refused(fl_create(&c, &layer), FL_BAD_ARGUMENT, "input_size", "too many inputs");
    float bad[2] = {1, NAN}, scale[2];
    int8_t bytes[2];
    refused(fl_to_int8(bad, 1, 2, bytes, scale), FL_BAD_ARGUMENT, "weight", "NaN");
    refused(fl_to_int8(bad, 1, INT64_MAX, bytes, scale), FL_BAD_ARGUMENT, "weight", "size");
    refused(fl_to_int8(bad, -1, 2, bytes, scale), FL_BAD_ARGUMENT, "weight", "rows");
    refused(fl_to_int8(NULL, 1, 2, bytes, scale), FL_BAD_ARGUMENT, "weight", "no weight");
    refused(fl_to_int8(bad, 1, 1, NULL, scale), FL_BAD_ARGUMENT, "out", "no out");
    refused(fl_to_int8(bad, 1, 1, bytes, NULL), FL_BAD_ARGUMENT, "scale", "no scale");
    refused(fl_to_bfloat16(NULL, 2, NULL), FL_BAD_ARGUMENT, "weight", "no weight");
    refused(fl_to_bfloat16(bad, -2, NULL), FL_BAD_ARGUMENT, "weight", "count");
    small.type = FL_INT8;
    small.activation_bits = 16;
    c = config_of(k);
    const int64_t count = weights_of(k, w);
    check(fl_create(&c, &layer) == FL_OK, "create: %s", fl_last_error());
    w[1].scale_hr.count--;
    refused(fl_set_weights(layer, w, count), FL_BAD_ARGUMENT, "scale_hr", "a scale too few");
    weights_of(k, w);
    ((int8_t *)(uintptr_t)w[1].weight_hh.data)[5] = -128;
    refused(fl_set_weights(layer, w, count), FL_BAD_ARGUMENT, "weight_hh", "-128");
    weights_of(k, w);
    check(fl_set_weights(layer, w, count) == FL_OK, "the right ones: %s", fl_last_error());
    float x[I] = {0}, y[P];
    const fl_sequence q = dense(1, 1, x, I, y, P);
    fl_tape *tape;
    refused(fl_record(layer, 0, &q, 0, &tape), FL_UNSUPPORTED, "record", "record");
    /* Room for so many rows and each worker's numbers is more than there are addresses. */
    fl_stream *stream;
    const int64_t threads = fl_get_num_threads();
    check(fl_set_num_threads(256) == FL_OK, "threads");
    for (int64_t rows = (int64_t)1 << 39; rows > 0; rows = rows > INT64_MAX / 3 ? 0 : rows * 3 - 1)
        refused(fl_stream_create(layer, rows, NULL, NULL, &stream), FL_BAD_ARGUMENT, "B is", "too many rows");
    check(fl_set_num_threads(threads) == FL_OK, "threads");
    fl_free(layer);
    small.type = small.activation_bits = 0;
}

static void test_bad_sequence(void) {
    fl_layer *layer = layer_of(&kinds[0]);
    float x[T * B * I] = {0}, y[T * B * H];
    const int64_t long_one[B] = {1, T + 1, 0, 0}, negative[B] = {1, 2, 3, -1};
    const fl_sequence good = dense(T, B, x, I, y, H);
#define REFUSE_SEQUENCE(field, value, name)                                         \
    do {                                                                            \
        fl_sequence q = good;                                                       \
        q.field = value;                                                            \
        refused(fl_forward(layer, &q), FL_BAD_ARGUMENT, name, #field " = " #value); \
    } while (0)
    REFUSE_SEQUENCE(size, 1, "size");
    REFUSE_SEQUENCE(T, -1, "T");
    REFUSE_SEQUENCE(B, -1, "B");
    REFUSE_SEQUENCE(T, INT64_MAX, "T");
    REFUSE_SEQUENCE(B, INT64_MAX, "B");
    REFUSE_SEQUENCE(T, (int64_t)1 << 56, "T");
    REFUSE_SEQUENCE(B, (int64_t)1 << 56, "B");
    REFUSE_SEQUENCE(x, NULL, "x");
    REFUSE_SEQUENCE(y, NULL, "y");
    REFUSE_SEQUENCE(x_stride_t, INT64_MAX / 2, "x_stride_t");
    REFUSE_SEQUENCE(x_stride_b, INT64_MIN, "x_stride_b");
    REFUSE_SEQUENCE(y_stride_t, INT64_MIN / 4, "y_stride_t");
    REFUSE_SEQUENCE(y_stride_b, INT64_MAX, "y_stride_b");
    REFUSE_SEQUENCE(lengths, long_one, "lengths[1]");
    REFUSE_SEQUENCE(lengths, negative, "lengths[3]");
    refused(fl_forward(NULL, &good), FL_BAD_ARGUMENT, "layer", "no layer");
    refused(fl_forward(layer, NULL), FL_BAD_ARGUMENT, "sequence", "no sequence");
    check(fl_forward(layer, &good) == FL_OK, "a good one: %s", fl_last_error());

    fl_stream *stream = NULL, *none = (fl_stream *)&x;
    refused(fl_stream_create(NULL, 1, NULL, NULL, &none), FL_BAD_ARGUMENT, "layer", "a stream of no layer");
    check(none == NULL, "the handle of a refused stream is not NULL");
    refused(fl_stream_create(layer, 1, NULL, NULL, NULL), FL_BAD_ARGUMENT, "stream", "no handle");
    refused(fl_stream_create(layer, -1, NULL, NULL, &none), FL_BAD_ARGUMENT, "B", "B = -1");
    refused(fl_stream_create(layer, INT64_MAX, NULL, NULL, &none), FL_BAD_ARGUMENT, "B", "B huge");
    fl_layer *both = layer_of(&kinds[6]);
    refused(fl_stream_create(both, 1, NULL, NULL, &none), FL_UNSUPPORTED, "stream", "a stream backwards");
    fl_free(both);
    check(fl_stream_create(layer, B, NULL, NULL, &stream) == FL_OK, "stream: %s", fl_last_error());
    refused(fl_stream_step(NULL, x, y), FL_BAD_ARGUMENT, "stream", "a step of no stream");
    refused(fl_stream_step(stream, NULL, y), FL_BAD_ARGUMENT, "x", "a step without x");
    refused(fl_stream_step(stream, x, NULL), FL_BAD_ARGUMENT, "y", "a step without y");
    refused(fl_stream_get_state(NULL, x, NULL), FL_BAD_ARGUMENT, "stream", "state of no stream");
    refused(fl_stream_set_state(NULL, x, NULL), FL_BAD_ARGUMENT, "stream", "state to no stream");
    refused(fl_stream_copy(NULL, &none), FL_BAD_ARGUMENT, "stream", "copy of no stream");
    refused(fl_stream_copy(stream, NULL), FL_BAD_ARGUMENT, "copy", "copy to nowhere");
    const int64_t rows[2] = {1, B};
    refused(fl_stream_reset(stream, rows, 2), FL_BAD_ARGUMENT, "rows[1]", "a row too many");
    refused(fl_stream_reset(NULL, rows, 1), FL_BAD_ARGUMENT, "stream", "reset of no stream");
    check(fl_stream_step(stream, x, y) == FL_OK, "a stream that has refused still works: %s", fl_last_error());
    fl_stream_free(stream);
    fl_free(layer);

    refused(fl_set_num_threads(0), FL_BAD_ARGUMENT, "n is 0", "no threads");
    refused(fl_set_num_threads(-3), FL_BAD_ARGUMENT, "n is -3", "-3 threads");
    refused(fl_set_num_threads(100000), FL_BAD_ARGUMENT, "n is 100000", "many threads");
    refused(fl_set_spin_us(-1), FL_BAD_ARGUMENT, "us", "spin -1");
    refused(fl_set_spin_us(NAN), FL_BAD_ARGUMENT, "us", "spin NaN");
    check(fl_set_num_threads(2) == FL_OK && fl_get_num_threads() == 2, "two threads");
    check(fl_set_spin_us(0) == FL_OK && fl_set_spin_us(20) == FL_OK, "spin");
}

/* A step so long that it takes a second thread, which exists from the stream's creation on. */
static void test_long_step(void) {
    enum { LONG_H = 900 };
    fl_config config;
    fl_config_init(&config, FL_LSTM, 1, LONG_H);
    fl_layer *layer = NULL;
    fl_stream *stream = NULL;
    check(fl_set_num_threads(2) == FL_OK && fl_create(&config, &layer) == FL_OK, "long step: %s", fl_last_error());
    const int64_t G = 4 * LONG_H;
    float *weights = calloc((size_t)(G * (LONG_H + 3)), sizeof *weights), y[LONG_H];
    for (int64_t i = 0; i < G * (LONG_H + 3); i++) weights[i] = numbers[i % (T * B * I)] / 16;
    const fl_weights w = {.size = sizeof w,
                          .weight_ih = {weights, G},
                          .weight_hh = {weights + G, G * LONG_H},
                          .bias_ih = {weights + G * (LONG_H + 1), G},
                          .bias_hh = {weights + G * (LONG_H + 2), G}};
    check(fl_set_weights(layer, &w, 1) == FL_OK, "long step: %s", fl_last_error());
    check(fl_stream_create(layer, 1, NULL, NULL, &stream) == FL_OK, "long step: %s", fl_last_error());
    const long before = allocations_so_far();
    for (int t = 0; t < 20; t++) check(fl_stream_step(stream, numbers, y) == FL_OK, "long step: %s", fl_last_error());
    check(allocations_so_far() == before, "a long step allocated");
    fl_stream_free(stream);
    fl_free(layer);
    free(weights);
}

int main(void) {
    uint64_t state = 5;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) numbers[i] = (float)(random_unit(&state) / 4);
    printf("fastlstm %s on %s\n", fl_version(), fl_isa() ? fl_isa() : fl_last_error());
    test_known_answer();
    test_nothing_to_do();
    for (int form = 0; form < 4; form++) {
        small.type = form < 2 ? form : FL_INT8;
        small.activation_bits = form < 2 ? 0 : form == 2 ? 8 : 16;
        for (int i = 0; i < KINDS; i++) {
            test_step_is_forward(&kinds[i]);
            test_guard_pages(&kinds[i]);
        }
    }
    small.type = small.activation_bits = 0;
    test_long_step();
    test_bad_config();
    test_bad_weights();
    test_bad_small_weights();
    test_bad_sequence();
#if defined(COUNTS_ALLOCATIONS)
    const long before = allocations_so_far();
    free(copy_of(NULL, 8));
    check(allocations_so_far() == before + 2, "the malloc that counts does not");
#else
    printf("allocations were not counted: this build has a malloc of its own\n");
#endif
    check(fl_estimate_us(NULL, 1, 1) == 0 && fl_isa_at(0) && !fl_isa_at(99) && !fl_isa_at(-1), "small questions");
    return check_report();
}
