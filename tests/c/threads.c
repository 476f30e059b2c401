/* Many threads and one layer, under every way of splitting the work: each result is that of one thread alone, bit for
 * bit, and of one set of weights or the other, never of both. Meant for ThreadSanitizer too.
 *
 * usage: threads [rounds] */
#define _DEFAULT_SOURCE
#include "check.h"
#include "internal.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

enum { I = 6, H = 150, T = 5, B = 9, CALLERS = 3, OUT = T * B * H };

static float numbers[2][4 * H * (H + 8)];
static float x[T * B * I], wanted[2][OUT];
static int64_t lengths[B] = {5, 0, 3, 5, 1, 2, 5, 4, 3};
static fl_layer *layer;
static atomic_int done;
static atomic_long calls, wrong, busy, swaps;

static fl_weights weights_of(int set) {
    const float *n = numbers[set];
    return (fl_weights){.size = sizeof(fl_weights),
                        .weight_ih = {n, 4 * H * I},
                        .weight_hh = {n + 5, 4 * H * H},
                        .bias_ih = {n + 1, 4 * H},
                        .bias_hh = {n + 2, 4 * H}};
}

static void set_weights(int set) {
    const fl_weights w = weights_of(set);
    if (fl_set_weights(layer, &w, 1) != FL_OK) exit(2);
}

static fl_status forward(float *y) {
    fl_sequence q = dense(T, B, x, I, y, H);
    q.lengths = lengths;
    return fl_forward(layer, &q);
}

static bool is_wanted(const float *y, int set) { return memcmp(y, wanted[set], sizeof wanted[set]) == 0; }

/* --- calls while weights change --- */

static void *call_often(void *argument) {
    const long rounds = *(long *)argument;
    float *y = malloc(sizeof(float) * OUT);
    for (long i = 0; y && i < rounds; i++) {
        if (forward(y) != FL_OK || (!is_wanted(y, 0) && !is_wanted(y, 1))) atomic_fetch_add(&wrong, 1);
        atomic_fetch_add(&calls, 1);
    }
    free(y);
    return NULL;
}

static void *swap_weights(void *argument) {
    (void)argument;
    for (int set = 1; !atomic_load(&done); set ^= 1) {
        set_weights(set);
        atomic_fetch_add(&swaps, 1);
    }
    return NULL;
}

static void test_calls(long rounds, int64_t threads, fl_split split, bool swapping) {
    pthread_t callers[CALLERS], swapper;
    atomic_store(&done, 0);
    atomic_store(&wrong, 0);
    atomic_store(&calls, 0);
    set_weights(0);
    fl_set_num_threads(threads);
    fl_force_split(split);
    if (swapping && pthread_create(&swapper, NULL, swap_weights, NULL) != 0) exit(2);
    for (int i = 0; i < CALLERS; i++)
        if (pthread_create(&callers[i], NULL, call_often, &rounds) != 0) exit(2);
    for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], NULL);
    atomic_store(&done, 1);
    if (swapping) pthread_join(swapper, NULL);
    static const char *const names[] = {"alone", "by batch", "by units"};
    check(atomic_load(&calls) == CALLERS * rounds && atomic_load(&wrong) == 0, "%d threads %s, %s: %ld of %ld wrong",
          (int)threads, names[split], swapping ? "weights changing" : "weights fixed", atomic_load(&wrong),
          atomic_load(&calls));
}

/* Workers that sleep, spin, and are busy with another call: the same bits, and the split that was asked for. */
static void test_splits(void) {
    float *y = malloc(sizeof(float) * OUT);
    if (!y) exit(2);
    set_weights(0);
    for (int64_t threads = 1; threads <= 5; threads++)
        for (int split = FL_SPLIT_NONE; split <= FL_SPLIT_UNITS; split++)
            for (int spin = 0; spin < 2; spin++) {
                fl_set_spin_us(spin ? 200 : 0);
                fl_set_num_threads(threads);
                fl_force_split((fl_split)split);
                memset(y, 0xff, sizeof(float) * OUT);
                check(forward(y) == FL_OK && is_wanted(y, 0), "%d threads, split %d: other bits", (int)threads, split);
                check(fl_last_split() == (fl_split)split, "%d threads: split %d, wanted %d", (int)threads,
                      (int)fl_last_split(), split);
                usleep(spin ? 0 : 1000); /* let them fall asleep */
            }
    fl_set_spin_us(20);
    free(y);
}

/* --- the pool itself --- */

typedef struct nested {
    atomic_long tasks;
    int64_t most;
    atomic_long out_of_range;
} nested;

static void inner_task(void *context, int64_t task, int64_t worker) {
    (void)task;
    nested *n = context;
    atomic_fetch_add(&n->tasks, 1);
    if (worker < 0 || worker >= n->most) atomic_fetch_add(&n->out_of_range, 1);
}

/* A call inside a call finds the pool busy, and runs alone instead of waiting for itself. */
static void outer_task(void *context, int64_t task, int64_t worker) {
    inner_task(context, task, worker);
    nested inner = {.most = 1};
    fl_parallel_tasks(4, 7, inner_task, &inner);
    if (atomic_load(&inner.tasks) != 7 || atomic_load(&inner.out_of_range))
        atomic_fetch_add(&((nested *)context)->out_of_range, 1);
}

static void test_busy_pool(void) {
    nested n = {.most = 4};
    fl_parallel_tasks(4, 100, outer_task, &n);
    check(atomic_load(&n.tasks) == 100, "%ld of 100 tasks", atomic_load(&n.tasks));
    check(atomic_load(&n.out_of_range) == 0, "a task in a worker that is not there, or a nested call that was split");
    nested none = {.most = 1};
    fl_parallel_tasks(4, 0, inner_task, &none);
    check(atomic_load(&none.tasks) == 0, "tasks of an empty call");
}

enum { STAGES = 400, SLICES = 4 };

typedef struct staged {
    long stage;
    int64_t slices;
    atomic_long slices_run;
    long cells[SLICES]; /* plain memory: a stage must see what the one before wrote */
    bool right;
} staged;

static void one_slice(void *context, int64_t slice, int64_t slices, int64_t worker) {
    (void)worker;
    staged *s = context;
    atomic_fetch_add(&s->slices_run, 1);
    s->cells[slice] = s->stage + slice + 1 + slices;
    if (slices != s->slices) s->cells[slice] = -1;
}

static void stages(void *context, fl_team *team) {
    staged *s = context;
    const int64_t slices = s->slices;
    for (s->stage = 0; s->stage < STAGES; s->stage++) {
        fl_team_stage(team, one_slice, s);
        for (int64_t i = 0; i < slices; i++) s->right = s->right && s->cells[i] == s->stage + i + 1 + slices;
    }
    s->right = s->right && atomic_load(&s->slices_run) == STAGES * slices;
}

static void test_stages(void) {
    for (int64_t threads = 1; threads <= SLICES; threads++) {
        staged s = {.right = true, .slices = threads};
        fl_parallel_stages(threads, stages, &s);
        check(s.right, "%d threads: a stage ended before its slices", (int)threads);
    }
}

/* --- streams --- */

static void *step_often(void *argument) {
    fl_stream *stream = argument;
    float y[H];
    for (int i = 0; i < 400; i++) {
        const fl_status status = fl_stream_step(stream, x, y);
        if (status == FL_BUSY) atomic_fetch_add(&busy, 1);
        else if (status != FL_OK) atomic_fetch_add(&wrong, 1);
    }
    return NULL;
}

static void test_streams(void) {
    pthread_t threads[CALLERS], swapper;
    fl_stream *stream;
    atomic_store(&wrong, 0);
    /* One stream, many threads: each step runs or is refused. */
    check(fl_stream_create(layer, 1, NULL, NULL, &stream) == FL_OK, "stream: %s", fl_last_error());
    for (int i = 0; i < CALLERS; i++)
        if (pthread_create(&threads[i], NULL, step_often, stream) != 0) exit(2);
    for (int i = 0; i < CALLERS; i++) pthread_join(threads[i], NULL);
    check(atomic_load(&wrong) == 0, "%ld steps failed otherwise than busy", atomic_load(&wrong));
    fl_stream_free(stream);
    /* A stream each, while the weights change: all of a step's numbers are of one set. */
    atomic_store(&done, 0);
    if (pthread_create(&swapper, NULL, swap_weights, NULL) != 0) exit(2);
    for (int i = 0; i < 200; i++) {
        float y[B * H];
        if (fl_stream_create(layer, B, NULL, NULL, &stream) != FL_OK) exit(2);
        check(fl_stream_step(stream, x, y) == FL_OK, "step: %s", fl_last_error());
        bool is[2] = {true, true}; /* step 0 of the sequences that have one */
        for (int set = 0; set < 2; set++)
            for (int b = 0; b < B; b++)
                is[set] = is[set] && (!lengths[b] || !memcmp(y + b * H, wanted[set] + b * H, sizeof(float) * H));
        check(is[0] || is[1], "a step with torn weights");
        fl_stream_free(stream);
    }
    atomic_store(&done, 1);
    pthread_join(swapper, NULL);
    /* New weights at the next step. */
    float y[B * H];
    for (int set = 0; set < 2; set++) {
        set_weights(1 - set);
        if (fl_stream_create(layer, B, NULL, NULL, &stream) != FL_OK) exit(2);
        fl_stream_step(stream, x, y);
        set_weights(set);
        fl_stream_reset(stream, NULL, 0);
        fl_stream_step(stream, x, y);
        check(memcmp(y, wanted[set], sizeof(float) * H) == 0, "a stream keeps its old weights");
        fl_stream_free(stream);
    }
}

/* --- training --- */

enum { WEIGHTS = 4 * H * (I + H + 2), BACK = WEIGHTS + T * B * I + 2 * B * H };

/* All gradients in one array; wanted of each set of weights, by one thread alone. */
static float wanted_gradients[2][BACK];
static atomic_long stale;

static fl_status record(float *y, int64_t checkpoint, fl_tape **tape) {
    fl_sequence q = dense(T, B, x, I, y, H);
    q.lengths = lengths;
    return fl_record(layer, 0, &q, checkpoint, tape);
}

static fl_status backward(fl_tape *tape, float *to) {
    float *dx = to + WEIGHTS;
    const fl_gradients g = {.size = sizeof g,
                            .dy = wanted[0], /* any numbers */
                            .dy_stride_t = B * H,
                            .dy_stride_b = H,
                            .dx = dx,
                            .dx_stride_t = B * I,
                            .dx_stride_b = I,
                            .dh0 = dx + T * B * I,
                            .dc0 = dx + T * B * I + B * H,
                            .weights = {{.weight_ih = {to, 4 * H * I},
                                         .weight_hh = {to + 4 * H * I, 4 * H * H},
                                         .bias_ih = {to + 4 * H * (I + H), 4 * H},
                                         .bias_hh = {to + 4 * H * (I + H + 1), 4 * H}}}};
    return fl_backward(tape, &g);
}

static bool are_gradients(const float *g, int set) {
    return memcmp(g, wanted_gradients[set], sizeof wanted_gradients[set]) == 0;
}

typedef struct trainer {
    long rounds;
    bool swapping;
    fl_tape *shared; /* of set 0; NULL: each records its own */
} trainer;

/* A tape is of the weights that its output is of, and so are its gradients, unless the weights have been set since. */
static void *train_often(void *argument) {
    const trainer *t = argument;
    float *y = malloc(sizeof(float) * OUT), *g = malloc(sizeof(float) * BACK);
    for (long i = 0; y && g && i < t->rounds; i++) {
        fl_tape *tape = t->shared;
        int set = 0;
        bool mine = false;
        if (!tape) {
            if (record(y, i % 3, &tape) != FL_OK) exit(2);
            set = is_wanted(y, 1);
            if (!is_wanted(y, set)) atomic_fetch_add(&wrong, 1);
            if (t->swapping && i % 4 == 3) { /* this one is stale for sure */
                set_weights((int)(i / 4 % 2));
                mine = true;
                atomic_fetch_add(&swaps, 1);
            }
        }
        memset(g, 0xff, sizeof(float) * BACK);
        const fl_status status = backward(tape, g);
        const bool may_be_stale = t->swapping && status == FL_STALE;
        if (may_be_stale) atomic_fetch_add(&stale, 1);
        else if (status != FL_OK || mine || !are_gradients(g, set)) atomic_fetch_add(&wrong, 1);
        if (!t->shared) fl_tape_free(tape);
        atomic_fetch_add(&calls, 1);
    }
    free(y);
    free(g);
    return NULL;
}

static void train_in_threads(trainer *t, int64_t threads, fl_split split) {
    pthread_t callers[CALLERS];
    atomic_store(&wrong, 0);
    atomic_store(&calls, 0);
    fl_set_num_threads(threads);
    fl_force_split(split);
    for (int i = 0; i < CALLERS; i++)
        if (pthread_create(&callers[i], NULL, train_often, t) != 0) exit(2);
    for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], NULL);
    check(atomic_load(&calls) == CALLERS * t->rounds && atomic_load(&wrong) == 0,
          "training, %d threads, split %d, %s, %s: %ld of %ld wrong", (int)threads, split,
          t->shared ? "one tape" : "tapes of their own", t->swapping ? "weights changing" : "weights fixed",
          atomic_load(&wrong), atomic_load(&calls));
}

static void test_training(long rounds) {
    float *y = malloc(sizeof(float) * OUT);
    if (!y) exit(2);
    fl_set_num_threads(1);
    fl_force_split(FL_SPLIT_NONE);
    for (int set = 0; set < 2; set++) {
        fl_tape *tape;
        set_weights(set);
        if (record(y, 0, &tape) != FL_OK || backward(tape, wanted_gradients[set]) != FL_OK) exit(2);
        check(is_wanted(y, set), "record: other bits than forward");
        fl_tape_free(tape);
    }
    check(!are_gradients(wanted_gradients[0], 1), "the two sets of weights give the same gradients");
    for (int64_t threads = 1; threads <= 3; threads++)
        for (int split = FL_SPLIT_NONE; split <= FL_SPLIT_UNITS; split++) {
            trainer t = {.rounds = rounds};
            set_weights(0); /* nobody has transposed these yet: all begin with it at once */
            train_in_threads(&t, threads, (fl_split)split);
            t.swapping = true;
            train_in_threads(&t, threads, (fl_split)split);
            for (int checkpoint = 0; checkpoint < 3; checkpoint += 2) {
                t = (trainer){.rounds = rounds};
                set_weights(0);
                if (record(y, checkpoint, &t.shared) != FL_OK) exit(2);
                train_in_threads(&t, threads, (fl_split)split);
                fl_tape_free(t.shared);
            }
        }
    /* One tape, while another thread changes the weights once. */
    for (int i = 0; i < 10; i++) {
        trainer t = {.rounds = rounds / 4 + 1, .swapping = true};
        pthread_t caller;
        set_weights(0);
        if (record(y, i % 3, &t.shared) != FL_OK) exit(2);
        atomic_store(&wrong, 0);
        if (pthread_create(&caller, NULL, train_often, &t) != 0) exit(2);
        set_weights(1);
        pthread_join(caller, NULL);
        check(atomic_load(&wrong) == 0, "one tape, weights changing: %ld wrong", atomic_load(&wrong));
        check(backward(t.shared, wanted_gradients[1]) == FL_STALE, "a tape of other weights is not stale");
        fl_tape_free(t.shared);
    }
    free(y);
}

/* --- fork --- */

#if !defined(__SANITIZE_THREAD__) /* which does not follow threads started in a child */
/* The child has none of the workers, and starts its own. */
static void test_fork(void) {
    float *y = malloc(sizeof(float) * OUT);
    if (!y) exit(2);
    set_weights(0);
    fl_set_num_threads(3);
    for (int split = FL_SPLIT_BATCH; split <= FL_SPLIT_UNITS; split++) {
        fl_force_split((fl_split)split);
        forward(y);
        const pid_t child = fork();
        if (child == 0) {
            alarm(20); /* a child that hangs is a failure, not a wait */
            bool same = true;
            for (int i = 0; i < 20; i++) {
                memset(y, 0xff, sizeof(float) * OUT);
                same = same && forward(y) == FL_OK && is_wanted(y, 0);
            }
            _exit(same ? 0 : 1);
        }
        int status = -1;
        check(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
              "split %d: the child of a fork ended with %d", split, status);
        memset(y, 0xff, sizeof(float) * OUT);
        check(forward(y) == FL_OK && is_wanted(y, 0), "split %d: the parent of a fork", split);
    }
    free(y);
}
#endif

int main(int argc, char **argv) {
    const long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 60;
    uint64_t state = 3;
    for (int set = 0; set < 2; set++)
        for (size_t i = 0; i < sizeof numbers[set] / sizeof numbers[set][0]; i++)
            numbers[set][i] = (float)(random_unit(&state) / 8);
    for (size_t i = 0; i < sizeof x / sizeof x[0]; i++) x[i] = (float)random_unit(&state);
    fl_config config;
    fl_config_init(&config, FL_LSTM, I, H);
    if (fl_create(&config, &layer) != FL_OK) exit(2);
    fl_set_num_threads(1);
    fl_force_split(FL_SPLIT_NONE);
    for (int set = 0; set < 2; set++) {
        set_weights(set);
        if (forward(wanted[set]) != FL_OK) exit(2);
    }
    check(!is_wanted(wanted[0], 1), "the two sets of weights give the same");
    test_splits();
    test_busy_pool();
    test_stages();
    for (int64_t threads = 1; threads <= 3; threads++)
        for (int split = FL_SPLIT_NONE; split <= FL_SPLIT_UNITS; split++)
            for (int swapping = 0; swapping < 2; swapping++) test_calls(rounds, threads, (fl_split)split, swapping);
    check(atomic_load(&swaps) > 10, "weights were changed %ld times only", atomic_load(&swaps));
    test_streams();
    test_training(rounds / 6 + 1);
#if !defined(__SANITIZE_THREAD__)
    test_fork();
#endif
    fl_free(layer);
    printf("%ld weights set during calls, %ld steps refused as busy, %ld tapes as stale\n", atomic_load(&swaps),
           atomic_load(&busy), atomic_load(&stale));
    return check_report();
}
