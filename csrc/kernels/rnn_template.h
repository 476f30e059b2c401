/* Elman RNN: h' = tanh(W_x x + b_x + W_h h + b_h), Elman, Finding Structure in Time, 1990.
 * Gated RNN, gates g, n: g = sigma(.), n = tanh(.), h' = (1 - g) h + g n, MITx 6.86x, lecture 10: the gate says how
 * much of the old state to overwrite.
 *
 * z: pre-activations in gate columns. Aliasing: h_out may not be h. Tails: cell_template.h.
 * Bound: FL_BOUND(tanh), FL_BOUND(sigmoid_tanh) on each term. Test: tests/test_forward.py, tests/c/kernels.c.
 */

#define rnn_block FL_NAME(rnn_block)
#define rnn_general_block FL_NAME(rnn_general_block)
#define gated_rnn_block FL_NAME(gated_rnn_block)
#define gated_rnn_general_block FL_NAME(gated_rnn_general_block)
#define rnn_backward_block FL_NAME(rnn_backward_block)
#define rnn_plain_backward FL_NAME(rnn_plain_backward)
#define rnn_any_backward FL_NAME(rnn_any_backward)
#define gated_rnn_backward_block FL_NAME(gated_rnn_backward_block)
#define gated_rnn_plain_backward FL_NAME(gated_rnn_plain_backward)
#define gated_rnn_any_backward FL_NAME(gated_rnn_any_backward)

FL_INLINE void rnn_block(const fl_cell_args *p, cell_at at) {
    cell_write(p, at, vtanh(cell_load(p, at, p->z, p->z_stride, 1, 0)));
}

void FL_NAME(fl_rnn)(const fl_cell_args *p) { cell_blocks(p, rnn_block); }

FL_INLINE void rnn_general_block(const fl_cell_args *p, cell_at at) {
    const vec z = gru_limit(p->options, cell_load(p, at, p->z, p->z_stride, 1, 0));
    cell_write(p, at, vactivate(&p->options->act[0], z));
}

void FL_NAME(fl_rnn_general)(const fl_cell_args *p) { cell_blocks(p, rnn_general_block); }

/* g : 1 - g = exp(z_g) : 1, so the GRU's weighted mean serves with the sign of the gate turned. */
FL_INLINE void gated_rnn_block(const fl_cell_args *p, cell_at at) {
    const vec g = cell_load(p, at, p->z, p->z_stride, 2, 0), n = cell_load(p, at, p->z, p->z_stride, 2, 1);
    cell_write(p, at, vblend_states(vexp_minus(vsub(vset(0), g), 0), n, vload(cell_state(p, at, p->h))));
}

void FL_NAME(fl_gated_rnn)(const fl_cell_args *p) { cell_blocks(p, gated_rnn_block); }

FL_INLINE void gated_rnn_general_block(const fl_cell_args *p, cell_at at) {
    const fl_cell_options *s = p->options;
    const vec g = vactivate(&s->act[0], gru_limit(s, cell_load(p, at, p->z, p->z_stride, 2, 0)));
    const vec n = vactivate(&s->act[1], gru_limit(s, cell_load(p, at, p->z, p->z_stride, 2, 1)));
    cell_write(p, at, vfma(g, n, vmul(vsub(vset(1), g), vload(cell_state(p, at, p->h)))));
}

void FL_NAME(fl_gated_rnn_general)(const fl_cell_args *p) { cell_blocks(p, gated_rnn_general_block); }

/* --- backwards: each line differentiates the forward equation that it cites; test: tests/test_backward.py --- */

FL_INLINE void rnn_backward_block(const fl_cell_backward_args *p, cell_at at, const bool general) {
    const vec z = back_load(p, at, 1, 0);
    vec slope;
    if (general) vactivate_slope(p->options, true, 0, true, z, &slope);
    else vactivate_slope(p->options, false, 1, true, z, &slope); /* tanh */
    back_store(p, at, 0, vmul(slope, back_dh(p, at)));
}

FL_INLINE void rnn_plain_backward(const fl_cell_backward_args *p, cell_at at) { rnn_backward_block(p, at, false); }
FL_INLINE void rnn_any_backward(const fl_cell_backward_args *p, cell_at at) { rnn_backward_block(p, at, true); }

void FL_NAME(fl_rnn_backward)(const fl_cell_backward_args *p) { back_blocks(p, rnn_plain_backward); }
void FL_NAME(fl_rnn_general_backward)(const fl_cell_backward_args *p) { back_blocks(p, rnn_any_backward); }

FL_INLINE void gated_rnn_backward_block(const fl_cell_backward_args *p, cell_at at, const bool general) {
    const fl_cell_options *s = p->options;
    const vec h = vload(back_state(p, at, p->h)), dh = back_dh(p, at);
    vec slope_g, slope_n;
    const vec g = vactivate_slope(s, general, 0, true, back_load(p, at, 2, 0), &slope_g);
    const vec n = vactivate_slope(s, general, 1, true, back_load(p, at, 2, 1), &slope_n);
    back_store(p, at, 0, vmul(slope_g, vmul(dh, vsub(n, h)))); /* h' = (1 - g) h + g n */
    back_store(p, at, 1, vmul(slope_n, vmul(dh, g)));
    vstore(back_state(p, at, p->dh), vmul(dh, vsub(vset(1), g)));
}

FL_INLINE void gated_rnn_plain_backward(const fl_cell_backward_args *p, cell_at at) {
    gated_rnn_backward_block(p, at, false);
}
FL_INLINE void gated_rnn_any_backward(const fl_cell_backward_args *p, cell_at at) {
    gated_rnn_backward_block(p, at, true);
}

void FL_NAME(fl_gated_rnn_backward)(const fl_cell_backward_args *p) { back_blocks(p, gated_rnn_plain_backward); }
void FL_NAME(fl_gated_rnn_general_backward)(const fl_cell_backward_args *p) { back_blocks(p, gated_rnn_any_backward); }
