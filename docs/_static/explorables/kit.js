// What the pages to play with are made of: plots, handles, sliders, switches, bars.
//
//     const plot = kit.plot(root, { label: "...", x: [-5, 5], y: [-3, 3], redraw });
//     function redraw(plot) { plot.line(points, "support"); plot.arrow(a, b, "exact"); }
//     plot.update();                                   // clears the plot and calls redraw
//     kit.slider(root, { label: "alpha", min: 0, max: 1, value: 0.1, onInput });
//
// Every control is a control of the browser or behaves like one: it can be reached and
// moved with the keyboard, has a name, and says its value. Colours are classes, x-NAME,
// which explorables.css defines for light and dark pages: support, query, exact, first,
// pretrained, random, true, muted. Their meaning is the same on all pages.
//
//     element(tag, attributes, ...children)    an HTML element
//     row(parent, ...children)                 a line of controls that wraps
//     plot(parent, options)                    axes; see there
//     slider, choice, toggle, button           controls
//     allow(button, may)                       whether a button does something now
//     readout(parent, label)                   a name and a value that changes
//     status(parent)                           a sentence that screen readers announce
//     table(parent, head, options)             rows of numbers, one of them lit
//     code(parent, lines)                      lines of source, one of them lit
//     bars(parent, options)                    probabilities before and after
//     legend(parent, entries)                  what the colours mean
//     animate(milliseconds, draw)              draw(0 .. 1); at once with reduced motion

function tinymamlKit() {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  let numbered = 0;
  const unique = (name) => `explorable-${name}-${++numbered}`;

  function element(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }

  function shape(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
  }

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== null && value !== false)
        node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  }

  function row(parent, ...children) {
    const node = element("div", { class: "x-row" }, ...children);
    parent.append(node);
    return node;
  }

  // --- numbers as text ---------------------------------------------------------------

  // Three digits or the whole part, with a true minus sign: 0.5, 12345, 1.20e−4.
  function number(value, digits = 3) {
    if (Number.isNaN(value)) return "not a number";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    const size = Math.abs(value);
    let text;
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) text = value.toExponential(digits - 1);
    else {
      const after = size === 0 ? 0 : digits - 1 - Math.floor(Math.log10(size));
      text = value.toFixed(Math.max(0, Math.min(after, 6)));
      if (text.includes(".")) text = text.replace(/\.?0+$/, "");
    }
    return (text === "-0" ? "0" : text).replaceAll("-", "−");
  }

  const pair = (point, digits = 3) => `(${number(point[0], digits)}, ${number(point[1], digits)})`;

  // Round numbers between two ends, about `count` of them.
  function ticks(low, high, count) {
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((n) => n * power >= raw * 0.999) * power;
    const first = Math.ceil(low / step - 1e-9);
    const last = Math.floor(high / step + 1e-9);
    return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
  }

  // --- plots -------------------------------------------------------------------------

  // options: label (what the plot shows, for who does not see it), x: [low, high],
  // y: [low, high], ratio (height / width; or equal: true for the same unit on both
  // axes), xLabel, yLabel, least (pixels of height), logY, redraw(plot), onTap([x, y])
  // for a click or tap on the ground, after which the last handle has the focus, unless
  // it returns false; background(plot) draws what lies below and changes
  // seldom: updateBackground() draws it again.
  function plot(parent, options) {
    const svg = shape("svg", { class: "x-plot", role: "img", "aria-label": options.label });
    const ground = shape("rect", { class: "x-ground" });
    const frame = shape("g", { class: "x-frame", "aria-hidden": "true", "pointer-events": "none" });
    const clip = unique("clip");
    const window_ = shape("rect");
    const behind = shape("g", { "clip-path": `url(#${clip})`, "aria-hidden": "true", "pointer-events": "none" });
    const drawing = shape("g", { "clip-path": `url(#${clip})`, "aria-hidden": "true", "pointer-events": "none" });
    let layer = drawing; // what is drawn on
    const above = shape("g");
    svg.append(shape("defs", {}, shape("clipPath", { id: clip }, window_)), ground, frame, behind, drawing, above);
    const holder = element("div", { class: "x-plot-holder" }, svg);
    parent.append(holder);
    const handles = [];
    const self = { x: [...options.x], y: [...options.y] };
    let width = 0, height = 0, box = { left: 0, top: 0, right: 1, bottom: 1 };
    const inY = (v) => (options.logY ? Math.log10(v) : v);

    // From numbers to pixels and back. Far outside they are cut, as SVG has no infinity.
    const cut = (v) => Math.max(-1e5, Math.min(1e5, Number.isNaN(v) ? 1e5 : v));
    self.toPixel = ([x, y]) => [
      cut(box.left + ((x - self.x[0]) / (self.x[1] - self.x[0])) * (box.right - box.left)),
      cut(box.bottom - ((inY(y) - inY(self.y[0])) / (inY(self.y[1]) - inY(self.y[0]))) * (box.bottom - box.top)),
    ];
    self.toPoint = ([left, top]) => {
      const y = inY(self.y[0]) + ((box.bottom - top) / (box.bottom - box.top)) * (inY(self.y[1]) - inY(self.y[0]));
      const x = self.x[0] + ((left - box.left) / (box.right - box.left)) * (self.x[1] - self.x[0]);
      return [x, options.logY ? 10 ** y : y];
    };
    const where = (event) => {
      const bounds = svg.getBoundingClientRect();
      return self.toPoint([event.clientX - bounds.left, event.clientY - bounds.top]);
    };
    const path = (points) => points.map((p, i) => `${i ? "L" : "M"}${self.toPixel(p).map((n) => n.toFixed(1)).join(" ")}`).join("");
    const add = (node) => { layer.append(node); return node; };

    self.line = (points, name, { dashed = false, width = 2, fade = 1 } = {}) =>
      add(shape("path", { d: path(points), class: `x-line x-${name}${dashed ? " x-dashed" : ""}`, "stroke-width": width, opacity: fade }));
    self.area = (points, name) => add(shape("path", { d: path(points) + "Z", class: `x-area x-${name}` }));
    self.dot = (point, name, { radius = 4, fade = 1 } = {}) => {
      const [cx, cy] = self.toPixel(point);
      return add(shape("circle", { cx, cy, r: radius, class: `x-dot x-${name}`, opacity: fade }));
    };
    self.text = (point, text, name = "muted", { dx = 6, dy = -6, anchor = "start" } = {}) => {
      const [x, y] = self.toPixel(point);
      return add(shape("text", { x: x + dx, y: y + dy, class: `x-text x-${name}`, "text-anchor": anchor }, text));
    };
    // From one point to another; the head has the size of ten pixels, and no more than
    // half of the arrow.
    self.arrow = (from, to, name, { width = 2.5, dashed = false, fade = 1 } = {}) => {
      const [x0, y0] = self.toPixel(from), [x1, y1] = self.toPixel(to);
      const length = Math.hypot(x1 - x0, y1 - y0);
      if (length < 0.5) return null;
      const head = Math.min(10, length / 2), ux = (x1 - x0) / length, uy = (y1 - y0) / length;
      const bx = x1 - head * ux, by = y1 - head * uy, half = head * 0.45;
      const tip = `M${x1} ${y1}L${bx - half * uy} ${by + half * ux}L${bx + half * uy} ${by - half * ux}Z`;
      const group = shape("g", { class: `x-arrow x-${name}`, opacity: fade },
        shape("path", { d: `M${x0} ${y0}L${bx} ${by}`, class: `x-line x-${name}${dashed ? " x-dashed" : ""}`, "stroke-width": width }),
        shape("path", { d: tip, class: `x-fill x-${name}` }));
      return add(group);
    };
    // Lines of equal value of f(x, y): marching squares on a grid of `cells` squares.
    // Each square's corners above the level choose which of its sides are joined. With
    // `many`, f is called once, with a list of points, and returns a list of values.
    self.contours = (f, levels, name, { cells = 48, width = 1, fade = 1, dashed = false, many = false } = {}) => {
      const rows = Math.max(8, Math.round((cells * (box.bottom - box.top)) / (box.right - box.left)));
      const xs = Array.from({ length: cells + 1 }, (_, i) => self.x[0] + (i / cells) * (self.x[1] - self.x[0]));
      const ys = Array.from({ length: rows + 1 }, (_, i) => self.y[0] + (i / rows) * (self.y[1] - self.y[0]));
      const all = many ? f(ys.flatMap((y) => xs.map((x) => [x, y]))) : null;
      const values = ys.map((y, j) => xs.map((x, i) => (many ? all[j * xs.length + i] : f(x, y))));
      for (const level of typeof levels === "function" ? levels(values.flat()) : levels) {
        let d = "";
        for (let j = 0; j < rows; j++)
          for (let i = 0; i < cells; i++) {
            const corner = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]];
            const height = corner.map(([a, b]) => values[b][a] - level);
            const ends = [];
            for (let k = 0; k < 4; k++) {
              const next = (k + 1) % 4;
              if (height[k] > 0 === height[next] > 0) continue;
              const t = height[k] / (height[k] - height[next]);
              const [a, b] = corner[k], [c, e] = corner[next];
              ends.push([xs[a] + t * (xs[c] - xs[a]), ys[b] + t * (ys[e] - ys[b])]);
            }
            for (let k = 0; k + 1 < ends.length; k += 2) d += path([ends[k], ends[k + 1]]);
          }
        if (d) add(shape("path", { d, class: `x-line x-${name}${dashed ? " x-dashed" : ""}`, "stroke-width": width, opacity: fade }));
      }
    };

    // A point that can be moved: with the mouse, a finger, or the arrow keys (with Shift
    // ten times as far). options: label, name (colour), get() -> [x, y], set([x, y]),
    // step (of a key), remove() for Delete. Other buttons of the mouse, and keys with Alt,
    // Ctrl or Command, belong to the browser; a second finger moves nothing.
    self.handle = (what) => {
      const circle = shape("circle", { r: what.radius ?? 8, class: `x-knob x-${what.name}` });
      const node = shape("g", { class: "x-handle", tabindex: "0", role: "slider", "aria-label": what.label },
        shape("circle", { r: 22, class: "x-reach" }), circle);
      const step = what.step ?? (self.x[1] - self.x[0]) / 100;
      const move = (point) => {
        const clamp = (v, [low, high]) => Math.max(low, Math.min(high, v));
        what.set([clamp(point[0], self.x), clamp(point[1], self.y)]);
      };
      node.addEventListener("pointerdown", (event) => {
        if (!event.isPrimary || event.button !== 0) return;
        event.preventDefault();
        event.stopPropagation();
        node.focus({ preventScroll: true });
        node.setPointerCapture(event.pointerId);
        node.classList.add("is-held");
      });
      // Inside of an SVG browsers overlook touch-action: the page would scroll away.
      node.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
      node.addEventListener("pointermove", (event) => {
        if (node.hasPointerCapture(event.pointerId)) move(where(event));
      });
      const release = () => node.classList.remove("is-held");
      node.addEventListener("pointerup", release);
      node.addEventListener("pointercancel", release);
      node.addEventListener("keydown", (event) => {
        if (event.altKey || event.ctrlKey || event.metaKey) return;
        const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
        if ((event.key === "Delete" || event.key === "Backspace") && what.remove) {
          event.preventDefault();
          what.remove();
        }
        const way = ways[event.key];
        if (!way) return;
        event.preventDefault();
        event.stopPropagation(); // the arrow keys turn the pages of this site otherwise
        const far = event.shiftKey ? 10 * step : step;
        const [x, y] = what.get();
        move([x + way[0] * far, y + way[1] * far]);
      });
      const handle = {
        node,
        place() {
          const [x, y] = what.get();
          const [left, top] = self.toPixel([x, y]);
          node.setAttribute("transform", `translate(${left} ${top})`);
          node.setAttribute("aria-valuemin", self.x[0]);
          node.setAttribute("aria-valuemax", self.x[1]);
          node.setAttribute("aria-valuenow", x.toFixed(3));
          node.setAttribute("aria-valuetext", what.say ? what.say() : pair([x, y]));
        },
        remove() {
          handles.splice(handles.indexOf(handle), 1);
          node.remove();
        },
      };
      handles.push(handle);
      svg.setAttribute("role", "group"); // of an img nothing inside is read out
      above.append(node);
      if (width) handle.place();
      return handle;
    };

    function measure() {
      width = Math.max(holder.clientWidth, 200);
      box = { left: options.yLabel ? 56 : 40, top: 10, right: width - 10, bottom: 0 };
      const across = box.right - box.left;
      const span = options.equal ? (self.y[1] - self.y[0]) / (self.x[1] - self.x[0]) : options.ratio ?? 0.62;
      box.bottom = box.top + Math.max(across * span, options.equal ? 0 : options.least ?? 160);
      height = box.bottom + (options.xLabel ? 44 : 26);
      svg.setAttribute("width", width);
      svg.setAttribute("height", height);
      for (const rect of [ground, window_]) {
        rect.setAttribute("x", box.left);
        rect.setAttribute("y", box.top);
        rect.setAttribute("width", across);
        rect.setAttribute("height", box.bottom - box.top);
      }
    }

    function drawFrame() {
      frame.replaceChildren();
      for (const x of ticks(...self.x, Math.max(3, Math.floor((box.right - box.left) / 80)))) {
        const [left] = self.toPixel([x, self.y[0]]);
        frame.append(shape("path", { d: `M${left} ${box.top}V${box.bottom}`, class: "x-grid" }),
          shape("text", { x: left, y: box.bottom + 17, class: "x-tick", "text-anchor": "middle" }, number(x)));
      }
      const [low, high] = self.y.map(inY);
      const marks = options.logY
        ? ticks(Math.ceil(low), Math.floor(high), 5).filter((n) => Math.abs(n - Math.round(n)) < 1e-9).map((n) => 10 ** Math.round(n))
        : ticks(low, high, Math.max(3, Math.floor((box.bottom - box.top) / 50)));
      for (const y of marks) {
        const top = self.toPixel([self.x[0], y])[1];
        frame.append(shape("path", { d: `M${box.left} ${top}H${box.right}`, class: "x-grid" }),
          shape("text", { x: box.left - 6, y: top + 4, class: "x-tick", "text-anchor": "end" }, number(y)));
      }
      if (options.xLabel)
        frame.append(shape("text", { x: (box.left + box.right) / 2, y: box.bottom + 37, class: "x-axis", "text-anchor": "middle" }, options.xLabel));
      if (options.yLabel) {
        const middle = (box.top + box.bottom) / 2;
        frame.append(shape("text", { x: 14, y: middle, class: "x-axis", "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, options.yLabel));
      }
    }

    self.update = () => {
      if (!width) return; // not measured yet; the first measurement draws
      drawing.replaceChildren();
      drawFrame();
      options.redraw?.(self);
      for (const handle of handles) handle.place();
    };
    self.updateBackground = () => {
      if (!width || !options.background) return;
      behind.replaceChildren();
      layer = behind;
      options.background(self);
      layer = drawing;
    };
    if (options.onTap) {
      svg.classList.add("x-taps");
      ground.addEventListener("click", (event) => {
        if (options.onTap(where(event)) === false) return;
        handles.at(-1)?.node.focus({ preventScroll: true }); // arrow keys move it, not the page
      });
    }
    new ResizeObserver(() => {
      if (holder.clientWidth === 0 || holder.clientWidth === width) return;
      measure();
      self.updateBackground();
      self.update();
    }).observe(holder);
    return self;
  }

  // --- controls ----------------------------------------------------------------------

  // options: label, min, max, step, value, log: true for equal factors instead of equal
  // steps (values are then rounded to two digits), format(value), onInput(value).
  function slider(parent, options) {
    const id = unique("slider");
    const log = options.log;
    const to = (v) => (log ? Math.log10(v) : v);
    const from = (v) => (log ? Number((10 ** v).toPrecision(2)) : v);
    const say = options.format ?? number;
    const output = element("output", { for: id, class: "x-value", "aria-live": "off" }); // the slider says it
    const input = element("input", {
      type: "range", id, min: to(options.min), max: to(options.max),
      step: options.step ?? (to(options.max) - to(options.min)) / 100,
    });
    const show = () => {
      const text = say(from(Number(input.value)));
      output.textContent = text;
      input.setAttribute("aria-valuetext", text);
    };
    input.addEventListener("input", () => { show(); options.onInput?.(from(Number(input.value))); });
    input.addEventListener("keydown", (event) => event.stopPropagation());
    const node = element("div", { class: "x-control x-slider" }, element("label", { for: id }, options.label), input, output);
    parent.append(node);
    const self = {
      node, input,
      get value() { return from(Number(input.value)); },
      set value(v) { input.value = to(v); show(); },
    };
    self.value = options.value;
    return self;
  }

  // One of a few: options: label, options: [[value, text], ...], value, onInput(value).
  function choice(parent, options) {
    const name = unique("choice");
    const set = element("fieldset", { class: "x-control x-choice" }, element("legend", {}, options.label));
    const inputs = options.options.map(([value, text]) => {
      const input = element("input", { type: "radio", name, value, id: unique("option") });
      input.addEventListener("change", () => options.onInput?.(value));
      input.addEventListener("keydown", (event) => event.stopPropagation());
      set.append(input, element("label", { for: input.id }, text));
      return input;
    });
    parent.append(set);
    const self = {
      node: set,
      get value() { return options.options[inputs.findIndex((i) => i.checked)]?.[0]; },
      set value(v) { inputs.forEach((i, k) => { i.checked = options.options[k][0] === v; }); },
    };
    self.value = options.value ?? options.options[0][0];
    return self;
  }

  function toggle(parent, options) {
    const input = element("input", { type: "checkbox", id: unique("toggle"), class: options.name ? `x-check x-${options.name}` : "x-check" });
    input.checked = Boolean(options.value);
    input.addEventListener("change", () => options.onInput?.(input.checked));
    const node = element("div", { class: "x-control x-toggle" }, input, element("label", { for: input.id }, options.label));
    parent.append(node);
    return { node, input, get value() { return input.checked; }, set value(v) { input.checked = v; } };
  }

  function button(parent, label, onClick, { main = false } = {}) {
    const press = () => { if (node.getAttribute("aria-disabled") !== "true") onClick(); };
    const node = element("button", { type: "button", class: main ? "x-button x-main" : "x-button", onclick: press }, label);
    parent.append(node);
    return node;
  }

  // A button that does nothing now keeps the focus, unlike one that is `disabled`: else
  // the next arrow key would turn the page.
  const allow = (node, may) => node.setAttribute("aria-disabled", String(!may));

  function readout(parent, label, name = "") {
    const output = element("output", { class: `x-value ${name && `x-ink x-${name}`}`, "aria-live": "off" });
    const node = element("div", { class: "x-readout" }, element("span", {}, label), output);
    parent.append(node);
    return { node, set: (text) => { output.textContent = typeof text === "number" ? number(text) : text; } };
  }

  function status(parent) {
    const node = element("p", { class: "x-status", role: "status" });
    parent.append(node);
    return { node, say: (text) => { if (node.textContent !== text) node.textContent = text; } };
  }

  // --- tables, lines of code, bars ---------------------------------------------------

  function table(parent, head, { caption } = {}) {
    const body = element("tbody");
    const heading = element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)));
    const node = element("table", { class: "x-table" }, ...(caption ? [element("caption", {}, caption)] : []), element("thead", {}, heading), body);
    parent.append(element("div", { class: "x-table-holder" }, node));
    return {
      node,
      rows(rows) {
        body.replaceChildren(...rows.map((cells) => element("tr", {}, ...cells.map((text, i) =>
          element(i ? "td" : "th", i ? {} : { scope: "row" }, typeof text === "number" ? number(text) : text)))));
      },
      light(index) {
        [...body.children].forEach((line, i) => line.classList.toggle("is-lit", i === index));
      },
    };
  }

  function code(parent, lines) {
    const list = lines.map((text) => element("span", { class: "x-code-line" }, text + "\n"));
    const node = element("pre", { class: "x-code" }, element("code", {}, ...list));
    parent.append(node);
    return { node, light: (...lit) => list.forEach((line, i) => line.classList.toggle("is-lit", lit.includes(i))) };
  }

  // Probabilities: options: label, names. set(values, before) draws both.
  function bars(parent, { label, names }) {
    const rows = names.map((name) => {
      const before = element("span", { class: "x-bar x-before" });
      const after = element("span", { class: "x-bar x-after" });
      const text = element("span", { class: "x-value" });
      const node = element("div", { class: "x-bar-row" }, element("span", { class: "x-bar-name" }, name), element("span", { class: "x-bar-track" }, before, after), text);
      return { node, before, after, text };
    });
    const node = element("div", { class: "x-bars", role: "group", "aria-label": label }, ...rows.map((r) => r.node));
    parent.append(node);
    const percent = (p) => `${(100 * p).toFixed(0)} %`;
    return {
      node,
      set(values, before = null) {
        const best = values ? values.indexOf(Math.max(...values)) : -1;
        rows.forEach((r, i) => {
          r.after.style.width = values ? `${100 * values[i]}%` : "0";
          r.before.style.width = before ? `${100 * before[i]}%` : "0";
          r.text.textContent = values ? (before ? `${percent(before[i])} → ${percent(values[i])}` : percent(values[i])) : "";
          r.node.classList.toggle("is-best", i === best);
        });
      },
    };
  }

  function legend(parent, entries) {
    const node = element("ul", { class: "x-legend" }, ...entries.map(([name, text, kind = "line"]) =>
      element("li", {}, element("span", { class: `x-swatch x-${kind} x-ink x-${name}`, "aria-hidden": "true" }), text)));
    parent.append(node);
    return node;
  }

  // --- time --------------------------------------------------------------------------

  const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  // draw(t) with t from 0 to 1 in so many milliseconds. Returns an object with `stop`
  // and a promise `done`. With reduced motion the end is drawn at once.
  function animate(milliseconds, draw) {
    if (still() || milliseconds <= 0) {
      draw(1);
      return { stop() {}, done: Promise.resolve() };
    }
    let frame, finish;
    const done = new Promise((resolve) => { finish = resolve; });
    const begin = performance.now();
    const tick = (now) => {
      const t = Math.min(1, Math.max(0, (now - begin) / milliseconds));
      draw(t);
      if (t < 1) frame = requestAnimationFrame(tick);
      else finish();
    };
    frame = requestAnimationFrame(tick);
    return { stop() { cancelAnimationFrame(frame); finish(); }, done };
  }

  return { element, shape, row, number, pair, plot, slider, choice, toggle, button, allow, readout, status, table, code, bars, legend, animate, still };
}
