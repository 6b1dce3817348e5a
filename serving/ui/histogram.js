// What is served now beside the reference, as columns for the eye and as a table for everyone.

import { make } from "./dom.js";
import { capital, percent } from "./words.js";

const edge = (bin, bins) => (bin / bins).toFixed(1);

/**
 * Columns of two histograms over confidence.
 *
 * @param {number[] | null} now shares of what was served, null if nothing was.
 * @param {number[] | null} reference shares of the evaluation, null if unknown.
 */
export function histogram(now, reference) {
  const bins = (now ?? reference).length;
  const shares = [now, reference].filter(Boolean);
  const top = Math.max(0.05, ...shares.flat());
  // the largest of three probabilities is at least a third: bins under it stay empty and are left out
  const first = Math.min(
    Math.floor(bins / 3),
    ...shares.map((all) => all.findIndex((share) => share > 0)).filter((place) => place >= 0),
  );
  const columns = [];
  for (let bin = first; bin < bins; bin += 1) {
    columns.push(
      make(
        "div",
        { class: "bin" },
        make(
          "div",
          { class: "columns" },
          now && column("now", now[bin] / top),
          reference && column("reference", reference[bin] / top),
        ),
        make("span", { text: edge(bin, bins) }),
      ),
    );
  }
  return make(
    "div",
    { class: "histogram", "aria-hidden": "true" },
    make("span", { class: "ceiling", text: percent(top, 0) }),
    make("div", { class: "bins" }, ...columns),
    make("span", { class: "axis", text: "confidence, from each number to the next" }),
  );
}

/** Bars of the three labels' shares. */
export function labelShares(now, reference) {
  const names = Object.keys(now ?? reference);
  return make(
    "div",
    { class: "label-shares", "aria-hidden": "true" },
    ...names.map((name) =>
      make(
        "div",
        { class: "label-share" },
        make("span", { class: "name", text: capital(name) }),
        make("div", { class: "rows" }, now && row("now", now[name]), reference && row("reference", reference[name])),
      ),
    ),
  );
}

/** The same numbers as a table. */
export function numbers(caption, first, rows) {
  const head = [first, "Now", "Reference"].map((name) => make("th", { scope: "col", text: name }));
  const cell = (share) => make("td", { text: share === null || share === undefined ? "–" : percent(share) });
  const body = rows.map(([name, now, reference]) =>
    make("tr", {}, make("th", { scope: "row", text: name }), cell(now), cell(reference)),
  );
  return make(
    "table",
    {},
    make("caption", { text: caption }),
    make("thead", {}, make("tr", {}, ...head)),
    make("tbody", {}, ...body),
  );
}

export const confidenceRows = (now, reference) =>
  (now ?? reference).map((_, bin, all) => [
    `${edge(bin, all.length)} to ${edge(bin + 1, all.length)}`,
    now?.[bin],
    reference?.[bin],
  ]);

export const labelRows = (now, reference) =>
  Object.keys(now ?? reference).map((name) => [capital(name), now?.[name], reference?.[name]]);

function column(kind, height) {
  const element = make("span", { class: `column ${kind}` });
  element.style.setProperty("--share", height);
  return element;
}

function row(kind, share) {
  const fill = make("span", { class: `fill ${kind}` });
  fill.style.setProperty("--share", share);
  return make(
    "div",
    { class: "row" },
    make("span", { class: "track" }, fill),
    make("span", { class: "value", text: percent(share) }),
  );
}
