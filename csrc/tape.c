/* A tape: what one layer's forward pass leaves for fl_backward. Per valid step and direction a row of gate columns, the
 * output h, and c if the cell has one: at most (gates + 2) H numbers, rows rounded up to whole vectors. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

bool fl_memory_create(const fl_tape *tape, int64_t first, int64_t end, fl_memory *m, int64_t *bytes) {
    const fl_layer *l = tape->layer;
    const int64_t size = l->kernels->element_bytes, rows = tape->place[end] - tape->place[first];
    *m = (fl_memory){.rows = tape->sequence.B, .first_step = first, .place = tape->place};
    m->z_stride = fl_round_up(l->cell->memory_gates * l->config.hidden_size, l->kernels->lanes);
    const int64_t z = fl_round_up(rows * m->z_stride * size, 64);
    const int64_t h = fl_round_up((m->rows + rows) * l->output_stride * size, 64);
    const int64_t c = l->cell->has_c ? (m->rows + rows) * l->hidden_stride * size : 0;
    m->z = fl_take_block(l, z + h + c);
    if (!m->z) return false;
    m->h = m->z + z;
    m->c = c ? m->h + h : NULL;
    *bytes += rows * (m->z_stride + (c ? l->hidden_stride : 0)) * size; /* h is the output, the first rows the input */
    return true;
}

void fl_memory_free(const fl_layer *layer, fl_memory *m) { fl_give_block(layer, m->z); }

static char *check_row(const fl_tape *tape, char *rows, int64_t stride, int64_t block, int64_t row) {
    return rows + (tape->check_place[block] + row) * stride * tape->layer->kernels->element_bytes;
}

void fl_tape_keep(const fl_tape *tape, int64_t direction, int64_t block, int64_t row, const void *h, const void *c) {
    const fl_layer *l = tape->layer;
    const size_t size = (size_t)l->kernels->element_bytes;
    memcpy(check_row(tape, tape->check_h[direction], l->output_size, block, row), h, (size_t)l->output_size * size);
    if (l->cell->has_c)
        memcpy(check_row(tape, tape->check_c[direction], l->config.hidden_size, block, row), c,
               (size_t)l->config.hidden_size * size);
}

void fl_tape_kept(const fl_tape *tape, int64_t direction, int64_t block, int64_t row, const void **h, const void **c) {
    const fl_layer *l = tape->layer;
    *h = check_row(tape, tape->check_h[direction], l->output_size, block, row);
    if (l->cell->has_c) *c = check_row(tape, tape->check_c[direction], l->config.hidden_size, block, row);
}

static fl_status no_memory(void) { return fl_fail(FL_NO_MEMORY, "tape: no memory"); }

/* place[k]: rows of the steps before k. */
static bool set_places(fl_tape *tape) {
    const int64_t B = tape->sequence.B;
    tape->steps = B ? tape->length[tape->order[0]] : 0;
    tape->place = malloc((size_t)(tape->steps + 1) * sizeof *tape->place);
    if (!tape->place) return false;
    tape->place[0] = 0;
    for (int64_t k = 0, active = B; k < tape->steps; k++) {
        while (active > 0 && tape->length[tape->order[active - 1]] <= k) active--;
        tape->place[k + 1] = tape->place[k] + active;
    }
    return true;
}

static bool create_checkpoints(fl_tape *tape) {
    const fl_layer *l = tape->layer;
    const int64_t blocks = (tape->steps + tape->every - 1) / tape->every, size = l->kernels->element_bytes;
    tape->check_place = malloc((size_t)(blocks + 1) * sizeof *tape->check_place);
    if (!tape->check_place) return false;
    tape->check_place[0] = 0;
    for (int64_t i = 0; i < blocks; i++) {
        const int64_t k = i * tape->every;
        tape->check_place[i + 1] = tape->check_place[i] + tape->place[k + 1] - tape->place[k];
    }
    const int64_t h = tape->check_place[blocks] * l->output_size * size;
    const int64_t c = l->cell->has_c ? tape->check_place[blocks] * l->config.hidden_size * size : 0;
    for (int64_t d = 0; d < l->directions; d++) {
        tape->check_h[d] = fl_os_alloc(h);
        tape->check_c[d] = fl_os_alloc(c);
        if (!tape->check_h[d] || !tape->check_c[d]) return false;
        tape->bytes += h + c;
    }
    return true;
}

static fl_status fill(fl_tape *tape) {
    const int64_t B = tape->sequence.B;
    int64_t steps;
    tape->length = fl_take_lengths(&tape->sequence, &steps);
    if (!tape->length) return steps < 0 ? FL_BAD_ARGUMENT : FL_NO_MEMORY;
    tape->order = malloc((size_t)(B ? B : 1) * sizeof *tape->order);
    if (!tape->order || !fl_sort_rows(B, tape->length, tape->order) || !set_places(tape)) return no_memory();
    if (tape->every > tape->steps) tape->every = tape->steps;
    tape->pack = fl_layer_pack(tape->layer);
    if (!tape->pack) return FL_NO_WEIGHTS;
    if (tape->every && !create_checkpoints(tape)) return no_memory();
    for (int64_t d = 0; d < tape->layer->directions && !tape->every; d++)
        if (!fl_memory_create(tape, 0, tape->steps, &tape->memory[d], &tape->bytes)) return no_memory();
    return FL_OK;
}

fl_status fl_tape_create(const fl_layer *layer, int64_t index, const fl_sequence *q, int64_t every, fl_tape **out) {
    fl_tape *tape = calloc(1, sizeof *tape);
    if (!tape) return no_memory();
    tape->layer = fl_layer_retain(layer);
    tape->index = index;
    tape->sequence = *q;
    tape->every = every;
    const fl_status status = fill(tape);
    if (status) fl_tape_free(tape);
    else *out = tape;
    return status;
}

int64_t fl_tape_bytes(const fl_tape *tape) { return tape ? tape->bytes : 0; }

void fl_tape_free(fl_tape *tape) {
    if (!tape) return;
    for (int d = 0; d < 2; d++) {
        fl_memory_free(tape->layer, &tape->memory[d]);
        fl_os_free(tape->check_h[d]);
        fl_os_free(tape->check_c[d]);
    }
    free(tape->check_place);
    free(tape->place);
    free(tape->order);
    free(tape->length);
    fl_pack_release(tape->pack);
    fl_free(tape->layer);
    free(tape);
}
