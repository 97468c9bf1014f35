// Catches faults of a kernel, reports them in words, and ends the launch.
//
// Faults are found in three ways:
//
// - The compiler is told (-fsanitize=bounds,...) to call a __ubsan_handle function if an index is out of bounds, an int
//   overflows or a vector is misaligned. These functions are defined here, and not in the compiler's own library.
// - The processor raises a signal if a kernel accesses protected memory, which begins where an array ends.
// - shadow.cpp calls `report` for the faults that only check mode finds.
//
// Each of them writes to `message` and ends the launch.
#include "state.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <fenv.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

namespace emulator {

char message[2048];

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGINT};  // the last one is raised by Ctrl-C
constexpr int SIGNAL_COUNT = sizeof SIGNALS / sizeof *SIGNALS;

static int signals;  // the number of them that are caught
static struct sigaction actions_before[SIGNAL_COUNT];
static stack_t stack_before;
static char signal_stack[64 * 1024];  // because the stack of the fiber may be full
static pthread_t launching;
static bool reporting;  // whether a fault is being reported; another one meanwhile is a fault of the emulator

void report(const char* format, ...) {
    const size_t used = strlen(message);
    va_list values;
    va_start(values, format);
    vsnprintf(message + used, sizeof message - used, format, values);
    va_end(values);
}

static void report_thread(const char* does) {
    const uint3 index = thread_index(current);
    report("thread (%u,%u,%u) %s ", index.x, index.y, index.z, does);
}

void stop(const char* does, SourceLocation location) {
    report_thread(does);
    report("at %s:%d", location.file, location.line);
    leave_kernel();
}

// The offset of an instruction in the kernel's library, or -1 if it lies in another library.
static long offset(const void* code) {
    Dl_info kernels, its;
    dladdr(reinterpret_cast<void*>(launch->kernel), &kernels);
    if (!dladdr(code, &its) || its.dli_fbase != kernels.dli_fbase) return -1;
    return static_cast<const char*>(code) - static_cast<char*>(its.dli_fbase);
}

void report_line(const void* code) { report("<%lx>", offset(code)); }

// The region that an address lies in. If it lies in none: the nearest region, where a distance before a region counts
// 256 times. So an address between two arrays is taken for an index past the end of the first, and not for a negative
// index of the second, since few negative indices are large.
const Region* nearest_region(const char* address) {
    const Region* nearest = nullptr;
    size_t least = SIZE_MAX;
    for (int r = 0; r < launch->region_count; r++) {
        const Region& region = launch->regions[r];
        const char* end = region.start + region.bytes;
        const size_t distance = address < region.start ? (region.start - address) * 256
                                : address < end        ? 0
                                                       : address - end + 1;
        if (distance < least) {
            least = distance;
            nearest = &region;
        }
    }
    return nearest;
}

// Reports "y[559]" or, of an element that does not exist, "y[560] (y has 560 elements)".
void report_element(const void* address) {
    const char* at = static_cast<const char*>(address);
    const Region* region = nearest_region(at);
    const long distance = region ? at - region->start : LONG_MAX;
    if (distance < -FAR || distance > long(region ? region->bytes : 0) + FAR) {
        report("an address far from all its arrays (a null pointer, or an index that is negative or wrapped round?)");
        return;
    }
    report("%s[%ld]", region->name, distance / long(region->unit));
    if (at < region->start || at >= region->start + region->bytes)
        report(" (%s has %zu elements)", region->name, region->bytes / region->unit);
}

static void on_signal(int number, siginfo_t* info, void*) {
    if (reporting || !pthread_equal(launching, pthread_self())) {  // a fault of another part of the program
        if (number == SIGINT) actions_before[SIGNAL_COUNT - 1].sa_handler(number);
        else signal(number, SIG_DFL);
        return;
    }
    if (number == SIGINT) {
        launch->stopped = true;
        if (!in_kernel) {
            if (!message[0]) report("stopped by Ctrl-C");
            return;
        }
    }
    reporting = true;
    if (number == SIGFPE) shadow_block_ends();  // the NaN may be an unwritten element
    if (message[0]) leave_kernel();
    if (number == SIGINT) {
        report("stopped by Ctrl-C ");
    } else if (number == SIGFPE) {
        report_thread(
            "computes a NaN (0 / 0, inf - inf, inf / inf, 0 * inf ...), compares with one, or makes an int of a number"
            " that none holds,");
    } else if (on_a_stack(info->si_addr)) {
        report_thread("needs more memory for its local variables than a thread has,");
    } else {
        report_thread("touches");
        report_element(info->si_addr);
        report(" ");
    }
    // The fault may have occurred in a function of the C library, so the kernel's line may be that of a caller.
    void* frames[32];
    const int count = backtrace(frames, 32);
    report("at <");
    for (int f = 2; f < count; f++) {  // 0 is this function, 1 is the function of the system that called it
        const long at = offset(static_cast<char*>(frames[f]) - (f > 2));  // from a return address back to the call
        if (at >= 0) report("%lx,", at);
    }
    report(">");
    leave_kernel();
}

void install_handlers() {
    launching = pthread_self();
    reporting = false;
    void* frame;
    backtrace(&frame, 1);  // the first call loads a library, which a signal handler must not do
    stack_t stack = {};
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, &stack_before);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // because a jump leaves the handler
    signals = SIGNAL_COUNT - !launch->stoppable;
    for (int s = 0; s < signals; s++) sigaction(SIGNALS[s], &action, &actions_before[s]);
}

void restore_handlers() {
    for (int s = 0; s < signals; s++) sigaction(SIGNALS[s], &actions_before[s], nullptr);
    sigaltstack(&stack_before, nullptr);
#ifdef __GLIBC__
    feclearexcept(FE_ALL_EXCEPT);
    fedisableexcept(FE_INVALID);
#endif
}

// The data that the compiler passes to the __ubsan_handle functions begins with these fields.
struct Type {
    unsigned short kind, info;  // for an integer: info & 1 tells whether it is signed, info / 2 is log2 of its bits
    char name[1];               // in quotes, such as 'float [64]'
};
struct Case {
    const char* file;
    unsigned line, column;
    const Type *type, *other;
};

[[noreturn]] __attribute__((format(printf, 2, 3))) static void stop(const Case* at, const char* format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    report_thread(text);
    report("at %s:%u", at->file, at->line);
    leave_kernel();
}

static long long number(const Type* type, size_t value) {
    return type->info >> 1 == 5 && type->info & 1 ? static_cast<int>(value) : static_cast<long long>(value);
}

static void overflow(const Case* at, size_t a, char sign, size_t b) {
    const Type* type = at->type;
    stop(at, "computes %lld %c %lld, which overflows %s,", number(type, a), sign, number(type, b), type->name);
}

// A compiler that is told to end the program after a fault calls them by the second name.
#define BOTH_NAMES(name, parameters, body) \
    void __ubsan_handle_##name parameters body \
    void __ubsan_handle_##name##_abort parameters body

extern "C" {
BOTH_NAMES(add_overflow, (Case* at, size_t a, size_t b), { overflow(at, a, '+', b); })
BOTH_NAMES(sub_overflow, (Case* at, size_t a, size_t b), { overflow(at, a, '-', b); })
BOTH_NAMES(mul_overflow, (Case* at, size_t a, size_t b), { overflow(at, a, '*', b); })
BOTH_NAMES(negate_overflow, (Case* at, size_t a), { overflow(at, 0, '-', a); })
BOTH_NAMES(divrem_overflow, (Case* at, size_t a, size_t b), {
    stop(at, "divides %lld by %lld", number(at->type, a), number(at->type, b));
})
BOTH_NAMES(shift_out_of_bounds, (Case* at, size_t a, size_t b), {
    stop(at, "shifts %lld, of type %s, by %lld bits", number(at->type, a), at->type->name, number(at->other, b));
})
BOTH_NAMES(out_of_bounds, (Case* at, size_t index), {
    stop(at, "uses the index %lld of an array of type %s", number(at->other, index), at->type->name);
})
BOTH_NAMES(type_mismatch_v1, (Case* at, void* address), {
    report_thread("takes a");
    report("%s from the address of ", at->type->name);
    report_element(address);
    report(", which is not a multiple of its size, at %s:%u", at->file, at->line);
    const char* byte = static_cast<const char*>(address);
    const Region* region = nearest_region(byte);
    if (region && region->shared && (byte - region->start) % 16 == 0) report("; declare it __align__(16)");
    leave_kernel();
})
}

}  // namespace emulator
