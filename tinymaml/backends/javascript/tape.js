/* A tape of tinymaml, run in JavaScript: in a browser, a Web Worker or Node.
 *
 *     const { compile } = tinymamlTape();             // in Node: require("./tape.js")
 *     const program = compile(exported, "float32");   // or "float64"
 *     const results = program.run({ theta, x, y });   // flat arrays, row-major
 *     results.loss                                    // a new flat typed array
 *
 * `exported` is what tinymaml.backends.javascript.export wrote. An input per task is the
 * arrays of T tasks end to end, and so is a result with the reduction "each"; a result
 * "sum" is one array, summed over the tasks. An error names the argument.
 *
 * Three parts: products of matrices and convolutions; the table of primitives, each with
 * the loop that computes it for one task (tinymaml/autodiff says what it means); and
 * `compile`. All is one function that uses nothing from outside, so a page can give its
 * text, String(tinymamlTape), to a worker. Memory is allotted when a tape is compiled.
 * Numbers are stored in the dtype and added in float64, so that long sums of float32 keep
 * their digits.
 *
 * Left out: fusion, threads, SIMD, and checks of the tape: it was checked when recorded.
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

  // What the three primitives of convolution share, for shapes x, w and g. One image at a
  // time, the pixels under the kernel at each output pixel are copied to a row of a
  // matrix, the patches (H' W', kh kw C). So all three become products with long sums.
  function convolution(x, w, g, { stride, padding: [top, left] }, scratch) {
    const [n, height, width, channels] = x, [kh, kw] = w, [, rows, columns, features] = g;
    const pixels = rows * columns, taps = kh * kw * channels, image = height * width * channels;
    scratch.needs("patches", pixels * taps);
    scratch.needs("sums", taps * features); // of the images, for the gradient of w
    for (const sizes of [[taps, features], [features, taps], [pixels, features]]) // w, w^T, g
      scratch.needs("panels", panelled(...sizes));

    // Call visit(place in the patches, place in x or -1) for each row of C channels.
    function eachTap(start, visit) {
      let z = 0;
      for (let i = 0; i < rows; i++)
        for (let j = 0; j < columns; j++)
          for (let u = 0; u < kh; u++)
            for (let v = 0; v < kw; v++, z += channels) {
              const r = stride * i + u - top, q = stride * j + v - left;
              const inside = r >= 0 && r < height && q >= 0 && q < width;
              visit(z, inside ? start + (r * width + q) * channels : -1);
            }
    }
    const toPatches = (patches, from, start) => eachTap(start, (z, y) => {
      for (let c = 0; c < channels; c++) patches[z + c] = y < 0 ? 0 : from[y + c];
    });
    const addPatches = (to, start, patches) => eachTap(start, (z, y) => {
      if (y >= 0) for (let c = 0; c < channels; c++) to[y + c] += patches[z + c];
    });
    return [{ n, image, pixels, taps, features, toPatches, addPatches }, scratch];
  }

  // Call visit(place in the pooled images, place in x of the largest element) for each
  // window of x: the first of equal ones, and a NaN counts as largest.
  function eachWindow(x, [n, height, width, channels], side, visit) {
    const rows = Math.floor(height / side), columns = Math.floor(width / side);
    let z = 0;
    for (let e = 0; e < n; e++)
      for (let i = 0; i < rows; i++)
        for (let j = 0; j < columns; j++)
          for (let c = 0; c < channels; c++) {
            const first = ((e * height + i * side) * width + j * side) * channels + c;
            let best = first;
            for (let u = 0; u < side; u++)
              for (let v = 0; v < side; v++) {
                const y = first + (u * width + v) * channels;
                if (x[y] > x[best] || (Number.isNaN(x[y]) && !Number.isNaN(x[best]))) best = y;
              }
            visit(z++, best);
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
    constant_array: { fill: (out, { numbers }) => out.set(numbers.map(Number)) },
    add: { run(out, a, b) { for (let i = 0; i < out.length; i++) out[i] = a[i] + b[i]; } },
    sub: { run(out, a, b) { for (let i = 0; i < out.length; i++) out[i] = a[i] - b[i]; } },
    mul: { run(out, a, b) { for (let i = 0; i < out.length; i++) out[i] = a[i] * b[i]; } },
    scale: {
      settings: ({ number }, _, { Floats }) => [new Floats([number])[0]], // rounded
      run(out, a, factor) { for (let i = 0; i < out.length; i++) out[i] = a[i] * factor; },
    },
    gate: { run(out, a, x) { for (let i = 0; i < out.length; i++) out[i] = x[i] <= 0 ? 0 : a[i]; } },
    relu: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = a[i] <= 0 ? 0 : a[i]; } },
    exp: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = Math.exp(a[i]); } },
    log: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = Math.log(a[i]); } },
    sin: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = Math.sin(a[i]); } },
    cos: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = Math.cos(a[i]); } },
    tanh: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = Math.tanh(a[i]); } },
    reciprocal: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = 1 / a[i]; } },
    rsqrt: { run(out, a) { for (let i = 0; i < out.length; i++) out[i] = 1 / Math.sqrt(a[i]); } },
    logsumexp: {
      settings: lastAxis,
      run(out, a, width) {
        for (let i = 0, start = 0; i < out.length; i++, start += width) {
          let top = -Infinity, sum = 0;
          for (let k = 0; k < width; k++) top = Math.max(top, a[start + k]);
          if (Math.abs(top) === Infinity) top = 0; // no Infinity - Infinity
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
    swap: {
      settings: ({ start, middle, stop }, [shape]) =>
        [around(shape, start, middle)[1], ...around(shape, middle, stop).slice(1)],
      run(out, a, m, n, inner) {
        for (let o = 0, z = 0; o < a.length; o += m * n * inner)
          for (let j = 0; j < n; j++)
            for (let i = 0; i < m; i++)
              for (let p = 0, y = o + (i * n + j) * inner; p < inner; p++) out[z++] = a[y++];
      },
    },
    reshape: { view: () => 0 },
    rematerialise: { view: () => 0 },
    stop_gradient: { view: () => 0 },
    slice: { view: ({ start }) => start },
    pad: { settings: ({ start }) => [start], run(out, a, start) { out.fill(0).set(a, start); } },
    concat: {
      run(out, ...vectors) {
        for (let i = 0, start = 0; i < vectors.length; start += vectors[i++].length)
          out.set(vectors[i], start);
      },
    },
    conv: {
      settings: (attributes, [x, w, g], scratch) => convolution(x, w, g, attributes, scratch),
      run(out, x, w, { n, image, pixels, taps, features, toPatches }, { panels, patches }) {
        out.fill(0);
        pack(panels, w, 0, features, 1, taps, features);
        for (let e = 0; e < n; e++) {
          toPatches(patches, x, e * image);
          addProduct(out, e * pixels * features, pixels, features, taps, patches, 0, taps, 1, panels);
        }
      },
    },
    conv_input: {
      settings: (attributes, [g, w, x], scratch) => convolution(x, w, g, attributes, scratch),
      run(out, g, w, { n, image, pixels, taps, features, addPatches }, { panels, patches }) {
        out.fill(0);
        pack(panels, w, 0, 1, features, features, taps);
        for (let e = 0; e < n; e++) {
          patches.fill(0, 0, pixels * taps);
          addProduct(patches, 0, pixels, taps, features, g, e * pixels * features, features, 1, panels);
          addPatches(out, e * image, patches);
        }
      },
    },
    conv_weight: {
      settings: (attributes, [x, g, w], scratch) => convolution(x, w, g, attributes, scratch),
      run(out, x, g, { n, image, pixels, taps, features, toPatches }, { panels, patches, sums }) {
        sums.fill(0, 0, out.length);
        for (let e = 0; e < n; e++) {
          toPatches(patches, x, e * image);
          pack(panels, g, e * pixels * features, features, 1, pixels, features);
          addProduct(sums, 0, taps, features, pixels, patches, 0, 1, taps, panels);
        }
        out.set(sums.subarray(0, out.length));
      },
    },
    max_gather: {
      settings: ({ size: side }, [, images]) => [images, side],
      run(out, a, x, images, side) { eachWindow(x, images, side, (z, y) => { out[z] = a[y]; }); },
    },
    max_scatter: {
      settings: ({ size: side }, [, images]) => [images, side],
      run(out, g, x, images, side) {
        out.fill(0);
        eachWindow(x, images, side, (z, y) => { out[y] = g[z]; });
      },
    },
  };

  // --- compiling --------------------------------------------------------------------

  function check(fits, name, expected, came) {
    if (!fits) throw new Error(`${name}: expected ${expected}, got ${came}`);
  }

  // Which buffer each value of a tape is in: the array of every node. `order` is the
  // order in which the nodes run, and perTask[i] says whether node i runs for every task.
  function allot({ nodes, outputs }, order, perTask, Floats) {
    // A view lies in the buffer of another node, its root, from `start` on.
    const root = [...nodes.keys()], start = nodes.map(() => 0);
    nodes.forEach(([name, [first], attributes], i) => {
      const { view } = PRIMITIVES[name];
      if (view) [root[i], start[i]] = [root[first], start[first] + view(attributes)];
    });
    // When each buffer is read last. What is filled beforehand, what every task reads
    // again and what is a result is needed to the end.
    const last = nodes.map(([name]) => (PRIMITIVES[name].fill ? Infinity : 0));
    order.forEach((i, time) => {
      for (const k of nodes[i][1].map((argument) => root[argument]))
        last[k] = perTask[i] && !perTask[k] ? Infinity : Math.max(last[k], time);
    });
    for (const { node } of Object.values(outputs)) last[root[node]] = Infinity;
    // A value takes the smallest free buffer that is large enough, or the largest, grown.
    const sizes = [], free = new Set(), bufferOf = [];
    order.forEach((i, time) => {
      const [, args, , shape] = nodes[i], wanted = size(shape);
      if (root[i] === i) {
        const fitting = [...free].sort((a, b) => sizes[a] - sizes[b]);
        let buffer = fitting.find((b) => sizes[b] >= wanted) ?? fitting.pop();
        if (last[i] === Infinity || buffer === undefined) buffer = sizes.push(0) - 1;
        free.delete(buffer);
        sizes[buffer] = Math.max(sizes[buffer], wanted);
        bufferOf[i] = buffer;
      }
      for (const k of args) if (last[root[k]] === time) free.add(bufferOf[root[k]]);
    });
    const buffers = sizes.map((n) => new Floats(n));
    return nodes.map(([, , , shape], i) =>
      buffers[bufferOf[root[i]]].subarray(start[i], start[i] + size(shape)));
  }

  // The number of tasks T, if the arrays that are given fit the inputs.
  function tasksOf(inputs, given) {
    const names = inputs.map(([name]) => name).sort(), came = Object.keys(given ?? {}).sort();
    check(String(names) === String(came), "inputs", names.join(", "), came.join(", ") || given);
    let tasks;
    for (const [name, { shape, per_task }] of inputs) {
      const array = given[name], n = size(shape);
      const view = ArrayBuffer.isView(array), flat = view ? typeof (array[0] ?? 0) === "number" :
        Array.isArray(array) && array.findIndex((number) => typeof number !== "number") < 0;
      const came = () => (view ? array.constructor.name : JSON.stringify(array)?.slice(0, 60));
      if (!flat) check(false, name, "a flat array of numbers", came());
      if (per_task && tasks === undefined) {
        tasks = array.length / n;
        check(tasks > 0 && tasks % 1 === 0, name, `${n} numbers for each task`, array.length);
      }
      const wanted = per_task ? n * tasks : n;
      check(array.length === wanted, name, `${wanted} numbers`, array.length);
    }
    return tasks ?? 1;
  }

  // A program that runs an exported tape in "float32" or "float64".
  function compile(exported, dtype) {
    const Floats = new Map([["float32", Float32Array], ["float64", Float64Array]]).get(dtype);
    check(Floats, "dtype", "float32 or float64", dtype);
    const format = exported?.format;
    check(format === "tinymaml-tape-1", "exported", "a tape of the format tinymaml-tape-1", format);
    const { nodes } = exported;
    for (const [name] of nodes)
      check(Object.hasOwn(PRIMITIVES, name), "exported", "primitives of the table", name);
    const inputs = Object.entries(exported.inputs), outputs = Object.entries(exported.outputs);

    // What no per-task input reaches comes first and runs once.
    const perTask = nodes.map(() => false);
    for (const [, input] of inputs) perTask[input.node] = input.per_task;
    nodes.forEach(([, args], i) => { perTask[i] ||= args.some((k) => perTask[k]); });
    const order = [...nodes.keys()].sort((i, j) => perTask[i] - perTask[j] || i - j);
    const arrays = allot(exported, order, perTask, Floats);

    // Products and convolutions share this memory: each needs it during its own run only.
    const most = { panels: 0, patches: 0, sums: 0 };
    const scratch = { Floats, needs(name, count) { most[name] = Math.max(most[name], count); } };
    const once = [], everyTask = [];
    for (const i of order) {
      const [name, args, attributes, shape] = nodes[i];
      const { fill, run, settings = () => [] } = PRIMITIVES[name];
      if (fill) fill(arrays[i], attributes);
      if (!run) continue;
      const shapes = [...args.map((k) => nodes[k][3]), shape];
      const operands = [...args.map((k) => arrays[k]), ...settings(attributes, shapes, scratch)];
      (perTask[i] ? everyTask : once).push(() => run(arrays[i], ...operands));
    }
    scratch.panels = new Float64Array(most.panels);
    scratch.patches = new Floats(most.patches);
    scratch.sums = new Float64Array(most.sums);

    function load(given, which, task) {
      for (const [name, { node, per_task }] of inputs) {
        if (per_task !== which) continue;
        const to = arrays[node], from = given[name], start = task * to.length;
        for (let i = 0; i < to.length; i++) to[i] = from[start + i];
      }
    }

    function run(given) {
      const tasks = tasksOf(inputs, given);
      const results = outputs.map(([, { shape, reduction }]) =>
        (reduction === "each" ? new Floats(tasks * size(shape)) : new Float64Array(size(shape))));
      load(given, false, 0);
      for (const step of once) step();
      for (let task = 0; task < tasks; task++) {
        load(given, true, task);
        for (const step of everyTask) step();
        outputs.forEach(([, { node, reduction }], i) => {
          const value = arrays[node], result = results[i];
          if (reduction === "each") result.set(value, task * value.length);
          else for (let k = 0; k < value.length; k++) result[k] += value[k];
        });
      }
      return Object.fromEntries(outputs.map(([name, { reduction }], i) =>
        [name, reduction === "each" ? results[i] : new Floats(results[i])]));
    }

    return { run };
  }

  return { compile, PRIMITIVES };
}

if (typeof module !== "undefined") module.exports = tinymamlTape();
