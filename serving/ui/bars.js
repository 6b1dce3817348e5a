// Shares as bars. The number stands beside each bar as text; a screen reader hears name and number once.

import { make } from "./dom.js";
import { percent } from "./words.js";

let made = 0;

/** One line: name, number, bar. `strong` bars carry the accent colour. */
export function bar(name, share, strong) {
  const id = `bar-${(made += 1)}`;
  const value = percent(share);
  const fill = make("span", { class: "fill" });
  fill.style.setProperty("--share", share);
  const meter = { class: "track", role: "meter", "aria-labelledby": id, "aria-valuemin": 0, "aria-valuemax": 1 };
  return make(
    "li",
    { class: strong ? "bar strong" : "bar" },
    make("span", { class: "name", id, dir: "auto", text: name }),
    make("span", { class: "value", "aria-hidden": "true", text: value }),
    make("span", { ...meter, "aria-valuenow": share.toFixed(4), "aria-valuetext": value }, fill),
  );
}

/** Bars of `[name, share]`, in the given order. */
export const bars = (rows, isStrong) =>
  make("ul", { class: "bars" }, ...rows.map(([name, share]) => bar(name, share, isStrong(name, share))));
