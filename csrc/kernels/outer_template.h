/* out[m, n] += sum over rows r of a[r, m] b[r, n]: the gradient of a weight matrix, T B rows deep; and sums over rows,
 * for biases and peepholes.
 *
 * a: [depth, a_stride]; b: row pointers [depth][n]; out: [m, out_stride], added to.
 * The rows are taken in even chunks of FL_SUM_ROWS to twice that, each summed from zero, in order, and then added: one
 * fixed order, and an error that grows with the chunk and the number of chunks, not with their product.
 * A chunk of some columns of a stays in L2 for all columns of b; the next such block, whose rows lie too far apart for
 * the hardware to foresee, is asked for meanwhile, and so are the sums of the next tile. Some columns of b are copied, by
 * stretches of a chunk that stay in L1: rows of b lie apart by a power of two, as likely as not, and would push each
 * other out of it. Between stretches the sums wait on the stack.
 * Aliasing: none. Tails: the last vector of n is loaded and stored in part, b's rows are not read beyond n.
 * Test: tests/c/backward.c, tests/test_backward.py. Bound: (2 FL_SUM_ROWS + depth / FL_SUM_ROWS) * eps * sum |a b|.
 * Tried, on a core with two 512-bit multiply-adds a cycle and a slow L3: nothing asked for, 5 to 20 % slower; not copied,
 * as fast up to 512 columns and 4 % slower at 1024, on AVX2 10 % there; whole chunks copied, 3 % slower at 512; blocks
 * of 96 columns, 1 to 2 %; copied and not asked for, the slowest of all.
 */

#define outer_tile FL_NAME(outer_tile)
#define outer_stretch FL_NAME(outer_stretch)
#define outer_copy FL_NAME(outer_copy)
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
#define FL_OUTER_BLOCK 192 /* columns of a */
#define FL_OUTER_ASKS 32  /* lines before a tile: more would be no better than to come and fetch them */
#define FL_OUTER_TILES ((FL_OUTER_BLOCK + FL_TILE_ROWS - 1) / FL_TILE_ROWS)
#endif

FL_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

FL_INLINE int64_t sum_chunks(int64_t depth) { return depth < FL_SUM_ROWS ? depth > 0 : depth / FL_SUM_ROWS; }

/* Rows [first, first + depth) of some columns of b, copied side by side; sums so far, where it is not a chunk's first
 * stretch, and where they go, if it is not the last. */
typedef struct outer_stretch {
    int64_t first, depth;
    bool begins, ends;
    real *b, *sums;
} outer_stretch;

/* rows x vecs outputs; rows and vecs are constants after inlining. */
FL_INLINE void outer_tile(const int rows, const int vecs, const fl_outer_args *p, const outer_stretch *s, int64_t row,
                          int64_t column, int64_t part, real *sums) {
    const real *a = (const real *)p->a + s->first * p->a_stride + row, *b = s->b;
    vec acc[FL_TILE_ROWS][FL_PANEL_VECS];
    FL_UNROLL for (int r = 0; r < rows; r++)
        FL_UNROLL for (int v = 0; v < vecs; v++)
            acc[r][v] = s->begins ? vset(0) : vload(sums + (r * FL_PANEL_VECS + v) * LANES);
    for (int64_t k = 0; k < s->depth; k++, a += p->a_stride, b += vecs * LANES) {
        vec x[FL_PANEL_VECS];
        FL_UNROLL for (int v = 0; v < vecs; v++) x[v] = vload(b + v * LANES);
        FL_UNROLL for (int r = 0; r < rows; r++) {
            const vec scale = vset(a[r]);
            FL_UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = vfma(scale, x[v], acc[r][v]);
        }
    }
    FL_UNROLL for (int r = 0; r < rows; r++) {
        real *out = (real *)p->out + (row + r) * p->out_stride + column;
        FL_UNROLL for (int v = 0; v < vecs; v++, out += LANES) {
            if (!s->ends) vstore(sums + (r * FL_PANEL_VECS + v) * LANES, acc[r][v]);
            else if (part <= 0 || v < vecs - 1) vstore(out, vadd(vload(out), acc[r][v]));
            else vstore_part(out, part, vadd(vload_part(out, part), acc[r][v]));
        }
    }
}

FL_INLINE void outer_columns(const int rows, const fl_outer_args *p, const outer_stretch *s, int64_t row,
                             int64_t column, int vecs, int64_t part, real *sums) {
    switch (vecs) {
    case 1: outer_tile(rows, 1, p, s, row, column, part, sums); break;
    case 2: outer_tile(rows, 2, p, s, row, column, part, sums); break;
#if FL_PANEL_VECS > 2
    case 3: outer_tile(rows, 3, p, s, row, column, part, sums); break;
    case 4: outer_tile(rows, 4, p, s, row, column, part, sums); break;
#endif
    }
}

static void outer_rows(int rows, const fl_outer_args *p, const outer_stretch *s, int64_t row, int64_t column, int vecs,
                       int64_t part, real *sums) {
    switch (rows) {
    case 1: outer_columns(1, p, s, row, column, vecs, part, sums); break;
    case 2: outer_columns(2, p, s, row, column, vecs, part, sums); break;
    case 3: outer_columns(3, p, s, row, column, vecs, part, sums); break;
#if FL_TILE_ROWS > 3
    case 4: outer_columns(4, p, s, row, column, vecs, part, sums); break;
    case 5: outer_columns(5, p, s, row, column, vecs, part, sums); break;
    case 6: outer_columns(6, p, s, row, column, vecs, part, sums); break;
#endif
    }
}

FL_INLINE void outer_copy(const fl_outer_args *p, const outer_stretch *s, int64_t column, int vecs, int64_t part) {
    real *to = s->b;
    for (int64_t k = 0; k < s->depth; k++)
        for (int v = 0; v < vecs; v++, to += LANES) {
            const real *b = (const real *)p->b[s->first + k] + column + v * LANES;
            vstore(to, part > 0 && v == vecs - 1 ? vload_part(b, part) : vload(b));
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
                         .lines = (next.m * (int64_t)sizeof(real) + FL_LINE - 1) / FL_LINE};
    ahead.each = ahead.rows * ahead.lines / tiles + 1;
    if (ahead.each > FL_OUTER_ASKS) ahead.rows = 0;
    return ahead;
}

FL_INLINE void outer_ask(outer_ahead *ahead) {
    for (int64_t i = 0; i < ahead->each && ahead->rows > 0; i++) {
        __builtin_prefetch((const void *)(ahead->row + (uintptr_t)(ahead->line * FL_LINE)), 0, 2);
        if (++ahead->line < ahead->lines) continue;
        ahead->line = 0;
        ahead->rows--;
        ahead->row += (uintptr_t)ahead->stride_bytes;
    }
}

FL_INLINE void outer_ask_sums(const fl_outer_args *p, int64_t row, int64_t rows, int64_t column, int64_t width) {
    for (int64_t r = row; r < row + rows; r++)
        for (int64_t n = 0; n < width; n += FL_LINE / (int64_t)sizeof(real))
            __builtin_prefetch((const real *)p->out + r * p->out_stride + column + n, 1);
}

/* Blocks of a outside, then columns of b, then stretches, then tiles. */
void FL_NAME(fl_outer)(const fl_outer_args *p) {
    _Alignas(64) real b[FL_STRETCH_BYTES / sizeof(real)], sums[FL_OUTER_TILES * FL_TILE_ROWS * FL_PANEL_VECS * LANES];
    const int64_t chunks = p->n ? sum_chunks(p->depth) : 0, blocks = (p->m + FL_OUTER_BLOCK - 1) / FL_OUTER_BLOCK;
    const int64_t panel = FL_PANEL_VECS * LANES, panels = (p->n + panel - 1) / panel;
    const int64_t most = FL_STRETCH_BYTES / (panel * (int64_t)sizeof(real));
    for (int64_t i = 0; i < chunks * blocks; i++) {
        const outer_block at = outer_block_at(p, chunks, blocks, i);
        const int64_t tiles = (at.m + FL_TILE_ROWS - 1) / FL_TILE_ROWS, stretches = (at.depth + most - 1) / most;
        outer_ahead ahead = {0};
        if (i + 1 < chunks * blocks)
            ahead = outer_lines_of(p, outer_block_at(p, chunks, blocks, i + 1), tiles * panels * stretches);
        for (int64_t column = 0; column < p->n; column += panel) {
            const int64_t width = smaller(p->n - column, panel), part = width % LANES;
            const int vecs = (int)((width + LANES - 1) / LANES);
            for (int64_t j = 0; j < stretches; j++) {
                const int64_t k = at.depth * j / stretches, next = at.depth * (j + 1) / stretches;
                const outer_stretch s = {at.first + k, next - k, j == 0, j == stretches - 1, b, sums};
                outer_copy(p, &s, column, vecs, part);
                for (int64_t t = 0, row = at.begin; t < tiles; t++) { /* as even as can be */
                    const int64_t end = at.begin + at.m * (t + 1) / tiles, rows = end - row;
                    outer_ask(&ahead);
                    if (s.ends) outer_ask_sums(p, end, smaller(rows, p->m - end), column, width);
                    outer_rows((int)rows, p, &s, row, column, vecs, part, sums + t * FL_TILE_ROWS * panel);
                    row = end;
                }
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
