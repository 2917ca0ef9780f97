({
  // What is cut, or wider than the window, at the width that the window has.
  layout() {
    const faults = new Set();
    const width = document.documentElement.clientWidth;
    const page = document.documentElement.scrollWidth;
    if (page > width + 1) faults.add(`the page is ${page} pixels wide`);
    const overflows = (node) => node.scrollWidth > node.clientWidth + 1;
    const say = (what, node) => {
      const words = (node.textContent || node.alt || "").trim().replace(/\s+/g, " ");
      faults.add(`${what} is cut: ${words.slice(0, 60)}`);
    };
    const main = document.querySelector("article") || document.body;
    const each = (selector, visit) => main.querySelectorAll(selector).forEach(visit);
    each("pre, .highlight", (node) => {
      if (overflows(node)) say("code", node);
    });
    const tables = new Set();
    each("table, .table-wrapper", (node) => {
      const right = node.getBoundingClientRect().right;
      if (!overflows(node) && right <= width + 1) return;
      tables.add(node);
      say("a table", node);
    });
    // On a phone a long formula may scroll in its box.
    each(".math-box", (node) => {
      if (width > 600 && overflows(node)) say("a formula", node);
    });
    each("div.math .eqno", (node) => {
      const left = node.getBoundingClientRect().left;
      for (const formula of node.parentElement.querySelectorAll("math"))
        if (formula.getBoundingClientRect().right > left + 1 && width > 600)
          faults.add(`a number lies on its formula: ${node.textContent}`);
    });
    each(".eqno, span.math, code, img, svg, .caption, td, .sd-card", (node) => {
      const box = node.getBoundingClientRect();
      if (!box.width || !box.height || node.closest(".math-box")) return;
      if (tables.has(node.closest("table"))) return;  // is reported as a whole
      if (box.right > width + 1 || box.left < -1) say(node.tagName.toLowerCase(), node);
    });
    return [...faults];
  },

  // Text that is too small, or hard to tell from what it stands on.
  colours() {
    const faults = new Map();
    const canvas = document.createElement("canvas");
    const paint = canvas.getContext("2d", { willReadFrequently: true });
    const known = new Map();
    // Any colour that CSS can write, as red, green, blue (to 255) and opacity (to 1).
    const numbers = (colour) => {
      if (!known.has(colour)) {
        paint.clearRect(0, 0, 1, 1);
        paint.fillStyle = colour;
        paint.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
        known.set(colour, [r, g, b, a / 255]);
      }
      return known.get(colour);
    };
    const over = (top, below) => {
      const mix = (i) => top[i] * top[3] + below[i] * (1 - top[3]);
      return [mix(0), mix(1), mix(2), 1];
    };
    const backgrounds = new Map();
    const background = (node) => {
      if (!node) return [255, 255, 255, 1];
      if (!backgrounds.has(node)) {
        const own = numbers(getComputedStyle(node).backgroundColor);
        const opaque = own[3] === 1;
        backgrounds.set(node, opaque ? own : over(own, background(node.parentElement)));
      }
      return backgrounds.get(node);
    };
    // Relative luminance and contrast as WCAG 2 defines them.
    const linear = (value) =>
      value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) =>
      0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const skipped = "script, style, noscript, title, template, annotation, .headerlink";
    const seen = { checkOpacity: true, checkVisibilityCSS: true };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const done = new Set();
    while (walker.nextNode()) {
      const text = walker.currentNode.nodeValue.trim();
      const node = walker.currentNode.parentElement;
      if (!text || done.has(node)) continue;
      done.add(node);
      if (node.closest(skipped) || !node.checkVisibility(seen)) continue;
      const style = getComputedStyle(node);
      const size = parseFloat(style.fontSize);
      const ground = background(node);
      const ink = over(numbers(style.color), ground);
      const [a, b] = [luminance(ink), luminance(ground)];
      const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
      if (contrast < (large ? 3 : 4.5) - 0.01) {
        const below = ground.slice(0, 3).map(Math.round);
        faults.set(`contrast ${contrast.toFixed(2)}: ${style.color} on ${below}`, text);
      }
      if (size && size < 11.95 && !node.closest("math, sup, sub")) {
        const name = `${node.tagName.toLowerCase()}.${node.className}`;
        faults.set(`text of ${size} pixels in ${name}`, text);
      }
    }
    return [...faults].map(([what, text]) => `${what}: ${text.slice(0, 50)}`);
  },
})
