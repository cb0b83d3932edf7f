/* The text of AVX2, which turns to AVX-VNNI instructions. */
#if !defined(__AVXVNNI__)
#error compiled without AVX-VNNI
#endif
#include "kernels_avx2.c"
