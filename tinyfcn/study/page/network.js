// The network: forward, what an element is made of, what it depends on, and the gradient by the image.
//
// A network is a list of layers in the order of computation, the image first and the logits last. A map is
// {channels, height, width, values}, values in the order channel, row, column. `maps` holds each layer's by its name.

const IMAGE = "x";
const BLOCK = 4; // output channels that are summed at once, each in a variable of its own

/** A network from its description, whose weights are float32 in base64. */
export function readNetwork(description) {
  const binary = atob(description.weights);
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  const parameters = new Float32Array(bytes.buffer);
  const layers = description.layers.map((layer) => {
    if (!layer.weight) return { ...layer };
    const { start, shape, biasStart } = layer.weight;
    const size = shape.reduce((product, length) => product * length, 1);
    const isTransposed = layer.operation === "conv_transpose2d";
    const outputs = shape[isTransposed ? 1 : 0];
    return {
      ...layer,
      inputs: shape[isTransposed ? 0 : 1],
      outputs,
      kernel: shape.slice(2),
      weights: parameters.subarray(start, start + size),
      bias: parameters.subarray(biasStart, biasStart + outputs),
    };
  });
  return { ...description, weights: null, layers, byName: new Map(layers.map((layer) => [layer.name, layer])) };
}

/** The weight of a convolution between an input and an output channel, at row u and column v of the kernel. */
function weightAt(layer, input, output, u, v) {
  const [rows, columns] = layer.kernel;
  const pair = layer.operation === "conv2d" ? output * layer.inputs + input : input * layer.outputs + output;
  return layer.weights[(pair * rows + u) * columns + v];
}

/** All maps of an image, bytes of ink row by row, 0 for black. */
export function forward(network, bytes, height, width) {
  const values = Float32Array.from(bytes, (byte) => (byte - 127) / 127);
  const maps = { [IMAGE]: { channels: 1, height, width, values } };
  for (const layer of network.layers) {
    if (layer.operation) maps[layer.name] = compute[layer.operation](layer, maps);
  }
  return maps;
}

const compute = {
  conv2d(layer, maps) {
    const x = maps[layer.reads.x];
    const { stride, padding } = layer;
    const [rows, columns] = layer.kernel;
    const height = Math.floor((x.height + 2 * padding - rows) / stride) + 1;
    const width = Math.floor((x.width + 2 * padding - columns) / stride) + 1;
    const padded = withZeros(x, padding, padding, stride);
    const taps = [];
    for (let u = 0; u < rows; u++) for (let v = 0; v < columns; v++) taps.push([u, v, u, v]);
    const y = emptyMap(layer.outputs, height, width);
    const phase = { row: 0, column: 0, step: 1, height, width };
    gather(layer, padded, taps, stride, phase, y, maps[layer.reads.add]);
    return y;
  },

  // Output i reads the inputs h with u = i + padding - h * stride on the kernel. So outputs whose i differs by a
  // multiple of the stride read by the same u: each such phase is a convolution of its own, without a remainder.
  conv_transpose2d(layer, maps) {
    const x = maps[layer.reads.x];
    const { stride, padding } = layer;
    const [rows, columns] = layer.kernel;
    const height = (x.height - 1) * stride + rows - 2 * padding;
    const width = (x.width - 1) * stride + columns - 2 * padding;
    const top = Math.ceil(rows / stride) - 1;
    const left = Math.ceil(columns / stride) - 1;
    const padded = withZeros(x, top, left, 1);
    const y = emptyMap(layer.outputs, height, width);
    for (let row = 0; row < stride; row++) {
      for (let column = 0; column < stride; column++) {
        const taps = [];
        for (let u = (row + padding) % stride; u < rows; u += stride) {
          for (let v = (column + padding) % stride; v < columns; v += stride) {
            taps.push([top + (row + padding - u) / stride, left + (column + padding - v) / stride, u, v]);
          }
        }
        const phase = {
          row,
          column,
          step: stride,
          height: Math.ceil((height - row) / stride),
          width: Math.ceil((width - column) / stride),
        };
        gather(layer, padded, taps, 1, phase, y, maps[layer.reads.add]);
      }
    }
    return y;
  },

  max_pool2d(layer, maps) {
    const x = maps[layer.reads.x];
    const { size, stride } = layer;
    const [height, width] = [x.height, x.width].map((side) => Math.floor((side - size) / stride) + 1);
    const y = emptyMap(x.channels, height, width);
    let element = 0;
    for (let channel = 0; channel < x.channels; channel++) {
      for (let i = 0; i < y.height; i++) {
        for (let j = 0; j < y.width; j++) y.values[element++] = x.values[largestIn(layer, x, channel, i, j)];
      }
    }
    return y;
  },

  relu(layer, maps) {
    const x = maps[layer.reads.x];
    return { ...x, values: x.values.map((value) => (value > 0 ? value : 0)) };
  },

  add(layer, maps) {
    const a = maps[layer.reads.a];
    const b = maps[layer.reads.b];
    return { ...a, values: a.values.map((value, index) => layer.scale * (value + b.values[index])) };
  },
};

function emptyMap(channels, height, width) {
  return { channels, height, width, values: new Float32Array(channels * height * width) };
}

/** The index of the largest value in a pooling's window, the first of equals. */
function largestIn(layer, x, channel, i, j) {
  const start = (channel * x.height + i * layer.stride) * x.width + j * layer.stride;
  let best = start;
  for (let u = 0; u < layer.size; u++) {
    for (let v = 0; v < layer.size; v++) {
      const index = start + u * x.width + v;
      if (x.values[index] > x.values[best]) best = index;
    }
  }
  return best;
}

/** A map with zeros around it, in double precision, and some more at the end: `gather` reads two columns at once. */
function withZeros(x, top, left, slack) {
  const height = x.height + 2 * top;
  const width = x.width + 2 * left;
  const values = new Float64Array(x.channels * height * width + slack);
  for (let channel = 0; channel < x.channels; channel++) {
    for (let row = 0; row < x.height; row++) {
      const start = (channel * x.height + row) * x.width;
      values.set(x.values.subarray(start, start + x.width), (channel * height + row + top) * width + left);
    }
  }
  return { height, width, values };
}

/** The weights in the order in which `gather` reads them: block of outputs, input channel, tap, output. */
function packed(layer, taps, phase) {
  const key = `${phase.row},${phase.column}`;
  layer.packed ??= {};
  if (layer.packed[key]) return layer.packed[key];
  const blocks = Math.ceil(layer.outputs / BLOCK);
  const weights = new Float64Array(blocks * layer.inputs * taps.length * BLOCK);
  let index = 0;
  for (let block = 0; block < blocks; block++) {
    for (let input = 0; input < layer.inputs; input++) {
      for (const [, , u, v] of taps) {
        for (let output = block * BLOCK; output < (block + 1) * BLOCK; output++) {
          weights[index++] = output < layer.outputs ? weightAt(layer, input, output, u, v) : 0;
        }
      }
    }
  }
  layer.packed[key] = weights;
  return weights;
}

/**
 * The sums of one phase of a convolution, with bias, addend and ReLU, written to y.
 *
 * taps: [row, column, u, v] of each weight, row and column in the padded input of output (0, 0). Four output channels
 * and two columns are summed at once: eight products for six reads.
 */
function gather(layer, padded, taps, stride, phase, y, addend) {
  const { values: x, height: rows, width } = padded;
  const offsets = new Int32Array(layer.inputs * taps.length);
  for (let input = 0, index = 0; input < layer.inputs; input++) {
    for (const [row, column] of taps) offsets[index++] = (input * rows + row) * width + column;
  }
  const count = offsets.length;
  const weights = packed(layer, taps, phase);
  const plane = y.height * y.width;
  for (let block = 0; block * BLOCK < layer.outputs; block++) {
    const first = block * BLOCK * count;
    const sums = [0, 0, 0, 0, 0, 0, 0, 0];
    for (let i = 0; i < phase.height; i++) {
      for (let j = 0; j < phase.width; j += 2) {
        const base = i * stride * width + j * stride;
        let a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
        for (let tap = 0, k = first; tap < count; tap++, k += BLOCK) {
          const at = base + offsets[tap];
          const p = x[at], q = x[at + stride];
          const w0 = weights[k], w1 = weights[k + 1], w2 = weights[k + 2], w3 = weights[k + 3];
          a0 += w0 * p; a1 += w1 * p; a2 += w2 * p; a3 += w3 * p;
          b0 += w0 * q; b1 += w1 * q; b2 += w2 * q; b3 += w3 * q;
        }
        sums[0] = a0; sums[1] = a1; sums[2] = a2; sums[3] = a3;
        sums[4] = b0; sums[5] = b1; sums[6] = b2; sums[7] = b3;
        const columns = Math.min(2, phase.width - j);
        const row = phase.row + phase.step * i;
        for (let part = 0; part < BLOCK && block * BLOCK + part < layer.outputs; part++) {
          const output = block * BLOCK + part;
          for (let side = 0; side < columns; side++) {
            const index = output * plane + row * y.width + phase.column + phase.step * (j + side);
            const sum = sums[side * BLOCK + part] + layer.bias[output] + (addend ? addend.values[index] : 0);
            y.values[index] = layer.relu && sum <= 0 ? 0 : sum;
          }
        }
      }
    }
  }
}

/** The name of the last layer. */
export function logitsOf(network) {
  return network.layers[network.layers.length - 1].name;
}

/** The probability of each class at each position, and the likeliest class there, the first of equals. */
export function decide(map) {
  const { channels, height, width, values } = map;
  const plane = height * width;
  const probabilities = new Float32Array(values.length);
  const labels = new Uint8Array(plane);
  for (let position = 0; position < plane; position++) {
    const of = (k) => k * plane + position;
    let best = 0;
    for (let k = 1; k < channels; k++) if (values[of(k)] > values[of(best)]) best = k;
    let total = 0;
    for (let k = 0; k < channels; k++) total += Math.exp(values[of(k)] - values[of(best)]);
    for (let k = 0; k < channels; k++) probabilities[of(k)] = Math.exp(values[of(k)] - values[of(best)]) / total;
    labels[position] = best;
  }
  return { probabilities, labels };
}

/** What a map holds: range, share of zeros, and the channels that are 0 everywhere. */
export function measure(map) {
  const plane = map.height * map.width;
  const ranges = [];
  let zeros = 0;
  for (let channel = 0; channel < map.channels; channel++) {
    let low = Infinity, high = -Infinity;
    for (let index = channel * plane; index < (channel + 1) * plane; index++) {
      const value = map.values[index];
      if (value < low) low = value;
      if (value > high) high = value;
      if (value === 0) zeros++;
    }
    ranges.push([low, high]);
  }
  return {
    low: Math.min(...ranges.map(([low]) => low)),
    high: Math.max(...ranges.map(([, high]) => high)),
    zeros: zeros / map.values.length,
    ranges,
    dead: ranges.flatMap(([low, high], channel) => (low === 0 && high === 0 ? [channel] : [])),
  };
}

/**
 * How an element came about: {products, outside, bias, addend, sum, value}.
 *
 * products: {layer, channel, row, column, u, v, value, weight, product}, one for each input on the map. outside: how
 * many weights met the zeros around the map. A pooling's and an addition's have weight 1, or the scale; `chosen` marks
 * the one that a pooling passes on.
 */
export function explain(network, maps, name, channel, i, j) {
  const layer = network.byName.get(name);
  const value = at(maps[name], channel, i, j);
  const found = { products: [], outside: 0, bias: 0, addend: null, sum: value, value };
  if (!layer.operation) return found;
  const read = (source, input, row, column, u, v, weight) => {
    const x = at(maps[source], input, row, column);
    found.products.push({ layer: source, channel: input, row, column, u, v, value: x, weight, product: x * weight });
  };
  if (layer.operation === "relu") read(layer.reads.x, channel, i, j, 0, 0, 1);
  if (layer.operation === "add") {
    for (const each of ["a", "b"]) read(layer.reads[each], channel, i, j, 0, 0, layer.scale);
  }
  if (layer.operation === "max_pool2d") {
    const x = maps[layer.reads.x];
    const best = largestIn(layer, x, channel, i, j);
    for (let u = 0; u < layer.size; u++) {
      for (let v = 0; v < layer.size; v++) {
        const row = i * layer.stride + u, column = j * layer.stride + v;
        read(layer.reads.x, channel, row, column, u, v, 1);
        found.products[found.products.length - 1].chosen = (channel * x.height + row) * x.width + column === best;
      }
    }
    return found;
  }
  if (layer.weight) {
    const x = maps[layer.reads.x];
    for (const [row, u] of readsAlong(layer, 0, i)) {
      for (const [column, v] of readsAlong(layer, 1, j)) {
        const isOnMap = row >= 0 && row < x.height && column >= 0 && column < x.width;
        if (!isOnMap) found.outside += layer.inputs;
        for (let input = 0; isOnMap && input < layer.inputs; input++) {
          read(layer.reads.x, input, row, column, u, v, weightAt(layer, input, channel, u, v));
        }
      }
    }
    found.bias = layer.bias[channel];
    if (layer.reads.add) found.addend = { layer: layer.reads.add, value: at(maps[layer.reads.add], channel, i, j) };
  }
  found.sum = found.products.reduce((sum, { product }) => sum + product, found.bias + (found.addend?.value ?? 0));
  return found;
}

/** An element of a map. */
export function at(map, channel, row, column) {
  return map.values[(channel * map.height + row) * map.width + column];
}

/** Along an axis, what output i of a convolution reads, also beyond the map: [position, row or column of the kernel]. */
function readsAlong(layer, axis, i) {
  const { stride, padding } = layer;
  const found = [];
  for (let k = 0; k < layer.kernel[axis]; k++) {
    if (layer.operation === "conv2d") found.push([i * stride - padding + k, k]);
    else if ((i + padding - k) % stride === 0) found.push([(i + padding - k) / stride, k]);
  }
  return found;
}

/** For each layer that an element depends on, the smallest box that holds all of it: [top, left, bottom, right]. */
export function boxesOf(network, maps, name, i, j) {
  const boxes = { [name]: [i, j, i, j] };
  for (const layer of [...network.layers].reverse()) {
    if (!boxes[layer.name] || !layer.operation) continue;
    const [top, left, bottom, right] = boxes[layer.name];
    for (const [argument, source] of Object.entries(layer.reads)) {
      const { height, width } = maps[source];
      const isPoint = argument !== "x" || layer.operation === "relu";
      const [firstRow, lastRow] = isPoint ? [top, bottom] : span(layer, 0, top, bottom);
      const [firstColumn, lastColumn] = isPoint ? [left, right] : span(layer, 1, left, right);
      const box = [
        Math.max(firstRow, 0),
        Math.max(firstColumn, 0),
        Math.min(lastRow, height - 1),
        Math.min(lastColumn, width - 1),
      ];
      if (box[0] > box[2] || box[1] > box[3]) continue;
      const before = boxes[source] ?? box;
      boxes[source] = box.map((side, index) => (index < 2 ? Math.min : Math.max)(side, before[index]));
    }
  }
  return boxes;
}

/** The first and the last input, along an axis, that the outputs from `first` to `last` read. */
function span(layer, axis, first, last) {
  if (layer.operation === "max_pool2d") return [first * layer.stride, last * layer.stride + layer.size - 1];
  const { stride, padding } = layer;
  const kernel = layer.kernel[axis];
  if (layer.operation === "conv2d") return [first * stride - padding, last * stride - padding + kernel - 1];
  return [Math.ceil((first + padding - kernel + 1) / stride), Math.floor((last + padding) / stride)];
}

/** The gradient of an element by the image, by the chain rule: Float64Array, row by row. */
export function gradientByImage(network, maps, name, channel, i, j) {
  const gradients = { [name]: new Float64Array(maps[name].values.length) };
  gradients[name][(channel * maps[name].height + i) * maps[name].width + j] = 1;
  for (const layer of [...network.layers].reverse()) {
    if (!layer.operation || !gradients[layer.name]) continue;
    for (const source of Object.values(layer.reads)) gradients[source] ??= new Float64Array(maps[source].values.length);
    goBack(layer, maps, gradients);
  }
  return gradients[IMAGE] ?? new Float64Array(maps[IMAGE].values.length);
}

/** Adds to the gradients of what a layer reads, given that of its output. */
function goBack(layer, maps, gradients) {
  const y = maps[layer.name];
  const passes = layer.relu || layer.operation === "relu";
  const columnReads = layer.weight && Array.from({ length: y.width }, (_, j) => readsAlong(layer, 1, j));
  let element = 0;
  for (let channel = 0; channel < y.channels; channel++) {
    for (let i = 0; i < y.height; i++) {
      for (let j = 0; j < y.width; j++, element++) {
        const d = gradients[layer.name][element];
        if (d === 0 || (passes && !(y.values[element] > 0))) continue;
        if (layer.operation === "add") {
          for (const each of ["a", "b"]) gradients[layer.reads[each]][element] += layer.scale * d;
        } else if (layer.operation === "relu") {
          gradients[layer.reads.x][element] += d;
        } else if (layer.operation === "max_pool2d") {
          gradients[layer.reads.x][largestIn(layer, maps[layer.reads.x], channel, i, j)] += d;
        } else {
          if (layer.reads.add) gradients[layer.reads.add][element] += d;
          const reads = [readsAlong(layer, 0, i), columnReads[j]];
          backThroughWeights(layer, maps[layer.reads.x], gradients[layer.reads.x], channel, reads, d);
        }
      }
    }
  }
}

function backThroughWeights(layer, x, dx, output, [rowReads, columnReads], d) {
  const [rows, columns] = layer.kernel;
  const pair = layer.operation === "conv2d" ? [layer.inputs, 1] : [1, layer.outputs]; // steps of output and of input
  const plane = x.height * x.width;
  const first = output * pair[0] * rows * columns;
  const step = pair[1] * rows * columns;
  for (const [row, u] of rowReads) {
    for (const [column, v] of row >= 0 && row < x.height ? columnReads : []) {
      if (column < 0 || column >= x.width) continue;
      let weight = first + u * columns + v;
      let index = row * x.width + column;
      for (let input = 0; input < layer.inputs; input++, weight += step, index += plane) {
        dx[index] += d * layer.weights[weight];
      }
    }
  }
}

/** What a transposed convolution makes of a map of ones: the sums of the weights that reach each output. */
export function responseToOnes(layer, side) {
  const values = new Float32Array(layer.inputs * side * side).fill(1);
  const alone = { ...layer, reads: { x: IMAGE }, relu: false, bias: new Float32Array(layer.outputs) };
  return compute.conv_transpose2d(alone, { [IMAGE]: { channels: layer.inputs, height: side, width: side, values } });
}
