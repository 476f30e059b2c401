/* What the files of csrc/ share. A call goes downward only:
 * layer.c, forward.c, stream.c (public entries) -> scan.c (the time loop) -> kernels; beside it pack.c, cells.c,
 * dispatch.c, threads.c; at the bottom os.c. */
#ifndef FL_INTERNAL_H
#define FL_INTERNAL_H

#include "fastlstm.h"
#include "kernels/kernels.h"
#include "os.h"

#include <stdatomic.h>
#include <stdbool.h>

/* --- error.c --- */
fl_status fl_fail(fl_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* --- cells.c: what a cell is --- */
typedef struct fl_phase {
    int32_t first_gate, gates;    /* of the recurrent product */
    size_t kernel, general;       /* offsets in fl_kernels: sigma and tanh, or any activations and clip */
} fl_phase;

typedef struct fl_cell {
    const char *name;
    int32_t gates, phases;
    bool has_c;
    bool separate; /* the recurrent product is kept apart from the projected input, with its own bias */
    fl_phase phase[2]; /* a second one multiplies what the first left in h_out */
    int32_t activations;
    int32_t default_activation[3];
} fl_cell;

const fl_cell *fl_cell_of(const fl_config *config);

/* --- dispatch.c: which CPU this is --- */
const fl_kernels *fl_kernels_of(fl_dtype dtype); /* NULL: FASTLSTM_ISA was wrong, fl_fail has been called */
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
} fl_matrix;

typedef struct fl_direction {
    fl_matrix input;        /* all gates */
    fl_matrix recurrent[2]; /* those of each phase */
    fl_matrix projection;   /* data NULL: none */
    void *bias;             /* start of the input product */
    void *start[2];         /* separate: start of each phase's product */
    void *zeros;            /* start of the projection */
    void *peephole;         /* [3, state stride] */
} fl_direction;

/* All weights of a layer: immutable, shared by the calls that run with it. */
typedef struct fl_pack {
    atomic_int references;
    int64_t count;
    fl_direction direction[];
} fl_pack;

fl_status fl_pack_create(const fl_layer *layer, const fl_weights *weights, fl_pack **pack);
void fl_pack_release(fl_pack *pack);

/* --- layer.c --- */
struct fl_layer {
    atomic_int references; /* the owner's and each stream's */
    fl_config config;
    const fl_cell *cell;
    const fl_kernels *kernels;
    fl_cell_fn *update[2]; /* of each phase */
    fl_cell_options options;
    int64_t output_size, directions; /* P, D */
    int64_t hidden_stride, output_stride; /* H and P rounded up to whole vectors */
    fl_pack *pack;        /* read and swapped under fl_os_lock */
    atomic_int version; /* of `pack`, so that a stream sees a change without the lock */
};

fl_layer *fl_layer_retain(const fl_layer *layer);
fl_pack *fl_layer_pack(const fl_layer *layer); /* a reference, or NULL */
int64_t fl_round_up(int64_t n, int64_t unit);
bool fl_mul(int64_t a, int64_t b, int64_t *product); /* false: overflow */

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

typedef enum fl_split { FL_SPLIT_AUTO = -1, FL_SPLIT_NONE = 0, FL_SPLIT_BATCH = 1, FL_SPLIT_UNITS = 2 } fl_split;
/* For tests: take this split whatever the size; what the calling thread's last fl_forward took. */
FL_API void fl_force_split(fl_split split);
FL_API fl_split fl_last_split(void);
fl_split fl_forced_split(void);

/* --- scan.c: one direction of one layer over time --- */
/* The calls for one tile of a phase, filled in but for what changes from step to step. */
typedef struct fl_calls {
    fl_product_args product;
    fl_cell_args cell;
    int64_t row, state_bytes, projected_bytes; /* where the tile begins */
} fl_calls;

/* The tiles of a phase, for `active` rows: units outside, rows inside. */
typedef struct fl_tiling {
    int64_t width, across, down; /* units of a tile; tiles of units, of rows */
    fl_calls *calls;             /* [across][down] */
} fl_tiling;

typedef struct fl_scan {
    const fl_layer *layer;
    const fl_direction *weights;
    int64_t rows;      /* that there is room for */
    int64_t tile_rows; /* of the projected input */
    int64_t parity;    /* h[parity] is the state now */
    char *h[2], *c;    /* [rows, stride] */
    char *between;     /* [rows, hidden stride]: what the second phase or the projection multiplies */
    char *projected;   /* [tile rows, gates] */
    char *scratch;     /* [workers][...]: pre-activations of a tile, which stay in L1 */
    int64_t scratch_bytes;
    const void **h_rows[2], **between_rows, **x_rows;
    void **y_rows;
    int64_t projected_stride;
    fl_tiling tiling[2]; /* of each phase, for `active` rows */
    /* of the step that runs */
    int64_t active, tile_count, y_offset;
    const char *tile;          /* the step's first row in `projected` */
    const void *const *step_x; /* and in x_rows */
    bool fused;                /* the step's product takes x itself */
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
    bool in_place; /* y is where x was read: a tile's input must be projected before */
} fl_rows;
void fl_scan_run(fl_scan *scan, const fl_rows *rows, fl_team *team);
/* The state of a row that ended `ago` steps before the last one of fl_scan_run. */
const char *fl_scan_h(const fl_scan *scan, int64_t row, int64_t ago);
const char *fl_scan_c(const fl_scan *scan, int64_t row);

#endif
