/* The linear layer's interface: each output is the sum that the header promises, to the last bit, in the order of k;
 * alone, in any batch, on any number of threads, with rows apart, between guard pages; every bad argument refused.
 * Meant for ThreadSanitizer too. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "check.h"
#include "fastlstm.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

static int64_t size; /* of an element */
static fl_dtype dtype;
static bool exact; /* the path has a fused multiply-add */

static void *numbers_of(int64_t count, uint64_t seed) {
    void *array = malloc((size_t)(count ? count : 1) * 8);
    if (!array) exit(2);
    for (int64_t i = 0; i < count; i++) put(array, size, i, random_unit(&seed));
    return array;
}

/* out[r, n] = start[n] + sum_k a[r, k] w[n, k], or w[k, n] if `across`. */
static void define(int64_t rows, int64_t depth, int64_t columns, const void *a, const void *w, bool across,
                   const void *start, void *out) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t n = 0; n < columns; n++) {
            double sum = start ? get(start, size, n) : 0;
            for (int64_t k = 0; k < depth; k++) {
                const double x = get(a, size, r * depth + k);
                const double y = get(w, size, across ? k * columns + n : n * depth + k);
                sum = size == 4 ? (double)fmaf((float)x, (float)y, (float)sum) : fma(x, y, sum);
            }
            put(out, size, r * columns + n, sum);
        }
}

static void compare(const void *got, const void *wanted, int64_t count, const char *what, int64_t rows, int64_t inputs,
                    int64_t outputs) {
    int64_t at = first_difference(got, wanted, size, count);
    if (!exact)
        for (at = 0; at < count && fabs(get(got, size, at) - get(wanted, size, at)) < 1e-3; at++) {}
    const bool same = at < 0 || at == count;
    check(same, "%s, f%d, rows %d, %d to %d: element %d is %.9g, wanted %.9g", what, (int)size * 8, (int)rows,
          (int)inputs, (int)outputs, (int)at, same ? 0 : get(got, size, at), same ? 0 : get(wanted, size, at));
}

static fl_linear *linear_of(int64_t inputs, int64_t outputs, const void *weight, const void *bias) {
    fl_linear *linear = NULL;
    const fl_array w = {weight, inputs * outputs}, b = {bias, bias ? outputs : 0};
    check(fl_linear_create(dtype, inputs, outputs, w, b, &linear) == FL_OK, "create: %s", fl_last_error());
    if (!linear) exit(2);
    return linear;
}

/* --- guard pages --- */

/* `bytes` that end, or begin, where memory does. */
static char *guarded(int64_t bytes, bool at_end) {
    const int64_t page = sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    char *map = mmap(NULL, (size_t)(room + 2 * page), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + page, (size_t)room, PROT_READ | PROT_WRITE)) exit(2);
    return at_end ? map + page + room - bytes : map + page;
}

static void guarded_free(char *data, int64_t bytes, bool at_end) {
    const int64_t page = sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    munmap(at_end ? data + bytes - room - page : data - page, (size_t)(room + 2 * page));
}

static void test_size(int64_t rows, int64_t inputs, int64_t outputs, bool with_bias, bool at_end) {
    const int64_t x_bytes = rows * inputs * size, y_bytes = rows * outputs * size;
    void *numbers[] = {numbers_of(outputs * inputs, 1), numbers_of(outputs, 2), numbers_of(rows * inputs, 3),
                       numbers_of(rows * outputs, 4)};
    void *wanted = numbers_of(rows * (inputs + outputs), 5);
    char *x = guarded(x_bytes, at_end), *y = guarded(y_bytes, at_end);
    fl_linear *linear = linear_of(inputs, outputs, numbers[0], with_bias ? numbers[1] : NULL);
    memcpy(x, numbers[2], (size_t)x_bytes);
    check(fl_linear_forward(linear, rows, x, inputs, y) == FL_OK, "forward: %s", fl_last_error());
    define(rows, inputs, outputs, numbers[2], numbers[0], false, with_bias ? numbers[1] : NULL, wanted);
    compare(y, wanted, rows * outputs, "y", rows, inputs, outputs);
    memcpy(y, numbers[3], (size_t)y_bytes);
    check(fl_linear_backward_input(linear, rows, y, outputs, x) == FL_OK, "backward: %s", fl_last_error());
    define(rows, outputs, inputs, numbers[3], numbers[0], true, NULL, wanted);
    compare(x, wanted, rows * inputs, "dx", rows, inputs, outputs);
    fl_linear_free(linear);
    guarded_free(x, x_bytes, at_end);
    guarded_free(y, y_bytes, at_end);
    for (int i = 0; i < 4; i++) free(numbers[i]);
    free(wanted);
}

/* Rows apart, in either direction, are those that are not. */
static void test_strides(void) {
    enum { ROWS = 9, WIDTH = 5, OUT = 37, APART = 11 };
    void *weight = numbers_of(WIDTH * OUT, 1), *x = numbers_of(ROWS * APART, 2);
    void *wanted = numbers_of(ROWS * OUT, 3), *y = numbers_of(ROWS * OUT, 4);
    fl_linear *linear = linear_of(WIDTH, OUT, weight, NULL);
    for (int64_t r = 0; r < ROWS; r++)
        fl_linear_forward(linear, 1, (char *)x + r * APART * size, WIDTH, (char *)wanted + r * OUT * size);
    check(fl_linear_forward(linear, ROWS, x, APART, y) == FL_OK, "strides: %s", fl_last_error());
    compare(y, wanted, ROWS * OUT, "rows apart", ROWS, WIDTH, OUT);
    check(fl_linear_forward(linear, ROWS, (char *)x + (ROWS - 1) * APART * size, -APART, y) == FL_OK, "strides");
    for (int64_t r = 0; r < ROWS; r++)
        compare((char *)y + r * OUT * size, (char *)wanted + (ROWS - 1 - r) * OUT * size, OUT, "rows backwards", ROWS,
                WIDTH, OUT);
    fl_linear_free(linear);
    free(weight);
    free(x);
    free(wanted);
    free(y);
}

/* --- threads --- */

/* Each so much work that a call takes all threads: few rows of many columns, many rows of few, both with tails. */
static const int64_t large[][3] = {{3, 2003, 3001}, {700, 301, 51}, {67, 400, 1100}, {1, 3000, 6007}};

static void test_threads(void) {
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++) {
        const int64_t rows = large[i][0], inputs = large[i][1], outputs = large[i][2];
        void *weight = numbers_of(inputs * outputs, 1), *x = numbers_of(rows * inputs, 2),
             *dy = numbers_of(rows * outputs, 3);
        void *y = numbers_of(rows * outputs, 4), *dx = numbers_of(rows * inputs, 5);
        void *row = numbers_of(outputs, 6), *drow = numbers_of(inputs, 7);
        fl_linear *linear = linear_of(inputs, outputs, weight, NULL);
        check(fl_linear_estimate_us(linear, rows) > 100, "rows %d, %d to %d: so short that it may take one thread",
              (int)rows, (int)inputs, (int)outputs);
        for (int64_t threads = 1; threads <= 5; threads += 2) {
            check(fl_set_num_threads(threads) == FL_OK, "threads: %s", fl_last_error());
            memset(y, 0xff, (size_t)(rows * outputs * size));
            memset(dx, 0xff, (size_t)(rows * inputs * size));
            check(fl_linear_forward(linear, rows, x, inputs, y) == FL_OK, "forward: %s", fl_last_error());
            check(fl_linear_backward_input(linear, rows, dy, outputs, dx) == FL_OK, "backward: %s", fl_last_error());
            fl_set_num_threads(1);
            for (int64_t r = 0; r < rows; r += 1 + rows / 7) {
                fl_linear_forward(linear, 1, (char *)x + r * inputs * size, inputs, row);
                compare((char *)y + r * outputs * size, row, outputs, "y on threads", rows, inputs, outputs);
                fl_linear_backward_input(linear, 1, (char *)dy + r * outputs * size, outputs, drow);
                compare((char *)dx + r * inputs * size, drow, inputs, "dx on threads", rows, inputs, outputs);
            }
        }
        fl_linear_free(linear);
        void *arrays[] = {weight, x, dy, y, dx, row, drow};
        for (int a = 0; a < 7; a++) free(arrays[a]);
    }
    fl_set_num_threads(2);
}

enum { CALLERS = 4, WIDE = 131 };
static fl_linear *shared;
static void *shared_dy;

static void *go_back(void *dx) { return fl_linear_backward_input(shared, 2, shared_dy, WIDE, dx) == FL_OK ? dx : NULL; }

/* All at once make the transposed weights. */
static void test_first_backward_of_many(void) {
    void *weight = numbers_of(WIDE * WIDE, 1), *dx[CALLERS];
    shared_dy = numbers_of(2 * WIDE, 2);
    for (int i = 0; i < CALLERS; i++) dx[i] = numbers_of(2 * WIDE, 3);
    for (int round = 0; round < 50; round++) {
        pthread_t callers[CALLERS];
        void *done[CALLERS];
        shared = linear_of(WIDE, WIDE, weight, NULL);
        for (int i = 0; i < CALLERS; i++)
            if (pthread_create(&callers[i], NULL, go_back, dx[i])) exit(2);
        for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], &done[i]);
        for (int i = 0; i < CALLERS; i++) {
            check(done[i] == dx[i], "one of many: failed");
            compare(dx[i], dx[0], 2 * WIDE, "one of many", 2, WIDE, WIDE);
        }
        fl_linear_free(shared);
    }
    for (int i = 0; i < CALLERS; i++) free(dx[i]);
    free(weight);
    free(shared_dy);
}

/* --- what is refused --- */

static void refused(fl_status got, const char *name, const char *what) {
    check(got == FL_BAD_ARGUMENT && strncmp(fl_last_error(), name, strlen(name)) == 0, "%s: status %d, \"%s\"", what,
          (int)got, fl_last_error());
}

static void test_bad_arguments(void) {
    float w[6] = {0}, x[4] = {0}, y[6] = {0};
    const fl_array weight = {w, 6}, none = {NULL, 0};
    fl_linear *linear = (fl_linear *)&x;
#define CREATE(dtype_, in, out, weight_, bias_, name)                                             \
    refused(fl_linear_create(dtype_, in, out, weight_, bias_, &linear), name, #in ", " #weight_); \
    check(linear == NULL, "the handle of a refused one is not NULL")
    CREATE((fl_dtype)2, 2, 3, weight, none, "dtype");
    CREATE(FL_FLOAT32, 0, 3, weight, none, "in_features");
    CREATE(FL_FLOAT32, INT64_MAX, 3, weight, none, "in_features");
    CREATE(FL_FLOAT32, 2, 0, weight, none, "out_features");
    CREATE(FL_FLOAT32, 2, INT64_MIN, weight, none, "out_features");
    CREATE(FL_FLOAT32, 3, 3, weight, none, "weight");
    CREATE(FL_FLOAT32, 2, 3, none, none, "weight");
    CREATE(FL_FLOAT32, 2, 3, ((fl_array){NULL, 6}), none, "weight");
    CREATE(FL_FLOAT32, 2, 3, weight, ((fl_array){w, 2}), "bias");
    CREATE(FL_FLOAT32, 2, 3, weight, ((fl_array){NULL, 3}), "bias");
    CREATE(FL_FLOAT32, 2, 3, weight, ((fl_array){w, -3}), "bias");
    refused(fl_linear_create(FL_FLOAT32, 2, 3, weight, none, NULL), "linear", "no handle");
    size = 4;
    dtype = FL_FLOAT32;
    linear = linear_of(2, 3, w, NULL);
    refused(fl_linear_forward(NULL, 1, x, 2, y), "linear", "no linear");
    refused(fl_linear_forward(linear, -1, x, 2, y), "rows", "rows -1");
    refused(fl_linear_forward(linear, INT64_MAX, x, 2, y), "rows", "rows huge");
    refused(fl_linear_forward(linear, 1, NULL, 2, y), "x", "no x");
    refused(fl_linear_forward(linear, 1, x, 2, NULL), "y", "no y");
    refused(fl_linear_forward(linear, 2, x, INT64_MAX, y), "x_stride", "stride huge");
    refused(fl_linear_forward(linear, 2, x, INT64_MIN, y), "x_stride", "stride huge backwards");
    refused(fl_linear_backward_input(NULL, 1, y, 3, x), "linear", "no linear");
    refused(fl_linear_backward_input(linear, 1, NULL, 3, x), "dy", "no dy");
    refused(fl_linear_backward_input(linear, 1, y, 3, NULL), "dx", "no dx");
    check(fl_linear_forward(linear, 0, NULL, 0, NULL) == FL_OK, "no rows: %s", fl_last_error());
    check(fl_linear_backward_input(linear, 0, NULL, 0, NULL) == FL_OK, "no rows: %s", fl_last_error());
    check(fl_linear_estimate_us(NULL, 3) == 0 && fl_linear_estimate_us(linear, -1) == 0, "small questions");
    fl_linear_free(linear);
    fl_linear_free(NULL);
}

int main(void) {
    static const int64_t sizes[] = {1, 7, 33, 64, 130}, rows[] = {1, 2, 5, 7, 33};
    exact = strcmp(fl_isa() ? fl_isa() : "", "portable") || strstr(fl_cpu_features(), "fma");
    for (int d = 0; d < 2; d++) {
        dtype = d ? FL_FLOAT64 : FL_FLOAT32;
        size = d ? 8 : 4;
        for (int r = 0; r < 5; r++)
            for (int i = 0; i < 5; i++)
                for (int o = 0; o < 5; o++)
                    for (int where = 0; where < 2; where++)
                        test_size(rows[r], sizes[i], sizes[o], (r + i + o) % 2, where);
        test_size(3, 19, 1100, true, true);
        test_size(130, 19, 70, true, true);
        test_strides();
        test_threads();
        test_first_backward_of_many();
    }
    test_bad_arguments();
    return check_report();
}
