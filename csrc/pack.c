/* Weights in the order in which the kernels read them: columns by blocks of units (kernels.h), panels of vectors. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* The row of the source that is packed column n. */
static int64_t row_of_column(const fl_source *s, int64_t lanes, int64_t n) {
    const int64_t whole = s->units / lanes * lanes;
    int64_t width = lanes, unit = 0;
    if (n >= whole * s->gates) {
        n -= whole * s->gates;
        unit = whole;
        width = s->units - whole;
    } else {
        unit = n / (lanes * s->gates) * lanes;
        n %= lanes * s->gates;
    }
    return (s->first + n / width) * s->units + unit + n % width;
}

static fl_status out_of_memory(void) { return fl_fail(FL_NO_MEMORY, "weights: no memory to pack them"); }

enum { INT8_GROUP = 4, INT8_TILE = 64 }; /* k that lie together, and in a tile: integer_template.h, integer_tiles.h */

static int64_t packed_depth(const fl_format *f, int64_t depth) {
    if (f->type != FL_INT8) return depth;
    return fl_round_up(depth, depth > 2 * INT8_TILE ? INT8_TILE : INT8_GROUP);
}

fl_format fl_full_format(const fl_kernels *k) {
    return (fl_format){k->lanes, k->panel_vecs, FL_FULL, k->element_bytes, 0};
}

/* Where in a panel `width` columns wide weight k of column j lies. */
static int64_t place_in_panel(const fl_format *f, int64_t width, int64_t k, int64_t j) {
    const int64_t vec = j / f->lanes;
    if (f->type == FL_BFLOAT16 && (vec | 1) < width / f->lanes) /* of a pair */
        return k * width + (vec & ~(int64_t)1) * f->lanes + j % f->lanes * 2 + vec % 2;
    if (f->type == FL_INT8) return (k / INT8_GROUP * width + j) * INT8_GROUP + k % INT8_GROUP;
    return k * width + j;
}

/* The scale of each packed column, and what its sum begins with: minus what the activations' offset adds to it. */
static fl_status pack_scales(const fl_format *f, const fl_source *s, fl_matrix *m) {
    const int64_t columns = s->gates * s->units, padded = m->vecs * f->lanes;
    m->scale = fl_os_alloc(padded * (int64_t)sizeof *m->scale);
    m->first = fl_os_alloc(padded * (int64_t)sizeof *m->first);
    if (!m->scale || !m->first) return out_of_memory();
    for (int64_t n = 0; n < padded; n++) {
        m->scale[n] = 0;
        m->first[n] = 0;
        if (n >= columns) continue;
        const int64_t row = row_of_column(s, f->lanes, n);
        int32_t sum = 0; /* at most FL_MOST_INT8 * 128 */
        for (int64_t i = 0; i < s->depth; i++) sum += ((const int8_t *)s->data)[row * s->depth + i];
        m->scale[n] = s->scale[row];
        m->first[n] = (int32_t)(-(int64_t)f->offset * sum);
    }
    return FL_OK;
}

fl_status fl_pack_matrix(const fl_format *f, const fl_source *s, fl_matrix *matrix) {
    const int64_t size = f->weight_bytes, columns = s->gates * s->units;
    matrix->depth = packed_depth(f, s->depth);
    matrix->vecs = fl_round_up(columns, f->lanes) / f->lanes;
    matrix->weight_bytes = f->weight_bytes;
    int64_t bytes;
    if (!fl_mul(matrix->vecs * f->lanes * size, matrix->depth, &bytes)) return out_of_memory();
    matrix->data = fl_os_alloc(bytes);
    if (!matrix->data) return out_of_memory();
    char *out = matrix->data;
    const int64_t panel_columns = f->panel_vecs * f->lanes;
    for (int64_t n0 = 0; n0 < matrix->vecs * f->lanes; n0 += panel_columns) {
        const int64_t left = matrix->vecs * f->lanes - n0, width = left < panel_columns ? left : panel_columns;
        for (int64_t j = 0; j < width; j++) {
            const bool real = n0 + j < columns;
            const char *row = real ? s->data + row_of_column(s, f->lanes, n0 + j) * s->depth * size : NULL;
            for (int64_t i = 0; i < matrix->depth; i++) {
                char *to = out + place_in_panel(f, width, i, j) * size;
                if (!real || i >= s->depth) memset(to, 0, (size_t)size);
                else if (size == 4) memcpy(to, row + i * 4, 4);
                else memcpy(to, row + i * size, (size_t)size);
            }
        }
        out += width * matrix->depth * size;
    }
    return f->type == FL_INT8 ? pack_scales(f, s, matrix) : FL_OK;
}

void fl_free_matrix(fl_matrix *matrix) {
    fl_os_free(matrix->data);
    fl_os_free(matrix->scale);
    fl_os_free(matrix->first);
}

fl_status fl_pack_bias(const fl_kernels *k, fl_source s, const void *a, const void *b, void **bias) {
    const int64_t columns = s.gates * s.units, vecs = fl_round_up(columns, k->lanes);
    *bias = fl_os_alloc(vecs * k->element_bytes);
    if (!*bias) return out_of_memory();
    memset(*bias, 0, (size_t)(vecs * k->element_bytes));
    for (int64_t n = 0; n < columns && a; n++) {
        const int64_t row = row_of_column(&s, k->lanes, n);
        if (k->element_bytes == 4)
            ((float *)*bias)[n] = b ? ((const float *)a)[row] + ((const float *)b)[row] : ((const float *)a)[row];
        else ((double *)*bias)[n] = b ? ((const double *)a)[row] + ((const double *)b)[row] : ((const double *)a)[row];
    }
    return FL_OK;
}

static fl_status pack_direction(const fl_layer *layer, const fl_weights *w, int64_t inputs, fl_direction *d) {
    const fl_kernels *k = layer->kernels;
    const fl_cell *cell = layer->cell;
    const int64_t H = layer->config.hidden_size, P = layer->output_size, size = k->element_bytes;
    const fl_format *f = &layer->format;
    d->inputs = inputs;
    const fl_source all = {w->weight_ih.data, H, inputs, 0, cell->gates, w->scale_ih.data};
    fl_status status = fl_pack_matrix(f, &all, &d->input);
    if (status) return status;
    const void *second = cell->separate ? NULL : w->bias_hh.data;
    if ((status = fl_pack_bias(k, all, w->bias_ih.data, second, &d->bias))) return status;
    for (int p = 0; p < cell->phases; p++) {
        const fl_source s = {w->weight_hh.data, H, P, cell->phase[p].first_gate, cell->phase[p].gates,
                             w->scale_hh.data};
        if ((status = fl_pack_matrix(f, &s, &d->recurrent[p]))) return status;
        if (cell->separate && (status = fl_pack_bias(k, s, w->bias_hh.data, NULL, &d->start[p]))) return status;
    }
    if (layer->config.proj_size) {
        const fl_source s = {w->weight_hr.data, P, H, 0, 1, w->scale_hr.data};
        if ((status = fl_pack_matrix(f, &s, &d->projection))) return status;
        if ((status = fl_pack_bias(k, s, NULL, NULL, &d->zeros))) return status;
    }
    if (layer->config.peepholes) {
        const int64_t stride = layer->hidden_stride * size;
        d->peephole = fl_os_alloc(3 * stride);
        if (!d->peephole) return out_of_memory();
        memset(d->peephole, 0, (size_t)(3 * stride));
        for (int64_t i = 0; i < 3; i++)
            memcpy((char *)d->peephole + i * stride, (const char *)w->weight_peephole.data + i * H * size,
                   (size_t)(H * size));
    }
    return FL_OK;
}

static fl_status check_array(const fl_array *array, const char *name, int64_t item, int64_t rows, int64_t columns) {
    int64_t count;
    if (!fl_mul(rows, columns, &count)) return fl_fail(FL_BAD_ARGUMENT, "%s: too large", name);
    if (array->count != count || (!array->data && count))
        return fl_fail(FL_BAD_ARGUMENT, "%s of direction %lld: %lld elements%s, wanted %lld", name, (long long)item,
                       (long long)array->count, array->data ? "" : " at NULL", (long long)count);
    return FL_OK;
}

/* The products' bounds rest on magnitudes of at most 127. */
static fl_status check_int8(const fl_weights *w, int64_t item) {
    const fl_array *arrays[] = {&w->weight_ih, &w->weight_hh, &w->weight_hr};
    static const char *const names[] = {"weight_ih", "weight_hh", "weight_hr"};
    for (int a = 0; a < 3; a++)
        for (int64_t i = 0; i < arrays[a]->count; i++)
            if (((const int8_t *)arrays[a]->data)[i] == -128)
                return fl_fail(FL_BAD_ARGUMENT, "%s of direction %lld: -128 at element %lld, wanted -127 to 127",
                               names[a], (long long)item, (long long)i);
    return FL_OK;
}

static fl_status check_weights(const fl_layer *layer, const fl_weights *w, int64_t item, int64_t inputs) {
    const fl_config *c = &layer->config;
    const int64_t rows = layer->cell->gates * c->hidden_size;
    fl_status status;
    if (w->size != sizeof *w) return fl_fail(FL_BAD_ARGUMENT, "weights: size is not sizeof(fl_weights)");
    if ((status = check_array(&w->weight_ih, "weight_ih", item, rows, inputs))) return status;
    if ((status = check_array(&w->weight_hh, "weight_hh", item, rows, layer->output_size))) return status;
    if ((status = check_array(&w->bias_ih, "bias_ih", item, c->bias ? rows : 0, 1))) return status;
    if ((status = check_array(&w->bias_hh, "bias_hh", item, c->bias ? rows : 0, 1))) return status;
    if ((status = check_array(&w->weight_hr, "weight_hr", item, c->proj_size, c->hidden_size))) return status;
    if ((status = check_array(&w->weight_peephole, "weight_peephole", item, c->peepholes ? 3 : 0, c->hidden_size)))
        return status;
    const bool scaled = c->weight_type == FL_INT8;
    if ((status = check_array(&w->scale_ih, "scale_ih", item, scaled ? rows : 0, 1))) return status;
    if ((status = check_array(&w->scale_hh, "scale_hh", item, scaled ? rows : 0, 1))) return status;
    if ((status = check_array(&w->scale_hr, "scale_hr", item, scaled ? c->proj_size : 0, 1))) return status;
    return scaled ? check_int8(w, item) : FL_OK;
}

fl_status fl_pack_create(const fl_layer *layer, const fl_weights *weights, fl_pack **pack) {
    const int64_t count = layer->config.num_layers * layer->directions;
    for (int64_t i = 0; i < count; i++) {
        const int64_t inputs =
            i < layer->directions ? layer->config.input_size : layer->directions * layer->output_size;
        const fl_status status = check_weights(layer, &weights[i], i, inputs);
        if (status) return status;
    }
    fl_pack *p = calloc(1, sizeof *p + (size_t)count * sizeof p->direction[0]);
    if (!p) return out_of_memory();
    atomic_init(&p->references, 1);
    p->count = count;
    for (int64_t i = 0; i < count; i++) {
        fl_direction *d = &p->direction[i];
        fl_weights w = weights[i];
        if (!layer->config.bias) w.bias_ih.data = w.bias_hh.data = NULL;
        const int64_t inputs =
            i < layer->directions ? layer->config.input_size : layer->directions * layer->output_size;
        const fl_status status = pack_direction(layer, &w, inputs, d);
        if (status) {
            fl_pack_release(p);
            return status;
        }
    }
    *pack = p;
    return FL_OK;
}

/* --- transposed, for the way back --- */

/* The packed column of a gate's unit. */
static int64_t column_of(int64_t lanes, int64_t gates, int64_t units, int64_t gate, int64_t unit) {
    const int64_t whole = units / lanes * lanes;
    if (unit >= whole) return whole * gates + gate * (units - whole) + unit - whole;
    return unit / lanes * lanes * gates + gate * lanes + unit % lanes;
}

static int64_t panel_width(const fl_kernels *k, const fl_matrix *m, int64_t panel) {
    const int64_t left = m->vecs - panel * k->panel_vecs;
    return (left < k->panel_vecs ? left : k->panel_vecs) * k->lanes;
}

bool fl_pack_transposed(const fl_kernels *k, const fl_matrix *from, int64_t gates, int64_t gate, int64_t units,
                        fl_matrix *to) {
    const int64_t size = k->element_bytes, panel_columns = k->panel_vecs * k->lanes;
    to->depth = units;
    to->weight_bytes = k->element_bytes;
    to->vecs = fl_round_up(from->depth, k->lanes) / k->lanes;
    to->data = fl_os_alloc(to->vecs * k->lanes * units * size);
    if (!to->data) return false;
    memset(to->data, 0, (size_t)(to->vecs * k->lanes * units * size));
    for (int64_t u = 0; u < units; u++) {
        const int64_t n = column_of(k->lanes, gates, units, gate, u), panel = n / panel_columns;
        const int64_t width = panel_width(k, from, panel);
        const char *source =
            (const char *)from->data + (panel * panel_columns * from->depth + n % panel_columns) * size;
        char *target = to->data;
        for (int64_t i = 0; i < from->depth; target += panel_columns * units * size) {
            const int64_t wide = panel_width(k, to, i / panel_columns);
            char *out = target + u * wide * size;
            for (int64_t j = 0; j < wide && i < from->depth; j++, i++, source += width * size) {
                if (size == 4) memcpy(out + j * 4, source, 4);
                else memcpy(out + j * 8, source, 8);
            }
        }
    }
    return true;
}

static void free_back(fl_back_pack *b) {
    if (!b) return;
    for (int g = 0; g < 4; g++) {
        fl_os_free(b->input[g].data);
        fl_os_free(b->recurrent[g].data);
    }
    fl_os_free(b->projection.data);
    fl_os_free(b->zeros);
    free(b);
}

static fl_back_pack *create_back(const fl_layer *l, const fl_direction *d) {
    const fl_cell *cell = l->cell;
    const int64_t H = l->config.hidden_size, inputs = d->input.depth;
    fl_back_pack *b = calloc(1, sizeof *b);
    bool made = b != NULL;
    for (int64_t g = 0; made && g < cell->gates; g++) {
        const int p = cell->phases == 2 && g >= cell->phase[1].first_gate;
        const fl_phase *phase = &cell->phase[p];
        made =
            fl_pack_transposed(l->kernels, &d->input, cell->gates, g, H, &b->input[g]) &&
            fl_pack_transposed(l->kernels, &d->recurrent[p], phase->gates, g - phase->first_gate, H, &b->recurrent[g]);
    }
    if (made && l->config.proj_size)
        made = fl_pack_transposed(l->kernels, &d->projection, 1, 0, l->output_size, &b->projection);
    if (made) {
        const int64_t bytes = fl_round_up(H > inputs ? H : inputs, l->kernels->lanes) * l->kernels->element_bytes;
        made = (b->zeros = fl_os_alloc(bytes)) != NULL;
        if (made) memset(b->zeros, 0, (size_t)bytes);
    }
    if (made) return b;
    free_back(b);
    return NULL;
}

const fl_back_pack *fl_direction_back(const fl_layer *layer, fl_direction *d) {
    fl_back_pack *back = atomic_load_explicit(&d->back, memory_order_acquire);
    if (back) return back;
    fl_back_pack *mine = create_back(layer, d);
    if (!mine) out_of_memory();
    else if (atomic_compare_exchange_strong(&d->back, &back, mine)) return mine;
    free_back(mine); /* another thread was faster, or there was none */
    return back;
}

void fl_pack_release(fl_pack *pack) {
    if (!pack || atomic_fetch_sub_explicit(&pack->references, 1, memory_order_acq_rel) != 1) return;
    for (int64_t i = 0; i < pack->count; i++) {
        fl_direction *d = &pack->direction[i];
        fl_matrix *matrices[] = {&d->input, &d->recurrent[0], &d->recurrent[1], &d->projection};
        for (size_t j = 0; j < sizeof matrices / sizeof matrices[0]; j++) fl_free_matrix(matrices[j]);
        void *parts[] = {d->bias, d->start[0], d->start[1], d->zeros, d->peephole};
        for (size_t j = 0; j < sizeof parts / sizeof parts[0]; j++) fl_os_free(parts[j]);
        free_back(atomic_load(&d->back));
    }
    free(pack);
}
