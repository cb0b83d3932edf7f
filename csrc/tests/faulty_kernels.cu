/* Kernels that do what kernels must not, to see that the emulation notices (tests/backends/test_cuda_emulation.py). */
#include "../cuda/intrinsics.h"

struct Words {
    int of[64];
};

LC_KERNEL(lc_fine, 64, 1, (int *out)) {
    Words &words = lc_shared<Words>();
    words.of[lc_thread()] = lc_thread();
    lc_sync_block();
    out[lc_thread()] = words.of[63 - lc_thread()];
}

LC_KERNEL(lc_without_barrier, 64, 1, (int *out)) {
    Words &words = lc_shared<Words>();
    words.of[lc_thread()] = lc_thread();
    out[lc_thread()] = words.of[63 - lc_thread()];
}

/* Within a warp a meeting is enough, between warps it is not. */
LC_KERNEL(lc_only_warps_meet, 64, 1, (int *out, lc_i64 distance)) {
    Words &words = lc_shared<Words>();
    words.of[lc_thread()] = lc_thread();
    lc_sync_warp();
    out[lc_thread()] = words.of[lc_thread() ^ (int)distance];
}

LC_KERNEL(lc_written_after_reading, 64, 1, (int *out)) {
    Words &words = lc_shared<Words>();
    words.of[lc_thread()] = lc_thread();
    lc_sync_block();
    out[lc_thread()] = words.of[63 - lc_thread()];
    words.of[lc_thread()] = 0;
}

LC_KERNEL(lc_divergent_barrier, 64, 1, (int *out)) {
    if (lc_thread() < 32)
        lc_sync_block();
    else
        lc_sync_block();
    out[lc_thread()] = 0;
}

LC_KERNEL(lc_barrier_for_some, 64, 1, (int *out)) {
    if (lc_thread() < 10) lc_sync_block();
    out[lc_thread()] = 0;
}

LC_KERNEL(lc_shuffle_for_some, 64, 1, (int *out)) {
    int x = lc_thread();
    if (lc_thread() % 2) x = lc_shuffle_xor(x, 1);
    out[lc_thread()] = x;
}

LC_KERNEL(lc_write_at, 64, 1, (int *out, lc_i64 index)) {
    if (lc_thread() == 0) out[index] = 1;
}

LC_KERNEL(lc_no_wait_for_copies, 64, 1, (int *out)) {
    Words &words = lc_shared<Words>();
    if (lc_thread() < 16) lc_async_copy(&words.of[4 * lc_thread()], out + 4 * lc_thread());
}

LC_KERNEL(lc_read_before_the_wait, 64, 1, (int *out)) {
    Words &words = lc_shared<Words>();
    if (lc_thread() < 16) lc_async_copy(&words.of[4 * lc_thread()], out + 4 * lc_thread());
    lc_async_wait();
    out[lc_thread()] = words.of[lc_thread()];
}
