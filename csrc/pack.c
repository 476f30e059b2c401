/* Weights in the order in which the kernels read them: columns by blocks of units (kernels.h), panels of vectors. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

/* A source matrix: rows gate * H + unit from `first` on, `gates` gates of `units` rows, `depth` columns. */
typedef struct source {
    const char *data;
    int64_t units, depth;
    int32_t first, gates;
} source;

/* The row of the source that is packed column n. */
static int64_t row_of_column(const source *s, int64_t lanes, int64_t n) {
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

static fl_status pack_matrix(const fl_kernels *k, const source *s, fl_matrix *matrix) {
    const int64_t size = k->element_bytes, columns = s->gates * s->units;
    matrix->depth = s->depth;
    matrix->vecs = fl_round_up(columns, k->lanes) / k->lanes;
    int64_t bytes;
    if (!fl_mul(matrix->vecs * k->lanes * size, s->depth, &bytes)) return out_of_memory();
    matrix->data = fl_os_alloc(bytes);
    if (!matrix->data) return out_of_memory();
    char *out = matrix->data;
    const int64_t panel_columns = k->panel_vecs * k->lanes;
    for (int64_t n0 = 0; n0 < matrix->vecs * k->lanes; n0 += panel_columns) {
        const int64_t left = matrix->vecs * k->lanes - n0, width = left < panel_columns ? left : panel_columns;
        for (int64_t j = 0; j < width; j++) {
            const bool real = n0 + j < columns;
            const char *row = real ? s->data + row_of_column(s, k->lanes, n0 + j) * s->depth * size : NULL;
            for (int64_t i = 0; i < s->depth; i++) {
                char *to = out + (i * width + j) * size;
                if (!real) memset(to, 0, (size_t)size);
                else if (size == 4) memcpy(to, row + i * 4, 4);
                else memcpy(to, row + i * 8, 8);
            }
        }
        out += width * s->depth * size;
    }
    return FL_OK;
}

/* The sum of up to two biases in packed columns; zeros where there is none. */
static fl_status pack_bias(const fl_kernels *k, source s, const void *a, const void *b, void **bias) {
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
    fl_status status = pack_matrix(k, &(source){w->weight_ih.data, H, inputs, 0, cell->gates}, &d->input);
    if (status) return status;
    const source all = {NULL, H, 0, 0, cell->gates};
    const void *second = cell->separate ? NULL : w->bias_hh.data;
    if ((status = pack_bias(k, all, w->bias_ih.data, second, &d->bias))) return status;
    for (int p = 0; p < cell->phases; p++) {
        const source s = {w->weight_hh.data, H, P, cell->phase[p].first_gate, cell->phase[p].gates};
        if ((status = pack_matrix(k, &s, &d->recurrent[p]))) return status;
        if (cell->separate && (status = pack_bias(k, s, w->bias_hh.data, NULL, &d->start[p]))) return status;
    }
    if (layer->config.proj_size) {
        const source s = {w->weight_hr.data, P, H, 0, 1};
        if ((status = pack_matrix(k, &s, &d->projection))) return status;
        if ((status = pack_bias(k, s, NULL, NULL, &d->zeros))) return status;
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
    return check_array(&w->weight_peephole, "weight_peephole", item, c->peepholes ? 3 : 0, c->hidden_size);
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

void fl_pack_release(fl_pack *pack) {
    if (!pack || atomic_fetch_sub_explicit(&pack->references, 1, memory_order_acq_rel) != 1) return;
    for (int64_t i = 0; i < pack->count; i++) {
        fl_direction *d = &pack->direction[i];
        void *parts[] = {d->input.data, d->recurrent[0].data, d->recurrent[1].data, d->projection.data,
                         d->bias,       d->start[0],          d->start[1],          d->zeros,
                         d->peephole};
        for (size_t j = 0; j < sizeof parts / sizeof parts[0]; j++) fl_os_free(parts[j]);
    }
    free(pack);
}
