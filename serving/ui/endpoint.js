// What the endpoint serves, asked again and again, for everyone on the page who wants to know.

import { Refusal, ask } from "./api.js";
import { byId, make, refill, tell } from "./dom.js";
import { currentKey } from "./key.js";
import { languageName, plural } from "./words.js";

// ms until the next look, by what the last one saw
const PAUSE = { ready: 30_000, waiting: 3_000, offline: 5_000, key: 30_000, failed: 30_000 };

const listeners = [];
let timer = 0;
let looking = null;

/** Call `listener(catalogue, problem)` after each look: one of the two is null. */
export const onLook = (listener) => listeners.push(listener);

/** Ask for /models now; looks that are asked for meanwhile share its answer. */
export function look(quiet) {
  looking ??= once(quiet).finally(() => {
    looking = null;
  });
  return looking;
}

async function once(quiet) {
  clearTimeout(timer);
  let kind = "failed";
  try {
    const { body } = await ask("models", { quiet });
    kind = body.ready ? "ready" : "waiting";
    show(kind, body.ready ? `Ready in ${plural(body.models.length, "language", "languages")}` : `Not ready: ${body.reason}`);
    tell(byId("banner"), "");
    inform(body, null);
  } catch (problem) {
    if (!(problem instanceof Refusal)) throw problem;
    kind = { offline: "offline", timeout: "offline", unauthorized: "key" }[problem.kind] ?? "failed";
    show(kind, { offline: "Offline", key: "A key is needed", failed: "The server refuses" }[kind]);
    tell(byId("banner"), kind === "key" ? "" : problem.message);
    inform(null, problem);
  } finally {
    // whatever this look met, the next one may meet something better
    timer = setTimeout(again, PAUSE[kind]);
  }
  byId("key-open").hidden = kind !== "key" && currentKey() === "";
  byId("key-open").textContent = currentKey() === "" ? "Enter a key" : "Change the key";
}

/** One listener that fails over what it is told keeps nothing from the others. */
function inform(catalogue, problem) {
  for (const listener of listeners) {
    try {
      listener(catalogue, problem);
    } catch (error) {
      console.error(error);
    }
  }
}

/** Nobody looks at a hidden page: it asks when it is seen again. */
function again() {
  if (document.visibilityState === "visible") look(true);
  else document.addEventListener("visibilitychange", again, { once: true });
}

function show(kind, words) {
  const state = byId("state");
  state.dataset.kind = kind;
  // said anew only if it changed, or a screen reader would hear it every half minute
  if (state.textContent !== words) state.textContent = words;
}

/** Keep a language field's options and its hint in step with what is served. */
export function followLanguages(select, hint) {
  onLook((catalogue) => {
    if (!catalogue) return;
    const chosen = select.value;
    const options = catalogue.models.map(({ language }) =>
      make("option", { value: language, text: `${languageName(language)} (${language})` }),
    );
    refill(select, make("option", { value: "", text: "Detect automatically" }), ...options);
    select.value = catalogue.models.some(({ language }) => language === chosen) ? chosen : "";
    hint.textContent = catalogue.fallback ? `Other languages are answered by the ${languageName(catalogue.fallback)} model.` : "";
  });
}
