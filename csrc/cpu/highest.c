#include <stdbool.h>
#include <string.h>

#include "kernel_table.h"
#include "localcoder.h"

/* A heap with the lowest on top: of equal ones the later. */
typedef struct entry {
    float rank; /* the logit; infinite if that is not finite */
    int32_t id;
} entry;

static bool is_below(entry a, entry b) { return a.rank < b.rank || (a.rank == b.rank && a.id > b.id); }

/* Puts `e` into the place on top of the n others. */
static void sift_down(entry *heap, int n, entry e) {
    int at = 0;
    for (int child = 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && is_below(heap[child + 1], heap[child])) child++;
        if (!is_below(heap[child], e)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = e;
}

static void sift_up(entry *heap, int at, entry e) {
    for (; at > 0 && is_below(e, heap[(at - 1) / 2]); at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = e;
}

enum { BLOCK = 64, LANES = 16, INFINITE = 0x7F800000 };

static int32_t magnitude(const float *x) {
    int32_t bits;
    memcpy(&bits, x, sizeof bits);
    return bits & 0x7FFFFFFF;
}

/* Whether a block has anything above `least`, or not finite. */
static bool is_of_interest(const float *x, float least) {
    int32_t found[LANES] = {0};
    for (int i = 0; i < BLOCK; i += LANES)
        for (int l = 0; l < LANES; l++) found[l] |= (x[i + l] > least) | (magnitude(x + i + l) >= INFINITE);
    int32_t any = 0;
    for (int l = 0; l < LANES; l++) any |= found[l];
    return any != 0;
}

static void highest_of_row(const float *logits, int32_t n, int32_t n_ids, int32_t k, int64_t *ids, float *highest) {
    entry heap[LC_MAX_HIGHEST];
    int n_kept = 0;
    for (int32_t at = 0; at < n; at += BLOCK) {
        if (n_kept == k && n - at >= BLOCK && !is_of_interest(logits + at, heap[0].rank)) continue;
        const int32_t end = at + lc_at_most(n - at, BLOCK);
        for (int32_t id = at; id < end; id++) {
            const bool is_finite = magnitude(logits + id) < INFINITE;
            if (is_finite && id >= n_ids) continue;
            const entry e = {is_finite ? logits[id] : __builtin_inff(), id};
            if (n_kept < k) sift_up(heap, n_kept++, e);
            else if (is_below(heap[0], e)) sift_down(heap, k, e);
        }
    }
    for (int i = k - 1; i >= 0; i--) {
        ids[i] = heap[0].id;
        highest[i] = logits[heap[0].id];
        sift_down(heap, i, heap[i]);
    }
}

int32_t lc_highest(const float *logits, int32_t n_rows, int32_t n, int32_t n_ids, int32_t k, int64_t *ids, float *highest) {
    if (k < 1 || k > LC_MAX_HIGHEST || k > n_ids || n_ids > n) return LC_BAD_ARGUMENT;
    for (int32_t r = 0; r < n_rows; r++, logits += n, ids += k, highest += k)
        highest_of_row(logits, n, n_ids, k, ids, highest);
    return LC_OK;
}
