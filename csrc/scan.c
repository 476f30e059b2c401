/* The time loop: one direction of one layer, over the steps of some rows.
 *
 * A step is a stage or two of fl_team_stage, with a barrier between: workers own fixed slices of hidden units. The
 * input is projected ahead of time, for as many steps as make a tile of some 64 rows. Within a slice the recurrent
 * product writes a tile of pre-activations to scratch that stays in L1, and the cell kernel reads it from there.
 * Rows come ordered by their number of steps, so that the active ones are always the first. */
#include "internal.h"

#include <string.h>

enum {
    TILE_ROWS = 64,          /* of the projected input */
    SCRATCH_BYTES = 1 << 14, /* half of L1 */
    SCRATCH_ROWS = 64,
};

static int64_t matrix_stride(const fl_kernels *k, const fl_matrix *m) { return m->vecs * k->lanes; }

/* Units of a slice or tile begin at multiples of this: `gates` gates of them fill whole blocks and whole panels. */
static int64_t unit_step(const fl_kernels *k, int64_t gates) {
    int64_t blocks = 1;
    while (blocks * gates % k->panel_vecs) blocks++;
    return blocks * k->lanes;
}

/* --- memory --- */

/* Hands out 64-byte aligned parts of a block; with a NULL base it only counts. */
typedef struct arena {
    char *base;
    int64_t used;
} arena;

static void *take(arena *a, int64_t bytes) {
    void *part = a->base ? a->base + a->used : NULL;
    a->used += fl_round_up(bytes, 64);
    return part;
}

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t lay_out(fl_scan *s, const fl_layer *layer, int64_t rows, int64_t steps, int64_t workers, void *memory) {
    const fl_kernels *k = layer->kernels;
    const int64_t size = k->element_bytes, gates = layer->cell->gates;
    arena a = {memory, 0};
    s->layer = layer;
    s->rows = rows;
    const int64_t tile_steps = rows ? (TILE_ROWS + rows - 1) / rows : 1;
    s->tile_rows = rows * (steps < tile_steps ? steps : tile_steps);
    for (int i = 0; i < 2; i++) s->h[i] = take(&a, rows * layer->output_stride * size);
    s->c = take(&a, rows * layer->hidden_stride * size);
    s->between = take(&a, rows * layer->hidden_stride * size);
    s->projected = take(&a, s->tile_rows * fl_round_up(gates * layer->config.hidden_size, k->lanes) * size);
    /* A tile has at least one step of units for six rows, and up to SCRATCH_BYTES. */
    s->scratch_bytes = most(SCRATCH_BYTES, 6 * gates * k->panel_vecs * k->lanes * size);
    s->scratch = take(&a, workers * s->scratch_bytes);
    for (int i = 0; i < 2; i++) s->h_rows[i] = take(&a, rows * (int64_t)sizeof(void *));
    s->between_rows = take(&a, rows * (int64_t)sizeof(void *));
    s->x_rows = take(&a, s->tile_rows * (int64_t)sizeof(void *));
    s->y_rows = take(&a, rows * (int64_t)sizeof(void *));
    return a.used;
}

int64_t fl_scan_bytes(const fl_layer *layer, int64_t rows, int64_t steps, int64_t workers) {
    fl_scan s;
    return lay_out(&s, layer, rows, steps, workers, NULL);
}

void fl_scan_init(fl_scan *s, const fl_layer *layer, int64_t rows, int64_t steps, int64_t workers, void *memory) {
    memset(s, 0, sizeof *s);
    lay_out(s, layer, rows, steps, workers, memory);
    const int64_t size = layer->kernels->element_bytes;
    for (int64_t r = 0; r < rows; r++) {
        for (int i = 0; i < 2; i++) s->h_rows[i][r] = s->h[i] + r * layer->output_stride * size;
        s->between_rows[r] = s->between + r * layer->hidden_stride * size;
    }
    /* Padded lanes are computed with, never used: any number will do, but not a stray denormal or NaN of old memory. */
    for (int i = 0; i < 2; i++) memset(s->h[i], 0, (size_t)(rows * layer->output_stride * size));
    memset(s->c, 0, (size_t)(rows * layer->hidden_stride * size));
}

static void set_row(char *row, const void *from, int64_t bytes) {
    if (from) memcpy(row, from, (size_t)bytes);
    else memset(row, 0, (size_t)bytes);
}

void fl_scan_set_state(fl_scan *s, int64_t row, const void *h, const void *c) {
    const fl_layer *l = s->layer;
    const int64_t size = l->kernels->element_bytes;
    set_row(s->h[s->parity] + row * l->output_stride * size, h, l->output_size * size);
    if (l->cell->has_c) set_row(s->c + row * l->hidden_stride * size, c, l->config.hidden_size * size);
}

const char *fl_scan_h(const fl_scan *s, int64_t row, int64_t ago) {
    return s->h[(s->parity + ago) & 1] + row * s->layer->output_stride * s->layer->kernels->element_bytes;
}

const char *fl_scan_c(const fl_scan *s, int64_t row) {
    return s->c + row * s->layer->hidden_stride * s->layer->kernels->element_bytes;
}

/* --- stages --- */

typedef struct range {
    int64_t begin, end;
} range;

static range slice_of(int64_t units, int64_t step, int64_t slice, int64_t slices) {
    const int64_t steps = (units + step - 1) / step;
    const range r = {steps * slice / slices * step, steps * (slice + 1) / slices * step};
    return (range){r.begin, r.end < units ? r.end : units};
}

/* The product of columns [begin, end) * gates of a matrix. */
static fl_product_args product_of(const fl_kernels *k, const fl_matrix *m, int64_t gates, range units) {
    const int64_t column = units.begin * gates;
    return (fl_product_args){
        .depth = m->depth,
        .vecs = fl_round_up((units.end - units.begin) * gates, k->lanes) / k->lanes,
        .w = (const char *)m->data + column * m->depth * k->element_bytes,
    };
}

static int64_t whole_step(const fl_scan *s) { return s->layer->kernels->lanes * s->layer->kernels->panel_vecs; }

/* projected[row] = bias + W_x x[row] for the rows of the tile */
static void project_input(void *context, int64_t slice, int64_t slices, int64_t worker) {
    (void)worker;
    const fl_scan *s = context;
    const fl_kernels *k = s->layer->kernels;
    const int64_t gates = s->layer->cell->gates;
    const range units = slice_of(s->layer->config.hidden_size, whole_step(s), slice, slices);
    if (units.begin >= units.end) return;
    const int64_t first = units.begin * gates * k->element_bytes;
    fl_product_args p = product_of(k, &s->weights->input, gates, units);
    p.rows = s->tile_count;
    p.a = s->x_rows;
    p.start = (const char *)s->weights->bias + first;
    p.out = s->projected + first;
    p.out_stride = matrix_stride(k, &s->weights->input);
    k->product(&p);
}

/* One phase of the cell for a slice: tile by tile, the recurrent product and then the update. */
static void run_phase(const fl_scan *s, int phase, range slice, int64_t worker, bool turned) {
    const fl_layer *l = s->layer;
    const fl_kernels *k = l->kernels;
    const fl_matrix *m = &s->weights->recurrent[phase];
    const int64_t size = k->element_bytes, gates = l->cell->phase[phase].gates, all_gates = l->cell->gates;
    const int64_t step = unit_step(k, gates);
    const int64_t n = s->active, tallest = n < SCRATCH_ROWS ? n : SCRATCH_ROWS;
    const int64_t room = SCRATCH_BYTES / size / (gates * step * tallest); /* steps of units in a tile */
    const int64_t width = most(room, 1) * step;
    const int64_t scratch_stride = fl_round_up(width * gates, k->lanes);
    const int64_t fits = s->scratch_bytes / size / scratch_stride, height = fits < tallest ? fits : tallest;
    const int64_t tiles = (slice.end - slice.begin + width - 1) / width;
    const bool last = phase == l->cell->phases - 1, to_y = last && !l->config.proj_size;
    const int64_t projected_stride = matrix_stride(k, &s->weights->input);
    char *scratch = s->scratch + worker * s->scratch_bytes;

    fl_cell_args u = {
        .hidden = l->config.hidden_size,
        .z = scratch,
        .z_stride = scratch_stride,
        .zx_stride = projected_stride,
        .state_stride = l->hidden_stride,
        .y_offset = s->y_offset,
        .peephole = s->weights->peephole,
        .options = &l->options,
    };
    for (int64_t i = 0; i < tiles; i++) {
        /* Every other step backwards: the end of one sweep is still in cache when the next begins. */
        const int64_t begin = slice.begin + (turned ? tiles - 1 - i : i) * width;
        const range units = {begin, begin + width < slice.end ? begin + width : slice.end};
        fl_product_args p = product_of(k, m, gates, units);
        p.out = scratch;
        p.out_stride = scratch_stride;
        u.begin = units.begin;
        u.end = units.end;
        for (int64_t row = 0; row < n; row += height) {
            const int64_t projected = ((s->row_in_tile + row) * projected_stride + units.begin * all_gates) * size;
            const int64_t state = row * l->hidden_stride * size;
            p.rows = u.rows = n - row < height ? n - row : height;
            p.a = (phase == 0 ? s->h_rows[s->parity] : s->between_rows) + row;
            if (l->cell->separate) {
                p.start = (const char *)s->weights->start[phase] + units.begin * gates * size;
                u.zx = s->projected + projected;
            } else {
                p.start = s->projected + projected;
                p.start_stride = projected_stride;
            }
            u.h = s->h[s->parity] + state;
            u.h_out = (to_y ? s->h[s->parity ^ 1] : s->between) + state;
            u.c = s->c + state;
            u.y = to_y ? s->y_rows + row : NULL;
            k->product(&p);
            l->update[phase](&u);
        }
    }
}

static void first_phase(void *context, int64_t slice, int64_t slices, int64_t worker) {
    const fl_scan *s = context;
    run_phase(s, 0, slice_of(s->layer->config.hidden_size, whole_step(s), slice, slices), worker, s->parity);
}

static void second_phase(void *context, int64_t slice, int64_t slices, int64_t worker) {
    const fl_scan *s = context;
    run_phase(s, 1, slice_of(s->layer->config.hidden_size, whole_step(s), slice, slices), worker, s->parity);
}

/* h' = W_hr between */
static void project_output(void *context, int64_t slice, int64_t slices, int64_t worker) {
    (void)worker;
    const fl_scan *s = context;
    const fl_layer *l = s->layer;
    const fl_kernels *k = l->kernels;
    const range units = slice_of(l->output_size, whole_step(s), slice, slices);
    if (units.begin >= units.end) return;
    const int64_t first = units.begin * k->element_bytes;
    fl_product_args p = product_of(k, &s->weights->projection, 1, units);
    p.rows = s->active;
    p.a = s->between_rows;
    p.start = (const char *)s->weights->zeros + first;
    p.out = s->h[s->parity ^ 1] + first;
    p.out_stride = l->output_stride;
    k->product(&p);
    for (int64_t r = 0; r < s->active; r++)
        memcpy((char *)s->y_rows[r] + s->y_offset * k->element_bytes + first,
               (const char *)s->h_rows[s->parity ^ 1][r] + first, (size_t)((units.end - units.begin) * k->element_bytes));
}

/* --- the loop --- */

/* Rows that still run at step t, out of `active` that ran before it. */
static int64_t active_at(const fl_rows *rows, int64_t active, int64_t t) {
    while (active > 0 && rows->steps[active - 1] <= t) active--;
    return active;
}

/* Sets x_rows for steps from t on, as many as fit, and projects them; returns how many steps. */
static int64_t fill_tile(fl_scan *s, const fl_rows *rows, int64_t t, int64_t steps, fl_team *team) {
    int64_t end = t, active = s->active;
    s->tile_count = 0;
    for (; end < steps; end++) {
        active = active_at(rows, active, end);
        if (s->tile_count + active > s->tile_rows) break;
        for (int64_t r = 0; r < active; r++) s->x_rows[s->tile_count++] = rows->x[r] + end * rows->x_step_bytes;
    }
    fl_team_stage(team, project_input, s);
    return end - t;
}

void fl_scan_run(fl_scan *s, const fl_rows *rows, fl_team *team) {
    const int64_t steps = rows->count ? rows->steps[0] : 0;
    int64_t tile_end = 0;
    s->active = rows->count;
    for (int64_t t = 0; t < steps; t++) {
        s->active = active_at(rows, s->active, t);
        if (t == tile_end) {
            tile_end += fill_tile(s, rows, t, steps, team);
            s->row_in_tile = 0;
        }
        s->y_offset = t * rows->y_step;
        fl_team_stage(team, first_phase, s);
        if (s->layer->cell->phases == 2) fl_team_stage(team, second_phase, s);
        if (s->layer->config.proj_size) fl_team_stage(team, project_output, s);
        s->row_in_tile += s->active;
        s->parity ^= 1;
    }
}
