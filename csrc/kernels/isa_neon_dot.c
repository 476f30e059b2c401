/* What NEON gains by the dot product of ARMv8.2: products with int8 weights. */
#if defined(__aarch64__)
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include <arm_neon.h>

#define FL_VNNI
#include "simd_neon.h"
#include "simd_integer_neon.h"

#define FL_ISA "neon_dot"
#define fl_integers fl_integers_neon_dot
#define fl_product_int8 fl_product_int8_neon_dot
#define fl_round_int8 fl_round_int8_neon_dot

#include "integer_template.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int fl_no_neon_dot; /* ISO C forbids an empty file */
#endif
