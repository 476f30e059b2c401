/* exp, the logistic function, tanh and log1p on one register, from the same operations on every path.
 *
 * exp(x) = 2^n (1 + q), n = round(x / ln 2), q = expm1(r), r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2]
 * expm1(x) = 2^n q + (2^n - 1): both terms exact or tiny, so nothing cancels near 0
 * sigma(x) = 1 / (1 + exp(-x))
 * tanh(x) = -g / (g + 1) with the sign of x, g = expm1(-2 |x|) / 2
 * Cody & Waite, Software Manual for the Elementary Functions, 1980, ch. 6 and 12; the polynomials are minimax
 * (Remez), made by tools/minimax.py.
 *
 * Bounds: FL_BOUND lines of kernels.inc, asserted by tests/c/ulp.c and tests/test_kernels.py.
 * Saturation: the clamps keep 1 + exp and its products finite; beyond them sigma rounds to 0 (subnormal, flushed)
 * or 1 anyway. NaN passes every clamp.
 * Signs and factors of two are moved into constants, for a step waits for this chain twice: the polynomial is taken in
 * -r for exp(-x), in r / 2 for tanh.
 * Tried: tanh as 1 - 2 / (1 + exp(2x)), 0-3 % faster, all relative accuracy lost near 0.
 */

#define EXP_SHIFT FL_NAME(EXP_SHIFT)
#define LOG2E FL_NAME(LOG2E)
#define LN2 FL_NAME(LN2)
#define LN2_HI FL_NAME(LN2_HI)
#define LN2_LO FL_NAME(LN2_LO)
#define EXP_MIN FL_NAME(EXP_MIN)
#define EXP_MAX FL_NAME(EXP_MAX)
#define TANH_MAX FL_NAME(TANH_MAX)
#define ADD_LOST FL_NAME(ADD_LOST)

#ifndef FL_MATH_CONSTANTS
#define FL_MATH_CONSTANTS
/* Added to a small n, it leaves round(n) and the exponent's bias in the low bits of the sum: shifted, they are 2^n. */
#define EXP_SHIFT_f32 (0x1.8p23f + 127)
#define EXP_SHIFT_f64 (0x1.8p52 + 1023)
#define LOG2E_f32 0x1.715476p+0f
#define LOG2E_f64 0x1.71547652b82fep+0
#define LN2_f32 0x1.62e43p-1f
#define LN2_f64 0x1.62e42fefa39efp-1
/* ln 2 in two parts; n * HI is exact for every n that occurs. */
#define LN2_HI_f32 0x1.62e4p-1f
#define LN2_HI_f64 0x1.62e42feep-1
#define LN2_LO_f32 0x1.7f7d1cp-20f
#define LN2_LO_f64 0x1.a39ef35793c76p-33
/* exp(EXP_MAX) is finite and its inverse subnormal, exp(EXP_MIN) still normal; tanh(TANH_MAX) rounds to 1. */
#define EXP_MIN_f32 -87.0f
#define EXP_MIN_f64 -708.0
#define EXP_MAX_f32 88.0f
#define EXP_MAX_f64 709.0
/* From here on, 1 + 2^n is rounded. */
#define ADD_LOST_f32 0x1p24f
#define ADD_LOST_f64 0x1p53
#define TANH_MAX_f32 20.0f
#define TANH_MAX_f64 40.0
#endif

#define expm1_poly FL_NAME(expm1_poly)
#define atanh_poly FL_NAME(atanh_poly)
#define vexp_minus FL_NAME(vexp_minus)
#define vexpm1_half FL_NAME(vexpm1_half)
#define vsigmoid FL_NAME(vsigmoid)
#define vtanh FL_NAME(vtanh)
#define vsigmoid_tanh FL_NAME(vsigmoid_tanh)
#define vlog1p FL_NAME(vlog1p)

/* scale * (expm1(r) - r) / r^2 at r = ratio * u; ratio and scale are powers of two or -1, so that no coefficient is rounded.
 * Estrin's scheme, for the short chain. */
#ifdef FL_IS_F32
/* relative error of expm1: 1.3e-8 */
FL_INLINE vec expm1_poly(vec u, vec u2, const real ratio, const real scale) {
    const real s2 = scale * ratio * ratio, s4 = s2 * ratio * ratio;
    const vec p01 = vfma(vset(0x1.5554bp-3f * scale * ratio), u, vset(0x1.fffffep-2f * scale));
    const vec p23 = vfma(vset(0x1.122776p-7f * s2 * ratio), u, vset(0x1.555674p-5f * s2));
    return vfma(vfma(vset(0x1.6bec06p-10f * s4), u2, p23), u2, p01);
}
/* (atanh(s) / s - 1) / s^2 in t = s^2 <= 1/9, relative error of atanh 4.5e-9 */
FL_INLINE vec atanh_poly(vec t) {
    vec p = vfma(vset(0.14006421f), t, vset(0.14000814f));
    p = vfma(p, t, vset(0.20010769f));
    return vfma(p, t, vset(0.33333208f));
}
#else
/* relative error of expm1: 1.8e-17 */
FL_INLINE vec expm1_poly(vec u, vec u2, const real ratio, const real scale) {
    const real s2 = scale * ratio * ratio, s4 = s2 * ratio * ratio, s6 = s4 * ratio * ratio, s8 = s6 * ratio * ratio;
    const vec u4 = vmul(u2, u2);
    const vec p01 = vfma(vset(0x1.5555555555539p-3 * scale * ratio), u, vset(0x1.0000000000005p-1 * scale));
    const vec p23 = vfma(vset(0x1.1111111118fa9p-7 * s2 * ratio), u, vset(0x1.55555555522b8p-5 * s2));
    const vec p45 = vfma(vset(0x1.a01a017515514p-13 * s4 * ratio), u, vset(0x1.6c16c17edb95bp-10 * s4));
    const vec p67 = vfma(vset(0x1.71de88061a833p-19 * s6 * ratio), u, vset(0x1.a019a76f8123ap-16 * s6));
    const vec p89 = vfma(vset(0x1.ae6ba863a3b8dp-26 * s8 * ratio), u, vset(0x1.28a1dfc380c34p-22 * s8));
    const vec low = vfma(p23, u2, p01), mid = vfma(p67, u2, p45);
    return vfma(vfma(p89, u4, mid), u4, low);
}
/* (atanh(s) / s - 1) / s^2 in t = s^2 <= 1/9, relative error of atanh 1.3e-18 */
FL_INLINE vec atanh_poly(vec t) {
    vec p = vfma(vset(0.08505169959953976704883), t, vset(0.04172326689630175396974));
    p = vfma(p, t, vset(0.06052509210070527950416));
    p = vfma(p, t, vset(0.06650556004998647682144));
    p = vfma(p, t, vset(0.07693274555206584653381));
    p = vfma(p, t, vset(0.09090872222651615036515));
    p = vfma(p, t, vset(0.111111119773012172381));
    p = vfma(p, t, vset(0.1428571427405138792623));
    p = vfma(p, t, vset(0.200000000000776170796));
    return vfma(p, t, vset(0.3333333333333315469539));
}
#endif

/* add + exp(-x), within [exp(EXP_MIN), exp(EXP_MAX)]; add is 0 or 1, and costs neither a rounding nor a wait: it joins
 * the power of two, while the polynomial is on its way. u is -r. */
FL_INLINE vec vexp_minus(vec x, const real add) {
    const vec y = vmin(vset(-EXP_MIN), vmax(vset(-EXP_MAX), x));
    const vec t = vfma(y, vset(-LOG2E), vset(EXP_SHIFT)), n = vsub(t, vset(EXP_SHIFT));
    const vec u = vfma(n, vset(LN2_LO), vfma(n, vset(LN2_HI), y)), u2 = vmul(u, u);
    const vec p = expm1_poly(u, u2, -1, 1), scale = vpow2(t);
    if (add == 0) return vnfma(scale, vnfma(p, u2, u), scale);
    const vec lost = vselect(vlt(scale, vset(ADD_LOST)), vset(0), vset((real)0.5 / ADD_LOST));
    return vnfma(scale, vnfma(p, u2, vsub(u, lost)), vadd(scale, vset(add)));
}

/* g = expm1(-2 |x|) / 2 in [-1/2, 0], and g + 1; u is r / 2. One part of ln 2 is enough: n times its error is 1e-9 at
 * most wherever the result still depends on the exponential. */
FL_INLINE vec vexpm1_half(vec x, vec *plus_one) {
    const vec y = vmax(vset(-TANH_MAX), vsigned(x, vset((real)-0.0)));
    const vec t = vfma(y, vset(2 * LOG2E), vset(EXP_SHIFT - 1)), n = vsub(t, vset(EXP_SHIFT - 1));
    const vec u = vfma(n, vset(LN2 / -2), y), u2 = vmul(u, u);
    const vec q = vfma(expm1_poly(u, u2, 2, 4), u2, vadd(u, u)), half_scale = vpow2(t);
    const vec g = vfma(half_scale, q, vsub(half_scale, vset((real)0.5)));
    *plus_one = vfma(half_scale, q, vadd(half_scale, vset((real)0.5)));
    return g;
}

FL_INLINE vec vsigmoid(vec x) { return vdiv(vset(1), vexp_minus(x, 1)); }

FL_INLINE vec vtanh(vec x) {
    vec g1;
    const vec g = vexpm1_half(x, &g1);
    return vdiv(vsigned(g, x), g1);
}

/* sigma(a) tanh(b) with one division. */
FL_INLINE vec vsigmoid_tanh(vec a, vec b) {
    vec g1;
    const vec g = vexpm1_half(b, &g1);
    return vdiv(vsigned(g, b), vmul(vexp_minus(a, 1), g1));
}

/* log(1 + u) for u in [0, 1]: 2 atanh(u / (2 + u)). */
FL_INLINE vec vlog1p(vec u) {
    const vec s = vdiv(u, vadd(u, vset(2)));
    const vec t = vmul(s, s), s2 = vadd(s, s);
    return vfma(vmul(s2, t), atanh_poly(t), s2);
}
