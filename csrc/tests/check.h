/* The few tools that the C tests share. */
#ifndef LC_CHECK_H
#define LC_CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int n_failed;

#define CHECK(condition, ...)                                      \
    do {                                                           \
        if (!(condition)) {                                        \
            printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            printf(__VA_ARGS__);                                   \
            printf("\n");                                          \
            n_failed++;                                            \
        }                                                          \
    } while (0)

static inline uint32_t random_bits(void) {
    static uint64_t state = 88172645463325252u; /* xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static inline float random_float(void) { return (float)random_bits() / 2147483648.0f - 1.0f; }

/* Memory of just this size, so that the sanitizer sees every step beyond it. */
static inline void *take(size_t n_bytes) {
    void *p = malloc(n_bytes ? n_bytes : 1);
    if (p == NULL) abort();
    return p;
}

static inline float *random_floats(size_t n) {
    float *x = take(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = random_float();
    return x;
}

/* Within tolerance of the largest value, or of 1 if that is more. Fails on NaN, too. */
static inline int all_close(const float *a, const float *b, size_t n, float tolerance) {
    float top = 1;
    for (size_t i = 0; i < n; i++) top = fabsf(b[i]) > top ? fabsf(b[i]) : top;
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(a[i] - b[i]) <= tolerance * top)) return 0;
    return 1;
}

#endif
