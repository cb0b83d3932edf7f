/* Instruction sets whose products of 8-bit codes are added up in 32 bits at once; see narrow_sums.h for the others. */
#ifndef LC_WIDE_SUMS_H
#define LC_WIDE_SUMS_H

enum { HAS_WIDE_SUMS = 1 };

#define KEEP_ORDER(sum)

INLINE int widen_later(int bits) { return (void)bits, 1; }
INLINE int steps_that_fit(int bits) { return (void)bits, LC_GROUP / 4; }
INLINE vec widened(vec sum) { return sum; }

typedef vec tile_codes;
INLINE tile_codes tile_codes_of(vec w, int bits) { return (void)bits, w; }
#define add_tile_products add_products
INLINE vec lack_of(vec k0, vec k1, vec k2, vec k3) { return (void)k1, (void)k2, (void)k3, k0; } /* not wanted */

#endif
