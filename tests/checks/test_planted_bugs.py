"""Can these tests fail? Bugs planted in copies of the kernels, every one of which their checks must notice.

A bug is a line of a kernel, and what is written there instead. The check is the one that the kernel's own tests make,
run on the emulator, and it has to fail; on an unchanged copy of the kernels it has to pass.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import fast_conv
from helpers.planting import kernel_tests, plant

from tinyfcn.devices import kernel_source
from tinyfcn.devices.emulator import Emulator
from tinyfcn.operations import Operations

test_adam = kernel_tests("adam")
test_add = kernel_tests("add")
test_compose_m2nist = kernel_tests("compose_m2nist")
test_conv2d = kernel_tests("conv2d")
test_conv2d_pool = kernel_tests("conv2d_pool")
test_conv_transpose2d = kernel_tests("conv_transpose2d")
test_gather_normalise = kernel_tests("gather_normalise")
test_max_pool2d = kernel_tests("max_pool2d")
test_peak = kernel_tests("peak")
test_philox = kernel_tests("philox")
test_relu = kernel_tests("relu")
test_segmentation_counts = kernel_tests("segmentation_counts")
test_softmax_cross_entropy = kernel_tests("softmax_cross_entropy")


def check_conv2d_forward(ops: Operations) -> None:
    test_conv2d.check_forward(ops, test_conv2d.SEVERAL_BLOCKS)


def check_conv2d_backward(ops: Operations) -> None:
    test_conv2d.check_backward(ops, test_conv2d.SEVERAL_BLOCKS)


def check_conv_transpose2d_forward(ops: Operations) -> None:
    test_conv_transpose2d.check_forward(ops, test_conv_transpose2d.SEVERAL_BLOCKS)


def check_conv_transpose2d_backward(ops: Operations) -> None:
    test_conv_transpose2d.check_backward(ops, test_conv_transpose2d.SEVERAL_BLOCKS)


def check_fast_conv2d(ops: Operations) -> None:
    for number in (2, 3):  # with a stride and splits; with groups, several pictures and pooling
        fast_conv.check_sizes(ops, False, number, shapes=20)


def check_fast_conv2d_and_max_indices(ops: Operations) -> None:
    check_fast_conv2d(ops)
    test_conv2d_pool.check_composition(ops, test_conv2d_pool.SIZES[0])


def check_fast_conv_transpose2d(ops: Operations) -> None:
    for number in (0, 1, 2):  # with groups and splits; with phases of no row; with a pooling
        fast_conv.check_sizes(ops, True, number, shapes=20)


def check_outputs(ops: Operations) -> None:
    check_fast_conv2d(ops)
    fast_conv.check_sizes(ops, False, 0, shapes=60)  # four at once, where rows allow it


def check_fast_weight_gradient(ops: Operations) -> None:
    for number in (0, 1):  # with a pooling; with a stride and several pictures
        fast_conv.check_weight_gradients(ops, number)


def check_splits(ops: Operations) -> None:
    for number in (0, 2):  # two and four
        fast_conv.check_sizes(ops, False, number, shapes=20)


def check_rows(ops: Operations) -> None:
    for number in (3, 4):  # read by four and one by one
        fast_conv.check_sizes(ops, False, number, shapes=20)


def check_max_pool2d_forward(ops: Operations) -> None:
    for case in test_max_pool2d.SEVERAL_BLOCKS:
        test_max_pool2d.check_forward(ops, case)


def check_max_pool2d_backward(ops: Operations) -> None:
    for case in test_max_pool2d.SEVERAL_BLOCKS:
        test_max_pool2d.check_backward(ops, case)


def check_relu_forward(ops: Operations) -> None:
    test_relu.check_forward(ops, (3, 7, 11, 5))


def check_relu_backward(ops: Operations) -> None:
    test_relu.check_backward(ops, (3, 7, 11, 5))


def check_add_forward(ops: Operations) -> None:
    test_add.check_forward(ops, (3, 7, 11, 5), 0.5)


def check_add_backward(ops: Operations) -> None:
    test_add.check_backward(ops, (3, 7, 11, 5), 0.5)


def check_softmax(ops: Operations) -> None:
    test_softmax_cross_entropy.check_softmax(ops, test_softmax_cross_entropy.SEVERAL_BLOCKS[0])
    test_softmax_cross_entropy.check_large_logits(ops)


def check_softmax_cross_entropy(ops: Operations) -> None:
    some_of_a_class_ignored = test_softmax_cross_entropy.Loss((3, 10, 13, 17), 0, "softmax")
    for case in (some_of_a_class_ignored, *test_softmax_cross_entropy.SEVERAL_BLOCKS):
        test_softmax_cross_entropy.check_loss(ops, case)
    test_softmax_cross_entropy.check_more_places_than_threads(ops)
    test_softmax_cross_entropy.check_unlabelled(ops)
    test_softmax_cross_entropy.check_large_logits(ops)


def check_softmax_cross_entropy_naive(ops: Operations) -> None:
    ops.device.naive = True
    check_softmax_cross_entropy(ops)


def check_adam(ops: Operations) -> None:
    test_adam.check_adam(ops, test_adam.Run(300, warmup=3, l2=2.0))
    test_adam.check_adam(ops, test_adam.Run(300, settings={"epsilon": 0.25}))


def check_peak_copy(ops: Operations) -> None:
    test_peak.check_copy(ops, 8192)


def check_peak_multiply_add(ops: Operations) -> None:
    test_peak.check_multiply_add(ops, 17)


def check_gather_normalise(ops: Operations) -> None:
    test_gather_normalise.check_gather(ops, (7, 28, 28), 5)


def check_gather_batch(ops: Operations) -> None:
    test_gather_normalise.check_batch(ops, (7, 28, 28), 5)
    test_gather_normalise.check_batch(ops, (7, 9, 5), 5, one_each=False)


def check_compose_place(ops: Operations) -> None:
    test_compose_m2nist.check_place(ops, 60_000, 1, 2, 300)


def check_compose(ops: Operations) -> None:
    test_compose_m2nist.check_compose(ops, 1, 2, 100, background=1)


def check_compose_naive(ops: Operations) -> None:
    ops.device.naive = True
    check_compose(ops)


# Kernel, or function of common.cuh -> its check, and (what is wrong, the kernel's text, the text instead).
Bug = tuple[str, str, str]
PLANTED: dict[str, tuple[Callable[[Operations], None], list[Bug]]] = {
    "conv2d_forward_naive": (
        check_conv2d_forward,
        [
            ("stride forgotten", "i * stride + u - padding", "i + u - padding"),
            ("bias forgotten", "float sum = bias[o];", "float sum = 0.0f;"),
            ("bias of another channel", "bias[o]", "bias[0]"),
            ("last row left out", "h >= H ||", "h >= H - 1 ||"),
            ("last channel left out", "c < C;", "c < C - 1;"),
            ("kernel's axes swapped", "* KH + u) * KW + v]", "* KW + v) * KH + u]"),
            ("last element left out", "element >= N * O * OH * OW", "element >= N * O * OH * OW - 1"),
        ],
    ),
    "conv2d_backward_input_naive": (
        check_conv2d_backward,
        [
            ("between strides too", "row % stride != 0 || ", ""),
            ("padding forgotten", "w + padding - v", "w - v"),
            ("kernel not reversed", "h + padding - u;", "h - padding + u;"),
            ("last output row left out", "i >= OH ||", "i >= OH - 1 ||"),
            ("weight's channels swapped", "weight[((o * C + c)", "weight[((c * O + o)"),
        ],
    ),
    "conv2d_backward_weight_naive": (
        check_conv2d_backward,
        [
            ("stride on the kernel", "i * stride + u - padding", "i + u * stride - padding"),
            ("first picture only", "place < N * OH * OW", "place < OH * OW"),
            ("first channel only", "x[((n * C + c)", "x[((n * C)"),
            ("some places left out", "place += SUM_THREADS", "place += SUM_THREADS + 1"),
            ("first column left out", "w < 0 ||", "w < 1 ||"),
        ],
    ),
    "conv2d_backward_bias_naive": (
        check_conv2d_backward,
        [
            ("not written", "if (threadIdx.x == 0) dbias[o] = total;", ""),
            ("first picture only", "place < N * OH * OW", "place < OH * OW"),
            ("pictures and channels mixed up", "(n * O + o)", "(n + o)"),
        ],
    ),
    "conv_transpose2d_forward_naive": (
        check_conv_transpose2d_forward,
        [
            ("between strides too", " || column % stride != 0", ""),
            ("bias forgotten", "float sum = bias[o];", "float sum = 0.0f;"),
            ("padding forgotten", "w + padding - v", "w - v"),
            ("last input row left out", "i >= H ||", "i >= H - 1 ||"),
            ("weight as conv2d's", "weight[((c * O + o)", "weight[((o * C + c)"),
        ],
    ),
    "conv_transpose2d_backward_input_naive": (
        check_conv_transpose2d_backward,
        [
            ("stride forgotten", "i * stride + u - padding", "i + u - padding"),
            ("last row left out", "h >= OH ||", "h >= OH - 1 ||"),
            ("last channel left out", "o < O;", "o < O - 1;"),
        ],
    ),
    "conv_transpose2d_backward_weight_naive": (
        check_conv_transpose2d_backward,
        [
            ("first picture only", "place < N * H * W", "place < H * W"),
            ("channel of the input", "dout[((n * O + o)", "dout[((n * O + c)"),
            ("stride forgotten", "j * stride + v - padding", "j + v - padding"),
        ],
    ),
    "conv2d_forward": (
        check_fast_conv2d_and_max_indices,
        [
            ("padding's sign", "left * STRIDE - padding", "left * STRIDE + padding"),
            ("stride forgotten where the tile is read", "ty * ROWS * STRIDE + row", "ty * ROWS + row"),
            ("every group has the first one's weights", "* PITCH + group * OUTPUTS", "* PITCH"),
            ("every picture of a block is the first", "(picture * CHUNK + c) * TILE_H", "c * TILE_H"),
            ("last input channels left out", "first < C;", "first < C && first == 0;"),
            ("bias forgotten", "bias ? bias[channel] : 0.0f", "0.0f"),
            (
                "max_index's row and column swapped",
                "(i + best / 2) * OW + j + p + best % 2",
                "(i + best % 2) * OW + j + p + best / 2",
            ),
            ("the last of equals wins", "value > largest ||", "value >= largest ||"),
        ],
    ),
    "conv2d_backward_weight": (
        check_fast_weight_gradient,
        [
            ("kernel's row forgotten", "row % ROWS * STRIDE + u", "row % ROWS * STRIDE"),
            ("losers count too", "max_index[from + a * plane] != i * OW + j", "false"),
            ("padding's sign", "top * STRIDE - padding", "top * STRIDE + padding"),
            ("last group left out", "part < GROUPS;", "part < GROUPS - 1;"),
            ("overlapping rows of tiles added twice", "top + ROWS < OH ? ROWS * STRIDE : TILE_H", "TILE_H"),
            ("first pictures alone", "tiles; tile += gridDim.y", "1; tile += gridDim.y"),
        ],
    ),
    "conv2d_sum_partials": (
        check_fast_weight_gradient,
        [
            ("every group adds up the first splits", "split = group;", "split = 0;"),
            ("one bias for all", "dbias[element - weights]", "dbias[0]"),
            ("every second split left out", "split += SUM_GROUPS", "split += 2 * SUM_GROUPS"),
        ],
    ),
    "conv_transpose2d_forward": (
        check_fast_conv_transpose2d,
        [
            ("phase's rows mixed up", "phase + a * STRIDE", "phase * TAPS_H + a"),
            ("kernel not reversed", "ty + TAPS_H - 1 - a", "ty + a"),
            ("columns not reversed", "p + TAPS_W - 1 - v / STRIDE", "p + v / STRIDE"),
            ("padding's sign", "* STRIDE + phase - padding", "* STRIDE + phase + padding"),
            ("losers get it too", "if (max_index[pooled] == i * W + j) ", ""),
            ("weight as conv2d's", "((first + c) * O + o)", "(o * C + first + c)"),
        ],
    ),
    "add_splits": (
        check_splits,
        [
            ("added twice", "sums[k] += parts", "sums[k] += 2 * parts"),
            ("the first of the others alone", "other < SPLITS - 1;", "other < 1;"),
            ("last sum left out", "+ k) * MEMBERS + member];", "+ k - k / (COUNT - 1)) * MEMBERS + member];"),
        ],
    ),
    "finish_row": (
        check_outputs,
        [
            ("no summand before a ReLU", "(add ? add[k] : 0.0f), relu,", "(add && !relu ? add[k] : 0.0f), relu,"),
            ("the relu_mask lets 0 pass", "relu_mask[k] > 0.0f", "relu_mask[k] >= 0.0f"),
            ("the relu_mask of four outputs lets 0 pass", "gates[i] > 0.0f", "gates[i] >= 0.0f"),
            ("the summand of four outputs forgotten", "bias + added[i]", "bias"),
            ("summand of the first alone", "add[k]", "add[0]"),
            ("bias forgotten", "sums[k] + bias", "sums[k]"),
        ],
    ),
    "load_row": (
        check_rows,
        [
            ("the second twice", "row[k + 2] = four.z", "row[k + 2] = four.y"),
            ("the first of them all", "row[k] = from[k]", "row[k] = from[0]"),
        ],
    ),
    "max_pool2d_forward": (
        check_max_pool2d_forward,
        [
            ("the last of equals wins", "value > largest", "value >= largest"),
            ("last column left out", "v < size", "v < size - 1"),
            ("search begins at the plane's corner", "int best = i * stride * W + j * stride;", "int best = 0;"),
            ("max_index within its row", "max_index[element] = best;", "max_index[element] = best % W;"),
        ],
    ),
    "max_pool2d_backward": (
        check_max_pool2d_backward,
        [
            ("one window a pixel", "sum += dout", "sum = dout"),
            ("losers get it too", "if (max_index[first + i * OW + j] == h * W + w) ", ""),
            ("between strides too", "row % stride != 0 || ", ""),
            ("last window left out", "j >= OW)", "j >= OW - 1)"),
        ],
    ),
    "relu_forward": (
        check_relu_forward,
        [
            ("leaks", "0.0f : x[element]", "0.01f * x[element] : x[element]"),
            ("the wrong way round", "x[element] < 0.0f", "x[element] > 0.0f"),
            ("last element left out", "element >= count", "element >= count - 1"),
        ],
    ),
    "relu_backward": (
        check_relu_backward,
        [
            ("passes at 0", "y[element] > 0.0f", "y[element] >= 0.0f"),
            ("looks at dout", "y[element] > 0.0f", "dout[element] > 0.0f"),
        ],
    ),
    "add_forward": (
        check_add_forward,
        [
            ("scales one", "scale * (a[element] + b[element])", "scale * a[element] + b[element]"),
            ("subtracts", "a[element] + b", "a[element] - b"),
        ],
    ),
    "add_backward": (
        check_add_backward,
        [
            ("scale forgotten", "scale * dz[element]", "dz[element]"),
            ("last element left out", "element >= count", "element >= count - 1"),
        ],
    ),
    "softmax": (
        check_softmax,
        [
            ("largest not subtracted", "float sum = 0.0f;", "largest = 0.0f; float sum = 0.0f;"),
            ("not normalised", "/ sum;", ";"),
            ("pictures overlap", "place / S * K * S", "place / S * S"),
        ],
    ),
    "softmax_cross_entropy_naive": (
        check_softmax_cross_entropy_naive,
        [
            ("largest not subtracted", "float sum = 0.0f;", "largest = 0.0f; float sum = 0.0f;"),
            ("label off by one", "k == label &&", "k == label + 1 &&"),
            ("mean over pictures alone", "/ (N * S)", "/ N"),
            ("ignored places lose", "ignored ? 0.0f : logf", "logf"),
            ("ignored places pull too", "k == label && !ignored", "k == label"),
            ("ignored places push by default", "ignored ? unlabelled : 1.0f", "1.0f"),
        ],
    ),
    "softmax_cross_entropy_mean_naive": (
        check_softmax_cross_entropy_naive,
        [
            ("a sum", "total / count", "total"),
            ("some places left out", "place += SUM_THREADS", "place += 2 * SUM_THREADS"),
            ("first place left out", "place = threadIdx.x", "place = threadIdx.x + 1"),
        ],
    ),
    "softmax_cross_entropy": (
        check_softmax_cross_entropy,
        [
            ("largest not subtracted", "expf(logit[k] - largest)", "expf(logit[k])"),
            ("label off by one", "k == label &&", "k == label + 1 &&"),
            ("mean over pictures alone", "total / places", "total / N"),
            ("gradient of a mean over pictures alone", "1.0f) / places", "1.0f) / N"),
            ("ignored places lose", "if (!ignored) mine", "mine"),
            ("ignored places pull too", "k == label && !ignored", "k == label"),
            ("ignored places push by default", "ignored ? unlabelled : 1.0f", "1.0f"),
            ("a thread's last place alone", "mine += logf", "mine = logf"),
            ("no barrier", "__syncthreads();", ""),
            ("last warp left out", "warp < LOSS_THREADS / 32", "warp < LOSS_THREADS / 32 - 1"),
            ("odd lanes left out", "distance > 0", "distance > 1"),
        ],
    ),
    "softmax_cross_entropy_mean": (
        check_softmax_cross_entropy,
        [
            ("one part a lane", "first < MAX_PARTS", "first < 32"),
            ("first part left out", "first + threadIdx.x", "first + threadIdx.x + 1"),
            ("odd lanes left out", "distance > 0", "distance > 1"),
        ],
    ),
    "adam_schedule": (
        check_adam,
        [
            ("the same correction at each step", "-expm1f(t * logf(beta1))", "1.0f - beta1"),
            ("steps counted from 0", "t * logf(beta2)", "(t + 1) * logf(beta2)"),
            ("cosine a step ahead", "(float)(t - 1) / steps", "(float)t / steps"),
            ("first step does nothing", "(float)t / warmup", "(float)(t - 1) / warmup"),
        ],
    ),
    "adam_step": (
        check_adam,
        [
            ("mean not corrected", "m[element] / rates[1]", "m[element]"),
            ("corrections swapped", "v[element] / rates[2]", "v[element] / rates[1]"),
            ("epsilon within the root", "(sqrtf(v_hat) + epsilon)", "sqrtf(v_hat + epsilon)"),
            ("penalty whatever the parameter", "l2[element] * parameters[element]", "l2[element]"),
            ("not squared", "gradient * gradient;", "gradient;"),
            ("uphill", "parameters[element] -=", "parameters[element] +="),
            ("steps not counted", "step[0] += 1;", ""),
            ("the loss is kept a place too far", "losses[step[0] % R]", "losses[(step[0] + 1) % R]"),
            ("no loss is kept but the first", "if (element == 0)", "if (element == 0 && step[0] == 0)"),
        ],
    ),
    "peak_copy": (
        check_peak_copy,
        [
            ("stored one further", "(y)[first + k * COPY_THREADS] =", "(y)[first + (k ^ 1) * COPY_THREADS] ="),
            ("only the first block's", "blockIdx.x * COPY_THREADS * COPY_FOURS + threadIdx.x", "threadIdx.x"),
        ],
    ),
    "peak_multiply_add": (
        check_peak_multiply_add,
        [
            ("a round too few", "round < rounds", "round + 1 < rounds"),
            ("a chain is not added", "float sum = 0.0f;", "float sum = -chain[3];"),
            ("all chains alike", "x[element] + k", "x[element]"),
        ],
    ),
    "gather_normalise": (
        check_gather_normalise,
        [
            ("shifted by one", "- 127)", "- 128)"),
            ("pixels mixed up", "* S + element % S", "* S + element / S"),
            ("not gathered", "indices[element / S]", "(element / S)"),
        ],
    ),
    "gather_batch": (
        check_gather_batch,
        [
            ("the first step's batch", "step[0] % R * N", "step[0] % 1 * N"),
            ("not round", "step[0] % R * N", "min(step[0], R - 1) * N"),
            ("the next step's batch", "step[0] % R", "(step[0] + 1) % R"),
            ("labels of other pictures", "all_labels[picture * L", "all_labels[n * L"),
            ("the first label alone", "if (pixel < L)", "if (pixel < 1)"),
            ("the same label throughout", "picture * L + pixel]", "picture * L]"),
            ("shifted by one", "- 127)", "- 128)"),
        ],
    ),
    "segmentation_counts": (
        test_segmentation_counts.check_several,
        [
            ("true and predicted swapped", "label * K + predicted", "predicted * K + label"),
            ("the last of equals is called", "> largest", ">= largest"),
            ("last class never called", "k < K; ++k) {", "k < K - 1; ++k) {"),
            ("first pixels alone", "s += blockDim.x", "s += S"),
            ("logits of one picture", "logits + n * K * S", "logits + n * S"),
            ("claimed by size, not by share", "/ sum > threshold", "> threshold"),
            ("background claims too", "k < F;", "k < K;"),
            ("claimed alone is both", "claimed && k == label", "claimed"),
            ("true alone is not either", "claimed || k == label", "claimed"),
            ("no barrier before counting", "__syncthreads();  // until all", "// until all"),
        ],
    ),
    "compose_m2nist_place_naive": (
        check_compose_place,
        [
            ("never three", "choice.word[0] % 3", "choice.word[0] % 2"),
            ("last two may overlap", "b < a; ++b)", "b < a && b < 1; ++b)"),
            ("apart both ways", "< SIDE && abs(left", "< SIDE || abs(left"),
            ("touching counts", "abs(left[a] - left[b]) < SIDE", "abs(left[a] - left[b]) <= SIDE"),
            ("the first word twice", "choice.word[k + 1]", "choice.word[k]"),
            ("rows for columns", "position / COLUMNS", "position / ROWS"),
            ("step forgotten", "philox(attempt, n, now, 0, seed, 0)", "philox(attempt, n, 0, 0, seed, 0)"),
        ],
    ),
    "compose_m2nist_draw_naive": (
        check_compose_naive,
        [
            ("last row of a box left out", "h >= SIDE ||", "h >= SIDE - 1 ||"),
            ("faint ink is none", "if (pixel > 0)", "if (pixel > 127)"),
            ("digits lie on their side", "* SIDE + h) * SIDE + w]", "* SIDE + w) * SIDE + h]"),
            ("background always 10", "int label = background;", "int label = 10;"),
            ("boxes of another picture", "/ (WIDTH * HEIGHT) * 9", "/ (WIDTH * HEIGHT) * 3"),
            ("black is 0", "(pixel - 127) / 127.0f", "pixel / 127.0f"),
        ],
    ),
    "compose_m2nist": (
        check_compose,
        [
            ("never three", "choice.word[0] % 3", "choice.word[0] % 2"),
            ("the first word twice", "choice.word[k + 1]", "choice.word[k]"),
            ("step forgotten", "philox(attempt, n, now, 0, seed, 0)", "philox(attempt, n, 0, 0, seed, 0)"),
            ("tries counted from 0", "first = 1;", "first = 0;"),
            ("the first 32 tries alone", "fitting == 0; first += 32", "fitting == 0; first += TRIES"),
            ("all three must fit", "a < count && rows_apart", "rows_apart"),
            ("apart both ways", "rows_apart < SIDE && columns", "rows_apart < SIDE || columns"),
            ("touching counts", "columns_apart < SIDE)", "columns_apart <= SIDE)"),
            ("the last lane that fits", "__ffs(fitting) - 1", "31 - __clz(fitting)"),
            ("a lane's own try", "__shfl_sync(0xffffffff, position[k], chosen)", "position[k]"),
            ("digits without a box", "k < count ? position[k] / COLUMNS : HEIGHT", "position[k] / COLUMNS"),
            ("last row of a box left out", "h >= SIDE)", "h >= SIDE - 1)"),
            ("faint ink is none", "pixel[i] > 0 ?", "pixel[i] > 127 ?"),
            ("digits lie on their side", "* SIDE + h) * SIDE + w]", "* SIDE + w) * SIDE + h]"),
            ("background always 10", "ink[i] : background", "ink[i] : 10"),
            ("the label of the first digit", "ink[i] = name[k]", "ink[i] = name[0]"),
            ("the third of four twice", "value[2], value[3]", "value[2], value[2]"),
            ("the first label for two", "make_int4(label[0], label[1]", "make_int4(label[0], label[0]"),
        ],
    ),
    "thread_number": (
        check_relu_forward,
        [
            ("a gap after each block", "blockIdx.x * blockDim.x", "blockIdx.x * (blockDim.x + 1)"),
            ("one thread a block", " + threadIdx.x", ""),
        ],
    ),
    "block_sum": (
        check_conv2d_backward,
        [
            ("no barrier", "__syncthreads();", ""),
            ("last thread left out", "thread < SUM_THREADS", "thread < SUM_THREADS - 1"),
            ("everybody's in one place", "partial[threadIdx.x] = mine", "partial[0] = mine"),
        ],
    ),
    "philox": (
        test_philox.check_philox,
        [
            ("nine rounds", "round < 10", "round < 9"),
            ("another key", "0x9E3779B9u", "0x9E3779B1u"),
            ("words swapped", "high1 ^ c1 ^ key0", "high1 ^ c3 ^ key0"),
        ],
    ),
}


def with_bug(name: str, text: str, instead: str, folder: Path) -> Operations:
    """The emulator on a copy of the kernels with `text` changed in one kernel or function of common.cuh."""
    kernels = plant(name, {text: instead}, folder)
    if name == "philox":
        test_philox.add_kernel(kernels)
    return Operations(Emulator(kernels, naive=name.endswith("_naive") or name == "block_sum"))


@pytest.mark.parametrize(
    ("name", "bug"),
    [pytest.param(name, bug, id=f"{name}: {bug[0]}") for name, (_, bugs) in PLANTED.items() for bug in bugs],
)
def test_a_bug_is_noticed(name: str, bug: Bug, tmp_path: Path) -> None:
    ops = with_bug(name, *bug[1:], tmp_path / "kernels")
    with pytest.raises(AssertionError):
        PLANTED[name][0](ops)


@pytest.mark.parametrize("name", PLANTED)
def test_unchanged_kernels_pass(name: str, tmp_path: Path) -> None:
    text = PLANTED[name][1][0][1]
    PLANTED[name][0](with_bug(name, text, text, tmp_path / "kernels"))


def test_every_kernel_has_bugs_planted() -> None:
    assert {*PLANTED} >= {*kernel_source.kernels()}
    assert all(len(bugs) >= 2 for _, bugs in PLANTED.values())
