/* Sizes without overflow, memory in parts, and blocks that a layer keeps for its next tape and backward pass. */
#include "internal.h"

#include <string.h>

int64_t fl_round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

bool fl_mul(int64_t a, int64_t b, int64_t *product) {
    return !__builtin_mul_overflow(a, b, product) && *product <= INT64_MAX / 64;
}

bool fl_stride_fits(int64_t stride, int64_t n) {
    int64_t all;
    return stride > -INT64_MAX && fl_mul(stride < 0 ? -stride : stride, n > 0 ? n : 1, &all);
}

/* --- parts of a block --- */

void *fl_take(fl_arena *a, int64_t bytes) {
    void *part = a->base ? a->base + a->used : NULL;
    a->used += fl_round_up(bytes, 64);
    return part;
}

void fl_set_row(char *row, const void *from, int64_t bytes) {
    if (from) memcpy(row, from, (size_t)bytes);
    else memset(row, 0, (size_t)bytes);
}

/* --- blocks that are used again --- */

/* A training step records what the one before has just forgotten, and fresh pages cost as much as some products: so a
 * layer keeps the memory of its last tapes, one for each of its directions, and the work space of a backward pass. Where
 * a block begins, it says how it goes on. */
typedef struct fl_spare {
    struct fl_spare *next;
    int64_t bytes;
} fl_spare;

enum { HEADER_BYTES = 64 };

/* A spare block of at least, but not far more than, that many bytes; or a new one. */
char *fl_take_block(const fl_layer *layer, int64_t bytes) {
    fl_layer *l = (fl_layer *)layer; /* spares are not part of what const protects */
    fl_spare *found = NULL;
    fl_os_lock();
    for (fl_spare **at = &l->spare; *at && !found; at = &(*at)->next)
        if ((*at)->bytes >= bytes && (*at)->bytes / 2 <= bytes) {
            found = *at;
            *at = found->next;
            break;
        }
    fl_os_unlock();
    if (!found) {
        found = fl_os_alloc(bytes + HEADER_BYTES);
        if (!found) return NULL;
        found->bytes = bytes;
    }
    return (char *)found + HEADER_BYTES;
}

void fl_give_block(const fl_layer *layer, char *block) {
    if (!block) return;
    fl_layer *l = (fl_layer *)layer;
    fl_spare *mine = (fl_spare *)(void *)(block - HEADER_BYTES), *oldest = NULL;
    const int64_t most = l->config.num_layers * l->directions + 1;
    fl_os_lock();
    mine->next = l->spare;
    l->spare = mine;
    int64_t count = 0;
    for (fl_spare **at = &l->spare; *at; at = &(*at)->next)
        if (++count > most) {
            oldest = *at;
            *at = NULL;
            break;
        }
    fl_os_unlock();
    fl_os_free(oldest);
}

void fl_free_spares(fl_layer *layer) {
    while (layer->spare) {
        fl_spare *gone = layer->spare;
        layer->spare = gone->next;
        fl_os_free(gone);
    }
}
