/* What instruction sets are made of: the extensions that a machine may have, each with the way to find out. The list
 * of instruction sets (instruction_sets.cmake) calls them by these names, of which it also makes compiler flags. */
#ifndef LC_CPU_FEATURES_H
#define LC_CPU_FEATURES_H

#include <stdint.h>

/* x86-64: leaf, subleaf, register and bit of CPUID, and the registers that the operating system must save. */
#define LC_X86_FEATURES(FEATURE)                \
    FEATURE(FMA, 1, 0, c, 12, YMM_STATE)        \
    FEATURE(F16C, 1, 0, c, 29, YMM_STATE)       \
    FEATURE(AVX2, 7, 0, b, 5, YMM_STATE)        \
    FEATURE(AVXVNNI, 7, 1, a, 4, YMM_STATE)     \
    FEATURE(AVX512F, 7, 0, b, 16, ZMM_STATE)    \
    FEATURE(AVX512DQ, 7, 0, b, 17, ZMM_STATE)   \
    FEATURE(AVX512BW, 7, 0, b, 30, ZMM_STATE)   \
    FEATURE(AVX512VL, 7, 0, b, 31, ZMM_STATE)   \
    FEATURE(AVX512VNNI, 7, 0, c, 11, ZMM_STATE) \
    FEATURE(AVX512BF16, 7, 1, a, 5, ZMM_STATE)  \
    FEATURE(AVX512VP2INTERSECT, 7, 0, d, 8, ZMM_STATE) \
    FEATURE(AMX_BF16, 7, 0, d, 22, TILE_STATE)  \
    FEATURE(AMX_TILE, 7, 0, d, 24, TILE_STATE)  \
    FEATURE(AMX_INT8, 7, 0, d, 25, TILE_STATE)

/* arm64: on Linux a word and bit of the auxiliary vector; on macOS a name for sysctlbyname, NULL where every machine
 * has it; on Windows a number for IsProcessorFeaturePresent. */
#define LC_ARM_FEATURES(FEATURE)                    \
    FEATURE(DOTPROD, AT_HWCAP, 20, NULL, 43)        \
    FEATURE(I8MM, AT_HWCAP2, 13, "hw.optional.arm.FEAT_I8MM", 66)

#define LC_NAME_FEATURE(name, ...) LC_BIT_##name,
enum { LC_X86_FEATURES(LC_NAME_FEATURE) LC_ARM_FEATURES(LC_NAME_FEATURE) LC_N_FEATURES };
#undef LC_NAME_FEATURE

#define LC_NAME_FEATURE(name, ...) LC_FEATURE_##name = 1 << LC_BIT_##name,
enum lc_feature { LC_X86_FEATURES(LC_NAME_FEATURE) LC_ARM_FEATURES(LC_NAME_FEATURE) };
#undef LC_NAME_FEATURE

/* Those that this machine has and that its operating system lets this process use. */
uint32_t lc_cpu_features(void);

#endif
