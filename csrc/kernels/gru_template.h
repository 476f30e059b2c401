/* GRU, gates r, z, n; r, z = sigma(.), h' = (1 - z) n + z h.
 * Reset after the product: n = tanh(W_nx x + b_nx + r (W_nh h + b_nh)), as cuDNN, PyTorch, ONNX linear_before_reset=1;
 * before it: n = tanh(W_nx x + b_nx + W_nh (r h) + b_nh), Cho et al., Learning Phrase Representations using RNN
 * Encoder-Decoder, 2014, eq. 5-8 (where z and 1 - z are swapped), ONNX's default.
 *
 * z: recurrent products (with b_h), zx: projected input (with b_x), both in gate columns. Reset before has two phases:
 * gru_reset has z's gates r, z, writes r h to h_out and the pre-activation of z to c; gru_candidate has z's gate n.
 * With A = exp(-z) and tanh n = g / (|g| + 1), g of vexpm1_half, the new state (A n + h) / (1 + A) is one division.
 * Aliasing: h_out may not be h. Tails: cell_template.h. Bound: FL_BOUND(sigmoid_tanh) on each term.
 * Test: tests/test_forward.py, tests/c/kernels.c.
 */

#define gru_block FL_NAME(gru_block)
#define gru_general_block FL_NAME(gru_general_block)
#define gru_reset_block FL_NAME(gru_reset_block)
#define gru_candidate_block FL_NAME(gru_candidate_block)
#define vblend_states FL_NAME(vblend_states)
#define gru_limit FL_NAME(gru_limit)

/* (A tanh(n) + h) / (1 + A): the mean of candidate and state, weighted A : 1. */
FL_INLINE vec vblend_states(vec A, vec n, vec h) {
    vec g1;
    const vec g = vexpm1_half(n, &g1);
    return vdiv(vfma(A, vsigned(g, n), vmul(h, g1)), vmul(vadd(vset(1), A), g1));
}

FL_INLINE void gru_block(const fl_cell_args *p, cell_at at) {
    const vec r =
        vsigmoid(vadd(cell_load(p, at, p->zx, p->zx_stride, 3, 0), cell_load(p, at, p->z, p->z_stride, 3, 0)));
    const vec z = vadd(cell_load(p, at, p->zx, p->zx_stride, 3, 1), cell_load(p, at, p->z, p->z_stride, 3, 1));
    const vec n = vfma(r, cell_load(p, at, p->z, p->z_stride, 3, 2), cell_load(p, at, p->zx, p->zx_stride, 3, 2));
    cell_write(p, at, vblend_states(vexp_minus(z, 0), n, vload(cell_state(p, at, p->h))));
}

void FL_NAME(fl_gru)(const fl_cell_args *p) { cell_blocks(p, gru_block); }

FL_INLINE vec gru_limit(const fl_cell_options *s, vec x) { return s->clip > 0 ? vclip(x, s->clip) : x; }

FL_INLINE void gru_general_block(const fl_cell_args *p, cell_at at) {
    const fl_cell_options *s = p->options;
    vec r = vadd(cell_load(p, at, p->zx, p->zx_stride, 3, 0), cell_load(p, at, p->z, p->z_stride, 3, 0));
    vec z = vadd(cell_load(p, at, p->zx, p->zx_stride, 3, 1), cell_load(p, at, p->z, p->z_stride, 3, 1));
    r = vactivate(&s->act[0], gru_limit(s, r));
    z = vactivate(&s->act[0], gru_limit(s, z));
    vec n = vfma(r, cell_load(p, at, p->z, p->z_stride, 3, 2), cell_load(p, at, p->zx, p->zx_stride, 3, 2));
    n = vactivate(&s->act[1], gru_limit(s, n));
    cell_write(p, at, vfma(z, vload(cell_state(p, at, p->h)), vmul(vsub(vset(1), z), n)));
}

void FL_NAME(fl_gru_general)(const fl_cell_args *p) { cell_blocks(p, gru_general_block); }

FL_INLINE void gru_reset_block(const fl_cell_args *p, cell_at at) {
    const fl_cell_options *s = p->options;
    const vec r = vadd(cell_load(p, at, p->zx, p->zx_stride, 3, 0), cell_load(p, at, p->z, p->z_stride, 2, 0));
    const vec z = vadd(cell_load(p, at, p->zx, p->zx_stride, 3, 1), cell_load(p, at, p->z, p->z_stride, 2, 1));
    vstore(cell_state(p, at, p->c), gru_limit(s, z));
    vstore(cell_state(p, at, p->h_out), vmul(vactivate(&s->act[0], gru_limit(s, r)), vload(cell_state(p, at, p->h))));
}

void FL_NAME(fl_gru_reset)(const fl_cell_args *p) { cell_blocks(p, gru_reset_block); }

FL_INLINE void gru_candidate_block(const fl_cell_args *p, cell_at at) {
    const fl_cell_options *s = p->options;
    vec n = vadd(cell_load(p, at, p->zx, p->zx_stride, 3, 2), cell_load(p, at, p->z, p->z_stride, 1, 0));
    n = vactivate(&s->act[1], gru_limit(s, n));
    const vec z = vactivate(&s->act[0], vload(cell_state(p, at, p->c)));
    cell_write(p, at, vfma(z, vload(cell_state(p, at, p->h)), vmul(vsub(vset(1), z), n)));
}

void FL_NAME(fl_gru_candidate)(const fl_cell_args *p) { cell_blocks(p, gru_candidate_block); }
