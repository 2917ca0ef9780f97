// What a model may use beside the tape: random numbers and Adam.
//
// A model is given to a worker as text, so it may use nothing from outside but its
// arguments. This file is one function for the same reason.

function tinymamlTools() {
  "use strict";

  // A generator of random numbers with a seed: mulberry32, a mixing of a counter. It is
  // no match for NumPy's generators, and good enough to draw tasks and noise.
  function random(seed) {
    let state = seed >>> 0;
    let spare = null; // the second number of a pair of normal ones
    const next = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
    };
    return {
      uniform: (low = 0, high = 1) => low + (high - low) * next(),
      // Box and Muller: a point in the plane, drawn by its angle and its radius.
      normal() {
        if (spare !== null) {
          const number = spare;
          spare = null;
          return number;
        }
        const radius = Math.sqrt(-2 * Math.log(1 - next()));
        const angle = 2 * Math.PI * next();
        spare = radius * Math.sin(angle);
        return radius * Math.cos(angle);
      },
    };
  }

  // Adam as in tinymaml/training/optim.py: epsilon stands outside of the correction.
  function adam(size, rate, { beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8 } = {}) {
    const first = new Float32Array(size);
    const second = new Float32Array(size);
    let step = 0;
    return {
      update(theta, gradient) {
        step += 1;
        const corrected =
          (rate * Math.sqrt(1 - beta2 ** step)) / (1 - beta1 ** step);
        for (let i = 0; i < size; i++) {
          const g = gradient[i];
          first[i] += (1 - beta1) * (g - first[i]);
          second[i] += (1 - beta2) * (g * g - second[i]);
          theta[i] -= (corrected * first[i]) / (Math.sqrt(second[i]) + epsilon);
        }
      },
    };
  }

  return { random, adam };
}

if (typeof module !== "undefined") module.exports = tinymamlTools();
