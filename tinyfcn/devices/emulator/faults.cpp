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

// The region that an address lies in, or, if it lies in none, the one that it missed by least. What lies between two
// arrays is put there behind the first: to miss the second, an index must be negative, which few are by much.
const Region* nearest_region(const char* address) {
    const Region* nearest = nullptr;
    size_t least = SIZE_MAX;
    for (int r = 0; r < launch->region_count; r++) {
        const Region& region = launch->regions[r];
        const char* end = region.start + region.bytes;
        const size_t missed = address < region.start ? (region.start - address) * 256
                              : address < end        ? 0
                                                     : address - end + 1;
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

// What the compiler hands to the __ubsan_handle functions: all begin like this.
struct Type {
    unsigned short kind, info;  // of an integer: info & 1, whether it is signed; info / 2, the logarithm of its bits
    char name[1];               // in quotes: 'float [64]'
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
    say_thread(text);
    say("at %s:%u", at->file, at->line);
    leave();
}

static long long number(const Type* type, size_t value) {
    return type->info >> 1 == 5 && type->info & 1 ? static_cast<int>(value) : static_cast<long long>(value);
}

static void overflow(const Case* at, size_t a, char sign, size_t b) {
    const Type* type = at->type;
    stop(at, "computes %lld %c %lld, which overflows %s,", number(type, a), sign, number(type, b), type->name);
}

extern "C" {
void __ubsan_handle_add_overflow(Case* at, size_t a, size_t b) { overflow(at, a, '+', b); }
void __ubsan_handle_sub_overflow(Case* at, size_t a, size_t b) { overflow(at, a, '-', b); }
void __ubsan_handle_mul_overflow(Case* at, size_t a, size_t b) { overflow(at, a, '*', b); }
void __ubsan_handle_negate_overflow(Case* at, size_t a) { overflow(at, 0, '-', a); }
void __ubsan_handle_divrem_overflow(Case* at, size_t a, size_t b) {
    stop(at, "divides %lld by %lld", number(at->type, a), number(at->type, b));
}
void __ubsan_handle_shift_out_of_bounds(Case* at, size_t a, size_t b) {
    stop(at, "shifts %lld, of type %s, by %lld bits", number(at->type, a), at->type->name, number(at->other, b));
}
void __ubsan_handle_out_of_bounds(Case* at, size_t index) {
    stop(at, "uses the index %lld of an array of type %s", number(at->other, index), at->type->name);
}
void __ubsan_handle_type_mismatch_v1(Case* at, void* address) {
    say_thread("takes a");
    say("%s from the address of ", at->type->name);
    say_element(address);
    say(", which is not a multiple of its size, at %s:%u", at->file, at->line);
    leave();
}
}

}  // namespace emulator
