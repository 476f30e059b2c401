/* AVX2 with FMA: 8 floats or 4 doubles. The vocabulary is that of simd.h. */
#ifndef FL_SIMD_AVX2_H
#define FL_SIMD_AVX2_H

/* 16 registers: 6 x 2 accumulators, two weights and a broadcast. */
#define FL_TILE_ROWS 6
#define FL_PANEL_VECS 2
#define FL_ROW_PANELS 6 /* one row: 12 accumulators keep two multiply-add units busy */

typedef __m256 vec_f32;
typedef __m256 vmask_f32;
#define LANES_f32 8

/* Lane i of the mask is set when i < n. */
static inline __m256i first_lanes_avx2_f32(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vec_f32 simd_set_f32(float x) { return _mm256_set1_ps(x); }
static inline vec_f32 simd_load_f32(const float *p) { return _mm256_loadu_ps(p); }
static inline void simd_store_f32(float *p, vec_f32 a) { _mm256_storeu_ps(p, a); }
static inline vec_f32 simd_load_part_f32(const float *p, int64_t n) {
    if (n == 4) return _mm256_zextps128_ps256(_mm_loadu_ps(p));
    return _mm256_maskload_ps(p, first_lanes_avx2_f32(n));
}
static inline void simd_store_part_f32(float *p, int64_t n, vec_f32 a) {
    _mm256_maskstore_ps(p, first_lanes_avx2_f32(n), a);
}
static inline vec_f32 simd_add_f32(vec_f32 a, vec_f32 b) { return _mm256_add_ps(a, b); }
static inline vec_f32 simd_sub_f32(vec_f32 a, vec_f32 b) { return _mm256_sub_ps(a, b); }
static inline vec_f32 simd_mul_f32(vec_f32 a, vec_f32 b) { return _mm256_mul_ps(a, b); }
static inline vec_f32 simd_div_f32(vec_f32 a, vec_f32 b) { return _mm256_div_ps(a, b); }
static inline vec_f32 simd_fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec_f32 simd_nfma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return _mm256_fnmadd_ps(a, b, c); }
static inline vec_f32 simd_min_f32(vec_f32 a, vec_f32 b) { return _mm256_min_ps(a, b); }
static inline vec_f32 simd_max_f32(vec_f32 a, vec_f32 b) { return _mm256_max_ps(a, b); }
static inline vec_f32 simd_signed_f32(vec_f32 size, vec_f32 sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(bit, size), _mm256_and_ps(bit, sign));
}
static inline vec_f32 simd_pow2_f32(vec_f32 t) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t), 23));
}
static inline vmask_f32 simd_lt_f32(vec_f32 a, vec_f32 b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
static inline vec_f32 simd_select_f32(vmask_f32 m, vec_f32 a, vec_f32 b) { return _mm256_blendv_ps(b, a, m); }
/* bfloat16 as floats: two registers that lie lane by lane, low halves first; or one. */
static inline void simd_load_bf16_pair(const uint16_t *p, vec_f32 *low, vec_f32 *high) {
    const __m256i both = _mm256_loadu_si256((const __m256i *)p);
    *low = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *high = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(INT32_MIN >> 15)));
}
static inline vec_f32 simd_load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}

typedef __m256d vec_f64;
typedef __m256d vmask_f64;
#define LANES_f64 4

static inline __m256i first_lanes_avx2_f64(int64_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
static inline vec_f64 simd_set_f64(double x) { return _mm256_set1_pd(x); }
static inline vec_f64 simd_load_f64(const double *p) { return _mm256_loadu_pd(p); }
static inline void simd_store_f64(double *p, vec_f64 a) { _mm256_storeu_pd(p, a); }
static inline vec_f64 simd_load_part_f64(const double *p, int64_t n) {
    return _mm256_maskload_pd(p, first_lanes_avx2_f64(n));
}
static inline void simd_store_part_f64(double *p, int64_t n, vec_f64 a) {
    _mm256_maskstore_pd(p, first_lanes_avx2_f64(n), a);
}
static inline vec_f64 simd_add_f64(vec_f64 a, vec_f64 b) { return _mm256_add_pd(a, b); }
static inline vec_f64 simd_sub_f64(vec_f64 a, vec_f64 b) { return _mm256_sub_pd(a, b); }
static inline vec_f64 simd_mul_f64(vec_f64 a, vec_f64 b) { return _mm256_mul_pd(a, b); }
static inline vec_f64 simd_div_f64(vec_f64 a, vec_f64 b) { return _mm256_div_pd(a, b); }
static inline vec_f64 simd_fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return _mm256_fmadd_pd(a, b, c); }
static inline vec_f64 simd_nfma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return _mm256_fnmadd_pd(a, b, c); }
static inline vec_f64 simd_min_f64(vec_f64 a, vec_f64 b) { return _mm256_min_pd(a, b); }
static inline vec_f64 simd_max_f64(vec_f64 a, vec_f64 b) { return _mm256_max_pd(a, b); }
static inline vec_f64 simd_signed_f64(vec_f64 size, vec_f64 sign) {
    const __m256d bit = _mm256_set1_pd(-0.0);
    return _mm256_or_pd(_mm256_andnot_pd(bit, size), _mm256_and_pd(bit, sign));
}
static inline vec_f64 simd_pow2_f64(vec_f64 t) {
    return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(t), 52));
}
static inline vmask_f64 simd_lt_f64(vec_f64 a, vec_f64 b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
static inline vec_f64 simd_select_f64(vmask_f64 m, vec_f64 a, vec_f64 b) { return _mm256_blendv_pd(b, a, m); }

#endif
