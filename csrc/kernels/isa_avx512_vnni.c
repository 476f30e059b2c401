/* What AVX-512 gains by AVX-512 VNNI: products with int8 weights. */
#if defined(__x86_64__)
#include "isa.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma")
#endif

#define FL_VNNI
#include "simd_avx512.h"
#include "simd_integer_avx512.h"

#define FL_ISA "avx512_vnni"
#define fl_integers fl_integers_avx512_vnni
#define fl_product_int8 fl_product_int8_avx512_vnni
#define fl_round_int8 fl_round_int8_avx512_vnni

#include "integer_template.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int fl_no_avx512_vnni; /* ISO C forbids an empty file */
#endif
