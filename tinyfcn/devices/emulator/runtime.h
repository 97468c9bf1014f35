// The interface between a kernel and the runtime that runs it.
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

// The file and line of a call in a kernel that makes threads wait. As a default argument, `SourceLocation()` is the
// location of the caller.
struct SourceLocation {
    const char* file;
    int line;
    constexpr SourceLocation(const char* f = __builtin_FILE(), int l = __builtin_LINE()) : file(f), line(l) {}
};

// Instead of a source lane:
constexpr int VOTE = -1;     // the thread asks every lane for one bit, which tells whether the lane's value is not 0
constexpr int BARRIER = -2;  // the thread waits for the whole block

// Waits until all threads that the calling thread depends on have arrived. `mask` names those lanes of its warp.
// Returns the value of the lane `source`, or the votes.
unsigned long long wait(const char* operation, SourceLocation location, unsigned mask, int source,
                        unsigned long long value);

int lane();  // the running thread's number within its warp

// Ends the launch if its blocks have more threads than `most`. A kernel with __launch_bounds__ begins with a call.
void launch_bounds(unsigned most, unsigned least_blocks = 0, unsigned most_blocks = 0,
                   SourceLocation location = SourceLocation());

char* dynamic_shared();  // the dynamic shared memory of the launch

enum Kind { READ, WRITE, ATOMIC };

// Check mode examines an access before it happens. `code` is the return address of the call before the instruction.
void on_access(const void* address, size_t bytes, Kind kind, const void* code);

}  // namespace emulator
