/* AVX-512 (F, DQ, BW, VL), with the FMA of AVX2's generation. */
#if defined(__x86_64__)
#include "isa.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
#endif

#include "simd_avx512.h"
#include "simd_integer_avx512.h"

#define FL_ISA "avx512"
#define fl_kernels_f32 fl_kernels_f32_avx512
#define fl_product_f32 fl_product_f32_avx512
#define fl_product_bf16_f32 fl_product_bf16_f32_avx512
#define fl_lstm_f32 fl_lstm_f32_avx512
#define fl_lstm_general_f32 fl_lstm_general_f32_avx512
#define fl_gru_f32 fl_gru_f32_avx512
#define fl_gru_general_f32 fl_gru_general_f32_avx512
#define fl_gru_reset_f32 fl_gru_reset_f32_avx512
#define fl_gru_candidate_f32 fl_gru_candidate_f32_avx512
#define fl_rnn_f32 fl_rnn_f32_avx512
#define fl_rnn_general_f32 fl_rnn_general_f32_avx512
#define fl_gated_rnn_f32 fl_gated_rnn_f32_avx512
#define fl_gated_rnn_general_f32 fl_gated_rnn_general_f32_avx512
#define fl_gru_keep_f32 fl_gru_keep_f32_avx512
#define fl_gru_reset_keep_f32 fl_gru_reset_keep_f32_avx512
#define fl_gru_candidate_keep_f32 fl_gru_candidate_keep_f32_avx512
#define fl_lstm_backward_f32 fl_lstm_backward_f32_avx512
#define fl_lstm_general_backward_f32 fl_lstm_general_backward_f32_avx512
#define fl_gru_backward_f32 fl_gru_backward_f32_avx512
#define fl_gru_general_backward_f32 fl_gru_general_backward_f32_avx512
#define fl_gru_candidate_backward_f32 fl_gru_candidate_backward_f32_avx512
#define fl_gru_reset_backward_f32 fl_gru_reset_backward_f32_avx512
#define fl_rnn_backward_f32 fl_rnn_backward_f32_avx512
#define fl_rnn_general_backward_f32 fl_rnn_general_backward_f32_avx512
#define fl_gated_rnn_backward_f32 fl_gated_rnn_backward_f32_avx512
#define fl_gated_rnn_general_backward_f32 fl_gated_rnn_general_backward_f32_avx512
#define fl_outer_f32 fl_outer_f32_avx512
#define fl_sum_f32 fl_sum_f32_avx512
#define fl_add_f32 fl_add_f32_avx512
#define fl_sigmoid_f32 fl_sigmoid_f32_avx512
#define fl_tanh_f32 fl_tanh_f32_avx512
#define fl_sigmoid_tanh_f32 fl_sigmoid_tanh_f32_avx512
#define fl_activate_f32 fl_activate_f32_avx512
#define fl_activate_backward_f32 fl_activate_backward_f32_avx512
#define fl_roof_fma_f32 fl_roof_fma_f32_avx512
#define fl_roof_chain_f32 fl_roof_chain_f32_avx512
#define fl_roof_read_f32 fl_roof_read_f32_avx512
#define fl_kernels_f64 fl_kernels_f64_avx512
#define fl_product_f64 fl_product_f64_avx512
#define fl_lstm_f64 fl_lstm_f64_avx512
#define fl_lstm_general_f64 fl_lstm_general_f64_avx512
#define fl_gru_f64 fl_gru_f64_avx512
#define fl_gru_general_f64 fl_gru_general_f64_avx512
#define fl_gru_reset_f64 fl_gru_reset_f64_avx512
#define fl_gru_candidate_f64 fl_gru_candidate_f64_avx512
#define fl_rnn_f64 fl_rnn_f64_avx512
#define fl_rnn_general_f64 fl_rnn_general_f64_avx512
#define fl_gated_rnn_f64 fl_gated_rnn_f64_avx512
#define fl_gated_rnn_general_f64 fl_gated_rnn_general_f64_avx512
#define fl_gru_keep_f64 fl_gru_keep_f64_avx512
#define fl_gru_reset_keep_f64 fl_gru_reset_keep_f64_avx512
#define fl_gru_candidate_keep_f64 fl_gru_candidate_keep_f64_avx512
#define fl_lstm_backward_f64 fl_lstm_backward_f64_avx512
#define fl_lstm_general_backward_f64 fl_lstm_general_backward_f64_avx512
#define fl_gru_backward_f64 fl_gru_backward_f64_avx512
#define fl_gru_general_backward_f64 fl_gru_general_backward_f64_avx512
#define fl_gru_candidate_backward_f64 fl_gru_candidate_backward_f64_avx512
#define fl_gru_reset_backward_f64 fl_gru_reset_backward_f64_avx512
#define fl_rnn_backward_f64 fl_rnn_backward_f64_avx512
#define fl_rnn_general_backward_f64 fl_rnn_general_backward_f64_avx512
#define fl_gated_rnn_backward_f64 fl_gated_rnn_backward_f64_avx512
#define fl_gated_rnn_general_backward_f64 fl_gated_rnn_general_backward_f64_avx512
#define fl_outer_f64 fl_outer_f64_avx512
#define fl_sum_f64 fl_sum_f64_avx512
#define fl_add_f64 fl_add_f64_avx512
#define fl_sigmoid_f64 fl_sigmoid_f64_avx512
#define fl_tanh_f64 fl_tanh_f64_avx512
#define fl_sigmoid_tanh_f64 fl_sigmoid_tanh_f64_avx512
#define fl_activate_f64 fl_activate_f64_avx512
#define fl_activate_backward_f64 fl_activate_backward_f64_avx512
#define fl_roof_fma_f64 fl_roof_fma_f64_avx512
#define fl_roof_chain_f64 fl_roof_chain_f64_avx512
#define fl_roof_read_f64 fl_roof_read_f64_avx512
#define fl_integers fl_integers_avx512
#define fl_product_int8 fl_product_int8_avx512
#define fl_round_int8 fl_round_int8_avx512

#define FL_IS_F32
#define FL_DTYPE f32
#include "all_templates.h"
#undef FL_IS_F32
#undef FL_DTYPE
#define FL_DTYPE f64
#include "all_templates.h"
#undef FL_DTYPE
#include "integer_template.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int fl_no_avx512; /* ISO C forbids an empty file */
#endif
