// The section "Zero-shot": a text under labels of one's own.

import { about } from "./about.js";
import { age } from "./age.js";
import { Refusal, ask } from "./api.js";
import { bars } from "./bars.js";
import { busy, byId, make, tell } from "./dom.js";
import { followLanguages, onLook } from "./endpoint.js";
import { offerExample } from "./examples.js";
import { capital, foundAs, percent, plural } from "./words.js";

const form = byId("zero-form");
const list = byId("zero-labels");
const entry = byId("zero-label");
const answer = byId("zero-answer");
const nothing = answer.querySelector(".empty");
const send = form.querySelector('[type="submit"]');
const FIELDS = { text: byId("zero-text"), label: entry, template: byId("zero-template"), language: byId("zero-language") };
const errorOf = (name) => byId(`zero-${name}-error`);

let labels = [];
let fallback = null;
// the text of the example as it came: nobody's own words
let example = "";
// the question of the answer that is shown
let answered = "";

export function startZeroShot() {
  onLook((catalogue) => {
    if (catalogue) fallback = catalogue.fallback;
  });
  followLanguages(FIELDS.language, byId("zero-language-hint"));
  offerExample(byId("zero-example"), FIELDS.language, onLook, fill);
  byId("zero-add").addEventListener("click", () => {
    take();
    entry.focus();
  });
  entry.addEventListener("keydown", (event) => {
    // a word that an input method is still composing ends with Enter too
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.ctrlKey && !event.metaKey && entry.value.trim()) {
      event.preventDefault();
      take();
    } else if (event.key === "Backspace" && !entry.value && labels.length) drop(labels.length - 1);
  });
  entry.addEventListener("input", (event) => {
    if (!event.isComposing && /[,،、，\n]/.test(entry.value)) take();
  });
  for (const [name, field] of Object.entries(FIELDS)) {
    field.addEventListener("input", () => tell(errorOf(name), "", [field]));
  }
  form.addEventListener("input", follow);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    take();
    busy(send, "Asking…", sort);
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

/** The labels and what still stands in the entry, each once. */
function written() {
  const entered = entry.value.split(/[,،、，\n]/).map((label) => label.trim());
  return [...new Set([...labels, ...entered.filter(Boolean)])];
}

function take() {
  labels = written();
  entry.value = "";
  showLabels();
  if (labels.length) tell(errorOf("label"), "", [entry]);
}

function drop(index) {
  labels = labels.filter((_, place) => place !== index);
  showLabels();
  follow();
  entry.focus();
}

/** Put an example where nothing is, or another example; what a person wrote stays. */
function fill([premise]) {
  const wantsText = !FIELDS.text.value.trim() || FIELDS.text.value === example;
  const wantsLabels = !written().length;
  if (wantsText) {
    example = premise;
    FIELDS.text.value = premise;
    tell(errorOf("text"), "", [FIELDS.text]);
  }
  if (wantsLabels) {
    labels = ["sport", "politics", "cooking", "weather"];
    showLabels();
    tell(errorOf("label"), "", [entry]);
  }
  tell(byId("zero-error"), wantsText || wantsLabels ? "" : "What you wrote stays. Empty the text to see an example.");
  follow();
  send.focus();
}

function showLabels() {
  list.replaceChildren(
    ...labels.map((label, index) => {
      const remove = make("button", { type: "button", "aria-label": `Remove ${label}`, text: "×" });
      remove.addEventListener("click", () => drop(index));
      return make("li", {}, make("span", { dir: "auto", text: label }), remove);
    }),
  );
  list.hidden = labels.length === 0;
}

async function sort() {
  for (const [name, field] of Object.entries(FIELDS)) tell(errorOf(name), "", [field]);
  tell(byId("zero-error"), "");
  if (!FIELDS.text.value.trim()) tell(errorOf("text"), "Write a text.", [FIELDS.text]);
  if (!labels.length) tell(errorOf("label"), "Add at least one label.", [entry]);
  if (!/^[^{}]*\{\}[^{}]*$/.test(FIELDS.template.value))
    tell(errorOf("template"), "Put {} once, where the label goes, and no other brace.", [FIELDS.template]);
  if (focusWrong()) return;
  const question = read();
  answer.setAttribute("aria-busy", "true");
  try {
    const { body, timing } = await ask("zero-shot", { question });
    show(body, timing, question.multi_label);
    answered = JSON.stringify(question);
    // someone may have written on while the answer was under way
    follow();
  } catch (problem) {
    if (!(problem instanceof Refusal)) throw problem;
    refuse(problem);
  } finally {
    answer.removeAttribute("aria-busy");
  }
}

function read() {
  const question = {
    text: FIELDS.text.value,
    labels: written(),
    template: FIELDS.template.value,
    multi_label: byId("zero-multi").checked,
    truncate: byId("zero-truncate").checked,
  };
  if (FIELDS.language.value) question.language = FIELDS.language.value;
  return question;
}

function follow() {
  if (JSON.stringify(read()) !== answered) age(answer);
}

function show(body, timing, multi) {
  const [result] = body.results;
  const rows = result.labels.map((label, index) => [label, result.scores[index]]);
  const isStrong = multi ? (_, share) => share >= 0.5 : (name) => name === rows[0][0];
  answer.replaceChildren(
    make(
      "p",
      { class: "verdict" },
      make("strong", { dir: "auto", text: rows[0][0] }),
      make("span", { text: percent(rows[0][1]) }),
    ),
    make("p", {
      class: "means",
      text: multi ? "The best of labels that were each judged by themselves." : "The best of these labels.",
    }),
    bars(rows, isStrong),
    make("p", { class: "found", text: foundAs(result.language, body.language_source, { fallback, texts: 1 }) }),
    make("div", { class: "about" }, ...about(body, timing)),
    make("p", {
      class: "note",
      text: "From raw logits, without the model's temperature: the numbers of Hugging Face's pipeline.",
    }),
  );
  if (result.truncated) answer.append(make("p", { class: "note", text: "The text was cut to what the model reads." }));
  const best = `${rows[0][0]}, ${percent(rows[0][1])}`;
  byId("zero-said").textContent = `${plural(rows.length, "label", "labels")} sorted. Best: ${best}.`;
}

/** Words for a refused request, beside the field that they name. */
function refuse(problem) {
  const message = problem.message
    .replace(/^text \d+:? (it )?/i, "the text ")
    .replace("the text its language", "its language")
    .replace("send it as language", "choose it")
    .replace('send "truncate": true', "tick “Cut a text that is too long”");
  const told = `${problem.kind} ${message}`.toLowerCase();
  // of the statuses that speak of the question; the others speak of the server
  const ofQuestion = [400, 404, 413, 422].includes(problem.status);
  // the answer that stands there is not to this question
  if (ofQuestion) answer.replaceChildren(nothing);
  const named = ofQuestion && ["language", "template", "label", "text"].find((name) => new RegExp(`(\\b|_)${name}`).test(told));
  if (named) tell(errorOf(named), capital(message), [FIELDS[named]]);
  else tell(byId("zero-error"), message);
  focusWrong();
}

/** Put the focus on the first field with an error; whether there is one. */
function focusWrong() {
  const first = Object.values(FIELDS).find((field) => field.hasAttribute("aria-invalid"));
  first?.focus();
  return first !== undefined;
}
