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

    const tasksOf = (seed, tasks) => drawTasks(tools.random(seed), tasks);
    return { randomTheta, adapt, curve, heightAt, drawWave, waveError, tasksOf, metaTrain, metaTrainOn };
  },

  function view({ root, model, data, kit, worker }) {
    root.append(kit.element("p", {}, "To be made."));
  },
);
