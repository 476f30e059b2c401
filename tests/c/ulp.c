/* The largest errors of sigma, tanh and their fused product on every path, in ulp of the result, against the bounds
 * of kernels.inc. Subnormal inputs and results count as zero.
 *
 * usage: ulp [stride]: float32 sigma and tanh at every stride-th of the 2^32 floats; 1 is all of them. The rest is
 * sampled, 2^32 / stride numbers at most. */
#include "check.h"
#include "internal.h"

#include <float.h>
#include <pthread.h>

enum { BLOCK = 4096, THREADS = 2, SAMPLES = 1 << 22 };

typedef struct largest {
    double ulp;
    double a, b, got;
} largest;

/* Of a result in a type with so many bits after the point; `least` is its smallest normal number. */
static double ulp_error(double got, long double want, int bits, double least) {
    if (isnan((double)want) || isnan(got)) return isnan((double)want) && isnan(got) ? 0 : INFINITY;
    const long double size = fabsl(want);
    if (got == 0 && size < least) return 0;
    int exponent;
    frexpl(fmaxl(size, least), &exponent);
    const long double ulp = ldexpl(1, exponent - 1 - bits);
    /* A zero was less than the smallest normal number before it was flushed; what is smaller counts as zero. */
    const long double error = got == 0 ? size - least : size < least ? fabs(got) - least : fabsl(got - want);
    return (double)(fmaxl(error, 0) / ulp);
}

static void note(largest *l, double ulp, double a, double b, double got) {
    if (ulp > l->ulp) *l = (largest){ulp, a, b, got};
}

/* --- float32, all of them --- */

typedef struct sweep {
    const fl_kernels *kernels;
    uint64_t from, to, stride;
    largest sigmoid, tanh;
} sweep;

static void *run_sweep(void *argument) {
    sweep *s = argument;
    static _Thread_local float x[BLOCK], y[BLOCK], z[BLOCK];
    for (uint64_t at = s->from; at < s->to;) {
        int n = 0;
        for (; n < BLOCK && at < s->to; n++, at += s->stride) {
            const uint32_t u = (uint32_t)at;
            memcpy(&x[n], &u, 4);
        }
        const fl_fp_mode mode = fl_fp_begin();
        s->kernels->sigmoid(x, x, y, n);
        s->kernels->tanh(x, x, z, n);
        fl_fp_end(mode);
        for (int i = 0; i < n; i++) {
            const double v = fpclassify(x[i]) == FP_SUBNORMAL ? 0 : (double)x[i];
            note(&s->sigmoid, ulp_error((double)y[i], 1 / (1 + exp(-v)), 23, FLT_MIN), v, 0, (double)y[i]);
            note(&s->tanh, ulp_error((double)z[i], tanh(v), 23, FLT_MIN), v, 0, (double)z[i]);
        }
    }
    return NULL;
}

static void report(const char *op, const char *isa, fl_dtype dtype, largest l, const char *how) {
    const double bound = fl_kernel_bound(op, dtype);
    printf("%-12s %s %-8s %6.3f ulp at %a, %a (bound %.2f) %s\n", op, dtype == FL_FLOAT32 ? "f32" : "f64", isa, l.ulp,
           l.a, l.b, bound, how);
    check(bound > 0 && l.ulp <= bound, "%s on %s: %g ulp at %a, %a: got %a", op, isa, l.ulp, l.a, l.b, l.got);
}

static void sweep_floats(const char *isa, uint64_t stride) {
    pthread_t threads[THREADS];
    sweep parts[THREADS];
    for (int i = 0; i < THREADS; i++) {
        const uint64_t share = ((uint64_t)1 << 32) / THREADS;
        parts[i] = (sweep){.kernels = fl_kernels_named(isa, FL_FLOAT32),
                           .from = share * (uint64_t)i,
                           .to = share * (uint64_t)(i + 1),
                           .stride = stride};
        if (pthread_create(&threads[i], NULL, run_sweep, &parts[i]) != 0) exit(2);
    }
    largest sigmoid = {0}, tanh = {0};
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        const largest s = parts[i].sigmoid, t = parts[i].tanh;
        note(&sigmoid, s.ulp, s.a, s.b, s.got);
        note(&tanh, t.ulp, t.a, t.b, t.got);
    }
    const char *how = stride == 1 ? "all floats" : "a sample of all floats";
    report("sigmoid", isa, FL_FLOAT32, sigmoid, how);
    report("tanh", isa, FL_FLOAT32, tanh, how);
}

/* --- samples --- */

/* Half where the functions are curved, the others of any magnitude. */
static double sample(uint64_t *state, fl_dtype dtype) {
    const uint64_t u = random_bits(state);
    const double unit = random_unit(state) + random_unit(state) * 0x1p-20 + random_unit(state) * 0x1p-40;
    double x;
    float f;
    switch (u % 8) {
    case 0:
    case 1: x = unit; break;
    case 2: x = 10 * unit; break;
    case 3: x = (dtype == FL_FLOAT32 ? 90 : 710) * unit; break;
    case 4: x = ldexp(unit, -(int)(u >> 8) % 30); break;
    case 5: x = 0.6931471805599453 * ((int)(u >> 8) % 40 - 20) / 2 + unit * 1e-3; break; /* where n changes */
    default: x = ldexp(unit, (int)(u >> 8) % 300 - 150); break;
    }
    f = (float)x;
    return dtype == FL_FLOAT32 ? (double)f : x;
}

static void sample_op(const char *op, const char *isa, fl_dtype dtype, int64_t count) {
    static double a[BLOCK], b[BLOCK], out[BLOCK];
    const fl_kernels *k = fl_kernels_named(isa, dtype);
    const int64_t size = k->element_bytes;
    const bool both = strcmp(op, "sigmoid_tanh") == 0, is_tanh = strcmp(op, "tanh") == 0;
    fl_map_fn *fn = both ? k->sigmoid_tanh : is_tanh ? k->tanh : k->sigmoid;
    largest l = {0};
    uint64_t state = 1;
    for (int64_t done = 0; done < count; done += BLOCK) {
        for (int64_t i = 0; i < BLOCK; i++) {
            put(a, size, i, sample(&state, dtype));
            put(b, size, i, sample(&state, dtype));
        }
        const fl_fp_mode mode = fl_fp_begin();
        fn(a, b, out, BLOCK);
        fl_fp_end(mode);
        for (int64_t i = 0; i < BLOCK; i++) {
            const double least = size == 4 ? FLT_MIN : DBL_MIN, got = get(out, size, i);
            double x = get(a, size, i), y = get(b, size, i);
            if (fabs(x) < least) x = 0;
            if (fabs(y) < least) y = 0;
            const long double s = 1 / (1 + expl(-(long double)x)), t = tanhl(is_tanh ? x : y);
            note(&l, ulp_error(got, both ? s * t : is_tanh ? t : s, size == 4 ? 23 : 52, least), x, y, got);
        }
    }
    report(op, isa, dtype, l, "samples");
}

int main(int argc, char **argv) {
    const long long stride = argc > 1 ? strtoll(argv[1], NULL, 10) : 997;
    if (argc > 2 || stride < 1) {
        fprintf(stderr, "usage: ulp [stride]\n");
        return 2;
    }
    const int64_t all = ((int64_t)1 << 32) / stride, count = all < SAMPLES ? all : SAMPLES;
    const char *isa;
    for (int64_t i = 0; (isa = fl_isa_at(i)) != NULL; i++) {
        /* Where the bits are those of the first path, the first path's sweep is everybody's; a sample says whether. */
        sweep_floats(isa, i == 0 ? (uint64_t)stride : (uint64_t)(stride < 997 ? 997 : stride));
        sample_op("sigmoid_tanh", isa, FL_FLOAT32, count);
        sample_op("sigmoid", isa, FL_FLOAT64, count);
        sample_op("tanh", isa, FL_FLOAT64, count);
        sample_op("sigmoid_tanh", isa, FL_FLOAT64, count);
    }
    return check_report();
}
