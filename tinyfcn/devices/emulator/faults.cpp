// What goes wrong in a kernel, caught and said in words.
//
// Three ways lead here. The compiler is told (-fsanitize=bounds,...) to call a __ubsan_handle function where an
// index leaves its array, an int overflows or a vector is not aligned; the functions stand here instead of the
// compiler's own. The processor raises a signal where memory is touched that is not there: arrays end at a page
// that must not be touched. And shadow.cpp calls `say` for what only it sees. Each says what happened in
// `message` and leaves the kernel.
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

constexpr long FAR = 1 << 24;  // bytes; as far as the memory reaches that emulator.py puts behind each array

static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGINT};  // the last is Ctrl-C's
constexpr int SIGNAL_COUNT = sizeof SIGNALS / sizeof *SIGNALS;

static int signals;  // how many of them are caught
static struct sigaction actions_before[SIGNAL_COUNT];
static stack_t stack_before;
static char signal_stack[64 * 1024];  // a fiber's own may be the one that is full
static pthread_t launching;
static bool telling;  // of a fault; a second one meanwhile is the emulator's own

void say(const char* format, ...) {
    const size_t used = strlen(message);
    va_list values;
    va_start(values, format);
    vsnprintf(message + used, sizeof message - used, format, values);
    va_end(values);
}

static void say_thread(const char* does) {
    const uint3 index = thread_index(current);
    say("thread (%u,%u,%u) %s ", index.x, index.y, index.z, does);
}

// The offset of an instruction in the kernel's library; -1 if it lies in another.
static long offset(const void* code) {
    Dl_info kernels, its;
    dladdr(reinterpret_cast<void*>(launch->kernel), &kernels);
    if (!dladdr(code, &its) || its.dli_fbase != kernels.dli_fbase) return -1;
    return static_cast<const char*>(code) - static_cast<char*>(its.dli_fbase);
}

void say_line(const void* code) { say("<%lx>", offset(code)); }

// The region that an address lies in, or, if it lies in none, the one that it missed by least.
const Region* nearest_region(const char* address) {
    const Region* nearest = nullptr;
    size_t least = SIZE_MAX;
    for (int r = 0; r < launch->region_count; r++) {
        const Region& region = launch->regions[r];
        const char* end = region.start + region.bytes;
        const size_t missed = address < region.start ? region.start - address : address < end ? 0 : address - end + 1;
        if (missed < least) {
            least = missed;
            nearest = &region;
        }
    }
    return nearest;
}

// "y[560]", and of an element that is not there " (y has 560 elements)"
void say_element(const void* address) {
    const char* at = static_cast<const char*>(address);
    const Region* region = nearest_region(at);
    const long distance = region ? at - region->start : LONG_MAX;
    if (distance < -FAR || distance > long(region ? region->bytes : 0) + FAR) {
        say("an address far from all its arrays (a null pointer, or an index that is negative or wrapped round?)");
        return;
    }
    say("%s[%ld]", region->name, distance / long(region->unit));
    if (at < region->start || at >= region->start + region->bytes)
        say(" (%s has %zu elements)", region->name, region->bytes / region->unit);
}

static void on_signal(int number, siginfo_t* info, void*) {
    if (telling || !pthread_equal(launching, pthread_self())) {  // not the kernel's doing, or not its thread
        if (number == SIGINT) actions_before[SIGNAL_COUNT - 1].sa_handler(number);
        else signal(number, SIG_DFL);
        return;
    }
    if (number == SIGINT) {
        launch->stopped = true;
        if (!in_kernel) {
            if (!message[0]) say("stopped by Ctrl-C");
            return;
        }
    }
    telling = true;
    if (number == SIGFPE) shadow_block_ends();  // what nothing wrote is a NaN
    if (message[0]) leave();
    if (number == SIGINT) {
        say("stopped by Ctrl-C ");
    } else if (number == SIGFPE) {
        say_thread(
            "computes a NaN (0 / 0, inf - inf, inf / inf, 0 * inf ...), compares with one, or makes an int of a number"
            " that none holds,");
    } else if (on_a_stack(info->si_addr)) {
        say_thread("needs more memory for its local variables than a thread has,");
    } else {
        say_thread("touches");
        say_element(info->si_addr);
        say(" ");
    }
    // The fault may have come up in a function of the C library: the kernel's line is among the callers'.
    void* frames[32];
    const int count = backtrace(frames, 32);
    say("at <");
    for (int f = 2; f < count; f++) {  // after this function and the system's, which called it
        const long at = offset(static_cast<char*>(frames[f]) - (f > 2));  // a caller goes on after its call
        if (at >= 0) say("%lx,", at);
    }
    say(">");
    leave();
}

void catch_faults() {
    launching = pthread_self();
    telling = false;
    void* frame;
    backtrace(&frame, 1);  // loads what it needs now, not in a signal handler
    stack_t stack = {};
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof signal_stack;
    sigaltstack(&stack, &stack_before);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler is left by a jump
    signals = SIGNAL_COUNT - !launch->stoppable;
    for (int s = 0; s < signals; s++) sigaction(SIGNALS[s], &action, &actions_before[s]);
}

void let_go() {
    for (int s = 0; s < signals; s++) sigaction(SIGNALS[s], &actions_before[s], nullptr);
    sigaltstack(&stack_before, nullptr);
#ifdef __GLIBC__
    feclearexcept(FE_ALL_EXCEPT);
    fedisableexcept(FE_INVALID);
#endif
}

// What the compiler hands to the __ubsan_handle functions.
struct Place {
    const char* file;
    unsigned line, column;
};
struct Type {
    unsigned short kind, info;  // of an integer: info & 1, whether it is signed; info / 2, the logarithm of its bits
    char name[1];               // in quotes: 'float [64]'
};
struct Operation {
    Place place;
    Type* type;
};
struct Index {
    Place place;
    Type *array, *index;
};

static long long integer(const Type* type, size_t value) {
    return type->info >> 1 == 5 && type->info & 1 ? static_cast<int>(value) : static_cast<long long>(value);
}

[[noreturn]] static void stop_at(const Place& place) {
    say(" at %s:%u", place.file, place.line);
    leave();
}

static void overflow(const Operation* where, size_t a, const char* sign, size_t b) {
    say_thread("computes");
    say("%lld %s %lld, which overflows %s,", integer(where->type, a), sign, integer(where->type, b), where->type->name);
    stop_at(where->place);
}

extern "C" {
void __ubsan_handle_out_of_bounds(Index* where, size_t index) {
    say_thread("uses");
    say("the index %lld of an array of type %s", integer(where->index, index), where->array->name);
    stop_at(where->place);
}
void __ubsan_handle_type_mismatch_v1(Operation* where, void* address) {
    say_thread("takes");
    say("a %s from the address of ", where->type->name);
    say_element(address);
    say(", which is not a multiple of its size,");
    stop_at(where->place);
}
void __ubsan_handle_add_overflow(Operation* where, size_t a, size_t b) { overflow(where, a, "+", b); }
void __ubsan_handle_sub_overflow(Operation* where, size_t a, size_t b) { overflow(where, a, "-", b); }
void __ubsan_handle_mul_overflow(Operation* where, size_t a, size_t b) { overflow(where, a, "*", b); }
void __ubsan_handle_negate_overflow(Operation* where, size_t a) { overflow(where, 0, "-", a); }
void __ubsan_handle_shift_out_of_bounds(Index* where, size_t a, size_t b) {
    say_thread("shifts");
    say("%lld, of type %s, by %lld bits", integer(where->array, a), where->array->name, integer(where->index, b));
    stop_at(where->place);
}
void __ubsan_handle_divrem_overflow(Operation* where, size_t a, size_t b) {
    say_thread("divides");
    say("%lld by %lld", integer(where->type, a), integer(where->type, b));
    stop_at(where->place);
}
}

}  // namespace emulator
