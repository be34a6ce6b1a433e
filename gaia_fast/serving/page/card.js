// The card of an image: waiting, then with what the service found, or why it found nothing.

import { drawn, standing } from "./histogram.js";
import { written } from "./words.js";

const DECISIONS = { in: "in distribution", out: "out of distribution", open: "no threshold", failed: "not scored" };

const copyOf = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

/** A new card, with the file's name and its picture where the browser can show it. */
export function cardOf(file) {
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

/** Makes room for what the image waits for; returns the function that shows it. */
export function showProgress(card) {
  const progress = document.createElement("p");
  progress.className = "progress";
  card.dataset.state = "waiting";
  card.querySelector(".found").replaceChildren(progress);
  return (text) => (progress.textContent = text);
}

/** Shows class, scores and decisions; returns them in words. `scores` are those that `about` described. */
export function showAnswer(card, { predicted, label, results }, scores) {
  const title = label ?? `class ${predicted}`;
  card.dataset.state = "scored";
  card.querySelector(".class").textContent = title;
  card.querySelector(".found").replaceChildren(...results.map((result) => scoreOf(result, scores[result.name])));
  const told = results.map(({ name, value, isOod }) => `${name} ${written(value)}, ${DECISIONS[decisionOf(isOod)]}`);
  return [title, ...told].join("; ");
}

/** Shows why there is no answer, with a button that calls `again` where that may help; returns it in words. */
export function showFailure(card, failure, again) {
  const made = copyOf("failure");
  decide(made.querySelector(".decision"), "failed");
  made.querySelector(".reason").textContent = failure.message;
  if (failure.again) made.querySelector(".again").addEventListener("click", again, { once: true });
  else made.querySelector(".again").remove();
  card.dataset.state = "failed";
  card.querySelector(".class").textContent = "";
  card.querySelector(".found").replaceChildren(made);
  return `${DECISIONS.failed}, ${failure.message}`;
}

/** One score of an image: its value, the decision, and where it lies. */
function scoreOf({ name, value, isOod }, { threshold, quantiles, images, histogram }) {
  const section = copyOf("score");
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
    section.append(drawn(histogram, threshold, { value, isOod }));
    note.textContent = standing(value, quantiles, images);
  }
  section.append(note);
  return section;
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
