/* Smaller weights: bfloat16, and int8 with a scale for each row. */
#include "internal.h"

#include <math.h>
#include <string.h>

enum { MOST_INT8 = 127, SCALE_BITS = 17 };

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static fl_status check_counts(const void *weight, int64_t rows, int64_t columns, const void *out) {
    int64_t count;
    if (rows < 0 || columns < 0 || !fl_mul(rows, columns, &count))
        return fl_fail(FL_BAD_ARGUMENT, "weight: [%lld, %lld] is no size", (long long)rows, (long long)columns);
    if (count && (!weight || !out)) return fl_fail(FL_BAD_ARGUMENT, "%s: NULL", weight ? "out" : "weight");
    return FL_OK;
}

fl_status fl_to_bfloat16(const float *weight, int64_t count, uint16_t *out) {
    const fl_status status = check_counts(weight, count, 1, out);
    if (status) return status;
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = bits_of(weight[i]);
        /* A carry out of the mantissa raises the exponent, as it should; a NaN must not become an infinity so. */
        const uint32_t rounded = isnan(weight[i]) ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
        out[i] = (uint16_t)(rounded >> 16);
    }
    return FL_OK;
}

/* The scale, for a row of that largest magnitude. */
static float scale_of(float largest) {
    if (largest < 1e-30f) return 0;
    const uint32_t lost = (1u << (24 - SCALE_BITS)) - 1, bits = bits_of(largest / MOST_INT8);
    const float scale = float_of((bits + lost) & ~lost);
    return isinf(MOST_INT8 * scale) ? float_of(bits & ~lost) : scale; /* down where up is too much; still 127 */
}

fl_status fl_to_int8(const float *weight, int64_t rows, int64_t columns, int8_t *out, float *scale) {
    const fl_status status = check_counts(weight, rows, columns, out);
    if (status) return status;
    if (rows && !scale) return fl_fail(FL_BAD_ARGUMENT, "scale: NULL");
    for (int64_t i = 0; i < rows * columns; i++)
        if (!isfinite(weight[i])) return fl_fail(FL_BAD_ARGUMENT, "weight: element %lld is not finite", (long long)i);
    for (int64_t r = 0; r < rows; r++) {
        const float *row = weight + r * columns;
        float largest = 0;
        for (int64_t i = 0; i < columns; i++)
            if (fabsf(row[i]) > largest) largest = fabsf(row[i]);
        scale[r] = scale_of(largest);
        for (int64_t i = 0; i < columns; i++)
            out[r * columns + i] = (int8_t)(scale[r] > 0 ? rintf(row[i] / scale[r]) : 0);
    }
    return FL_OK;
}
