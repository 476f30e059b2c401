/* What a kernel is: the argument structures, the table of one instruction set, and the one list (kernels.inc).
 *
 * Kernels allocate nothing, know no threads and no CPUs, and cannot fail. Pointers are to elements of the table's
 * dtype, strides count elements. Scratch of theirs needs no initial value.
 */
#ifndef FL_KERNELS_H
#define FL_KERNELS_H

#include "../fastlstm.h"

#include <stdint.h>

/* Columns of gates, in the order that lets a cell kernel load whole registers: blocks of LANES units, in each block
 * the gates one after the other, [unit / LANES][gate][unit % LANES]. The last block holds the H % LANES units that
 * remain, tightly: [gate][unit]. So G gates of H units are G * H columns, and unit u (a block's first) begins at
 * column G * u. */

/* out[r, n] = start[r, n] + sum over parts, in each over k in order, of a[r][k] * w[k, n] */
typedef struct fl_product_part {
    int64_t depth; /* number of k, at least 1 */
    const void *const *a;
    const void *w; /* panels, [panel][k][vec][lane], 64-byte aligned; the last may hold fewer vectors */
} fl_product_part;

typedef struct fl_product_args {
    int64_t rows;
    int64_t vecs;  /* columns / LANES, rounded up */
    int64_t parts; /* 1, or 2: input and state at once */
    fl_product_part part[2];
    const void *start;
    int64_t start_stride; /* 0: one row for all */
    void *out;            /* [rows, out_stride]; may be start itself */
    int64_t out_stride;
} fl_product_args;

typedef struct fl_cell_options {
    fl_activation act[3]; /* gates, candidate, output */
    double clip;          /* 0: none */
    int32_t forget_gate, coupled_gates, peepholes;
} fl_cell_options;

/* One step of units [begin, end) for some rows. State rows are padded to whole vectors, `state_stride` apart. */
typedef struct fl_cell_args {
    int64_t rows, hidden; /* hidden: H, all units */
    int64_t begin, end;   /* begin is a block's first unit, end another's or H */
    const void *z;        /* pre-activations; column 0 belongs to unit `begin` */
    int64_t z_stride;
    const void *zx; /* GRU: projected input, column 0 belongs to unit `begin`, all three gates */
    int64_t zx_stride;
    const void *h; /* state before the step (GRU, gated RNN) */
    void *h_out;   /* state after it; not h itself */
    void *c;       /* LSTM: updated in place. GRU reset before: z's pre-activation, from phase to phase */
    int64_t state_stride;
    void *const *y; /* output rows, unit 0; NULL: none */
    int64_t y_offset;
    const void *peephole; /* [3, state_stride]: i, f, o */
    const fl_cell_options *options;
} fl_cell_args;

typedef void fl_product_fn(const fl_product_args *args);
typedef void fl_cell_fn(const fl_cell_args *args);
/* out[i] = f(a[i], b[i]) */
typedef void fl_map_fn(const void *a, const void *b, void *out, int64_t n);
/* Some arithmetic or traffic to be timed; returns how many operations or bytes it was. */
typedef int64_t fl_roof_fn(const void *data, int64_t n);

typedef struct fl_kernels {
    const char *isa;
    int32_t lanes, panel_vecs, row_panels, element_bytes;
#define FL_KERNEL(op, type, doc) type *op;
#include "kernels.inc"
#undef FL_KERNEL
} fl_kernels;

extern const fl_kernels fl_kernels_f32_avx512, fl_kernels_f64_avx512;
extern const fl_kernels fl_kernels_f32_avx2, fl_kernels_f64_avx2;
extern const fl_kernels fl_kernels_f32_neon, fl_kernels_f64_neon;
extern const fl_kernels fl_kernels_f32_portable, fl_kernels_f64_portable;
extern const fl_kernels fl_kernels_f32_portable_fma, fl_kernels_f64_portable_fma;

/* kernels.inc as data, for tests and benchmarks; NULL past the last. */
typedef struct fl_kernel_info {
    const char *op, *type, *doc;
    size_t offset; /* in fl_kernels */
} fl_kernel_info;

FL_API const fl_kernel_info *fl_kernel_at(int64_t index);
FL_API double fl_kernel_bound(const char *op, fl_dtype dtype); /* ulp; 0: none stated */

#endif
