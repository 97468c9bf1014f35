// A stand-in for CUDA's driver and runtime: one pretended GPU. Its memory is the host's, and a callback runs its kernels.
//
// A call puts work into a stream and returns. When the work runs is the order's choice: eager (at once), lazy (when
// something waits for it, and then no more than is needed), random (any time it may). A graph's nodes run in a random
// order that its edges allow. A call that a driver would refuse returns the driver's code; what a driver lets pass though
// it is wrong, such as a graph that uses freed memory, is reported.
#include <cuda_runtime_api.h>
#include <cxxabi.h>
#include <elf.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

std::mutex mutex;  // guards everything below; not held while a kernel runs, because the kernel needs Python's own lock

// ---- Reports, and calls that are made to fail
std::vector<std::string> reports;
std::map<std::string, int> calls;
std::string failing;
int fails_in, fails_with;

__attribute__((format(printf, 2, 3))) cudaError_t refuse(int code, const char* format, ...) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    reports.push_back(code ? std::string(text) + ": error " + std::to_string(code) : text);
    return cudaError_t(code);
}

int fault(const char* name) {
    ++calls[name];
    return failing == name && --fails_in == 0 ? fails_with : 0;
}

#define CALL                                  \
    std::lock_guard<std::mutex> lock(mutex); \
    if (int code = fault(__func__)) return cudaError_t(code)

// ---- Memory
constexpr size_t PAGE = 4096, TOTAL = size_t(4) << 30;
struct Region {
    size_t bytes;
    bool host, freed;
};
std::map<uintptr_t, Region> regions;  // freed ones stay, with their pages protected, so that their use is noticed
size_t in_use;
struct Block {
    size_t bytes;
    uint64_t allocation;
};
std::map<uintptr_t, Block> blocks;  // what CuPy's pools have given out
uint64_t allocations;

template <typename T>
typename std::map<uintptr_t, T>::iterator holding(std::map<uintptr_t, T>& all, const void* p) {
    auto found = all.upper_bound(uintptr_t(p));
    if (found == all.begin()) return all.end();
    --found;
    return uintptr_t(p) < found->first + found->second.bytes ? found : all.end();
}

cudaError_t allocate(void** p, size_t bytes, bool host) {
    size_t pages = (bytes + PAGE - 1) / PAGE * PAGE;
    if (!host && in_use + bytes > TOTAL) return cudaErrorMemoryAllocation;
    void* memory = mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return cudaErrorMemoryAllocation;
    mprotect((char*)memory + pages, PAGE, PROT_NONE);
    regions[uintptr_t(memory)] = {bytes, host, false};
    in_use += host ? 0 : bytes;
    *p = memory;
    return cudaSuccess;
}

// ---- Work in streams
struct Task {
    std::function<int()> run;
    std::vector<std::shared_ptr<Task>> before;
    bool running = false, done = false;
    std::thread::id thread;
};
using TaskP = std::shared_ptr<Task>;

struct Function {
    std::string name;
    std::vector<unsigned> sizes;  // bytes of each parameter
    unsigned registers = 0, shared = 0, max_threads = 1024;
};
using Module = std::map<std::string, Function>;

using Runner = int (*)(const void* function, const char* name, const unsigned* grid_block_shared, void** arguments,
                       const unsigned* sizes, int count);
Runner runner;

struct Work {  // what a stream is to do, or a node of a graph
    enum Kind { KERNEL, COPY, FILL } kind;
    Function* function = nullptr;
    unsigned configuration[7]{};  // grid, block, bytes of dynamic shared memory
    std::vector<std::vector<char>> arguments;
    char* to = nullptr;
    const char* from = nullptr;
    size_t bytes = 0;
    int value = 0;
    std::shared_ptr<std::vector<char>> staged;  // pageable host memory, as it was at the call
    std::set<int> before;                       // in a graph

    const char* name() const { return kind == KERNEL ? function->name.c_str() : kind == COPY ? "memcpy" : "memset"; }

    std::vector<const void*> pointers() const {
        std::vector<const void*> all{to, from};
        for (auto& argument : arguments)
            if (argument.size() == sizeof(void*)) all.push_back(*(void**)argument.data());
        return all;
    }

    int run() const {
        if (kind == COPY) memcpy(to, staged ? staged->data() : from, bytes);
        if (kind == FILL) memset(to, value, bytes);
        if (kind != KERNEL) return 0;
        std::vector<void*> given;
        for (auto& argument : arguments) given.push_back((void*)argument.data());
        mutex.unlock();
        int code = runner(function, function->name.c_str(), configuration, given.data(), function->sizes.data(),
                          int(given.size()));
        mutex.lock();
        return code;
    }
};

struct Stream;
struct Capture {
    Stream* origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    std::vector<Work> nodes;
    bool broken = false;
};
using CaptureP = std::shared_ptr<Capture>;
struct Stream {
    bool blocking = true;
    TaskP last;
    CaptureP capture;
    std::set<int> frontier;  // while it is captured: the nodes that its next node comes after
};
struct Event {
    bool timing;
    TaskP task;
    std::shared_ptr<double> milliseconds;
    CaptureP capture;
    std::set<int> nodes;
};
struct Graph {
    std::vector<Work> nodes;
    TaskP last;
    std::map<uintptr_t, uint64_t> uses;  // the blocks of its kernels, and which allocation each was
};

Stream legacy;
std::set<Stream*> streams;
std::set<CaptureP> captures;
std::set<Graph*> graphs;
std::vector<TaskP> pending;
int sticky;  // the error of a kernel, which every later call returns
enum { EAGER, LAZY, RANDOM } order = LAZY;
std::mt19937 random_state;

Stream* stream_of(cudaStream_t s) {
    return uintptr_t(s) <= 2 ? &legacy : streams.count((Stream*)s) ? (Stream*)s : nullptr;
}

#define STREAM(handle)                 \
    CALL;                              \
    Stream* s = stream_of(handle);     \
    if (!s) return refuse(400, "%s of a stream that was destroyed", __func__)

bool is_ready(const TaskP& task) {
    return !task->done && !task->running &&
           std::all_of(task->before.begin(), task->before.end(), [](const TaskP& t) { return t->done; });
}

bool run_one_of(const std::vector<TaskP>& tasks) {
    std::vector<TaskP> ready;
    std::copy_if(tasks.begin(), tasks.end(), std::back_inserter(ready), is_ready);
    if (ready.empty()) return false;
    TaskP task = ready[random_state() % ready.size()];
    task->running = true, task->thread = std::this_thread::get_id();
    if (!sticky && task->run) sticky = task->run();
    task->done = true, task->run = nullptr, task->before.clear();
    return true;
}

// Runs everything that these tasks wait for, and them, in a random order that respects what waits for what.
cudaError_t wait_for(std::vector<TaskP> tasks) {
    std::set<Task*> seen;
    std::vector<TaskP> needed;
    while (!tasks.empty()) {
        TaskP task = tasks.back();
        tasks.pop_back();
        if (!task || task->done || !seen.insert(task.get()).second) continue;
        needed.push_back(task);
        tasks.insert(tasks.end(), task->before.begin(), task->before.end());
    }
    auto done = [](const TaskP& task) { return task->done; };
    while (!std::all_of(needed.begin(), needed.end(), done)) {
        if (run_one_of(needed)) continue;
        for (auto& task : needed)  // Python's garbage collection may call from within a kernel's callback
            if (task->running && !task->done && task->thread == std::this_thread::get_id()) return cudaError_t(sticky);
        mutex.unlock();  // another thread runs one of them
        std::this_thread::sleep_for(std::chrono::microseconds(100));
        mutex.lock();
    }
    pending.erase(std::remove_if(pending.begin(), pending.end(), done), pending.end());
    return cudaError_t(sticky);
}

void settle(const TaskP& task) {
    if (order == EAGER) wait_for({task});
    while (order == RANDOM && random_state() % 3 && run_one_of(pending)) {}
}

TaskP enqueue(Stream* s, std::function<int()> run, std::vector<TaskP> before = {}) {
    before.push_back(s->last);
    if (s == &legacy)
        for (Stream* other : streams) before.push_back(other->blocking ? other->last : nullptr);
    else if (s->blocking)
        before.push_back(legacy.last);
    before.erase(std::remove_if(before.begin(), before.end(), [](const TaskP& t) { return !t || t->done; }), before.end());
    s->last = std::make_shared<Task>(Task{std::move(run), std::move(before), false, false, {}});
    pending.push_back(s->last);
    return s->last;
}

// The default stream waits for blocking streams, so it must not be used while one of them is captured.
int refused_in_legacy(Stream* s, const char* what) {
    for (auto& capture : captures)
        if (s == &legacy && capture->origin->blocking) {
            capture->broken = true;
            return refuse(906, "%s in the default stream while a blocking stream is captured", what);
        }
    return 0;
}

// Some calls are forbidden during a capture: in its own thread, or in every thread. A relaxed capture allows them.
int refused_in_capture(const char* what) {
    for (auto& capture : captures) {
        bool own = capture->thread == std::this_thread::get_id();
        if (capture->mode == cudaStreamCaptureModeGlobal || (capture->mode == cudaStreamCaptureModeThreadLocal && own)) {
            capture->broken = true;
            return refuse(900, "%s while a stream is captured", what);
        }
    }
    return 0;
}

int refused_of_captured(Stream* s, const char* what) {
    if (!s->capture) return refused_in_legacy(s, what);
    s->capture->broken = true;
    return refuse(900, "%s of a stream that is captured", what);
}

#define UNLESS(refused) \
    if (int code = refused) return cudaError_t(code)

cudaError_t submit(Stream* s, Work work, bool waits = false) {
    if (sticky) return cudaError_t(sticky);
    UNLESS(refused_in_legacy(s, work.name()));
    for (const void* p : work.pointers()) {
        auto region = holding(regions, p);
        if (region != regions.end() && region->second.freed) refuse(0, "%s uses freed memory", work.name());
    }
    if (s->capture) {
        if (s->capture->broken) return cudaErrorStreamCaptureInvalidated;
        if (waits) return cudaError_t(refused_of_captured(s, work.name()));
        work.before = s->frontier;
        s->frontier = {int(s->capture->nodes.size())};
        s->capture->nodes.push_back(std::move(work));
        return cudaSuccess;
    }
    TaskP task = enqueue(s, [work = std::move(work)] { return work.run(); });
    settle(task);
    return waits ? wait_for({task}) : cudaSuccess;
}

// What a driver does with pageable host memory: it is read during the call, and written before the call returns.
cudaError_t copy(Stream* s, void* to, const void* from, size_t bytes, bool waits) {
    Work work{Work::COPY};
    work.to = (char*)to, work.from = (const char*)from, work.bytes = bytes;
    auto target = holding(regions, to), source = holding(regions, from);
    for (auto& [region, p] : {std::pair{target, (const void*)to}, {source, from}})
        if (region != regions.end() && uintptr_t(p) + bytes > region->first + region->second.bytes)
            return refuse(1, "a copy of %zu bytes leaves its memory", bytes);
    bool pageable = target == regions.end() || source == regions.end();
    if (s->capture && pageable) refuse(0, "a copy with pageable host memory is captured");
    if (!s->capture && source == regions.end())
        work.staged = std::make_shared<std::vector<char>>(work.from, work.from + bytes);
    return bytes ? submit(s, std::move(work), waits || (target == regions.end() && !s->capture)) : cudaSuccess;
}

std::set<int> ancestors(const std::vector<Work>& nodes, const std::set<int>& of) {
    std::set<int> all = of;
    for (int i = int(nodes.size()) - 1; i >= 0; --i)  // a node comes after those that it waits for
        if (all.count(i)) all.insert(nodes[i].before.begin(), nodes[i].before.end());
    return all;
}

// The kernels of a cubin, an ELF file: their parameters, and what a launch of them may ask for.
cudaError_t read_cubin(const char* bytes, Module& module) {
    if (memcmp(bytes, ELFMAG, SELFMAG)) return cudaErrorInvalidKernelImage;
    auto* header = (const Elf64_Ehdr*)bytes;
    auto* sections = (const Elf64_Shdr*)(bytes + header->e_shoff);
    const char* names = bytes + sections[header->e_shstrndx].sh_offset;
    std::vector<std::string> symbols;
    std::map<std::string, const Elf64_Shdr*> named;
    for (int i = 0; i < header->e_shnum; ++i) {
        named[names + sections[i].sh_name] = &sections[i];
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        auto* symbol = (const Elf64_Sym*)(bytes + sections[i].sh_offset);
        for (size_t n = 0; n < sections[i].sh_size / sizeof *symbol; ++n)
            symbols.push_back(bytes + sections[sections[i].sh_link].sh_offset + symbol[n].st_name);
    }
    // An attribute: a format (4: with a size), a kind, and the size or a value in two bytes; then the content.
    auto each_attribute = [&](const Elf64_Shdr* section, auto&& use) {
        const char *at = bytes + section->sh_offset, *end = at + section->sh_size;
        while (at + 4 <= end) {
            uint16_t size = *at == 4 ? *(uint16_t*)(at + 2) : 0;
            use(at[1], (const uint32_t*)(at + 4));
            at += 4 + size;
        }
    };
    for (auto& [name, section] : named) {
        if (name.rfind(".text.", 0)) continue;
        Function& function = module[name.substr(6)];
        int failed;
        char* readable = abi::__cxa_demangle(name.c_str() + 6, nullptr, nullptr, &failed);
        function.name = failed ? name.substr(6) : readable;
        free(readable);
        if (auto found = named.find(".nv.shared." + name.substr(6)); found != named.end())
            function.shared = found->second->sh_size;
        if (auto found = named.find(".nv.info." + name.substr(6)); found != named.end())
            each_attribute(found->second, [&](int kind, const uint32_t* words) {
                if (kind == 0x17) {  // a parameter: index, ordinal and offset, flags with the size from bit 18 on
                    function.sizes.resize(std::max<size_t>(function.sizes.size(), (words[1] & 0xFFFF) + 1));
                    function.sizes[words[1] & 0xFFFF] = words[2] >> 18;
                }
                if (kind == 0x05) function.max_threads = words[0] * words[1] * words[2];
            });
    }
    if (named.count(".nv.info"))
        each_attribute(named[".nv.info"], [&](int kind, const uint32_t* words) {
            if (kind == 0x2F && module.count(symbols[words[0]])) module[symbols[words[0]]].registers = words[1];
        });
    return cudaSuccess;
}

}  // namespace

// ---- Device
API cudaError_t cudaGetDeviceCount(int* count) { CALL; *count = 1; return cudaSuccess; }
API cudaError_t cudaGetDevice(int* device) { CALL; *device = 0; return cudaSuccess; }
API cudaError_t cudaSetDevice(int device) { CALL; return device ? cudaErrorInvalidDevice : cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int* version) { CALL; *version = CUDART_VERSION; return cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int* version) { CALL; *version = CUDART_VERSION; return cudaSuccess; }
API cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int) { CALL; snprintf(id, size, "0000:01:00.0"); return cudaSuccess; }
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { CALL; *can = 0; return cudaSuccess; }
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    CALL;
    // As an A100: what CuPy and this project ask for. All others are 0.
    static const std::map<int, int> values{{1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535},
        {7, 65535}, {8, 49152}, {10, 32}, {12, 65536}, {13, 1410000}, {16, 108}, {31, 1}, {36, 1215000}, {37, 5120},
        {38, 41943040}, {39, 2048}, {41, 1}, {75, 8}, {76, 0}, {81, 167936}, {82, 65536}, {97, 166912}, {106, 32}};
    auto found = values.find(attribute);
    *value = found == values.end() ? 0 : found->second;
    return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
    CALL;
    *found = {};
    strcpy(found->name, "a stand-in for a GPU");
    found->totalGlobalMem = TOTAL, found->sharedMemPerBlock = 49152, found->regsPerBlock = 65536, found->warpSize = 32;
    found->maxThreadsPerBlock = 1024, found->major = 8, found->minor = 0, found->multiProcessorCount = 108;
    found->maxThreadsPerMultiProcessor = 2048, found->memoryBusWidth = 5120, found->l2CacheSize = 41943040;
#if CUDART_VERSION < 13000
    found->clockRate = 1410000, found->memoryClockRate = 1215000;
#endif
    return cudaSuccess;
}
API cudaError_t cudaDeviceSynchronize() { CALL; UNLESS(refused_in_capture(__func__)); return wait_for(pending); }
API cudaError_t cudaGetLastError() { return cudaSuccess; }
API const char* cudaGetErrorName(cudaError_t error) {
    static const std::map<int, const char*> names{{1, "cudaErrorInvalidValue"}, {2, "cudaErrorMemoryAllocation"},
        {209, "cudaErrorNoKernelImageForDevice"}, {400, "cudaErrorInvalidResourceHandle"}, {401, "cudaErrorIllegalState"},
        {500, "cudaErrorSymbolNotFound"}, {700, "cudaErrorIllegalAddress"}, {701, "cudaErrorLaunchOutOfResources"},
        {719, "cudaErrorLaunchFailure"}, {801, "cudaErrorNotSupported"}, {900, "cudaErrorStreamCaptureUnsupported"},
        {901, "cudaErrorStreamCaptureInvalidated"}, {902, "cudaErrorStreamCaptureMerge"},
        {904, "cudaErrorStreamCaptureUnjoined"}, {905, "cudaErrorStreamCaptureIsolation"},
        {906, "cudaErrorStreamCaptureImplicit"}};
    auto found = names.find(error);
    return found == names.end() ? "cudaErrorUnknown" : found->second;
}
API const char* cudaGetErrorString(cudaError_t) { return "said by the stand-in"; }
API int cuGetErrorName(int error, const char** name) { *name = cudaGetErrorName(cudaError_t(error)); return 0; }
API int cuGetErrorString(int, const char** text) { *text = "said by the stand-in"; return 0; }
API int cuCtxGetCurrent(void** context) { *context = &legacy; return 0; }
API int cuCtxSetCurrent(void*) { return 0; }
API int cuCtxGetDevice(int* device) { *device = 0; return 0; }
API int cuStreamGetCtx(cudaStream_t, void** context) { *context = &legacy; return 0; }

// ---- Memory
API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) { CALL; *total = TOTAL, *free = TOTAL - in_use; return cudaSuccess; }
API cudaError_t cudaMalloc(void** p, size_t bytes) { CALL; UNLESS(refused_in_capture(__func__)); return allocate(p, bytes, false); }
API cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) { CALL; UNLESS(refused_in_capture(__func__)); return allocate(p, bytes, true); }
static cudaError_t release(void* p) {
    auto region = regions.find(uintptr_t(p));
    if (!p) return cudaSuccess;
    if (region == regions.end() || region->second.freed) return refuse(1, "memory is freed that was not allocated");
    UNLESS(refused_in_capture("memory is freed"));
    wait_for(pending);  // as cudaFree does
    region->second.freed = true;
    in_use -= region->second.host ? 0 : region->second.bytes;
    madvise(p, region->second.bytes, MADV_DONTNEED);
    mprotect(p, (region->second.bytes + PAGE - 1) / PAGE * PAGE, PROT_NONE);
    return cudaSuccess;
}
API cudaError_t cudaFree(void* p) { CALL; return release(p); }
API cudaError_t cudaFreeHost(void* p) { CALL; return release(p); }
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* p) {
    CALL;
    auto region = holding(regions, p);
    bool known = region != regions.end() && !region->second.freed;
    *found = {};
    found->type = !known ? cudaMemoryTypeUnregistered : region->second.host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    found->devicePointer = found->hostPointer = known ? (void*)p : nullptr;
    return cudaSuccess;
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) { STREAM(nullptr); return copy(s, to, from, bytes, true); }
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t handle) { STREAM(handle); return copy(s, to, from, bytes, false); }
static cudaError_t fill(Stream* s, void* to, int value, size_t bytes) {
    Work work{Work::FILL};
    work.to = (char*)to, work.value = value, work.bytes = bytes;
    return submit(s, std::move(work));
}
API cudaError_t cudaMemset(void* to, int value, size_t bytes) { STREAM(nullptr); return fill(s, to, value, bytes); }
API cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t handle) { STREAM(handle); return fill(s, to, value, bytes); }

// ---- Modules and launches
API int cuModuleLoadData(Module** module, const void* image) {
    CALL;
    UNLESS(refused_in_capture(__func__));
    *module = new Module;  // never deleted: a function's address is its name for the callback
    return read_cubin((const char*)image, **module);
}
API int cuModuleUnload(Module*) { CALL; return wait_for(pending); }
API int cuModuleGetFunction(Function** function, Module* module, const char* name) {
    CALL;
    auto found = module->find(name);
    if (found == module->end()) return refuse(500, "no kernel %s in the module", name);
    *function = &found->second;
    return 0;
}
API int cuFuncGetAttribute(int* value, int attribute, Function* f) {
    CALL;
    *value = attribute == 0 ? f->max_threads : attribute == 1 ? f->shared : attribute == 4 ? f->registers : 0;
    return 0;
}
API int cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, cudaStream_t handle, void** arguments, void**) {
    STREAM(handle);
    const char* name = f->name.c_str();
    uint64_t threads = uint64_t(bx) * by * bz;
    if (!gx || !gy || !gz || !threads || gx > 0x7FFFFFFF || gy > 65535 || gz > 65535 || bz > 64 || threads > f->max_threads)
        return refuse(1, "%s: grid (%u, %u, %u), block (%u, %u, %u)", name, gx, gy, gz, bx, by, bz);
    if ((f->registers + 7) / 8 * 8 * ((threads + 31) / 32 * 32) > 65536)
        return refuse(701, "%s: %u threads of %u registers", name, unsigned(threads), f->registers);
    if (shared + f->shared > 49152) return refuse(1, "%s: %u + %u bytes of shared memory", name, f->shared, shared);
    Work work{Work::KERNEL, f, {gx, gy, gz, bx, by, bz, shared}};
    for (size_t i = 0; i < f->sizes.size(); ++i)
        work.arguments.emplace_back((char*)arguments[i], (char*)arguments[i] + f->sizes[i]);
    return submit(s, std::move(work));
}

// ---- Streams and events
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* made, unsigned flags) {
    CALL;
    auto* s = new Stream;
    s->blocking = !(flags & cudaStreamNonBlocking);
    streams.insert(s);
    *made = (cudaStream_t)s;
    return cudaSuccess;
}
API cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, 0); }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int) { return cudaStreamCreateWithFlags(s, flags); }
API cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) { STREAM(handle); *flags = !s->blocking; return cudaSuccess; }
API cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) { STREAM(handle); *priority = 0; return cudaSuccess; }
API cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    STREAM(handle);
    if (CaptureP capture = s->capture) {
        capture->broken = true;
        refuse(0, "a stream is destroyed while it is captured");
        for (Stream* other : streams)
            if (capture->origin == s && other->capture == capture) other->capture = nullptr;
        if (capture->origin == s) captures.erase(capture);
    }
    streams.erase(s);  // its work goes on, and its address is not used again
    return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    STREAM(handle);
    UNLESS(refused_of_captured(s, __func__));
    return wait_for({s == &legacy ? enqueue(s, nullptr) : s->last});
}
API cudaError_t cudaStreamQuery(cudaStream_t handle) {
    STREAM(handle);
    UNLESS(refused_of_captured(s, __func__));
    return sticky ? cudaError_t(sticky) : s->last && !s->last->done ? cudaErrorNotReady : cudaSuccess;
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* made, unsigned flags) {
    CALL;
    *made = (cudaEvent_t) new Event{!(flags & cudaEventDisableTiming), nullptr, nullptr, nullptr, {}};
    return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { CALL; delete (Event*)event; return cudaSuccess; }
API cudaError_t cudaEventRecord(cudaEvent_t handle_, cudaStream_t handle) {
    STREAM(handle);
    auto* event = (Event*)handle_;
    UNLESS(refused_in_legacy(s, __func__));
    if (s->capture && s->capture->broken) return cudaErrorStreamCaptureInvalidated;
    event->capture = s->capture, event->nodes = s->frontier, event->task = nullptr;
    if (s->capture) return cudaSuccess;
    event->milliseconds = std::make_shared<double>();
    event->task = enqueue(s, [when = event->milliseconds] {
        *when = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
        return 0;
    });
    settle(event->task);
    return cudaSuccess;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t handle_, unsigned) {
    STREAM(handle);
    auto* event = (Event*)handle_;
    if (event->capture) {
        if (!captures.count(event->capture)) return refuse(905, "a stream waits for an event of a capture that has ended");
        if (event->capture->broken) return cudaErrorStreamCaptureInvalidated;
        if (s == &legacy || (s->capture && s->capture != event->capture)) {
            event->capture->broken = true;
            return s == &legacy ? refuse(906, "the default stream waits for an event of a capture")
                                : refuse(902, "a captured stream waits for an event of another capture");
        }
        s->capture = event->capture;
        s->frontier.insert(event->nodes.begin(), event->nodes.end());
        return cudaSuccess;
    }
    if (s->capture && event->task) {
        s->capture->broken = true;
        return refuse(905, "a captured stream waits for an event from outside of its capture");
    }
    UNLESS(refused_in_legacy(s, __func__));
    if (event->task) settle(enqueue(s, nullptr, {event->task}));
    return cudaSuccess;
}
API cudaError_t cudaEventQuery(cudaEvent_t handle) {
    CALL;
    auto* event = (Event*)handle;
    UNLESS(refused_in_capture(__func__));
    if (event->capture) return refuse(907, "an event of a capture is queried");
    return sticky ? cudaError_t(sticky) : event->task && !event->task->done ? cudaErrorNotReady : cudaSuccess;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    CALL;
    UNLESS(refused_in_capture(__func__));
    if (((Event*)handle)->capture) return refuse(907, "an event of a capture is synchronised");
    return wait_for({((Event*)handle)->task});
}
API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    CALL;
    for (auto* event : {(Event*)start, (Event*)end})
        if (!event->timing || !event->task) return refuse(400, "the time of an event that has none");
        else if (!event->task->done) return cudaErrorNotReady;
    *milliseconds = float(*((Event*)end)->milliseconds - *((Event*)start)->milliseconds);
    return cudaSuccess;
}

// ---- Capture and graphs
API cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    STREAM(handle);
    if (s == &legacy) return refuse(900, "the default stream is captured");
    if (s->capture) return refuse(401, "a stream is captured twice");
    s->capture = std::make_shared<Capture>(Capture{s, mode, std::this_thread::get_id(), {}});
    s->frontier.clear();
    captures.insert(s->capture);
    return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* made) {
    STREAM(handle);
    CaptureP capture = s->capture;
    *made = nullptr;
    if (!capture || capture->origin != s) return refuse(903, "a capture ends in a stream in which none began");
    size_t joined = ancestors(capture->nodes, s->frontier).size();
    for (Stream* other : streams)
        if (other->capture == capture) other->capture = nullptr, other->frontier.clear();
    captures.erase(capture);
    if (capture->broken) return refuse(901, "the end of a capture that an earlier call broke");
    if (joined < capture->nodes.size())
        return refuse(904, "%zu of %zu nodes are not joined at the end of a capture", capture->nodes.size() - joined,
                      capture->nodes.size());
    *made = (cudaGraph_t) new Graph{capture->nodes, nullptr, {}};
    return cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    STREAM(handle);
    UNLESS(refused_in_legacy(s, __func__));
    *status = !s->capture           ? cudaStreamCaptureStatusNone
              : s->capture->broken ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
API cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    CALL;
    auto* exec = new Graph(*(Graph*)graph);
    for (auto& node : exec->nodes)
        for (const void* p : node.pointers())
            if (auto block = holding(blocks, p); block != blocks.end()) exec->uses[block->first] = block->second.allocation;
    graphs.insert(exec);
    *made = (cudaGraphExec_t)exec;
    return cudaSuccess;
}
API cudaError_t cudaGraphDestroy(cudaGraph_t graph) { CALL; delete (Graph*)graph; return cudaSuccess; }
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { CALL; graphs.erase((Graph*)exec); return cudaSuccess; }
API cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { CALL; return cudaSuccess; }
API cudaError_t cudaGraphLaunch(cudaGraphExec_t handle_, cudaStream_t handle) {
    STREAM(handle);
    auto* graph = (Graph*)handle_;
    if (sticky) return cudaError_t(sticky);
    if (!graphs.count(graph)) return refuse(1, "a graph is launched that was destroyed");
    UNLESS(refused_of_captured(s, __func__));
    for (auto& [start, allocation] : graph->uses)
        if (auto block = blocks.find(start); block == blocks.end() || block->second.allocation != allocation)
            refuse(0, "a graph is launched that uses memory which was given back to its pool");
    TaskP start = enqueue(s, nullptr, {graph->last});
    std::vector<TaskP> tasks;
    for (auto& node : graph->nodes) {
        std::vector<TaskP> before{start};
        for (int number : node.before) before.push_back(tasks[number]);
        tasks.push_back(std::make_shared<Task>(Task{[node] { return node.run(); }, before, false, false, {}}));
        pending.push_back(tasks.back());
    }
    graph->last = enqueue(s, nullptr, tasks);
    settle(graph->last);
    return cudaSuccess;
}

// ---- For the bridge
API void standin_start(Runner run, int chosen, unsigned seed) {
    std::lock_guard<std::mutex> lock(mutex);
    runner = run, order = decltype(order)(chosen);
    random_state.seed(seed);
}
// A pool of CuPy's gives out a block or takes it back: its content becomes NaN, in the order of the stream.
API void standin_block(void* p, size_t asked, size_t bytes, bool given_out, cudaStream_t handle) {
    std::lock_guard<std::mutex> lock(mutex);
    if (given_out) blocks[uintptr_t(p)] = {asked, ++allocations};
    else blocks.erase(uintptr_t(p));
    Stream* s = stream_of(handle);
    if (s && !s->capture && captures.empty()) fill(s, p, 0xFF, bytes);
}
// How many bytes an array has that begins here.
API size_t standin_bytes(void* p) {
    std::lock_guard<std::mutex> lock(mutex);
    auto left = [p](auto found) { return found->first + found->second.bytes - uintptr_t(p); };
    if (auto block = holding(blocks, p); block != blocks.end()) return left(block);
    auto region = holding(regions, p);
    return region == regions.end() || region->second.freed ? 0 : left(region);
}
// The reports since the last call of this function, or the names of all functions that were called; a line for each.
API const char* standin_take(bool names) {
    std::lock_guard<std::mutex> lock(mutex);
    static std::string text;
    text.clear();
    if (names) for (auto& [name, count] : calls) text += name + " " + std::to_string(count) + "\n";
    else for (auto& each : reports) text += each + "\n";
    names ? calls.clear() : reports.clear();
    return text.c_str();
}
API void standin_fail(const char* name, int nth, int code) {
    std::lock_guard<std::mutex> lock(mutex);
    failing = name, fails_in = nth, fails_with = code;
}
API void standin_recover() {  // a new process would: no error of a kernel outlives its test
    std::lock_guard<std::mutex> lock(mutex);
    wait_for(pending);
    sticky = 0;
}
API size_t standin_graphs() {
    std::lock_guard<std::mutex> lock(mutex);
    return graphs.size();
}
