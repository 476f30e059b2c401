/* The kernels of training, as kernels.c tests the others: by name, on every path that this CPU has, in both dtypes,
 * between guard pages (data flush against the end, then against the beginning), into NaN-filled outputs, every tail;
 * nothing outside is written, inputs stay as they are, and the bits are those of every other path and width.
 * The derivatives are compared with long double, to within a bound that is carried along with each number. */
#include "guard.h"
#include "cells.h"

/* --- a number and how far a kernel's may be from it --- */

typedef struct num {
    long double v, e;
    bool any; /* at a kink, within rounding: either side's will do */
} num;

static long double eps, tiny; /* of the dtype; results below `tiny` are flushed */

static void set_precision(int64_t size) {
    eps = size == 4 ? 0x1p-23L : 0x1p-52L;
    tiny = size == 4 ? 0x1p-126L : 0x1p-1022L;
}

static double rounded(int64_t size, double x) {
    const volatile float f = (float)x; /* gcc 12 drops (double)(float) where it takes two of them as a vector */
    return size == 4 ? (double)f : x;
}

static num exactly(double x) { return (num){x, 0, false}; }

static num plus(num a, num b) {
    const long double v = a.v + b.v;
    return (num){v, a.e + b.e + eps * fabsl(v) + tiny, a.any || b.any};
}

static num times(num a, num b) {
    const long double v = a.v * b.v, carried = fabsl(a.v) * b.e + fabsl(b.v) * a.e + a.e * b.e;
    return (num){v, carried + eps * fabsl(v) + tiny, a.any || b.any};
}

static num minus(num a, num b) {
    b.v = -b.v;
    return plus(a, b);
}

static num one_minus(num a) { return minus(exactly(1), a); }

static bool agrees(double got, num want, int64_t size, double *worst) {
    if (want.any) return true;
    if (isnan(want.v)) return isnan(got);
    if (fabsl(want.v) + want.e > (size == 4 ? 3.4e38L : 1.7e308L)) return true; /* or it overflows */
    const long double error = fabsl((long double)got - want.v);
    if (want.e > 0) *worst = fmax(*worst, (double)(error / want.e));
    return error <= want.e; /* not for NaN */
}

/* --- derivatives of the activations --- */

static bool near(num x, long double kink) { return x.e > 0 && fabsl(x.v - kink) <= x.e; }

static bool at_a_kink(const fl_activation *f, num x) {
    const num y = plus(times(exactly(f->alpha), x), exactly(f->beta));
    switch (f->kind) {
    case FL_RELU:
    case FL_LEAKY_RELU:
    case FL_ELU: return isnan(x.v) || near(x, 0); /* what a kink makes of NaN is not said */
    case FL_THRESHOLDED_RELU: return isnan(x.v) || near(x, f->alpha);
    case FL_HARD_SIGMOID: return isnan(x.v) || near(y, 0) || near(y, 1);
    default: return false;
    }
}

/* f(x) and its derivative; clips: x is a pre-activation, which a clip stops. */
static num activation(const fl_cell_options *s, int role, bool clips, num x, num *slope) {
    const fl_activation *f = &s->act[role];
    const long double curved = 2 * (1 + fabsl((long double)f->alpha)) * (1 + fabsl((long double)f->beta)) *
                               (1 + fabsl((long double)f->beta)); /* no second derivative is larger */
    num in = x;
    bool edge = false, outside = false;
    if (clips && s->clip > 0) {
        in.v = limit(s, x.v);
        edge = near(x, s->clip) || near(x, -s->clip);
        outside = fabsl(x.v) > s->clip;
    }
    const bool kink = at_a_kink(f, in);
    const long double y = activate(f, in.v), d = isnan(in.v) && f->kind != FL_AFFINE ? in.v : slope_at(f, in.v);
    /* Slopes are differences such as 1 - y y: exact to a rounding of 1, not of themselves. */
    *slope = (num){d, 4 * curved * eps + curved * in.e, kink || edge || in.any};
    if (f->kind == FL_AFFINE) slope->e = 0;
    if (outside) *slope = (num){0, 0, edge || in.any};
    const bool is_line = f->kind == FL_AFFINE || f->kind == FL_HARD_SIGMOID; /* in two roundings, without a fused one */
    const long double terms = is_line ? fabsl(f->alpha * in.v) + fabsl((long double)f->beta) : 0;
    const long double steep = fmaxl(1, fabsl((long double)f->alpha)) * fmaxl(1, fabsl((long double)f->beta));
    return (num){y, eps * (4 * fabsl(y) + terms) + steep * in.e + tiny,
                 in.any || (kink && f->kind == FL_THRESHOLDED_RELU)};
}

/* --- the cells --- */

enum { DH = 4, DC = 5, BETWEEN = 6, OUTPUTS = 7 }; /* after the gates of dz */

typedef struct back_unit {
    double m[4], h, c, c_new, dh, dc, dy, drh, peephole[3];
} back_unit;

/* By hand: each output of one unit. */
typedef void backward_oracle(const fl_cell_options *s, const back_unit *u, num dh, num out[OUTPUTS]);

static void lstm_oracle(const fl_cell_options *s, const back_unit *u, num dh, num out[OUTPUTS]) {
    const num c = exactly(u->c), c_new = exactly(u->c_new);
    num z[4], p[3], si, sf = exactly(0), sg, so, sy;
    for (int gate = 0; gate < 4; gate++) z[gate] = exactly(u->m[gate]);
    for (int i = 0; i < 3; i++) p[i] = exactly(s->peepholes ? u->peephole[i] : 0);
    if (s->peepholes) {
        z[0] = plus(z[0], times(p[0], c));
        z[1] = plus(z[1], times(p[1], c));
        z[3] = plus(z[3], times(p[2], c_new));
    }
    const num i = activation(s, 0, true, z[0], &si), g = activation(s, 1, true, z[2], &sg);
    const num o = activation(s, 0, true, z[3], &so), y = activation(s, 2, false, c_new, &sy);
    num f = exactly(1);
    if (s->coupled_gates) f = one_minus(i);
    else if (s->forget_gate) f = activation(s, 0, true, z[1], &sf);
    out[3] = times(so, times(dh, y));
    num dc = plus(exactly(u->dc), times(times(dh, sy), o));
    if (s->peepholes) dc = plus(dc, times(p[2], out[3]));
    num di = times(dc, g);
    if (s->coupled_gates) di = minus(di, times(dc, c));
    out[0] = times(si, di);
    out[1] = s->coupled_gates || !s->forget_gate ? exactly(0) : times(sf, times(dc, c));
    out[2] = times(sg, times(dc, i));
    out[DC] = times(dc, f);
    if (s->peepholes) out[DC] = plus(plus(out[DC], times(p[0], out[0])), times(p[1], out[1]));
    out[BETWEEN] = times(o, y);
}

static void gru_oracle(const fl_cell_options *s, const back_unit *u, num dh, num out[OUTPUTS]) {
    num sr, sz, sn;
    const num r = activation(s, 0, true, exactly(u->m[0]), &sr), z = activation(s, 0, true, exactly(u->m[1]), &sz);
    const num before = plus(exactly(u->m[2]), times(r, exactly(u->m[3])));
    const num n = activation(s, 1, true, before, &sn);
    out[2] = times(sn, times(dh, one_minus(z)));
    out[0] = times(sr, times(out[2], exactly(u->m[3])));
    out[1] = times(sz, times(dh, minus(exactly(u->h), n)));
    out[3] = times(out[2], r);
    out[DH] = times(dh, z);
}

static void gru_candidate_oracle(const fl_cell_options *s, const back_unit *u, num dh, num out[OUTPUTS]) {
    num sr, sz, sn;
    const num r = activation(s, 0, true, exactly(u->m[0]), &sr), z = activation(s, 0, true, exactly(u->m[1]), &sz);
    const num n = activation(s, 1, true, exactly(u->m[2]), &sn);
    out[1] = times(sz, times(dh, minus(exactly(u->h), n)));
    out[2] = times(sn, times(dh, one_minus(z)));
    out[DH] = dh;
    out[BETWEEN] = times(r, exactly(u->h));
}

/* The output's share came with the candidate. */
static void gru_reset_oracle(const fl_cell_options *s, const back_unit *u, num dh, num out[OUTPUTS]) {
    num sr, sz;
    (void)dh;
    const num r = activation(s, 0, true, exactly(u->m[0]), &sr), z = activation(s, 0, true, exactly(u->m[1]), &sz);
    out[0] = times(sr, times(exactly(u->drh), exactly(u->h)));
    out[DH] = plus(times(exactly(u->drh), r), times(exactly(u->dh), z));
}

static void rnn_oracle(const fl_cell_options *s, const back_unit *u, num dh, num out[OUTPUTS]) {
    num slope;
    activation(s, 0, true, exactly(u->m[0]), &slope);
    out[0] = times(slope, dh);
}

static void gated_rnn_oracle(const fl_cell_options *s, const back_unit *u, num dh, num out[OUTPUTS]) {
    num sg, sn;
    const num g = activation(s, 0, true, exactly(u->m[0]), &sg), n = activation(s, 1, true, exactly(u->m[1]), &sn);
    out[0] = times(sg, times(dh, minus(n, exactly(u->h))));
    out[1] = times(sn, times(dh, g));
    out[DH] = times(dh, one_minus(g));
}

typedef struct backward_test {
    const char *op;
    backward_oracle *oracle;
    int gates; /* of the memory, and blocks of dz */
    int written; /* bits of the outputs that it sets */
    bool general; /* else the options are not looked at */
    bool needs_between;
    int roles;
    fl_activation_kind own[3];
} backward_test;

enum { LSTM_WRITES = 15 | 1 << DC | 1 << BETWEEN, GRU_WRITES = 15 | 1 << DH, GATED_WRITES = 3 | 1 << DH };

static const backward_test backward_tests[] = {
    {"lstm_backward", lstm_oracle, 4, LSTM_WRITES, false, false, 3, {FL_SIGMOID, FL_TANH, FL_TANH}},
    {"lstm_general_backward", lstm_oracle, 4, LSTM_WRITES, true, false, 3, {FL_SIGMOID, FL_TANH, FL_TANH}},
    {"gru_backward", gru_oracle, 4, GRU_WRITES, false, false, 2, {FL_SIGMOID, FL_TANH}},
    {"gru_general_backward", gru_oracle, 4, GRU_WRITES, true, false, 2, {FL_SIGMOID, FL_TANH}},
    {"gru_candidate_backward",
     gru_candidate_oracle,
     3,
     6 | 1 << DH | 1 << BETWEEN,
     true,
     true,
     2,
     {FL_SIGMOID, FL_TANH}},
    {"gru_reset_backward", gru_reset_oracle, 3, 1 | 1 << DH, true, false, 2, {FL_SIGMOID, FL_TANH}},
    {"rnn_backward", rnn_oracle, 1, 1, false, false, 1, {FL_TANH}},
    {"rnn_general_backward", rnn_oracle, 1, 1, true, false, 1, {FL_TANH}},
    {"gated_rnn_backward", gated_rnn_oracle, 2, GATED_WRITES, false, false, 2, {FL_SIGMOID, FL_TANH}},
    {"gated_rnn_general_backward", gated_rnn_oracle, 2, GATED_WRITES, true, false, 2, {FL_SIGMOID, FL_TANH}},
};
enum { BACKWARD_TESTS = sizeof backward_tests / sizeof backward_tests[0] };

/* Kinks, clips and what saturates among them. */
static double pre_activation(uint64_t *state, bool wild) {
    const uint64_t dice = random_bits(state) % 64;
    const double x = random_unit(state) * 3;
    static const double special[] = {0, -0.0, NAN, 0.75, -0.75, 0.25};
    if (dice < 6) return special[dice];
    if (dice < 8 && wild) return dice == 6 ? 1e30 : -1e30;
    return dice < 14 ? x * (wild ? 40 : 3) : x;
}

static back_unit unit_of(int64_t size, int64_t row, int64_t u, int variant, bool wild) {
    uint64_t state = (uint64_t)row * 104729 + (uint64_t)u * 7919 + (uint64_t)variant * 65537, shared = (uint64_t)u + 5;
    back_unit unit;
    for (int gate = 0; gate < 4; gate++) unit.m[gate] = rounded(size, pre_activation(&state, wild));
    double *const rest[] = {&unit.h, &unit.c, &unit.c_new, &unit.dh, &unit.dc, &unit.dy, &unit.drh};
    for (int i = 0; i < 7; i++) *rest[i] = random_unit(&state) * 3;
    for (int i = 0; i < 3; i++) unit.peephole[i] = random_unit(&shared) / 4; /* one for all rows */
    if (u % 7 == 0) unit.c = rounded(size, unit.c * 1000);
    if (u % 11 == 3) unit.c_new = rounded(size, unit.c_new * 1000);
    if (u == 5) unit.c = NAN;
    if (u == 9 && row == 1) unit.dy = NAN;
    if (u == 12) unit.dh = 0;
    return unit;
}

static back_unit units[CELL_ROWS][MOST_H];
static num wanted[2][CELL_ROWS][MOST_H][OUTPUTS]; /* without and with dy */
static char first_bits[2][OUTPUTS][CELL_ROWS * MOST_H * 8]; /* that the first path made, of the widest layer */

static guarded memory_guard, h_guard, c_guard, c_new_guard, drh_guard, peephole_guard, dy_guard[CELL_ROWS];
static guarded dh_guard, dc_guard, between_guard, dz_guard;

/* Column of a gate: blocks of `lanes` units, the last one as wide as what remains. */
static int64_t gate_column(int64_t lanes, int64_t hidden, int64_t begin, int gates, int gate, int64_t u) {
    const int64_t block = u / lanes * lanes, width = hidden - block < lanes ? hidden - block : lanes;
    return (block - begin) * gates + gate * width + u - block;
}

static void *place_state(guarded *g, int64_t size, int64_t rows, int64_t hidden, int64_t stride, bool at_end,
                         size_t field) {
    char *state = place(g, rows * stride * size, at_end);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t u = 0; u < hidden; u++) {
            double x;
            memcpy(&x, (const char *)&units[r][u] + field, sizeof x);
            put(state, size, r * stride + u, x);
        }
    return state;
}

/* What is only read must be afterwards as it was. */
enum { MOST_INPUTS = 6 + CELL_ROWS };
typedef struct snapshot {
    const guarded *of;
    char bytes[1 << 13];
} snapshot;
static snapshot inputs[MOST_INPUTS];
static int input_count;

static void remember(const guarded *g) {
    if (g->bytes > (int64_t)sizeof inputs[0].bytes || input_count == MOST_INPUTS) exit(2);
    inputs[input_count].of = g;
    memcpy(inputs[input_count++].bytes, g->data, (size_t)g->bytes);
}

static bool all_unchanged(void) {
    bool unchanged = true;
    for (int i = 0; i < input_count; i++)
        unchanged = unchanged && margin_untouched(inputs[i].of) &&
                    memcmp(inputs[i].bytes, inputs[i].of->data, (size_t)inputs[i].of->bytes) == 0;
    input_count = 0;
    return unchanged;
}

typedef struct range {
    int64_t begin, end;
} range;

/* Blocks of units: all, the first, the rest, a middle without the tail. */
static int ranges_of(int64_t hidden, int64_t lanes, range *list) {
    const int64_t last = hidden / lanes * lanes, middle = lanes < last ? lanes : last;
    int n = 0;
    list[n++] = (range){0, hidden};
    if (middle && middle < hidden) {
        list[n++] = (range){middle, hidden};
        list[n++] = (range){0, middle};
    }
    if (last > middle) list[n++] = (range){middle, last};
    return n;
}

static void backward_case(const backward_test *t, const fl_kernels *k, fl_cell_backward_fn *fn,
                          const fl_cell_options *options, int variant, int64_t hidden, range of, bool with_dy,
                          bool with_between, bool at_end, bool first) {
    const int64_t size = k->element_bytes, lanes = k->lanes, stride = fl_round_up(hidden, lanes);
    const int64_t rows = hidden % 5 == 3 ? 1 : CELL_ROWS, count = of.end - of.begin, dy_offset = 3;
    const int64_t memory_stride = count * t->gates + 2, dz_stride = t->gates * hidden + 3;
    char *memory = place(&memory_guard, ((rows - 1) * memory_stride + count * t->gates) * size, at_end);
    const void *dy[CELL_ROWS];
    for (int64_t r = 0; r < rows; r++) {
        char *row = place(&dy_guard[r], (dy_offset + hidden) * size, at_end);
        dy[r] = row;
        for (int64_t u = 0; u < hidden; u++) {
            put(row, size, dy_offset + u, units[r][u].dy);
            for (int gate = 0; gate < t->gates && u >= of.begin && u < of.end; gate++)
                put(memory, size, r * memory_stride + gate_column(lanes, hidden, of.begin, t->gates, gate, u),
                    units[r][u].m[gate]);
        }
        if (with_dy) remember(&dy_guard[r]);
    }
    remember(&memory_guard);
    const bool has_c = t->written & 1 << DC, has_between = with_between || t->needs_between;
    fl_cell_backward_args p = {
        .rows = rows,
        .hidden = hidden,
        .begin = of.begin,
        .end = of.end,
        .memory = memory,
        .memory_stride = memory_stride,
        .h = place_state(&h_guard, size, rows, hidden, stride, at_end, offsetof(back_unit, h)),
        .state_stride = stride,
        .dy = with_dy ? dy : NULL,
        .dy_offset = dy_offset,
        .dh = place_state(&dh_guard, size, rows, hidden, stride, at_end, offsetof(back_unit, dh)),
        .drh = place_state(&drh_guard, size, rows, hidden, stride, at_end, offsetof(back_unit, drh)),
        .dz = place(&dz_guard, ((rows - 1) * dz_stride + t->gates * hidden) * size, at_end),
        .dz_stride = dz_stride,
        .between = has_between ? place(&between_guard, rows * stride * size, at_end) : NULL,
        .options = t->general ? options : NULL,
    };
    remember(&h_guard);
    remember(&drh_guard);
    if (has_c) {
        p.c = place_state(&c_guard, size, rows, hidden, stride, at_end, offsetof(back_unit, c));
        p.c_new = place_state(&c_new_guard, size, rows, hidden, stride, at_end, offsetof(back_unit, c_new));
        p.dc = place_state(&dc_guard, size, rows, hidden, stride, at_end, offsetof(back_unit, dc));
        remember(&c_guard);
        remember(&c_new_guard);
    }
    if (options->peepholes) {
        char *peephole = place(&peephole_guard, 3 * stride * size, at_end);
        for (int i = 0; i < 3; i++)
            for (int64_t u = 0; u < hidden; u++) put(peephole, size, i * stride + u, units[0][u].peephole[i]);
        p.peephole = peephole;
        remember(&peephole_guard);
    }
    const fl_fp_mode mode = fl_fp_begin();
    fn(&p);
    fl_fp_end(mode);

    bool right = true, bits = true, outside = all_unchanged();
    double worst = 0;
    outside = outside && margin_untouched(&dh_guard) && margin_untouched(&dz_guard) &&
              (!has_c || margin_untouched(&dc_guard)) && (!has_between || margin_untouched(&between_guard));
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t u = 0; u < hidden; u++) {
            const bool inside = u >= of.begin && u < of.end;
            for (int i = 0; i < OUTPUTS; i++) {
                const bool is_dz = i < DH;
                if ((is_dz && i >= t->gates) || (i == DC && !has_c) || (i == BETWEEN && !has_between)) continue;
                const char *array = is_dz ? p.dz : i == DH ? p.dh : i == DC ? p.dc : p.between;
                const int64_t at = is_dz ? r * dz_stride + i * hidden + u : r * stride + u;
                if (!inside || !(t->written & 1 << i)) { /* as it was */
                    double before[1];
                    put(before, size, 0, i == DH ? units[r][u].dh : i == DC ? units[r][u].dc : NAN);
                    if (i == DH || i == DC) outside = outside && memcmp(array + at * size, before, (size_t)size) == 0;
                    else outside = outside && untouched(array + at * size, size, 0xff);
                    continue;
                }
                right = right && agrees(get(array, size, at), wanted[with_dy][r][u][i], size, &worst);
                char *reference = first_bits[with_dy][i] + (r * MOST_H + u) * size;
                if (first) memcpy(reference, array + at * size, (size_t)size);
                else bits = bits && same_bits(reference, array + at * size, size, 0);
            }
        }
        if (r < rows - 1)
            outside = outside && untouched((char *)p.dz + (r * dz_stride + t->gates * hidden) * size,
                                           (dz_stride - t->gates * hidden) * size, 0xff);
    }
#define BACKWARD "%s_%s_%s: H %lld, units %lld to %lld, variant %d, %s, %s, %s: %s"
#define BACKWARD_ARGUMENTS                                                                                        \
    t->op, size == 4 ? "f32" : "f64", k->isa, (long long)hidden, (long long)of.begin, (long long)of.end, variant, \
        with_dy ? "dy" : "no dy", with_between ? "between" : "no between", at_end ? "at the end" : "at the beginning"
    check(right, BACKWARD " by %.3g bounds", BACKWARD_ARGUMENTS, "wrong result", worst);
    check(outside, BACKWARD, BACKWARD_ARGUMENTS, "wrote outside");
    if (exact_fma) check(bits, BACKWARD, BACKWARD_ARGUMENTS, "other bits than the first path");
}

static void test_backward(const backward_test *t, fl_dtype dtype, size_t offset) {
    const int64_t size = dtype == FL_FLOAT32 ? 4 : 8;
    fl_cell_options list[MOST_VARIANTS];
    const int count = cell_variants(t->own, t->roles, t->general, t->written & 1 << DC, list);
    const int flagged = t->general && t->written & 1 << DC ? 12 : t->general ? 2 : 1;
    set_precision(size);
    for (int variant = 0; variant < count; variant++) {
        fl_cell_options as_computed = list[variant];
        for (int role = 0; role < 3; role++) {
            as_computed.act[role].alpha = rounded(size, as_computed.act[role].alpha);
            as_computed.act[role].beta = rounded(size, as_computed.act[role].beta);
        }
        for (int64_t r = 0; r < CELL_ROWS; r++)
            for (int64_t u = 0; u < MOST_H; u++) {
                units[r][u] = unit_of(size, r, u, variant, saturates(&list[variant]));
                const num dh = exactly(units[r][u].dh), dy = exactly(units[r][u].dy);
                for (int with_dy = 0; with_dy < 2; with_dy++)
                    t->oracle(&as_computed, &units[r][u], with_dy ? plus(dh, dy) : dh, wanted[with_dy][r][u]);
            }
        for (int64_t hidden = MOST_H; hidden >= 1; hidden--) {
            /* Tails have been seen with every flag; each activation needs but a few. */
            if (variant >= flagged && hidden != MOST_H && hidden != 17 && hidden != 7) continue;
            for (int path = 0; path < path_count; path++) {
                const fl_kernels *k = fl_kernels_named(paths[path], dtype);
                fl_cell_backward_fn *fn;
                range ranges[4];
                memcpy(&fn, (const char *)k + offset, sizeof fn);
                const int range_count = ranges_of(hidden, k->lanes, ranges);
                for (int i = 0; i < range_count; i++)
                    for (int how = 0; how < 4; how++)
                        backward_case(t, k, fn, &list[variant], variant, hidden, ranges[i], how % 2 == 0, how < 2,
                                      how == 0 || how == 3, path == 0 && hidden == MOST_H && i == 0 && how < 2);
            }
        }
    }
}

/* --- what a tape keeps --- */

typedef struct keep_test {
    const char *op;
    int z_gates, memory_gates, first, end; /* those that it writes */
} keep_test;

static const keep_test keep_tests[] = {
    {"gru_keep", 3, 4, 0, 4},
    {"gru_reset_keep", 2, 3, 0, 2},
    {"gru_candidate_keep", 1, 3, 2, 3},
};
enum { KEEP_TESTS = sizeof keep_tests / sizeof keep_tests[0] };

static double keep_number(int64_t size, uint64_t tag, int64_t row, int64_t u) {
    uint64_t state = tag * 8191 + (uint64_t)row * 131 + (uint64_t)u;
    return rounded(size, u == 4 ? NAN : random_unit(&state) / 3);
}

/* Gate by gate: z_r and z_z are sums, and so is z_n when r has been applied before; else n's two parts stay apart. */
static double kept(const keep_test *t, int64_t size, int gate, int64_t row, int64_t u) {
    const double x = keep_number(size, 10 + (uint64_t)(gate < 2 ? gate : 2), row, u);
    const double z = keep_number(size, (uint64_t)(gate < 2 ? gate : t->z_gates - 1), row, u);
    if (t->memory_gates == 4 && gate >= 2) return gate == 2 ? x : z;
    return rounded(size, x + z); /* of two floats in double: rounded once as a float */
}

static void keep_case(const keep_test *t, const fl_kernels *k, fl_cell_fn *fn, int64_t hidden, range of, bool at_end) {
    const int64_t size = k->element_bytes, lanes = k->lanes, rows = hidden % 5 == 3 ? 1 : CELL_ROWS;
    const int64_t count = of.end - of.begin, gates = t->memory_gates;
    const int64_t z_stride = count * t->z_gates + 2, zx_stride = count * 3 + 5, memory_stride = count * gates + 3;
    char *z = place(&h_guard, ((rows - 1) * z_stride + count * t->z_gates) * size, at_end);
    char *zx = place(&c_guard, ((rows - 1) * zx_stride + count * 3) * size, at_end);
    char *memory = place(&memory_guard, ((rows - 1) * memory_stride + count * gates) * size, at_end);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t u = of.begin; u < of.end; u++) {
            for (int gate = 0; gate < t->z_gates; gate++)
                put(z, size, r * z_stride + gate_column(lanes, hidden, of.begin, t->z_gates, gate, u),
                    keep_number(size, (uint64_t)gate, r, u));
            for (int gate = 0; gate < 3; gate++)
                put(zx, size, r * zx_stride + gate_column(lanes, hidden, of.begin, 3, gate, u),
                    keep_number(size, 10 + (uint64_t)gate, r, u));
        }
    remember(&h_guard);
    remember(&c_guard);
    const fl_cell_args p = {.rows = rows,
                            .hidden = hidden,
                            .begin = of.begin,
                            .end = of.end,
                            .z = z,
                            .z_stride = z_stride,
                            .zx = zx,
                            .zx_stride = zx_stride,
                            .memory = memory,
                            .memory_stride = memory_stride};
    const fl_fp_mode mode = fl_fp_begin();
    fn(&p);
    fl_fp_end(mode);
    bool right = true, outside = all_unchanged() && margin_untouched(&memory_guard);
    for (int64_t r = 0; r < rows; r++) {
        for (int gate = 0; gate < gates; gate++)
            for (int64_t u = of.begin; u < of.end; u++) {
                const int64_t at = r * memory_stride + gate_column(lanes, hidden, of.begin, (int)gates, gate, u);
                double want[1];
                put(want, size, 0, kept(t, size, gate, r, u));
                if (gate >= t->first && gate < t->end) right = right && same_bits(memory + at * size, want, size, 0);
                else outside = outside && untouched(memory + at * size, size, 0xff);
            }
        if (r < rows - 1)
            outside = outside && untouched(memory + (r * memory_stride + count * gates) * size, 3 * size, 0xff);
    }
    const char *type = size == 4 ? "f32" : "f64";
    check(right, "%s_%s_%s: H %d, units %d to %d: wrong result", t->op, type, k->isa, (int)hidden, (int)of.begin,
          (int)of.end);
    check(outside, "%s_%s_%s: H %d, units %d to %d: wrote outside", t->op, type, k->isa, (int)hidden, (int)of.begin,
          (int)of.end);
}

static void test_keep(const keep_test *t, fl_dtype dtype, size_t offset) {
    for (int path = 0; path < path_count; path++)
        for (int64_t hidden = 1; hidden <= MOST_H; hidden++) {
            const fl_kernels *k = fl_kernels_named(paths[path], dtype);
            fl_cell_fn *fn;
            range ranges[4];
            memcpy(&fn, (const char *)k + offset, sizeof fn);
            const int range_count = ranges_of(hidden, k->lanes, ranges);
            for (int i = 0; i < range_count; i++)
                for (int at_end = 0; at_end < 2; at_end++) keep_case(t, k, fn, hidden, ranges[i], at_end);
        }
}

/* --- sums over rows --- */

enum { MOST_DEPTH = 700, MOST_M = 25, MOST_N = 70, NAN_ROW = 100, NAN_M = 2 };

static const int64_t depths[] = {0, 1, 2, 3, 255, 256, 257, 511, 512, 513, MOST_DEPTH};
enum { DEPTHS = sizeof depths / sizeof depths[0] };

static guarded a_guard, out_guard, b_rows_guard[MOST_DEPTH];

static double sum_number(int64_t size, uint64_t tag, int64_t r, int64_t i) {
    uint64_t state = tag * 1000003 + (uint64_t)r * 8191 + (uint64_t)i;
    return rounded(size, random_unit(&state) / 3);
}

static double a_number(int64_t size, int64_t r, int64_t m) {
    return r == NAN_ROW && m == NAN_M ? NAN : sum_number(size, 1, r, m);
}

/* out + the sum of f(row) over rows [0, depth): chunks as even as can be, of 256 rows to twice that, each from zero in
 * order, then added. And the exact sum, and how far from it a sum may be. */
typedef struct total {
    double chunked;
    long double exact, bound;
} total;

typedef struct term {
    double a, b; /* a b, or a alone */
    bool product;
} term;

static total sum_of(int64_t size, int64_t depth, double start, term (*term_of)(int64_t r, int64_t m, int64_t n),
                    int64_t m, int64_t n) {
    const int64_t chunks = depth / FL_SUM_ROWS ? depth / FL_SUM_ROWS : depth > 0;
    total sum = {start, start, fabs(start)};
    for (int64_t i = 0; i < chunks; i++) {
        float f = 0;
        double d = 0;
        for (int64_t r = depth * i / chunks; r < depth * (i + 1) / chunks; r++) {
            const term t = term_of(r, m, n);
            const double b = t.product ? t.b : 1;
            f = t.product ? fmaf((float)t.a, (float)b, f) : f + (float)t.a;
            d = t.product ? fma(t.a, b, d) : d + t.a;
            sum.exact += (long double)t.a * b;
            sum.bound += fabsl((long double)t.a * b);
        }
        sum.chunked = size == 4 ? (double)((float)sum.chunked + f) : sum.chunked + d;
    }
    /* As the header of the kernel says. */
    sum.bound *= (2 * FL_SUM_ROWS + (long double)depth / FL_SUM_ROWS) * (size == 4 ? 0x1p-23L : 0x1p-52L);
    return sum;
}

static bool is_sum(const char *got, int64_t size, const total *want) {
    double as_type[1];
    put(as_type, size, 0, want->chunked);
    const double x = get(got, size, 0);
    const bool near_enough = isnan(want->exact) ? isnan(x) : fabsl(x - want->exact) <= want->bound;
    return near_enough && (!exact_fma || same_bits(got, as_type, size, 0));
}

static int64_t term_size; /* of the numbers below */

static term outer_term(int64_t r, int64_t m, int64_t n) {
    return (term){a_number(term_size, r, m), sum_number(term_size, 2, r, n), true};
}
static term plain_term(int64_t r, int64_t m, int64_t n) { return (void)m, (term){a_number(term_size, r, n), 0, false}; }
static term weighted_term(int64_t r, int64_t m, int64_t n) {
    return (void)m, (term){a_number(term_size, r, n), sum_number(term_size, 2, r, n), true};
}

static const void *b_pointers[MOST_DEPTH];

/* Rows of b, each between pages of its own. */
static void place_b(int64_t size, int64_t offset, int64_t n, bool at_end) {
    for (int64_t r = 0; r < MOST_DEPTH; r++) {
        char *row = place(&b_rows_guard[r], (offset + n) * size, at_end);
        for (int64_t i = 0; i < n; i++) put(row, size, offset + i, sum_number(size, 2, r, i));
        b_pointers[r] = row;
    }
}

static bool b_unchanged(int64_t size, int64_t offset, int64_t n) {
    bool same = true;
    for (int64_t r = 0; r < MOST_DEPTH; r++) {
        same = same && margin_untouched(&b_rows_guard[r]) && untouched(b_rows_guard[r].data, offset * size, 0xff);
        for (int64_t i = 0; i < n; i++)
            same = same && get(b_rows_guard[r].data, size, offset + i) == sum_number(size, 2, r, i);
    }
    return same;
}

static bool place_or_check_a(int64_t size, int64_t depth, int64_t m, int64_t stride, bool at_end, bool checking) {
    const int64_t count = depth ? (depth - 1) * stride + m : 0;
    if (!checking) place(&a_guard, count * size, at_end);
    bool same = margin_untouched(&a_guard);
    for (int64_t r = 0; r < depth; r++)
        for (int64_t i = 0; i < (r < depth - 1 ? stride : m); i++) {
            const double x = i < m ? a_number(size, r, i) : NAN, y = get(a_guard.data, size, r * stride + i);
            if (!checking) put(a_guard.data, size, r * stride + i, x);
            else same = same && (x == y || (isnan(x) && isnan(y)));
        }
    return same;
}

/* More columns of a than a block holds, more rows than a stretch: each row of the sums as it is alone. */
static void test_outer_blocks(fl_dtype dtype, size_t offset) {
    enum { DEPTH = 130, M = 389, N = 33 };
    static char together[M * N * 8];
    const int64_t size = term_size = dtype == FL_FLOAT32 ? 4 : 8;
    for (int at_end = 0; at_end < 2; at_end++) {
        place_b(size, 0, N, at_end);
        place_or_check_a(size, DEPTH, M, M, at_end, false);
        for (int path = 0; path < path_count; path++) {
            const fl_kernels *k = fl_kernels_named(paths[path], dtype);
            fl_outer_fn *fn;
            memcpy(&fn, (const char *)k + offset, sizeof fn);
            char *out = NULL;
            for (int alone = 0; alone < 2; alone++) {
                out = place(&out_guard, M * N * size, at_end);
                for (int64_t i = 0; i < M * N; i++) put(out, size, i, sum_number(size, 3, i / N, i % N));
                fl_outer_args p = {.depth = DEPTH,
                                   .m = alone ? 1 : M,
                                   .n = N,
                                   .a = a_guard.data,
                                   .a_stride = M,
                                   .b = b_pointers,
                                   .out = out,
                                   .out_stride = N};
                const fl_fp_mode mode = fl_fp_begin();
                for (int64_t i = 0; i < M / p.m; i++) {
                    fn(&p);
                    p.a = (const char *)p.a + size;
                    p.out = (char *)p.out + N * size;
                }
                fl_fp_end(mode);
                check(margin_untouched(&out_guard), "outer_%s: blocks: wrote outside", k->isa);
                if (!alone) memcpy(together, out, (size_t)(M * N * size));
            }
            bool same = true;
            for (int64_t i = 0; i < M * N; i++) {
                const double x = get(together, size, i), y = get(out, size, i);
                same = same && (isnan(x) ? isnan(y) : memcmp(together + i * size, out + i * size, (size_t)size) == 0);
            }
            check(same, "outer_%s: a row has other bits alone than among %d", k->isa, (int)M);
        }
    }
}

static void test_outer(fl_dtype dtype, size_t offset) {
    static total sums[DEPTHS][MOST_M][MOST_N];
    static const int64_t ms[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 18, MOST_M};
    static const int64_t ns[] = {1,  2,  3,  4,  5,  7,  8,  9,  12, 15, 16, 17, 23, 24, 31,    32,
                                 33, 39, 40, 41, 47, 48, 49, 55, 56, 57, 61, 63, 64, 65, MOST_N};
    const int64_t size = term_size = dtype == FL_FLOAT32 ? 4 : 8;
    for (int d = 0; d < DEPTHS; d++)
        for (int64_t m = 0; m < MOST_M; m++)
            for (int64_t n = 0; n < MOST_N; n++)
                sums[d][m][n] = sum_of(size, depths[d], sum_number(size, 3, m, n), outer_term, m, n);
    for (size_t in = 0; in < sizeof ns / sizeof ns[0]; in++)
        for (int at_end = 0; at_end < 2; at_end++) {
            const int64_t n = ns[in], out_stride = n + 2;
            place_b(size, 0, n, at_end);
            for (int d = 0; d < DEPTHS; d++)
                for (size_t im = 0; im < sizeof ms / sizeof ms[0]; im++) {
                    /* The deepest, in all tiles' sizes; else every tail of m with one depth of each kind. */
                    const int64_t m = ms[im], depth = depths[d], a_stride = m + 3;
                    if (depth > 3 && depth != 512 && m != MOST_M && m != 1 + (int64_t)in % 6) continue;
                    place_or_check_a(size, depth, m, a_stride, at_end, false);
                    for (int path = 0; path < path_count; path++) {
                        const fl_kernels *k = fl_kernels_named(paths[path], dtype);
                        fl_outer_fn *fn;
                        memcpy(&fn, (const char *)k + offset, sizeof fn);
                        char *out = place(&out_guard, ((m - 1) * out_stride + n) * size, at_end);
                        for (int64_t i = 0; i < m; i++)
                            for (int64_t j = 0; j < n; j++)
                                put(out, size, i * out_stride + j, sum_number(size, 3, i, j));
                        const fl_outer_args p = {.depth = depth,
                                                 .m = m,
                                                 .n = n,
                                                 .a = depth ? a_guard.data : NULL,
                                                 .a_stride = a_stride,
                                                 .b = depth ? b_pointers : NULL,
                                                 .out = out,
                                                 .out_stride = out_stride};
                        const fl_fp_mode mode = fl_fp_begin();
                        fn(&p);
                        fl_fp_end(mode);
                        bool right = true, outside = margin_untouched(&out_guard);
                        for (int64_t i = 0; i < m; i++) {
                            for (int64_t j = 0; j < n; j++)
                                right = right && is_sum(out + (i * out_stride + j) * size, size, &sums[d][i][j]);
                            if (i < m - 1)
                                outside = outside && untouched(out + (i * out_stride + n) * size, 2 * size, 0xff);
                        }
#define OUTER_ARGUMENTS size == 4 ? "f32" : "f64", k->isa, (int)depth, (int)m, (int)n
                        check(right, "outer_%s_%s: depth %d, m %d, n %d: wrong result", OUTER_ARGUMENTS);
                        check(outside, "outer_%s_%s: depth %d, m %d, n %d: wrote outside", OUTER_ARGUMENTS);
                    }
                    check(place_or_check_a(size, depth, m, a_stride, at_end, true), "outer: wrote its input a");
                }
            check(b_unchanged(size, 0, n), "outer: wrote its input b");
        }
    fl_outer_args none = {.depth = 3, .m = 0, .n = 5};
    fl_outer_args no_columns = {.depth = 700, .m = 400, .n = 0};
    for (int path = 0; path < path_count; path++) {
        fl_kernels_named(paths[path], dtype)->outer(&none);
        fl_kernels_named(paths[path], dtype)->outer(&no_columns);
    }
    test_outer_blocks(dtype, offset);
}

static void test_sum(fl_dtype dtype, size_t offset) {
    static total sums[2][DEPTHS][MOST_N];
    const int64_t size = term_size = dtype == FL_FLOAT32 ? 4 : 8;
    for (int weighted = 0; weighted < 2; weighted++)
        for (int d = 0; d < DEPTHS; d++)
            for (int64_t n = 0; n < MOST_N; n++)
                sums[weighted][d][n] =
                    sum_of(size, depths[d], sum_number(size, 3, 0, n), weighted ? weighted_term : plain_term, 0, n);
    for (int64_t n = 0; n <= MOST_N; n += n < 40 ? 1 : 5)
        for (int at_end = 0; at_end < 2; at_end++) {
            const int64_t b_offset = 3 * at_end, a_stride = n + 3;
            place_b(size, b_offset, n, at_end);
            for (int d = 0; d < DEPTHS; d++) {
                place_or_check_a(size, depths[d], n, a_stride, at_end, false);
                for (int weighted = 0; weighted < 2; weighted++)
                    for (int path = 0; path < path_count; path++) {
                        const fl_kernels *k = fl_kernels_named(paths[path], dtype);
                        fl_sum_fn *fn;
                        memcpy(&fn, (const char *)k + offset, sizeof fn);
                        char *out = place(&out_guard, n * size, at_end);
                        for (int64_t i = 0; i < n; i++) put(out, size, i, sum_number(size, 3, 0, i));
                        const fl_sum_args p = {.depth = depths[d],
                                               .n = n,
                                               .a = a_guard.data,
                                               .a_stride = a_stride,
                                               .b = weighted ? b_pointers : NULL,
                                               .b_offset = b_offset,
                                               .out = out};
                        const fl_fp_mode mode = fl_fp_begin();
                        fn(&p);
                        fl_fp_end(mode);
                        bool right = true;
                        for (int64_t i = 0; i < n; i++)
                            right = right && is_sum(out + i * size, size, &sums[weighted][d][i]);
#define SUM_ARGUMENTS size == 4 ? "f32" : "f64", k->isa, (int)depths[d], (int)n, weighted ? "with b" : "without b"
                        check(right, "sum_%s_%s: depth %d, n %d, %s: wrong result", SUM_ARGUMENTS);
                        check(margin_untouched(&out_guard), "sum_%s_%s: depth %d, n %d, %s: wrote outside",
                              SUM_ARGUMENTS);
                    }
                check(place_or_check_a(size, depths[d], n, a_stride, at_end, true), "sum: wrote its input a");
            }
            check(b_unchanged(size, b_offset, n), "sum: wrote its input b");
        }
}

static void test_add(fl_dtype dtype, size_t offset) {
    const int64_t size = dtype == FL_FLOAT32 ? 4 : 8;
    for (int path = 0; path < path_count; path++)
        for (int64_t n = 0; n <= MOST_N; n++)
            for (int64_t rows = 0; rows <= CELL_ROWS; rows++)
                for (int at_end = 0; at_end < 2; at_end++) {
                    const fl_kernels *k = fl_kernels_named(paths[path], dtype);
                    const int64_t a_offset = 2 * at_end, out_offset = 5 - 5 * at_end;
                    const void *a[CELL_ROWS];
                    void *out[CELL_ROWS];
                    fl_add_fn *fn;
                    memcpy(&fn, (const char *)k + offset, sizeof fn);
                    for (int64_t r = 0; r < rows; r++) {
                        a[r] = place(&b_rows_guard[r], (a_offset + n) * size, at_end);
                        out[r] = place(&dy_guard[r], (out_offset + n) * size, at_end);
                        for (int64_t i = 0; i < n; i++) {
                            put(b_rows_guard[r].data, size, a_offset + i, a_number(size, r + NAN_ROW, i));
                            put(out[r], size, out_offset + i, sum_number(size, 3, r, i));
                        }
                    }
                    const fl_add_args p = {rows, n, a, a_offset, out, out_offset};
                    const fl_fp_mode mode = fl_fp_begin();
                    fn(&p);
                    fl_fp_end(mode);
                    bool right = true, outside = true;
                    for (int64_t r = 0; r < rows; r++) {
                        for (int64_t i = 0; i < n; i++) {
                            const double x = a_number(size, r + NAN_ROW, i), y = sum_number(size, 3, r, i);
                            double want[1], same[1];
                            put(want, size, 0, x + y);
                            put(same, size, 0, x);
                            right = right && same_bits((char *)out[r] + (out_offset + i) * size, want, size, 0);
                            outside = outside && same_bits((const char *)a[r] + (a_offset + i) * size, same, size, 0);
                        }
                        outside = outside && margin_untouched(&b_rows_guard[r]) && margin_untouched(&dy_guard[r]) &&
                                  untouched(out[r], out_offset * size, 0xff);
                    }
                    const char *type = size == 4 ? "f32" : "f64";
                    check(right, "add_%s_%s: %d rows, n %d: wrong result", type, k->isa, (int)rows, (int)n);
                    check(outside, "add_%s_%s: %d rows, n %d: wrote outside", type, k->isa, (int)rows, (int)n);
                }
}

/* --- the list --- */

static bool test_one(const fl_kernel_info *info, fl_dtype dtype) {
    for (int i = 0; i < BACKWARD_TESTS; i++)
        if (strcmp(info->op, backward_tests[i].op) == 0) {
            test_backward(&backward_tests[i], dtype, info->offset);
            return true;
        }
    for (int i = 0; i < KEEP_TESTS; i++)
        if (strcmp(info->op, keep_tests[i].op) == 0) {
            test_keep(&keep_tests[i], dtype, info->offset);
            return true;
        }
    static const struct {
        const char *op;
        void (*test)(fl_dtype dtype, size_t offset);
    } rest[] = {{"outer", test_outer}, {"sum", test_sum}, {"add", test_add}};
    for (int i = 0; i < 3; i++)
        if (strcmp(info->op, rest[i].op) == 0) {
            rest[i].test(dtype, info->offset);
            return true;
        }
    return false;
}

int main(void) {
    guarded *const large[] = {&memory_guard, &h_guard,  &c_guard,       &c_new_guard, &drh_guard, &peephole_guard,
                              &dh_guard,     &dc_guard, &between_guard, &dz_guard,    &a_guard,   &out_guard};
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++) *large[i] = guarded_create(1 << 19);
    for (int i = 0; i < CELL_ROWS; i++) dy_guard[i] = guarded_create(1024);
    for (int i = 0; i < MOST_DEPTH; i++) b_rows_guard[i] = guarded_create(1024);
    find_paths();
    test_list(true, test_one);
    return check_report();
}
