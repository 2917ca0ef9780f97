// TODO
"use strict";

tinymaml.explorable(
  "four-starts",

  function model(tape, data, tools) {
    return {};
  },

  function view({ root, model, data, kit, worker }) {
    root.append(kit.element("p", {}, "To be made."));
  },
);
