#include "internal.h"

#define KERNEL(op) offsetof(fl_kernels, op)
#define KERNELS(op, general_op) KERNEL(op), KERNEL(general_op), KERNEL(op##_backward), KERNEL(general_op##_backward)

/* Gate order is PyTorch's; where each cell comes from stands in its kernel's header. A new cell is a line here and a
 * kernel. */
static const fl_cell lstm = {
    .name = "lstm",
    .gates = 4,
    .phases = 1,
    .has_c = true,
    .phase = {{0, 4, KERNELS(lstm, lstm_general), 0}},
    .activations = 3,
    .default_activation = {FL_SIGMOID, FL_TANH, FL_TANH},
    .memory_gates = 4,
    .deltas = 4,
    .recurrent_delta = {0, 1, 2, 3},
};

static const fl_cell gru_reset_after = {
    .name = "gru",
    .gates = 3,
    .phases = 1,
    .separate = true,
    .phase = {{0, 3, KERNELS(gru, gru_general), KERNEL(gru_keep)}},
    .activations = 2,
    .default_activation = {FL_SIGMOID, FL_TANH},
    .memory_gates = 4,
    .deltas = 4,
    .recurrent_delta = {0, 1, 3},
    .carries = true,
};

static const fl_cell gru_reset_before = {
    .name = "gru",
    .gates = 3,
    .phases = 2,
    .separate = true,
    .phase = {{0, 2, KERNELS(gru_reset, gru_reset), KERNEL(gru_reset_keep)},
              {2, 1, KERNELS(gru_candidate, gru_candidate), KERNEL(gru_candidate_keep)}},
    .activations = 2,
    .default_activation = {FL_SIGMOID, FL_TANH},
    .memory_gates = 3,
    .deltas = 3,
    .recurrent_delta = {0, 1, 2},
    .carries = true,
};

static const fl_cell rnn = {
    .name = "rnn",
    .gates = 1,
    .phases = 1,
    .phase = {{0, 1, KERNELS(rnn, rnn_general), 0}},
    .activations = 1,
    .default_activation = {FL_TANH},
    .memory_gates = 1,
    .deltas = 1,
    .recurrent_delta = {0},
};

static const fl_cell gated_rnn = {
    .name = "gated_rnn",
    .gates = 2,
    .phases = 1,
    .phase = {{0, 2, KERNELS(gated_rnn, gated_rnn_general), 0}},
    .activations = 2,
    .default_activation = {FL_SIGMOID, FL_TANH},
    .memory_gates = 2,
    .deltas = 2,
    .recurrent_delta = {0, 1},
    .carries = true,
};

const fl_cell *fl_cell_of(const fl_config *config) {
    switch (config->cell) {
    case FL_LSTM: return &lstm;
    case FL_GRU: return config->reset_after ? &gru_reset_after : &gru_reset_before;
    case FL_RNN: return &rnn;
    case FL_GATED_RNN: return &gated_rnn;
    }
    return NULL;
}
