/* What cell kernels are tested with, forward and backward: every choice of activations and options, numbers of all
 * sizes, and the activations in long double. */
#ifndef FL_TEST_CELLS_H
#define FL_TEST_CELLS_H

#include "check.h"
#include "kernels/kernels.h"

enum { MOST_H = 40, CELL_ROWS = 3, MOST_VARIANTS = 64 };

static inline long double sigma(long double x) { return 1 / (1 + expl(-x)); }

static inline long double activate(const fl_activation *f, long double x) {
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

/* Their derivatives. From the left where there are two; both of hard_sigmoid's kinks belong to its flat parts. */
static inline long double slope_at(const fl_activation *f, long double x) {
    const long double alpha = f->alpha, beta = f->beta, y = alpha * x + beta;
    switch (f->kind) {
    case FL_SIGMOID: return sigma(x) * sigma(-x);
    case FL_TANH: return 1 - tanhl(x) * tanhl(x);
    case FL_RELU: return x <= 0 ? 0 : 1;
    case FL_AFFINE: return alpha;
    case FL_LEAKY_RELU: return x <= 0 ? alpha : 1;
    case FL_THRESHOLDED_RELU: return x <= alpha ? 0 : 1;
    case FL_SCALED_TANH: return alpha * beta * (1 - tanhl(beta * x) * tanhl(beta * x));
    case FL_HARD_SIGMOID: return y <= 0 || y >= 1 ? 0 : alpha;
    case FL_ELU: return x <= 0 ? alpha * expl(x) : 1;
    case FL_SOFTSIGN: return 1 / ((1 + fabsl(x)) * (1 + fabsl(x)));
    case FL_SOFTPLUS: return sigma(x);
    }
    abort();
}

static inline long double limit(const fl_cell_options *s, long double x) {
    return s->clip > 0 && !isnan(x) ? fminl(s->clip, fmaxl(-s->clip, x)) : x;
}

/* Own activations first; then the flags; then each of the eleven in each role, with and without clip and peepholes. */
static inline int cell_variants(const fl_activation_kind *own_kinds, int roles, bool general, bool lstm,
                                fl_cell_options *list) {
    static const double alpha[11] = {0, 0, 0, 0.7, 0.1, 0.25, 1.3, 0.3, 0.8, 0, 0};
    static const double beta[11] = {0, 0, 0, 0.2, 0, 0, 0.6, 0.4, 0, 0, 0};
    fl_cell_options own = {.forget_gate = 1};
    for (int role = 0; role < roles; role++) own.act[role].kind = own_kinds[role];
    list[0] = own;
    if (!general) return 1;
    int n = 1;
    for (int flags = 1; flags < (lstm ? 12 : 2); flags++) {
        fl_cell_options s = own;
        s.clip = flags & 1 ? 0.75 : 0;
        s.peepholes = lstm && (flags & 2);
        s.forget_gate = flags / 4 != 1;
        s.coupled_gates = flags / 4 == 2;
        list[n++] = s;
    }
    for (int role = 0; role < roles; role++)
        for (int kind = 0; kind < 11; kind++) {
            fl_cell_options s = list[n % (lstm ? 4 : 2)];
            s.act[role] = (fl_activation){kind, alpha[kind], beta[kind]};
            list[n++] = s;
        }
    return n;
}

/* inf and 1e30 have one answer where everything saturates. */
static inline bool saturates(const fl_cell_options *s) {
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

#endif
