/* Which instruction set to use: a list in order of preference; what is compiled in and what the machine can run are
 * two questions. */
#ifndef LC_DISPATCH_H
#define LC_DISPATCH_H

#include <stdint.h>

#include "kernel_table.h"
#include "localcoder.h"

/* Instruction set extensions; CMake's lc_add_isa names them too. */
enum lc_feature {
    LC_FEATURE_AVX2 = 1 << 0,
    LC_FEATURE_FMA = 1 << 1,
    LC_FEATURE_F16C = 1 << 2,
    LC_FEATURE_AVX512F = 1 << 3,
    LC_FEATURE_AVX512BW = 1 << 4,
    LC_FEATURE_AVX512DQ = 1 << 5,
    LC_FEATURE_AVX512VL = 1 << 6,
    LC_FEATURE_AVX512VBMI = 1 << 7,
    LC_FEATURE_AVX512VNNI = 1 << 8,
    LC_FEATURE_DOTPROD = 1 << 16
};

/* The extensions that this machine has and its operating system saves. */
uint32_t lc_cpu_features(void);

/* Fills the table with the kernels of `isa` (NULL: the best). LC_NO_SUCH_ISA or LC_ISA_UNSUPPORTED otherwise. */
int lc_isa_select(const char *isa, lc_kernels *table);

#endif
