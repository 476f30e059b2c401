/* Every call to the operating system, so that another one is one file more. */
#ifndef FL_OS_H
#define FL_OS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* 64-byte aligned; in huge pages where the size repays them. NULL when there is no memory. */
void *fl_os_alloc(int64_t bytes);
void fl_os_free(void *memory);

typedef struct fl_mutex fl_mutex;
fl_mutex *fl_mutex_create(void);
bool fl_mutex_try_lock(fl_mutex *mutex);
void fl_mutex_unlock(fl_mutex *mutex);

/* The process's one lock, for what takes some nanoseconds. Nobody else holds it when the process forks: a child finds it
 * free. */
void fl_os_lock(void);
void fl_os_unlock(void);

/* A condition with the mutex that guards it. */
typedef struct fl_monitor fl_monitor;
fl_monitor *fl_monitor_create(void);
void fl_monitor_destroy(fl_monitor *monitor);
void fl_monitor_lock(fl_monitor *monitor);
void fl_monitor_unlock(fl_monitor *monitor);
void fl_monitor_wait(fl_monitor *monitor); /* locked */
void fl_monitor_wake_all(fl_monitor *monitor);

bool fl_os_start_thread(void *(*fn)(void *), void *argument); /* detached, all signals blocked */
int64_t fl_os_thread_id(void); /* the calling thread's */
int fl_os_core(void);          /* that it runs on; -1: not known */
/* Lets a thread of ours run wherever the calling one may, but for that core, if there is another. */
void fl_os_keep_off(int64_t thread, int core);
void fl_os_yield(void);
/* AMX's tile registers, which Linux hands out on request: whether it would; and, for the whole process from now on, please. */
bool fl_os_knows_tiles(void);
bool fl_os_allow_tiles(void);
double fl_os_now_us(void);
int64_t fl_os_usable_cores(void); /* affinity and cgroup quota, at least 1 */
void fl_os_at_fork(void (*before)(void), void (*parent)(void), void (*child)(void));
void fl_os_once(void (*fn)(void)); /* one function of the process only */

#endif
