/* The text of AMX, which adds products of bf16. */
#if !defined(__AVX512BF16__)
#error compiled without bf16
#endif
#include "kernels_amx.c"
