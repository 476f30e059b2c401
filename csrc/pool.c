/* Pools: the states of many sessions, any of which take a step together.
 *
 * A session lives in a slot, its state in one row: layer by layer h and c, each in whole vectors. A step gathers the
 * rows that it is asked for into a scan of some CHUNK_ROWS, runs that as a batch and scatters them back, chunk after
 * chunk; states, inputs and outputs of a chunk stay in the nearest caches meanwhile. All that a step needs is made
 * beforehand, at creation and when the pool grows. An output's bits depend on neither batch nor neighbours, so they are
 * those of the session alone.
 * Tried: asking for the next chunk's states ahead, 4 % slower, from L2 or from beyond; rows copied by 16 bytes inline
 * instead of by memcpy, 1 % faster at H = 32; chunks of 30 to 126 rows, all the same.
 * An id is generation << SLOT_BITS | slot, and a slot's generation rises with every session that it held: an id comes
 * once. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    CHUNK_ROWS = 64,
    SLOT_BITS = 24,
    MOST_SLOTS = 1 << SLOT_BITS,
};

static const int64_t most_generations = INT64_MAX >> SLOT_BITS;

typedef struct pool_slot {
    int64_t id;    /* of the session that is in it or else will be the next */
    int64_t call;  /* the last one that named it: none may twice */
    int64_t next;  /* in a closed one: another closed one, -1 for none */
    bool open, from_zeros;
} pool_slot;

/* One block for all sessions. */
typedef struct pool_table {
    int64_t capacity;
    pool_slot *slots;       /* [capacity], and where the block begins */
    char *states, *initial; /* [capacity][row]; what reset goes back to, unless from_zeros */
    char **named;           /* [capacity]: the states that a call is about */
} pool_table;

/* And one for what each worker runs a chunk in. */
typedef struct pool_worker {
    fl_scan *scan;  /* [L] */
    const char **x; /* [rows] */
} pool_worker;

typedef struct pool_work {
    int64_t rows, workers;
    pool_worker *worker; /* [workers], and where the block begins */
    int64_t *steps;      /* [rows], all 1 */
} pool_work;

struct fl_pool {
    fl_layer *layer;
    fl_pack *pack;
    int version; /* of the layer's weights that `pack` is */
    atomic_flag busy;
    atomic_llong count, capacity; /* that others may read meanwhile */
    int64_t used;                 /* slots that have held a session */
    int64_t closed;               /* the first of those that hold none now, -1: none */
    int64_t call;
    int64_t h_bytes, c_bytes, row_bytes;
    pool_table table;
    pool_work work;
};

static fl_status enter(fl_pool *pool) {
    if (!pool) return fl_fail(FL_BAD_ARGUMENT, "pool: NULL");
    if (atomic_flag_test_and_set_explicit(&pool->busy, memory_order_acquire))
        return fl_fail(FL_BUSY, "pool: another call is using it");
    return FL_OK;
}

static fl_status leave(fl_pool *pool, fl_status status) {
    atomic_flag_clear_explicit(&pool->busy, memory_order_release);
    return status;
}

/* --- memory --- */

static bool make_table(const fl_pool *p, int64_t capacity, pool_table *t) {
    int64_t bytes;
    if (!fl_mul(p->row_bytes, 2 * capacity, &bytes)) return false;
    for (fl_arena a = {NULL, 0};; a = (fl_arena){(char *)t->slots, 0}) {
        pool_slot *slots = fl_take(&a, capacity * (int64_t)sizeof *t->slots);
        t->states = fl_take(&a, bytes / 2);
        t->initial = fl_take(&a, bytes / 2);
        t->named = fl_take(&a, capacity * (int64_t)sizeof *t->named);
        if (slots) break;
        t->slots = fl_os_alloc(a.used);
        if (!t->slots) return false;
    }
    t->capacity = capacity;
    return true;
}

/* The sessions of a table into a larger one. */
static void move_sessions(const fl_pool *p, pool_table *to) {
    const pool_table *from = &p->table;
    if (!p->used) return;
    memcpy(to->slots, from->slots, (size_t)p->used * sizeof *to->slots);
    memcpy(to->states, from->states, (size_t)(p->used * p->row_bytes));
    for (int64_t i = 0; i < p->used; i++)
        if (to->slots[i].open && !to->slots[i].from_zeros)
            memcpy(to->initial + i * p->row_bytes, from->initial + i * p->row_bytes, (size_t)p->row_bytes);
}

static bool make_work(const fl_pool *p, int64_t rows, int64_t workers, pool_work *w) {
    const fl_layer *l = p->layer;
    const int64_t L = l->config.num_layers;
    pool_work made = {.rows = rows, .workers = workers};
    for (fl_arena a = {NULL, 0};; a = (fl_arena){(char *)made.worker, 0}) {
        const bool counting = !a.base;
        fl_take(&a, workers * (int64_t)sizeof *made.worker);
        made.steps = fl_take(&a, rows * (int64_t)sizeof *made.steps);
        for (int64_t k = 0; k < workers; k++) {
            const int64_t team = k ? 1 : workers; /* the first one's scans may be shared by units */
            const int64_t scan_bytes = fl_scan_bytes(l, rows, 1, team);
            fl_scan *scan = fl_take(&a, L * (int64_t)sizeof *scan);
            const char **x = fl_take(&a, rows * (int64_t)sizeof *x);
            if (!counting) made.worker[k] = (pool_worker){scan, x};
            for (int64_t i = 0; i < L; i++) {
                void *memory = fl_take(&a, scan_bytes);
                if (!counting) fl_scan_init(&scan[i], l, &p->pack->direction[i], rows, 1, team, memory);
            }
        }
        if (!counting) break;
        made.worker = fl_os_alloc(a.used);
        if (!made.worker) return false;
    }
    for (int64_t r = 0; r < rows; r++) made.steps[r] = 1;
    *w = made;
    return true;
}

/* Makes room for so many sessions, or changes nothing. */
static fl_status set_capacity(fl_pool *p, int64_t capacity) {
    pool_table table;
    pool_work work = p->work;
    const int64_t rows = capacity < CHUNK_ROWS ? capacity : CHUNK_ROWS;
    const int64_t workers = fl_most_step_threads(p->layer, capacity);
    if (workers < 0) return FL_BAD_ARGUMENT;
    if (!make_table(p, capacity, &table))
        return fl_fail(FL_NO_MEMORY, "pool: no memory for %lld sessions", (long long)capacity);
    if ((rows != work.rows || workers != work.workers) && !make_work(p, rows, workers, &work)) {
        fl_os_free(table.slots);
        return fl_fail(FL_NO_MEMORY, "pool: no memory for %lld workers", (long long)workers);
    }
    fl_start_threads(workers); /* now, for it allocates */
    move_sessions(p, &table);
    fl_os_free(p->table.slots);
    if (work.worker != p->work.worker) fl_os_free(p->work.worker);
    p->table = table;
    p->work = work;
    atomic_store_explicit(&p->capacity, capacity, memory_order_relaxed);
    return FL_OK;
}

fl_status fl_pool_create(const fl_layer *layer, int64_t capacity, fl_pool **out) {
    if (!out) return fl_fail(FL_BAD_ARGUMENT, "pool: NULL");
    *out = NULL;
    if (!layer) return fl_fail(FL_BAD_ARGUMENT, "layer: NULL");
    if (layer->directions == 2 || layer->config.reverse)
        return fl_fail(FL_UNSUPPORTED, "pool: a layer that reads backwards needs the whole sequence");
    if (capacity < 1 || capacity > MOST_SLOTS)
        return fl_fail(FL_BAD_ARGUMENT, "capacity is %lld, wanted 1 to %d", (long long)capacity, MOST_SLOTS);
    fl_pool *p = calloc(1, sizeof *p);
    if (!p) return fl_fail(FL_NO_MEMORY, "pool: no memory");
    p->pack = fl_layer_pack(layer);
    if (!p->pack) {
        free(p);
        return FL_NO_WEIGHTS;
    }
    p->layer = fl_layer_retain(layer);
    p->version = -1;
    p->closed = -1;
    atomic_flag_clear(&p->busy);
    atomic_init(&p->count, 0);
    atomic_init(&p->capacity, 0);
    const int64_t size = layer->kernels->element_bytes;
    p->h_bytes = layer->output_stride * size;
    p->c_bytes = layer->cell->has_c ? layer->hidden_stride * size : 0;
    p->row_bytes = fl_round_up(layer->config.num_layers * (p->h_bytes + p->c_bytes), 64);
    const fl_status status = set_capacity(p, capacity);
    if (status) fl_pool_free(p);
    else *out = p;
    return status;
}

void fl_pool_free(fl_pool *p) {
    if (!p) return;
    fl_os_free(p->table.slots);
    fl_os_free(p->work.worker);
    fl_pack_release(p->pack);
    fl_free(p->layer);
    free(p);
}

/* --- sessions --- */

static int64_t slot_index(int64_t id) { return id & (MOST_SLOTS - 1); }

static pool_slot *find(const fl_pool *p, int64_t id) {
    const int64_t i = slot_index(id);
    if (id < 0 || i >= p->used || !p->table.slots[i].open || p->table.slots[i].id != id) return NULL;
    return &p->table.slots[i];
}

static char *state_of(const fl_pool *p, int64_t id) { return p->table.states + slot_index(id) * p->row_bytes; }

/* Looks up the states of n sessions, before anything changes, and keeps them: the caller's array may change. */
static fl_status name_sessions(fl_pool *p, int64_t n, const int64_t *ids) {
    if (n < 0) return fl_fail(FL_BAD_ARGUMENT, "n is %lld", (long long)n);
    if (n && !ids) return fl_fail(FL_BAD_ARGUMENT, "ids: NULL");
    const int64_t call = ++p->call;
    for (int64_t r = 0; r < n; r++) {
        const int64_t id = ids[r];
        pool_slot *slot = find(p, id);
        if (!slot)
            return fl_fail(FL_BAD_ARGUMENT, "ids[%lld] is %lld: no session that is open has that id", (long long)r,
                           (long long)id);
        if (slot->call == call)
            return fl_fail(FL_BAD_ARGUMENT, "ids[%lld] is %lld, which is there before: a session once a call",
                           (long long)r, (long long)id);
        slot->call = call;
        p->table.named[r] = state_of(p, id); /* r is below the capacity, as all so far differ */
    }
    return FL_OK;
}

static fl_status find_one(fl_pool *p, int64_t id, pool_slot **slot) {
    *slot = find(p, id);
    return *slot ? FL_OK : fl_fail(FL_BAD_ARGUMENT, "id is %lld: no session that is open has it", (long long)id);
}

/* Row `r` of n in h [L, n, P] and c [L, n, H] (NULL: zeros) into a session's row, and back. */
static void set_row(const fl_pool *p, char *row, const char *h, const char *c, int64_t r, int64_t n) {
    const fl_layer *l = p->layer;
    const int64_t size = l->kernels->element_bytes, h_bytes = l->output_size * size;
    const int64_t c_bytes = l->config.hidden_size * size;
    for (int64_t i = 0; i < l->config.num_layers; i++, row += p->h_bytes + p->c_bytes) {
        fl_set_row(row, h ? h + (i * n + r) * h_bytes : NULL, h_bytes);
        if (p->c_bytes) fl_set_row(row + p->h_bytes, c ? c + (i * n + r) * c_bytes : NULL, c_bytes);
    }
}

static void get_row(const fl_pool *p, const char *row, char *h, char *c, int64_t r, int64_t n) {
    const fl_layer *l = p->layer;
    const int64_t size = l->kernels->element_bytes, h_bytes = l->output_size * size;
    const int64_t c_bytes = l->config.hidden_size * size;
    for (int64_t i = 0; i < l->config.num_layers; i++, row += p->h_bytes + p->c_bytes) {
        if (h) memcpy(h + (i * n + r) * h_bytes, row, (size_t)h_bytes);
        if (c && p->c_bytes) memcpy(c + (i * n + r) * c_bytes, row + p->h_bytes, (size_t)c_bytes);
    }
}

static void begin_anew(const fl_pool *p, const pool_slot *slot) {
    char *state = state_of(p, slot->id);
    if (slot->from_zeros) memset(state, 0, (size_t)p->row_bytes);
    else memcpy(state, p->table.initial + slot_index(slot->id) * p->row_bytes, (size_t)p->row_bytes);
}

static fl_status reserve(fl_pool *p, int64_t more) {
    const int64_t count = atomic_load_explicit(&p->count, memory_order_relaxed);
    int64_t capacity = p->table.capacity;
    if (more < 0) return fl_fail(FL_BAD_ARGUMENT, "more is %lld", (long long)more);
    if (more > MOST_SLOTS - count)
        return fl_fail(FL_NO_MEMORY, "pool: %lld sessions and %lld more, of which there can be %d", (long long)count,
                       (long long)more, MOST_SLOTS);
    while (capacity < count + more) capacity = capacity < MOST_SLOTS / 2 ? 2 * capacity : MOST_SLOTS;
    return capacity == p->table.capacity ? FL_OK : set_capacity(p, capacity);
}

fl_status fl_pool_reserve(fl_pool *p, int64_t more) {
    const fl_status status = enter(p);
    return status ? status : leave(p, reserve(p, more));
}

/* A slot for a session: one that was closed, or the next of those that are new. */
static fl_status take_slot(fl_pool *p, pool_slot **slot) {
    if (p->closed >= 0) {
        *slot = &p->table.slots[p->closed];
        p->closed = (*slot)->next;
        return FL_OK;
    }
    fl_status status = reserve(p, 1);
    if (!status && p->used == p->table.capacity) /* only where generations have run out */
        status = fl_fail(FL_NO_MEMORY, "pool: no id is left");
    if (status) return status;
    *slot = &p->table.slots[p->used];
    **slot = (pool_slot){.id = p->used++};
    return FL_OK;
}

fl_status fl_pool_open(fl_pool *p, const void *h0, const void *c0, int64_t *id) {
    if (!id) return fl_fail(FL_BAD_ARGUMENT, "id: NULL");
    fl_status status = enter(p);
    if (status) return status;
    pool_slot *slot;
    status = take_slot(p, &slot);
    if (status) return leave(p, status);
    slot->open = true;
    slot->from_zeros = !h0 && !c0;
    char *initial = p->table.initial + slot_index(slot->id) * p->row_bytes;
    if (!slot->from_zeros) {
        memset(initial, 0, (size_t)p->row_bytes); /* between the rows too: it is copied whole */
        set_row(p, initial, h0, c0, 0, 1);
    }
    begin_anew(p, slot);
    atomic_fetch_add_explicit(&p->count, 1, memory_order_relaxed);
    *id = slot->id;
    return leave(p, FL_OK);
}

fl_status fl_pool_close(fl_pool *p, int64_t id) {
    fl_status status = enter(p);
    if (status) return status;
    pool_slot *slot;
    status = find_one(p, id, &slot);
    if (status) return leave(p, status);
    slot->open = false;
    if (id >> SLOT_BITS < most_generations) { /* else nobody will have it again */
        slot->id = id + MOST_SLOTS;
        slot->next = p->closed;
        p->closed = slot_index(id);
    }
    atomic_fetch_sub_explicit(&p->count, 1, memory_order_relaxed);
    return leave(p, FL_OK);
}

fl_status fl_pool_check(fl_pool *p, int64_t n, const int64_t *ids) {
    const fl_status status = enter(p);
    return status ? status : leave(p, name_sessions(p, n, ids));
}

int64_t fl_pool_count(const fl_pool *p) { return p ? atomic_load_explicit(&p->count, memory_order_relaxed) : 0; }

int64_t fl_pool_capacity(const fl_pool *p) { return p ? atomic_load_explicit(&p->capacity, memory_order_relaxed) : 0; }

fl_status fl_pool_reset(fl_pool *p, int64_t id) {
    fl_status status = enter(p);
    if (status) return status;
    pool_slot *slot;
    status = find_one(p, id, &slot);
    if (!status) begin_anew(p, slot);
    return leave(p, status);
}

fl_status fl_pool_get_state(fl_pool *p, int64_t n, const int64_t *ids, void *h, void *c) {
    fl_status status = enter(p);
    if (status) return status;
    status = name_sessions(p, n, ids);
    for (int64_t r = 0; !status && r < n; r++) get_row(p, p->table.named[r], h, c, r, n);
    return leave(p, status);
}

fl_status fl_pool_set_state(fl_pool *p, int64_t n, const int64_t *ids, const void *h, const void *c) {
    fl_status status = enter(p);
    if (status) return status;
    status = name_sessions(p, n, ids);
    for (int64_t r = 0; !status && r < n; r++) set_row(p, p->table.named[r], h, c, r, n);
    return leave(p, status);
}

/* --- a step --- */

/* New weights, if the layer has some: the only time that a step takes the layer's lock. */
static void take_weights(fl_pool *p) {
    const int version = atomic_load_explicit(&p->layer->version, memory_order_acquire);
    if (version == p->version) return;
    fl_pack *pack = fl_layer_pack(p->layer);
    fl_pack_release(p->pack);
    p->pack = pack;
    p->version = version;
    for (int64_t k = 0; k < p->work.workers; k++)
        for (int64_t i = 0; i < p->layer->config.num_layers; i++) {
            fl_scan *s = &p->work.worker[k].scan[i];
            s->weights = &pack->direction[i];
            s->active = -1; /* what was filled in points to the old ones */
        }
}

typedef struct pool_step {
    const fl_pool *pool;
    int64_t n, chunks;
    const char *x;
    char *y;
    fl_team *team;
} pool_step;

/* One chunk of rows through all layers. A layer reads what the one before left as its state, and writes y, which the
 * last one does last. */
static void run_chunk(void *context, int64_t chunk, int64_t worker) {
    const pool_step *step = context;
    const fl_pool *p = step->pool;
    const fl_layer *l = p->layer;
    const pool_worker *w = &p->work.worker[worker];
    const int64_t size = l->kernels->element_bytes, x_bytes = l->config.input_size * size;
    const int64_t h_bytes = l->output_size * size, c_bytes = l->config.hidden_size * size;
    const int64_t share = (step->n + step->chunks - 1) / step->chunks, first = chunk * share;
    const int64_t count = step->n - first < share ? step->n - first : share;
    fl_rows rows = {.count = count, .x = w->x, .steps = p->work.steps, .end = 1};
    if (count <= 0) return;
    for (int64_t i = 0; i < l->config.num_layers; i++) {
        fl_scan *s = &w->scan[i];
        const int64_t offset = i * (p->h_bytes + p->c_bytes);
        for (int64_t r = 0; r < count; r++) {
            const char *state = p->table.named[first + r] + offset;
            fl_scan_set_state(s, r, state, state + p->h_bytes);
            w->x[r] = i ? fl_scan_now_h(s - 1, r) : step->x + (first + r) * x_bytes;
            s->y_rows[r] = step->y + (first + r) * h_bytes;
        }
        fl_scan_run(s, &rows, step->team);
        for (int64_t r = 0; r < count; r++) {
            char *state = p->table.named[first + r] + offset;
            memcpy(state, fl_scan_now_h(s, r), (size_t)h_bytes);
            if (p->c_bytes) memcpy(state + p->h_bytes, fl_scan_c(s, r, 0), (size_t)c_bytes);
        }
    }
}

static void run_in_team(void *context, fl_team *team) {
    pool_step *step = context;
    step->team = team;
    for (int64_t chunk = 0; chunk < step->chunks; chunk++) run_chunk(step, chunk, 0);
}

fl_status fl_pool_step(fl_pool *p, int64_t n, const int64_t *ids, const void *x, void *y) {
    fl_status status = enter(p);
    if (status) return status;
    status = name_sessions(p, n, ids);
    if (!status && n && (!x || !y)) status = fl_fail(FL_BAD_ARGUMENT, "%s: NULL", x ? "y" : "x");
    if (status || !n) return leave(p, status);
    take_weights(p);
    const fl_layer *l = p->layer;
    pool_step step = {.pool = p, .n = n, .x = x, .y = y};
    int64_t threads = p->work.workers;
    fl_split split = FL_SPLIT_NONE;
    if (threads > 1)
        split = fl_choose_split(l, l->config.num_layers, n, fl_estimate_steps_us(l, (double)n, n), &threads);
    if (threads > p->work.workers) threads = p->work.workers;
    if (split == FL_SPLIT_NONE) threads = 1;
    step.chunks = (n + p->work.rows - 1) / p->work.rows;
    if (split == FL_SPLIT_BATCH) step.chunks = fl_round_up(step.chunks, threads);
    const fl_fp_mode mode = fl_fp_begin();
    if (split == FL_SPLIT_UNITS) fl_parallel_stages(threads, run_in_team, &step);
    else fl_parallel_tasks(threads, step.chunks, run_chunk, &step);
    fl_fp_end(mode);
    return leave(p, FL_OK);
}
