"""The bug zoo: what people get wrong in kernels, and that the mode of the emulator made for it says so and where.

Each bug is planted in a copy of the kernels, which the tools then judge on their own inputs:

    trap     runs the exercises of `tinyfcn sanitize` as everything runs on the emulator unless told otherwise
    check    `tinyfcn sanitize`, what one order of threads shows
    order    `tinyfcn sanitize`, what differs between orders of threads
    double   `tinyfcn gradcheck --precision double`

The mode named has to find it, and to name the line.
"""

import os
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from helpers import planting
from helpers.instances import Dry
from helpers.planting import DETECTED, SEEDS, SEEN_BY, compute_sanitizer, exercise, line_of, operation_of, plant

from tinyfcn.checks import gradcheck, sanitize
from tinyfcn.checks.cases import Case, cases
from tinyfcn.devices import kernel_source
from tinyfcn.devices.emulator import Emulator, build
from tinyfcn.devices.kernel_source import KERNELS, Kernel
from tinyfcn.operations import Operations


@dataclass(frozen=True)
class Bug:
    """What is wrong, how it is written, the mode that finds it, words that it says, and the lines that it names.

    changes: texts of the function, " ... " for whatever lies between, and what is written instead.
    lines: of each a text that stands on that line alone, in the edited file or in common.cuh.
    tool: of compute-sanitizer, which finds it on a GPU. None where none can: they see no race in global memory, no
        wrong number, nothing that is never written and never read, no index of a local array, no division by 0.
    """

    what: str
    changes: dict[str, str]
    mode: str
    says: str
    lines: tuple[str, ...]
    tool: str | None = None


RACE = "a race"
UNWRITTEN = "which no thread has written"
NOBODY = "no kernel wrote element"
OUTSIDE = " elements) at "  # x[64] (x has 64 elements) at
NAN = "computes a NaN"
ORDER = "depends on the order of threads"
WRONG = "should be"

SUM = "__shared__ float partial ... return total;"  # all that block_sum does
SUM_READS = "++thread) total += partial[thread];"
WARPS = """__shared__ float partial[2];  // of each warp
    for (int d = 16; d > 0; d /= 2) mine += __shfl_down_sync(0xffffffff, mine, d);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = mine;
    __syncthreads();
    float total = 0.0f;
    if (threadIdx.x < 2) {
        total = partial[threadIdx.x];
        total += __shfl_xor_sync(0xffffffff, total, 1);
    }
    return total;"""

ZOO: dict[str, list[Bug]] = {
    "block_sum": [
        Bug("nobody waits until all have written their part", {"__syncthreads();": ""},
            "check", RACE, ("partial[threadIdx.x] = mine;", SUM_READS), "racecheck"),
        Bug("only the thread that adds up waits at the barrier",
            {"__syncthreads();": "if (threadIdx.x == 0) __syncthreads();"},
            "trap", "of 64 threads 1 waits at __syncthreads", ("== 0) __syncthreads();",), "synccheck"),
        Bug("the sum goes one past the end of shared memory", {"thread < SUM_THREADS": "thread <= SUM_THREADS"},
            "trap", "the index 64 of an array of type 'float [64]'", (SUM_READS,), "memcheck"),
        Bug("all threads put their part into one place", {"partial[threadIdx.x] = mine": "partial[0] = mine"},
            "check", RACE, ("partial[0] = mine",), "racecheck"),
        Bug("the total in shared memory has no first value",
            {SUM: "__shared__ float total;\natomicAdd(&total, mine);\n__syncthreads();\nreturn total;"},
            "check", UNWRITTEN, ("atomicAdd(&total",)),
        Bug("floats are added in the order in which threads come",
            {SUM: """__shared__ float total;
    if (threadIdx.x == 0) total = 0.0f;
    __syncthreads();
    atomicAdd(&total, mine);
    __syncthreads();
    return total;"""},
            "order", ORDER, ("loss[0] = total / count;",)),
        Bug("parts are kept in the order in which threads come, not by the thread's number",
            {"partial[threadIdx.x] = mine;": """__shared__ int next;
    if (threadIdx.x == 0) next = 0;
    __syncthreads();
    partial[atomicAdd(&next, 1)] = mine;"""},
            "order", ORDER, ("loss[0] = total / count;",)),
        Bug("lanes of a warp are taken to move in step",
            {"float total = 0.0f; ... return total;": """for (int half = SUM_THREADS / 2; half > 0; half /= 2)
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    return partial[0];"""},
            "check", "no __syncwarp() or __syncthreads() stands between", ("partial[threadIdx.x] += ",), "racecheck"),
        Bug("the tree of sums begins with the whole block, not with half of it",
            {"float total = 0.0f; ... return total;": """for (int half = SUM_THREADS; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    return partial[0];"""},
            "trap", "the index 64 of an array of type 'float [64]'", ("partial[threadIdx.x] += ",), "memcheck"),
        Bug("two lanes shuffle, and the mask names 32", {SUM: WARPS},
            "trap", "wait at __shfl_xor_sync", ("total += __shfl_xor_sync",)),
    ],
    "thread_number": [
        Bug("threads are numbered anew in each block", {"blockIdx.x * blockDim.x + threadIdx.x": "threadIdx.x"},
            "check", RACE, ("y[element] = ",)),
    ],
    "philox": [
        Bug("the high half of a product is looked for in its low half",
            {"__umulhi(0xD2511F53u, c0)": "0xD2511F53u * c0 >> 32"},
            "trap", "by 32 bits", ("0xD2511F53u * c0 >> 32",)),
    ],
    "load_row": [
        Bug("four floats at once from wherever a row begins",
            {"BY_FOUR ? 4 : 1": "4", "if constexpr (BY_FOUR)": "if (true)"},
            "trap", "which is not a multiple of its size", ("reinterpret_cast<const float4*>(from + k)",), "memcheck"),
    ],
    "add_splits": [
        Bug("the first split adds up what the others are still writing",
            {"__syncthreads();  // until the other splits": "// until the other splits"},
            "check", RACE, ("parts[((split - 1) * COUNT + k)", "sums[k] += parts["), "racecheck"),
        Bug("the first split's own sums are taken for another's, which begin one earlier",
            {"if (split > 0)": ""},
            "trap", "the index -", ("parts[((split - 1) * COUNT + k)",), "memcheck"),
        Bug("only the other splits wait", {"__syncthreads();": "if (split > 0) __syncthreads();"},
            "trap", "have exited", ("__syncthreads();  // until the other splits",), "synccheck"),
    ],
    "finish_row": [
        Bug("four outputs at once wherever a row begins", {" && left % 4 == 0 && width % 4 == 0": ""},
            "trap", "which is not a multiple of its size", ("reinterpret_cast<const float4*>(from + k);",), "memcheck"),
        Bug("the output after a row's last is written too, which is the next row's first",
            {"if (within(left + k, width))": "if (within(left + k, width + 1))"},
            "check", RACE, ("y[k] = finished(",)),
    ],
    "conv2d_forward": [
        Bug("the next channels are loaded while others still read the last",
            {"__syncthreads();  // until nobody": "// until nobody"},
            "check", RACE, ("taps[tap * PITCH + o] = o < O",), "racecheck"),
        Bug("a barrier for the first split alone",
            {"__syncthreads();  // until all have": "if (split == 0) __syncthreads();  // the first split's: all have"},
            "trap", "wait at __syncthreads", ("// the first split's",), "synccheck"),
        Bug("the tile is a row short", {"* STRIDE + KH, TILE_W": "* STRIDE + KH - 1, TILE_W"},
            "check", OUTSIDE, ("float4 four = *reinterpret_cast<const float4*>(from",)),
        Bug("weights of channels that only fill up the last group are not made 0",
            {"taps[tap * PITCH + o] = o < O ? weight[": "if (o < O) taps[tap * PITCH + o] = (true ? weight[",
             "KH * KW + tap] : 0.0f": "KH * KW + tap] : 0.0f)"},
            "check", UNWRITTEN, ("float4 four = *reinterpret_cast<const float4*>(from",)),
        Bug("channels that only fill up the last group are written", {"if (channel >= O) continue;": ""},
            "check", OUTSIDE, ("float each = bias",), "memcheck"),
        Bug("every group multiplies with the first one's weights", {"* PITCH + group * OUTPUTS": "* PITCH"},
            "double", WRONG, ("y[k] = finished(",)),
    ],
    "conv2d_backward_weight": [
        Bug("a group's sums are put where others still read the last tile",
            {"__syncthreads();  // until nobody reads the tiles": "// until nobody reads the tiles"},
            "check", RACE, ("float4 four = *reinterpret_cast<const float4*>(from",), "racecheck"),
        Bug("channels that only fill up the tile are written", {"if (a < A && b < B) mine": "mine"},
            "check", RACE, ("mine[(a * B + first_b) * KH * KW + ",)),
    ],
    "conv2d_sum_partials": [
        Bug("the first group adds up what the others are still writing",
            {"__syncthreads();  // until every group": "// until every group"},
            "check", RACE, ("parts[group][lane] = sum;", "total += parts[part][lane];"), "racecheck"),
        Bug("surplus threads read behind the last split's sums", {"if (element < length)": ""},
            "check", OUTSIDE, ("sum += partials[split * length + element];",), "memcheck"),
    ],
    "conv_transpose2d_forward": [
        Bug("rows of the kernel that only fill up the last phase are read behind its end", {" && tap < KH * KW": ""},
            "check", OUTSIDE, ("is_there ? weight[",), "memcheck"),
        Bug("threads above the picture return before the others' barrier",
            {"add_splits<SPLITS, MEMBERS>(sums, split, threadIdx.x % MEMBERS);": "",
             "if (split > 0 || n >= N || h < 0 || h >= OH) return;":
             """if (n >= N || h < 0 || h >= OH) return;
    add_splits<SPLITS, MEMBERS>(sums, split, threadIdx.x % MEMBERS);
    if (split > 0) return;"""},
            "trap", "have exited", ("__syncthreads();  // until the other splits",), "synccheck"),
        Bug("nobody waits until all channels are loaded", {"__syncthreads();  // until all have": "// until all have"},
            "check", RACE, ("tile[k] = value;",), "racecheck"),
        Bug("pictures that only fill up the last block are written", {" || n >= N": ""},
            "check", OUTSIDE, ("y[k] = finished(",), "memcheck"),
    ],
    "relu_forward": [
        Bug("the guard lets one thread too many pass", {"element >= count": "element > count"},
            "check", OUTSIDE, ("y[element] = ",), "memcheck"),
        Bug("four floats are taken from where the left-over ones end",
            {"int element ... 0.0f : x[element];": """int left_over = count % 4;
    int first = left_over + 4 * thread_number();
    if (thread_number() < left_over) y[thread_number()] = fmaxf(x[thread_number()], 0.0f);
    if (first >= count) return;
    float4 four = *reinterpret_cast<const float4*>(x + first);
    y[first] = fmaxf(four.x, 0.0f);
    y[first + 1] = fmaxf(four.y, 0.0f);
    y[first + 2] = fmaxf(four.z, 0.0f);
    y[first + 3] = fmaxf(four.w, 0.0f);"""},
            "trap", "which is not a multiple of its size", ("reinterpret_cast<const float4*>(x + first)",), "memcheck"),
        Bug("surplus threads return before a barrier",
            {"if (element >= count) return;": """__shared__ float tile[256];
    if (element >= count) return;
    tile[threadIdx.x] = x[element];
    __syncthreads();  // for the tile""",
             "x[element] < 0.0f ? 0.0f : x[element]": "fmaxf(tile[threadIdx.x], 0.0f)"},
            "trap", "wait at __syncthreads", ("__syncthreads();  // for the tile",), "synccheck"),
        Bug("shared memory of a size that the launch does not give",
            {"if (element >= count) return;": "extern __shared__ float tile[];\nif (element >= count) return;",
             "y[element] = x[element]": "tile[threadIdx.x] = x[element];\n    y[element] = tile[threadIdx.x]"},
            "trap", "touches tile[0] (tile has 0 elements)", ("tile[threadIdx.x] = ",), "memcheck"),
    ],
    "relu_backward": [
        Bug("the gradient passes where the output is 0", {"y[element] > 0.0f": "y[element] >= 0.0f"},
            "double", WRONG, ("dx[element] = ",)),
        Bug("the slope is y over |y|, which 0 has none of",
            {"y[element] > 0.0f ? dout[element] : 0.0f": "dout[element] * (y[element] / fabsf(y[element]))"},
            "check", NAN, ("dx[element] = ",)),
    ],
    "add_forward": [
        Bug("added to an output that has no first value", {"z[element] = ": "z[element] += "},
            "check", UNWRITTEN, ("z[element] += ",), "initcheck"),
        Bug("the neighbour's element", {"b[element]": "b[element + 1]"},
            "check", OUTSIDE, ("b[element + 1]",), "memcheck"),
    ],
    "add_backward": [
        Bug("each block goes through the whole array, in steps of a block",
            {"if (element >= count) return; ... dz[element];": """for (int e = element; e < count; e += blockDim.x)
        da[e] = scale * dz[e];"""},
            "check", RACE, ("da[e] = ",)),
        Bug("the last element has no thread", {"element >= count": "element >= count - 1"},
            "check", NOBODY, ("void add_backward(",)),  # what is missing has no line but its kernel's
    ],
    "conv2d_forward_naive": [
        Bug("the stride is forgotten", {"i * stride + u - padding": "i + u - padding"},
            "double", WRONG, ("y[element] = sum;",)),
        Bug("the weight's channels are swapped", {"weight[((o * C + c)": "weight[((c * O + o)"},
            "double", WRONG, ("y[element] = sum;",)),
        Bug("above the picture is taken for inside", {"h < 0 || ": ""},
            "check", OUTSIDE, ("sum += x[((n * C + c) * H + h) * W + w] * weight",), "memcheck"),
        Bug("height and width are swapped", {"* H + h) * W + w]": "* W + h) * H + w]"},
            "check", OUTSIDE, ("* W + h) * H + w]",), "memcheck"),
    ],
    "conv2d_backward_input_naive": [
        Bug("an output's thread adds to the inputs that it saw, and so do others",
            {"int element ... dx[element] = sum;": """\
    for (int element = thread_number(); element < N * O * OH * OW; element += gridDim.x * blockDim.x) {
        int j = element % OW, i = element / OW % OH, o = element / (OW * OH) % O, n = element / (OW * OH * O);
        for (int c = 0; c < C; ++c)
            for (int u = 0; u < KH; ++u)
                for (int v = 0; v < KW; ++v) {
                    int h = i * stride + u - padding;
                    int w = j * stride + v - padding;
                    if (h < 0 || h >= H || w < 0 || w >= W) continue;
                    dx[((n * C + c) * H + h) * W + w] += dout[element] * weight[((o * C + c) * KH + u) * KW + v];
                }
    }"""},
            "check", RACE, ("dx[((n * C + c) * H + h) * W + w] += ",)),
        Bug("the stride less one, which may be 0", {"row % stride != 0": "row % (stride - 1) != 0"},
            "trap", "divides", ("row % (stride - 1) != 0",)),
    ],
    "conv2d_backward_weight_naive": [
        Bug("all threads of a block add to one weight",
            {"float total = block_sum(sum);": "",
             "if (threadIdx.x == 0) dweight[blockIdx.x] = total;": "dweight[blockIdx.x] += sum;"},
            "check", RACE, ("dweight[blockIdx.x] += sum;",)),
        Bug("all threads write what only the first one has", {"if (threadIdx.x == 0) dweight": "dweight"},
            "check", RACE, ("dweight[blockIdx.x] = total;",)),
        Bug("threads without a place return before the barrier of the sum",
            {"float sum = 0.0f;": "if (threadIdx.x >= N * OH * OW) return;\nfloat sum = 0.0f;"},
            "trap", "have exited", ("__syncthreads();  // until every thread",), "synccheck"),
    ],
    "conv2d_backward_bias_naive": [
        Bug("written by a thread that is not there", {"threadIdx.x == 0": "threadIdx.x == SUM_THREADS"},
            "check", NOBODY, ("void conv2d_backward_bias_naive(",)),
        Bug("a block goes on from what the block before it has written",
            {"dbias[o] = total;": "dbias[o] = o > 0 ? dbias[o - 1] + total : total;"},
            "check", "nothing orders blocks", ("dbias[o - 1] + total",)),
        Bug("the sum is taken twice, in the same shared memory",
            {"float sum = 0.0f;": "float sum = 0.0f, squares = 0.0f;",
             "float total = block_sum(sum);": "float total = block_sum(sum) + 0.0f * block_sum(squares);"},
            "check", RACE, ("partial[threadIdx.x] = mine;", SUM_READS), "racecheck"),
        Bug("a barrier in a loop that some threads go through less often",
            {"for (int place ... place % (OH * OW)];\n    }": """__shared__ float tile[SUM_THREADS];
    for (int place = threadIdx.x; place < N * OH * OW; place += SUM_THREADS) {
        int n = place / (OH * OW);
        tile[threadIdx.x] = dout[(n * O + o) * OH * OW + place % (OH * OW)];
        __syncthreads();  // for the tile
        sum += tile[threadIdx.x];
    }"""},
            "trap", "wait at __syncthreads",
            ("__syncthreads();  // for the tile", "__syncthreads();  // until every thread"), "synccheck"),
        Bug("the first thread to come writes the sum, not the one that has it",
            {"if (threadIdx.x == 0) dbias": """__shared__ int written;
    if (threadIdx.x == 0) written = 0;
    __syncthreads();
    if (atomicExch(&written, 1) == 0) dbias"""},
            "order", ORDER, ("dbias[o] = total;",)),
    ],
    "conv_transpose2d_forward_naive": [
        Bug("every input stamps the kernel onto the output, over what others stamp",
            {"int element ... y[element] = sum;": """\
    for (int element = thread_number(); element < N * C * H * W; element += gridDim.x * blockDim.x) {
        int j = element % W, i = element / W % H, c = element / (W * H) % C, n = element / (W * H * C);
        for (int o = 0; o < O; ++o)
            for (int u = 0; u < KH; ++u)
                for (int v = 0; v < KW; ++v) {
                    int h = i * stride + u - padding;
                    int w = j * stride + v - padding;
                    if (h < 0 || h >= OH || w < 0 || w >= OW) continue;
                    y[((n * O + o) * OH + h) * OW + w] += x[element] * weight[((c * O + o) * KH + u) * KW + v];
                }
    }"""},
            "check", RACE, ("y[((n * O + o) * OH + h) * OW + w] += ",)),
        Bug("between the stamps too", {" || column % stride != 0": ""},
            "double", WRONG, ("y[element] = sum;",)),
        Bug("the stamps of pixels left of the picture", {"column < 0 || ": ""},
            "check", OUTSIDE, ("* W + j] * weight",), "memcheck"),
    ],
    "conv_transpose2d_backward_input_naive": [
        Bug("a sum without a first value", {"float sum = 0.0f;": "float sum;"},
            "trap", "uninitialized", ("dx[element] = sum;",)),
        Bug("the weight is read as conv2d's", {"weight[((c * O + o)": "weight[((o * C + c)"},
            "double", WRONG, ("dx[element] = sum;",)),
    ],
    "conv_transpose2d_backward_weight_naive": [
        Bug("one place too many", {"place < N * H * W": "place <= N * H * W"},
            "check", OUTSIDE, ("* dout[",), "memcheck"),
        Bug("all output channels write to the first one's weights",
            {"dweight[blockIdx.x] = total": "dweight[(c * O * KH + u) * KW + v] = total"},
            "check", RACE, ("dweight[(c * O * KH + u) * KW + v] = total",)),
    ],
    "max_pool2d_forward": [
        Bug("the max_index is not written where the first pixel wins",
            {"best = candidate;": "best = candidate;\nmax_index[element] = best;",
             "largest;\n    max_index[element] = best;": "largest;"},
            "check", UNWRITTEN, ("if (max_index[first",), "initcheck"),  # where it is read
        Bug("the max_index stays behind when the maximum moves on", {"best = candidate;": ""},
            "double", WRONG, ("max_index[element] = best;",)),
        Bug("the window is one column too wide", {"v < size": "v <= size"},
            "check", OUTSIDE, ("float value = plane[candidate];",), "memcheck"),
    ],
    "max_pool2d_backward": [
        Bug("a pixel that several windows chose gets the last one's gradient", {"sum += dout": "sum = dout"},
            "double", WRONG, ("dx[element] = sum;",)),
        Bug("windows that the picture has no room for are asked", {"if (i >= OH || j >= OW) continue;": ""},
            "check", OUTSIDE, ("if (max_index[first",), "memcheck"),
    ],
    "softmax": [
        Bug("the largest logit is not subtracted: exp(1e4) is infinite",
            {"float sum = 0.0f;": "largest = 0.0f;\nfloat sum = 0.0f;"},
            "check", NAN, ("p[first + k * S] = ",)),
        Bug("logits lie K apart, not S",
            {"fmaxf(largest, logits[first + k * S])": "fmaxf(largest, logits[first + k * K])"},
            "check", OUTSIDE, ("logits[first + k * K]",), "memcheck"),
    ],
    "softmax_cross_entropy_naive": [
        Bug("the logarithm of a probability that rounds to 0",
            {"logf(sum) - (": "-logf(expf(", "- largest);\n    float scale": "- largest) / sum);\n    float scale"},
            "double", WRONG, ("losses[place] = ",)),
        Bug("labels are counted from 1", {"logits[first + label * S]": "logits[first + (label - 1) * S]"},
            "check", OUTSIDE, ("logits[first + (label - 1) * S]",), "memcheck"),
        Bug("the gradient's label is off by one", {"k == label &&": "k == label + 1 &&"},
            "double", WRONG, ("k == label + 1 &&",)),
        Bug("one thread adds up the losses that others are still writing",
            {"p - 1.0f : p);": """p - 1.0f : p);
    }
    if (place == 0) {
        for (int other = 1; other < N * S; ++other) losses[0] += losses[other];"""},
            "check", RACE, ("losses[place] = ", "losses[0] += losses[other]")),
    ],
    "softmax_cross_entropy_mean_naive": [
        Bug("the first place is left out", {"place = threadIdx.x;": "place = threadIdx.x + 1;"},
            "double", WRONG, ("loss[0] = total / count;",)),
    ],
    "softmax_cross_entropy": [
        Bug("nobody waits until all warps have written their sums", {"__syncthreads();": ""},
            "check", RACE, ("in_warp[threadIdx.x / 32] = mine;", "total += in_warp[warp];"), "racecheck"),
        Bug("all warps put their sum into one place", {"in_warp[threadIdx.x / 32] = mine": "in_warp[0] = mine"},
            "check", RACE, ("in_warp[0] = mine",), "racecheck"),
        Bug("one warp's sum too many is read", {"warp < LOSS_THREADS / 32": "warp <= LOSS_THREADS / 32"},
            "trap", "the index 8 of an array of type 'float [8]'", ("total += in_warp[warp];",), "memcheck"),
        Bug("one place too many", {"place < places;": "place <= places;"},
            "check", OUTSIDE, ("const int label = labels[place];",), "memcheck"),
        Bug("threads without a place return before the shuffles",
            {"float mine = 0.0f;": "if (thread_number() >= places) return;\nfloat mine = 0.0f;"},
            "trap", "wait at __shfl_down_sync", ("mine += __shfl_down_sync",), "synccheck"),
        Bug("the shuffles stand in a branch that places without a label do not take",
            {"if (!ignored) mine += logf(sum) - (chosen - largest);": """if (!ignored) {
            float loss = logf(sum) - (chosen - largest);
            for (int d = 16; d > 0; d /= 2) loss += __shfl_down_sync(0xffffffff, loss, d);
            if (threadIdx.x % 32 == 0) mine += loss;
        }"""},
            "trap", "wait at __shfl_down_sync", ("loss += __shfl_down_sync",), "synccheck"),
        Bug("the sums of odd lanes never reach the first", {"distance > 0;": "distance > 1;"},
            "double", WRONG, ("parts[blockIdx.x] = ", "loss[0] = sum;")),
        Bug("blocks go on where the next one began", {"place += gridDim.x * LOSS_THREADS": "place += LOSS_THREADS"},
            "check", "nothing orders blocks", ("scale * (p - 1.0f) : scale * p",)),
    ],
    "softmax_cross_entropy_mean": [
        Bug("the lanes without a part read one", {"part < count ? parts[part] : 0.0f": "parts[part]"},
            "check", OUTSIDE, ("sum += parts[part]",), "memcheck"),
        Bug("only lanes with a part shuffle", {"for (int distance": "if (threadIdx.x < count)\nfor (int distance"},
            "trap", "wait at __shfl_down_sync", ("sum += __shfl_down_sync",), "synccheck"),
        Bug("all lanes write what only the first one has", {"if (threadIdx.x == 0) loss": "loss"},
            "check", RACE, ("loss[0] = sum;",)),
    ],
    "adam_schedule": [
        Bug("the part done of 0 steps",
            {"steps == 0 ? 0.0f : t <= steps ? (float)(t - 1) / steps : 1.0f": "fminf((float)(t - 1) / steps, 1.0f)"},
            "check", NAN, ("float progress = ",)),
    ],
    "adam_step": [
        Bug("one thread makes the next step's correction while others read this one's",
            {"const float* __restrict__ rates": "float* __restrict__ rates",
             "+ epsilon);": "+ epsilon);\nif (element == 0) rates[1] = 1.0f - beta1 * (1.0f - rates[1]);"},
            "check", RACE, ("m[element] / rates[1]", "if (element == 0) rates[1] = ")),
        Bug("the block is forgotten: threads of several blocks add to one mean",
            {"m[element] = beta1 * m[element]": "m[threadIdx.x] = beta1 * m[threadIdx.x]"},
            "check", "nothing orders blocks", ("m[threadIdx.x] = ",)),
        Bug("the surplus threads of the last block go on", {"if (element >= count) return;": ""},
            "trap", OUTSIDE, ("float gradient = ",), "memcheck"),
        Bug("every thread counts the step", {"if (element == 0) {": "{"}, "check", RACE, ("step[0] += 1;",)),
        Bug("the corrections are swapped", {"m[element] / rates[1]": "m[element] / rates[2]"},
            "double", WRONG, ("parameters[element] -= ",)),
    ],
    "peak_copy": [
        Bug("one four too many", {"< fours) held[k]": "<= fours) held[k]"},
            "check", OUTSIDE, ("held[k] = reinterpret_cast<const float4*>(x)",), "memcheck"),
        Bug("a thread's fours lie side by side in the copy",
            {"reinterpret_cast<float4*>(y)[first + k * COPY_THREADS]": "reinterpret_cast<float4*>(y)[first + k]"},
            "check", RACE, ("reinterpret_cast<float4*>(y)[first + k] = held[k]",)),
    ],
    "peak_multiply_add": [
        Bug("one thread too many", {"if (element >= count) return;": "if (element > count) return;"},
            "check", OUTSIDE, ("chain[k] = x[element] + k",), "memcheck"),
        Bug("two threads store one sum", {"y[element] = sum": "y[element / 2] = sum"},
            "check", RACE, ("y[element / 2] = sum",)),
    ],
    "gather_normalise": [
        Bug("pictures and pixels are swapped",
            {"indices[element / S] * S + element % S": "indices[element % S] * S + element / S"},
            "check", OUTSIDE, ("indices[element % S] * S + element / S",), "memcheck"),
        Bug("four bytes at once, of pictures that begin anywhere",
            {"if (element >= N * S) return; ... / 127.0f;": """if (4 * element >= N * S) return;
    int pixel = 4 * element;
    uchar4 four = *reinterpret_cast<const uchar4*>(images + indices[pixel / S] * S + pixel % S);
    batch[pixel] = (four.x - 127) / 127.0f;
    batch[pixel + 1] = (four.y - 127) / 127.0f;
    batch[pixel + 2] = (four.z - 127) / 127.0f;
    batch[pixel + 3] = (four.w - 127) / 127.0f;"""},
            "trap", "which is not a multiple of its size", ("reinterpret_cast<const uchar4*>",), "memcheck"),
    ],
    "gather_batch": [
        Bug("the steps go on past the batches that the host has chosen", {"step[0] % R * N": "step[0] * N"},
            "check", OUTSIDE, ("step[0] * N + n",), "memcheck"),
        Bug("each pixel's thread stores the one label of its picture",
            {"if (pixel < L) labels[n * L + pixel]": "labels[n * L + pixel % L]"},
            "check", RACE, ("labels[n * L + pixel % L]",)),
    ],
    "segmentation_counts": [
        Bug("two threads raise a counter at once, and one is lost",
            {"atomicAdd(&pixels[label * K + predicted], 1)": "pixels[label * K + predicted] += 1"},
            "check", RACE, ("pixels[label * K + predicted] += 1",), "racecheck"),
        Bug("the first thread counts before the last counter is 0", {"__syncthreads();  // until all": "// until all"},
            "check", RACE, ("pairs[threadIdx.x] = 0;", "atomicAdd(&pairs[1]"), "racecheck"),
        Bug("pixels without a class are counted too, behind the counters", {"if (label < K) ": ""},
            "check", UNWRITTEN, ("atomicAdd(&pixels[",)),
        Bug("threads for which there is no pixel return before the barrier",
            {"int both = 0;": "if (threadIdx.x >= S) return;\n    int both = 0;"},
            "trap", "have exited", ("__syncthreads();  // until every thread has counted",), "synccheck"),
        Bug("a counter takes what it was told by whichever thread came first",
            {"atomicAdd(&pairs[1], either);": "atomicCAS(&pairs[1], 0, either);"},
            "order", ORDER, ("if (threadIdx.x < 2) overlap[",)),
    ],
    "compose_m2nist_place_naive": [
        Bug("one word too far: four were drawn", {"choice.word[k + 1]": "choice.word[k + 2]"},
            "trap", "the index 4 of an array of type 'unsigned int [4]'", ("choice.word[k + 2]",)),
        Bug("random numbers by a product that an int does not hold",
            {"place.word[k] % (ROWS * COLUMNS)": "abs((n * 3 + k) * 1103515245 + 12345) % (ROWS * COLUMNS)"},
            "trap", "which overflows 'int'", ("1103515245",)),
        Bug("a thread writes its picture where the last one to come has ended",
            {"int n = thread_number();": """__shared__ int next;
    if (threadIdx.x == 0) next = blockIdx.x * blockDim.x;
    __syncthreads();
    int n = thread_number();""",
             "if (n >= N) return;": "if (n >= N) return;\nint slot = atomicAdd(&next, 1);",
             "boxes + (n * 3 + k) * 3": "boxes + (slot * 3 + k) * 3"},
            "order", ORDER, ("box[0] = k < count",)),
    ],
    "compose_m2nist_draw_naive": [
        Bug("a digit is drawn where there is no box", {"digit < 0 || ": ""},
            "check", OUTSIDE, ("pixel = digits[",), "memcheck"),
        Bug("boxes are taken to have ten numbers a picture", {"/ (WIDTH * HEIGHT) * 9": "/ (WIDTH * HEIGHT) * 10"},
            "check", OUTSIDE, ("int w = column - picture[k * 3 + 2];",), "memcheck"),
    ],
    "compose_m2nist": [
        Bug("lanes whose try fits leave before the vote",
            {"fitting = __ballot_sync": "if (fits) break;\nfitting = __ballot_sync"},
            "trap", "wait at __ballot_sync", ("fitting = __ballot_sync",), "synccheck"),
        Bug("lanes of the last warp that have nothing to draw return before the vote",
            {"int position[3];": "if (blockIdx.y * COMPOSE_THREADS + threadIdx.x >= 1340) return;\nint position[3];"},
            "trap", "wait at __ballot_sync", ("fitting = __ballot_sync",), "synccheck"),
        Bug("the first lane to come wins, not the lowest",
            {"fitting = __ballot_sync(0xffffffff, fits);": """__shared__ int lowest_lanes[COMPOSE_THREADS / 32];
        int* lowest = lowest_lanes + threadIdx.x / 32;
        if (lane == 0) *lowest = -1;
        __syncwarp();
        if (fits) atomicCAS(lowest, -1, lane);
        __syncwarp();
        fitting = *lowest < 0 ? 0 : 1u << *lowest;
        __syncwarp();"""},
            "order", ORDER, ("reinterpret_cast<float4*>(batch)[at] =",)),
        Bug("fours are counted as if they were pixels",
            {"reinterpret_cast<float4*>(batch)[at]": "*reinterpret_cast<float4*>(batch + at)"},
            "trap", "which is not a multiple of its size", ("reinterpret_cast<float4*>(batch + at)",), "memcheck"),
        Bug("one four too many", {"four < HEIGHT * FOURS": "four <= HEIGHT * FOURS"},
            "check", OUTSIDE, ("reinterpret_cast<float4*>(batch)[at] =",), "memcheck"),
        Bug("the blocks of a picture all draw its first part",
            {"four = blockIdx.y * COMPOSE_THREADS + threadIdx.x": "four = threadIdx.x"},
            "check", "nothing orders blocks", ("reinterpret_cast<float4*>(batch)[at] =",)),
        Bug("above the box is taken for inside", {"h < 0 || ": ""},
            "check", OUTSIDE, ("pixel[i] = digits[",), "memcheck"),
    ],
}  # fmt: skip

# What looks like a bug of the zoo and is right.
TWINS: dict[str, tuple[str, dict[str, str]]] = {
    "four floats from where memory is aligned, then the left-over ones": (
        "relu_forward",
        {
            "int element ... 0.0f : x[element];": """int first = 4 * thread_number();
    if (first + 3 >= count) {
        for (int element = first; element < count; ++element) y[element] = fmaxf(x[element], 0.0f);
        return;
    }
    float4 four = *reinterpret_cast<const float4*>(x + first);
    *reinterpret_cast<float4*>(y + first) =
        make_float4(fmaxf(four.x, 0.0f), fmaxf(four.y, 0.0f), fmaxf(four.z, 0.0f), fmaxf(four.w, 0.0f));"""
        },
    ),
    "lanes that wait for each other": (
        "block_sum",
        {
            "float total = 0.0f; ... return total;": """if (threadIdx.x >= 32) return 0.0f;
    for (int half = SUM_THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncwarp();
    }
    return partial[0];"""
        },
    ),
    "two lanes shuffle, and the mask names two": (
        "block_sum",
        {SUM: WARPS.replace("xor_sync(0xffffffff", "xor_sync(0x3")},
    ),
}


@cache
def findings(operation: str, kernels: Path) -> list[str]:
    return [finding.text for finding in sanitize.check(operation, SEEDS, kernels).findings.values()]


def trap(operation: str, kernels: Path) -> list[str]:
    return [text for text in (exercise(operation, Emulator(kernels)),) if text]


def check(operation: str, kernels: Path) -> list[str]:
    return [text for text in findings(operation, kernels) if ORDER not in text]


def order(operation: str, kernels: Path) -> list[str]:
    return [text for text in findings(operation, kernels) if ORDER in text]


def double(operation: str, kernels: Path) -> list[str]:
    ops = Operations(Emulator(kernels, precision="double"))
    verdicts = (gradcheck.check_kernel(case, ops) for case in cases() if case.operation == operation)
    return [verdict.where for each in verdicts for verdict in each if not verdict.passed]


MODES = {"trap": trap, "check": check, "order": order, "double": double}
COMPILED = {  # for each mode, and whether for check mode, whether in double
    "trap": [(False, False)],
    "check": [(True, False)],
    "order": [(True, False)],
    "double": [(False, True), (True, True)],
}
BUGS = [(name, bug) for name, bugs in ZOO.items() for bug in bugs]


def each_of(bugs: list[tuple[str, Bug]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("name", "bug"), [pytest.param(name, bug, id=f"{name}: {bug.what}") for name, bug in bugs]
    )


DRY = Dry(KERNELS)
DRAW = {**sanitize.EXERCISES}
all_cases = cases
# What the other functions of common.cuh are seen by are all cases.
CALLED_BY = dict.fromkeys(("add_splits", "finish_row", "load_row"), "conv2d_forward")


def launched(case: Case) -> list[Kernel]:
    DRY.launched.clear()
    case.run(Operations(DRY))
    return [*DRY.launched]


def with_kernel(name: str, some: Iterable[Case]) -> list[Case]:
    """The cases that launch a kernel, or one that calls a function: what else they do need not be compiled."""
    kernel = CALLED_BY.get(name, name)
    some = [case for case in some if case.operation == operation_of(name)]
    return [case for case in some if kernel in SEEN_BY or kernel in {each.name for each in launched(case)}]


def exercised(name: str, random: np.random.Generator) -> list[Case]:
    return with_kernel(name, DRAW[operation_of(name)](random))


@cache
def needed(name: str, mode: str) -> list[Kernel | None]:
    """The instances to compile, and None for all that are no templates, to find a bug."""
    operation = operation_of(name)
    drawn = (case for seed in SEEDS for case in exercised(name, np.random.default_rng(seed)))
    kernels = [
        kernel
        for case in (with_kernel(name, all_cases()) if mode == "double" else drawn)
        for kernel in launched(case)
        if kernel.operation == operation
    ]
    return [
        *{
            kernel.expression if kernel.instance else "": kernel if kernel.instance else None for kernel in kernels
        }.values()
    ]


@pytest.fixture(scope="module", autouse=True)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Most of these tests' time is the compiler's. So it is called beforehand, on all cores, for all bugs chosen."""
    folder = tmp_path_factory.mktemp("zoo")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, item in enumerate(request.session.items):
            if getattr(item, "function", None) is test_a_bug_is_found_and_its_line_named:
                name, bug = item.callspec.params["name"], item.callspec.params["bug"]
                with suppress(AssertionError):  # where the bug finds no place, its own test says so
                    plant(name, bug.changes, folder / str(number))
                kernels = folder / str(number)
                for flags in COMPILED[bug.mode]:
                    for instance in needed(name, bug.mode)[: 2 if bug.mode == "trap" else None]:  # a trap ends it
                        # Errors come again in the test.
                        pool.submit(build.library, operation_of(name), kernels, *flags, instance)


@each_of(BUGS)
def test_a_bug_is_found_and_its_line_named(
    name: str, bug: Bug, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation, kernels = operation_of(name), plant(name, bug.changes, tmp_path / "kernels")
    monkeypatch.setitem(sanitize.EXERCISES, operation, partial(exercised, name))
    monkeypatch.setattr(sys.modules[__name__], "cases", lambda: with_kernel(name, all_cases()))
    said = MODES[bug.mode](operation, kernels)
    lines = {line_of(text, operation, kernels) for text in bug.lines}
    assert lines
    assert any(bug.says in text and lines <= {*re.findall(r"\w+\.cuh?:\d+", text)} for text in said), (lines, said)
    if bug.mode == "order":
        assert not check(operation, kernels), "only the order tells"


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        (operation, mode)
        for operation in sanitize.EXERCISES
        for mode in MODES
        if mode != "double" or operation in gradcheck.operations()
    ],
)
def test_right_kernels_pass(operation: str, mode: str) -> None:
    assert not MODES[mode](operation, KERNELS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "changes"), TWINS.values(), ids=TWINS)
def test_what_only_looks_wrong_passes(name: str, changes: dict[str, str], mode: str, tmp_path: Path) -> None:
    assert not MODES[mode](operation_of(name), plant(name, changes, tmp_path / "kernels"))


def test_the_zoo_is_large_and_names_its_lines() -> None:
    assert {*ZOO} == {*kernel_source.kernels(), *SEEN_BY}
    assert len(BUGS) >= 30 and all(ZOO.values())
    for mode in MODES:
        assert sum(bug.mode == mode for _, bug in BUGS) >= 3, mode


# On a machine with both a GPU and compute-sanitizer; conftest.py says at the end of a run where there is not.
if not planting.why_no_compute_sanitizer():

    @each_of([(name, bug) for name, bug in BUGS if bug.tool])
    def test_compute_sanitizer_finds_it_too(name: str, bug: Bug, tmp_path: Path) -> None:
        watched = compute_sanitizer(bug.tool, operation_of(name), plant(name, bug.changes, tmp_path / "kernels"))
        assert watched.returncode == DETECTED, watched.stdout

    @pytest.mark.parametrize("tool", sorted({bug.tool for _, bug in BUGS if bug.tool}))
    def test_compute_sanitizer_passes_right_kernels(tool: str) -> None:
        watched = compute_sanitizer(tool, "conv2d", KERNELS)
        assert watched.returncode == 0, watched.stdout


FAKE = """#!/bin/sh
echo "$1 $2 $3 $4" > "$0.asked"
shift 4
said=$("$@") || exit 1
test -z "$said" || exit 77
"""


def test_how_compute_sanitizer_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fake one, which finds fault where the program that it watches does; and that runs on the emulator."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake = tmp_path / "compute-sanitizer"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    kernels = plant("relu_forward", {"if (element >= count) return;": ""}, tmp_path / "kernels")
    found = compute_sanitizer("memcheck", "relu", kernels, "emulator")
    assert found.returncode == DETECTED, found.stdout
    assert compute_sanitizer("memcheck", "relu", KERNELS, "emulator").returncode == 0
    assert compute_sanitizer("memcheck", "no operation", KERNELS, "emulator").returncode == 1
    assert Path(f"{fake}.asked").read_text() == f"--tool memcheck --error-exitcode {DETECTED}\n"
