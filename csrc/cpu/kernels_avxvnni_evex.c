/* AVX-VNNI with its instruction in AVX-512's encoding: tests that text where there is no AVX-VNNI. */
#if defined(__AVXVNNI__)
#error compiled with AVX-VNNI
#endif
#include "kernels_avx2.c"
