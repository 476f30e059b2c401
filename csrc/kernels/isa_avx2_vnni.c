/* What AVX2 gains by AVX-VNNI: products with int8 weights. */
#if defined(__x86_64__)
#include "isa.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avxvnni")
#endif

#define FL_VNNI
#include "simd_avx2.h"
#include "simd_integer_avx2.h"

#define FL_ISA "avx2_vnni"
#define fl_integers fl_integers_avx2_vnni
#define fl_product_int8 fl_product_int8_avx2_vnni
#define fl_round_int8 fl_round_int8_avx2_vnni

#include "integer_template.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int fl_no_avx2_vnni; /* ISO C forbids an empty file */
#endif
