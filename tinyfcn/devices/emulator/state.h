// What the parts of the runtime share: threads.cpp runs the threads, faults.cpp says what went wrong, and shadow.cpp
// watches every access in check mode.
#pragma once

#undef _FORTIFY_SOURCE     // its longjmp refuses to leave a fiber's stack
#define _XOPEN_SOURCE 700  // macOS declares ucontext only with this,
#define _DARWIN_C_SOURCE   // and mmap's MAP_ANONYMOUS with this

#include "runtime.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulator {

constexpr int MAX_THREADS = 1024;         // in a block, on every GPU
constexpr size_t MAX_SHARED = 96 * 1024;  // bytes: 48 KiB of floats, widened to double
constexpr long FAR = 1 << 24;             // bytes; as far as the memory reaches that emulator.py puts behind each array

struct Record;

// Memory that a kernel may use: an argument, or a shared variable. A ctypes.Structure of library.py.
struct Region {
    const char* name;
    char* start;     // null: the dynamic shared memory
    size_t bytes;
    unsigned unit;   // bytes of an element
    int fill_byte;   // the value of all bytes of an unwritten element; -1: an element may have any value
    int shared;      // it belongs to a block, and starts anew with each
    Record* records; // one an element, in check mode
};

enum Order { FORWARD, REVERSE, RANDOM };

// All that a launch is. A ctypes.Structure of library.py.
struct Launch {
    void (*kernel)(void** arguments);
    void** arguments;
    unsigned grid[3], block[3], shared_bytes;
    int order;
    unsigned seed;
    int check;
    int stoppable;                // by Ctrl-C
    Region* regions;
    int region_count;
    unsigned long long accesses;  // that check mode looked at
    int stopped;                  // so
};

extern Launch* launch;
extern int thread_count;  // of this launch's blocks
extern int current;       // the thread that runs now
extern volatile bool in_kernel;  // and not in what runs it
extern int block_number;  // counted from 1 in the order in which they run
extern char message[2048];  // why the launch failed; empty while it has not

uint3 thread_index(int thread);
uint3 block_index(int number);
bool on_a_stack(const void* address);
bool is_index(const void* address);  // threadIdx and its like
[[noreturn]] void leave();  // the kernel, for good

// faults.cpp
__attribute__((format(printf, 1, 2))) void say(const char* format, ...);
void say_line(const void* code);  // as an offset in its library, which library.py turns into a file's line
void say_element(const void* address);
const Region* nearest_region(const char* address);
void catch_faults();  // until let_go
void let_go();

// shadow.cpp
void shadow_block_begins();
void shadow_block_ends();
void shadow_barrier();
void shadow_syncwarp(const int* members, int count);

}  // namespace emulator
