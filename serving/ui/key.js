// The API key: asked for when the endpoint wants one, kept in sessionStorage only, so it ends with the tab.

import { byId, tell } from "./dom.js";

const NAME = "conlst-key";
const dialog = byId("key-dialog");
const value = byId("key-value");
const error = byId("key-error");

let waiting = null;

export const currentKey = () => sessionStorage.getItem(NAME) ?? "";

/** Ask the person for a key. Resolves to whether there is a new one; questions that come meanwhile share the answer. */
export function askForKey() {
  waiting ??= new Promise((resolve) => {
    const known = currentKey() !== "";
    byId("key-why").textContent = known ? "The endpoint refused this key." : "This endpoint answers those who have a key.";
    byId("key-forget").hidden = !known;
    value.value = "";
    tell(error, "", [value]);
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        waiting = null;
        value.value = "";
        resolve(dialog.returnValue === "given");
      },
      { once: true },
    );
    dialog.showModal();
  });
  return waiting;
}

/** Connect the dialog's buttons; `changed` is called after a key was entered or forgotten by the header's button. */
export function startKey(changed) {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = value.value.trim();
    if (!key) tell(error, "Enter a key.", [value]);
    else if (/[^\x21-\x7e]/.test(key)) tell(error, "A key has only letters, digits and signs of ASCII, without spaces.", [value]);
    else {
      sessionStorage.setItem(NAME, key);
      dialog.close("given");
      return;
    }
    value.focus();
  });
  byId("key-cancel").addEventListener("click", () => dialog.close());
  byId("key-forget").addEventListener("click", () => {
    sessionStorage.removeItem(NAME);
    dialog.close();
    changed();
  });
  byId("key-open").addEventListener("click", async () => {
    if (await askForKey()) changed();
  });
}
