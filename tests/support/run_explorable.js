// Runs methods of an explorable's model in Node: `node run_explorable.js FILES < request`.
//
// FILES: tape.js, tools.js, explorable.js and the page's own script, in this order. The
// request is JSON: { name, data, calls: [[method, arguments, take], ...] }, with arrays
// as the build writes them. `take` is how many values a generator yields, or null. The
// answer is a list with the result of each call, typed arrays as lists.

"use strict";
const fs = require("fs");
const vm = require("vm");

const files = process.argv.slice(2);
vm.runInThisContext(files.map((file) => fs.readFileSync(file, "utf8")).join("\n") +
  "\nglobalThis.parts = { tinymaml, tinymamlTape, tinymamlTools };");
const { tinymaml, tinymamlTape, tinymamlTools } = globalThis.parts;

const plain = (value) => {
  if (ArrayBuffer.isView(value)) return Array.from(value, plain);
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value === "number" && !Number.isFinite(value)) return String(value);
  if (value === null || typeof value !== "object") return value ?? null;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]));
};

const request = JSON.parse(fs.readFileSync(0, "utf8"));
const data = tinymaml.decode(request.data);
const model = tinymaml.registered[request.name].model(tinymamlTape(), data, tinymamlTools());
const answers = request.calls.map(([method, args, take]) => {
  const result = model[method](...tinymaml.decode(args));
  if (take === null || take === undefined) return plain(result);
  const values = [];
  for (let i = 0; i < take; i++) values.push(plain(result.next().value));
  return values;
});
process.stdout.write(JSON.stringify(answers));
