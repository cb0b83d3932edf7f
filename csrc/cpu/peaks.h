/* Multiply-adds on registers alone, as many as the including file's instructions allow at once: what its kernels are
 * measured against. In assembly, because a compiler would see that nobody wants the results. USE_PEAKS puts them into
 * the table. */
#ifndef LC_PEAKS_H
#define LC_PEAKS_H

#include "kernel_table.h"

/* Twelve registers that do not wait for one another. */
#define EACH_OF_12(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)

/* NAME(rounds): twelve times `code` each round; ops: operations (a multiply and an add are two) of one. */
#define DEFINE_PEAK(name, code, ops)                                       \
    static int64_t name(int64_t rounds) {                                  \
        for (int64_t i = 0; i < rounds; i++) { EACH_OF_12(code) }          \
        return rounds * 12 * (ops);                                        \
    }

#if defined(__AVX512F__)
#define F32_CODE(r) __asm__ volatile("vfmadd231ps %%zmm30, %%zmm31, %%zmm" #r ::: "xmm" #r);
DEFINE_PEAK(peak_f32, F32_CODE, 32)
#elif defined(__AVX2__)
#define F32_CODE(r) __asm__ volatile("vfmadd231ps %%ymm14, %%ymm15, %%ymm" #r ::: "xmm" #r);
DEFINE_PEAK(peak_f32, F32_CODE, 16)
#elif defined(__aarch64__)
#define F32_CODE(r) __asm__ volatile("fmla v" #r ".4s, v30.4s, v31.4s" ::: "v" #r);
DEFINE_PEAK(peak_f32, F32_CODE, 8)
#endif

#if defined(__AVX512VNNI__)
#define INT8_CODE(r) __asm__ volatile("vpdpbusd %%zmm30, %%zmm31, %%zmm" #r ::: "xmm" #r);
DEFINE_PEAK(peak_int8, INT8_CODE, 128)
#elif defined(__AVXVNNI__)
#define INT8_CODE(r) __asm__ volatile("%{vex%} vpdpbusd %%ymm14, %%ymm15, %%ymm" #r ::: "xmm" #r);
DEFINE_PEAK(peak_int8, INT8_CODE, 64)
#elif defined(__AVX2__) /* without dot products: multiply, add in 16 bits, as codes of few bits allow */
#define INT8_CODE(r)                                                             \
    __asm__ volatile("vpmaddubsw %%ymm14, %%ymm15, %%ymm13\n\t"                  \
                     "vpaddw %%ymm13, %%ymm" #r ", %%ymm" #r ::: "xmm13", "xmm" #r);
DEFINE_PEAK(peak_int8, INT8_CODE, 64)
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#define INT8_CODE(r) __asm__ volatile("smmla v" #r ".4s, v30.16b, v31.16b" ::: "v" #r);
DEFINE_PEAK(peak_int8, INT8_CODE, 64)
#elif defined(__ARM_FEATURE_DOTPROD)
#define INT8_CODE(r) __asm__ volatile("sdot v" #r ".4s, v30.16b, v31.16b" ::: "v" #r);
DEFINE_PEAK(peak_int8, INT8_CODE, 32)
#else
#define peak_int8 NULL
#endif

#if defined(__AVX512BF16__)
#define BF16_CODE(r) __asm__ volatile("vdpbf16ps %%zmm30, %%zmm31, %%zmm" #r ::: "xmm" #r);
DEFINE_PEAK(peak_bf16, BF16_CODE, 64)
#else
#define peak_bf16 NULL
#endif

#define USE_PEAKS                            \
    table->peak[LC_PEAK_INT8] = peak_int8;   \
    table->peak[LC_PEAK_BF16] = peak_bf16;   \
    table->peak[LC_PEAK_F32] = peak_f32;

#endif
