/* Products with int8 weights: out[r, n] = start[r, n] + sum over parts of s[r] scale[n] sum_k a[r, k] w[k, n], where s[r]
 * and a[r] come from the round kernel below. W ~ scale[n] w[k, n] is symmetric and per output channel, x ~ s[r] a[r, k]
 * symmetric and per row (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
 * Integer-Arithmetic-Only Inference", with zero points of 0).
 *
 * The sum over k is of integers and exact: with |w| <= 127 and activations of 8 bits, 65536 of them (what the packer
 * takes) reach 1.1e9 < 2^31; of 16 bits, FL_FLUSH of them 2.13e9 < 2^31, and there it is scaled and added, at the same
 * places on every path. Then one multiply-add in float32 for each part and flush, in order. So the bits depend on
 * neither the tile, the rows nor the path. With an offset a product with unsigned bytes gives offset * sum_k w too much,
 * which the column's `first` takes away beforehand; sums may wrap in between, for only the last one counts.
 * a: rows of numbers, FL_SCALE_BYTES after their scale, padded to whole groups; w: packed, kernels.h. Aliasing: out may
 * be start. Tails: as in product_template.h, but a tail of panels has a tile of its own for one row too.
 * Test: tests/c/integers.c (guard pages, every tail, every path), tests/test_quantize.py.
 */

#define factor FL_NAME(factor)
#define weights FL_NAME(weights)
#define load_factor FL_NAME(simd_factor)
#define load_weights_of_group FL_NAME(simd_weights)
#define dot FL_NAME(simd_dot)
#define round_store FL_NAME(simd_round)
#define ROWS FL_NAME(ROWS)
#define OFFSET FL_NAME(OFFSET)
#define integer_round FL_NAME(integer_round)
#define integer_tile FL_NAME(integer_tile)
#define integer_switch FL_NAME(integer_switch)
#define integer_rows FL_NAME(integer_rows)
#define NUMBER_BYTES (4 / FL_GROUP)

/* `rows` rows against `panels` full panels, or one of `tail` vectors, from panel `first` on; all three constants after
 * inlining. */
FL_INLINE void integer_tile(const int rows, const int panels, const int tail, const fl_product_args *p, int64_t row,
                            int64_t first) {
    const int width = tail ? tail : FL_PANEL_VECS, vecs = tail ? tail : panels * FL_PANEL_VECS;
    const int64_t column = first * FL_PANEL_VECS * LANES_f32;
    const float *start = (const float *)p->start + row * p->start_stride + column;
    float *out = (float *)p->out + row * p->out_stride + column;
    int64_t stride = p->start_stride;
    for (int64_t i = 0; i < p->parts; i++) {
        const fl_product_part *part = &p->part[i];
        const int64_t panel_bytes = part->depth * FL_PANEL_VECS * LANES_f32;
        const int8_t *w = (const int8_t *)part->w + first * panel_bytes;
        const char *a[ROWS];
        FL_UNROLL for (int r = 0; r < rows; r++) a[r] = part->a[row + r];
        for (int64_t k = 0; k < part->depth;) {
            const int64_t left = part->depth - k, end = left > FL_FLUSH ? k + FL_FLUSH : part->depth;
            ivec sum[ROWS][FL_ROW_PANELS * FL_PANEL_VECS];
            FL_UNROLL for (int r = 0; r < rows; r++)
                FL_UNROLL for (int v = 0; v < vecs; v++)
                    sum[r][v] = OFFSET ? simd_load_int(part->first + column + v * LANES_f32) : simd_zero_int();
            for (; k < end; k += FL_GROUP) {
                weights group[FL_ROW_PANELS * FL_PANEL_VECS];
                FL_UNROLL for (int v = 0; v < vecs; v++)
                    group[v] = load_weights_of_group(w + v / width * panel_bytes + v % width * LANES_f32 * FL_GROUP);
                w += width * LANES_f32 * FL_GROUP;
                FL_UNROLL for (int r = 0; r < rows; r++) {
                    const factor x = load_factor(a[r] + k * NUMBER_BYTES);
                    FL_UNROLL for (int v = 0; v < vecs; v++) sum[r][v] = dot(sum[r][v], x, group[v]);
                }
            }
            FL_UNROLL for (int r = 0; r < rows; r++) {
                float scale;
                memcpy(&scale, a[r] - FL_SCALE_BYTES, sizeof scale);
                FL_UNROLL for (int v = 0; v < vecs; v++) {
                    const vec_f32 both =
                        simd_mul_f32(simd_set_f32(scale), simd_load_f32(part->scale + column + v * LANES_f32));
                    const vec_f32 before = simd_load_f32(start + r * stride + v * LANES_f32);
                    simd_store_f32(out + r * p->out_stride + v * LANES_f32,
                                   simd_fma_f32(simd_float_of_int(sum[r][v]), both, before));
                }
            }
            start = out;
            stride = p->out_stride;
        }
    }
}

FL_INLINE void integer_switch(const int rows, int panels, int tail, const fl_product_args *p, int64_t row,
                              int64_t first) {
    switch (tail) {
    case 1: integer_tile(rows, 0, 1, p, row, first); return;
#if FL_PANEL_VECS > 2
    case 2: integer_tile(rows, 0, 2, p, row, first); return;
    case 3: integer_tile(rows, 0, 3, p, row, first); return;
#endif
    }
    switch (rows == 1 ? panels : 1) {
    case 1: integer_tile(rows, 1, 0, p, row, first); break;
    case 2: integer_tile(rows, 2, 0, p, row, first); break;
#if FL_ROW_PANELS > 2
    case 3: integer_tile(rows, 3, 0, p, row, first); break;
#endif
#if FL_ROW_PANELS > 3
    case 4: integer_tile(rows, 4, 0, p, row, first); break;
#endif
#if FL_ROW_PANELS > 4
    case 5: integer_tile(rows, 5, 0, p, row, first); break;
    case 6: integer_tile(rows, 6, 0, p, row, first); break;
#endif
    }
}

/* All rows against some panels, in tiles as even as can be. */
static void integer_rows(const fl_product_args *p, int panels, int tail, int64_t first) {
    const int64_t tiles = (p->rows + ROWS - 1) / ROWS;
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t row = p->rows * t / tiles;
        switch (p->rows * (t + 1) / tiles - row) {
        case 1: integer_switch(1, panels, tail, p, row, first); break;
        case 2: integer_switch(2, panels, tail, p, row, first); break;
#if ROWS > 2
        case 3: integer_switch(3, panels, tail, p, row, first); break;
        case 4: integer_switch(4, panels, tail, p, row, first); break;
#endif
#if ROWS > 4
        case 5: integer_switch(5, panels, tail, p, row, first); break;
        case 6: integer_switch(6, panels, tail, p, row, first); break;
#endif
        }
    }
}

/* One row takes several panels at once, whose chains hide the latency; more rows a panel, read once from beyond L1. */
void FL_NAME(fl_product)(const fl_product_args *p) {
    const int64_t panels = p->vecs / FL_PANEL_VECS, most = p->rows == 1 ? FL_ROW_PANELS : 1;
    for (int64_t first = 0; first < panels; first += most)
        integer_rows(p, (int)(panels - first < most ? panels - first : most), 0, first);
    if (p->vecs % FL_PANEL_VECS) integer_rows(p, 0, (int)(p->vecs % FL_PANEL_VECS), panels);
}

void FL_NAME(fl_round)(const fl_round_args *p) {
    const vec_f32 zero = simd_set_f32(0);
    for (int64_t r = 0; r < p->rows; r++) {
        const float *a = p->a[r];
        char *out = p->out + r * p->out_bytes;
        vec_f32 largest = simd_set_f32(p->least), strange = zero; /* x * 0 is NaN for an infinity too */
        const int64_t whole = p->depth / LANES_f32 * LANES_f32;
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
        const vec_f32 steps = simd_set_f32(FL_MOST / scale);
        scale = scale / FL_MOST + none;
        memcpy(out - FL_SCALE_BYTES, &scale, sizeof scale);
        for (int64_t k = 0; k < p->depth; k += LANES_f32) {
            const vec_f32 x = k < whole ? simd_load_f32(a + k) : simd_load_part_f32(a + k, p->depth - whole);
            round_store(out + k * NUMBER_BYTES, simd_mul_f32(x, steps));
        }
    }
}

const fl_integer_kernels FL_NAME(fl_integers) = {
    .isa = FL_ISA,
    .lanes = LANES_f32,
    .panel_vecs = FL_PANEL_VECS,
    .number_bytes = NUMBER_BYTES,
    .group = FL_GROUP,
    .offset = OFFSET,
#define FL_INTEGER_KERNEL(op, type, doc) .op = FL_NAME(fl_##op),
#include "kernels.inc"
};
