/* fl_backward: backpropagation through time over a tape. Werbos, Backpropagation through time: what it does and how to do
 * it, 1990.
 *
 * Steps run last to first. A step is the cell kernel, which turns dh and dc into dz, the derivatives by the
 * pre-activations, and the product of dz with the recurrent weights, which makes the dh of the step before. Workers own
 * slices of hidden units, with a barrier a step, or stretches of the batch's rows, with none.
 * After a segment of steps, enough for SEGMENT_ROWS rows of dz, come the products that no step waits for: the gradients
 * of the weights, summed over the rows, and dx. Their order hangs on lengths alone, so the bits do too. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    SEGMENT_ROWS = FL_SUM_ROWS,
    TILE_ROWS = 6, /* rows that pass the product kernel at once */
    SMALL_US = 1000, /* a pass of less does not repay that one core reads what another wrote of dz */
};

/* One direction's state of affairs. Buffers are [rows, stride], rows of the batch or of the segment. */
typedef struct back_direction {
    fl_direction *weights;
    const fl_back_pack *back;
    fl_memory again; /* of the block that was run again */
    const fl_memory *memory; /* that the steps at hand are in */
    char *dh, *dc, *wide; /* batch: by h and c; by r h (GRU reset before) or o tanh(c') (projection) */
    char *dz, *between, *dh_new, *dx; /* segment; dh_new: by the projected h' */
    char *h_copy, *c_copy; /* segment, with checkpoints: states before; c_copy: and after */
    int64_t dz_stride, dx_stride;
    const void **dy_rows; /* batch */
    const void **x_rows, **h_rows, **c_rows, **c_new_rows, **between_rows, **dz_rows[4], **dh_new_rows; /* segment */
    void **dx_rows, **dh_new_out;
    int64_t first, end; /* the segment's steps */
} back_direction;

typedef struct backward_call {
    fl_tape *tape;
    const fl_gradients *g;
    const fl_layer *layer;
    int64_t inputs, segment_rows; /* the most that there are */
    back_direction direction[2];
    fl_split split;
    int64_t threads;
    int64_t *begin; /* [threads + 1]: each worker's rows, split by batch */
    /* of the stage that runs */
    back_direction *d;
    int64_t step, block_first, block_end;
} backward_call;

static int64_t active_at(const fl_tape *t, int64_t step) { return t->place[step + 1] - t->place[step]; }

/* --- memory --- */

static const void **take_pointers(fl_arena *a, int64_t n) { return fl_take(a, n * (int64_t)sizeof(void *)); }

static void lay_out(const backward_call *call, back_direction *d, fl_arena *a) {
    const fl_layer *l = call->layer;
    const int64_t size = l->kernels->element_bytes, B = call->tape->sequence.B, rows = call->segment_rows;
    const bool checkpoints = call->tape->every > 0;
    const int64_t out_bytes = l->output_stride * size, hidden_bytes = l->hidden_stride * size;
    d->dh = fl_take(a, B * out_bytes);
    d->dc = fl_take(a, B * hidden_bytes);
    d->wide = fl_take(a, B * hidden_bytes);
    /* A line more than needed: rows a power of two apart would share a few sets of the cache. */
    d->dz_stride = fl_round_up(l->cell->deltas * l->config.hidden_size, l->kernels->lanes) + 64 / size;
    d->dx_stride = fl_round_up(call->inputs, l->kernels->lanes);
    d->dz = fl_take(a, rows * d->dz_stride * size);
    d->dx = fl_take(a, rows * d->dx_stride * size);
    d->between = fl_take(a, rows * hidden_bytes);
    d->dh_new = fl_take(a, rows * out_bytes);
    d->h_copy = fl_take(a, checkpoints ? rows * out_bytes : 0);
    d->c_copy = fl_take(a, checkpoints ? 2 * rows * hidden_bytes : 0);
    d->dy_rows = take_pointers(a, B);
    d->x_rows = take_pointers(a, rows);
    d->h_rows = take_pointers(a, rows);
    d->c_rows = take_pointers(a, rows);
    d->c_new_rows = take_pointers(a, rows);
    d->between_rows = take_pointers(a, rows);
    d->dh_new_rows = take_pointers(a, rows);
    for (int i = 0; i < l->cell->deltas; i++) d->dz_rows[i] = take_pointers(a, rows);
    d->dx_rows = (void **)take_pointers(a, rows);
    d->dh_new_out = (void **)take_pointers(a, rows);
}

/* Row `index` of the caller's states, or zeros. */
static void set_state(char *row, const void *from, int64_t index, int64_t bytes) {
    fl_set_row(row, from ? (const char *)from + index * bytes : NULL, bytes);
}

/* The state after the last step, and the pointers that stay. */
static void begin_direction(const backward_call *call, back_direction *d, int64_t direction) {
    const fl_layer *l = call->layer;
    const fl_tape *t = call->tape;
    const fl_gradients *g = call->g;
    const int64_t size = l->kernels->element_bytes, B = t->sequence.B, P = l->output_size, H = l->config.hidden_size;
    const bool backwards = direction == 1 || l->config.reverse;
    for (int64_t r = 0; r < B; r++) {
        const int64_t b = t->order[r], n = t->length[b], first = backwards && n ? n - 1 : 0;
        set_state(d->dh + r * l->output_stride * size, g->dh_n, direction * B + b, P * size);
        set_state(d->dc + r * l->hidden_stride * size, l->cell->has_c ? g->dc_n : NULL, direction * B + b, H * size);
        d->dy_rows[r] = (const char *)g->dy + (first * g->dy_stride_t + b * g->dy_stride_b + direction * P) * size;
    }
    for (int64_t r = 0; r < call->segment_rows; r++) {
        d->between_rows[r] = d->between + r * l->hidden_stride * size;
        d->dh_new_rows[r] = d->dh_new_out[r] = d->dh_new + r * l->output_stride * size;
        for (int64_t i = 0; i < l->cell->deltas; i++) d->dz_rows[i][r] = d->dz + (r * d->dz_stride + i * H) * size;
    }
    d->end = d->first = t->steps;
}

static void end_direction(const backward_call *call, const back_direction *d, int64_t direction) {
    const fl_layer *l = call->layer;
    const fl_tape *t = call->tape;
    const int64_t size = l->kernels->element_bytes, B = t->sequence.B, P = l->output_size, H = l->config.hidden_size;
    for (int64_t r = 0; r < B; r++) {
        const int64_t b = direction * B + t->order[r];
        if (call->g->dh0)
            memcpy((char *)call->g->dh0 + b * P * size, d->dh + r * l->output_stride * size, (size_t)(P * size));
        if (call->g->dc0 && l->cell->has_c)
            memcpy((char *)call->g->dc0 + b * H * size, d->dc + r * l->hidden_stride * size, (size_t)(H * size));
    }
}

/* --- a step --- */

/* What a worker has of a step: rows of the batch, hidden units, columns of the output. */
typedef struct share {
    fl_range rows, units, columns;
} share;

static share share_of(const backward_call *call, int64_t slice, int64_t slices) {
    const fl_layer *l = call->layer;
    const int64_t H = l->config.hidden_size, P = l->output_size, B = call->tape->sequence.B;
    const int64_t step = l->kernels->lanes * l->kernels->panel_vecs;
    if (slices > 1 && call->split == FL_SPLIT_BATCH)
        return (share){{call->begin[slice], call->begin[slice + 1]}, {0, H}, {0, P}};
    return (share){{0, B}, fl_slice(H, step, slice, slices), fl_slice(P, step, slice, slices)};
}

/* out = start + sum over gates of a[gate] matrix[gate], each gate's apart. */
static void product(const fl_kernels *k, fl_product_args *p, const fl_matrix *const *matrix,
                    const void *const *const *a, int64_t count, fl_range columns) {
    if (p->rows <= 0 || columns.begin >= columns.end) return;
    p->parts = count;
    p->apart = true;
    for (int64_t j = 0; j < count; j++) {
        fl_set_columns(p, (int)j, k, matrix[j], 1, columns.begin, columns.end);
        p->part[j].a = a[j];
    }
    k->product(p);
}

static int64_t segment_row(const backward_call *call, const back_direction *d, int64_t step) {
    return call->tape->place[step] - call->tape->place[d->first];
}

static fl_range active_rows(const backward_call *call, const share *s, int64_t step) {
    const int64_t active = active_at(call->tape, step);
    return (fl_range){s->rows.begin, s->rows.end < active ? s->rows.end : active};
}

/* dh of the state before a step: what the cell kernel left in dh, and W_hh^T dz. */
static void pull_dh(const backward_call *call, const back_direction *d, const share *s, int64_t step) {
    const fl_layer *l = call->layer;
    const int64_t size = l->kernels->element_bytes, gates = l->cell->phases == 2 ? 2 : l->cell->gates;
    const fl_range rows = active_rows(call, s, step);
    const int64_t row = segment_row(call, d, step) + rows.begin;
    const fl_matrix *matrix[4];
    const void *const *a[4];
    for (int64_t g = 0; g < gates; g++) {
        matrix[g] = &d->back->recurrent[g];
        a[g] = d->dz_rows[l->cell->recurrent_delta[g]] + row;
    }
    fl_product_args p = {.rows = rows.end - rows.begin, .out_stride = l->output_stride};
    p.out = d->dh + (rows.begin * l->output_stride + s->columns.begin) * size;
    p.start = l->cell->carries ? p.out : d->back->zeros;
    p.start_stride = l->cell->carries ? p.out_stride : 0;
    product(l->kernels, &p, matrix, a, gates, s->columns);
}

/* wide = a matrix, for the rows of a step */
static void pull_wide(const backward_call *call, const back_direction *d, const share *s, fl_range rows,
                      const fl_matrix *matrix, const void *const *a) {
    const fl_layer *l = call->layer;
    fl_product_args p = {.rows = rows.end - rows.begin, .out_stride = l->hidden_stride, .start = d->back->zeros};
    p.out = d->wide + (rows.begin * l->hidden_stride + s->units.begin) * l->kernels->element_bytes;
    product(l->kernels, &p, &matrix, &a, 1, s->units);
}

static fl_cell_backward_args cell_args(const backward_call *call, const back_direction *d, const share *s,
                                       fl_range rows, int64_t step) {
    const fl_layer *l = call->layer;
    const fl_memory *m = d->memory;
    const int64_t size = l->kernels->element_bytes, state = rows.begin * l->hidden_stride * size;
    const int64_t sign = d == &call->direction[1] || l->config.reverse ? -1 : 1;
    const int64_t row = segment_row(call, d, step) + rows.begin;
    return (fl_cell_backward_args){
        .rows = rows.end - rows.begin,
        .hidden = l->config.hidden_size,
        .begin = s->units.begin,
        .end = s->units.end,
        .memory = fl_memory_z(l, m, step) + (rows.begin * m->z_stride + s->units.begin * l->cell->memory_gates) * size,
        .memory_stride = m->z_stride,
        .h = fl_memory_h(l, m, step) + rows.begin * l->output_stride * size,
        .c = m->c ? fl_memory_c(l, m, step) + state : NULL,
        .c_new = m->c ? fl_memory_c(l, m, step + 1) + state : NULL,
        .state_stride = l->hidden_stride,
        .dy = d->dy_rows + rows.begin,
        .dy_offset = sign * step * call->g->dy_stride_t,
        .dh = d->dh + rows.begin * l->output_stride * size,
        .dc = d->dc + state,
        .drh = d->wide + state,
        .dz = d->dz + row * d->dz_stride * size,
        .dz_stride = d->dz_stride,
        .peephole = d->weights->peephole,
        .options = &l->options,
    };
}

/* Everything of a step up to where a worker needs what the others have done. */
static void first_half(const backward_call *call, const share *s, int64_t step) {
    const back_direction *d = call->d;
    const fl_layer *l = call->layer;
    const fl_range rows = active_rows(call, s, step);
    const int64_t size = l->kernels->element_bytes, row = segment_row(call, d, step);
    if (step + 1 < d->end) pull_dh(call, d, s, step + 1);
    if (rows.begin >= rows.end) return;
    fl_cell_backward_args p = cell_args(call, d, s, rows, step);
    if (l->config.proj_size) { /* dh_new = dh + dy, whose product makes the cell's dh */
        const int64_t begin = s->columns.begin, n = s->columns.end - begin;
        for (int64_t r = rows.begin; r < rows.end && n > 0; r++)
            memcpy(d->dh_new + ((row + r) * l->output_stride + begin) * size,
                   d->dh + (r * l->output_stride + begin) * size, (size_t)(n * size));
        l->kernels->add(&(fl_add_args){.rows = rows.end - rows.begin,
                                       .n = n,
                                       .a = p.dy,
                                       .a_offset = p.dy_offset + begin,
                                       .out = d->dh_new_out + row + rows.begin,
                                       .out_offset = begin});
        return;
    }
    if (l->cell->phases == 2) p.between = d->between + (row + rows.begin) * l->hidden_stride * size;
    if (p.begin < p.end) l->backward[l->cell->phases - 1](&p);
}

static bool has_second_half(const fl_layer *l) { return l->config.proj_size || l->cell->phases == 2; }

static void second_half(const backward_call *call, const share *s, int64_t step) {
    const back_direction *d = call->d;
    const fl_layer *l = call->layer;
    const fl_range rows = active_rows(call, s, step);
    const int64_t row = segment_row(call, d, step) + rows.begin;
    if (rows.begin >= rows.end || s->units.begin >= s->units.end) return;
    fl_cell_backward_args p = cell_args(call, d, s, rows, step);
    if (l->config.proj_size) {
        pull_wide(call, d, s, rows, &d->back->projection, d->dh_new_rows + row);
        p.dh = d->wide + rows.begin * l->hidden_stride * l->kernels->element_bytes;
        p.dy = NULL;
        p.between = d->between + row * l->hidden_stride * l->kernels->element_bytes;
    } else pull_wide(call, d, s, rows, &d->back->recurrent[2], d->dz_rows[2] + row);
    l->backward[0](&p);
}

/* --- after a segment --- */

/* Where the segment's rows came from. */
static void find_rows(const backward_call *call, back_direction *d, int64_t direction, int64_t step) {
    const fl_layer *l = call->layer;
    const fl_tape *t = call->tape;
    const fl_sequence *q = &t->sequence;
    const fl_gradients *g = call->g;
    const int64_t size = l->kernels->element_bytes, first = segment_row(call, d, step);
    const int64_t out_bytes = l->output_stride * size, hidden_bytes = l->hidden_stride * size;
    const bool backwards = direction == 1 || l->config.reverse;
    const char *h = fl_memory_h(l, d->memory, step);
    const char *c = d->memory->c ? fl_memory_c(l, d->memory, step) : NULL;
    const char *c_new = c ? fl_memory_c(l, d->memory, step + 1) : NULL;
    for (int64_t r = 0; r < active_at(t, step); r++) {
        const int64_t b = t->order[r], at = backwards ? t->length[b] - 1 - step : step, row = first + r;
        d->x_rows[row] = (const char *)q->x + (at * q->x_stride_t + b * q->x_stride_b) * size;
        if (g->dx) d->dx_rows[row] = (char *)g->dx + (at * g->dx_stride_t + b * g->dx_stride_b) * size;
        d->h_rows[row] = h + r * out_bytes;
        if (c) d->c_rows[row] = c + r * hidden_bytes;
        if (c) d->c_new_rows[row] = c_new + r * hidden_bytes;
        if (!t->every) continue; /* else the next block's steps will take their place */
        d->h_rows[row] = memcpy(d->h_copy + row * out_bytes, h + r * out_bytes, (size_t)out_bytes);
        if (!c) continue;
        d->c_rows[row] = memcpy(d->c_copy + 2 * row * hidden_bytes, c + r * hidden_bytes, (size_t)hidden_bytes);
        d->c_new_rows[row] =
            memcpy(d->c_copy + (2 * row + 1) * hidden_bytes, c_new + r * hidden_bytes, (size_t)hidden_bytes);
    }
}

/* A worker's part of weight rows [row, row + units) += dz block^T b, and of the bias. */
static void add_outer(const backward_call *call, int64_t depth, const char *dz, int64_t stride, fl_range m,
                      const void *const *b, int64_t n, void *out) {
    const fl_kernels *k = call->layer->kernels;
    const int64_t size = k->element_bytes;
    if (!out || m.begin >= m.end) return;
    k->outer(&(fl_outer_args){.depth = depth,
                              .m = m.end - m.begin,
                              .n = n,
                              .a = dz + m.begin * size,
                              .a_stride = stride,
                              .b = b,
                              .out = (char *)out + m.begin * n * size,
                              .out_stride = n});
}

static void add_sum(const backward_call *call, int64_t depth, const char *dz, int64_t stride, fl_range m,
                    const void *const *b, void *out) {
    const fl_kernels *k = call->layer->kernels;
    if (!out || m.begin >= m.end) return;
    k->sum(&(fl_sum_args){.depth = depth,
                          .n = m.end - m.begin,
                          .a = dz + m.begin * k->element_bytes,
                          .a_stride = stride,
                          .b = b,
                          .b_offset = m.begin,
                          .out = (char *)out + m.begin * k->element_bytes});
}

/* A gradient from some byte on; NULL for what is not wanted, or what the layer has not. */
static void *past(const fl_gradient *g, int64_t bytes) { return g->data && g->count ? (char *)g->data + bytes : NULL; }

/* Gates in a row whose blocks of dz are in a row too: their weights are one matrix. */
static int64_t run_of(const fl_cell *cell, bool recurrent, int64_t gate) {
    int64_t n = 1;
    if (cell->phases == 2 && recurrent) return gate < 2 ? 2 - gate : 1;
    while (gate + n < cell->gates && (!recurrent || cell->recurrent_delta[gate + n] == cell->recurrent_delta[gate] + n))
        n++;
    return n;
}

static void weight_gradients(const backward_call *call, const back_direction *d, int64_t depth, int64_t slice,
                             int64_t slices) {
    const fl_layer *l = call->layer;
    const fl_cell *cell = l->cell;
    const fl_weight_gradients *w = &call->g->weights[d - call->direction];
    const int64_t size = l->kernels->element_bytes, H = l->config.hidden_size, P = l->output_size;
    const int64_t stride = d->dz_stride, I = call->inputs, tile = 12; /* rows, of every path's tile a multiple */
    for (int64_t gate = 0, n; gate < cell->gates; gate += n) {
        n = run_of(cell, false, gate);
        const char *dz = d->dz + gate * H * size;
        const fl_range m = fl_slice(n * H, tile, slice, slices);
        add_outer(call, depth, dz, stride, m, d->x_rows, I, past(&w->weight_ih, gate * H * I * size));
        add_sum(call, depth, dz, stride, m, NULL, past(&w->bias_ih, gate * H * size));
    }
    for (int64_t gate = 0, n; gate < cell->gates; gate += n) {
        n = run_of(cell, true, gate);
        const char *dz = d->dz + cell->recurrent_delta[gate] * H * size;
        const fl_range m = fl_slice(n * H, tile, slice, slices);
        const void *const *h = cell->phases == 2 && gate == 2 ? d->between_rows : d->h_rows;
        add_outer(call, depth, dz, stride, m, h, P, past(&w->weight_hh, gate * H * P * size));
        add_sum(call, depth, dz, stride, m, NULL, past(&w->bias_hh, gate * H * size));
    }
    if (l->config.proj_size)
        add_outer(call, depth, d->dh_new, l->output_stride, fl_slice(P, tile, slice, slices), d->between_rows, H,
                  w->weight_hr.data);
    if (l->config.peepholes) {
        const fl_range m = fl_slice(H, tile, slice, slices);
        add_sum(call, depth, d->dz, stride, m, d->c_rows, w->weight_peephole.data);
        add_sum(call, depth, d->dz + H * size, stride, m, d->c_rows, past(&w->weight_peephole, H * size));
        add_sum(call, depth, d->dz + 3 * H * size, stride, m, d->c_new_rows, past(&w->weight_peephole, 2 * H * size));
    }
}

/* dx = W_ih^T dz, for a worker's rows of the segment */
static void input_gradients(const backward_call *call, const back_direction *d, fl_range rows) {
    const fl_layer *l = call->layer;
    const int64_t size = l->kernels->element_bytes, I = call->inputs, n = rows.end - rows.begin;
    if (!call->g->dx || n <= 0) return;
    const fl_matrix *matrix[4];
    const void *const *a[4];
    for (int64_t g = 0; g < l->cell->gates; g++) {
        matrix[g] = &d->back->input[g];
        a[g] = d->dz_rows[g] + rows.begin;
    }
    char *dx = d->dx + rows.begin * d->dx_stride * size;
    fl_product_args p = {.rows = n, .start = d->back->zeros, .out = dx, .out_stride = d->dx_stride};
    product(l->kernels, &p, matrix, a, l->cell->gates, (fl_range){0, I});
    if (l->directions == 1) {
        for (int64_t r = 0; r < n; r++)
            memcpy(d->dx_rows[rows.begin + r], dx + r * d->dx_stride * size, (size_t)(I * size));
        return;
    }
    for (int64_t r = 0; r < n; r++) { /* the other direction's is there already, or zeros */
        const void *row = dx + r * d->dx_stride * size;
        l->kernels->add(&(fl_add_args){.rows = 1, .n = I, .a = &row, .out = d->dx_rows + rows.begin + r});
    }
}

/* --- stages --- */

static void stage_first_half(void *context, int64_t slice, int64_t slices, int64_t worker) {
    (void)worker;
    const backward_call *call = context;
    const share s = share_of(call, slice, slices);
    first_half(call, &s, call->step);
}

static void stage_second_half(void *context, int64_t slice, int64_t slices, int64_t worker) {
    (void)worker;
    const backward_call *call = context;
    const share s = share_of(call, slice, slices);
    second_half(call, &s, call->step);
}

/* Some steps of a segment, for a worker's rows. */
static void stage_rows(void *context, int64_t slice, int64_t slices, int64_t worker) {
    (void)worker;
    const backward_call *call = context;
    const share s = share_of(call, slice, slices);
    for (int64_t step = call->block_end; step-- > call->block_first;) {
        first_half(call, &s, step);
        if (has_second_half(call->layer)) second_half(call, &s, step);
    }
}

static void stage_segment(void *context, int64_t slice, int64_t slices, int64_t worker) {
    (void)worker;
    const backward_call *call = context;
    const back_direction *d = call->d;
    const share s = share_of(call, slice, slices);
    const int64_t depth = call->tape->place[d->end] - call->tape->place[d->first];
    pull_dh(call, d, &s, d->first);
    weight_gradients(call, d, depth, slice, slices);
    input_gradients(call, d, fl_slice(depth, TILE_ROWS, slice, slices));
}

/* --- the loop --- */

static void run_steps(backward_call *call, fl_team *team, int64_t first, int64_t end) {
    if (fl_team_slices(team) == 1 || call->split == FL_SPLIT_BATCH) {
        call->block_first = first;
        call->block_end = end;
        fl_team_stage(team, stage_rows, call);
        return;
    }
    for (call->step = end; call->step-- > first;) {
        fl_team_stage(team, stage_first_half, call);
        if (has_second_half(call->layer)) fl_team_stage(team, stage_second_half, call);
    }
}

/* Steps [first, end) of one direction; a segment may begin in one call and end in another. */
static void run_direction(backward_call *call, int64_t direction, fl_team *team, int64_t first, int64_t end) {
    const int64_t *place = call->tape->place;
    back_direction *d = call->d = &call->direction[direction];
    while (end > first) {
        if (d->first == end) { /* a new segment */
            d->end = end;
            while (d->first > 0 && place[d->end] - place[d->first] < SEGMENT_ROWS) d->first--;
        }
        const int64_t begin = d->first > first ? d->first : first;
        run_steps(call, team, begin, end);
        for (int64_t step = begin; step < end; step++) find_rows(call, d, direction, step);
        if (begin == d->first) fl_team_stage(team, stage_segment, call);
        end = begin;
    }
}

typedef struct block_run {
    backward_call *call;
    int64_t first, end;
} block_run;

static void run_block(void *context, fl_team *team) {
    const block_run *b = context;
    for (int64_t i = 0; i < b->call->layer->directions; i++) run_direction(b->call, i, team, b->first, b->end);
}

static void run_in_parallel(backward_call *call, int64_t first, int64_t end) {
    block_run b = {call, first, end};
    const fl_fp_mode mode = fl_fp_begin();
    fl_parallel_stages(call->split == FL_SPLIT_NONE ? 1 : call->threads, run_block, &b);
    fl_fp_end(mode);
}

static fl_status run_blocks(backward_call *call) {
    fl_tape *t = call->tape;
    if (!t->every) {
        for (int64_t i = 0; i < call->layer->directions; i++) call->direction[i].memory = &t->memory[i];
        if (t->steps) run_in_parallel(call, 0, t->steps);
        return FL_OK;
    }
    fl_status status = FL_OK;
    for (int64_t block = (t->steps + t->every - 1) / t->every; !status && block-- > 0;) {
        const int64_t first = block * t->every, last = first + t->every, end = last < t->steps ? last : t->steps;
        fl_memory again[2] = {{0}};
        int64_t bytes = 0;
        for (int64_t i = 0; i < call->layer->directions; i++) {
            if (!fl_memory_create(t, first, end, &again[i], &bytes))
                status = fl_fail(FL_NO_MEMORY, "backward: no memory to run %lld steps again", (long long)(end - first));
            call->direction[i].memory = &again[i];
        }
        if (!status) status = fl_forward_again(t, block, again);
        if (!status) run_in_parallel(call, first, end);
        for (int i = 0; i < 2; i++) fl_memory_free(call->layer, &again[i]);
    }
    return status;
}

/* --- the public entry --- */

typedef struct expected {
    const char *name;
    const fl_gradient *gradient;
    int64_t rows, columns;
} expected;

/* Checks the arrays; or sets them to zero, when all are right. */
static fl_status visit_weights(const backward_call *call, int64_t direction, bool clear) {
    const fl_layer *l = call->layer;
    const fl_config *c = &l->config;
    const int64_t rows = l->cell->gates * c->hidden_size;
    const fl_weight_gradients *w = &call->g->weights[direction];
    const expected all[] = {
        {"weight_ih", &w->weight_ih, rows, call->inputs},
        {"weight_hh", &w->weight_hh, rows, l->output_size},
        {"bias_ih", &w->bias_ih, c->bias ? rows : 0, 1},
        {"bias_hh", &w->bias_hh, c->bias ? rows : 0, 1},
        {"weight_hr", &w->weight_hr, c->proj_size, c->hidden_size},
        {"weight_peephole", &w->weight_peephole, c->peepholes ? 3 : 0, c->hidden_size},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        const int64_t wanted = all[i].rows * all[i].columns;
        if (!all[i].gradient->data) continue;
        if (clear) memset(all[i].gradient->data, 0, (size_t)(wanted * l->kernels->element_bytes));
        else if (all[i].gradient->count != wanted)
            return fl_fail(FL_BAD_ARGUMENT, "%s of direction %lld: %lld elements, wanted %lld", all[i].name,
                           (long long)direction, (long long)all[i].gradient->count, (long long)wanted);
    }
    return FL_OK;
}

static void clear_dx(const backward_call *call) {
    const fl_gradients *g = call->g;
    const fl_tape *t = call->tape;
    const int64_t size = call->layer->kernels->element_bytes;
    for (int64_t b = 0; g->dx && b < t->sequence.B; b++)
        for (int64_t step = call->layer->directions == 1 ? t->length[b] : 0; step < t->sequence.T; step++)
            memset((char *)g->dx + (step * g->dx_stride_t + b * g->dx_stride_b) * size, 0,
                   (size_t)(call->inputs * size));
}

static int64_t longest_segment(const fl_tape *t) {
    int64_t most = 0;
    for (int64_t end = t->steps, first; end > 0; end = first) {
        for (first = end; first > 0 && t->place[end] - t->place[first] < SEGMENT_ROWS;) first--;
        if (t->place[end] - t->place[first] > most) most = t->place[end] - t->place[first];
    }
    return most;
}

static fl_status run_backward(backward_call *call, char **memory) {
    fl_tape *t = call->tape;
    const fl_layer *l = call->layer;
    const int64_t D = l->directions;
    fl_status status;
    call->threads = fl_get_num_threads();
    if (call->threads < 0) return FL_BAD_ARGUMENT;
    for (int64_t i = 0; i < D; i++) {
        back_direction *d = &call->direction[i];
        d->weights = &t->pack->direction[t->index * D + i];
        call->inputs = d->weights->input.depth;
        if (!(d->back = fl_direction_back(l, d->weights))) return FL_NO_MEMORY;
        if ((status = visit_weights(call, i, false))) return status;
    }
    for (int64_t i = 0; i < D; i++) visit_weights(call, i, true);
    clear_dx(call);
    call->segment_rows = longest_segment(t);
    fl_arena a = {NULL, 0};
    for (int64_t i = 0; i < D; i++) lay_out(call, &call->direction[i], &a);
    if (!(*memory = fl_take_block(l, a.used)))
        return fl_fail(FL_NO_MEMORY, "backward: no memory for %lld bytes of work space", (long long)a.used);
    a = (fl_arena){*memory, 0};
    for (int64_t i = 0; i < D; i++) {
        lay_out(call, &call->direction[i], &a);
        begin_direction(call, &call->direction[i], i);
    }
    const double us =
        2 * fl_estimate_steps_us(l, (double)t->place[t->steps], t->sequence.B) / (double)l->config.num_layers;
    /* A step has two halves, each with its barrier. */
    call->split = fl_choose_split(l, 2 * t->steps * D, t->sequence.B, us < SMALL_US ? 0 : us, &call->threads);
    call->begin = malloc((size_t)(call->threads + 1) * sizeof *call->begin);
    if (!call->begin) return fl_fail(FL_NO_MEMORY, "backward: no memory");
    fl_share_rows(t->sequence.B, t->order, t->length, call->threads, call->begin);
    status = run_blocks(call);
    for (int64_t i = 0; i < D && !status; i++) end_direction(call, &call->direction[i], i);
    return status;
}

fl_status fl_backward(fl_tape *tape, const fl_gradients *g) {
    if (!tape) return fl_fail(FL_BAD_ARGUMENT, "tape: NULL");
    if (!g) return fl_fail(FL_BAD_ARGUMENT, "gradients: NULL");
    if (g->size != sizeof *g) return fl_fail(FL_BAD_ARGUMENT, "gradients: size is not sizeof(fl_gradients)");
    if (tape->place[tape->steps] && !g->dy) return fl_fail(FL_BAD_ARGUMENT, "dy: NULL");
    const int64_t T = tape->sequence.T, B = tape->sequence.B;
    fl_status status = fl_check_strides("dy", g->dy_stride_t, T, g->dy_stride_b, B);
    if (!status && g->dx) status = fl_check_strides("dx", g->dx_stride_t, T, g->dx_stride_b, B);
    if (status) return status;
    fl_pack *now = fl_layer_pack(tape->layer);
    fl_pack_release(now); /* ours keeps its own reference: its address is not given to another */
    if (now != tape->pack)
        return fl_fail(FL_STALE, "tape: the layer's weights have been set since it was recorded; record again");
    backward_call call = {.tape = tape, .g = g, .layer = tape->layer};
    char *memory = NULL;
    status = run_backward(&call, &memory);
    free(call.begin);
    fl_give_block(tape->layer, memory);
    return status;
}
