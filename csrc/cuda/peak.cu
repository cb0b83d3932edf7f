/* What a card's tensor cores do at most when nothing has to be fetched: the limit of csrc/cuda/many.h and attention.cu,
 * for tools/gpu_check.py. A warp has 8 independent products in flight. */
#include "intrinsics.h"

enum { PEAK_THREADS = 256, PEAK_SUMS = 8 };

/* Rounds of 8 products of 16 x 16 and 16 x 8 (int8: 16 x 32 and 32 x 8) a warp; out: one value a thread. */
template <class Product, class Sum, class Word>
LC_DEVICE void multiply_for(lc_i64 rounds, Product product, float *out) {
    Sum sums[PEAK_SUMS][4];
    Word a[4], b[2];
    LC_UNROLL for (int i = 0; i < 4; i++) a[i] = (Word)(lc_lane() * 4 + i) & 1; /* small, and not known when compiling */
    b[0] = b[1] = a[1];
    LC_UNROLL for (int s = 0; s < PEAK_SUMS; s++) LC_UNROLL for (int i = 0; i < 4; i++) sums[s][i] = (Sum)s; /* none equal */
    for (lc_i64 round = 0; round < rounds; round++)
        LC_UNROLL for (int s = 0; s < PEAK_SUMS; s++) product.add(sums[s], a, b);
    float sum = 0;
    LC_UNROLL for (int s = 0; s < PEAK_SUMS; s++) LC_UNROLL for (int i = 0; i < 4; i++) sum += (float)sums[s][i];
    out[(lc_i64)lc_block_x() * PEAK_THREADS + lc_thread()] = sum;
}

struct F16Product {
    LC_MEMBER void add(float (&c)[4], const lc_u32 (&a)[4], const lc_u32 (&b)[2]) { lc_mma_f16(c, a, b); }
};
struct Bf16Product {
    LC_MEMBER void add(float (&c)[4], const lc_u32 (&a)[4], const lc_u32 (&b)[2]) {
        if (LC_HAS_BF16) lc_mma_bf16(c, a, b);
    }
};
struct S8Product {
    LC_MEMBER void add(int (&c)[4], const int (&a)[4], const int (&b)[2]) { lc_mma_s8_k32(c, a, b); }
};

LC_KERNEL(lc_peak_f16, PEAK_THREADS, 1, (lc_i64 rounds, float *out)) {
    multiply_for<F16Product, float, lc_u32>(rounds, F16Product(), out);
}
/* Nothing before compute capability 8.0. */
LC_KERNEL(lc_peak_bf16, PEAK_THREADS, 1, (lc_i64 rounds, float *out)) {
    multiply_for<Bf16Product, float, lc_u32>(rounds, Bf16Product(), out);
}
LC_KERNEL(lc_peak_s8, PEAK_THREADS, 1, (lc_i64 rounds, float *out)) {
    multiply_for<S8Product, int, int>(rounds, S8Product(), out);
}
