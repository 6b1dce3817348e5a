// The section "Models": a card for each language, in the words of its gate and its evaluation.

import { busy, byId, make, refill } from "./dom.js";
import { look, onLook } from "./endpoint.js";
import { capital, count, date, decimal, languageName, percent, plural, stopped } from "./words.js";

const list = byId("models-list");

export function startModels() {
  onLook((catalogue, problem) => {
    if (catalogue) show(catalogue);
    // models that were seen once stay on the page: the banner says that they may have changed
    else if (!list.querySelector(".model")) refill(list, make("p", { class: "empty", text: problem.message }));
  });
  byId("models-refresh").addEventListener("click", (event) => busy(event.currentTarget, "Asking…", () => look(false)));
}

function show(catalogue) {
  const served = new Set(catalogue.models.map(({ language }) => language));
  // a refused first version leaves its language without any
  const without = Object.entries(catalogue.refused).filter(([language]) => !served.has(language));
  const cards = [
    ...catalogue.models.map((model) => readable(model, catalogue.fallback)),
    ...without.map(([language, refusal]) => plain(language, refused(language, refusal, "nothing answers in this language"))),
  ];
  const said = catalogue.ready ? "No model is served." : stopped(`Not ready: ${catalogue.reason}`);
  if (!catalogue.ready || !cards.length) cards.unshift(make("p", { class: "empty", text: said }));
  refill(list, ...cards);
}

/** A model's card; of a record that is not as ours are it only says so, and the others are shown all the same. */
function readable(model, fallback) {
  try {
    return card(model, fallback);
  } catch (error) {
    console.error(error);
    return plain(model.language, make("p", { class: "empty", text: "This model answers, but its record cannot be shown." }));
  }
}

function card(model, fallback) {
  const title = `model-${model.language}`;
  return make(
    "article",
    { class: "card model", "aria-labelledby": title },
    make(
      "header",
      {},
      make("h3", { id: title }, languageName(model.language), make("span", { class: "code", text: model.language })),
      make("span", { class: "badge", text: model.version === null ? "from a folder" : `version ${model.version}` }),
    ),
    model.refused ? refused(model.language, model.refused, servesOn(model)) : null,
    model.without_champion ? withoutChampion(model) : null,
    make(
      "dl",
      { class: "facts" },
      fact("Name", model.name),
      fact("Served since", date(model.loaded_at)),
      fact("Reads", `up to ${count(model.max_tokens)} tokens a pair`),
      fact("Precision", model.precision, precision(model.card.precision)),
      fact("Temperature", decimal(model.temperature), temperature(model.card.temperature)),
      model.language === fallback ? fact("Fallback", "answers for languages that are not served") : null,
      make("div", {}, make("dt", { text: "Digest" }), make("dd", { class: "digest", text: model.digest })),
    ),
    gate(model.gate),
    evaluation(model.card.evaluation),
  );
}

/** A card with one thing to tell of a language. */
function plain(language, told) {
  const title = `model-${language}`;
  return make(
    "article",
    { class: "card model", "aria-labelledby": title },
    make("header", {}, make("h3", { id: title }, languageName(language), make("span", { class: "code", text: language }))),
    told,
  );
}

function fact(name, value, ...reasons) {
  const lines = reasons.flat().map((reason) => make("span", { class: "why", text: reason }));
  return make("div", {}, make("dt", { text: name }), make("dd", {}, value, ...lines));
}

/** Why this precision is served, and what the gate between them saw. */
function precision(decision) {
  if (!decision) return ["No decision between precisions was recorded."];
  const lines = [stopped(decision.reason)];
  if (decision.accuracy) {
    const { fp32, int8 } = decision.accuracy;
    lines.push(`Accuracy fp32 ${percent(fp32)}, int8 ${percent(int8)}, on ${plural(decision.pairs, "pair", "pairs")}.`);
  }
  if (decision.agreement !== null && decision.agreement !== undefined)
    lines.push(`They agree on ${percent(decision.agreement)}.`);
  return lines;
}

function temperature(fit) {
  if (!fit) return [];
  const lines = [];
  if (fit.fitted_on) lines.push(`Fitted on ${fit.fitted_on}.`);
  if (fit.ece) lines.push(`Calibration error ${decimal(fit.ece.before)} before, ${decimal(fit.ece.after)} after.`);
  return lines;
}

const servesOn = ({ version }) => `${version === null ? "the one before" : `version ${version}`} serves on`;

function refused(language, refusal, instead) {
  const newer = refusal.version === null ? "A model" : `Version ${refusal.version}`;
  const digest = refusal.digest === null ? "" : `, digest ${refusal.digest.slice(0, 12)}`;
  return make(
    "div",
    { class: "notice bad refused", role: "note", "aria-label": `Refused version for ${languageName(language)}` },
    make("strong", { text: `${newer} was refused; ${instead}.` }),
    make("p", { text: stopped(capital(refusal.reason)) }),
    make("p", { class: "why", text: `Since ${date(refusal.since)}${digest}` }),
  );
}

function withoutChampion(model) {
  return make(
    "div",
    { class: "notice bad", role: "note", "aria-label": `No champion for ${languageName(model.language)}` },
    make("strong", { text: `The registry has no champion for this language any more; ${servesOn(model)}.` }),
  );
}

function gate(decision) {
  const body = decision
    ? [
        make(
          "p",
          { class: decision.promote ? "decision yes" : "decision no" },
          decision.promote ? "Promoted" : "Not promoted",
          decision.decided_at ? make("span", { class: "why", text: date(decision.decided_at) }) : null,
        ),
        make("ul", { class: "reasons" }, ...decision.reasons.map((reason) => make("li", { text: reason }))),
      ]
    : [make("p", { class: "why", text: "No decision is recorded: the model was given by hand, not by the registry." })];
  return make("section", {}, make("h4", { text: "Promotion gate" }), ...body);
}

function evaluation(result) {
  const body = result
    ? [
        make(
          "p",
          {},
          make("span", { class: "figure", text: percent(result.accuracy) }),
          ` right of ${plural(result.n, "pair", "pairs")}, calibration error ${decimal(result.ece)}`,
        ),
        make("p", { class: "why", text: result.protocol }),
        bands(result.bands),
      ]
    : [make("p", { class: "why", text: "No evaluation came with this model." })];
  return make("section", {}, make("h4", { text: "Evaluation" }), ...body);
}

/** How often the model is right where it is sure, half sure and unsure. */
function bands(rows) {
  const head = ["Confidence", "Pairs", "Right"].map((name) => make("th", { scope: "col", text: name }));
  const body = rows.map((row) => {
    const track = make("span", { class: "track", "aria-hidden": "true" }, make("span", { class: "fill" }));
    track.firstElementChild.style.setProperty("--share", row.accuracy ?? 0);
    return make(
      "tr",
      {},
      make("th", { scope: "row", text: range(row) }),
      make("td", { text: count(row.count) }),
      make("td", { class: "share" }, make("span", { text: row.accuracy === null ? "–" : percent(row.accuracy) }), track),
    );
  });
  return make(
    "table",
    { class: "bands" },
    make("caption", { class: "unseen", text: "Accuracy by confidence" }),
    make("thead", {}, make("tr", {}, ...head)),
    make("tbody", {}, ...body),
  );
}

const range = ({ band, lower, upper }) =>
  ({ high: `over ${lower}`, middle: `${lower} to ${upper}`, low: `under ${upper}` })[band];
