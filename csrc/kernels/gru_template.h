/* GRU, gates r, z, n; r, z = sigma(.), h' = (1 - z) n + z h.
 * Reset after the product: n = tanh(W_nx x + b_nx + r (W_nh h + b_nh)), as cuDNN, PyTorch, ONNX linear_before_reset=1;
 * before it: n = tanh(W_nx x + b_nx + W_nh (r h) + b_nh), Cho et al., Learning Phrase Representations using RNN
 * Encoder-Decoder, 2014, eq. 5-8 (where z and 1 - z are swapped), ONNX's default.
 *
 * z: recurrent products (with b_h), zx: projected input (with b_x), both in gate columns. Reset before has two phases:
 * gru_reset has z's gates r, z, writes r h to h_out and the pre-activation of z to c_out; gru_candidate has z's gate n.
 * With A = exp(-z) and tanh n = g / (|g| + 1), g of vexpm1_half, the new state (A n + h) / (1 + A) is one division.
 * Aliasing: h_out may not be h. Tails: cell_template.h. Bound: FL_BOUND(sigmoid_tanh) on each term.
 * Test: tests/test_forward.py, tests/c/kernels.c.
 */

#define gru_first FL_NAME(gru_first)
#define gru_second FL_NAME(gru_second)
#define gru_general_block FL_NAME(gru_general_block)
#define gru_reset_block FL_NAME(gru_reset_block)
#define gru_candidate_block FL_NAME(gru_candidate_block)
#define vblend_states FL_NAME(vblend_states)
#define gru_limit FL_NAME(gru_limit)
#define gru_memory FL_NAME(gru_memory)
#define gru_keep_block FL_NAME(gru_keep_block)
#define gru_reset_keep_block FL_NAME(gru_reset_keep_block)
#define gru_candidate_keep_block FL_NAME(gru_candidate_keep_block)
#define gru_backward_block FL_NAME(gru_backward_block)
#define gru_plain_backward FL_NAME(gru_plain_backward)
#define gru_any_backward FL_NAME(gru_any_backward)
#define gru_candidate_backward_block FL_NAME(gru_candidate_backward_block)
#define gru_reset_backward_block FL_NAME(gru_reset_backward_block)

/* (A tanh(n) + h) / (1 + A): the mean of candidate and state, weighted A : 1. */
FL_INLINE vec vblend_states(vec A, vec n, vec h) {
    vec g1;
    const vec g = vexpm1_half(n, &g1);
    return vdiv(vfma(A, vsigned(g, n), vmul(h, g1)), vmul(vadd(vset(1), A), g1));
}

FL_INLINE cell_half gru_first(const fl_cell_args *p, cell_at at) {
    const vec r =
        vsigmoid(vadd(cell_load(p, at, p->zx, p->zx_stride, 3, 0), cell_load(p, at, p->z, p->z_stride, 3, 0)));
    const vec z = vadd(cell_load(p, at, p->zx, p->zx_stride, 3, 1), cell_load(p, at, p->z, p->z_stride, 3, 1));
    const vec n = vfma(r, cell_load(p, at, p->z, p->z_stride, 3, 2), cell_load(p, at, p->zx, p->zx_stride, 3, 2));
    return (cell_half){at, vexp_minus(z, 0), n};
}

FL_INLINE void gru_second(const fl_cell_args *p, cell_half half) {
    cell_write(p, half.at, vblend_states(half.a, half.b, vload(cell_state(p, half.at, p->h))));
}

void FL_NAME(fl_gru)(const fl_cell_args *p) { cell_halves(p, gru_first, gru_second); }

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
    vstore(cell_state(p, at, p->c_out), gru_limit(s, z));
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

/* --- what a tape keeps (fl_cell_backward_args) --- */

FL_INLINE void gru_memory(const fl_cell_args *p, cell_at at, int gates, int gate, vec x) {
    real *block = (real *)p->memory + at.row * p->memory_stride + (at.unit - p->begin) * gates;
    if (at.n == LANES) vstore(block + gate * LANES, x);
    else vstore_part(block + gate * at.n, at.n, x);
}

FL_INLINE void gru_keep_block(const fl_cell_args *p, cell_at at) {
    for (int gate = 0; gate < 2; gate++)
        gru_memory(p, at, 4, gate,
                   vadd(cell_load(p, at, p->zx, p->zx_stride, 3, gate), cell_load(p, at, p->z, p->z_stride, 3, gate)));
    gru_memory(p, at, 4, 2, cell_load(p, at, p->zx, p->zx_stride, 3, 2));
    gru_memory(p, at, 4, 3, cell_load(p, at, p->z, p->z_stride, 3, 2));
}

void FL_NAME(fl_gru_keep)(const fl_cell_args *p) { cell_blocks(p, gru_keep_block); }

FL_INLINE void gru_reset_keep_block(const fl_cell_args *p, cell_at at) {
    for (int gate = 0; gate < 2; gate++)
        gru_memory(p, at, 3, gate,
                   vadd(cell_load(p, at, p->zx, p->zx_stride, 3, gate), cell_load(p, at, p->z, p->z_stride, 2, gate)));
}

void FL_NAME(fl_gru_reset_keep)(const fl_cell_args *p) { cell_blocks(p, gru_reset_keep_block); }

FL_INLINE void gru_candidate_keep_block(const fl_cell_args *p, cell_at at) {
    gru_memory(p, at, 3, 2,
               vadd(cell_load(p, at, p->zx, p->zx_stride, 3, 2), cell_load(p, at, p->z, p->z_stride, 1, 0)));
}

void FL_NAME(fl_gru_candidate_keep)(const fl_cell_args *p) { cell_blocks(p, gru_candidate_keep_block); }

/* --- backwards: each line differentiates the forward equation that it cites; test: tests/test_backward.py --- */

/* dz: r, z, n, and by the recurrent part of n, which r multiplies. */
FL_INLINE void gru_backward_block(const fl_cell_backward_args *p, cell_at at, const bool general) {
    const fl_cell_options *s = p->options;
    const vec u_n = back_load(p, at, 4, 3), h = vload(back_state(p, at, p->h)), one = vset(1), dh = back_dh(p, at);
    vec slope_r, slope_z, slope_n;
    const vec r = vactivate_slope(s, general, 0, true, back_load(p, at, 4, 0), &slope_r);
    const vec z = vactivate_slope(s, general, 0, true, back_load(p, at, 4, 1), &slope_z);
    const vec n = vactivate_slope(s, general, 1, true, vfma(r, u_n, back_load(p, at, 4, 2)), &slope_n);
    const vec dz_n = vmul(slope_n, vmul(dh, vsub(one, z))); /* h' = (1 - z) n + z h */
    back_store(p, at, 0, vmul(slope_r, vmul(dz_n, u_n)));   /* n = tanh(a_n + r u_n) */
    back_store(p, at, 1, vmul(slope_z, vmul(dh, vsub(h, n))));
    back_store(p, at, 2, dz_n);
    back_store(p, at, 3, vmul(dz_n, r));
    vstore(back_state(p, at, p->dh), vmul(dh, z));
}

FL_INLINE void gru_plain_backward(const fl_cell_backward_args *p, cell_at at) { gru_backward_block(p, at, false); }
FL_INLINE void gru_any_backward(const fl_cell_backward_args *p, cell_at at) { gru_backward_block(p, at, true); }

void FL_NAME(fl_gru_backward)(const fl_cell_backward_args *p) { back_blocks(p, gru_plain_backward); }
void FL_NAME(fl_gru_general_backward)(const fl_cell_backward_args *p) { back_blocks(p, gru_any_backward); }

/* dz: z, n; and r h, for the gradient of W_hn. dh becomes that of the new state, output included. */
FL_INLINE void gru_candidate_backward_block(const fl_cell_backward_args *p, cell_at at) {
    const fl_cell_options *s = p->options;
    const vec h = vload(back_state(p, at, p->h)), dh = back_dh(p, at);
    vec slope_z, slope_n, unused;
    const vec r = vactivate_slope(s, true, 0, true, back_load(p, at, 3, 0), &unused);
    const vec z = vactivate_slope(s, true, 0, true, back_load(p, at, 3, 1), &slope_z);
    const vec n = vactivate_slope(s, true, 1, true, back_load(p, at, 3, 2), &slope_n);
    back_store(p, at, 1, vmul(slope_z, vmul(dh, vsub(h, n)))); /* h' = (1 - z) n + z h */
    back_store(p, at, 2, vmul(slope_n, vmul(dh, vsub(vset(1), z))));
    vstore(back_state(p, at, p->between), vmul(r, h));
    vstore(back_state(p, at, p->dh), dh);
}

void FL_NAME(fl_gru_candidate_backward)(const fl_cell_backward_args *p) {
    back_blocks(p, gru_candidate_backward_block);
}

/* dz: r. drh is W_hn^T dz_n. */
FL_INLINE void gru_reset_backward_block(const fl_cell_backward_args *p, cell_at at) {
    const fl_cell_options *s = p->options;
    const vec h = vload(back_state(p, at, p->h)), drh = vload(back_state(p, at, p->drh));
    vec slope_r, unused;
    const vec r = vactivate_slope(s, true, 0, true, back_load(p, at, 3, 0), &slope_r);
    const vec z = vactivate_slope(s, true, 0, true, back_load(p, at, 3, 1), &unused);
    back_store(p, at, 0, vmul(slope_r, vmul(drh, h))); /* r h */
    real *dh = back_state(p, at, p->dh);
    vstore(dh, vfma(drh, r, vmul(vload(dh), z)));
}

void FL_NAME(fl_gru_reset_backward)(const fl_cell_backward_args *p) { back_blocks(p, gru_reset_backward_block); }
