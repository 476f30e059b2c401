/* out[r, n] = start[r, n] + sum_k a[r, k] w[k, n]: the recurrent and the input product of every cell.
 *
 * Parts: input and state at once, or, apart, the gates of a product on the way back. a: row pointers [rows][depth]; w: packed panels (kernels.h); start, out: [rows, stride], whole vectors.
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
#define product_side_by_side FL_NAME(product_side_by_side)
#define product_parts FL_NAME(product_parts)
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

/* `rows` rows against `panels` full panels and one of `tail` vectors, from panel `first` on, all parts (-1) or the one
 * that is summed apart; rows, panels and tail are constants after inlining. */
FL_INLINE void product_tile(const int rows, const int panels, const int tail, const fl_product_args *p, int64_t row,
                            int64_t first, int64_t which) {
    const int vecs = panels * FL_PANEL_VECS + tail;
    const int64_t column = first * FL_PANEL_VECS * LANES;
    const real *start = (const real *)p->start + row * p->start_stride + column;
    real *out = (real *)p->out + row * p->out_stride + column;
    vec acc[FL_TILE_ROWS][FL_MOST_VECS]; /* unused ones cost nothing: all indices are constants */

    const bool add = which > 0; /* a part that is summed apart */
    FL_UNROLL for (int r = 0; r < rows; r++)
        FL_UNROLL for (int v = 0; v < vecs; v++)
            acc[r][v] = add ? vset(0) : vload(start + r * p->start_stride + v * LANES);
    for (int64_t i = which < 0 ? 0 : which; i < (which < 0 ? p->parts : which + 1); i++) {
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
        FL_UNROLL for (int v = 0; v < vecs; v++) {
            real *at = out + r * p->out_stride + v * LANES;
            vstore(at, add ? vadd(vload(at), acc[r][v]) : acc[r][v]);
        }
}

/* Only one row takes a tail together with full panels; more rows have accumulators enough in either. */
#define FL_TILE_CASE(n, t)                                                                                            \
    case (n) * FL_PANEL_VECS + (t):                                                                                   \
        if ((n) <= most_panels(rows) && (rows == 1 || (n) == 0 || (t) == 0) && (n) + (t) > 0)                         \
            product_tile(rows, n, t, p, row, first, which);                                                           \
        break;

FL_INLINE void product_switch(const int rows, int panels, int tail, const fl_product_args *p, int64_t row,
                              int64_t first, int64_t which) {
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

static void product_group(const fl_product_args *p, int64_t row, int rows, int panels, int tail, int64_t first,
                          int64_t which) {
    switch (rows) {
    case 1: product_switch(1, panels, tail, p, row, first, which); break;
    case 2: product_switch(2, panels, tail, p, row, first, which); break;
    case 3: product_switch(3, panels, tail, p, row, first, which); break;
#if FL_TILE_ROWS > 3
    case 4: product_switch(4, panels, tail, p, row, first, which); break;
    case 5: product_switch(5, panels, tail, p, row, first, which); break;
    case 6: product_switch(6, panels, tail, p, row, first, which); break;
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
        product_switch(1, n, 0, p, 0, first, -1);
        first += n;
    }
    product_switch(1, panels - first, tail, p, 0, first, -1);
}

/* One row, parts apart: their chains run side by side, for one alone would wait for itself. */
FL_INLINE void product_side_by_side(const int parts, const int vecs, const fl_product_args *p, int64_t panel) {
    const int64_t column = panel * FL_PANEL_VECS * LANES, depth = p->part[0].depth;
    const real *start = (const real *)p->start + column, *a[4], *w[4];
    real *out = (real *)p->out + column;
    vec acc[4][FL_PANEL_VECS];
    FL_UNROLL for (int i = 0; i < parts; i++) {
        a[i] = (const real *)p->part[i].a[0];
        w[i] = (const real *)p->part[i].w + column * depth;
        FL_UNROLL for (int v = 0; v < vecs; v++) acc[i][v] = i == 0 ? vload(start + v * LANES) : vset(0);
    }
    for (int64_t k = 0; k < depth; k++)
        FL_UNROLL for (int i = 0; i < parts; i++) {
            const vec x = vset(a[i][k]);
            FL_UNROLL for (int v = 0; v < vecs; v++)
                acc[i][v] = vfma(x, vload(w[i] + (k * vecs + v) * LANES), acc[i][v]);
        }
    FL_UNROLL for (int v = 0; v < vecs; v++) {
        FL_UNROLL for (int i = 1; i < parts; i++) acc[0][v] = vadd(acc[0][v], acc[i][v]);
        vstore(out + v * LANES, acc[0][v]);
    }
}

FL_INLINE void product_parts(const int parts, const fl_product_args *p) {
    const int64_t panels = p->vecs / FL_PANEL_VECS;
    for (int64_t panel = 0; panel < panels; panel++) product_side_by_side(parts, FL_PANEL_VECS, p, panel);
    switch (p->vecs % FL_PANEL_VECS) {
    case 1: product_side_by_side(parts, 1, p, panels); break;
#if FL_PANEL_VECS > 2
    case 2: product_side_by_side(parts, 2, p, panels); break;
    case 3: product_side_by_side(parts, 3, p, panels); break;
#endif
    }
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

    const int64_t last = p->apart ? p->parts - 1 : -1; /* parts apart pass one by one, their weights in cache for all rows */
    for (int64_t g = 0; g < groups; g++) {
        const int64_t first = panels * g / groups, n = panels * (g + 1) / groups - first;
        for (int64_t which = p->apart ? 0 : -1; which <= last; which++)
            for (int64_t t = 0, row = 0; t < tiles; row += rows + (t < wider), t++)
                product_group(p, row, rows + (t < wider), (int)n, 0, first, which);
    }
    for (int64_t which = p->apart ? 0 : -1; tail && which <= last; which++)
        for (int64_t t = 0, row = 0; t < tiles; row += rows + (t < wider), t++)
            product_group(p, row, rows + (t < wider), 0, tail, panels, which);
}

void FL_NAME(fl_product)(const fl_product_args *p) {
    if (p->rows == 1 && p->apart && p->parts > 1) switch (p->parts) {
        case 2: product_parts(2, p); break;
        case 3: product_parts(3, p); break;
        case 4: product_parts(4, p); break;
        }
    else if (p->rows == 1) product_row(p);
    else if (p->rows > 1) product_rows(p);
}
