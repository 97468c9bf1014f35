// Runs the threads of a block in turn on one CPU core.
//
// A launch runs its blocks one after another. The threads of a block run on fibers. A fiber is a function with a stack
// of its own, so it can stop in the middle and go on later. It runs threads in a plain loop. When a thread has to wait,
// at a barrier or for other lanes of its warp, its fiber stops with it, and another fiber runs the threads that have
// not started. So a block without barriers needs one fiber and runs like a `for` loop. A block with a barrier needs as
// many fibers as it has threads.
//
// When every thread has exited or waits, `release_block` and `release_warps` look for threads that need not wait any
// longer. If there are none, the threads are deadlocked: the launch ends with a message that tells how many threads
// wait at which line.
//
// The stacks are set up with ucontext. The switches between them use _setjmp and _longjmp, because swapcontext makes a
// system call (200 ns instead of 10).
#include "state.h"

#include <fenv.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <numeric>
#include <utility>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

constexpr size_t STACK_BYTES = 256 * 1024;  // the system provides pages only when they are used

struct Fiber {
    jmp_buf registers;     // the point where it stopped
    ucontext_t beginning;  // the entry into `run_threads`
    bool entered;
};

enum State { READY, WAITING, EXITED };

struct Thread {
    uint3 index;  // its threadIdx
    State state;
    // While it waits:
    Fiber* fiber;              // the fiber that stopped with it
    const char* operation;     // the call that waits: "__syncthreads", "__shfl_down_sync", ...
    SourceLocation location;   // the source location of the call
    unsigned mask;             // the lanes of its warp that it waits for
    int source;                // the lane whose value it asks for, or VOTE, or BARRIER
    unsigned long long value;  // its own value; when it goes on, the result of the call
    bool returned;             // whether it has exited by a `return`, and not at the end of its kernel
};

Launch* launch;
int thread_count, current, block_number;
volatile bool in_kernel;

static Thread threads[MAX_THREADS];
static int order[MAX_THREADS];  // the threads in the order in which they run until the next barrier
static int started;             // the number of threads of this block that have started
static int exited;              // the number of threads of this block that have exited
static int block_count;
static std::vector<int> blocks;  // in random order or profile mode: the blocks in the order in which they run
static unsigned random_state;    // of a linear congruential generator (Numerical Recipes)

static Fiber fibers[MAX_THREADS];
static Fiber* idle[MAX_THREADS];  // fibers without a thread
static int fiber_count, idle_count;
static Fiber* running;
static jmp_buf scheduler;
static std::vector<void*> dynamic_pointers;  // of DynamicShared
static char* stacks;  // the stacks of all fibers; below each lies a protected page
static size_t page;

uint3 thread_index(int thread) { return threads[thread].index; }
uint3 block_index(int number) {
    const unsigned block = !blocks.empty()            ? blocks[number - 1]
                           : launch->order == REVERSE ? block_count - number
                                                      : number - 1;
    return {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
}
int lane() { return current % warpSize; }
void returns() { threads[current].returned = true; }
DynamicShared::DynamicShared(void* pointer) { dynamic_pointers.push_back(pointer); }
bool on_a_stack(const void* address) {
    return address >= stacks && address < stacks + MAX_THREADS * (page + STACK_BYTES);
}
bool is_builtin_index(const void* address) {
    return (address >= &threadIdx && address < &threadIdx + 1) || (address >= &blockIdx && address < &blockIdx + 1) ||
           (address >= &blockDim && address < &blockDim + 1) || (address >= &gridDim && address < &gridDim + 1);
}

static int random_below(int count) {
    random_state = random_state * 1664525u + 1013904223u;
    return (random_state >> 8) % count;  // the low bits are less random
}

// Writes the numbers 0 .. count - 1 in the order of this launch.
static void arrange(int* numbers, int count) {
    for (int i = 0; i < count; i++) numbers[i] = launch->order == REVERSE ? count - 1 - i : i;
    if (launch->order == RANDOM)
        for (int i = count - 1; i > 0; i--) std::swap(numbers[i], numbers[random_below(i + 1)]);
}

// Writes the numbers of all blocks such that the first few of them lie evenly among all: multiples of an irrational part.
static void spread(std::vector<int>& numbers) {
    const unsigned count = unsigned(numbers.size());
    unsigned step = unsigned(count * 0.5698402909980532);
    while (std::gcd(step, count) != 1) step++;
    for (unsigned i = 0; i < count; i++) numbers[i] = int((unsigned long long)i * step % count);
}

// Switches from the scheduler to a fiber. Returns when the fiber pauses.
__attribute__((noinline)) static void resume(Fiber* fiber) {
    running = fiber;
    if (_setjmp(scheduler)) return;
    if (fiber->entered) _longjmp(fiber->registers, 1);
    fiber->entered = true;
    setcontext(&fiber->beginning);
}

// Switches from the running fiber to the scheduler. Returns when the fiber is resumed.
__attribute__((noinline)) static void pause() {
    if (!_setjmp(running->registers)) _longjmp(scheduler, 1);
}

void leave_kernel() {
    in_kernel = false;
    _longjmp(scheduler, 1);
}

// The endless loop of every fiber: it runs threads that have not started. The fiber may stop inside the kernel,
// together with a thread that waits.
static void run_threads() {
    for (;;) {
#ifdef __GLIBC__
        if (launch->check) feenableexcept(FE_INVALID);  // makes 0 / 0 and inf - inf a fault
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

// Sets a fiber to its beginning. The page below its stack is protected, so a stack that grows too far cannot overwrite
// the variables of another thread.
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

unsigned long long wait(const char* operation, SourceLocation location, unsigned mask, int source,
                        unsigned long long value) {
    const int me = current;
    Thread& thread = threads[me];
    thread = {thread.index, WAITING, running, operation, location, mask, source, value, false};
    in_kernel = false;
    pause();
    in_kernel = true;
    current = me;
    threadIdx = thread.index;
    return thread.value;
}

static bool wait_at_same_call(const Thread& a, const Thread& b) {
    return a.state == WAITING && b.state == WAITING && a.mask == b.mask && a.location.line == b.location.line &&
           !strcmp(a.location.file, b.location.file) && !strcmp(a.operation, b.operation);
}

// Since Volta, neither a barrier nor a warp operation waits for threads that have returned (CUDA C++ Programming Guide,
// "Compute Capability 7.x"). A thread that goes round the barrier, to the end of its kernel, is not one of them: the
// guide forbids a barrier in a branch that some threads do not take.
static bool has_returned(int t) { return threads[t].state == EXITED && threads[t].returned; }

// Ends a barrier if every thread of the block waits at it, all at the same line.
static bool release_block() {
    int first = 0, votes = 0;
    while (first < thread_count && has_returned(first)) first++;
    if (first == thread_count || threads[first].source != BARRIER) return false;
    for (int t = first; t < thread_count; t++) {
        if (has_returned(t)) continue;
        if (!wait_at_same_call(threads[t], threads[first])) return false;
        votes += threads[t].value != 0;
    }
    for (int t = first; t < thread_count; t++) {
        if (has_returned(t)) continue;
        threads[t].state = READY;
        threads[t].value = votes;
    }
    shadow_barrier();
    profile_barrier();
    return true;
}

// The lanes of a warp that wait at the same call as one of its threads.
struct Group {
    unsigned present, votes;
    unsigned long long values[warpSize];
    int threads[warpSize], count;
};

static Group group_of(int t) {
    Group group = {};
    const int first = t / warpSize * warpSize;
    for (int other = first; other < first + warpSize && other < thread_count; other++) {
        const Thread& thread = threads[other];
        if (!wait_at_same_call(thread, threads[t])) continue;
        const bool is_address = thread.source == GATHER;
        const auto value = is_address ? reinterpret_cast<unsigned long long*>(thread.value)[other - first] : thread.value;
        group.threads[group.count++] = other;
        group.present |= 1u << (other - first);
        group.values[other - first] = value;
        if (value) group.votes |= 1u << (other - first);
    }
    return group;
}

// Ends a warp operation if all lanes that its mask names wait at it, all at the same line.
static bool release_warps() {
    bool released = false;
    for (int t = 0; t < thread_count; t++) {
        if (threads[t].state != WAITING || threads[t].source == BARRIER || threads[t].source == ACTIVE) continue;
        const int first = t / warpSize * warpSize;
        unsigned mask = threads[t].mask;
        for (int lane = 0; lane < warpSize; lane++)  // a warp may be incomplete
            if (first + lane >= thread_count || has_returned(first + lane)) mask &= ~(1u << lane);
        const Group group = group_of(t);
        if (group.present != mask) continue;

        if (!strcmp(threads[t].operation, "__syncwarp")) shadow_syncwarp(group.threads, group.count);
        for (int i = 0; i < group.count; i++) {
            Thread& thread = threads[group.threads[i]];
            if (thread.source >= 0 && !(mask >> thread.source & 1)) {
                const bool left_out = !(thread.mask >> thread.source & 1);
                report("%s at %s:%d reads lane %d, which ", thread.operation, thread.location.file,
                    thread.location.line, thread.source);
                if (left_out) report("its mask 0x%08x leaves out", thread.mask);
                else report("%s", first + thread.source < thread_count ? "has returned" : "the block does not have");
                return false;
            }
            if (thread.source == GATHER)
                memcpy(reinterpret_cast<void*>(thread.value), group.values, sizeof group.values);
            thread.value = thread.source == VOTE ? group.votes
                           : thread.source == GATHER ? group.present
                                                     : group.values[thread.source];
            thread.state = READY;
        }
        released = true;
    }
    return released;
}

// Where no thread can go on otherwise: tells the threads at __activemask which lanes have come there with them.
static bool release_active() {
    bool released = false;
    for (int t = 0; t < thread_count; t++) {
        if (threads[t].state != WAITING || threads[t].source != ACTIVE) continue;
        const Group group = group_of(t);
        for (int i = 0; i < group.count; i++) {
            threads[group.threads[i]].state = READY;
            threads[group.threads[i]].value = group.present;
        }
        released = true;
    }
    return released;
}

// "of 64 threads 60 wait at __syncthreads, reverse.cu:8 (the first is thread (0,0,0)); 4 have exited"
static void report_deadlock() {
    report("of %d threads", thread_count);
    for (int t = 0; t < thread_count; t++) {
        const Thread& first = threads[t];
        if (first.state != WAITING) continue;
        int count = 0;
        bool reported = false;
        for (int other = 0; other < thread_count; other++) {
            if (!wait_at_same_call(threads[other], first)) continue;
            reported |= other < t;
            count++;
        }
        if (reported) continue;
        const char* waits = count == 1 ? "waits" : "wait";
        report(" %d %s at %s, %s:%d", count, waits, first.operation, first.location.file, first.location.line);
        if (first.source != BARRIER && first.source != ACTIVE) report(", for the lanes 0x%08x of their warp", first.mask);
        report(" (the first is thread (%u,%u,%u));", first.index.x, first.index.y, first.index.z);
    }
    report(" %d %s exited", exited, exited == 1 ? "has" : "have");
}

static void run_block() {
    for (int r = 0; r < launch->region_count; r++)  // to NaN, so that no block finds the values of the block before it
        if (launch->regions[r].shared) memset(launch->regions[r].start, 0xff, launch->regions[r].bytes);
    shadow_block_begins();
    profile_block_begins();
    arrange(order, thread_count);
    started = exited = 0;
    for (int t = 0; t < thread_count; t++) {
        threads[t].state = READY;
        threads[t].returned = false;
    }
    while (started < thread_count && !message[0]) resume(idle_fiber());
    while (exited < thread_count && !message[0]) {
        if (!release_block() && !release_warps() && (message[0] || !release_active())) {
            if (!message[0]) report_deadlock();
            return;
        }
        arrange(order, thread_count);
        for (int i = 0; i < thread_count && !message[0]; i++)
            if (threads[order[i]].state == READY) resume(threads[order[i]].fiber);
    }
    if (!message[0]) shadow_block_ends();
    if (!message[0]) profile_barrier();
}

// Allocates the stacks and the dynamic shared memory at the first launch. Returns false, with a message, if that fails.
static bool reserve() {
    if (stacks) return true;
    page = sysconf(_SC_PAGESIZE);
    const size_t bytes = MAX_THREADS * (page + STACK_BYTES) + MAX_SHARED + page;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        report("no memory for the stacks of %d threads", MAX_THREADS);
        return false;
    }
    stacks = static_cast<char*>(memory);
    mprotect(stacks + bytes - page, page, PROT_NONE);
    return true;
}

void launch_bounds(unsigned most, unsigned, unsigned, SourceLocation location) {
    if (thread_count <= int(most)) return;
    report("a block of %d threads, at %s:%d, whose __launch_bounds__ promises %u or fewer", thread_count,
           location.file, location.line, most);
    leave_kernel();
}

// The page behind its end is protected.
char* dynamic_shared() {
    return stacks + MAX_THREADS * (page + STACK_BYTES) + MAX_SHARED - (launch->shared_bytes + 15) / 16 * 16;
}

// Runs a kernel over grid x block threads. Returns why it failed, or an empty text.
extern "C" const char* emulator_launch(Launch* it) {
    launch = it;
    message[0] = 0;
    if (!reserve()) return message;
    gridDim = {it->grid[0], it->grid[1], it->grid[2]};
    blockDim = {it->block[0], it->block[1], it->block[2]};
    thread_count = it->block[0] * it->block[1] * it->block[2];
    random_state = it->seed;
    for (int r = 0; r < it->region_count; r++)
        if (!it->regions[r].start) it->regions[r].start = dynamic_shared();
    for (void* pointer : dynamic_pointers) *static_cast<char**>(pointer) = dynamic_shared();

    int t = 0;
    for (unsigned z = 0; z < it->block[2]; z++)
        for (unsigned y = 0; y < it->block[1]; y++)
            for (unsigned x = 0; x < it->block[0]; x++) threads[t++].index = {x, y, z};

    block_count = it->grid[0] * it->grid[1] * it->grid[2];
    blocks.resize(it->order == RANDOM || it->profile ? block_count : 0);
    if (it->profile) spread(blocks);
    else arrange(blocks.data(), blocks.size());
    profile_begins();
    shadow_begins();
    install_handlers();
    for (block_number = 1; block_number <= block_count && !message[0]; block_number++) {
        if (it->profile && it->blocks_run >= it->least_blocks && profile_suffices()) break;
        blockIdx = block_index(block_number);
        run_block();
        it->blocks_run++;
        if (message[0]) report("; in block (%u,%u,%u)", blockIdx.x, blockIdx.y, blockIdx.z);
    }
    restore_handlers();
    profile_ends();

    if (message[0]) {  // some threads still wait, so their fibers start again
        idle_count = 0;
        for (int f = 0; f < fiber_count; f++) begin(&fibers[f]);
    }
    fflush(stdout);  // the output of the kernel
    return message;
}

}  // namespace emulator
