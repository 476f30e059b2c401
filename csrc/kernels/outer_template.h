/* out[m, n] += sum over rows r of a[r, m] b[r, n]: the gradient of a weight matrix, T B rows deep; and sums over rows,
 * for biases and peepholes.
 *
 * a: [depth, a_stride]; b: row pointers [depth][n]; out: [m, out_stride], added to.
 * The rows are taken in even chunks of FL_SUM_ROWS to twice that, each summed from zero, in order, and then added: one
 * fixed order, and an error that grows with the chunk and the number of chunks, not with their product.
 * A chunk of some columns of a stays in L2 for all columns of b; the next such block, whose rows lie too far apart for
 * the hardware to foresee, is asked for meanwhile, and so are the sums of the next tile.
 * Aliasing: none. Tails: the last vector of n is loaded and stored in part, b's rows are not read beyond n.
 * Test: tests/c/backward.c, tests/test_backward.py. Bound: (2 FL_SUM_ROWS + depth / FL_SUM_ROWS) * eps * sum |a b|.
 * Tried, on a core with two 512-bit multiply-adds a cycle and a slow L3, at 1600 x 2048 x 512: nothing asked for, 72 % of
 * the peak instead of 84; blocks of 384 columns, 76; of 192, 79; of 48, 83; b packed into L1, 77, and 66 without asking.
 */

#define outer_tile FL_NAME(outer_tile)
#define outer_block FL_NAME(outer_block)
#define outer_block_at FL_NAME(outer_block_at)
#define outer_ahead FL_NAME(outer_ahead)
#define outer_lines_of FL_NAME(outer_lines_of)
#define outer_ask FL_NAME(outer_ask)
#define outer_ask_sums FL_NAME(outer_ask_sums)
#define outer_columns FL_NAME(outer_columns)
#define outer_rows FL_NAME(outer_rows)
#define sum_columns FL_NAME(sum_columns)
#define smaller FL_NAME(smaller)
#define sum_chunks FL_NAME(sum_chunks)

#define vload_n FL_NAME(vload_n)

#ifndef FL_OUTER_BLOCK
#define FL_OUTER_BLOCK 96 /* columns of a */
#define FL_OUTER_ASKS 32  /* lines before a tile: more would be no better than to come and fetch them */
#define FL_OUTER_LINE 64  /* bytes */
#endif

FL_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

FL_INLINE int64_t sum_chunks(int64_t depth) { return depth < FL_SUM_ROWS ? depth > 0 : depth / FL_SUM_ROWS; }

/* rows x vecs outputs, the last vector with `part` lanes (0: all); rows and vecs are constants after inlining. */
FL_INLINE void outer_tile(const int rows, const int vecs, const bool whole, const fl_outer_args *p, int64_t first,
                          int64_t depth, int64_t row, int64_t column, int64_t part) {
    const real *a = (const real *)p->a + first * p->a_stride + row;
    vec acc[FL_TILE_ROWS][FL_PANEL_VECS];
    FL_UNROLL for (int r = 0; r < rows; r++) FL_UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = vset(0);
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

/* Rows [first, first + depth) of columns [begin, begin + m) of a. */
typedef struct outer_block {
    int64_t first, depth, begin, m;
} outer_block;

FL_INLINE outer_block outer_block_at(const fl_outer_args *p, int64_t chunks, int64_t blocks, int64_t i) {
    const int64_t chunk = i / blocks, first = p->depth * chunk / chunks, begin = i % blocks * FL_OUTER_BLOCK;
    return (outer_block){first, p->depth * (chunk + 1) / chunks - first, begin,
                         smaller(p->m - begin, FL_OUTER_BLOCK)};
}

/* The lines of a block, row by row, some before each tile of the block before it. */
typedef struct outer_ahead {
    uintptr_t row;
    int64_t stride_bytes, rows, line, lines, each;
} outer_ahead;

FL_INLINE outer_ahead outer_lines_of(const fl_outer_args *p, outer_block next, int64_t tiles) {
    outer_ahead ahead = {.row = (uintptr_t)((const real *)p->a + next.first * p->a_stride + next.begin),
                         .stride_bytes = p->a_stride * (int64_t)sizeof(real),
                         .rows = next.depth,
                         .lines = (next.m * (int64_t)sizeof(real) + FL_OUTER_LINE - 1) / FL_OUTER_LINE};
    ahead.each = ahead.rows * ahead.lines / tiles + 1;
    if (ahead.each > FL_OUTER_ASKS) ahead.rows = 0;
    return ahead;
}

FL_INLINE void outer_ask(outer_ahead *ahead) {
    for (int64_t i = 0; i < ahead->each && ahead->rows > 0; i++) {
        __builtin_prefetch((const void *)(ahead->row + (uintptr_t)(ahead->line * FL_OUTER_LINE)), 0, 2);
        if (++ahead->line < ahead->lines) continue;
        ahead->line = 0;
        ahead->rows--;
        ahead->row += (uintptr_t)ahead->stride_bytes;
    }
}

FL_INLINE void outer_ask_sums(const fl_outer_args *p, int64_t row, int64_t rows, int64_t column, int64_t width) {
    for (int64_t r = row; r < row + rows; r++)
        for (int64_t n = 0; n < width; n += FL_OUTER_LINE / (int64_t)sizeof(real))
            __builtin_prefetch((const real *)p->out + r * p->out_stride + column + n, 1);
}

/* Blocks of a outside, then columns of b, then tiles. */
void FL_NAME(fl_outer)(const fl_outer_args *p) {
    const int64_t chunks = sum_chunks(p->depth), blocks = (p->m + FL_OUTER_BLOCK - 1) / FL_OUTER_BLOCK;
    const int64_t panel = FL_PANEL_VECS * LANES, panels = (p->n + panel - 1) / panel;
    for (int64_t i = 0; i < chunks * blocks; i++) {
        const outer_block at = outer_block_at(p, chunks, blocks, i);
        const int64_t tiles = (at.m + FL_TILE_ROWS - 1) / FL_TILE_ROWS;
        outer_ahead ahead = {0};
        if (i + 1 < chunks * blocks)
            ahead = outer_lines_of(p, outer_block_at(p, chunks, blocks, i + 1), tiles * panels);
        for (int64_t column = 0; column < p->n; column += panel) {
            const int64_t width = smaller(p->n - column, panel), part = width % LANES;
            for (int64_t t = 0, row = at.begin; t < tiles; t++) { /* as even as can be */
                const int64_t end = at.begin + at.m * (t + 1) / tiles, rows = end - row;
                outer_ask(&ahead);
                outer_ask_sums(p, end, smaller(rows, p->m - end), column, width);
                outer_rows((int)rows, p, at.first, at.depth, row, column, (int)((width + LANES - 1) / LANES), part);
                row = end;
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
