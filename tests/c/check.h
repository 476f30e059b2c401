/* What the C programs of this directory share: counting, numbers of either dtype, a small generator, a dense sequence. */
#ifndef FL_TEST_CHECK_H
#define FL_TEST_CHECK_H

#include "fastlstm.h"

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#elif __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

static long check_passed, check_failed;

/* Counts; the first failures are told in full. */
__attribute__((format(printf, 2, 3))) static inline bool check(bool ok, const char *format, ...) {
    if (ok) {
        check_passed++;
        return true;
    }
    if (check_failed++ < 20) {
        va_list arguments;
        va_start(arguments, format);
        fputs("FAILED: ", stderr);
        vfprintf(stderr, format, arguments);
        fputc('\n', stderr);
        va_end(arguments);
    }
    return false;
}

static inline int check_report(void) {
    printf("%ld passed, %ld failed\n", check_passed, check_failed);
    return check_failed != 0;
}

/* Element i of an array whose elements take `size` bytes, 4 or 8. */
static inline double get(const void *array, int64_t size, int64_t i) {
    return size == 4 ? (double)((const float *)array)[i] : ((const double *)array)[i];
}

static inline void put(void *array, int64_t size, int64_t i, double value) {
    if (size == 4) ((float *)array)[i] = (float)value;
    else ((double *)array)[i] = value;
}

/* x [T, B, inputs] to y [T, B, outputs], nothing between their rows, no states. */
static inline fl_sequence dense(int64_t T, int64_t B, const void *x, int64_t inputs, void *y, int64_t outputs) {
    return (fl_sequence){.size = sizeof(fl_sequence),
                         .T = T,
                         .B = B,
                         .x = x,
                         .x_stride_t = B * inputs,
                         .x_stride_b = inputs,
                         .y = y,
                         .y_stride_t = B * outputs,
                         .y_stride_b = outputs};
}

/* The same bits: -0 is not 0, but one NaN is another. */
static inline bool same_bits(const void *a, const void *b, int64_t size, int64_t i) {
    const char *x = (const char *)a + i * size, *y = (const char *)b + i * size;
    return memcmp(x, y, (size_t)size) == 0 || (isnan(get(a, size, i)) && isnan(get(b, size, i)));
}

static inline int64_t first_difference(const void *a, const void *b, int64_t size, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!same_bits(a, b, size, i)) return i;
    return -1;
}

/* The same on every machine. */
static inline uint64_t random_bits(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* A multiple of 2^-20 in [-1, 1): exact in either dtype. */
static inline double random_unit(uint64_t *state) {
    return (double)(int64_t)(random_bits(state) >> 43) / (1 << 20) - 1;
}

#endif
