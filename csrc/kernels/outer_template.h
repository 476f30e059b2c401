/* out[m, n] += sum over rows r of a[r, m] b[r, n]: the gradient of a weight matrix, T B rows deep; and sums over rows,
 * for biases and peepholes.
 *
 * a: [depth, a_stride]; b: row pointers [depth][n]; out: [m, out_stride], added to.
 * The rows are taken in even chunks of FL_SUM_ROWS to twice that, each summed from zero, in order, and then added: one
 * fixed order, and an error that grows with the chunk and the number of chunks, not with their product.
 * Aliasing: none. Tails: the last vector of n is loaded and stored in part, b's rows are not read beyond n.
 * Test: tests/c/backward.c, tests/test_backward.py. Bound: (2 FL_SUM_ROWS + depth / FL_SUM_ROWS) * eps * sum |a b|.
 */

#define outer_tile FL_NAME(outer_tile)
#define outer_columns FL_NAME(outer_columns)
#define outer_rows FL_NAME(outer_rows)
#define sum_columns FL_NAME(sum_columns)
#define smaller FL_NAME(smaller)
#define sum_chunks FL_NAME(sum_chunks)

#define vload_n FL_NAME(vload_n)

#ifndef FL_OUTER_BLOCK
#define FL_OUTER_BLOCK 384 /* columns of a: with 256 to 511 rows, some half of L2 */
#endif

FL_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

FL_INLINE int64_t sum_chunks(int64_t depth) { return depth < FL_SUM_ROWS ? depth > 0 : depth / FL_SUM_ROWS; }

/* rows x vecs outputs, the last vector with `part` lanes (0: all); rows and vecs are constants after inlining. */
FL_INLINE void outer_tile(const int rows, const int vecs, const bool whole, const fl_outer_args *p, int64_t first,
                          int64_t depth, int64_t row, int64_t column, int64_t part) {
    const real *a = (const real *)p->a + first * p->a_stride + row;
    vec acc[FL_TILE_ROWS][FL_PANEL_VECS];
    FL_UNROLL for (int r = 0; r < rows; r++) FL_UNROLL for (int v = 0; v < vecs; v++) {
        acc[r][v] = vset(0);
        /* The sums lie in memory, a row apart: they come while the chunk is summed. */
        __builtin_prefetch((real *)p->out + (row + r) * p->out_stride + column + v * LANES, 1);
    }
    for (int64_t k = 0; k < depth; k++, a += p->a_stride) {
        const real *b = (const real *)p->b[first + k] + column;
        vec x[FL_PANEL_VECS];
        FL_UNROLL for (int v = 0; v < vecs; v++)
            x[v] = whole || v < vecs - 1 ? vload(b + v * LANES) : vload_part(b + v * LANES, part);
        FL_UNROLL for (int r = 0; r < rows; r++) {
            const vec scale = vset(a[r]);
            FL_UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = vfma(scale, x[v], acc[r][v]);
        }
    }
    FL_UNROLL for (int r = 0; r < rows; r++) {
        real *out = (real *)p->out + (row + r) * p->out_stride + column;
        FL_UNROLL for (int v = 0; v < vecs; v++, out += LANES) {
            if (whole || v < vecs - 1) vstore(out, vadd(vload(out), acc[r][v]));
            else vstore_part(out, part, vadd(vload_part(out, part), acc[r][v]));
        }
    }
}

FL_INLINE void outer_columns(const int rows, const fl_outer_args *p, int64_t first, int64_t depth, int64_t row,
                             int64_t column, int vecs, int64_t part) {
    switch (vecs * 2 + (part == 0)) {
    case 2: outer_tile(rows, 1, false, p, first, depth, row, column, part); break;
    case 3: outer_tile(rows, 1, true, p, first, depth, row, column, 0); break;
    case 4: outer_tile(rows, 2, false, p, first, depth, row, column, part); break;
    case 5: outer_tile(rows, 2, true, p, first, depth, row, column, 0); break;
#if FL_PANEL_VECS > 2
    case 6: outer_tile(rows, 3, false, p, first, depth, row, column, part); break;
    case 7: outer_tile(rows, 3, true, p, first, depth, row, column, 0); break;
    case 8: outer_tile(rows, 4, false, p, first, depth, row, column, part); break;
    case 9: outer_tile(rows, 4, true, p, first, depth, row, column, 0); break;
#endif
    }
}

static void outer_rows(int rows, const fl_outer_args *p, int64_t first, int64_t depth, int64_t row, int64_t column,
                       int vecs, int64_t part) {
    switch (rows) {
    case 1: outer_columns(1, p, first, depth, row, column, vecs, part); break;
    case 2: outer_columns(2, p, first, depth, row, column, vecs, part); break;
    case 3: outer_columns(3, p, first, depth, row, column, vecs, part); break;
#if FL_TILE_ROWS > 3
    case 4: outer_columns(4, p, first, depth, row, column, vecs, part); break;
    case 5: outer_columns(5, p, first, depth, row, column, vecs, part); break;
    case 6: outer_columns(6, p, first, depth, row, column, vecs, part); break;
#endif
    }
}

/* Blocks of a that stay in L2 outside, then columns, whose part of b does too, then tiles. */
void FL_NAME(fl_outer)(const fl_outer_args *p) {
    const int64_t chunks = sum_chunks(p->depth), blocks = (p->m + FL_OUTER_BLOCK - 1) / FL_OUTER_BLOCK;
    for (int64_t i = 0; i < chunks * blocks; i++) {
        const int64_t chunk = i / blocks, block = i % blocks;
        const int64_t first = p->depth * chunk / chunks, depth = p->depth * (chunk + 1) / chunks - first;
        const int64_t begin = block * FL_OUTER_BLOCK, m = smaller(p->m - begin, FL_OUTER_BLOCK);
        const int64_t tiles = (m + FL_TILE_ROWS - 1) / FL_TILE_ROWS;
        for (int64_t column = 0; column < p->n; column += FL_PANEL_VECS * LANES) {
            const int64_t width = smaller(p->n - column, FL_PANEL_VECS * LANES), part = width % LANES;
            for (int64_t t = 0; t < tiles; t++) { /* as even as can be */
                const int64_t row = m * t / tiles;
                outer_rows((int)(m * (t + 1) / tiles - row), p, first, depth, begin + row, column,
                           (int)((width + LANES - 1) / LANES), part);
            }
        }
    }
}

FL_INLINE vec vload_n(const real *p, int64_t n) { return n == LANES ? vload(p) : vload_part(p, n); }

FL_INLINE void sum_columns(const bool weighted, const fl_sum_args *p, int64_t first, int64_t depth, int64_t column,
                           int64_t n) {
    vec acc = vset(0);
    const real *a = (const real *)p->a + first * p->a_stride + column;
    for (int64_t k = 0; k < depth; k++, a += p->a_stride) {
        const vec x = vload_n(a, n);
        if (weighted) acc = vfma(x, vload_n((const real *)p->b[first + k] + p->b_offset + column, n), acc);
        else acc = vadd(acc, x);
    }
    real *out = (real *)p->out + column;
    if (n == LANES) vstore(out, vadd(vload(out), acc));
    else vstore_part(out, n, vadd(vload_part(out, n), acc));
}

void FL_NAME(fl_sum)(const fl_sum_args *p) {
    const int64_t chunks = sum_chunks(p->depth);
    for (int64_t i = 0; i < chunks; i++) {
        const int64_t first = p->depth * i / chunks, depth = p->depth * (i + 1) / chunks - first;
        for (int64_t column = 0; column < p->n; column += LANES) {
            const int64_t n = smaller(p->n - column, LANES);
            if (p->b) sum_columns(true, p, first, depth, column, n);
            else sum_columns(false, p, first, depth, column, n);
        }
    }
}

/* out[r] += a[r], for row pointers. */
void FL_NAME(fl_add)(const fl_add_args *p) {
    for (int64_t r = 0; r < p->rows; r++) {
        const real *a = (const real *)p->a[r] + p->a_offset;
        real *out = (real *)p->out[r] + p->out_offset;
        for (int64_t column = 0; column < p->n; column += LANES) {
            const int64_t n = smaller(p->n - column, LANES);
            const vec sum = vadd(vload_n(out + column, n), vload_n(a + column, n));
            if (n == LANES) vstore(out + column, sum);
            else vstore_part(out + column, n, sum);
        }
    }
}
