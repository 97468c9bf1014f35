// A toy: how often a transposed convolution reaches each output, and where a checkerboard comes from.

import { element, paintPixels, signedPixel } from "./dom.js";
import { responseToOnes } from "./network.js";

const SIDE = 8; // inputs along an axis
const TILE = 8; // inputs along an axis of the responses to ones
const KERNELS = [2, 7];
const STRIDES = [1, 4];

/** Along an axis, how many of `size` inputs reach each output. */
export function countsAlong(size, kernel, stride) {
  const counts = new Array((size - 1) * stride + kernel).fill(0);
  for (let input = 0; input < size; input++) for (let k = 0; k < kernel; k++) counts[input * stride + k]++;
  return counts;
}

/** The numbers of inputs that reach an output along an axis, away from the edges: one number, or two neighbours. */
export function reachedInTheMiddle(kernel, stride) {
  const counts = [];
  for (let phase = 0; phase < stride; phase++) counts.push(Math.max(0, Math.ceil((kernel - phase) / stride)));
  return [...new Set(counts)].sort((a, b) => a - b);
}

/** What a kernel and a stride do, in words. */
export function overlapSentence(kernel, stride) {
  const reached = reachedInTheMiddle(kernel, stride);
  if (reached.length === 1) {
    const [n] = reached;
    return `Even: ${kernel} is a multiple of ${stride}, so away from the edges ${n} × ${n} = ${n * n} inputs reach every output.`;
  }
  const products = [...new Set(reached.flatMap((a) => reached.map((b) => a * b)))].sort((a, b) => a - b);
  const gaps = reached[0] === 0 ? " Some outputs are reached by none: only the bias is left there." : "";
  return `A checkerboard: ${kernel} is not a multiple of ${stride}, so some outputs are reached by ${products.slice(0, -1).join(", ")} and some by ${products[products.length - 1]} inputs.${gaps}`;
}

export class OverlapView {
  constructor(networks) {
    this.kernel = 5;
    this.stride = 2;
    this.words = element("p", { class: "words", "aria-live": "polite" });
    this.strip = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.strip.setAttribute("aria-hidden", "true");
    this.map = element("canvas", { class: "pixels", role: "img" });
    const slider = (name, label, [low, high]) => {
      const output = element("output", {}, `${this[name]}`);
      const input = element("input", { type: "range", min: low, max: high, value: this[name], id: `overlap-${name}` });
      input.addEventListener("input", () => {
        this[name] = Number(input.value);
        this.paint();
      });
      this[`${name}Input`] = input;
      this[`${name}Output`] = output;
      return element("div", { class: "slider" }, element("label", { for: input.id }, label), input, output);
    };
    this.presets = element("div", { class: "row", role: "group", "aria-label": "Layers of the network" });
    this.learned = element("div", { class: "learned" });
    this.root = element(
      "div",
      { class: "overlap" },
      element(
        "div",
        { class: "controls" },
        slider("kernel", "Kernel", KERNELS),
        slider("stride", "Stride", STRIDES),
        this.presets,
      ),
      this.words,
      element(
        "div",
        { class: "overlap-pictures" },
        element(
          "figure",
          {},
          this.strip,
          element(
            "figcaption",
            {},
            `Along an axis: ${SIDE} inputs, the outputs that each one reaches, and how often each output is reached.`,
          ),
        ),
        element(
          "figure",
          {},
          this.map,
          element("figcaption", {}, "In two dimensions: the brighter, the more inputs reach an output."),
        ),
      ),
      this.learned,
    );
    for (const network of networks) this.addLearned(network, networks.length > 1);
    this.paint();
  }

  addLearned(network, isNamed) {
    const layers = network.layers.filter(({ operation }) => operation === "conv_transpose2d");
    for (const layer of layers) {
      const [kernel] = layer.kernel;
      const { stride } = layer;
      const who = `${isNamed ? `${network.name}: ` : ""}${layer.name}`;
      if (kernel <= KERNELS[1] && stride <= STRIDES[1]) {
        this.presets.append(
          element(
            "button",
            { type: "button", class: "small", onclick: () => this.set(kernel, stride) },
            `as ${who}, ${kernel} / ${stride}`,
          ),
        );
      }
      const y = responseToOnes(layer, TILE);
      const plane = y.height * y.width;
      const tiles = Array.from({ length: y.channels }, (_, channel) => {
        const canvas = element("canvas", { class: "pixels", "aria-hidden": "true" });
        const values = y.values.subarray(channel * plane, (channel + 1) * plane);
        const most = values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
        paintPixels(canvas, y.height, y.width, (index) => signedPixel(values[index], most));
        return canvas;
      });
      const [n, ...more] = reachedInTheMiddle(kernel, stride);
      const even = more.length ? "Its kernel does not divide evenly" : `${n} × ${n} inputs reach every output`;
      this.learned.append(
        element(
          "figure",
          {},
          element(
            "div",
            { class: "tiles", role: "img", "aria-label": `The channels of ${who} for a map of ones` },
            ...tiles,
          ),
          element(
            "figcaption",
            {},
            element("strong", {}, who),
            `, kernel ${kernel}, stride ${stride}. ${even}; but by which weights depends on the output's place, so a map of ones, sent through the learned weights, comes out as these ${y.channels} patterns, one for each channel.`,
          ),
        ),
      );
    }
  }

  set(kernel, stride) {
    Object.assign(this, { kernel, stride });
    this.kernelInput.value = kernel;
    this.strideInput.value = stride;
    this.paint();
  }

  paint() {
    const { kernel, stride } = this;
    this.kernelOutput.textContent = kernel;
    this.strideOutput.textContent = stride;
    this.words.textContent = overlapSentence(kernel, stride);
    const counts = countsAlong(SIDE, kernel, stride);
    this.paintStrip(counts);
    const most = Math.max(...counts) ** 2;
    paintPixels(this.map, counts.length, counts.length, (index) => {
      const count = counts[Math.floor(index / counts.length)] * counts[index % counts.length];
      return signedPixel(0.92 * count, most);
    });
    this.map.setAttribute(
      "aria-label",
      `How often each of ${counts.length} by ${counts.length} outputs is reached: ${counts.join(", ")} times along an axis`,
    );
  }

  paintStrip(counts) {
    const { kernel, stride } = this;
    const unit = 10,
      gap = 1.5;
    const lanes = Math.ceil(kernel / stride);
    const width = counts.length * unit;
    const most = Math.max(...counts);
    const top = 26,
      bars = top + lanes * 8 + 12,
      height = bars + most * 14 + 14;
    this.strip.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const shapes = [];
    const shape = (name, attributes, text) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      if (text !== undefined) made.textContent = text;
      shapes.push(made);
    };
    for (let input = 0; input < SIDE; input++) {
      const left = input * stride * unit,
        middle = left + (kernel * unit) / 2;
      const lane = top + (input % lanes) * 8;
      shape("line", { x1: middle, y1: 12, x2: middle, y2: lane, class: "thread" });
      shape("rect", { x: middle - 5, y: 2, width: 10, height: 10, rx: 2.5, class: "input" });
      shape("rect", {
        x: left + gap / 2,
        y: lane,
        width: kernel * unit - gap,
        height: 5.5,
        rx: 2.5,
        class: `stamp stamp-${input % 3}`,
      });
    }
    counts.forEach((count, output) => {
      shape("rect", {
        x: output * unit + gap / 2,
        y: height - 12 - count * 14,
        width: unit - gap,
        height: Math.max(count * 14, 0.6),
        rx: 1.5,
        class: count === most ? "count most" : "count",
      });
      shape("text", { x: output * unit + unit / 2, y: height - 3, "text-anchor": "middle" }, count);
    });
    this.strip.replaceChildren(...shapes);
  }
}
