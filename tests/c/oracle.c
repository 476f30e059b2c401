/* Every cell through fl_forward and fl_stream_step against a naive implementation in double, with random states,
 * odd sizes and ragged lengths. tests/test_oracle_bites.py plants bugs in the core and expects this to fail. */
#include "check.h"
#include "fastlstm.h"

enum { I = 3, T = 6, B = 5, MOST_LAYERS = 2, MOST_H = 33, MOST_ITEMS = 2 * MOST_LAYERS };

typedef struct network {
    const char *name;
    fl_config c;
    int64_t P, D, gates;
    double *w_ih[MOST_ITEMS], *w_hh[MOST_ITEMS], *b_ih[MOST_ITEMS], *b_hh[MOST_ITEMS], *w_hr[MOST_ITEMS],
        *peephole[MOST_ITEMS];
} network;

static uint64_t seed = 11;

static double *random_array(int64_t n, double scale) {
    double *a = malloc(sizeof(double) * (size_t)(n ? n : 1));
    if (!a) exit(2);
    for (int64_t i = 0; i < n; i++) a[i] = random_unit(&seed) * scale;
    return a;
}

static double sigma(double x) { return 1 / (1 + exp(-x)); }

static double limit(const network *n, double x) { return n->c.clip > 0 ? fmax(-n->c.clip, fmin(n->c.clip, x)) : x; }

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* One step of one sequence: x to h and c in place. */
static void naive_step(const network *n, int64_t item, const double *x, int64_t inputs, double *h, double *c) {
    const int64_t H = n->c.hidden_size, P = n->P;
    double a[4 * MOST_H], u[4 * MOST_H], new_h[MOST_H];
    for (int64_t r = 0; r < n->gates * H; r++) {
        a[r] = dot(n->w_ih[item] + r * inputs, x, inputs) + (n->c.bias ? n->b_ih[item][r] : 0);
        u[r] = dot(n->w_hh[item] + r * P, h, P) + (n->c.bias ? n->b_hh[item][r] : 0);
    }
    const double *p = n->peephole[item];
    double reset[MOST_H];
    for (int64_t j = 0; j < H && n->c.cell == FL_GRU; j++) reset[j] = sigma(limit(n, a[j] + u[j])) * h[j];
    for (int64_t j = 0; j < H; j++) {
#define Z(gate) (a[(gate) * H + j] + u[(gate) * H + j])
        switch (n->c.cell) {
        case FL_LSTM: {
            const bool peep = n->c.peepholes;
            const double i = sigma(limit(n, Z(0) + (peep ? p[j] * c[j] : 0)));
            const double own = sigma(limit(n, Z(1) + (peep ? p[H + j] * c[j] : 0)));
            c[j] = (n->c.coupled_gates ? 1 - i : n->c.forget_gate ? own : 1) * c[j] + i * tanh(limit(n, Z(2)));
            new_h[j] = sigma(limit(n, Z(3) + (peep ? p[2 * H + j] * c[j] : 0))) * tanh(c[j]);
            break;
        }
        case FL_GRU: {
            const double r = sigma(limit(n, Z(0))), z = sigma(limit(n, Z(1))),
                         bias = n->c.bias ? n->b_hh[item][2 * H + j] : 0;
            const double before = dot(n->w_hh[item] + (2 * H + j) * P, reset, H) + bias;
            const double m = tanh(limit(n, a[2 * H + j] + (n->c.reset_after ? r * u[2 * H + j] : before)));
            new_h[j] = (1 - z) * m + z * h[j];
            break;
        }
        case FL_RNN: new_h[j] = tanh(limit(n, Z(0))); break;
        default: {
            const double g = sigma(limit(n, Z(0)));
            new_h[j] = (1 - g) * h[j] + g * tanh(limit(n, Z(1)));
        }
        }
    }
    for (int64_t j = 0; j < P; j++) h[j] = n->c.proj_size ? dot(n->w_hr[item] + j * H, new_h, H) : new_h[j];
}

static bool close(const void *got, int64_t size, int64_t i, double want) {
    return fabs(get(got, size, i) - want) <= (size == 4 ? 3e-6 : 1e-13) * fmax(1, fabs(want));
}

static void *as_type(const double *from, int64_t count, int64_t size) {
    void *to = malloc((size_t)(count ? count : 1) * 8);
    if (!to) exit(2);
    for (int64_t i = 0; i < count && from; i++) put(to, size, i, from[i]);
    if (!from) memset(to, 0xff, (size_t)count * 8);
    return to;
}

static void test(network *n, fl_dtype dtype, bool ragged) {
    const int64_t H = n->c.hidden_size, size = dtype == FL_FLOAT32 ? 4 : 8, L = n->c.num_layers;
    n->c.dtype = dtype;
    n->P = n->c.proj_size ? n->c.proj_size : H;
    n->D = n->c.bidirectional ? 2 : 1;
    static const int64_t gates[] = {4, 3, 1, 2};
    n->gates = gates[n->c.cell];
    const int64_t P = n->P, D = n->D, rows = n->gates * H, items = L * D;
    fl_weights w[MOST_ITEMS];
    for (int64_t i = 0; i < items; i++) {
        const int64_t inputs = i < D ? I : D * P;
        n->w_ih[i] = random_array(rows * inputs, 0.5);
        n->w_hh[i] = random_array(rows * P, 0.3);
        n->b_ih[i] = random_array(rows, 0.5);
        n->b_hh[i] = random_array(rows, 0.5);
        n->w_hr[i] = random_array(P * H, 0.4);
        n->peephole[i] = random_array(3 * H, 0.7);
        w[i] = (fl_weights){.size = sizeof w[i],
                            .weight_ih = {as_type(n->w_ih[i], rows * inputs, size), rows * inputs},
                            .weight_hh = {as_type(n->w_hh[i], rows * P, size), rows * P}};
        if (n->c.bias) {
            w[i].bias_ih = (fl_array){as_type(n->b_ih[i], rows, size), rows};
            w[i].bias_hh = (fl_array){as_type(n->b_hh[i], rows, size), rows};
        }
        if (n->c.proj_size) w[i].weight_hr = (fl_array){as_type(n->w_hr[i], P * H, size), P * H};
        if (n->c.peepholes) w[i].weight_peephole = (fl_array){as_type(n->peephole[i], 3 * H, size), 3 * H};
    }
    const int64_t lengths[B] = {ragged ? 4 : T, ragged ? 1 : T, T, ragged ? 0 : T, ragged ? 5 : T};
    double *x = random_array(T * B * I, 1), *h0 = random_array(items * B * P, 1), *c0 = random_array(items * B * H, 1);
    double *in = malloc(sizeof(double) * T * 2 * MOST_H), *out = malloc(sizeof(double) * T * 2 * MOST_H);
    void *x_t = as_type(x, T * B * I, size), *h_t = as_type(h0, items * B * P, size);
    void *c_t = as_type(c0, items * B * H, size), *y = as_type(NULL, T * B * D * P, size);
    void *h_n = as_type(NULL, items * B * P, size), *c_n = as_type(NULL, items * B * H, size);
    fl_layer *layer = NULL;
    check(fl_create(&n->c, &layer) == FL_OK, "%s: %s", n->name, fl_last_error());
    check(fl_set_weights(layer, w, items) == FL_OK, "%s: %s", n->name, fl_last_error());
    const bool has_c = n->c.cell == FL_LSTM;
    fl_sequence q = dense(T, B, x_t, I, y, D * P);
    q.lengths = lengths;
    q.h0 = h_t;
    q.c0 = has_c ? c_t : NULL;
    q.h_n = h_n;
    q.c_n = has_c ? c_n : NULL;
    check(fl_forward(layer, &q) == FL_OK, "%s: %s", n->name, fl_last_error());
    fl_stream *stream = NULL;
    void *steps = as_type(NULL, T * B * P, size);
    if (D == 1 && !n->c.reverse) {
        check(fl_stream_create(layer, B, h_t, has_c ? c_t : NULL, &stream) == FL_OK, "%s: %s", n->name,
              fl_last_error());
        for (int64_t t = 0; t < T; t++)
            fl_stream_step(stream, (char *)x_t + t * B * I * size, (char *)steps + t * B * P * size);
    }
    bool output = true, padding = true, state = true, streamed = true;
    for (int64_t b = 0; b < B; b++) {
        int64_t inputs = I;
        for (int64_t t = 0; t < T; t++) memcpy(in + t * inputs, x + (t * B + b) * I, sizeof(double) * I);
        for (int64_t l = 0; l < L; l++) {
            for (int64_t d = 0; d < D; d++) {
                const int64_t item = l * D + d;
                double h[MOST_H], c[MOST_H];
                memcpy(h, h0 + (item * B + b) * P, sizeof(double) * (size_t)P);
                memcpy(c, c0 + (item * B + b) * H, sizeof(double) * (size_t)H);
                for (int64_t k = 0; k < lengths[b]; k++) {
                    const int64_t t = d || n->c.reverse ? lengths[b] - 1 - k : k;
                    naive_step(n, item, in + t * inputs, inputs, h, c);
                    memcpy(out + t * D * P + d * P, h, sizeof(double) * (size_t)P);
                }
                for (int64_t j = 0; j < P; j++) state = state && close(h_n, size, (item * B + b) * P + j, h[j]);
                for (int64_t j = 0; has_c && j < H; j++)
                    state = state && close(c_n, size, (item * B + b) * H + j, c[j]);
            }
            inputs = D * P;
            memcpy(in, out, sizeof(double) * (size_t)(T * inputs));
        }
        for (int64_t t = 0; t < T; t++)
            for (int64_t j = 0; j < D * P; j++) {
                const int64_t at = (t * B + b) * D * P + j;
                if (t >= lengths[b]) {
                    padding = padding && get(y, size, at) == 0;
                    continue;
                }
                output = output && close(y, size, at, out[t * D * P + j]);
                if (stream) streamed = streamed && close(steps, size, (t * B + b) * P + j, out[t * D * P + j]);
            }
    }
    const char *type = size == 4 ? "float32" : "float64", *how = ragged ? "ragged" : "dense";
    check(output, "%s H %d %s %s: output", n->name, (int)H, type, how);
    check(padding, "%s H %d %s %s: padding", n->name, (int)H, type, how);
    check(state, "%s H %d %s %s: final state", n->name, (int)H, type, how);
    check(streamed, "%s H %d %s %s: stream", n->name, (int)H, type, how);
    fl_stream_free(stream);
    fl_free(layer);
    void *buffers[] = {x, h0, c0, in, out, x_t, h_t, c_t, y, h_n, c_n, steps};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) free(buffers[i]);
    for (int64_t i = 0; i < items; i++) {
        double *arrays[] = {n->w_ih[i], n->w_hh[i], n->b_ih[i], n->b_hh[i], n->w_hr[i], n->peephole[i]};
        const void *typed[] = {w[i].weight_ih.data, w[i].weight_hh.data, w[i].bias_ih.data,
                               w[i].bias_hh.data,   w[i].weight_hr.data, w[i].weight_peephole.data};
        for (int a = 0; a < 6; a++) free(arrays[a]);
        for (int a = 0; a < 6; a++) free((void *)typed[a]);
    }
}

int main(void) {
    static const int64_t sizes[] = {1, 7, 8, 33};
    for (int s = 0; s < 4; s++)
        for (int which = 0; which < 15; which++)
            for (int dtype = 0; dtype < 2; dtype++)
                for (int ragged = 0; ragged < 2; ragged++) {
                    static const int cells[] = {FL_LSTM, FL_LSTM, FL_LSTM, FL_LSTM,      FL_LSTM,
                                                FL_LSTM, FL_LSTM, FL_GRU,  FL_GRU,       FL_GRU,
                                                FL_GRU,  FL_RNN,  FL_RNN,  FL_GATED_RNN, FL_GATED_RNN};
                    static const char *const names[] = {"lstm",
                                                        "lstm both, two layers",
                                                        "lstm projection",
                                                        "lstm peepholes",
                                                        "lstm no forget gate",
                                                        "lstm coupled, peepholes, clip",
                                                        "lstm no bias, reverse",
                                                        "gru",
                                                        "gru both, two layers, clip",
                                                        "gru reset before",
                                                        "gru reset before both",
                                                        "rnn",
                                                        "rnn both, two layers",
                                                        "gated rnn",
                                                        "gated rnn both, clip"};
                    network n = {.name = names[which]};
                    fl_config_init(&n.c, (fl_cell_kind)cells[which], I, sizes[s]);
                    n.c.bidirectional = which == 1 || which == 8 || which == 10 || which == 12 || which == 14;
                    n.c.num_layers = which == 1 || which == 2 || which == 8 || which == 12 ? 2 : 1;
                    n.c.proj_size = which == 2 ? sizes[s] / 2 : 0;
                    n.c.peepholes = which == 3 || which == 5;
                    n.c.forget_gate = which != 4;
                    n.c.coupled_gates = which == 5;
                    n.c.clip = which == 5 || which == 8 || which == 14 ? 0.4 : 0;
                    n.c.bias = which != 6;
                    n.c.reverse = which == 6;
                    n.c.reset_after = which != 9 && which != 10;
                    test(&n, (fl_dtype)dtype, ragged);
                }
    return check_report();
}
