/* out[r, n] = start[r, n] + sum_k a[r, k] w[k, n]: the recurrent and the input product of every cell.
 *
 * a: row pointers [rows][depth]; w: packed panels (kernels.h); start, out: [rows, stride], whole vectors.
 * One accumulator per output and k in order: the bits depend on neither the tile, the rows nor the vector width.
 * Aliasing: out may be start. Tails: a last panel of fewer vectors has tiles of its own; columns are padded by the
 * packer, rows are split evenly into tiles of at most FL_TILE_ROWS.
 * Test: tests/c/kernels.c (guard pages, every tail), tests/test_same_bits.py.
 * Bound: that of recursive summation, depth * eps * sum |a w|; no test needs a constant of its own.
 */

#define product_tile FL_NAME(product_tile)
#define product_switch FL_NAME(product_switch)
#define product_group FL_NAME(product_group)

#ifndef FL_PRODUCT_ONCE
#define FL_PRODUCT_ONCE
#define FL_ACCUMULATORS (FL_TILE_ROWS * FL_PANEL_VECS)
#define FL_MOST_VECS (7 * FL_PANEL_VECS) /* of any case below, those never taken included */

/* Full panels that `rows` rows may sweep at once without spilling accumulators. */
FL_INLINE int most_panels(int rows) {
    return rows == 1 ? FL_ROW_PANELS : FL_ACCUMULATORS / (rows * FL_PANEL_VECS);
}
#endif

/* `rows` rows against `panels` full panels and one of `tail` vectors; all three are constants after inlining. */
FL_INLINE void product_tile(const int rows, const int panels, const int tail, const fl_product_args *p, int64_t row,
                            const real *w, int64_t column) {
    const int vecs = panels * FL_PANEL_VECS + tail;
    const int64_t depth = p->depth, panel_size = depth * FL_PANEL_VECS * LANES;
    const real *start = (const real *)p->start + row * p->start_stride + column;
    real *out = (real *)p->out + row * p->out_stride + column;
    const real *a[FL_TILE_ROWS];
    vec acc[FL_TILE_ROWS][FL_MOST_VECS]; /* unused ones cost nothing: all indices are constants */

    FL_UNROLL for (int r = 0; r < rows; r++) {
        a[r] = (const real *)p->a[row + r];
        FL_UNROLL for (int v = 0; v < vecs; v++)
            acc[r][v] = vload(start + r * p->start_stride + v * LANES);
    }
    for (int64_t k = 0; k < depth; k++) {
        vec weight[FL_MOST_VECS];
        FL_UNROLL for (int v = 0; v < vecs; v++) {
            const int panel = v / FL_PANEL_VECS, width = panel < panels ? FL_PANEL_VECS : tail;
            weight[v] = vload(w + panel * panel_size + (k * width + v % FL_PANEL_VECS) * LANES);
        }
        FL_UNROLL for (int r = 0; r < rows; r++) {
            const vec x = vset(a[r][k]);
            FL_UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = vfma(x, weight[v], acc[r][v]);
        }
    }
    FL_UNROLL for (int r = 0; r < rows; r++)
        FL_UNROLL for (int v = 0; v < vecs; v++) vstore(out + r * p->out_stride + v * LANES, acc[r][v]);
}

/* Only one row takes a tail together with full panels; more rows have accumulators enough in either. */
#define FL_TILE_CASE(n, t)                                                                                            \
    case (n) * FL_PANEL_VECS + (t):                                                                                   \
        if ((n) <= most_panels(rows) && (rows == 1 || (n) == 0 || (t) == 0) && (n) + (t) > 0)                         \
            product_tile(rows, n, t, p, row, w, column);                                                              \
        break;

FL_INLINE void product_switch(const int rows, int panels, int tail, const fl_product_args *p, int64_t row,
                              const real *w, int64_t column) {
#if FL_PANEL_VECS == 4
    switch (panels * 4 + tail) {
        FL_TILE_CASE(0, 1) FL_TILE_CASE(0, 2) FL_TILE_CASE(0, 3)
        FL_TILE_CASE(1, 0) FL_TILE_CASE(1, 1) FL_TILE_CASE(1, 2) FL_TILE_CASE(1, 3)
        FL_TILE_CASE(2, 0) FL_TILE_CASE(2, 1) FL_TILE_CASE(2, 2) FL_TILE_CASE(2, 3)
        FL_TILE_CASE(3, 0) FL_TILE_CASE(3, 1) FL_TILE_CASE(3, 2) FL_TILE_CASE(3, 3)
        FL_TILE_CASE(4, 0) FL_TILE_CASE(4, 1) FL_TILE_CASE(4, 2) FL_TILE_CASE(4, 3)
    }
#else
    switch (panels * 2 + tail) {
        FL_TILE_CASE(0, 1)
        FL_TILE_CASE(1, 0) FL_TILE_CASE(1, 1)
        FL_TILE_CASE(2, 0) FL_TILE_CASE(2, 1)
        FL_TILE_CASE(3, 0) FL_TILE_CASE(3, 1)
        FL_TILE_CASE(4, 0) FL_TILE_CASE(4, 1)
        FL_TILE_CASE(5, 0) FL_TILE_CASE(5, 1)
        FL_TILE_CASE(6, 0) FL_TILE_CASE(6, 1)
    }
#endif
}

static void product_group(const fl_product_args *p, int64_t row, int rows, int panels, int tail, const real *w,
                          int64_t column) {
    switch (rows) {
    case 1: product_switch(1, panels, tail, p, row, w, column); break;
    case 2: product_switch(2, panels, tail, p, row, w, column); break;
    case 3: product_switch(3, panels, tail, p, row, w, column); break;
#if FL_TILE_ROWS > 3
    case 4: product_switch(4, panels, tail, p, row, w, column); break;
    case 5: product_switch(5, panels, tail, p, row, w, column); break;
    case 6: product_switch(6, panels, tail, p, row, w, column); break;
#endif
    }
}

void FL_NAME(fl_product)(const fl_product_args *p) {
    if (p->rows <= 0) return;
    const int64_t panel_size = p->depth * FL_PANEL_VECS * LANES;
    const int64_t panels = p->vecs / FL_PANEL_VECS;
    const int tail = (int)(p->vecs % FL_PANEL_VECS);
    const int64_t tiles = (p->rows + FL_TILE_ROWS - 1) / FL_TILE_ROWS;
    const int rows = (int)(p->rows / tiles); /* or one more, in the first `wider` tiles */
    const int64_t wider = p->rows % tiles;
    const int most = most_panels(rows + (wider > 0));
    const int64_t groups = (panels + most - 1) / most;
    const int tail_joins = tail > 0 && p->rows == 1 && groups > 0;

    for (int64_t g = 0; g < groups; g++) {
        const int64_t first = panels * g / groups, n = panels * (g + 1) / groups - first;
        for (int64_t t = 0, row = 0; t < tiles; row += rows + (t < wider), t++)
            product_group(p, row, rows + (t < wider), (int)n, tail_joins && g == groups - 1 ? tail : 0,
                          (const real *)p->w + first * panel_size, first * FL_PANEL_VECS * LANES);
    }
    if (tail > 0 && !tail_joins)
        for (int64_t t = 0, row = 0; t < tiles; row += rows + (t < wider), t++)
            product_group(p, row, rows + (t < wider), 0, tail, (const real *)p->w + panels * panel_size,
                          panels * FL_PANEL_VECS * LANES);
}
