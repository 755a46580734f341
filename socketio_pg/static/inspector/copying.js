// Copies texts, and writes messages as JSON, as SQL and as a curl command.

import { announce, h, setText, $ } from "./dom.js";
import { curlCommand, notifyStatement, publishStatement, visible } from "./sql.js";

const ROOT = new URL("../", document.baseURI);

/** Copies a text and says so; `what` completes "Copied …". */
export async function copy(text, what) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages without HTTPS have no clipboard API, but can still copy a selection.
    const field = h("textarea", { class: "visually-hidden", "aria-hidden": "true", tabindex: -1, value: text });
    const before = document.activeElement;
    document.body.append(field);
    field.select();
    copied = document.execCommand("copy");
    field.remove();
    before?.focus();
  }
  toast(copied ? `Copied ${what}` : `This browser did not allow to copy ${what}`);
}

let toastTimer;
/** Shows a short text for some seconds, and lets a screen reader say it. */
export function toast(text) {
  const place = $("#toast");
  setText(place, text);
  place.hidden = false;
  announce(text);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { place.hidden = true; }, 3_000);
}

/** A button that copies what `text()` returns. */
export function copyButton(label, what, text) {
  return h("button", { type: "button", class: "quiet", text: label, "aria-label": `Copy ${what}`, on: { click: () => copy(text(), what) } });
}

/** The statement that publishes a message again; `durable` through the log. */
export function asSql(channel, payloadText, durable) {
  return (durable ? publishStatement : notifyStatement)(channel, visible(payloadText));
}

/** The command that publishes a message again through the HTTP API. */
export function asCurl(channel, payloadText, durable) {
  return curlCommand(new URL("api/publish", ROOT).href, channel, visible(payloadText), durable);
}

/** Offers a text as a file. */
export function save(name, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "application/x-ndjson" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
