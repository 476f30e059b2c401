/* Every kernel of the list, by name, on every path that this CPU has, in both dtypes: against a scalar oracle, between
 * guard pages (data flush against the end, then against the beginning), into NaN-filled outputs, every tail; nothing
 * outside is written, inputs stay as they are, and the bits are those of every other path. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "check.h"
#include "internal.h"

#include <sys/mman.h>
#include <unistd.h>

enum { MARGIN = 256, CANARY = 0xa5, MOST_ROWS = 32, MOST_H = 40 };

/* --- guarded buffers --- */

typedef struct guarded {
    char *begin, *end; /* between two pages that nobody may touch */
    char *data;
    int64_t bytes;
} guarded;

static guarded guarded_create(int64_t capacity) {
    const int64_t page = sysconf(_SC_PAGESIZE), room = (capacity + page - 1) / page * page;
    char *map = mmap(NULL, (size_t)(room + 2 * page), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + page, (size_t)room, PROT_READ | PROT_WRITE) != 0) {
        perror("mmap");
        exit(2);
    }
    return (guarded){map + page, map + page + room, map + page, 0};
}

/* Room for `bytes`, flush against one guard page, with a margin of canaries on the other side; filled with NaN. */
static void *place(guarded *g, int64_t bytes, bool at_end) {
    if (bytes + MARGIN > g->end - g->begin) {
        fprintf(stderr, "guarded buffer too small for %lld bytes\n", (long long)bytes);
        exit(2);
    }
    g->bytes = bytes;
    g->data = at_end ? g->end - bytes : g->begin;
    memset(at_end ? g->data - MARGIN : g->data + bytes, CANARY, MARGIN);
    memset(g->data, 0xff, (size_t)bytes); /* NaN in either dtype */
    return g->data;
}

static bool untouched(const char *from, int64_t bytes, int byte) {
    for (int64_t i = 0; i < bytes; i++)
        if ((unsigned char)from[i] != byte) return false;
    return true;
}

static bool margin_untouched(const guarded *g) {
    return untouched(g->data == g->begin ? g->data + g->bytes : g->data - MARGIN, MARGIN, CANARY);
}

/* --- the paths --- */

enum { MOST_PATHS = 8 };
static const char *paths[MOST_PATHS];
static int path_count;
static bool exact_fma; /* of all paths: portable without a fused multiply-add keeps bits of its own */

/* Whether the products of this path are rounded once: 2^-12 + 1 squared differs. */
static bool fuses(const char *isa) {
    const fl_kernels *k = fl_kernels_named(isa, FL_FLOAT32);
    float w[64] = {0}, start[64] = {0}, out[64], a = 1 + 0x1p-12f;
    w[0] = a;
    start[0] = -1 - 0x1p-11f;
    const void *rows[] = {&a};
    fl_product_args p = {.rows = 1, .vecs = 1, .parts = 1, .part = {{1, rows, w}}, .start = start, .out = out};
    k->product(&p);
    return out[0] == 0x1p-24f;
}

/* --- product --- */

static guarded a_rows[2][MOST_ROWS], w_part[2], start_guard, out_guard;

/* Column n of packed weights lies in [panel][k][vec][lane]. */
static int64_t packed_at(const fl_kernels *k, int64_t vecs, int64_t depth, int64_t i, int64_t n) {
    const int64_t vec = n / k->lanes, panel = vec / k->panel_vecs, first = panel * k->panel_vecs;
    const int64_t width = vecs - first < k->panel_vecs ? vecs - first : k->panel_vecs;
    return (first * depth + i * width + (vec - first)) * k->lanes + n % k->lanes;
}

typedef enum start_kind { START_SHARED, START_ROWS, START_IS_OUT, START_KINDS } start_kind;

static double product_number(uint64_t tag, int64_t i, int64_t j) {
    uint64_t state = tag * 1000003 + (uint64_t)i * 8191 + (uint64_t)j;
    return random_unit(&state);
}

static void product_case(const fl_kernels *k, int64_t rows, int64_t vecs, int64_t depth, int64_t parts, start_kind kind,
                         bool at_end, bool with_nan) {
    static double a[2][MOST_ROWS][64], start[MOST_ROWS][256];
    static char inputs[2 * MOST_ROWS * 64 * 8], weights[2][16 * 16 * 64 * 8];
    const int64_t size = k->element_bytes, n = vecs * k->lanes, stride = n + k->lanes;
    const void *pointers[2][MOST_ROWS];
    const int64_t depths[2] = {depth, depth % 3 + 1};
    fl_product_args p = {.rows = rows, .vecs = vecs, .parts = parts};
    for (int64_t part = 0; part < parts; part++) {
        const int64_t d = depths[part];
        char *w = place(&w_part[part], n * d * size, at_end);
        for (int64_t i = 0; i < d; i++)
            for (int64_t j = 0; j < n; j++)
                put(w, size, packed_at(k, vecs, d, i, j), product_number(7 + (uint64_t)part, i, j));
        memcpy(weights[part], w, (size_t)(n * d * size));
        for (int64_t r = 0; r < rows; r++) {
            char *row = place(&a_rows[part][r], d * size, at_end);
            for (int64_t i = 0; i < d; i++) {
                a[part][r][i] = product_number(100 + (uint64_t)part, r, i);
                if (with_nan && r == rows / 2 && i == d / 2) a[part][r][i] = part ? INFINITY : NAN;
                put(row, size, i, a[part][r][i]);
                put(inputs, size, (part * MOST_ROWS + r) * 64 + i, a[part][r][i]);
            }
            pointers[part][r] = row;
        }
        p.part[part] = (fl_product_part){d, pointers[part], w};
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
    k->product(&p);
    fl_fp_end(mode);

    bool right = true, gaps = true, kept = true;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t j = 0; j < n; j++) {
            double want[1];
            float f = (float)start[r][j];
            double g = start[r][j], bound = fabs(g);
            for (int64_t part = 0; part < parts; part++)
                for (int64_t i = 0; i < depths[part]; i++) {
                    const double w = get(weights[part], size, packed_at(k, vecs, depths[part], i, j));
                    f = fmaf((float)a[part][r][i], (float)w, f);
                    g = fma(a[part][r][i], w, g);
                    bound += fabs(a[part][r][i] * w);
                }
            put(want, size, 0, size == 4 ? (double)f : g);
            const double got = get(out, size, r * stride + j), wanted = size == 4 ? (double)f : g;
            if (exact_fma) right = right && same_bits(out + (r * stride + j) * size, want, size, 0);
            else
                right = right && (isnan(got) == isnan(wanted)) &&
                        (isnan(got) || fabs(got - wanted) <= bound * (size == 4 ? 1e-5 : 1e-14) || got == wanted);
        }
        if (r < rows - 1) gaps = gaps && untouched(out + (r * stride + n) * size, (stride - n) * size, 0xff);
    }
    for (int64_t part = 0; part < parts; part++) {
        kept = kept && memcmp(weights[part], w_part[part].data, (size_t)(n * depths[part] * size)) == 0;
        kept = kept && margin_untouched(&w_part[part]);
        for (int64_t r = 0; r < rows; r++)
            kept = kept && margin_untouched(&a_rows[part][r]) &&
                   memcmp(inputs + (part * MOST_ROWS + r) * 64 * size, pointers[part][r],
                          (size_t)(depths[part] * size)) == 0;
    }
    if (kind != START_IS_OUT) kept = kept && margin_untouched(&start_guard);
    const char *what = kind == START_SHARED ? "shared start" : kind == START_ROWS ? "start rows" : "start is out";
#define PRODUCT "product_%s_%s: rows %lld, vecs %lld, depth %lld, parts %lld, %s, %s%s: %s"
#define PRODUCT_ARGUMENTS                                                                                          \
    size == 4 ? "f32" : "f64", k->isa, (long long)rows, (long long)vecs, (long long)depth, (long long)parts, what, \
        at_end ? "at the end" : "at the beginning", with_nan ? ", NaN" : ""
    check(right, PRODUCT, PRODUCT_ARGUMENTS, "wrong result");
    check(gaps, PRODUCT, PRODUCT_ARGUMENTS, "wrote between rows");
    check(kept && margin_untouched(&out_guard), PRODUCT, PRODUCT_ARGUMENTS, "wrote outside");
}

static void test_product(const fl_kernels *k, const fl_kernel_info *info) {
    (void)info;
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
                                         vecs, depths[d], parts, (start_kind)kind, at_end,
                                         rows == 0 || (rows == 7 && d == 2));
                        }
    /* No rows: nothing is touched. */
    fl_product_args p = {.rows = 0, .vecs = 3, .parts = 1, .part = {{5, NULL, NULL}}};
    k->product(&p);
}

/* --- cells --- */

static long double sigma(long double x) { return 1 / (1 + expl(-x)); }

static long double activate(const fl_activation *f, long double x) {
    const long double alpha = f->alpha, beta = f->beta;
    if (isnan(x)) return x;
    switch (f->kind) {
    case FL_SIGMOID: return sigma(x);
    case FL_TANH: return tanhl(x);
    case FL_RELU: return x < 0 ? 0 : x;
    case FL_AFFINE: return alpha * x + beta;
    case FL_LEAKY_RELU: return x < 0 ? alpha * x : x;
    case FL_THRESHOLDED_RELU: return x < alpha ? 0 : x;
    case FL_SCALED_TANH: return alpha * tanhl(beta * x);
    case FL_HARD_SIGMOID: return fminl(1, fmaxl(0, alpha * x + beta));
    case FL_ELU: return x < 0 ? alpha * expm1l(x) : x;
    case FL_SOFTSIGN: return isinf(x) ? copysignl(1, x) : x / (1 + fabsl(x));
    case FL_SOFTPLUS: return x > 0 ? x + log1pl(expl(-x)) : log1pl(expl(x));
    }
    abort();
}

static long double limit(const fl_cell_options *s, long double x) {
    return s->clip > 0 && !isnan(x) ? fminl(s->clip, fmaxl(-s->clip, x)) : x;
}

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

enum { CELL_ROWS = 3, CELL_TESTS = sizeof cell_tests / sizeof cell_tests[0], MOST_VARIANTS = 64 };

/* Own activations first; then each of the eleven in each role, with the flags in turn. */
static int variants(const cell_test *t, fl_cell_options *list) {
    static const double alpha[11] = {0, 0, 0, 0.7, 0.1, 0.25, 1.3, 0.3, 0.8, 0, 0};
    static const double beta[11] = {0, 0, 0, 0.2, 0, 0, 0.6, 0.4, 0, 0, 0};
    fl_cell_options own = {.forget_gate = 1};
    for (int role = 0; role < t->roles; role++) own.act[role].kind = t->own[role];
    list[0] = own;
    if (!t->general) return 1;
    int n = 1;
    const bool lstm = t->gates == 4;
    for (int flags = 1; flags < 12; flags++) {
        fl_cell_options s = own;
        s.clip = flags & 1 ? 0.75 : 0;
        s.peepholes = lstm && (flags & 2);
        s.forget_gate = !(lstm && flags / 4 == 1);
        s.coupled_gates = lstm && flags / 4 == 2;
        if (lstm || flags == 1) list[n++] = s;
    }
    for (int role = 0; role < t->roles; role++)
        for (int kind = 0; kind < 11; kind++) {
            fl_cell_options s = list[n % 4 == 3 ? 1 : n % 4]; /* with and without clip and peepholes */
            s.act[role] = (fl_activation){kind, alpha[kind], beta[kind]};
            list[n++] = s;
        }
    return n;
}

static guarded z_guard, zx_guard, h_guard, h_out_guard, c_guard, peephole_guard, y_guard[CELL_ROWS];

/* What every path makes of the same numbers: [rows][units]. */
static char first_h[CELL_ROWS * MOST_H * 8], first_c[CELL_ROWS * MOST_H * 8];

/* inf and 1e30 have one answer where everything saturates. */
static bool saturates(const fl_cell_options *s) {
    for (int role = 0; role < 3; role++) switch (s->act[role].kind) {
        case FL_SIGMOID:
        case FL_TANH:
        case FL_SCALED_TANH:
        case FL_HARD_SIGMOID:
        case FL_SOFTSIGN: break;
        default: return false;
        }
    return true;
}

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
    const int count = variants(t, list);
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

/* --- roofs --- */

static void test_roof(const fl_kernels *k, const fl_kernel_info *info) {
    const int64_t size = k->element_bytes;
    fl_roof_fn *fn;
    memcpy(&fn, (const char *)k + info->offset, sizeof fn);
    for (int at_end = 0; at_end < 2; at_end++) {
        if (strcmp(info->op, "roof_fma") == 0) {
            memset(place(&z_guard, 12 * k->lanes * size, at_end), 0, (size_t)(12 * k->lanes * size));
            check(fn(z_guard.data, 5) == 5 * 12 * k->lanes * 2, "%s_%s: count", info->op, k->isa);
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

static void *pointer_of(const fl_kernels *k, const fl_kernel_info *info) {
    void *pointer;
    memcpy(&pointer, (const char *)k + info->offset, sizeof pointer);
    return pointer;
}

static void test_tables(void) {
    for (int dtype = 0; dtype < 2; dtype++)
        for (int path = 0; path < path_count; path++) {
            const fl_kernels *k = fl_kernels_named(paths[path], (fl_dtype)dtype);
            check(k && strcmp(k->isa, paths[path]) == 0, "%s: the table is of another path", paths[path]);
            check(k->element_bytes == (dtype == FL_FLOAT32 ? 4 : 8), "%s: element size", paths[path]);
            const fl_kernel_info *info;
            for (int64_t i = 0; (info = fl_kernel_at(i)) != NULL; i++) {
                check(pointer_of(k, info) != NULL, "%s_%s: none", info->op, k->isa);
                check(info->doc && *info->doc, "%s: no description", info->op);
                for (int other = 0; other < 2 * path; other++) {
                    const fl_kernels *o = fl_kernels_named(paths[other / 2], (fl_dtype)(other % 2));
                    check(pointer_of(k, info) != pointer_of(o, info), "%s_%s is that of %s", info->op, k->isa, o->isa);
                }
            }
        }
    check(fl_kernels_named("none", FL_FLOAT32) == NULL, "a table for a path that is not there");
    check(fl_kernel_at(-1) == NULL, "a kernel at -1");
    check(fl_kernel_bound("none", FL_FLOAT32) == 0, "a bound for nothing");
}

static bool test_one(const fl_kernel_info *info, fl_dtype dtype) {
    if (strcmp(info->type, "fl_map_fn") == 0) {
        test_map(info->op, dtype, info->offset);
        return true;
    }
    for (int i = 0; i < CELL_TESTS; i++)
        if (strcmp(info->op, cell_tests[i].op) == 0) {
            test_cell(&cell_tests[i], dtype, info->offset);
            return true;
        }
    void (*each)(const fl_kernels *, const fl_kernel_info *) = strcmp(info->op, "product") == 0     ? test_product
                                                               : strncmp(info->op, "roof_", 5) == 0 ? test_roof
                                                                                                    : NULL;
    if (!each) return false;
    for (int path = 0; path < path_count; path++) each(fl_kernels_named(paths[path], dtype), info);
    return true;
}

int main(void) {
    for (int part = 0; part < 2; part++) {
        w_part[part] = guarded_create(16 * 16 * 64 * 8);
        for (int r = 0; r < MOST_ROWS; r++) a_rows[part][r] = guarded_create(1024);
    }
    guarded *large[] = {&start_guard, &out_guard,      &z_guard,    &zx_guard,   &h_guard,   &h_out_guard,
                        &c_guard,     &peephole_guard, &y_guard[0], &y_guard[1], &y_guard[2]};
    for (size_t i = 0; i < sizeof large / sizeof large[0]; i++) *large[i] = guarded_create(1 << 18);
    exact_fma = true;
    for (const char *name; path_count < MOST_PATHS && (name = fl_isa_at(path_count)) != NULL;) {
        paths[path_count++] = name;
        exact_fma = exact_fma && fuses(name);
    }
    test_tables();
    const fl_kernel_info *info;
    for (int64_t i = 0; (info = fl_kernel_at(i)) != NULL; i++)
        for (int dtype = 0; dtype < 2; dtype++) {
            const long before = check_passed + check_failed;
            const bool known = test_one(info, (fl_dtype)dtype);
            check(known, "%s: a kernel without a test", info->op);
            printf("%-18s %s %8ld checks on", info->op, dtype == 0 ? "f32" : "f64",
                   check_passed + check_failed - before);
            for (int path = 0; path < path_count; path++) printf(" %s", paths[path]);
            printf("\n");
        }
    if (!exact_fma) printf("portable has no fused multiply-add here: its bits were not compared\n");
    return check_report();
}
