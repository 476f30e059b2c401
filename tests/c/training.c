/* fl_record and fl_backward through the public interface: every gradient against central finite differences of
 * fl_forward in float64, for every cell; the same bits with checkpoints, splits, strides and any choice of what is
 * wanted; user buffers between guard pages; every bad argument refused by name. */
#include "guard.h"

enum { MOST_ITEMS = 4, ARRAYS = 6, I = 3 };

typedef struct kind {
    const char *name;
    int cell;
    int64_t layers, proj; /* proj 1: half of H */
    int both, reverse, no_bias, peepholes, no_forget, coupled, reset_before;
    double clip;
    int own_activations[3]; /* all 0: none */
} kind;

static const kind kinds[] = {
    {"lstm", FL_LSTM, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}},
    {"lstm both, two layers", FL_LSTM, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, {0}},
    {"lstm projection", FL_LSTM, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, {0}},
    {"lstm projection both, peepholes", FL_LSTM, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, {0}},
    {"lstm peepholes, clip", FL_LSTM, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0.5, {0}},
    {"lstm no forget gate, reverse", FL_LSTM, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, {0}},
    {"lstm coupled, peepholes, no bias", FL_LSTM, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0, {0}},
    {"lstm softplus, elu, softsign", FL_LSTM, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, {FL_SOFTPLUS, FL_ELU, FL_SOFTSIGN}},
    {"gru", FL_GRU, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}},
    {"gru both, two layers, clip", FL_GRU, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0.5, {0}},
    {"gru reset before", FL_GRU, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, {0}},
    {"gru reset before both, no bias", FL_GRU, 1, 0, 1, 0, 1, 0, 0, 0, 1, 0, {0}},
    {"rnn", FL_RNN, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}},
    {"rnn both, two layers, leaky relu", FL_RNN, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, {FL_LEAKY_RELU}},
    {"gated rnn", FL_GATED_RNN, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0}},
    {"gated rnn both, hard sigmoid", FL_GATED_RNN, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, {FL_HARD_SIGMOID, FL_SCALED_TANH}},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static const char *const array_names[ARRAYS] = {"weight_ih", "weight_hh", "bias_ih",
                                                "bias_hh",   "weight_hr", "weight_peephole"};

static void *array_of(int64_t count, int64_t size, uint64_t seed, double scale) {
    void *array = malloc((size_t)(count > 0 ? count : 1) * 8);
    if (!array) exit(2);
    for (int64_t i = 0; i < count; i++) put(array, size, i, random_unit(&seed) * scale);
    return array;
}

/* --- a network --- */

typedef struct network {
    const kind *k;
    fl_layer *layer;
    int64_t size, H, P, D, items, layers;
    void *parameter[MOST_ITEMS][ARRAYS];
    int64_t count[MOST_ITEMS][ARRAYS]; /* 0: there is none */
} network;

static int64_t inputs_of(const network *n, int64_t layer) { return layer ? n->D * n->P : I; }

static void set_weights(const network *n) {
    fl_weights w[MOST_ITEMS];
    for (int64_t i = 0; i < n->items; i++) {
        fl_array a[ARRAYS];
        for (int j = 0; j < ARRAYS; j++) a[j] = (fl_array){n->parameter[i][j], n->count[i][j]};
        w[i] = (fl_weights){.size = sizeof w[i],
                            .weight_ih = a[0],
                            .weight_hh = a[1],
                            .bias_ih = a[2],
                            .bias_hh = a[3],
                            .weight_hr = a[4],
                            .weight_peephole = a[5]};
    }
    check(fl_set_weights(n->layer, w, n->items) == FL_OK, "%s: %s", n->k->name, fl_last_error());
}

static network network_of(const kind *k, fl_dtype dtype, int64_t H) {
    static const int64_t gates_of[] = {4, 3, 1, 2};
    fl_config c;
    fl_config_init(&c, (fl_cell_kind)k->cell, I, H);
    c.dtype = dtype;
    c.num_layers = k->layers;
    c.proj_size = k->proj ? H / 2 : 0;
    c.bidirectional = k->both;
    c.reverse = k->reverse;
    c.bias = !k->no_bias;
    c.peepholes = k->peepholes;
    c.forget_gate = !k->no_forget;
    c.coupled_gates = k->coupled;
    c.reset_after = !k->reset_before;
    c.clip = k->clip;
    c.own_activations = k->own_activations[0] != 0;
    for (int i = 0; i < 3 && c.own_activations; i++)
        c.activations[i] = (fl_activation){k->own_activations[i], 0.75, 0.5};
    network n = {.k = k, .size = dtype == FL_FLOAT32 ? 4 : 8, .H = H, .layers = k->layers};
    n.P = c.proj_size ? c.proj_size : H;
    n.D = k->both ? 2 : 1;
    n.items = k->layers * n.D;
    const int64_t rows = gates_of[k->cell] * H;
    double scale = 1; /* a power of two near 1 / sqrt(H) */
    while (scale * scale * (double)H > 1) scale /= 2;
    check(fl_create(&c, &n.layer) == FL_OK, "%s: %s", k->name, fl_last_error());
    for (int64_t i = 0; i < n.items; i++) {
        const int64_t counts[ARRAYS] = {rows * inputs_of(&n, i / n.D), rows * n.P,      k->no_bias ? 0 : rows,
                                        k->no_bias ? 0 : rows,         c.proj_size * H, k->peepholes ? 3 * H : 0};
        for (int j = 0; j < ARRAYS; j++) {
            n.count[i][j] = counts[j];
            n.parameter[i][j] = array_of(counts[j], n.size, (uint64_t)(100 * i + j), j < 2 || j == 4 ? scale : 0.5);
        }
    }
    set_weights(&n);
    return n;
}

static void network_free(network *n) {
    fl_free(n->layer);
    for (int64_t i = 0; i < n->items; i++)
        for (int j = 0; j < ARRAYS; j++) free(n->parameter[i][j]);
}

/* --- what goes in, and what comes back --- */

/* Dense, time first. Padded steps of x and dy are NaN. */
typedef struct problem {
    int64_t T, B;
    const int64_t *lengths;
    void *x, *h0, *c0, *dy, *dh_n, *dc_n;
    int64_t x_count, h_count, c_count, y_count;
} problem;

static int64_t length_of(const problem *p, int64_t b) { return p->lengths ? p->lengths[b] : p->T; }

static void hide_padding(const problem *p, void *array, int64_t size, int64_t width) {
    for (int64_t b = 0; b < p->B; b++)
        for (int64_t t = length_of(p, b); t < p->T; t++)
            for (int64_t i = 0; i < width; i++) put(array, size, (t * p->B + b) * width + i, NAN);
}

static problem problem_of(const network *n, int64_t T, int64_t B, const int64_t *lengths) {
    problem p = {.T = T, .B = B, .lengths = lengths};
    p.x_count = T * B * I;
    p.y_count = T * B * n->D * n->P;
    p.h_count = n->items * B * n->P;
    p.c_count = n->items * B * n->H;
    p.x = array_of(p.x_count, n->size, 1001, 2);
    p.h0 = array_of(p.h_count, n->size, 1002, 1);
    p.c0 = array_of(p.c_count, n->size, 1003, 2);
    p.dy = array_of(p.y_count, n->size, 1004, 1);
    p.dh_n = array_of(p.h_count, n->size, 1005, 1);
    p.dc_n = array_of(p.c_count, n->size, 1006, 1);
    hide_padding(&p, p.x, n->size, I);
    hide_padding(&p, p.dy, n->size, n->D * n->P);
    return p;
}

static void problem_free(problem *p) {
    void *arrays[] = {p->x, p->h0, p->c0, p->dy, p->dh_n, p->dc_n};
    for (int i = 0; i < 6; i++) free(arrays[i]);
}

typedef struct result {
    void *y, *h_n, *c_n;                /* of fl_record */
    void *dx, *dh0, *dc0;               /* of fl_backward */
    void *weights[MOST_ITEMS][ARRAYS];
} result;

static result result_of(const network *n, const problem *p) {
    result r = {
        .y = array_of(p->y_count, n->size, 1, 1),
        .h_n = array_of(p->h_count, n->size, 2, 1),
        .c_n = array_of(p->c_count, n->size, 3, 1),
        .dx = array_of(p->x_count, n->size, 4, 1),
        .dh0 = array_of(p->h_count, n->size, 5, 1),
        .dc0 = array_of(p->c_count, n->size, 6, 1),
    };
    for (int64_t i = 0; i < n->items; i++)
        for (int j = 0; j < ARRAYS; j++) r.weights[i][j] = array_of(n->count[i][j], n->size, 7, 1);
    return r;
}

static void result_free(const network *n, result *r) {
    void *arrays[] = {r->y, r->h_n, r->c_n, r->dx, r->dh0, r->dc0};
    for (int i = 0; i < 6; i++) free(arrays[i]);
    for (int64_t i = 0; i < n->items; i++)
        for (int j = 0; j < ARRAYS; j++) free(r->weights[i][j]);
}

static char *item_of(const network *n, void *states, int64_t layer, int64_t B, int64_t width) {
    return (char *)states + layer * n->D * B * width * n->size;
}

static fl_sequence sequence_of(const network *n, const problem *p, const result *r) {
    const bool has_c = n->k->cell == FL_LSTM;
    fl_sequence q = dense(p->T, p->B, p->x, I, r->y, n->D * n->P);
    q.lengths = p->lengths;
    q.h0 = p->h0;
    q.c0 = has_c ? p->c0 : NULL;
    q.h_n = r->h_n;
    q.c_n = has_c ? r->c_n : NULL;
    return q;
}

static fl_gradient *field_of(fl_weight_gradients *w, int j) {
    fl_gradient *const fields[ARRAYS] = {&w->weight_ih, &w->weight_hh, &w->bias_ih,
                                         &w->bias_hh,   &w->weight_hr, &w->weight_peephole};
    return fields[j];
}

/* Of one layer: its states and parameters. dx: of its inputs. */
static fl_gradients gradients_of(const network *n, const problem *p, const result *r, int64_t layer, const void *dy,
                                 void *dx) {
    const int64_t width = n->D * n->P, inputs = inputs_of(n, layer);
    fl_gradients g = {.size = sizeof g,
                      .dy = dy,
                      .dy_stride_t = p->B * width,
                      .dy_stride_b = width,
                      .dh_n = item_of(n, p->dh_n, layer, p->B, n->P),
                      .dc_n = item_of(n, p->dc_n, layer, p->B, n->H),
                      .dx = dx,
                      .dx_stride_t = p->B * inputs,
                      .dx_stride_b = inputs,
                      .dh0 = item_of(n, r->dh0, layer, p->B, n->P),
                      .dc0 = item_of(n, r->dc0, layer, p->B, n->H)};
    for (int64_t d = 0; d < n->D; d++)
        for (int j = 0; j < ARRAYS; j++)
            if (n->count[layer * n->D + d][j])
                *field_of(&g.weights[d], j) =
                    (fl_gradient){r->weights[layer * n->D + d][j], n->count[layer * n->D + d][j]};
    return g;
}

/* The whole stack, layer by layer, and back. */
static void train(const network *n, const problem *p, int64_t checkpoint, result *r) {
    fl_tape *tapes[MOST_ITEMS] = {NULL};
    void *between[MOST_ITEMS] = {NULL};
    const int64_t width = n->D * n->P;
    for (int64_t layer = 0; layer < n->layers; layer++) {
        fl_sequence q = sequence_of(n, p, r);
        if (layer) {
            q.x = between[layer - 1];
            q.x_stride_t = p->B * width;
            q.x_stride_b = width;
        }
        between[layer] = array_of(p->y_count, n->size, 8, 1);
        q.y = between[layer];
        q.h0 = item_of(n, p->h0, layer, p->B, n->P);
        q.h_n = item_of(n, r->h_n, layer, p->B, n->P);
        if (q.c0) q.c0 = item_of(n, p->c0, layer, p->B, n->H);
        if (q.c_n) q.c_n = item_of(n, r->c_n, layer, p->B, n->H);
        check(fl_record(n->layer, layer, &q, checkpoint, &tapes[layer]) == FL_OK, "%s: record: %s", n->k->name,
              fl_last_error());
    }
    memcpy(r->y, between[n->layers - 1], (size_t)(p->y_count * n->size));
    void *dy = p->dy;
    for (int64_t layer = n->layers - 1; layer >= 0; layer--) {
        void *dx = layer ? array_of(p->y_count, n->size, 9, 1) : r->dx;
        const fl_gradients g = gradients_of(n, p, r, layer, dy, dx);
        check(fl_backward(tapes[layer], &g) == FL_OK, "%s: backward: %s", n->k->name, fl_last_error());
        if (dy != p->dy) free(dy);
        dy = dx;
        fl_tape_free(tapes[layer]);
    }
    for (int64_t layer = 0; layer < n->layers; layer++) free(between[layer]);
}

static bool same(const void *a, const void *b, int64_t size, int64_t count) {
    return first_difference(a, b, size, count) < 0;
}

/* Every array of two results. */
static void check_same(const network *n, const problem *p, const result *a, const result *b, const char *what) {
    const bool has_c = n->k->cell == FL_LSTM;
    const struct {
        const char *name;
        const void *a, *b;
        int64_t count;
    } arrays[] = {{"y", a->y, b->y, p->y_count},       {"h_n", a->h_n, b->h_n, p->h_count},
                  {"c_n", a->c_n, b->c_n, p->c_count}, {"dx", a->dx, b->dx, p->x_count},
                  {"dh0", a->dh0, b->dh0, p->h_count}, {"dc0", a->dc0, b->dc0, p->c_count}};
    for (int i = 0; i < 6; i++)
        if (has_c || (i != 2 && i != 5))
            check(same(arrays[i].a, arrays[i].b, n->size, arrays[i].count), "%s f%d H %d, %s: other bits of %s",
                  n->k->name, (int)n->size * 8, (int)n->H, what, arrays[i].name);
    for (int64_t i = 0; i < n->items; i++)
        for (int j = 0; j < ARRAYS; j++)
            check(same(a->weights[i][j], b->weights[i][j], n->size, n->count[i][j]),
                  "%s f%d H %d, %s: other bits of %s %d", n->k->name, (int)n->size * 8, (int)n->H, what, array_names[j],
                  (int)i);
}

/* --- finite differences --- */

static double weighted(const void *a, const void *by, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        if (!isnan(get(by, 8, i))) sum += get(a, 8, i) * get(by, 8, i);
    return sum;
}

static double loss(const network *n, const problem *p, const result *scratch) {
    const fl_sequence q = sequence_of(n, p, scratch);
    check(fl_forward(n->layer, &q) == FL_OK, "%s: %s", n->k->name, fl_last_error());
    return weighted(scratch->y, p->dy, p->y_count) + weighted(scratch->h_n, p->dh_n, p->h_count) +
           (q.c_n ? weighted(scratch->c_n, p->dc_n, p->c_count) : 0);
}

/* Every `every`-th entry of an array: the loss's central difference is the gradient. */
static void check_array(const network *n, const problem *p, const result *scratch, const char *name, void *array,
                        const void *gradient, int64_t count, bool is_weight, int64_t every) {
    double largest = 0, worst = 0;
    bool finite = true;
    for (int64_t i = 0; i < count; i++) {
        largest = fmax(largest, fabs(get(gradient, 8, i)));
        finite = finite && isfinite(get(gradient, 8, i));
    }
    for (int64_t i = 0; i < count; i += every) {
        const double x = get(array, 8, i), step = 0x1p-17;
        double value[2];
        if (isnan(x)) { /* padding */
            finite = finite && get(gradient, 8, i) == 0;
            continue;
        }
        for (int sign = 0; sign < 2; sign++) {
            put(array, 8, i, sign ? x - step : x + step);
            if (is_weight) set_weights(n);
            value[sign] = loss(n, p, scratch);
        }
        put(array, 8, i, x);
        worst = fmax(worst, fabs((value[0] - value[1]) / (2 * step) - get(gradient, 8, i)));
    }
    if (is_weight) set_weights(n);
    check(finite, "%s, T %d, B %d%s: padding or NaN in the gradient of %s", n->k->name, (int)p->T, (int)p->B,
          p->lengths ? " ragged" : "", name);
    check(worst <= 1e-7 * fmax(largest, 1e-3), "%s, T %d, B %d%s: gradient of %s is off by %.3g, its largest is %.3g",
          n->k->name, (int)p->T, (int)p->B, p->lengths ? " ragged" : "", name, worst, largest);
}

static void test_differences(const kind *k, int64_t H, int64_t T, int64_t B, const int64_t *lengths, int64_t every) {
    network n = network_of(k, FL_FLOAT64, H);
    problem p = problem_of(&n, T, B, lengths);
    result r = result_of(&n, &p), scratch = result_of(&n, &p);
    train(&n, &p, 0, &r);
    check_array(&n, &p, &scratch, "x", p.x, r.dx, p.x_count, false, every);
    check_array(&n, &p, &scratch, "h0", p.h0, r.dh0, p.h_count, false, every);
    if (k->cell == FL_LSTM) check_array(&n, &p, &scratch, "c0", p.c0, r.dc0, p.c_count, false, every);
    for (int64_t i = 0; i < n.items; i++)
        for (int j = 0; j < ARRAYS; j++)
            check_array(&n, &p, &scratch, array_names[j], n.parameter[i][j], r.weights[i][j], n.count[i][j], true,
                        every);
    result_free(&n, &scratch);
    result_free(&n, &r);
    problem_free(&p);
    network_free(&n);
}

/* --- the same bits --- */

static void test_same_bits(const kind *k, fl_dtype dtype, int64_t H, int64_t T, int64_t B, const int64_t *lengths) {
    network n = network_of(k, dtype, H);
    problem p = problem_of(&n, T, B, lengths);
    result r = result_of(&n, &p), other = result_of(&n, &p);
    fl_force_split(FL_SPLIT_NONE);
    train(&n, &p, 0, &r);
    const fl_sequence q = sequence_of(&n, &p, &other);
    check(fl_forward(n.layer, &q) == FL_OK, "%s: %s", k->name, fl_last_error());
    check(same(r.y, other.y, n.size, p.y_count), "%s f%d H %d: record's y is not fl_forward's", k->name,
          (int)n.size * 8, (int)H);
    check(same(r.h_n, other.h_n, n.size, p.h_count), "%s H %d: record's h_n is not fl_forward's", k->name, (int)H);
    if (q.c_n)
        check(same(r.c_n, other.c_n, n.size, p.c_count), "%s H %d: record's c_n is not fl_forward's", k->name, (int)H);
    const int64_t checkpoints[] = {1, 4, T + 5};
    for (int i = 0; i < 3; i++) {
        train(&n, &p, checkpoints[i], &other);
        check_same(&n, &p, &r, &other, "with checkpoints");
    }
    for (int64_t threads = 2; threads <= 4; threads++)
        for (int split = FL_SPLIT_BATCH; split <= FL_SPLIT_UNITS; split++) {
            fl_set_num_threads(threads);
            fl_force_split((fl_split)split);
            train(&n, &p, threads == 3 ? 2 : 0, &other);
            check_same(&n, &p, &r, &other, split == FL_SPLIT_UNITS ? "split by units" : "split by rows");
        }
    fl_set_num_threads(2);
    fl_force_split(FL_SPLIT_AUTO);
    result_free(&n, &other);
    result_free(&n, &r);
    problem_free(&p);
    network_free(&n);
}

/* float32 stays near float64; the numbers are exact in both. */
static void test_precision(const kind *k, int64_t H, const int64_t *lengths) {
    network narrow = network_of(k, FL_FLOAT32, H), wide = network_of(k, FL_FLOAT64, H);
    problem p[2] = {problem_of(&narrow, 9, 5, lengths), problem_of(&wide, 9, 5, lengths)};
    result r[2] = {result_of(&narrow, &p[0]), result_of(&wide, &p[1])};
    train(&narrow, &p[0], 0, &r[0]);
    train(&wide, &p[1], 0, &r[1]);
    for (int64_t i = 0; i < narrow.items; i++)
        for (int j = 0; j < ARRAYS; j++) {
            double largest = 0, worst = 0;
            for (int64_t e = 0; e < narrow.count[i][j]; e++) {
                const double exact = get(r[1].weights[i][j], 8, e);
                largest = fmax(largest, fabs(exact));
                worst = fmax(worst, fabs(get(r[0].weights[i][j], 4, e) - exact));
            }
            check(worst <= 1e-5 * largest, "%s H %d: float32 gradient of %s is off by %.3g of %.3g", k->name, (int)H,
                  array_names[j], worst, largest);
        }
    result_free(&narrow, &r[0]);
    result_free(&wide, &r[1]);
    problem_free(&p[0]);
    problem_free(&p[1]);
    network_free(&narrow);
    network_free(&wide);
}

/* --- user buffers: guard pages, strides, and what is not wanted --- */

enum { BUFFERS = 12 };
static guarded buffers[BUFFERS], weight_buffers[2][ARRAYS];

/* A [T, B, width] array with gaps between the rows. */
typedef struct strided {
    guarded *g;
    char *first; /* row of step 0, sequence 0 */
    int64_t stride_t, stride_b, width;
} strided;

static strided place_strided(guarded *g, const problem *p, int64_t size, int64_t width, int64_t stride_t,
                             int64_t stride_b, bool at_end) {
    const int64_t t = stride_t * (p->T - 1), b = stride_b * (p->B - 1);
    strided s = {g, NULL, stride_t, stride_b, width};
    char *data = place(g, ((t < 0 ? -t : t) + (b < 0 ? -b : b) + width) * size, at_end);
    s.first = data + ((t < 0 ? -t : 0) + (b < 0 ? -b : 0)) * size;
    return s;
}

static char *row_at(const strided *s, int64_t size, int64_t t, int64_t b) {
    return s->first + (t * s->stride_t + b * s->stride_b) * size;
}

/* Valid steps only: padding and gaps stay NaN. */
static void fill_strided(const strided *s, const problem *p, int64_t size, const void *from) {
    for (int64_t b = 0; b < p->B; b++)
        for (int64_t t = 0; t < length_of(p, b); t++)
            memcpy(row_at(s, size, t, b), (const char *)from + (t * p->B + b) * s->width * size,
                   (size_t)(s->width * size));
}

/* All rows are those of a dense array, and nothing else has been written: then all that is left is NaN. */
static bool is_dense(const strided *s, const problem *p, int64_t size, const void *dense) {
    bool same_rows = true;
    for (int64_t b = 0; b < p->B; b++)
        for (int64_t t = 0; t < p->T; t++) {
            char *row = row_at(s, size, t, b);
            same_rows = same_rows && same(row, (const char *)dense + (t * p->B + b) * s->width * size, size, s->width);
            memset(row, 0xff, (size_t)(s->width * size));
        }
    return same_rows && untouched(s->g->data, s->g->bytes, 0xff) && margin_untouched(s->g);
}

static void *place_copy(guarded *g, const void *from, int64_t bytes, bool at_end) {
    void *to = place(g, bytes, at_end);
    if (from) memcpy(to, from, (size_t)bytes);
    return to;
}

static bool holds(const guarded *g, const void *wanted, int64_t size, int64_t count) {
    return margin_untouched(g) && g->bytes == count * size && same(g->data, wanted, size, count);
}

/* Layer 0 of the stack alone, against itself with dense arrays. */
static void test_buffers(const kind *k, fl_dtype dtype, int64_t H, const int64_t *lengths, bool at_end) {
    network n = network_of(k, dtype, H);
    n.layers = 1;
    n.items = n.D;
    problem p = problem_of(&n, 9, 5, lengths);
    result r = result_of(&n, &p);
    train(&n, &p, 0, &r);
    const int64_t size = n.size, width = n.D * n.P, h_bytes = p.h_count * size, c_bytes = p.c_count * size;
    const bool has_c = k->cell == FL_LSTM;
    for (int64_t checkpoint = 0; checkpoint < 3; checkpoint += 2) {
        /* Sequence first, backwards in time, backwards in the batch: whatever the strides say. */
        const strided x = place_strided(&buffers[0], &p, size, I, I + 1, 9 * (I + 1) + 2, at_end);
        const strided y = place_strided(&buffers[1], &p, size, width, -5 * (width + 3), width + 3, at_end);
        const strided dy = place_strided(&buffers[2], &p, size, width, 5 * (width + 1) + 7, width + 1, at_end);
        const strided dx = place_strided(&buffers[3], &p, size, I, I + 3, -9 * (I + 3) - 1, at_end);
        fill_strided(&x, &p, size, p.x);
        fill_strided(&dy, &p, size, p.dy);
        const fl_sequence q = {.size = sizeof q,
                               .T = p.T,
                               .B = p.B,
                               .x = x.first,
                               .x_stride_t = x.stride_t,
                               .x_stride_b = x.stride_b,
                               .y = y.first,
                               .y_stride_t = y.stride_t,
                               .y_stride_b = y.stride_b,
                               .lengths = lengths,
                               .h0 = place_copy(&buffers[4], p.h0, h_bytes, at_end),
                               .c0 = has_c ? place_copy(&buffers[5], p.c0, c_bytes, at_end) : NULL,
                               .h_n = place(&buffers[6], h_bytes, at_end),
                               .c_n = has_c ? place(&buffers[7], c_bytes, at_end) : NULL};
        fl_tape *tape = NULL;
        check(fl_record(n.layer, 0, &q, checkpoint, &tape) == FL_OK, "%s: %s", k->name, fl_last_error());
        const char *where = at_end ? "at the end" : "at the beginning";
        check(is_dense(&y, &p, size, r.y), "%s H %d %s: y", k->name, (int)H, where);
        check(holds(&buffers[4], p.h0, size, p.h_count) && (!has_c || holds(&buffers[5], p.c0, size, p.c_count)),
              "%s H %d %s: h0 or c0 written", k->name, (int)H, where);
        check(holds(&buffers[6], r.h_n, size, p.h_count) && (!has_c || holds(&buffers[7], r.c_n, size, p.c_count)),
              "%s H %d %s: h_n or c_n", k->name, (int)H, where);
        /* All but x may change: the tape has what it needs. */
        for (int i = 4; i < 8; i++)
            if (buffers[i].data) memset(buffers[i].data, 0xff, (size_t)buffers[i].bytes);

        fl_gradients g = {.size = sizeof g,
                          .dy = dy.first,
                          .dy_stride_t = dy.stride_t,
                          .dy_stride_b = dy.stride_b,
                          .dh_n = place_copy(&buffers[8], p.dh_n, h_bytes, at_end),
                          .dc_n = has_c ? place_copy(&buffers[9], p.dc_n, c_bytes, at_end) : NULL,
                          .dx = dx.first,
                          .dx_stride_t = dx.stride_t,
                          .dx_stride_b = dx.stride_b,
                          .dh0 = place(&buffers[10], h_bytes, at_end),
                          .dc0 = has_c ? place(&buffers[11], c_bytes, at_end) : NULL};
        for (int64_t d = 0; d < n.D; d++)
            for (int j = 0; j < ARRAYS; j++)
                if (n.count[d][j])
                    *field_of(&g.weights[d], j) =
                        (fl_gradient){place(&weight_buffers[d][j], n.count[d][j] * size, at_end), n.count[d][j]};
        check(fl_backward(tape, &g) == FL_OK, "%s: %s", k->name, fl_last_error());
        check(is_dense(&dx, &p, size, r.dx), "%s H %d %s: dx", k->name, (int)H, where);
        check(holds(&buffers[8], p.dh_n, size, p.h_count) && (!has_c || holds(&buffers[9], p.dc_n, size, p.c_count)),
              "%s H %d %s: dh_n or dc_n written", k->name, (int)H, where);
        check(holds(&buffers[10], r.dh0, size, p.h_count) && (!has_c || holds(&buffers[11], r.dc0, size, p.c_count)),
              "%s H %d %s: dh0 or dc0", k->name, (int)H, where);
        bool read_only = margin_untouched(x.g) && margin_untouched(dy.g);
        for (int64_t b = 0; b < p.B; b++)
            for (int64_t t = 0; t < length_of(&p, b); t++) {
                const int64_t at = t * p.B + b;
                read_only = read_only && same(row_at(&x, size, t, b), (char *)p.x + at * I * size, size, I) &&
                            same(row_at(&dy, size, t, b), (char *)p.dy + at * width * size, size, width);
            }
        check(read_only, "%s H %d %s: x or dy written", k->name, (int)H, where);
        for (int64_t d = 0; d < n.D; d++)
            for (int j = 0; j < ARRAYS; j++)
                if (n.count[d][j])
                    check(holds(&weight_buffers[d][j], r.weights[d][j], size, n.count[d][j]), "%s H %d %s: %s", k->name,
                          (int)H, where, array_names[j]);

        /* Each gradient alone, and none at all, from the same tape again. */
        for (int wanted = -1; wanted < 3 + 2 * ARRAYS; wanted++) {
            fl_gradients one = g;
            if (wanted != 0) one.dx = NULL;
            if (wanted != 1) one.dh0 = NULL;
            if (wanted != 2) one.dc0 = NULL;
            for (int i = 0; i < 2 * ARRAYS; i++)
                if (wanted != 3 + i) *field_of(&one.weights[i / ARRAYS], i % ARRAYS) = (fl_gradient){NULL, -7};
            if (one.dx) memset(dx.g->data, 0xff, (size_t)dx.g->bytes);
            if (one.dh0) memset(one.dh0, 0xff, (size_t)h_bytes);
            if (one.dc0) memset(one.dc0, 0xff, (size_t)c_bytes);
            fl_gradient *w = wanted < 3 ? NULL : field_of(&one.weights[(wanted - 3) / ARRAYS], (wanted - 3) % ARRAYS);
            if (w && w->data) memset(w->data, 0xff, (size_t)(w->count * size));
            check(fl_backward(tape, &one) == FL_OK, "%s: %s", k->name, fl_last_error());
            bool right = !one.dx || is_dense(&dx, &p, size, r.dx);
            right = right && (!one.dh0 || holds(&buffers[10], r.dh0, size, p.h_count));
            right = right && (!one.dc0 || holds(&buffers[11], r.dc0, size, p.c_count));
            if (w && w->data)
                right = right && same(w->data, r.weights[(wanted - 3) / ARRAYS][(wanted - 3) % ARRAYS], size, w->count);
            check(right, "%s H %d %s: gradient %d alone", k->name, (int)H, where, wanted);
        }
        fl_tape_free(tape);
    }
    result_free(&n, &r);
    problem_free(&p);
    n.items = k->layers * n.D;
    network_free(&n);
}

/* Padded steps of x and dy lie on pages that nobody may read. */
static void test_hidden_padding(const kind *k) {
    network n = network_of(k, FL_FLOAT32, 7);
    const int64_t page = sysconf(_SC_PAGESIZE), width = n.D * n.P, widest = width > I ? width : I;
    const int64_t steps = page / (widest * 4) < 40 ? page / (widest * 4) : 40;
    const int64_t T = 3 * page / 4 / I + steps, stride = (T * widest * 4 + 2 * page) / page * page;
    char *maps[2];
    for (int i = 0; i < 2; i++) {
        maps[i] = mmap(NULL, (size_t)(2 * stride), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (maps[i] == MAP_FAILED) exit(2);
        for (int b = 0; b < 2; b++) {
            if (mprotect(maps[i] + b * stride, (size_t)page, PROT_READ | PROT_WRITE) != 0) exit(2);
            uint64_t seed = (uint64_t)(10 * i + b);
            for (int64_t j = 0; j < page / 4; j++) put(maps[i] + b * stride, 4, j, random_unit(&seed));
        }
    }
    float *y = array_of(2 * T * width, 4, 1, 1), *dx = array_of(2 * T * I, 4, 1, 1);
    const int64_t lengths[2] = {steps, steps};
    const fl_sequence q = {.size = sizeof q,
                           .T = T,
                           .B = 2,
                           .x = maps[0] + page - steps * I * 4,
                           .x_stride_t = I,
                           .x_stride_b = stride / 4,
                           .y = y,
                           .y_stride_t = width,
                           .y_stride_b = T * width,
                           .lengths = lengths};
    fl_gradients g = {.size = sizeof g,
                      .dy = maps[1] + page - steps * width * 4,
                      .dy_stride_t = width,
                      .dy_stride_b = stride / 4,
                      .dx = dx,
                      .dx_stride_t = I,
                      .dx_stride_b = T * I};
    /* The layer has its own copy of the parameters. */
    for (int64_t d = 0; d < n.D; d++) g.weights[d].weight_ih = (fl_gradient){n.parameter[d][0], n.count[d][0]};
    for (int64_t checkpoint = 0; checkpoint < 8; checkpoint += 7) {
        fl_tape *tape = NULL;
        check(fl_record(n.layer, 0, &q, checkpoint, &tape) == FL_OK, "%s: %s", k->name, fl_last_error());
        check(fl_backward(tape, &g) == FL_OK, "%s: %s", k->name, fl_last_error());
        bool zero = true, some = false;
        for (int64_t i = 0; i < 2 * T * I; i++) {
            const bool padding = i % (T * I) >= steps * I;
            zero = zero && (!padding || dx[i] == 0);
            some = some || (!padding && dx[i] != 0);
        }
        check(zero && some, "%s: dx of padded steps is not zero, or all of it is", k->name);
        fl_tape_free(tape);
    }
    for (int i = 0; i < 2; i++) munmap(maps[i], (size_t)(2 * stride));
    free(y);
    free(dx);
    network_free(&n);
}

/* --- nothing to do --- */

static void test_nothing(const kind *k) {
    static const int64_t sizes[][2] = {{0, 5}, {9, 0}, {0, 0}, {9, 5}};
    static const int64_t zeros[5] = {0};
    network n = network_of(k, FL_FLOAT32, 7);
    for (int i = 0; i < 4; i++)
        for (int64_t checkpoint = 0; checkpoint < 3; checkpoint += 2) {
            problem p = problem_of(&n, sizes[i][0], sizes[i][1], i == 3 ? zeros : NULL);
            result r = result_of(&n, &p);
            fl_sequence q = sequence_of(&n, &p, &r);
            fl_tape *tape = NULL;
            if (i < 3) q.x = q.y = NULL;
            check(fl_record(n.layer, 0, &q, checkpoint, &tape) == FL_OK, "%s, T %d, B %d: %s", k->name, (int)p.T,
                  (int)p.B, fl_last_error());
            fl_gradients g = gradients_of(&n, &p, &r, 0, NULL, i < 3 ? NULL : r.dx);
            check(fl_backward(tape, &g) == FL_OK, "%s, T %d, B %d: %s", k->name, (int)p.T, (int)p.B, fl_last_error());
            const int64_t states = n.D * p.B; /* of layer 0 */
            check(same(r.dh0, p.dh_n, 4, states * n.P), "%s, T %d, B %d: dh0 is not dh_n", k->name, (int)p.T, (int)p.B);
            if (k->cell == FL_LSTM)
                check(same(r.dc0, p.dc_n, 4, states * n.H), "%s, T %d, B %d: dc0 is not dc_n", k->name, (int)p.T,
                      (int)p.B);
            bool zero = true;
            for (int64_t d = 0; d < n.D; d++)
                for (int j = 0; j < ARRAYS; j++)
                    for (int64_t e = 0; e < n.count[d][j]; e++) zero = zero && get(r.weights[d][j], 4, e) == 0;
            for (int64_t e = 0; i == 3 && e < p.x_count; e++) zero = zero && get(r.dx, 4, e) == 0;
            check(zero, "%s, T %d, B %d: gradients of nothing", k->name, (int)p.T, (int)p.B);
            fl_tape_free(tape);
            result_free(&n, &r);
            problem_free(&p);
        }
    network_free(&n);
}

/* --- what a tape takes, and how long it lives --- */

static void test_tape(const kind *k) {
    enum { LONG_T = 60, WIDE_B = 7, WIDE_H = 32 };
    static const int64_t gates_of[] = {4, 3, 1, 2};
    network n = network_of(k, FL_FLOAT32, WIDE_H);
    problem p = problem_of(&n, LONG_T, WIDE_B, NULL);
    result r = result_of(&n, &p);
    const fl_sequence q = sequence_of(&n, &p, &r);
    for (int64_t checkpoint = 0; checkpoint <= 20; checkpoint += 10) {
        fl_tape *tape = NULL;
        check(fl_record(n.layer, 0, &q, checkpoint, &tape) == FL_OK, "%s: %s", k->name, fl_last_error());
        const int64_t step = WIDE_B * WIDE_H * 4, blocks = checkpoint ? LONG_T / checkpoint : 0;
        const int64_t most = checkpoint ? 2 * blocks * step : (gates_of[k->cell] + 2) * LONG_T * step + 2 * step + 256;
        check(fl_tape_bytes(tape) > 0 && fl_tape_bytes(tape) <= n.D * most, "%s: %lld bytes, wanted %lld at most",
              k->name, (long long)fl_tape_bytes(tape), (long long)(n.D * most));
        fl_gradients g = gradients_of(&n, &p, &r, 0, p.dy, r.dx);
        check(fl_backward(tape, &g) == FL_OK, "%s: %s", k->name, fl_last_error());
        set_weights(&n); /* the same ones: but who is to know? */
        memset(r.dx, 0x7f, (size_t)(p.x_count * n.size));
        const fl_status status = fl_backward(tape, &g);
        check(status == FL_STALE && strstr(fl_last_error(), "tape") != NULL, "%s: a stale tape: %d, '%s'", k->name,
              status, fl_last_error());
        check(untouched(r.dx, p.x_count * n.size, 0x7f), "%s: a stale tape wrote", k->name);
        fl_tape_free(tape);
    }
    fl_tape *tape = NULL;
    check(fl_record(n.layer, 0, &q, 0, &tape) == FL_OK, "%s: %s", k->name, fl_last_error());
    fl_free(n.layer);
    n.layer = NULL;
    fl_gradients g = gradients_of(&n, &p, &r, 0, p.dy, r.dx);
    check(fl_backward(tape, &g) == FL_OK, "%s: a tape outlives its layer's handle: %s", k->name, fl_last_error());
    fl_tape_free(tape);
    check(fl_tape_bytes(NULL) == 0, "bytes of no tape");
    fl_tape_free(NULL);
    result_free(&n, &r);
    problem_free(&p);
    network_free(&n);
}

/* --- it refuses --- */

static void refused(fl_status got, fl_status wanted, const char *name, const char *what) {
    check(got == wanted, "%s: status %d, wanted %d", what, got, wanted);
    check(strstr(fl_last_error(), name) != NULL, "%s: '%s' does not name %s", what, fl_last_error(), name);
}

static void test_refusals(void) {
    network n = network_of(&kinds[3], FL_FLOAT32, 7); /* every array, both directions */
    network plain = network_of(&kinds[0], FL_FLOAT32, 7);
    problem p = problem_of(&n, 4, 3, NULL);
    result r = result_of(&n, &p);
    const fl_sequence good = sequence_of(&n, &p, &r);
    const int64_t too_long[3] = {1, 5, 0}, negative[3] = {1, 2, -1};
    fl_tape *tape = NULL, *const dangling = (fl_tape *)&p;
#define REFUSE_RECORD(field, value, name)                                                                   \
    do {                                                                                                    \
        fl_sequence q = good;                                                                               \
        q.field = value;                                                                                    \
        tape = dangling;                                                                                    \
        refused(fl_record(n.layer, 0, &q, 0, &tape), FL_BAD_ARGUMENT, name, "record " #field " = " #value); \
        check(tape == NULL, #field ": the handle is not NULL");                                             \
    } while (0)
    REFUSE_RECORD(size, 0, "size");
    REFUSE_RECORD(size, sizeof(fl_sequence) - 8, "size");
    REFUSE_RECORD(T, -1, "T");
    REFUSE_RECORD(B, -1, "B");
    REFUSE_RECORD(T, INT64_MAX, "T");
    REFUSE_RECORD(B, (int64_t)1 << 56, "B");
    REFUSE_RECORD(x, NULL, "x");
    REFUSE_RECORD(y, NULL, "y");
    REFUSE_RECORD(x_stride_t, INT64_MAX / 2, "x_stride_t");
    REFUSE_RECORD(lengths, too_long, "lengths[1]");
    REFUSE_RECORD(lengths, negative, "lengths[2]");
    refused(fl_record(NULL, 0, &good, 0, &tape), FL_BAD_ARGUMENT, "layer", "record of no layer");
    refused(fl_record(n.layer, 0, NULL, 0, &tape), FL_BAD_ARGUMENT, "sequence", "record of no sequence");
    refused(fl_record(n.layer, 0, &good, 0, NULL), FL_BAD_ARGUMENT, "tape", "record onto no tape");
    refused(fl_record(n.layer, -1, &good, 0, &tape), FL_BAD_ARGUMENT, "index", "layer -1");
    refused(fl_record(n.layer, 1, &good, 0, &tape), FL_BAD_ARGUMENT, "index", "layer 1 of 1");
    refused(fl_record(n.layer, INT64_MAX, &good, 0, &tape), FL_BAD_ARGUMENT, "index", "layer INT64_MAX");
    refused(fl_record(n.layer, 0, &good, -1, &tape), FL_BAD_ARGUMENT, "checkpoint", "checkpoint -1");
    refused(fl_record(n.layer, 0, &good, INT64_MIN, &tape), FL_BAD_ARGUMENT, "checkpoint", "checkpoint INT64_MIN");
    check(tape == NULL, "the handle of a refused tape is not NULL");
    fl_config config;
    fl_layer *empty = NULL;
    fl_config_init(&config, FL_LSTM, I, 7);
    check(fl_create(&config, &empty) == FL_OK, "create");
    refused(fl_record(empty, 0, &good, 0, &tape), FL_NO_WEIGHTS, "weights", "record without weights");
    fl_free(empty);

    check(fl_record(n.layer, 0, &good, INT64_MAX, &tape) == FL_OK, "one checkpoint for all: %s", fl_last_error());
    const fl_gradients all = gradients_of(&n, &p, &r, 0, p.dy, r.dx);
    refused(fl_backward(NULL, &all), FL_BAD_ARGUMENT, "tape", "backward of no tape");
    refused(fl_backward(tape, NULL), FL_BAD_ARGUMENT, "gradients", "no gradients");
    fl_gradients g = all;
    g.size -= 8;
    refused(fl_backward(tape, &g), FL_BAD_ARGUMENT, "size", "size of gradients");
    g = all;
    g.dy = NULL;
    refused(fl_backward(tape, &g), FL_BAD_ARGUMENT, "dy", "no dy");
    for (int d = 0; d < 2; d++)
        for (int j = 0; j < ARRAYS; j++)
            for (int i = 0; i < 4; i++) {
                const int64_t right = n.count[d][j], wrong[] = {0, right - 1, right + 1, -right};
                g = all;
                field_of(&g.weights[d], j)->count = wrong[i];
                refused(fl_backward(tape, &g), FL_BAD_ARGUMENT, array_names[j], "a wrong count");
            }
    g = all;
    g.dy_stride_t = INT64_MAX / 2;
    refused(fl_backward(tape, &g), FL_BAD_ARGUMENT, "dy_stride_t", "dy far apart");
    g = all;
    g.dx_stride_b = INT64_MIN;
    refused(fl_backward(tape, &g), FL_BAD_ARGUMENT, "dx_stride_b", "dx far apart");
    check(fl_backward(tape, &all) == FL_OK, "a tape that has refused still works: %s", fl_last_error());
    fl_tape_free(tape);

    /* What the layer does not have */
    const fl_sequence q = {.size = sizeof q, .T = 0, .B = 0};
    check(fl_record(plain.layer, 0, &q, 0, &tape) == FL_OK, "record: %s", fl_last_error());
    for (int j = 4; j < ARRAYS; j++) {
        g = (fl_gradients){.size = sizeof g};
        *field_of(&g.weights[0], j) = (fl_gradient){r.weights[0][j], n.count[0][j]};
        refused(fl_backward(tape, &g), FL_BAD_ARGUMENT, array_names[j], "gradient of an array that is not there");
    }
    fl_tape_free(tape);
    result_free(&n, &r);
    problem_free(&p);
    network_free(&n);
    network_free(&plain);
}

/* No room is asked for the gradient of what is not there: none may be written. */
static void test_no_bias(void) {
    const float w[4] = {1, 2, 3, 4}, x[2] = {1, -1}, dy[2] = {1, 1};
    float y[2], canary = 7;
    fl_config config;
    fl_layer *layer;
    fl_tape *tape;
    fl_config_init(&config, FL_LSTM, 1, 1);
    config.bias = 0;
    check(fl_create(&config, &layer) == FL_OK, "no bias: %s", fl_last_error());
    const fl_weights weights = {.size = sizeof weights, .weight_ih = {w, 4}, .weight_hh = {w, 4}};
    check(fl_set_weights(layer, &weights, 1) == FL_OK, "no bias: %s", fl_last_error());
    const fl_sequence q = dense(2, 1, x, 1, y, 1);
    check(fl_record(layer, 0, &q, 0, &tape) == FL_OK, "no bias: %s", fl_last_error());
    const fl_gradients g = {.size = sizeof g,
                            .dy = dy,
                            .dy_stride_t = 1,
                            .dy_stride_b = 1,
                            .weights = {{.bias_ih = {&canary, 0}, .bias_hh = {&canary, 0}}}};
    check(fl_backward(tape, &g) == FL_OK, "no bias: %s", fl_last_error());
    check(canary == 7, "the gradient of a bias that is not there was written");
    fl_tape_free(tape);
    fl_free(layer);
}

/* One input, one unit, weights 1: two steps of an RNN, by hand. */
static void test_known_answer(void) {
    const double one = 1, x[2] = {0.5, -1}, h0 = 0.25, dy[2] = {2, 3}, dh_n = -0.5;
    double y[2], dx[2], dh0, dw_ih, dw_hh;
    fl_config config;
    fl_config_init(&config, FL_RNN, 1, 1);
    config.bias = 0;
    config.dtype = FL_FLOAT64;
    fl_layer *layer = NULL;
    fl_tape *tape = NULL;
    check(fl_create(&config, &layer) == FL_OK, "known answer: %s", fl_last_error());
    const fl_weights w = {.size = sizeof w, .weight_ih = {&one, 1}, .weight_hh = {&one, 1}};
    check(fl_set_weights(layer, &w, 1) == FL_OK, "known answer: %s", fl_last_error());
    fl_sequence q = dense(2, 1, x, 1, y, 1);
    q.h0 = &h0;
    check(fl_record(layer, 0, &q, 0, &tape) == FL_OK, "known answer: %s", fl_last_error());
    const fl_gradients g = {.size = sizeof g,
                            .dy = dy,
                            .dy_stride_t = 1,
                            .dy_stride_b = 1,
                            .dh_n = &dh_n,
                            .dx = dx,
                            .dx_stride_t = 1,
                            .dx_stride_b = 1,
                            .dh0 = &dh0,
                            .weights = {{.weight_ih = {&dw_ih, 1}, .weight_hh = {&dw_hh, 1}}}};
    check(fl_backward(tape, &g) == FL_OK, "known answer: %s", fl_last_error());
    const double h1 = tanh(0.75), h2 = tanh(h1 - 1);
    const double dz2 = (3 - 0.5) * (1 - h2 * h2), dz1 = (2 + dz2) * (1 - h1 * h1);
    const double got[] = {dx[1], dx[0], dh0, dw_ih, dw_hh};
    const double wanted[] = {dz2, dz1, dz1, 0.5 * dz1 - dz2, 0.25 * dz1 + h1 * dz2};
    for (int i = 0; i < 5; i++)
        check(fabs(got[i] - wanted[i]) < 1e-14, "known answer %d is %.17g, wanted %.17g", i, got[i], wanted[i]);
    fl_tape_free(tape);
    fl_free(layer);
}

int main(void) {
    static const int64_t lengths[5] = {9, 0, 4, 1, 7}, long_ones[5] = {70, 66, 33, 64, 69};
    for (int i = 0; i < BUFFERS; i++) buffers[i] = guarded_create(1 << 17);
    for (int i = 0; i < 2 * ARRAYS; i++) weight_buffers[i / ARRAYS][i % ARRAYS] = guarded_create(1 << 17);
    fl_set_num_threads(2);
    test_no_bias();
    test_known_answer();
    test_refusals();
    for (int i = 0; i < KINDS; i++) {
        const kind *k = &kinds[i];
        test_differences(k, 7, 9, 5, lengths, 1);
        test_differences(k, 5, 3, 2, NULL, 1);
        test_differences(k, 7, 70, 5, long_ones, 29); /* more rows than are summed at once */
        /* And than are summed in one chunk; of so many, one would sit at a clip's kink. */
        if (k->clip == 0) test_differences(k, 5, 2, 530, NULL, 101);
        for (int dtype = 0; dtype < 2; dtype++) {
            test_same_bits(k, (fl_dtype)dtype, 33, 9, 5, lengths);
            test_same_bits(k, (fl_dtype)dtype, 70, dtype ? 54 : 5, 5, NULL);
            for (int at_end = 0; at_end < 2; at_end++) {
                test_buffers(k, (fl_dtype)dtype, 7, lengths, at_end);
                test_buffers(k, (fl_dtype)dtype, 33, lengths, at_end);
                test_buffers(k, (fl_dtype)dtype, k->proj ? 2 : 1, NULL, at_end);
            }
        }
        test_precision(k, 33, lengths);
        test_hidden_padding(k);
        test_nothing(k);
        test_tape(k);
    }
    return check_report();
}
