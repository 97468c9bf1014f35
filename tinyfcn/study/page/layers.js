// A look inside: the maps of each layer, and how a chosen element came about.

import {
  counted,
  element,
  greyPixel,
  listed,
  number,
  paintPixels,
  pickable,
  sharpContext,
  signedPixel,
} from "./dom.js";
import { Bar, likeliest } from "./answer.js";
import { boxesOf, explain, logitsOf, measure } from "./network.js";

const LARGEST = 8; // products that are listed

/** "A transposed convolution of context, 4 × 4, stride 2, plus skip1, then ReLU." */
function howMade(layer) {
  const { operation, reads } = layer;
  if (!operation) return "The drawing itself: each byte as (byte − 127) / 127.";
  const then = layer.relu ? ", then ReLU" : "";
  if (operation === "relu") return `ReLU of ${reads.x}.`;
  if (operation === "add") return `${layer.scale} × (${reads.a} + ${reads.b}).`;
  if (operation === "max_pool2d")
    return `Max-pooling of ${reads.x}, ${layer.size} × ${layer.size}, stride ${layer.stride}.`;
  const words = [
    `${operation === "conv2d" ? "A convolution" : "A transposed convolution"} of ${reads.x}`,
    layer.kernel.join(" × "),
  ];
  if (layer.stride > 1) words.push(`stride ${layer.stride}`);
  if (layer.padding) words.push(`padding ${layer.padding}`);
  if (reads.add) words.push(`plus ${reads.add}`);
  return `${words.join(", ")}${then}.`;
}

/** The layers of one network, as tabs, with an inspector. chosen(selection) is called when an element is chosen. */
export class LayersView {
  constructor(network, chosen) {
    Object.assign(this, { network, chosen, name: logitsOf(network), selection: null, history: [] });
    this.tabs = element("div", { class: "tabs", role: "tablist", "aria-label": `Layers of ${network.name}` });
    this.buttons = network.layers.map(({ name }) =>
      element(
        "button",
        { type: "button", role: "tab", id: this.id(name), "aria-controls": this.id(), onclick: () => this.open(name) },
        element("span", { class: "tab-name" }, name),
        element("span", { class: "tab-size" }),
      ),
    );
    this.tabs.append(...this.buttons);
    this.tabs.addEventListener("keydown", (event) => this.moveTab(event));
    this.facts = element("p", { class: "facts" });
    this.grid = element("div", { class: "maps" });
    this.title = element("h3", {});
    this.map = element("canvas", { class: "pixels", "aria-hidden": "true" });
    this.over = element("canvas", { class: "over", "aria-hidden": "true" });
    this.screen = element("div", { class: "screen map", tabindex: "0", role: "application" }, this.map, this.over);
    this.scale = element("div", { class: "scale" });
    pickable(
      this.screen,
      () => this.size(),
      () => [this.place.row, this.place.column],
      (row, column) => this.choose(this.name, this.channel, row, column),
    );
    this.inspector = element("div", { class: "inspector" });
    this.panel = element(
      "div",
      { role: "tabpanel", id: this.id(), class: "panel" },
      this.facts,
      element(
        "div",
        { class: "inside" },
        element("div", {}, this.title, this.screen, this.scale, this.grid),
        this.inspector,
      ),
    );
    this.root = element("div", { class: "layers" }, this.tabs, this.panel);
    this.channels = {}; // which channel is shown large, by layer
  }

  id(name = "panel") {
    return `layer-${this.network.name}-${name}`.replace(/[^\w-]/g, "-");
  }

  get channel() {
    return this.channels[this.name] ?? 0;
  }

  /** Where keys begin: the chosen element if it is of this map, else the middle of what it depends on here. */
  get place() {
    if (this.selection?.name === this.name) return this.selection;
    const [top, left, bottom, right] = this.boxes?.[this.name] ?? [0, 0, ...this.size()];
    return { row: (top + bottom) >> 1, column: (left + right) >> 1 };
  }

  size() {
    const map = this.maps?.[this.name];
    return map ? [map.height, map.width] : [1, 1];
  }

  moveTab(event) {
    const index = this.network.layers.findIndex(({ name }) => name === this.name);
    const last = this.network.layers.length - 1;
    const target = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: last }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    const next = Math.min(Math.max(target, 0), last);
    this.open(this.network.layers[next].name);
    this.buttons[next].focus();
  }

  open(name) {
    this.name = name;
    this.paint();
  }

  /** Chooses an element: opens its layer, and shows how its value came about. */
  choose(name, channel, row, column, isBack = false) {
    if (this.selection && !isBack) this.history = [...this.history.slice(-30), this.selection];
    this.selection = { name, channel, row, column };
    this.name = name;
    this.channels[name] = channel;
    this.boxes = boxesOf(this.network, this.maps, name, row, column);
    this.chosen(this.selection);
    this.paint();
  }

  /** The element chosen before, if there was one. */
  back() {
    const before = this.history.pop();
    if (before) this.choose(before.name, before.channel, before.row, before.column, true);
  }

  /** New maps, of another drawing. */
  show(answer) {
    this.answer = answer;
    this.maps = answer.maps;
    if (this.selection) {
      const { name, channel, row, column } = this.selection;
      const { height, width } = this.maps[name];
      if (row < height && column < width) this.boxes = boxesOf(this.network, this.maps, name, row, column);
      else this.selection = this.boxes = null;
      if (this.selection && name === logitsOf(this.network) && this.follows) {
        this.selection.channel = this.channels[name] = answer.labels[row * width + column] ?? channel;
      }
    }
    this.paint();
  }

  paint() {
    if (!this.maps) return;
    this.buttons.forEach((button, index) => {
      const isOpen = this.network.layers[index].name === this.name;
      button.setAttribute("aria-selected", isOpen);
      button.tabIndex = isOpen ? 0 : -1;
      const { channels, height, width } = this.maps[this.network.layers[index].name];
      button.lastChild.textContent = `${channels}×${height}×${width}`;
    });
    const tab = document.getElementById(this.id(this.name));
    if (tab) this.tabs.scrollLeft = tab.offsetLeft + tab.offsetWidth / 2 - this.tabs.clientWidth / 2;
    this.panel.setAttribute("aria-labelledby", this.id(this.name));
    this.layer = this.network.byName.get(this.name);
    this.measures = measure(this.maps[this.name]);
    this.paintFacts();
    this.paintGrid();
    this.paintMap();
    this.paintInspector();
  }

  channelName(name, channel) {
    return name === logitsOf(this.network) ? this.network.classes[channel] : `${channel}`;
  }

  paintFacts() {
    const { layer, measures } = this;
    const { channels, height, width } = this.maps[this.name];
    const words = [
      howMade(layer),
      `${counted(channels, "channel")} of ${height} × ${width}, values ${number(measures.low)} to ${number(measures.high)}, ${Math.round(100 * measures.zeros)} % zeros.`,
    ];
    if (measures.dead.length && layer.operation) {
      const isOne = measures.dead.length === 1;
      words.push(
        `Channel${isOne ? "" : "s"} ${listed(measures.dead.map(String))} ${isOne ? "is" : "are"} 0 everywhere in this drawing.`,
      );
    }
    this.facts.textContent = words.join(" ");
  }

  /** The colour of a value of this layer; the image is grey. */
  colour(values) {
    const { low, high } = this.measures;
    if (!this.layer.operation) return (index) => greyPixel(values[index], low, high);
    const most = Math.max(Math.abs(low), Math.abs(high));
    return (index) => signedPixel(values[index], most);
  }

  paintGrid() {
    const { channels, height, width, values } = this.maps[this.name];
    if (this.grid.dataset.layer !== this.name) {
      this.grid.dataset.layer = this.name;
      this.grid.style.setProperty("--columns", Math.min(channels, 8));
      this.grid.replaceChildren(
        ...Array.from({ length: channels }, (_, channel) =>
          element(
            "button",
            { type: "button", class: "thumb", onclick: () => this.pickChannel(channel) },
            element("canvas", { class: "pixels", "aria-hidden": "true" }),
            element("span", {}, this.channelName(this.name, channel)),
          ),
        ),
      );
    }
    const plane = height * width;
    [...this.grid.children].forEach((button, channel) => {
      const part = values.subarray(channel * plane, (channel + 1) * plane);
      paintPixels(button.firstChild, height, width, this.colour(part));
      const isDead = this.layer.operation && this.measures.dead.includes(channel);
      const [low, high] = this.measures.ranges[channel];
      button.setAttribute("aria-pressed", channel === this.channel);
      button.classList.toggle("dead", Boolean(isDead));
      const range = isDead ? "0 everywhere" : `${number(low)} to ${number(high)}`;
      button.setAttribute("aria-label", `Channel ${this.channelName(this.name, channel)}, ${range}`);
      button.title = range;
    });
  }

  pickChannel(channel) {
    this.channels[this.name] = channel;
    if (this.selection?.name === this.name) this.choose(this.name, channel, this.selection.row, this.selection.column);
    else this.paint();
  }

  paintMap() {
    const { height, width, values } = this.maps[this.name];
    const plane = height * width;
    const part = values.subarray(this.channel * plane, (this.channel + 1) * plane);
    const said = this.channelName(this.name, this.channel);
    this.title.textContent = this.layer.operation
      ? `${this.name}, ${this.name === logitsOf(this.network) ? "class" : "channel"} ${said}`
      : "The drawing";
    this.screen.setAttribute("aria-label", `Map of ${this.title.textContent}. Arrow keys pick an element.`);
    this.screen.style.maxWidth = height === 1 ? "140px" : "";
    this.screen.style.aspectRatio = `${width} / ${height}`;
    paintPixels(this.map, height, width, this.colour(part));
    const context = sharpContext(this.over, height, width);
    const box = this.boxes?.[this.name];
    if (box) {
      const [top, left, bottom, right] = box;
      const isElement = this.selection.name === this.name;
      context.strokeStyle = isElement ? "#ffffff" : "#ffd54a";
      context.lineWidth = Math.max(width, height) / 180;
      context.strokeRect(left, top, right - left + 1, bottom - top + 1);
    }
    const { low, high } = this.measures;
    const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
    const bar = element("canvas", { class: "pixels", "aria-hidden": "true" });
    const [first, last] = this.layer.operation ? [-most, most] : [low, high];
    paintPixels(bar, 1, 128, (index) => {
      const value = first + ((last - first) * index) / 127;
      return this.layer.operation ? signedPixel(value, most) : greyPixel(value, low, high);
    });
    this.scale.replaceChildren(element("span", {}, number(first)), bar, element("span", {}, number(last)));
  }

  paintInspector() {
    const { selection } = this;
    if (!selection) {
      this.inspector.replaceChildren(
        element(
          "p",
          { class: "hint" },
          "Touch a pixel, of a map here or of the answer above, and see how its number came about.",
        ),
      );
      return;
    }
    const { name, channel, row, column } = selection;
    const layer = this.network.byName.get(name);
    const found = explain(this.network, this.maps, name, channel, row, column);
    const parts = [
      element(
        "div",
        { class: "inspector-head" },
        element("h3", {}, `${name}[${this.channelName(name, channel)}] at ${row}, ${column}`),
        this.history.length
          ? element("button", { type: "button", class: "small", onclick: () => this.back() }, "Back")
          : null,
      ),
      element("p", { class: "equation" }, ...this.equation(layer, found)),
    ];
    if (name === logitsOf(this.network)) parts.push(this.classBars(row * this.maps[name].width + column));
    const box = this.boxes[this.network.layers[0].name];
    if (box && layer.operation) {
      const [top, left, bottom, right] = box;
      parts.push(
        element(
          "p",
          { class: "quiet" },
          `It depends on ${bottom - top + 1} × ${right - left + 1} pixels of the drawing: rows ${top} to ${bottom}, columns ${left} to ${right}.`,
        ),
      );
    }
    if (found.products.length) parts.push(...this.windows(layer, found), this.productTable(layer, found));
    this.inspector.replaceChildren(...parts);
  }

  /** What the inspector says, for a screen reader. */
  get words() {
    return [...this.inspector.querySelectorAll("h3, .equation")].map(({ textContent }) => textContent).join(": ");
  }

  /** "0.41 = ReLU(0.73 products − 0.32 bias)". */
  equation(layer, found) {
    const bold = element("strong", {}, number(found.value));
    if (!layer.operation) {
      const byte = Math.round(found.value * 127 + 127);
      return [bold, ` = (${byte} − 127) / 127, from the byte ${byte}`];
    }
    if (layer.operation === "max_pool2d") return [bold, ` is the largest of ${found.products.length} inputs.`];
    if (layer.operation === "add")
      return [bold, ` = ${layer.scale} × (${found.products.map(({ value }) => number(value)).join(" + ")})`];
    const sum = found.products.reduce((total, { product }) => total + product, 0);
    const terms = [`${number(sum)} of ${counted(found.products.length, "product")}`, `${number(found.bias)} bias`];
    if (found.addend) terms.push(`${number(found.addend.value)} of ${found.addend.layer}`);
    if (layer.operation === "relu") return [bold, ` = ReLU(${number(found.sum)})`];
    const text = terms.join(" + ").replace(/\+ \u2212/g, "\u2212 ");
    return [bold, layer.relu ? ` = ReLU(${text})` : ` = ${text}`];
  }

  classBars(position) {
    const bars = likeliest(this.network, this.answer, position).map(
      ({ k, probability }) => new Bar(this.network, k).set(probability, probability.toFixed(3)).root,
    );
    return element("ol", { class: "bars wide", "aria-label": "Probabilities at this position" }, ...bars);
  }

  /** Input, weights and products of the input channel that adds most, as small maps. */
  windows(layer, found) {
    if (!layer.weight || new Set(found.products.map(({ row, column }) => `${row},${column}`)).size < 2) return [];
    const sums = new Map();
    for (const { channel, product } of found.products) sums.set(channel, (sums.get(channel) ?? 0) + product);
    const [channel] = [...sums].reduce((best, each) => (Math.abs(each[1]) > Math.abs(best[1]) ? each : best));
    const own = found.products.filter((each) => each.channel === channel);
    const rows = [...new Set(own.map(({ row }) => row))].sort((a, b) => a - b);
    const columns = [...new Set(own.map(({ column }) => column))].sort((a, b) => a - b);
    const patch = (key, title) => {
      const most = Math.max(...own.map((each) => Math.abs(each[key])));
      const canvas = element("canvas", {
        class: "pixels",
        role: "img",
        "aria-label": `${title}, ${rows.length} by ${columns.length}`,
      });
      const byPlace = new Map(
        own.map((each) => [rows.indexOf(each.row) * columns.length + columns.indexOf(each.column), each[key]]),
      );
      paintPixels(canvas, rows.length, columns.length, (index) => signedPixel(byPlace.get(index) ?? 0, most));
      canvas.style.aspectRatio = `${columns.length} / ${rows.length}`;
      return element("figure", {}, canvas, element("figcaption", {}, title));
    };
    const source = layer.reads.x;
    const isTransposed = layer.operation === "conv_transpose2d";
    const positions = own.length;
    const [height, width] = layer.kernel;
    const outside = found.outside ? ` ${counted(found.outside, "weight")} met the zeros around the map.` : "";
    const words = isTransposed
      ? `${counted(positions, "input")} of each channel of ${source} reached it, each through one of the ${height * width} weights. Channel ${channel} counts most:`
      : `Its window is ${height} × ${width} of each channel of ${source}.${outside} Channel ${channel} counts most:`;
    return [
      element("p", { class: "quiet" }, words),
      element(
        "div",
        { class: "patches" },
        patch("value", "input"),
        element("span", { "aria-hidden": "true" }, "×"),
        patch("weight", "weights"),
        element("span", { "aria-hidden": "true" }, "="),
        patch("product", "products"),
      ),
    ];
  }

  productTable(layer, found) {
    const largest = [...found.products].sort((a, b) => Math.abs(b.product) - Math.abs(a.product)).slice(0, LARGEST);
    const isWeighted = Boolean(layer.weight);
    const isTransposed = layer.operation === "conv_transpose2d";
    const rest = found.products.filter((each) => !largest.includes(each));
    const go = (each) =>
      element(
        "button",
        { type: "button", class: "link", onclick: () => this.choose(each.layer, each.channel, each.row, each.column) },
        `${each.layer}[${each.channel}] ${each.row}, ${each.column}`,
      );
    const head = ["input", "value", ...(isWeighted ? [isTransposed ? "× weight (at)" : "× weight", "= product"] : [])];
    const rows = largest.map((each) => {
      const weight = element(
        "span",
        {},
        number(each.weight),
        isTransposed ? element("span", { class: "at" }, ` (${each.u}, ${each.v})`) : "",
      );
      const cells = [
        go(each),
        number(each.value) + (each.chosen ? "  ← chosen" : ""),
        ...(isWeighted ? [weight, number(each.product)] : []),
      ];
      return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
    });
    if (rest.length && isWeighted) {
      const sum = rest.reduce((total, { product }) => total + product, 0);
      rows.push(
        element(
          "tr",
          { class: "quiet" },
          element("td", { colspan: "3" }, `and ${counted(rest.length, "smaller product")}`),
          element("td", {}, number(sum)),
        ),
      );
    }
    return element(
      "table",
      {},
      element("caption", {}, isWeighted ? "The largest products" : "What it reads"),
      element("thead", {}, element("tr", {}, ...head.map((title) => element("th", { scope: "col" }, title)))),
      element("tbody", {}, ...rows),
    );
  }
}
