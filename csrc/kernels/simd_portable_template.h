/* Plain C: FL_NAME(LANES) numbers in an array. Included once a dtype by simd_portable.h; the vocabulary is that of
 * simd.h. Loops over lanes are the compiler's to vectorize; it must inline, or a register travels through memory. */

#define bits FL_NAME(bits)
#define EACH_LANE for (int i = 0; i < LANES; i++)

typedef struct vec {
    real at[LANES];
} vec;

typedef struct vmask {
    bits at[LANES];
} vmask;

FL_INLINE vec vset(real x) {
    vec r;
    EACH_LANE r.at[i] = x;
    return r;
}

FL_INLINE vec vload(const real *p) {
    vec r;
    memcpy(&r, p, sizeof r);
    return r;
}

FL_INLINE void vstore(real *p, vec a) { memcpy(p, &a, sizeof a); }

FL_INLINE vec vload_part(const real *p, int64_t n) {
    vec r;
    EACH_LANE r.at[i] = i < n ? p[i] : 0;
    return r;
}

FL_INLINE void vstore_part(real *p, int64_t n, vec a) { memcpy(p, &a, (size_t)n * sizeof(real)); }

FL_INLINE vec vadd(vec a, vec b) {
    EACH_LANE a.at[i] += b.at[i];
    return a;
}

FL_INLINE vec vsub(vec a, vec b) {
    EACH_LANE a.at[i] -= b.at[i];
    return a;
}

FL_INLINE vec vmul(vec a, vec b) {
    EACH_LANE a.at[i] *= b.at[i];
    return a;
}

FL_INLINE vec vdiv(vec a, vec b) {
    EACH_LANE a.at[i] /= b.at[i];
    return a;
}

FL_INLINE vec vfma(vec a, vec b, vec c) {
    EACH_LANE c.at[i] = FL_NAME(FMA)(a.at[i], b.at[i], c.at[i]);
    return c;
}

FL_INLINE vec vnfma(vec a, vec b, vec c) {
    EACH_LANE c.at[i] = FL_NAME(FMA)(-a.at[i], b.at[i], c.at[i]);
    return c;
}

FL_INLINE vec vmin(vec a, vec b) {
    EACH_LANE a.at[i] = a.at[i] < b.at[i] ? a.at[i] : b.at[i];
    return a;
}

FL_INLINE vec vmax(vec a, vec b) {
    EACH_LANE a.at[i] = a.at[i] > b.at[i] ? a.at[i] : b.at[i];
    return a;
}

FL_INLINE vec vsigned(vec size, vec sign) {
    bits s[LANES], t[LANES];
    memcpy(s, &size, sizeof s);
    memcpy(t, &sign, sizeof t);
    EACH_LANE s[i] = (s[i] & ~SIGN_BIT) | (t[i] & SIGN_BIT);
    memcpy(&size, s, sizeof s);
    return size;
}

FL_INLINE vec vpow2(vec t) {
    bits n[LANES];
    memcpy(n, &t, sizeof n);
    EACH_LANE n[i] <<= MANTISSA_BITS;
    memcpy(&t, n, sizeof n);
    return t;
}

FL_INLINE vmask vlt(vec a, vec b) {
    vmask m;
    EACH_LANE m.at[i] = a.at[i] < b.at[i];
    return m;
}

FL_INLINE vec vselect(vmask m, vec a, vec b) {
    EACH_LANE a.at[i] = m.at[i] ? a.at[i] : b.at[i];
    return a;
}

#undef EACH_LANE
