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

#define ROWS_int8 2
#define OFFSET_int8 0
typedef struct factor_int8 {
    int8_t at[4];
} factor_int8;
typedef struct weights_int8 {
    int8_t at[4 * LANES_f32];
} weights_int8;

FL_INLINE factor_int8 simd_factor_int8(const char *p) {
    factor_int8 r;
    memcpy(&r, p, sizeof r);
    return r;
}

FL_INLINE weights_int8 simd_weights_int8(const int8_t *p) {
    weights_int8 r;
    memcpy(&r, p, sizeof r);
    return r;
}

FL_INLINE ivec simd_dot_int8(ivec sum, factor_int8 a, weights_int8 w) {
    for (int i = 0; i < 4 * LANES_f32; i++) sum.at[i / 4] += a.at[i % 4] * w.at[i];
    return sum;
}

FL_INLINE void simd_round_int8(char *to, vec_f32 x) {
    for (int i = 0; i < LANES_f32; i++) to[i] = (char)nearest_int(x.at[i]);
}

#define ROWS_int16 2
typedef struct factor_int16 {
    int16_t at[2];
} factor_int16;
typedef struct weights_int16 {
    int8_t at[2 * LANES_f32];
} weights_int16;

FL_INLINE factor_int16 simd_factor_int16(const char *p) {
    factor_int16 r;
    memcpy(&r, p, sizeof r);
    return r;
}

FL_INLINE weights_int16 simd_weights_int16(const int8_t *p) {
    weights_int16 r;
    memcpy(&r, p, sizeof r);
    return r;
}

FL_INLINE ivec simd_dot_int16(ivec sum, factor_int16 a, weights_int16 w) {
    for (int i = 0; i < 2 * LANES_f32; i++) sum.at[i / 2] += a.at[i % 2] * w.at[i];
    return sum;
}

FL_INLINE void simd_round_int16(char *to, vec_f32 x) {
    for (int i = 0; i < LANES_f32; i++) {
        const int16_t n = (int16_t)nearest_int(x.at[i]);
        memcpy(to + 2 * i, &n, sizeof n);
    }
}

#endif
