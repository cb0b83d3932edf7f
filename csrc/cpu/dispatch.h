/* Which instruction set to use: a list in order of preference; what is compiled in and what the machine can run are
 * two questions. */
#ifndef LC_DISPATCH_H
#define LC_DISPATCH_H

#include "kernel_table.h"
#include "localcoder.h"

/* Fills the table with the kernels of `isa` (NULL: the best). LC_NO_SUCH_ISA or LC_ISA_UNSUPPORTED otherwise. */
int lc_isa_select(const char *isa, lc_kernels *table);

#endif
