/* What every isa_<isa>.c begins with. The bits must not hang on a compiler's flags: contraction of a * b + c is off
 * whatever the command line says, and value-changing flags are refused. */
#ifndef FL_ISA_H
#define FL_ISA_H

#if defined(__FAST_MATH__)
#error "fastlstm promises bits: compile without -ffast-math"
#endif
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif

#include "kernels.h"
#include "simd.h"

#include <math.h>
#include <string.h>

#endif
