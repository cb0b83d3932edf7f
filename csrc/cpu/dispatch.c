#include "dispatch.h"

#include <string.h>

#include "cpu_features.h"

/* instruction_sets.h is made by instruction_sets.cmake: LC_ISA for what is in this library, LC_ISA_ABSENT for the rest. */
#define LC_ISA(name, base, searches, needs) \
    lc_kernels_fn_type lc_kernels_##name;   \
    lc_kernels_fn_type lc_searches_##searches;
#define LC_ISA_ABSENT(name, why)
#include "instruction_sets.h"
#undef LC_ISA
#undef LC_ISA_ABSENT

#define LC_ISA(name, base, searches, needs) \
    {#name, NULL, lc_kernels_##base, lc_kernels_##name, lc_searches_##searches, needs},
#define LC_ISA_ABSENT(name, why) {#name, why, NULL, NULL, NULL, 0},
static const struct isa {
    const char *name;
    const char *absent; /* why it is not in this library, or NULL */
    lc_kernels_fn fill_base;
    lc_kernels_fn fill;
    lc_kernels_fn fill_searches;
    uint32_t needs;
} ISAS[] = {
#include "instruction_sets.h"
};

enum { N_ISAS = sizeof ISAS / sizeof *ISAS };

#define NO_FEATURE(name, ...) "this machine has no " #name,
static const char *const NO_FEATURE[] = {LC_X86_FEATURES(NO_FEATURE) LC_ARM_FEATURES(NO_FEATURE)};

static const char *why_missing(const struct isa *isa) {
    if (isa->absent != NULL) return isa->absent;
    const uint32_t missing = isa->needs & ~lc_cpu_features();
    for (int i = 0; i < LC_N_FEATURES; i++)
        if (missing >> i & 1) return NO_FEATURE[i];
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
            ISAS[i].fill_base(table);
            ISAS[i].fill(table);
            ISAS[i].fill_searches(table);
            return LC_OK;
        }
        if (isa != NULL) return LC_ISA_UNSUPPORTED;
    }
    return LC_NO_SUCH_ISA;
}
