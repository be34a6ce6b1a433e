// What is served, and how it is: the header and the footer of the page.

import { histogramOf } from "./histogram.js";
import { about, drift, Failure, isServed, sleep } from "./service.js";
import { percent, period, size, written } from "./words.js";

const REFRESH = 5; // seconds between drift reports

const $ = (id) => document.getElementById(id);

let described = null;
let lost = false; // whether the service did not answer

/** What `about` told, with the histogram of each score; asks until there is an answer, and anew where it has changed. */
export async function description() {
  if (described !== null && !isServed(described)) await refresh();
  while (described === null) {
    await refresh();
    if (described === null) await sleep(1);
  }
  return described;
}

/** Shows how the service is now. */
export async function refresh() {
  try {
    const reports = await drift();
    // It may be another one that came back.
    if (described === null || lost || !isServed(described)) described = introduced(await about());
    lost = false;
    const states = Object.keys(described.scores).map((name) => stateOf(name, reports[name]));
    $("scores").replaceChildren(...states);
    const [height, width] = described.input_size;
    $("service").textContent = `${described.model} at ${width}×${height} · gaia_fast ${described.gaia_fast}`;
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    $("service").textContent = failure.message;
    lost = true;
  }
}

function introduced(told) {
  for (const each of Object.values(told.scores)) {
    each.histogram = each.quantiles && histogramOf(each.quantiles, each.threshold);
  }
  $("model").textContent = told.model;
  $("limit").textContent = `, ${size(told.max_bytes)} each at most`;
  return told;
}

/** A score's threshold and calibration, and how those of the last time compare. */
function stateOf(name, report) {
  const { threshold, images } = described.scores[name];
  const calibrated = images === null ? "not calibrated" : `calibrated on ${images.toLocaleString("en")} images`;
  const item = document.createElement("li");
  item.dataset.drifted = report?.drifted ?? false;
  const title = document.createElement("strong");
  title.textContent = name;
  item.append(title, ` ${threshold === null ? "no threshold" : `threshold ${written(threshold)}`}, ${calibrated}`);
  if (report) item.append(` · ${driftOf(report)}`);
  return item;
}

function driftOf(report) {
  const parts = [`last ${period(report.window)}: ${report.images.toLocaleString("en")} images`];
  if (report.ood_share !== null) {
    parts.push(`${percent(report.ood_share)} out of distribution`);
    if (report.expected_ood_share !== null) parts.push(`${percent(report.expected_ood_share)} expected`);
  }
  if (report.distance === null) return parts.join(", ");
  const since = report.since === null ? "" : ` since ${new Date(1000 * report.since).toLocaleTimeString()}`;
  return `${parts.join(", ")}; ${report.drifted ? `drifted${since}` : "no drift"}`;
}

setInterval(() => document.hidden || refresh(), 1000 * REFRESH);
