/* Runs CUDA kernels on a CPU, to test them where there is no card.
 *
 * A launch runs its blocks one after another. Each thread of a block is a fiber with a stack of its own; it runs until it
 * must wait for others (a barrier, a shuffle, a matrix product of the warp), then the next one does. So every run takes
 * the same course. Threads that meet must come from the same line of the source: if they do not, or wait for one that
 * has left, the launch fails and says so.
 *
 * The checked build compiles the kernels with -fsanitize=thread, whose calls before every access of memory end in the
 * hooks at the end of this file instead of that sanitizer's library: they find accesses outside the allocated buffers
 * and the block's shared memory, and races in shared memory. Two accesses race if they are by different threads, at
 * least one writes, and neither a barrier nor a meeting of their warp lies between them. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <string>
#include <vector>

#include "emulation.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define LC_ANNOTATE_FIBERS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define LC_ANNOTATE_FIBERS 1
#endif
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define LC_API extern "C" __attribute__((visibility("default")))

lc_emulated_place lc_emulated_here;

namespace {

/* --- kernels ------------------------------------------------------------------------------------------------------ */

struct Kernel {
    int threads;
    const void *function;
    lc_emulated_call call;
};

std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

/* --- fibers ------------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
typedef void *Context; /* a stack pointer, above what lc_emulated_switch has saved */
extern "C" void lc_emulated_switch(void **from, void *to);
asm(".text\n"
    ".type lc_emulated_switch, @function\n"
    "lc_emulated_switch:\n"
    "  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
    "  ret\n"
    ".size lc_emulated_switch, .-lc_emulated_switch\n");
void switch_context(Context *from, Context *to) { lc_emulated_switch(from, *to); }
void make_context(Context *context, char *stack, size_t size, void (*entry)()) {
    void **top = reinterpret_cast<void **>(stack + size);
    *--top = nullptr; /* keeps the stack aligned as after a call */
    *--top = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    *context = top;
}
#else
typedef ucontext_t Context;
void switch_context(Context *from, Context *to) { swapcontext(from, to); }
void make_context(Context *context, char *stack, size_t size, void (*entry)()) {
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = size;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
}
#endif

enum { MAX_THREADS = 1024, STACK_BYTES = 256 * 1024, WARP = 32, MAX_WARPS = MAX_THREADS / WARP };

struct Fiber {
    Context context;
    bool done;
    void *fake_stack; /* AddressSanitizer's */
    std::vector<std::pair<void *, const void *>> copies; /* asynchronous, not yet waited for */
};

/* Threads that wait for one another. */
struct Meeting {
    int arrived, line;
    unsigned epoch; /* meetings held */
};

struct Machine {
    Fiber fibers[MAX_THREADS];
    Context scheduler;
    void *scheduler_fake_stack;
    const void *scheduler_stack;
    size_t scheduler_stack_size;
    char *stacks;
    int n_threads;
    bool progress;
    Meeting block, warps[MAX_WARPS];
    alignas(16) lc_u8 lanes[2][MAX_WARPS][WARP][LC_EMULATED_LANE_BYTES]; /* by parity of the warp's epoch */
    const Kernel *kernel;
    const uint64_t *arguments;
    std::string error;
};

Machine machine;
alignas(16) lc_u8 shared_memory[LC_EMULATED_SHARED_BYTES];
size_t shared_size; /* what the kernel asked for */

char *stack_of(int thread) { return machine.stacks + (size_t)thread * STACK_BYTES; }

void to_scheduler(bool forever) {
    Fiber &fiber = machine.fibers[lc_emulated_here.thread];
#if defined(LC_ANNOTATE_FIBERS)
    __sanitizer_start_switch_fiber(forever ? nullptr : &fiber.fake_stack, machine.scheduler_stack,
                                   machine.scheduler_stack_size);
#else
    (void)forever;
#endif
    switch_context(&fiber.context, &machine.scheduler);
#if defined(LC_ANNOTATE_FIBERS)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

void fail(const std::string &what) {
    if (machine.error.empty()) {
        const lc_emulated_place &at = lc_emulated_here;
        machine.error = what + " (thread " + std::to_string(at.thread) + " of block " + std::to_string(at.block_x) + ", " +
                        std::to_string(at.block_y) + ", " + std::to_string(at.block_z) + ")";
    }
}

/* Abandons the launch from inside a fiber. */
[[noreturn]] void fail_here(const std::string &what) {
    fail(what);
    for (;;) to_scheduler(false);
}

void fiber_main() {
#if defined(LC_ANNOTATE_FIBERS)
    __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_size);
#endif
    machine.kernel->call(machine.kernel->function, machine.arguments);
    Fiber &fiber = machine.fibers[lc_emulated_here.thread];
    if (!fiber.copies.empty()) fail("it left without waiting for its asynchronous copies");
    fiber.done = true;
    machine.progress = true;
    to_scheduler(true);
    abort(); /* a fiber that is done is never resumed */
}

void resume(int thread) {
    Fiber &fiber = machine.fibers[thread];
    lc_emulated_here.thread = thread;
#if defined(LC_ANNOTATE_FIBERS)
    __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, stack_of(thread), STACK_BYTES);
#endif
    switch_context(&machine.scheduler, &fiber.context);
#if defined(LC_ANNOTATE_FIBERS)
    __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
#endif
}

/* Waits until all `n` threads have come. */
void meet(Meeting &meeting, int n, int line, const char *what) {
    if (meeting.arrived == 0) meeting.line = line;
    if (meeting.line != line)
        fail_here(std::string("threads meet at different ") + what + ": in line " + std::to_string(meeting.line) +
                  " and in line " + std::to_string(line));
    machine.progress = true;
    const unsigned epoch = meeting.epoch;
    if (++meeting.arrived == n) {
        meeting.arrived = 0;
        meeting.epoch++;
        return;
    }
    while (meeting.epoch == epoch) to_scheduler(false);
}

void forget_accesses();

void run_block() {
    machine.block = Meeting();
    for (int w = 0; w < MAX_WARPS; w++) machine.warps[w] = Meeting();
    memset(shared_memory, 0xFF, sizeof shared_memory); /* NaN, or wild as an index */
    shared_size = 0;
    forget_accesses();
    for (int i = 0; i < machine.n_threads; i++) {
        Fiber &fiber = machine.fibers[i];
        fiber.done = false;
        fiber.fake_stack = nullptr;
        fiber.copies.clear();
#if defined(LC_ANNOTATE_FIBERS)
        __asan_unpoison_memory_region(stack_of(i), STACK_BYTES); /* its last fiber never returned */
#endif
        make_context(&fiber.context, stack_of(i), STACK_BYTES, fiber_main);
    }
    int left = machine.n_threads;
    while (left > 0 && machine.error.empty()) {
        machine.progress = false;
        left = 0;
        for (int i = 0; i < machine.n_threads && machine.error.empty(); i++) {
            if (machine.fibers[i].done) continue;
            resume(i);
            left += !machine.fibers[i].done;
        }
        if (!machine.progress && left > 0) fail("threads wait for others that have left or wait elsewhere");
    }
}

/* --- device memory ------------------------------------------------------------------------------------------------ */

std::map<uintptr_t, size_t> &buffers() {
    static std::map<uintptr_t, size_t> all;
    return all;
}

#if defined(LC_CHECKED)
/* Buffers lie in one reserved range with gaps between them, and no address is used twice. */
enum : size_t { HEAP_BYTES = (size_t)1 << 36, GAP_BYTES = 1 << 16 };
char *heap;
size_t heap_used;

void *allocate(size_t size) {
    if (heap == nullptr) {
        void *p = mmap(nullptr, HEAP_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return nullptr;
        heap = static_cast<char *>(p);
    }
    const size_t whole = (size + 2 * GAP_BYTES - 1) / GAP_BYTES * GAP_BYTES;
    if (whole > HEAP_BYTES - heap_used) return nullptr;
    heap_used += whole;
    return heap + heap_used - whole;
}
void release(void *p, size_t size) { madvise(p, (size + 4095) / 4096 * 4096, MADV_DONTNEED); }
#else
void *allocate(size_t size) {
    void *p = nullptr;
    return posix_memalign(&p, 256, size) == 0 ? p : nullptr;
}
void release(void *p, size_t) { free(p); }
#endif

/* --- what the checked build looks at ------------------------------------------------------------------------------- */

#if defined(LC_CHECKED)
struct Access {
    int thread; /* + 1; 0: none */
    unsigned block_epoch, warp_epoch;
};
struct ByteHistory {
    Access writer, reader, other_reader; /* the last ones; other_reader is another thread than reader */
};
ByteHistory history[LC_EMULATED_SHARED_BYTES];

bool races(const Access &before, const Access &now) {
    if (before.thread == 0 || before.thread == now.thread || before.block_epoch != now.block_epoch) return false;
    const bool same_warp = (before.thread - 1) / WARP == (now.thread - 1) / WARP;
    return !same_warp || before.warp_epoch == now.warp_epoch;
}

void look_at_shared(size_t offset, size_t size, bool is_write) {
    if (offset + size > shared_size) fail_here("access beyond the shared memory asked for");
    const int thread = lc_emulated_here.thread;
    const Access now = {thread + 1, machine.block.epoch, machine.warps[thread / WARP].epoch};
    for (size_t i = offset; i < offset + size; i++) {
        ByteHistory &byte = history[i];
        if (races(byte.writer, now) || (is_write && (races(byte.reader, now) || races(byte.other_reader, now))))
            fail_here("race in shared memory at byte " + std::to_string(i) + " with thread " +
                      std::to_string((races(byte.writer, now) ? byte.writer
                                      : races(byte.reader, now) ? byte.reader
                                                                : byte.other_reader).thread - 1));
        if (is_write) {
            byte.writer = now;
        } else {
            if (byte.reader.thread != now.thread) byte.other_reader = byte.reader;
            byte.reader = now;
        }
    }
}

void look_at_heap(const char *p, size_t size) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(p);
    auto after = buffers().upper_bound(at);
    if (after != buffers().begin()) {
        const auto buffer = *--after;
        if (at + size <= buffer.first + buffer.second) return;
    }
    fail_here("access outside every buffer");
}

void forget_accesses() { memset(history, 0, sizeof history); }

void lc_emulated_access(const void *address, size_t size, bool is_write) {
    const char *p = static_cast<const char *>(address);
    const char *shared = reinterpret_cast<const char *>(shared_memory);
    if (p >= shared && p < shared + sizeof shared_memory) look_at_shared((size_t)(p - shared), size, is_write);
    if (heap != nullptr && p >= heap && p < heap + HEAP_BYTES) look_at_heap(p, size);
}
#else
void lc_emulated_access(const void *, size_t, bool) {}
void forget_accesses() {}
#endif

}  // namespace

#if defined(LC_CHECKED)
/* What code compiled with -fsanitize=thread calls. Names and meaning are the compiler's. */
#define LC_HOOK(size)                                                                               \
    LC_API void __tsan_read##size(void *p) { lc_emulated_access(p, size, false); }                   \
    LC_API void __tsan_write##size(void *p) { lc_emulated_access(p, size, true); }                   \
    LC_API void __tsan_unaligned_read##size(void *p) { lc_emulated_access(p, size, false); }         \
    LC_API void __tsan_unaligned_write##size(void *p) { lc_emulated_access(p, size, true); }
LC_HOOK(1)
LC_HOOK(2)
LC_HOOK(4)
LC_HOOK(8)
LC_HOOK(16)
LC_API void __tsan_read_range(void *p, unsigned long size) { lc_emulated_access(p, size, false); }
LC_API void __tsan_write_range(void *p, unsigned long size) { lc_emulated_access(p, size, true); }
LC_API void __tsan_init() {}
LC_API void __tsan_func_entry(void *) {}
LC_API void __tsan_func_exit() {}
/* Copies that stay calls go through these. */
LC_API void *__tsan_memcpy(void *to, const void *from, unsigned long size) {
    lc_emulated_access(from, size, false);
    lc_emulated_access(to, size, true);
    return memcpy(to, from, size);
}
LC_API void *__tsan_memset(void *to, int value, unsigned long size) {
    lc_emulated_access(to, size, true);
    return memset(to, value, size);
}
#endif

lc_emulated_kernel::lc_emulated_kernel(const char *name, int threads, const void *function, lc_emulated_call call) {
    kernels()[name] = {threads, function, call};
}

void lc_emulated_sync_block(int line) { meet(machine.block, machine.n_threads, line, "barriers"); }

const lc_u8 *lc_emulated_exchange(const void *mine, int size, int line) {
    const int warp = lc_emulated_here.thread / WARP, lane = lc_emulated_here.thread % WARP;
    Meeting &meeting = machine.warps[warp];
    auto &lanes = machine.lanes[meeting.epoch & 1][warp];
    memcpy(lanes[lane], mine, (size_t)size);
    meet(meeting, WARP, line, "operations of their warp");
    return lanes[0];
}

void *lc_emulated_shared(size_t size) {
    if (shared_size != 0 && shared_size != size) fail_here("two objects in shared memory");
    shared_size = size;
    return shared_memory;
}

void lc_emulated_async_copy(void *shared, const void *global) {
    machine.fibers[lc_emulated_here.thread].copies.emplace_back(shared, global);
}

void lc_emulated_async_wait() {
    Fiber &fiber = machine.fibers[lc_emulated_here.thread];
    for (const auto &copy : fiber.copies) {
        lc_emulated_access(copy.second, 16, false);
        lc_emulated_access(copy.first, 16, true);
        memcpy(copy.first, copy.second, 16);
    }
    fiber.copies.clear();
}

/* --- the interface to the driver layer ---------------------------------------------------------------------------- */

LC_API void *lc_emulated_alloc(uint64_t size) {
    void *p = allocate(size);
    if (p == nullptr) return nullptr;
    memset(p, 0xFF, size);
    buffers()[reinterpret_cast<uintptr_t>(p)] = size;
    return p;
}

LC_API void lc_emulated_free(void *p) {
    const auto found = buffers().find(reinterpret_cast<uintptr_t>(p));
    if (found == buffers().end()) return;
    release(p, found->second);
    buffers().erase(found);
}

/* Runs a kernel to its end. Returns NULL, or what it did wrong, until the next launch. Not for two threads at once. */
LC_API const char *lc_emulated_launch(const char *name, int32_t x, int32_t y, int32_t z, int32_t threads,
                                      const uint64_t *arguments) {
    machine.error.clear();
    const auto found = kernels().find(name);
    if (found == kernels().end()) return "no such kernel";
    if (found->second.threads != threads) return "launched with another number of threads than it is written for";
    if (machine.stacks == nullptr) {
        void *p = mmap(nullptr, (size_t)MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return "no memory for stacks";
        machine.stacks = static_cast<char *>(p);
    }
    machine.kernel = &found->second;
    machine.arguments = arguments;
    machine.n_threads = machine.kernel->threads;
    for (int k = 0; k < z; k++)
        for (int j = 0; j < y; j++)
            for (int i = 0; i < x && machine.error.empty(); i++) {
                lc_emulated_here = {0, i, j, k};
                run_block();
            }
    if (machine.error.empty()) return nullptr;
    machine.error = std::string(name) + ": " + machine.error;
    return machine.error.c_str();
}
