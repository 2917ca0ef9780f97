// Four starts adapt to the points that a reader places; a fifth is meta-trained here.
//
// Data flow: points -> adapt (theta_0 .. theta_J of a start, by tinymaml's inner step)
// -> curve (what the network draws with one of them) -> the plots. Beside the page, in a
// worker, metaTrain follows tinymaml's meta-gradient from random weights and yields its
// theta every few iterations; it becomes the fifth start, "yours".
"use strict";

tinymaml.explorable(
  "four-starts",

  function model({ compile }, data, tools) {
    // Ten steps let rounding grow, and cost the same in float64.
    const step = compile(data.step, "float64");
    const predict = compile(data.curve, "float64");
    const meta = {
      exact: compile(data.meta.exact, "float32"),
      first: compile(data.meta.first, "float32"),
    };
    const DIVERGED = 1e4; // an error on the points; waves have 25 at the most

    // Random weights: normal with variance 2 / inputs (He), and biases of 0.
    function randomTheta(seed) {
      const random = tools.random(seed);
      const theta = new Float32Array(data.size);
      for (const [begin, end, inputs] of data.weights)
        for (let i = begin; i < end; i++) theta[i] = random.normal() * Math.sqrt(2 / inputs);
      return theta;
    }

    // The tape has ten places; those without a point have weight 0.
    function placed(points) {
      const fill = (f) => Float64Array.from({ length: data.places }, (_, i) => (i < points.length ? f(points[i]) : 0));
      return { x: fill(([x]) => x), y: fill(([, y]) => y), weights: fill(() => 1) };
    }

    // J inner steps on the points: theta_0 .. theta_J, and the error on the points with
    // each. The list ends before the first theta whose error says that it diverged.
    function adapt(theta, alpha, points, steps) {
      const fixed = { alpha: [alpha], ...placed(points) };
      const thetas = [], errors = [];
      for (let j = 0; j <= steps; j++) {
        const result = step.run({ theta, ...fixed });
        if (!(result.error[0] < DIVERGED)) return { thetas, errors, diverged: j };
        thetas.push(theta);
        errors.push(result.error[0]);
        theta = result.theta;
      }
      return { thetas, errors, diverged: null };
    }

    const curve = (theta) => predict.run({ theta, x: data.grid }).y;

    // A wave of the paper's tasks: a sin(x - phase).
    const heightAt = (wave, x) => wave.amplitude * Math.sin(x - wave.phase);

    function drawWave(random) {
      return { amplitude: random.uniform(0.1, 5), phase: random.uniform(0, Math.PI) };
    }

    // The mean squared error of a curve against a whole wave.
    function waveError(y, wave) {
      let sum = 0;
      data.grid.forEach((x, i) => { sum += (y[i] - heightAt(wave, x)) ** 2; });
      return sum / data.grid.length;
    }

    // T waves, and K support and K query points of each.
    function drawTasks(random, tasks = data.tasks) {
      const K = data.places, arrays = {};
      const waves = Array.from({ length: tasks }, () => drawWave(random));
      for (const kind of ["support", "query"]) {
        const x = Float32Array.from({ length: tasks * K }, () => random.uniform(-5, 5));
        arrays[`x_${kind}`] = x;
        arrays[`y_${kind}`] = x.map((number, i) => heightAt(waves[Math.floor(i / K)], number));
      }
      return arrays;
    }

    // One iteration after another: the mean meta-gradient of the tasks, and Adam.
    function trainer(order, theta) {
      const adam = tools.adam(theta.length, data.rate);
      return function iterate(tasks) {
        const { loss, gradient } = meta[order].run({ theta, alpha: [data.alpha], ...tasks });
        const count = tasks.x_support.length / data.places;
        adam.update(theta, gradient.map((number) => number / count));
        return loss[0] / count;
      };
    }

    // Without end: whoever takes the values stops.
    function* metaTrain(order, seed, every) {
      const theta = randomTheta(seed), random = tools.random(1000 + seed);
      const iterate = trainer(order, theta);
      for (let iteration = every; ; iteration += every) {
        const losses = Array.from({ length: every }, () => iterate(drawTasks(random)));
        yield { iteration, losses, theta: theta.slice() };
      }
    }

    // The same on tasks that are given, one batch for each iteration: for the tests.
    function metaTrainOn(order, theta, batches) {
      const iterate = trainer(order, theta);
      return { losses: batches.map(iterate), theta };
    }

    // A wave for the reader, and places x for points on it.
    function drawTask(seed, count, half) {
      const random = tools.random(seed);
      const wave = drawWave(random);
      return { wave, x: Array.from({ length: count }, () => random.uniform(half ? 0 : -5, 5)) };
    }

    const tasksOf = (seed, tasks) => drawTasks(tools.random(seed), tasks);
    return { randomTheta, adapt, curve, heightAt, waveError, drawTask, tasksOf, metaTrain, metaTrainOn };
  },

  function view({ root, model, data, kit, worker }) {
    const STEPS = 10, HEIGHT = 6;
    const { element, number } = kit;
    const NAMES = { random: "random", pretrained: "pretrained", first: "first order", exact: "MAML", yours: "yours" };
    const state = { seed: 1, half: true, step: 1, alpha: null, tasks: 1, training: null, runs: [] };
    // Nobody has trained the random start: it takes the learning rate of MAML.
    const starts = { random: { theta: model.randomTheta(state.seed), alpha: data.starts.exact.alpha }, ...data.starts };
    const shown = { random: true, pretrained: true, first: true, exact: true, yours: true, wave: true, mean: false, before: false };
    let { wave, points } = { wave: data.first.wave, points: data.first.x.map((x) => [x, model.heightAt(data.first.wave, x)]) };
    let fits = {};

    // --- the parts of the page -------------------------------------------------------

    const columns = element("div", { class: "x-columns" });
    root.append(columns);
    const left = element("div"), right = element("div");
    columns.append(left, right);

    const plot = kit.plot(left, {
      label: "Your points, and what each start draws. A tap on the ground adds a point.",
      x: [-5, 5], y: [-HEIGHT, HEIGHT], ratio: 0.66, least: 250, redraw: drawCurves, onTap: addPoint,
    });
    const stepRow = kit.row(left);
    const stepSlider = kit.slider(stepRow, {
      label: "steps", min: 0, max: STEPS, step: 1, value: state.step, format: (v) => String(v), onInput: (v) => setStep(v),
    });
    const stepButton = kit.button(stepRow, "Take a step", () => setStep(state.step + 1, true), { main: true });
    kit.button(stepRow, "Back to 0", () => setStep(0, true));

    const check = (row, name, label, colour = name) => kit.toggle(row, {
      label, name: colour, value: shown[name], onInput: (on) => { shown[name] = on; drawAll(); describe(); },
    });
    const startRow = kit.row(left), overlays = kit.row(left);
    for (const name of Object.keys(starts)) check(startRow, name, NAMES[name]);
    const yoursCheck = check(startRow, "yours", NAMES.yours);
    yoursCheck.node.hidden = true;
    check(overlays, "wave", "the wave", "true");
    check(overlays, "mean", "−1.62 cos x, the mean of all waves", "muted");
    check(overlays, "before", "before any step (thin)", "muted");

    const alphaRow = kit.row(left);
    const alphaSlider = kit.slider(alphaRow, {
      label: "α for all starts", min: 1e-4, max: 10 ** 0.5, step: 0.05, value: 1e-3, log: true,
      format: (v) => (state.alpha === null ? "own" : number(v, 2)),
      onInput: (v) => { state.alpha = v; alphaSlider.value = v; adaptAll(); },
    });
    const ownButton = kit.button(alphaRow, "Each its own", () => { state.alpha = null; alphaSlider.value = 1e-3; adaptAll(); });

    const pointRow = kit.row(left);
    kit.button(pointRow, "New wave", newWave);
    const addButton = kit.button(pointRow, "Add a point", addInGap);
    const removeButton = kit.button(pointRow, "Remove a point", () => removePoint(points.length - 1));
    kit.button(pointRow, "Onto the wave", () => { points = points.map(([x]) => onWave(x)); adaptAll(); });
    kit.toggle(pointRow, { label: "all points in one half", value: state.half, onInput: setHalf });

    const table = kit.table(right, ["start", "α", "on points", "on wave"], { caption: "Mean squared error on your points and on the whole wave" });
    const errorPlot = kit.plot(right, {
      label: "Mean squared error on the whole wave after each step", x: [0, STEPS], y: [0.01, 100], logY: true, ratio: 0.42,
      xLabel: "steps", yLabel: "error on the wave", redraw: drawErrors, onTap: ([x]) => setStep(Math.round(x)),
    });
    const status = kit.status(right);

    // --- points ----------------------------------------------------------------------

    const clamp = (v, low, high) => Math.max(low, Math.min(high, v));
    const onWave = (x) => [x, model.heightAt(wave, x)];
    let handles = [];

    function makeHandles(focus = null) {
      handles.forEach((handle) => handle.remove());
      handles = points.map((_, i) => plot.handle({
        label: `Point ${i + 1}`, name: "support",
        get: () => points[i],
        set: ([x, y]) => { points[i] = [state.half ? Math.max(0, x) : x, y]; later(); },
        say: () => `x ${number(points[i][0], 2)}, y ${number(points[i][1], 2)}`,
        remove: () => removePoint(i, true),
      }));
      kit.allow(addButton, points.length < data.places);
      kit.allow(removeButton, points.length > 1);
      if (focus !== null) handles[Math.min(focus, points.length - 1)].node.focus();
    }

    function addPoint([x, y]) {
      if (points.length >= data.places) {
        status.say(`There is room for ${data.places} points.`);
        return false;
      }
      points.push([clamp(x, state.half ? 0 : -5, 5), clamp(y, -HEIGHT, HEIGHT)]);
      makeHandles();
      adaptAll();
      return true;
    }

    // On the wave, in the middle of the widest gap between two points.
    function addInGap() {
      const xs = [state.half ? 0 : -5, ...points.map(([x]) => x).sort((a, b) => a - b), 5];
      const gaps = xs.slice(1).map((x, i) => x - xs[i]);
      const widest = gaps.indexOf(Math.max(...gaps));
      addPoint(onWave(xs[widest] + gaps[widest] / 2));
    }

    function removePoint(i, focus = false) {
      if (points.length <= 1) return status.say("One point must stay.");
      points.splice(i, 1);
      makeHandles(focus ? i : null);
      adaptAll();
    }

    // Squeeze the points into the right half, or spread them again; their distances from
    // the wave stay, as far as the plot has room for them.
    function setHalf(half) {
      state.half = half;
      points = points.map(([x, y]) => {
        const moved = half ? x / 2 + 2.5 : clamp(2 * x - 5, -5, 5);
        return [moved, clamp(y - model.heightAt(wave, x) + model.heightAt(wave, moved), -HEIGHT, HEIGHT)];
      });
      adaptAll();
    }

    function newWave() {
      const task = model.drawTask(++state.tasks, points.length, state.half);
      wave = task.wave;
      points = task.x.map(onWave);
      adaptAll();
    }

    // --- adapting --------------------------------------------------------------------

    function adapt(name) {
      const { theta, alpha } = starts[name];
      const fit = model.adapt(theta, state.alpha ?? alpha, points, STEPS);
      fit.curves = fit.thetas.map(model.curve);
      fit.onWave = fit.curves.map((y) => model.waveError(y, wave));
      fits[name] = fit;
    }

    function adaptAll() {
      Object.keys(starts).forEach(adapt);
      drawAll();
      describe();
    }

    let waiting = false; // a dragged point moves more often than a screen is drawn
    function later() {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; adaptAll(); });
    }

    let motion = null, between = null; // while the curves move from one step to the next: [from, t]
    function setStep(step, moving = false) {
      const from = state.step;
      state.step = clamp(step, 0, STEPS);
      stepSlider.value = state.step;
      motion?.stop();
      between = null;
      if (moving) motion = kit.animate(350, (t) => { between = t < 1 ? [from, t] : null; plot.update(); });
      drawAll();
      describe();
    }

    // --- drawing ---------------------------------------------------------------------

    const visible = () => Object.keys(starts).filter((name) => shown[name]);
    const waveLine = () => Array.from(data.grid, onWave);
    const asLine = (y) => Array.from(data.grid, (x, i) => [x, y[i]]);

    function drawCurves() {
      if (state.half) plot.area([[0, -HEIGHT], [5, -HEIGHT], [5, HEIGHT], [0, HEIGHT]], "muted");
      if (shown.mean) plot.line(asLine(data.grid.map((x) => -1.62 * Math.cos(x))), "muted", { width: 9, fade: 0.4 });
      if (shown.wave) plot.line(waveLine(), "true", { dashed: true });
      for (const name of visible()) {
        const { curves } = fits[name];
        if (shown.before && state.step) plot.line(asLine(curves[0]), name, { width: 1 });
        const [to, from] = [curves[state.step], curves[between?.[0]]];
        if (!to) continue; // diverged before
        plot.line(asLine(from ? to.map((y, i) => from[i] + between[1] * (y - from[i])) : to), name, { width: 2.5 });
      }
    }

    function drawErrors() {
      errorPlot.line([[state.step, 0.01], [state.step, 100]], "muted", { dashed: true, width: 1 });
      visible().forEach((name, i) => {
        const { onWave: errors, diverged } = fits[name];
        errorPlot.line(errors.map((error, j) => [j, error]), name);
        if (errors[state.step] !== undefined) errorPlot.dot([state.step, errors[state.step]], name);
        if (diverged !== null) errorPlot.text([diverged, 100], "diverged", name, { dx: 2, dy: 16 + 15 * i });
      });
    }

    const isGone = (fit) => fit.diverged !== null && fit.diverged <= state.step;
    const arrow = (errors) => (state.step ? `${number(errors[0])} → ${number(errors[state.step])}` : number(errors[0]));

    function drawAll() {
      plot.update();
      errorPlot.update();
      yoursPlot.update();
      kit.allow(stepButton, state.step < STEPS);
      kit.allow(ownButton, state.alpha !== null);
      table.rows(visible().map((name) => {
        const fit = fits[name], alpha = number(state.alpha ?? starts[name].alpha, 2);
        const label = element("span", {}, element("span", { class: `x-swatch x-ink x-${name}`, "aria-hidden": "true" }), NAMES[name]);
        if (isGone(fit)) return [label, alpha, "diverged", `in step ${fit.diverged}`];
        return [label, alpha, arrow(fit.errors), arrow(fit.onWave)];
      }));
    }

    // In words, after what the reader did; not with every picture of the training.
    function describe() {
      const steps = state.step === 1 ? "1 step" : `${state.step} steps`;
      const results = visible().map((name) => {
        const fit = fits[name];
        return `${NAMES[name]} ${isGone(fit) ? "diverged" : number(fit.onWave[state.step])}`;
      });
      const given = `After ${steps} on ${points.length === 1 ? "1 point" : `${points.length} points`}`;
      status.say(results.length ? `${given}, the error on the whole wave: ${results.join(", ")}.` : `${given}. No start is shown.`);
    }

    // --- meta-training here ----------------------------------------------------------

    root.append(element("h2", { class: "x-heading" }, "Meta-train here"));
    const trainRow = kit.row(root);
    const order = kit.choice(trainRow, { label: "Meta-gradient", options: [["exact", "exact"], ["first", "first order"]] });
    const seed = kit.choice(trainRow, {
      label: "Seed", options: [[1, "1"], [2, "2"], [3, "3"]],
      onInput(value) {
        state.seed = value;
        starts.random.theta = model.randomTheta(value);
        adaptAll();
      },
    });
    const trainButton = kit.button(trainRow, "Train", () => (state.training ? stop() : train()), { main: true });
    const facts = kit.row(root);
    const iterations = kit.readout(facts, "iterations", "yours"), loss = kit.readout(facts, "loss", "yours");
    const speed = kit.readout(facts, "iterations a second");
    for (const fact of [iterations, loss, speed]) fact.set("–");
    const news = kit.status(root);
    const lower = element("div", { class: "x-columns x-even" });
    root.append(lower);
    const yoursPlot = kit.plot(lower, {
      label: "Your start on your points: before any step, thin, and after one step",
      x: [-5, 5], y: [-HEIGHT, HEIGHT], ratio: 0.5, yLabel: "before, and after 1 step", redraw: drawYours,
    });
    const lossPlot = kit.plot(lower, {
      label: "Loss of meta-training after the inner step, against iterations", x: [0, 500], y: [0.1, 20], logY: true, ratio: 0.5,
      xLabel: "iterations", yLabel: "loss after the step", redraw: drawLosses,
    });

    function drawYours() {
      if (shown.wave) yoursPlot.line(waveLine(), "true", { dashed: true });
      const [before, after] = fits.yours?.curves ?? [];
      if (before) yoursPlot.line(asLine(before), "yours", { width: 1 });
      if (after) yoursPlot.line(asLine(after), "yours", { width: 2.5 });
      for (const point of points) yoursPlot.dot(point, "support", { radius: 5 });
      if (!fits.yours) yoursPlot.text([-4.8, -HEIGHT], "Press Train: your start appears here.", "muted", { dx: 0, dy: -8 });
    }

    // At most 200 dots of a run: means of neighbours, for one batch alone says little.
    function drawLosses() {
      lossPlot.line([[0, data.meanError], [1e9, data.meanError]], "muted", { dashed: true, width: 1 });
      lossPlot.text([lossPlot.x[1], data.meanError], `−1.62 cos x: ${number(data.meanError, 2)}`, "muted", { dx: -6, anchor: "end" });
      state.runs.forEach((run, i) => {
        const many = Math.max(1, Math.ceil(run.losses.length / 200)), line = [];
        for (let k = 0; k + many <= run.losses.length; k += many)
          line.push([run.every * (k + many / 2), run.losses.slice(k, k + many).reduce((a, b) => a + b) / many]);
        const last = i === state.runs.length - 1;
        lossPlot.line(line, last ? "yours" : run.order, last ? {} : { width: 1, fade: 0.7 });
      });
    }

    const EVERY = 10;
    function train() {
      const run = { order: order.value, seed: seed.value, every: EVERY, losses: [] }, begin = performance.now();
      state.runs = [...state.runs.slice(-3), run];
      const take = ({ iteration, losses, theta }) => {
        if (state.training?.run !== run) return; // stopped in between
        run.losses.push(losses.reduce((a, b) => a + b) / losses.length);
        run.iteration = iteration;
        starts.yours = { theta, alpha: data.alpha };
        yoursCheck.node.hidden = false;
        run.recent = mean(run.losses.slice(-10));
        lossPlot.x[1] = Math.max(500, ...state.runs.map((r) => 1.1 * r.iteration));
        iterations.set(String(iteration));
        loss.set(run.recent);
        speed.set(((1000 * iteration) / (performance.now() - begin)).toFixed(0));
        adapt("yours");
        drawAll();
        lossPlot.update();
      };
      state.training = { run, stream: worker().stream("metaTrain", [run.order, run.seed, EVERY], take, (error) => error && stop(error)) };
      trainButton.textContent = "Stop";
      news.say(`Training from the random weights of seed ${run.seed}.`);
    }

    const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;

    function stop(error) {
      if (!state.training) return;
      const { run, stream } = state.training;
      stream.stop();
      state.training = null;
      if (!run.iteration) state.runs = state.runs.filter((other) => other !== run); // it has no curve
      trainButton.textContent = "Train again";
      describe();
      if (error) news.say(`Training ended: ${error.message}`);
      else if (run.iteration) news.say(`${run.iteration} iterations; the loss went from ${number(run.losses[0])} to ${number(run.recent)}.`);
      else news.say("Stopped before the first iterations were done.");
    }

    makeHandles();
    adaptAll();
  },
);
