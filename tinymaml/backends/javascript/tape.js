"use strict";

/* A tape of tinymaml, run in JavaScript: in a browser, a Web Worker or Node.
 *
 *     const { compile } = tinymamlTape();
 *     const program = compile(exported, "float32");       // or "float64"
 *     const results = program.run({ theta, x, y });       // flat arrays, row-major
 *     results.loss                                        // a new flat typed array
 *
 * `exported` is what tinymaml.backends.javascript.export wrote: the nodes of a tape, each
 * [primitive, arguments, attributes, shape], its inputs and its outputs. An input per
 * task is the arrays of T tasks end to end, and so is a result with the reduction "each";
 * a result "sum" is one array, summed over the tasks. An error names the argument.
 *
 * The file has three parts: products of matrices, the table of primitives, and `compile`.
 * All of it is one function without anything from outside, so that a page can give its
 * text, String(tinymamlTape), to a worker. In the table each primitive of
 * tinymaml/autodiff stands beside the loop that computes it for one task; what it means
 * is said there.
 *
 * Memory is allotted when a tape is compiled, and a run allocates its results only. What
 * no per-task input reaches is computed once and not for every task. Numbers are stored
 * in the dtype; between a load and a store JavaScript computes in float64, so sums of
 * float32 are exact to their last bit but one.
 *
 * Left out: fusion of operations, threads, SIMD, and checks of the tape itself: it was
 * checked when it was recorded.
 */
function tinymamlTape() {
  "use strict";

  const size = (shape) => shape.reduce((product, n) => product * n, 1);

  // --- products of matrices ---------------------------------------------------------

  // Copy a matrix (length, columns), b[start + k kStep + j jStep], into panels of four
  // columns: a product reads a panel from its first number to its last. The last panel
  // is filled up with zeros.
  function pack(panels, to, b, start, kStep, jStep, length, columns) {
    for (let j = 0; j < columns; j++) {
      let z = to + (j >> 2) * 4 * length + (j & 3);
      let y = start + j * jStep;
      for (let k = 0; k < length; k++, y += kStep, z += 4) panels[z] = b[y];
    }
    for (let j = columns; j & 3; j++) {
      let z = to + (j >> 2) * 4 * length + (j & 3);
      for (let k = 0; k < length; k++, z += 4) panels[z] = 0;
    }
  }

  // out[o + i outRow + j] += sum over k of A[i, k] B[k, j], with B in panels and
  // A[i, k] = a[p + i aRow + h aBlock + m aStep] for k = h length + m. Eight sums, of two
  // rows and four columns, stay in registers while k runs. Where the last row is alone
  // it is computed twice and added once.
  function addProduct(
    out, o, outRow, rows, columns,
    a, p, aRow, aStep, length, aBlock, blocks,
    panels, from,
  ) {
    const panel = 4 * length * blocks;
    for (let j = 0; j < columns; j += 4, from += panel) {
      const width = columns - j;
      for (let i = 0; i < rows; i += 2) {
        const next = i + 1 < rows ? aRow : 0;
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0;
        let y = from;
        for (let h = 0; h < blocks; h++) {
          let x = p + i * aRow + h * aBlock;
          for (let m = 0; m < length; m++, x += aStep, y += 4) {
            const b0 = panels[y], b1 = panels[y + 1], b2 = panels[y + 2], b3 = panels[y + 3];
            const s = a[x], t = a[x + next];
            s0 += s * b0; s1 += s * b1; s2 += s * b2; s3 += s * b3;
            t0 += t * b0; t1 += t * b1; t2 += t * b2; t3 += t * b3;
          }
        }
        // One statement for each number: in `conv_input` rows of `out` overlap.
        let z = o + i * outRow + j;
        out[z] += s0;
        if (width > 1) out[z + 1] += s1;
        if (width > 2) out[z + 2] += s2;
        if (width > 3) out[z + 3] += s3;
        if (next === 0 && i + 1 >= rows) continue;
        z += outRow;
        out[z] += t0;
        if (width > 1) out[z + 1] += t1;
        if (width > 2) out[z + 2] += t2;
        if (width > 3) out[z + 3] += t3;
      }
    }
  }

  const panelled = (length, columns) => 4 * Math.ceil(columns / 4) * length;

  // What the three primitives of convolution share: sizes, and images with zeros around
  // them (N, rows, columns, C), in which every tap meets a pixel.
  function window(images, kernel, outHeight, outWidth, { stride, padding: [top, left] }) {
    const [n, height, width, channels] = images;
    const rows = Math.max(top + height, stride * (outHeight - 1) + kernel[0]);
    const columns = Math.max(left + width, stride * (outWidth - 1) + kernel[1]);
    const row = columns * channels, image = rows * row;
    const inside = width * channels; // of one row
    return {
      row, image, size: n * image,
      pad(padded, x) {
        padded.fill(0, 0, n * image);
        for (let i = 0, from = 0; i < n; i++)
          for (let r = 0; r < height; r++)
            for (let k = 0, to = i * image + (top + r) * row + left * channels; k < inside; k++)
              padded[to++] = x[from++];
      },
      crop(x, padded) {
        for (let i = 0, to = 0; i < n; i++)
          for (let r = 0; r < height; r++)
            for (let k = 0, from = i * image + (top + r) * row + left * channels; k < inside; k++)
              x[to++] = padded[from++];
      },
    };
  }

  // --- the table of primitives ------------------------------------------------------

  // Axes start .. stop - 1 of a shape: how many arrays are before them, how many numbers
  // are along them and how many behind one of these.
  const around = (shape, start, stop) => [
    size(shape.slice(0, start)), size(shape.slice(start, stop)), size(shape.slice(stop)),
  ];

  // Calls visit(place in the pooled array, place in x of its largest element) for every
  // window: the first of equal ones, and a NaN counts as largest.
  function windows(x, [n, height, width, channels], side, visit) {
    const rows = Math.floor(height / side), columns = Math.floor(width / side);
    let small = 0;
    for (let i = 0; i < n; i++)
      for (let r = 0; r < rows; r++)
        for (let q = 0; q < columns; q++)
          for (let c = 0; c < channels; c++, small++) {
            const first = ((i * height + r * side) * width + q * side) * channels + c;
            let best = first;
            for (let u = 0; u < side; u++)
              for (let v = 0; v < side; v++) {
                const place = first + (u * width + v) * channels;
                if (x[place] > x[best] || (x[place] !== x[place] && x[best] === x[best]))
                  best = place;
              }
            visit(small, best);
          }
  }

  // name: (out, arguments, attributes, shapes of the arguments and of out, scratch) ->
  // what is run. A view costs nothing: it is the same memory from some element on.
  const PRIMITIVES = {
    input: { leaf() {} },
    full: { leaf: (out, { number }) => out.fill(Number(number)) }, // it may be "NaN"
    add: (out, [a, b]) => () => { for (let i = 0; i < out.length; i++) out[i] = a[i] + b[i]; },
    sub: (out, [a, b]) => () => { for (let i = 0; i < out.length; i++) out[i] = a[i] - b[i]; },
    mul: (out, [a, b]) => () => { for (let i = 0; i < out.length; i++) out[i] = a[i] * b[i]; },
    scale: (out, [a], { number }) => {
      const factor = Number(number);
      return () => { for (let i = 0; i < out.length; i++) out[i] = a[i] * factor; };
    },
    gate: (out, [a, x]) => () => { for (let i = 0; i < out.length; i++) out[i] = x[i] <= 0 ? 0 : a[i]; },
    relu: (out, [a]) => () => { for (let i = 0; i < out.length; i++) out[i] = a[i] <= 0 ? 0 : a[i]; },
    exp: (out, [a]) => () => { for (let i = 0; i < out.length; i++) out[i] = Math.exp(a[i]); },
    log: (out, [a]) => () => { for (let i = 0; i < out.length; i++) out[i] = Math.log(a[i]); },
    tanh: (out, [a]) => () => { for (let i = 0; i < out.length; i++) out[i] = Math.tanh(a[i]); },
    reciprocal: (out, [a]) => () => { for (let i = 0; i < out.length; i++) out[i] = 1 / a[i]; },
    rsqrt: (out, [a]) => () => { for (let i = 0; i < out.length; i++) out[i] = 1 / Math.sqrt(a[i]); },

    logsumexp: (out, [a], _, [shape]) => () => {
      const width = shape[shape.length - 1];
      for (let i = 0, start = 0; i < out.length; i++, start += width) {
        let top = a[start], sum = 0;
        for (let k = 1; k < width; k++) top = Math.max(top, a[start + k]);
        if (top === Infinity || top === -Infinity) top = 0; // no inf - inf
        for (let k = 0; k < width; k++) sum += Math.exp(a[start + k] - top);
        out[i] = top + Math.log(sum);
      }
    },
    softmax: (out, [a], _, [shape]) => () => {
      const width = shape[shape.length - 1];
      for (let start = 0; start < out.length; start += width) {
        let top = a[start], sum = 0;
        for (let k = 1; k < width; k++) top = Math.max(top, a[start + k]);
        for (let k = 0; k < width; k++) sum += Math.exp(a[start + k] - top);
        for (let k = 0; k < width; k++) out[start + k] = Math.exp(a[start + k] - top) / sum;
      }
    },
    matmul: (out, [a, b], { ta, tb }, [left, right, [m, n]], scratch) => {
      const k = left[ta ? 0 : 1];
      scratch.needs(panelled(k, n), 0);
      return () => {
        pack(scratch.panels, 0, b, 0, tb ? 1 : n, tb ? k : 1, k, n);
        out.fill(0);
        addProduct(out, 0, n, m, n, a, 0, ta ? 1 : k, ta ? m : 1, k, 0, 1, scratch.panels, 0);
      };
    },
    sum: (out, [a], { start, stop }, [shape]) => {
      const [before, terms, behind] = around(shape, start, stop);
      return () => {
        for (let i = 0, z = 0; i < before; i++)
          for (let j = 0; j < behind; j++, z++) {
            let total = 0;
            for (let k = 0, y = i * terms * behind + j; k < terms; k++, y += behind) total += a[y];
            out[z] = total;
          }
      };
    },
    broadcast: (out, [a], { start, sizes }, [, shape]) => {
      const [before, copies, behind] = around(shape, start, start + sizes.length);
      return () => {
        for (let i = 0, z = 0; i < before; i++)
          for (let k = 0; k < copies; k++)
            for (let j = 0, y = i * behind; j < behind; j++) out[z++] = a[y++];
      };
    },
    reshape: { view: () => 0 },
    rematerialise: { view: () => 0 },
    stop_gradient: { view: () => 0 },
    slice: { view: ({ start }) => start },
    pad: (out, [a], { start }) => () => {
      out.fill(0);
      out.set(a, start);
    },
    concat: (out, vectors) => () => {
      let start = 0;
      for (const a of vectors) {
        out.set(a, start);
        start += a.length;
      }
    },

    conv: (out, [x, w], attributes, [images, kernel, [n, height, width, features]], scratch) => {
      const { stride } = attributes, [kh, kw, channels] = kernel;
      const padded = window(images, kernel, height, width, attributes);
      const run = kw * channels; // weights and pixels of one row of the kernel
      scratch.needs(panelled(kh * run, features), padded.size);
      return () => {
        padded.pad(scratch.padded, x);
        pack(scratch.panels, 0, w, 0, features, 1, kh * run, features);
        out.fill(0);
        for (let e = 0; e < n; e++)
          for (let i = 0; i < height; i++)
            addProduct(
              out, (e * height + i) * width * features, features, width, features,
              scratch.padded, e * padded.image + i * stride * padded.row, stride * channels, 1,
              run, padded.row, kh, scratch.panels, 0,
            );
      };
    },
    conv_input: (out, [g, w], attributes, [[n, height, width, features], kernel, images], scratch) => {
      const { stride } = attributes, [kh, kw, channels] = kernel;
      const padded = window(images, kernel, height, width, attributes);
      const run = kw * channels, panels = panelled(features, run);
      scratch.needs(kh * panels, padded.size);
      return () => {
        scratch.padded.fill(0, 0, padded.size);
        for (let u = 0; u < kh; u++)
          pack(scratch.panels, u * panels, w, u * run * features, 1, features, features, run);
        for (let e = 0; e < n; e++)
          for (let i = 0; i < height; i++)
            for (let u = 0; u < kh; u++)
              addProduct(
                scratch.padded, e * padded.image + (i * stride + u) * padded.row,
                stride * channels, width, run,
                g, (e * height + i) * width * features, features, 1, features, 0, 1,
                scratch.panels, u * panels,
              );
        padded.crop(out, scratch.padded);
      };
    },
    conv_weight: (out, [x, g], attributes, [images, [n, height, width, features], kernel], scratch) => {
      const { stride } = attributes, [kh, kw, channels] = kernel;
      const padded = window(images, kernel, height, width, attributes);
      const run = kw * channels, pixels = height * width;
      scratch.needs(panelled(pixels, features), padded.size);
      return () => {
        padded.pad(scratch.padded, x);
        out.fill(0);
        for (let e = 0; e < n; e++) {
          pack(scratch.panels, 0, g, e * pixels * features, features, 1, pixels, features);
          for (let u = 0; u < kh; u++)
            addProduct(
              out, u * run * features, features, run, features,
              scratch.padded, e * padded.image + u * padded.row, 1, stride * channels,
              width, stride * padded.row, height, scratch.panels, 0,
            );
        }
      };
    },
    max_gather: (out, [a, x], attributes, [, images]) => () =>
      windows(x, images, attributes.size, (small, large) => { out[small] = a[large]; }),
    max_scatter: (out, [g, x], attributes, [, images]) => () => {
      out.fill(0);
      windows(x, images, attributes.size, (small, large) => { out[large] = g[small]; });
    },
  };

  // --- compiling --------------------------------------------------------------------

  function check(condition, message) {
    if (!condition) throw new Error(message);
  }

  // A program that runs an exported tape in "float32" or "float64".
  function compile(exported, dtype) {
    const Floats = { float32: Float32Array, float64: Float64Array }[dtype];
    check(Floats, `dtype: expected "float32" or "float64", got ${dtype}`);
    check(exported && exported.format === "tinymaml-tape-1",
      `exported: expected a tape of the format tinymaml-tape-1, got ${exported && exported.format}`);
    const { nodes } = exported;
    for (const [name] of nodes)
      check(Object.hasOwn(PRIMITIVES, name), `exported: no primitive is called ${name}`);
    const inputs = Object.entries(exported.inputs), outputs = Object.entries(exported.outputs);

    // What no per-task input reaches is computed first, and once.
    const perTask = nodes.map(() => false);
    for (const [, input] of inputs) perTask[input.node] = input.per_task;
    nodes.forEach(([, args], i) => { if (args.some((k) => perTask[k])) perTask[i] = true; });
    const numbers = [...nodes.keys()];
    const order = [...numbers.filter((i) => !perTask[i]), ...numbers.filter((i) => perTask[i])];

    // A view is memory of another node, its root, from `start` on.
    const root = [...numbers], start = nodes.map(() => 0);
    nodes.forEach(([name, [first], attributes], i) => {
      const { view } = PRIMITIVES[name];
      if (view) {
        root[i] = root[first];
        start[i] = start[first] + view(attributes);
      }
    });

    // The time of the last reader of each root. What is given or filled once, what the
    // tasks share and what is a result stays for good.
    const last = nodes.map(([name]) => (PRIMITIVES[name].leaf ? Infinity : -1));
    order.forEach((i, time) => {
      for (const k of nodes[i][1]) {
        const shared = perTask[i] && !perTask[root[k]];
        last[root[k]] = shared ? Infinity : Math.max(last[root[k]], time);
      }
    });
    for (const [, { node }] of outputs) last[root[node]] = Infinity;

    // A value takes the free buffer that fits best, which grows if it must.
    const slots = [], free = new Set(), slotOf = [];
    order.forEach((i, time) => {
      if (root[i] === i) {
        const wanted = size(nodes[i][3]);
        const misfit = (s) => (slots[s] < wanted ? 1e15 - slots[s] : slots[s]);
        let best = [...free].sort((r, s) => misfit(r) - misfit(s))[0];
        if (best === undefined || last[i] === Infinity) best = slots.push(0) - 1;
        free.delete(best);
        slots[best] = Math.max(slots[best], wanted);
        slotOf[i] = best;
      }
      for (const k of nodes[i][1]) if (last[root[k]] === time) free.add(slotOf[root[k]]);
    });
    const memory = slots.map((n) => new Floats(n));
    const arrays = nodes.map(([, , , shape], i) =>
      memory[slotOf[root[i]]].subarray(start[i], start[i] + size(shape)));

    // Room for the products of matrices and for images with zeros around them.
    const scratch = {
      most: [0, 0],
      needs(...counts) { this.most = this.most.map((n, i) => Math.max(n, counts[i])); },
    };
    const once = [], everyTask = [];
    for (const i of order) {
      const [name, args, attributes, shape] = nodes[i], primitive = PRIMITIVES[name];
      if (primitive.leaf) primitive.leaf(arrays[i], attributes);
      if (primitive.leaf || primitive.view) continue;
      const shapes = [...args.map((k) => nodes[k][3]), shape];
      const run = primitive(arrays[i], args.map((k) => arrays[k]), attributes, shapes, scratch);
      (perTask[i] ? everyTask : once).push(run);
    }
    scratch.panels = new Float64Array(scratch.most[0]);
    scratch.padded = new Floats(scratch.most[1]);
    const sums = outputs.map(([, { shape }]) => new Float64Array(size(shape)));

    // The number of tasks T, if all inputs fit.
    function checkInputs(given) {
      const names = inputs.map(([name]) => name).sort(), came = Object.keys(given).sort();
      check(String(names) === String(came), `inputs: expected ${names}, got ${came}`);
      let tasks;
      for (const [name, input] of inputs) {
        const array = given[name], n = size(input.shape);
        const flat = ArrayBuffer.isView(array) ||
          (Array.isArray(array) && array.every((number) => typeof number === "number"));
        check(flat, `${name}: expected a flat array of numbers, got ${typeof array}`);
        if (input.per_task && tasks === undefined) {
          tasks = array.length / n;
          check(tasks >= 1 && tasks % 1 === 0,
            `${name}: expected ${n} numbers for each task, got ${array.length}`);
        }
        const wanted = input.per_task ? tasks * n : n;
        check(array.length === wanted, `${name}: expected ${wanted} numbers, got ${array.length}`);
      }
      return tasks ?? 1;
    }

    function load(given, whetherPerTask, task) {
      for (const [name, { node, per_task }] of inputs)
        if (per_task === whetherPerTask) {
          const to = arrays[node], from = given[name];
          for (let i = 0, k = task * to.length; i < to.length; i++) to[i] = from[k++];
        }
    }

    function run(given) {
      const tasks = checkInputs(given);
      const each = outputs.map(([, { shape, reduction }]) =>
        reduction === "each" ? new Floats(tasks * size(shape)) : null);
      for (const sum of sums) sum.fill(0);
      load(given, false, 0);
      for (const step of once) step();
      for (let task = 0; task < tasks; task++) {
        load(given, true, task);
        for (const step of everyTask) step();
        outputs.forEach(([, { node }], i) => {
          const value = arrays[node], sum = sums[i];
          if (each[i]) each[i].set(value, task * value.length);
          else for (let k = 0; k < sum.length; k++) sum[k] += value[k];
        });
      }
      return Object.fromEntries(outputs.map(([name], i) => [name, each[i] ?? new Floats(sums[i])]));
    }

    return { run };
  }

  return { compile, PRIMITIVES };
}

if (typeof module !== "undefined") module.exports = tinymamlTape();
