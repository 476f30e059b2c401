/* A malloc that counts, and fails where it is asked to, in the place of the C library's; without one that can be
 * replaced (other libraries, sanitizers), COUNTS_ALLOCATIONS is not defined and nothing is counted. For one source file
 * of a program. */
#ifndef FL_TEST_ALLOCATIONS_H
#define FL_TEST_ALLOCATIONS_H

#include "check.h"

#include <stdatomic.h>

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *memory);

static atomic_long allocations;
static atomic_long blocks_left = 1L << 30; /* of posix_memalign, before it fails */

void *malloc(size_t size) {
    atomic_fetch_add(&allocations, 1);
    return __libc_malloc(size);
}
void *calloc(size_t count, size_t size) {
    atomic_fetch_add(&allocations, 1);
    return __libc_calloc(count, size);
}
void *realloc(void *memory, size_t size) {
    atomic_fetch_add(&allocations, 1);
    return __libc_realloc(memory, size);
}
int posix_memalign(void **memory, size_t alignment, size_t size) {
    atomic_fetch_add(&allocations, 1);
    *memory = atomic_fetch_sub(&blocks_left, 1) > 0 ? __libc_memalign(alignment, size) : NULL;
    return *memory ? 0 : 12;
}
void *aligned_alloc(size_t alignment, size_t size) {
    atomic_fetch_add(&allocations, 1);
    return __libc_memalign(alignment, size);
}
void free(void *memory) {
    atomic_fetch_add(&allocations, memory != NULL);
    __libc_free(memory);
}
static long allocations_so_far(void) { return atomic_load(&allocations); }
#else
static long allocations_so_far(void) { return 0; }
#endif

#endif
