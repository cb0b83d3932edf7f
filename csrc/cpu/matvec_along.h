/* Products of at most 16 rows with one token, for AVX-512. Included by block_kernels.h.
 *
 * Rows are read along their length, 64 codes to a register, and multiplied with activations put into the same order.
 * A lane of 16 bytes belongs to one group of codes, so it ends as four partial sums of that group; adding those of 16
 * rows up transposes them too, which leaves the group's sums as a vector over the rows. For one token that takes fewer
 * instructions than transposing codes. */
#ifndef LC_MATVEC_ALONG_H
#define LC_MATVEC_ALONG_H

#define LANES _mm512_shuffle_i32x4

/* --- codes ---------------------------------------------------------------------------------------------------- */

/* The order of a format's codes: which of a step's groups the lanes of a product belong to. */
typedef enum order {
    FOUR_BLOCKS, /* 128 values: lane l of registers 0 and 1 are the halves of group l */
    FOUR_AFTER_FOUR, /* 256 values: the same, then groups 4 to 7 */
    EVEN_AND_ODD,    /* 256 values: registers 0 and 1 hold the halves of groups 0, 2, 4, 6, the others of 1, 3, 5, 7 */
    AS_THEY_LIE,     /* 256 values in groups of 16, in order */
    TWO_HALVES       /* 256 values in groups of 16: register i holds groups 2 i and 2 i + 1 of either half */
} order;

INLINE int group_of(order o, int product, int lane) {
    return o == EVEN_AND_ODD ? 2 * lane + product
           : o == TWO_HALVES ? 2 * product + lane % 2 + lane / 2 * 8
                             : 4 * product + lane;
}

/* v[i] becomes lane i of every vector. */
INLINE quad transposed_lanes(quad v) {
    const vec a = LANES(v.k0, v.k1, 0x44), b = LANES(v.k0, v.k1, 0xEE);
    const vec c = LANES(v.k2, v.k3, 0x44), d = LANES(v.k2, v.k3, 0xEE);
    return (quad){LANES(a, c, 0x88), LANES(a, c, 0xDD), LANES(b, d, 0x88), LANES(b, d, 0xDD)};
}

/* The next activations in the order of a format; FOUR_BLOCKS has only two registers of them. */
INLINE quad activations(const int8_t *a, order o) {
    const vec v0 = v_load(a), v1 = v_load(a + 64);
    if (o == FOUR_BLOCKS) return (quad){LANES(v0, v1, 0x88), LANES(v0, v1, 0xDD), v0, v1};
    const vec v2 = v_load(a + 128), v3 = v_load(a + 192);
    const quad v = {v0, v1, v2, v3};
    switch (o) {
    case FOUR_AFTER_FOUR:
        return (quad){LANES(v0, v1, 0x88), LANES(v0, v1, 0xDD), LANES(v2, v3, 0x88), LANES(v2, v3, 0xDD)};
    case EVEN_AND_ODD: return transposed_lanes(v);
    case TWO_HALVES:
        return (quad){LANES(v0, v2, 0x44), LANES(v0, v2, 0xEE), LANES(v1, v3, 0x44), LANES(v1, v3, 0xEE)};
    default: return v;
    }
}

/* The functions codes_NAME read one step of one row: four blocks of 32 values, or one of 256. Codes are unsigned. */
typedef quad (*along_fn)(const uint8_t *p);

/* 16 bytes at the same place of four blocks. */
INLINE vec four_lanes(const uint8_t *p, size_t block) {
    const __m256i low = _mm256_set_m128i(load_16(p + block), load_16(p));
    const __m256i high = _mm256_set_m128i(load_16(p + 3 * block), load_16(p + 2 * block));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

INLINE vec low_bits(vec v) { return v_and(v, v_set8(15)); }
INLINE vec high_bits(vec v) { return v_and(v_srl16(v, 4), v_set8(15)); }
INLINE quad both_nibbles(vec v) { return (quad){low_bits(v), high_bits(v), v, v}; }

/* Adds 16 where the code's bit is set; the 32 bits of four blocks lie `block` bytes apart. */
INLINE quad with_fifths(quad q, const uint8_t *p, size_t block) {
    uint64_t first = 0, second = 0;
    for (int i = 0; i < 4; i++) {
        uint16_t low, high;
        memcpy(&low, p + (size_t)i * block, 2);
        memcpy(&high, p + (size_t)i * block + 2, 2);
        first |= (uint64_t)low << 16 * i;
        second |= (uint64_t)high << 16 * i;
    }
    const vec sixteen = v_set8(16);
    q.k0 = _mm512_mask_add_epi8(q.k0, _cvtu64_mask64(first), q.k0, sixteen);
    q.k1 = _mm512_mask_add_epi8(q.k1, _cvtu64_mask64(second), q.k1, sixteen);
    return q;
}

#define ALONG(name) INLINE quad codes_##name(const uint8_t *p)
#define FIELD(name, field) (p + offsetof(lc_block_##name, field))

ALONG(q4_0) { return both_nibbles(four_lanes(FIELD(q4_0, qs), sizeof(lc_block_q4_0))); }
ALONG(q4_1) { return both_nibbles(four_lanes(FIELD(q4_1, qs), sizeof(lc_block_q4_1))); }
ALONG(q5_0) {
    enum { BYTES = sizeof(lc_block_q5_0) };
    return with_fifths(both_nibbles(four_lanes(FIELD(q5_0, qs), BYTES)), FIELD(q5_0, qh), BYTES);
}
ALONG(q5_1) {
    enum { BYTES = sizeof(lc_block_q5_1) };
    return with_fifths(both_nibbles(four_lanes(FIELD(q5_1, qs), BYTES)), FIELD(q5_1, qh), BYTES);
}
ALONG(q8_0) {
    enum { BYTES = sizeof(lc_block_q8_0) };
    const vec first = four_lanes(FIELD(q8_0, qs), BYTES), second = four_lanes(FIELD(q8_0, qs) + 16, BYTES);
    const vec bias = v_set8(LC_CODE_BIAS);
    return (quad){v_add8(first, bias), v_add8(second, bias), first, second};
}
ALONG(iq4_nl) {
    const quad q = both_nibbles(four_lanes(FIELD(iq4_nl, qs), sizeof(lc_block_iq4_nl)));
    return (quad){iq4_value(q.k0), iq4_value(q.k1), q.k2, q.k3};
}

ALONG(q4_k) {
    const vec v0 = v_load(FIELD(q4_k, qs)), v1 = v_load(FIELD(q4_k, qs) + 64);
    const vec a = LANES(v0, v1, 0x88), b = LANES(v0, v1, 0xDD); /* halves of four pairs of groups */
    return (quad){low_bits(a), low_bits(b), high_bits(a), high_bits(b)};
}

/* Adds `value` where the byte of `flags` has the bit that its lane or half asks for. */
INLINE vec plus_flagged(vec codes, vec flags, vec bits, int value) {
    return _mm512_mask_add_epi8(codes, _mm512_test_epi8_mask(flags, bits), codes, v_set8(value));
}

ALONG(q5_k) {
    const vec v0 = v_load(FIELD(q5_k, qs)), v1 = v_load(FIELD(q5_k, qs) + 64);
    const vec a = LANES(v0, v1, 0x88), b = LANES(v0, v1, 0xDD);
    const vec flags_a = v_repeat16(FIELD(q5_k, qh)), flags_b = v_repeat16(FIELD(q5_k, qh) + 16);
    const vec even = _mm512_set_epi64(0x4040404040404040, 0x4040404040404040, 0x1010101010101010, 0x1010101010101010,
                                      0x0404040404040404, 0x0404040404040404, 0x0101010101010101, 0x0101010101010101);
    const vec odd = v_add8(even, even);
    return (quad){plus_flagged(low_bits(a), flags_a, even, 16), plus_flagged(low_bits(b), flags_b, even, 16),
                  plus_flagged(high_bits(a), flags_a, odd, 16), plus_flagged(high_bits(b), flags_b, odd, 16)};
}

ALONG(iq4_xs) {
    const vec v0 = v_load(FIELD(iq4_xs, qs)), v1 = v_load(FIELD(iq4_xs, qs) + 64);
    return (quad){iq4_value(low_bits(v0)), iq4_value(high_bits(v0)), iq4_value(low_bits(v1)), iq4_value(high_bits(v1))};
}

/* 32 bytes, twice; said in assembly because compilers make two instructions of the intrinsic. */
INLINE vec twice(const uint8_t *p) {
    vec v;
    __asm__("vbroadcasti64x4 %1, %0" : "=v"(v) : "m"(*(const uint8_t(*)[32])(const void *)p));
    return v;
}

/* `low` in the lower half's words, `high` in the upper's. */
INLINE vec halves(int low, int high) {
    return _mm512_inserti64x4(_mm512_set1_epi16((short)low), _mm256_set1_epi16((short)high), 1);
}

/* 128 codes from 64 bytes of nibbles, and two bits each from 32 bytes. */
INLINE void q6_k_half_along(const uint8_t *ql, const uint8_t *qh, vec *first, vec *second) {
    const vec q = v_load(ql), low_four = v_set8(15);
    const vec bits = v_and(_mm512_srlv_epi16(twice(qh), halves(0, 2)), v_set8(0x33)); /* 0-1 first, 4-5 second */
    *first = _mm512_ternarylogic_epi32(q, v_sll16(bits, 4), low_four, 0xE4); /* low_four ? q : bits */
    *second = _mm512_ternarylogic_epi32(v_srl16(q, 4), bits, low_four, 0xE4);
}
ALONG(q6_k) {
    quad q;
    q6_k_half_along(FIELD(q6_k, ql), FIELD(q6_k, qh), &q.k0, &q.k1);
    q6_k_half_along(FIELD(q6_k, ql) + 64, FIELD(q6_k, qh) + 32, &q.k2, &q.k3);
    return q;
}

ALONG(q2_k) {
    const vec v = v_load(FIELD(q2_k, qs)), three = v_set8(3);
    return (quad){v_and(v, three), v_and(v_srl16(v, 2), three), v_and(v_srl16(v, 4), three),
                  v_and(v_srl16(v, 6), three)};
}

ALONG(q3_k) {
    const vec v = v_load(FIELD(q3_k, qs)), flags = twice(FIELD(q3_k, hmask)), three = v_set8(3);
    return (quad){plus_flagged(v_and(v, three), flags, halves(0x0101, 0x1010), 4),
                  plus_flagged(v_and(v_srl16(v, 2), three), flags, halves(0x0202, 0x2020), 4),
                  plus_flagged(v_and(v_srl16(v, 4), three), flags, halves(0x0404, 0x4040), 4),
                  plus_flagged(v_and(v_srl16(v, 6), three), flags, halves(0x0808, (short)0x8080), 4)};
}

/* How a format is read along its rows. */
typedef struct along {
    along_fn codes;
    void (*scales)(const lc_rows row, size_t at, sink *to);
    int bytes, elems, sub, has_min, bits; /* of a code */
    order o;
} along;

/* Blocks, and values, in one step. */
INLINE int blocks_of(const along *f) { return f->elems == 32 ? 4 : 1; }
INLINE int elems_of(const along *f) { return blocks_of(f) * f->elems; }
/* Registers of sums that a step has for each row. */
INLINE int products_of(const along *f) { return elems_of(f) / f->sub / 4; }

/* --- sums ----------------------------------------------------------------------------------------------------- */

/* [product][rows 4 j to 4 j + 3]: lanes are groups, dwords rows. */
typedef vec lc_sums[4][4];

/* Product `i` of a row: a group of 32 is two registers, one of 16 is one. */
INLINE vec product(quad w, quad a, int sub, int i) {
    const vec zero = _mm512_setzero_si512();
    if (sub == 16) return _mm512_dpbusd_epi32(zero, dword_of(w, i), dword_of(a, i));
    const vec half = _mm512_dpbusd_epi32(zero, dword_of(w, 2 * i), dword_of(a, 2 * i));
    return _mm512_dpbusd_epi32(half, dword_of(w, 2 * i + 1), dword_of(a, 2 * i + 1));
}

INLINE void add_up_product(lc_sums sums, const quad *w, quad a, const along *f, int j, int i) {
    if (i >= products_of(f)) return;
    const vec p0 = product(w[0], a, f->sub, i), p1 = product(w[1], a, f->sub, i);
    const vec p2 = product(w[2], a, f->sub, i), p3 = product(w[3], a, f->sub, i);
    const int most = f->sub / 4 * ((1 << f->bits) - 1) * 127;
    sums[i][j] = pairs_added(pairs_added(p0, p1, most), pairs_added(p2, p3, most), 2 * most);
}

/* Codes of so many bits have half of their range as bias; the block holds what one of 8 bits takes out. */
INLINE vec without_bias(vec sums, const lc_q8_block *x, int i, int sub, int bits) {
    return _mm512_add_epi32(sums, v_set32((sub == 32 ? x->bias32 : x->bias16)[i] >> (8 - bits)));
}
INLINE void put_group(sink *to, quad of, const along *f, int i, int lane) {
    const int s = group_of(f->o, i, lane);
    const vec sum = dword_of(of, lane);
    to->sum[s][0] = f->has_min ? sum : without_bias(sum, to->x, to->first + s, f->sub, f->bits);
}
INLINE void put_groups(sink *to, lc_sums sums, const along *f, int i) {
    if (i >= products_of(f)) return;
    const quad of = transposed_lanes((quad){sums[i][0], sums[i][1], sums[i][2], sums[i][3]});
    FOR_4(put_group, to, of, f, i);
}
INLINE void add_group(sink *to, const along *f, int n_groups, int s) {
    if (s < n_groups) end_group(to, f->sub, s, 0);
}

INLINE quad arranged(const int8_t *a, order o, int n_left) {
    if (o != FOUR_BLOCKS || n_left >= 128) return activations(a, o);
    int8_t rest[128] = {0};
    memcpy(rest, a, (size_t)n_left);
    return activations(rest, o);
}

/* A row's codes of a step; those of the next one, at least, are brought near. */
INLINE quad read_step(const along *f, const uint8_t *p) {
    const size_t step_bytes = (size_t)(blocks_of(f) * f->bytes);
    const uint8_t *next = p + step_bytes + LC_LINE - 1;
    lc_bring(next, step_bytes);
#if defined(FETCH_NEAR) /* where requests get lost while there are many: once more, and once more */
    lc_bring(next + step_bytes, step_bytes);
    lc_bring(next + 3 * step_bytes, step_bytes);
#endif
    return f->codes(p);
}

/* Memory is kept busiest by requests that come evenly: a sixth of a step's bytes with each quarter of its rows, with its
 * scales and with its sums, in the order of memory. */
enum { ASK_PARTS = 6 };

INLINE void matvec_along(const uint8_t *rows, size_t row_bytes, int n_rows, const lc_q8_block *x, int n,
                         const uint8_t *ahead, float *c, const along *f) {
    const int n_blocks = blocks_of(f), step_bytes = n_blocks * f->bytes, subs = f->elems / f->sub;
    const int part = VEC_ROWS * step_bytes / ASK_PARTS;
    lc_rows row;
    row_pointers(rows, row_bytes, 0, n_rows, row);
    float scales[16 * VEC_ROWS], mins[16 * VEC_ROWS];
    uint8_t rest[VEC_ROWS][4 * 34];
    sink to;
    to.stride = VEC_ROWS;
    to.has_min = f->has_min;
    to.x = x;
    to.n_tokens = 1;
    to.total[0] = f_set(0);
    size_t at = 0, done = 0; /* the same but for the last step, if that is cut short */
    for (int k = 0; k < n; k += elems_of(f), done += (size_t)step_bytes, at += (size_t)step_bytes) {
        int n_here = n_blocks;
        if (n - k < elems_of(f)) { /* fewer than four blocks: beside zeros */
            n_here = (n - k) / f->elems;
            memset(rest, 0, sizeof rest);
            for (int r = 0; r < VEC_ROWS; r++) row[r] = memcpy(rest[r], row[r] + at, (size_t)(n_here * f->bytes));
            at = 0;
        }
        const quad a = arranged(x->codes + k, f->o, n - k);
        lc_sums sums;
        const uint8_t *next = ahead + VEC_ROWS * done;
        for (int j = 0; j < 4; j++, next += part) {
            lc_fetch_for_one(next, (size_t)part);
            const quad w[4] = {read_step(f, row[4 * j] + at), read_step(f, row[4 * j + 1] + at),
                               read_step(f, row[4 * j + 2] + at), read_step(f, row[4 * j + 3] + at)};
            FOR_4(add_up_product, sums, w, a, f, j);
        }
        lc_fetch_for_one(next, (size_t)part);
        for (int b = 0; b < n_blocks; b++) {
            to.scales = scales + b * subs * VEC_ROWS;
            to.mins = mins + b * subs * VEC_ROWS;
            f->scales(row, at + (size_t)(b * f->bytes), &to);
        }
        to.scales = scales;
        to.mins = mins;
        lc_fetch_for_one(next + part, (size_t)(VEC_ROWS * step_bytes - (ASK_PARTS - 1) * part));
        to.first = k / f->sub;
        FOR_4(put_groups, &to, sums, f);
        FOR_16(add_group, &to, f, n_here * subs);
    }
    f_store_first(c, n_rows, to.total[0]);
}

enum {
    ORDER_q4_0 = FOUR_BLOCKS,
    ORDER_q4_1 = FOUR_BLOCKS,
    ORDER_q5_0 = FOUR_BLOCKS,
    ORDER_q5_1 = FOUR_BLOCKS,
    ORDER_q8_0 = FOUR_BLOCKS,
    ORDER_iq4_nl = FOUR_BLOCKS,
    ORDER_q2_k = TWO_HALVES,
    ORDER_q3_k = TWO_HALVES,
    ORDER_q4_k = EVEN_AND_ODD,
    ORDER_q5_k = EVEN_AND_ODD,
    ORDER_q6_k = AS_THEY_LIE,
    ORDER_iq4_xs = FOUR_AFTER_FOUR
};

#define DEFINE_ALONG(name, id, elems, sub, has_min, bits)                                                            \
    INLINE void along_##name(const uint8_t *rows, size_t row_bytes, int n_rows, const lc_q8_block *x, int n,         \
                             const uint8_t *ahead, float *c) {                                                       \
        const along f = {codes_##name, scales_##name, sizeof(lc_block_##name), elems, sub, has_min, bits,            \
                         (order)ORDER_##name};                                                                       \
        matvec_along(rows, row_bytes, n_rows, x, n, ahead, c, &f);                                                   \
    }
EACH_FORMAT(DEFINE_ALONG)

#undef DEFINE_ALONG
#endif
