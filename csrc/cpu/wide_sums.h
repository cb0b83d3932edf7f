/* Instruction sets whose products of 8-bit codes are added up in 32 bits at once; see narrow_sums.h for the others. */
#ifndef LC_WIDE_SUMS_H
#define LC_WIDE_SUMS_H

enum { HAS_WIDE_SUMS = 1 };

#define KEEP_ORDER(sum)

INLINE int widen_later(int bits) { return (void)bits, 1; }
INLINE int steps_that_fit(int bits) { return (void)bits, LC_GROUP / 4; }
INLINE vec widened(vec sum) { return sum; }

#endif
