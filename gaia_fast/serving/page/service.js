// What the page asks of the service, and what goes wrong between them.

import { size } from "./words.js";

const PAUSES = [1, 2, 4]; // seconds, before an image for which there was no room is sent again

let served = null; // the id of what answered last: another one where the service was started anew with another detector

/** Whether what `about` told is still what is served. */
export const isServed = (described) => served === null || served === described.id;

/** Why there is no answer; `again` where the same may be answered later. */
export class Failure extends Error {
  constructor(reason, again) {
    super(reason);
    this.again = again;
  }
}

export const about = () => answerTo("about");
export const drift = () => answerTo("drift");
export const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/**
 * Has an image scored.
 *
 * @param {File} file
 * @param {object} described what `about` told.
 * @param {(text: string) => void} progress is told what it waits for.
 * @returns the answer, for `resultsOf`.
 * @throws {Failure}
 */
export async function score(file, described, progress) {
  if (file.size > described.max_bytes) {
    const limit = `${size(described.max_bytes)} are the limit; take a smaller one`;
    throw new Failure(`the file has ${size(file.size)}, and ${limit}`, false);
  }
  let bytes;
  try {
    bytes = await file.arrayBuffer();
  } catch {
    throw new Failure("the browser cannot read this: is it a folder, or a file that has gone?", false);
  }
  // Whatever the browser takes the file for: the service looks at the bytes.
  const request = { method: "POST", body: bytes, headers: { "Content-Type": "application/octet-stream" } };
  for (const pause of PAUSES) {
    progress("scoring");
    try {
      return await answerTo("score", request);
    } catch (failure) {
      if (failure.status !== 503) throw failure;
    }
    progress(`the service is busy; trying again in ${pause} s`);
    await sleep(pause);
  }
  progress("scoring");
  return answerTo("score", request);
}

/**
 * What was answered, the same for one score, which has no name there, as for several.
 *
 * @param {object} answer of `score`.
 * @param {string[]} names of the scores.
 * @returns the class, its label or null, and of each score {name, value, isOod}; `isOod` is null without a threshold.
 */
export function resultsOf(answer, names) {
  const results = names.map((name) =>
    "scores" in answer
      ? { name, value: answer.scores[name], isOod: answer.is_ood[name] }
      : { name, value: answer.score, isOod: answer.is_ood },
  );
  return { predicted: answer.predicted, label: answer.label, results };
}

async function answerTo(path, request) {
  let response;
  try {
    response = await fetch(path, request);
  } catch {
    throw new Failure("the service cannot be reached", true);
  }
  served = response.headers.get("Gaia-Fast-About") ?? served; // a proxy's own errors have none, and are no JSON
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return answer;
  const failure = new Failure(answer?.error ?? `the service answered ${response.status}`, response.status >= 500);
  failure.status = response.status;
  throw failure;
}
