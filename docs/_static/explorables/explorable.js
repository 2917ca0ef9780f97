// A page to play with has a *model*, which computes, and a *view*, which draws.
//
//     tinymaml.explorable("walk-back", function model(tape, data, tools) { ... },
//                                      function view({ root, model, data, kit, worker }) { ... });
//
// The model is a function without a document: it gets what tape.js offers, the data that
// the build recorded with tinymaml, and tools.js, and returns an object of methods. So
// the tests run it in Node, and a worker runs it beside the page. Its text is sent to
// the worker, so it uses nothing but its arguments.

// Runs a model's generators for who asks: { id, method, args } is answered with one
// { id, value } after the other, and then { id, done } or { id, error }; { id, stop }
// ends it. A worker and a page without one answer by the same function.
function tinymamlAnswers(model, answer) {
  const streams = new Map();
  function advance(id) {
    try {
      const { value, done } = streams.get(id)?.next() ?? { done: true };
      if (done) streams.delete(id);
      answer(done ? { id, done } : { id, value });
      if (!done) setTimeout(advance, 0, id); // requests are read between two values
    } catch (error) {
      streams.delete(id);
      answer({ id, error: String(error) });
    }
  }
  return ({ id, method, args, stop }) => {
    if (stop) return void streams.delete(id);
    try {
      streams.set(id, model[method](...args));
      advance(id);
    } catch (error) { answer({ id, error: String(error) }); }
  };
}

const tinymaml = {
  data: {},
  registered: {},

  explorable(name, model, view) {
    tinymaml.registered[name] = { model, view };
    if (typeof document === "undefined") return; // a test, in Node
    const begin = () => tinymaml.show(name);
    if (document.readyState === "loading")
      document.addEventListener("DOMContentLoaded", begin);
    else begin();
  },

  // Put the view in the place of the figure that stands there without JavaScript.
  show(name) {
    const root = document.querySelector(`.explorable[data-name="${name}"]`);
    if (!root) return;
    const { model, view } = tinymaml.registered[name];
    const data = tinymaml.decode(tinymaml.data[name]);
    const stage = document.createElement("div");
    stage.className = "explorable-stage";
    try {
      let started = null;
      view({
        root: stage,
        model: model(tinymamlTape(), data, tinymamlTools()),
        data,
        kit: tinymamlKit(),
        worker: () => (started ??= tinymaml.startWorker(model, data)),
      });
      root.replaceChildren(stage);
      root.classList.add("is-alive");
    } catch (error) {
      console.error(error); // the figure stays
    }
  },

  // Arrays come as text: base64 of their bytes, with the lowest byte first.
  decode(value) {
    if (Array.isArray(value)) return value.map(tinymaml.decode);
    if (value === null || typeof value !== "object") return value;
    if ("base64" in value) {
      const bytes = Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0));
      const kinds = { float32: Float32Array, float64: Float64Array };
      return new kinds[value.dtype](bytes.buffer);
    }
    const entries = Object.entries(value).map(([k, v]) => [k, tinymaml.decode(v)]);
    return Object.fromEntries(entries);
  },

  // The same model beside the page. Where no worker can be made, or it is blocked before
  // its first answer, the page computes in slices, from one value to the next.
  startWorker(model, data) {
    const source = `
      ${tinymamlTape}
      ${tinymamlTools}
      ${tinymamlAnswers}
      let ask;
      onmessage = ({ data: message }) => {
        if (ask) ask(message); // the first message is the data
        else ask = tinymamlAnswers((${model})(tinymamlTape(), message, tinymamlTools()), postMessage);
      };`;
    const waiting = new Map();
    let last = 0;
    let post = null;
    let answered = false;
    const onThePage = () => {
      const ask = tinymamlAnswers(model(tinymamlTape(), data, tinymamlTools()), receive);
      post = (message) => setTimeout(ask, 0, message); // not before the caller is ready
    };
    const receive = ({ id, value, done, error }) => {
      const { take, fail } = waiting.get(id) ?? {};
      if (done || error !== undefined) waiting.delete(id);
      if (error !== undefined) fail?.(new Error(error));
      else take?.(value, Boolean(done));
    };
    try {
      const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      const worker = new Worker(address);
      worker.onmessage = ({ data: message }) => {
        if (!answered) URL.revokeObjectURL(address);
        answered = true;
        receive(message);
      };
      worker.onerror = ({ message }) => {
        const open = [...waiting];
        if (answered) return open.forEach(([id]) => receive({ id, error: message }));
        worker.onerror = null;
        worker.terminate();
        URL.revokeObjectURL(address);
        onThePage();
        for (const [id, { request, stopped }] of open)
          if (stopped) receive({ id, done: true });
          else post(request);
      };
      worker.postMessage(data);
      post = (message) => worker.postMessage(message);
    } catch {
      onThePage();
    }
    return {
      // onValue(value) for each value; onEnd(error or undefined) once, at the end.
      stream(method, args, onValue, onEnd = () => {}) {
        const id = ++last;
        const request = { id, method, args };
        const entry = {
          take: (value, done) => (done ? onEnd() : onValue(value)),
          fail: onEnd,
          request,
        };
        waiting.set(id, entry);
        post(request);
        return {
          stop() {
            entry.stopped = true;
            post({ id, stop: true });
          },
        };
      },
    };
  },
};

if (typeof module !== "undefined") module.exports = tinymaml;
