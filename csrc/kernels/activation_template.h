/* The eleven activation functions of ONNX (operators LSTM, GRU, RNN; opset 22), for layers that choose their own.
 *
 * Bits: the same on every path, see simd.h. NaN in, NaN out. Test: tests/test_activations.py.
 */

#define vactivate FL_NAME(vactivate)
#define vclip FL_NAME(vclip)

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
