// The drawing: ink as bytes, the pen that leaves it, and the canvas for mouse, finger, pen, keys and image files.

import { STEPS, element, paintPixels, pixel, positionOf, sharpContext, signedPixel } from "./dom.js";

export const PENS = { fine: 0.8, medium: 1.25, broad: 2 }; // radius in pixels; MNIST's strokes are like medium's
const ERASER = 3;
const MOST_UNDO = 60;
const LEAST_HEAT = 0.06; // of the greatest; below it the drawing shows

/** Bytes of ink, height x width, 0 for black, and what was there before each stroke. */
export class Ink {
  constructor(height, width) {
    Object.assign(this, { height, width, bytes: new Uint8Array(height * width), before: [] });
  }

  /** Remembers the present drawing, to which `undo` returns. */
  begin() {
    this.before.push(this.bytes.slice());
    if (this.before.length > MOST_UNDO) this.before.shift();
  }

  /** Returns whether there was anything to undo. */
  undo() {
    if (!this.before.length) return false;
    this.bytes = this.before.pop();
    return true;
  }

  /** Replaces the drawing. */
  load(bytes) {
    this.begin();
    this.bytes = Uint8Array.from(bytes);
  }

  /**
   * A straight stroke between two points [row, column], in units of pixels from the top left corner.
   *
   * A pixel gets the share of ink that its distance to the line leaves: 1 inside, falling to 0 over one pixel.
   */
  stroke(from, to, radius, erases = false) {
    const [top, bottom] = [Math.min(from[0], to[0]) - radius - 1, Math.max(from[0], to[0]) + radius + 1];
    const [left, right] = [Math.min(from[1], to[1]) - radius - 1, Math.max(from[1], to[1]) + radius + 1];
    for (let row = Math.max(0, Math.floor(top)); row < Math.min(this.height, bottom); row++) {
      for (let column = Math.max(0, Math.floor(left)); column < Math.min(this.width, right); column++) {
        const reach = radius + 0.5 - distance([row + 0.5, column + 0.5], from, to);
        const ink = Math.round(255 * Math.min(Math.max(reach, 0), 1));
        const index = row * this.width + column;
        this.bytes[index] = erases ? Math.min(this.bytes[index], 255 - ink) : Math.max(this.bytes[index], ink);
      }
    }
  }
}

function distance([y, x], [y0, x0], [y1, x1]) {
  const length = (y1 - y0) ** 2 + (x1 - x0) ** 2;
  const along = length ? Math.min(Math.max(((y - y0) * (y1 - y0) + (x - x0) * (x1 - x0)) / length, 0), 1) : 0;
  return Math.hypot(y - y0 - along * (y1 - y0), x - x0 - along * (x1 - x0));
}

/** An example's bytes, from base64 in which each 0 is followed by how many zeros there are. */
export function unpack(text) {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const bytes = [];
  for (let index = 0; index < packed.length; index++) {
    if (packed[index]) bytes.push(packed[index]);
    else bytes.push(...new Array(packed[++index]).fill(0));
  }
  return Uint8Array.from(bytes);
}

/**
 * White ink on black, bytes, from the pixels of an image, red, green, blue and alpha.
 *
 * Where the border is bright, the image is inverted. What lies behind the ink becomes 0, and the brightest ink 255.
 */
export function inkOfImage(pixels, height, width) {
  let grey = Array.from({ length: height * width }, (_, index) => {
    const [red, green, blue, alpha] = pixels.subarray(4 * index, 4 * index + 4);
    return 255 - ((255 - (0.299 * red + 0.587 * green + 0.114 * blue)) * alpha) / 255; // transparent is white paper
  });
  const border = grey.filter((_, index) => {
    const row = Math.floor(index / width),
      column = index % width;
    return row === 0 || column === 0 || row === height - 1 || column === width - 1;
  });
  border.sort((a, b) => a - b);
  let behind = border[Math.floor(border.length / 2)];
  if (behind > 127) {
    grey = grey.map((value) => 255 - value);
    behind = 255 - behind;
  }
  const most = grey.reduce((a, b) => Math.max(a, b), 0);
  const floor = behind + 0.18 * (most - behind); // shadows and grain of paper
  if (most - behind < 24) return new Uint8Array(height * width); // nothing but paper
  return Uint8Array.from(grey, (value) => Math.max(0, Math.round((255 * (value - floor)) / (most - floor))));
}

/** The bytes of an image file, height x width: scaled down to fit, and centred. Rejects with an Error for people. */
export async function readImage(file, height, width) {
  let image;
  try {
    image = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is not an image that this browser reads: choose a PNG or a JPEG.`);
  }
  const scale = Math.min(1, height / image.height, width / image.width);
  const [rows, columns] = [image.height, image.width].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = element("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, columns, rows);
  const ink = inkOfImage(context.getImageData(0, 0, columns, rows).data, rows, columns);
  const bytes = new Uint8Array(height * width);
  const top = Math.floor((height - rows) / 2),
    left = Math.floor((width - columns) / 2);
  for (let row = 0; row < rows; row++) {
    bytes.set(ink.subarray(row * columns, (row + 1) * columns), (top + row) * width + left);
  }
  return bytes;
}

/** The canvas to draw on. changed() is called after each piece of a stroke, said(text) with words for people. */
export class Easel {
  constructor(height, width, changed, said) {
    Object.assign(this, { changed, said, pen: "medium", key: null, box: null, heat: null });
    this.canvas = element("canvas", { class: "pixels", "aria-hidden": "true" });
    this.over = element("canvas", { class: "over", "aria-hidden": "true" });
    this.screen = element(
      "div",
      {
        class: "screen paper",
        tabindex: "0",
        role: "application",
        "aria-label": "Drawing",
        "aria-describedby": "keys",
      },
      this.canvas,
      this.over,
    );
    this.resize(height, width);
    this.listen();
  }

  resize(height, width) {
    this.ink = new Ink(height, width);
    this.key = null;
    this.screen.style.aspectRatio = `${width} / ${height}`;
    this.paint();
  }

  get drawing() {
    return { bytes: this.ink.bytes, height: this.ink.height, width: this.ink.width };
  }

  get radius() {
    return PENS[this.pen] ?? ERASER;
  }

  listen() {
    const { screen } = this;
    let pointer = null,
      last = null;
    const draw = (event) => {
      for (const each of event.getCoalescedEvents?.().concat(event) ?? [event]) {
        const at = positionOf(each, screen, this.ink.height, this.ink.width);
        this.ink.stroke(last, at, this.radius, this.pen === "eraser" || each.buttons === 32);
        last = at;
      }
      this.paint();
      this.changed();
    };
    screen.addEventListener("pointerdown", (event) => {
      if (pointer !== null || (event.button > 0 && event.button !== 5)) return;
      pointer = event.pointerId;
      screen.setPointerCapture(pointer);
      this.key = null;
      this.ink.begin();
      last = positionOf(event, screen, this.ink.height, this.ink.width);
      draw(event);
    });
    screen.addEventListener("pointermove", (event) => event.pointerId === pointer && draw(event));
    for (const end of ["pointerup", "pointercancel"]) {
      screen.addEventListener(end, (event) => {
        if (event.pointerId === pointer) pointer = null;
      });
    }
    screen.addEventListener("keydown", (event) => this.pressed(event));
    screen.addEventListener("blur", () => {
      this.key = null;
      this.paint();
    });
  }

  /** Arrow keys move a cursor; Space puts the pen down and lifts it. */
  pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { ink } = this;
    if (STEPS[event.key]) {
      const [down, right] = STEPS[event.key].map((step) => step * (event.shiftKey ? 5 : 1));
      this.key ??= { row: ink.height >> 1, column: ink.width >> 1, isDown: false };
      const from = [this.key.row + 0.5, this.key.column + 0.5];
      this.key.row = Math.min(Math.max(this.key.row + down, 0), ink.height - 1);
      this.key.column = Math.min(Math.max(this.key.column + right, 0), ink.width - 1);
      if (this.key.isDown) this.line(from);
    } else if (event.key === " " || event.key === "Enter") {
      this.key ??= { row: ink.height >> 1, column: ink.width >> 1, isDown: false };
      this.key.isDown = !this.key.isDown;
      if (this.key.isDown) {
        ink.begin();
        this.line([this.key.row + 0.5, this.key.column + 0.5]);
      }
      const tool = this.pen === "eraser" ? "Eraser" : "Pen";
      this.said(`${tool} ${this.key.isDown ? "down" : "up"}, row ${this.key.row}, column ${this.key.column}.`);
    } else if (event.key === "Escape" && this.key?.isDown) {
      this.key.isDown = false;
      this.said("Pen up.");
    } else return;
    event.preventDefault();
    this.paint();
  }

  line(from) {
    this.ink.stroke(from, [this.key.row + 0.5, this.key.column + 0.5], this.radius, this.pen === "eraser");
    this.changed();
  }

  undo() {
    if (this.ink.undo()) this.refresh();
    else this.said("There is nothing to undo.");
  }

  clear() {
    this.load(new Uint8Array(this.ink.bytes.length));
  }

  load(bytes) {
    this.ink.load(bytes);
    this.refresh();
  }

  refresh() {
    this.paint();
    this.changed();
  }

  /** Shows what a chosen element depends on: the box [top, left, bottom, right], the gradient of each pixel, or null. */
  show(box, heat) {
    Object.assign(this, { box, heat });
    this.paint();
  }

  paint() {
    const { bytes, height, width } = this.ink;
    const { heat, box, key } = this;
    const most = heat ? heat.reduce((a, b) => Math.max(a, Math.abs(b)), 0) : 0;
    paintPixels(this.canvas, height, width, (index) => {
      const share = most ? Math.abs(heat[index]) / most : 0;
      if (share > LEAST_HEAT) return signedPixel(heat[index], most);
      const ink = most ? bytes[index] >> 1 : bytes[index];
      return pixel(Math.max(ink, 17), Math.max(ink, 19), Math.max(ink, 24));
    });
    const context = sharpContext(this.over, height, width);
    if (box) {
      const [top, left, bottom, right] = box;
      context.lineWidth = width / 170;
      context.strokeStyle = "#ffd54a";
      context.setLineDash([width / 42, width / 84]);
      context.strokeRect(left, top, right - left + 1, bottom - top + 1);
      context.setLineDash([]);
    }
    if (key) {
      context.lineWidth = width / 210;
      context.strokeStyle = key.isDown ? "#ffd54a" : "#9db4ff";
      context.strokeRect(key.column, key.row, 1, 1);
      context.beginPath();
      context.arc(key.column + 0.5, key.row + 0.5, this.radius + 1.2, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}
