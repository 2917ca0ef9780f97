"use strict";

/* tape.js for the tests: answers requests on its pipes until they are closed.
 *
 * A frame is two lengths (uint32), a JSON text and numbers as bytes. node_backend.py
 * writes the requests; see there. An answer {"error"} carries the message of an Error.
 */
const fs = require("fs");

function readBytes(count) {
  const bytes = Buffer.alloc(count);
  for (let done = 0; done < count; ) {
    const read = fs.readSync(0, bytes, done, count - done, null);
    if (read === 0) process.exit(0);
    done += read;
  }
  return bytes;
}

function writeBytes(bytes) {
  for (let done = 0; done < bytes.length; ) done += fs.writeSync(1, bytes, done);
}

const ARRAYS = { float32: Float32Array, float64: Float64Array };
const sources = [], programs = [];

const ANSWERS = {
  load({ source }) {
    const module = { exports: {} };
    new Function("module", source)(module);
    return { number: sources.push(module.exports) - 1 };
  },
  primitives({ source }) {
    return { names: Object.keys(sources[source].PRIMITIVES) };
  },
  compile({ source, tape, dtype }) {
    return { number: programs.push({ dtype, ...sources[source].compile(tape, dtype) }) - 1 };
  },
  // In one go: the numbers of all inputs come end to end, and so do those of the results.
  run({ program, lengths }, bytes) {
    const { dtype, run } = programs[program];
    const numbers = new ARRAYS[dtype](bytes.buffer, bytes.byteOffset);
    let start = 0;
    const given = lengths.map(([name, n]) => [name, numbers.subarray(start, (start += n))]);
    const results = Object.entries(run(Object.fromEntries(given)));
    const arrays = results.map(([, a]) => Buffer.from(a.buffer, a.byteOffset, a.byteLength));
    return { names: results.map(([name]) => name), bytes: Buffer.concat(arrays) };
  },
};

for (;;) {
  const lengths = readBytes(8);
  const request = JSON.parse(readBytes(lengths.readUInt32LE(0)).toString());
  // A copy of its own: numbers must begin at a multiple of their size.
  const numbers = Uint8Array.from(readBytes(lengths.readUInt32LE(4)));
  for (const program of request.dropped) programs[program] = null;
  let answer;
  try {
    answer = ANSWERS[request.what](request, numbers);
  } catch (error) {
    answer = { error: String(error.message) };
  }
  const { bytes = Buffer.alloc(0), ...rest } = answer;
  const text = Buffer.from(JSON.stringify(rest)), head = Buffer.alloc(8);
  head.writeUInt32LE(text.length, 0);
  head.writeUInt32LE(bytes.length, 4);
  writeBytes(Buffer.concat([head, text, bytes]));
}
