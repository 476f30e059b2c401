/* What a kernel is: the argument structures, the table of one instruction set, and the one list (kernels.inc).
 *
 * Kernels allocate nothing, know no threads and no CPUs, and cannot fail. Pointers are to elements of the table's
 * dtype, strides count elements. Scratch of theirs needs no initial value.
 */
#ifndef FL_KERNELS_H
#define FL_KERNELS_H

#include "../fastlstm.h"

#include <stdbool.h>
#include <stdint.h>

/* Columns of gates, in the order that lets a cell kernel load whole registers: blocks of LANES units, in each block
 * the gates one after the other, [unit / LANES][gate][unit % LANES]. The last block holds the H % LANES units that
 * remain, tightly: [gate][unit]. So G gates of H units are G * H columns, and unit u (a block's first) begins at
 * column G * u. */

/* out[r, n] = start[r, n] + sum over parts, in each over k in order, of a[r][k] * w[k, n].
 * In one chain of additions; or, apart: by FL_PART_DEPTH of k, of each part in turn, and there each part but the first
 * from zero, and then added to what came before. */
enum { FL_PART_DEPTH = 128 };
typedef struct fl_product_part {
    int64_t depth; /* number of k, at least 1 */
    const void *const *a;
    const void *w; /* panels, [panel][k][vec][lane], 64-byte aligned; the last may hold fewer vectors */
    /* Of int8 weights only (integer_template.h): what a column's numbers are multiples of, and where its sum begins. */
    const float *scale;
    const int32_t *first;
} fl_product_part;

typedef struct fl_product_args {
    int64_t rows;
    int64_t vecs; /* columns / LANES, rounded up */
    int64_t parts; /* 1 to 4: input and state at once, or a gate each */
    fl_product_part part[4];
    bool apart; /* the parts are equally deep */
    int32_t planes; /* int8 weights: of the rows (fl_round_args) */
    const void *start;
    int64_t start_stride; /* 0: one row for all */
    void *out; /* [rows, out_stride]; may be start itself */
    int64_t out_stride;
    const void *next; /* weights that the next call reads first, to be fetched meanwhile; NULL: unknown */
} fl_product_args;

/* Rows of numbers as integers: out[r][k] = a[r][k] / scale of r, rounded to nearest even, in bytes or, with two planes, as
 * 256 times the bytes of the first plus those of the second. A plane is depth bytes, rounded up to 64; in front of the row
 * stands its scale: the largest magnitude of the row, or `least` if that is more, over 127 or 32639; NaN if the row holds
 * a NaN or an infinity. */
enum { FL_SCALE_BYTES = 64 };
typedef struct fl_round_args {
    int64_t rows, depth, planes;
    const void *const *a; /* float32 */
    float least;
    char *out; /* the first row's first byte, 64-byte aligned; its scale lies FL_SCALE_BYTES before */
    int64_t out_bytes; /* from row to row */
} fl_round_args;

typedef struct fl_cell_options {
    fl_activation act[3]; /* gates, candidate, output */
    double clip; /* 0: none */
    int32_t forget_gate, coupled_gates, peepholes;
} fl_cell_options;

/* One step of units [begin, end) for some rows. State rows are padded to whole vectors, `state_stride` apart. */
typedef struct fl_cell_args {
    int64_t rows, hidden; /* hidden: H, all units */
    int64_t begin, end; /* begin is a block's first unit, end another's or H */
    const void *z; /* pre-activations; column 0 belongs to unit `begin` */
    int64_t z_stride;
    const void *zx; /* GRU: projected input, column 0 belongs to unit `begin`, all three gates */
    int64_t zx_stride;
    const void *h; /* state before the step (GRU, gated RNN) */
    void *h_out; /* state after it; not h itself */
    const void *c; /* LSTM. GRU reset before: z's pre-activation, from phase to phase */
    void *c_out; /* may be c itself */
    int64_t state_stride;
    void *const *y; /* output rows, unit 0; NULL: none */
    int64_t y_offset;
    const void *peephole; /* [3, state_stride]: i, f, o */
    const fl_cell_options *options;
    void *memory; /* of a tape, for the kernels that keep what is not in z; column 0 belongs to unit `begin` */
    int64_t memory_stride;
} fl_cell_args;

/* The same step backwards. A tape's memory holds, in gate columns: LSTM, RNN, gated RNN z as above; GRU reset after
 * z_r, z_z, projected n, recurrent n; GRU reset before z_r, z_z, z_n: all with input, state and biases. */
typedef struct fl_cell_backward_args {
    int64_t rows, hidden, begin, end;
    const void *memory; /* column 0 belongs to unit `begin` */
    int64_t memory_stride;
    const void *h; /* state before the step (GRU, gated RNN) */
    const void *c, *c_new; /* before and after it (LSTM) */
    int64_t state_stride;
    const void *const *dy; /* output rows, unit 0; NULL: none */
    int64_t dy_offset;
    void *dh; /* by the state after the step; then the part of that before it that goes through no product */
    void *dc; /* likewise; then all of it */
    const void *drh; /* GRU reset before, phase 2: by r h */
    void *between; /* rows of what the output or candidate product multiplied: o tanh(c'), r h; NULL: not wanted */
    void *dz; /* [rows, dz_stride]: by the pre-activations, [gate][unit], unit 0; see fl_cell.deltas */
    int64_t dz_stride;
    const void *peephole;
    const fl_cell_options *options;
} fl_cell_backward_args;

enum { FL_SUM_ROWS = 256 };

/* out[m, n] += sum over r of a[r, m] b[r, n] */
typedef struct fl_outer_args {
    int64_t depth, m, n;
    const void *a;
    int64_t a_stride;
    const void *const *b;
    void *out;
    int64_t out_stride;
} fl_outer_args;

/* out[n] += sum over r of a[r, n], or of a[r, n] b[r, b_offset + n] */
typedef struct fl_sum_args {
    int64_t depth, n;
    const void *a;
    int64_t a_stride;
    const void *const *b; /* NULL: none */
    int64_t b_offset;
    void *out;
} fl_sum_args;

/* out[r] += a[r] */
typedef struct fl_add_args {
    int64_t rows, n;
    const void *const *a;
    int64_t a_offset;
    void *const *out;
    int64_t out_offset;
} fl_add_args;

typedef void fl_product_fn(const fl_product_args *args);
typedef void fl_round_fn(const fl_round_args *args);
typedef void fl_cell_fn(const fl_cell_args *args);
typedef void fl_cell_backward_fn(const fl_cell_backward_args *args);
typedef void fl_outer_fn(const fl_outer_args *args);
typedef void fl_sum_fn(const fl_sum_args *args);
typedef void fl_add_fn(const fl_add_args *args);
/* out[i] = f(a[i], b[i]) */
typedef void fl_map_fn(const void *a, const void *b, void *out, int64_t n);
/* y[i] = f(x[i]), y perhaps x */
typedef void fl_activate_fn(const fl_activation *f, const void *x, void *y, int64_t n);
/* dx[i] = dy[i] f'(x[i]), dx perhaps dy or x */
typedef void fl_activate_backward_fn(const fl_activation *f, const void *x, const void *dy, void *dx, int64_t n);
/* Some arithmetic or traffic to be timed; returns how many operations or bytes it was. */
typedef int64_t fl_roof_fn(const void *data, int64_t n);

typedef struct fl_kernels {
    const char *isa;
    int32_t lanes, panel_vecs, row_panels, element_bytes;
#define FL_KERNEL(op, type, doc) type *op;
#define FL_KERNEL_F32(op, type, doc) type *op; /* NULL in the other dtype's table */
#include "kernels.inc"
} fl_kernels;

/* What runs int8 weights of float32 layers. Some CPUs have instructions for it besides those of their path, so these
 * tables have paths of their own; lanes and panels are as in fl_kernels. */
typedef struct fl_integer_kernels {
    const char *isa;
    int32_t lanes, panel_vecs;
    int32_t offset; /* added to activations, for unsigned bytes; a column's sum begins without what it adds */
#define FL_INTEGER_KERNEL(op, type, doc) type *op;
#include "kernels.inc"
} fl_integer_kernels;

extern const fl_kernels fl_kernels_f32_avx512, fl_kernels_f64_avx512;
extern const fl_kernels fl_kernels_f32_avx2, fl_kernels_f64_avx2;
extern const fl_kernels fl_kernels_f32_neon, fl_kernels_f64_neon;
extern const fl_kernels fl_kernels_f32_portable, fl_kernels_f64_portable;
extern const fl_kernels fl_kernels_f32_portable_fma, fl_kernels_f64_portable_fma;

extern const fl_integer_kernels fl_integers_avx512_amx, fl_integers_avx512_vnni, fl_integers_avx512,
    fl_integers_avx2_vnni, fl_integers_avx2;
extern const fl_integer_kernels fl_integers_neon_dot, fl_integers_neon, fl_integers_portable, fl_integers_portable_fma;

/* kernels.inc as data, for tests and benchmarks; NULL past the last. */
typedef struct fl_kernel_info {
    const char *op, *type, *doc;
    size_t offset; /* in fl_kernels or fl_integer_kernels */
    bool f64; /* also in float64 */
    bool integer; /* of fl_integer_kernels */
} fl_kernel_info;

FL_API const fl_kernel_info *fl_kernel_at(int64_t index);
FL_API double fl_kernel_bound(const char *op, fl_dtype dtype); /* ulp; 0: none stated */

#endif
