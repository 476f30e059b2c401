/* NEON vectors of 4 integers, for integer_template.h; after simd_neon.h. With FL_VNNI by the dot product of ARMv8.2. */
#ifndef FL_SIMD_INTEGER_NEON_H
#define FL_SIMD_INTEGER_NEON_H

typedef int32x4_t ivec;

static inline ivec simd_load_int(const int32_t *p) { return vld1q_s32(p); }
static inline ivec simd_zero_int(void) { return vdupq_n_s32(0); }
static inline vec_f32 simd_float_of_int(ivec a) { return vcvtq_f32_s32(a); }

/* Four bytes of a row, in every lane. */
static inline int32x4_t group_neon(const void *p) {
    int32_t group;
    memcpy(&group, p, sizeof group);
    return vdupq_n_s32(group);
}

#define ROWS_int8 6
#define OFFSET_int8 0
typedef int8x16_t factor_int8, weights_int8;
static inline factor_int8 simd_factor_int8(const char *p) { return vreinterpretq_s8_s32(group_neon(p)); }
static inline weights_int8 simd_weights_int8(const int8_t *p) { return vld1q_s8(p); }
static inline ivec simd_dot_int8(ivec sum, factor_int8 a, weights_int8 w) {
#ifdef FL_VNNI
    return vdotq_s32(sum, a, w);
#else
    /* Two products' sum, at most 2 * 127 * 127 = 32258, fits into 16 bits. */
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(w)), high = vmull_high_s8(a, w);
    return vpadalq_s16(sum, vpaddq_s16(low, high));
#endif
}
static inline void simd_round_int8(char *to, vec_f32 x) {
    const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(x));
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    vst1_lane_s32((int32_t *)(void *)to, vreinterpret_s32_s8(bytes), 0);
}

#define ROWS_int16 6
typedef int16x8_t factor_int16, weights_int16;
static inline factor_int16 simd_factor_int16(const char *p) { return vreinterpretq_s16_s32(group_neon(p)); }
static inline weights_int16 simd_weights_int16(const int8_t *p) { return vmovl_s8(vld1_s8(p)); }
static inline ivec simd_dot_int16(ivec sum, factor_int16 a, weights_int16 w) {
    const int32x4_t low = vmull_s16(vget_low_s16(a), vget_low_s16(w)), high = vmull_high_s16(a, w);
    return vaddq_s32(sum, vpaddq_s32(low, high));
}
static inline void simd_round_int16(char *to, vec_f32 x) {
    vst1_s16((int16_t *)(void *)to, vmovn_s32(vcvtnq_s32_f32(x)));
}

#endif
