// Find the goal: two policies that do not see it, and steps along their policy gradients.
//
// Three names to meet first:
//   paths   twenty trajectories, (20, horizon + 1, 2) positions and the actions between
//           them; judged for a goal, they also have rewards and lengths (moves taken)
//   stage   what is to be seen after 0, 1, 2 or 3 steps: paths, return, field
//   field   what one more step changes in the policy's mean action, on a grid of positions
//
// From numbers to pictures: noise -> walk -> judged (for the goal) -> advantages ->
// innerStep -> walk again. `adaptations` yields a stage of each policy in turn, in a
// worker; the view keeps them by policy and step, and draws those of the chosen step.
"use strict";

tinymaml.explorable(
  "find-the-goal",

  function model({ compile }, data, tools) {
    const { trajectories, horizon } = data;
    const act = compile(data.act, "float64");
    const gradient = compile(data.gradient, "float64");
    const names = Object.keys(data.starts);
    const grid = Float64Array.from({ length: 200 }, (_, i) =>
      // Ten columns of ten points, 0.2 apart.
      -0.9 + 0.2 * (i % 2 ? (i >> 1) % 10 : Math.floor((i >> 1) / 10)));
    let start = {}; // the start policies' paths, the same for every goal

    // --- the environment, as in tinymaml/tasks/navigation.py --------------------------

    // Standard normal numbers for the paths of every stage: (steps + 1, 20, horizon, 2).
    function noise(seed) {
      const random = tools.random(seed);
      const size = (data.steps + 1) * trajectories * horizon * 2;
      return Float64Array.from({ length: size }, () => random.normal());
    }

    const positionOf = ({ positions }, b, t) => {
      const i = (b * (horizon + 1) + t) * 2;
      return [positions[i], positions[i + 1]];
    };
    const distance = ([x, y], goal) => Math.hypot(x - goal[0], y - goal[1]);
    const isNear = (position, goal) =>
      position.every((p, k) => Math.abs(p - goal[k]) < data.near);
    const moved = (position, action) =>
      position + data.largestMove * Math.max(-1, Math.min(1, action));

    // Twenty paths of a policy. It does not see the goal, so no goal changes a path: it
    // decides the rewards, and when the path ends.
    function walk(theta, noise) {
      const positions = new Float64Array(trajectories * (horizon + 1) * 2);
      const actions = new Float64Array(trajectories * horizon * 2);
      const x = new Float64Array(trajectories * 2);
      const noiseNow = new Float64Array(trajectories * 2);
      const at = (i, t, length) => ((i >> 1) * length + t) * 2 + (i & 1);
      for (let t = 0; t < horizon; t++) {
        for (let i = 0; i < x.length; i++) noiseNow[i] = noise[at(i, t, horizon)];
        const action = act.run({ theta, x, noise: noiseNow }).actions;
        for (let i = 0; i < x.length; i++) {
          x[i] = moved(x[i], action[i]);
          actions[at(i, t, horizon)] = action[i];
          positions[at(i, t + 1, horizon + 1)] = x[i];
        }
      }
      return { positions, actions };
    }

    // The same paths with rewards (20, horizon), minus the distance after each move, and
    // lengths (20,). A path ends near the goal; what comes after it does not count.
    function judged({ positions, actions }, goal) {
      const rewards = new Float64Array(trajectories * horizon);
      const lengths = new Float64Array(trajectories);
      let arrived = 0;
      for (let b = 0; b < trajectories; b++) {
        let near = false;
        for (let t = 0; t < horizon && !near; t++) {
          const [x, y] = positionOf({ positions }, b, t + 1);
          rewards[b * horizon + t] = -distance([x, y], goal);
          lengths[b] = t + 1;
          near = isNear([x, y], goal);
        }
        arrived += near;
      }
      const total = rewards.reduce((sum, reward) => sum + reward, 0);
      return { positions, actions, rewards, lengths, arrived, return: total / trajectories };
    }

    // The returns of standing still and of walking straight to a goal that is known.
    function references(goal) {
      let position = [0, 0], straight = 0;
      for (let t = 0; t < horizon && (t === 0 || !isNear(position, goal)); t++) {
        position = position.map((p, k) => moved(p, (goal[k] - p) / data.largestMove));
        straight -= distance(position, goal);
      }
      return { still: -horizon * distance([0, 0], goal), straight };
    }

    // --- advantages, as in tinymaml/rl/advantages.py ----------------------------------

    // sum_i discount^i r_{t+i} of every path; numbers after its end are 0.
    function discountedSums(numbers, discount) {
      const sums = new Float64Array(numbers.length);
      for (let i = numbers.length - 1; i >= 0; i--) {
        const isLast = i % horizon === horizon - 1;
        sums[i] = numbers[i] + (isLast ? 0 : discount * sums[i + 1]);
      }
      return sums;
    }

    // Calls visit(place in (20, horizon), path, time) for every move that was taken.
    function eachMove({ lengths }, visit) {
      for (let b = 0; b < trajectories; b++)
        for (let t = 0; t < lengths[b]; t++) visit(b * horizon + t, b, t);
    }

    // Ridge regression of the returns on [x, x^2, t, t^2, t^3, 1], and its predictions.
    function linearBaseline(paths, returns) {
      const count = 8;
      const features = (b, t) => {
        const [x, y] = positionOf(paths, b, t).map((p) =>
          Math.max(-data.clip, Math.min(data.clip, p)));
        const time = t / data.timeUnit;
        return [x, y, x * x, y * y, time, time ** 2, time ** 3, 1];
      };
      const normal = Array.from({ length: count }, (_, i) =>
        Array.from({ length: count + 1 }, (_, j) => (i === j ? data.ridge : 0)));
      eachMove(paths, (i, b, t) => {
        const f = features(b, t);
        for (let row = 0; row < count; row++) {
          for (let k = 0; k < count; k++) normal[row][k] += f[row] * f[k];
          normal[row][count] += f[row] * returns[i];
        }
      });
      const weights = solve(normal);
      const values = new Float64Array(returns.length);
      eachMove(paths, (i, b, t) => {
        values[i] = features(b, t).reduce((sum, f, k) => sum + f * weights[k], 0);
      });
      return values;
    }

    // Gauss's elimination, with the largest pivot: rows of [matrix | right side].
    function solve(rows) {
      const n = rows.length;
      for (let k = 0; k < n; k++) {
        const best = [...rows.keys()].slice(k)
          .reduce((i, j) => (Math.abs(rows[j][k]) > Math.abs(rows[i][k]) ? j : i));
        [rows[k], rows[best]] = [rows[best], rows[k]];
        for (let i = 0; i < n; i++) {
          if (i === k) continue;
          const factor = rows[i][k] / rows[k][k];
          for (let j = k; j <= n; j++) rows[i][j] -= factor * rows[k][j];
        }
      }
      return rows.map((row, k) => row[n] / row[k]);
    }

    // Generalised advantage estimates, standardised: (20, horizon).
    function advantages(paths) {
      const returns = discountedSums(paths.rewards, data.discount);
      const values = linearBaseline(paths, returns);
      const deltas = new Float64Array(returns.length);
      eachMove(paths, (i, b, t) => {
        const next = t + 1 < paths.lengths[b] ? values[i + 1] : 0;
        deltas[i] = paths.rewards[i] + data.discount * next - values[i];
      });
      const estimates = discountedSums(deltas, data.discount * data.decay);
      const moves = paths.lengths.reduce((sum, length) => sum + length, 0);
      let mean = 0, variance = 0;
      eachMove(paths, (i) => { mean += estimates[i] / moves; });
      eachMove(paths, (i) => { variance += (estimates[i] - mean) ** 2 / moves; });
      eachMove(paths, (i) => {
        estimates[i] = (estimates[i] - mean) / (Math.sqrt(variance) + 1e-8);
      });
      return estimates;
    }

    // --- the inner loop, as in tinymaml/rl/maml_trpo.py -------------------------------

    // The moves that were taken, in chunks for the tape. The last chunk is filled up
    // with the first move, which counts nothing there.
    function chunked(paths, advantages) {
      const moves = [];
      eachMove(paths, (i, b, t) => moves.push([i, b, t]));
      const padded = Math.ceil(moves.length / data.chunk) * data.chunk;
      const inputs = {
        x: new Float64Array(padded * 2),
        actions: new Float64Array(padded * 2),
        advantages: new Float64Array(padded),
        weights: new Float64Array(padded),
      };
      for (let n = 0; n < padded; n++) {
        const [i, b, t] = moves[n < moves.length ? n : 0];
        inputs.x.set(positionOf(paths, b, t), 2 * n);
        inputs.actions.set(paths.actions.subarray(2 * i, 2 * i + 2), 2 * n);
        inputs.advantages[n] = advantages[i];
        inputs.weights[n] = n < moves.length ? 1 / moves.length : 0;
      }
      return inputs;
    }

    // theta' = theta - alpha grad L(theta), with L the loss whose gradient is eq. (4).
    function innerStep(theta, paths, alpha) {
      const inputs = chunked(paths, advantages(paths));
      const g = gradient.run({ theta, ...inputs }).gradient;
      return theta.map((number, i) => number - alpha * g[i]);
    }

    // The mean actions on the grid: (100, 2).
    const means = (theta) => act.run({ theta, x: grid, noise: grid.map(() => 0) }).mean;

    // The stages of all policies: 0 of each, then 1 of each. As in the authors' code,
    // alpha is halved after the first step. All policies have the same noise.
    function* adaptations(goal, alphas, seed) {
      if (start.seed !== seed) start = { seed, noise: noise(seed), paths: {} };
      const thetas = names.map((name) => Float64Array.from(data.starts[name]));
      const size = trajectories * horizon * 2;
      for (let step = 0; step <= data.steps; step++) {
        const ofStep = start.noise.subarray(step * size, (step + 1) * size);
        for (const [i, name] of names.entries()) {
          const theta = thetas[i], alpha = alphas[name] / (step > 0 ? 2 : 1);
          const known = step === 0 && start.paths[name];
          const paths = judged(known || walk(theta, ofStep), goal);
          if (step === 0) start.paths[name] = paths;
          thetas[i] = innerStep(theta, paths, alpha);
          const before = means(theta);
          const field = means(thetas[i]).map((mean, k) => mean - before[k]);
          yield { name, step, paths, field, theta };
        }
      }
    }

    return { names, grid, positionOf, noise, judged, references, advantages, adaptations };
  },

  function view({ root, model, data, kit, worker }) {
    const { element, number } = kit;
    const policies = {
      maml: { title: "MAML", colour: "exact" },
      pretrained: { title: "Pretrained", colour: "pretrained" },
    };
    const each = (visit) => Object.entries(policies).forEach(([name, policy]) => visit(policy, name));
    const state = {
      goal: [0.3, 0.4], seed: 1, step: 0, alphas: { ...data.alphas },
      field: true, moves: data.horizon, // so many moves of every path are drawn
      asked: 0, // questions to the worker: the stages of an older one are out of date
    };
    const stages = Object.fromEntries(model.names.map((name) => [name, []]));
    const chosen = (name) => stages[name][state.step];
    const isComplete = (step) =>
      model.names.every((name) => stages[name][step]?.asked === state.asked);

    // --- controls and pictures' places ------------------------------------------------

    const row = kit.row(root);
    kit.choice(row, {
      label: "Gradient steps", value: 0,
      options: Array.from({ length: data.steps + 1 }, (_, i) => [i, String(i)]),
      onInput(step) { state.step = step; show(); walk(); say(); },
    });
    kit.button(row, "New goal", () => {
      moveGoal([0, 1].map(() => data.goals[0] + (data.goals[1] - data.goals[0]) * Math.random()));
      walkWhenReady = true;
    });
    kit.button(row, "Draw paths again", () => { state.seed += 1; walkWhenReady = true; ask(); });
    if (!kit.still()) kit.button(row, "Walk again", walk);
    kit.toggle(row, {
      label: "Policy gradient", value: state.field,
      onInput(on) { state.field = on; show(); },
    });
    const status = kit.status(root);
    status.node.classList.add("x-goal-status");
    status.say("Twenty paths of each policy are being drawn.");
    const columns = element("div", { class: "x-columns x-even" });
    root.append(columns);
    each((policy, name) => {
      const title = element("p", { class: `x-goal-title x-${policy.colour}` }, policy.title);
      const column = element("div", {}, title);
      columns.append(column);
      policy.plot = kit.plot(column, {
        label: `Twenty paths, ${policy.title}`, x: [-1, 1], y: [-1, 1], equal: true,
        onTap: moveGoal, redraw: (plot) => draw(plot, name),
      });
      const goal = policy.plot.handle({
        label: `Goal, ${policy.title}`, name: "query", step: 0.02,
        get: () => state.goal, set: moveGoal,
      });
      goal.node.lastChild.replaceWith(kit.shape("path", { d: star(12), class: "x-knob x-query" }));
      const alpha = kit.slider(column, {
        label: "First step's α", min: 0.05, max: 1, step: 0.05, value: state.alphas[name],
        onInput(value) { state.alphas[name] = value; ask(); },
      });
      alpha.input.setAttribute("aria-label", `First step's α, ${policy.title}`);
      policy.table = kit.table(column, ["gradient steps", "mean return", "paths at the goal"]);
      policy.table.node.setAttribute("aria-label", `Mean returns, ${policy.title}`);
    });
    kit.legend(root, [
      ["query", "goal, which no policy sees", "point"],
      ["muted", "where goals were in training", "dashes"],
      ["muted", "arrows: how the next step changes the mean move, at half its length"],
    ]);

    function star(radius) {
      const corners = Array.from({ length: 10 }, (_, i) => {
        const r = i % 2 ? 0.45 * radius : radius;
        return `${r * Math.sin((i * Math.PI) / 5)} ${-r * Math.cos((i * Math.PI) / 5)}`;
      });
      return `M${corners.join("L")}Z`;
    }

    // --- pictures ---------------------------------------------------------------------

    function draw(plot, name) {
      const [low, high] = data.goals;
      const square = [[low, low], [high, low], [high, high], [low, high], [low, low]];
      plot.line(square, "muted", { dashed: true, width: 1 });
      if (!chosen(name)) return;
      const { field, paths } = chosen(name), { colour } = policies[name];
      for (let i = 0; state.field && i < field.length; i += 2) {
        const from = [model.grid[i], model.grid[i + 1]];
        const to = from.map((p, k) => p + 0.5 * data.largestMove * field[i + k]);
        plot.arrow(from, to, "muted", { width: 1.5, fade: 0.8 });
      }
      const ends = [];
      for (let b = 0; b < data.trajectories; b++) {
        const length = Math.min(state.moves, paths.lengths[b]);
        const points = Array.from({ length: length + 1 }, (_, t) => model.positionOf(paths, b, t));
        // The colour of a path fades with time: the way there is darker than the rest.
        plot.line(points.slice(0, 16), colour, { width: 1.5, fade: 0.8 });
        if (length > 15) plot.line(points.slice(15), colour, { width: 1, fade: 0.3 });
        ends.push(points[length]);
      }
      for (const end of ends) plot.dot(end, colour, { radius: 4 });
    }

    function show() {
      each(({ plot, table }, name) => {
        plot.update();
        table.rows(Array.from({ length: data.steps + 1 }, (_, step) => {
          const paths = stages[name][step]?.paths;
          return [String(step), ...(paths ? [paths.return, `${paths.arrived} of ${data.trajectories}`] : ["…", "…"])];
        }));
        table.light(state.step);
        table.node.classList.toggle("is-old", !isComplete(data.steps));
      });
    }

    function say() {
      if (!isComplete(state.step)) return; // it is said at the end of the adaptation
      const count = ["Before any step", "After 1 step"][state.step] ?? `After ${state.step} steps`;
      const results = model.names.map((name) => {
        const { paths } = chosen(name);
        return `${policies[name].title}: mean return ${number(paths.return)}, ${paths.arrived} of ${data.trajectories} paths end at the goal.`;
      });
      const { still, straight } = model.references(state.goal);
      status.say(`${count}. ${results.join(" ")} Standing still would give ${number(still)}, walking straight to the goal ${number(straight)}.`);
    }

    // The points walk, slowly at first, for most of the way is gone in a few moves.
    let animation = null, walkWhenReady = true;
    function walk() {
      animation?.stop();
      animation = kit.animate(2500, (t) => {
        state.moves = Math.round(data.horizon * t * t);
        each(({ plot }) => plot.update());
      });
    }

    // --- what is asked of the worker --------------------------------------------------

    function moveGoal(goal) {
      state.goal = goal.map((p) => Math.round(1000 * p) / 1000);
      animation?.stop();
      state.moves = data.horizon;
      // The start policy's paths stay: the goal only decides what they are worth.
      for (const [first] of Object.values(stages))
        if (first) first.paths = model.judged(first.paths, state.goal);
      ask();
    }

    // One adaptation runs at a time. If the goal was moved meanwhile the next begins as
    // soon as the chosen step has been drawn, so that the picture follows the goal.
    let running = null;
    function ask() {
      state.asked += 1;
      if (!running) begin();
      show();
    }

    function begin() {
      const { asked, goal, alphas, seed } = state;
      running = worker().stream("adaptations", [goal, alphas, seed], (stage) => {
        stages[stage.name][stage.step] = { ...stage, asked };
        if (stage.name !== model.names.at(-1)) return;
        if (asked !== state.asked && stage.step >= state.step) running.stop();
        if (walkWhenReady && isComplete(state.step)) {
          walkWhenReady = false;
          walk();
        }
        show();
      }, (error) => {
        running = null;
        if (asked !== state.asked) begin();
        else if (error) status.say(`This could not be computed: ${error.message}`);
        else say();
      });
    }

    ask();
  },
);
