/* AVX-512 vectors of 16 integers, for integer_template.h; after simd_avx512.h. With FL_VNNI by its instructions. */
#ifndef FL_SIMD_INTEGER_AVX512_H
#define FL_SIMD_INTEGER_AVX512_H

typedef __m512i ivec;

static inline ivec simd_load_int(const int32_t *p) { return _mm512_loadu_si512(p); }
static inline ivec simd_zero_int(void) { return _mm512_setzero_si512(); }
static inline vec_f32 simd_float_of_int(ivec a) { return _mm512_cvtepi32_ps(a); }

/* Four numbers of a row, in every lane. */
static inline __m512i group_avx512(const void *p) {
    int32_t group;
    memcpy(&group, p, sizeof group);
    return _mm512_set1_epi32(group);
}

typedef __m512i weights_int8;
static inline weights_int8 simd_weights_int8(const int8_t *p) { return _mm512_loadu_si512(p); }

#define ROWS_int8 6
#ifdef FL_VNNI
#define OFFSET_int8 128
typedef __m512i factor_int8;
static inline factor_int8 simd_factor_int8(const char *p) { return group_avx512(p); }
static inline ivec simd_dot_int8(ivec sum, factor_int8 a, weights_int8 w) { return _mm512_dpbusd_epi32(sum, a, w); }
#else
/* maddubs saturates two products' sum at 32767: |a| and w with a's sign are at most 127, and 2 * 127 * 127 is 32258. */
#define OFFSET_int8 0
typedef struct factor_int8 {
    __m512i magnitude;
    __mmask64 negative;
} factor_int8;
static inline factor_int8 simd_factor_int8(const char *p) {
    const __m512i group = group_avx512(p);
    return (factor_int8){_mm512_abs_epi8(group), _mm512_movepi8_mask(group)};
}
static inline ivec simd_dot_int8(ivec sum, factor_int8 a, weights_int8 w) {
    const __m512i signed_w = _mm512_mask_sub_epi8(w, a.negative, _mm512_setzero_si512(), w);
    const __m512i pairs = _mm512_maddubs_epi16(a.magnitude, signed_w);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
#endif
static inline void simd_round_int8(char *to, vec_f32 x) {
    const __m512i n = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(OFFSET_int8));
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(n));
}

typedef __m512i factor_int16, weights_int16;
#define ROWS_int16 6
static inline factor_int16 simd_factor_int16(const char *p) { return group_avx512(p); }
static inline weights_int16 simd_weights_int16(const int8_t *p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
}
static inline ivec simd_dot_int16(ivec sum, factor_int16 a, weights_int16 w) {
#ifdef FL_VNNI
    return _mm512_dpwssd_epi32(sum, a, w);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, w));
#endif
}
static inline void simd_round_int16(char *to, vec_f32 x) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)));
}

#endif
