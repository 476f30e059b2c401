/* Activations over arrays: what a layer of a model that is nothing else needs. */
#include "internal.h"

#include <math.h>

enum { MOST_ELEMENT_BYTES = 8 };

static fl_status check_call(fl_dtype dtype, const fl_activation *f, int64_t n, bool buffers, const fl_kernels **k) {
    if (dtype != FL_FLOAT32 && dtype != FL_FLOAT64)
        return fl_fail(FL_BAD_ARGUMENT, "dtype is %d, wanted %d or %d", (int)dtype, FL_FLOAT32, FL_FLOAT64);
    if (!f) return fl_fail(FL_BAD_ARGUMENT, "f: NULL");
    if (f->kind < FL_SIGMOID || f->kind > FL_SOFTPLUS)
        return fl_fail(FL_BAD_ARGUMENT, "f: kind is %d, wanted %d to %d", (int)f->kind, FL_SIGMOID, FL_SOFTPLUS);
    if (!isfinite(f->alpha) || !isfinite(f->beta)) return fl_fail(FL_BAD_ARGUMENT, "f: alpha and beta must be finite");
    if (n < 0 || n > INT64_MAX / MOST_ELEMENT_BYTES)
        return fl_fail(FL_BAD_ARGUMENT, "n is %lld, wanted 0 to %lld", (long long)n,
                       (long long)(INT64_MAX / MOST_ELEMENT_BYTES));
    if (n && !buffers) return fl_fail(FL_BAD_ARGUMENT, "x, y, dy or dx: NULL");
    *k = fl_kernels_of(dtype);
    return *k ? FL_OK : FL_UNSUPPORTED;
}

fl_status fl_activate(fl_dtype dtype, const fl_activation *f, int64_t n, const void *x, void *y) {
    const fl_kernels *k;
    const fl_status status = check_call(dtype, f, n, x && y, &k);
    if (status) return status;
    const fl_fp_mode mode = fl_fp_begin();
    k->activate(f, x, y, n);
    fl_fp_end(mode);
    return FL_OK;
}

fl_status fl_activate_backward(fl_dtype dtype, const fl_activation *f, int64_t n, const void *x, const void *dy,
                               void *dx) {
    const fl_kernels *k;
    const fl_status status = check_call(dtype, f, n, x && dy && dx, &k);
    if (status) return status;
    const fl_fp_mode mode = fl_fp_begin();
    k->activate_backward(f, x, dy, dx, n);
    fl_fp_end(mode);
    return FL_OK;
}
