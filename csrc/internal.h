/* What the files of csrc/ share. A call goes downward only:
 * forward.c, stream.c, pool.c, backward.c, linear.c (public entries) -> scan.c (the time loop) -> kernels; beside them layer.c,
 * tape.c, sequence.c, pack.c, cells.c, dispatch.c, threads.c; at the bottom memory.c, error.c, os.c. */
#ifndef FL_INTERNAL_H
#define FL_INTERNAL_H

#include "fastlstm.h"
#include "kernels/kernels.h"
#include "os.h"

#include <stdatomic.h>
#include <stdbool.h>

/* --- error.c --- */
fl_status fl_fail(fl_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* --- memory.c --- */
int64_t fl_round_up(int64_t n, int64_t unit);
bool fl_mul(int64_t a, int64_t b, int64_t *product); /* false: overflow */
bool fl_stride_fits(int64_t stride, int64_t n); /* n strides, in bytes, and the sum of two such */
/* Hands out 64-byte aligned parts of a block; with a NULL base it only counts. */
typedef struct fl_arena {
    char *base;
    int64_t used;
} fl_arena;
void *fl_take(fl_arena *arena, int64_t bytes);
void fl_set_row(char *row, const void *from, int64_t bytes); /* from NULL: zeros */
/* A block of at least so many bytes, maybe one of the layer's spare ones; NULL: no memory. And back to these. */
char *fl_take_block(const fl_layer *layer, int64_t bytes);
void fl_give_block(const fl_layer *layer, char *block);
void fl_free_spares(fl_layer *layer);

/* --- cells.c: what a cell is --- */
typedef struct fl_phase {
    int32_t first_gate, gates; /* of the recurrent product */
    /* Offsets in fl_kernels: sigma and tanh, or any activations and clip; the same backwards; and what fills a tape's
     * memory (0: the product does). */
    size_t kernel, general, backward, general_backward, keep;
} fl_phase;

typedef struct fl_cell {
    const char *name;
    int32_t gates, phases;
    bool has_c;
    bool separate; /* the recurrent product is kept apart from the projected input, with its own bias */
    fl_phase phase[2]; /* a second one multiplies what the first left in h_out */
    int32_t activations;
    int32_t default_activation[3];
    /* Backwards: gates in a tape's memory; blocks of dz, of which [0, gates) are by the projected input, and the block
     * that is by each gate's recurrent product. */
    int32_t memory_gates, deltas;
    int32_t recurrent_delta[4];
    bool carries; /* part of dh goes from step to step through no product */
} fl_cell;

const fl_cell *fl_cell_of(const fl_config *config);

/* --- dispatch.c: which CPU this is --- */
const fl_kernels *fl_kernels_of(fl_dtype dtype); /* NULL: FASTLSTM_ISA was wrong, fl_fail has been called */
/* For a layer of so many units: a narrower path where half a register of the best one holds them and none is forced. */
const fl_kernels *fl_kernels_for(fl_dtype dtype, int64_t units);
/* For int8 weights, on the path of these kernels; NULL, and fl_fail called: the system refuses what FASTLSTM_ISA forces. */
const fl_integer_kernels *fl_integers_for(const fl_kernels *kernels);
FL_API const fl_integer_kernels *fl_integers_named(const char *isa);
/* For tests and benchmarks: the table of a path by name, whether chosen or not; NULL if this CPU lacks it. */
FL_API const fl_kernels *fl_kernels_named(const char *isa, fl_dtype dtype);

/* Denormals are flushed during a call, on results and operands alike. */
typedef uint64_t fl_fp_mode;
fl_fp_mode fl_fp_begin(void);
void fl_fp_end(fl_fp_mode saved);

/* --- pack.c: weights in the order that the kernels read --- */
typedef struct fl_matrix {
    int64_t depth, vecs; /* [panel][depth][vec][lane], kernels.h */
    void *data;
    int32_t weight_bytes;
    float *scale; /* of int8 weights: by packed column */
    int32_t *first; /* likewise: fl_product_part */
} fl_matrix;

/* In which order a kind of weights is packed. */
typedef struct fl_format {
    int64_t lanes, panel_vecs;
    fl_weight_type type;
    int32_t weight_bytes, offset; /* fl_integer_kernels */
} fl_format;
fl_format fl_full_format(const fl_kernels *kernels);

/* A source matrix: rows gate * H + unit from `first` on, `gates` gates of `units` rows, `depth` columns. */
typedef struct fl_source {
    const char *data;
    int64_t units, depth;
    int32_t first, gates;
    const float *scale; /* of int8 weights: by row */
} fl_source;

fl_status fl_pack_matrix(const fl_format *format, const fl_source *source, fl_matrix *matrix);
void fl_free_matrix(fl_matrix *matrix);
/* The sum of up to two biases in packed columns; zeros where there is none. */
fl_status fl_pack_bias(const fl_kernels *kernels, fl_source source, const void *a, const void *b, void **bias);
/* One gate of a packed matrix as a matrix of its own that maps units to what were the rows' columns; false: no memory. */
bool fl_pack_transposed(const fl_kernels *kernels, const fl_matrix *from, int64_t gates, int64_t gate, int64_t units,
                        fl_matrix *to);

typedef struct fl_direction {
    int64_t inputs;
    fl_matrix input; /* all gates */
    fl_matrix recurrent[2]; /* those of each phase */
    fl_matrix projection; /* data NULL: none */
    void *bias; /* start of the input product */
    void *start[2]; /* separate: start of each phase's product */
    void *zeros; /* start of the projection */
    void *peephole; /* [3, state stride] */
    _Atomic(struct fl_back_pack *) back; /* made by the first fl_backward */
} fl_direction;

/* The transposed weights, a matrix for each gate: what the derivatives by pre-activations are multiplied with. */
typedef struct fl_back_pack {
    fl_matrix input[4], recurrent[4], projection;
    void *zeros; /* start of any of these products */
} fl_back_pack;

/* All weights of a layer: immutable, shared by the calls that run with it. */
typedef struct fl_pack {
    atomic_int references;
    int64_t count;
    fl_direction direction[];
} fl_pack;

fl_status fl_pack_create(const fl_layer *layer, const fl_weights *weights, fl_pack **pack);
void fl_pack_release(fl_pack *pack);
/* NULL, and fl_fail called: no memory. */
const fl_back_pack *fl_direction_back(const fl_layer *layer, fl_direction *direction);

/* --- layer.c --- */
struct fl_layer {
    atomic_int references; /* the owner's and each stream's */
    fl_config config;
    const fl_cell *cell;
    const fl_kernels *kernels;
    const fl_integer_kernels *integers; /* with int8 weights, else NULL */
    int32_t planes; /* likewise, of activations: fl_round_args */
    fl_product_fn *product;
    fl_format format; /* of the weights */
    fl_cell_fn *update[2], *keep[2]; /* of each phase */
    fl_cell_backward_fn *backward[2];
    fl_cell_options options;
    int64_t output_size, directions; /* P, D */
    int64_t hidden_stride, output_stride; /* H and P rounded up to whole vectors */
    fl_pack *pack; /* read and swapped under fl_os_lock */
    struct fl_spare *spare; /* memory of tapes and backward passes that are gone, likewise */
    atomic_int version; /* of `pack`, so that a stream sees a change without the lock */
};

fl_layer *fl_layer_retain(const fl_layer *layer);
fl_pack *fl_layer_pack(const fl_layer *layer); /* a reference, or NULL */

/* --- threads.c --- */
enum { FL_MOST_THREADS = 256 };
typedef struct fl_team fl_team;
typedef void fl_stage_fn(void *context, int64_t slice, int64_t slices, int64_t worker);

/* Runs fn(context, task) for every task, on at most `threads` threads; a busy or absent worker's are the caller's. */
void fl_parallel_tasks(int64_t threads, int64_t tasks, void (*fn)(void *context, int64_t task, int64_t worker),
                       void *context);
/* Runs body(context, team) in the calling thread while workers wait for its fl_team_stage calls. */
void fl_parallel_stages(int64_t threads, void (*body)(void *context, fl_team *team), void *context);
/* Runs fn on every slice, and returns when all are done. A NULL team is one slice. */
void fl_team_stage(fl_team *team, fl_stage_fn *fn, void *context);
int64_t fl_team_slices(const fl_team *team);
enum { FL_SHORT_US = 15 }; /* a call below this stays in the calling thread */
/* How many threads a call of so many microseconds should take. */
int64_t fl_threads_for(double us);
/* Starts the workers now rather than with the first job. */
void fl_start_threads(int64_t threads);

typedef enum fl_split { FL_SPLIT_AUTO = -1, FL_SPLIT_NONE = 0, FL_SPLIT_BATCH = 1, FL_SPLIT_UNITS = 2 } fl_split;
/* For tests: take this split whatever the size; what the calling thread's last fl_forward took. */
FL_API void fl_force_split(fl_split split);
FL_API fl_split fl_last_split(void);

/* --- scan.c: one direction of one layer over time --- */
/* What some steps of one direction leave for the backward pass. The batch's rows come by falling length; those of step k
 * begin at place[k] - place[first step]. State rows: `rows` before the first step, then those after each. */
typedef struct fl_memory {
    char *z, *h, *c; /* gate columns (fl_cell_backward_args), states; c NULL: the cell has none */
    int64_t z_stride, rows, first_step;
    const int64_t *place;
} fl_memory;
char *fl_memory_h(const fl_layer *layer, const fl_memory *memory, int64_t step); /* row 0 of the state before it */
char *fl_memory_c(const fl_layer *layer, const fl_memory *memory, int64_t step);
char *fl_memory_z(const fl_layer *layer, const fl_memory *memory, int64_t step);

/* The calls for one tile of a phase, filled in but for what changes from step to step: input, output, a tape's memory. */
typedef struct fl_calls {
    fl_product_args product;
    fl_cell_args cell;
    int64_t row, state_bytes, projected_bytes, memory_bytes; /* where the tile begins */
} fl_calls;

/* The tiles of a phase, for `active` rows: units outside, rows inside. */
typedef struct fl_tiling {
    int64_t width, across, down; /* units of a tile; tiles of units, of rows */
    fl_calls *calls[2]; /* [across][down], for a step from either h */
} fl_tiling;

typedef struct fl_scan {
    const fl_layer *layer;
    const fl_direction *weights;
    int64_t rows; /* that there is room for */
    int64_t tile_rows; /* of the projected input */
    int64_t parity; /* h[parity] is the state now */
    int64_t slices; /* that the tiles are for */
    char *h[2], *c; /* [rows, stride] */
    char *between; /* [rows, hidden stride]: what the second phase or the projection multiplies */
    char *projected; /* [tile rows, gates] */
    char *scratch; /* [workers][...]: pre-activations of a tile, which stay in L1 */
    int64_t scratch_bytes;
    const void **h_rows[2], **between_rows, **x_rows;
    void **y_rows;
    int64_t projected_stride;
    fl_tiling tiling[2]; /* of each phase, for `active` rows */
    /* With int8 weights: rows of numbers (kernels.h), [tile rows] and [workers][rows]. */
    char *x_numbers, *h_numbers;
    int64_t x_number_bytes, h_number_bytes;
    const void **x_number_rows, **h_number_rows;
    const fl_memory *memory; /* where states and pre-activations go; NULL: nowhere */
    int64_t memory_row; /* of row 0 */
    int64_t steps; /* of the longest row */
    /* of the step that runs */
    int64_t active, tile_count, y_offset;
    const char *h_in, *c_in;
    char *h_out, *c_out, *z; /* z: in the tape's memory */
    const void *const *h_in_rows;
    const char *tile; /* the step's first row in `projected` */
    const void *const *step_x; /* and in x_rows */
    bool fused; /* the step's product takes x itself */
} fl_scan;

/* Bytes for a scan of that many rows; then its parts, inside memory of that size, 64-byte aligned. */
int64_t fl_scan_bytes(const fl_layer *layer, int64_t rows, int64_t steps, int64_t workers);
void fl_scan_init(fl_scan *scan, const fl_layer *layer, const fl_direction *weights, int64_t rows, int64_t steps,
                  int64_t workers, void *memory);
void fl_scan_set_state(fl_scan *scan, int64_t row, const void *h, const void *c); /* NULL: zeros */

/* Rows to run: x and y rows of step 0, one step apart by the strides (bytes, elements); steps of each row, falling. */
typedef struct fl_rows {
    int64_t count;
    const char *const *x; /* element 0 of each row's first step */
    int64_t x_step_bytes, y_step;
    const int64_t *steps;
    int64_t begin, end; /* of all steps, those to run now */
    bool in_place; /* y is where x was read: a tile's input must be projected before */
} fl_rows;
void fl_scan_run(fl_scan *scan, const fl_rows *rows, fl_team *team);
/* The state of a row that ended `ago` steps before the last one of fl_scan_run. */
const char *fl_scan_h(const fl_scan *scan, int64_t row, int64_t ago);
const char *fl_scan_c(const fl_scan *scan, int64_t row, int64_t ago);
const char *fl_scan_now_h(const fl_scan *scan, int64_t row); /* without memory, between two runs */

/* Units or rows [begin, end) of a slice, in multiples of `step`. */
typedef struct fl_range {
    int64_t begin, end;
} fl_range;
fl_range fl_slice(int64_t units, int64_t step, int64_t slice, int64_t slices);
/* Sets part i of a product to columns [begin, end) * gates of a matrix. */
void fl_set_columns(fl_product_args *product, int i, const fl_kernels *kernels, const fl_matrix *matrix, int64_t gates,
                    int64_t begin, int64_t end);

/* --- sequence.c --- */
fl_status fl_check_sequence(const fl_layer *layer, const fl_sequence *sequence);
fl_status fl_check_strides(const char *name, int64_t stride_t, int64_t T, int64_t stride_b, int64_t B);
/* Our own, checked copy [B], and the sum; NULL: fl_fail called, *steps < 0 if a length is wrong. */
int64_t *fl_take_lengths(const fl_sequence *sequence, int64_t *steps);
bool fl_sort_rows(int64_t B, const int64_t *length, int64_t *order); /* by falling length; false: no memory */
/* Stretches [begin[i], begin[i + 1]) of `order` with about equally many steps. */
void fl_share_rows(int64_t B, const int64_t *order, const int64_t *length, int64_t chunks, int64_t *begin);

/* --- forward.c: how work is split --- */
double fl_estimate_steps_us(const fl_layer *layer, double steps, int64_t batch); /* of all layers */
/* For `stages` steps of B rows that take so long; *threads becomes 1 where that is best. */
fl_split fl_choose_split(const fl_layer *layer, int64_t stages, int64_t B, double us, int64_t *threads);
/* Threads among which a stream's next step splits its units; and the most that there can be. */
int64_t fl_step_threads(const fl_layer *layer, int64_t B);
int64_t fl_most_step_threads(const fl_layer *layer, int64_t B);
/* Runs a block of a tape's steps again, into other memory [D]. */
fl_status fl_forward_again(fl_tape *tape, int64_t block, const fl_memory *memory);

/* --- tape.c --- */
/* One layer's forward pass, remembered. Everything goes by `order`: row r is sequence order[r]. */
struct fl_tape {
    fl_layer *layer;
    fl_pack *pack;
    int64_t index; /* of the layer in its stack */
    fl_sequence sequence;
    int64_t *order, *length; /* [B]; length by sequence */
    int64_t steps, *place; /* of the longest; [steps + 1]: rows that ran before each step */
    int64_t bytes;
    fl_memory memory[2]; /* of each direction, unless */
    int64_t every; /* > 0: only the states before each `every` steps are there */
    int64_t *check_place;
    char *check_h[2], *check_c[2];
};
/* With all its memory, not yet run; the arguments have been checked. */
fl_status fl_tape_create(const fl_layer *layer, int64_t index, const fl_sequence *q, int64_t every, fl_tape **tape);
void fl_tape_keep(const fl_tape *tape, int64_t direction, int64_t block, int64_t row, const void *h, const void *c);
void fl_tape_kept(const fl_tape *tape, int64_t direction, int64_t block, int64_t row, const void **h, const void **c);
/* Memory for steps [first, end) of one direction; false: no memory. */
bool fl_memory_create(const fl_tape *tape, int64_t first, int64_t end, fl_memory *memory, int64_t *bytes);
void fl_memory_free(const fl_layer *layer, fl_memory *memory);

#endif
