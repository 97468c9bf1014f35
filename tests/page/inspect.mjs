// Runs network.js in node: for each case the maps of a drawing, and of each position the box, the gradient, the sums.
import { readFileSync, writeFileSync } from "node:fs";

import {
  boxesOf,
  decide,
  explain,
  forward,
  gradientByImage,
  logitsOf,
  readNetwork,
} from "../../tinyfcn/study/page/network.js";

const base64 = (values) => Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("base64");

function inspect({ network: description, drawing, height, width, positions }) {
  const network = readNetwork(description);
  const maps = forward(network, Buffer.from(drawing, "base64"), height, width);
  const { labels, probabilities } = decide(maps[logitsOf(network)]);
  return {
    maps: Object.fromEntries(Object.entries(maps).map(([name, { values }]) => [name, base64(values)])),
    labels: base64(labels),
    probabilities: base64(probabilities),
    positions: positions.map(([name, channel, row, column]) => {
      const { products, bias, addend, sum, value, outside } = explain(network, maps, name, channel, row, column);
      return {
        boxes: boxesOf(network, maps, name, row, column),
        gradient: base64(gradientByImage(network, maps, name, channel, row, column)),
        products: products.length + outside,
        sum,
        value,
        total: products.reduce((total, { product }) => total + product, bias + (addend?.value ?? 0)),
        areTrue: products.every((each) => {
          const map = maps[each.layer];
          return map.values[(each.channel * map.height + each.row) * map.width + each.column] === each.value;
        }),
      };
    }),
  };
}

const [job, found] = process.argv.slice(2);
writeFileSync(found, JSON.stringify(JSON.parse(readFileSync(job)).cases.map(inspect)));
