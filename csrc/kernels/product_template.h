/* out[r, n] = start[r, n] + sum_k a[r, k] w[k, n]: the recurrent and the input product of every cell.
 *
 * One or two parts, summed one after the other: input and state may come together. a: row pointers [rows][depth]; w: packed panels (kernels.h); start, out: [rows, stride], whole vectors.
 * One accumulator per output and k in order: the bits depend on neither the tile, the rows nor the vector width.
 * Aliasing: out may be start. Tails: a last panel of fewer vectors has tiles of its own; columns are padded by the
 * packer, rows are split evenly into tiles of at most FL_TILE_ROWS.
 * Test: tests/c/kernels.c (guard pages, every tail), tests/test_same_bits.py.
 * Bound: that of recursive summation, depth * eps * sum |a w|; no test needs a constant of its own.
 * Tried, one row: prefetching weights, 1 % slower from L2, 20 % from L3; x from a register by permutation instead of a
 * broadcast load, 2 % slower.
 */

#define product_round FL_NAME(product_round)
#define product_tile FL_NAME(product_tile)
#define product_switch FL_NAME(product_switch)
#define product_group FL_NAME(product_group)
#define product_row FL_NAME(product_row)
#define product_rows FL_NAME(product_rows)

#ifndef FL_PRODUCT_ONCE
#define FL_PRODUCT_ONCE
#define FL_ACCUMULATORS (FL_TILE_ROWS * FL_PANEL_VECS)
#define FL_MOST_VECS (7 * FL_PANEL_VECS) /* of any case below, those never taken included */

/* Full panels that `rows` rows may sweep at once without spilling accumulators. */
FL_INLINE int most_panels(int rows) { return rows == 1 ? FL_ROW_PANELS : FL_ACCUMULATORS / (rows * FL_PANEL_VECS); }
#endif

/* acc[r, v] += a[r][k] w[k, v]; rows, panels and tail are constants after inlining. */
FL_INLINE void product_round(const int rows, const int panels, const int tail, int64_t panel_size, const real *const *a,
                             const real *w, int64_t k, vec (*acc)[FL_MOST_VECS]) {
    const int vecs = panels * FL_PANEL_VECS + tail;
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

/* `rows` rows against `panels` full panels and one of `tail` vectors, from panel `first` on; rows, panels and tail are
 * constants after inlining. */
FL_INLINE void product_tile(const int rows, const int panels, const int tail, const fl_product_args *p, int64_t row,
                            int64_t first) {
    const int vecs = panels * FL_PANEL_VECS + tail;
    const int64_t column = first * FL_PANEL_VECS * LANES;
    const real *start = (const real *)p->start + row * p->start_stride + column;
    real *out = (real *)p->out + row * p->out_stride + column;
    vec acc[FL_TILE_ROWS][FL_MOST_VECS]; /* unused ones cost nothing: all indices are constants */

    FL_UNROLL for (int r = 0; r < rows; r++)
        FL_UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = vload(start + r * p->start_stride + v * LANES);
    for (int64_t i = 0; i < p->parts; i++) {
        const int64_t depth = p->part[i].depth, panel_size = depth * FL_PANEL_VECS * LANES;
        const real *w = (const real *)p->part[i].w + first * panel_size;
        const real *a[FL_TILE_ROWS];
        FL_UNROLL for (int r = 0; r < rows; r++) a[r] = (const real *)p->part[i].a[row + r];
        /* One row: few instructions a round, so the loop's own count, and its exit is mispredicted. */
        const int unroll = rows == 1 ? 4 : 1;
        int64_t k = 0;
        for (; k + unroll <= depth; k += unroll)
            FL_UNROLL for (int j = 0; j < unroll; j++)
                product_round(rows, panels, tail, panel_size, a, w, k + j, acc);
        for (; unroll > 1 && k < depth; k++) product_round(rows, panels, tail, panel_size, a, w, k, acc);
    }
    FL_UNROLL for (int r = 0; r < rows; r++)
        FL_UNROLL for (int v = 0; v < vecs; v++) vstore(out + r * p->out_stride + v * LANES, acc[r][v]);
}

/* Only one row takes a tail together with full panels; more rows have accumulators enough in either. */
#define FL_TILE_CASE(n, t)                                                                                            \
    case (n) * FL_PANEL_VECS + (t):                                                                                   \
        if ((n) <= most_panels(rows) && (rows == 1 || (n) == 0 || (t) == 0) && (n) + (t) > 0)                         \
            product_tile(rows, n, t, p, row, first);                                                              \
        break;

FL_INLINE void product_switch(const int rows, int panels, int tail, const fl_product_args *p, int64_t row,
                              int64_t first) {
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

static void product_group(const fl_product_args *p, int64_t row, int rows, int panels, int tail, int64_t first) {
    switch (rows) {
    case 1: product_switch(1, panels, tail, p, row, first); break;
    case 2: product_switch(2, panels, tail, p, row, first); break;
    case 3: product_switch(3, panels, tail, p, row, first); break;
#if FL_TILE_ROWS > 3
    case 4: product_switch(4, panels, tail, p, row, first); break;
    case 5: product_switch(5, panels, tail, p, row, first); break;
    case 6: product_switch(6, panels, tail, p, row, first); break;
#endif
    }
}

/* One row waits for the weights or, in a small layer, for the latency of its chain: as many accumulators as hide it,
 * the groups evenly filled, the tail with the last. */
static void product_row(const fl_product_args *p) {
    const int panels = (int)(p->vecs / FL_PANEL_VECS), tail = (int)(p->vecs % FL_PANEL_VECS);
    int groups = (panels + FL_ROW_PANELS - 1) / FL_ROW_PANELS, first = 0;
    for (; groups > 1; groups--) {
        const int n = (panels - first) / groups;
        product_switch(1, n, 0, p, 0, first);
        first += n;
    }
    product_switch(1, panels - first, tail, p, 0, first);
}

/* Columns outside, rows inside: a panel is read from memory once and then from cache. */
static void product_rows(const fl_product_args *p) {
    const int64_t panels = p->vecs / FL_PANEL_VECS;
    const int tail = (int)(p->vecs % FL_PANEL_VECS);
    const int64_t tiles = (p->rows + FL_TILE_ROWS - 1) / FL_TILE_ROWS;
    const int rows = (int)(p->rows / tiles); /* or one more, in the first `wider` tiles */
    const int64_t wider = p->rows % tiles;
    const int most = most_panels(rows + (wider > 0));
    const int64_t groups = (panels + most - 1) / most;

    for (int64_t g = 0; g < groups; g++) {
        const int64_t first = panels * g / groups, n = panels * (g + 1) / groups - first;
        for (int64_t t = 0, row = 0; t < tiles; row += rows + (t < wider), t++)
            product_group(p, row, rows + (t < wider), (int)n, 0, first);
    }
    for (int64_t t = 0, row = 0; tail && t < tiles; row += rows + (t < wider), t++)
        product_group(p, row, rows + (t < wider), 0, tail, panels);
}

void FL_NAME(fl_product)(const fl_product_args *p) {
    if (p->rows == 1) product_row(p);
    else if (p->rows > 1) product_rows(p);
}
