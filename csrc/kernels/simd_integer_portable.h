/* Plain C vectors of 4 integers, for integer_template.h; after simd_portable.h. */
#ifndef FL_SIMD_INTEGER_PORTABLE_H
#define FL_SIMD_INTEGER_PORTABLE_H

typedef struct ivec {
    int32_t at[LANES_f32];
} ivec;

FL_INLINE ivec simd_load_int(const int32_t *p) {
    ivec r;
    memcpy(&r, p, sizeof r);
    return r;
}

FL_INLINE ivec simd_zero_int(void) { return (ivec){{0}}; }

FL_INLINE vec_f32 simd_float_of_int(ivec a) {
    vec_f32 r;
    for (int i = 0; i < LANES_f32; i++) r.at[i] = (float)a.at[i];
    return r;
}

/* To nearest even: adding 1.5 * 2^23 leaves no bit for a fraction. What is no number or too large counts as zero; its
 * row's scale is NaN. */
FL_INLINE int32_t nearest_int(float x) {
    const float shift = 12582912.0f, least = -4194304.0f, most = 4194304.0f;
    return x >= least && x <= most ? (int32_t)((x + shift) - shift) : 0;
}

FL_INLINE ivec simd_nearest_int(vec_f32 x) {
    ivec r;
    for (int i = 0; i < LANES_f32; i++) r.at[i] = nearest_int(x.at[i]);
    return r;
}

FL_INLINE ivec simd_high_byte(ivec a) {
    for (int i = 0; i < LANES_f32; i++) a.at[i] = (a.at[i] + 128) >> 8;
    return a;
}

#define FL_INTEGER_ROWS 2
#define FL_OFFSET 0
typedef struct ifactor {
    int8_t at[4];
} ifactor;
typedef struct iweights {
    int8_t at[4 * LANES_f32];
} iweights;

FL_INLINE ifactor simd_factor(const char *p) {
    ifactor r;
    memcpy(&r, p, sizeof r);
    return r;
}

FL_INLINE iweights simd_weights(const int8_t *p) {
    iweights r;
    memcpy(&r, p, sizeof r);
    return r;
}

FL_INLINE ivec simd_dot(ivec sum, ifactor a, iweights w) {
    for (int i = 0; i < 4 * LANES_f32; i++) sum.at[i / 4] += a.at[i % 4] * w.at[i];
    return sum;
}

FL_INLINE void simd_store_bytes(char *to, ivec a) {
    for (int i = 0; i < LANES_f32; i++) to[i] = (char)a.at[i];
}

#endif
