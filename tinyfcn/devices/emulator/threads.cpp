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
#include "state.h"

#include <fenv.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <utility>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

constexpr size_t STACK_BYTES = 256 * 1024;  // taken from the machine only as far as it is used

struct Fiber {
    jmp_buf registers;     // where it stopped
    ucontext_t beginning;  // where it enters `run_threads`
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

Launch* launch;
int thread_count, current, block_number;
volatile bool in_kernel;

static Thread threads[MAX_THREADS];
static int order[MAX_THREADS];  // in which the threads take their turns until the next barrier
static int started;             // threads of this block that have started
static int exited;              // and those that have reached their end
static int block_count;
static std::vector<int> blocks;  // in the order in which they run, if that is random
static unsigned dice;             // the state of a linear congruential generator (Numerical Recipes)

static Fiber fibers[MAX_THREADS];
static Fiber* idle[MAX_THREADS];  // fibers that hold no thread
static int fiber_count, idle_count;
static Fiber* running;
static jmp_buf scheduler;
static char* stacks;  // of all fibers, each above a page that must not be touched
static size_t page;

uint3 thread_index(int thread) { return threads[thread].index; }
uint3 block_index(int number) {
    const unsigned block = launch->order == RANDOM    ? blocks[number - 1]
                           : launch->order == REVERSE ? block_count - number
                                                      : number - 1;
    return {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
}
int lane() { return current % warpSize; }
bool on_a_stack(const void* address) {
    return address >= stacks && address < stacks + MAX_THREADS * (page + STACK_BYTES);
}
bool is_index(const void* address) {
    return (address >= &threadIdx && address < &threadIdx + 1) || (address >= &blockIdx && address < &blockIdx + 1) ||
           (address >= &blockDim && address < &blockDim + 1) || (address >= &gridDim && address < &gridDim + 1);
}

static int roll(int sides) {
    dice = dice * 1664525u + 1013904223u;
    return (dice >> 8) % sides;  // its low bits are the worse ones
}

// The numbers 0 .. count - 1 in this launch's order.
static void arrange(int* numbers, int count) {
    for (int i = 0; i < count; i++) numbers[i] = launch->order == REVERSE ? count - 1 - i : i;
    if (launch->order == RANDOM)
        for (int i = count - 1; i > 0; i--) std::swap(numbers[i], numbers[roll(i + 1)]);
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

void leave() {
    in_kernel = false;
    _longjmp(scheduler, 1);
}

// What every fiber does, for ever: run threads that have not started. In the kernel it may stop, with a thread
// that waits.
static void run_threads() {
    for (;;) {
#ifdef __GLIBC__
        if (launch->check) feenableexcept(FE_INVALID);  // 0 / 0, inf - inf: a fault, where it happens
#endif
        while (started < thread_count) {
            current = order[started++];
            threadIdx = threads[current].index;
            in_kernel = true;
            launch->kernel(launch->arguments);
            in_kernel = false;
            threads[current].state = EXITED;
            exited++;
        }
        idle[idle_count++] = running;
        pause();
    }
}

// A fiber at its beginning. The page below its stack stops a stack that grows too far, before it writes into
// another thread's variables.
static void begin(Fiber* fiber) {
    char* below = stacks + (fiber - fibers) * (page + STACK_BYTES);
    mprotect(below, page, PROT_NONE);
    getcontext(&fiber->beginning);
    fiber->beginning.uc_stack.ss_sp = below + page;
    fiber->beginning.uc_stack.ss_size = STACK_BYTES;
    fiber->beginning.uc_link = nullptr;
    makecontext(&fiber->beginning, run_threads, 0);
    fiber->entered = false;
    idle[idle_count++] = fiber;
}

static Fiber* idle_fiber() {
    if (!idle_count) begin(&fibers[fiber_count++]);
    return idle[--idle_count];
}

unsigned long long wait(const char* operation, Here here, unsigned mask, int source, unsigned long long value) {
    const int me = current;
    Thread& thread = threads[me];
    thread = {thread.index, WAITING, running, operation, here, mask, source, value};
    in_kernel = false;
    pause();
    in_kernel = true;
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
    shadow_barrier();
    return true;
}

// A warp operation is over when all the lanes that its mask names wait at it, all at the same line.
static bool release_warps() {
    bool released = false;
    for (int t = 0; t < thread_count; t++) {
        if (threads[t].state != WAITING || threads[t].source == BARRIER) continue;
        const int first = t / warpSize * warpSize, missing = first + warpSize - thread_count;
        const unsigned mask = threads[t].mask & ~0u >> (missing > 0 ? missing : 0);  // of the lanes that there are
        unsigned present = 0, votes = 0;
        unsigned long long values[warpSize] = {};
        int members[warpSize], count = 0;
        for (int other = first; other < first + warpSize && other < thread_count; other++) {
            if (!wait_together(threads[other], threads[t])) continue;
            members[count++] = other;
            present |= 1u << (other - first);
            values[other - first] = threads[other].value;
            if (threads[other].value) votes |= 1u << (other - first);
        }
        if (present != mask) continue;

        if (!strcmp(threads[t].operation, "__syncwarp")) shadow_syncwarp(members, count);
        for (int i = 0; i < count; i++) {
            Thread& thread = threads[members[i]];
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
        const char* waits = together == 1 ? "waits" : "wait";
        say(" %d %s at %s, %s:%d", together, waits, first.operation, first.here.file, first.here.line);
        if (first.source != BARRIER) say(", for the lanes 0x%08x of their warp", first.mask);
        say(" (the first is thread (%u,%u,%u));", first.index.x, first.index.y, first.index.z);
    }
    say(" %d %s exited", exited, exited == 1 ? "has" : "have");
}

static void run_block() {
    for (int r = 0; r < launch->region_count; r++)  // NaN: no block may count on what the one before it left
        if (launch->regions[r].shared) memset(launch->regions[r].start, 0xff, launch->regions[r].bytes);
    shadow_block_begins();
    arrange(order, thread_count);
    started = exited = 0;
    for (int t = 0; t < thread_count; t++) threads[t].state = READY;
    while (started < thread_count && !message[0]) resume(idle_fiber());
    while (exited < thread_count && !message[0]) {
        if (!release_block() && !release_warps()) {
            if (!message[0]) say_who_waits_where();
            return;
        }
        arrange(order, thread_count);
        for (int i = 0; i < thread_count && !message[0]; i++)
            if (threads[order[i]].state == READY) resume(threads[order[i]].fiber);
    }
    if (!message[0]) shadow_block_ends();
}

// Shared memory and stacks, once for all launches. False, with a message, where there is no memory for them.
static bool reserve() {
    if (stacks) return true;
    page = sysconf(_SC_PAGESIZE);
    const size_t bytes = MAX_THREADS * (page + STACK_BYTES) + MAX_SHARED + page;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        say("no memory for the stacks of %d threads", MAX_THREADS);
        return false;
    }
    stacks = static_cast<char*>(memory);
    mprotect(stacks + bytes - page, page, PROT_NONE);
    return true;
}

// It ends where a page begins that must not be touched.
char* dynamic_shared() {
    return stacks + MAX_THREADS * (page + STACK_BYTES) + MAX_SHARED - (launch->shared_bytes + 15) / 16 * 16;
}

// Runs a kernel over grid x block threads. Returns an empty text, or why it failed.
extern "C" const char* emulator_launch(Launch* it) {
    launch = it;
    message[0] = 0;
    if (!reserve()) return message;
    gridDim = {it->grid[0], it->grid[1], it->grid[2]};
    blockDim = {it->block[0], it->block[1], it->block[2]};
    thread_count = it->block[0] * it->block[1] * it->block[2];
    dice = it->seed;
    for (int r = 0; r < it->region_count; r++)
        if (!it->regions[r].start) it->regions[r].start = dynamic_shared();

    int t = 0;
    for (unsigned z = 0; z < it->block[2]; z++)
        for (unsigned y = 0; y < it->block[1]; y++)
            for (unsigned x = 0; x < it->block[0]; x++) threads[t++].index = {x, y, z};

    block_count = it->grid[0] * it->grid[1] * it->grid[2];
    blocks.resize(it->order == RANDOM ? block_count : 0);
    arrange(blocks.data(), blocks.size());
    catch_faults();
    for (block_number = 1; block_number <= block_count && !message[0]; block_number++) {
        blockIdx = block_index(block_number);
        run_block();
        if (message[0]) say("; in block (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z);
    }
    let_go();

    if (message[0]) {  // threads that will never go on: their fibers begin anew
        idle_count = 0;
        for (int f = 0; f < fiber_count; f++) begin(&fibers[f]);
    }
    fflush(stdout);  // what the kernel printed
    return message;
}

}  // namespace emulator
