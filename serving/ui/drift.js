// The section "Drift": what is asked now against what the model was evaluated on.

import { Refusal, ask } from "./api.js";
import { busy, byId, make, refill } from "./dom.js";
import { confidenceRows, histogram, labelRows, labelShares, numbers } from "./histogram.js";
import { date, decimal, languageName, plural } from "./words.js";

const PAUSE_MS = 30_000;
const list = byId("drift-list");

let watched = false;
let timer = 0;
let opened = new Set();

export function startDrift() {
  byId("drift-refresh").addEventListener("click", (event) => busy(event.currentTarget, "Asking…", () => update(false)));
  document.addEventListener("visibilitychange", () => watch(watched));
}

/** Look now and every half minute, while the section is shown on a page that is seen. */
export function watch(shown) {
  watched = shown;
  clearTimeout(timer);
  if (watched && document.visibilityState === "visible") update(true);
}

async function update(quiet) {
  clearTimeout(timer);
  try {
    const { body } = await ask("drift", { quiet });
    show(body.languages);
  } catch (problem) {
    if (!(problem instanceof Refusal)) throw problem;
    refill(list, make("p", { class: "empty", text: problem.message }));
  } finally {
    if (watched) timer = setTimeout(() => watch(watched), PAUSE_MS);
  }
}

function show(languages) {
  opened = new Set([...list.querySelectorAll("details[open]")].map((details) => details.dataset.language));
  const cards = Object.entries(languages).map(([language, report]) => card(language, report));
  refill(list, ...(cards.length ? cards : [make("p", { class: "empty", text: "No model is served yet." })]));
}

function card(language, report) {
  const title = `drift-${language}`;
  const { served, reference } = report;
  return make(
    "article",
    { class: "card drift", "aria-labelledby": title },
    make(
      "header",
      {},
      make("h3", { id: title }, languageName(language), make("span", { class: "code", text: language })),
      make("p", {
        class: "why",
        text: report.pairs
          ? `${plural(report.pairs, "pair", "pairs")} since ${date(report.since)}`
          : `Since ${date(report.since)}`,
      }),
    ),
    ...notes(report),
    ...(served || reference ? charts(language, report) : []),
  );
}

function notes({ served, reference }) {
  const lines = [];
  if (!served) lines.push("Nothing has been asked in this language yet.");
  if (!reference) lines.push("The model came without a reference, so there is nothing to compare with.");
  return lines.map((text) => make("p", { class: "empty", text }));
}

function charts(language, { served, reference, psi }) {
  const now = served?.confidence ?? null;
  const before = reference?.confidence ?? null;
  const details = make(
    "details",
    { "data-language": language },
    make("summary", { id: `numbers-${language}`, text: "The numbers" }),
    make(
      "div",
      { class: "tables" },
      numbers("Share of pairs by confidence", "Confidence", confidenceRows(now, before)),
      numbers("Share of pairs by label", "Label", labelRows(served?.labels, reference?.labels)),
    ),
  );
  details.open = opened.has(language);
  return [
    make(
      "p",
      { class: "legend", "aria-hidden": "true" },
      served && key("now", "now"),
      reference && key("reference", "reference"),
    ),
    make(
      "div",
      { class: "charts" },
      make("section", {}, make("h4", { text: "Confidence" }), histogram(now, before), psi && reading(psi.confidence)),
      make(
        "section",
        {},
        make("h4", { text: "Labels" }),
        labelShares(served?.labels, reference?.labels),
        psi && reading(psi.labels),
      ),
    ),
    served && reference && !psi
      ? make("p", { class: "why few", text: "Too few pairs for a PSI: it would mostly be chance." })
      : null,
    details,
  ];
}

const key = (kind, text) => make("span", {}, make("span", { class: `swatch ${kind}` }), text);

function reading(psi) {
  const [kind, words] = psi < 0.1 ? ["calm", "alike"] : psi <= 0.25 ? ["moving", "something moves"] : ["far", "far apart"];
  return make(
    "p",
    { class: "psi", "data-kind": kind },
    make("strong", { text: `PSI ${decimal(psi)}` }),
    make("span", { text: words }),
  );
}
