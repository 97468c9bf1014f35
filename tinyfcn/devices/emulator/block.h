// How the threads of a block take turns on one CPU core.
//
// A launch runs its blocks one after another, and a block's threads as fibers: functions with a stack of
// their own that can stop in the middle and go on later. A fiber runs one thread after another in a plain
// loop. Only when a thread has to wait, at a barrier or for the other lanes of its warp, does that fiber stop
// there with it, and another fiber takes up the threads that have not started. So a block without barriers
// runs on one fiber, as a `for` loop would, and one with a barrier on as many fibers as it has threads.
//
// When every thread has exited or waits, `release_block` and `release_warps` look for threads whose wait is
// over. If there are none, no thread can ever go on: the launch ends with a message that says who waits
// where.
//
// The stacks are made with ucontext. Switching between them is left to _setjmp and _longjmp, which, unlike
// swapcontext, make no system call (10 ns rather than 200).
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <utility>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static const int warpSize = 32;

namespace emulator {

constexpr int MAX_THREADS = 1024;           // in a block, on every GPU
constexpr unsigned MAX_SHARED = 48 * 1024;  // bytes a kernel may ask for at launch without opting in to more
constexpr size_t STACK_BYTES = 256 * 1024;  // taken from the machine only as far as it is used

// A call in a kernel that makes threads wait. As a default argument, `Here()` is the line of the call.
struct Here {
    const char* file;
    int line;
    constexpr Here(const char* f = __builtin_FILE(), int l = __builtin_LINE()) : file(f), line(l) {}
};

struct Fiber {
    jmp_buf registers;     // where it stopped
    ucontext_t beginning;  // where it enters `run_threads`
    void* stack;
    bool entered;
};

enum State { READY, WAITING, EXITED };

struct Thread {
    uint3 index;  // its threadIdx
    State state;
    Fiber* fiber;              // the rest is for a thread that waits: the fiber that stopped with it,
    const char* operation;     // "__syncthreads", "__shfl_down_sync", ...
    Here here;                 // and its line;
    unsigned mask;             // the lanes of its warp that it waits for;
    int source;                // the lane whose value it wants, or VOTE, or BARRIER;
    unsigned long long value;  // what it brings, and when it goes on, what it gets
};

constexpr int VOTE = -1;     // it wants one bit from each lane: whether that lane's value is not 0
constexpr int BARRIER = -2;  // it waits for the whole block

static Thread threads[MAX_THREADS];
static int thread_count;  // of this launch's blocks
static int started;       // threads of this block that have started
static int exited;        // and those that have reached their end
static int current;       // the thread that runs now

static void (*body)(void** arguments);  // the kernel
static void** arguments;
alignas(128) static char dynamic_shared[MAX_SHARED];

static Fiber fibers[MAX_THREADS];
static Fiber* idle[MAX_THREADS];  // fibers that hold no thread
static int fiber_count, idle_count;
static Fiber* running;
static jmp_buf scheduler;

static char message[2048];  // why the launch failed; empty while it has not

__attribute__((format(printf, 1, 2))) static void say(const char* format, ...) {
    const size_t used = strlen(message);
    va_list values;
    va_start(values, format);
    vsnprintf(message + used, sizeof message - used, format, values);
    va_end(values);
}

// From the scheduler into a fiber, until that fiber pauses.
__attribute__((noinline)) static void resume(Fiber* fiber) {
    running = fiber;
    if (_setjmp(scheduler)) return;
    if (fiber->entered) _longjmp(fiber->registers, 1);
    fiber->entered = true;
    setcontext(&fiber->beginning);
}

// From a fiber back to the scheduler, until that fiber is resumed.
__attribute__((noinline)) static void pause() {
    if (!_setjmp(running->registers)) _longjmp(scheduler, 1);
}

// What every fiber does, for ever: run threads that have not started. In body() it may stop, with a thread
// that waits.
static void run_threads() {
    for (;;) {
        while (started < thread_count) {
            current = started++;
            threadIdx = threads[current].index;
            body(arguments);
            threads[current].state = EXITED;
            exited++;
        }
        idle[idle_count++] = running;
        pause();
    }
}

// A fiber at its beginning, on a stack with a page below it that must not be touched: a stack that grows too
// far stops the program there, instead of writing into another thread's variables.
static void begin(Fiber* fiber) {
    getcontext(&fiber->beginning);
    fiber->beginning.uc_stack.ss_sp = fiber->stack;
    fiber->beginning.uc_stack.ss_size = STACK_BYTES;
    fiber->beginning.uc_link = nullptr;
    makecontext(&fiber->beginning, run_threads, 0);
    fiber->entered = false;
    idle[idle_count++] = fiber;
}

static Fiber* idle_fiber() {
    if (!idle_count) {
        Fiber* fiber = &fibers[fiber_count];
        const size_t page = sysconf(_SC_PAGESIZE);
        void* memory =
            mmap(nullptr, page + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            say("no memory for the stacks of %d threads", thread_count);
            return nullptr;
        }
        mprotect(memory, page, PROT_NONE);
        fiber->stack = static_cast<char*>(memory) + page;
        fiber_count++;
        begin(fiber);
    }
    return idle[--idle_count];
}

// Called by a thread that cannot go on alone. Returns when the scheduler has found its wait to be over.
static unsigned long long wait(const char* operation, Here here, unsigned mask, int source,
                               unsigned long long value) {
    const int me = current;
    Thread& thread = threads[me];
    thread = {thread.index, WAITING, running, operation, here, mask, source, value};
    pause();
    current = me;
    threadIdx = thread.index;
    return thread.value;
}

static bool wait_together(const Thread& a, const Thread& b) {
    return a.state == WAITING && b.state == WAITING && a.mask == b.mask && a.here.line == b.here.line &&
           !strcmp(a.here.file, b.here.file) && !strcmp(a.operation, b.operation);
}

// A barrier is over when every thread of the block waits at it, all at the same line.
static bool release_block() {
    if (threads[0].source != BARRIER) return false;
    for (int t = 0; t < thread_count; t++)
        if (!wait_together(threads[t], threads[0])) return false;
    for (int t = 0; t < thread_count; t++) threads[t].state = READY;
    return true;
}

// A warp operation is over when all the lanes that its mask names wait at it, all at the same line.
static bool release_warps() {
    bool released = false;
    for (int t = 0; t < thread_count; t++) {
        if (threads[t].state != WAITING || threads[t].source == BARRIER) continue;
        const unsigned mask = threads[t].mask;
        Thread* warp = &threads[t / warpSize * warpSize];
        const int lanes = warp + warpSize <= threads + thread_count ? warpSize : thread_count % warpSize;
        unsigned present = 0, votes = 0;
        for (int lane = 0; lane < lanes; lane++) {
            if (!wait_together(warp[lane], threads[t])) continue;
            present |= 1u << lane;
            if (warp[lane].value) votes |= 1u << lane;
        }
        if (present != mask) continue;

        unsigned long long values[32];
        for (int lane = 0; lane < lanes; lane++) values[lane] = warp[lane].value;
        for (int lane = 0; lane < lanes; lane++) {
            if (!(mask >> lane & 1)) continue;
            Thread& thread = warp[lane];
            if (thread.source != VOTE && !(mask >> thread.source & 1)) {
                say("%s at %s:%d reads lane %d, which its mask 0x%08x leaves out", thread.operation,
                    thread.here.file, thread.here.line, thread.source, mask);
                return false;
            }
            thread.value = thread.source == VOTE ? votes : values[thread.source];
            thread.state = READY;
        }
        released = true;
    }
    return released;
}

// "of 64 threads 60 wait at __syncthreads, reverse.cu:8 (the first is thread (0,0,0)); 4 have exited"
static void say_who_waits_where() {
    say("of %d threads", thread_count);
    for (int t = 0; t < thread_count; t++) {
        const Thread& first = threads[t];
        if (first.state != WAITING) continue;
        int together = 0;
        bool told = false;
        for (int other = 0; other < thread_count; other++) {
            if (!wait_together(threads[other], first)) continue;
            told |= other < t;
            together++;
        }
        if (told) continue;
        say(" %d wait at %s, %s:%d", together, first.operation, first.here.file, first.here.line);
        if (first.source != BARRIER) say(", for the lanes 0x%08x of their warp", first.mask);
        say(" (the first is thread (%u,%u,%u));", first.index.x, first.index.y, first.index.z);
    }
    say(" %d have exited", exited);
}

static void run_block(unsigned shared_bytes) {
    memset(dynamic_shared, 0xff, shared_bytes);  // NaN: no block may count on what the one before it left
    started = exited = 0;
    for (int t = 0; t < thread_count; t++) threads[t].state = READY;
    while (started < thread_count && !message[0])
        if (Fiber* fiber = idle_fiber()) resume(fiber);
    while (exited < thread_count && !message[0]) {
        if (!release_block() && !release_warps()) {
            if (!message[0]) say_who_waits_where();
            return;
        }
        for (int t = 0; t < thread_count && !message[0]; t++)
            if (threads[t].state == READY) resume(threads[t].fiber);
    }
}

// Runs a kernel over grid x block threads. Returns an empty text, or why it failed.
static const char* launch(void (*kernel)(void**), const unsigned* grid, const unsigned* block,
                          unsigned shared_bytes, void** kernel_arguments) {
    body = kernel;
    arguments = kernel_arguments;
    gridDim = dim3(grid[0], grid[1], grid[2]);
    blockDim = dim3(block[0], block[1], block[2]);
    thread_count = block[0] * block[1] * block[2];
    message[0] = 0;
    if (shared_bytes > MAX_SHARED) {
        say("%u bytes of dynamic shared memory are more than %u", shared_bytes, MAX_SHARED);
        return message;
    }

    int t = 0;
    for (unsigned z = 0; z < block[2]; z++)
        for (unsigned y = 0; y < block[1]; y++)
            for (unsigned x = 0; x < block[0]; x++) threads[t++].index = {x, y, z};

    for (blockIdx.z = 0; blockIdx.z < grid[2] && !message[0]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1] && !message[0]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0] && !message[0]; blockIdx.x++) {
                run_block(shared_bytes);
                if (message[0]) say("; in block (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z);
            }

    if (message[0]) {  // threads that will never go on: their fibers begin anew
        idle_count = 0;
        for (int f = 0; f < fiber_count; f++) begin(&fibers[f]);
    }
    fflush(stdout);  // what the kernel printed
    return message;
}

// Calls a kernel with arguments from a list of pointers to them, as cuLaunchKernel does.
template <auto kernel>
struct Unpacked;

template <typename... T, void (*kernel)(T...)>
struct Unpacked<kernel> {
    template <size_t... i>
    static void call([[maybe_unused]] void** arguments, std::index_sequence<i...>) {
        kernel(*static_cast<T*>(arguments[i])...);
    }
    static void run(void** arguments) { call(arguments, std::index_sequence_for<T...>{}); }
};

}  // namespace emulator

// One exported function a kernel, for Python to call.
#define EMULATOR_EXPORT(name) \
    extern "C" __attribute__((visibility("default"))) const char* launch_##name( \
        const unsigned* grid, const unsigned* block, unsigned shared_bytes, void** list) { \
        return emulator::launch(emulator::Unpacked<&kernels::name>::run, grid, block, shared_bytes, list); \
    }
