/* AVX2 vectors of 8 integers, for integer_template.h; after simd_avx2.h. With FL_VNNI by the instructions of AVX-VNNI. */
#ifndef FL_SIMD_INTEGER_AVX2_H
#define FL_SIMD_INTEGER_AVX2_H

typedef __m256i ivec;

static inline ivec simd_load_int(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline ivec simd_zero_int(void) { return _mm256_setzero_si256(); }
static inline vec_f32 simd_float_of_int(ivec a) { return _mm256_cvtepi32_ps(a); }

/* Four numbers of a row, in every lane. */
static inline __m256i group_avx2(const void *p) {
    int32_t group;
    memcpy(&group, p, sizeof group);
    return _mm256_set1_epi32(group);
}

typedef __m256i weights_int8;
static inline weights_int8 simd_weights_int8(const int8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

#ifdef FL_VNNI
#define ROWS_int8 6
#define OFFSET_int8 128
typedef __m256i factor_int8;
static inline factor_int8 simd_factor_int8(const char *p) { return group_avx2(p); }
static inline ivec simd_dot_int8(ivec sum, factor_int8 a, weights_int8 w) { return _mm256_dpbusd_avx_epi32(sum, a, w); }
#else
/* maddubs saturates two products' sum at 32767: |a| and w with a's sign are at most 127, and 2 * 127 * 127 is 32258. */
#define ROWS_int8 4 /* a row's group takes two registers */
#define OFFSET_int8 0
typedef struct factor_int8 {
    __m256i group, magnitude;
} factor_int8;
static inline factor_int8 simd_factor_int8(const char *p) {
    const __m256i group = group_avx2(p);
    return (factor_int8){group, _mm256_abs_epi8(group)};
}
static inline ivec simd_dot_int8(ivec sum, factor_int8 a, weights_int8 w) {
    const __m256i pairs = _mm256_maddubs_epi16(a.magnitude, _mm256_sign_epi8(w, a.group));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif
static inline void simd_round_int8(char *to, vec_f32 x) {
    const __m256i n = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(OFFSET_int8));
    /* The low byte of each lane: four of each half. */
    const __m256i low = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                                         -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8(n, low);
    _mm_storel_epi64((__m128i *)to,
                     _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}

typedef __m256i factor_int16, weights_int16;
#define ROWS_int16 6
static inline factor_int16 simd_factor_int16(const char *p) { return group_avx2(p); }
static inline weights_int16 simd_weights_int16(const int8_t *p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
}
static inline ivec simd_dot_int16(ivec sum, factor_int16 a, weights_int16 w) {
#ifdef FL_VNNI
    return _mm256_dpwssd_avx_epi32(sum, a, w);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, w));
#endif
}
static inline void simd_round_int16(char *to, vec_f32 x) {
    const __m256i n = _mm256_cvtps_epi32(x);
    _mm_storeu_si128((__m128i *)to, _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1)));
}

#endif
