/* AVX-512 vectors of 16 integers, for integer_template.h; after simd_avx512.h. With FL_VNNI by its instructions,
 * as assembly: of intrinsics that add to an operand gcc 12 keeps half the sums of a tile in memory, twice as slow. */
#ifndef FL_SIMD_INTEGER_AVX512_H
#define FL_SIMD_INTEGER_AVX512_H

typedef __m512i ivec;

static inline ivec simd_load_int(const int32_t *p) { return _mm512_loadu_si512(p); }
static inline ivec simd_zero_int(void) { return _mm512_setzero_si512(); }
static inline vec_f32 simd_float_of_int(ivec a) { return _mm512_cvtepi32_ps(a); }
static inline ivec simd_nearest_int(vec_f32 x) { return _mm512_cvtps_epi32(x); }
static inline ivec simd_high_byte(ivec a) { return _mm512_srai_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(128)), 8); }

/* Four numbers of a row, in every lane. */
static inline __m512i group_avx512(const void *p) {
    int32_t group;
    memcpy(&group, p, sizeof group);
    return _mm512_set1_epi32(group);
}

typedef __m512i iweights;
static inline iweights simd_weights(const int8_t *p) { return _mm512_loadu_si512(p); }

#define FL_INTEGER_ROWS 6
#ifdef FL_VNNI
#define FL_OFFSET 128
typedef __m512i ifactor;
static inline ifactor simd_factor(const char *p) { return group_avx512(p); }
static inline ivec simd_dot(ivec sum, ifactor a, iweights w) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w));
    return sum;
}
#else
/* maddubs saturates two products' sum at 32767: |a| is at most 128, w with a's sign 127, and 2 * 128 * 127 is 32512. */
#define FL_OFFSET 0
typedef struct ifactor {
    __m512i magnitude;
    __mmask64 negative;
} ifactor;
static inline ifactor simd_factor(const char *p) {
    const __m512i group = group_avx512(p);
    return (ifactor){_mm512_abs_epi8(group), _mm512_movepi8_mask(group)};
}
static inline ivec simd_dot(ivec sum, ifactor a, iweights w) {
    const __m512i signed_w = _mm512_mask_sub_epi8(w, a.negative, _mm512_setzero_si512(), w);
    const __m512i pairs = _mm512_maddubs_epi16(a.magnitude, signed_w);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
#endif

static inline void simd_store_bytes(char *to, ivec a) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(_mm512_add_epi32(a, _mm512_set1_epi32(FL_OFFSET))));
}

#endif
