/* The gradients of every cell, fl_record and fl_backward: in double against central differences of fl_forward along
 * random directions, in float against those in double, from checkpoints to the last bit; with random states and
 * derivatives by them, odd sizes, ragged lengths and NaN in the padding. tests/test_oracle_bites.py plants bugs in the
 * core and expects this to fail. */
#include "check.h"
#include "fastlstm.h"

enum { I = 3, PER_DIRECTION = 6, VARIABLES = 3 + 2 * PER_DIRECTION };

static const double STEP = 1e-6;

/* What the loss is differentiated by: x, h0, c0, then the weights of each direction. Count 0: there is none. */
typedef struct variable {
    const char *name;
    int64_t count;
    double *value, *direction, *gradient;
} variable;

typedef struct problem {
    const char *name;
    fl_config c;
    int64_t T, B, P, D;
    int64_t *lengths;
    variable v[VARIABLES];
    double *dy, *dh_n, *dc_n;
} problem;

/* Buffers in a dtype, as the core takes them. */
typedef struct typed {
    int64_t size;
    void *v[VARIABLES], *dy, *dh_n, *dc_n, *y, *h_n, *c_n, *gradient[VARIABLES];
    fl_layer *layer;
    fl_sequence q;
} typed;

static uint64_t seed = 5;

static void *reserve(int64_t count) {
    void *a = malloc((size_t)(count ? count : 1) * 8);
    if (!a) exit(2);
    memset(a, 0xff, (size_t)count * 8);
    return a;
}

static double *random_array(int64_t count, double scale) {
    double *a = reserve(count);
    for (int64_t i = 0; i < count; i++) a[i] = (double)(float)(random_unit(&seed) * scale);
    return a;
}

static void *as_type(const double *from, int64_t count, int64_t size) {
    void *to = reserve(count);
    for (int64_t i = 0; i < count; i++) put(to, size, i, from[i]);
    return to;
}

static bool valid(const problem *p, int64_t i, int64_t width) {
    const int64_t t = i / width / p->B, b = i / width % p->B;
    return t < p->lengths[b];
}

static void set_up(problem *p, bool ragged) {
    static const int64_t gates[] = {4, 3, 1, 2};
    const int64_t H = p->c.hidden_size, rows = gates[p->c.cell] * H;
    const bool has_c = p->c.cell == FL_LSTM;
    p->P = p->c.proj_size ? p->c.proj_size : H;
    p->D = p->c.bidirectional ? 2 : 1;
    p->lengths = reserve(p->B);
    for (int64_t b = 0; b < p->B; b++) p->lengths[b] = !ragged || b == 2 ? p->T : b == 1 ? 0 : (p->T * (b + 1) + 3) / 8;
    p->v[0] = (variable){.name = "x", .count = p->T * p->B * I};
    p->v[1] = (variable){.name = "h0", .count = p->D * p->B * p->P};
    p->v[2] = (variable){.name = "c0", .count = has_c ? p->D * p->B * H : 0};
    for (int64_t d = 0; d < 2; d++) {
        const int64_t own = d < p->D, bias = p->c.bias ? rows : 0;
        variable *v = p->v + 3 + d * PER_DIRECTION;
        v[0] = (variable){.name = "weight_ih", .count = own * rows * I};
        v[1] = (variable){.name = "weight_hh", .count = own * rows * p->P};
        v[2] = (variable){.name = "bias_ih", .count = own * bias};
        v[3] = (variable){.name = "bias_hh", .count = own * bias};
        v[4] = (variable){.name = "weight_hr", .count = own * p->c.proj_size * H};
        v[5] = (variable){.name = "weight_peephole", .count = own * (p->c.peepholes ? 3 * H : 0)};
    }
    for (int i = 0; i < VARIABLES; i++) {
        variable *v = &p->v[i];
        v->value = random_array(v->count, i < 3 ? 1 : 0.5);
        v->direction = random_array(v->count, 1);
        v->gradient = reserve(v->count);
    }
    const int64_t n = p->T * p->B, width = p->D * p->P;
    p->dy = random_array(n * width, 1);
    p->dh_n = random_array(p->D * p->B * p->P, 1);
    p->dc_n = random_array(p->v[2].count, 1);
    for (int64_t i = 0; i < n * I; i++)
        if (!valid(p, i, I)) p->v[0].value[i] = NAN, p->v[0].direction[i] = 0;
    for (int64_t i = 0; i < n * width; i++)
        if (!valid(p, i, width)) p->dy[i] = NAN;
}

static void tear_down(problem *p) {
    void *all[] = {p->lengths, p->dy, p->dh_n, p->dc_n};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    for (int i = 0; i < VARIABLES; i++) {
        free(p->v[i].value);
        free(p->v[i].direction);
        free(p->v[i].gradient);
    }
}

static void set_weights(const problem *p, const typed *t) {
    fl_weights w[2];
    for (int64_t d = 0; d < p->D; d++) {
        fl_array a[PER_DIRECTION];
        for (int i = 0; i < PER_DIRECTION; i++) {
            const int64_t at = 3 + d * PER_DIRECTION + i;
            a[i] = (fl_array){p->v[at].count ? t->v[at] : NULL, p->v[at].count};
        }
        w[d] = (fl_weights){.size = sizeof w[d],
                            .weight_ih = a[0],
                            .weight_hh = a[1],
                            .bias_ih = a[2],
                            .bias_hh = a[3],
                            .weight_hr = a[4],
                            .weight_peephole = a[5]};
    }
    check(fl_set_weights(t->layer, w, p->D) == FL_OK, "%s: %s", p->name, fl_last_error());
}

static typed type(const problem *p, fl_dtype dtype) {
    typed t = {.size = dtype == FL_FLOAT32 ? 4 : 8};
    const int64_t width = p->D * p->P, outputs = p->T * p->B * width;
    for (int i = 0; i < VARIABLES; i++) {
        t.v[i] = as_type(p->v[i].value, p->v[i].count, t.size);
        t.gradient[i] = reserve(p->v[i].count);
    }
    t.dy = as_type(p->dy, outputs, t.size);
    t.dh_n = as_type(p->dh_n, p->v[1].count, t.size);
    t.dc_n = as_type(p->dc_n, p->v[2].count, t.size);
    t.y = reserve(outputs);
    t.h_n = reserve(p->v[1].count);
    t.c_n = reserve(p->v[2].count);
    fl_config c = p->c;
    c.dtype = (int32_t)dtype;
    check(fl_create(&c, &t.layer) == FL_OK, "%s: %s", p->name, fl_last_error());
    set_weights(p, &t);
    t.q = dense(p->T, p->B, t.v[0], I, t.y, width);
    t.q.lengths = p->lengths;
    t.q.h0 = t.v[1];
    t.q.c0 = p->v[2].count ? t.v[2] : NULL;
    t.q.h_n = t.h_n;
    t.q.c_n = p->v[2].count ? t.c_n : NULL;
    return t;
}

static void release(typed *t) {
    void *all[] = {t->dy, t->dh_n, t->dc_n, t->y, t->h_n, t->c_n};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    for (int i = 0; i < VARIABLES; i++) {
        free(t->v[i]);
        free(t->gradient[i]);
    }
    fl_free(t->layer);
}

/* In double: the sum of all outputs and final states, each times its derivative of the loss. */
static double loss(const problem *p, const typed *t) {
    set_weights(p, t);
    check(fl_forward(t->layer, &t->q) == FL_OK, "%s: %s", p->name, fl_last_error());
    const int64_t width = p->D * p->P;
    double sum = 0;
    for (int64_t i = 0; i < p->T * p->B * width; i++)
        if (valid(p, i, width)) sum += p->dy[i] * get(t->y, 8, i);
    for (int64_t i = 0; i < p->v[1].count; i++) sum += p->dh_n[i] * get(t->h_n, 8, i);
    for (int64_t i = 0; i < p->v[2].count; i++) sum += p->dc_n[i] * get(t->c_n, 8, i);
    return sum;
}

static double moved_loss(const problem *p, const typed *t, int which, double by) {
    const variable *v = &p->v[which];
    for (int64_t i = 0; i < v->count; i++) put(t->v[which], 8, i, v->value[i] + by * v->direction[i]);
    const double result = loss(p, t);
    for (int64_t i = 0; i < v->count; i++) put(t->v[which], 8, i, v->value[i]);
    return result;
}

static void backward(const problem *p, typed *t, int64_t checkpoint) {
    fl_tape *tape = NULL;
    check(fl_record(t->layer, 0, &t->q, checkpoint, &tape) == FL_OK, "%s: %s", p->name, fl_last_error());
    fl_gradients g = {.size = sizeof g,
                      .dy = t->dy,
                      .dy_stride_t = t->q.y_stride_t,
                      .dy_stride_b = t->q.y_stride_b,
                      .dh_n = t->dh_n,
                      .dc_n = p->v[2].count ? t->dc_n : NULL,
                      .dx = t->gradient[0],
                      .dx_stride_t = p->B * I,
                      .dx_stride_b = I,
                      .dh0 = t->gradient[1],
                      .dc0 = p->v[2].count ? t->gradient[2] : NULL};
    for (int64_t d = 0; d < p->D; d++) {
        fl_gradient a[PER_DIRECTION];
        for (int i = 0; i < PER_DIRECTION; i++) {
            const int64_t at = 3 + d * PER_DIRECTION + i;
            a[i] = (fl_gradient){p->v[at].count ? t->gradient[at] : NULL, p->v[at].count};
        }
        g.weights[d] = (fl_weight_gradients){a[0], a[1], a[2], a[3], a[4], a[5]};
    }
    check(fl_backward(tape, &g) == FL_OK, "%s: %s", p->name, fl_last_error());
    fl_tape_free(tape);
}

static void test(problem *p, bool ragged) {
    set_up(p, ragged);
    typed t = type(p, FL_FLOAT64), single = type(p, FL_FLOAT32);
    const char *how = ragged ? "ragged" : "dense";
    const int H = (int)p->c.hidden_size;
    backward(p, &t, 0);
    for (int i = 0; i < VARIABLES; i++)
        for (int64_t k = 0; k < p->v[i].count; k++) p->v[i].gradient[k] = get(t.gradient[i], 8, k);
    bool padding = true;
    for (int64_t i = 0; i < p->v[0].count; i++)
        if (!valid(p, i, I)) padding = padding && p->v[0].gradient[i] == 0;
    check(padding, "%s H %d %s: gradient of padding", p->name, H, how);
    const int64_t checkpoints[] = {1, 2, p->T + 1};
    for (int c = 0; c < 3; c++) {
        backward(p, &t, checkpoints[c]);
        bool same = true;
        for (int i = 0; i < VARIABLES; i++)
            for (int64_t k = 0; k < p->v[i].count; k++) same = same && same_bits(t.gradient[i], p->v[i].gradient, 8, k);
        check(same, "%s H %d %s: checkpoint %d has other bits", p->name, H, how, (int)checkpoints[c]);
    }
    backward(p, &single, 2);
    for (int i = 0; i < VARIABLES; i++) {
        const variable *v = &p->v[i];
        double product = 0, sum = 0, largest = 0, error = 0;
        for (int64_t k = 0; k < v->count; k++) {
            product += v->gradient[k] * v->direction[k];
            sum += fabs(v->gradient[k] * v->direction[k]);
            largest = fmax(largest, fabs(v->gradient[k]));
            const double off = fabs(get(single.gradient[i], 4, k) - v->gradient[k]);
            if (!(off <= error)) error = off; /* NaN too */
        }
        const double change = (moved_loss(p, &t, i, STEP) - moved_loss(p, &t, i, -STEP)) / (2 * STEP);
        check(fabs(change - product) <= 1e-6 * (1 + sum), "%s H %d T %d %s: %s of direction %d: %.9g, wanted %.9g",
              p->name, H, (int)p->T, how, v->name, i < 3 ? 0 : (i - 3) / PER_DIRECTION, product, change);
        check(error <= 2e-5 * largest, "%s H %d T %d %s: %s in float is off by %g of %g", p->name, H, (int)p->T, how,
              v->name, error, largest);
    }
    release(&t);
    release(&single);
    tear_down(p);
}

int main(void) {
    static const struct {
        const char *name;
        fl_cell_kind cell;
        bool both, projection, peepholes, no_forget_gate, coupled, no_bias, reverse, before;
        double clip;
    } cases[] = {
        {.name = "lstm", .cell = FL_LSTM},
        {.name = "lstm both", .cell = FL_LSTM, .both = true},
        {.name = "lstm projection", .cell = FL_LSTM, .projection = true},
        {.name = "lstm peepholes, projection", .cell = FL_LSTM, .peepholes = true, .projection = true},
        {.name = "lstm no forget gate", .cell = FL_LSTM, .no_forget_gate = true},
        {.name = "lstm coupled, peepholes, clip", .cell = FL_LSTM, .coupled = true, .peepholes = true, .clip = 0.7},
        {.name = "lstm no bias, reverse", .cell = FL_LSTM, .no_bias = true, .reverse = true},
        {.name = "gru", .cell = FL_GRU},
        {.name = "gru both, clip", .cell = FL_GRU, .both = true, .clip = 0.7},
        {.name = "gru reset before", .cell = FL_GRU, .before = true},
        {.name = "gru reset before, reverse, clip", .cell = FL_GRU, .before = true, .reverse = true, .clip = 0.7},
        {.name = "rnn", .cell = FL_RNN},
        {.name = "rnn both, no bias", .cell = FL_RNN, .both = true, .no_bias = true},
        {.name = "gated rnn", .cell = FL_GATED_RNN},
        {.name = "gated rnn both, clip", .cell = FL_GATED_RNN, .both = true, .clip = 0.7},
    };
    static const struct {
        int64_t H, T, B;
    } sizes[] = {{1, 5, 4}, {7, 5, 4}, {33, 5, 4}, {7, 1, 3}, {4, 90, 7}}; /* the last: more rows than a chunk */
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
            for (int ragged = 0; ragged < 2; ragged++) {
                problem p = {.name = cases[k].name, .T = sizes[s].T, .B = sizes[s].B};
                fl_config_init(&p.c, cases[k].cell, I, sizes[s].H);
                p.c.bidirectional = cases[k].both;
                p.c.proj_size = cases[k].projection ? sizes[s].H / 2 : 0;
                p.c.peepholes = cases[k].peepholes;
                p.c.forget_gate = !cases[k].no_forget_gate;
                p.c.coupled_gates = cases[k].coupled;
                p.c.bias = !cases[k].no_bias;
                p.c.reverse = cases[k].reverse;
                p.c.reset_after = !cases[k].before;
                p.c.clip = cases[k].clip;
                test(&p, ragged);
            }
    return check_report();
}
