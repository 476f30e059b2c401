/* Plain C for any CPU: 4 floats or 2 doubles.
 * With FL_FMA_IS_EXACT the multiply-add is rounded once and the bits are those of every other path. Without it (a CPU
 * that has no such instruction, where the library's fma() would be a hundred times slower) a product is rounded
 * before it is added. */
#ifndef FL_SIMD_PORTABLE_H
#define FL_SIMD_PORTABLE_H

#define FL_TILE_ROWS 3
#define FL_PANEL_VECS 2
#define FL_ROW_PANELS 3

FL_INLINE float FMA_f32(float a, float b, float c) {
#ifdef FL_FMA_IS_EXACT
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

FL_INLINE double FMA_f64(double a, double b, double c) {
#ifdef FL_FMA_IS_EXACT
    return fma(a, b, c);
#else
    return a * b + c;
#endif
}

#define LANES_f32 4
#define LANES_f64 2
typedef uint32_t bits_f32;
typedef uint64_t bits_f64;

#define FL_DTYPE f32
#define SIGN_BIT 0x80000000u
#define MANTISSA_BITS 23
#include "simd_portable_template.h"
#undef FL_DTYPE
#undef SIGN_BIT
#undef MANTISSA_BITS

/* bfloat16 as floats: two registers that lie lane by lane, low halves first; or one. */
FL_INLINE float float_of_bf16(uint16_t half) {
    const uint32_t whole = (uint32_t)half << 16;
    float x;
    memcpy(&x, &whole, sizeof x);
    return x;
}

FL_INLINE void simd_load_bf16_pair(const uint16_t *p, vec_f32 *low, vec_f32 *high) {
    for (int i = 0; i < LANES_f32; i++) {
        low->at[i] = float_of_bf16(p[2 * i]);
        high->at[i] = float_of_bf16(p[2 * i + 1]);
    }
}

FL_INLINE vec_f32 simd_load_bf16(const uint16_t *p) {
    vec_f32 r;
    for (int i = 0; i < LANES_f32; i++) r.at[i] = float_of_bf16(p[i]);
    return r;
}

#define FL_DTYPE f64
#define SIGN_BIT 0x8000000000000000u
#define MANTISSA_BITS 52
#include "simd_portable_template.h"
#undef FL_DTYPE

#endif
