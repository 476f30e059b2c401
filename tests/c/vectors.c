/* The bits of a fixed set of runs, forward and backward, one line each, on the path that is chosen (FASTLSTM_ISA):
 * two machines agree if the outputs are equal byte for byte. The first line names the path; skip it when comparing.
 * Weights and inputs are made of integers, so that no library stands between two machines; NaN is one NaN. */
#include "check.h"
#include "fastlstm.h"

enum { LENGTHS = 5 };

static int64_t T = 7, B = LENGTHS;

typedef struct option {
    const char *name;
    int cell;
    int64_t layers, proj; /* proj 1: half of H */
    int bidirectional, reverse, no_bias, peepholes, no_forget, coupled, reset_before;
    double clip;
    int activations[3]; /* -1: own */
    bool ragged;
} option;

#define OWN {-1, -1, -1}
static const option options[] = {
    {"lstm", FL_LSTM, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, OWN, false},
    {"lstm ragged", FL_LSTM, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, OWN, true},
    {"lstm no bias reverse", FL_LSTM, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, OWN, true},
    {"lstm projection", FL_LSTM, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, OWN, true},
    {"lstm peepholes clip", FL_LSTM, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0.5, OWN, false},
    {"lstm no forget gate", FL_LSTM, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, OWN, false},
    {"lstm coupled", FL_LSTM, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, OWN, true},
    {"gru", FL_GRU, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, OWN, false},
    {"gru ragged", FL_GRU, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, OWN, true},
    {"gru reset before", FL_GRU, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, OWN, true},
    {"gru clip no bias", FL_GRU, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0.25, OWN, false},
    {"rnn", FL_RNN, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, OWN, false},
    {"rnn ragged", FL_RNN, 3, 0, 1, 0, 0, 0, 0, 0, 0, 0, OWN, true},
    {"gated rnn", FL_GATED_RNN, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, OWN, false},
    {"gated rnn ragged", FL_GATED_RNN, 2, 0, 1, 0, 1, 0, 0, 0, 0, 2, OWN, true},
    {"lstm relu affine leaky", FL_LSTM, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0.75, {FL_RELU, FL_AFFINE, FL_LEAKY_RELU}, true},
    {"lstm threshold scaled elu",
     FL_LSTM,
     1,
     0,
     0,
     0,
     0,
     0,
     0,
     0,
     0,
     0.75,
     {FL_THRESHOLDED_RELU, FL_SCALED_TANH, FL_ELU},
     true},
    {"gru hard softsign", FL_GRU, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, {FL_HARD_SIGMOID, FL_SOFTSIGN, -1}, true},
    {"gru before hard scaled", FL_GRU, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, {FL_HARD_SIGMOID, FL_SCALED_TANH, -1}, true},
    {"gated softplus elu", FL_GATED_RNN, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, {FL_SOFTPLUS, FL_ELU, -1}, false},
    {"rnn softplus", FL_RNN, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, {FL_SOFTPLUS, -1, -1}, false},
    {"rnn sigmoid", FL_RNN, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, {FL_SIGMOID, -1, -1}, false},
};

static const double alphas[11] = {0, 0, 0, 0.75, 0.125, 0.25, 1.5, 0.25, 0.5, 0, 0};
static const double betas[11] = {0, 0, 0, 0.125, 0, 0, 0.75, 0.5, 0, 0, 0};

static int64_t element; /* bytes */

static void *array_of(int64_t count, uint64_t seed, double scale) {
    void *array = malloc((size_t)(count ? count : 1) * 8);
    if (!array) exit(2);
    for (int64_t i = 0; i < count; i++) put(array, element, i, random_unit(&seed) * scale);
    return array;
}

static void ok(fl_status status) {
    if (status == FL_OK) return;
    fprintf(stderr, "%s\n", fl_last_error());
    exit(2);
}

/* FNV-1a over the bytes; every NaN as one, in the same order on any machine. */
static void print_bits(const char *what, const void *array, int64_t count) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < count; i++) {
        const double v = get(array, element, i);
        uint64_t bits = 0;
        float f = (float)v;
        if (isnan(v)) bits = 0x7ff8;
        else if (element == 4) memcpy(&bits, &f, 4);
        else memcpy(&bits, &v, 8);
        for (int64_t b = 0; b < element; b++) hash = (hash ^ (bits >> (8 * b) & 0xff)) * 0x100000001b3u;
    }
    printf(" %s %016llx", what, (unsigned long long)hash);
    for (int64_t i = 0; i < 2 && count; i++) {
        const double v = get(array, element, i * (count - 1));
        if (isnan(v)) printf(" nan");
        else printf(" %a", v);
    }
}

/* Scale of the weights so that H units neither die out nor saturate: a power of two near 1 / sqrt(H). */
static double weight_scale(int64_t hidden) {
    double s = 1;
    while (s * s * (double)hidden > 1) s /= 2;
    return s;
}

typedef enum special { PLAIN, NOT_FINITE, TINY, SPECIALS } special;

/* The stack recorded layer by layer, with and without checkpoints, and all of its gradients. */
static void print_gradients(const fl_layer *layer, const fl_config *c, int64_t rows, fl_sequence q) {
    const int64_t D = c->bidirectional ? 2 : 1, H = c->hidden_size, P = c->proj_size ? c->proj_size : H;
    const int64_t width = D * P;
    for (int64_t i = 0; i < c->num_layers; i++) {
        const int64_t inputs = i ? width : c->input_size;
        const int64_t counts[] = {rows * inputs, rows * P, rows, rows, c->proj_size * H, 3 * H};
        const bool there[] = {true, true, c->bias, c->bias, c->proj_size != 0, c->peepholes};
        void *y = array_of(T * B * width, 20, 1), *dy = array_of(T * B * width, 21, 1);
        void *dh_n = array_of(D * B * P, 22, 1), *dc_n = array_of(D * B * H, 23, 1);
        void *dx = array_of(T * B * inputs, 24, 1), *dh0 = array_of(D * B * P, 25, 1);
        void *dc0 = array_of(D * B * H, 26, 1), *weights[2][6];
        fl_gradients g = {
            .size = sizeof g,
            .dy = dy,
            .dy_stride_t = B * width,
            .dy_stride_b = width,
            .dh_n = dh_n,
            .dc_n = c->cell == FL_LSTM ? dc_n : NULL,
            .dx = dx,
            .dx_stride_t = B * inputs,
            .dx_stride_b = inputs,
            .dh0 = dh0,
            .dc0 = c->cell == FL_LSTM ? dc0 : NULL,
        };
        for (int64_t d = 0; d < D; d++) {
            fl_gradient *const fields[] = {&g.weights[d].weight_ih, &g.weights[d].weight_hh,
                                           &g.weights[d].bias_ih,   &g.weights[d].bias_hh,
                                           &g.weights[d].weight_hr, &g.weights[d].weight_peephole};
            for (int j = 0; j < 6; j++) {
                weights[d][j] = array_of(there[j] ? counts[j] : 0, 27, 1);
                if (there[j]) *fields[j] = (fl_gradient){weights[d][j], counts[j]};
            }
        }
        fl_tape *tape;
        q.y = y;
        q.y_stride_t = B * width;
        q.y_stride_b = width;
        q.h_n = q.c_n = NULL;
        ok(fl_record(layer, i, &q, i % 2 ? 3 : 0, &tape));
        ok(fl_backward(tape, &g));
        fl_tape_free(tape);
        print_bits("dx", dx, T * B * inputs);
        print_bits("dh0", dh0, D * B * P);
        if (c->cell == FL_LSTM) print_bits("dc0", dc0, D * B * H);
        for (int64_t d = 0; d < D; d++)
            for (int j = 0; j < 6; j++) {
                if (there[j]) print_bits("dw", weights[d][j], counts[j]);
                free(weights[d][j]);
            }
        if (i > 0) free((void *)q.x);
        q.x = y;
        q.x_stride_t = B * width;
        q.x_stride_b = width;
        q.h0 = (const char *)q.h0 + D * B * P * element;
        if (q.c0) q.c0 = (const char *)q.c0 + D * B * H * element;
        void *arrays[] = {dy, dh_n, dc_n, dx, dh0, dc0};
        for (int a = 0; a < 6; a++) free(arrays[a]);
    }
    free((void *)q.x);
}

/* Of the layers that run: as they are, or smaller. */
typedef struct weight_kind {
    const char *name;
    int type, activation_bits;
} weight_kind;

static const weight_kind weight_kinds[] = {
    {"", FL_FULL, 0}, {" bfloat16", FL_BFLOAT16, 0}, {" int8", FL_INT8, 8}, {" int8, 16 bits", FL_INT8, 16}};
static const weight_kind *weights_are = weight_kinds;

/* Replaces a float32 matrix by its smaller form; `scale` for int8. */
static void shrink(fl_array *matrix, fl_array *scale, int64_t rows) {
    if (!matrix->count || weights_are->type == FL_FULL) return;
    void *whole = (void *)matrix->data, *small = malloc((size_t)matrix->count * 2);
    float *scales = malloc((size_t)rows * sizeof *scales);
    if (!small || !scales) exit(2);
    if (weights_are->type == FL_BFLOAT16) {
        ok(fl_to_bfloat16(whole, matrix->count, small));
        free(scales);
    } else {
        ok(fl_to_int8(whole, rows, matrix->count / rows, small, scales));
        *scale = (fl_array){scales, rows};
    }
    matrix->data = small;
    free(whole);
}

static void run(const option *o, fl_dtype dtype, int64_t inputs, int64_t hidden, special kind) {
    fl_config config;
    fl_config_init(&config, (fl_cell_kind)o->cell, inputs, hidden);
    config.dtype = dtype;
    config.num_layers = o->layers;
    config.proj_size = o->proj ? hidden / 2 : 0;
    config.bidirectional = o->bidirectional;
    config.reverse = o->reverse;
    config.bias = !o->no_bias;
    config.peepholes = o->peepholes;
    config.forget_gate = !o->no_forget;
    config.coupled_gates = o->coupled;
    config.reset_after = !o->reset_before;
    config.clip = o->clip;
    config.weight_type = weights_are->type;
    config.activation_bits = weights_are->activation_bits;
    const int roles = o->cell == FL_LSTM ? 3 : o->cell == FL_RNN ? 1 : 2;
    for (int i = 0; i < roles && o->activations[0] >= 0; i++) {
        config.own_activations = 1;
        config.activations[i].kind = o->activations[i];
        config.activations[i].alpha = alphas[o->activations[i]];
        config.activations[i].beta = betas[o->activations[i]];
    }
    fl_layer *layer;
    ok(fl_create(&config, &layer));

    static const int64_t gates_of[] = {4, 3, 1, 2};
    const int64_t D = o->bidirectional ? 2 : 1, P = config.proj_size ? config.proj_size : hidden;
    const int64_t rows = gates_of[o->cell] * hidden, count = o->layers * D;
    const double scale = weight_scale(hidden);
    fl_weights *w = calloc((size_t)count, sizeof *w);
    if (!w) exit(2);
    for (int64_t i = 0; i < count; i++) {
        const int64_t in = i < D ? inputs : D * P;
        const uint64_t seed = (uint64_t)(1000 * i);
        w[i].size = sizeof *w;
        w[i].weight_ih = (fl_array){array_of(rows * in, seed + 1, weight_scale(in)), rows * in};
        w[i].weight_hh = (fl_array){array_of(rows * P, seed + 2, scale), rows * P};
        if (!o->no_bias) {
            w[i].bias_ih = (fl_array){array_of(rows, seed + 3, 0.5), rows};
            w[i].bias_hh = (fl_array){array_of(rows, seed + 4, 0.5), rows};
        }
        if (config.proj_size) w[i].weight_hr = (fl_array){array_of(P * hidden, seed + 5, scale), P * hidden};
        if (o->peepholes) w[i].weight_peephole = (fl_array){array_of(3 * hidden, seed + 6, 0.5), 3 * hidden};
        shrink(&w[i].weight_ih, &w[i].scale_ih, rows);
        shrink(&w[i].weight_hh, &w[i].scale_hh, rows);
        shrink(&w[i].weight_hr, &w[i].scale_hr, P);
    }
    ok(fl_set_weights(layer, w, count));

    void *x = array_of(T * B * inputs, 7, 2), *h0 = array_of(count * B * P, 8, 1);
    void *c0 = array_of(count * B * hidden, 9, 2), *y = array_of(T * B * D * P, 10, 1);
    void *h_n = array_of(count * B * P, 11, 1), *c_n = array_of(count * B * hidden, 12, 1);
    static const double odd[] = {NAN, INFINITY, 1e30, -1e30, -INFINITY};
    if (kind == NOT_FINITE)
        for (int64_t b = 0; b < B; b++) put(x, element, ((b + 1) * B + b) * inputs, odd[b]); /* at step b + 1 */
    if (kind == TINY)
        for (int64_t i = 0; i < B * inputs; i++) {
            /* Subnormal, and so small that a product with it is. */
            put(x, element, 2 * B * inputs + i, (element == 4 ? 0x1p-130 : 0x1p-1030) * (double)(1 + i % 7));
            put(x, element, 3 * B * inputs + i, (element == 4 ? -0x1.8p-126 : -0x1.8p-1022) * (double)(1 + i % 3));
        }
    static const int64_t lengths[LENGTHS] = {3, 7, 0, 1, 6};
    fl_sequence q = {
        .size = sizeof q,
        .T = T,
        .B = B,
        .x = x,
        .x_stride_t = B * inputs,
        .x_stride_b = inputs,
        .y = y,
        .y_stride_t = B * D * P,
        .y_stride_b = D * P,
        .lengths = o->ragged ? lengths : NULL,
        .h0 = h0,
        .c0 = o->cell == FL_LSTM ? c0 : NULL,
        .h_n = h_n,
        .c_n = o->cell == FL_LSTM ? c_n : NULL,
    };
    ok(fl_forward(layer, &q));
    static const char *const kinds[] = {"", " not finite", " tiny"};
    printf("%s%s%s f%d I=%d H=%d:", o->name, weights_are->name, kinds[kind], element == 4 ? 32 : 64, (int)inputs,
           (int)hidden);
    print_bits("y", y, T * B * D * P);
    print_bits("h", h_n, count * B * P);
    if (o->cell == FL_LSTM) print_bits("c", c_n, count * B * hidden);

    if (weights_are->type == FL_FULL) print_gradients(layer, &config, rows, q);
    if (D == 1 && !o->reverse) { /* the same steps from a stream, the first sequence alone */
        fl_stream *stream;
        ok(fl_stream_create(layer, 1, NULL, NULL, &stream));
        for (int64_t t = 0; t < T; t++)
            ok(fl_stream_step(stream, (char *)x + t * B * inputs * element, (char *)y + t * P * element));
        print_bits("stream", y, T * P);
        fl_stream_free(stream);
    }
    printf("\n");
    for (int64_t i = 0; i < count; i++) {
        const fl_array *arrays[] = {&w[i].weight_ih, &w[i].weight_hh, &w[i].bias_ih,
                                    &w[i].bias_hh,   &w[i].weight_hr, &w[i].weight_peephole,
                                    &w[i].scale_ih,  &w[i].scale_hh,  &w[i].scale_hr};
        for (int a = 0; a < 9; a++) free((void *)arrays[a]->data);
    }
    void *arrays[] = {w, x, h0, c0, y, h_n, c_n};
    for (int a = 0; a < 7; a++) free(arrays[a]);
    fl_free(layer);
}

static void run_linear(fl_dtype dtype, int64_t inputs, int64_t outputs) {
    void *weight = array_of(inputs * outputs, 1, weight_scale(inputs)), *bias = array_of(outputs, 2, 0.5);
    void *x = array_of(B * inputs, 3, 2), *y = array_of(B * outputs, 4, 1);
    fl_linear *linear;
    const fl_array w = {weight, inputs * outputs}, b = {bias, outputs};
    ok(fl_linear_create(dtype, inputs, outputs, w, b, &linear));
    printf("linear f%d I=%d O=%d:", element == 4 ? 32 : 64, (int)inputs, (int)outputs);
    ok(fl_linear_forward(linear, B, x, inputs, y));
    print_bits("y", y, B * outputs);
    ok(fl_linear_backward_input(linear, B, y, outputs, x));
    print_bits("dx", x, B * inputs);
    printf("\n");
    fl_linear_free(linear);
    void *arrays[] = {weight, bias, x, y};
    for (int a = 0; a < 4; a++) free(arrays[a]);
}

static void run_activation(fl_dtype dtype, int kind, int64_t n) {
    const fl_activation f = {kind, 0.75, 0.25};
    void *x = array_of(n, 1, 4), *dy = array_of(n, 2, 2), *y = array_of(n, 3, 1);
    printf("activation f%d kind=%d n=%d:", element == 4 ? 32 : 64, kind, (int)n);
    ok(fl_activate(dtype, &f, n, x, y));
    print_bits("y", y, n);
    ok(fl_activate_backward(dtype, &f, n, x, dy, dy));
    print_bits("dx", dy, n);
    printf("\n");
    void *arrays[] = {x, dy, y};
    for (int a = 0; a < 3; a++) free(arrays[a]);
}

int main(void) {
    const char *isa = fl_isa();
    if (!isa) ok(FL_UNSUPPORTED);
    printf("path %s\n", isa);
    static const int64_t hidden[] = {1, 7, 33, 64}, inputs[] = {3, 5, 1, 64};
    for (int dtype = 0; dtype < 2; dtype++) {
        element = dtype == FL_FLOAT32 ? 4 : 8;
        for (int size = 0; size < 4; size++) run_linear((fl_dtype)dtype, inputs[size], 3 * hidden[size]);
        for (int kind = 0; kind < 11; kind++) run_activation((fl_dtype)dtype, kind, 997);
        for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
            for (int size = 0; size < 4; size++)
                for (int kind = 0; kind < SPECIALS; kind++) {
                    /* What is not finite or tiny runs in one size, bounded activations only. */
                    if (kind != PLAIN && (size != 1 || options[i].activations[0] >= 0)) continue;
                    run(&options[i], (fl_dtype)dtype, inputs[size], hidden[size], (special)kind);
                }
    }
    element = 4;
    for (int small = 1; small < 4; small++) {
        weights_are = &weight_kinds[small];
        for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
            for (int size = 1; size < 4; size++)
                for (int kind = 0; kind < SPECIALS; kind++) {
                    if (kind != PLAIN && (size != 1 || options[i].activations[0] >= 0)) continue;
                    run(&options[i], FL_FLOAT32, inputs[size], hidden[size], (special)kind);
                }
    }
    weights_are = weight_kinds;
    /* Sums over more rows than a chunk has. */
    B = 530;
    T = 2;
    for (int dtype = 0; dtype < 2; dtype++) {
        element = dtype == FL_FLOAT32 ? 4 : 8;
        for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
            if (!options[i].ragged) run(&options[i], (fl_dtype)dtype, 5, 7, PLAIN);
    }
    return 0;
}
