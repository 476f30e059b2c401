/* What the cell kernels share: walking over rows and blocks of units, loading gates, writing the new state.
 *
 * Tails: the last block's gates and outputs are loaded and stored for its own units only; state rows are padded to
 * whole vectors, and their padded lanes hold unspecified values that nobody reads.
 */

#define cell_at FL_NAME(cell_at)
#define cell_update FL_NAME(cell_update)
#define cell_blocks FL_NAME(cell_blocks)
#define cell_half FL_NAME(cell_half)
#define cell_first FL_NAME(cell_first)
#define cell_second FL_NAME(cell_second)
#define cell_next FL_NAME(cell_next)
#define cell_halves FL_NAME(cell_halves)
#define cell_load FL_NAME(cell_load)
#define cell_state FL_NAME(cell_state)
#define cell_write FL_NAME(cell_write)

/* A block: n units from `unit` on, of one row. */
typedef struct cell_at {
    int64_t row, unit, n;
} cell_at;

typedef void cell_update(const fl_cell_args *p, cell_at at);

/* Gate `gate` of the block, out of `columns` with `gates` gates a unit. */
FL_INLINE vec cell_load(const fl_cell_args *p, cell_at at, const void *columns, int64_t stride, int gates, int gate) {
    const real *block = (const real *)columns + at.row * stride + (at.unit - p->begin) * gates;
    return at.n == LANES ? vload(block + gate * LANES) : vload_part(block + gate * at.n, at.n);
}

FL_INLINE real *cell_state(const fl_cell_args *p, cell_at at, const void *state) {
    return (real *)state + at.row * p->state_stride + at.unit;
}

/* The new state goes whole into its padded row: the next step reads it at once, and only a whole store forwards. */
FL_INLINE void cell_write(const fl_cell_args *p, cell_at at, vec h) {
    vstore(cell_state(p, at, p->h_out), h);
    if (!p->y) return;
    real *y = (real *)p->y[at.row] + p->y_offset + at.unit;
    if (at.n == LANES) vstore(y, h);
    else vstore_part(y, at.n, h);
}

FL_INLINE void cell_blocks(const fl_cell_args *p, cell_update *update) {
    const int64_t rest = (p->end - p->begin) % LANES;
    for (int64_t r = 0; r < p->rows; r++) {
        for (int64_t u = p->begin; u < p->end - rest; u += LANES) update(p, (cell_at){r, u, LANES});
        if (rest) update(p, (cell_at){r, p->end - rest, rest});
    }
}

/* An update in halves: what the first hands to the second. */
typedef struct cell_half {
    cell_at at;
    vec a, b;
} cell_half;

typedef cell_half cell_first(const fl_cell_args *p, cell_at at);
typedef void cell_second(const fl_cell_args *p, cell_half half);

/* The block after this one; false past the last. */
FL_INLINE bool cell_next(const fl_cell_args *p, cell_at *at) {
    at->unit += LANES;
    if (at->unit >= p->end) {
        at->unit = p->begin;
        at->row++;
    }
    at->n = p->end - at->unit < LANES ? p->end - at->unit : LANES;
    return at->row < p->rows;
}

/* The second half of each block after the first of the next. The chain of a block is some 170 cycles, and a core looks
 * ahead by little more than its hundred instructions: so a chain is half done when the next begins. */
FL_INLINE void cell_halves(const fl_cell_args *p, cell_first *first, cell_second *second) {
    cell_at at = {0, p->begin - LANES, LANES};
    cell_half half;
    bool any = false;
    for (; cell_next(p, &at); any = true) {
        const cell_half next = at.n == LANES ? first(p, (cell_at){at.row, at.unit, LANES}) : first(p, at);
        if (any) second(p, half);
        half = next;
    }
    if (any) second(p, half);
}

/* --- the same backwards --- */

#define cell_backward FL_NAME(cell_backward)
#define back_blocks FL_NAME(back_blocks)
#define back_load FL_NAME(back_load)
#define back_state FL_NAME(back_state)
#define back_dh FL_NAME(back_dh)
#define back_store FL_NAME(back_store)

typedef void cell_backward(const fl_cell_backward_args *p, cell_at at);

/* Gate `gate` of the block in the tape's memory, out of `gates`. */
FL_INLINE vec back_load(const fl_cell_backward_args *p, cell_at at, int gates, int gate) {
    const real *block = (const real *)p->memory + at.row * p->memory_stride + (at.unit - p->begin) * gates;
    return at.n == LANES ? vload(block + gate * LANES) : vload_part(block + gate * at.n, at.n);
}

FL_INLINE real *back_state(const fl_cell_backward_args *p, cell_at at, const void *state) {
    return (real *)state + at.row * p->state_stride + at.unit;
}

/* The derivative by the new state: what later steps say, and what the output says. */
FL_INLINE vec back_dh(const fl_cell_backward_args *p, cell_at at) {
    const vec dh = vload(back_state(p, at, p->dh));
    if (!p->dy) return dh;
    const real *dy = (const real *)p->dy[at.row] + p->dy_offset + at.unit;
    return vadd(dh, at.n == LANES ? vload(dy) : vload_part(dy, at.n));
}

FL_INLINE void back_store(const fl_cell_backward_args *p, cell_at at, int gate, vec dz) {
    real *out = (real *)p->dz + at.row * p->dz_stride + gate * p->hidden + at.unit;
    if (at.n == LANES) vstore(out, dz);
    else vstore_part(out, at.n, dz);
}

FL_INLINE void back_blocks(const fl_cell_backward_args *p, cell_backward *backward) {
    const int64_t rest = (p->end - p->begin) % LANES;
    for (int64_t r = 0; r < p->rows; r++) {
        for (int64_t u = p->begin; u < p->end - rest; u += LANES) backward(p, (cell_at){r, u, LANES});
        if (rest) backward(p, (cell_at){r, p->end - rest, rest});
    }
}
