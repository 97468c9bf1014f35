// Drives the page in headless Chromium as people do, and writes down what it finds. The job names pages and a browser.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:http";
import { pathToFileURL } from "node:url";

import { chromium } from "playwright-core";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf-8");
const OPTIONS = [
  ..."--no-sandbox --disable-gpu --disable-quic --no-first-run".split(" "),
  ..."--disable-background-networking --disable-component-update --disable-sync".split(" "),
];
const STROKES = [
  [
    [18, 12],
    [36, 12],
    [28, 36],
  ], // a seven: [x, y] in pixels of the drawing
  [
    [60, 22],
    [60, 44],
  ],
];

const job = JSON.parse(readFileSync(process.argv[2]));
const browser = await chromium.launch({ executablePath: job.browser, args: OPTIONS });
const noise = []; // console errors, errors of scripts, requests that leave the page

/** A page that is open, has answered, and is watched. */
async function open(name, { script, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.on(
    "console",
    (message) => ["error", "warning"].includes(message.type()) && noise.push(`${name}: ${message.text()}`),
  );
  page.on("pageerror", (error) => noise.push(`${name}: ${error.stack}`));
  page.on("request", (request) => /^(file|blob|data):/.test(request.url()) || noise.push(`${name}: ${request.url()}`));
  if (script) await page.addInitScript(script);
  await page.goto(pathToFileURL(job.pages[name]).href);
  await answer(page);
  return page;
}

/** Waits until what is on the canvas has been answered. */
async function answer(page) {
  await until(page, () => {
    const isLast = () => app.found.drawing.bytes.every((byte, index) => byte === app.easel.ink.bytes[index]);
    return app.found && isLast() && !app.thinker.isBusy;
  });
}

/** Waits until a function is true on the page. Playwright's own waiting compiles text there, which the policy forbids. */
async function until(page, isTrue, argument) {
  for (let tries = 0; tries < 1000; tries++) {
    if (await page.evaluate(isTrue, argument)) return;
    await page.waitForTimeout(15);
  }
  throw new Error(`never became true: ${isTrue}`);
}

/** The drawing, the maps of every network, the labels, and the boxes of some chosen elements. */
async function state(page, positions = []) {
  return page.evaluate((positions) => {
    const base64 = (values) => {
      const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
      let text = "";
      for (let start = 0; start < bytes.length; start += 8192)
        text += String.fromCharCode(...bytes.subarray(start, start + 8192));
      return btoa(text);
    };
    const { drawing, answers } = app.found;
    return {
      drawing: base64(drawing.bytes),
      size: [drawing.height, drawing.width],
      words: document.querySelector(".words").textContent,
      answers: answers.map(({ maps, labels }) => ({
        labels: base64(labels),
        maps: Object.fromEntries(Object.entries(maps).map(([name, { values }]) => [name, base64(values)])),
      })),
      boxes: positions.map(([row, column]) => {
        app.pick(0, row, column);
        return app.layers[0].boxes;
      }),
    };
  }, positions);
}

/** The point of the screen at [x, y] of the drawing. */
async function places(page) {
  const box = await page.locator("#easel .screen").boundingBox();
  const [height, width] = await page.evaluate(() => [app.easel.ink.height, app.easel.ink.width]);
  return ([x, y]) => [box.x + ((x + 0.5) / width) * box.width, box.y + ((y + 0.5) / height) * box.height];
}

async function drawByMouse(page) {
  const place = await places(page);
  for (const [first, ...others] of STROKES) {
    await page.mouse.move(...place(first));
    await page.mouse.down();
    for (const each of others) await page.mouse.move(...place(each), { steps: 8 });
    await page.mouse.up();
  }
}

async function drawByFinger(page) {
  const place = await places(page);
  const session = await page.context().newCDPSession(page);
  const touch = (type, points) => session.send("Input.dispatchTouchEvent", { type, touchPoints: points });
  for (const [first, ...others] of STROKES) {
    let [x, y] = place(first);
    await touch("touchStart", [{ x, y }]);
    for (const each of others) {
      const [toX, toY] = place(each);
      for (let step = 1; step <= 8; step++)
        await touch("touchMove", [{ x: x + ((toX - x) * step) / 8, y: y + ((toY - y) * step) / 8 }]);
      [x, y] = [toX, toY];
    }
    await touch("touchEnd", []);
  }
}

/** The same strokes by keys; a diagonal is a staircase. */
async function drawByKeys(page) {
  const screen = page.locator("#easel .screen");
  await screen.focus();
  let [x, y] = [42, 32];
  const go = async (toX, toY) => {
    while (x !== toX || y !== toY) {
      if (x !== toX) (await page.keyboard.press(toX > x ? "ArrowRight" : "ArrowLeft"), (x += Math.sign(toX - x)));
      if (y !== toY) (await page.keyboard.press(toY > y ? "ArrowDown" : "ArrowUp"), (y += Math.sign(toY - y)));
    }
  };
  for (const [first, ...others] of STROKES) {
    await go(...first);
    await page.keyboard.press("Space");
    for (const each of others) await go(...each);
    await page.keyboard.press("Space");
  }
}

const clear = (page) => page.locator("#clear").click();

const scenarios = {
  async byPointer() {
    const page = await open("skip");
    await clear(page);
    await drawByMouse(page);
    await answer(page);
    await page.waitForTimeout(600); // for the words that are read out
    const status = await page.locator("#status").textContent();
    const positions = [
      [0, 0],
      [12, 30],
      [32, 42],
      [63, 83],
      [5, 80],
      [40, 61],
    ];
    return { ...(await state(page, positions)), positions, status };
  },

  async byFinger() {
    const page = await open("skip", { hasTouch: true, isMobile: true, viewport: { width: 360, height: 740 } });
    await clear(page);
    const before = await page.evaluate(() => window.scrollY);
    await drawByFinger(page);
    await answer(page);
    const scrolled = (await page.evaluate(() => window.scrollY)) - before;
    return { ...(await state(page)), scrolled };
  },

  async byKeys() {
    const page = await open("skip");
    await clear(page);
    await drawByKeys(page);
    await answer(page);
    return state(page);
  },

  async comparing() {
    const page = await open("compare");
    const differs = await page.locator("#differs").textContent();
    return { ...(await state(page)), differs, figures: await page.locator(".answer").count() };
  },

  async slidClassifier() {
    const page = await open("classifier");
    const one = await state(page);
    const toy = await page.locator("#overlap").isVisible();
    await page.getByRole("button", { name: "Slide it over a page" }).click();
    await answer(page);
    return {
      one,
      toy,
      slid: await state(page, [
        [0, 0],
        [5, 9],
      ]),
    };
  },

  /** Each way in which a browser may lack a Worker. */
  async withoutWorker() {
    const scripts = {
      missing: "delete window.Worker",
      refused: "window.Worker = class { constructor() { throw new Error('refused'); } }",
      broken: `window.Worker = class {
        postMessage({ bytes }) {
          if (bytes) setTimeout(() => this.onerror(new Event("error", { cancelable: true })));
        }
        terminate() {}
      }`,
    };
    const found = {};
    for (const [name, script] of Object.entries(scripts)) {
      const page = await open("skip", { script });
      await clear(page);
      await drawByMouse(page);
      await answer(page);
      found[name] = { ...(await state(page)), time: await page.locator("#time").textContent() };
      await page.context().close();
    }
    return found;
  },

  /** Many drawings at once: only the first and the last are computed. */
  async staleDrawings() {
    const page = await open("skip");
    const before = await page.evaluate(() => app.thinker.computed);
    await page.evaluate(() => {
      for (let index = 0; index < 30; index++) {
        app.easel.ink.stroke([2 + index, 5], [2 + index, 60], 1);
        app.changed();
      }
    });
    await answer(page);
    await page.waitForTimeout(1000); // in which more answers would come
    return { computed: (await page.evaluate(() => app.thinker.computed)) - before };
  },

  /** Milliseconds from a piece of a stroke to its answer on the screen, and until its ink is painted. */
  async times() {
    const page = await open("skip");
    await clear(page);
    return page.evaluate(async () => {
      const screen = app.easel.screen;
      const box = screen.getBoundingClientRect();
      const send = (type, index) => {
        const place = { clientX: box.left + 60 + 7 * index, clientY: box.top + 60 + 5 * (index % 9) };
        const start = performance.now();
        screen.dispatchEvent(new PointerEvent(type, { pointerId: 1, buttons: 1, bubbles: true, ...place }));
        return performance.now() - start;
      };
      screen.setPointerCapture = () => {};
      send("pointerdown", 0);
      const ink = [],
        answers = [];
      for (let index = 0; index < 60; index++) {
        const answered = new Promise((resolve) =>
          document.addEventListener("answer", (event) => resolve(event.detail.waited), { once: true }),
        );
        ink.push(send("pointermove", index));
        answers.push(await answered);
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
      send("pointerup", 60);
      return { ink, answers };
    });
  },

  async accessibility() {
    const found = [];
    for (const name of Object.keys(job.pages)) {
      for (const colorScheme of ["light", "dark"]) {
        const page = await open(name, { colorScheme });
        await page.evaluate(() => app.pick(0, ...(app.networks[0].perPixel ? [12, 20] : [0, 0])));
        await page.locator("#heat").check();
        for (const layer of await page.evaluate(() => [
          app.networks[0].layers.at(-1).name,
          app.networks[0].layers[2].name,
        ])) {
          await page.evaluate((layer) => {
            app.layers[0].open(layer);
            app.layers[0].choose(layer, 0, 0, 0);
          }, layer);
          await page.evaluate(AXE);
          const { violations, passes } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
          const nodes = violations.flatMap(({ id, nodes }) =>
            nodes.map(({ html, failureSummary }) => `${id}: ${html.slice(0, 200)} ${failureSummary}`),
          );
          found.push({ name, colorScheme, layer, violations: nodes, rules: passes.length });
        }
        await page.context().close();
      }
    }
    return found;
  },

  /** What reaches beyond the right edge, but for what scrolls on its own. 640 wide is 1280 at a zoom of 200 %. */
  async overflow() {
    const found = [];
    for (const name of Object.keys(job.pages)) {
      for (const width of [1280, 768, 640, 360]) {
        const page = await open(name, { viewport: { width, height: 900 }, deviceScaleFactor: width === 640 ? 2 : 1 });
        await page.evaluate(() => app.pick(0, ...(app.networks[0].perPixel ? [12, 20] : [0, 0])));
        const beyond = await page.evaluate(() => {
          const edge = document.documentElement.clientWidth + 0.5;
          const inside = [...document.querySelectorAll("body *")].filter(
            (each) => !each.closest(".tabs") && !each.closest(".hidden, .skip"),
          );
          return inside
            .filter((each) => each.getBoundingClientRect().right > edge)
            .map((each) => each.outerHTML.slice(0, 120));
        });
        const clipped = await page.evaluate(() =>
          [...document.querySelectorAll("button, h1, h2, h3, p, td, th, .value, .name")]
            .filter(
              (each) =>
                each.scrollWidth > each.clientWidth + 1 &&
                each.clientWidth &&
                getComputedStyle(each).display !== "inline" &&
                !each.closest(".hidden"),
            )
            .map((each) => each.outerHTML.slice(0, 120)),
        );
        const scrolls = await page.evaluate(
          () => document.documentElement.scrollWidth > document.documentElement.clientWidth,
        );
        found.push({ name, width, beyond, clipped, scrolls });
        await page.context().close();
      }
    }
    return found;
  },

  /** What a script on the page can reach: a server on this machine counts what arrives. */
  async policy() {
    let requests = 0;
    const server = createServer((_, response) => {
      requests++;
      response.setHeader("Access-Control-Allow-Origin", "*").end("");
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    const address = `http://127.0.0.1:${server.address().port}/`;
    const context = await browser.newContext();
    const page = await context.newPage();
    await page.goto(pathToFileURL(job.pages.skip).href);
    const attempts = await page.evaluate(async (address) => {
      const ended = (target) =>
        new Promise((resolve) =>
          Object.assign(target, { onload: () => resolve("loaded"), onerror: () => resolve("refused") }),
        );
      const added = (tag, attributes) => {
        const made = Object.assign(document.createElement(tag), attributes);
        const end = ended(made);
        document.body.append(made);
        return Promise.race([end, new Promise((resolve) => setTimeout(() => resolve("refused"), 500))]);
      };
      const inline = Object.assign(document.createElement("script"), { textContent: "window.inline = true" });
      document.body.append(inline);
      return {
        fetch: await fetch(address).then(
          () => "loaded",
          () => "refused",
        ),
        image: await added("img", { src: `${address}a.png`, alt: "" }),
        script: await added("script", { src: `${address}a.js` }),
        style: await added("link", { rel: "stylesheet", href: `${address}a.css` }),
        inline: window.inline ? "loaded" : "refused",
        beacon: navigator.sendBeacon(address) && "sent",
      };
    }, address);
    await page.waitForTimeout(300);
    server.close();
    await context.close();
    return { attempts, requests };
  },

  /** Tools and keys: what each leaves. */
  async tools() {
    const page = await open("skip");
    const ink = () => page.evaluate(() => app.easel.ink.bytes.reduce((sum, byte) => sum + byte, 0));
    const found = { example: await ink() };
    await clear(page);
    found.cleared = await ink();
    await page.locator("#undo").click();
    found.undone = await ink();
    await page.waitForTimeout(700); // until the answer has been read out
    await page.keyboard.press("Control+z");
    await page.keyboard.press("Control+z");
    await page.waitForTimeout(100);
    found.nothing = await page.locator("#status").textContent();
    await clear(page);
    await drawByMouse(page);
    const drawn = await ink();
    await page.getByLabel("Eraser").check();
    await drawByMouse(page);
    found.erased = [drawn, await ink()];
    await page.locator("#example").click();
    found.next = await ink();
    await page.locator("#layers-view [role=tab][aria-selected=true]").focus();
    const tab = () => page.evaluate(() => document.activeElement.querySelector(".tab-name").textContent);
    found.tabs = [await tab()];
    for (const key of ["ArrowLeft", "ArrowLeft", "Home", "ArrowLeft", "End"]) {
      await page.keyboard.press(key);
      found.tabs.push(await tab());
    }
    await page.locator(".answer .screen").focus();
    await page.keyboard.press("ArrowRight");
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("Shift+ArrowDown");
    found.chosen = await page.locator("#chosen-name").textContent();
    await page.waitForTimeout(600);
    found.said = await page.locator("#status").textContent();
    const canvas = () => page.evaluate(() => app.easel.canvas.toDataURL());
    const cold = await canvas();
    await page.locator("#heat").check();
    found.heat = [
      cold === (await canvas()),
      await page.evaluate(() => app.easel.heat.some(Boolean)),
      await page.locator("#cold").isHidden(),
    ];
    await page.locator("#heat").uncheck();
    found.heat.push(cold === (await canvas()));
    const links = page.locator(".inspector .link");
    await links.first().click();
    found.followed = await page.locator(".inspector h3").textContent();
    await page.getByRole("button", { name: "Back" }).click();
    found.back = await page.locator(".inspector h3").textContent();
    await page.getByRole("button", { name: "Done" }).click();
    found.done = await page.locator("#chosen").isVisible();
    return found;
  },

  async images() {
    const page = await open("skip");
    const found = {};
    for (const [name, path] of Object.entries(job.images)) {
      await page.locator("#file").setInputFiles(path);
      await until(page, (name) => document.getElementById("status").textContent.includes(name), name);
      found[name] = { status: await page.locator("#status").textContent() };
      await answer(page);
      Object.assign(found[name], await state(page));
    }
    await clear(page);
    const [[name, path]] = Object.entries(job.images);
    const bytes = [...readFileSync(path)];
    await page.evaluate(
      ({ name, bytes }) => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([Uint8Array.from(bytes)], name, { type: "image/png" }));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
      },
      { name, bytes },
    );
    await until(page, () => app.easel.ink.bytes.some(Boolean));
    await answer(page);
    return { ...found, dropped: await state(page) };
  },

  /** The toy for each kernel and stride: the words, and the bars' numbers. */
  async overlap() {
    const page = await open("skip");
    const found = [];
    for (let kernel = 2; kernel <= 7; kernel++) {
      for (let stride = 1; stride <= 4; stride++) {
        await page.locator("#overlap-kernel").fill(`${kernel}`);
        await page.locator("#overlap-stride").fill(`${stride}`);
        found.push({
          kernel,
          stride,
          words: await page.locator("#overlap-view .words").textContent(),
          counts: await page.locator("#overlap-view svg text").allTextContents(),
        });
      }
    }
    await page.getByRole("button", { name: "as up2, 6 / 2" }).click();
    return { found, preset: await page.locator("#overlap-view .words").textContent() };
  },

  async reducedMotion() {
    const page = await open("skip", { reducedMotion: "reduce" });
    return page.evaluate(() =>
      [...document.querySelectorAll("button, .bar")].map((each) => getComputedStyle(each).transitionDuration),
    );
  },
};

const found = {};
for (const [name, run] of Object.entries(scenarios)) {
  if (job.only && !job.only.includes(name)) continue;
  try {
    found[name] = await run();
  } catch (error) {
    found[name] = { failed: error.stack };
  }
}
writeFileSync(process.argv[3], JSON.stringify({ ...found, noise }));
await browser.close();
