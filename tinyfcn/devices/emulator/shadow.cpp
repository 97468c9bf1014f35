// Check mode: a look at every access of a kernel, before it happens.
//
// The compiler is told (-fsanitize=thread) to call a __tsan function before each read and write. Instead of its
// own library, which watches the threads of an operating system, the functions stand here and watch a kernel's.
// For each element of each array and shared variable a record is kept, its shadow: which thread wrote it last and
// where, and which threads read it.
//
// Two accesses by different threads, one of them a write, are a race unless something orders them. Blocks nothing
// orders. Threads of one block are ordered by a __syncthreads between the two: `epoch` counts those. Lanes of one
// warp are also ordered by a __syncwarp: each thread has a clock, and knows for every lane of its warp up to which
// time of that lane's clock all has been seen, directly or through others ("vector clocks"; Fidge 1988). Atomics
// do not race with each other, but order nothing. So a race is found although here, where one thread runs after
// another, its result may come out right.
//
// Serebryany & Iskhodzhanov, "ThreadSanitizer: data race detection in practice" (2009); Flanagan & Freund,
// "FastTrack: efficient and precise dynamic race detection" (2009).
#include "state.h"

#include <string.h>

namespace emulator {

struct Access {
    int block;  // its number from 1 on; 0: there was none
    int epoch, clock;
    short thread, kind;
    const void* code;  // the instruction
};

// How near two threads are to each other; the farther, the less orders them.
enum Nearness { THREAD, WARP, BLOCK, GRID };

// Of the reads, the writes and the atomics: the last, and the last by another lane, another warp, another block than
// that one. If any of all races with an access then one of these does (but for lanes that wait in parts of a warp). The
// same fields in library.py.
struct Record {
    Access last[3][4];
};

static int epoch;  // barriers and blocks begun so far
static int clocks[MAX_THREADS];
static int seen[MAX_THREADS][warpSize];

// This block's first read of what was never written. Should another thread write it with no barrier between, then that
// race is the better explanation; so it is told when the block has ended.
static Access unwritten_read;
static const char* unwritten_address;

void shadow_barrier() { epoch++; }

void shadow_block_begins() {
    epoch++;
    unwritten_read.block = 0;
    if (!launch->check) return;
    memset(seen, 0, sizeof seen);
    for (int& clock : clocks) clock = 1;
}

void shadow_syncwarp(const int* members, int count) {
    if (!launch->check) return;
    int together[warpSize] = {};
    for (int i = 0; i < count; i++) {
        for (int lane = 0; lane < warpSize; lane++)
            if (seen[members[i]][lane] > together[lane]) together[lane] = seen[members[i]][lane];
        together[members[i] % warpSize] = clocks[members[i]]++;
    }
    for (int i = 0; i < count; i++) memcpy(seen[members[i]], together, sizeof together);
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
    return how == WARP && seen[now.thread][before.thread % warpSize] >= before.clock;
}

static bool race(const Access& before, const Access& now) {
    const bool harmless = before.kind == now.kind && now.kind != WRITE;  // reads among themselves, and atomics
    return before.block && !harmless && !ordered(before, now);
}

static const char* verb(int kind, bool past) {
    if (kind == ATOMIC) return past ? "updated it by an atomic" : "updates by an atomic";
    if (kind == WRITE) return past ? "wrote it" : "writes";
    return past ? "read it" : "reads";
}

static void say_access(const Access& now, const char* address) {
    const uint3 index = thread_index(now.thread);
    say("thread (%u,%u,%u) %s ", index.x, index.y, index.z, verb(now.kind, false));
    say_element(address);
    say(" at ");
    say_line(now.code);
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
    say("a race: ");
    say_access(now, address);
    say(", and thread (%u,%u,%u) ", index.x, index.y, index.z);
    if (how == GRID) {
        const uint3 block = block_index(before.block);
        say("of block (%u,%u,%u) ", block.x, block.y, block.z);
    }
    say("%s at ", verb(before.kind, true));
    say_line(before.code);
    say("; %s", between[how]);
    leave();
}

static bool never_written(const Region& region, const char* element, const Record& record) {
    if (record.last[WRITE][0].block) return false;
    if (region.shared) return true;
    if (region.fill_byte < 0) return false;
    for (unsigned byte = 0; byte < region.unit; byte++)
        if (static_cast<unsigned char>(element[byte]) != region.fill_byte) return false;
    return true;
}

static void look(const Region& region, size_t element, const Access& now) {
    Record& record = region.records[element];
    const char* address = region.start + element * region.unit;
    for (auto& last : record.last)
        if (region.shared && last[0].block != block_number) memset(last, 0, sizeof last);  // another block's
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
    say_access(unwritten_read, unwritten_address);
    say(", which no thread has written");
}

void touch(const void* address, size_t bytes, Kind kind, const void* code) {
    if (!launch->check || on_a_stack(address)) return;
    launch->accesses++;
    const char* const call = static_cast<const char*>(code) - 1;  // it would return to `code`
    const Access now = {block_number, epoch, clocks[current], short(current), short(kind), call};
    const char* first = static_cast<const char*>(address);
    const Region* region = nearest_region(first);
    const char* last = first + bytes - 1;
    if (!region || first < region->start || last >= region->start + region->bytes) {
        if (is_index(address)) return;
        shadow_block_ends();  // what was read there may have been this address
        if (message[0]) leave();
        say_access(now, !region || first < region->start || first >= region->start + region->bytes ? first : last);
        leave();
    }
    for (size_t i = (first - region->start) / region->unit; i <= (last - region->start) / region->unit; i++)
        look(*region, i, now);
}

}  // namespace emulator

using namespace emulator;

extern "C" const size_t emulator_sizes[] = {sizeof(Launch), sizeof(Region), sizeof(Record), MAX_SHARED, FAR};  // for a test

#define CALLER __builtin_return_address(0)
#define HOOKS(bytes) \
    void __tsan_read##bytes(void* address) { touch(address, bytes, READ, CALLER); } \
    void __tsan_write##bytes(void* address) { touch(address, bytes, WRITE, CALLER); } \
    void __tsan_unaligned_read##bytes(void* address) { touch(address, bytes, READ, CALLER); } \
    void __tsan_unaligned_write##bytes(void* address) { touch(address, bytes, WRITE, CALLER); }

extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) { touch(address, bytes, READ, CALLER); }
void __tsan_write_range(void* address, size_t bytes) { touch(address, bytes, WRITE, CALLER); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
