/* The vector vocabulary of the templates. FL_DTYPE (f32 or f64) picks the type each time a template is included.
 *
 *   vec, vmask, LANES, real          a register, a mask, its lanes, the C type of one lane
 *   vset(x)                          x in every lane
 *   vload(p) vstore(p, a)            any alignment
 *   vload_part(p, n), vstore_part(p, n, a)   the first n < LANES lanes (other lanes: read as 0, not written)
 *   vadd vsub vmul vdiv              IEEE, exact division
 *   vfma(a, b, c) vnfma(a, b, c)     a * b + c, c - a * b, rounded once
 *   vmin(a, b) vmax(a, b)            NaN in b is kept: constants come first
 *   vsigned(size, sign)              size with the sign bit of sign
 *   vpow2(t)                         2^n for t = n + EXP_SHIFT (math_template.h)
 *   vlt(a, b) vselect(m, a, b)       a < b (false for NaN); a where m, else b
 *
 * Every operation gives the same bits on every path, NaN payloads excepted: that is all that promise rests on.
 */
#ifndef FL_SIMD_H
#define FL_SIMD_H

#define FL_PASTE_(a, b) a##_##b
#define FL_PASTE(a, b) FL_PASTE_(a, b)
#define FL_NAME(name) FL_PASTE(name, FL_DTYPE)

#define real FL_NAME(real)
#define vec FL_NAME(vec)
#define vmask FL_NAME(vmask)
#define LANES FL_NAME(LANES)
#define vset FL_NAME(simd_set)
#define vload FL_NAME(simd_load)
#define vstore FL_NAME(simd_store)
#define vload_part FL_NAME(simd_load_part)
#define vstore_part FL_NAME(simd_store_part)
#define vadd FL_NAME(simd_add)
#define vsub FL_NAME(simd_sub)
#define vmul FL_NAME(simd_mul)
#define vdiv FL_NAME(simd_div)
#define vfma FL_NAME(simd_fma)
#define vnfma FL_NAME(simd_nfma)
#define vmin FL_NAME(simd_min)
#define vmax FL_NAME(simd_max)
#define vsigned FL_NAME(simd_signed)
#define vpow2 FL_NAME(simd_pow2)
#define vlt FL_NAME(simd_lt)
#define vselect FL_NAME(simd_select)

typedef float real_f32;
typedef double real_f64;

#define FL_LINE 64                  /* bytes of a cache line */
#define FL_STRETCH_BYTES (32 << 10) /* what stays in L1 while many rows pass over it */

/* Loops over registers must vanish: an accumulator left in memory halves the speed of a product. But where every access
 * is checked, what is unrolled and inlined compiles for minutes; and a test that compiles often asks for FL_QUICK_BUILD. */
#if defined(FL_QUICK_BUILD) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FL_UNROLL
#define FL_INLINE static inline
#else
#if defined(__clang__)
#define FL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FL_UNROLL _Pragma("GCC unroll 32")
#endif
#define FL_INLINE static inline __attribute__((always_inline))
#endif

#endif
