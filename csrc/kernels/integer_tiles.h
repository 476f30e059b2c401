/* integer_template.h on the tile registers of AMX: 16 rows by 16 columns by 64 k an instruction, the same integers, for
 * as many rows as make whole tiles. Packed weights lie as a tile has them: a line of it is a group of 16 columns.
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBUSD.
 * Test: tests/c/integers.c. */

enum { TILE_ROWS = 16, TILE_DEPTH = 64, TILE_SUMS = TILE_ROWS * TILE_ROWS };

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];
} tile_config;

/* sum[i][j] = first[j] + the products of rows a[i] and columns b[j], for one or two of each. */
FL_INLINE void tile_sums(const int rows, const int columns, const char *const *a, int64_t a_bytes,
                         const int8_t *const *b, int64_t b_bytes, int64_t depth, const int32_t *const *first,
                         int32_t (*sum)[2][TILE_SUMS]) {
    _tile_loadd(0, first[0], 0);
    if (columns > 1) _tile_loadd(1, first[1], 0);
    if (rows > 1) _tile_loadd(2, first[0], 0);
    if (rows > 1 && columns > 1) _tile_loadd(3, first[1], 0);
    for (int64_t k = 0; k < depth; k += TILE_DEPTH) {
        const int64_t line = k / GROUP * b_bytes;
        _tile_loadd(4, a[0] + k, a_bytes);
        _tile_loadd(6, b[0] + line, b_bytes);
        _tile_dpbusd(0, 4, 6);
        if (columns > 1) {
            _tile_loadd(7, b[1] + line, b_bytes);
            _tile_dpbusd(1, 4, 7);
        }
        if (rows > 1) {
            _tile_loadd(5, a[1] + k, a_bytes);
            _tile_dpbusd(2, 5, 6);
            if (columns > 1) _tile_dpbusd(3, 5, 7);
        }
    }
    const int line_bytes = TILE_ROWS * (int)sizeof(int32_t);
    _tile_stored(0, sum[0][0], line_bytes);
    if (columns > 1) _tile_stored(1, sum[0][1], line_bytes);
    if (rows > 1) _tile_stored(2, sum[1][0], line_bytes);
    if (rows > 1 && columns > 1) _tile_stored(3, sum[1][1], line_bytes);
}

/* out = start + the scaled sums of 16 rows, as integer_tile has it; sums of their planes. */
FL_INLINE void tile_out(const int planes, const fl_product_part *part, int64_t row, int64_t column,
                        const int32_t *leading, const int32_t *low, const float *start, int64_t start_stride,
                        float *out, int64_t out_stride) {
    const vec_f32 scale = simd_load_f32(part->scale + column);
    for (int r = 0; r < TILE_ROWS; r++) {
        float of_row;
        memcpy(&of_row, (const char *)part->a[row + r] - FL_SCALE_BYTES, sizeof of_row);
        const vec_f32 step = simd_mul_f32(simd_set_f32(of_row), scale);
        vec_f32 z = simd_load_f32(start + r * start_stride);
        z = simd_fma_f32(simd_float_of_int(simd_load_int(leading + r * TILE_ROWS)),
                         planes == 1 ? step : simd_mul_f32(simd_set_f32(256), step), z);
        if (planes > 1) z = simd_fma_f32(simd_float_of_int(simd_load_int(low + r * TILE_ROWS)), step, z);
        simd_store_f32(out + r * out_stride, z);
    }
}

/* One part for the rows [row, row + 16 * blocks), all columns. */
FL_INLINE void tile_rows(const int planes, const int blocks, const fl_product_args *p, int64_t i, int64_t row,
                         int64_t a_bytes) {
    const fl_product_part *part = &p->part[i];
    const float *start = i ? p->out : p->start;
    const int64_t start_stride = i ? p->out_stride : p->start_stride;
    const char *a[2] = {part->a[row], NULL};
    a[1] = planes > 1 ? a[0] + plane_bytes(part->depth) : a[0] + TILE_ROWS * a_bytes;
    _Alignas(64) int32_t sum[2][2][TILE_SUMS];
    for (int64_t v = 0; v < p->vecs;) {
        const int64_t panel = v / FL_PANEL_VECS * FL_PANEL_VECS, left = p->vecs - panel;
        const int64_t width = left < FL_PANEL_VECS ? left : FL_PANEL_VECS, line = width * LANES_f32 * GROUP;
        const int8_t *b[2] = {(const int8_t *)part->w + panel * LANES_f32 * part->depth +
                              (v - panel) * LANES_f32 * GROUP};
        const int32_t *first[2] = {part->first + v * LANES_f32, part->first + (v + 1) * LANES_f32};
        const int columns = v + 1 < panel + width ? 2 : 1;
        b[1] = b[0] + LANES_f32 * GROUP;
        if (columns == 2) tile_sums(blocks * planes, 2, a, a_bytes, b, line, part->depth, first, sum);
        else tile_sums(blocks * planes, 1, a, a_bytes, b, line, part->depth, first, sum);
        for (int j = 0; j < columns; j++, v++)
            for (int block = 0; block < blocks; block++) {
                const int64_t at = row + block * TILE_ROWS, column = v * LANES_f32;
                tile_out(planes, part, at, column, sum[planes > 1 ? 0 : block][j], sum[1][j],
                         (const float *)start + at * start_stride + column, start_stride,
                         (float *)p->out + at * p->out_stride + column, p->out_stride);
            }
    }
}

/* The step from row to row of some rows; 0 if they do not lie evenly. */
static int64_t even_step(const void *const *a, int64_t rows) {
    const int64_t step = (const char *)a[1] - (const char *)a[0];
    for (int64_t r = 2; r < rows; r++)
        if ((const char *)a[r] - (const char *)a[r - 1] != step) return 0;
    return step;
}

/* How many rows it did: whole tiles, where rows lie evenly and all depths are whole tiles. */
static int64_t product_in_tiles(const fl_product_args *p) {
    const int64_t rows = p->rows / TILE_ROWS * TILE_ROWS;
    int64_t step[4];
    if (!rows) return 0;
    for (int64_t i = 0; i < p->parts; i++)
        if (p->part[i].depth % TILE_DEPTH || !(step[i] = even_step(p->part[i].a, rows))) return 0;
    tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.lines[i] = TILE_ROWS;
        config.line_bytes[i] = TILE_DEPTH;
    }
    _tile_loadconfig(&config);
    for (int64_t i = 0; i < p->parts; i++)
        for (int64_t row = 0; row < rows;) {
            if (p->planes > 1) {
                tile_rows(2, 1, p, i, row, step[i]);
                row += TILE_ROWS;
            } else if (row + TILE_ROWS < rows) {
                tile_rows(1, 2, p, i, row, step[i]);
                row += 2 * TILE_ROWS;
            } else {
                tile_rows(1, 1, p, i, row, step[i]);
                row += TILE_ROWS;
            }
        }
    _tile_release();
    return rows;
}
