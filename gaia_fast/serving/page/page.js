// The page: what is dropped becomes cards, each gets its answer, and the footer tells how the service is.

import { drawn, histogramOf, standing } from "./histogram.js";
import { about, drift, Failure, score, size, sleep } from "./service.js";

const AT_ONE_TIME = 4; // images that are under way; the others wait here
const REFRESH = 5; // seconds between drift reports
const DECISIONS = { in: "in distribution", out: "out of distribution", open: "no threshold", failed: "not scored" };

const $ = (id) => document.getElementById(id);
const copyOf = (id) => $(id).content.firstElementChild.cloneNode(true);
const written = (value) => value.toPrecision(4);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

let described = null; // what `about` told, and the histogram of each score
let lost = false; // whether the service did not answer
const known = connect();

// Images come in.

$("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // the same file may be chosen again
});
window.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length > 0) take(event.clipboardData.files);
});
window.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.toggle("dragging", event.dataTransfer.types.includes("Files"));
});
window.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dragging");
});
window.addEventListener("drop", (event) => {
  event.preventDefault(); // or the browser would show the file in place of the page
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files);
});
$("clear").addEventListener("click", () => {
  $("cards").replaceChildren();
  $("results").hidden = true;
  $("files").focus();
});

/** Makes a card for each file, the newest on top, and has them scored. */
function take(list) {
  const files = [...list]; // the browser empties its own
  if (files.length === 0) return announce("That was no file.");
  const cards = files.map(cardOf);
  $("cards").prepend(...cards);
  $("results").hidden = false;
  cards.forEach((card, place) => enqueue(() => fill(card, files[place])));
}

function cardOf(file) {
  const card = copyOf("card");
  card.querySelector(".file").textContent = file.name;
  const picture = card.querySelector("img");
  const url = URL.createObjectURL(file);
  picture.addEventListener("load", () => {
    URL.revokeObjectURL(url);
    picture.classList.toggle("tiny", picture.naturalWidth < 96); // pixels are shown as such
  });
  picture.addEventListener("error", () => {
    URL.revokeObjectURL(url);
    picture.replaceWith(icon("failed")); // no browser can show it
  });
  picture.src = url;
  return card;
}

const queue = [];
let underWay = 0;

function enqueue(task) {
  queue.push(task);
  while (underWay < AT_ONE_TIME && queue.length > 0) start(queue.shift());
}

async function start(task) {
  underWay += 1;
  try {
    await task();
  } finally {
    underWay -= 1;
    if (queue.length > 0) start(queue.shift());
    else refresh();
  }
}

// Answers go out.

async function fill(card, file) {
  await known;
  if (!card.isConnected) return; // cleared
  const found = card.querySelector(".found");
  const progress = document.createElement("p");
  progress.className = "progress";
  found.replaceChildren(progress);
  card.dataset.state = "waiting";
  try {
    const answer = await score(file, described, (text) => (progress.textContent = text));
    const title = answer.label ?? `class ${answer.predicted}`;
    card.querySelector(".class").textContent = title;
    card.dataset.state = "scored";
    found.replaceChildren(...answer.results.map(scoreOf));
    const told = answer.results.map(({ name, value, isOod }) => `${name} ${written(value)}, ${DECISIONS[decisionOf(isOod)]}`);
    announce(`${file.name}: ${[title, ...told].join("; ")}`);
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    card.dataset.state = "failed";
    card.querySelector(".class").textContent = "";
    found.replaceChildren(failureOf(failure, () => enqueue(() => fill(card, file))));
    announce(`${file.name}: not scored, ${failure.message}`);
  }
}

/** One score of an image: its value, the decision, and where it lies. */
function scoreOf({ name, value, isOod }) {
  const section = copyOf("score");
  const { threshold, quantiles, images, histogram } = described.scores[name];
  section.dataset.score = name;
  section.querySelector("h4").textContent = name;
  section.querySelector("data").value = value;
  section.querySelector("data").textContent = written(value);
  decide(section.querySelector(".decision"), decisionOf(isOod));
  const note = document.createElement("p");
  note.className = "note";
  if (quantiles === null) {
    const against = threshold === null ? "" : `threshold ${written(threshold)}; `;
    note.textContent = `${against}no calibration scores to compare with`;
  } else {
    section.append(drawn(histogram, threshold, { value, isOod }, written));
    note.textContent = standing(value, quantiles, images);
  }
  section.append(note);
  return section;
}

function failureOf(failure, again) {
  const made = copyOf("failure");
  decide(made.querySelector(".decision"), "failed");
  made.querySelector(".reason").textContent = failure.message;
  if (failure.again) made.querySelector(".again").addEventListener("click", again, { once: true });
  else made.querySelector(".again").remove();
  return made;
}

const decisionOf = (isOod) => (isOod === null ? "open" : isOod ? "out" : "in");

function decide(badge, decision) {
  badge.dataset.decision = decision;
  badge.replaceChildren(icon(decision), DECISIONS[decision]);
}

function icon(name) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.setAttribute("class", "icon");
  made.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  made.append(use);
  return made;
}

function announce(text) {
  $("announcement").textContent = text;
}

// How the service is.

/** Asks until it is known what is served. */
async function connect() {
  while (described === null) {
    await refresh();
    if (described === null) await sleep(1);
  }
}

async function refresh() {
  try {
    if (described === null || lost) described = prepared(await about()); // it may be another one that came back
    lost = false;
    const reports = await drift();
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

function prepared(told) {
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

function period(seconds) {
  for (const [unit, length] of [["hour", 3600], ["minute", 60]]) {
    if (seconds === length) return unit;
    if (seconds % length === 0) return `${seconds / length} ${unit}s`;
  }
  return `${seconds} seconds`;
}

setInterval(() => document.hidden || refresh(), 1000 * REFRESH);
