/* The names of intrinsics.h on a CPU: how it works is told in emulation.cpp. Included with LC_EMULATED only. */
#ifndef LC_CUDA_EMULATION_H
#define LC_CUDA_EMULATION_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LC_DEVICE static inline
#define LC_MEMBER static inline
#define LC_DEFINE_MEMBER inline
#define LC_CONSTANT static const
#define LC_UNROLL
#define LC_UNROLL_BY(times)

typedef uint8_t lc_u8;
typedef int8_t lc_i8;
typedef uint16_t lc_u16;
typedef uint32_t lc_u32;
typedef long long lc_i64;
typedef unsigned long long lc_u64;

struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { lc_u32 x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { lc_u32 x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

/* --- the machine, in emulation.cpp -------------------------------------------------------------------------------- */

struct lc_emulated_place {
    int thread, block_x, block_y, block_z;
};
extern lc_emulated_place lc_emulated_here; /* of the thread that runs */

enum { LC_EMULATED_SHARED_BYTES = 48 * 1024, LC_EMULATED_LANE_BYTES = 64 };

/* `line` tells calls apart: threads that meet must come from the same one. */
void lc_emulated_sync_block(int line);
/* Hands in this lane's `size` bytes; returns every lane's, [32][LC_EMULATED_LANE_BYTES], until its next exchange. */
const lc_u8 *lc_emulated_exchange(const void *mine, int size, int line);
void *lc_emulated_shared(size_t size);
void lc_emulated_async_copy(void *shared, const void *global);
void lc_emulated_async_wait();

typedef void (*lc_emulated_call)(const void *function, const uint64_t *arguments);
struct lc_emulated_kernel {
    lc_emulated_kernel(const char *name, int threads, const void *function, lc_emulated_call call);
};

/* Unpacks a row of 8-byte words into a kernel's parameters. */
template <typename T>
T lc_emulated_argument(uint64_t word) {
    static_assert(sizeof(T) == 8, "kernel parameters are pointers and 64-bit integers");
    T value;
    memcpy(&value, &word, sizeof value);
    return value;
}
template <int... I>
struct lc_emulated_indices {};
template <int N, int... I>
struct lc_emulated_count : lc_emulated_count<N - 1, N - 1, I...> {};
template <int... I>
struct lc_emulated_count<0, I...> {
    typedef lc_emulated_indices<I...> type;
};
template <typename... T, int... I>
void lc_emulated_apply(void (*f)(T...), const uint64_t *words, lc_emulated_indices<I...>) {
    f(lc_emulated_argument<T>(words[I])...);
}
template <typename... T>
void lc_emulated_unpack(const void *function, const uint64_t *words) {
    void (*f)(T...);
    memcpy(&f, &function, sizeof f);
    lc_emulated_apply(f, words, typename lc_emulated_count<(int)sizeof...(T)>::type());
}
template <typename... T>
lc_emulated_kernel lc_emulated_register(const char *name, int threads, void (*f)(T...)) {
    const void *function;
    memcpy(&function, &f, sizeof function);
    return lc_emulated_kernel(name, threads, function, lc_emulated_unpack<T...>);
}

#define LC_KERNEL(name, threads, blocks_per_sm, parameters) LC_EMULATED_KERNEL(name, threads, parameters)
#define LC_EMULATED_KERNEL(name, threads, parameters)                                                       \
    static void name parameters;                                                                            \
    static const lc_emulated_kernel name##_registered = lc_emulated_register(#name, threads, name);         \
    static void name parameters

/* --- the names of intrinsics.h ------------------------------------------------------------------------------------- */

LC_DEVICE int lc_thread() { return lc_emulated_here.thread; }
LC_DEVICE int lc_block_x() { return lc_emulated_here.block_x; }
LC_DEVICE int lc_block_y() { return lc_emulated_here.block_y; }
LC_DEVICE int lc_block_z() { return lc_emulated_here.block_z; }

LC_DEVICE void lc_sync_block(int line = __builtin_LINE()) { lc_emulated_sync_block(line); }
LC_DEVICE void lc_sync_warp(int line = __builtin_LINE()) {
    const int none = 0;
    lc_emulated_exchange(&none, sizeof none, line);
}
template <typename T>
T lc_shuffle_xor(T x, int mask, int line = __builtin_LINE()) {
    const lc_u8 *lanes = lc_emulated_exchange(&x, sizeof x, line);
    memcpy(&x, lanes + ((lc_thread() & 31) ^ mask) * LC_EMULATED_LANE_BYTES, sizeof x);
    return x;
}
template <typename T>
T &lc_shared() {
    static_assert(sizeof(T) <= LC_EMULATED_SHARED_BYTES, "more shared memory than every card has");
    return *static_cast<T *>(lc_emulated_shared(sizeof(T)));
}
LC_DEVICE void lc_async_copy(void *shared, const void *global) { lc_emulated_async_copy(shared, global); }
LC_DEVICE void lc_async_wait() { lc_emulated_async_wait(); }

template <typename T>
T lc_load(const void *p) {
    return *static_cast<const T *>(p); /* UBSan and the checked build look at alignment and bounds */
}

LC_DEVICE int lc_dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) c += (int)(lc_i8)(a >> i) * (int)(lc_i8)(b >> i);
    return c;
}
LC_DEVICE float lc_bits_to_float(lc_u32 x) {
    float y;
    memcpy(&y, &x, sizeof y);
    return y;
}
LC_DEVICE lc_u32 lc_float_to_bits(float x) {
    lc_u32 y;
    memcpy(&y, &x, sizeof y);
    return y;
}
LC_DEVICE float lc_half_to_float(lc_u16 h) {
    const lc_u32 sign = (lc_u32)(h & 0x8000) << 16, magnitude = h & 0x7FFF;
    if (magnitude < 0x0400) return lc_bits_to_float(sign | lc_float_to_bits((float)magnitude * 0x1p-24f));
    if (magnitude >= 0x7C00) return lc_bits_to_float(sign | 0x7F800000u | (magnitude & 0x3FF) << 13);
    return lc_bits_to_float(sign | ((magnitude << 13) + ((127 - 15) << 23)));
}
LC_DEVICE lc_u16 lc_float_to_half(float x) {
    const lc_u32 bits = lc_float_to_bits(x), sign = bits >> 16 & 0x8000;
    lc_u32 magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return (lc_u16)0x7FFF; /* as the card writes a NaN */
    if (magnitude >= 0x47800000) return (lc_u16)(sign | 0x7C00);
    if (magnitude < 0x38800000) /* below 2^-14: adding 1/2 leaves the rounded integer in the low bits */
        return (lc_u16)(sign | (lc_float_to_bits(lc_bits_to_float(magnitude) + 0.5f) - 0x3F000000u));
    magnitude += 0xFFF + (magnitude >> 13 & 1);
    return (lc_u16)(sign | ((magnitude - ((127 - 15) << 23)) >> 13));
}
LC_DEVICE float lc_fma(float a, float b, float c) { return fmaf(a, b, c); }
LC_DEVICE float lc_mul(float a, float b) { return a * b; }
LC_DEVICE float lc_exp2(float x) { return exp2f(x); }
LC_DEVICE float lc_square_root(float x) { return sqrtf(x); }
LC_DEVICE int lc_round(float x) { return (int)lrintf(x); }
LC_DEVICE float lc_abs(float x) { return fabsf(x); }
LC_DEVICE bool lc_is_finite(float x) { return (lc_float_to_bits(x) & 0x7F800000u) != 0x7F800000u; }
LC_DEVICE lc_u32 lc_add_bytes(lc_u32 a, lc_u32 b) {
    return ((a & 0x7F7F7F7Fu) + (b & 0x7F7F7F7Fu)) ^ ((a ^ b) & 0x80808080u);
}
LC_DEVICE lc_u32 lc_negate_bytes(lc_u32 x, lc_u32 mask) { return lc_add_bytes(x ^ mask, mask & 0x01010101u); }
LC_DEVICE lc_u32 lc_permute_bytes(lc_u32 a, lc_u32 b, lc_u32 selector) {
    const uint64_t bytes = (uint64_t)b << 32 | a;
    lc_u32 out = 0;
    for (int i = 0; i < 4; i++) out |= (lc_u32)(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    return out;
}

/* Tensor cores: every lane hands in its fragments and computes its own four sums. K4 is the number of 4-byte words of
 * a row of A in each lane's fragment. */
struct lc_emulated_fragments {
    lc_u32 a[4], b[2];
};
template <typename Sum, typename Dot>
void lc_emulated_mma(Sum (&c)[4], const lc_emulated_fragments &mine, int words, Dot dot, int line) {
    const lc_u8 *lanes = lc_emulated_exchange(&mine, sizeof mine, line);
    const int g = (lc_thread() & 31) >> 2, t = lc_thread() & 3;
    for (int i = 0; i < 4; i++) {
        const int row = i >> 1, column = 2 * t + (i & 1);
        for (int word = 0; word < words; word++)
            for (int quad = 0; quad < 4; quad++) {
                lc_emulated_fragments a, b;
                memcpy(&a, lanes + (4 * g + quad) * LC_EMULATED_LANE_BYTES, sizeof a);
                memcpy(&b, lanes + (4 * column + quad) * LC_EMULATED_LANE_BYTES, sizeof b);
                c[i] = dot(a.a[2 * word + row], b.b[word], c[i]);
            }
    }
}
LC_DEVICE int lc_emulated_dot_s8(lc_u32 a, lc_u32 b, int c) { return lc_dp4a((int)a, (int)b, c); }
LC_DEVICE float lc_emulated_dot_f16(lc_u32 a, lc_u32 b, float c) {
    c += lc_half_to_float((lc_u16)a) * lc_half_to_float((lc_u16)b);
    return c + lc_half_to_float((lc_u16)(a >> 16)) * lc_half_to_float((lc_u16)(b >> 16));
}
LC_DEVICE float lc_emulated_dot_bf16(lc_u32 a, lc_u32 b, float c) {
    c += lc_bits_to_float(a << 16) * lc_bits_to_float(b << 16);
    return c + lc_bits_to_float(a & 0xFFFF0000u) * lc_bits_to_float(b & 0xFFFF0000u);
}
LC_DEVICE void lc_mma_s8_k16(int (&c)[4], int a0, int a1, int b, int line = __builtin_LINE()) {
    const lc_emulated_fragments mine = {{(lc_u32)a0, (lc_u32)a1, 0, 0}, {(lc_u32)b, 0}};
    lc_emulated_mma(c, mine, 1, lc_emulated_dot_s8, line);
}
LC_DEVICE void lc_mma_s8_k32(int (&c)[4], const int (&a)[4], const int (&b)[2], int line = __builtin_LINE()) {
    lc_emulated_fragments mine;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    lc_emulated_mma(c, mine, 2, lc_emulated_dot_s8, line);
}
LC_DEVICE void lc_mma_f16(float (&c)[4], const lc_u32 (&a)[4], const lc_u32 (&b)[2], int line = __builtin_LINE()) {
    lc_emulated_fragments mine;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    lc_emulated_mma(c, mine, 2, lc_emulated_dot_f16, line);
}
/* LC_EMULATED_ARCH: the compute capability times 100, as __CUDA_ARCH__ has it. */
#ifndef LC_EMULATED_ARCH
#define LC_EMULATED_ARCH 800
#endif
#define LC_HAS_BF16 (LC_EMULATED_ARCH >= 800)
LC_DEVICE void lc_mma_bf16(float (&c)[4], const lc_u32 (&a)[4], const lc_u32 (&b)[2], int line = __builtin_LINE()) {
    lc_emulated_fragments mine;
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    lc_emulated_mma(c, mine, 2, lc_emulated_dot_bf16, line);
}

#endif
