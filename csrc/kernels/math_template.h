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
 * Tried: tanh as 1 - 2 / (1 + exp(2x)), 0-3 % faster, all relative accuracy lost near 0.
 */

#define EXP_SHIFT FL_NAME(EXP_SHIFT)
#define EXP_LOG2E FL_NAME(EXP_LOG2E)
#define EXP_LN2_HI FL_NAME(EXP_LN2_HI)
#define EXP_LN2_LO FL_NAME(EXP_LN2_LO)
#define EXP_MIN FL_NAME(EXP_MIN)
#define EXP_MAX FL_NAME(EXP_MAX)
#define TANH_MAX FL_NAME(TANH_MAX)

#ifndef FL_MATH_CONSTANTS
#define FL_MATH_CONSTANTS
/* Added to a small number, it leaves round(number) in the low bits of the sum. */
#define EXP_SHIFT_f32 0x1.8p23f
#define EXP_SHIFT_f64 0x1.8p52
#define EXP_LOG2E_f32 0x1.715476p+0f
#define EXP_LOG2E_f64 0x1.71547652b82fep+0
/* ln 2 in two parts; n * HI is exact for every n that occurs. */
#define EXP_LN2_HI_f32 0x1.62e4p-1f
#define EXP_LN2_HI_f64 0x1.62e42feep-1
#define EXP_LN2_LO_f32 0x1.7f7d1cp-20f
#define EXP_LN2_LO_f64 0x1.a39ef35793c76p-33
/* exp(EXP_MAX) is finite and its inverse subnormal, exp(EXP_MIN) still normal; tanh(TANH_MAX) rounds to 1. */
#define EXP_MIN_f32 -87.0f
#define EXP_MIN_f64 -708.0
#define EXP_MAX_f32 88.0f
#define EXP_MAX_f64 709.0
#define TANH_MAX_f32 20.0f
#define TANH_MAX_f64 40.0
#endif

#define expm1_poly FL_NAME(expm1_poly)
#define atanh_poly FL_NAME(atanh_poly)
#define vexp_parts FL_NAME(vexp_parts)
#define vexp_minus FL_NAME(vexp_minus)
#define vexpm1_half FL_NAME(vexpm1_half)
#define vsigmoid FL_NAME(vsigmoid)
#define vtanh FL_NAME(vtanh)
#define vsigmoid_tanh FL_NAME(vsigmoid_tanh)
#define vlog1p FL_NAME(vlog1p)

#ifdef FL_IS_F32
/* (expm1(r) - r) / r^2, relative error of expm1 1.3e-8. Estrin: a step waits for this chain four times. */
FL_INLINE vec expm1_poly(vec r, vec r2) {
    vec p01 = vfma(vset(0x1.5554bp-3f), r, vset(0x1.fffffep-2f));
    vec p23 = vfma(vset(0x1.122776p-7f), r, vset(0x1.555674p-5f));
    vec p234 = vfma(vset(0x1.6bec06p-10f), r2, p23);
    return vfma(p234, r2, p01);
}
/* (atanh(s) / s - 1) / s^2 in t = s^2 <= 1/9, relative error of atanh 4.5e-9. */
FL_INLINE vec atanh_poly(vec t) {
    vec p = vfma(vset(0.14006421f), t, vset(0.14000814f));
    p = vfma(p, t, vset(0.20010769f));
    return vfma(p, t, vset(0.33333208f));
}
#else
/* (expm1(r) - r) / r^2, relative error of expm1 1.8e-17. */
FL_INLINE vec expm1_poly(vec r, vec r2) {
    vec r4 = vmul(r2, r2);
    vec p01 = vfma(vset(0x1.5555555555539p-3), r, vset(0x1.0000000000005p-1));
    vec p23 = vfma(vset(0x1.1111111118fa9p-7), r, vset(0x1.55555555522b8p-5));
    vec p45 = vfma(vset(0x1.a01a017515514p-13), r, vset(0x1.6c16c17edb95bp-10));
    vec p67 = vfma(vset(0x1.71de88061a833p-19), r, vset(0x1.a019a76f8123ap-16));
    vec p89 = vfma(vset(0x1.ae6ba863a3b8dp-26), r, vset(0x1.28a1dfc380c34p-22));
    vec low = vfma(p23, r2, p01);
    vec mid = vfma(p67, r2, p45);
    return vfma(vfma(p89, r4, mid), r4, low);
}
/* (atanh(s) / s - 1) / s^2 in t = s^2 <= 1/9, relative error of atanh 1.3e-18. */
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

/* x = n ln 2 + r; returns q = expm1(r) and *scale = 2^(n + shift - EXP_SHIFT). */
FL_INLINE vec vexp_parts(vec x, real shift, vec *scale) {
    vec t = vfma(x, vset(EXP_LOG2E), vset(shift));
    vec n = vsub(t, vset(shift));
    vec r = vfma(n, vset(-EXP_LN2_HI), x);
    r = vfma(n, vset(-EXP_LN2_LO), r);
    vec r2 = vmul(r, r);
    *scale = vpow2(t);
    return vfma(expm1_poly(r, r2), r2, r);
}

/* exp(-x), within [exp(EXP_MIN), exp(EXP_MAX)]. */
FL_INLINE vec vexp_minus(vec x) {
    vec scale, y = vmin(vset(EXP_MAX), vmax(vset(EXP_MIN), vsub(vset(0), x)));
    vec q = vexp_parts(y, EXP_SHIFT, &scale);
    return vfma(scale, q, scale);
}

/* g = expm1(-2 |x|) / 2 in (-1/2, 0]; the shift of one makes the half free. */
FL_INLINE vec vexpm1_half(vec x) {
    vec y = vmax(vset(-2 * TANH_MAX), vsigned(vadd(x, x), vset((real)-0.0))), scale;
    vec q = vexp_parts(y, EXP_SHIFT - 1, &scale);
    return vfma(scale, q, vsub(scale, vset((real)0.5)));
}

FL_INLINE vec vsigmoid(vec x) { return vdiv(vset(1), vadd(vset(1), vexp_minus(x))); }

FL_INLINE vec vtanh(vec x) {
    vec g = vexpm1_half(x);
    return vdiv(vsigned(g, x), vadd(g, vset(1)));
}

/* sigma(a) tanh(b) with one division. */
FL_INLINE vec vsigmoid_tanh(vec a, vec b) {
    vec g = vexpm1_half(b);
    return vdiv(vsigned(g, b), vmul(vadd(vset(1), vexp_minus(a)), vadd(g, vset(1))));
}

/* log(1 + u) for u in [0, 1]: 2 atanh(u / (2 + u)). */
FL_INLINE vec vlog1p(vec u) {
    vec s = vdiv(u, vadd(u, vset(2)));
    vec t = vmul(s, s), s2 = vadd(s, s);
    return vfma(vmul(s2, t), atanh_poly(t), s2);
}
