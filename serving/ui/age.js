// An answer whose question has changed since says so.

import { make } from "./dom.js";

/** Mark the answer that stands in a place, if one does. */
export function age(place) {
  if (place.querySelector(".verdict") && !place.querySelector(".stale")) {
    place.prepend(make("p", { class: "stale", text: "Changed since this answer." }));
  }
}
