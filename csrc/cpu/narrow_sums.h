/* Instruction sets whose products of 8-bit codes, an unsigned and a signed one, come as sums of two in 16 bits
 * (vpmaddubsw). Where codes have few bits, several such sums fit into 16 bits before they are widened. Codes of 8 bits
 * stay signed, and move their sign to the activation. */
#ifndef LC_NARROW_SUMS_H
#define LC_NARROW_SUMS_H

enum { HAS_WIDE_SUMS = 0 };

/* Compilers would put off additions of whole numbers, and run out of registers for what is to be added. */
#define KEEP_ORDER(sum) __asm__("" : "+v"(sum))

#define BIAS_LOG2(bits) ((bits) < 8 ? (bits) - 1 : -1)

/* Whether products of a group are added up before they are widened; a dword of a row's sums holds half of a group then. */
INLINE int widen_later(int bits) { return bits < 8; }

/* How many steps of four codes may be added up before a sum is widened: activations reach 127. */
INLINE int steps_that_fit(int bits) { return bits < 8 ? INT16_MAX / (2 * 127 * ((1 << bits) - 1)) : 1; }

#endif
