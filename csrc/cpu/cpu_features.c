/* What this machine can run. */
#include "dispatch.h"

#if defined(__x86_64__) || defined(__i386__)

#include <cpuid.h>

/* Registers that the operating system saves (XCR0). */
static uint32_t saved_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

uint32_t lc_cpu_features(void) {
    enum { OSXSAVE = 1 << 27, YMM_STATE = 0x06, ZMM_STATE = 0xE6 };
    uint32_t a, b, c, d, features = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return 0;
    const uint32_t leaf1_c = c, state = saved_state();
    if ((state & YMM_STATE) != YMM_STATE || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if (leaf1_c & 1u << 12) features |= LC_FEATURE_FMA;
    if (leaf1_c & 1u << 29) features |= LC_FEATURE_F16C;
    if (b & 1u << 5) features |= LC_FEATURE_AVX2;
    if ((state & ZMM_STATE) != ZMM_STATE) return features;
    if (b & 1u << 16) features |= LC_FEATURE_AVX512F;
    if (b & 1u << 17) features |= LC_FEATURE_AVX512DQ;
    if (b & 1u << 30) features |= LC_FEATURE_AVX512BW;
    if (b & 1u << 31) features |= LC_FEATURE_AVX512VL;
    if (c & 1u << 1) features |= LC_FEATURE_AVX512VBMI;
    if (c & 1u << 11) features |= LC_FEATURE_AVX512VNNI;
    return features;
}

#elif defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>

uint32_t lc_cpu_features(void) {
    const unsigned long asimd_dp = 1ul << 20; /* HWCAP_ASIMDDP */
    return getauxval(AT_HWCAP) & asimd_dp ? LC_FEATURE_DOTPROD : 0;
}

#elif defined(__aarch64__) && defined(__APPLE__)

uint32_t lc_cpu_features(void) { return LC_FEATURE_DOTPROD; } /* every Apple silicon has it */

#elif defined(__aarch64__) && defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

uint32_t lc_cpu_features(void) {
    const DWORD arm_v82_dp = 43; /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
    return IsProcessorFeaturePresent(arm_v82_dp) ? LC_FEATURE_DOTPROD : 0;
}

#else

uint32_t lc_cpu_features(void) { return 0; }

#endif
