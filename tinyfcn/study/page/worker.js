// Where the network computes: in a Worker, and on the page's own thread where there is none.

import { decide, forward, logitsOf, readNetwork } from "./network.js";

/** What each network makes of a drawing: {maps, probabilities, labels}; and the milliseconds that it took. */
export function think(networks, { bytes, height, width }) {
  const start = performance.now();
  const answers = networks.map((network) => {
    const maps = forward(network, bytes, height, width);
    return { maps, ...decide(maps[logitsOf(network)]) };
  });
  return { answers, milliseconds: performance.now() - start };
}

/**
 * Answers drawings one after another. A drawing that was followed by another before its turn came is never computed.
 *
 * answered: called with {drawing, answers, milliseconds}. sources: the scripts of which the Worker is made.
 */
export class Thinker {
  constructor(descriptions, networks, sources, answered) {
    Object.assign(this, { networks, answered, isBusy: false, next: null, asked: 0, computed: 0 });
    try {
      const address = URL.createObjectURL(new Blob(sources, { type: "text/javascript" }));
      this.worker = new Worker(address);
      this.worker.onmessage = ({ data }) => this.finish(data);
      this.worker.onerror = (event) => {
        event.preventDefault();
        this.goOnWithoutWorker();
      };
      this.worker.postMessage({ descriptions });
    } catch {
      this.worker = null; // a browser, or its owner's settings, may have none
    }
  }

  ask(drawing) {
    this.asked++;
    this.next = drawing;
    if (!this.isBusy) this.begin();
  }

  begin() {
    this.current = this.next;
    this.next = null;
    this.isBusy = true;
    if (this.worker) this.worker.postMessage(this.current);
    else setTimeout(() => this.finish(think(this.networks, this.current))); // the ink is painted first
  }

  finish(found) {
    const drawing = this.current;
    this.computed++;
    this.isBusy = false;
    if (this.next) this.begin();
    this.answered({ drawing, ...found });
  }

  goOnWithoutWorker() {
    this.worker?.terminate();
    this.worker = null;
    if (!this.isBusy) return;
    this.next ??= this.current;
    this.begin();
  }
}

/** In a Worker: the first message brings the networks, each further one a drawing. */
function listen(scope) {
  let networks = [];
  scope.onmessage = ({ data }) => {
    if (data.descriptions) {
      networks = data.descriptions.map(readNetwork);
      return;
    }
    const found = think(networks, data);
    const arrays = found.answers.flatMap(({ maps, probabilities, labels }) => [
      ...Object.values(maps).map(({ values }) => values.buffer),
      probabilities.buffer,
      labels.buffer,
    ]);
    scope.postMessage(found, arrays); // moved, not copied
  };
}

if (typeof WorkerGlobalScope !== "undefined" && self instanceof WorkerGlobalScope) listen(self);
