// What a kernel and the runtime that runs it know of each other.
#pragma once

#include <stddef.h>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
};

constexpr int warpSize = 32;

namespace emulator {

// A call in a kernel that makes threads wait. As a default argument, `Here()` is the line of the call.
struct Here {
    const char* file;
    int line;
    constexpr Here(const char* f = __builtin_FILE(), int l = __builtin_LINE()) : file(f), line(l) {}
};

constexpr int VOTE = -1;     // it wants one bit from each lane: whether that lane's value is not 0
constexpr int BARRIER = -2;  // it waits for the whole block

// Called by a thread that cannot go on alone. Returns when all those it waits for have come, with what it asked for:
// the value of the lane `source`, or the votes. `mask`: the lanes of its warp that it waits for.
unsigned long long wait(const char* operation, Here here, unsigned mask, int source, unsigned long long value);

int lane();  // of the running thread, within its warp

char* dynamic_shared();  // of the running launch

enum Kind { READ, WRITE, ATOMIC };

// Check mode's look at an access before it happens, by the instruction at `code`.
void touch(const void* address, size_t bytes, Kind kind, const void* code);

}  // namespace emulator
