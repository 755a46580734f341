// The list of a tail: newest first, the newest 1,000 events, drawn a few times a second. Does not depend on Socket.IO.

import { asCurl, asSql, copy } from "./copying.js";
import { channelName, fact, h } from "./dom.js";
import { parseExact } from "./exact.js";
import { bytes, count, plural, preciseTime, time } from "./format.js";
import { jsonLine, jsonTree } from "./json.js";

export const LIMIT = 1_000;
const DRAW_PAUSE = 100; // ms
const FEW_ROWS = 3; // up to this many new rows at once are highlighted; more would flicker

/** `channelAddress(name)` of a link; `onReplay(message)` replays from a message; `onChange()` after each drawing. */
export class TailList {
  received = 0;
  /** Events that are no longer here, because more than LIMIT came: in this page, and in the server. */
  dropped = 0;
  droppedByServer = 0;
  #waiting = [];
  #entries = []; // oldest first: {row, search}
  #timer = 0;
  #isPaused = false;
  #search = "";
  #showsChannel;
  #onReplay;
  #onChange;

  constructor({ showsChannel, channelAddress, onReplay, onChange }) {
    this.element = h("ol", { class: "events", "aria-label": "Messages, newest first" });
    this.#showsChannel = showsChannel;
    this.channelAddress = channelAddress;
    this.#onReplay = onReplay;
    this.#onChange = onChange;
  }

  get size() { return this.#entries.length; }
  get matching() { return this.#search ? this.#entries.filter(({ row }) => !row.hidden).length : this.size; }
  get waiting() { return this.#waiting.filter(({ kind }) => kind === "message").length; }

  /** The messages that are kept, oldest first. */
  get messages() { return this.#entries.filter(({ message }) => message).map(({ message }) => message); }

  add(messages, droppedByServer = 0) {
    if (droppedByServer) {
      this.droppedByServer += droppedByServer;
      this.#push({ kind: "gap", title: `${plural(droppedByServer, "message")} left out`, text: "more than 1,000 waited for this page" });
    }
    for (const message of messages) this.#push({ kind: "message", message });
    this.received += messages.length;
  }

  /** Adds a line that is no message. */
  note(title, text) {
    this.#push({ kind: "gap", title, text });
  }

  clear() {
    this.#waiting = [];
    this.#entries = [];
    this.received = this.dropped = this.droppedByServer = 0;
    this.element.replaceChildren();
    this.#onChange();
  }

  set paused(paused) {
    this.#isPaused = paused;
    this.#schedule();
  }

  /** Shows only events that contain this text. */
  set search(text) {
    this.#search = text.toLowerCase();
    for (const { row, search } of this.#entries) row.hidden = !search().includes(this.#search);
    this.#onChange();
  }

  /** Moves the focus to the next (1) or previous (-1) event. */
  step(by) {
    const rows = this.#entries.map(({ row }) => row).filter((row) => !row.hidden).reverse();
    if (!rows.length) return;
    const current = rows.findIndex((row) => row.contains(document.activeElement));
    const row = rows[Math.min(rows.length - 1, Math.max(0, current < 0 ? 0 : current + by))];
    (row.querySelector("summary") ?? row).focus();
  }

  /** The message whose row has the focus. */
  get focused() {
    return this.#entries.find(({ row }) => row.contains(document.activeElement))?.message ?? null;
  }

  #push(entry) {
    this.#waiting.push({ at: Date.now(), ...entry });
    if (this.#waiting.length > 2 * LIMIT) { // a background tab draws seldom
      this.dropped += this.#waiting.length - LIMIT;
      this.#waiting = this.#waiting.slice(-LIMIT);
    }
    this.#schedule();
  }

  #schedule() {
    this.#timer ||= setTimeout(() => requestAnimationFrame(() => {
      this.#timer = 0;
      if (!this.#isPaused) this.#draw();
      this.#onChange();
    }), DRAW_PAUSE);
  }

  #draw() {
    if (!this.#waiting.length) return;
    const entries = this.#waiting.slice(-LIMIT);
    this.dropped += this.#waiting.length - entries.length;
    this.#waiting = [];
    for (const entry of entries) this.#show(entry);
    this.#entries.push(...entries);
    const rows = entries.map(({ row }) => row).reverse();
    if (rows.length <= FEW_ROWS) for (const row of rows) row.classList.add("new");
    this.element.prepend(...rows);
    const tooMany = this.#entries.splice(0, Math.max(0, this.#entries.length - LIMIT));
    this.dropped += tooMany.length;
    for (const { row } of tooMany) row.remove();
  }

  #show(entry) {
    if (entry.kind === "message") {
      entry.message = readable(entry.message);
      entry.row = this.#messageRow(entry.message);
      let text;
      entry.search = () => (text ??= `${entry.message.channel} ${entry.message.position ?? ""} ${entry.message.from?.sub ?? ""} ${entry.message.json}`.toLowerCase());
    } else {
      entry.row = h("li", { class: "gap", tabindex: -1 }, h("time", { text: preciseTime(entry.at) }), h("p", {}, h("strong", { text: entry.title }), " ", entry.text));
      entry.search = () => `${entry.title} ${entry.text}`.toLowerCase();
    }
    entry.row.hidden = this.#search !== "" && !entry.search().includes(this.#search);
  }

  #messageRow(message) {
    const at = timeOf(message);
    const summary = h("summary", {},
      h("time", { datetime: new Date(at).toISOString(), text: preciseTime(at) }),
      this.#showsChannel ? channelName(message.channel) : null,
      message.isCut ? h("code", { class: "payload", text: `${message.json.slice(0, 200)}…` }) : jsonLine(message.payload),
      h("span", { class: "place" },
        message.from?.sub ? h("span", { class: "sender", text: `from ${message.from.sub}` }) : null,
        message.replayed ? h("span", { class: "badge", text: "replayed" }) : null,
        message.position !== undefined && message.position !== null ? h("span", { class: "position", text: `#${message.position}` }) : null));
    const details = h("details", {}, summary);
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1) details.append(this.#opened(message));
    });
    return h("li", { class: "message" }, details);
  }

  #opened(message) {
    const { channel, json, isCut, position } = message;
    const isLogged = position !== undefined && position !== null;
    const button = (text, what, write) => h("button", { type: "button", class: "quiet", text, "aria-label": `Copy as ${what}`, disabled: isCut,
      on: { click: () => copy(write(), `as ${what}`) } });
    return h("div", { class: "opened" },
      h("div", { class: "actions" },
        button("JSON", "JSON", () => json), button("SQL", "SQL", () => asSql(channel, json, isLogged)), button("curl", "curl", () => asCurl(channel, json, isLogged)),
        isLogged ? h("button", { type: "button", class: "quiet", text: "Replay from here", on: { click: () => this.#onReplay(message) } }) : null),
      isCut ? [h("p", { class: "hint", text: `The payload has ${bytes(message.bytes)}, more than this page shows. Its first characters:` }), h("pre", { class: "payload cut", tabindex: 0, role: "region", "aria-label": "Payload", text: json })]
        : jsonTree(message.payload, "Payload"),
      h("dl", { class: "facts small" },
        this.#showsChannel ? h("div", {}, h("dt", { text: "Channel" }), h("dd", {}, h("a", { href: this.channelAddress(channel) }, channelName(channel)))) : null,
        isLogged ? fact("Position", `${count(position)}${message.epoch ? ` of epoch ${message.epoch}` : ""}`) : fact("Tier", "NOTIFY, not in the log"),
        message.published_at ? fact("Published", time(message.published_at)) : null,
        message.received_at ? fact("Received", preciseTime(message.received_at * 1000)) : null,
        message.from ? fact("From", h("code", { text: JSON.stringify(message.from) })) : null,
        message.traceparent ? fact("Trace", h("code", { text: message.traceparent })) : null,
        message.pattern ? fact("Matches", h("code", { text: message.pattern })) : null,
        message.bytes ? fact("Size", bytes(message.bytes)) : null));
  }
}

/** A replayed message shows when it was published, a live one when it came. */
function timeOf({ published_at: published, received_at: received, replayed }) {
  const date = new Date(published && (replayed || !received) ? published : (received ?? Date.now() / 1000) * 1000);
  return Number.isNaN(date.getTime()) ? Date.now() : date.getTime();
}

/** Adds `payload` and `json`, its text; the server sends one of them. */
function readable(message) {
  if (message.cut) return { ...message, isCut: true, json: message.text ?? "" };
  if (message.text === undefined) return { ...message, isCut: false, json: JSON.stringify(message.payload ?? null) };
  try {
    return { ...message, isCut: false, json: message.text, payload: parseExact(message.text) };
  } catch { // a NOTIFY may carry any text
    return { ...message, isCut: false, json: JSON.stringify(message.text), payload: message.text };
  }
}
