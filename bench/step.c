/* A step of an LSTM from C: `step I H T` prints the nanoseconds that one of T steps takes, one thread, the median of
 * many calls. Build with `make build/c/plain/step`; `fastlstm bench --c-bench build/c/plain/step` takes it up. */
#define _POSIX_C_SOURCE 200809L
#include "fastlstm.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CALLS = 41 };

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static float *numbers(int64_t n, float size) {
    float *a = malloc((size_t)n * sizeof *a);
    for (int64_t i = 0; a && i < n; i++) a[i] = size * ((float)(rand() % 2001 - 1000) / 1000.0f);
    return a;
}

int main(int argc, char **argv) {
    const int64_t I = argc == 4 ? atoll(argv[1]) : 0, H = argc == 4 ? atoll(argv[2]) : 0;
    const int64_t T = argc == 4 ? atoll(argv[3]) : 0;
    if (I < 1 || H < 1 || T < 1 || I > 4096 || H > 4096 || T > 1000000) {
        fprintf(stderr, "usage: step I H T\n");
        return 2;
    }
    fl_config config;
    fl_layer *layer;
    fl_config_init(&config, FL_LSTM, I, H);
    const float size = 0.2f;
    const fl_weights weights = {.size = sizeof weights,
                                .weight_ih = {numbers(4 * H * I, size), 4 * H * I},
                                .weight_hh = {numbers(4 * H * H, size), 4 * H * H},
                                .bias_ih = {numbers(4 * H, size), 4 * H},
                                .bias_hh = {numbers(4 * H, size), 4 * H}};
    const fl_sequence sequence = {.size = sizeof sequence,
                                  .T = T,
                                  .B = 1,
                                  .x = numbers(T * I, 1),
                                  .x_stride_t = I,
                                  .x_stride_b = I,
                                  .y = numbers(T * H, 0),
                                  .y_stride_t = H,
                                  .y_stride_b = H};
    if (fl_set_num_threads(1) || fl_create(&config, &layer) || fl_set_weights(layer, &weights, 1)) {
        fprintf(stderr, "step: %s\n", fl_last_error());
        return 1;
    }
    double ns[CALLS];
    for (int i = 0; i < CALLS; i++) {
        const double began = now_ns();
        if (fl_forward(layer, &sequence)) return 1;
        ns[i] = (now_ns() - began) / (double)T;
    }
    qsort(ns, CALLS, sizeof ns[0], compare);
    printf("%.2f\n", ns[CALLS / 2]);
    return 0;
}
