/* The text of AVX-512, which turns to VNNI instructions. */
#if !defined(__AVX512VNNI__)
#error compiled without VNNI
#endif
#include "kernels_avx512.c"
