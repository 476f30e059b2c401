/* LSTM: i, f, o = sigma(.), g = tanh(.); c' = f c + i g; h' = o tanh(c').
 * Hochreiter & Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997 (no forget gate: c' = c + i g);
 * Gers, Schmidhuber & Cummins, Learning to Forget, 2000 (forget gate); Gers & Schmidhuber, Recurrent Nets that Time
 * and Count, 2000 (peepholes: i and f see c, o sees c'); Greff et al., LSTM: A Search Space Odyssey, 2017 (coupled,
 * f = 1 - i).
 *
 * Columns of z: gates i, f, g, o (kernels.h). c_out may be c; h_out may not be z; y may be NULL (projection).
 * Tails: cell_template.h.
 * Bound: FL_BOUND(sigmoid), FL_BOUND(sigmoid_tanh). Test: tests/test_forward.py, tests/c/kernels.c.
 */

#define lstm_first FL_NAME(lstm_first)
#define lstm_second FL_NAME(lstm_second)
#define lstm_general_block FL_NAME(lstm_general_block)
#define lstm_backward_block FL_NAME(lstm_backward_block)
#define lstm_plain_backward FL_NAME(lstm_plain_backward)
#define lstm_any_backward FL_NAME(lstm_any_backward)

FL_INLINE cell_half lstm_first(const fl_cell_args *p, cell_at at) {
    const vec i = cell_load(p, at, p->z, p->z_stride, 4, 0), f = cell_load(p, at, p->z, p->z_stride, 4, 1);
    const vec g = cell_load(p, at, p->z, p->z_stride, 4, 2), o = cell_load(p, at, p->z, p->z_stride, 4, 3);
    const vec c = vadd(vdiv(vload(cell_state(p, at, p->c)), vexp_minus(f, 1)), vsigmoid_tanh(i, g));
    vstore(cell_state(p, at, p->c_out), c);
    return (cell_half){at, o, c};
}

FL_INLINE void lstm_second(const fl_cell_args *p, cell_half half) {
    cell_write(p, half.at, vsigmoid_tanh(half.a, half.b));
}

void FL_NAME(fl_lstm)(const fl_cell_args *p) { cell_halves(p, lstm_first, lstm_second); }

FL_INLINE void lstm_general_block(const fl_cell_args *p, cell_at at) {
    const fl_cell_options *s = p->options;
    const real *peephole = (const real *)p->peephole + (s->peepholes ? at.unit : 0);
    vec z[4], c = vload(cell_state(p, at, p->c));
    for (int gate = 0; gate < 4; gate++) z[gate] = cell_load(p, at, p->z, p->z_stride, 4, gate);
    if (s->peepholes) {
        z[0] = vfma(vload(peephole), c, z[0]);
        z[1] = vfma(vload(peephole + p->state_stride), c, z[1]);
    }
    if (s->clip > 0)
        for (int gate = 0; gate < 3; gate++) z[gate] = vclip(z[gate], s->clip);
    const vec i = vactivate(&s->act[0], z[0]);
    const vec ig = vmul(i, vactivate(&s->act[1], z[2]));
    if (s->coupled_gates) c = vfma(vsub(vset(1), i), c, ig);
    else if (s->forget_gate) c = vfma(vactivate(&s->act[0], z[1]), c, ig);
    else c = vadd(c, ig);
    vstore(cell_state(p, at, p->c_out), c);
    if (s->peepholes) z[3] = vfma(vload(peephole + 2 * p->state_stride), c, z[3]);
    if (s->clip > 0) z[3] = vclip(z[3], s->clip);
    cell_write(p, at, vmul(vactivate(&s->act[0], z[3]), vactivate(&s->act[2], c)));
}

void FL_NAME(fl_lstm_general)(const fl_cell_args *p) { cell_blocks(p, lstm_general_block); }

/* Each line differentiates the forward equation that it cites. Test: tests/test_backward.py. */
FL_INLINE void lstm_backward_block(const fl_cell_backward_args *p, cell_at at, const bool general) {
    const fl_cell_options *s = p->options;
    const bool peepholes = general && s->peepholes;
    const real *peephole = (const real *)p->peephole + (peepholes ? at.unit : 0);
    const vec c = vload(back_state(p, at, p->c)), c_new = vload(back_state(p, at, p->c_new));
    vec z_i = back_load(p, at, 4, 0), z_f = back_load(p, at, 4, 1), z_o = back_load(p, at, 4, 3), slope;
    if (peepholes) {
        z_i = vfma(vload(peephole), c, z_i);
        z_f = vfma(vload(peephole + p->state_stride), c, z_f);
        z_o = vfma(vload(peephole + 2 * p->state_stride), c_new, z_o);
    }
    const vec dh = back_dh(p, at);
    const vec y = vactivate_slope(s, general, 2, false, c_new, &slope); /* y = tanh(c') */
    const vec dh_dy = vmul(dh, slope);
    const vec o = vactivate_slope(s, general, 0, true, z_o, &slope); /* h' = o y */
    const vec dz_o = vmul(slope, vmul(dh, y));
    real *dc = back_state(p, at, p->dc);
    vec dc_new = vfma(dh_dy, o, vload(dc));
    if (peepholes) dc_new = vfma(vload(peephole + 2 * p->state_stride), dz_o, dc_new); /* z_o = .. + p_o c' */
    vec slope_i, slope_g;
    const vec i = vactivate_slope(s, general, 0, true, z_i, &slope_i);
    const vec g = vactivate_slope(s, general, 1, true, back_load(p, at, 4, 2), &slope_g);
    vec f = vset(1), dz_f = vset(0), di = vmul(dc_new, g); /* c' = f c + i g */
    if (general && s->coupled_gates) { /* f = 1 - i */
        f = vsub(f, i);
        di = vnfma(dc_new, c, di);
    } else if (!general || s->forget_gate) {
        f = vactivate_slope(s, general, 0, true, z_f, &slope);
        dz_f = vmul(slope, vmul(dc_new, c));
    }
    const vec dz_i = vmul(slope_i, di), dz_g = vmul(slope_g, vmul(dc_new, i));
    dc_new = vmul(dc_new, f);
    if (peepholes) { /* z_i = .. + p_i c, z_f = .. + p_f c */
        dc_new = vfma(vload(peephole), dz_i, dc_new);
        dc_new = vfma(vload(peephole + p->state_stride), dz_f, dc_new);
    }
    vstore(dc, dc_new);
    back_store(p, at, 0, dz_i);
    back_store(p, at, 1, dz_f);
    back_store(p, at, 2, dz_g);
    back_store(p, at, 3, dz_o);
    if (p->between) vstore(back_state(p, at, p->between), vmul(o, y)); /* h' = W_hr (o y) */
}

FL_INLINE void lstm_plain_backward(const fl_cell_backward_args *p, cell_at at) { lstm_backward_block(p, at, false); }
FL_INLINE void lstm_any_backward(const fl_cell_backward_args *p, cell_at at) { lstm_backward_block(p, at, true); }

void FL_NAME(fl_lstm_backward)(const fl_cell_backward_args *p) { back_blocks(p, lstm_plain_backward); }
void FL_NAME(fl_lstm_general_backward)(const fl_cell_backward_args *p) { back_blocks(p, lstm_any_backward); }
