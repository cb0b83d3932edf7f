#include "dispatch.h"

#include <string.h>

/* lc_add_isa in CMakeLists.txt defines LC_ISA_<NAME> as the extensions that the file was compiled for. */
#if defined(LC_ISA_AVX512)
#define AVX512 lc_kernels_avx512, lc_searches_avx512, LC_ISA_AVX512
#else
#define AVX512 NULL, NULL, 0
#endif
#if defined(LC_ISA_AVX2)
#define AVX2 lc_kernels_avx2, lc_searches_avx2, LC_ISA_AVX2
#else
#define AVX2 NULL, NULL, 0
#endif
#if defined(LC_ISA_NEON)
#define NEON lc_kernels_neon, lc_searches_neon, LC_ISA_NEON
#else
#define NEON NULL, NULL, 0
#endif

static const struct isa {
    const char *name;
    lc_kernels_fn fill; /* NULL: not in this library */
    lc_kernels_fn fill_searches;
    uint32_t needs;
} ISAS[] = {
    {"avx512", AVX512},
    {"avx2", AVX2},
    {"neon", NEON},
    {"ref", lc_kernels_ref, lc_searches_ref, 0},
};

enum { N_ISAS = sizeof ISAS / sizeof *ISAS };

static const struct {
    uint32_t feature;
    const char *missing;
} FEATURES[] = {
    {LC_FEATURE_AVX2, "this machine has no avx2"},
    {LC_FEATURE_FMA, "this machine has no fma"},
    {LC_FEATURE_F16C, "this machine has no f16c"},
    {LC_FEATURE_AVX512F, "this machine has no avx512f"},
    {LC_FEATURE_AVX512BW, "this machine has no avx512bw"},
    {LC_FEATURE_AVX512DQ, "this machine has no avx512dq"},
    {LC_FEATURE_AVX512VL, "this machine has no avx512vl"},
    {LC_FEATURE_AVX512VBMI, "this machine has no avx512vbmi"},
    {LC_FEATURE_AVX512VNNI, "this machine has no avx512vnni"},
    {LC_FEATURE_DOTPROD, "this machine has no dotprod"},
};

static const char *why_missing(const struct isa *isa) {
    if (isa->fill == NULL) return "not built for this platform";
    const uint32_t missing = isa->needs & ~lc_cpu_features();
    for (size_t i = 0; i < sizeof FEATURES / sizeof *FEATURES; i++)
        if (missing & FEATURES[i].feature) return FEATURES[i].missing;
    return NULL;
}

int32_t lc_abi_version(void) { return LC_ABI_VERSION; }

int32_t lc_grid_bytes(int32_t type) {
    const lc_format *format = lc_format_of(type);
    return format == NULL ? 0 : format->grid_bytes;
}

int32_t lc_isa_count(void) { return N_ISAS; }

const char *lc_isa_name(int32_t index) { return index >= 0 && index < N_ISAS ? ISAS[index].name : NULL; }

const char *lc_isa_missing(int32_t index) {
    return index >= 0 && index < N_ISAS ? why_missing(&ISAS[index]) : "no such instruction set";
}

int lc_isa_select(const char *isa, lc_kernels *table) {
    for (int i = 0; i < N_ISAS; i++) {
        if (isa != NULL && strcmp(isa, ISAS[i].name) != 0) continue;
        if (why_missing(&ISAS[i]) == NULL) {
            lc_kernels_ref(table);
            ISAS[i].fill(table);
            ISAS[i].fill_searches(table);
            return LC_OK;
        }
        if (isa != NULL) return LC_ISA_UNSUPPORTED;
    }
    return LC_NO_SUCH_ISA;
}
