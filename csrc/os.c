#define _GNU_SOURCE
#include "os.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#include <time.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 << 20 };

void *fl_os_alloc(int64_t bytes) {
    if (bytes < 0 || (uint64_t)bytes > SIZE_MAX - HUGE_PAGE) return NULL;
    void *memory = NULL;
    const bool huge = bytes >= HUGE_PAGE;
    if (posix_memalign(&memory, huge ? HUGE_PAGE : 64, bytes ? (size_t)bytes : 64) != 0) return NULL;
#if defined(MADV_HUGEPAGE)
    if (huge) madvise(memory, (size_t)bytes, MADV_HUGEPAGE); /* a hint: refusal costs nothing */
#endif
    return memory;
}

void fl_os_free(void *memory) { free(memory); }

struct fl_mutex {
    pthread_mutex_t mutex;
};

fl_mutex *fl_mutex_create(void) {
    fl_mutex *m = malloc(sizeof *m);
    if (m && pthread_mutex_init(&m->mutex, NULL) != 0) {
        free(m);
        return NULL;
    }
    return m;
}

bool fl_mutex_try_lock(fl_mutex *m) { return pthread_mutex_trylock(&m->mutex) == 0; }
void fl_mutex_unlock(fl_mutex *m) { pthread_mutex_unlock(&m->mutex); }

static pthread_mutex_t brief = PTHREAD_MUTEX_INITIALIZER;

static void unlock_brief(void) { pthread_mutex_unlock(&brief); }
static void lock_brief(void) { pthread_mutex_lock(&brief); }
static void register_brief(void) { pthread_atfork(lock_brief, unlock_brief, unlock_brief); }

void fl_os_lock(void) {
    static pthread_once_t registered = PTHREAD_ONCE_INIT;
    pthread_once(&registered, register_brief);
    lock_brief();
}

void fl_os_unlock(void) { unlock_brief(); }

struct fl_monitor {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
};

fl_monitor *fl_monitor_create(void) {
    fl_monitor *m = malloc(sizeof *m);
    if (!m) return NULL;
    if (pthread_mutex_init(&m->mutex, NULL) != 0) {
        free(m);
        return NULL;
    }
    if (pthread_cond_init(&m->changed, NULL) != 0) {
        pthread_mutex_destroy(&m->mutex);
        free(m);
        return NULL;
    }
    return m;
}

void fl_monitor_destroy(fl_monitor *m) {
    if (!m) return;
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->mutex);
    free(m);
}

void fl_monitor_lock(fl_monitor *m) { pthread_mutex_lock(&m->mutex); }
void fl_monitor_unlock(fl_monitor *m) { pthread_mutex_unlock(&m->mutex); }
void fl_monitor_wait(fl_monitor *m) { pthread_cond_wait(&m->changed, &m->mutex); }
void fl_monitor_wake_all(fl_monitor *m) { pthread_cond_broadcast(&m->changed); }

bool fl_os_start_thread(void *(*fn)(void *), void *argument) {
    /* The host's handlers expect its own threads. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_t thread;
    const bool started = pthread_create(&thread, NULL, fn, argument) == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (started) pthread_detach(thread);
    return started;
}

#if defined(__linux__)
int64_t fl_os_thread_id(void) { return syscall(SYS_gettid); }
int fl_os_core(void) { return sched_getcpu(); }

void fl_os_keep_off(int64_t thread, int core) {
    cpu_set_t set;
    if (core < 0 || core >= CPU_SETSIZE || sched_getaffinity(0, sizeof set, &set) != 0) return;
    CPU_CLR(core, &set);
    if (CPU_COUNT(&set) > 0) sched_setaffinity((pid_t)thread, sizeof set, &set); /* a hint: refusal costs nothing */
}
#else
int64_t fl_os_thread_id(void) { return 1; }
int fl_os_core(void) { return -1; }
void fl_os_keep_off(int64_t thread, int core) { (void)thread, (void)core; }
#endif

void fl_os_yield(void) { sched_yield(); }

#if defined(__linux__) && defined(__x86_64__)
enum { ARCH_GET_SUPPORTED = 0x1021, ARCH_REQUEST = 0x1023, TILE_DATA = 18 }; /* asm/prctl.h, arch/x86/include/asm/fpu */

bool fl_os_knows_tiles(void) {
    uint64_t features = 0;
    return syscall(SYS_arch_prctl, ARCH_GET_SUPPORTED, &features) == 0 && (features >> TILE_DATA & 1);
}

bool fl_os_allow_tiles(void) { return syscall(SYS_arch_prctl, ARCH_REQUEST, TILE_DATA) == 0; }
#else
bool fl_os_knows_tiles(void) { return false; }
bool fl_os_allow_tiles(void) { return false; }
#endif

double fl_os_now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

#if defined(__linux__)
/* The quota in cores of the cgroup that we are in, as the container sees it; 0: none. */
static double cgroup_quota(void) {
    double quota = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (f) {
        const int n = fscanf(f, "%lf %lf", &quota, &period); /* "max 100000" leaves n at 0 */
        fclose(f);
        return n == 2 && quota > 0 && period > 0 ? quota / period : 0;
    }
    FILE *q = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r");
    FILE *p = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r");
    const bool read = q && p && fscanf(q, "%lf", &quota) == 1 && fscanf(p, "%lf", &period) == 1;
    if (q) fclose(q);
    if (p) fclose(p);
    return read && quota > 0 && period > 0 ? quota / period : 0;
}
#endif

int64_t fl_os_usable_cores(void) {
    int64_t cores = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
    const double quota = cgroup_quota();
    if (quota > 0 && quota < (double)cores) cores = (int64_t)(quota + 0.5);
#endif
    return cores < 1 ? 1 : cores;
}

void fl_os_at_fork(void (*before)(void), void (*parent)(void), void (*child)(void)) {
    pthread_atfork(before, parent, child);
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

void fl_os_once(void (*fn)(void)) { pthread_once(&once, fn); }
