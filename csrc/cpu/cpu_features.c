#if defined(__linux__)
#define _GNU_SOURCE /* syscall */
#endif
#include "cpu_features.h"

#if defined(__x86_64__) || defined(__i386__)

#include <cpuid.h>
#include <stdbool.h>
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>

/* Linux saves tiles only for processes that asked for them; asking again is harmless. */
static bool may_use_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}
#else
static bool may_use_tiles(void) { return false; }
#endif

/* Registers that the operating system saves (XCR0). */
static uint32_t saved_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

typedef struct cpuid_leaf {
    uint32_t a, b, c, d;
} cpuid_leaf;

static cpuid_leaf read_leaf(uint32_t leaf, uint32_t subleaf) {
    cpuid_leaf r;
    if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return (cpuid_leaf){0, 0, 0, 0};
    return r;
}

uint32_t lc_cpu_features(void) {
    enum { OSXSAVE = 1 << 27, YMM_STATE = 0x06, ZMM_STATE = 0xE6, TILE_STATE = 0x60000 };
    if (!(read_leaf(1, 0).c & OSXSAVE)) return 0;
    const uint32_t state = saved_state();
    uint32_t features = 0;
#define FEATURE(name, leaf, subleaf, reg, bit, needs) \
    if ((state & (needs)) == (needs) && read_leaf(leaf, subleaf).reg >> (bit) & 1) features |= LC_FEATURE_##name;
    LC_X86_FEATURES(FEATURE)
#undef FEATURE
    if (features & LC_FEATURE_AMX_TILE && !may_use_tiles()) features &= ~(uint32_t)LC_FEATURE_AMX_TILE;
    return features;
}

#elif defined(__aarch64__) && (defined(__linux__) || defined(__APPLE__) || defined(_WIN32))

#include <stddef.h>

#if defined(__linux__)
#include <sys/auxv.h>
#define HAS(word, bit, name, number) (getauxval(word) >> (bit) & 1)
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int asked(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return name == NULL || (sysctlbyname(name, &value, &size, NULL, 0) == 0 && value);
}
#define HAS(word, bit, name, number) asked(name)
#else
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#define HAS(word, bit, name, number) IsProcessorFeaturePresent(number)
#endif

uint32_t lc_cpu_features(void) {
    uint32_t features = 0;
#define FEATURE(name, ...) \
    if (HAS(__VA_ARGS__)) features |= LC_FEATURE_##name;
    LC_ARM_FEATURES(FEATURE)
#undef FEATURE
    return features;
}

#else

uint32_t lc_cpu_features(void) { return 0; }

#endif
