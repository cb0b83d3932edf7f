/* Everything that CUDA adds to C++, under names of our own: the kernels use these and nothing else of CUDA. With
 * LC_EMULATED the same kernels compile for the CPU, where emulation.h has the same names (docs in emulation.cpp). NVRTC
 * compiles this without any header of the toolkit.
 *
 * Kernel parameters are pointers and 64-bit integers only, so that any driver layer can pass them as a row of 8-byte
 * words. A kernel is `LC_KERNEL(name, threads, blocks_per_sm, (parameters)) { ... }`. */
#ifndef LC_CUDA_INTRINSICS_H
#define LC_CUDA_INTRINSICS_H

#if defined(LC_EMULATED)
#include "emulation.h"
#else

#define LC_DEVICE __device__ __forceinline__
#define LC_MEMBER static __device__ __forceinline__ /* declares a static member function */
#define LC_DEFINE_MEMBER __device__ __forceinline__ /* defines it outside its struct */
#define LC_CONSTANT static __device__ const
#define LC_KERNEL(name, threads, blocks_per_sm, parameters) \
    extern "C" __global__ void __launch_bounds__(threads, blocks_per_sm) name parameters
#define LC_UNROLL _Pragma("unroll")
#define LC_PRAGMA(text) _Pragma(#text)
#define LC_UNROLL_BY(times) LC_PRAGMA(unroll(times))

typedef unsigned char lc_u8;
typedef signed char lc_i8;
typedef unsigned short lc_u16;
typedef unsigned int lc_u32;
typedef long long lc_i64;
typedef unsigned long long lc_u64;

LC_DEVICE int lc_thread() { return (int)threadIdx.x; }
LC_DEVICE int lc_block_x() { return (int)blockIdx.x; }
LC_DEVICE int lc_block_y() { return (int)blockIdx.y; }
LC_DEVICE int lc_block_z() { return (int)blockIdx.z; }

/* --- threads together ------------------------------------------------------------------------------------------ */

LC_DEVICE void lc_sync_block() { __syncthreads(); }
LC_DEVICE void lc_sync_warp() { __syncwarp(); }
LC_DEVICE float lc_shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
LC_DEVICE int lc_shuffle_xor(int x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
LC_DEVICE lc_u64 lc_shuffle_xor(lc_u64 x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }

/* The block's one object of shared memory, at most 48 KiB; 16-byte aligned, contents undefined. */
template <typename T>
LC_DEVICE T &lc_shared() {
    __shared__ __align__(16) unsigned char memory[sizeof(T)];
    return *reinterpret_cast<T *>(memory);
}

/* Copies 16 bytes to shared memory in the background where the card can; lc_async_wait, then lc_sync_block, before
 * anyone reads them. */
LC_DEVICE void lc_async_copy(void *shared, const void *global) {
#if __CUDA_ARCH__ >= 800
    const unsigned to = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#else
    *(uint4 *)shared = *(const uint4 *)global;
#endif
}
LC_DEVICE void lc_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/* --- loads of data that no kernel in flight writes --------------------------------------------------------------- */

template <typename T>
LC_DEVICE T lc_load(const void *p) {
    return __ldg(static_cast<const T *>(p));
}

/* --- numbers ----------------------------------------------------------------------------------------------------- */

LC_DEVICE int lc_dp4a(int a, int b, int c) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
LC_DEVICE float lc_bits_to_float(lc_u32 x) { return __uint_as_float(x); }
LC_DEVICE lc_u32 lc_float_to_bits(float x) { return __float_as_uint(x); }
LC_DEVICE float lc_half_to_float(lc_u16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}
LC_DEVICE lc_u16 lc_float_to_half(float x) {
    lc_u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}
LC_DEVICE float lc_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
LC_DEVICE float lc_mul(float a, float b) { return __fmul_rn(a, b); } /* never contracted */
LC_DEVICE float lc_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
LC_DEVICE int lc_round(float x) { return __float2int_rn(x); }
LC_DEVICE float lc_abs(float x) { return fabsf(x); }
LC_DEVICE float lc_square_root(float x) { return sqrtf(x); }
LC_DEVICE bool lc_is_finite(float x) { return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u; }
/* Bytes of each word negated where `mask` has FF, kept where it has 00. */
LC_DEVICE lc_u32 lc_negate_bytes(lc_u32 x, lc_u32 mask) { return __vsub4(x ^ mask, mask); }
LC_DEVICE lc_u32 lc_add_bytes(lc_u32 a, lc_u32 b) { return __vadd4(a, b); }
LC_DEVICE lc_u32 lc_permute_bytes(lc_u32 a, lc_u32 b, lc_u32 selector) { return __byte_perm(a, b, selector); }

/* --- tensor cores ------------------------------------------------------------------------------------------------ */
/* Lane 4g + t of the warp. A [16, k]: rows g (a[0], a[2]) and g + 8 (a[1], a[3]), columns from t · (4 bytes), the later
 * half of k in a[2], a[3]. B [k, 8]: column g, the same rows of k. C [16, 8]: rows g (c[0], c[1]) and g + 8, columns
 * 2t and 2t + 1. */

/* C += A B in int8, k = 16. */
LC_DEVICE void lc_mma_s8_k16(int (&c)[4], int a0, int a1, int b) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
#else
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
        : "+r"(c[0]), "+r"(c[1])
        : "r"(a0), "r"(b));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
        : "+r"(c[2]), "+r"(c[3])
        : "r"(a1), "r"(b));
#endif
}

/* C += A B in int8, k = 32. */
LC_DEVICE void lc_mma_s8_k32(int (&c)[4], const int (&a)[4], const int (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    lc_mma_s8_k16(c, a[0], a[1], b[0]);
    lc_mma_s8_k16(c, a[2], a[3], b[1]);
#endif
}

/* C += A B, halves with float32 sums, k = 16. */
LC_DEVICE void lc_mma_f16(float (&c)[4], const lc_u32 (&a)[4], const lc_u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

/* The same of bf16; only where LC_HAS_BF16. */
#if __CUDA_ARCH__ >= 800
#define LC_HAS_BF16 1
#else
#define LC_HAS_BF16 0
#endif
LC_DEVICE void lc_mma_bf16(float (&c)[4], const lc_u32 (&a)[4], const lc_u32 (&b)[2]) {
#if LC_HAS_BF16
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#endif /* LC_EMULATED */

LC_DEVICE float lc_bf16_to_float(lc_u16 h) { return lc_bits_to_float((lc_u32)h << 16); }
LC_DEVICE lc_u16 lc_float_to_bf16(float x) {
    const lc_u32 bits = lc_float_to_bits(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;
    return (lc_u16)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}
/* The 16-bit parts that a value is multiplied in. */
struct AsHalf {
    LC_MEMBER lc_u16 of(float x) { return lc_float_to_half(x); }
    LC_MEMBER float value(lc_u16 part) { return lc_half_to_float(part); }
    LC_MEMBER void multiply(float (&c)[4], const lc_u32 (&a)[4], const lc_u32 (&b)[2]) { lc_mma_f16(c, a, b); }
};
struct AsBf16 {
    LC_MEMBER lc_u16 of(float x) { return lc_float_to_bf16(x); }
    LC_MEMBER float value(lc_u16 part) { return lc_bf16_to_float(part); }
    LC_MEMBER void multiply(float (&c)[4], const lc_u32 (&a)[4], const lc_u32 (&b)[2]) { lc_mma_bf16(c, a, b); }
};

LC_DEVICE lc_u32 lc_pack_halves(float low, float high) {
    return (lc_u32)lc_float_to_half(low) | (lc_u32)lc_float_to_half(high) << 16;
}
LC_DEVICE int lc_lane() { return lc_thread() & 31; }
LC_DEVICE int lc_warp() { return lc_thread() >> 5; }

/* Over the lanes of a warp that differ in the bits of `mask` (31: all of them); the same tree everywhere. */
LC_DEVICE float lc_warp_sum(float x) {
    LC_UNROLL for (int mask = 16; mask > 0; mask >>= 1) x += lc_shuffle_xor(x, mask);
    return x;
}
LC_DEVICE float lc_max(float a, float b) { return a > b ? a : b; }
LC_DEVICE float lc_inverse_sqrt(float x) { return 1.0f / lc_square_root(x); }

/* The CPU's lc_exp and silu, bit for bit (csrc/cpu/fused.h, kernel_table.h): what is rounded to q8 next must not differ
 * in its last bit. */
LC_DEVICE float lc_exp(float x) {
    if (!(x >= -87.0f)) return x != x ? x : 0.0f;
    const float v = x > 88.0f ? 88.0f : x;
    const int k = lc_round(lc_mul(v, 1.44269504f));
    float r = lc_fma(-(float)k, 0.693359375f, v);
    r = lc_fma(-(float)k, -2.12194440e-4f, r);
    float p = 1.0f / 5040;
    p = lc_fma(p, r, 1.0f / 720);
    p = lc_fma(p, r, 1.0f / 120);
    p = lc_fma(p, r, 1.0f / 24);
    p = lc_fma(p, r, 1.0f / 6);
    p = lc_fma(p, r, 0.5f);
    p = lc_fma(p, r, 1.0f);
    p = lc_fma(p, r, 1.0f);
    return lc_mul(p, lc_bits_to_float((lc_u32)(k + 127) << 23));
}
LC_DEVICE float lc_silu_mul_of(float gate, float up) { return lc_mul(gate / (1.0f + lc_exp(-gate)), up); }

#endif
