/* The kernels of AMX with products of bf16, with tile operations in plain C. */
#define LC_AMX_EMULATED 1
#include "kernels_amx_bf16.c"
