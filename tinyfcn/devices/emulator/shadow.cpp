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
// - Atomics do not race with each other. They order something only together with fences: a thread that updates a
//   counter after a __threadfence shows what its block has written to every block that updates the counter later.
//
// Two patterns look like races and are none. Lanes of a warp may write one value to one place, so the values are
// compared after the write. And a thread may read what others update by atomics if its next atomic is an atomicCAS that
// verifies the value.
//
// So a race is found even if the result is right here, because the threads run one after another.
//
// Serebryany & Iskhodzhanov, "ThreadSanitizer: data race detection in practice" (2009); Flanagan & Freund,
// "FastTrack: efficient and precise dynamic race detection" (2009).
#include "state.h"

#include <string.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <vector>

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

// In trace mode, one access of a thread. One of more than 16 bytes is kept as several. library.py has the same fields.
struct TracedAccess {
    const void* code;
    size_t offset;  // bytes from the start of the region
    int region, block, thread;  // block: its number within the grid
    short kind, bytes;
    char before[16];  // what the memory held before the access
};
static std::vector<TracedAccess> traced;

static int epoch;  // the number of barriers and of started blocks
static int clocks[MAX_THREADS];
static int known[MAX_THREADS][warpSize];  // for each thread and each lane of its warp, the time that it knows

// The block's first read of an unwritten element. If another thread writes that element later, with no barrier between,
// then the race is the better explanation. So the read is reported when the block has ended.
static Access unwritten_read;
static const char* unwritten_address;

// A block has updated a counter after a fence. Whoever updates the counter later knows the block's accesses in epochs
// before `bound`, and those of the thread up to `clock`.
struct Release {
    int bound, thread, clock;
};
using Counter = std::unordered_map<int, std::vector<Release>>;  // by the number of the block
struct Acquisition {  // of the running block: it has updated a counter
    const char* address;
    size_t bytes;
    const Counter* counter;
    Access update;
};
static std::map<const char*, Counter> counters;
static std::vector<Acquisition> acquisitions;
static int fence_epochs[MAX_THREADS], fence_clocks[MAX_THREADS];  // of each thread's last fence in this block; 0: none
static int fenced_epoch;  // the last one before the current epoch in which a thread of this block has executed a fence
static bool fenced;       // whether a thread has executed one in the current epoch

// Two accesses that may yet turn out to be no race.
struct Suspicion {
    Access before, now;
    const char* address;
    std::vector<char> bytes;  // of a write: what the write before it has stored
};
static std::vector<Suspicion> equal_writes;  // the last write, which may store what its place has already
static Suspicion unverified[MAX_THREADS];    // each thread's read of what atomics update, until its atomicCAS
static int unverified_count;

static void report_race(const Suspicion& race);

// Reports the last write if it has not stored what its place had already.
static void compare_writes() {
    for (const Suspicion& each : equal_writes)
        if (!message[0] && memcmp(each.address, each.bytes.data(), each.bytes.size())) report_race(each);
    equal_writes.clear();
}

// Reports a read of what atomics update, if no atomicCAS has verified it.
static void report_unverified() {
    compare_writes();
    for (int t = 0; t < thread_count && unverified_count; t++)
        if (unverified[t].now.block && !message[0]) report_race(unverified[t]);
}

void shadow_barrier() {
    if (!launch->check) return;
    report_unverified();
    if (fenced) fenced_epoch = epoch;
    fenced = false;
    epoch++;
}

void shadow_begins() { traced.clear(); }

void shadow_block_begins() {
    epoch++;
    unwritten_read.block = 0;
    if (!launch->check) return;
    if (block_number == 1) counters.clear();
    acquisitions.clear();
    equal_writes.clear();
    fenced_epoch = fenced = false;
    for (int t = 0; t < thread_count; t++) fence_epochs[t] = fence_clocks[t] = unverified[t].now.block = 0;
    unverified_count = 0;
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

void fence() {
    if (!launch->check) return;
    fenced = true;
    fence_epochs[current] = epoch;
    fence_clocks[current] = clocks[current]++;
}

static void update_counter(const char* address, size_t bytes, const Access& now) {
    const int bound = fenced_epoch >= fence_epochs[now.thread] && fenced_epoch ? fenced_epoch + 1
                                                                               : fence_epochs[now.thread];
    const auto known_counter = counters.find(address);
    if (!bound && known_counter == counters.end()) return;
    Counter& counter = bound ? counters[address] : known_counter->second;
    acquisitions.push_back({address, bytes, &counter, now});
    if (bound) counter[now.block].push_back({bound, now.thread, fence_clocks[now.thread]});
}

// Whether two threads of one block are ordered.
static bool ordered_in_block(const Access& before, const Access& now) {
    if (before.thread == now.thread || before.epoch < now.epoch) return true;
    return before.thread / warpSize == now.thread / warpSize &&
           known[now.thread][before.thread % warpSize] >= before.clock;
}

// Whether an access of another block comes before, by a fence and a counter.
static bool ordered_by_counter(const Access& before, const Access& now, const char* address) {
    for (const Acquisition& acquired : acquisitions) {
        if (!ordered_in_block(acquired.update, now)) continue;
        const auto releases = acquired.counter->find(before.block);
        if (releases == acquired.counter->end()) continue;
        const bool is_counter = address >= acquired.address && address < acquired.address + acquired.bytes;
        if (before.kind == ATOMIC && is_counter) return true;
        for (const Release& release : releases->second)
            if (before.epoch < release.bound || (before.thread == release.thread && before.clock <= release.clock))
                return true;
    }
    return false;
}

static bool race(const Access& before, const Access& now, const char* address) {
    if (!before.block || (before.kind == now.kind && now.kind != WRITE)) return false;  // two reads, or two atomics
    if (before.block != now.block) return !ordered_by_counter(before, now, address);
    return !ordered_in_block(before, now);
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

static void report_race(const Suspicion& race) {
    static const char* const between[] = {
        "",
        "no __syncwarp() or __syncthreads() stands between",
        "no __syncthreads() stands between",
        "nothing orders blocks: give each element one owner, or a launch of its own to what comes after",
    };
    const Access &before = race.before, &now = race.now;
    const Nearness how = nearness(before, now);
    const uint3 index = thread_index(before.thread);
    report("a race: ");
    report_access(now, race.address);
    report(", and thread (%u,%u,%u) ", index.x, index.y, index.z);
    if (how == GRID) {
        const uint3 block = block_index(before.block);
        report("of block (%u,%u,%u) ", block.x, block.y, block.z);
    }
    report("%s at ", verb(before.kind, true));
    report_line(before.code);
    report("; %s", between[how]);
    const bool is_read = before.kind == READ || now.kind == READ;
    const bool is_updated = before.kind == ATOMIC || now.kind == ATOMIC;
    if (is_read && is_updated) report("; or read it by an atomic too, such as atomicAdd(address, 0)");
}

static void race_found(const Access& before, const Access& now, const Region& region, const char* address) {
    Suspicion race = {before, now, address, {}};
    if (before.kind == WRITE && now.kind == WRITE && nearness(before, now) == WARP) {
        race.bytes.assign(address, address + region.unit);
        equal_writes.push_back(race);
        return;
    }
    Suspicion& doubt = unverified[now.thread];
    const bool is_only_doubt = !doubt.now.block || doubt.address == address;
    if (before.kind == ATOMIC && now.kind == READ && is_only_doubt) {
        unverified_count += !doubt.now.block;
        doubt = race;
        return;
    }
    report_race(doubt.now.block ? doubt : race);
    leave_kernel();
}

// An atomicCAS has verified what its thread has read.
static void verify(Record& record, const char* address, const Access& now) {
    for (Access& read : record.last[READ])
        if (read.block == now.block && read.thread == now.thread && read.epoch == now.epoch) read.block = 0;
    Suspicion& doubt = unverified[now.thread];
    if (doubt.address == address && doubt.now.block) {
        doubt.now.block = 0;
        unverified_count--;
    }
}

static bool never_written(const Region& region, const char* element, const Record& record) {
    if (record.last[WRITE][0].block) return false;
    if (region.shared) return true;
    if (region.fill_byte < 0) return false;
    for (unsigned byte = 0; byte < region.unit; byte++)
        if (static_cast<unsigned char>(element[byte]) != region.fill_byte) return false;
    return true;
}

static void record_access(const Region& region, size_t element, const Access& now, Kind kind) {
    Record& record = region.records[element];
    const char* address = region.start + element * region.unit;
    for (auto& last : record.last)
        if (region.shared && last[0].block != block_number) memset(last, 0, sizeof last);  // an earlier block
    if (now.kind != WRITE && !unwritten_read.block && never_written(region, address, record)) {
        unwritten_read = now;
        unwritten_address = address;
    }
    if (kind == COMPARE) verify(record, address, now);
    for (const auto& last : record.last)
        for (const Access& before : last)
            if (race(before, now, address)) race_found(before, now, region, address);
    Access* const same = record.last[now.kind];
    if (same[0].block) same[nearness(same[0], now)] = same[0];
    same[0] = now;
}

void shadow_block_ends() {
    if (!launch->check) return;
    report_unverified();
    if (!unwritten_read.block || message[0]) return;
    report_access(unwritten_read, unwritten_address);
    report(", which no thread has written");
}

static void trace(const Region& region, const char* address, size_t bytes, const Access& now) {
    const int block = int(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    for (size_t size; bytes; address += size, bytes -= size) {
        size = std::min(bytes, sizeof TracedAccess::before);
        traced.push_back({now.code, size_t(address - region.start), int(&region - launch->regions), block, now.thread,
                          now.kind, short(size), {}});
        memcpy(traced.back().before, address, size);
    }
    launch->traced = traced.data();
    launch->traced_count = traced.size();
}

void on_access(const void* address, size_t bytes, Kind kind, const void* code) {
    if (launch->profile) return profile_access(address, bytes, kind, code);
    if (!launch->check || on_a_stack(address)) return;
    compare_writes();
    if (message[0]) leave_kernel();
    const char* const call = static_cast<const char*>(code) - 1;  // `code` is its return address
    const Kind recorded = kind == COMPARE ? ATOMIC : kind;
    const Access now = {block_number, epoch, clocks[current], short(current), short(recorded), call};
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
    if (launch->trace) trace(*region, first, bytes, now);
    for (size_t i = (first - region->start) / region->unit; i <= (last - region->start) / region->unit; i++)
        record_access(*region, i, now, kind);
    if (recorded == ATOMIC) update_counter(first, bytes, now);
}

}  // namespace emulator

using namespace emulator;

// A test compares these with library.py and emulator.py.
extern "C" const size_t emulator_sizes[] = {sizeof(Launch), sizeof(Region), sizeof(Record), MAX_SHARED, FAR,
                                          sizeof(TracedAccess)};

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
void __tsan_func_entry(void* caller) {
    if (launch && launch->profile) profile_call(caller);
}
void __tsan_func_exit() {
    if (launch && launch->profile) profile_return();
}
}
