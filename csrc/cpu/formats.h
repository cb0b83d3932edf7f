/* What the C code knows of each block format: its sizes, and how to take it apart.
 *
 * Every quantized format is taken apart into the same three things, exactly: 8-bit integer codes, a float32 scale and
 * (in some formats) a float32 minimum for each `sub` values, such that value = scale * code - minimum. Dot products,
 * embedding rows and dequantizing are all built on that, so this is the only place that must know a format. */
#ifndef LC_FORMATS_H
#define LC_FORMATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blocks.h"

typedef struct lc_format {
    const char *name; /* NULL: no such type */
    int elems;        /* values a block */
    int bytes;        /* bytes a block */
    bool is_q8;       /* activations are rounded to q8; else they stay float32 */
    int sub;          /* values that share a scale: 16 or 32 */
    bool has_min;     /* codes are then 0..127 */
    int grid_bytes;   /* size of the grid that the codes are looked up in, 0 where there is none */
    /* Takes `n` values (a multiple of elems) apart: codes [n], scales [n / sub], mins [n / sub] (if has_min). NULL for
     * plain float types. */
    void (*unpack)(const void *blocks, int n, const int8_t *grid, int8_t *codes, float *scales, float *mins);
} lc_format;

/* The format of a GGUF type number, or NULL. */
const lc_format *lc_format_of(int32_t type);

static inline size_t lc_row_bytes(const lc_format *format, int64_t n) {
    return (size_t)(n / format->elems) * (size_t)format->bytes;
}

/* n values (a multiple of elems) as float32. */
void lc_dequantize_row(int32_t type, const uint8_t *blocks, const int8_t *grid, int64_t n, float *x);

#endif
