// Walk back: the meta-gradient of a loss of two parameters, one step at a time.
//
//     task  (name, theta, alpha, J)  ->  walk  ->  a plane, two tables, lines of code
//
// Three names meet a reader first. A *task* is a support loss S and a query loss Q, given
// by their numbers. A *walk* is all that happens from one start: the inner loop forwards,
// the recursion back, and the true slope by finite differences. *back* says how many
// steps of the recursion the reader has taken: at 0 the arrow is v_J, which first-order
// MAML takes, and at J it is v_0, the meta-gradient.
"use strict";

tinymaml.explorable(
  "walk-back",

  function model({ compile }, data) {
    const loss = compile(data.tapes.loss, "float64");
    const product = compile(data.tapes.product, "float64");
    const wholes = Object.fromEntries(
      Object.entries(data.tapes.meta).map(([steps, tape]) => [steps, compile(tape, "float64")]),
    );
    const minus = (a, b) => a.map((number, i) => number - b[i]);
    const times = (factor, a) => a.map((number) => factor * number);
    const length = (a) => Math.hypot(...a);

    // Both loss and gradient, of many points at once: theta is their entries end to end.
    const evaluate = ([x, y], theta) => loss.run({ theta, x, y });
    const hvp = ([x, y], theta, v) => product.run({ theta, v, x, y }).product;

    // The same lines as inner_loop and meta_gradient in tinymaml/maml.py.
    function innerLoop(task, theta, alpha, steps) {
      const thetas = [Float64Array.from(theta)];
      for (let j = 0; j < steps; j++)
        thetas.push(minus(thetas[j], times(alpha, evaluate(task.support, thetas[j]).gradient)));
      return thetas;
    }

    function metaGradient(task, thetas, alpha) {
      let v = evaluate(task.query, thetas[thetas.length - 1]).gradient;
      const cotangents = [v];
      const products = [];
      for (const thetaJ of thetas.slice(0, -1).reverse()) {
        products.push(hvp(task.support, thetaJ, times(alpha, v)));
        v = minus(v, products[products.length - 1]);
        cotangents.push(v);
      }
      return { cotangents: cotangents.reverse(), products: products.reverse() };
    }

    // The query loss after the inner loop, from each of many starts.
    function after(name, starts, alpha, steps) {
      const task = data.tasks[name];
      return evaluate(task.query, innerLoop(task, starts, alpha, steps)[steps]).loss;
    }

    // The slope of that loss, without any derivative: a little to either side.
    function trueSlope(name, [u, w], alpha, steps, width = 1e-5) {
      const starts = [u + width, w, u - width, w, u, w + width, u, w - width];
      const losses = after(name, starts, alpha, steps);
      return [(losses[0] - losses[1]) / (2 * width), (losses[2] - losses[3]) / (2 * width)];
    }

    // tinymaml's own meta_gradient, which is one tape from theta_0 to v_0.
    function whole(name, theta, alpha, steps) {
      const { support: [x, y], query: [z, goal] } = data.tasks[name];
      const { exact, first_order } = wholes[steps].run({
        theta, alpha: [alpha], x_support: x, y_support: y, x_query: z, y_query: goal,
      });
      return { exact, firstOrder: first_order };
    }

    function walk(name, theta, alpha, steps) {
      const task = data.tasks[name];
      const thetas = innerLoop(task, theta, alpha, steps);
      const { cotangents, products } = metaGradient(task, thetas, alpha);
      const one = whole(name, theta, alpha, steps);
      // Where the meta-gradient vanishes the size is that of the first-order one.
      const size = Math.max(length(one.exact), length(one.firstOrder), 1e-12);
      const differences = [minus(cotangents[0], one.exact), minus(cotangents[steps], one.firstOrder)];
      return {
        thetas, products, cotangents, whole: one,
        difference: Math.max(...differences.map(length)) / size,
        queryLoss: evaluate(task.query, thetas[steps]).loss[0],
        slope: trueSlope(name, theta, alpha, steps),
      };
    }

    const support = (name, points) => evaluate(data.tasks[name].support, points).loss;
    return { walk, after, support };
  },

  function view({ root, model, data, kit }) {
    const REACH = 0.6; // of the line through theta_0, to either side
    const LONGEST = 2.5; // of an arrow, in units of the plane
    const state = { task: "quadratic", ground: "losses", back: 0, moving: null };
    let walk, scale, along;

    const digit = (n) => "₀₁₂₃₄₅"[n];
    const add = (a, b, factor = 1) => [a[0] + factor * b[0], a[1] + factor * b[1]];
    const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
    const size = (a) => Math.hypot(a[0], a[1]);
    const degrees = (a, b) => Math.round((180 / Math.PI) * Math.acos(Math.max(-1, Math.min(1, dot(a, b) / (size(a) * size(b)))))) || 0;
    const { number } = kit;
    // An entry that is nothing beside the other one is written as 0.
    const pair = (v, digits) => kit.pair([...v].map((n) => (Math.abs(n) < 1e-6 * size(v) ? 0 : n)), digits);

    // --- what is on the page -----------------------------------------------------------

    const choices = kit.row(root);
    choices.classList.add("x-walk-controls");
    const tasks = Object.entries(data.tasks).map(([name, task]) => [name, task.title]);
    kit.choice(choices, { label: "Loss", options: tasks, onInput: load });
    const steps = kit.choice(choices, {
      label: "Inner steps J", options: [1, 2, 3, 4, 5].map((n) => [n, String(n)]),
      onInput: (n) => {
        state.back = state.back === state.steps ? n : 0; // who has seen v_0 goes on seeing it
        state.steps = n;
        change();
      },
    });
    const alpha = kit.slider(choices, {
      label: "α", min: 0, max: 1, step: 0.005, value: 0.5,
      onInput: (value) => { state.alpha = value; change(); },
    });

    const columns = kit.element("div", { class: "x-columns" });
    const left = kit.element("div"), right = kit.element("div");
    columns.append(left, right);
    root.append(columns);

    const first = data.tasks[state.task];
    const plane = kit.plot(left, {
      label: "The plane of the two parameters: contour lines, the inner loop from theta 0, and the gradients of the recursion",
      x: first.across, y: first.up, equal: true, redraw: drawWalk, background: drawGround, onTap: place,
    });
    plane.handle({ label: "Start theta 0", name: "true", step: 0.05, get: () => state.theta, set: place });
    const buttons = kit.row(left);
    const one = kit.button(buttons, "One step back", () => stepBack(), { main: true });
    const all = kit.button(buttons, "All the way", allBack);
    const again = kit.button(buttons, "Again", () => { stop(); state.back = 0; show(); one.focus(); });
    const status = kit.status(left);
    const note = kit.element("p", { class: "x-walk-note" });
    left.append(note);
    const legend = kit.element("div");
    left.append(legend);
    kit.choice(left, {
      label: "Contours", options: [["losses", "S and Q"], ["meta", "Q after J steps, over θ₀"]],
      onInput: (value) => { state.ground = value; change(); },
    });
    const code = kit.code(left, data.code.lines);
    left.append(kit.element("p", { class: "x-walk-note" }, data.code.place));

    const compare = kit.table(right, ["at θ₀", "gradient", "slope", "off by"], { caption: "How does Q after J steps change with θ₀? The slope is that along the dashed line." });
    compare.node.classList.add("x-walk-table");
    const slopes = kit.plot(right, {
      label: "The query loss after the inner loop, along a line through theta 0, with the slopes that the gradients predict",
      x: [-REACH, REACH], y: [0, 1], ratio: 0.42, least: 150,
      xLabel: "distance from θ₀ along the dashed line", yLabel: "Q after J steps", redraw: drawSlopes,
    });
    const same = kit.element("p", { class: "x-walk-note" });
    right.append(same);
    const table = kit.table(right, ["j", "θⱼ", "Hⱼ(αvⱼ₊₁)", "vⱼ"], { caption: "The recursion, last step first" });
    table.node.classList.add("x-walk-table");

    // --- from a change to the picture ----------------------------------------------------

    function load(name) {
      const task = data.tasks[name];
      stop();
      Object.assign(state, { task: name, theta: [...task.theta], alpha: task.alpha, steps: task.steps, back: 0 });
      alpha.value = state.alpha;
      steps.value = state.steps;
      [plane.x, plane.y] = [task.across, task.up];
      change();
    }

    function place(point) {
      state.theta = point.map((n) => Math.round(100 * n) / 100);
      change();
    }

    function change() {
      stop();
      walk = model.walk(state.task, state.theta, state.alpha, state.steps);
      const v0 = walk.cotangents[0];
      along = size(v0) > 1e-9 && Number.isFinite(size(v0)) ? [v0[0] / size(v0), v0[1] / size(v0)] : [1, 0];
      scale = readable([...walk.cotangents, ...walk.products]);
      followLine();
      // Contours stay as long as what they depend on does; theta_0 is no part of it.
      const { task, ground, alpha: rate, steps: J } = state;
      const contours = [task, ground, ...(ground === "meta" ? [rate, J] : [])].join();
      if (contours !== state.contours) plane.updateBackground();
      state.contours = contours;
      show();
    }

    // The largest of 2, 1, 0.5, 0.2, ... with which no arrow is too long.
    function readable(arrows) {
      const longest = Math.max(...arrows.map(size));
      if (!(longest < 1e6)) return 0; // the inner loop has run away
      const most = LONGEST / Math.max(longest, LONGEST / 2);
      const power = 10 ** Math.floor(Math.log10(most));
      return [5, 2, 1].find((n) => n * power <= most * 1.0001) * power;
    }

    function show() {
      const { steps: J, back } = state;
      plane.update();
      slopes.update();
      fillTables();
      code.light(...(back ? data.code.each_step : data.code.at_the_end));
      for (const button of [one, all]) kit.allow(button, back < J);
      kit.allow(again, back > 0);
      note.textContent = "Drag θ₀, tap, or use the arrow keys; θ = (u, w), u to the right. Arrows are gradients: they point uphill, " +
        `and a step goes the other way. ${scale ? `Their scale is × ${number(scale)}.` : "They are too long to be drawn."}`;
      legend.replaceChildren();
      kit.legend(legend, [
        ...(state.ground === "losses"
          ? [["support", data.tasks[state.task].formulas[0]], ["query", data.tasks[state.task].formulas[1], "dashes"]]
          : [["muted", `Q(θ${digit(J)}) as a function of θ₀`]]),
        ["true", `inner loop, θ₀ to θ${digit(J)}`],
        ["first", `v${digit(J)}, first order`],
        ["support", "− Hⱼ(αvⱼ₊₁)"],
        ["exact", "what is left: vⱼ"],
      ]);
      status.say(sentence());
    }

    // --- the walk, one step at a time ----------------------------------------------------

    function stop() {
      state.moving?.stop();
      state.moving = null;
      state.part = null;
    }

    // The arrows go from theta_{j+1} to theta_j, and there the product grows.
    function stepBack(milliseconds = 900) {
      stop();
      if (state.back === state.steps) return null;
      state.back += 1;
      show();
      const moving = kit.animate(milliseconds, (t) => {
        state.part = t < 1 ? { moved: Math.min(1, t / 0.45), grown: Math.max(0, (t - 0.45) / 0.55) } : null;
        plane.update();
      });
      state.moving = moving;
      return moving;
    }

    async function allBack() {
      let moving = null;
      do {
        moving = stepBack(600);
        await moving?.done;
      } while (moving && state.moving === moving); // and no click or drag has stopped it
    }

    // --- drawing -------------------------------------------------------------------------

    // Levels that leave equal areas between them show a flat valley and a steep wall alike.
    const levels = (count) => (values) => {
      const sorted = [...values].filter(Number.isFinite).sort((a, b) => a - b);
      return Array.from({ length: count }, (_, i) => sorted[Math.floor(((i + 0.5) / count) * sorted.length)]);
    };

    function drawGround(plot) {
      const { task, alpha: rate, steps: J } = state;
      const support = (points) => model.support(task, points.flat());
      const after = (steps) => (points) => model.after(task, points.flat(), rate, steps);
      if (state.ground === "losses") {
        plot.contours(support, levels(10), "support", { many: true, fade: 0.55 });
        plot.contours(after(0), levels(10), "query", { many: true, fade: 0.6, dashed: true });
      } else plot.contours(after(J), levels(12), "muted", { many: true, fade: 0.7 });
    }

    function drawWalk(plot) {
      const { thetas, cotangents } = walk;
      const { steps: J, back } = state;
      const { moved, grown } = state.part ?? { moved: 1, grown: 1 };
      plot.line([add(thetas[0], along, -REACH), add(thetas[0], along, REACH)], "muted", { dashed: true, width: 1.5 });
      plot.line(thetas, "true", { width: 2 });
      thetas.forEach((theta, j) => { if (j) plot.dot(theta, "true", { radius: j === J ? 5.5 : 4 }); });
      for (let j = J; j > J - back; j--) // what was found at later points
        plot.arrow(thetas[j], add(thetas[j], cotangents[j], scale), j === J ? "first" : "exact", { width: 2, fade: 0.4 });
      const here = thetas[J - back];
      const from = back ? thetas[J - back + 1] : here;
      if (scale) drawSum(plot, add(from, add(here, from, -1), moved), grown);
      thetas.forEach((theta, j) => plot.text(theta, `θ${digit(j)}`, "true", { dx: -8, dy: -8, anchor: "end" }));
    }

    // v_J minus the products so far, tip to tail, on top of what is left of it.
    function drawSum(plot, at, grown) {
      const { products, cotangents } = walk;
      const { steps: J, back } = state;
      const j = J - back; // of the product that grows
      const left = back ? add(cotangents[j + 1], products[j], -grown) : cotangents[J];
      if (back) plot.arrow(at, add(at, left, scale), "exact", { width: 6 });
      let tip = add(at, cotangents[J], scale);
      plot.arrow(at, tip, "first", { width: back ? 2.5 : 4 });
      label(plot, tip, cotangents[J], `v${digit(J)}`, "first");
      for (let k = J - 1; k >= j; k--) {
        const next = add(tip, products[k], -scale * (k === j ? grown : 1));
        plot.arrow(tip, next, "support", { width: k === j ? 3.5 : 2.5, fade: k === j ? 1 : 0.6 });
        if (k === j && grown === 1)
          label(plot, add(tip, products[k], -scale / 2), beside(products[k], add(at, tip, -1)), `−H${digit(k)}(αv${digit(k + 1)})`, "support");
        tip = next;
      }
      if (back && grown === 1)
        label(plot, add(at, left, 0.6 * scale), beside(left, cotangents[J]), `v${digit(j)}`, "exact");
    }

    // At right angles to a vector, on the side away from another one.
    const beside = ([u, w], other) => (dot([w, -u], other) > 0 ? [-w, u] : [w, -u]);

    // Text at a point, a little further in some direction.
    function label(plot, at, direction, text, name) {
      const [ux, uy] = direction.map((n) => n / (size(direction) || 1));
      const anchor = ux > 0.3 ? "start" : ux < -0.3 ? "end" : "middle";
      plot.text(at, text, name, { dx: 8 * ux, dy: 5 - 14 * uy, anchor });
    }

    const LINE = Array.from({ length: 81 }, (_, i) => REACH * (i / 40 - 1));
    const predicted = (v) => [-REACH, REACH].map((t) => [t, walk.queryLoss + t * dot(v, along)]);

    // The loss along the line, and an axis on which its slope can be seen.
    function followLine() {
      const starts = LINE.flatMap((t) => add(state.theta, along, t));
      walk.line = model.after(state.task, starts, state.alpha, state.steps);
      const tangent = predicted(walk.cotangents[0]).map(([, q]) => (q + walk.queryLoss) / 2);
      const values = [...walk.line, ...tangent].filter((q) => Math.abs(q) < 1e9);
      const low = Math.min(...values), high = Math.max(...values);
      const room = Math.max(0.12 * (high - low), 1e-3);
      slopes.y = values.length ? [low - room, high + room] : [0, 1];
    }

    function drawSlopes(plot) {
      const { steps: J, back } = state;
      plot.line(predicted(walk.cotangents[J]), "first", { dashed: true, width: 2.5 });
      if (back) plot.line(predicted(walk.cotangents[J - back]), "exact", { width: 2.5 });
      plot.line(LINE.map((t, i) => [t, walk.line[i]]), "true", { width: 2 });
      plot.dot([0, walk.queryLoss], "true", { radius: 5 });
    }

    // --- numbers and words -----------------------------------------------------------------

    function against(v) {
      const truth = walk.slope;
      if (!(size(truth) > 1e-6) || !Number.isFinite(size(v))) return "";
      if (size(add(v, truth, -1)) < 1e-4 * size(truth)) return "nothing";
      return `${degrees(v, truth)}°, × ${number(size(v) / size(truth))}`;
    }

    function fillTables() {
      const { thetas, products, cotangents } = walk;
      const { steps: J, back } = state;
      const j = J - back;
      const line = (name, v) => [name, pair(v), number(dot(v, along)), against(v)];
      compare.rows([
        line(`v${digit(J)}, first order`, cotangents[J]),
        back ? line(j ? `v${digit(j)}, on the way` : "v₀, exact", cotangents[j]) : ["v₀, exact", "…", "…", ""],
        ["finite differences", pair(walk.slope), number(dot(walk.slope, along)), ""],
      ]);
      compare.light(back === J ? 1 : -1);
      table.rows(Array.from({ length: J + 1 }, (_, i) => {
        const k = J - i; // from the last step to the first
        const reached = k >= j;
        return [
          String(k), pair(thetas[k]),
          k === J ? "" : reached ? pair(products[k]) : "…", reached ? pair(cotangents[k]) : "…",
        ];
      }));
      table.light(back);
      const { exact, firstOrder } = walk.whole;
      same.textContent = `tinymaml's meta_gradient, as one tape: exact ${pair(exact, 4)}, first order ${pair(firstOrder, 4)}. ` +
        (walk.difference < 1e-6 ? "The walk gives the same to 1e-6." : `The walk differs by ${number(walk.difference)} of it.`);
    }

    function sentence() {
      const { steps: J, back } = state;
      const { thetas, products, cotangents, slope } = walk;
      if (!Number.isFinite(size(thetas[J])) || size(thetas[J]) > 100)
        return `The inner loop runs away: with α = ${number(state.alpha)} the steps are too long for this loss.`;
      const j = J - back;
      if (back === 0)
        return `At θ${digit(J)} the query gradient is v${digit(J)} = ${pair(cotangents[J])}. The slope at θ₀ is ${pair(slope)}. Walk back to find it.`;
      const took = `At θ${digit(j)}, H${digit(j)}(αv${digit(j + 1)}) = ${pair(products[j])} is subtracted; v${digit(j)} = ${pair(cotangents[j])} is left.`;
      if (j > 0) return took;
      const found = against(cotangents[0]) === "nothing" ? " This is the true slope." : "";
      if (size(cotangents[0]) === 0) { // no direction, and no angle to it
        const first = size(cotangents[J]) === 0 ? "First order is zero, too." : `First order still gives ${pair(cotangents[J])}.`;
        return `${took} It is zero: where θ₀ is moved a little, Q does not change. ${first}`;
      }
      const angle = degrees(cotangents[J], cotangents[0]);
      const ratio = size(cotangents[J]) / size(cotangents[0]);
      if (against(cotangents[J]) === "nothing") return `${took}${found} So is first order.`;
      const than = angle > 90 ? ": a small step against it makes the query loss larger" : ` and ${number(ratio)} times as long`;
      return `${took}${found} First order is ${angle}° off${than}.`;
    }

    load(state.task);
  },
);
