"use strict";

/* Times a tape in Node for javascript.py, which writes the work and reads the answer.
 *
 *     node javascript.js tape.js work.json
 *
 * The work is {tape, inputs, seconds}; the answer is the results of the first run, the
 * time of compiling, and the times of all further runs, in seconds. The compiler of
 * Node needs some runs until it is at its best, so the median is of the second half.
 */
const { readFileSync } = require("fs");

const { compile } = require(process.argv[2]);
const { tape, inputs, seconds } = JSON.parse(readFileSync(process.argv[3], "utf8"));
const given = Object.fromEntries(
  Object.entries(inputs).map(([name, numbers]) => [name, Float32Array.from(numbers)]),
);

function timed(act) {
  const start = performance.now();
  const result = act();
  return [result, (performance.now() - start) / 1000];
}

const [program, compiling] = timed(() => compile(tape, "float32"));
const results = Object.entries(program.run(given)).map(([name, array]) => [name, [...array]]);
const samples = [], start = performance.now();
do samples.push(timed(() => program.run(given))[1]);
while (performance.now() - start < 1000 * seconds);
const answer = { results: Object.fromEntries(results), compiling, samples };
console.log(JSON.stringify(answer));
