// Defines CUDA's cooperative groups for the emulator: blocks, tiles of a warp, coalesced threads, and their reductions.
//
// Compilers for GPUs use CUDA's own header. A group here is the number of a thread in it, its size, and a mask of lanes.
#pragma once

#include "cuda_on_cpu.h"

namespace cooperative_groups {

using emulator::SourceLocation;

inline unsigned emulator_rank() {  // of the running thread in its block
    return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
}

struct thread_block {
    static void sync(SourceLocation location = SourceLocation()) { __syncthreads(location); }
    void barrier_arrive() const = delete;  // the emulator does not split a barrier
    static unsigned thread_rank() { return emulator_rank(); }
    static unsigned num_threads() { return blockDim.x * blockDim.y * blockDim.z; }
    static unsigned size() { return num_threads(); }
    static dim3 group_index() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
    static dim3 thread_index() { return dim3(threadIdx.x, threadIdx.y, threadIdx.z); }
    static dim3 group_dim() { return blockDim; }
    static dim3 dim_threads() { return blockDim; }
};
inline thread_block this_thread_block() { return {}; }
template <unsigned THREADS = 1024>
struct block_tile_memory {};  // which tiles of several warps need, and the emulator does not have those
template <unsigned THREADS>
thread_block this_thread_block(block_tile_memory<THREADS>&) {
    return {};
}

struct grid_group {
    static bool is_valid() { return true; }
    static void sync(SourceLocation location = SourceLocation()) {
        if (num_blocks() == 1) return __syncthreads(location);
        emulator::stop("waits for the whole grid, whose blocks the emulator runs one after another,", location);
    }
    static unsigned long long num_blocks() { return 1ull * gridDim.x * gridDim.y * gridDim.z; }
    static unsigned long long block_rank() {
        return (1ull * blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    }
    static unsigned long long num_threads() { return num_blocks() * thread_block::size(); }
    static unsigned long long size() { return num_threads(); }
    static unsigned long long thread_rank() { return block_rank() * thread_block::size() + emulator_rank(); }
    static dim3 dim_blocks() { return gridDim; }
    static dim3 group_dim() { return gridDim; }
};
inline grid_group this_grid() { return {}; }

// Some lanes of a warp. A shuffle names a lane by its number in the group.
struct coalesced_group {
    unsigned mask = 1;

    unsigned num_threads() const { return __popc(mask); }
    unsigned size() const { return num_threads(); }
    unsigned thread_rank() const { return __popc(mask & ((1u << emulator::lane()) - 1)); }
    unsigned long long meta_group_rank() const { return 0; }
    unsigned long long meta_group_size() const { return 1; }
    void sync(SourceLocation location = SourceLocation()) const { __syncwarp(mask, location); }
    int any(int predicate, SourceLocation location = SourceLocation()) const {
        return __any_sync(mask, predicate, location);
    }
    int all(int predicate, SourceLocation location = SourceLocation()) const {
        return __all_sync(mask, predicate, location);
    }
    unsigned ballot(int predicate, SourceLocation location = SourceLocation()) const {
        return packed(__ballot_sync(mask, predicate, location));
    }
    template <typename T>
    unsigned match_any(T value, SourceLocation location = SourceLocation()) const {
        return packed(__match_any_sync(mask, value, location));
    }
    template <typename T>
    T shfl(T value, int rank, SourceLocation location = SourceLocation()) const {
        return shuffled("shfl", location, value, lane_of(rank));
    }
    template <typename T>
    T shfl_down(T value, unsigned delta, SourceLocation location = SourceLocation()) const {
        const unsigned rank = thread_rank(), source = rank + delta;
        return shuffled("shfl_down", location, value, lane_of(source < size() ? source : rank));
    }
    template <typename T>
    T shfl_up(T value, unsigned delta, SourceLocation location = SourceLocation()) const {
        const unsigned rank = thread_rank();
        return shuffled("shfl_up", location, value, lane_of(rank >= delta ? rank - delta : rank));
    }
    template <typename T>
    T shfl_xor(T value, unsigned bits, SourceLocation location = SourceLocation()) const {
        return shuffled("shfl_xor", location, value, lane_of(thread_rank() ^ bits));
    }

   protected:
    template <typename T>
    T shuffled(const char* operation, SourceLocation location, T value, int source) const {  // of any size, in parts
        unsigned long long parts[(sizeof(T) + 7) / 8] = {};
        memcpy(parts, &value, sizeof value);
        for (auto& part : parts) part = emulator_shuffle(operation, location, mask, part, source);
        memcpy(&value, parts, sizeof value);
        return value;
    }
    int lane_of(unsigned rank) const {
        unsigned rest = mask;
        for (unsigned i = 0; i < rank % num_threads(); i++) rest &= rest - 1;
        return __builtin_ctz(rest);
    }
    unsigned packed(unsigned lanes) const {  // one bit for each lane of the group
        unsigned bits = 0, rank = 0;
        for (int lane = 0; lane < warpSize; lane++)
            if (mask >> lane & 1) bits |= (lanes >> lane & 1) << rank++;
        return bits;
    }
};
inline coalesced_group coalesced_threads(SourceLocation location = SourceLocation()) { return {__activemask(location)}; }

template <unsigned SIZE, typename Parent = void>
struct thread_block_tile : coalesced_group {
    static_assert(SIZE <= warpSize && (SIZE & (SIZE - 1)) == 0, "the emulator has tiles of 1, 2, 4, 8, 16 or 32 threads");
    thread_block_tile() : coalesced_group{lanes()} {}
    template <typename Other>  // a tile of a block or of a larger tile is the same
    thread_block_tile(const thread_block_tile<SIZE, Other>&) : thread_block_tile() {}
    static constexpr unsigned num_threads() { return SIZE; }
    static constexpr unsigned size() { return SIZE; }
    static unsigned thread_rank() { return emulator_rank() % SIZE; }
    static unsigned meta_group_rank() { return emulator_rank() / SIZE; }
    static unsigned meta_group_size() { return (thread_block::size() + SIZE - 1) / SIZE; }

   private:
    static unsigned lanes() { return (SIZE == 32 ? ~0u : (1u << SIZE % 32) - 1) << (emulator::lane() & -int(SIZE)); }
};

struct thread_group : coalesced_group {  // of a size that is known at run time, or a whole block
    bool is_block = false;
    thread_group(coalesced_group group) : coalesced_group(group) {}
    thread_group(thread_block) : is_block(true) {}
    unsigned size() const { return is_block ? thread_block::size() : coalesced_group::size(); }
    unsigned num_threads() const { return size(); }
    unsigned thread_rank() const { return is_block ? emulator_rank() : coalesced_group::thread_rank(); }
    void sync(SourceLocation location = SourceLocation()) const {
        is_block ? __syncthreads(location) : coalesced_group::sync(location);
    }
};

template <unsigned SIZE, typename Parent>
thread_block_tile<SIZE, Parent> tiled_partition(const Parent&) {
    return {};
}
inline thread_group tiled_partition(const thread_group&, unsigned size) {
    return coalesced_group{(size == 32 ? ~0u : (1u << size) - 1) << (emulator::lane() & -int(size))};
}
// The threads of a group that have the same label, or the same answer.
template <typename Group, typename Label>
coalesced_group labeled_partition(const Group& group, Label label, SourceLocation location = SourceLocation()) {
    return {__match_any_sync(group.mask, label, location)};
}
template <typename Group>
coalesced_group binary_partition(const Group& group, bool answer, SourceLocation location = SourceLocation()) {
    return labeled_partition(group, answer, location);
}
inline thread_block_tile<1> this_thread() { return {}; }

template <typename Group>
void sync(const Group& group, SourceLocation location = SourceLocation()) {
    group.sync(location);
}
template <typename Group>
auto thread_rank(const Group& group) {
    return group.thread_rank();
}
template <typename Group>
auto group_size(const Group& group) {
    return group.size();
}

// --- <cooperative_groups/reduce.h> and <cooperative_groups/scan.h> ---
#define EMULATOR_OPERATOR(name, combined) \
    template <typename T = void> \
    struct name { \
        T operator()(T a, T b) const { return combined; } \
    }; \
    template <> \
    struct name<void> { \
        template <typename T> \
        T operator()(T a, T b) const { return combined; } \
    };
EMULATOR_OPERATOR(plus, a + b)
EMULATOR_OPERATOR(less, b < a ? b : a)
EMULATOR_OPERATOR(greater, a < b ? b : a)
EMULATOR_OPERATOR(bit_and, a & b)
EMULATOR_OPERATOR(bit_or, a | b)
EMULATOR_OPERATOR(bit_xor, a ^ b)

// A value of more than 8 bytes goes in parts.
template <typename Group, typename T, typename Operator>
T reduce(const Group& group, T value, Operator combine, SourceLocation location = SourceLocation()) {
    static_assert(sizeof(T) % 4 == 0 || sizeof(T) < 8);
    constexpr int PARTS = (sizeof(T) + 7) / 8;
    unsigned long long own[PARTS] = {}, of_lanes[PARTS][warpSize] = {};
    memcpy(own, &value, sizeof value);
    unsigned lanes = 0;
    for (int part = 0; part < PARTS; part++)
        lanes = emulator_gather("reduce", location, group.mask, own[part], [&](int lane, unsigned long long other) {
            of_lanes[part][lane] = other;
        });
    bool is_first = true;
    T all = value;
    for (int lane = 0; lane < warpSize; lane++) {
        if (!(lanes >> lane & 1)) continue;
        T other;
        for (int part = 0; part < PARTS; part++) own[part] = of_lanes[part][lane];
        memcpy(&other, own, sizeof other);
        all = is_first ? other : combine(all, other);
        is_first = false;
    }
    return all;
}
template <typename Group, typename T, typename Operator = plus<T>>
T inclusive_scan(const Group& group, T value, Operator combine = {}, SourceLocation location = SourceLocation()) {
    T sum = value;
    emulator_gather("inclusive_scan", location, group.mask, value, [&](int lane, T other) {
        if (lane < emulator::lane()) sum = combine(other, sum);
    });
    return sum;
}
template <typename Group, typename T>
T exclusive_scan(const Group& group, T value, SourceLocation location = SourceLocation()) {
    T sum = T();
    emulator_gather("exclusive_scan", location, group.mask, value, [&](int lane, T other) {
        if (lane < emulator::lane()) sum = sum + other;
    });
    return sum;
}

}  // namespace cooperative_groups
