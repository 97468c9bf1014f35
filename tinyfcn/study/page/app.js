// The page: it brings the drawing, the answers, the layers and the toy together.

import { AnswerView, about } from "./answer.js";
import { counted, element, listed } from "./dom.js";
import { Easel, readImage, unpack } from "./drawing.js";
import { LayersView } from "./layers.js";
import { gradientByImage, logitsOf, readNetwork } from "./network.js";
import { OverlapView } from "./overlap.js";
import { Thinker } from "./worker.js";

const QUIET = 400; // milliseconds without a change, after which the answer is read out

class App {
  constructor(data) {
    this.networks = data.networks.map(readNetwork);
    this.examples = data.examples.map(unpack);
    this.sizes = data.sizes;
    this.current = 0; // the network whose layers are shown
    const [height, width] = this.sizes[0];
    this.easel = new Easel(
      height,
      width,
      () => this.changed(),
      (text) => this.say(text),
    );
    this.answers = this.networks.map((network, index) => {
      const title = this.networks.length > 1 ? network.name : "The network sees";
      return new AnswerView(network, title, (row, column) => this.pick(index, row, column));
    });
    this.layers = this.networks.map((network, index) => new LayersView(network, () => this.chosen(index)));
    this.place();
    const sources = ["network.js", "worker.js"].map((id) => document.getElementById(id).textContent);
    this.thinker = new Thinker(data.networks, this.networks, sources, (found) => this.answered(found));
    this.start();
  }

  place() {
    const put = (id, ...parts) => document.getElementById(id).append(...parts);
    document.body.classList.toggle("compares", this.networks.length > 1);
    put("easel", this.easel.screen);
    put("answers", ...this.answers.map(({ root }) => root));
    const views = document.getElementById("layers-view");
    if (this.networks.length > 1) {
      this.runs = this.networks.map((network, index) =>
        element("button", { type: "button", onclick: () => this.showRun(index) }, network.name),
      );
      put("runs", element("div", { class: "segments", role: "group", "aria-label": "Run" }, ...this.runs));
    }
    views.append(...this.layers.map(({ root }) => root));
    this.showRun(0);
    const hasToy = this.networks.some(({ layers }) => layers.some(({ operation }) => operation === "conv_transpose2d"));
    document.getElementById("overlap").hidden = !hasToy;
    if (hasToy) put("overlap-view", new OverlapView(this.networks).root);
    document.getElementById("about").textContent = listed(
      this.networks.map((network) => {
        const weights = network.layers.reduce(
          (sum, layer) => sum + (layer.weights?.length ?? 0) + (layer.bias?.length ?? 0),
          0,
        );
        return `${network.name} (${about(network)}; ${weights.toLocaleString("en")} parameters)`;
      }),
    );
    this.controls();
  }

  controls() {
    const on = (id, act) => document.getElementById(id).addEventListener("click", act);
    for (const input of document.querySelectorAll("input[name=pen]")) {
      input.addEventListener("change", () => (this.easel.pen = input.value));
    }
    on("undo", () => this.easel.undo());
    on("clear", () => this.easel.clear());
    on("example", () => this.example());
    const file = document.getElementById("file");
    on("open", () => file.click());
    file.addEventListener("change", () => {
      this.load(file.files[0]);
      file.value = "";
    });
    const heat = document.getElementById("heat");
    heat.addEventListener("change", () => this.paintChosen());
    on("forget", () => this.forget());
    document.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key === "z" && event.target.tagName !== "INPUT") {
        event.preventDefault();
        this.easel.undo();
      }
    });
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      this.load(event.dataTransfer.files[0]);
    });
    document.addEventListener("paste", (event) => this.load(event.clipboardData?.files[0]));
    if (this.sizes.length > 1) {
      const words = ["One digit", "Slide it over a page"];
      const buttons = this.sizes.map((size, index) =>
        element(
          "button",
          {
            type: "button",
            "aria-pressed": index === 0,
            onclick: () => {
              buttons.forEach((button, each) => button.setAttribute("aria-pressed", each === index));
              this.resize(...size);
            },
          },
          words[index],
        ),
      );
      document
        .getElementById("sizes")
        .append(element("div", { class: "segments", role: "group", "aria-label": "Size of the drawing" }, ...buttons));
    }
    let width = 0;
    new ResizeObserver(() => {
      if (width === document.body.clientWidth) return;
      width = document.body.clientWidth;
      this.easel.paint();
      if (this.found) this.paintAnswers();
    }).observe(document.body);
  }

  /** The page begins with an example, so that there is something to see. */
  start() {
    this.exampleNumber = 0;
    this.easel.ink.bytes = this.exampleBytes(0);
    this.easel.refresh();
  }

  example() {
    this.exampleNumber = (this.exampleNumber + 1) % this.examples.length;
    this.easel.load(this.exampleBytes(this.exampleNumber));
  }

  /** An example at the size of the drawing; single digits are set side by side on a larger one. */
  exampleBytes(number) {
    const { height, width } = this.easel.ink;
    const bytes = this.examples[number];
    if (bytes.length === height * width) return bytes;
    const side = Math.sqrt(bytes.length);
    const placed = new Uint8Array(height * width);
    [0, 3].forEach((step, index) => {
      const digit = this.examples[(number + step) % this.examples.length];
      for (let row = 0; row < side; row++) {
        placed.set(digit.subarray(row * side, (row + 1) * side), (row + 6 + 24 * index) * width + 8 + 40 * index);
      }
    });
    return placed;
  }

  resize(height, width) {
    this.forget();
    this.easel.resize(height, width);
    this.easel.ink.bytes = this.exampleBytes(this.exampleNumber);
    this.easel.refresh();
  }

  async load(file) {
    if (!file) return;
    const { height, width } = this.easel.ink;
    try {
      this.easel.load(await readImage(file, height, width));
      this.say(`${file.name} is on the canvas.`);
    } catch (error) {
      this.say(error.message);
    }
  }

  changed() {
    this.strokeTime = performance.now();
    this.thinker.ask({ ...this.easel.drawing, bytes: this.easel.ink.bytes.slice(), asked: this.strokeTime });
  }

  answered({ drawing, answers, milliseconds }) {
    if (drawing.bytes.length !== this.easel.ink.bytes.length) return; // of the size before
    this.found = { drawing, answers, milliseconds };
    this.paintAnswers();
    const waited = performance.now() - drawing.asked;
    const where = this.thinker.worker ? "in a Worker" : "on the page's own thread";
    document.getElementById("time").textContent = `Computed in ${Math.round(milliseconds)} ms ${where}.`;
    document.dispatchEvent(new CustomEvent("answer", { detail: { waited } }));
    this.sayWhenQuiet(() => this.answerInWords());
  }

  paintAnswers() {
    const { drawing, answers } = this.found;
    this.answers.forEach((view, index) => view.show(drawing, answers[index]));
    this.layers[this.current].show(answers[this.current]);
    this.paintChosen();
    const differs = document.getElementById("differs");
    const [a, b] = answers.map(({ labels }) => labels);
    differs.hidden = !b || a.length !== b.length;
    if (differs.hidden) return;
    const names = this.networks.map(({ classes }) => classes);
    const count = a.reduce((sum, label, position) => sum + (names[0][label] !== names[1][b[position]]), 0);
    differs.textContent = count ? `They differ at ${counted(count, "pixel")}.` : "They agree at every pixel.";
  }

  answerInWords() {
    return this.answers
      .map(({ say, network }) => (this.answers.length > 1 ? `${network.name}: ${say}` : say))
      .join(" ");
  }

  /** Has a screen reader say what words() gives, once nothing has changed for a while. */
  sayWhenQuiet(words) {
    clearTimeout(this.quiet);
    this.quiet = setTimeout(() => this.say(words()), QUIET);
  }

  say(text) {
    document.getElementById("status").textContent = text;
  }

  showRun(index) {
    this.current = index;
    this.layers.forEach(({ root }, each) => (root.hidden = each !== index));
    this.runs?.forEach((button, each) => button.setAttribute("aria-pressed", each === index));
    if (this.found) {
      this.layers[index].show(this.found.answers[index]);
      this.paintChosen();
    }
  }

  /** A pixel of an answer was picked: its likeliest class is looked into. */
  pick(index, row, column) {
    if (!this.found) return;
    if (this.current !== index) this.showRun(index);
    const name = logitsOf(this.networks[index]);
    const { labels, maps } = this.found.answers[index];
    const view = this.layers[index];
    view.maps ?? view.show(this.found.answers[index]);
    view.choose(name, labels[row * maps[name].width + column], row, column);
    view.follows = true;
  }

  chosen(index) {
    this.layers[index].follows = false;
    this.paintChosen();
    this.sayWhenQuiet(() => this.layers[index].words);
  }

  forget() {
    for (const view of this.layers) Object.assign(view, { selection: null, boxes: null, history: [] });
    this.layers[this.current].paint();
    this.paintChosen();
  }

  /** What the chosen element depends on, on the drawing and on the answers. */
  paintChosen() {
    const view = this.layers[this.current];
    const { selection } = view;
    const network = this.networks[this.current];
    document.getElementById("chosen").hidden = !selection;
    if (!selection) {
      this.easel.show(null, null);
      this.answers.forEach((answer) => answer.mark(null));
      return;
    }
    const { name, channel, row, column } = selection;
    const wantsHeat = document.getElementById("heat").checked;
    const heat = wantsHeat ? gradientByImage(network, view.maps, name, channel, row, column) : null;
    document.getElementById("cold").hidden = !heat || heat.some(Boolean);
    this.easel.show(view.boxes[network.layers[0].name] ?? null, heat);
    const said = name === logitsOf(network) ? network.classes[channel] : channel;
    document.getElementById("chosen-name").textContent = `${name}[${said}] at ${row}, ${column}`;
    this.answers.forEach((answer, index) => {
      const isOwn = index === this.current && name === logitsOf(network);
      answer.mark(isOwn ? [row, column] : null);
    });
  }
}

// In a browser, whose page has the data; in node nothing happens.
const app = typeof document === "undefined" ? null : new App(JSON.parse(document.getElementById("data").textContent));
