// Draw five characters: one inner step of the shipped 5-way network on the reader's hand.
//
// Data flow: strokes -> `draw` (28 x 28 pixels, as omniglot.py prepares its images) ->
// `adapt` (theta_0 -> theta_J, the tape of the inner step) -> `classify` (logits of the
// query drawing, under theta_0 and theta_J, for three sources of the statistics of batch
// normalisation) -> bars.
//
// Three names to know:
// - characters: the five support drawings, each a list of strokes, each a list of points
//   [x, y] in 0 .. 1.
// - batch: five query drawings, one of each character. One of them, number `which`, is
//   the reader's query; the program draws the other four.
// - statistics: which drawings give the mean and the variance: "batch", "alone", "support".
"use strict";

tinymaml.explorable(
  "five-characters",

  function model({ compile }, data, { random }) {
    const WAYS = 5, SIZE = 105, SMALL = 28, PIXELS = SMALL * SMALL;
    const PEN = 2.5; // radius in pixels of 105: Omniglot's lines are five pixels wide
    const HAND = 2.5; // a hand moves lines by so many times the deviations of strokes.py
    const STATISTICS = ["batch", "alone", "support"];
    const programs = {};
    const program = (name, tape) => (programs[name] ??= compile(tape, "float32"));

    // --- from strokes to pixels ------------------------------------------------------

    // Ink of 255 wherever the centre of a pixel is within the pen of a line.
    function ink(strokes) {
      const image = new Uint8Array(SIZE * SIZE);
      const inside = (v) => Math.max(0, Math.min(SIZE, v));
      for (const stroke of strokes)
        stroke.forEach((point, i) => {
          const [ax, ay] = stroke[Math.max(i - 1, 0)].map((v) => v * SIZE);
          const [bx, by] = point.map((v) => v * SIZE);
          const dx = bx - ax, dy = by - ay, length2 = dx * dx + dy * dy;
          const left = inside(Math.floor(Math.min(ax, bx) - PEN)), right = inside(Math.ceil(Math.max(ax, bx) + PEN));
          const top = inside(Math.floor(Math.min(ay, by) - PEN)), bottom = inside(Math.ceil(Math.max(ay, by) + PEN));
          for (let y = top; y < bottom; y++)
            for (let x = left; x < right; x++) {
              const px = x + 0.5 - ax, py = y + 0.5 - ay;
              const t = length2 ? Math.max(0, Math.min(1, (px * dx + py * dy) / length2)) : 0;
              const ex = px - t * dx, ey = py - t * dy;
              if (ex * ex + ey * ey <= PEN * PEN) image[y * SIZE + x] = 255;
            }
        });
      return image;
    }

    // Pillow's LANCZOS filter from 105 to 28 pixels: for every new pixel the first old
    // one that it reads, and the weights from there on.
    const lanczos = Array.from({ length: SMALL }, (_, i) => {
      const scale = SIZE / SMALL, centre = (i + 0.5) * scale;
      const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
      const first = Math.max(0, Math.trunc(centre - 3 * scale + 0.5));
      const last = Math.min(SIZE, Math.trunc(centre + 3 * scale + 0.5));
      const weights = Array.from({ length: last - first }, (_, k) => {
        const x = (first + k + 0.5 - centre) / scale;
        return Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0;
      });
      const total = weights.reduce((a, b) => a + b);
      return { first, weights: weights.map((w) => w / total) };
    });

    // Columns first, then rows; both times Pillow rounds to bytes.
    function shrink(image) {
      const byte = (v) => Math.max(0, Math.min(255, Math.round(v)));
      const halfway = new Uint8Array(SIZE * SMALL), small = new Uint8Array(PIXELS);
      const filter = (to, z, from, start, step, { first, weights }) => {
        let sum = 0;
        weights.forEach((w, k) => { sum += w * from[start + (first + k) * step]; });
        to[z] = byte(sum);
      };
      for (let y = 0; y < SIZE; y++)
        lanczos.forEach((w, x) => filter(halfway, y * SMALL + x, image, y * SIZE, 1, w));
      for (let x = 0; x < SMALL; x++)
        lanczos.forEach((w, y) => filter(small, y * SMALL + x, halfway, x, SMALL, w));
      return small;
    }

    // What the network sees: 28 x 28 numbers, 1 for ink and 0 for the ground.
    const draw = (strokes) => Float32Array.from(shrink(ink(strokes)), (v) => v / 255);

    // The same character by another hand, as in tinymaml/tasks/strokes.py: every stroke
    // is bent by the moves of four control points, and all of them are turned and moved.
    // Hands differ more than there, so that the network errs about as often as on Omniglot.
    function shake(strokes, seed) {
      const { normal } = random(seed);
      const vary = (size) => [HAND * size * normal(), HAND * size * normal()];
      const [a, b] = [vary(0.07), vary(0.07)], shift = vary(0.03);
      return strokes.map((stroke) => {
        const moves = [vary(0.025), vary(0.025), vary(0.025), vary(0.025)];
        const lengths = [0]; // along the stroke, up to each point
        for (let i = 1; i < stroke.length; i++)
          lengths.push(lengths[i - 1] + Math.hypot(stroke[i][0] - stroke[i - 1][0], stroke[i][1] - stroke[i - 1][1]));
        return stroke.map((point, i) => {
          const t = lengths[i] / (lengths.at(-1) || 1), s = 1 - t;
          const weights = [s ** 3, 3 * s * s * t, 3 * s * t * t, t ** 3];
          const [x, y] = point.map((v, axis) => v - 0.5 + weights.reduce((sum, w, k) => sum + w * moves[k][axis], 0));
          return [0.5 + shift[0] + x * (1 + a[0]) + y * b[0], 0.5 + shift[1] + x * a[1] + y * (1 + b[1])];
        });
      });
    }

    // --- learning and classifying ----------------------------------------------------

    const join = (images) => {
      const all = new Float32Array(images.length * PIXELS);
      images.forEach((image, i) => all.set(image, i * PIXELS));
      return all;
    };

    // J inner steps on the support drawings (5 x 784): theta_J, and the support loss
    // S(theta_j) for j = 0 .. J.
    function adapt(support, alpha, steps) {
      const alphas = new Float32Array(data.theta.length).fill(alpha);
      for (const [from, to] of data.fixed) alphas.fill(0, from, to); // beta stays
      const y = Float32Array.from({ length: WAYS * WAYS }, (_, i) => (i % (WAYS + 1) ? 0 : 1));
      const innerStep = program("innerStep", data.innerStep);
      const losses = [];
      let theta = data.theta;
      for (let j = 0; j < steps; j++) {
        const result = innerStep.run({ theta, alpha: alphas, x: support, y });
        losses.push(result.loss[0]);
        theta = result.theta;
      }
      losses.push(program("loss", data.loss).run({ theta, x: support, y }).loss[0]);
      return { theta, losses };
    }

    // Logits (queries x 5). With the statistics "batch" queries come in groups of five.
    function classify(theta, support, queries, statistics) {
      const inputs = statistics === "support" ? { theta, x: queries, x_support: support } : { theta, x: queries };
      return program(statistics, data.logits[statistics]).run(inputs).logits;
    }

    function softmax(logits) {
      const top = Math.max(...logits);
      const powers = Array.from(logits, (v) => Math.exp(v - top));
      const total = powers.reduce((a, b) => a + b);
      return powers.map((p) => p / total);
    }

    // Probabilities of drawing `which` of the batch, for all three statistics.
    function answers(theta, support, batch, which) {
      const query = batch.subarray(which * PIXELS, (which + 1) * PIXELS);
      return Object.fromEntries(STATISTICS.map((statistics) => {
        const together = statistics === "batch";
        const logits = classify(theta, support, together ? batch : query, statistics);
        const from = together ? which * WAYS : 0;
        return [statistics, softmax(logits.subarray(from, from + WAYS))];
      }));
    }

    // How many drawings of a batch, one of each character in order, are classified right.
    function right(theta, support, batch, statistics) {
      const logits = classify(theta, support, batch, statistics);
      let count = 0;
      for (let n = 0; n < WAYS; n++) {
        const row = logits.subarray(n * WAYS, (n + 1) * WAYS);
        if (row.indexOf(Math.max(...row)) === n) count += 1;
      }
      return count;
    }

    // What depends on the characters and the seed alone: another alpha finds it again.
    let kept = {};
    function drawn(characters, seed) {
      const key = JSON.stringify([characters, seed]);
      if (kept.key !== key) kept = { key, support: join(characters.map(draw)), batches: [] };
      return kept;
    }

    // First the answers for the reader's query; then, batch by batch, how many of the
    // program's own drawings of the five characters are right before and after. In
    // between it yields null, so that a request to stop need not wait for a whole batch.
    function* lesson({ characters, batch, which, alpha, steps, batches, seed }) {
      const same = drawn(characters, seed), { support } = same;
      const queries = join(batch.map(draw));
      const { theta, losses } = adapt(support, alpha, steps);
      const before = answers(data.theta, support, queries, which);
      yield { losses, before, after: steps ? answers(theta, support, queries, which) : before };
      const score = { of: 0, before: {}, after: {} };
      for (let k = 0; k < batches; k++) {
        const test = (same.batches[k] ??= {
          drawings: join(characters.map((strokes, n) => draw(shake(strokes, seed + k * WAYS + n)))),
          before: {},
        });
        score.of += WAYS;
        for (const name of STATISTICS) {
          test.before[name] ??= right(data.theta, support, test.drawings, name);
          const after = steps ? right(theta, support, test.drawings, name) : test.before[name];
          score.before[name] = (score.before[name] ?? 0) + test.before[name];
          score.after[name] = (score.after[name] ?? 0) + after;
          yield null;
        }
        yield { score };
      }
    }

    return { ink, shrink, draw, shake, adapt, classify, lesson };
  },

  function view({ root, model, data, kit, worker }) {
    const { element, shape } = kit;
    const SIZE = 105, WAYS = 5;
    const NAMES = { batch: "batch of five queries", alone: "the query alone", support: "support set" };
    const state = {
      characters: data.samples.slice(0, WAYS),
      query: null, // strokes of the reader's hand, or null: the program draws `which`
      which: 2,
      alpha: data.alpha,
      steps: 1,
      statistics: "batch",
      seed: 25, // all five queries stay on their paper
    };
    let samples = WAYS; // how many have been shown
    let hands = 7000; // seeds of drawings by another hand
    const originals = [...state.characters]; // what "shake" draws again
    let answer = null, score = null; // of the last lesson
    const percent = (p) => `${(100 * p).toFixed(0)} %`;
    const best = (probabilities) => probabilities.indexOf(Math.max(...probabilities));
    const nextSample = () => data.samples[samples++ % data.samples.length];

    // Query drawing n of the batch: the reader's, or one by the program, which draws it
    // once for each character and seed.
    const byProgram = [];
    function queryOf(n) {
      if (n === state.which && state.query) return state.query;
      const strokes = state.characters[n], seed = 100 * state.seed + n;
      if (byProgram[n]?.strokes !== strokes || byProgram[n].seed !== seed)
        byProgram[n] = { strokes, seed, drawing: model.shake(strokes, seed) };
      return byProgram[n].drawing;
    }
    const batch = () => state.characters.map((_, n) => queryOf(n));

    // --- a pad to draw on: mouse, finger, or arrow keys and the space bar --------------

    // what: title, kind ("support" or "query"), get(), set(strokes), actions [[word, label, f]].
    function pad(parent, what) {
      const lines = shape("path", { class: "x-pad-ink" });
      const pen = shape("circle", { r: 3.5, class: "x-pad-pen" });
      const svg = shape("svg", { class: "x-pad", viewBox: `0 0 ${SIZE} ${SIZE}`, tabindex: "0", role: "application" }, lines, pen);
      const bar = element("div", { class: "x-pad-bar" }, ...what.actions.map(([word, label, act]) =>
        element("button", { type: "button", "aria-label": `${label} ${what.title}`, onclick: act }, word)));
      parent.append(element("div", { class: `x-pad-card x-${what.kind}` }, element("div", { class: "x-pad-title" }, what.heading), svg, bar));
      let tip = [0.5, 0.5], down = false; // the pen of the keyboard
      let drawn = null; // the stroke under the mouse or the finger
      const inside = (v) => Math.max(0.03, Math.min(0.97, v));

      function show() {
        const strokes = what.get();
        const text = ([x, y]) => `${(x * SIZE).toFixed(1)} ${(y * SIZE).toFixed(1)}`;
        lines.setAttribute("d", strokes.map((s) => `M${s.map(text).join("L")}${s.length === 1 ? "h0" : ""}`).join(""));
        pen.setAttribute("cx", tip[0] * SIZE);
        pen.setAttribute("cy", tip[1] * SIZE);
        svg.classList.toggle("is-down", down);
        svg.setAttribute("aria-label",
          `${what.title}, ${strokes.length} stroke${strokes.length === 1 ? "" : "s"}, pen ${down ? "down" : "up"}. Arrow keys move the pen, space lowers or lifts it, backspace undoes a stroke, delete clears.`);
      }

      function extend(point, begin = false) {
        const strokes = what.get();
        what.set(begin ? [...strokes, [point]] : [...strokes.slice(0, -1), [...strokes.at(-1), point]], false);
        show();
      }
      const where = (event) => {
        const box = svg.getBoundingClientRect();
        return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
      };
      svg.addEventListener("pointerdown", (event) => {
        if (!event.isPrimary || event.button !== 0) return; // a second finger, another button
        event.preventDefault();
        svg.focus({ preventScroll: true });
        svg.setPointerCapture(event.pointerId);
        down = false;
        extend(where(event), true);
        drawn = what.get().at(-1);
      });
      svg.addEventListener("pointermove", (event) => {
        if (!svg.hasPointerCapture(event.pointerId)) return;
        for (const part of event.getCoalescedEvents?.() ?? [event]) {
          if (what.get().at(-1) !== drawn) return; // it was deleted in between
          const point = where(part), [x, y] = drawn.at(-1);
          if (Math.hypot(point[0] - x, point[1] - y) <= 0.008) continue;
          extend(point);
          drawn = what.get().at(-1);
        }
      });
      svg.addEventListener("lostpointercapture", () => what.set(what.get(), true));
      svg.addEventListener("keydown", (event) => {
        if (event.altKey || event.ctrlKey || event.metaKey) return; // the browser's
        const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
        const way = ways[event.key];
        if (way) {
          const far = event.shiftKey ? 0.01 : 0.04;
          tip = [inside(tip[0] + way[0] * far), inside(tip[1] + way[1] * far)];
          if (down) { extend(tip); what.set(what.get(), true); }
        } else if (event.key === " ") {
          down = !down;
          if (down) extend(tip, true);
          what.set(what.get(), true);
        } else if (event.key === "Backspace") { down = false; what.set(what.get().slice(0, -1), true); }
        else if (event.key === "Delete") { down = false; what.set([], true); }
        else return;
        event.preventDefault();
        event.stopPropagation(); // the arrow keys turn the pages of this site otherwise
        show();
      });
      svg.addEventListener("blur", () => { down = false; show(); });
      return { show };
    }

    // --- what stands where -------------------------------------------------------------

    const grid = element("div", { class: "x-draw" });
    root.append(grid);
    const setCharacter = (n) => (strokes, finished) => {
      state.characters = state.characters.map((old, k) => (k === n ? strokes : old));
      originals[n] = strokes;
      if (finished) changed();
    };
    const shakeCharacter = (n) => {
      state.characters = state.characters.map((old, k) => (k === n ? model.shake(originals[n], hands++) : old));
      changed();
    };
    const pads = state.characters.map((_, n) => {
      const set = setCharacter(n);
      return pad(grid, {
        kind: "support", title: `character ${n + 1}`, heading: `${n + 1}`,
        get: () => state.characters[n], set,
        actions: [
          ["undo", "Undo a stroke of", () => set(state.characters[n].slice(0, -1), true)],
          ["clear", "Clear", () => set([], true)],
          ["sample", "A new sample for", () => set(nextSample(), true)],
          ["shake", "Draw by another hand", () => shakeCharacter(n)],
        ],
      });
    });
    const setQuery = (strokes, finished) => {
      state.query = strokes;
      if (finished) changed();
    };
    const query = () => queryOf(state.which);
    pads.push(pad(grid, {
      kind: "query", title: "the query", heading: "Which one is this?",
      get: query, set: setQuery,
      actions: [
        ["undo", "Undo a stroke of", () => setQuery(query().slice(0, -1), true)],
        ["clear", "Clear", () => setQuery([], true)],
        ["sample", "The program draws", () => { state.query = null; changed(); }],
        ["shake", "Draw by another hand", () => { state.query = null; state.seed += 1; changed(); }],
      ],
    }));

    const panel = element("div", { class: "x-draw-panel" });
    grid.append(panel);
    const top = kit.row(panel);
    kit.choice(top, {
      label: "It is meant to be", value: state.which,
      options: state.characters.map((_, n) => [n, `${n + 1}`]),
      onInput(n) { state.which = n; changed(); },
    });
    kit.button(top, "Five new samples", () => {
      state.characters = state.characters.map(nextSample);
      originals.splice(0, WAYS, ...state.characters);
      state.query = null;
      changed();
    });
    kit.button(top, "Clear all", () => {
      state.characters = state.characters.map(() => []);
      originals.fill([]);
      state.query = [];
      changed();
    });
    const controls = kit.row(panel);
    kit.slider(controls, {
      label: "Inner learning rate α", min: 0.004, max: 4, step: 0.02, log: true, value: state.alpha,
      onInput(alpha) { state.alpha = alpha; changed(); },
    });
    kit.choice(controls, {
      label: "Inner steps J", value: state.steps,
      options: [0, 1, 2, 3].map((n) => [n, `${n}`]),
      onInput(steps) { state.steps = steps; changed(); },
    });
    const bars = kit.bars(panel, {
      label: "Probabilities of the five characters for the query, before and after the inner steps",
      names: state.characters.map((_, n) => `${n + 1}`),
    });
    const last = element("span", {}, "after the inner steps, θ", element("sub", {}, "J"));
    const below = kit.row(panel);
    kit.legend(below, [["random", "before, θ₀"], ["exact", last]]);
    const time = kit.readout(below, "computed here in");
    const status = kit.status(panel);
    kit.choice(panel, {
      label: "Mean and variance from", value: state.statistics,
      options: Object.entries(NAMES),
      onInput(name) { state.statistics = name; showSources(); showAnswer(); },
    });
    const thumbs = ["support", "query"].map((kind) => {
      const canvases = state.characters.map(() => element("canvas", { width: 28, height: 28 }));
      const name = kind === "support" ? "support set" : "query batch";
      panel.append(element("div", { class: `x-thumbs x-${kind}`, "aria-hidden": "true" }, element("span", {}, name), ...canvases));
      return canvases;
    });
    const table = kit.table(panel, ["statistics of", "query", "test drawings right"],
      { caption: "Before → after. Test drawings: more of the five characters, by the program, five at a time." });

    // --- showing -----------------------------------------------------------------------

    const painted = new Map(); // what each canvas shows
    function showThumb(canvas, strokes) {
      if (painted.get(canvas) === strokes) return;
      painted.set(canvas, strokes);
      const pixels = canvas.getContext("2d").createImageData(28, 28);
      model.draw(strokes).forEach((v, i) => { pixels.data[4 * i + 3] = 255 * v; }); // black ink
      canvas.getContext("2d").putImageData(pixels, 0, 0);
    }

    function showSources() {
      const isSource = {
        batch: (set) => set === 1, alone: (set, n) => set === 1 && n === state.which, support: (set) => set === 0,
      }[state.statistics];
      thumbs.forEach((canvases, set) => canvases.forEach((canvas, n) => {
        canvas.classList.toggle("is-source", isSource(set, n));
        canvas.classList.toggle("is-query", set === 1 && n === state.which);
      }));
    }

    function showAnswer() {
      if (!answer) return;
      const { which, steps, characters } = answer, { statistics } = state; // it may be an older question's
      const before = answer.before[statistics], after = answer.after[statistics];
      bars.set(after, steps ? before : null);
      [...bars.node.children].forEach((line, n) => {
        line.querySelector(".x-bar-name").textContent = n === which ? `${n + 1}, meant` : `${n + 1}`;
      });
      const guess = best(after), verdict = guess === which ? "right" : `wrong, it should be ${which + 1}`;
      const [start, end] = [answer.losses[0], answer.losses.at(-1)].map((v) => kit.number(v));
      const learning = steps
        ? `After ${steps} inner step${steps > 1 ? "s" : ""} the query is taken for ${guess + 1} (${percent(after[guess])}): ${verdict}. Before, for ${best(before) + 1}. The support loss goes from ${start} to ${end}.`
        : `Without an inner step the query is taken for ${guess + 1} (${percent(after[guess])}): ${verdict}. The support loss is ${start}.`;
      status.say(characters.some((s) => s.length === 0) ? `${learning} A blank character is learned as a blank.` : learning);
      const names = Object.keys(NAMES);
      table.rows(names.map((name) => [
        NAMES[name],
        `${best(answer.before[name]) + 1} → ${best(answer.after[name]) + 1} (${percent(answer.after[name][best(answer.after[name])])})`,
        score ? `${score.before[name]} → ${score.after[name]} of ${score.of}` : "…",
      ]));
      table.light(names.indexOf(statistics));
    }

    // Drawings are shown at once; the lesson begins when the hand rests.
    let timer, running = null;
    function changed() {
      for (const each of pads) each.show();
      state.characters.forEach((strokes, n) => showThumb(thumbs[0][n], strokes));
      batch().forEach((strokes, n) => showThumb(thumbs[1][n], strokes));
      showSources();
      table.node.setAttribute("aria-busy", "true");
      running?.stop();
      running = null;
      clearTimeout(timer);
      timer = setTimeout(learn, 100);
    }

    function learn() {
      const { characters, which, alpha, steps, seed } = state;
      const begin = performance.now();
      const request = { characters, batch: batch(), which, alpha, steps, batches: 8, seed: 1000 * seed };
      const mine = (running = worker().stream("lesson", [request], (value) => {
        if (mine !== running || !value) return; // the reader has gone on, or nothing is new
        if (value.losses) {
          answer = { ...value, which, steps, characters };
          score = null;
          time.set(`${((performance.now() - begin) / 1000).toFixed(2)} s`);
        } else score = value.score;
        showAnswer();
      }, (error) => {
        if (mine !== running) return;
        table.node.removeAttribute("aria-busy");
        if (error) status.say(`The computation stopped: ${error.message}`);
      }));
    }
    changed();
  },
);
