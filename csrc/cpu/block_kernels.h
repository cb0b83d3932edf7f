/* Blocks of a tile's rows: into panels, or straight into products with one token. One text for every instruction set:
 * the file that includes it includes its simd_ISA.h before. */
#include "block_formats.h"

/* unpack_NAME: as many rows at a time as a vector has places. */
#define DEFINE_UNPACK(name, id, elems, sub_elems, has_min, bits)                                              \
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
                to.stride = TILE_ROWS;                                                                        \
                ask_ahead(&to, ahead, BYTES, elems);                                                          \
                scales_##name(row, (size_t)b * BYTES, &to);                                                   \
                block_##name(row, (size_t)b * BYTES, &to, IN_PANEL);                                               \
            }                                                                                                 \
        }                                                                                                     \
    }
EACH_FORMAT(DEFINE_UNPACK)

#undef DEFINE_UNPACK

/* matvec_NAME, and FEW_TOKENS. */
#if defined(READ_ALONG)
#include "matvec_along.h"
#else
#include "matvec_across.h"
#endif

/* The lines of lc_kernels_ISA that put them into the table. */
#define USE_FORMAT(name, id, elems, sub, has_min, bits) \
    table->unpack_tile[LC_TYPE_##id] = unpack_##name;   \
    table->matvec[LC_TYPE_##id] = matvec_##name;
#define USE_FORMATS                 \
    table->few_tokens = FEW_TOKENS; \
    EACH_FORMAT(USE_FORMAT)
