// Images come in, are sent a few at a time, and their answers go to their cards.

import { cardOf, showAnswer, showFailure, showProgress } from "./card.js";
import { Failure, resultsOf, score } from "./service.js";
import { description, refresh } from "./state.js";

const AT_ONE_TIME = 4; // images that are under way; the others wait here

const $ = (id) => document.getElementById(id);

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

async function fill(card, file) {
  const described = await description();
  if (!card.isConnected) return; // cleared
  try {
    const answer = await score(file, described, showProgress(card));
    const { scores } = await description(); // it may be another service than before
    announce(`${file.name}: ${showAnswer(card, resultsOf(answer, Object.keys(scores)), scores)}`);
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    const again = () => enqueue(() => fill(card, file));
    announce(`${file.name}: ${showFailure(card, failure, again)}`);
  }
}

function announce(text) {
  $("announcement").textContent = text;
}

description();
