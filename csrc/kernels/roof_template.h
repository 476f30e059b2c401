/* Kernels that only keep the machine busy: the roofline against which the others are read.
 * And the element-wise functions of math_template.h over arrays, so that their bounds can be asserted.
 * Test: tests/test_kernels.py.
 */

/* n rounds of 12 independent chains of multiply-adds, their starts in data [12, LANES]; returns the number of
 * floating-point operations. */
int64_t FL_NAME(fl_roof_fma)(const void *data, int64_t n) {
    const vec x = vload((const real *)data);
    vec acc[12];
    FL_UNROLL for (int i = 0; i < 12; i++) acc[i] = vload((const real *)data + i * LANES);
    for (int64_t round = 0; round < n; round++)
        FL_UNROLL for (int i = 0; i < 12; i++) acc[i] = vfma(acc[i], x, x);
    real sum[LANES];
    volatile real sink;
    FL_UNROLL for (int i = 0; i < 12; i++) {
        vstore(sum, acc[i]);
        sink = sum[0];
    }
    (void)sink;
    return n * 12 * LANES * 2;
}

/* n rounds of four multiply-adds that wait for each other, from data [LANES]; returns how many. */
int64_t FL_NAME(fl_roof_chain)(const void *data, int64_t n) {
    const vec x = vload((const real *)data);
    vec acc = x;
    for (int64_t round = 0; round < n; round++)
        FL_UNROLL for (int i = 0; i < 4; i++) acc = vfma(acc, x, x);
    real sum[LANES];
    vstore(sum, acc);
    volatile real sink = sum[0];
    (void)sink;
    return n * 4;
}

/* Reads n bytes, whole groups of eight vectors of them; returns how many. */
int64_t FL_NAME(fl_roof_read)(const void *data, int64_t n) {
    const real *p = (const real *)data;
    const int64_t groups = n / (int64_t)sizeof(real) / (8 * LANES);
    vec acc[8];
    FL_UNROLL for (int i = 0; i < 8; i++) acc[i] = vset(0);
    for (int64_t group = 0; group < groups; group++)
        FL_UNROLL for (int i = 0; i < 8; i++) acc[i] = vmax(acc[i], vload(p + (group * 8 + i) * LANES));
    real some[LANES];
    volatile real sink;
    FL_UNROLL for (int i = 0; i < 8; i++) {
        vstore(some, acc[i]);
        sink = some[0];
    }
    (void)sink;
    return groups * 8 * LANES * (int64_t)sizeof(real);
}

#define map_sigmoid FL_NAME(map_sigmoid)
#define map_tanh FL_NAME(map_tanh)
#define map_blocks FL_NAME(map_blocks)

FL_INLINE vec map_sigmoid(vec a, vec b) {
    (void)b;
    return vsigmoid(a);
}

FL_INLINE vec map_tanh(vec a, vec b) {
    (void)b;
    return vtanh(a);
}

FL_INLINE void map_blocks(const void *a, const void *b, void *out, int64_t n, vec (*f)(vec, vec)) {
    const real *x = (const real *)a, *y = (const real *)b;
    real *result = (real *)out;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) vstore(result + i, f(vload(x + i), vload(y + i)));
    if (i < n) vstore_part(result + i, n - i, f(vload_part(x + i, n - i), vload_part(y + i, n - i)));
}

void FL_NAME(fl_sigmoid)(const void *a, const void *b, void *out, int64_t n) { map_blocks(a, b, out, n, map_sigmoid); }

void FL_NAME(fl_tanh)(const void *a, const void *b, void *out, int64_t n) { map_blocks(a, b, out, n, map_tanh); }

void FL_NAME(fl_sigmoid_tanh)(const void *a, const void *b, void *out, int64_t n) {
    map_blocks(a, b, out, n, vsigmoid_tanh);
}
