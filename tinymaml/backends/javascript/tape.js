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

  // The matrix B (k, n), where B[h, j] = b[start + h row + j column], in panels of four
  // columns: a product reads a panel from its first number to its last. The last panel
  // is filled up with zeros.
  function pack(panels, b, start, row, column, k, n) {
    for (let j = 0, z = 0; j < n; j += 4, z += 4 * k)
      for (let q = 0; q < 4; q++)
        for (let h = 0, y = start + (j + q) * column; h < k; h++, y += row)
          panels[z + 4 * h + q] = j + q < n ? b[y] : 0;
  }

  const panelled = (k, n) => 4 * Math.ceil(n / 4) * k; // the size of the panels

  // out[o + i n + j] += the sum over h of A[i, h] B[h, j], where A (m, k) has A[i, h] =
  // a[start + i row + h column] and B (k, n) is in panels. Eight sums, of two rows and
  // four columns, stay in registers while h runs. A last row without a second one is
  // computed twice and added once.
  function addProduct(out, o, m, n, k, a, start, row, column, panels) {
    for (let j = 0, from = 0; j < n; j += 4, from += 4 * k) {
      const end = from + 4 * k, width = n - j;
      for (let i = 0; i < m; i += 2) {
        const pair = i + 1 < m, next = pair ? row : 0;
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0;
        for (let y = from, x = start + i * row; y < end; y += 4, x += column) {
          const b0 = panels[y], b1 = panels[y + 1], b2 = panels[y + 2], b3 = panels[y + 3];
          const s = a[x], t = a[x + next];
          s0 += s * b0; s1 += s * b1; s2 += s * b2; s3 += s * b3;
          t0 += t * b0; t1 += t * b1; t2 += t * b2; t3 += t * b3;
        }
        const z = o + i * n + j;
        out[z] += s0;
        if (width > 1) out[z + 1] += s1;
        if (width > 2) out[z + 2] += s2;
        if (width > 3) out[z + 3] += s3;
        if (!pair) continue;
        out[z + n] += t0;
        if (width > 1) out[z + n + 1] += t1;
        if (width > 2) out[z + n + 2] += t2;
        if (width > 3) out[z + n + 3] += t3;
      }
    }
  }

  // What the three primitives of convolution share. One image at a time, the pixels that
  // the kernel meets for each output pixel are copied to a row of a matrix, the patches
  // (H' W', kh kw C). So all three are matrix products with long sums in their middle.
  class Convolution {
    constructor([n, height, width, channels], [kh, kw], g, { stride, padding }, scratch) {
      Object.assign(this, { n, height, width, channels, kh, kw, stride, padding, scratch });
      [, this.rows, this.columns, this.features] = g;
      this.image = height * width * channels;
      this.pixels = this.rows * this.columns;
      this.taps = kh * kw * channels;
      scratch.needs("patches", this.pixels * this.taps);
    }

    // Copy pixels of the image at x[start] to the patches, with zeros outside of the
    // image, or add the patches to its pixels.
    move(x, start, toPatches) {
      const { height, width, channels, kh, kw, stride, rows, columns } = this;
      const { patches } = this.scratch, [top, left] = this.padding;
      let z = 0;
      for (let i = 0; i < rows; i++)
        for (let j = 0; j < columns; j++)
          for (let u = 0; u < kh; u++) {
            const row = stride * i + u - top;
            for (let v = 0; v < kw; v++) {
              const column = stride * j + v - left;
              const inside = row >= 0 && row < height && column >= 0 && column < width;
              let y = start + (row * width + column) * channels;
              if (!inside && toPatches) for (let c = 0; c < channels; c++) patches[z++] = 0;
              else if (!inside) z += channels;
              else if (toPatches) for (let c = 0; c < channels; c++) patches[z++] = x[y++];
              else for (let c = 0; c < channels; c++) x[y++] += patches[z++];
            }
          }
    }
  }

  // Call visit(place in the pooled array, place in x of its largest element) for every
  // window: the first of equal ones, and a NaN counts as largest.
  function windows(x, [n, height, width, channels], side, visit) {
    const rows = Math.floor(height / side), columns = Math.floor(width / side);
    let small = 0;
    for (let e = 0; e < n; e++)
      for (let i = 0; i < rows; i++)
        for (let j = 0; j < columns; j++)
          for (let c = 0; c < channels; c++, small++) {
            const first = ((e * height + i * side) * width + j * side) * channels + c;
            let best = first;
            for (let u = 0; u < side; u++)
              for (let v = 0; v < side; v++) {
                const y = first + (u * width + v) * channels;
                if (x[y] > x[best] || (Number.isNaN(x[y]) && !Number.isNaN(x[best]))) best = y;
              }
            visit(small, best);
          }
  }

  // --- the table of primitives ------------------------------------------------------

  // Of a shape: how many arrays lie before the axes start .. stop - 1, how many numbers
  // along them, and how many behind each of these.
  const around = (shape, start, stop) => [
    size(shape.slice(0, start)), size(shape.slice(start, stop)), size(shape.slice(stop)),
  ];
  const lastAxis = (_, [shape]) => [shape[shape.length - 1]];

  // run(out, ...arguments, ...settings) computes a primitive for one task, where
  // settings(attributes, [...shapes of the arguments, shape of out], scratch) is called
  // when a tape is compiled. A leaf is filled by `fill` then, and never again. A view is
  // the memory of its argument, from the element view(attributes) on, and costs nothing.
  const PRIMITIVES = {
    input: { fill() {} },
    full: { fill: (out, { number }) => out.fill(Number(number)) }, // it may be "NaN"
    add: { run(out, a, b) { for (let i = 0; i < out.length; i++) out[i] = a[i] + b[i]; } },
    sub: { run(out, a, b) { for (let i = 0; i < out.length; i++) out[i] = a[i] - b[i]; } },
    mul: { run(out, a, b) { for (let i = 0; i < out.length; i++) out[i] = a[i] * b[i]; } },
    scale: {
      settings: ({ number }) => [Number(number)],
      run(out, a, factor) { for (let i = 0; i < out.length; i++) out[i] = a[i] * factor; },
    },
    gate: { run(out, a, x) { for (let i = 0; i < out.length; i++) out[i] = x[i] <= 0 ? 0 : a[i]; } },
    relu: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = a[i] <= 0 ? 0 : a[i]; } },
    exp: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = Math.exp(a[i]); } },
    log: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = Math.log(a[i]); } },
    tanh: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = Math.tanh(a[i]); } },
    reciprocal: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = 1 / a[i]; } },
    rsqrt: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = 1 / Math.sqrt(a[i]); } },
    logsumexp: {
      settings: lastAxis,
      run(out, a, width) {
        for (let i = 0, start = 0; i < out.length; i++, start += width) {
          let top = -Infinity, sum = 0;
          for (let k = 0; k < width; k++) top = Math.max(top, a[start + k]);
          if (Math.abs(top) === Infinity) top = 0; // no inf - inf
          for (let k = 0; k < width; k++) sum += Math.exp(a[start + k] - top);
          out[i] = top + Math.log(sum);
        }
      },
    },
    softmax: {
      settings: lastAxis,
      run(out, a, width) {
        for (let start = 0; start < out.length; start += width) {
          let top = -Infinity, sum = 0;
          for (let k = 0; k < width; k++) top = Math.max(top, a[start + k]);
          for (let k = 0; k < width; k++) sum += Math.exp(a[start + k] - top);
          for (let k = 0; k < width; k++) out[start + k] = Math.exp(a[start + k] - top) / sum;
        }
      },
    },
    matmul: {
      settings({ ta, tb }, [[rows, columns], , [m, n]], scratch) {
        const k = ta ? rows : columns;
        scratch.needs("panels", panelled(k, n));
        return [m, n, k, ta, tb, scratch];
      },
      run(out, a, b, m, n, k, ta, tb, { panels }) {
        pack(panels, b, 0, tb ? 1 : n, tb ? k : 1, k, n);
        out.fill(0);
        addProduct(out, 0, m, n, k, a, 0, ta ? 1 : k, ta ? m : 1, panels);
      },
    },
    sum: {
      settings: ({ start, stop }, [shape]) => around(shape, start, stop),
      run(out, a, before, terms, behind) {
        for (let i = 0, z = 0; i < before; i++)
          for (let j = 0; j < behind; j++) {
            let total = 0;
            for (let k = 0, y = i * terms * behind + j; k < terms; k++, y += behind) total += a[y];
            out[z++] = total;
          }
      },
    },
    broadcast: {
      settings: ({ start, sizes }, [, shape]) => around(shape, start, start + sizes.length),
      run(out, a, before, copies, behind) {
        const all = copies * behind;
        for (let i = 0, start = 0; i < before; i++, start += all) {
          for (let j = 0; j < behind; j++) out[start + j] = a[i * behind + j];
          for (let done = behind; done < all; done *= 2) // twice as many copies each time
            out.copyWithin(start + done, start, start + Math.min(done, all - done));
        }
      },
    },
    reshape: { view: () => 0 },
    rematerialise: { view: () => 0 },
    stop_gradient: { view: () => 0 },
    slice: { view: ({ start }) => start },
    pad: {
      settings: ({ start }) => [start],
      run(out, a, start) {
        out.fill(0);
        out.set(a, start);
      },
    },
    concat: {
      run(out, ...vectors) {
        let start = 0;
        for (const a of vectors) {
          out.set(a, start);
          start += a.length;
        }
      },
    },
    conv: {
      settings(attributes, [x, w, g], scratch) {
        const convolution = new Convolution(x, w, g, attributes, scratch);
        scratch.needs("panels", panelled(convolution.taps, convolution.features));
        return [convolution, scratch];
      },
      run(out, x, w, convolution, { panels, patches }) {
        const { n, image, pixels, taps, features } = convolution;
        pack(panels, w, 0, features, 1, taps, features);
        out.fill(0);
        for (let e = 0; e < n; e++) {
          convolution.move(x, e * image, true);
          addProduct(out, e * pixels * features, pixels, features, taps, patches, 0, taps, 1, panels);
        }
      },
    },
    conv_input: {
      settings(attributes, [g, w, x], scratch) {
        const convolution = new Convolution(x, w, g, attributes, scratch);
        scratch.needs("panels", panelled(convolution.features, convolution.taps));
        return [convolution, scratch];
      },
      run(out, g, w, convolution, { panels, patches }) {
        const { n, image, pixels, taps, features } = convolution;
        pack(panels, w, 0, 1, features, features, taps);
        out.fill(0);
        for (let e = 0; e < n; e++) {
          patches.fill(0, 0, pixels * taps);
          addProduct(patches, 0, pixels, taps, features, g, e * pixels * features, features, 1, panels);
          convolution.move(out, e * image, false);
        }
      },
    },
    conv_weight: {
      settings(attributes, [x, g, w], scratch) {
        const convolution = new Convolution(x, w, g, attributes, scratch);
        scratch.needs("panels", panelled(convolution.pixels, convolution.features));
        return [convolution, scratch];
      },
      run(out, x, g, convolution, { panels, patches }) {
        const { n, image, pixels, taps, features } = convolution;
        out.fill(0);
        for (let e = 0; e < n; e++) {
          convolution.move(x, e * image, true);
          pack(panels, g, e * pixels * features, features, 1, pixels, features);
          addProduct(out, 0, taps, features, pixels, patches, 0, 1, taps, panels);
        }
      },
    },
    max_gather: {
      settings: ({ size: side }, [, images]) => [images, side],
      run(out, a, x, images, side) {
        windows(x, images, side, (small, large) => { out[small] = a[large]; });
      },
    },
    max_scatter: {
      settings: ({ size: side }, [, images]) => [images, side],
      run(out, g, x, images, side) {
        out.fill(0);
        windows(x, images, side, (small, large) => { out[large] = g[small]; });
      },
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
    const last = nodes.map(([name]) => (PRIMITIVES[name].fill ? Infinity : -1));
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

    // Memory that products and convolutions share: each needs it during its own run only.
    const most = { panels: 0, patches: 0 };
    const scratch = { needs(name, count) { most[name] = Math.max(most[name], count); } };
    const once = [], everyTask = [];
    for (const i of order) {
      const [name, args, attributes, shape] = nodes[i];
      const { fill, run, settings = () => [] } = PRIMITIVES[name];
      if (fill) fill(arrays[i], attributes);
      if (!run) continue;
      const further = settings(attributes, [...args.map((k) => nodes[k][3]), shape], scratch);
      const operands = [arrays[i], ...args.map((k) => arrays[k]), ...further];
      (perTask[i] ? everyTask : once).push(() => run(...operands));
    }
    scratch.panels = new Float64Array(most.panels);
    scratch.patches = new Floats(most.patches);
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
