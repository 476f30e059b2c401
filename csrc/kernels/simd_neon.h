/* NEON of AArch64: 4 floats or 2 doubles. The vocabulary is that of simd.h. */
#ifndef FL_SIMD_NEON_H
#define FL_SIMD_NEON_H

/* 32 registers: 6 x 4 accumulators, four weights and a broadcast. */
#define FL_TILE_ROWS 6
#define FL_PANEL_VECS 4
#define FL_ROW_PANELS 4

typedef float32x4_t vec_f32;
typedef uint32x4_t vmask_f32;
#define LANES_f32 4

static inline vec_f32 simd_set_f32(float x) { return vdupq_n_f32(x); }
static inline vec_f32 simd_load_f32(const float *p) { return vld1q_f32(p); }
static inline void simd_store_f32(float *p, vec_f32 a) { vst1q_f32(p, a); }
static inline vec_f32 simd_load_part_f32(const float *p, int64_t n) {
    float whole[4] = {0, 0, 0, 0};
    for (int64_t i = 0; i < n; i++) whole[i] = p[i];
    return vld1q_f32(whole);
}
static inline void simd_store_part_f32(float *p, int64_t n, vec_f32 a) {
    float whole[4];
    vst1q_f32(whole, a);
    for (int64_t i = 0; i < n; i++) p[i] = whole[i];
}
static inline vec_f32 simd_add_f32(vec_f32 a, vec_f32 b) { return vaddq_f32(a, b); }
static inline vec_f32 simd_sub_f32(vec_f32 a, vec_f32 b) { return vsubq_f32(a, b); }
static inline vec_f32 simd_mul_f32(vec_f32 a, vec_f32 b) { return vmulq_f32(a, b); }
static inline vec_f32 simd_div_f32(vec_f32 a, vec_f32 b) { return vdivq_f32(a, b); }
static inline vec_f32 simd_fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return vfmaq_f32(c, a, b); }
static inline vec_f32 simd_nfma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return vfmsq_f32(c, a, b); }
static inline vec_f32 simd_min_f32(vec_f32 a, vec_f32 b) { return vminq_f32(a, b); }
static inline vec_f32 simd_max_f32(vec_f32 a, vec_f32 b) { return vmaxq_f32(a, b); }
static inline vec_f32 simd_signed_f32(vec_f32 size, vec_f32 sign) {
    return vbslq_f32(vdupq_n_u32(0x80000000u), sign, size);
}
static inline vec_f32 simd_pow2_f32(vec_f32 t) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(t), 23));
}
static inline vmask_f32 simd_lt_f32(vec_f32 a, vec_f32 b) { return vcltq_f32(a, b); }
static inline vec_f32 simd_select_f32(vmask_f32 m, vec_f32 a, vec_f32 b) { return vbslq_f32(m, a, b); }
/* bfloat16 as floats: two registers that lie lane by lane, low halves first; or one. */
static inline void simd_load_bf16_pair(const uint16_t *p, vec_f32 *low, vec_f32 *high) {
    const uint32x4_t both = vreinterpretq_u32_u16(vld1q_u16(p));
    *low = vreinterpretq_f32_u32(vshlq_n_u32(both, 16));
    *high = vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000u)));
}
static inline vec_f32 simd_load_bf16(const uint16_t *p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }

typedef float64x2_t vec_f64;
typedef uint64x2_t vmask_f64;
#define LANES_f64 2

static inline vec_f64 simd_set_f64(double x) { return vdupq_n_f64(x); }
static inline vec_f64 simd_load_f64(const double *p) { return vld1q_f64(p); }
static inline void simd_store_f64(double *p, vec_f64 a) { vst1q_f64(p, a); }
/* A part of two lanes is one lane. */
static inline vec_f64 simd_load_part_f64(const double *p, int64_t n) {
    return n ? vsetq_lane_f64(p[0], vdupq_n_f64(0), 0) : vdupq_n_f64(0);
}
static inline void simd_store_part_f64(double *p, int64_t n, vec_f64 a) {
    if (n) p[0] = vgetq_lane_f64(a, 0);
}
static inline vec_f64 simd_add_f64(vec_f64 a, vec_f64 b) { return vaddq_f64(a, b); }
static inline vec_f64 simd_sub_f64(vec_f64 a, vec_f64 b) { return vsubq_f64(a, b); }
static inline vec_f64 simd_mul_f64(vec_f64 a, vec_f64 b) { return vmulq_f64(a, b); }
static inline vec_f64 simd_div_f64(vec_f64 a, vec_f64 b) { return vdivq_f64(a, b); }
static inline vec_f64 simd_fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return vfmaq_f64(c, a, b); }
static inline vec_f64 simd_nfma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return vfmsq_f64(c, a, b); }
static inline vec_f64 simd_min_f64(vec_f64 a, vec_f64 b) { return vminq_f64(a, b); }
static inline vec_f64 simd_max_f64(vec_f64 a, vec_f64 b) { return vmaxq_f64(a, b); }
static inline vec_f64 simd_signed_f64(vec_f64 size, vec_f64 sign) {
    return vbslq_f64(vdupq_n_u64(0x8000000000000000u), sign, size);
}
static inline vec_f64 simd_pow2_f64(vec_f64 t) {
    return vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(t), 52));
}
static inline vmask_f64 simd_lt_f64(vec_f64 a, vec_f64 b) { return vcltq_f64(a, b); }
static inline vec_f64 simd_select_f64(vmask_f64 m, vec_f64 a, vec_f64 b) { return vbslq_f64(m, a, b); }

#endif
