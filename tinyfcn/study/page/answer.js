// The answer: which digits the labels name and where, in words, in colours and as glyphs.

import { counted, element, listed, paintPixels, pickable, pixel, rgb, sharpContext } from "./dom.js";
import { logitsOf } from "./network.js";

const PAPER = "#14161c"; // the colour of background, as in masks of `tinyfcn predict`
const LEAST_PIXELS = 15; // of a digit; a smaller patch is noise
const LEAST_SHARE = 0.3; // of a patch of ink, for a second digit in it
const TALL = 34; // pixels; the networks learned digits 20 pixels high
const WINDOW = 28; // pixels; the classifier's
const MIDDLE = (WINDOW - 4) / 2; // where the 4x4 pixels in the middle of a window begin

/**
 * The digits among labels: patches of connected ink, each named by its majority.
 *
 * isInk(position) tells which positions count. Each digit has {label, count, row, column, box}; in reading order.
 */
export function findDigits(labels, height, width, isInk) {
  const patches = new Int32Array(height * width);
  const found = [];
  for (let start = 0, patch = 0; start < patches.length; start++) {
    if (patches[start] || !isInk(start)) continue;
    const members = [start];
    patches[start] = ++patch;
    for (let next = 0; next < members.length; next++) {
      const row = Math.floor(members[next] / width),
        column = members[next] % width;
      for (let i = Math.max(row - 1, 0); i <= Math.min(row + 1, height - 1); i++) {
        for (let j = Math.max(column - 1, 0); j <= Math.min(column + 1, width - 1); j++) {
          const neighbour = i * width + j;
          if (patches[neighbour] || !isInk(neighbour)) continue;
          patches[neighbour] = patch;
          members.push(neighbour);
        }
      }
    }
    const byLabel = new Map();
    for (const position of members) {
      const label = labels[position];
      if (!byLabel.has(label)) byLabel.set(label, []);
      byLabel.get(label).push(position);
    }
    for (const [label, positions] of byLabel) {
      if (positions.length < Math.max(LEAST_PIXELS, LEAST_SHARE * members.length)) continue;
      found.push(located(label, positions, width));
    }
  }
  return found.sort((a, b) => a.column - b.column || a.row - b.row);
}

function located(label, positions, width) {
  const rows = positions.map((position) => Math.floor(position / width));
  const columns = positions.map((position) => position % width);
  const mean = (numbers) => numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
  const box = [Math.min(...rows), Math.min(...columns), Math.max(...rows), Math.max(...columns)];
  return { label, count: positions.length, row: mean(rows), column: mean(columns), box };
}

/** "at the left", "in the middle", "at the top right". */
export function placeInWords(row, column, height, width) {
  const third = (value, size, names) => names[Math.min(Math.floor((3 * value) / size), 2)];
  const vertical = third(row, height, ["top", "", "bottom"]);
  const horizontal = third(column, width, ["left", "", "right"]);
  const words = [vertical, horizontal].filter(Boolean).join(" ");
  return words ? `at the ${words}` : "in the middle";
}

/** The answer of an FCN in one or two sentences. */
export function sentence(network, labels, bytes, height, width) {
  const { background } = network;
  const isInk = inkOf(network, labels, bytes);
  const digits = findDigits(labels, height, width, isInk);
  const places = digits.map(({ label, row, column }) => {
    const where = placeInWords(row, column, height, width);
    return network.classes[label] === "ink" ? where : `${network.classes[label]} ${where}`;
  });
  const words = [];
  if (!digits.length) words.push(bytes.some(Boolean) ? "No digit yet." : "Nothing is drawn yet.");
  else if (network.classes[digits[0].label] === "ink") words.push(`Ink ${listed(places)}.`);
  else words.push(`${counted(digits.length, "digit")}: ${listed(places)}.`);
  if (background === null) {
    words.push("This design has no class for background, so the empty paper is named a digit too.");
  }
  const tallest = Math.max(0, ...digits.map(({ box }) => box[2] - box[0] + 1));
  if (tallest > TALL) words.push(`A digit is ${tallest} pixels high: the network learned digits of 20.`);
  return { words: words.join(" "), digits };
}

function inkOf(network, labels, bytes) {
  return (position) => (network.background === null ? bytes[position] > 0 : labels[position] !== network.background);
}

/** The answer of a classifier: of one window the digit, of many the surest. */
export function classifierSentence(network, answer, bytes) {
  const { labels, probabilities } = answer;
  if (!bytes.some(Boolean)) return "Nothing is drawn yet.";
  if (labels.length === 1) {
    const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
    const [first, second] = order.map((k) => `${network.classes[k]}, with probability ${share(probabilities[k])}`);
    return probabilities[order[1]] < 0.005 ? `A ${first}.` : `A ${first}; or a ${second}.`;
  }
  const { width, height } = answer.maps[logitsOf(network)];
  return `${height} × ${width} windows of ${WINDOW} × ${WINDOW} pixels are read, 4 pixels apart: the classifier slides.`;
}

function share(value) {
  return value > 0.995 && value < 1 ? "above 0.99" : value.toFixed(2);
}

/** One network's answer: a canvas in colours and glyphs, a sentence, and a count or probability of each class. */
export class AnswerView {
  constructor(network, title, pickPixel) {
    this.network = network;
    this.canvas = element("canvas", { class: "pixels", "aria-hidden": "true" });
    this.glyphs = element("canvas", { class: "over", "aria-hidden": "true" });
    this.screen = element(
      "div",
      {
        class: "screen",
        tabindex: "0",
        role: "application",
        "aria-label": `Answer of ${network.name}. Arrow keys pick a pixel.`,
      },
      this.canvas,
      this.glyphs,
    );
    this.words = element("p", { class: "words" });
    this.bars = element("ol", {
      class: "bars",
      "aria-label": network.perPixel ? "Pixels of each class" : "Probability of each digit",
    });
    this.picked = [0, 0];
    const size = () => (this.drawing ? [this.drawing.height, this.drawing.width] : [1, 1]);
    const step = network.perPixel ? 1 : 4;
    pickable(
      this.screen,
      size,
      () => this.picked,
      (row, column) => pickPixel(...this.positionAt(row, column)),
      step,
    );
    this.root = element(
      "figure",
      { class: "answer" },
      element("figcaption", { class: "label" }, title, element("span", { class: "quiet" }, about(network))),
      this.screen,
      this.words,
      this.bars,
    );
    this.rows = [...network.classes.keys()].filter((k) => k !== network.background).map((k) => new Bar(network, k));
    this.bars.append(...this.rows.map(({ root }) => root));
  }

  /** The position of the logits at a pixel: the pixel, or the classifier's window whose middle is nearest. */
  positionAt(row, column) {
    if (this.network.perPixel) return [row, column];
    const { height, width } = this.answer.maps[logitsOf(this.network)];
    const nearest = (pixel, count) => Math.min(Math.max(Math.floor((pixel - MIDDLE) / 4), 0), count - 1);
    return [nearest(row, height), nearest(column, width)];
  }

  show(drawing, answer) {
    const { network } = this;
    const { bytes, height, width } = drawing;
    this.answer = answer;
    this.drawing = drawing;
    if (network.perPixel) {
      const found = sentence(network, answer.labels, bytes, height, width);
      this.say = found.words;
      this.paintMask(found.digits);
    } else {
      this.say = classifierSentence(network, answer, bytes);
      this.paintWindows();
    }
    this.words.textContent = this.say;
    this.fillBars();
  }

  paintMask(digits) {
    const { network, answer, drawing } = this;
    const pixels = network.colours.map((colour) => pixel(...rgb(colour)));
    paintPixels(this.canvas, drawing.height, drawing.width, (index) => pixels[answer.labels[index]]);
    this.marks = digits.map(({ label, box }) => ({ label, row: box[0], column: (box[1] + box[3] + 1) / 2 }));
    this.paintGlyphs();
  }

  /** Each window's digit at its middle, 4x4 pixels, the surer the brighter; of one window, its digit alone. */
  paintWindows() {
    const { network, answer, drawing } = this;
    const map = answer.maps[logitsOf(network)];
    const colours = network.colours.map(rgb);
    const paper = rgb(PAPER);
    const isEmpty = !drawing.bytes.some(Boolean);
    const blended = (colour, share, more) =>
      pixel(...paper.map((part, each) => Math.min(255, Math.round(part + (colour[each] - part) * share + more))));
    paintPixels(this.canvas, drawing.height, drawing.width, (index) => {
      const ink = drawing.bytes[index];
      if (map.width === 1) return blended(colours[answer.labels[0]], ink / 255, 0);
      const i = Math.floor((Math.floor(index / drawing.width) - MIDDLE) / 4);
      const j = Math.floor(((index % drawing.width) - MIDDLE) / 4);
      if (i < 0 || j < 0 || i >= map.height || j >= map.width) return blended(paper, 0, 0.35 * ink);
      const label = answer.labels[i * map.width + j];
      const sure = answer.probabilities[(label * map.height + i) * map.width + j];
      return blended(colours[label], 0.8 * sure, 0.35 * ink);
    });
    this.marks = map.width === 1 && !isEmpty ? [{ label: answer.labels[0], row: 2, column: 14 }] : [];
    this.paintGlyphs();
  }

  /** The digits' names above them, each in a disc of its colour, and the picked pixel. */
  paintGlyphs() {
    const { height, width } = this.drawing;
    const context = sharpContext(this.glyphs, height, width);
    const radius = width / 22;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = `700 ${1.5 * radius}px system-ui, sans-serif`;
    for (const { label, row, column } of this.marks) {
      const y = Math.max(row - radius - 0.6, radius + 0.4);
      const x = Math.min(Math.max(column, radius + 0.4), width - radius - 0.4);
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fillStyle = "#ffffff";
      context.fill();
      context.lineWidth = 0.2 * radius;
      context.strokeStyle = this.network.colours[label];
      context.stroke();
      context.fillStyle = "#14161c";
      context.fillText(this.network.classes[label] === "ink" ? "✎" : this.network.classes[label], x, y + 0.1 * radius);
    }
    if (this.outline && this.answer.labels.length > 1) {
      const [row, column, rows, columns] = this.outline;
      context.strokeStyle = "#ffffff";
      context.lineWidth = width / 240;
      context.strokeRect(column, row, columns, rows);
    }
  }

  /** Marks the chosen position of the logits, or nothing. */
  mark(position) {
    this.outline = null;
    if (position) {
      const [row, column] = position;
      this.outline = this.network.perPixel ? [row, column, 1, 1] : [4 * row, 4 * column, WINDOW, WINDOW];
      this.picked = this.network.perPixel ? position : [4 * row + MIDDLE, 4 * column + MIDDLE];
    }
    if (this.drawing) this.paintGlyphs();
  }

  fillBars() {
    const { network, answer } = this;
    const isOne = answer.labels.length === 1;
    const counts = network.classes.map(() => 0);
    for (const label of answer.labels) counts[label]++;
    const most = Math.max(1, ...this.rows.map(({ k }) => counts[k]));
    for (const bar of this.rows) {
      if (isOne) bar.set(answer.probabilities[bar.k], answer.probabilities[bar.k].toFixed(2));
      else bar.set(counts[bar.k] / most, counts[bar.k].toLocaleString("en", { notation: "compact" }));
    }
  }
}

/** A class's name, a bar in its colour, and a number. */
export class Bar {
  constructor(network, k) {
    this.k = k;
    this.root = element("li", {}, element("span", { class: "name" }, network.classes[k]));
    this.value = element("span", { class: "value" });
    this.root.append(element("span", { class: "track" }, element("span", { class: "bar" })), this.value);
    this.root.style.setProperty("--colour", k === network.background ? "var(--quiet)" : network.colours[k]);
  }

  set(share, text) {
    this.root.style.setProperty("--share", share);
    this.value.textContent = text;
    return this;
  }
}

/** "skip, --labels binary". */
export function about(network) {
  return [network.design, ...network.options].join(", ");
}

/** What the network says of one pixel: "3 (0.98), 5 (0.01)". */
export function likeliest(network, answer, position, count = 3) {
  const plane = answer.labels.length;
  const order = [...network.classes.keys()].sort(
    (a, b) => answer.probabilities[b * plane + position] - answer.probabilities[a * plane + position],
  );
  return order
    .slice(0, count)
    .map((k) => ({ k, name: network.classes[k], probability: answer.probabilities[k * plane + position] }));
}
