// Check mode: examines every access of a kernel before it happens.
//
// The compiler is told (-fsanitize=thread) to call a __tsan function before each read and write. The compiler's own
// library would watch the threads of the operating system. The functions defined here watch the threads of the kernel
// instead. For each element of each array and shared variable they keep a record, its shadow: which thread wrote the
// element last, which threads read it, and at which lines.
//
// Two accesses by different threads, at least one of them a write, are a race unless something orders them:
//
// - Nothing orders two blocks.
// - A __syncthreads between the two accesses orders threads of one block. `epoch` counts the barriers.
// - A __syncwarp also orders lanes of one warp. Each thread has a clock. For every lane of its warp, a thread knows the
//   time of that lane's clock up to which the lane's accesses come before its own, directly or through other lanes
//   ("vector clocks"; Fidge 1988).
// - Atomics do not race with each other, but they order nothing.
//
// So a race is found even if the result is right here, because the threads run one after another.
//
// Serebryany & Iskhodzhanov, "ThreadSanitizer: data race detection in practice" (2009); Flanagan & Freund,
// "FastTrack: efficient and precise dynamic race detection" (2009).
#include "state.h"

#include <string.h>

namespace emulator {

struct Access {
    int block;  // the block's number, counted from 1; 0: there was no access
    int epoch, clock;
    short thread, kind;
    const void* code;  // the address of the instruction
};

// The smallest group that holds the threads of both accesses. The larger it is, the less orders them.
enum Nearness { THREAD, WARP, BLOCK, GRID };

// For each of reads, writes and atomics: the last access, and the last one by another lane, by another warp and by
// another block than that. If any earlier access races with a new one, then one of these does, except where lanes wait
// in parts of a warp. library.py has the same fields.
struct Record {
    Access last[3][4];
};

static int epoch;  // the number of barriers and of started blocks
static int clocks[MAX_THREADS];
static int known[MAX_THREADS][warpSize];  // for each thread and each lane of its warp, the time that it knows

// The block's first read of an unwritten element. If another thread writes that element later, with no barrier between,
// then the race is the better explanation. So the read is reported when the block has ended.
static Access unwritten_read;
static const char* unwritten_address;

void shadow_barrier() { epoch++; }

void shadow_block_begins() {
    epoch++;
    unwritten_read.block = 0;
    if (!launch->check) return;
    memset(known, 0, sizeof known);
    for (int& clock : clocks) clock = 1;
}

void shadow_syncwarp(const int* waiting, int count) {
    if (!launch->check) return;
    int joined[warpSize] = {};
    for (int i = 0; i < count; i++) {
        for (int lane = 0; lane < warpSize; lane++)
            if (known[waiting[i]][lane] > joined[lane]) joined[lane] = known[waiting[i]][lane];
        joined[waiting[i] % warpSize] = clocks[waiting[i]]++;
    }
    for (int i = 0; i < count; i++) memcpy(known[waiting[i]], joined, sizeof joined);
}

static Nearness nearness(const Access& a, const Access& b) {
    if (a.block != b.block) return GRID;
    if (a.thread / warpSize != b.thread / warpSize) return BLOCK;
    return a.thread != b.thread ? WARP : THREAD;
}

static bool ordered(const Access& before, const Access& now) {
    const Nearness how = nearness(before, now);
    if (how == THREAD) return true;
    if (how == GRID) return false;
    if (before.epoch < now.epoch) return true;
    return how == WARP && known[now.thread][before.thread % warpSize] >= before.clock;
}

static bool race(const Access& before, const Access& now) {
    const bool harmless = before.kind == now.kind && now.kind != WRITE;  // two reads, or two atomics
    return before.block && !harmless && !ordered(before, now);
}

static const char* verb(int kind, bool past) {
    if (kind == ATOMIC) return past ? "updated it by an atomic" : "updates by an atomic";
    if (kind == WRITE) return past ? "wrote it" : "writes";
    return past ? "read it" : "reads";
}

static void report_access(const Access& now, const char* address) {
    const uint3 index = thread_index(now.thread);
    report("thread (%u,%u,%u) %s ", index.x, index.y, index.z, verb(now.kind, false));
    report_element(address);
    report(" at ");
    report_line(now.code);
}

[[noreturn]] static void race_found(const Access& before, const Access& now, const char* address) {
    static const char* const between[] = {
        "",
        "no __syncwarp() or __syncthreads() stands between",
        "no __syncthreads() stands between",
        "nothing orders blocks: give each element one owner, or a launch of its own to what comes after",
    };
    const Nearness how = nearness(before, now);
    const uint3 index = thread_index(before.thread);
    report("a race: ");
    report_access(now, address);
    report(", and thread (%u,%u,%u) ", index.x, index.y, index.z);
    if (how == GRID) {
        const uint3 block = block_index(before.block);
        report("of block (%u,%u,%u) ", block.x, block.y, block.z);
    }
    report("%s at ", verb(before.kind, true));
    report_line(before.code);
    report("; %s", between[how]);
    leave_kernel();
}

static bool never_written(const Region& region, const char* element, const Record& record) {
    if (record.last[WRITE][0].block) return false;
    if (region.shared) return true;
    if (region.fill_byte < 0) return false;
    for (unsigned byte = 0; byte < region.unit; byte++)
        if (static_cast<unsigned char>(element[byte]) != region.fill_byte) return false;
    return true;
}

static void record_access(const Region& region, size_t element, const Access& now) {
    Record& record = region.records[element];
    const char* address = region.start + element * region.unit;
    for (auto& last : record.last)
        if (region.shared && last[0].block != block_number) memset(last, 0, sizeof last);  // an earlier block
    if (now.kind != WRITE && !unwritten_read.block && never_written(region, address, record)) {
        unwritten_read = now;
        unwritten_address = address;
    }
    for (const auto& last : record.last)
        for (const Access& before : last)
            if (race(before, now)) race_found(before, now, address);
    Access* const same = record.last[now.kind];
    same[nearness(same[0], now)] = same[0];
    same[0] = now;
}

void shadow_block_ends() {
    if (!unwritten_read.block) return;
    report_access(unwritten_read, unwritten_address);
    report(", which no thread has written");
}

void on_access(const void* address, size_t bytes, Kind kind, const void* code) {
    if (!launch->check || on_a_stack(address)) return;
    const char* const call = static_cast<const char*>(code) - 1;  // `code` is its return address
    const Access now = {block_number, epoch, clocks[current], short(current), short(kind), call};
    const char* first = static_cast<const char*>(address);
    const Region* region = nearest_region(first);
    const char* last = first + bytes - 1;
    if (!region || first < region->start || last >= region->start + region->bytes) {
        if (is_builtin_index(address)) return;
        shadow_block_ends();  // an unwritten element may have been used as the index
        if (message[0]) leave_kernel();
        report_access(now, !region || first < region->start || first >= region->start + region->bytes ? first : last);
        leave_kernel();
    }
    launch->accesses++;
    for (size_t i = (first - region->start) / region->unit; i <= (last - region->start) / region->unit; i++)
        record_access(*region, i, now);
}

}  // namespace emulator

using namespace emulator;

// A test compares these with library.py and emulator.py.
extern "C" const size_t emulator_sizes[] = {sizeof(Launch), sizeof(Region), sizeof(Record), MAX_SHARED, FAR};

#define CALLER __builtin_return_address(0)
#define HOOKS(bytes) \
    void __tsan_read##bytes(void* address) { on_access(address, bytes, READ, CALLER); } \
    void __tsan_write##bytes(void* address) { on_access(address, bytes, WRITE, CALLER); } \
    void __tsan_unaligned_read##bytes(void* address) { on_access(address, bytes, READ, CALLER); } \
    void __tsan_unaligned_write##bytes(void* address) { on_access(address, bytes, WRITE, CALLER); }

extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) { on_access(address, bytes, READ, CALLER); }
void __tsan_write_range(void* address, size_t bytes) { on_access(address, bytes, WRITE, CALLER); }
void* __tsan_memset(void* to, int byte, size_t bytes) {  // clang calls these three, also to copy a struct
    if (bytes) on_access(to, bytes, WRITE, CALLER);
    return memset(to, byte, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    if (bytes) on_access(from, bytes, READ, CALLER);
    if (bytes) on_access(to, bytes, WRITE, CALLER);
    return memmove(to, from, bytes);
}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    if (bytes) on_access(from, bytes, READ, CALLER);
    if (bytes) on_access(to, bytes, WRITE, CALLER);
    return memcpy(to, from, bytes);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
