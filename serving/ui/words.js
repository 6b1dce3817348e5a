// Numbers, dates and languages as people read them.

const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });

/** "Swahili" for "sw"; a code that no one knows stays as it is. */
export function languageName(code) {
  try {
    return names.of(code);
  } catch {
    return code; // not a BCP 47 tag: models may be named in other ways
  }
}

export const percent = (share, digits = 1) => `${(share * 100).toFixed(digits)} %`;
export const count = (number) => number.toLocaleString("en");
export const decimal = (number, digits = 3) => number.toFixed(digits);
export const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;
export const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1);

/** The endpoint's messages and reasons end without a stop. */
export const stopped = (text) => (/[.!?…]$/.test(text) ? text : `${text}.`);

const dates = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

/** "23 Nov 2026, 10:05" in the reader's own time zone. */
export const date = (iso) => dates.format(new Date(iso));

const SOURCES = {
  given: "as chosen",
  detected: "detected",
  fallback: "the fallback, as no served language was recognised",
};

/**
 * How the language of an answer came about.
 *
 * A request has one source, "fallback" if the fallback answered any of its texts: what another model answered was detected, and of
 * several texts it is not told for which of them the fallback stood in.
 */
export function foundAs(language, source, { fallback, texts }) {
  const name = languageName(language);
  if (source !== "fallback") return `${name}, ${SOURCES[source]}`;
  if (language !== fallback) return `${name}, ${SOURCES.detected}`;
  return `${name}, ${texts > 1 ? "detected, or the fallback for another language" : SOURCES.fallback}`;
}
