/* AVX2 vectors of 8 integers, for integer_template.h; after simd_avx2.h. With FL_VNNI by the instructions of AVX-VNNI,
 * as assembly: see simd_integer_avx512.h. */
#ifndef FL_SIMD_INTEGER_AVX2_H
#define FL_SIMD_INTEGER_AVX2_H

typedef __m256i ivec;

static inline ivec simd_load_int(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline ivec simd_zero_int(void) { return _mm256_setzero_si256(); }
static inline vec_f32 simd_float_of_int(ivec a) { return _mm256_cvtepi32_ps(a); }
static inline ivec simd_nearest_int(vec_f32 x) { return _mm256_cvtps_epi32(x); }
static inline ivec simd_high_byte(ivec a) { return _mm256_srai_epi32(_mm256_add_epi32(a, _mm256_set1_epi32(128)), 8); }

/* Four numbers of a row, in every lane. */
static inline __m256i group_avx2(const void *p) {
    int32_t group;
    memcpy(&group, p, sizeof group);
    return _mm256_set1_epi32(group);
}

typedef __m256i iweights;
static inline iweights simd_weights(const int8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }

#ifdef FL_VNNI
#define FL_INTEGER_ROWS 6
#define FL_OFFSET 128
typedef __m256i ifactor;
static inline ifactor simd_factor(const char *p) { return group_avx2(p); }
static inline ivec simd_dot(ivec sum, ifactor a, iweights w) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(w));
    return sum;
}
#else
/* maddubs saturates two products' sum at 32767: |a| is at most 128, w with a's sign 127, and 2 * 128 * 127 is 32512. */
#define FL_INTEGER_ROWS 4 /* a row's group takes two registers */
#define FL_OFFSET 0
typedef struct ifactor {
    __m256i group, magnitude;
} ifactor;
static inline ifactor simd_factor(const char *p) {
    const __m256i group = group_avx2(p);
    return (ifactor){group, _mm256_abs_epi8(group)};
}
static inline ivec simd_dot(ivec sum, ifactor a, iweights w) {
    const __m256i pairs = _mm256_maddubs_epi16(a.magnitude, _mm256_sign_epi8(w, a.group));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

static inline void simd_store_bytes(char *to, ivec a) {
    /* The low byte of each lane: four of each half. */
    const __m256i low = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                                         -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_add_epi32(a, _mm256_set1_epi32(FL_OFFSET)), low);
    _mm_storel_epi64((__m128i *)to,
                     _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}

#endif
