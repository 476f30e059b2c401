/* NEON vectors of 4 integers, for integer_template.h; after simd_neon.h. With FL_VNNI by the dot product of ARMv8.2. */
#ifndef FL_SIMD_INTEGER_NEON_H
#define FL_SIMD_INTEGER_NEON_H

typedef int32x4_t ivec;

static inline ivec simd_load_int(const int32_t *p) { return vld1q_s32(p); }
static inline ivec simd_zero_int(void) { return vdupq_n_s32(0); }
static inline vec_f32 simd_float_of_int(ivec a) { return vcvtq_f32_s32(a); }
static inline ivec simd_nearest_int(vec_f32 x) { return vcvtnq_s32_f32(x); }
static inline ivec simd_high_byte(ivec a) { return vshrq_n_s32(vaddq_s32(a, vdupq_n_s32(128)), 8); }

/* Four bytes of a row, in every lane. */
static inline int32x4_t group_neon(const void *p) {
    int32_t group;
    memcpy(&group, p, sizeof group);
    return vdupq_n_s32(group);
}

#define FL_INTEGER_ROWS 6
#define FL_OFFSET 0
typedef int8x16_t ifactor, iweights;
static inline ifactor simd_factor(const char *p) { return vreinterpretq_s8_s32(group_neon(p)); }
static inline iweights simd_weights(const int8_t *p) { return vld1q_s8(p); }
static inline ivec simd_dot(ivec sum, ifactor a, iweights w) {
#ifdef FL_VNNI
    return vdotq_s32(sum, a, w);
#else
    /* Two products' sum, at most 2 * 128 * 127 = 32512, fits into 16 bits. */
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(w)), high = vmull_high_s8(a, w);
    return vpadalq_s16(sum, vpaddq_s16(low, high));
#endif
}

static inline void simd_store_bytes(char *to, ivec a) {
    const int16x4_t words = vmovn_s32(a);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    vst1_lane_s32((int32_t *)(void *)to, vreinterpret_s32_s8(bytes), 0);
}

#endif
