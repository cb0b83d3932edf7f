/* The kernels of Zen 5, which need no instruction that other processors with AVX-512 and VNNI lack: tests them on those. */
#include "kernels_zen5.c"
