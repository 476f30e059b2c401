/* The kernel list as data: for tests, benchmarks and the tables of the documentation. */
#include "kernels.h"

#include <string.h>

static const fl_kernel_info infos[] = {
#define FL_KERNEL(op, type, doc) {#op, #type, doc, offsetof(fl_kernels, op), true, false},
#define FL_KERNEL_F32(op, type, doc) {#op, #type, doc, offsetof(fl_kernels, op), false, false},
#define FL_INTEGER_KERNEL(op, type, doc) {#op, #type, doc, offsetof(fl_integer_kernels, op), false, true},
#include "kernels.inc"
};

const fl_kernel_info *fl_kernel_at(int64_t index) {
    return index >= 0 && index < (int64_t)(sizeof infos / sizeof infos[0]) ? &infos[index] : NULL;
}

double fl_kernel_bound(const char *name, fl_dtype dtype) {
#define FL_BOUND(op, ulp_f32, ulp_f64) \
    if (strcmp(name, #op) == 0) return dtype == FL_FLOAT32 ? ulp_f32 : ulp_f64;
#include "kernels.inc"
    return 0;
}
