/* The kernels of AMX with tile operations in plain C. */
#define LC_AMX_EMULATED 1
#include "kernels_amx.c"
