/* The time loop: one direction of one layer, over the steps of some rows.
 *
 * A step is a stage or two of fl_team_stage, with a barrier between: workers own fixed slices of hidden units. Within
 * a slice the product writes a tile of pre-activations to scratch that stays in L1, and the cell kernel reads it from
 * there. Where a step has few rows, the input is projected ahead of time, for as many steps as make a tile of some 32
 * rows; else (and for a single step, or an input so narrow that the detour costs more) it is part of the step's
 * product. The bits are the same: bias, then x, then h, in one order.
 * Rows come ordered by their number of steps, so that the active ones are always the first. */
#include "internal.h"

#include <string.h>

enum {
    TILE_ROWS = 32,          /* of the projected input */
    SCRATCH_BYTES = 1 << 14, /* half of L1 */
    SCRATCH_ROWS = 64,
    FUSED_ROWS = 24, /* a step of so many rows has the peak without the help of others */
    FUSED_INPUTS = 4,
    L1_WEIGHTS = 28 << 10,
    ROW_COLUMNS = 64, /* of a tile of one row, with weights from beyond L1; twice as many if they are small */
};

/* Units of a slice or tile begin at multiples of this: `gates` gates of them fill whole blocks and whole panels. */
static int64_t unit_step(const fl_kernels *k, int64_t gates) {
    int64_t blocks = 1;
    while (blocks * gates % k->panel_vecs) blocks++;
    return blocks * k->lanes;
}

/* --- memory --- */

static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* Elements of scratch that a row of the narrowest tile takes. */
static int64_t step_columns(const fl_layer *l, int phase) {
    const int64_t gates = l->cell->phase[phase].gates;
    return gates * unit_step(l->kernels, gates);
}

/* The narrowest tiles are the most: wider ones take all rows. */
static int64_t most_tiles(const fl_scan *s, int phase) {
    const fl_layer *l = s->layer;
    const int64_t step = unit_step(l->kernels, l->cell->phase[phase].gates);
    const int64_t height = s->scratch_bytes / (step_columns(l, phase) * l->kernels->element_bytes);
    return ((l->config.hidden_size + step - 1) / step) * ((s->rows + height - 1) / height);
}

/* Bytes of a row of `depth` numbers and the scale in front of it, whole lines. */
static int64_t numbers_bytes(const fl_layer *l, int64_t depth) {
    return FL_SCALE_BYTES + fl_round_up(depth, 64) * l->planes;
}

/* What int8 weights are multiplied with: the tile's input, and each worker's own copy of the state, so that no one waits
 * for another's. */
static void lay_out_numbers(fl_scan *s, int64_t workers, fl_arena *a) {
    const fl_layer *l = s->layer;
    const int64_t inputs = l->config.input_size, stacked = l->directions * l->output_size;
    s->x_number_bytes = numbers_bytes(l, l->config.num_layers > 1 ? most(inputs, stacked) : inputs);
    s->h_number_bytes = numbers_bytes(l, most(l->config.hidden_size, l->output_size));
    s->x_numbers = fl_take(a, s->tile_rows * s->x_number_bytes);
    s->x_number_rows = fl_take(a, s->tile_rows * (int64_t)sizeof(void *));
    s->h_numbers = fl_take(a, workers * s->rows * s->h_number_bytes);
    s->h_number_rows = fl_take(a, workers * s->rows * (int64_t)sizeof(void *));
}

static int64_t lay_out(fl_scan *s, const fl_layer *layer, int64_t rows, int64_t steps, int64_t workers, void *memory) {
    const fl_kernels *k = layer->kernels;
    const int64_t size = k->element_bytes, gates = layer->cell->gates;
    fl_arena a = {memory, 0};
    s->layer = layer;
    s->rows = rows;
    const int64_t tile_steps = rows ? (TILE_ROWS + rows - 1) / rows : 1;
    s->tile_rows = rows * (steps < tile_steps ? steps : tile_steps);
    for (int i = 0; i < 2; i++) s->h[i] = fl_take(&a, rows * layer->output_stride * size);
    s->c = fl_take(&a, rows * layer->hidden_stride * size);
    s->between = fl_take(&a, rows * layer->hidden_stride * size);
    s->projected_stride = fl_round_up(gates * layer->config.hidden_size, k->lanes);
    s->projected = fl_take(&a, s->tile_rows * s->projected_stride * size);
    /* A tile has at least one step of units for six rows, and up to SCRATCH_BYTES. */
    s->scratch_bytes = most(SCRATCH_BYTES, 6 * gates * k->panel_vecs * k->lanes * size);
    s->scratch = fl_take(&a, workers * s->scratch_bytes);
    for (int i = 0; i < layer->cell->phases; i++)
        for (int parity = 0; parity < 2; parity++)
            s->tiling[i].calls[parity] = fl_take(&a, most_tiles(s, i) * (int64_t)sizeof(fl_calls));
    for (int i = 0; i < 2; i++) s->h_rows[i] = fl_take(&a, rows * (int64_t)sizeof(void *));
    s->between_rows = fl_take(&a, rows * (int64_t)sizeof(void *));
    s->x_rows = fl_take(&a, s->tile_rows * (int64_t)sizeof(void *));
    s->y_rows = fl_take(&a, rows * (int64_t)sizeof(void *));
    if (layer->integers) lay_out_numbers(s, workers, &a);
    return a.used;
}

int64_t fl_scan_bytes(const fl_layer *layer, int64_t rows, int64_t steps, int64_t workers) {
    fl_scan s;
    return lay_out(&s, layer, rows, steps, workers, NULL);
}

void fl_scan_init(fl_scan *s, const fl_layer *layer, const fl_direction *weights, int64_t rows, int64_t steps,
                  int64_t workers, void *memory) {
    memset(s, 0, sizeof *s);
    s->weights = weights;
    s->active = -1;
    lay_out(s, layer, rows, steps, workers, memory);
    const int64_t size = layer->kernels->element_bytes;
    for (int64_t r = 0; r < rows; r++) {
        for (int i = 0; i < 2; i++) s->h_rows[i][r] = s->h[i] + r * layer->output_stride * size;
        s->between_rows[r] = s->between + r * layer->hidden_stride * size;
    }
    for (int64_t r = 0; layer->integers && r < s->tile_rows; r++)
        s->x_number_rows[r] = s->x_numbers + r * s->x_number_bytes + FL_SCALE_BYTES;
    for (int64_t r = 0; layer->integers && r < workers * rows; r++)
        s->h_number_rows[r] = s->h_numbers + r * s->h_number_bytes + FL_SCALE_BYTES;
    /* Padded lanes are computed with, never used: any number will do, but not a stray denormal or NaN of old memory. */
    for (int i = 0; i < 2; i++) memset(s->h[i], 0, (size_t)(rows * layer->output_stride * size));
    memset(s->c, 0, (size_t)(rows * layer->hidden_stride * size));
}

/* The rows of the state before a step, or after the last. */
static char *h_before(const fl_scan *s, int64_t step) {
    if (!s->memory) return s->h[s->parity];
    return fl_memory_h(s->layer, s->memory, step) +
           s->memory_row * s->layer->output_stride * s->layer->kernels->element_bytes;
}

static char *c_before(const fl_scan *s, int64_t step) {
    if (!s->memory || !s->memory->c) return s->c;
    return fl_memory_c(s->layer, s->memory, step) +
           s->memory_row * s->layer->hidden_stride * s->layer->kernels->element_bytes;
}

void fl_scan_set_state(fl_scan *s, int64_t row, const void *h, const void *c) {
    const fl_layer *l = s->layer;
    const int64_t size = l->kernels->element_bytes, first = s->memory ? s->memory->first_step : 0;
    fl_set_row(h_before(s, first) + row * l->output_stride * size, h, l->output_size * size);
    if (l->cell->has_c) fl_set_row(c_before(s, first) + row * l->hidden_stride * size, c, l->config.hidden_size * size);
}

const char *fl_scan_h(const fl_scan *s, int64_t row, int64_t ago) {
    const char *rows = s->memory ? h_before(s, s->steps - ago) : s->h[(s->parity + ago) & 1];
    return rows + row * s->layer->output_stride * s->layer->kernels->element_bytes;
}

const char *fl_scan_now_h(const fl_scan *s, int64_t row) {
    return s->h[s->parity] + row * s->layer->output_stride * s->layer->kernels->element_bytes;
}

const char *fl_scan_c(const fl_scan *s, int64_t row, int64_t ago) {
    return c_before(s, s->steps - ago) + row * s->layer->hidden_stride * s->layer->kernels->element_bytes;
}

/* --- a tape's memory --- */

static int64_t memory_row(const fl_memory *m, int64_t step) {
    return step == m->first_step ? 0 : m->rows + m->place[step - 1] - m->place[m->first_step];
}

char *fl_memory_h(const fl_layer *l, const fl_memory *m, int64_t step) {
    return m->h + memory_row(m, step) * l->output_stride * l->kernels->element_bytes;
}

char *fl_memory_c(const fl_layer *l, const fl_memory *m, int64_t step) {
    return m->c + memory_row(m, step) * l->hidden_stride * l->kernels->element_bytes;
}

char *fl_memory_z(const fl_layer *l, const fl_memory *m, int64_t step) {
    return m->z + (m->place[step] - m->place[m->first_step]) * m->z_stride * l->kernels->element_bytes;
}

/* --- stages --- */

fl_range fl_slice(int64_t units, int64_t step, int64_t slice, int64_t slices) {
    if (slices == 1) return (fl_range){0, units};
    const int64_t steps = (units + step - 1) / step;
    const fl_range r = {steps * slice / slices * step, steps * (slice + 1) / slices * step};
    return (fl_range){r.begin, r.end < units ? r.end : units};
}

void fl_set_columns(fl_product_args *p, int i, const fl_kernels *k, const fl_matrix *m, int64_t gates, int64_t begin,
                    int64_t end) {
    p->vecs = ((end - begin) * gates + k->lanes - 1) >> __builtin_ctz((unsigned)k->lanes); /* a power of two */
    p->part[i].depth = m->depth;
    p->part[i].w = (const char *)m->data + begin * gates * m->depth * m->weight_bytes;
    if (!m->scale) return;
    p->part[i].scale = m->scale + begin * gates;
    p->part[i].first = m->first + begin * gates;
}

static int64_t whole_step(const fl_scan *s) { return s->layer->kernels->lanes * s->layer->kernels->panel_vecs; }

/* --- int8 weights --- */

/* Where h is bounded by 1, all its rows have that scale: a state's own magnitude matters only beyond. */
static const float INPUT_LEAST = 0x1p-100f, STATE_LEAST = 1;

/* The tile's input as numbers, for x_number_rows; too short for the workers to share. */
static void round_input(const fl_scan *s) {
    s->layer->integers->round_int8(&(fl_round_args){.rows = s->tile_count,
                                                    .planes = s->layer->planes,
                                                    .depth = s->weights->inputs,
                                                    .a = s->x_rows,
                                                    .least = INPUT_LEAST,
                                                    .out = (char *)s->x_number_rows[0],
                                                    .out_bytes = s->x_number_bytes});
}

/* A worker's copy of rows of the state or of what is between as numbers; without int8 weights the rows themselves. */
static const void *const *factor_rows(const fl_scan *s, const void *const *rows, int64_t depth, int64_t worker) {
    if (!s->layer->integers) return rows;
    const void *const *numbers = s->h_number_rows + worker * s->rows;
    s->layer->integers->round_int8(&(fl_round_args){.rows = s->active,
                                                    .planes = s->layer->planes,
                                                    .depth = depth,
                                                    .a = rows,
                                                    .least = STATE_LEAST,
                                                    .out = (char *)numbers[0],
                                                    .out_bytes = s->h_number_bytes});
    return numbers;
}

/* projected[row] = bias + W_x x[row] for the rows of the tile */
static void project_input(void *context, int64_t slice, int64_t slices, int64_t worker) {
    (void)worker;
    const fl_scan *s = context;
    const fl_kernels *k = s->layer->kernels;
    const int64_t gates = s->layer->cell->gates;
    const fl_range units = fl_slice(s->layer->config.hidden_size, whole_step(s), slice, slices);
    if (units.begin >= units.end) return;
    const int64_t first = units.begin * gates * k->element_bytes;
    fl_product_args p = {.rows = s->tile_count, .parts = 1, .planes = s->layer->planes};
    fl_set_columns(&p, 0, k, &s->weights->input, gates, units.begin, units.end);
    p.part[0].a = s->layer->integers ? s->x_number_rows : s->x_rows;
    p.start = (const char *)s->weights->bias + first;
    p.out = s->projected + first;
    p.out_stride = s->projected_stride;
    s->layer->product(&p);
}

static bool writes_y(const fl_layer *l, int phase) { return phase == l->cell->phases - 1 && !l->config.proj_size; }

/* Fills in the calls of a tile. The state is the product's last part. */
static void fill_calls(const fl_scan *s, int phase, int parity, fl_calls *calls, int64_t begin, int64_t end,
                       int64_t row, int64_t rows) {
    const fl_layer *l = s->layer;
    const fl_kernels *k = l->kernels;
    const int64_t size = k->element_bytes, gates = l->cell->phase[phase].gates, first = begin * gates * size;
    const int64_t state = row * l->hidden_stride * size, memory_gates = l->cell->memory_gates;
    const int64_t memory_stride = s->memory ? s->memory->z_stride : 0;
    const bool direct = s->memory && !l->keep[phase];
    const int64_t z_stride = direct ? memory_stride : s->tiling[phase].width * gates;
    *calls = (fl_calls){
        .row = row,
        .state_bytes = state,
        .projected_bytes = (row * s->projected_stride + begin * l->cell->gates) * size,
        .memory_bytes = (row * memory_stride + begin * memory_gates) * size,
        .product = {.rows = rows, .parts = s->fused ? 2 : 1, .planes = l->planes, .out_stride = z_stride},
        .cell = {.rows = rows,
                 .hidden = l->config.hidden_size,
                 .begin = begin,
                 .end = end,
                 .z_stride = z_stride,
                 .zx_stride = s->projected_stride,
                 .h = s->h[parity] + state,
                 .h_out = (writes_y(l, phase) ? s->h[parity ^ 1] : s->between) + state,
                 .c = s->c + state,
                 .c_out = s->c + state,
                 .state_stride = l->hidden_stride,
                 .y = writes_y(l, phase) ? s->y_rows + row : NULL,
                 .peephole = s->weights->peephole,
                 .options = &l->options,
                 .memory_stride = memory_stride},
    };
    fl_product_args *p = &calls->product;
    if (s->fused) {
        fl_set_columns(p, 0, k, &s->weights->input, gates, begin, end);
        p->start = (const char *)s->weights->bias + first;
    } else if (l->cell->separate) p->start = (const char *)s->weights->start[phase] + first;
    else p->start_stride = s->projected_stride;
    fl_set_columns(p, s->fused, k, &s->weights->recurrent[phase], gates, begin, end);
    p->part[s->fused].a = (phase == 0 ? s->h_rows[parity] : s->between_rows) + row;
}

/* What is elsewhere where a tape remembers. */
static void follow_memory(const fl_scan *s, int phase, fl_calls *calls) {
    const int64_t state = calls->state_bytes;
    fl_cell_args *u = &calls->cell;
    u->memory = s->z + calls->memory_bytes;
    if (!s->layer->keep[phase]) u->z = calls->product.out = u->memory;
    if (phase == 0) calls->product.part[s->fused].a = s->h_in_rows + calls->row;
    u->h = s->h_in + state;
    if (u->y) u->h_out = s->h_out + state;
    u->c = s->c_in + state;
    u->c_out = s->c_out + state;
}

/* The product of the tile and the update that reads it. A step of a small layer is over in 200 cycles, of which this
 * function should not be many. */
static inline void run_tile(const fl_scan *s, int phase, fl_calls *calls, char *scratch, const fl_calls *next,
                            const void *const *numbers) {
    const fl_layer *l = s->layer;
    const char *projected = s->tile + calls->projected_bytes;
    fl_product_args *p = &calls->product;
    fl_cell_args *u = &calls->cell;
    p->out = scratch;
    p->next = next->product.part[0].w;
    if (s->fused) p->part[0].a = s->step_x + calls->row;
    else if (!l->cell->separate) p->start = projected;
    u->z = scratch;
    u->zx = projected;
    u->y_offset = s->y_offset;
    if (numbers) p->part[s->fused].a = numbers + calls->row;
    if (s->memory) follow_memory(s, phase, calls);
    l->product(p);
    if (s->memory && l->keep[phase]) l->keep[phase](u);
    l->update[phase](u);
}

/* The total in shares of at least `least`, as even as can be: a last one of a few vectors would wait for itself. */
static int64_t even_share(int64_t total, int64_t least) {
    const int64_t shares = most(total / most(least, 1), 1);
    return (total + shares - 1) / shares;
}

/* Chooses the tiles for that many rows and fills in their calls. */
static void set_active(fl_scan *s, int64_t active, bool fused, int64_t slices) {
    const fl_layer *l = s->layer;
    const fl_kernels *k = l->kernels;
    const int64_t H = l->config.hidden_size;
    s->active = active;
    s->fused = fused;
    s->slices = slices;
    for (int i = 0; i < l->cell->phases && active > 0; i++) {
        const int64_t step = unit_step(k, l->cell->phase[i].gates);
        const int64_t room = s->scratch_bytes / (step_columns(l, i) * k->element_bytes); /* rows, one step wide */
        const int64_t height = active < room ? active : room;
        fl_tiling *t = &s->tiling[i];
        t->width = room / height * step;
        const int64_t share = most(H / (step * slices), 1) * step; /* wider, and some worker would have none */
        if (slices > 1 && t->width > share) t->width = share;
        /* One row whose weights come from beyond L1: small tiles, so that an update runs while the next tile's come. */
        const int64_t depth = s->weights->recurrent[i].depth + (fused ? s->weights->input.depth : 0);
        const int64_t columns = l->format.type == FL_FULL ? ROW_COLUMNS : 2 * ROW_COLUMNS;
        if (active == 1 && depth * H * l->cell->phase[i].gates * l->format.weight_bytes > L1_WEIGHTS)
            t->width = even_share((H + step - 1) / step, columns / step_columns(l, i)) * step;
        t->across = (H + t->width - 1) / t->width;
        t->down = (active + height - 1) / height;
        for (int64_t j = 0; j < t->across * t->down; j++) {
            const int64_t begin = j / t->down * t->width, row = j % t->down * height;
            for (int parity = 0; parity < 2; parity++)
                fill_calls(s, i, parity, &t->calls[parity][j], begin, begin + t->width < H ? begin + t->width : H, row,
                           row + height < active ? height : active - row);
        }
    }
}

/* One phase of the cell for a slice of units, tile by tile. */
static void run_phase(const fl_scan *s, int phase, int64_t slice, int64_t slices, int64_t worker) {
    const fl_tiling *t = &s->tiling[phase];
    char *scratch = s->scratch + worker * s->scratch_bytes;
    const int64_t first = slices == 1 ? 0 : t->across * slice / slices * t->down;
    const int64_t last = (slices == 1 ? t->across : t->across * (slice + 1) / slices) * t->down;
    /* Every other step backwards: the end of one sweep is still in cache when the next begins. */
    const int64_t step = s->parity ? -1 : 1;
    fl_calls *calls = t->calls[s->parity] + (s->parity ? last - 1 : first);
    const fl_layer *l = s->layer;
    const void *const *numbers = NULL;
    if (l->integers && first < last)
        numbers = phase == 0 ? factor_rows(s, s->h_rows[s->parity], l->output_size, worker)
                             : factor_rows(s, s->between_rows, l->config.hidden_size, worker);
    for (int64_t left = last - first; left > 0; left--, calls += step)
        run_tile(s, phase, calls, scratch, left > 1 ? calls + step : calls, numbers);
}

static void first_phase(void *context, int64_t slice, int64_t slices, int64_t worker) {
    run_phase(context, 0, slice, slices, worker);
}

static void second_phase(void *context, int64_t slice, int64_t slices, int64_t worker) {
    run_phase(context, 1, slice, slices, worker);
}

/* h' = W_hr between */
static void project_output(void *context, int64_t slice, int64_t slices, int64_t worker) {
    const fl_scan *s = context;
    const fl_layer *l = s->layer;
    const fl_kernels *k = l->kernels;
    const fl_range units = fl_slice(l->output_size, whole_step(s), slice, slices);
    if (units.begin >= units.end) return;
    const int64_t first = units.begin * k->element_bytes;
    fl_product_args p = {.rows = s->active, .parts = 1, .planes = l->planes};
    fl_set_columns(&p, 0, k, &s->weights->projection, 1, units.begin, units.end);
    p.part[0].a = factor_rows(s, s->between_rows, l->config.hidden_size, worker);
    p.start = (const char *)s->weights->zeros + first;
    p.out = s->h_out + first;
    p.out_stride = l->output_stride;
    l->product(&p);
    for (int64_t r = 0; r < s->active; r++)
        memcpy((char *)s->y_rows[r] + s->y_offset * k->element_bytes + first,
               s->h_out + r * l->output_stride * k->element_bytes + first,
               (size_t)((units.end - units.begin) * k->element_bytes));
}

/* --- the loop --- */

/* Rows that still run at step t, out of `active` that ran before it. */
static int64_t active_at(const fl_rows *rows, int64_t active, int64_t t) {
    while (active > 0 && rows->steps[active - 1] <= t) active--;
    return active;
}

/* Sets x_rows for steps from t on, as many as fit; returns how many steps. */
static int64_t fill_tile(fl_scan *s, const fl_rows *rows, int64_t t, int64_t steps, int64_t active) {
    int64_t end = t;
    s->tile_count = 0;
    for (; end < steps; end++) {
        active = active_at(rows, active, end);
        if (s->tile_count + active > s->tile_rows) break;
        for (int64_t r = 0; r < active; r++) s->x_rows[s->tile_count++] = rows->x[r] + end * rows->x_step_bytes;
    }
    return end - t;
}

/* Where the states and pre-activations of a step are. */
static void begin_step(fl_scan *s, int64_t step) {
    const fl_layer *l = s->layer;
    const int64_t size = l->kernels->element_bytes;
    if (!s->memory) {
        s->h_out = s->h[s->parity ^ 1];
        return;
    }
    s->h_in = h_before(s, step);
    s->c_in = c_before(s, step);
    s->h_out = h_before(s, step + 1);
    s->c_out = c_before(s, step + 1);
    s->z = fl_memory_z(l, s->memory, step) + s->memory_row * s->memory->z_stride * size;
    for (int64_t r = 0; r < s->active; r++) s->h_rows[0][r] = s->h_in + r * l->output_stride * size;
    s->h_in_rows = s->h_rows[0];
}

/* Without a team, a call that is compiled in. */
static inline void run_stage(fl_team *team, fl_stage_fn *fn, fl_scan *s) {
    if (team) fl_team_stage(team, fn, s);
    else fn(s, 0, 1, 0);
}

void fl_scan_run(fl_scan *s, const fl_rows *rows, fl_team *team) {
    const fl_layer *l = s->layer;
    const int64_t all = rows->count ? rows->steps[0] : 0, steps = rows->end < all ? rows->end : all;
    const int64_t row_bytes = s->projected_stride * l->kernels->element_bytes, slices = fl_team_slices(team);
    int64_t tile_end = rows->begin, active = rows->count;
    bool fused = false;
    s->steps = all;
    for (int64_t t = rows->begin; t < steps; t++) {
        active = active_at(rows, active, t);
        if (t == tile_end) {
            const int64_t count = fill_tile(s, rows, t, steps, active);
            tile_end = t + count;
            fused = !l->cell->separate && !rows->in_place &&
                    (count == 1 || active >= FUSED_ROWS || s->weights->input.depth <= FUSED_INPUTS);
            if (l->integers) round_input(s);
            if (!fused) run_stage(team, project_input, s);
            s->tile = s->projected;
            s->step_x = l->integers ? s->x_number_rows : s->x_rows;
        }
        if (active != s->active || fused != s->fused || slices != s->slices) set_active(s, active, fused, slices);
        s->y_offset = t * rows->y_step;
        begin_step(s, t);
        run_stage(team, first_phase, s);
        if (l->cell->phases == 2) run_stage(team, second_phase, s);
        if (l->config.proj_size) run_stage(team, project_output, s);
        s->tile += active * row_bytes;
        s->step_x += active;
        s->parity ^= 1;
    }
}
