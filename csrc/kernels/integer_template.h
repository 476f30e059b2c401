/* Products with int8 weights: out[r, n] = start[r, n] + sum over parts of s[r] scale[n] sum_k a[r, k] w[k, n], where s[r]
 * and a[r] come from the round kernel below. W ~ scale[n] w[k, n] is symmetric and per output channel, x ~ s[r] a[r, k]
 * symmetric and per row (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
 * Integer-Arithmetic-Only Inference", with zero points of 0). Activations of 16 bits are two planes of bytes, a = 256 high
 * + low, each summed as one of 8 bits is.
 *
 * The sum over k is of integers and exact: |w| <= 127 and a byte of at most 128, 65536 times (the packer takes no more),
 * make 1.07e9 < 2^31. Then it is scaled and added in float32, for each part high, low. So the bits depend on neither the
 * tile, the rows nor the path. With an offset, a product of unsigned bytes gives offset * sum_k w too much, which the
 * column's `first` takes away beforehand; sums may wrap in between, for only the last one counts.
 * a: rows of bytes (fl_round_args), whole groups of four; w: [panel][k / 4][vec][lane][4], 64-byte aligned. Aliasing: out
 * may be start. Tails: a last panel of fewer vectors has tiles of its own; rows are split evenly into tiles.
 * Test: tests/c/integers.c (guard pages, every tail, every path), tests/test_quantize.py.
 * Tried: activations of 16 bits as words, with weights widened and vpdpwssd: 4 to 19 % slower in sequences and batches of
 * 256 and 512 units; asking for weights ahead, one row: no gain.
 */

/* Of any case below, those never taken included. */
#define MOST_SUMS (6 * FL_PANEL_VECS)
enum { GROUP = 4, MOST_PLANES = 12 };

static int64_t plane_bytes(int64_t depth) { return (depth + 63) / 64 * 64; }

/* sum[r, v] += the products of a group of k, of `rows` rows or planes of rows. */
FL_INLINE void integer_round(const int rows, const int vecs, const int width, int64_t panel_bytes, const char *const *a,
                             int64_t k, const int8_t *w, ivec (*sum)[MOST_SUMS]) {
    iweights group[MOST_SUMS];
    FL_UNROLL for (int v = 0; v < vecs; v++)
        group[v] = simd_weights(w + v / width * panel_bytes + v % width * LANES_f32 * GROUP);
    FL_UNROLL for (int r = 0; r < rows; r++) {
        const ifactor x = simd_factor(a[r] + k);
        FL_UNROLL for (int v = 0; v < vecs; v++) sum[r][v] = simd_dot(sum[r][v], x, group[v]);
    }
}

/* `rows` rows against `panels` full panels, or one of `tail` vectors, from panel `first` on; planes, rows, panels and tail
 * are constants after inlining. */
FL_INLINE void integer_tile(const int planes, const int rows, const int panels, const int tail,
                            const fl_product_args *p, int64_t row, int64_t first) {
    const int width = tail ? tail : FL_PANEL_VECS, vecs = tail ? tail : panels * FL_PANEL_VECS;
    const int64_t column = first * FL_PANEL_VECS * LANES_f32;
    const float *start = (const float *)p->start + row * p->start_stride + column;
    float *out = (float *)p->out + row * p->out_stride + column;
    int64_t stride = p->start_stride;
    ivec sum[MOST_PLANES][MOST_SUMS]; /* unused ones cost nothing: all indices are constants */
    for (int64_t i = 0; i < p->parts; i++) {
        const fl_product_part *part = &p->part[i];
        const int64_t panel_bytes = part->depth * FL_PANEL_VECS * LANES_f32, plane = plane_bytes(part->depth);
        const int8_t *w = (const int8_t *)part->w + first * panel_bytes;
        const char *a[MOST_PLANES];
        FL_UNROLL for (int r = 0; r < rows * planes; r++) {
            a[r] = (const char *)part->a[row + r / planes] + r % planes * plane;
            FL_UNROLL for (int v = 0; v < vecs; v++)
                sum[r][v] = FL_OFFSET ? simd_load_int(part->first + column + v * LANES_f32) : simd_zero_int();
        }
        for (int64_t k = 0; k < part->depth; k += GROUP, w += width * LANES_f32 * GROUP)
            integer_round(rows * planes, vecs, width, panel_bytes, a, k, w, sum);
        FL_UNROLL for (int r = 0; r < rows; r++) {
            float scale;
            memcpy(&scale, a[r * planes] - FL_SCALE_BYTES, sizeof scale);
            const vec_f32 low = simd_set_f32(scale), high = simd_set_f32(256);
            FL_UNROLL for (int v = 0; v < vecs; v++) {
                const int64_t at = v * LANES_f32;
                const vec_f32 step = simd_mul_f32(low, simd_load_f32(part->scale + column + at));
                const vec_f32 leading = planes == 1 ? step : simd_mul_f32(high, step);
                vec_f32 z = simd_load_f32(start + r * stride + at);
                z = simd_fma_f32(simd_float_of_int(sum[r * planes][v]), leading, z);
                if (planes > 1) z = simd_fma_f32(simd_float_of_int(sum[r * planes + 1][v]), step, z);
                simd_store_f32(out + r * p->out_stride + at, z);
            }
        }
        start = out;
        stride = p->out_stride;
    }
}

FL_INLINE void integer_panels(const int planes, const int rows, int panels, int tail, const fl_product_args *p,
                              int64_t row, int64_t first) {
    if (rows * planes > FL_INTEGER_ROWS) return; /* never asked for */
    switch (tail) {
    case 1: integer_tile(planes, rows, 0, 1, p, row, first); return;
#if FL_PANEL_VECS > 2
    case 2: integer_tile(planes, rows, 0, 2, p, row, first); return;
    case 3: integer_tile(planes, rows, 0, 3, p, row, first); return;
#endif
    }
    if (rows > 1 || panels == 1) {
        integer_tile(planes, rows, 1, 0, p, row, first);
        return;
    }
    switch (panels) {
    case 2: if (2 * planes <= FL_ROW_PANELS) integer_tile(planes, 1, 2, 0, p, row, first); break;
    case 3: if (3 * planes <= FL_ROW_PANELS) integer_tile(planes, 1, 3, 0, p, row, first); break;
    case 4: if (4 * planes <= FL_ROW_PANELS) integer_tile(planes, 1, 4, 0, p, row, first); break;
    case 5: if (5 * planes <= FL_ROW_PANELS) integer_tile(planes, 1, 5, 0, p, row, first); break;
    case 6: if (6 * planes <= FL_ROW_PANELS) integer_tile(planes, 1, 6, 0, p, row, first); break;
    }
}

FL_INLINE void integer_rows(const int planes, int64_t rows, int panels, int tail, const fl_product_args *p, int64_t row,
                            int64_t first) {
    switch (rows) {
    case 1: integer_panels(planes, 1, panels, tail, p, row, first); break;
    case 2: integer_panels(planes, 2, panels, tail, p, row, first); break;
    case 3: integer_panels(planes, 3, panels, tail, p, row, first); break;
    case 4: integer_panels(planes, 4, panels, tail, p, row, first); break;
    case 5: integer_panels(planes, 5, panels, tail, p, row, first); break;
    case 6: integer_panels(planes, 6, panels, tail, p, row, first); break;
    }
}

/* Rows from `begin` on. One row takes several panels at once, whose chains hide the latency; more rows a panel, read once
 * from beyond L1. */
FL_INLINE void integer_product(const int planes, const fl_product_args *p, int64_t begin) {
    const int64_t panels = p->vecs / FL_PANEL_VECS, tail = p->vecs % FL_PANEL_VECS, rows = p->rows - begin;
    const int64_t most = rows == 1 ? FL_ROW_PANELS / planes : 1, highest = FL_INTEGER_ROWS / planes;
    const int64_t tiles = (rows + highest - 1) / highest, groups = (panels + most - 1) / most;
    for (int64_t g = 0; g < groups + (tail > 0); g++) {
        const int64_t first = g < groups ? g * most : panels;
        const int64_t wide = panels - first < most ? panels - first : most;
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t row = rows * t / tiles;
            integer_rows(planes, rows * (t + 1) / tiles - row, (int)wide, g < groups ? 0 : (int)tail, p, begin + row,
                         first);
        }
    }
}

#ifdef FL_AMX
#include "integer_tiles.h"
#else
static int64_t product_in_tiles(const fl_product_args *p) {
    (void)p;
    return 0;
}
#endif

void fl_product_int8(const fl_product_args *p) {
    const int64_t done = product_in_tiles(p);
    if (p->planes == 1) integer_product(1, p, done);
    else integer_product(2, p, done);
}

void fl_round_int8(const fl_round_args *p) {
    const vec_f32 zero = simd_set_f32(0);
    const float most = p->planes == 1 ? 127 : 127 * 256 + 127;
    const int64_t whole = p->depth / LANES_f32 * LANES_f32;
    for (int64_t r = 0; r < p->rows; r++) {
        const float *a = p->a[r];
        char *out = p->out + r * p->out_bytes;
        vec_f32 largest = simd_set_f32(p->least), strange = zero; /* x * 0 is NaN for an infinity too */
        for (int64_t k = 0; k < p->depth; k += LANES_f32) {
            const vec_f32 x = k < whole ? simd_load_f32(a + k) : simd_load_part_f32(a + k, p->depth - whole);
            strange = simd_fma_f32(x, zero, strange);
            largest = simd_max_f32(simd_signed_f32(x, zero), largest);
        }
        float lane[2][LANES_f32], scale = p->least, none = 0;
        simd_store_f32(lane[0], largest);
        simd_store_f32(lane[1], strange);
        for (int i = 0; i < LANES_f32; i++) {
            if (lane[0][i] > scale) scale = lane[0][i];
            none += lane[1][i];
        }
        const vec_f32 steps = simd_set_f32(most / scale);
        scale = scale / most + none;
        memcpy(out - FL_SCALE_BYTES, &scale, sizeof scale);
        for (int64_t k = 0; k < p->depth; k += LANES_f32) {
            const vec_f32 x = k < whole ? simd_load_f32(a + k) : simd_load_part_f32(a + k, p->depth - whole);
            const ivec n = simd_nearest_int(simd_mul_f32(x, steps));
            simd_store_bytes(out + k, p->planes == 1 ? n : simd_high_byte(n));
            if (p->planes > 1) simd_store_bytes(out + plane_bytes(p->depth) + k, n);
        }
        /* What a product reads beyond is multiplied with zeros; but it reads it. */
        const int64_t written = (p->depth + LANES_f32 - 1) / LANES_f32 * LANES_f32, plane = plane_bytes(p->depth);
        for (int i = 0; i < p->planes; i++) memset(out + i * plane + written, 0, (size_t)(plane - written));
    }
}

const fl_integer_kernels fl_integers = {
    .isa = FL_ISA,
    .lanes = LANES_f32,
    .panel_vecs = FL_PANEL_VECS,
    .offset = FL_OFFSET,
#define FL_INTEGER_KERNEL(op, type, doc) .op = fl_##op,
#include "kernels.inc"
};
