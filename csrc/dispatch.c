/* The only file that knows CPUs. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#endif

typedef struct isa {
    const char *name;
    const fl_kernels *tables[2]; /* by fl_dtype */
    bool (*runs_here)(void);
} isa;

#if defined(__x86_64__)
/* __builtin_cpu_supports also asks whether the system saves the registers. */
static bool has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma");
}

static bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static bool has_fma(void) { return __builtin_cpu_supports("fma"); }
#endif

#if defined(__x86_64__)
static bool has_avx512_vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

/* Leaf 7, EDX bits 24 and 25: tiles, and products of bytes in them. */
static bool has_avx512_amx(void) {
    unsigned a, b, c, d;
    return has_avx512_vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3 && fl_os_knows_tiles();
}

/* Leaf 7.1, EAX bit 4, of which older compilers' __builtin_cpu_supports knows nothing. */
static bool has_avx2_vnni(void) {
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#elif defined(__aarch64__)
static bool has_dot(void) { return fl_os_hardware() >> 20 & 1; } /* HWCAP_ASIMDDP */
#endif

static bool always(void) { return true; }

/* Best first. Portable comes twice: with FMA its bits are everyone's, and the first that runs here counts. */
static const isa isas[] = {
#if defined(__x86_64__)
    {"avx512", {&fl_kernels_f32_avx512, &fl_kernels_f64_avx512}, has_avx512},
    {"avx2", {&fl_kernels_f32_avx2, &fl_kernels_f64_avx2}, has_avx2},
    {"portable", {&fl_kernels_f32_portable_fma, &fl_kernels_f64_portable_fma}, has_fma},
#elif defined(__aarch64__)
    {"neon", {&fl_kernels_f32_neon, &fl_kernels_f64_neon}, always},
#endif
    {"portable", {&fl_kernels_f32_portable, &fl_kernels_f64_portable}, always},
};

enum { ISAS = sizeof isas / sizeof isas[0] };

/* Products with int8 weights: on each path, the best first. */
typedef struct integer_isa {
    const char *name, *isa;
    const fl_integer_kernels *table;
    bool (*runs_here)(void);
} integer_isa;

static const integer_isa integer_isas[] = {
#if defined(__x86_64__)
    {"avx512_amx", "avx512", &fl_integers_avx512_amx, has_avx512_amx}, /* the first */
    {"avx512_vnni", "avx512", &fl_integers_avx512_vnni, has_avx512_vnni},
    {"avx512", "avx512", &fl_integers_avx512, has_avx512},
    {"avx2_vnni", "avx2", &fl_integers_avx2_vnni, has_avx2_vnni},
    {"avx2", "avx2", &fl_integers_avx2, has_avx2},
    {"portable", "portable", &fl_integers_portable_fma, has_fma},
#elif defined(__aarch64__)
    {"neon_dot", "neon", &fl_integers_neon_dot, has_dot},
    {"neon", "neon", &fl_integers_neon, always},
#endif
    {"portable", "portable", &fl_integers_portable, always},
};

enum { INTEGER_ISAS = sizeof integer_isas / sizeof integer_isas[0] };

static const isa *chosen;
static const integer_isa *chosen_integer; /* of the chosen path */
static bool forced;      /* by FASTLSTM_ISA */
static char refused[64]; /* what FASTLSTM_ISA asked for in vain */

static const isa *find(const char *name) {
    for (int i = 0; i < ISAS; i++)
        if (strcmp(isas[i].name, name) == 0 && isas[i].runs_here()) return &isas[i];
    return NULL;
}

/* By its own name, or the best of a path. */
static const integer_isa *find_integer(const char *name, const char *path) {
    for (int i = 0; i < INTEGER_ISAS; i++)
        if (strcmp(name ? name : path, name ? integer_isas[i].name : integer_isas[i].isa) == 0 &&
            integer_isas[i].runs_here())
            return &integer_isas[i];
    return NULL;
}

static void choose(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    const char *wanted = getenv("FASTLSTM_ISA");
    if (wanted && *wanted) {
        chosen_integer = find_integer(wanted, NULL);
        chosen = find(chosen_integer ? chosen_integer->isa : wanted);
        forced = true;
        if (!chosen) strncpy(refused, wanted, sizeof refused - 1);
        return;
    }
    for (int i = 0; i < ISAS && !chosen; i++)
        if (isas[i].runs_here()) chosen = &isas[i];
    chosen_integer = find_integer(NULL, chosen->name);
}

static const isa *choice(void) {
    fl_os_once(choose);
    if (!chosen) {
        char names[96] = "";
        const char *name;
        for (int64_t i = 0; (name = fl_integer_isa_at(i)) != NULL; i++) {
            if (i) strcat(names, ", ");
            strcat(names, name);
        }
        fl_fail(FL_UNSUPPORTED, "FASTLSTM_ISA is '%s'; this CPU can run %s", refused, names);
    }
    return chosen;
}

const char *fl_isa(void) {
    const isa *c = choice();
    return c ? c->name : NULL;
}

const char *fl_isa_at(int64_t index) {
    const char *before = "";
    for (int i = 0; i < ISAS; i++) {
        if (!isas[i].runs_here() || strcmp(before, isas[i].name) == 0) continue;
        before = isas[i].name;
        if (index-- == 0) return isas[i].name;
    }
    return NULL;
}

const char *fl_integer_isa_at(int64_t index) {
    const char *before = "";
    for (int i = 0; i < INTEGER_ISAS; i++) {
        if (!integer_isas[i].runs_here() || strcmp(before, integer_isas[i].name) == 0) continue;
        before = integer_isas[i].name;
        if (index-- == 0) return before;
    }
    return NULL;
}

#if defined(__x86_64__)
static atomic_bool tiles_refused;
#endif

/* Tiles are asked for by whoever needs them first, for a process that has them needs larger signal stacks. */
static const integer_isa *allowed(const integer_isa *found) {
#if defined(__x86_64__)
    if (found && found->runs_here == has_avx512_amx && !fl_os_allow_tiles()) {
        atomic_store(&tiles_refused, true);
        return found + 1;
    }
#endif
    return found;
}

const char *fl_integer_isa(void) {
    if (!choice()) return NULL;
#if defined(__x86_64__)
    if (chosen_integer->runs_here == has_avx512_amx && atomic_load(&tiles_refused)) return chosen_integer[1].name;
#endif
    return chosen_integer->name;
}

const fl_integer_kernels *fl_integers_for(const fl_kernels *kernels) {
    const bool own = strcmp(kernels->isa, chosen->name) == 0;
    const integer_isa *wanted = own ? chosen_integer : find_integer(NULL, kernels->isa), *found = allowed(wanted);
    if (found == wanted || !forced) return found->table;
    fl_fail(FL_UNSUPPORTED, "FASTLSTM_ISA is '%s'; the system refuses its registers", wanted->name);
    return NULL;
}

const fl_integer_kernels *fl_integers_named(const char *name) {
    const integer_isa *wanted = find_integer(name, NULL);
    return wanted && allowed(wanted) == wanted ? wanted->table : NULL;
}

const fl_kernels *fl_kernels_of(fl_dtype dtype) {
    const isa *c = choice();
    return c ? c->tables[dtype] : NULL;
}

/* Half a register is enough for the few units of a small real-time network, and divides sooner: a step of an LSTM with one
 * input took 10 % less at 8 units, 16 at 4; with 8 inputs, or in a batch, as long. */
const fl_kernels *fl_kernels_for(fl_dtype dtype, int64_t units) {
    const fl_kernels *best = fl_kernels_of(dtype);
    if (!best || forced || units > best->lanes / 2) return best;
    const isa *narrow = find("avx2");
    return narrow && narrow->tables[dtype]->lanes < best->lanes ? narrow->tables[dtype] : best;
}

const fl_kernels *fl_kernels_named(const char *name, fl_dtype dtype) {
    const isa *found = find(name);
    return found ? found->tables[dtype] : NULL;
}

const char *fl_cpu_features(void) {
#if defined(__x86_64__)
    if (has_avx512_vnni()) return "sse2 fma avx2 avx512f avx512dq avx512bw avx512vl avx512vnni";
    if (has_avx512()) return "sse2 fma avx2 avx512f avx512dq avx512bw avx512vl";
    if (has_avx2()) return "sse2 fma avx2";
    return has_fma() ? "sse2 fma" : "sse2";
#elif defined(__aarch64__)
    return "neon fma";
#else
    return "";
#endif
}

/* Rounding to nearest and masked exceptions as well: the bits must not hang on what the host left in the register. */
#if defined(__x86_64__)
enum { MXCSR_DEFAULT = 0x1f80, MXCSR_FLUSH_RESULTS = 0x8000, MXCSR_FLUSH_OPERANDS = 0x0040 };

fl_fp_mode fl_fp_begin(void) {
    const fl_fp_mode saved = _mm_getcsr();
    _mm_setcsr(MXCSR_DEFAULT | MXCSR_FLUSH_RESULTS | MXCSR_FLUSH_OPERANDS);
    return saved;
}

void fl_fp_end(fl_fp_mode saved) { _mm_setcsr((unsigned)saved); }
#elif defined(__aarch64__)
enum { FPCR_FLUSH = 1 << 24 };

static void set_fpcr(uint64_t value) { __asm__ volatile("msr fpcr, %0" : : "r"(value)); }

fl_fp_mode fl_fp_begin(void) {
    fl_fp_mode saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    set_fpcr(FPCR_FLUSH);
    return saved;
}

void fl_fp_end(fl_fp_mode saved) { set_fpcr(saved); }
#else
fl_fp_mode fl_fp_begin(void) { return 0; }
void fl_fp_end(fl_fp_mode saved) { (void)saved; }
#endif
