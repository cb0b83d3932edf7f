/* float32 rows into block formats, by plain rounding; bit for bit what localcoder/quants does. */
#ifndef LC_CONVERT_H
#define LC_CONVERT_H

#include <stdbool.h>
#include <stdint.h>

/* Whether lc_quantize_row knows `type`. */
bool lc_can_quantize(int32_t type);
/* n values, a multiple of the format's block. */
void lc_quantize_row(int32_t type, const float *x, int64_t n, uint8_t *blocks);

#endif
