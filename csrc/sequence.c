/* A batch of sequences as the caller describes it: its checks, its lengths, and the order of its rows. */
#include "internal.h"

#include <stdlib.h>

fl_status fl_check_strides(const char *name, int64_t stride_t, int64_t T, int64_t stride_b, int64_t B) {
    if (!fl_stride_fits(stride_t, T))
        return fl_fail(FL_BAD_ARGUMENT, "%s_stride_t is %lld: too large", name, (long long)stride_t);
    if (!fl_stride_fits(stride_b, B))
        return fl_fail(FL_BAD_ARGUMENT, "%s_stride_b is %lld: too large", name, (long long)stride_b);
    return FL_OK;
}

fl_status fl_check_sequence(const fl_layer *l, const fl_sequence *q) {
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
    const fl_status status = fl_check_strides("x", q->x_stride_t, q->T, q->x_stride_b, q->B);
    return status ? status : fl_check_strides("y", q->y_stride_t, q->T, q->y_stride_b, q->B);
}

int64_t *fl_take_lengths(const fl_sequence *q, int64_t *steps) {
    int64_t *length = malloc((size_t)(q->B ? q->B : 1) * sizeof *length);
    *steps = 0;
    if (!length) fl_fail(FL_NO_MEMORY, "lengths: no memory for B = %lld", (long long)q->B);
    for (int64_t b = 0; length && b < q->B; b++) {
        const int64_t n = length[b] = q->lengths ? q->lengths[b] : q->T;
        if (n < 0 || n > q->T) {
            free(length);
            fl_fail(FL_BAD_ARGUMENT, "lengths[%lld] is %lld, wanted 0 to %lld", (long long)b, (long long)n,
                    (long long)q->T);
            *steps = -1;
            return NULL;
        }
        *steps += n;
    }
    return length;
}

typedef struct row_length {
    int64_t row, length;
} row_length;

/* Falling length; equal ones stay in place, so that the order is everywhere the same. */
static int by_length(const void *a, const void *b) {
    const row_length *x = a, *y = b;
    if (x->length != y->length) return x->length < y->length ? 1 : -1;
    return (x->row > y->row) - (x->row < y->row);
}

bool fl_sort_rows(int64_t B, const int64_t *length, int64_t *order) {
    row_length *rows = malloc((size_t)(B ? B : 1) * sizeof *rows);
    if (!rows) return false;
    for (int64_t b = 0; b < B; b++) rows[b] = (row_length){b, length[b]};
    qsort(rows, (size_t)B, sizeof *rows, by_length);
    for (int64_t r = 0; r < B; r++) order[r] = rows[r].row;
    free(rows);
    return true;
}

void fl_share_rows(int64_t B, const int64_t *order, const int64_t *length, int64_t chunks, int64_t *begin) {
    int64_t total = 0, sum = 0, chunk = 0;
    for (int64_t b = 0; b < B; b++) total += length[b];
    for (int64_t r = 0; r < B; r++) {
        while (chunk < chunks && sum * chunks >= total * chunk) begin[chunk++] = r;
        sum += length[order[r]];
    }
    while (chunk <= chunks) begin[chunk++] = B;
}
