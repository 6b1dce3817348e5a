// The section "Pairs": texts in, three probabilities each.

import { about } from "./about.js";
import { age } from "./age.js";
import { Refusal, ask } from "./api.js";
import { bars } from "./bars.js";
import { busy, byId, make, tell } from "./dom.js";
import { followLanguages, onLook } from "./endpoint.js";
import { offerExample } from "./examples.js";
import { capital, foundAs, percent, plural, stopped } from "./words.js";

const MEANS = {
  entailment: "The hypothesis follows from the premise.",
  neutral: "It may be so or not: the premise leaves it open.",
  contradiction: "Both cannot be true.",
};

const form = byId("pairs-form");
const list = byId("pairs-list");
const language = byId("pairs-language");
const send = form.querySelector('[type="submit"]');

// cards that hold an example as it came: nobody's own words
const untouched = new WeakSet();

let most = Infinity;
let fallback = null;
let made = 0;

const cards = () => [...list.children];
const texts = (card) => [...card.querySelectorAll("textarea")];
const field = (card, name) => card.querySelector(`[data-name="${name}"]`);
const errorOf = (card, name) => card.querySelector(`[data-error="${name}"]`);
const answerOf = (card) => card.querySelector(".answer");

export function startPairs() {
  addCard();
  followLanguages(language, byId("pairs-language-hint"));
  onLook((catalogue) => {
    if (catalogue)
      ({
        fallback,
        limits: { pairs: most },
      } = catalogue);
    number();
  });
  offerExample(byId("pairs-example"), language, onLook, fill);
  byId("pairs-add").addEventListener("click", () => field(addCard(), "premise").focus());
  language.addEventListener("change", () => {
    tell(byId("pairs-language-error"), "", [language]);
    for (const card of cards()) age(answerOf(card));
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    busy(send, "Asking…", predict);
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

function addCard() {
  const card = byId("pair-template").content.firstElementChild.cloneNode(true);
  const id = (made += 1);
  for (const name of ["premise", "hypothesis"]) {
    field(card, name).id = `${name}-${id}`;
    card.querySelector(`[data-for="${name}"]`).htmlFor = `${name}-${id}`;
    field(card, name).setAttribute("aria-describedby", `${name}-error-${id} pair-error-${id}`);
    field(card, name).addEventListener("input", () => {
      clear(card);
      age(answerOf(card));
      untouched.delete(card);
    });
  }
  for (const name of ["premise", "hypothesis", "pair"]) errorOf(card, name).id = `${name}-error-${id}`;
  card.querySelector(".remove").addEventListener("click", () => remove(card));
  list.append(card);
  wait(card);
  number();
  return card;
}

function remove(card) {
  const place = cards().indexOf(card);
  card.remove();
  number();
  field(cards()[Math.max(0, place - 1)], "premise").focus();
}

function number() {
  const all = cards();
  for (const [index, card] of all.entries()) {
    card.querySelector("legend").textContent = `Pair ${index + 1}`;
    card.querySelector(".remove").setAttribute("aria-label", `Remove pair ${index + 1}`);
    card.querySelector(".remove").hidden = all.length === 1;
    answerOf(card).setAttribute("aria-label", `Answer to pair ${index + 1}`);
  }
  byId("pairs-add").hidden = all.length >= most;
}

/** Put an example into cards that are empty or hold another one, and into new ones; what a person wrote stays. */
function fill([premise, ...hypotheses]) {
  const free = cards().filter((card) => untouched.has(card) || texts(card).every((text) => !text.value.trim()));
  const room = most - cards().length + free.length;
  tell(byId("pairs-error"), room > 0 ? "" : "What you wrote stays. Remove a pair to see an example.");
  for (const hypothesis of hypotheses.slice(0, Math.max(0, room))) {
    const card = free.shift() ?? addCard();
    field(card, "premise").value = premise;
    field(card, "hypothesis").value = hypothesis;
    untouched.add(card);
    clear(card);
    wait(card);
  }
  for (const card of free) card.remove();
  number();
  byId("pairs-about").hidden = !list.querySelector(".verdict");
  send.focus();
}

async function predict() {
  if (!complete()) return;
  const asked = cards();
  const question = { pairs: asked.map(read), truncate: byId("pairs-truncate").checked, partial: true };
  if (language.value) question.language = language.value;
  for (const card of asked) answerOf(card).setAttribute("aria-busy", "true");
  try {
    const { body, timing } = await ask("predict", { question });
    for (const [index, prediction] of body.predictions.entries()) show(asked[index], question.pairs[index], prediction, body);
    byId("pairs-about").replaceChildren(...about(body, timing));
    byId("pairs-about").hidden = false;
    byId("pairs-said").textContent = said(body.predictions);
    asked
      .flatMap(texts)
      .find((text) => text.hasAttribute("aria-invalid"))
      ?.focus();
  } catch (problem) {
    if (!(problem instanceof Refusal)) throw problem;
    refuse(asked, problem);
  } finally {
    for (const card of asked) answerOf(card).removeAttribute("aria-busy");
  }
}

/** Whether every field holds something; the first one that does not gets the focus. */
function complete() {
  tell(byId("pairs-error"), "");
  tell(byId("pairs-language-error"), "", [language]);
  for (const card of cards()) {
    clear(card);
    for (const text of texts(card)) {
      if (!text.value.trim()) tell(errorOf(card, text.dataset.name), `Write a ${text.dataset.name}.`, [text]);
    }
  }
  const first = cards()
    .flatMap(texts)
    .find((text) => text.hasAttribute("aria-invalid"));
  first?.focus();
  return first === undefined;
}

const read = (card) => ({ premise: field(card, "premise").value, hypothesis: field(card, "hypothesis").value });

function show(card, asked, prediction, body) {
  if (prediction.error) {
    wait(card);
    complain(card, prediction.error.message);
    return;
  }
  const { label, probabilities } = prediction;
  const rows = Object.entries(probabilities).map(([name, share]) => [capital(name), share]);
  answerOf(card).replaceChildren(
    make(
      "p",
      { class: "verdict" },
      make("strong", { text: capital(label) }),
      make("span", { text: percent(probabilities[label]) }),
    ),
    make("p", { class: "means", text: MEANS[label] }),
    bars(rows, (name) => name === capital(label)),
    make("p", {
      class: "found",
      text: foundAs(prediction.language, body.language_source, { fallback, texts: body.predictions.length }),
    }),
  );
  if (prediction.truncated)
    answerOf(card).append(make("p", { class: "note", text: "The pair was cut to what the model reads." }));
  // someone may have written on while the answer was under way
  const now = read(card);
  if (now.premise !== asked.premise || now.hypothesis !== asked.hypothesis) age(answerOf(card));
}

function said(predictions) {
  const answered = predictions.filter((prediction) => !prediction.error);
  const verdicts = predictions.map(({ error, label, probabilities }, index) =>
    error ? `Pair ${index + 1}: not answered.` : `Pair ${index + 1}: ${label}, ${percent(probabilities[label])}.`,
  );
  return [`${plural(answered.length, "pair", "pairs")} answered.`, ...verdicts].join(" ");
}

/** Words for a whole request that was refused, where they belong. */
function refuse(asked, problem) {
  if (problem.index !== null && asked[problem.index]) {
    complain(asked[problem.index], problem.message);
    texts(asked[problem.index])[0].focus();
  } else if (/language/.test(problem.kind)) {
    tell(byId("pairs-language-error"), problem.message, [language]);
    language.focus();
  } else tell(byId("pairs-error"), problem.message);
}

/** The endpoint counts pairs from 0 and speaks to programs; beside the field neither helps. */
function complain(card, message) {
  const text = message
    .replace(/^pair \d+: /i, "")
    .replace(/^pair \d+ /i, "this pair ")
    .replace("send it as language", "choose it")
    .replace('send "truncate": true', "tick “Cut pairs that are too long”");
  const named = ["premise", "hypothesis"].find((name) => new RegExp(`\\b${name}\\b`).test(text));
  tell(errorOf(card, named ?? "pair"), stopped(capital(text)), named ? [field(card, named)] : texts(card));
}

function clear(card) {
  for (const name of ["premise", "hypothesis", "pair"]) tell(errorOf(card, name), "", texts(card));
}

function wait(card) {
  answerOf(card).replaceChildren(make("p", { class: "empty", text: "The answer appears here." }));
}
