/* AVX-512 vectors: 16 floats or 8 doubles. The vocabulary is that of simd.h. */
#ifndef FL_SIMD_AVX512_H
#define FL_SIMD_AVX512_H

/* 32 registers: 6 x 4 accumulators, four weights and a broadcast. */
#define FL_TILE_ROWS 6
#define FL_PANEL_VECS 4
#define FL_ROW_PANELS 2 /* one row: 8 accumulators hide the latency of the multiply-add */

typedef __m512 vec_f32;
typedef __mmask16 vmask_f32;
#define LANES_f32 16

static inline vec_f32 simd_set_f32(float x) { return _mm512_set1_ps(x); }
static inline vec_f32 simd_load_f32(const float *p) { return _mm512_loadu_ps(p); }
static inline void simd_store_f32(float *p, vec_f32 a) { _mm512_storeu_ps(p, a); }
/* Halves and quarters on their own: a load that lies within one earlier store is forwarded, a masked one is not. */
static inline vec_f32 simd_load_part_f32(const float *p, int64_t n) {
    if (n == 8) return _mm512_zextps256_ps512(_mm256_loadu_ps(p));
    if (n == 4) return _mm512_zextps128_ps512(_mm_loadu_ps(p));
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
static inline void simd_store_part_f32(float *p, int64_t n, vec_f32 a) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a);
}
static inline vec_f32 simd_add_f32(vec_f32 a, vec_f32 b) { return _mm512_add_ps(a, b); }
static inline vec_f32 simd_sub_f32(vec_f32 a, vec_f32 b) { return _mm512_sub_ps(a, b); }
static inline vec_f32 simd_mul_f32(vec_f32 a, vec_f32 b) { return _mm512_mul_ps(a, b); }
static inline vec_f32 simd_div_f32(vec_f32 a, vec_f32 b) { return _mm512_div_ps(a, b); }
static inline vec_f32 simd_fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec_f32 simd_nfma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return _mm512_fnmadd_ps(a, b, c); }
static inline vec_f32 simd_min_f32(vec_f32 a, vec_f32 b) { return _mm512_min_ps(a, b); }
static inline vec_f32 simd_max_f32(vec_f32 a, vec_f32 b) { return _mm512_max_ps(a, b); }
static inline vec_f32 simd_signed_f32(vec_f32 size, vec_f32 sign) {
    const __m512i bit = _mm512_set1_epi32(INT32_MIN);
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign), _mm512_castps_si512(size), 0xCA));
}
static inline vec_f32 simd_pow2_f32(vec_f32 t) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(t), 23));
}
static inline vmask_f32 simd_lt_f32(vec_f32 a, vec_f32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline vec_f32 simd_select_f32(vmask_f32 m, vec_f32 a, vec_f32 b) { return _mm512_mask_blend_ps(m, b, a); }
/* bfloat16 as floats: two registers that lie lane by lane, low halves first; or one. */
static inline void simd_load_bf16_pair(const uint16_t *p, vec_f32 *low, vec_f32 *high) {
    const __m512i both = _mm512_loadu_si512(p);
    *low = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    *high = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(INT32_MIN >> 15)));
}
static inline vec_f32 simd_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

typedef __m512d vec_f64;
typedef __mmask8 vmask_f64;
#define LANES_f64 8

static inline vec_f64 simd_set_f64(double x) { return _mm512_set1_pd(x); }
static inline vec_f64 simd_load_f64(const double *p) { return _mm512_loadu_pd(p); }
static inline void simd_store_f64(double *p, vec_f64 a) { _mm512_storeu_pd(p, a); }
static inline vec_f64 simd_load_part_f64(const double *p, int64_t n) {
    if (n == 4) return _mm512_zextpd256_pd512(_mm256_loadu_pd(p));
    return _mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
static inline void simd_store_part_f64(double *p, int64_t n, vec_f64 a) {
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), a);
}
static inline vec_f64 simd_add_f64(vec_f64 a, vec_f64 b) { return _mm512_add_pd(a, b); }
static inline vec_f64 simd_sub_f64(vec_f64 a, vec_f64 b) { return _mm512_sub_pd(a, b); }
static inline vec_f64 simd_mul_f64(vec_f64 a, vec_f64 b) { return _mm512_mul_pd(a, b); }
static inline vec_f64 simd_div_f64(vec_f64 a, vec_f64 b) { return _mm512_div_pd(a, b); }
static inline vec_f64 simd_fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return _mm512_fmadd_pd(a, b, c); }
static inline vec_f64 simd_nfma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return _mm512_fnmadd_pd(a, b, c); }
static inline vec_f64 simd_min_f64(vec_f64 a, vec_f64 b) { return _mm512_min_pd(a, b); }
static inline vec_f64 simd_max_f64(vec_f64 a, vec_f64 b) { return _mm512_max_pd(a, b); }
static inline vec_f64 simd_signed_f64(vec_f64 size, vec_f64 sign) {
    const __m512i bit = _mm512_set1_epi64(INT64_MIN);
    return _mm512_castsi512_pd(
        _mm512_ternarylogic_epi64(bit, _mm512_castpd_si512(sign), _mm512_castpd_si512(size), 0xCA));
}
static inline vec_f64 simd_pow2_f64(vec_f64 t) {
    return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(t), 52));
}
static inline vmask_f64 simd_lt_f64(vec_f64 a, vec_f64 b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
static inline vec_f64 simd_select_f64(vmask_f64 m, vec_f64 a, vec_f64 b) { return _mm512_mask_blend_pd(m, b, a); }

#endif
