// TODO
"use strict";

tinymaml.explorable(
  "five-characters",

  function model(tape, data, tools) {
    return {};
  },

  function view({ root, model, data, kit, worker }) {
    root.append(kit.element("p", {}, "To be made."));
  },
);
