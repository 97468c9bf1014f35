// Profile mode: counts what the accesses of a kernel ask of a GPU's memory. It measures no time.
//
// A GPU executes one instruction for all active lanes of a warp at once. If the instruction reads or writes memory, this
// is a request. In global memory a request costs as many sectors of 32 bytes as its lanes touch. In shared memory it
// costs wavefronts: each of 32 banks gives one word of 4 bytes in a wavefront.
//
// Here the threads run one after another. The compiler is told to call a function before each access
// (-fsanitize=thread) and at the start of each basic block (-fsanitize-coverage=trace-pc). Each thread's calls are kept
// until its block comes to a barrier or to its end. Then the lanes of each warp are walked through their calls together.
//
// Which accesses belong together is told by time. The basic blocks and the jumps between them form a graph. Its strongly
// connected components are loops, and without the jumps back to their headers they hold inner loops (Tarjan 1972). So an
// access has a time: the place of the outermost loop, the round of that loop, the place in its body, the round of an inner
// loop, and so on. The earliest of all lanes' next accesses comes next, for all lanes that are at it. So lanes that part
// come together again where the code does. A function that is not inlined has other basic blocks for each call of it.
#include "state.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <vector>

namespace emulator {

constexpr int SECTOR = 32, WORD = 4, BANKS = 32;     // bytes, bytes, words that shared memory gives at once
constexpr size_t MOST_EVENTS = 50 * 1000 * 1000;     // that a block may have between two barriers: a gigabyte
constexpr double TOLERANCE = 0.02;                   // of the number of requests that a few blocks tell
constexpr size_t WIDEST = 16;                        // bytes that a lane accesses at once
constexpr int DEPTH = 32;                            // numbers of a time

// One access, or the start of a basic block. Then `address` is null, and `context` is the number of the basic block.
struct Event {
    const char *code, *address;
    int context;
    short bytes, kind;
};

// Counts of all requests by one instruction to one array. profile.py has the same structure.
struct Count {
    const void* code;
    long long context, region, kind, bytes;  // bytes of a lane
    long long requests, lanes;               // lanes: that are active
    long long parts, fewest;                 // sectors or wavefronts, and the fewest that could do
    long long worst;                         // the parts of the costliest request
    long long worst_at[warpSize];            // the bytes from the start of the array to each of its lanes; -1: inactive
};

// Counts of all requests to one array. profile.py has the same structure.
struct Total {
    long long bytes[2];        // that lanes have read and written
    long long parts[2];        // sectors or wavefronts
    long long of_blocks[2];    // sectors that differ, for each block
    long long of_launch[2];    // sectors that differ
};

// A call of a function that is not inlined. profile.py has the same structure.
struct Context {
    const void* call;
    long long parent;
};

struct Step {
    int place, header;  // header: of the loop that stands at this place, or -1
};
struct BasicBlock {
    const char* code;
    int context;
    std::vector<int> next;
    std::vector<Step> path;  // from the outermost loop to the basic block itself
};

struct Lane {
    std::vector<Event> events;
    size_t path;            // a hash of which events they are: lanes with equal ones have gone the same way
    int context, block;     // the call and the basic block that it is in
    int block_before;       // the basic block that it was in before its events
};

static std::vector<BasicBlock> basic_blocks;  // the first one stands for the beginning of the kernel
static std::map<std::pair<const char*, int>, int> block_numbers;
static bool unordered;  // whether a basic block or a jump is new
static std::vector<Context> contexts;
static std::map<std::pair<const void*, long long>, int> context_numbers;
static Lane lanes[MAX_THREADS];
static size_t event_count;
static double request_count, before_block, squares;  // all requests, those before this block, the squares of the blocks'

static std::map<std::pair<const char*, std::pair<int, int>>, int> count_numbers;
static std::vector<Count> counts;
static std::vector<Total> totals;
static std::vector<std::vector<int>> last_blocks[2];  // for each sector of each array: the last block to read or write it

// --- What a request costs ---

// How many different sectors and words of 4 bytes, or single bytes, the lanes of a request touch.
static int sectors_of(const int64_t* at, int bytes, int region, int kind, int* fewest) {
    int64_t sectors[warpSize * 2], words[warpSize * 5];  // of 16 bytes that may begin anywhere
    int sector_count = 0, word_count = 0;
    const int word = bytes < WORD ? bytes : WORD;
    for (int l = 0; l < warpSize; l++) {
        if (at[l] < 0) continue;
        for (int64_t sector = at[l] / SECTOR; sector <= (at[l] + bytes - 1) / SECTOR; sector++)
            if (!sector_count || sectors[sector_count - 1] != sector) sectors[sector_count++] = sector;
        for (int64_t w = at[l] / word; w <= (at[l] + bytes - 1) / word; w++)
            if (!word_count || words[word_count - 1] != w) words[word_count++] = w;
    }
    const auto unique = [](int64_t* numbers, int count) {
        if (!std::is_sorted(numbers, numbers + count)) std::sort(numbers, numbers + count);
        return int(std::unique(numbers, numbers + count) - numbers);
    };
    sector_count = unique(sectors, sector_count);
    *fewest = (unique(words, word_count) * word + SECTOR - 1) / SECTOR;
    std::vector<int>& last = last_blocks[kind != READ][region];
    for (int s = 0; s < sector_count; s++) {
        int& block = last[sectors[s]];
        totals[region].of_launch[kind != READ] += !block;
        totals[region].of_blocks[kind != READ] += block != block_number;
        block = block_number;
    }
    return sector_count;
}

// Lanes with 8 bytes are served by half warps, lanes with 16 bytes by quarters. Two of these parts are read at once if all
// pairs of lanes, next to each other or two apart, want the same (as measured: docs/measured/h200-shared-memory.json).
// Lanes that read or write one word share a wavefront. Atomics on one word come one after another.
static int wavefronts_of(const int64_t* at, int bytes, int kind, int* fewest) {
    int phases = std::max(1, bytes / WORD);
    bool pairs[2] = {true, true};
    for (int l = 0; l < warpSize; l++)
        for (int apart = 1; apart <= 2; apart++)
            if (at[l] >= 0 && at[l ^ apart] >= 0 && at[l] != at[l ^ apart]) pairs[apart - 1] = false;
    if (phases > 1 && kind == READ && (pairs[0] || pairs[1])) phases /= 2;
    int wavefronts = 0;
    *fewest = 0;
    for (int phase = 0; phase < phases; phase++) {
        int64_t words[BANKS][warpSize * 4];
        int word_counts[BANKS] = {}, most = 0;
        for (int l = phase * warpSize / phases; l < (phase + 1) * warpSize / phases; l++) {
            if (at[l] < 0) continue;
            for (int64_t word = at[l] / WORD; word <= (at[l] + bytes - 1) / WORD; word++) {
                int64_t* of_bank = words[word % BANKS];
                int& count = word_counts[word % BANKS];
                const bool is_new = std::find(of_bank, of_bank + count, word) == of_bank + count;
                if (is_new || kind == ATOMIC) of_bank[count++] = word;
                most = std::max(most, count);
            }
        }
        wavefronts += most;
        *fewest += most > 0;
    }
    return wavefronts;
}

static Count& count_of(const Event& event, int region) {
    const auto found = count_numbers.emplace(std::make_pair(event.code, std::make_pair(event.context, region)),
                                             int(counts.size()));
    if (found.second) counts.push_back({event.code, event.context, region, event.kind, event.bytes});
    return counts[found.first->second];
}

// The lanes that have an event execute it together.
static void request(const Event* const* events) {
    const Event* rest[warpSize];
    const Event* first = nullptr;
    const Region* region = nullptr;
    int64_t at[warpSize];
    int active = 0, others = 0;
    for (int l = 0; l < warpSize; l++) {
        rest[l] = nullptr;
        at[l] = -1;
        if (!events[l]) continue;
        if (!first) region = nearest_region((first = events[l])->address);
        if (!region) return;
        const int64_t distance = events[l]->address - region->start;
        if (distance < 0 || distance >= int64_t(region->bytes)) {  // a pointer to one of several arrays
            if (events[l] != first) rest[others++, l] = events[l];
            continue;
        }
        at[l] = distance + (region->shared ? 0 : reinterpret_cast<uintptr_t>(region->start) % SECTOR);
        active++;
    }
    const int number = int(region - launch->regions), kind = first->kind;
    if (active) {
        int fewest;
        const int parts = region->shared ? wavefronts_of(at, first->bytes, kind, &fewest)
                                         : sectors_of(at, first->bytes, number, kind, &fewest);
        Count& count = count_of(*first, number);
        count.requests++;
        request_count++;
        count.lanes += active;
        count.parts += parts;
        count.fewest += fewest;
        if (parts > count.worst) {
            count.worst = parts;
            std::copy(at, at + warpSize, count.worst_at);
        }
        totals[number].bytes[kind != READ] += int64_t(active) * first->bytes;
        totals[number].parts[kind != READ] += parts;
    }
    if (others) request(rest);
}

// --- The order of basic blocks ---

// Finds the strongly connected components of some basic blocks, the last one first. Jumps to `header` do not count.
struct Components {
    const int header;
    std::vector<int> index, low, stack;  // 0: the basic block is not one of them; -1: it was not visited yet
    std::vector<std::vector<int>> found;
    int visited = 0;

    Components(const std::vector<int>& numbers, int header)
        : header(header), index(basic_blocks.size()), low(basic_blocks.size()) {
        for (int n : numbers) index[n] = -1;
        if (header >= 0) visit(header);
        for (int n : numbers)
            if (index[n] < 0) visit(n);
    }
    bool is_on_stack(int n) const { return std::find(stack.begin(), stack.end(), n) != stack.end(); }
    void visit(int n) {
        index[n] = low[n] = ++visited;
        stack.push_back(n);
        for (int next : basic_blocks[n].next) {
            if (next == header || !index[next]) continue;
            if (index[next] < 0) {
                visit(next);
                low[n] = std::min(low[n], low[next]);
            } else if (is_on_stack(next)) {
                low[n] = std::min(low[n], index[next]);
            }
        }
        if (low[n] != index[n]) return;
        const auto first = std::find(stack.begin(), stack.end(), n);
        found.emplace_back(first, stack.end());
        stack.erase(first, stack.end());
    }
};

// Gives each of some basic blocks its path, which begins with `outer`.
static void put_in_order(const std::vector<int>& numbers, int header, const std::vector<Step>& outer) {
    const Components components(numbers, header);
    int place = int(components.found.size());
    for (const std::vector<int>& part : components.found) {
        const auto has = [&part](int n) { return std::find(part.begin(), part.end(), n) != part.end(); };
        std::vector<Step> path = outer;
        path.push_back({place--, -1});
        const std::vector<int>& next = basic_blocks[part[0]].next;
        const bool is_loop = part.size() > 1 ||
                             (part[0] != header && std::find(next.begin(), next.end(), part[0]) != next.end());
        if (!is_loop) {
            basic_blocks[part[0]].path = path;
            continue;
        }
        int entry = part[0];
        for (int n : numbers)
            for (int to : basic_blocks[n].next)
                if (!has(n) && to != header && has(to)) entry = to;
        path.back().header = entry;
        put_in_order(part, entry, path);
    }
}

static void order_basic_blocks() {
    if (!unordered) return;
    unordered = false;
    std::vector<int> all;
    for (size_t n = 0; n < basic_blocks.size(); n++) all.push_back(int(n));
    put_in_order(all, -1, {});
}

// --- The lanes of a warp together ---

struct Time {
    int length, at[DEPTH];
    bool operator<(const Time& other) const {
        return std::lexicographical_compare(at, at + length, other.at, other.at + other.length);
    }
    bool operator==(const Time& other) const {
        return length == other.length && std::equal(at, at + length, other.at);
    }
};

// A lane on its way through its events.
struct Walker {
    const Event* event;       // the next access
    const Event* end;
    int block, ordinal;       // the basic block, and the number of the access within it
    std::vector<int> rounds;  // of the loop with each header
    Time when;                // of the next access

    bool is_at_end() const { return event == end; }
    void begin(const Lane& of) {
        event = of.events.data();
        end = event + of.events.size();
        block = of.block_before;
        ordinal = 0;
        rounds.assign(basic_blocks.size(), 0);
        find_access();
    }
    void advance() {
        event++;
        find_access();
    }
    void find_access() {
        for (; !is_at_end() && !event->address; event++) enter(event->context);
        if (is_at_end()) return;
        when.length = 0;
        for (const Step& step : basic_blocks[block].path) {
            if (when.length > DEPTH - 3) break;
            when.at[when.length++] = step.place;
            if (step.header >= 0) when.at[when.length++] = rounds[step.header];
        }
        when.at[when.length++] = ordinal++;
    }
    void enter(int next) {
        const std::vector<Step>&from = basic_blocks[block].path, &path = basic_blocks[next].path;
        for (size_t level = 0; level < path.size(); level++)
            if (path[level].header == next) {
                const bool is_inside = level < from.size() && from[level].header == next;
                rounds[next] = is_inside ? rounds[next] + 1 : 0;
            }
        block = next;
        ordinal = 0;
    }
};

static void walk_together(int first, int present) {
    static Walker walkers[warpSize];
    for (int l = 0; l < present; l++) walkers[l].begin(lanes[first + l]);
    for (;;) {
        const Walker* next = nullptr;
        for (int l = 0; l < present; l++)
            if (!walkers[l].is_at_end() && (!next || walkers[l].when < next->when)) next = &walkers[l];
        if (!next) return;
        const Time now = next->when;
        const char* const code = next->event->code;
        const Event* events[warpSize] = {};
        for (int l = 0; l < present; l++)
            if (!walkers[l].is_at_end() && walkers[l].event->code == code && walkers[l].when == now)
                events[l] = walkers[l].event;
        request(events);
        for (int l = 0; l < present; l++)
            if (events[l]) walkers[l].advance();
    }
}

static void walk_warp(int first) {
    const int present = std::min(warpSize, thread_count - first);
    const Lane& one = lanes[first];
    const bool same = std::all_of(lanes + first + 1, lanes + first + present, [&one](const Lane& other) {
        return other.path == one.path && other.events.size() == one.events.size();
    });
    if (!same) return walk_together(first, present);
    for (size_t e = 0; e < one.events.size(); e++) {
        if (!one.events[e].address) continue;
        const Event* events[warpSize] = {};
        for (int l = 0; l < present; l++) events[l] = &lanes[first + l].events[e];
        request(events);
    }
}

static void forget_events(Lane& lane) {
    lane.events.clear();
    lane.path = lane.block_before = lane.block;
}

// --- What the threads do ---

static void note(Event event) {
    if (++event_count > MOST_EVENTS) {
        report("more than %zu accesses and jumps of a block between two barriers: profile a smaller launch", MOST_EVENTS);
        leave_kernel();
    }
    Lane& lane = lanes[current];
    lane.events.push_back(event);
    lane.path = (lane.path ^ reinterpret_cast<size_t>(event.code) ^ (size_t(event.context) << 48)) * 0x9e3779b97f4a7c15;
}

void profile_access(const void* address, size_t bytes, Kind kind, const void* code) {
    if (on_a_stack(address) || is_builtin_index(address) || !in_kernel) return;
    launch->accesses++;
    const auto call = static_cast<const char*>(code) - 1;  // `code` is its return address
    auto part = static_cast<const char*>(address);
    for (size_t size; bytes; part += size, bytes -= size) {  // a larger structure takes several instructions
        for (size = WIDEST; size > bytes;) size /= 2;
        note({call, part, lanes[current].context, short(size), short(std::min(kind, ATOMIC))});
    }
}

static int jump(int from, const char* code, int context) {
    for (int to : basic_blocks[from].next)
        if (basic_blocks[to].code == code && basic_blocks[to].context == context) return to;
    const auto number = block_numbers.emplace(std::make_pair(code, context), int(basic_blocks.size()));
    const int to = number.first->second;
    if (number.second) basic_blocks.push_back({code, context, {}, {}});
    basic_blocks[from].next.push_back(to);
    unordered = true;
    return to;
}

void profile_basic_block(const void* code) {
    if (!in_kernel) return;
    Lane& lane = lanes[current];
    const auto at = static_cast<const char*>(code);
    lane.block = jump(lane.block, at, lane.context);
    note({at, nullptr, lane.block, 0, 0});
}

void profile_call(const void* code) {
    int& context = lanes[current].context;
    const auto number = context_numbers.emplace(std::make_pair(code, context), int(contexts.size()));
    if (number.second) contexts.push_back({static_cast<const char*>(code) - 1, context});
    context = number.first->second;
}

void profile_return() {
    int& context = lanes[current].context;
    context = int(contexts[context].parent);
}

void profile_barrier() {
    if (!launch->profile) return;
    order_basic_blocks();
    for (int first = 0; first < thread_count; first += warpSize) walk_warp(first);
    for (int t = 0; t < thread_count; t++) forget_events(lanes[t]);
    event_count = 0;
}

// The standard error of the mean of the blocks' requests (it is smaller, since the blocks lie evenly among all).
static double relative_error(double blocks) {
    const double mean = request_count / blocks, last = request_count - before_block;
    return sqrt(std::max(0.0, (squares + last * last) / blocks - mean * mean) / blocks) / mean;
}

bool profile_suffices() {
    return launch->accesses >= launch->enough && !(relative_error(launch->blocks_run) > TOLERANCE);
}

void profile_block_begins() {
    if (!launch->profile) return;
    squares += (request_count - before_block) * (request_count - before_block);
    before_block = request_count;
    event_count = 0;
    for (int t = 0; t < thread_count; t++) {
        lanes[t].context = lanes[t].block = 0;
        forget_events(lanes[t]);
    }
}

void profile_begins() {
    if (!launch->profile) return;
    basic_blocks.assign(1, {});
    block_numbers.clear();
    contexts.assign(1, {});
    context_numbers.clear();
    count_numbers.clear();
    counts.clear();
    request_count = before_block = squares = 0;
    totals.assign(launch->region_count, {});
    unordered = true;
    for (auto& last : last_blocks) {
        last.assign(launch->region_count, {});
        for (int r = 0; r < launch->region_count; r++)
            if (!launch->regions[r].shared) last[r].assign(launch->regions[r].bytes / SECTOR + 2, 0);
    }
}

void profile_ends() {
    if (!launch->profile) return;
    *launch->profile = {counts.data(), totals.data(), contexts.data(), counts.size(), contexts.size()};
}

}  // namespace emulator

using namespace emulator;

// A test compares these with profile.py.
extern "C" const size_t emulator_profile_sizes[] = {sizeof(Count), sizeof(Total), sizeof(Context), sizeof(Profile)};

extern "C" void __sanitizer_cov_trace_pc() {
    if (launch && launch->profile) profile_basic_block(__builtin_return_address(0));
}

// A vector is copied as a whole. See cuda_on_cpu.h.
extern "C" void emulator_copy(void* to, const void* from, size_t bytes) {
    on_access(from, bytes, READ, __builtin_return_address(0));
    on_access(to, bytes, WRITE, __builtin_return_address(0));
    memcpy(to, from, bytes);
}
