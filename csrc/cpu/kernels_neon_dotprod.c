/* The text of NEON, which turns to dot product instructions. */
#if !defined(__ARM_FEATURE_DOTPROD)
#error compiled without dot products
#endif
#include "kernels_neon.c"
