/* Instruction sets whose products of 8-bit codes, an unsigned and a signed one, come as sums of two in 16 bits
 * (vpmaddubsw). Where codes have few bits, several such sums fit into 16 bits before they are widened. Codes of 8 bits
 * stay signed, and move their sign to the activation.
 *
 * The file that includes this has before: v_pairs8, that instruction; widened, the sums of neighbours in 16 bits; v_signed8, bytes
 * that take the signs of others; and v_signs8, all ones in the bytes that are negative. */
#ifndef LC_NARROW_SUMS_H
#define LC_NARROW_SUMS_H

enum { HAS_WIDE_SUMS = 0 };

/* Compilers would put off additions of whole numbers, and run out of registers for what is to be added. */
#define KEEP_ORDER(sum) __asm__("" : "+v"(sum))

#define BIAS_LOG2(bits) ((bits) < 8 ? (bits) - 1 : -1)

/* Whether products of a group are added up before they are widened; a dword of a row's sums holds half of a group then. */
INLINE int widen_later(int bits) { return bits < 8; }

/* sum += products of unsigned codes in w and activations in a, in 16 bits. */
INLINE vec add_unsigned(vec sum, vec w, vec a) {
    sum = v_add16(sum, v_pairs8(w, a));
    KEEP_ORDER(sum);
    return sum;
}

/* The same of codes of so many bits. */
INLINE vec add_products(vec sum, vec w, vec a, int bits) {
    return bits < 8 ? add_unsigned(sum, w, a) : add_unsigned(sum, v_abs8(w), v_signed8(a, w));
}

/* Codes of a tile's rows; of signed ones the sizes, and bytes of ones where they are negative. */
typedef struct tile_codes {
    vec codes, turns;
} tile_codes;

INLINE tile_codes tile_codes_of(vec w, int bits) {
    return bits < 8 ? (tile_codes){w, w} : (tile_codes){v_abs8(w), v_signs8(w)};
}

/* Many activations take the signs of the same codes by turning their bits, which more ports can do than change a sign, and get
 * -a - 1 instead of -a. What sums lack for that is the sum of the sizes of negative codes, the same for all activations. */
INLINE vec add_tile_products(vec sum, tile_codes w, vec a, int bits) {
    return bits < 8 ? add_unsigned(sum, w.codes, a) : v_add16(sum, v_pairs8(w.codes, v_xor(a, w.turns)));
}

/* That of 16 codes of each row, in k0 to k3. */
INLINE vec lack_of(vec k0, vec k1, vec k2, vec k3) {
#define LACK(k) v_pairs8(v_abs8(k), v_signs8(k))
    const vec negative = v_add16(v_add16(LACK(k0), LACK(k1)), v_add16(LACK(k2), LACK(k3)));
#undef LACK
    return v_sub32(v_set32(0), widened(negative));
}

/* How many steps of four codes may be added up before a sum is widened: activations reach 127. */
INLINE int steps_that_fit(int bits) { return bits < 8 ? INT16_MAX / (2 * 127 * ((1 << bits) - 1)) : 1; }

#endif
