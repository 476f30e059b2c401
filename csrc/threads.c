/* The thread pool: one job at a time, started lazily, asleep between calls, absent for whoever finds it busy.
 *
 * A job is posted under the monitor; workers that wake up in time join it, and the calling thread never waits for one
 * to arrive: it does the work of those that have not. It waits only for those that have begun something.
 * After fork() the child has no workers and begins anew. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
static void pause_cpu(void) { _mm_pause(); }
#elif defined(__aarch64__)
static void pause_cpu(void) { __asm__ volatile("yield"); }
#else
static void pause_cpu(void) {}
#endif

enum {
    ALONE_US = 500, /* calls below this stay in the calling thread unless they follow each other */
};

/* Waits for another thread that runs: spins, and gives the core away now and then in case it does not. */
static void spin(int *count) {
    pause_cpu();
    if (++*count % 2048 == 0) fl_os_yield();
}

/* A slice's flags on a cache line of their own: the last stage for which somebody took it, and finished it. Its worker
 * takes it unless the caller, done with its own, has been faster: a worker that the system does not run holds up
 * nothing but the slice that it is in. */
typedef struct seat {
    _Alignas(64) atomic_llong taken;
    atomic_llong done;
} seat;

struct fl_team {
    int64_t slices;
    fl_stage_fn *fn;
    void *context;
    _Alignas(64) atomic_llong stage; /* -1: over */
    seat seats[FL_MOST_THREADS];
};

/* A worker that sleeps, and where it will wake: the thread's id, or 0, and the core. */
typedef struct bed {
    int64_t thread;
    int core;
} bed;

typedef struct pool {
    fl_mutex *owner;     /* held during a job */
    fl_team team;        /* the job's, if it has stages */
    fl_monitor *monitor; /* guards what follows */
    int64_t workers;     /* threads that exist */
    void (*fn)(void *context, int64_t worker);
    void *context;
    int64_t wanted;   /* workers that the open job takes */
    bool open;
    bed beds[FL_MOST_THREADS]; /* of each worker */
    atomic_llong jobs;    /* posted so far; workers watch it while they spin */
    atomic_llong running; /* workers inside fn */
} pool;

static pool shared;
static atomic_llong num_threads; /* 0: not asked yet */
static _Atomic double spin_us = 20;

static bool pool_create(void) {
    memset(&shared, 0, sizeof shared);
    shared.owner = fl_mutex_create();
    shared.monitor = fl_monitor_create();
    return shared.owner && shared.monitor;
}

static atomic_int pool_state; /* 0: none, 1: usable, 2: being made */

/* The pool's locks may be held by threads that the child does not have: it leaves them behind and makes new ones. */
static void forget_pool(void) { atomic_store(&pool_state, 0); }

static bool pool_ready(void) {
    static atomic_flag registered = ATOMIC_FLAG_INIT;
    int state = atomic_load_explicit(&pool_state, memory_order_acquire);
    if (state == 1) return true;
    int none = 0;
    if (!atomic_compare_exchange_strong(&pool_state, &none, 2)) return false; /* another thread is at it: run alone */
    if (!atomic_flag_test_and_set(&registered)) fl_os_at_fork(NULL, NULL, forget_pool);
    const bool made = pool_create();
    atomic_store_explicit(&pool_state, made ? 1 : 0, memory_order_release);
    return made;
}

static void *worker_main(void *argument) {
    const int64_t worker = (int64_t)(intptr_t)argument, thread = fl_os_thread_id();
    pool *p = &shared;
    long long seen = 0;
    for (;;) {
        const double until = fl_os_now_us() + atomic_load_explicit(&spin_us, memory_order_relaxed);
        for (int i = 0; atomic_load_explicit(&p->jobs, memory_order_acquire) == seen; i++) {
            pause_cpu();
            if (i % 16 == 15 && fl_os_now_us() > until) break;
        }
        fl_monitor_lock(p->monitor);
        p->beds[worker] = (bed){thread, fl_os_core()};
        while (atomic_load_explicit(&p->jobs, memory_order_relaxed) == seen) fl_monitor_wait(p->monitor);
        p->beds[worker].thread = 0;
        seen = atomic_load_explicit(&p->jobs, memory_order_relaxed);
        const bool join = p->open && worker <= p->wanted;
        if (join) atomic_fetch_add_explicit(&p->running, 1, memory_order_relaxed);
        void (*fn)(void *, int64_t) = p->fn;
        void *context = p->context;
        fl_monitor_unlock(p->monitor);
        if (!join) continue;
        const fl_fp_mode mode = fl_fp_begin();
        fn(context, worker);
        fl_fp_end(mode);
        atomic_fetch_sub_explicit(&p->running, 1, memory_order_release);
    }
    return NULL;
}

/* Makes the pool this thread's until pool_close; false: no worker can come. */
static bool pool_take(int64_t threads) { return threads > 1 && pool_ready() && fl_mutex_try_lock(shared.owner); }

/* Under the monitor: workers for that many threads, or as many as the system gives. */
static void start_workers(pool *p, int64_t threads) {
    while (p->workers < threads - 1 && p->workers < FL_MOST_THREADS - 1 &&
           fl_os_start_thread(worker_main, (void *)(intptr_t)(p->workers + 1)))
        p->workers++;
}

/* Linux wakes a thread on the core where it fell asleep, and if that is the caller's, busy now, may leave it waiting there
 * for milliseconds while another core is idle: so it is sent away before. */
static void make_way(pool *p) {
    const int here = fl_os_core();
    for (int64_t i = 1; i <= p->workers && i <= p->wanted; i++)
        if (p->beds[i].thread && p->beds[i].core == here) fl_os_keep_off(p->beds[i].thread, here);
}

/* Offers fn to up to threads - 1 workers of the pool that this thread has taken. */
static void pool_post(int64_t threads, void (*fn)(void *, int64_t), void *context) {
    pool *p = &shared;
    fl_monitor_lock(p->monitor);
    p->fn = fn;
    p->context = context;
    p->wanted = threads - 1;
    p->open = true;
    atomic_fetch_add_explicit(&p->jobs, 1, memory_order_release);
    start_workers(p, threads);
    make_way(p);
    fl_monitor_wake_all(p->monitor);
    fl_monitor_unlock(p->monitor);
}

/* No worker begins any more; returns when those that began have ended. */
static void pool_close(void) {
    pool *p = &shared;
    fl_monitor_lock(p->monitor);
    p->open = false;
    fl_monitor_unlock(p->monitor);
    for (int spins = 0; atomic_load_explicit(&p->running, memory_order_acquire) > 0;) spin(&spins);
    fl_mutex_unlock(p->owner);
}

typedef struct task_job {
    void (*fn)(void *context, int64_t task, int64_t worker);
    void *context;
    int64_t tasks;
    atomic_llong next;
} task_job;

static void run_tasks(void *context, int64_t worker) {
    task_job *job = context;
    for (;;) {
        const int64_t task = atomic_fetch_add_explicit(&job->next, 1, memory_order_relaxed);
        if (task >= job->tasks) return;
        job->fn(job->context, task, worker);
    }
}

void fl_parallel_tasks(int64_t threads, int64_t tasks, void (*fn)(void *, int64_t, int64_t), void *context) {
    task_job job = {.fn = fn, .context = context, .tasks = tasks};
    atomic_init(&job.next, 0);
    if (threads > tasks) threads = tasks;
    const bool shared_out = pool_take(threads);
    if (shared_out) pool_post(threads, run_tasks, &job);
    run_tasks(&job, 0);
    if (shared_out) pool_close();
}

static bool take_slice(seat *s, long long stage) {
    long long before = stage - 1;
    return atomic_compare_exchange_strong_explicit(&s->taken, &before, stage, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

static void attend_stages(void *context, int64_t worker) {
    fl_team *team = context;
    seat *mine = &team->seats[worker];
    long long last = 0;
    for (int spins = 0;;) {
        const long long stage = atomic_load_explicit(&team->stage, memory_order_acquire);
        if (stage < 0) return;
        if (stage == last) {
            spin(&spins);
            continue;
        }
        last = stage;
        spins = 0;
        if (!take_slice(mine, stage)) continue;
        team->fn(team->context, worker, team->slices, worker);
        atomic_store_explicit(&mine->done, stage, memory_order_release);
    }
}

int64_t fl_team_slices(const fl_team *team) { return team ? team->slices : 1; }

void fl_team_stage(fl_team *team, fl_stage_fn *fn, void *context) {
    if (!team) {
        fn(context, 0, 1, 0);
        return;
    }
    const long long stage = atomic_load_explicit(&team->stage, memory_order_relaxed) + 1;
    bool theirs[FL_MOST_THREADS];
    team->fn = fn;
    team->context = context;
    atomic_store_explicit(&team->stage, stage, memory_order_release);
    fn(context, 0, team->slices, 0);
    for (int64_t i = 1; i < team->slices; i++) {
        theirs[i] = !take_slice(&team->seats[i], stage);
        if (!theirs[i]) fn(context, i, team->slices, 0);
    }
    for (int64_t i = 1; i < team->slices; i++)
        for (int spins = 0; theirs[i] && atomic_load_explicit(&team->seats[i].done, memory_order_acquire) != stage;)
            spin(&spins);
}

void fl_parallel_stages(int64_t threads, void (*body)(void *, fl_team *), void *context) {
    fl_team *team = pool_take(threads) ? &shared.team : NULL;
    if (team) {
        team->slices = threads;
        atomic_store_explicit(&team->stage, 0, memory_order_relaxed);
        for (int64_t i = 0; i < threads; i++) {
            atomic_store_explicit(&team->seats[i].taken, 0, memory_order_relaxed);
            atomic_store_explicit(&team->seats[i].done, 0, memory_order_relaxed);
        }
        pool_post(threads, attend_stages, team);
    }
    body(context, team);
    if (!team) return;
    atomic_store_explicit(&team->stage, -1, memory_order_release);
    pool_close();
}

void fl_start_threads(int64_t threads) {
    if (threads < 2 || !pool_ready()) return;
    fl_monitor_lock(shared.monitor);
    start_workers(&shared, threads);
    fl_monitor_unlock(shared.monitor);
}

/* Waking a thread takes 30 us, in a virtual machine up to 300: a call of ALONE_US or less takes others along only where
 * it follows another such call at once, whose workers still spin or are about to. */
int64_t fl_threads_for(double us) {
    static _Atomic double before;
    const int64_t threads = fl_get_num_threads();
    if (threads < 2 || us < FL_SHORT_US) return 1;
    if (us >= ALONE_US) return threads;
    const double now = fl_os_now_us();
    const double since = now - atomic_exchange_explicit(&before, now, memory_order_relaxed);
    return since < ALONE_US + atomic_load_explicit(&spin_us, memory_order_relaxed) ? threads : 1;
}

static int64_t default_threads(void) {
    const char *wanted = getenv("FASTLSTM_NUM_THREADS");
    if (wanted && *wanted) {
        char *end;
        const long long n = strtoll(wanted, &end, 10);
        if (!*end && n >= 1 && n <= FL_MOST_THREADS) return n;
        return -1;
    }
    const int64_t cores = fl_os_usable_cores();
    return cores < FL_MOST_THREADS ? cores : FL_MOST_THREADS;
}

int64_t fl_get_num_threads(void) {
    int64_t n = atomic_load_explicit(&num_threads, memory_order_relaxed);
    if (n == 0) {
        n = default_threads();
        if (n < 0) {
            fl_fail(FL_BAD_ARGUMENT, "FASTLSTM_NUM_THREADS: wanted a number from 1 to %d", FL_MOST_THREADS);
            return -1;
        }
        atomic_store_explicit(&num_threads, n, memory_order_relaxed);
    }
    return n;
}

fl_status fl_set_num_threads(int64_t n) {
    if (n < 1 || n > FL_MOST_THREADS)
        return fl_fail(FL_BAD_ARGUMENT, "n is %lld, wanted 1 to %d", (long long)n, FL_MOST_THREADS);
    atomic_store_explicit(&num_threads, n, memory_order_relaxed);
    return FL_OK;
}

fl_status fl_set_spin_us(double us) {
    if (!(us >= 0 && us <= 1e6)) return fl_fail(FL_BAD_ARGUMENT, "us is %g, wanted 0 to 1e6", us);
    atomic_store_explicit(&spin_us, us, memory_order_relaxed);
    return FL_OK;
}
