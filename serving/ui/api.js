// The endpoint's JSON over fetch: one way to ask, one kind of error.

import { askForKey, currentKey } from "./key.js";
import { capital, stopped } from "./words.js";

// nobody looks at a page for longer. Ours is a little more than what the endpoint is given, so that its words are shown
const DEADLINE_MS = 60_000;
const PATIENCE_MS = 70_000;

/** An answer that is no answer: `kind` as the endpoint names it, or "offline", "timeout", "unreadable". */
export class Refusal extends Error {
  constructor(kind, message, { status = 0, index = null } = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.index = index;
  }
}

/**
 * Ask the endpoint; a question goes by POST, none by GET.
 *
 * @param {boolean} quiet do not open the key dialog on a 401: the caller is no person.
 * @returns {Promise<{body: object, timing: string[]}>} the answer, and what the endpoint says that it took.
 */
export async function ask(path, { question = null, quiet = false } = {}) {
  for (;;) {
    const key = currentKey();
    const response = await send(path, question, key);
    const body = await read(response);
    if (response.ok) return { body, timing: timing(response.headers.get("Server-Timing") ?? "") };
    if (response.status !== 401) throw refusalOf(response, body);
    // another question may have brought a key meanwhile
    if (currentKey() === key && (quiet || !(await askForKey()))) throw new Refusal("unauthorized", "An API key is needed.");
  }
}

async function send(path, question, key) {
  const headers = { Accept: "application/json", "X-Deadline-Ms": String(DEADLINE_MS) };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (question) headers["Content-Type"] = "application/json";
  const request = { method: question ? "POST" : "GET", headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) };
  if (question) request.body = JSON.stringify(question);
  try {
    return await fetch(path, request);
  } catch (error) {
    if (error.name === "TimeoutError") throw new Refusal("timeout", `No answer within ${PATIENCE_MS / 1000} seconds.`);
    throw new Refusal("offline", "The server cannot be reached. What you wrote stays here; try again in a moment.");
  }
}

async function read(response) {
  try {
    return await response.json();
  } catch {
    throw new Refusal("unreadable", `The server answered ${response.status} without words of its own.`, {
      status: response.status,
    });
  }
}

function refusalOf(response, body) {
  const { type = "unreadable", message = `The server answered ${response.status}.`, index = null } = body.error ?? {};
  const seconds = response.headers.get("Retry-After");
  const later = response.status === 429 && seconds && !/try again/i.test(message) ? ` Try again in ${seconds} s.` : "";
  return new Refusal(type, stopped(capital(message)) + later, { status: response.status, index });
}

const TIMES = { detect: "detection", queue: "queue", tokenize: "tokenisation", inference: "inference" };

/** "queue;dur=0.4, inference;dur=7" as ["queue 0.4 ms", "inference 7.0 ms"]. */
function timing(header) {
  const parts = [];
  for (const entry of header.split(",")) {
    const [name, ...parameters] = entry.split(";").map((part) => part.trim());
    const duration = parameters.find((parameter) => parameter.startsWith("dur="));
    if (name in TIMES && duration) parts.push(`${TIMES[name]} ${Number(duration.slice(4)).toFixed(1)} ms`);
  }
  return parts;
}
