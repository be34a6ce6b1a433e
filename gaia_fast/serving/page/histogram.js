// The calibration scores as a histogram, with the threshold, and where the score of one image lies among them.

import { percent, written } from "./words.js";

const BARS = 64; // across the whole scale

/**
 * What is the same for all images: the scale and its bars.
 *
 * The quantiles are scores of calibration images themselves, so that counting them makes a histogram, however many of
 * them are equal. The scale leaves room for larger scores, which are those that one looks for. It shows nearly all
 * calibration scores; outliers, which would press the others together, are counted in the outermost bars. The threshold
 * is the edge of a bar: none holds scores of both sides.
 *
 * @param {number[]} quantiles 1001, ascending.
 * @param {number | null} threshold
 * @returns {{from: number, to: number, bars: {from: number, to: number, share: number, isOod: boolean}[]}} shares of all.
 */
export function histogramOf(quantiles, threshold) {
  const shown = quantiles.slice(5, -5);
  const near = (shown.at(-1) - shown[0]) / 4;
  let from = Math.max(quantiles[0], shown[0] - near);
  let to = Math.min(quantiles.at(-1), shown.at(-1) + near);
  if (threshold !== null) [from, to] = [Math.min(from, threshold), Math.max(to, threshold)];
  const spread = to - from || Math.abs(from) / 10 || 1;
  const width = (1.7 * spread) / BARS;
  const edge = threshold ?? from;
  const first = Math.ceil((from - 0.08 * spread - edge) / width);
  const last = first + BARS - 1;
  const counts = new Array(BARS).fill(0);
  for (const score of quantiles.slice(1)) {
    // The bar ends with its right edge, as what is accepted ends with the threshold.
    const place = Math.min(Math.max(Math.ceil((score - edge) / width), first), last);
    counts[place - first] += 1;
  }
  const bars = counts.map((count, place) => ({
    from: edge + (first + place - 1) * width,
    to: edge + (first + place) * width,
    share: count / (quantiles.length - 1),
    isOod: threshold !== null && first + place > 0,
  }));
  return { from: bars[0].from, to: bars.at(-1).to, bars };
}

/** How a score stands among those of the calibration, in words. */
export function standing(value, quantiles, images) {
  const among = `${images.toLocaleString("en")} calibration scores`;
  if (value > quantiles.at(-1)) return `above all ${among}`;
  if (value < quantiles[0]) return `below all ${among}`;
  const below = quantiles.slice(1).filter((score) => score < value).length;
  return `above ${percent(below / (quantiles.length - 1))} of ${among}`;
}

/**
 * Draws it.
 *
 * @param histogram of `histogramOf`.
 * @param {number | null} threshold
 * @param {{value: number, isOod: boolean | null}} result where the image lies; at the edge, and said so, where it is off the scale.
 * @returns {SVGElement} as wide as there is room; its height is in the style sheet.
 */
export function drawn({ from, to, bars }, threshold, { value, isOod }) {
  const [top, bottom] = [24, 96]; // of the bars, in pixels
  const across = (score) => (100 * (score - from)) / (to - from);
  const tallest = Math.max(...bars.map((bar) => bar.share));
  const picture = element("svg", { class: "histogram", role: "img" });

  if (threshold !== null) {
    const x = across(threshold);
    picture.append(element("rect", { class: "beyond", x: `${x}%`, y: top, width: `${100 - x}%`, height: bottom - top }));
  }
  for (const bar of bars.filter((each) => each.share > 0)) {
    const height = Math.max(1.5, (bar.share / tallest) * (bottom - top));
    const width = across(bar.to) - across(bar.from);
    picture.append(
      element("rect", {
        class: bar.isOod ? "bar out" : "bar",
        x: `${across(bar.from) + 0.1 * width}%`,
        y: bottom - height,
        width: `${0.8 * width}%`,
        height,
      }),
    );
  }
  picture.append(element("line", { class: "axis", x1: "0", x2: "100%", y1: bottom, y2: bottom }));

  const below = bottom + 17;
  if (threshold !== null) {
    const x = across(threshold);
    picture.append(element("line", { class: "threshold", x1: `${x}%`, x2: `${x}%`, y1: top, y2: bottom + 5 }));
    picture.append(label(x, below, `threshold ${written(threshold)}`, "threshold"));
  }
  // Not where the threshold's own label stands.
  const room = (x) => threshold === null || Math.abs(across(threshold) - x) > 30;
  if (room(0)) picture.append(label(0, below, written(from), "end"));
  if (room(100)) picture.append(label(100, below, written(to), "end"));

  const place = across(value);
  const off = place < 0 ? "left" : place > 100 ? "right" : null;
  const x = Math.min(Math.max(place, 1), 99);
  const marker = element("g", { class: `marker${isOod === null ? "" : isOod ? " out" : " in"}` });
  if (off === null) marker.append(element("line", { x1: `${x}%`, x2: `${x}%`, y1: top - 3, y2: bottom }));
  // A nested svg stands at a share of the width, which a path cannot.
  const pin = element("svg", { x: `${x}%`, y: off === null ? top - 4 : (top + bottom) / 2, overflow: "visible" });
  const shapes = { left: "M5-6-5 0 5 6Z", right: "M-5-6 5 0-5 6Z" };
  pin.append(element("path", { d: shapes[off] ?? "M-5-5H5L0 3Z" }));
  marker.append(pin, label(x, 12, off === null ? "this image" : "this image, off the scale", "name"));
  picture.append(marker);

  const lies = off === null ? "" : ", off the scale";
  const at = threshold === null ? "" : `, threshold ${written(threshold)}`;
  picture.setAttribute(
    "aria-label",
    `Histogram of the calibration scores, from ${written(from)} to ${written(to)}${at}; this image ${written(value)}${lies}`,
  );
  return picture;
}

/** Text at a share of the width, which stays inside. */
function label(x, y, text, kind) {
  const anchor = x < 12 ? "start" : x > 88 ? "end" : "middle";
  const found = element("text", { class: kind, x: `${x}%`, y, "text-anchor": anchor });
  found.textContent = text;
  return found;
}

function element(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
