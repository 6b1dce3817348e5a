// Elements are made here and nowhere from markup: whatever a server or a person wrote stays text.

/** An element with properties (`class`, `text`, `data-…`, `aria-…`, any attribute) and children; null children are left out. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Write an error beside its field, or take it away with an empty text. */
export function tell(place, text, fields = []) {
  place.textContent = text;
  place.hidden = !text;
  for (const field of fields) {
    if (text) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
  }
}

/** Replace a list's content; whoever stood on one of its elements by keyboard stands there afterwards. */
export function refill(place, ...children) {
  const focused = place.contains(document.activeElement) ? document.activeElement.id : "";
  place.replaceChildren(...children);
  if (focused) byId(focused)?.focus();
}

/** While `work` runs the button says so and ignores further presses, but keeps the focus, which `disabled` would lose. */
export async function busy(button, words, work) {
  if (button.getAttribute("aria-disabled") === "true") return;
  const before = button.textContent;
  button.setAttribute("aria-disabled", "true");
  button.textContent = words;
  try {
    await work();
  } finally {
    button.removeAttribute("aria-disabled");
    button.textContent = before;
  }
}
