/* A layer: its configuration, checked once, and the weights in use. */
#include "internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_UNITS = 1 << 24, MOST_LAYERS = 1 << 12 };

void fl_config_init(fl_config *c, fl_cell_kind cell, int64_t input_size, int64_t hidden_size) {
    if (!c) return;
    memset(c, 0, sizeof *c);
    c->size = sizeof *c;
    c->cell = cell;
    c->input_size = input_size;
    c->hidden_size = hidden_size;
    c->num_layers = 1;
    c->bias = c->forget_gate = c->reset_after = 1;
}

static fl_status check_size(const char *name, int64_t value, int64_t least, int64_t most) {
    if (value >= least && value <= most) return FL_OK;
    return fl_fail(FL_BAD_ARGUMENT, "%s is %lld, wanted %lld to %lld", name, (long long)value, (long long)least,
                   (long long)most);
}

static fl_status check_config(const fl_config *c) {
    fl_status status;
    if (c->size != sizeof *c) return fl_fail(FL_BAD_ARGUMENT, "config: size is not sizeof(fl_config)");
    if ((status = check_size("cell", c->cell, FL_LSTM, FL_GATED_RNN))) return status;
    if ((status = check_size("dtype", c->dtype, FL_FLOAT32, FL_FLOAT64))) return status;
    if ((status = check_size("input_size", c->input_size, 1, MOST_UNITS))) return status;
    if ((status = check_size("hidden_size", c->hidden_size, 1, MOST_UNITS))) return status;
    if ((status = check_size("proj_size", c->proj_size, 0, c->hidden_size - 1))) return status;
    if ((status = check_size("num_layers", c->num_layers, 1, MOST_LAYERS))) return status;
    if (c->bidirectional && c->reverse)
        return fl_fail(FL_BAD_ARGUMENT, "reverse: a bidirectional layer has both directions already");
    if (c->cell != FL_LSTM && (c->proj_size || c->peepholes || c->coupled_gates || !c->forget_gate))
        return fl_fail(FL_BAD_ARGUMENT, "proj_size, peepholes, forget_gate, coupled_gates: of the LSTM only");
    if (c->cell != FL_GRU && !c->reset_after) return fl_fail(FL_BAD_ARGUMENT, "reset_after: of the GRU only");
    if (c->coupled_gates && !c->forget_gate)
        return fl_fail(FL_BAD_ARGUMENT, "coupled_gates: there is no forget gate to couple");
    if (!(c->clip >= 0) || isinf(c->clip)) return fl_fail(FL_BAD_ARGUMENT, "clip: wanted 0 (none) or a finite number");
    if ((status = check_size("weight_type", c->weight_type, FL_FULL, FL_INT8))) return status;
    if (c->weight_type != FL_FULL && c->dtype != FL_FLOAT32)
        return fl_fail(FL_BAD_ARGUMENT, "weight_type: small weights are for float32 layers");
    if (c->weight_type == FL_INT8 ? c->activation_bits != 8 && c->activation_bits != 16 : c->activation_bits != 0)
        return fl_fail(FL_BAD_ARGUMENT, "activation_bits is %d, wanted %s", (int)c->activation_bits,
                       c->weight_type == FL_INT8 ? "8 or 16" : "0 unless weights are int8");
    if (c->weight_type == FL_INT8) {
        if ((status = check_size("input_size, with int8 weights,", c->input_size, 1, FL_MOST_INT8))) return status;
        if ((status = check_size("hidden_size, with int8 weights,", c->hidden_size, 1, FL_MOST_INT8 / 2)))
            return status;
    }
    const fl_cell *cell = fl_cell_of(c);
    for (int i = 0; c->own_activations && i < cell->activations; i++) {
        const fl_activation *a = &c->activations[i];
        if ((status = check_size("activation", a->kind, FL_SIGMOID, FL_SOFTPLUS))) return status;
        if (!isfinite(a->alpha) || !isfinite(a->beta))
            return fl_fail(FL_BAD_ARGUMENT, "activation %d: alpha and beta must be finite", i);
    }
    return FL_OK;
}

/* Any choice but the cell's own takes the general kernels. */
static void choose_kernels(fl_layer *layer) {
    const fl_config *c = &layer->config;
    bool general = c->clip > 0 || c->peepholes || c->coupled_gates || !c->forget_gate;
    layer->options = (fl_cell_options){
        .clip = c->clip, .forget_gate = c->forget_gate, .coupled_gates = c->coupled_gates, .peepholes = c->peepholes};
    for (int i = 0; i < layer->cell->activations; i++) {
        layer->options.act[i] = (fl_activation){.kind = layer->cell->default_activation[i]};
        if (!c->own_activations) continue;
        general = general || c->activations[i].kind != layer->cell->default_activation[i];
        layer->options.act[i] = c->activations[i];
    }
    for (int p = 0; p < layer->cell->phases; p++) {
        const fl_phase *phase = &layer->cell->phase[p];
        const char *table = (const char *)layer->kernels;
        memcpy(&layer->update[p], table + (general ? phase->general : phase->kernel), sizeof layer->update[p]);
        memcpy(&layer->backward[p], table + (general ? phase->general_backward : phase->backward),
               sizeof layer->backward[p]);
        if (phase->keep) memcpy(&layer->keep[p], table + phase->keep, sizeof layer->keep[p]);
    }
}

static fl_status choose_weights(fl_layer *layer) {
    const fl_kernels *k = layer->kernels;
    layer->format = fl_full_format(k);
    layer->format.type = (fl_weight_type)layer->config.weight_type;
    layer->product = k->product;
    if (layer->format.type == FL_BFLOAT16) {
        layer->format.weight_bytes = 2;
        layer->product = k->product_bf16;
    } else if (layer->format.type == FL_INT8) {
        layer->integers = fl_integers_for(k);
        if (!layer->integers) return FL_UNSUPPORTED;
        layer->planes = layer->config.activation_bits / 8;
        layer->format.weight_bytes = 1;
        layer->format.offset = layer->integers->offset;
        layer->product = layer->integers->product_int8;
    }
    return FL_OK;
}

fl_status fl_create(const fl_config *config, fl_layer **out) {
    if (!out) return fl_fail(FL_BAD_ARGUMENT, "layer: NULL");
    *out = NULL;
    if (!config) return fl_fail(FL_BAD_ARGUMENT, "config: NULL");
    const fl_status status = check_config(config);
    if (status) return status;
    const fl_kernels *kernels = fl_kernels_for((fl_dtype)config->dtype, config->hidden_size);
    if (!kernels) return FL_UNSUPPORTED;
    fl_layer *layer = calloc(1, sizeof *layer);
    if (!layer) return fl_fail(FL_NO_MEMORY, "layer: no memory");
    atomic_init(&layer->references, 1);
    atomic_init(&layer->version, 0);
    layer->config = *config;
    layer->cell = fl_cell_of(config);
    layer->kernels = kernels;
    layer->output_size = config->proj_size ? config->proj_size : config->hidden_size;
    layer->directions = config->bidirectional ? 2 : 1;
    layer->hidden_stride = fl_round_up(config->hidden_size, kernels->lanes);
    layer->output_stride = fl_round_up(layer->output_size, kernels->lanes);
    choose_kernels(layer);
    const fl_status chosen = choose_weights(layer);
    if (chosen) free(layer);
    else *out = layer;
    return chosen;
}

fl_layer *fl_layer_retain(const fl_layer *layer) {
    fl_layer *l = (fl_layer *)layer; /* the count is not part of what const protects */
    atomic_fetch_add_explicit(&l->references, 1, memory_order_relaxed);
    return l;
}

void fl_free(fl_layer *layer) {
    if (!layer || atomic_fetch_sub_explicit(&layer->references, 1, memory_order_acq_rel) != 1) return;
    fl_pack_release(layer->pack);
    fl_free_spares(layer);
    free(layer);
}

fl_status fl_set_weights(fl_layer *layer, const fl_weights *weights, int64_t count) {
    if (!layer) return fl_fail(FL_BAD_ARGUMENT, "layer: NULL");
    if (!weights) return fl_fail(FL_BAD_ARGUMENT, "weights: NULL");
    if (count != layer->config.num_layers * layer->directions)
        return fl_fail(FL_BAD_ARGUMENT, "count is %lld, wanted %lld", (long long)count,
                       (long long)(layer->config.num_layers * layer->directions));
    fl_pack *pack = NULL;
    const fl_status status = fl_pack_create(layer, weights, &pack);
    if (status) return status;
    fl_os_lock();
    fl_pack *old = layer->pack;
    layer->pack = pack;
    atomic_fetch_add_explicit(&layer->version, 1, memory_order_release);
    fl_os_unlock();
    fl_pack_release(old);
    return FL_OK;
}

fl_pack *fl_layer_pack(const fl_layer *layer) {
    fl_os_lock();
    fl_pack *pack = layer->pack;
    if (pack) atomic_fetch_add_explicit(&pack->references, 1, memory_order_relaxed);
    fl_os_unlock();
    if (!pack) fl_fail(FL_NO_WEIGHTS, "weights: none have been set yet");
    return pack;
}
