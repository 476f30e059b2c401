/* out[r, n] = start[r, n] + sum_k a[r, k] w[k, n]: the recurrent and the input product of every cell.
 *
 * Parts: input and state in one chain, or the gates of a product on the way back, apart (kernels.h). a: row pointers
 * [rows][depth]; w: packed panels (kernels.h); start, out: [rows, stride], whole vectors.
 * One accumulator per output and k in order: the bits depend on neither the tile, the rows nor the vector width. Many
 * rows take the depth by stretches, whose weights stay in L1 for all of them; between stretches an accumulator waits in
 * out, which changes no bit. The next stretch is fetched into L2 meanwhile.
 * Aliasing: out may be start. Tails: a last panel of fewer vectors has tiles of its own; columns are padded by the
 * packer, rows are split evenly into tiles of at most FL_TILE_ROWS.
 * Included a second time for bfloat16 weights, which are the upper halves of floats: widened as they are read, the same
 * sums. Two registers' worth of them lie lane by lane, [panel][k][pair of vecs][lane][2], an odd one after the pairs; no
 * pass with gradients runs on them, so parts are never apart.
 * Test: tests/c/kernels.c (guard pages, every tail), tests/test_same_bits.py.
 * Bound: that of recursive summation, depth * eps * sum |a w|; no test needs a constant of its own.
 * Tried, one row: prefetching weights, 1 % slower from L2, 20 % from L3 (but
 * bfloat16 ones from beyond L2 20 % faster); x from a register by permutation instead of a
 * broadcast load, 2 % slower; weight pointers that move, 3 %. Rows, on a core with two 512-bit multiply-adds a cycle:
 * the whole depth at once, weights from L2 and beyond, 4 % slower at H = 256, 8 at 512, 40 at 1024; stretches of 24 or
 * 40 KB instead of 32, 1 %.
 */

#undef FL_PRODUCT
#undef weight
#undef load_weights
#undef STRETCH_BYTES
#undef ASKED_AHEAD
#ifdef FL_BFLOAT16_WEIGHTS
#define FL_PRODUCT(name) FL_NAME(name##_bf16)
#define weight uint16_t
#define STRETCH_BYTES (FL_STRETCH_BYTES * 3 / 4) /* L1 holds what they are widened from as well */
#define ASKED_AHEAD 32
#define load_weights FL_NAME(load_weights_bf16)
#else
#define FL_PRODUCT(name) FL_NAME(name)
#define weight real
#define STRETCH_BYTES FL_STRETCH_BYTES
#define ASKED_AHEAD 0 /* rounds of one row; 0: it costs more than it brings */
#define load_weights FL_NAME(load_weights)
#endif
#define product_round FL_PRODUCT(product_round)
#define product_tile FL_PRODUCT(product_tile)
#define product_stretch FL_NAME(product_stretch)
#define product_switch FL_PRODUCT(product_switch)
#define product_group FL_PRODUCT(product_group)
#define product_row FL_PRODUCT(product_row)
#define product_side_by_side FL_PRODUCT(product_side_by_side)
#define product_parts FL_PRODUCT(product_parts)
#define product_rows FL_PRODUCT(product_rows)
#define product_weights FL_PRODUCT(product_weights)
#define product_panels FL_PRODUCT(product_panels)

#ifndef FL_PRODUCT_ONCE
#define FL_PRODUCT_ONCE
#define FL_ACCUMULATORS (FL_TILE_ROWS * FL_PANEL_VECS)
#define FL_MOST_VECS (7 * FL_PANEL_VECS) /* of any case below, those never taken included */

/* Full panels that `rows` rows may sweep at once without spilling accumulators. */
FL_INLINE int most_panels(int rows) { return rows == 1 ? FL_ROW_PANELS : FL_ACCUMULATORS / (rows * FL_PANEL_VECS); }
#endif

/* n registers of weights that lie side by side. */
FL_INLINE void load_weights(const int n, const weight *w, vec *to) {
#ifdef FL_BFLOAT16_WEIGHTS
    FL_UNROLL for (int v = 0; v < n / 2 * 2; v += 2) simd_load_bf16_pair(w + v * LANES, &to[v], &to[v + 1]);
    if (n % 2) to[n - 1] = simd_load_bf16(w + (n - 1) * LANES);
#else
    FL_UNROLL for (int v = 0; v < n; v++) to[v] = vload(w + v * LANES);
#endif
}

/* acc[r, v] += a[r][k] w[v], the weights of round k: w in the full panels, w_tail in the last. Rows, panels and tail are
 * constants after inlining. */
FL_INLINE void product_round(const int rows, const int panels, const int tail, int64_t panel_size, const real *const *a,
                             int64_t k, const weight *w, const weight *w_tail, vec (*acc)[FL_MOST_VECS]) {
    const int vecs = panels * FL_PANEL_VECS + tail;
    vec weights[FL_MOST_VECS];
    FL_UNROLL for (int i = 0; i < panels; i++) load_weights(FL_PANEL_VECS, w + i * panel_size, weights + i * FL_PANEL_VECS);
    load_weights(tail, w_tail, weights + panels * FL_PANEL_VECS);
    FL_UNROLL for (int r = 0; r < rows; r++) {
        const vec x = vset(a[r][k]);
        FL_UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = vfma(x, weights[v], acc[r][v]);
    }
}

#ifndef FL_BFLOAT16_WEIGHTS
/* Some of the depth, all parts counted through: the rows of a tile pass over the same weights while they are in L1. */
typedef struct product_stretch {
    int64_t begin, end;
    const real *wide; /* the stretch's weights, widened, for the tiles of float weights; NULL: they are p's own */
    uintptr_t ahead; /* weights that come next: every other round asks for a line of them, so that L2 has them by then */
    uintptr_t ahead_step;
} product_stretch;
#else
/* bfloat16 weights of a stretch, for the tiles of several: widened once, not once a tile. */
FL_INLINE void product_widen_vecs(const int vecs, const fl_product_args *p, const product_stretch *s, int64_t first,
                                  real *wide) {
    for (int64_t i = 0, before = 0; i < p->parts; before += p->part[i++].depth) {
        const int64_t depth = p->part[i].depth, end = s->end - before < depth ? s->end - before : depth;
        const int64_t begin = s->begin > before ? s->begin - before : 0;
        const weight *w = (const weight *)p->part[i].w + (first * FL_PANEL_VECS * depth + begin * vecs) * LANES;
        for (int64_t k = begin; k < end; k++, w += vecs * LANES, wide += vecs * LANES) {
            vec weights[FL_PANEL_VECS];
            load_weights(vecs, w, weights);
            FL_UNROLL for (int v = 0; v < vecs; v++) vstore(wide + v * LANES, weights[v]);
        }
    }
}

static void product_widen(int vecs, const fl_product_args *p, const product_stretch *s, int64_t first, real *wide) {
    switch (vecs) {
    case 1: product_widen_vecs(1, p, s, first, wide); break;
    case 2: product_widen_vecs(2, p, s, first, wide); break;
#if FL_PANEL_VECS > 2
    case 3: product_widen_vecs(3, p, s, first, wide); break;
    case 4: product_widen_vecs(4, p, s, first, wide); break;
#endif
    }
}
#define WIDE_TILES 3
#define wide_group FL_PASTE_(product_group, f32)
#endif

#define product_ask FL_PRODUCT(product_ask)
/* Asks for a round of weights in the full panels. */
FL_INLINE void product_ask(const int panels, const weight *w, int64_t panel_size) {
    FL_UNROLL for (int i = 0; i < (ASKED_AHEAD > 0 ? panels : 0); i++)
        FL_UNROLL for (int line = 0; line * FL_LINE < FL_PANEL_VECS * LANES * (int)sizeof *w; line++)
            __builtin_prefetch((const char *)(w + i * panel_size) + line * FL_LINE, 0, 3);
}

/* `rows` rows against `panels` full panels and one of `tail` vectors, from panel `first` on; rows, panels and tail are
 * constants after inlining. One row takes the whole depth. */
FL_INLINE void product_tile(const int rows, const int panels, const int tail, const fl_product_args *p, int64_t row,
                            int64_t first, const product_stretch *s) {
    const int vecs = panels * FL_PANEL_VECS + tail;
    const int64_t column = first * FL_PANEL_VECS * LANES;
    real *out = (real *)p->out + row * p->out_stride + column;
    const bool begins = rows == 1 || s->begin == 0, add = rows > 1 && p->apart && s->begin >= p->part[0].depth;
    const real *start = begins ? (const real *)p->start + row * p->start_stride + column : out;
    const int64_t start_stride = begins ? p->start_stride : p->out_stride;
    uintptr_t ahead = rows == 1 ? 0 : s->ahead;
    const uintptr_t ahead_step = rows == 1 ? 0 : s->ahead_step;
    vec acc[FL_TILE_ROWS][FL_MOST_VECS]; /* unused ones cost nothing: all indices are constants */

    FL_UNROLL for (int r = 0; r < rows; r++)
        FL_UNROLL for (int v = 0; v < vecs; v++)
            acc[r][v] = add ? vset(0) : vload(start + r * start_stride + v * LANES);
    for (int64_t i = 0, before = 0; i < p->parts; before += p->part[i++].depth) {
        const int64_t all = p->part[i].depth, panel_size = all * FL_PANEL_VECS * LANES;
        const int64_t end = rows == 1 || s->end - before > all ? all : s->end - before;
        int64_t k = rows == 1 || s->begin < before ? 0 : s->begin - before;
        if (rows > 1 && k >= end) continue;
        const int step = FL_PANEL_VECS * LANES, tail_step = tail * LANES;
        const weight *w = (const weight *)p->part[i].w + first * panel_size;
        const weight *w_tail = (const weight *)p->part[i].w + (first + panels) * panel_size;
        const real *a[FL_TILE_ROWS];
        FL_UNROLL for (int r = 0; r < rows; r++) a[r] = (const real *)p->part[i].a[row + r];
        /* The loop's own instructions take turns with the multiply-adds. Pointers that move would cost one row 3 %. */
        const int unroll = rows == 1 ? 4 : 2, fixed = rows == 1;
        if (!fixed) w += k * step, w_tail += k * tail_step;
        if (!fixed && s->wide) /* of one panel, or the tail */
            w = w_tail = (const weight *)s->wide + (before + k - s->begin) * (panels ? step : tail_step);
        for (; k + unroll <= end; k += unroll) {
            FL_UNROLL for (int j = 0; j < unroll; j++) {
                const int64_t at = fixed ? k + j : j;
                product_round(rows, panels, tail, panel_size, a, k + j, w + at * step, w_tail + at * tail_step, acc);
                if (fixed) product_ask(panels, w + (at + ASKED_AHEAD) * step, panel_size);
            }
            if (fixed) continue;
            w += unroll * step;
            w_tail += unroll * tail_step;
            __builtin_prefetch((const void *)ahead, 0, 2);
            ahead += ahead_step;
        }
        for (int64_t at = fixed ? k : 0; k < end; k++, at++)
            product_round(rows, panels, tail, panel_size, a, k, w + at * step, w_tail + at * tail_step, acc);
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
            product_tile(rows, n, t, p, row, first, s);                                                           \
        break;

FL_INLINE void product_switch(const int rows, int panels, int tail, const fl_product_args *p, int64_t row,
                              int64_t first, const product_stretch *s) {
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
                          const product_stretch *s) {
    switch (rows) {
    case 1: product_switch(1, panels, tail, p, row, first, s); break;
    case 2: product_switch(2, panels, tail, p, row, first, s); break;
    case 3: product_switch(3, panels, tail, p, row, first, s); break;
#if FL_TILE_ROWS > 3
    case 4: product_switch(4, panels, tail, p, row, first, s); break;
    case 5: product_switch(5, panels, tail, p, row, first, s); break;
    case 6: product_switch(6, panels, tail, p, row, first, s); break;
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
        product_switch(1, n, 0, p, 0, first, NULL);
        first += n;
    }
    product_switch(1, panels - first, tail, p, 0, first, NULL);
}

#ifndef FL_BFLOAT16_WEIGHTS
/* One row, parts apart: their chains run side by side, for one alone would wait for itself. */
FL_INLINE void product_side_by_side(const int parts, const int vecs, const fl_product_args *p, int64_t panel) {
    const int64_t column = panel * FL_PANEL_VECS * LANES, depth = p->part[0].depth;
    const real *start = (const real *)p->start + column, *a[4], *w[4];
    real *out = (real *)p->out + column;
    vec acc[4][FL_PANEL_VECS];
    FL_UNROLL for (int i = 0; i < parts; i++) {
        a[i] = (const real *)p->part[i].a[0];
        w[i] = (const real *)p->part[i].w + column * depth;
    }
    FL_UNROLL for (int v = 0; v < vecs; v++) acc[0][v] = vload(start + v * LANES);
    for (int64_t k = 0; k < depth;) {
        FL_UNROLL for (int i = 1; i < parts; i++)
            FL_UNROLL for (int v = 0; v < vecs; v++) acc[i][v] = vset(0);
        for (const int64_t end = depth - k < FL_PART_DEPTH ? depth : k + FL_PART_DEPTH; k < end; k++)
            FL_UNROLL for (int i = 0; i < parts; i++) {
                const vec x = vset(a[i][k]);
                FL_UNROLL for (int v = 0; v < vecs; v++)
                    acc[i][v] = vfma(x, vload(w[i] + (k * vecs + v) * LANES), acc[i][v]);
            }
        FL_UNROLL for (int i = 1; i < parts; i++)
            FL_UNROLL for (int v = 0; v < vecs; v++) acc[0][v] = vadd(acc[0][v], acc[i][v]);
    }
    FL_UNROLL for (int v = 0; v < vecs; v++) vstore(out + v * LANES, acc[0][v]);
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

#endif

/* The weights at a place in the depth of all parts. */
static const void *product_weights(const fl_product_args *p, int64_t at, int64_t first, int vecs) {
    int64_t i = 0;
    for (; i < p->parts - 1 && at >= p->part[i].depth; i++) at -= p->part[i].depth;
    return (const weight *)p->part[i].w + (first * FL_PANEL_VECS * p->part[i].depth + at * vecs) * LANES;
}

/* One group of panels, all rows, stretch by stretch; `then` are the weights that come after it. */
static void product_panels(const fl_product_args *p, int64_t tiles, int panels, int tail, int64_t first,
                           const void *then) {
    const int rows = (int)(p->rows / tiles), width = panels ? FL_PANEL_VECS : tail;
    const int64_t wider = p->rows % tiles; /* tiles of a row more, the first ones */
    const int64_t round_bytes = (panels * FL_PANEL_VECS + tail) * LANES * (int64_t)sizeof(weight); /* to be fetched */
    int64_t length = p->part[0].depth, chains = p->parts, deep = FL_PART_DEPTH;
    if (!p->apart) { /* one chain, in stretches as even as can be: where it is cut changes no bit */
        for (int64_t i = 1; i < p->parts; i++) length += p->part[i].depth;
        chains = 1;
        deep = length;
        const int64_t wide_bytes = length * width * (int64_t)sizeof(vec);
        if (tiles > 1 && wide_bytes > STRETCH_BYTES) deep = length / (wide_bytes / STRETCH_BYTES + 1) + 1;
    }
#ifdef FL_BFLOAT16_WEIGHTS
    _Alignas(64) real wide[STRETCH_BYTES / sizeof(real) + FL_PANEL_VECS * LANES]; /* a stretch may be a round longer */
#endif
    for (int64_t k = 0; k < length; k += deep)
        for (int64_t i = 0; i < chains; i++) {
            const int64_t end = length - k < deep ? length : k + deep;
            product_stretch s = {.begin = i * length + k, .end = i * length + end};
            const void *ahead = then;
            if (i + 1 < chains) ahead = product_weights(p, s.begin + length, first, width);
            else if (end < length) ahead = product_weights(p, end, first, width);
#ifdef FL_BFLOAT16_WEIGHTS
            if (tiles >= WIDE_TILES) {
                product_widen(width, p, &s, first, wide);
                s.wide = wide;
            }
#endif
            for (int64_t t = 0, row = 0; t < tiles; row += rows + (t < wider), t++) {
                /* Each tile asks for its share; of several panels, which lie apart, for none. */
                const bool asks = ahead && t * FL_LINE / 2 < round_bytes && panels < 2;
                s.ahead = asks ? (uintptr_t)ahead + (uintptr_t)(t * (end - k) * FL_LINE / 2) : (uintptr_t)p;
                s.ahead_step = asks ? FL_LINE : 0;
#ifdef FL_BFLOAT16_WEIGHTS
                if (tiles >= WIDE_TILES) {
                    wide_group(p, row, rows + (t < wider), panels, tail, first, &s);
                    continue;
                }
#endif
                product_group(p, row, rows + (t < wider), panels, tail, first, &s);
            }
        }
}

/* Columns outside, rows inside: a panel is read from memory once and then from cache. */
static void product_rows(const fl_product_args *p) {
    const int64_t panels = p->vecs / FL_PANEL_VECS;
    const int tail = (int)(p->vecs % FL_PANEL_VECS);
    const int64_t tiles = (p->rows + FL_TILE_ROWS - 1) / FL_TILE_ROWS;
    const int most = most_panels((int)((p->rows + tiles - 1) / tiles));
    const int64_t groups = (panels + most - 1) / most;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t first = panels * g / groups, end = panels * (g + 1) / groups;
        const void *then = g + 1 < groups ? product_weights(p, 0, end, FL_PANEL_VECS) : p->next;
        product_panels(p, tiles, (int)(end - first), 0, first, then);
    }
    if (tail) product_panels(p, tiles, 0, tail, panels, p->next);
}

void FL_PRODUCT(fl_product)(const fl_product_args *p) {
#ifndef FL_BFLOAT16_WEIGHTS
    if (p->rows == 1 && p->apart && p->parts > 1) {
        switch (p->parts) {
        case 2: product_parts(2, p); break;
        case 3: product_parts(3, p); break;
        case 4: product_parts(4, p); break;
        }
        return;
    }
#endif
    if (p->rows == 1) product_row(p);
    else if (p->rows > 1) product_rows(p);
}
