/* LSTM: i, f, o = sigma(.), g = tanh(.); c' = f c + i g; h' = o tanh(c').
 * Hochreiter & Schmidhuber, Long Short-Term Memory, Neural Computation 9(8), 1997 (no forget gate: c' = c + i g);
 * Gers, Schmidhuber & Cummins, Learning to Forget, 2000 (forget gate); Gers & Schmidhuber, Recurrent Nets that Time
 * and Count, 2000 (peepholes: i and f see c, o sees c'); Greff et al., LSTM: A Search Space Odyssey, 2017 (coupled,
 * f = 1 - i).
 *
 * Columns of z: gates i, f, g, o (kernels.h). c in place; h_out may not be z; y may be NULL (projection).
 * Tails: cell_template.h.
 * Bound: FL_BOUND(sigmoid), FL_BOUND(sigmoid_tanh). Test: tests/test_forward.py, tests/c/kernels.c.
 */

#define lstm_block FL_NAME(lstm_block)
#define lstm_general_block FL_NAME(lstm_general_block)

FL_INLINE void lstm_block(const fl_cell_args *p, cell_at at) {
    const vec i = cell_load(p, at, p->z, p->z_stride, 4, 0), f = cell_load(p, at, p->z, p->z_stride, 4, 1);
    const vec g = cell_load(p, at, p->z, p->z_stride, 4, 2), o = cell_load(p, at, p->z, p->z_stride, 4, 3);
    real *state = cell_state(p, at, p->c);
    const vec c = vadd(vdiv(vload(state), vexp_minus(f, 1)), vsigmoid_tanh(i, g));
    vstore(state, c);
    cell_write(p, at, vsigmoid_tanh(o, c));
}

void FL_NAME(fl_lstm)(const fl_cell_args *p) { cell_blocks(p, lstm_block); }

FL_INLINE void lstm_general_block(const fl_cell_args *p, cell_at at) {
    const fl_cell_options *s = p->options;
    const real *peephole = (const real *)p->peephole + (s->peepholes ? at.unit : 0);
    real *state = cell_state(p, at, p->c);
    vec z[4], c = vload(state);
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
    vstore(state, c);
    if (s->peepholes) z[3] = vfma(vload(peephole + 2 * p->state_stride), c, z[3]);
    if (s->clip > 0) z[3] = vclip(z[3], s->clip);
    cell_write(p, at, vmul(vactivate(&s->act[0], z[3]), vactivate(&s->act[2], c)));
}

void FL_NAME(fl_lstm_general)(const fl_cell_args *p) { cell_blocks(p, lstm_general_block); }
