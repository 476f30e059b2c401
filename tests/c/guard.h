/* Buffers between guard pages, the paths of this CPU, and the walk over the list of kernels: what the programs that
 * test kernels share. Include it first: it asks for MAP_ANONYMOUS. */
#ifndef FL_TEST_GUARD_H
#define FL_TEST_GUARD_H

#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#endif
#include "check.h"
#include "internal.h"

#include <sys/mman.h>
#include <unistd.h>

enum { MARGIN = 256, CANARY = 0xa5 };

/* --- guarded buffers --- */

typedef struct guarded {
    char *begin, *end; /* between two pages that nobody may touch */
    char *data;
    int64_t bytes;
} guarded;

static inline guarded guarded_create(int64_t capacity) {
    const int64_t page = sysconf(_SC_PAGESIZE), room = (capacity + page - 1) / page * page;
    char *map = mmap(NULL, (size_t)(room + 2 * page), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + page, (size_t)room, PROT_READ | PROT_WRITE) != 0) {
        perror("mmap");
        exit(2);
    }
    return (guarded){map + page, map + page + room, map + page, 0};
}

/* Room for `bytes`, flush against one guard page, with a margin of canaries on the other side; filled with NaN. */
static inline void *place(guarded *g, int64_t bytes, bool at_end) {
    if (bytes + MARGIN > g->end - g->begin) {
        fprintf(stderr, "guarded buffer too small for %lld bytes\n", (long long)bytes);
        exit(2);
    }
    g->bytes = bytes;
    g->data = at_end ? g->end - bytes : g->begin;
    memset(at_end ? g->data - MARGIN : g->data + bytes, CANARY, MARGIN);
    memset(g->data, 0xff, (size_t)bytes); /* NaN in either dtype */
    return g->data;
}

static inline bool untouched(const char *from, int64_t bytes, int byte) {
    for (int64_t i = 0; i < bytes; i++)
        if ((unsigned char)from[i] != byte) return false;
    return true;
}

static inline bool margin_untouched(const guarded *g) {
    return untouched(g->data == g->begin ? g->data + g->bytes : g->data - MARGIN, MARGIN, CANARY);
}

/* --- the paths --- */

enum { MOST_PATHS = 8 };
static const char *paths[MOST_PATHS];
static int path_count;
static bool exact_fma = true; /* of all paths: portable without a fused multiply-add keeps bits of its own */

/* Whether the products of this path are rounded once: 2^-12 + 1 squared differs. */
static inline bool fuses(const char *isa) {
    const fl_kernels *k = fl_kernels_named(isa, FL_FLOAT32);
    float w[64] = {0}, start[64] = {0}, out[64], a = 1 + 0x1p-12f;
    w[0] = a;
    start[0] = -1 - 0x1p-11f;
    const void *rows[] = {&a};
    fl_product_args p = {
        .rows = 1, .vecs = 1, .parts = 1, .part = {{.depth = 1, .a = rows, .w = w}}, .start = start, .out = out};
    k->product(&p);
    return out[0] == 0x1p-24f;
}

static inline void find_paths(void) {
    for (const char *name; path_count < MOST_PATHS && (name = fl_isa_at(path_count)) != NULL;) {
        paths[path_count++] = name;
        exact_fma = exact_fma && fuses(name);
    }
}

/* --- the list --- */

static inline void *pointer_of(const fl_kernels *k, const fl_kernel_info *info) {
    void *pointer;
    memcpy(&pointer, (const char *)k + info->offset, sizeof pointer);
    return pointer;
}

/* Three programs test the kernels, and none is left to none: backward.c those of training, integers.c those of int8
 * weights, kernels.c all others. */
static inline bool is_of_training(const fl_kernel_info *info) {
    const size_t length = strlen(info->op);
    const bool keep = length > 5 && strcmp(info->op + length - 5, "_keep") == 0;
    static const char *const types[] = {"fl_cell_backward_fn", "fl_outer_fn", "fl_sum_fn", "fl_add_fn"};
    for (int i = 0; i < 4; i++)
        if (strcmp(info->type, types[i]) == 0) return true;
    return keep;
}

/* Every kernel of one of the two programs, in both dtypes; `test` says whether it knows the kernel. */
static inline void test_list(bool of_training, bool (*test)(const fl_kernel_info *info, fl_dtype dtype)) {
    const fl_kernel_info *info;
    for (int64_t i = 0; (info = fl_kernel_at(i)) != NULL; i++)
        for (int dtype = 0; dtype < (info->f64 ? 2 : 1) && !info->integer && is_of_training(info) == of_training;
             dtype++) {
            const long before = check_passed + check_failed;
            const bool known = test(info, (fl_dtype)dtype);
            check(known && check_passed + check_failed > before, "%s: a kernel without a test", info->op);
            printf("%-26s %s %8ld checks on", info->op, dtype == 0 ? "f32" : "f64",
                   check_passed + check_failed - before);
            for (int path = 0; path < path_count; path++) printf(" %s", paths[path]);
            printf("\n");
        }
    if (!exact_fma) printf("portable has no fused multiply-add here: its bits were not compared\n");
}

#endif
