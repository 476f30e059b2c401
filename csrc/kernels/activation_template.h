/* The eleven activation functions of ONNX (operators LSTM, GRU, RNN; opset 22), for layers that choose their own.
 *
 * And their derivatives; at a kink the one from the left, as PyTorch's, at both of hard_sigmoid's 0.
 * Bits: the same on every path, see simd.h. NaN in, NaN out. Test: tests/test_activations.py, tests/test_backward.py.
 */

#define vactivate FL_NAME(vactivate)
#define vclip FL_NAME(vclip)
#define vslope FL_NAME(vslope)
#define vactivate_slope FL_NAME(vactivate_slope)
#define REAL_MIN FL_NAME(REAL_MIN)
#define BELOW_ONE FL_NAME(BELOW_ONE)

#ifndef FL_ACTIVATION_CONSTANTS
#define FL_ACTIVATION_CONSTANTS
#define REAL_MIN_f32 0x1p-126f /* what is below counts as zero */
#define REAL_MIN_f64 0x1p-1022
#define BELOW_ONE_f32 0x1.fffffep-1f /* the largest number below 1 */
#define BELOW_ONE_f64 0x1.fffffffffffffp-1
#endif

FL_INLINE vec vclip(vec x, double limit) { return vmin(vset((real)limit), vmax(vset((real)-limit), x)); }

static inline vec vactivate(const fl_activation *f, vec x) {
    const vec zero = vset(0), one = vset(1), alpha = vset((real)f->alpha), beta = vset((real)f->beta);
    switch (f->kind) {
    case FL_SIGMOID: return vsigmoid(x);
    case FL_TANH: return vtanh(x);
    case FL_RELU: return vselect(vlt(x, zero), zero, x);
    case FL_AFFINE: return vfma(alpha, x, beta);
    case FL_LEAKY_RELU: return vselect(vlt(x, zero), vmul(alpha, x), x);
    case FL_THRESHOLDED_RELU: return vselect(vlt(x, alpha), zero, x);
    case FL_SCALED_TANH: return vmul(alpha, vtanh(vmul(beta, x)));
    case FL_HARD_SIGMOID: {
        const vec y = vfma(alpha, x, beta);
        return vselect(vlt(y, zero), zero, vselect(vlt(one, y), one, y));
    }
    case FL_ELU: { /* e^x - 1 = 2 g(x / 2) for x < 0 */
        vec g1;
        const vec g = vexpm1_half(vmul(vset((real)0.5), x), &g1);
        return vselect(vlt(x, zero), vmul(alpha, vadd(g, g)), x);
    }
    case FL_SOFTSIGN: { /* the limit at infinity is 1, not inf / inf */
        const vec size = vmin(vset((real)1e30), vsigned(x, zero));
        return vsigned(vdiv(size, vadd(one, size)), x);
    }
    case FL_SOFTPLUS: {
        const vec u = vexp_minus(vsigned(x, zero), 0);
        return vadd(vselect(vlt(x, zero), zero, x), vlog1p(u));
    }
    }
    return x;
}

/* The derivative of f at x, where y = f(x). */
static inline vec vslope(const fl_activation *f, vec x, vec y) {
    const vec zero = vset(0), one = vset(1), alpha = vset((real)f->alpha), beta = vset((real)f->beta);
    const vmask below = vlt(x, vset(REAL_MIN)); /* x <= 0 */
    switch (f->kind) {
    case FL_SIGMOID: return vmul(y, vsub(one, y));
    case FL_TANH: return vnfma(y, y, one);
    case FL_RELU: return vselect(below, zero, one);
    case FL_AFFINE: return alpha;
    case FL_LEAKY_RELU: return vselect(below, alpha, one);
    case FL_THRESHOLDED_RELU: return vselect(vlt(alpha, x), one, zero);
    case FL_SCALED_TANH: {
        const vec t = vtanh(vmul(beta, x));
        return vmul(vmul(alpha, beta), vnfma(t, t, one));
    }
    case FL_HARD_SIGMOID: return vselect(vlt(y, vset(REAL_MIN)), zero, vselect(vlt(vset(BELOW_ONE), y), zero, alpha));
    case FL_ELU: return vselect(below, vmul(alpha, vexp_minus(vsigned(x, zero), 0)), one);
    case FL_SOFTSIGN: {
        const vec r = vdiv(one, vadd(one, vsigned(x, zero)));
        return vmul(r, r);
    }
    case FL_SOFTPLUS: return vsigmoid(x);
    }
    return one;
}

/* Activation `which` of a step (0 gates, 1 candidate, 2 output) and its derivative, clip included where there is one.
 * Not general: sigma and tanh, and `s` is not looked at. */
FL_INLINE vec vactivate_slope(const fl_cell_options *s, const bool general, const int which, const bool clips, vec x,
                              vec *slope) {
    if (!general) {
        const vec y = which == 0 ? vsigmoid(x) : vtanh(x);
        *slope = which == 0 ? vmul(y, vsub(vset(1), y)) : vnfma(y, y, vset(1));
        return y;
    }
    const bool clip = clips && s->clip > 0;
    const vec inside = clip ? vclip(x, s->clip) : x;
    const vec y = vactivate(&s->act[which], inside);
    *slope = vslope(&s->act[which], inside, y);
    if (clip) *slope = vselect(vlt(vset((real)s->clip), vsigned(x, vset(0))), vset(0), *slope); /* beyond, not at it */
    return y;
}

/* --- over arrays, for the layer of a model that is nothing but an activation --- */

/* y = f(x); the last n % LANES elements as part of a register. Test: test_activate of tests/c/kernels.c. */
void FL_NAME(fl_activate)(const fl_activation *f, const void *x, void *y, int64_t n) {
    const real *from = (const real *)x;
    real *to = (real *)y;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) vstore(to + i, vactivate(f, vload(from + i)));
    if (i < n) vstore_part(to + i, n - i, vactivate(f, vload_part(from + i, n - i)));
}

#define activate_back FL_NAME(activate_back)

/* dx = dy f'(x) of y = f(x), fl_activate's. */
static inline vec activate_back(const fl_activation *f, vec x, vec dy) {
    return vmul(dy, vslope(f, x, vactivate(f, x)));
}

/* Likewise. Test: test_activate of tests/c/kernels.c, tests/test_modules.py. */
void FL_NAME(fl_activate_backward)(const fl_activation *f, const void *x, const void *dy, void *dx, int64_t n) {
    const real *at = (const real *)x, *from = (const real *)dy;
    real *to = (real *)dx;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) vstore(to + i, activate_back(f, vload(at + i), vload(from + i)));
    if (i < n) vstore_part(to + i, n - i, activate_back(f, vload_part(at + i, n - i), vload_part(from + i, n - i)));
}
