/* Pools, as a user of the C library meets them: sessions that come, go at their own pace and leave, each with the bits of
 * a stream of its own; nothing allocated by a step; ids, arguments and lack of memory refused with nothing changed;
 * one call at a time. Buffers between guard pages. */
#include "guard.h"

#include "allocations.h"

#include <pthread.h>

enum { I = 5, H = 19, P = 7, SESSIONS = 150, MOST_LAYERS = 3, STATE = MOST_LAYERS * H };

typedef struct kind {
    const char *name;
    fl_cell_kind cell;
    int64_t gates, layers, proj;
    int reset_before, clip;
    int weight_type, activation_bits;
} kind;

static const kind kinds[] = {
    {"lstm", FL_LSTM, 4, 1, 0, 0, 0, FL_FULL, 0},
    {"lstm stack", FL_LSTM, 4, 3, 0, 0, 1, FL_FULL, 0},
    {"lstm projection", FL_LSTM, 4, 2, P, 0, 0, FL_FULL, 0},
    {"gru", FL_GRU, 3, 2, 0, 0, 0, FL_FULL, 0},
    {"gru reset before", FL_GRU, 3, 2, 0, 1, 0, FL_FULL, 0},
    {"rnn", FL_RNN, 1, 2, 0, 0, 0, FL_FULL, 0},
    {"gated rnn", FL_GATED_RNN, 2, 2, 0, 0, 0, FL_FULL, 0},
    {"lstm bfloat16", FL_LSTM, 4, 2, P, 0, 0, FL_BFLOAT16, 0},
    {"lstm int8", FL_LSTM, 4, 2, P, 0, 0, FL_INT8, 8},
    {"gru int8 by 16", FL_GRU, 3, 2, 0, 1, 0, FL_INT8, 16},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static double numbers_f64[8 * H * 64];
static float numbers_f32[8 * H * 64];

static const char *numbers(fl_dtype dtype, int64_t from) {
    return dtype == FL_FLOAT32 ? (const char *)(numbers_f32 + from) : (const char *)(numbers_f64 + from);
}

/* A matrix in the layer's precision, and the scale of its rows where it has one; gone at the next set_weights. */
static _Alignas(uint16_t) int8_t small[MOST_LAYERS * 9 * H * H * 2];
static float scales[MOST_LAYERS * 3 * 4 * H];
static int64_t small_used, scales_used;

static fl_array matrix(const kind *k, fl_dtype dtype, int64_t from, int64_t rows, int64_t columns, fl_array *scale) {
    if (k->weight_type == FL_FULL || rows == 0) return (fl_array){rows ? numbers(dtype, from) : NULL, rows * columns};
    int8_t *weights = small + small_used;
    small_used += 2 * rows * columns;
    if (k->weight_type == FL_BFLOAT16) {
        if (fl_to_bfloat16(numbers_f32 + from, rows * columns, (uint16_t *)(void *)weights) != FL_OK) exit(2);
    } else {
        *scale = (fl_array){scales + scales_used, rows};
        if (fl_to_int8(numbers_f32 + from, rows, columns, weights, scales + scales_used) != FL_OK) exit(2);
        scales_used += rows;
    }
    return (fl_array){weights, rows * columns};
}

static void set_weights(fl_layer *layer, const kind *k, fl_dtype dtype, int64_t shift) {
    const int64_t out = k->proj ? k->proj : H, rows = k->gates * H;
    fl_weights w[MOST_LAYERS];
    small_used = scales_used = 0;
    for (int64_t i = 0; i < k->layers; i++) {
        w[i] = (fl_weights){
            .size = sizeof *w, .bias_ih = {numbers(dtype, 23), rows}, .bias_hh = {numbers(dtype, 47), rows}};
        w[i].weight_ih = matrix(k, dtype, i + shift, rows, i ? out : I, &w[i].scale_ih);
        w[i].weight_hh = matrix(k, dtype, 11 + i + shift, rows, out, &w[i].scale_hh);
        w[i].weight_hr = matrix(k, dtype, 59, k->proj, H, &w[i].scale_hr);
    }
    check(fl_set_weights(layer, w, k->layers) == FL_OK, "%s: weights: %s", k->name, fl_last_error());
}

static fl_layer *layer_of(const kind *k, fl_dtype dtype) {
    fl_config c;
    fl_config_init(&c, k->cell, I, H);
    c.dtype = dtype;
    c.num_layers = k->layers;
    c.proj_size = k->proj;
    c.reset_after = !k->reset_before;
    c.clip = k->clip;
    c.weight_type = k->weight_type;
    c.activation_bits = k->activation_bits;
    fl_layer *layer = NULL;
    if (fl_create(&c, &layer) != FL_OK) exit(2);
    set_weights(layer, k, dtype, 0);
    return layer;
}

/* --- the same bits as alone --- */

typedef struct session {
    int64_t id;
    fl_stream *alone;
} session;

static int64_t size_of(fl_dtype dtype) { return dtype == FL_FLOAT32 ? 4 : 8; }

static bool same_state(fl_dtype dtype, fl_pool *pool, const session *s) {
    double h[2][STATE], c[2][STATE];
    memset(h, 0, sizeof h);
    memset(c, 0, sizeof c);
    const bool got =
        fl_pool_get_state(pool, 1, &s->id, h[0], c[0]) == FL_OK && fl_stream_get_state(s->alone, h[1], c[1]) == FL_OK;
    return got && first_difference(h[0], h[1], size_of(dtype), STATE) < 0 &&
           first_difference(c[0], c[1], size_of(dtype), STATE) < 0;
}

/* Some of the sessions, in any order. */
static int64_t draw(uint64_t *state, session *all, int64_t count) {
    for (int64_t i = count - 1; i > 0; i--) {
        const int64_t j = (int64_t)(random_bits(state) % (uint64_t)(i + 1));
        const session other = all[i];
        all[i] = all[j];
        all[j] = other;
    }
    return (int64_t)(random_bits(state) % (uint64_t)(count + 1));
}

static void open_one(fl_pool *pool, const fl_layer *layer, fl_dtype dtype, bool from_state, session *s) {
    const char *h = from_state ? numbers(dtype, 3) : NULL, *c = from_state ? numbers(dtype, 5) : NULL;
    check(fl_pool_open(pool, h, c, &s->id) == FL_OK, "open: %s", fl_last_error());
    if (fl_stream_create(layer, 1, h, c, &s->alone) != FL_OK) exit(2);
}

static void test_sessions(const kind *k, fl_dtype dtype, bool at_end) {
    const int64_t size = size_of(dtype), out = k->proj ? k->proj : H;
    fl_layer *layer = layer_of(k, dtype);
    fl_pool *pool = NULL;
    uint64_t state = 7;
    static session all[SESSIONS];
    int64_t count = 0, n_before = 0, last_id = -1;
    guarded x = guarded_create(SESSIONS * I * size + MARGIN), y = guarded_create(SESSIONS * H * size + MARGIN);
    guarded ids = guarded_create(SESSIONS * (int64_t)sizeof(int64_t) + MARGIN);
    check(fl_pool_create(layer, 3, &pool) == FL_OK, "%s: %s", k->name, fl_last_error());
    for (int turn = 0; turn < 24; turn++) {
        for (int64_t more = turn < 20 ? 9 : 0; more > 0 && count < SESSIONS; more--)
            open_one(pool, layer, dtype, random_bits(&state) % 2, &all[count++]);
        check(fl_pool_check(pool, 1, &last_id) == FL_BAD_ARGUMENT, "%s: the id of a closed one is used again", k->name);
        int64_t n = draw(&state, all, count);
        if (turn % 8 == 7) n = count;
        if (turn == 10) { /* new weights, and nothing else that is new */
            n = n_before;
            set_weights(layer, k, dtype, 2);
        }
        n_before = n;
        int64_t *names = place(&ids, n * (int64_t)sizeof *names, at_end);
        char *rows = place(&x, n * I * size, at_end), *got = place(&y, n * out * size, at_end);
        for (int64_t r = 0; r < n; r++) names[r] = all[r].id;
        for (int64_t i = 0; i < n * I; i++) put(rows, size, i, random_unit(&state));
        if (n > 4) put(rows, size, 3 * I + 1, NAN); /* stays where it is */
        const long before = allocations_so_far();
        const fl_status status = fl_pool_step(pool, n, names, rows, got);
        const long after = allocations_so_far();
        check(status == FL_OK, "%s: %s", k->name, fl_last_error());
        check(after == before, "%s: a step allocated or freed %ld times", k->name, after - before);
        check(margin_untouched(&y), "%s: written beyond y", k->name);
        for (int64_t r = 0; r < n; r++) {
            double wanted[H];
            if (fl_stream_step(all[r].alone, rows + r * I * size, wanted) != FL_OK) exit(2);
            check(first_difference(got + r * out * size, wanted, size, out) < 0,
                  "%s %s, turn %d: row %d of %d is not the stream's", k->name, size == 4 ? "f32" : "f64", turn, (int)r,
                  (int)n);
        }
        for (int64_t r = 0; r < count; r++) check(same_state(dtype, pool, &all[r]), "%s: a state differs", k->name);
        if (count > 2) { /* one begins anew, one leaves */
            check(fl_pool_reset(pool, all[0].id) == FL_OK && fl_stream_reset(all[0].alone, NULL, 0) == FL_OK, "reset");
            check(same_state(dtype, pool, &all[0]), "%s: not reset", k->name);
            last_id = all[--count].id;
            check(fl_pool_close(pool, last_id) == FL_OK, "close: %s", fl_last_error());
            fl_stream_free(all[count].alone);
            const int64_t next_id = last_id + (1 << 24); /* of its slot */
            check(fl_pool_check(pool, 1, &last_id) == FL_BAD_ARGUMENT, "a closed one is open");
            check(fl_pool_check(pool, 1, &next_id) == FL_BAD_ARGUMENT, "one that will come is open");
        }
        check(fl_pool_count(pool) == count && fl_pool_capacity(pool) >= count, "%s: the count", k->name);
    }
    check(count > 100, "%s: %d sessions only", k->name, (int)count);
    fl_free(layer); /* the pool lives on */
    check(fl_pool_reset(pool, all[0].id) == FL_OK, "a pool outlives the layer's handle");
    fl_pool_free(pool);
    for (int64_t r = 0; r < count; r++) fl_stream_free(all[r].alone);
    const guarded gone[] = {x, y, ids};
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < 3; i++) munmap(gone[i].begin - page, (size_t)(gone[i].end - gone[i].begin) + 2 * page);
}

/* Steps split among threads, by rows or by units, and several steps by fl_forward between get and set. */
static void test_splits(const kind *k) {
    const int64_t out = k->proj ? k->proj : H;
    fl_layer *layer = layer_of(k, FL_FLOAT32);
    enum { T = 4, WIDE = 200 };
    static float x[T * WIDE * I], y[2][T * WIDE * H], h[WIDE * STATE], c[WIDE * STATE], wanted[WIDE * STATE];
    uint64_t state = 9;
    for (size_t i = 0; i < sizeof x / sizeof x[0]; i++) x[i] = (float)random_unit(&state);
    fl_set_num_threads(1);
    fl_force_split(FL_SPLIT_NONE);
    fl_sequence q = dense(T, WIDE, x, I, y[0], out);
    q.h_n = wanted;
    if (fl_forward(layer, &q) != FL_OK) exit(2);
    fl_set_num_threads(3);
    for (int split = FL_SPLIT_AUTO; split <= FL_SPLIT_UNITS; split++) {
        fl_pool *pool;
        int64_t ids[WIDE];
        fl_force_split((fl_split)split);
        check(fl_pool_create(layer, WIDE, &pool) == FL_OK, "%s", fl_last_error());
        for (int i = 0; i < WIDE; i++) fl_pool_open(pool, NULL, NULL, &ids[i]);
        for (int t = 0; t < 2; t++) fl_pool_step(pool, WIDE, ids, x + t * WIDE * I, y[1] + t * WIDE * out);
        check(fl_pool_get_state(pool, WIDE, ids, h, c) == FL_OK, "%s", fl_last_error());
        fl_sequence rest = dense(T - 2, WIDE, x + 2 * WIDE * I, I, y[1] + 2 * WIDE * out, out);
        rest.h0 = rest.h_n = h;
        rest.c0 = rest.c_n = c;
        check(fl_forward(layer, &rest) == FL_OK && fl_pool_set_state(pool, WIDE, ids, h, c) == FL_OK, "run");
        check(first_difference(y[0], y[1], 4, T * WIDE * out) < 0, "%s: split %d: other bits", k->name, split);
        memset(h, 0, sizeof h);
        fl_pool_get_state(pool, WIDE, ids, h, NULL);
        check(first_difference(h, wanted, 4, k->layers * WIDE * out) < 0, "%s: split %d: states", k->name, split);
        check(fl_pool_set_state(pool, 1, ids, NULL, NULL) == FL_OK && fl_pool_get_state(pool, 1, ids, h, c) == FL_OK,
              "zeros");
        bool zero = true;
        for (int64_t i = 0; i < k->layers * out; i++) zero = zero && h[i] == 0;
        check(zero, "%s: NULL is not zeros", k->name);
        fl_pool_free(pool);
    }
    fl_force_split(FL_SPLIT_AUTO);
    fl_set_num_threads(1);
    fl_free(layer);
}

/* --- it refuses --- */

static void refused(fl_status got, fl_status wanted, const char *name, const char *what) {
    check(got == wanted, "%s: status %d, wanted %d", what, got, wanted);
    check(strstr(fl_last_error(), name) != NULL, "%s: '%s' does not name %s", what, fl_last_error(), name);
}

static void test_refusals(void) {
    const kind *k = &kinds[1];
    fl_layer *layer = layer_of(k, FL_FLOAT32), *bare, *backwards;
    fl_pool *pool = (fl_pool *)&numbers_f32;
    fl_config config;
    fl_config_init(&config, FL_GRU, I, H);
    if (fl_create(&config, &bare) != FL_OK) exit(2);
    config.reverse = 1;
    if (fl_create(&config, &backwards) != FL_OK) exit(2);
    refused(fl_pool_create(NULL, 1, &pool), FL_BAD_ARGUMENT, "layer", "no layer");
    check(pool == NULL, "the handle is not NULL");
    refused(fl_pool_create(layer, 1, NULL), FL_BAD_ARGUMENT, "pool", "no handle");
    refused(fl_pool_create(layer, 0, &pool), FL_BAD_ARGUMENT, "capacity", "capacity 0");
    refused(fl_pool_create(layer, -1, &pool), FL_BAD_ARGUMENT, "capacity", "capacity -1");
    refused(fl_pool_create(layer, (1 << 24) + 1, &pool), FL_BAD_ARGUMENT, "capacity", "capacity above 2^24");
    refused(fl_pool_create(layer, INT64_MAX, &pool), FL_BAD_ARGUMENT, "capacity", "capacity of all");
    refused(fl_pool_create(bare, 1, &pool), FL_NO_WEIGHTS, "weights", "no weights");
    refused(fl_pool_create(backwards, 1, &pool), FL_UNSUPPORTED, "pool", "a reverse layer");
    fl_free(bare);
    fl_free(backwards);
    fl_pool_free(NULL);
    check(fl_pool_count(NULL) == 0 && fl_pool_capacity(NULL) == 0, "no pool has room");

    int64_t id[3], closed;
    float x[4 * I] = {1, 2, 3}, y[4 * H], h[4 * STATE], c[4 * STATE], wanted[3 * STATE];
    if (fl_pool_create(layer, 8, &pool) != FL_OK || fl_pool_open(pool, NULL, NULL, &closed) != FL_OK ||
        fl_pool_close(pool, closed) != FL_OK)
        exit(2);
    for (int i = 0; i < 3; i++) fl_pool_open(pool, numbers_f32 + i, NULL, &id[i]);
    fl_pool_step(pool, 3, id, x, y);
    fl_pool_get_state(pool, 3, id, wanted, NULL);
    memset(y, 0xff, sizeof y);
    const int64_t wrong[][4] = {{id[0], id[1], id[0]},
                                {id[0], id[1], closed},
                                {id[0], 12345, id[1]},
                                {-1, id[0], id[1]},
                                {id[0], INT64_MIN, 0},
                                {id[0], id[1], INT64_MAX},
                                {id[2], id[2], id[2]},
                                {id[0], id[1], id[0] + (1 << 24)},
                                {id[0], id[1], 7 /* there is room, but nobody there */}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        refused(fl_pool_check(pool, 3, wrong[i]), FL_BAD_ARGUMENT, "ids[", "check");
        refused(fl_pool_step(pool, 3, wrong[i], x, y), FL_BAD_ARGUMENT, "ids[", "step");
        refused(fl_pool_get_state(pool, 3, wrong[i], h, c), FL_BAD_ARGUMENT, "ids[", "get");
        refused(fl_pool_set_state(pool, 3, wrong[i], h, c), FL_BAD_ARGUMENT, "ids[", "set");
    }
    for (int i = 0; i < 4; i++) {
        const int64_t gone[] = {closed, 99, -1, INT64_MIN};
        refused(fl_pool_close(pool, gone[i]), FL_BAD_ARGUMENT, "id is", "close");
        refused(fl_pool_reset(pool, gone[i]), FL_BAD_ARGUMENT, "id is", "reset");
    }
    refused(fl_pool_step(pool, -1, id, x, y), FL_BAD_ARGUMENT, "n is", "n = -1");
    refused(fl_pool_step(pool, 3, NULL, x, y), FL_BAD_ARGUMENT, "ids", "no ids");
    refused(fl_pool_step(pool, 3, id, NULL, y), FL_BAD_ARGUMENT, "x", "no x");
    refused(fl_pool_step(pool, 3, id, x, NULL), FL_BAD_ARGUMENT, "y", "no y");
    refused(fl_pool_step(NULL, 3, id, x, y), FL_BAD_ARGUMENT, "pool", "no pool");
    refused(fl_pool_open(NULL, NULL, NULL, id), FL_BAD_ARGUMENT, "pool", "no pool");
    refused(fl_pool_open(pool, NULL, NULL, NULL), FL_BAD_ARGUMENT, "id", "no id");
    refused(fl_pool_close(NULL, 0), FL_BAD_ARGUMENT, "pool", "no pool");
    refused(fl_pool_reset(NULL, 0), FL_BAD_ARGUMENT, "pool", "no pool");
    refused(fl_pool_check(NULL, 1, id), FL_BAD_ARGUMENT, "pool", "no pool");
    refused(fl_pool_reserve(NULL, 1), FL_BAD_ARGUMENT, "pool", "no pool");
    refused(fl_pool_get_state(NULL, 1, id, h, c), FL_BAD_ARGUMENT, "pool", "no pool");
    refused(fl_pool_set_state(NULL, 1, id, h, c), FL_BAD_ARGUMENT, "pool", "no pool");
    refused(fl_pool_reserve(pool, -1), FL_BAD_ARGUMENT, "more", "reserve");
    refused(fl_pool_reserve(pool, INT64_MAX), FL_NO_MEMORY, "pool", "reserve");
    check(fl_pool_step(pool, 0, NULL, NULL, NULL) == FL_OK, "a step of nobody: %s", fl_last_error());
    check(fl_pool_get_state(pool, 0, NULL, NULL, NULL) == FL_OK, "the state of nobody");
    check(untouched((const char *)y, sizeof y, 0xff), "a refused step writes y");
    check(fl_pool_get_state(pool, 3, id, h, NULL) == FL_OK && memcmp(h, wanted, sizeof wanted) == 0,
          "something has changed");
    check(fl_pool_count(pool) == 3 && fl_pool_capacity(pool) == 8, "the count has changed");

    /* The capacity doubles, or nothing changes. */
    check(fl_pool_reserve(pool, 6) == FL_OK && fl_pool_capacity(pool) == 16, "reserve");
#if defined(COUNTS_ALLOCATIONS)
    for (long blocks = 0; blocks < 2; blocks++) {
        fl_set_num_threads(blocks ? 2 : 1); /* with another thread there is more work space */
        fl_force_split(FL_SPLIT_UNITS);
        atomic_store(&blocks_left, blocks);
        const fl_status status = fl_pool_reserve(pool, 20);
        atomic_store(&blocks_left, 1L << 30);
        refused(status, FL_NO_MEMORY, "memory", "no memory to grow");
        check(fl_pool_capacity(pool) == 16 && fl_pool_count(pool) == 3, "half grown");
        check(fl_pool_get_state(pool, 3, id, h, NULL) == FL_OK && memcmp(h, wanted, sizeof wanted) == 0,
              "a state lost");
        atomic_store(&blocks_left, blocks);
        fl_pool *none;
        refused(fl_pool_create(layer, 16, &none), FL_NO_MEMORY, "memory", "no memory to begin");
        atomic_store(&blocks_left, 1L << 30);
        check(none == NULL, "the handle is not NULL");
    }
    fl_force_split(FL_SPLIT_AUTO);
    fl_set_num_threads(1);
#endif
    check(fl_pool_reserve(pool, 20) == FL_OK && fl_pool_capacity(pool) == 32, "grows after that");
    check(fl_pool_get_state(pool, 3, id, h, NULL) == FL_OK && memcmp(h, wanted, sizeof wanted) == 0, "a state lost");
    check(fl_pool_step(pool, 3, id, x, y) == FL_OK, "%s", fl_last_error());
    fl_pool_free(pool);
    fl_free(layer);
}

/* --- many threads --- */

enum { CALLERS = 3, STEPS = 200, COUNTED = 40 };
static fl_pool *counting;
static int64_t counted[COUNTED];
static atomic_long busy, stepped, wrong;

static void *call_often(void *argument) {
    (void)argument;
    float x[COUNTED], y[COUNTED];
    for (int i = 0; i < COUNTED; i++) x[i] = 1;
    for (int i = 0; i < STEPS; i++) {
        const fl_status status = fl_pool_step(counting, COUNTED, counted, x, y);
        if (status == FL_BUSY) atomic_fetch_add(&busy, 1);
        else atomic_fetch_add(status == FL_OK ? &stepped : &wrong, 1);
        int64_t id;
        if (fl_pool_open(counting, NULL, NULL, &id) != FL_OK) continue; /* and the pool grows meanwhile */
        while (fl_pool_step(counting, 1, &id, x, y) == FL_BUSY) fl_pool_count(counting);
        if (y[0] != 1) atomic_fetch_add(&wrong, 1);
        if (i % 4)
            while (fl_pool_close(counting, id) == FL_BUSY) fl_pool_capacity(counting);
    }
    return NULL;
}

/* Each call runs alone or is refused as busy: an accumulator counts the steps. */
static void test_threads(void) {
    const float one = 1;
    fl_config config;
    fl_config_init(&config, FL_RNN, 1, 1);
    config.bias = 0;
    config.own_activations = 1;
    config.activations[0].kind = FL_RELU;
    fl_layer *layer;
    if (fl_create(&config, &layer) != FL_OK) exit(2);
    const fl_weights w = {.size = sizeof w, .weight_ih = {&one, 1}, .weight_hh = {&one, 1}};
    if (fl_set_weights(layer, &w, 1) != FL_OK || fl_pool_create(layer, COUNTED, &counting) != FL_OK) exit(2);
    for (int i = 0; i < COUNTED; i++) fl_pool_open(counting, NULL, NULL, &counted[i]);
    pthread_t threads[CALLERS];
    for (int i = 0; i < CALLERS; i++)
        if (pthread_create(&threads[i], NULL, call_often, NULL) != 0) exit(2);
    for (int i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
    float h[COUNTED];
    check(fl_pool_get_state(counting, COUNTED, counted, h, NULL) == FL_OK, "%s", fl_last_error());
    bool right = true;
    for (int i = 0; i < COUNTED; i++) right = right && h[i] == (float)atomic_load(&stepped);
    check(right && atomic_load(&wrong) == 0, "%ld steps, %ld wrong, a session counts %g", atomic_load(&stepped),
          atomic_load(&wrong), (double)h[0]);
    check(atomic_load(&stepped) + atomic_load(&busy) == CALLERS * STEPS, "a call is neither run nor refused");
    fl_pool_free(counting);
    fl_free(layer);
}

int main(void) {
    uint64_t state = 3;
    for (size_t i = 0; i < sizeof numbers_f64 / sizeof numbers_f64[0]; i++) {
        numbers_f64[i] = random_unit(&state) / 4;
        numbers_f32[i] = (float)numbers_f64[i];
    }
    fl_set_num_threads(1);
    for (int i = 0; i < KINDS; i++) {
        for (int dtype = FL_FLOAT32; dtype <= (kinds[i].weight_type == FL_FULL ? FL_FLOAT64 : FL_FLOAT32); dtype++)
            test_sessions(&kinds[i], (fl_dtype)dtype, (i + dtype) % 2);
        test_splits(&kinds[i]);
    }
    test_refusals();
    test_threads();
    printf("%ld calls refused as busy\n", atomic_load(&busy));
    return check_report();
}
