/* The kernels of int8 weights on every integer path that this CPU has: against a scalar oracle, bit by bit, between guard
 * pages, every tail; nothing outside is written, inputs stay as they are. */
#include "guard.h"

enum { MOST_ROWS = 50, MOST_DEPTH = 1 << 16, MOST_COLUMNS = 9 * 16, GROUP = 4 };

static guarded a_guard[2], w_guard[2], scale_guard[2], first_guard[2], start_guard, out_guard, rows_guard;

static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* --- product --- */

typedef enum numbers { RANDOM, LARGEST, OPPOSITE } numbers; /* the last two: as far as sums can go */

typedef struct product_case {
    int64_t rows, vecs, depth, parts;
    int planes;
    numbers kind;
    bool at_end, start_rows, uneven; /* uneven: rows do not lie at one distance */
} product_case;

/* Weight k of column n, in [panel][k / 4][vec][lane][4]. */
static int64_t packed_at(const fl_integer_kernels *f, int64_t vecs, int64_t depth, int64_t k, int64_t n) {
    const int64_t vec = n / f->lanes, first = vec / f->panel_vecs * f->panel_vecs;
    const int64_t width = vecs - first < f->panel_vecs ? vecs - first : f->panel_vecs;
    return (first * depth + k / GROUP * width * GROUP + (vec - first) * GROUP) * f->lanes + n % f->lanes * GROUP +
           k % GROUP;
}

static int random_byte(uint64_t *state, int most) {
    return (int)(random_bits(state) % (2 * (unsigned)most + 1)) - most;
}

static void run_product(const fl_integer_kernels *f, const product_case *c) {
    static float start[MOST_ROWS][MOST_COLUMNS], want[MOST_ROWS][MOST_COLUMNS];
    const void *rows[2][MOST_ROWS];
    const int64_t columns = c->vecs * f->lanes, stride = columns + f->lanes;
    uint64_t state = 17;
    fl_product_args p = {.rows = c->rows, .vecs = c->vecs, .parts = c->parts, .planes = c->planes};
    for (int64_t r = 0; r < c->rows; r++)
        for (int64_t n = 0; n < columns; n++) want[r][n] = start[c->start_rows ? r : 0][n] = (float)random_unit(&state);
    for (int64_t r = 0; r < c->rows && !c->start_rows; r++) memcpy(want[r], start[0], sizeof want[r]);
    for (int64_t i = 0; i < c->parts; i++) {
        const int64_t other = c->depth % 64 ? round_up(c->depth / 2 + 1, GROUP) : c->depth + 64;
        const int64_t depth = i ? other : c->depth;
        const int64_t plane = round_up(depth, 64), row_bytes = FL_SCALE_BYTES + plane * c->planes;
        char *a = place(&a_guard[i], (c->rows + c->uneven) * row_bytes, c->at_end);
        int8_t *w = place(&w_guard[i], columns * depth, c->at_end);
        float *scale = place(&scale_guard[i], columns * 4, c->at_end);
        int32_t *first = place(&first_guard[i], columns * 4, c->at_end);
        int *number = malloc((size_t)(c->rows * depth) * sizeof *number);
        if (!number) exit(2);
        for (int64_t r = 0; r < c->rows; r++) {
            char *row = a + (r + (c->uneven && r > 0)) * row_bytes + FL_SCALE_BYTES;
            const float s = (float)random_unit(&state) + 2;
            memcpy(row - FL_SCALE_BYTES, &s, sizeof s);
            rows[i][r] = row;
            for (int64_t k = 0; k < depth; k++) {
                const int most = c->planes == 1 ? 127 : 32639;
                const int n = c->kind == RANDOM ? random_byte(&state, most) : r % 2 ? most : -most;
                const int high = c->planes == 1 ? n : (n + 128) >> 8;
                number[r * depth + k] = n;
                row[k] = (char)(high + f->offset);
                if (c->planes > 1) row[plane + k] = (char)(n - 256 * high + f->offset);
            }
        }
        for (int64_t n = 0; n < columns; n++) {
            int64_t sum = 0;
            scale[n] = (float)random_unit(&state) / 64;
            for (int64_t k = 0; k < depth; k++) {
                const int q = c->kind == RANDOM ? random_byte(&state, 127) : c->kind == LARGEST || n % 2 ? 127 : -127;
                w[packed_at(f, c->vecs, depth, k, n)] = (int8_t)q;
                sum += q;
            }
            first[n] = (int32_t)(-f->offset * sum);
        }
        for (int64_t n = 0; n < columns; n++)
            for (int64_t r = 0; r < c->rows; r++) {
                int64_t high = 0, low = 0;
                for (int64_t k = 0; k < depth; k++) {
                    const int64_t a_k = number[r * depth + k], q = w[packed_at(f, c->vecs, depth, k, n)];
                    const int64_t h = c->planes == 1 ? a_k : (a_k + 128) >> 8;
                    high += h * q;
                    low += (a_k - 256 * h) * q;
                }
                float s;
                memcpy(&s, (const char *)rows[i][r] - FL_SCALE_BYTES, sizeof s);
                const float step = s * scale[n];
                want[r][n] = fmaf((float)high, c->planes == 1 ? step : 256 * step, want[r][n]);
                if (c->planes > 1) want[r][n] = fmaf((float)low, step, want[r][n]);
            }
        free(number);
        p.part[i] = (fl_product_part){.depth = depth, .a = rows[i], .w = w, .scale = scale, .first = first};
    }
    const int64_t start_rows = c->start_rows ? c->rows : 1;
    float *from = place(&start_guard, start_rows * columns * 4, c->at_end);
    for (int64_t r = 0; r < start_rows; r++) memcpy(from + r * columns, start[r], (size_t)columns * 4);
    p.start = from;
    p.start_stride = c->start_rows ? columns : 0;
    char *out = p.out = place(&out_guard, ((c->rows - 1) * stride + columns) * 4, c->at_end);
    p.out_stride = stride;
    const fl_fp_mode mode = fl_fp_begin();
    f->product_int8(&p);
    fl_fp_end(mode);
    bool right = true, kept = margin_untouched(&out_guard) && margin_untouched(&start_guard);
    for (int64_t r = 0; r < c->rows; r++) {
        for (int64_t n = 0; n < columns; n++) {
            if (exact_fma) right = right && same_bits(out + r * stride * 4, want[r], 4, n);
            else
                right = right && fabs((double)((float *)out)[r * stride + n] - (double)want[r][n]) <=
                                     1e-5 * (1 + fabs((double)want[r][n]));
        }
        if (r < c->rows - 1) kept = kept && untouched(out + (r * stride + columns) * 4, (stride - columns) * 4, 0xff);
    }
    for (int64_t i = 0; i < c->parts; i++)
        kept = kept && margin_untouched(&a_guard[i]) && margin_untouched(&w_guard[i]) &&
               margin_untouched(&scale_guard[i]) && margin_untouched(&first_guard[i]);
    check(right && kept, "product_int8_%s: rows %d, vecs %d, depth %d, parts %d, planes %d, kind %d: %s", f->isa,
          (int)c->rows, (int)c->vecs, (int)c->depth, (int)c->parts, c->planes, (int)c->kind,
          right ? "wrote outside" : "wrong result");
}

static void test_product(const fl_integer_kernels *f) {
    static const int64_t depths[] = {4, 8, 36, 64, 128};
    for (int64_t rows = 1; rows <= MOST_ROWS; rows += rows < 8 ? 1 : rows < 32 ? 4 : 9)
        for (int64_t vecs = 1; vecs <= 9; vecs++)
            for (int i = 0; i < 5 * 2 * 2; i++) {
                const product_case c = {rows,   vecs,           depths[i % 5], i / 5 % 2 + 1, i / 10 + 1,
                                        RANDOM, (rows + i) % 2, vecs % 2,      rows % 3 == 0};
                run_product(f, &c);
            }
    /* Where a row's and a column's signs agree or differ all the way: 65536 * 127 * 128. */
    static const int64_t rows[] = {1, 2, 33};
    for (int i = 0; i < 3 * 2 * 2; i++)
        run_product(f, &(product_case){rows[i % 3], 3, MOST_DEPTH, 1, i / 3 % 2 + 1, i / 6 ? OPPOSITE : LARGEST, i % 2,
                                       true, false});
    f->product_int8(&(fl_product_args){.rows = 0, .vecs = 3, .parts = 1, .planes = 1, .part = {{.depth = 8}}});
}

/* --- rounding --- */

static void run_round(const fl_integer_kernels *f, int64_t rows, int64_t depth, int planes, float least, int kind,
                      bool at_end) {
    const int64_t plane = round_up(depth, 64), bytes = FL_SCALE_BYTES + plane * planes;
    const void *pointers[8];
    uint64_t state = 5 + (uint64_t)kind;
    float *x = place(&rows_guard, rows * depth * 4, at_end);
    for (int64_t r = 0; r < rows; r++) {
        pointers[r] = x + r * depth;
        for (int64_t k = 0; k < depth; k++) {
            float v = (float)random_unit(&state) * (kind == 1 ? 5000 : 1.5f);
            if (kind == 2) v = 0;
            if (kind == 3 && r == rows / 2 && k == depth / 2) v = NAN;
            if (kind == 4 && r == rows / 2 && k == depth - 1) v = -INFINITY;
            if (kind == 5) v = (float)(random_bits(&state) % 8) / 2 / 127; /* ties, with scale 1 / 127 */
            x[r * depth + k] = v;
        }
    }
    char *out = place(&out_guard, rows * bytes, at_end);
    const fl_fp_mode mode = fl_fp_begin();
    f->round_int8(&(fl_round_args){rows, depth, planes, pointers, least, out + FL_SCALE_BYTES, bytes});
    bool right = true;
    for (int64_t r = 0; r < rows; r++) {
        const float most = planes == 1 ? 127 : 32639;
        float largest = least, got;
        bool strange = false;
        for (int64_t k = 0; k < depth; k++) {
            strange = strange || !isfinite(x[r * depth + k]);
            if (fabsf(x[r * depth + k]) > largest) largest = fabsf(x[r * depth + k]);
        }
        memcpy(&got, out + r * bytes, sizeof got);
        right = right && (strange ? (bool)isnan(got) : got == largest / most);
        for (int64_t k = 0; k < depth && !strange; k++) {
            const int n = (int)nearbyintf(x[r * depth + k] * (most / largest));
            const char *at = out + r * bytes + FL_SCALE_BYTES + k;
            const int high = planes == 1 ? n : (n + 128) >> 8;
            right = right && abs(high) <= 127 && *at == (char)(high + f->offset);
            if (planes > 1) right = right && at[plane] == (char)(n - 256 * high + f->offset);
        }
    }
    fl_fp_end(mode);
    check(right && margin_untouched(&out_guard) && margin_untouched(&rows_guard),
          "round_int8_%s: rows %d, depth %d, planes %d, least %g, kind %d", f->isa, (int)rows, (int)depth, planes,
          (double)least, kind);
}

static void test_round(const fl_integer_kernels *f) {
    for (int64_t depth = 1; depth <= 70; depth += depth < 34 ? 1 : 6)
        for (int i = 0; i < 2 * 2 * 6; i++)
            run_round(f, depth % 3 + 1, depth, i % 2 + 1, i / 2 % 2 ? 1 : 0x1p-100f, i / 4, depth % 2);
}

int main(void) {
    for (int i = 0; i < 2; i++) {
        a_guard[i] = guarded_create((int64_t)MOST_ROWS * 2 * (MOST_DEPTH + 128));
        w_guard[i] = guarded_create((int64_t)MOST_COLUMNS * MOST_DEPTH);
        scale_guard[i] = guarded_create(1 << 14);
        first_guard[i] = guarded_create(1 << 14);
    }
    start_guard = guarded_create(1 << 18);
    out_guard = guarded_create(1 << 18);
    rows_guard = guarded_create(1 << 18);
    find_paths();
    int tested = 0;
    const char *name;
    for (int64_t path = 0; (name = fl_integer_isa_at(path)) != NULL; path++) {
        const fl_integer_kernels *f = fl_integers_named(name);
        if (!check(f && strcmp(f->isa, name) == 0, "%s: the table is of another path", name)) continue;
        test_product(f);
        test_round(f);
        printf("%s ", name);
        tested++;
    }
    check(tested > 0 && fl_integers_named("none") == NULL, "no path, or one that is not there");
    int listed = 0;
    const fl_kernel_info *info;
    for (int64_t i = 0; (info = fl_kernel_at(i)) != NULL; i++) listed += info->integer;
    check(listed == 2, "%d kernels of int8 weights, of which 2 are tested", listed);
    printf("\n");
    return check_report();
}
