/* fastlstm: recurrent networks on the CPU. The C interface.
 *
 * Handles are opaque; functions return a status and leave a message for the calling thread in fl_last_error().
 * Structures begin with their size, for later versions to tell. Dimensions are T (steps), B (batch), I (inputs),
 * H (hidden units), P (outputs of a layer: the projection, else H), D (directions), L (layers), O (outputs of a linear
 * layer), counted in elements.
 * Buffers belong to the caller and hold elements of the layer's dtype, aligned to them.
 *
 * Threads: a layer may run in any number of threads at once, also while fl_set_weights runs in another (a call keeps
 * the weights that it began with). A stream or a pool serves one call at a time; a second one gets FL_BUSY.
 */
#ifndef FASTLSTM_H
#define FASTLSTM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define FL_API
#else
#define FL_API __attribute__((visibility("default")))
#endif

typedef enum fl_status {
    FL_OK = 0,
    FL_BAD_ARGUMENT = 1,
    FL_NO_MEMORY = 2,
    FL_BUSY = 3,        /* another call is using this stream or pool */
    FL_NO_WEIGHTS = 4,  /* fl_set_weights has not succeeded yet */
    FL_UNSUPPORTED = 5, /* this CPU lacks what FASTLSTM_ISA asks for, or a stream of a reverse layer */
    FL_STALE = 6,       /* the layer has had other weights since the tape was recorded */
} fl_status;

typedef enum fl_cell_kind { FL_LSTM = 0, FL_GRU = 1, FL_RNN = 2, FL_GATED_RNN = 3 } fl_cell_kind;
typedef enum fl_dtype { FL_FLOAT32 = 0, FL_FLOAT64 = 1 } fl_dtype;

/* How a float32 layer keeps the matrices of its weights. Input, output, states and all else stay float32.
 * FL_BFLOAT16: the upper halves of floats; all arithmetic is that of float32 with the rounded weights.
 * FL_INT8: whole numbers of -127 to 127 and a scale for each row. What they are multiplied with becomes whole numbers as
 * well, row by row, of activation_bits: x by its largest magnitude, h by that or 1, whichever is more. A row with an
 * infinity or NaN gives NaN. At most FL_MOST_INT8 inputs, half as many units. */
typedef enum fl_weight_type { FL_FULL = 0, FL_BFLOAT16 = 1, FL_INT8 = 2 } fl_weight_type;
enum { FL_MOST_INT8 = 1 << 16 };

/* The activation functions of ONNX. */
typedef enum fl_activation_kind {
    FL_SIGMOID = 0,
    FL_TANH = 1,
    FL_RELU = 2,
    FL_AFFINE = 3,
    FL_LEAKY_RELU = 4,
    FL_THRESHOLDED_RELU = 5,
    FL_SCALED_TANH = 6,
    FL_HARD_SIGMOID = 7,
    FL_ELU = 8,
    FL_SOFTSIGN = 9,
    FL_SOFTPLUS = 10,
} fl_activation_kind;

typedef struct fl_activation {
    int32_t kind;
    double alpha, beta; /* ignored where the function has none */
} fl_activation;

/* Every field counts; fl_config_init gives the defaults (one layer, bias, forget gate, reset after). */
typedef struct fl_config {
    size_t size;
    int32_t cell, dtype;
    int64_t input_size, hidden_size, proj_size, num_layers; /* proj_size 0: none; LSTM only */
    int32_t bidirectional, reverse, bias;
    int32_t peepholes, forget_gate, coupled_gates; /* LSTM only */
    int32_t reset_after;                           /* GRU only */
    int32_t own_activations; /* 0: the cell's own; else activations, as many as the cell has kinds */
    fl_activation activations[3];
    double clip; /* 0: none */
    int32_t weight_type;     /* other than FL_FULL: float32 only, and not for fl_record */
    int32_t activation_bits; /* with FL_INT8: 8 or 16; else 0 */
} fl_config;

typedef struct fl_array {
    const void *data;
    int64_t count; /* elements, checked against what is expected; a wrong one is refused */
} fl_array;

/* One direction of one layer, C order, PyTorch's gate order. */
typedef struct fl_weights {
    size_t size;
    fl_array weight_ih;       /* [G H, I or D P] */
    fl_array weight_hh;       /* [G H, P] */
    fl_array bias_ih, bias_hh; /* [G H], only with bias */
    fl_array weight_hr;       /* [P, H], only with a projection */
    fl_array weight_peephole; /* [3, H]: i, f, o, only with peepholes */
    /* With FL_BFLOAT16, weight_ih, weight_hh and weight_hr hold uint16_t; with FL_INT8 int8_t, and these hold the float32
     * scale of each row. Else their count is 0. fl_to_bfloat16 and fl_to_int8 make them. */
    fl_array scale_ih, scale_hh, scale_hr;
} fl_weights;

/* Strides count elements and may be zero or negative; the last axis of x and y is contiguous; y overlaps nothing. */
typedef struct fl_sequence {
    size_t size;
    int64_t T, B;
    const void *x; /* [T, B, I] */
    int64_t x_stride_t, x_stride_b;
    void *y; /* [T, B, D P]; padded steps are set to zero */
    int64_t y_stride_t, y_stride_b;
    const int64_t *lengths; /* [B], 0..T each; NULL: all T */
    const void *h0, *c0; /* [L D, B, P], [L D, B, H]; NULL: zeros */
    void *h_n, *c_n; /* likewise; may be NULL; may be h0 and c0 themselves */
} fl_sequence;

typedef struct fl_layer fl_layer;
typedef struct fl_stream fl_stream;
typedef struct fl_linear fl_linear;
typedef struct fl_pool fl_pool;

FL_API const char *fl_last_error(void);
FL_API const char *fl_version(void);

FL_API void fl_config_init(fl_config *config, fl_cell_kind cell, int64_t input_size, int64_t hidden_size);
FL_API fl_status fl_create(const fl_config *config, fl_layer **layer);
/* Streams of the layer stay usable. */
FL_API void fl_free(fl_layer *layer);
/* `count` is L D, in the order of PyTorch's names: layer by layer, in each forward, reverse. Copies what it needs. */
FL_API fl_status fl_set_weights(fl_layer *layer, const fl_weights *weights, int64_t count);
/* Weights rounded to bfloat16, to nearest even; a NaN stays one. */
FL_API fl_status fl_to_bfloat16(const float *weight, int64_t count, uint16_t *out);
/* weight [rows, columns] ~ out * scale of the row, which is the largest magnitude of the row over 127, rounded to 17
 * bits, up if it can be: so every out * scale is exact in float32, and rounding it again gives the same. A magnitude
 * below 1e-30 counts as zero; a NaN or an infinity is refused. */
FL_API fl_status fl_to_int8(const float *weight, int64_t rows, int64_t columns, int8_t *out, float *scale);
FL_API fl_status fl_forward(const fl_layer *layer, const fl_sequence *sequence);
/* A rough estimate of one core's time for such a call; to decide, say, whether to release a lock around it. */
FL_API double fl_estimate_us(const fl_layer *layer, int64_t T, int64_t B);

/* Training: a forward pass that remembers, and the gradients from it (BPTT). One layer of the stack at a time; what
 * comes between two layers, dropout say, is the caller's. */
typedef struct fl_tape fl_tape;

/* Derivatives of a loss. Each array: NULL, or `count` elements as expected; set, not added to. */
typedef struct fl_gradient {
    void *data;
    int64_t count;
} fl_gradient;

typedef struct fl_weight_gradients {
    fl_gradient weight_ih, weight_hh, bias_ih, bias_hh, weight_hr, weight_peephole;
} fl_weight_gradients;

typedef struct fl_gradients {
    size_t size;
    const void *dy; /* [T, B, D P] by the output; padded steps are not read */
    int64_t dy_stride_t, dy_stride_b;
    const void *dh_n, *dc_n; /* [D, B, P], [D, B, H] by the final state; NULL: zeros */
    void *dx; /* [T, B, inputs] by x, zeros in padded steps; NULL: not wanted. Overlaps nothing */
    int64_t dx_stride_t, dx_stride_b;
    void *dh0, *dc0; /* by the initial state, likewise */
    fl_weight_gradients weights[2]; /* of each direction */
} fl_gradients;

/* fl_forward of layer `index` of the stack (x [T, B, I or D P], states [D, B, ..]), remembered. x must stay as it is
 * while the tape is in use. checkpoint k > 0 keeps the states before each k steps only, and fl_backward runs the steps
 * between them again: the same bits. */
FL_API fl_status fl_record(const fl_layer *layer, int64_t index, const fl_sequence *sequence, int64_t checkpoint,
                           fl_tape **tape);
/* Any number of times. FL_STALE if the layer's weights have been set since. */
FL_API fl_status fl_backward(fl_tape *tape, const fl_gradients *gradients);
FL_API int64_t fl_tape_bytes(const fl_tape *tape); /* that the tape holds besides copies of input and output */
FL_API void fl_tape_free(fl_tape *tape);

/* A stream owns the state of B sequences, from h0 and c0 on (NULL: zeros). */
FL_API fl_status fl_stream_create(const fl_layer *layer, int64_t B, const void *h0, const void *c0, fl_stream **stream);
FL_API void fl_stream_free(fl_stream *stream);
/* x [B, I], y [B, P], contiguous, not overlapping. Allocates nothing, and locks nothing unless it is long enough to be
 * split among threads (some 15 us; fl_set_num_threads). */
FL_API fl_status fl_stream_step(fl_stream *stream, const void *x, void *y);
/* h [L, B, P], c [L, B, H] (NULL for cells without c) */
FL_API fl_status fl_stream_get_state(fl_stream *stream, void *h, void *c);
/* Also what fl_stream_reset goes back to. */
FL_API fl_status fl_stream_set_state(fl_stream *stream, const void *h, const void *c);
/* rows [count], each 0..B-1; NULL: all */
FL_API fl_status fl_stream_reset(fl_stream *stream, const int64_t *rows, int64_t count);
FL_API fl_status fl_stream_copy(fl_stream *stream, fl_stream **copy);

/* A pool owns the states of many sessions: sequences that begin, go on and end each at its own pace. A step runs any of
 * them as one batch, and each gets the bits that it would get alone. A session goes by an id, at least 0, that no other
 * one ever gets. Calls refuse ids of which one is unknown, closed or there twice, and change nothing then. */
FL_API fl_status fl_pool_create(const fl_layer *layer, int64_t capacity, fl_pool **pool); /* capacity 1 to 2^24 */
FL_API void fl_pool_free(fl_pool *pool);
/* From h0 [L, P], c0 [L, H] on (NULL: zeros). Where there is no room, the capacity doubles; FL_NO_MEMORY loses nothing. */
FL_API fl_status fl_pool_open(fl_pool *pool, const void *h0, const void *c0, int64_t *id);
/* Room for so many more sessions, for which fl_pool_open then needs no memory. */
FL_API fl_status fl_pool_reserve(fl_pool *pool, int64_t more);
FL_API fl_status fl_pool_close(fl_pool *pool, int64_t id);
/* FL_OK if sessions ids [n] are open and none is there twice, which all calls below check for themselves. */
FL_API fl_status fl_pool_check(fl_pool *pool, int64_t n, const int64_t *ids);
FL_API int64_t fl_pool_count(const fl_pool *pool);
FL_API int64_t fl_pool_capacity(const fl_pool *pool);
/* One step of sessions ids [n]: x [n, I] to y [n, P], contiguous, not overlapping. Allocates nothing. */
FL_API fl_status fl_pool_step(fl_pool *pool, int64_t n, const int64_t *ids, const void *x, void *y);
/* h [L, n, P], c [L, n, H] of sessions ids [n], the form that fl_forward takes: get, run and set are several steps. NULL
 * h or c: not wanted. */
FL_API fl_status fl_pool_get_state(fl_pool *pool, int64_t n, const int64_t *ids, void *h, void *c);
/* NULL: zeros */
FL_API fl_status fl_pool_set_state(fl_pool *pool, int64_t n, const int64_t *ids, const void *h, const void *c);
/* Back to the state that it was opened with. */
FL_API fl_status fl_pool_reset(fl_pool *pool, int64_t id);

/* A linear layer, y = x W^T + b, from I = in_features to O = out_features. weight [O, I] and bias [O] (count 0: none)
 * are copied and never change: for new ones create another. Any number of threads may use it at once. A row gets the
 * same bits alone and in any batch, on any number of threads. */
FL_API fl_status fl_linear_create(fl_dtype dtype, int64_t in_features, int64_t out_features, fl_array weight,
                                  fl_array bias, fl_linear **linear);
/* When no call uses it any more. */
FL_API void fl_linear_free(fl_linear *linear);
/* x [rows, I] with rows x_stride elements apart, y [rows, O] contiguous, not overlapping. Allocates nothing. */
FL_API fl_status fl_linear_forward(const fl_linear *linear, int64_t rows, const void *x, int64_t x_stride, void *y);
/* dx = dy W, of dy [rows, O] with rows dy_stride elements apart, dx [rows, I] contiguous, not overlapping. The first
 * such call packs the transposed weights. */
FL_API fl_status fl_linear_backward_input(const fl_linear *linear, int64_t rows, const void *dy, int64_t dy_stride,
                                          void *dx);
/* dweight [O, I] = dy^T x and, unless NULL, dbias [O] = the sum of dy: set, not added to; the sum over rows has one order. */
FL_API fl_status fl_linear_backward_weights(const fl_linear *linear, int64_t rows, const void *x, int64_t x_stride,
                                            const void *dy, int64_t dy_stride, void *dweight, void *dbias);
/* As fl_estimate_us, of any of these calls. */
FL_API double fl_linear_estimate_us(const fl_linear *linear, int64_t rows);

/* An activation alone, over n elements: y = f(x), and dx = dy f'(x). Outputs may be their inputs, else overlap nothing. */
FL_API fl_status fl_activate(fl_dtype dtype, const fl_activation *f, int64_t n, const void *x, void *y);
FL_API fl_status fl_activate_backward(fl_dtype dtype, const fl_activation *f, int64_t n, const void *x, const void *dy,
                                      void *dx);

/* Threads. The default is what the process may use: affinity and cgroup quota, or FASTLSTM_NUM_THREADS. */
FL_API fl_status fl_set_num_threads(int64_t n);
FL_API int64_t fl_get_num_threads(void);
/* How long idle workers spin after a call before they sleep; default 20, at most 1e6. */
FL_API fl_status fl_set_spin_us(double us);

/* The instruction set in use: "avx512", "avx2", "neon" or "portable". FASTLSTM_ISA=name forces one; NULL and a
 * message when it names none that this CPU has. Read once. Where none is forced, a layer whose units half a register
 * holds takes the next narrower. */
FL_API const char *fl_isa(void);
/* That of products with int8 weights, for which some CPUs have instructions of their own: "avx512_amx", "avx512_vnni",
 * "avx2_vnni", "neon_dot", or a path's name. FASTLSTM_ISA takes these too: "avx512_vnni" is "avx512" with that, "avx512"
 * is without. AMX's registers are asked for by the first int8 layer, and are the process's from then on: its signal
 * stacks must hold 11 kB. Where one set before is smaller, Linux refuses, and "avx512_vnni" takes its place. */
FL_API const char *fl_integer_isa(void);
FL_API const char *fl_integer_isa_at(int64_t index); /* as fl_isa_at */
/* Those that this CPU can run, best first; NULL past the last. */
FL_API const char *fl_isa_at(int64_t index);
FL_API const char *fl_cpu_features(void);

#ifdef __cplusplus
}
#endif
#endif
