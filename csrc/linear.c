/* Linear layers: y = x W^T + b, dx = dy W and dW = dy^T x, on the kernels that the recurrent layers use. A task is a block
 * of rows by a block of columns; an output is summed by one task, in one order, so its bits depend on no block. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    MOST_FEATURES = 1 << 24,
    BLOCK_ROWS = 64, /* whose x stays in L2 while the block's columns pass */
    LEAST_ROWS = 8, /* below that a block of rows does not fill the product kernel's tiles */
    BLOCK_COLUMNS = 512, /* whole panels on any path */
    SCRATCH_BYTES = 1 << 15, /* for rows of the last columns, which the kernel pads to whole vectors */
};

/* What rows are multiplied with. */
typedef struct factor {
    fl_matrix matrix;
    void *start; /* [columns padded]: the bias, or zeros */
    int64_t columns;
} factor;

struct fl_linear {
    const fl_kernels *kernels;
    int64_t in_features, out_features;
    factor forward;
    _Atomic(factor *) backward; /* made by the first call that needs it */
};

/* --- making --- */

static void release(factor *f) {
    fl_free_matrix(&f->matrix);
    fl_os_free(f->start);
}

static fl_status check_features(const char *name, int64_t value) {
    if (value >= 1 && value <= MOST_FEATURES) return FL_OK;
    return fl_fail(FL_BAD_ARGUMENT, "%s is %lld, wanted 1 to %d", name, (long long)value, (int)MOST_FEATURES);
}

static fl_status check_array(const char *name, fl_array array, int64_t count) {
    if (array.count == count && (array.data || !count)) return FL_OK;
    return fl_fail(FL_BAD_ARGUMENT, "%s: %lld elements%s, wanted %lld", name, (long long)array.count,
                   array.data ? "" : " at NULL", (long long)count);
}

fl_status fl_linear_create(fl_dtype dtype, int64_t in_features, int64_t out_features, fl_array weight, fl_array bias,
                           fl_linear **out) {
    fl_status status;
    if (!out) return fl_fail(FL_BAD_ARGUMENT, "linear: NULL");
    *out = NULL;
    if (dtype != FL_FLOAT32 && dtype != FL_FLOAT64)
        return fl_fail(FL_BAD_ARGUMENT, "dtype is %d, wanted %d or %d", (int)dtype, FL_FLOAT32, FL_FLOAT64);
    if ((status = check_features("in_features", in_features))) return status;
    if ((status = check_features("out_features", out_features))) return status;
    if ((status = check_array("weight", weight, out_features * in_features))) return status;
    if ((status = check_array("bias", bias, bias.count ? out_features : 0))) return status;
    const fl_kernels *kernels = fl_kernels_of(dtype);
    if (!kernels) return FL_UNSUPPORTED;
    fl_linear *l = calloc(1, sizeof *l);
    if (!l) return fl_fail(FL_NO_MEMORY, "linear: no memory");
    l->kernels = kernels;
    l->in_features = in_features;
    l->out_features = out_features;
    atomic_init(&l->backward, NULL);
    const fl_source source = {weight.data, out_features, in_features, 0, 1, NULL};
    const fl_format format = fl_full_format(kernels);
    l->forward.columns = out_features;
    if ((status = fl_pack_matrix(&format, &source, &l->forward.matrix)) ||
        (status = fl_pack_bias(kernels, source, bias.count ? bias.data : NULL, NULL, &l->forward.start))) {
        fl_linear_free(l);
        return status;
    }
    *out = l;
    return FL_OK;
}

void fl_linear_free(fl_linear *l) {
    if (!l) return;
    factor *backward = atomic_load_explicit(&l->backward, memory_order_acquire);
    if (backward) release(backward);
    free(backward);
    release(&l->forward);
    free(l);
}

/* NULL: no memory. Threads that come at once all pack, and all but one throw theirs away. */
static const factor *backward_of(const fl_linear *linear) {
    fl_linear *l = (fl_linear *)linear; /* what is kept for later is not part of what const protects */
    factor *f = atomic_load_explicit(&l->backward, memory_order_acquire);
    if (f) return f;
    f = calloc(1, sizeof *f);
    const bool packed =
        f && fl_pack_transposed(l->kernels, &l->forward.matrix, 1, 0, l->out_features, &f->matrix) &&
        !fl_pack_bias(l->kernels, (fl_source){.units = l->in_features, .gates = 1}, NULL, NULL, &f->start);
    factor *first = NULL;
    if (packed) {
        f->columns = l->in_features;
        if (atomic_compare_exchange_strong_explicit(&l->backward, &first, f, memory_order_acq_rel,
                                                    memory_order_acquire))
            return f;
    }
    if (f) release(f);
    free(f);
    if (!packed) fl_fail(FL_NO_MEMORY, "linear: no memory for the transposed weights");
    return first;
}

/* --- running --- */

typedef struct product_call {
    const fl_kernels *kernels;
    const factor *factor;
    int64_t rows, x_stride_bytes, row_blocks, column_blocks;
    const char *x;
    char *y;
} product_call;

/* Rows [begin, end) through the kernel, into `out`. */
static void product(const product_call *c, int64_t begin, int64_t end, int64_t first_panel, int64_t vecs, void *out,
                    int64_t out_stride) {
    const fl_kernels *k = c->kernels;
    const int64_t depth = c->factor->matrix.depth, column = first_panel * k->panel_vecs * k->lanes;
    const void *x[BLOCK_ROWS];
    for (int64_t r = begin; r < end; r++) x[r - begin] = c->x + r * c->x_stride_bytes;
    const fl_product_args args = {
        .rows = end - begin,
        .vecs = vecs,
        .parts = 1,
        .part = {{.depth = depth,
                  .a = x,
                  .w = (const char *)c->factor->matrix.data + column * depth * k->element_bytes}},
        .start = (const char *)c->factor->start + column * k->element_bytes,
        .start_stride = 0,
        .out = out,
        .out_stride = out_stride};
    k->product(&args);
}

static void run_block(void *context, int64_t task, int64_t worker) {
    (void)worker;
    const product_call *c = context;
    const fl_kernels *k = c->kernels;
    const fl_matrix *m = &c->factor->matrix;
    const int64_t row_block = task % c->row_blocks, column_block = task / c->row_blocks;
    const int64_t begin = c->rows * row_block / c->row_blocks, end = c->rows * (row_block + 1) / c->row_blocks;
    const int64_t panels = fl_round_up(m->vecs, k->panel_vecs) / k->panel_vecs;
    const int64_t first = panels * column_block / c->column_blocks;
    const int64_t last = panels * (column_block + 1) / c->column_blocks;
    const int64_t column = first * k->panel_vecs * k->lanes, columns = c->factor->columns, size = k->element_bytes;
    const int64_t vecs = (last == panels ? m->vecs : last * k->panel_vecs) - first * k->panel_vecs;
    char *y = c->y + column * size;
    if (column + vecs * k->lanes <= columns) {
        product(c, begin, end, first, vecs, y + begin * columns * size, columns);
        return;
    }
    _Alignas(64) char scratch[SCRATCH_BYTES];
    const int64_t stride = vecs * k->lanes, at_once = SCRATCH_BYTES / (stride * size);
    for (int64_t r = begin; r < end; r += at_once) {
        const int64_t stop = end - r < at_once ? end : r + at_once;
        product(c, r, stop, first, vecs, scratch, stride);
        for (int64_t i = r; i < stop; i++)
            memcpy(y + i * columns * size, scratch + (i - r) * stride * size, (size_t)((columns - column) * size));
    }
}

double fl_linear_estimate_us(const fl_linear *l, int64_t rows) {
    if (!l || rows < 1) return 0;
    const double rate = (rows >= 4 ? 100e3 : 50e3) * 4 / l->kernels->element_bytes; /* flop per microsecond */
    return 2 * (double)rows * (double)l->in_features * (double)l->out_features / rate;
}

static int64_t blocks_of(int64_t count, int64_t most) { return (count + most - 1) / most; }

static fl_status run(const fl_linear *l, const factor *f, int64_t rows, const void *x, int64_t x_stride, void *y) {
    const fl_kernels *k = l->kernels;
    const int64_t panels = blocks_of(f->matrix.vecs, k->panel_vecs), threads = fl_get_num_threads();
    if (threads < 0) return FL_BAD_ARGUMENT;
    product_call c = {.kernels = k,
                      .factor = f,
                      .rows = rows,
                      .x_stride_bytes = x_stride * k->element_bytes,
                      .row_blocks = blocks_of(rows, BLOCK_ROWS),
                      .column_blocks = blocks_of(panels, BLOCK_COLUMNS / (k->panel_vecs * k->lanes)),
                      .x = x,
                      .y = y};
    const int64_t wanted = fl_threads_for(fl_linear_estimate_us(l, rows));
    if (c.row_blocks * c.column_blocks < wanted) {
        if (rows >= wanted * LEAST_ROWS) c.row_blocks = wanted;
        else if (c.column_blocks < wanted) c.column_blocks = panels < wanted ? panels : wanted;
    }
    const fl_fp_mode mode = fl_fp_begin();
    fl_parallel_tasks(wanted, c.row_blocks * c.column_blocks, run_block, &c);
    fl_fp_end(mode);
    return FL_OK;
}

static fl_status check_rows(const fl_linear *l, int64_t rows, const char *in_name, const void *in, int64_t stride,
                            const char *out_name, const void *out) {
    if (!l) return fl_fail(FL_BAD_ARGUMENT, "linear: NULL");
    const int64_t widest = l->in_features > l->out_features ? l->in_features : l->out_features;
    int64_t n;
    if (rows < 0 || !fl_mul(rows, 16 * widest, &n))
        return fl_fail(FL_BAD_ARGUMENT, "rows is %lld, wanted 0 or more, and not too many", (long long)rows);
    if (!fl_stride_fits(stride, rows))
        return fl_fail(FL_BAD_ARGUMENT, "%s_stride is %lld: too large", in_name, (long long)stride);
    if (rows && !in) return fl_fail(FL_BAD_ARGUMENT, "%s: NULL", in_name);
    if (rows && !out) return fl_fail(FL_BAD_ARGUMENT, "%s: NULL", out_name);
    return FL_OK;
}

fl_status fl_linear_forward(const fl_linear *l, int64_t rows, const void *x, int64_t x_stride, void *y) {
    const fl_status status = check_rows(l, rows, "x", x, x_stride, "y", y);
    return status || !rows ? status : run(l, &l->forward, rows, x, x_stride, y);
}

fl_status fl_linear_backward_input(const fl_linear *l, int64_t rows, const void *dy, int64_t dy_stride, void *dx) {
    const fl_status status = check_rows(l, rows, "dy", dy, dy_stride, "dx", dx);
    if (status || !rows) return status;
    const factor *backward = backward_of(l);
    return backward ? run(l, backward, rows, dy, dy_stride, dx) : FL_NO_MEMORY;
}

typedef struct weights_call {
    const fl_linear *linear;
    int64_t rows, dy_stride, tasks;
    const void *const *x;
    const char *dy;
    char *dweight, *dbias;
} weights_call;

static void run_weights(void *context, int64_t task, int64_t worker) {
    (void)worker;
    const weights_call *c = context;
    const fl_linear *l = c->linear;
    const int64_t size = l->kernels->element_bytes, I = l->in_features;
    const fl_range m = fl_slice(l->out_features, 12, task, c->tasks); /* 12: of every path's tile a multiple */
    if (m.begin >= m.end) return;
    const char *dy = c->dy + m.begin * size;
    char *dweight = c->dweight + m.begin * I * size;
    memset(dweight, 0, (size_t)((m.end - m.begin) * I * size));
    l->kernels->outer(&(fl_outer_args){.depth = c->rows,
                                       .m = m.end - m.begin,
                                       .n = I,
                                       .a = dy,
                                       .a_stride = c->dy_stride,
                                       .b = c->x,
                                       .out = dweight,
                                       .out_stride = I});
    if (!c->dbias) return;
    memset(c->dbias + m.begin * size, 0, (size_t)((m.end - m.begin) * size));
    l->kernels->sum(&(fl_sum_args){
        .depth = c->rows, .n = m.end - m.begin, .a = dy, .a_stride = c->dy_stride, .out = c->dbias + m.begin * size});
}

fl_status fl_linear_backward_weights(const fl_linear *l, int64_t rows, const void *x, int64_t x_stride, const void *dy,
                                     int64_t dy_stride, void *dweight, void *dbias) {
    fl_status status = check_rows(l, rows, "x", x, x_stride, "dy", dy);
    if (!status) status = check_rows(l, rows, "dy", dy, dy_stride, "x", x);
    if (status) return status;
    if (!dweight) return fl_fail(FL_BAD_ARGUMENT, "dweight: NULL");
    int64_t threads = fl_get_num_threads();
    if (threads < 0) return FL_BAD_ARGUMENT;
    threads = fl_threads_for(fl_linear_estimate_us(l, rows));
    const void **x_rows = malloc((size_t)(rows ? rows : 1) * sizeof *x_rows);
    if (!x_rows) return fl_fail(FL_NO_MEMORY, "linear: no memory for %lld rows", (long long)rows);
    for (int64_t r = 0; r < rows; r++) x_rows[r] = (const char *)x + r * x_stride * l->kernels->element_bytes;
    weights_call c = {l, rows, dy_stride, threads, x_rows, dy, dweight, dbias};
    const fl_fp_mode mode = fl_fp_begin();
    fl_parallel_tasks(threads, c.tasks, run_weights, &c);
    fl_fp_end(mode);
    free(x_rows);
    return FL_OK;
}
