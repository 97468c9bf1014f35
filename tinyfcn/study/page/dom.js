// Small things that all views use: elements, colours of values, picking a pixel by pointer and by keys.

/** An element with attributes and children. An attribute `onclick` is a listener; true and false set or omit it. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) made.setAttribute(name, value);
    else if (value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** "0.412", "-13.2", "1.2e-5": three digits, with a proper minus. */
export function number(value) {
  const size = Math.abs(value);
  let text = "0";
  if (size > 0) text = size < 1e-3 || size >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  return text.replace(/-/g, "\u2212");
}

/** "3 pixels", "1 pixel". */
export function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** "a, b and c". */
export function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words[words.length - 1]}`;
}

// Black is 0, warm is above, cold is below, as in the figures of `tinyfcn trace`.
const SIGNED = ["#d6f5ff", "#58b8f0", "#1f5fc4", "#14224f", "#000000", "#4d1230", "#c43a3a", "#f79a3c", "#fff3c4"];
const GREYS = ["#000000", "#ffffff"];

/** The parts [red, green, blue] of "#rrggbb". */
export function rgb(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

/** A colour as the 32 bits of an opaque pixel of ImageData. */
export function pixel(red, green, blue) {
  return (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
}

/** `count` pixels from the first of evenly spaced stops to the last. */
function ramp(stops, count) {
  return Uint32Array.from({ length: count }, (_, index) => {
    const place = (index / (count - 1)) * (stops.length - 1);
    const first = Math.min(Math.floor(place), stops.length - 2);
    const [low, high] = [stops[first], stops[first + 1]].map(rgb);
    return pixel(...low.map((part, each) => Math.round(part + (high[each] - part) * (place - first))));
  });
}

const signedRamp = ramp(SIGNED, 513);
const greyRamp = ramp(GREYS, 256);

/** The pixel of a value, where `most` is the greatest absolute value. */
export function signedPixel(value, most) {
  return signedRamp[Math.round(256 + 256 * Math.min(Math.max(value / (most || 1), -1), 1))];
}

/** The pixel of a value between the darkest and the brightest. */
export function greyPixel(value, low, high) {
  return greyRamp[Math.round((255 * (value - low)) / (high - low || 1))];
}

/** Paints a canvas of height x width pixels, each by its index. */
export function paintPixels(canvas, height, width, pixelAt) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let index = 0; index < pixels.length; index++) pixels[index] = pixelAt(index);
  context.putImageData(image, 0, 0);
}

/** Makes a canvas as sharp as the screen; its context, in units of `width` x `height`. */
export function sharpContext(canvas, height, width) {
  const scale = Math.min(window.devicePixelRatio || 1, 3) * (canvas.clientWidth / width || 1);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0);
  return context;
}

/** The row and column, not rounded, of a pointer on an element that shows height x width pixels. */
export function positionOf(event, target, height, width) {
  const box = target.getBoundingClientRect();
  return [((event.clientY - box.top) / box.height) * height, ((event.clientX - box.left) / box.width) * width];
}

export const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/**
 * Lets people pick a pixel: by pressing, by dragging, and by arrow keys (with Shift five times as far).
 *
 * size() is [height, width] of what the target shows, place() the [row, column] from which keys move.
 */
export function pickable(target, size, place, pick, stepSize = 1) {
  const pickAt = (event) => {
    const [height, width] = size();
    const [row, column] = positionOf(event, target, height, width).map(Math.floor);
    pick(Math.min(Math.max(row, 0), height - 1), Math.min(Math.max(column, 0), width - 1));
  };
  target.addEventListener("pointerdown", pickAt);
  target.addEventListener("pointermove", (event) => event.buttons && pickAt(event));
  target.addEventListener("keydown", (event) => {
    if (!STEPS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const [down, right] = STEPS[event.key].map((step) => step * stepSize * (event.shiftKey ? 5 : 1));
    const [height, width] = size();
    const [row, column] = place();
    pick(Math.min(Math.max(row + down, 0), height - 1), Math.min(Math.max(column + right, 0), width - 1));
  });
}
