// JSON values: a tree that opens and closes, and one line in colours. The tree makes elements only for what is open.

import { h } from "./dom.js";
import { isRaw } from "./exact.js";
import { oneLine } from "./sql.js";

const LONG_LINE = 400; // characters of a message that are shown before it is opened
const LONG_LIST = 100; // entries of a list or object that are shown at once
const LONG_TEXT = 2_000; // characters of a string that are shown at once
const OPEN_ENTRIES = 12; // what has more entries is closed at first, except the root
const OPEN_DEPTH = 20; // what is nested deeper is closed, too

// The parts of JSON text that are coloured: keys, strings, and words and numbers.
const TOKENS = /(?<key>"(?:[^"\\]|\\.)*"(?=:))|(?<string>"(?:[^"\\]|\\.)*")|(?<atom>[\w.+-]+)/g;

/** Returns the value on one line, as a <code> in colours. A long one is cut. */
export function jsonLine(value) {
  const text = textOf(value);
  const line = h("code", { class: "payload" });
  const shown = text.length > LONG_LINE ? text.slice(0, LONG_LINE) : text;
  let end = 0;
  for (const match of shown.matchAll(TOKENS)) {
    const kind = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
    line.append(shown.slice(end, match.index), h("span", { class: kind, text: match[0] }));
    end = match.index + match[0].length;
  }
  line.append(shown.slice(end));
  if (shown !== text) line.append(h("span", { class: "more", text: `… ${text.length.toLocaleString("en")} characters` }));
  return line;
}

function textOf(value) {
  try {
    return oneLine(value);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return "… nested too deeply for this browser";
  }
}

/** Returns the value as a tree of <details>, which the keyboard and screen readers know. `name`: the root's, for them. */
export function jsonTree(value, name) {
  return h("div", { class: "tree", role: "group", "aria-label": name }, branch(null, value, true, 0));
}

function branch(key, value, isOpen, depth) {
  if (value === null || typeof value !== "object" || isRaw(value)) return h("div", { class: "leaf" }, label(key), leaf(value));
  const entries = Array.isArray(value) ? [...value.entries()] : Object.entries(value);
  const size = Array.isArray(value) ? `[${entries.length}]` : `{${entries.length}}`;
  if (!entries.length) return h("div", { class: "leaf" }, label(key), h("span", { class: "size", text: Array.isArray(value) ? "[]" : "{}" }));
  const details = h("details", { open: isOpen }, h("summary", {}, label(key), h("span", { class: "size", text: size })));
  let isFilled = false;
  const fill = () => {
    if (!details.open || isFilled) return;
    isFilled = true;
    show(details, entries, 0, depth);
  };
  details.addEventListener("toggle", fill);
  fill();
  return details;
}

function show(details, entries, start, depth) {
  const end = Math.min(entries.length, start + LONG_LIST);
  for (const [key, value] of entries.slice(start, end)) {
    const size = value && typeof value === "object" ? Object.keys(value).length : 0;
    details.append(branch(key, value, size <= OPEN_ENTRIES && depth < OPEN_DEPTH, depth + 1));
  }
  if (end === entries.length) return;
  const more = h("button", { class: "quiet", type: "button", text: `${(entries.length - end).toLocaleString("en")} more` });
  more.addEventListener("click", () => {
    more.remove();
    show(details, entries, end, depth);
  });
  details.append(more);
}

function label(key) {
  return key === null ? null : h("span", { class: "key", text: `${key}: ` });
}

function leaf(value) {
  if (typeof value !== "string") return h("span", { class: "atom", text: isRaw(value) ? value.rawJSON : String(value) });
  const text = JSON.stringify(value);
  const shown = h("span", { class: "string", text: text.length > LONG_TEXT ? `${text.slice(0, LONG_TEXT)}…` : text });
  if (text.length <= LONG_TEXT) return shown;
  const more = h("button", { class: "quiet", type: "button", text: `all ${text.length.toLocaleString("en")} characters` });
  more.addEventListener("click", () => {
    shown.textContent = text;
    more.remove();
  });
  return h("span", {}, shown, " ", more);
}
