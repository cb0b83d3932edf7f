/* Blocks of a tile's rows: into panels, or straight into products with one token. One text for every instruction set:
 * the file that includes it includes its simd_ISA.h before. */
#include "block_formats.h"

/* unpack_NAME: as many rows at a time as a vector has places. */
#define DEFINE_UNPACK(name, id, elems, sub_elems, has_min, code_bits)                                         \
    static void unpack_##name(const uint8_t *rows, size_t row_bytes, int n_rows, int n, const uint8_t *ahead, \
                              const lc_panel *panel) {                                                        \
        enum { BYTES = sizeof(lc_block_##name), SUBS = elems / sub_elems };                                   \
        for (int r = 0; r < TILE_ROWS; r += VEC_ROWS) {                                                       \
            lc_rows row;                                                                                      \
            row_pointers(rows, row_bytes, r, n_rows, row);                                                    \
            for (int b = 0; b < n / elems; b++, ahead += VEC_ROWS * BYTES) {                                  \
                sink to;                                                                                      \
                to.codes = panel->codes + (size_t)b * elems * TILE_ROWS + 4 * r;                              \
                to.scales = panel->scales + b * SUBS * TILE_ROWS + r;                                         \
                to.mins = panel->mins + b * SUBS * TILE_ROWS + r;                                             \
                to.lacks = panel->lacks + b * SUBS * TILE_ROWS + r;                                           \
                to.stride = TILE_ROWS;                                                                        \
                to.bits = code_bits;                                                                          \
                to.shared = sub_elems;                                                                        \
                ask_ahead(&to, ahead, BYTES, elems);                                                          \
                scales_##name(row, (size_t)b * BYTES, &to);                                                   \
                block_##name(row, (size_t)b * BYTES, &to, IN_PANEL);                                               \
            }                                                                                                 \
        }                                                                                                     \
    }
EACH_FORMAT(DEFINE_UNPACK)

#undef DEFINE_UNPACK

_Static_assert(FEW_TOKENS <= LC_MAX_FEW_TOKENS, "too many");
#include "matvec_across.h"
#if defined(READ_ALONG)
#include "matvec_along.h"
#define MATVEC_OF_ONE(name, elems)                                                   \
    if (READ_ALONG(elems)) along_##name(here, row_bytes, left, x, n, next, c + r);   \
    else across_##name(here, row_bytes, left, x, 1, n, next, c + r, 0)
#else
#define MATVEC_OF_ONE(name, elems) across_##name(here, row_bytes, left, x, 1, n, next, c + r, 0)
#endif

/* Of all rows, as many at a time as a vector has places. */
#define EACH_VECTOR(...)                                                                             \
    for (int r = 0; r < n_rows; r += VEC_ROWS) {                                                     \
        const int left = lc_at_most(n_rows - r, VEC_ROWS);                                           \
        const uint8_t *here = rows + (size_t)r * row_bytes;                                          \
        const uint8_t *next = r + VEC_ROWS < n_rows ? here + (size_t)VEC_ROWS * row_bytes : ahead;   \
        __VA_ARGS__;                                                                                 \
    }

#define DEFINE_MATVEC(name, id, elems, sub, has_min, bits)                                                              \
    static void matvec_##name(const uint8_t *rows, size_t row_bytes, int n_rows, const lc_q8_block *x, int n,           \
                              const uint8_t *ahead, float *c) {                                                         \
        EACH_VECTOR(MATVEC_OF_ONE(name, elems))                                                                         \
    }
EACH_FORMAT(DEFINE_MATVEC)

#undef DEFINE_MATVEC
#undef MATVEC_OF_ONE

#if FEW_TOKENS > 1
#define ACROSS(name, n_tokens) EACH_VECTOR(across_##name(here, row_bytes, left, x, n_tokens, n, next, c + r, ldc))
#if FEW_TOKENS == 2
#define MATVEC_OF_MORE(name) \
    (void)n_tokens;          \
    ACROSS(name, 2)
#else
#define MATVEC_OF_MORE(name)        \
    switch (n_tokens) {             \
    case 2: ACROSS(name, 2) break;  \
    case 3: ACROSS(name, 3) break;  \
    case 4: ACROSS(name, 4) break;  \
    case 5: ACROSS(name, 5) break;  \
    case 6: ACROSS(name, 6) break;  \
    case 7: ACROSS(name, 7) break;  \
    default: ACROSS(name, 8)        \
    }
#endif

/* matvec_few_NAME: of 2 to FEW_TOKENS, which is 2 or 8. */
#define DEFINE_MATVEC_FEW(name, id, elems, sub, has_min, bits)                                                          \
    static void matvec_few_##name(const uint8_t *rows, size_t row_bytes, int n_rows, const lc_q8_block *x,              \
                                  int n_tokens, int n, const uint8_t *ahead, float *c, int ldc) {                       \
        MATVEC_OF_MORE(name)                                                                                            \
    }
EACH_FORMAT(DEFINE_MATVEC_FEW)

#undef DEFINE_MATVEC_FEW
#undef MATVEC_OF_MORE
#undef ACROSS
#define USE_MATVEC_FEW(name, id, elems, sub, has_min, bits) table->matvec_few[LC_TYPE_##id] = matvec_few_##name;
#define USE_FEW_TOKENS table->few_tokens = FEW_TOKENS; EACH_FORMAT(USE_MATVEC_FEW)
#else
#define USE_FEW_TOKENS /* those of the base, if it has any */
#endif
#undef EACH_VECTOR

/* The lines of lc_kernels_ISA that put them into the table. */
#define USE_FORMAT(name, id, elems, sub, has_min, bits) \
    table->unpack_tile[LC_TYPE_##id] = unpack_##name;   \
    table->matvec[LC_TYPE_##id] = matvec_##name;
#define USE_FORMATS         \
    EACH_FORMAT(USE_FORMAT) \
    USE_FEW_TOKENS
