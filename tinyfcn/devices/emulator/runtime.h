// The interface between a kernel and the runtime that runs it.
#pragma once

#include <stddef.h>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 each) : x(each.x), y(each.y), z(each.z) {}
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
constexpr int BARRIER = -2;  // the thread waits for the whole block, and asks how many threads have a value that is not 0
constexpr int GATHER = -3;   // the thread asks every lane for its value; its own is the address of 32 values
constexpr int ACTIVE = -4;   // the thread asks which lanes arrive with it

// Waits until all threads that the calling thread depends on have arrived. `mask` names those lanes of its warp.
// Returns the value of the lane `source`, the votes, the number of votes, or the lanes that have arrived.
unsigned long long wait(const char* operation, SourceLocation location, unsigned mask, int source,
                        unsigned long long value);

int lane();  // the running thread's number within its warp

// Ends the launch if its blocks have more threads than `most`. A kernel with __launch_bounds__ begins with a call.
void launch_bounds(unsigned most, unsigned least_blocks = 0, unsigned most_blocks = 0,
                   SourceLocation location = SourceLocation());

char* dynamic_shared();  // the dynamic shared memory of the launch

// The running thread is about to execute a `return` of its kernel.
void returns();

// Ends the launch: the running thread "does" something that no kernel should.
[[noreturn]] void stop(const char* does, SourceLocation location);

// COMPARE is an atomic that verifies what its thread has read before.
enum Kind { READ, WRITE, ATOMIC, COMPARE };

// Check mode examines an access before it happens. `code` is the return address of the call before the instruction.
void on_access(const void* address, size_t bytes, Kind kind, const void* code);

// The running thread executes __threadfence: whoever sees its next atomic sees what it has written before.
void fence();

// A pointer of a kernel file that every launch sets to its dynamic shared memory.
struct DynamicShared {
    DynamicShared(void* pointer);
};

}  // namespace emulator
