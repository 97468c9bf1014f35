// Declarations that the parts of the runtime share. threads.cpp runs the threads, faults.cpp reports faults, shadow.cpp
// examines every access in check mode, and profile.cpp counts what accesses cost in profile mode.
#pragma once

#undef _FORTIFY_SOURCE     // its longjmp refuses to jump from a fiber's stack to another one
#define _XOPEN_SOURCE 700  // macOS declares ucontext only if this is defined,
#define _DARWIN_C_SOURCE   // and MAP_ANONYMOUS of mmap only if this is defined

#include "runtime.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulator {

constexpr int MAX_THREADS = 1024;         // threads of a block, on every GPU
constexpr size_t MAX_SHARED = 96 * 1024;  // bytes: 48 KiB of floats, widened to double
constexpr long FAR = 1 << 24;             // bytes of protected memory that emulator.py puts behind each array

struct Record;
struct Count;
struct Total;
struct Context;
struct TracedAccess;

// Memory that a kernel may use: an array, or a variable of the kernel file. library.py has the same structure.
struct Region {
    const char* name;
    char* start;      // null: the dynamic shared memory
    size_t bytes;
    unsigned unit;    // bytes of an element
    int fill_byte;    // the value of all bytes of an unwritten element; -1: an element may have any value
    int shared;       // whether it is shared memory, which every block starts with unwritten
    Record* records;  // in check mode, one for each element
};

enum Order { FORWARD, REVERSE, RANDOM };

// What profile mode has counted. profile.py has the same structure.
struct Profile {
    const Count* counts;      // of each instruction
    const Total* totals;      // of each region
    const Context* contexts;  // of each call
    unsigned long long count_count, context_count;
};

// A launch. library.py has the same structure.
struct Launch {
    void (*kernel)(void** arguments);
    void** arguments;
    unsigned grid[3], block[3], shared_bytes;
    int order;
    unsigned seed;
    int check;
    int trace;                    // whether check mode keeps every access, which it does in trace mode
    Profile* profile;             // in profile mode: where to put the result; otherwise null
    unsigned least_blocks;        // in profile mode: blocks are run until there are so many of them, so many
    unsigned long long enough;    // accesses, and until the blocks tell the number of requests to 2 %
    int stoppable;                // whether Ctrl-C may end it
    Region* regions;
    int region_count;
    unsigned long long accesses;  // result: the number of accesses that check mode or profile mode has examined
    int stopped;                  // result: whether Ctrl-C ended it
    unsigned blocks_run;          // result
    const TracedAccess* traced;   // result, in trace mode: every access of every thread, in the order of execution
    unsigned long long traced_count;
};

extern Launch* launch;
extern int thread_count;         // threads of a block
extern int current;              // the number of the running thread
extern volatile bool in_kernel;  // whether the kernel runs, and not the runtime
extern int block_number;         // the running block's number, counted from 1 in the order of execution
extern char message[2048];       // why the launch failed, or an empty text

uint3 thread_index(int thread);
uint3 block_index(int number);
bool on_a_stack(const void* address);
bool is_builtin_index(const void* address);  // threadIdx, blockIdx, blockDim or gridDim
[[noreturn]] void leave_kernel();  // ends the launch

// faults.cpp
__attribute__((format(printf, 1, 2))) void report(const char* format, ...);  // adds to `message`
void report_line(const void* code);  // as an offset in the library, which library.py replaces by the source line
void report_element(const void* address);
const Region* nearest_region(const char* address);
void install_handlers();
void restore_handlers();

// shadow.cpp
void shadow_begins();
void shadow_block_begins();
void shadow_block_ends();
void shadow_barrier();
void shadow_syncwarp(const int* waiting, int count);

// profile.cpp
void profile_begins();
void profile_block_begins();
void profile_barrier();  // also at the end of a block
void profile_ends();
bool profile_suffices();  // whether enough blocks were run
void profile_access(const void* address, size_t bytes, Kind kind, const void* code);
void profile_call(const void* code);
void profile_return();

}  // namespace emulator
