// Who answered, and how long it took: the line under an answer.

import { make } from "./dom.js";
import { languageName } from "./words.js";

/** Parts of one line, which breaks between them only. */
function line(parts) {
  return make("p", { class: "parts" }, ...parts.map((part) => make("span", { text: part })));
}

/** One line for each model that took part, and one for the times. */
export function about(body, timing) {
  const lines = Object.entries(body.models).map(([language, model]) =>
    line([
      languageName(language),
      model.version === null ? model.name : `${model.name}, version ${model.version}`,
      model.precision,
      `digest ${model.digest.slice(0, 12)}`,
    ]),
  );
  if (timing.length) lines.push(line(timing));
  return lines;
}
