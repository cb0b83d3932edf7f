/* The tile operations of AMX, and the same in plain C, with which kernels_amx_emulated.c tests the kernels on any machine
 * with AVX-512. A file that includes this defines LC_AMX_EMULATED as 0 or 1.
 *
 * A tile is at most 16 rows of at most 64 bytes; there are eight, called by constants 0 to 7. Their shapes and contents
 * belong to a thread. Intrinsics are no help: gcc 12 believes that loading shapes reads 8 of their 64 bytes, and that
 * loading a tile reads no memory. */
#ifndef LC_AMX_H
#define LC_AMX_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct lc_tile_shapes {
    uint8_t palette; /* 1 */
    uint8_t start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} lc_tile_shapes;

_Static_assert(sizeof(lc_tile_shapes) == 64, "as the processor reads it");

/* lc_tiles_configure: sets the shapes and clears all tiles. lc_tiles_release: gives the tiles back.
 * LC_TILE_LOAD, LC_TILE_STORE: rows at p, p + stride, ...
 * LC_TILE_DOT(sum, a, b): sum[i][j] += products of a[i][4 k + l], signed, and b[k][4 j + l], unsigned, over all k and l.
 * LC_TILE_DOT_BF16(sum, a, b): the same in float32, of a[i][2 k + l] and b[k][2 j + l], both bf16. */
#if !LC_AMX_EMULATED

static inline void lc_tiles_configure(const lc_tile_shapes *shapes) {
    __asm__ volatile("ldtilecfg %0" : : "m"(*shapes) : "memory");
}
static inline void lc_tiles_release(void) { __asm__ volatile("tilerelease" : : : "memory"); }

#define LC_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : : :)
#define LC_TILE_LOAD(tile, p, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(p), "r"((ptrdiff_t)(stride)) : "memory")
#define LC_TILE_STORE(tile, p, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(p), "r"((ptrdiff_t)(stride)) : "memory")
#define LC_TILE_DOT(sum, a, b) __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #sum : : :)
#define LC_TILE_DOT_BF16(sum, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum : : :)

#else

#include <math.h>
#include <stdlib.h>

#include "half.h"

typedef struct lc_tile {
    int rows, row_bytes;
    uint8_t bytes[16][64];
} lc_tile;

static _Thread_local lc_tile lc_tiles[8];

/* Stops the program where a processor would raise an exception. */
static inline void lc_tile_must(int condition) {
    if (!condition) abort();
}

static inline void lc_tiles_configure(const lc_tile_shapes *shapes) {
    lc_tile_must(shapes->palette == 1 && shapes->start_row == 0);
    for (int i = 0; i < 8; i++) {
        lc_tile_must(shapes->rows[i] <= 16 && shapes->row_bytes[i] <= 64 && shapes->row_bytes[i] % 4 == 0);
        memset(&lc_tiles[i], 0, sizeof lc_tiles[i]);
        lc_tiles[i].rows = shapes->rows[i];
        lc_tiles[i].row_bytes = shapes->row_bytes[i];
    }
}
static inline void lc_tiles_release(void) { memset(lc_tiles, 0, sizeof lc_tiles); }

static inline lc_tile *lc_tile_at(int i) {
    lc_tile_must(lc_tiles[i].rows > 0 && lc_tiles[i].row_bytes > 0);
    return &lc_tiles[i];
}
static inline void lc_tile_zero(lc_tile *tile) { memset(tile->bytes, 0, sizeof tile->bytes); }
static inline void lc_tile_load(lc_tile *tile, const void *p, ptrdiff_t stride) {
    lc_tile_zero(tile);
    for (int i = 0; i < tile->rows; i++) memcpy(tile->bytes[i], (const uint8_t *)p + i * stride, (size_t)tile->row_bytes);
}
static inline void lc_tile_store(const lc_tile *tile, void *p, ptrdiff_t stride) {
    for (int i = 0; i < tile->rows; i++) memcpy((uint8_t *)p + i * stride, tile->bytes[i], (size_t)tile->row_bytes);
}
static inline void lc_tiles_must_fit(const lc_tile *sum, const lc_tile *a, const lc_tile *b) {
    lc_tile_must(sum->rows == a->rows && sum->row_bytes == b->row_bytes && a->row_bytes == 4 * b->rows);
}
static inline void lc_tile_dot(lc_tile *sum, const lc_tile *a, const lc_tile *b) {
    lc_tiles_must_fit(sum, a, b);
    for (int i = 0; i < sum->rows; i++)
        for (int j = 0; j < sum->row_bytes / 4; j++) {
            int32_t total;
            memcpy(&total, sum->bytes[i] + 4 * j, 4);
            for (int k = 0; k < b->rows; k++)
                for (int l = 0; l < 4; l++) total += (int8_t)a->bytes[i][4 * k + l] * b->bytes[k][4 * j + l];
            memcpy(sum->bytes[i] + 4 * j, &total, 4);
        }
}

/* Even and odd values are summed apart, as the processor does it (which also takes what is below 2^-126 for 0). */
static inline void lc_tile_dot_bf16(lc_tile *sum, const lc_tile *a, const lc_tile *b) {
    lc_tiles_must_fit(sum, a, b);
    for (int i = 0; i < sum->rows; i++)
        for (int j = 0; j < sum->row_bytes / 4; j++) {
            float total, part[2] = {0, 0};
            memcpy(&total, sum->bytes[i] + 4 * j, 4);
            for (int k = 0; k < b->rows; k++)
                for (int l = 0; l < 2; l++) {
                    uint16_t x, w;
                    memcpy(&x, a->bytes[i] + 4 * k + 2 * l, 2);
                    memcpy(&w, b->bytes[k] + 4 * j + 2 * l, 2);
                    part[l] = fmaf(lc_bf16_to_float(x), lc_bf16_to_float(w), part[l]);
                }
            total += part[0] + part[1];
            memcpy(sum->bytes[i] + 4 * j, &total, 4);
        }
}

#define LC_TILE_ZERO(tile) lc_tile_zero(lc_tile_at(tile))
#define LC_TILE_LOAD(tile, p, stride) lc_tile_load(lc_tile_at(tile), p, stride)
#define LC_TILE_STORE(tile, p, stride) lc_tile_store(lc_tile_at(tile), p, stride)
#define LC_TILE_DOT(sum, a, b) lc_tile_dot(lc_tile_at(sum), lc_tile_at(a), lc_tile_at(b))
#define LC_TILE_DOT_BF16(sum, a, b) lc_tile_dot_bf16(lc_tile_at(sum), lc_tile_at(a), lc_tile_at(b))

#endif
#endif
