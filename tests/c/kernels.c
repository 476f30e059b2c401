/* Every kernel of the list but those of training (backward.c), by name, on every path that this CPU has, in both
 * dtypes: against a scalar oracle, between guard pages (data flush against the end, then against the beginning), into
 * NaN-filled outputs, every tail; nothing outside is written, inputs stay as they are, and the bits are those of every
 * other path. */
#include "guard.h"
#include "cells.h"

enum { MOST_ROWS = 32 };

/* --- product --- */

enum { MOST_DEPTH = 400, MOST_COLUMNS = 256, WEIGHTS_BYTES = 1 << 20 };
static guarded a_rows[4][MOST_ROWS], w_part[4], start_guard, out_guard;

/* Column n of packed weights lies in [panel][k][vec][lane]. */
static int64_t packed_at(const fl_kernels *k, int64_t vecs, int64_t depth, int64_t i, int64_t n) {
    const int64_t vec = n / k->lanes, panel = vec / k->panel_vecs, first = panel * k->panel_vecs;
    const int64_t width = vecs - first < k->panel_vecs ? vecs - first : k->panel_vecs;
    return (first * depth + i * width + (vec - first)) * k->lanes + n % k->lanes;
}

/* bfloat16 weights: two registers of a panel lane by lane, an odd one after them. */
static int64_t packed_bf16_at(const fl_kernels *k, int64_t vecs, int64_t depth, int64_t i, int64_t n) {
    const int64_t vec = n / k->lanes, first = vec / k->panel_vecs * k->panel_vecs, in_panel = vec - first;
    const int64_t width = vecs - first < k->panel_vecs ? vecs - first : k->panel_vecs;
    const int64_t round = (first * depth + i * width) * k->lanes;
    if (in_panel == width - 1 && width % 2) return round + in_panel * k->lanes + n % k->lanes;
    return round + in_panel / 2 * 2 * k->lanes + n % k->lanes * 2 + in_panel % 2;
}

static bool bf16; /* of the product that is tested */

static int64_t weight_bytes(int64_t size) { return bf16 ? 2 : size; }

static void put_weight(char *w, const fl_kernels *k, int64_t vecs, int64_t depth, int64_t i, int64_t n, double value) {
    if (!bf16) {
        put(w, k->element_bytes, packed_at(k, vecs, depth, i, n), value);
        return;
    }
    const float x = (float)value;
    memcpy(w + 2 * packed_bf16_at(k, vecs, depth, i, n), (const char *)&x + 2, 2); /* little endian: the upper half */
}

static double weight_at(const char *w, const fl_kernels *k, int64_t vecs, int64_t depth, int64_t i, int64_t n) {
    if (!bf16) return get(w, k->element_bytes, packed_at(k, vecs, depth, i, n));
    float x = 0;
    memcpy((char *)&x + 2, w + 2 * packed_bf16_at(k, vecs, depth, i, n), 2);
    return (double)x;
}

typedef enum start_kind { START_SHARED, START_ROWS, START_IS_OUT, START_KINDS } start_kind;

static double product_number(uint64_t tag, int64_t i, int64_t j) {
    uint64_t state = tag * 1000003 + (uint64_t)i * 8191 + (uint64_t)j;
    return random_unit(&state);
}

/* The sum that kernels.h defines, in float or in double. */
static double product_sum(int64_t size, double start, const double *const *a, const double *const *w,
                          const int64_t *depths, int64_t parts, bool apart) {
    double sum = start;
    for (int64_t k = 0; k < (apart ? depths[0] : 1); k += FL_PART_DEPTH)
        for (int64_t part = 0; part < parts; part++) {
            const bool from_zero = apart && part > 0;
            double chain = from_zero ? 0 : sum;
            const int64_t end = apart && k + FL_PART_DEPTH < depths[part] ? k + FL_PART_DEPTH : depths[part];
            for (int64_t i = k; i < end; i++)
                chain = size == 4 ? (double)fmaf((float)a[part][i], (float)w[part][i], (float)chain)
                                  : fma(a[part][i], w[part][i], chain);
            if (!from_zero) sum = chain;
            else sum = size == 4 ? (double)((float)sum + (float)chain) : sum + chain;
        }
    return sum;
}

static void product_case(const fl_kernels *k, int64_t rows, int64_t vecs, int64_t depth, int64_t parts, bool apart,
                         start_kind kind, bool at_end, bool with_nan) {
    static double a[4][MOST_ROWS][MOST_DEPTH], start[MOST_ROWS][MOST_COLUMNS], column[4][MOST_DEPTH];
    static char inputs[4 * MOST_ROWS * MOST_DEPTH * 8], weights[4][WEIGHTS_BYTES];
    const int64_t size = k->element_bytes, n = vecs * k->lanes, stride = n + k->lanes;
    const void *pointers[4][MOST_ROWS];
    const int64_t other = apart ? depth : depth % 3 + 1, depths[4] = {depth, other, other, other};
    fl_product_args p = {.rows = rows, .vecs = vecs, .parts = parts, .apart = apart};
    for (int64_t part = 0; part < parts; part++) {
        const int64_t d = depths[part];
        char *w = place(&w_part[part], n * d * weight_bytes(size), at_end);
        for (int64_t i = 0; i < d; i++)
            for (int64_t j = 0; j < n; j++) put_weight(w, k, vecs, d, i, j, product_number(7 + (uint64_t)part, i, j));
        memcpy(weights[part], w, (size_t)(n * d * weight_bytes(size)));
        for (int64_t r = 0; r < rows; r++) {
            char *row = place(&a_rows[part][r], d * size, at_end);
            for (int64_t i = 0; i < d; i++) {
                a[part][r][i] = product_number(100 + (uint64_t)part, r, i);
                if (with_nan && r == rows / 2 && i == d / 2) a[part][r][i] = part ? INFINITY : NAN;
                put(row, size, i, a[part][r][i]);
                put(inputs, size, (part * MOST_ROWS + r) * MOST_DEPTH + i, a[part][r][i]);
            }
            pointers[part][r] = row;
        }
        p.part[part] = (fl_product_part){.depth = d, .a = pointers[part], .w = w};
    }
    char *out = place(&out_guard, ((rows - 1) * stride + n) * size, at_end);
    char *from = out;
    const int64_t start_stride = kind == START_IS_OUT ? stride : kind == START_ROWS ? n + 3 : 0;
    if (kind != START_IS_OUT) from = place(&start_guard, ((rows - 1) * start_stride + n) * size, at_end);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < n; j++) {
            start[r][j] = product_number(9, kind == START_SHARED ? 0 : r, j);
            put(from, size, r * start_stride + j, start[r][j]);
        }
    p.start = from;
    p.start_stride = start_stride;
    p.out = out;
    p.out_stride = stride;
    const fl_fp_mode mode = fl_fp_begin();
    if (bf16) k->product_bf16(&p);
    else k->product(&p);
    fl_fp_end(mode);

    bool right = true, gaps = true, kept = true;
    for (int64_t j = 0; j < n; j++) {
        const double *const columns[4] = {column[0], column[1], column[2], column[3]};
        for (int64_t part = 0; part < parts; part++)
            for (int64_t i = 0; i < depths[part]; i++)
                column[part][i] = weight_at(weights[part], k, vecs, depths[part], i, j);
        for (int64_t r = 0; r < rows; r++) {
            const double *const of_row[4] = {a[0][r], a[1][r], a[2][r], a[3][r]};
            const double from = size == 4 ? (double)(float)start[r][j] : start[r][j];
            const double wanted = product_sum(size, from, of_row, columns, depths, parts, apart);
            double want[1], bound = fabs(start[r][j]);
            for (int64_t part = 0; part < parts; part++)
                for (int64_t i = 0; i < depths[part]; i++) bound += fabs(a[part][r][i] * column[part][i]);
            put(want, size, 0, wanted);
            const double got = get(out, size, r * stride + j);
            if (exact_fma) right = right && same_bits(out + (r * stride + j) * size, want, size, 0);
            else
                right = right && (isnan(got) == isnan(wanted)) &&
                        (isnan(got) || fabs(got - wanted) <= bound * (size == 4 ? 1e-5 : 1e-14) || got == wanted);
        }
    }
    for (int64_t r = 0; r < rows - 1; r++)
        gaps = gaps && untouched(out + (r * stride + n) * size, (stride - n) * size, 0xff);
    for (int64_t part = 0; part < parts; part++) {
        kept = kept && memcmp(weights[part], w_part[part].data, (size_t)(n * depths[part] * weight_bytes(size))) == 0;
        kept = kept && margin_untouched(&w_part[part]);
        for (int64_t r = 0; r < rows; r++)
            kept = kept && margin_untouched(&a_rows[part][r]) &&
                   memcmp(inputs + (part * MOST_ROWS + r) * MOST_DEPTH * size, pointers[part][r],
                          (size_t)(depths[part] * size)) == 0;
    }
    if (kind != START_IS_OUT) kept = kept && margin_untouched(&start_guard);
    const char *what = kind == START_SHARED ? "shared start" : kind == START_ROWS ? "start rows" : "start is out";
#define PRODUCT "product%s_%s_%s: rows %lld, vecs %lld, depth %lld, parts %lld%s, %s, %s%s: %s"
#define PRODUCT_ARGUMENTS                                                                                       \
    bf16 ? "_bf16" : "", size == 4 ? "f32" : "f64", k->isa, (long long)rows, (long long)vecs, (long long)depth, \
        (long long)parts, apart ? " apart" : "", what, at_end ? "at the end" : "at the beginning",              \
        with_nan ? ", NaN" : ""
    check(right, PRODUCT, PRODUCT_ARGUMENTS, "wrong result");
    check(gaps, PRODUCT, PRODUCT_ARGUMENTS, "wrote between rows");
    check(kept && margin_untouched(&out_guard), PRODUCT, PRODUCT_ARGUMENTS, "wrote outside");
}

static void test_product(const fl_kernels *k, const fl_kernel_info *info) {
    bf16 = strcmp(info->op, "product_bf16") == 0;
    static const int64_t depths[] = {1, 2, 3, 4, 5, 7, 33};
    for (int64_t rows = 0; rows <= 15; rows++)
        for (int64_t vecs = 1; vecs <= 13; vecs++)
            for (int d = 0; d < 7; d++)
                for (int64_t parts = 1; parts <= 2; parts++)
                    for (int kind = 0; kind < START_KINDS; kind++)
                        for (int at_end = 0; at_end < 2; at_end++) {
                            /* The long ones are for the loop's own tails; the rows' are seen at the short ones. */
                            if ((depths[d] > 5 && kind != START_ROWS) || (rows == 15 && (vecs > 5 || d % 2))) continue;
                            product_case(k,
                                         rows == 15 ? 31
                                         : rows     ? rows
                                                    : 1,
                                         vecs, depths[d], parts, false, (start_kind)kind, at_end,
                                         rows == 0 || (rows == 7 && d == 2));
                        }
    /* Deep enough to be summed by stretches. */
    static const int64_t deep[] = {7, 128, 129, 400}, some_rows[] = {1, 2, 5, 13}, some_vecs[] = {1, 3, 4, 9};
    for (int i = 0; i < 4 * 4 * 4 * 4; i++) {
        const int d = i % 4, r = i / 4 % 4, parts = i / 16 % 4 + 1;
        const int64_t rows = some_rows[r], vecs = some_vecs[i / 64];
        const start_kind kind = (start_kind)(i % START_KINDS);
        if (!bf16) product_case(k, rows, vecs, deep[d], parts, true, kind, r % 2, r == 1 && d == 2);
        if (parts <= 2 && d > 1) product_case(k, rows, vecs, deep[d], parts, false, kind, r % 2, r == 1 && d == 2);
    }
    /* No rows: nothing is touched. */
    fl_product_args p = {.rows = 0, .vecs = 3, .parts = 1, .part = {{.depth = 5}}};
    if (bf16) k->product_bf16(&p);
    else k->product(&p);
}

/* --- cells --- */

/* One unit: gates of z and zx, h and c before the step, to h_out and c. */
typedef struct unit {
    long double z[4], zx[3], h, c, peephole[3];
} unit;

typedef struct result {
    long double h, c;
    long double size; /* of what h was summed from, its factors' errors included: rounding is relative to that */
} result;

typedef result cell_oracle(const fl_cell_options *s, const unit *u);

static result lstm_oracle(const fl_cell_options *s, const unit *u) {
    const long double *p = u->peephole;
    const long double pi = s->peepholes ? p[0] * u->c : 0, pf = s->peepholes ? p[1] * u->c : 0;
    const long double i = activate(&s->act[0], limit(s, u->z[0] + pi));
    const long double own_f = activate(&s->act[0], limit(s, u->z[1] + pf));
    const long double f = s->coupled_gates ? 1 - i : s->forget_gate ? own_f : 1;
    const long double c = f * u->c + i * activate(&s->act[1], limit(s, u->z[2]));
    const long double o = activate(&s->act[0], limit(s, u->z[3] + (s->peepholes ? p[2] * c : 0)));
    const long double size = 1 + (1 + fabsl(f)) * fabsl(u->c) + fabsl(i) + fabsl(c);
    return (result){o * activate(&s->act[2], c), c, size * (1 + (isnan(o) ? 0 : fabsl(o)))};
}

static result gru_oracle(const fl_cell_options *s, const unit *u) {
    const long double r = activate(&s->act[0], limit(s, u->zx[0] + u->z[0]));
    const long double z = activate(&s->act[0], limit(s, u->zx[1] + u->z[1]));
    const long double n = activate(&s->act[1], limit(s, u->zx[2] + r * u->z[2]));
    return (result){(1 - z) * n + z * u->h, 0, (1 + fabsl(z)) * (1 + fabsl(n) + fabsl(r * u->z[2]) + fabsl(u->h))};
}

static result gru_reset_oracle(const fl_cell_options *s, const unit *u) {
    return (result){activate(&s->act[0], limit(s, u->zx[0] + u->z[0])) * u->h, limit(s, u->zx[1] + u->z[1]),
                    1 + fabsl(u->zx[1]) + fabsl(u->z[0]) + fabsl(u->z[1])};
}

static result gru_candidate_oracle(const fl_cell_options *s, const unit *u) {
    const long double z = activate(&s->act[0], u->c);
    const long double n = activate(&s->act[1], limit(s, u->zx[2] + u->z[0]));
    return (result){(1 - z) * n + z * u->h, u->c, (1 + fabsl(z)) * (1 + fabsl(n) + fabsl(u->h))};
}

static result rnn_oracle(const fl_cell_options *s, const unit *u) {
    const long double h = activate(&s->act[0], limit(s, u->z[0]));
    return (result){h, 0, 1 + fabsl(h)};
}

static result gated_rnn_oracle(const fl_cell_options *s, const unit *u) {
    const long double g = activate(&s->act[0], limit(s, u->z[0])), n = activate(&s->act[1], limit(s, u->z[1]));
    return (result){(1 - g) * u->h + g * n, 0, (1 + fabsl(g)) * (1 + fabsl(n) + fabsl(u->h))};
}

typedef struct cell_test {
    const char *op;
    cell_oracle *oracle;
    int gates, x_gates;
    bool has_c, writes_c, general;
    int roles;
    fl_activation_kind own[3];
} cell_test;

static const cell_test cell_tests[] = {
    {"lstm", lstm_oracle, 4, 0, true, true, false, 3, {FL_SIGMOID, FL_TANH, FL_TANH}},
    {"lstm_general", lstm_oracle, 4, 0, true, true, true, 3, {FL_SIGMOID, FL_TANH, FL_TANH}},
    {"gru", gru_oracle, 3, 3, false, false, false, 2, {FL_SIGMOID, FL_TANH}},
    {"gru_general", gru_oracle, 3, 3, false, false, true, 2, {FL_SIGMOID, FL_TANH}},
    {"gru_reset", gru_reset_oracle, 2, 3, true, true, true, 2, {FL_SIGMOID, FL_TANH}},
    {"gru_candidate", gru_candidate_oracle, 1, 3, true, false, true, 2, {FL_SIGMOID, FL_TANH}},
    {"rnn", rnn_oracle, 1, 0, false, false, false, 1, {FL_TANH}},
    {"rnn_general", rnn_oracle, 1, 0, false, false, true, 1, {FL_TANH}},
    {"gated_rnn", gated_rnn_oracle, 2, 0, false, false, false, 2, {FL_SIGMOID, FL_TANH}},
    {"gated_rnn_general", gated_rnn_oracle, 2, 0, false, false, true, 2, {FL_SIGMOID, FL_TANH}},
};

enum { CELL_TESTS = sizeof cell_tests / sizeof cell_tests[0] };

static guarded z_guard, zx_guard, h_guard, h_out_guard, c_guard, peephole_guard, y_guard[CELL_ROWS];

/* What every path makes of the same numbers: [rows][units]. */
static char first_h[CELL_ROWS * MOST_H * 8], first_c[CELL_ROWS * MOST_H * 8];

static double cell_number(uint64_t tag, int64_t row, int64_t u, int variant, bool wild) {
    uint64_t state = tag * 7919 + (uint64_t)row * 104729 + (uint64_t)u * 31 + (uint64_t)variant * 65537;
    const uint64_t dice = random_bits(&state) % 64;
    const double x = random_unit(&state) * 3;
    if (tag >= 20) return x; /* states, peepholes */
    if (dice == 2) return NAN;
    if (!wild) return dice < 10 ? x * 3 : x;
    if (dice == 0) return 1e30;
    if (dice == 1) return -1e30;
    if (dice == 3) return INFINITY;
    if (dice == 4) return -INFINITY;
    if (dice < 10) return x * 40;
    return dice == 10 ? 0 : x;
}

static void cell_case(const cell_test *t, const fl_kernels *k, fl_cell_fn *fn, const fl_cell_options *options,
                      int variant, int64_t hidden, int64_t begin, int64_t end, bool with_y, bool at_end, bool first) {
    const int64_t size = k->element_bytes, lanes = k->lanes, stride = fl_round_up(hidden, lanes);
    const int64_t rows = hidden % 5 ? CELL_ROWS : 1, units = end - begin;
    const int64_t z_stride = units * t->gates + 2, zx_stride = units * t->x_gates + 5, y_offset = 3;
    char *z = place(&z_guard, ((rows - 1) * z_stride + units * t->gates) * size, at_end);
    char *zx = t->x_gates ? place(&zx_guard, ((rows - 1) * zx_stride + units * 3) * size, at_end) : NULL;
    char *h = place(&h_guard, rows * stride * size, at_end);
    char *h_out = place(&h_out_guard, rows * stride * size, at_end);
    char *c = t->has_c ? place(&c_guard, rows * stride * size, at_end) : NULL;
    char *peephole = options->peepholes ? place(&peephole_guard, 3 * stride * size, at_end) : NULL;
    void *y[CELL_ROWS];
    const bool wild = saturates(options);
    static unit unit_of[CELL_ROWS][MOST_H];
    for (int64_t r = 0; r < rows; r++) {
        y[r] = place(&y_guard[r], (y_offset + hidden) * size, at_end);
        for (int64_t u = 0; u < hidden; u++) {
            unit *one = &unit_of[r][u];
            double v;
            /* Column of gate g of unit u: blocks of `lanes` units, the last one as wide as what remains. */
            const int64_t block = u / lanes * lanes, width = hidden - block < lanes ? hidden - block : lanes;
            for (int g = 0; g < t->gates; g++) {
                put(&v, size, 0, cell_number((uint64_t)g, r, u, variant, wild));
                one->z[g] = get(&v, size, 0);
                if (u >= begin && u < end)
                    put(z, size, r * z_stride + (block - begin) * t->gates + g * width + u - block, (double)one->z[g]);
            }
            for (int g = 0; g < t->x_gates; g++) {
                put(&v, size, 0, cell_number(10 + (uint64_t)g, r, u, variant, wild));
                one->zx[g] = get(&v, size, 0);
                if (u >= begin && u < end)
                    put(zx, size, r * zx_stride + (block - begin) * 3 + g * width + u - block, (double)one->zx[g]);
            }
            put(h, size, r * stride + u, cell_number(20, r, u, variant, wild));
            one->h = get(h, size, r * stride + u);
            if (t->has_c) {
                /* c, thousands among them; NaN in one unit */
                put(c, size, r * stride + u, u == 5 ? NAN : cell_number(21, r, u, variant, wild) * (u % 7 ? 1 : 1000));
                one->c = get(c, size, r * stride + u);
            }
            for (int g = 0; g < 3 && peephole; g++) {
                put(peephole, size, g * stride + u, cell_number(22 + (uint64_t)g, 0, u, variant, wild) / 4);
                one->peephole[g] = get(peephole, size, g * stride + u);
            }
        }
    }
    static char h_before[1 << 14];
    memcpy(h_before, h, (size_t)(rows * stride * size));
    const fl_cell_args p = {
        .rows = rows,
        .hidden = hidden,
        .begin = begin,
        .end = end,
        .z = z,
        .z_stride = z_stride,
        .zx = zx,
        .zx_stride = zx_stride,
        .h = h,
        .h_out = h_out,
        .c = c,
        .c_out = c,
        .state_stride = stride,
        .y = with_y ? y : NULL,
        .y_offset = y_offset,
        .peephole = peephole,
        .options = options,
    };
    const fl_fp_mode mode = fl_fp_begin();
    fn(&p);
    fl_fp_end(mode);

    const double eps = size == 4 ? 0x1p-23 : 0x1p-52;
    bool right = true, outside = true, bits = true, copied = true;
    double worst = 0;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t u = 0; u < hidden; u++) {
            const int64_t i = r * stride + u;
            const bool inside = u >= begin && u < end;
            if (!inside) {
                /* The padding of a block may hold anything, but another block is another worker's. */
                outside = outside && untouched(h_out + i * size, size, 0xff) &&
                          (!t->has_c || isnan(get(c, size, i)) == isnan((double)unit_of[r][u].c)) &&
                          (!t->has_c || isnan(get(c, size, i)) || get(c, size, i) == (double)unit_of[r][u].c);
                outside = outside && untouched((char *)y[r] + (y_offset + u) * size, size, 0xff);
                continue;
            }
            const result want = t->oracle(options, &unit_of[r][u]);
            const double got[2] = {get(h_out, size, i), t->has_c ? get(c, size, i) : 0};
            const double wanted[2] = {(double)want.h, (double)(t->writes_c ? want.c : t->has_c ? unit_of[r][u].c : 0)};
            for (int v = 0; v < 2; v++) {
                double as_type;
                put(&as_type, size, 0, wanted[v]); /* 1e30 times 1e30 is inf in float */
                const double w = get(&as_type, size, 0), scale = fmax(1, (double)want.size);
                if (isnan(w) || isinf(w) || isnan(got[v]) || isinf(got[v])) {
                    right = right && (w == got[v] || (isnan(w) && isnan(got[v])));
                    continue;
                }
                worst = fmax(worst, fabs(got[v] - w) / scale / eps);
                right = right && fabs(got[v] - w) <= 16 * eps * scale;
            }
            if (with_y) copied = copied && same_bits((char *)y[r] + (y_offset + u) * size, h_out + i * size, size, 0);
            else copied = copied && untouched((char *)y[r] + (y_offset + u) * size, size, 0xff);
            char *first_seen = first_h + (r * MOST_H + u) * size, *first_state = first_c + (r * MOST_H + u) * size;
            if (first) {
                memcpy(first_seen, h_out + i * size, (size_t)size);
                if (t->has_c) memcpy(first_state, c + i * size, (size_t)size);
            } else {
                bits = bits && same_bits(first_seen, h_out + i * size, size, 0);
                if (t->has_c) bits = bits && same_bits(first_state, c + i * size, size, 0);
            }
        }
        outside = outside && untouched(y[r], y_offset * size, 0xff) && margin_untouched(&y_guard[r]);
    }
    outside = outside && margin_untouched(&z_guard) && margin_untouched(&h_guard) && margin_untouched(&h_out_guard) &&
              (!zx || margin_untouched(&zx_guard)) && (!c || margin_untouched(&c_guard)) &&
              (!peephole || margin_untouched(&peephole_guard)) &&
              memcmp(h_before, h, (size_t)(rows * stride * size)) == 0;
#define CELL "%s_%s_%s: H %lld, units %lld to %lld, variant %d, %s, %s: %s"
#define CELL_ARGUMENTS                                                                                      \
    t->op, size == 4 ? "f32" : "f64", k->isa, (long long)hidden, (long long)begin, (long long)end, variant, \
        with_y ? "y" : "no y", at_end ? "at the end" : "at the beginning"
    check(right, CELL " by %.3g eps", CELL_ARGUMENTS, "wrong result", worst);
    check(outside, CELL, CELL_ARGUMENTS, "wrote outside");
    check(copied, CELL, CELL_ARGUMENTS, with_y ? "y is not the new state" : "wrote y");
    if (exact_fma) check(bits, CELL, CELL_ARGUMENTS, "other bits than the first path");
}

/* All paths at once, the first as the measure of the others. */
static void test_cell(const cell_test *t, fl_dtype dtype, size_t offset) {
    fl_cell_options list[MOST_VARIANTS];
    const int count = cell_variants(t->own, t->roles, t->general, t->gates == 4, list);
    for (int variant = 0; variant < count; variant++)
        for (int64_t hidden = 1; hidden <= MOST_H; hidden++)
            for (int path = 0; path < path_count; path++) {
                const fl_kernels *k = fl_kernels_named(paths[path], dtype);
                fl_cell_fn *fn;
                memcpy(&fn, (const char *)k + offset, sizeof fn);
                const int64_t lanes = k->lanes, last = hidden / lanes * lanes;
                const bool no_y = strcmp(t->op, "gru_reset") == 0; /* the second phase writes it */
                cell_case(t, k, fn, &list[variant], variant, hidden, 0, hidden, !no_y, true, path == 0);
                cell_case(t, k, fn, &list[variant], variant, hidden, 0, hidden, false, false, false);
                const int64_t middle = lanes < last ? lanes : last;
                if (middle && middle < hidden) {
                    cell_case(t, k, fn, &list[variant], variant, hidden, middle, hidden, !no_y, false, false);
                    cell_case(t, k, fn, &list[variant], variant, hidden, 0, middle, !no_y, true, false);
                }
                if (last > middle) {
                    cell_case(t, k, fn, &list[variant], variant, hidden, middle, last, false, true, false);
                    cell_case(t, k, fn, &list[variant], variant, hidden, middle, last, !no_y, false, false);
                }
            }
}

/* --- maps --- */

enum { MOST_MAP = 67 };

static long double map_oracle(const char *op, long double a, long double b) {
    const bool s = strncmp(op, "sigmoid", 7) == 0, t = strcmp(op, "tanh") == 0 || strcmp(op, "sigmoid_tanh") == 0;
    return (s ? sigma(a) : 1) * (t ? tanhl(s ? b : a) : 1);
}

static void test_map(const char *op, fl_dtype dtype, size_t offset) {
    static char first[MOST_MAP * 8];
    const double eps = dtype == FL_FLOAT32 ? 0x1p-23 : 0x1p-52, bound = fl_kernel_bound(op, dtype);
    check(bound > 0, "%s: no bound stated", op);
    for (int64_t n = 0; n <= MOST_MAP; n++)
        for (int path = 0; path < path_count; path++)
            for (int at_end = 0; at_end < 2; at_end++) {
                const fl_kernels *k = fl_kernels_named(paths[path], dtype);
                const int64_t size = k->element_bytes;
                fl_map_fn *fn;
                memcpy(&fn, (const char *)k + offset, sizeof fn);
                char *a = place(&z_guard, n * size, at_end), *b = place(&h_guard, n * size, at_end);
                char *out = place(&h_out_guard, n * size, at_end);
                for (int64_t i = 0; i < n; i++) {
                    put(a, size, i, cell_number(1, 0, i, 1, true));
                    put(b, size, i, cell_number(2, 0, i, 1, true));
                }
                const fl_fp_mode mode = fl_fp_begin();
                fn(a, b, out, n);
                fl_fp_end(mode);
                bool right = true, bits = true;
                for (int64_t i = 0; i < n; i++) {
                    const long double w = map_oracle(op, get(a, size, i), get(b, size, i));
                    const double got = get(out, size, i);
                    right = right && (isnan((double)w) == isnan(got)) &&
                            (isnan(got) || fabsl(got - w) <= bound * eps * fabsl(w) ||
                             (fabsl(w) < (size == 4 ? 1.2e-38 : 2.3e-308) && got == 0));
                }
                if (path == 0 && !at_end) memcpy(first, out, (size_t)(n * size));
                else bits = first_difference(first, out, size, n) < 0;
                const char *type = size == 4 ? "f32" : "f64";
                check(right, "%s_%s_%s: n %lld: wrong result", op, type, k->isa, (long long)n);
                if (path || at_end)
                    check(bits || !exact_fma, "%s_%s_%s: n %lld: other bits", op, type, k->isa, (long long)n);
                check(margin_untouched(&z_guard) && margin_untouched(&h_guard) && margin_untouched(&h_out_guard),
                      "%s_%s_%s: n %lld: wrote outside", op, type, k->isa, (long long)n);
            }
}

/* --- activations over arrays --- */

/* Numbers of all sizes, and what is neither. */
static double odd_number(int stream, int64_t i) {
    static const double odd[] = {0, -0.0, 1, -1, 0.25, 1e30, -1e30, INFINITY, -INFINITY, NAN};
    return i % 3 == 2 ? odd[i / 3 % 10] : cell_number(stream, 0, i, 1, true);
}

static bool activated(double got, long double want, long double terms, double eps, int64_t size) {
    if (isnan(want) || fabsl(want) > (size == 4 ? 1e38L : 1e308L)) return isnan(got) || fabsl(want) > 1e30L;
    return fabsl(got - want) <= 6 * eps * (fabsl(want) + terms) + (size == 4 ? 1.2e-38L : 2.3e-308L);
}

/* f and dy f' of one kind, against long double, at both ends of guarded memory, with the bits of the first path. */
static void activate_case(const fl_activation *f, fl_dtype dtype, const fl_kernels *k, int64_t n, int at_end,
                          char *first, bool is_first) {
    const int64_t size = k->element_bytes;
    const double eps = size == 4 ? 0x1p-23 : 0x1p-52;
    char *x = place(&z_guard, n * size, at_end), *dy = place(&h_guard, n * size, at_end);
    char *y = place(&h_out_guard, n * size, at_end), *dx = place(&c_guard, n * size, at_end);
    for (int64_t i = 0; i < n; i++) {
        put(x, size, i, odd_number(1, i));
        put(dy, size, i, cell_number(2, 0, i, 1, true));
    }
    check(fl_kernels_named(k->isa, dtype) == k, "the table of another path");
    const fl_fp_mode mode = fl_fp_begin();
    k->activate(f, x, y, n);
    k->activate_backward(f, x, dy, dx, n);
    fl_fp_end(mode);
    bool right = true, slopes = true;
    for (int64_t i = 0; i < n; i++) {
        const double at = get(x, size, i), d = get(dy, size, i);
        const long double alpha = f->alpha, beta = f->beta, bend = 1 + fabsl(alpha * beta) + fabsl(alpha);
        const long double terms =
            f->kind == FL_AFFINE || f->kind == FL_HARD_SIGMOID ? fabsl(alpha * at) + fabsl(beta) : 0;
        right = right && activated(get(y, size, i), activate(f, at), isnan(terms) ? 0 : terms, eps, size);
        /* Slopes are differences such as 1 - y y; what a kink makes of NaN is not said. */
        if (isnan(at) || fabs(at) > 1e29) continue;
        slopes = slopes && activated(get(dx, size, i), d * slope_at(f, at), fabsl(d) * bend, eps, size);
    }
    check(right, "activate_%s: kind %d, n %lld: wrong", k->isa, (int)f->kind, (long long)n);
    check(slopes, "activate_backward_%s: kind %d, n %lld: wrong", k->isa, (int)f->kind, (long long)n);
    if (is_first) {
        memcpy(first, y, (size_t)(n * size));
        memcpy(first + MOST_MAP * 8, dx, (size_t)(n * size));
    } else if (exact_fma) {
        check(first_difference(first, y, size, n) < 0, "activate_%s: kind %d: other bits", k->isa, (int)f->kind);
        check(first_difference(first + MOST_MAP * 8, dx, size, n) < 0, "activate_backward_%s: kind %d: other bits",
              k->isa, (int)f->kind);
    }
    check(margin_untouched(&z_guard) && margin_untouched(&h_guard) && margin_untouched(&h_out_guard) &&
              margin_untouched(&c_guard),
          "activate_%s: n %lld: wrote outside", k->isa, (long long)n);
}

static void test_activate(fl_dtype dtype) {
    static char first[2 * MOST_MAP * 8];
    static const double alpha[11] = {0, 0, 0, 0.75, 0.125, 0.25, 1.5, 0.25, 0.75, 0, 0};
    static const double beta[11] = {0, 0, 0, 0.25, 0, 0, 0.5, 0.5, 0, 0, 0};
    for (int kind = 0; kind < 11; kind++)
        for (int64_t n = 0; n <= MOST_MAP; n += n < 20 ? 1 : 9)
            for (int path = 0; path < path_count; path++)
                for (int at_end = 0; at_end < 2; at_end++) {
                    const fl_activation f = {kind, alpha[kind], beta[kind]};
                    activate_case(&f, dtype, fl_kernels_named(paths[path], dtype), n, at_end, first,
                                  path == 0 && !at_end);
                }
}

/* What fl_activate and fl_activate_backward refuse; and that outputs may be inputs. */
static void test_activate_calls(void) {
    fl_activation f = {FL_ELU, 0.5, 0}, wrong = {11, 0, 0}, endless = {FL_AFFINE, INFINITY, 0};
    float x[3] = {-1, 0.5f, 2}, y[3], dy[3] = {1, 2, 3};
    check(fl_activate(FL_FLOAT32, &f, 3, x, y) == FL_OK && y[2] == 2 && y[0] < 0, "activate");
    check(fl_activate_backward(FL_FLOAT32, &f, 3, x, dy, dy) == FL_OK && dy[2] == 3 && dy[0] < 0.5f,
          "backwards in place");
    check(fl_activate(FL_FLOAT32, &f, 3, x, x) == FL_OK && !memcmp(x, y, sizeof x), "in place");
    check(fl_activate(FL_FLOAT32, &f, 0, NULL, NULL) == FL_OK, "nothing");
    check(fl_activate((fl_dtype)2, &f, 3, x, y) == FL_BAD_ARGUMENT, "dtype");
    check(fl_activate(FL_FLOAT32, NULL, 3, x, y) == FL_BAD_ARGUMENT, "no f");
    check(fl_activate(FL_FLOAT32, &wrong, 3, x, y) == FL_BAD_ARGUMENT, "kind");
    check(fl_activate(FL_FLOAT32, &endless, 3, x, y) == FL_BAD_ARGUMENT, "alpha");
    check(fl_activate(FL_FLOAT32, &f, -1, x, y) == FL_BAD_ARGUMENT, "n -1");
    check(fl_activate(FL_FLOAT32, &f, INT64_MAX, x, y) == FL_BAD_ARGUMENT, "n huge");
    check(fl_activate(FL_FLOAT32, &f, 3, NULL, y) == FL_BAD_ARGUMENT, "no x");
    check(fl_activate_backward(FL_FLOAT32, &f, 3, x, NULL, y) == FL_BAD_ARGUMENT, "no dy");
}

/* --- roofs --- */

static void test_roof(const fl_kernels *k, const fl_kernel_info *info) {
    const int64_t size = k->element_bytes;
    fl_roof_fn *fn;
    memcpy(&fn, (const char *)k + info->offset, sizeof fn);
    for (int at_end = 0; at_end < 2; at_end++) {
        if (strcmp(info->op, "roof_fma") == 0) {
            memset(place(&z_guard, 12 * k->lanes * size, at_end), 0, (size_t)(12 * k->lanes * size));
            check(fn(z_guard.data, 5) == 5 * 12 * k->lanes * 2, "%s_%s: count", info->op, k->isa);
        } else if (strcmp(info->op, "roof_chain") == 0) {
            memset(place(&z_guard, k->lanes * size, at_end), 0, (size_t)(k->lanes * size));
            check(fn(z_guard.data, 5) == 5 * 4, "%s_%s: count", info->op, k->isa);
        } else {
            const int64_t bytes = 3 * 8 * k->lanes * size;
            memset(place(&z_guard, bytes, at_end), 0, (size_t)bytes);
            check(fn(z_guard.data, bytes) == bytes, "%s_%s: bytes", info->op, k->isa);
            check(fn(z_guard.data, bytes - 1) == bytes / 3 * 2, "%s_%s: whole groups", info->op, k->isa);
        }
        check(margin_untouched(&z_guard), "%s_%s: wrote", info->op, k->isa);
    }
}

/* --- the list --- */

static void test_tables(void) {
    for (int dtype = 0; dtype < 2; dtype++)
        for (int path = 0; path < path_count; path++) {
            const fl_kernels *k = fl_kernels_named(paths[path], (fl_dtype)dtype);
            check(k && strcmp(k->isa, paths[path]) == 0, "%s: the table is of another path", paths[path]);
            check(k->element_bytes == (dtype == FL_FLOAT32 ? 4 : 8), "%s: element size", paths[path]);
            const fl_kernel_info *info;
            for (int64_t i = 0; (info = fl_kernel_at(i)) != NULL; i++) {
                if (info->integer || (dtype && !info->f64)) continue;
                check(pointer_of(k, info) != NULL, "%s_%s: none", info->op, k->isa);
                check(info->doc && *info->doc, "%s: no description", info->op);
                for (int other = 0; other < 2 * path && info->f64; other++) {
                    const fl_kernels *o = fl_kernels_named(paths[other / 2], (fl_dtype)(other % 2));
                    check(pointer_of(k, info) != pointer_of(o, info), "%s_%s is that of %s", info->op, k->isa, o->isa);
                }
            }
        }
    check(fl_kernels_named("none", FL_FLOAT32) == NULL, "a table for a path that is not there");
    check(fl_kernel_at(-1) == NULL, "a kernel at -1");
    check(fl_kernel_bound("none", FL_FLOAT32) == 0, "a bound for nothing");
}

/* A forced path is every layer's; else a layer that fills half a register of AVX-512 takes AVX2. */
static void test_narrow(void) {
    const char *wanted = getenv("FASTLSTM_ISA");
    for (int dtype = 0; dtype < 2; dtype++) {
        const fl_kernels *best = fl_kernels_of((fl_dtype)dtype);
        const bool narrows = !(wanted && *wanted) && strcmp(best->isa, "avx512") == 0;
        for (int64_t units = 1; units <= best->lanes + 1; units++) {
            fl_config config;
            fl_layer *layer = NULL;
            fl_config_init(&config, FL_LSTM, 1, units);
            config.dtype = dtype;
            check(fl_create(&config, &layer) == FL_OK, "no layer of %d units", (int)units);
            const char *isa = narrows && units <= best->lanes / 2 ? "avx2" : best->isa;
            check(layer && strcmp(layer->kernels->isa, isa) == 0, "%d units on %s, wanted %s", (int)units,
                  layer ? layer->kernels->isa : "nothing", isa);
            fl_free(layer);
        }
    }
}

static bool test_one(const fl_kernel_info *info, fl_dtype dtype) {
    if (strcmp(info->type, "fl_map_fn") == 0) {
        test_map(info->op, dtype, info->offset);
        return true;
    }
    if (strncmp(info->op, "activate", 8) == 0) {
        test_activate(dtype); /* forward and backward */
        return true;
    }
    for (int i = 0; i < CELL_TESTS; i++)
        if (strcmp(info->op, cell_tests[i].op) == 0) {
            test_cell(&cell_tests[i], dtype, info->offset);
            return true;
        }
    void (*each)(const fl_kernels *, const fl_kernel_info *) = strncmp(info->op, "product", 7) == 0 ? test_product
                                                               : strncmp(info->op, "roof_", 5) == 0 ? test_roof
                                                                                                    : NULL;
    if (!each) return false;
    for (int path = 0; path < path_count; path++) each(fl_kernels_named(paths[path], dtype), info);
    return true;
}

int main(void) {
    for (int part = 0; part < 4; part++) {
        w_part[part] = guarded_create(WEIGHTS_BYTES);
        for (int r = 0; r < MOST_ROWS; r++) a_rows[part][r] = guarded_create(MOST_DEPTH * 8 + MARGIN);
    }
    guarded *large[] = {&start_guard, &out_guard,      &z_guard,    &zx_guard,   &h_guard,   &h_out_guard,
                        &c_guard,     &peephole_guard, &y_guard[0], &y_guard[1], &y_guard[2]};
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++) *large[i] = guarded_create(1 << 18);
    find_paths();
    test_tables();
    test_narrow();
    test_activate_calls();
    test_list(false, test_one);
    return check_report();
}
