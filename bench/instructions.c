/* Fixed work, for an instruction counter: `instructions CASE RUNS` does a case so many times, on one thread;
 * `instructions` alone prints the compiler and the cases. bench/instructions.py counts with it (`make instructions`). */
#include "fastlstm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum work { STEP, FORWARD, TRAIN } work;

typedef struct fixed_case {
    const char *name;
    work work;
    fl_cell_kind cell;
    int64_t I, H, T, B;
    fl_weight_type type;
    int32_t activation_bits;
} fixed_case;

static const fixed_case CASES[] = {
    {"lstm step, H 32", STEP, FL_LSTM, 32, 32, 1, 1, FL_FULL, 0},
    {"lstm step, H 256", STEP, FL_LSTM, 256, 256, 1, 1, FL_FULL, 0},
    {"lstm step, H 256, bfloat16", STEP, FL_LSTM, 256, 256, 1, 1, FL_BFLOAT16, 0},
    {"lstm step, H 256, int8", STEP, FL_LSTM, 256, 256, 1, 1, FL_INT8, 8},
    {"lstm step, H 256, int8/16", STEP, FL_LSTM, 256, 256, 1, 1, FL_INT8, 16},
    {"gru step, H 64", STEP, FL_GRU, 64, 64, 1, 1, FL_FULL, 0},
    {"rnn step, H 33", STEP, FL_RNN, 33, 33, 1, 1, FL_FULL, 0},
    {"gated rnn step, H 64", STEP, FL_GATED_RNN, 64, 64, 1, 1, FL_FULL, 0},
    {"lstm sequence, H 64, T 50", FORWARD, FL_LSTM, 64, 64, 50, 1, FL_FULL, 0},
    {"lstm batch, H 64, T 8, B 32", FORWARD, FL_LSTM, 64, 64, 8, 32, FL_FULL, 0},
    {"lstm batch, H 64, T 8, B 32, int8", FORWARD, FL_LSTM, 64, 64, 8, 32, FL_INT8, 8},
    {"lstm training, H 48, T 10, B 12", TRAIN, FL_LSTM, 48, 48, 10, 12, FL_FULL, 0},
    {"gru training, H 48, T 10, B 12", TRAIN, FL_GRU, 48, 48, 10, 12, FL_FULL, 0},
};
enum { COUNT = sizeof CASES / sizeof CASES[0] };
static const int64_t GATES[] = {4, 3, 1, 2};

static float *numbers(int64_t n, float size) {
    float *a = malloc((size_t)n * sizeof *a);
    if (!a) exit(1);
    for (int64_t i = 0; i < n; i++) a[i] = size * ((float)(rand() % 2001 - 1000) / 1000.0f);
    return a;
}

static void must(fl_status status) {
    if (status) {
        fprintf(stderr, "instructions: %s\n", fl_last_error());
        exit(1);
    }
}

/* A matrix as the case keeps it; its scales, where it has any. */
static fl_array matrix(const fixed_case *c, int64_t rows, int64_t columns, fl_array *scale) {
    const int64_t count = rows * columns;
    float *full = numbers(count, 0.2f);
    if (c->type == FL_FULL) return (fl_array){full, count};
    void *small = numbers(count, 0); /* large enough for either type */
    if (c->type == FL_BFLOAT16) must(fl_to_bfloat16(full, count, small));
    else {
        float *scales = numbers(rows, 0);
        must(fl_to_int8(full, rows, columns, small, scales));
        *scale = (fl_array){scales, rows};
    }
    return (fl_array){small, count};
}

static void run(const fixed_case *c, long runs) {
    const int64_t I = c->I, H = c->H, T = c->T, B = c->B, rows = GATES[c->cell] * H;
    fl_config config;
    fl_layer *layer;
    fl_config_init(&config, c->cell, I, H);
    config.weight_type = c->type;
    config.activation_bits = c->activation_bits;
    fl_weights weights = {
        .size = sizeof weights, .bias_ih = {numbers(rows, 0.2f), rows}, .bias_hh = {numbers(rows, 0.2f), rows}};
    weights.weight_ih = matrix(c, rows, I, &weights.scale_ih);
    weights.weight_hh = matrix(c, rows, H, &weights.scale_hh);
    float *x = numbers(T * B * I, 1), *y = numbers(T * B * H, 0);
    const fl_sequence sequence = {.size = sizeof sequence,
                                  .T = T,
                                  .B = B,
                                  .x = x,
                                  .x_stride_t = B * I,
                                  .x_stride_b = I,
                                  .y = y,
                                  .y_stride_t = B * H,
                                  .y_stride_b = H};
    const fl_gradients gradients = {.size = sizeof gradients,
                                    .dy = numbers(T * B * H, 1),
                                    .dy_stride_t = B * H,
                                    .dy_stride_b = H,
                                    .dx = numbers(T * B * I, 0),
                                    .dx_stride_t = B * I,
                                    .dx_stride_b = I,
                                    .weights[0] = {.weight_ih = {numbers(rows * I, 0), rows * I},
                                                   .weight_hh = {numbers(rows * H, 0), rows * H},
                                                   .bias_ih = {numbers(rows, 0), rows},
                                                   .bias_hh = {numbers(rows, 0), rows}}};
    must(fl_set_num_threads(1));
    must(fl_create(&config, &layer));
    must(fl_set_weights(layer, &weights, 1));
    fl_stream *stream = NULL;
    if (c->work == STEP) must(fl_stream_create(layer, B, NULL, NULL, &stream));
    for (long n = 0; n < runs; n++) {
        fl_tape *tape;
        switch (c->work) {
        case STEP: must(fl_stream_step(stream, x, y)); break;
        case FORWARD: must(fl_forward(layer, &sequence)); break;
        case TRAIN:
            must(fl_record(layer, 0, &sequence, 0, &tape));
            must(fl_backward(tape, &gradients));
            fl_tape_free(tape);
            break;
        }
    }
}

int main(int argc, char **argv) {
    if (argc == 1) {
#ifdef __clang__
        printf("clang %d\n", __clang_major__);
#else
        printf("gcc %d\n", __GNUC__);
#endif
        for (int i = 0; i < COUNT; i++) puts(CASES[i].name);
        return 0;
    }
    const long runs = argc == 3 ? atol(argv[2]) : 0;
    for (int i = 0; i < COUNT && runs > 0 && runs <= 1000000; i++)
        if (!strcmp(argv[1], CASES[i].name)) {
            run(&CASES[i], runs);
            return 0;
        }
    fprintf(stderr, "usage: instructions [CASE RUNS]\n");
    return 2;
}
