// The list of messages: newest first, bounded, drawn once per animation frame. Does not depend on Socket.IO.
//
// Data from the network is only written with textContent, so it cannot become markup.

import { oneLine } from "./sql.js";

const LIMIT = 500; // rows kept; older rows are removed
const LONG_PAYLOAD = 600; // characters shown before "show all"
const FEW_ROWS = 3; // up to this many new rows per frame are highlighted; more would flicker

const rowTemplate = document.querySelector("#message-template");

export class MessageLog {
  #list;
  #waiting = []; // entries since the last frame, oldest first
  #paused = false;
  #filter = "";
  #frame = 0;

  /** `onChange` is called after each change of the list. */
  constructor(list, onChange) {
    this.#list = list;
    this.onChange = onChange;
  }

  /** Adds a message from socketio_pg.js. A replayed or retained one is shown with the time when it was published. */
  addMessage(message) {
    const isOlder = message.published_at && (message.replayed || message.retained);
    const time = isOlder ? new Date(message.published_at) : new Date();
    this.#add({ kind: "message", time, ...message });
  }

  /** Adds a gap from socketio_pg.js. `hasLog`: whether the channel also has messages of the log. */
  addGap(gap, hasLog) {
    this.#add({ kind: "gap", time: new Date(), hasLog, ...gap });
  }

  /** Adds a row that says that the server has ended a subscription. */
  addEnd(channel, why) {
    this.#add({ kind: "end", time: new Date(), channel, why });
  }

  get size() { return this.#list.children.length; }
  get held() { return this.#paused ? this.#waiting.length : 0; }
  get paused() { return this.#paused; }

  set paused(paused) {
    this.#paused = paused;
    this.#schedule();
  }

  clear() {
    this.#waiting = [];
    this.#list.replaceChildren();
    this.onChange();
  }

  /** Shows only one channel; "" shows all. */
  set filter(channel) {
    this.#filter = channel;
    for (const row of this.#list.children) row.hidden = this.#isHidden(row.dataset.channel);
    this.onChange();
  }

  #isHidden(channel) {
    return this.#filter !== "" && this.#filter !== channel;
  }

  #add(entry) {
    this.#waiting.push(entry);
    // A background tab gets no animation frames, and a paused log draws nothing: neither may fill the memory.
    if (this.#waiting.length > 2 * LIMIT) this.#waiting = this.#waiting.slice(-LIMIT);
    this.#schedule();
  }

  #schedule() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      if (!this.#paused) this.#draw();
      this.onChange();
    });
  }

  #draw() {
    const entries = this.#waiting.slice(-LIMIT);
    this.#waiting = [];
    const rows = entries.map((entry) => this.#row(entry)).reverse();
    if (rows.length <= FEW_ROWS) for (const row of rows) row.classList.add("new");
    this.#list.prepend(...rows);
    while (this.#list.children.length > LIMIT) this.#list.lastElementChild.remove();
  }

  #row(entry) {
    const row = rowTemplate.content.firstElementChild.cloneNode(true);
    row.dataset.kind = entry.kind;
    row.dataset.channel = entry.channel;
    row.hidden = this.#isHidden(entry.channel);
    const time = row.querySelector("time");
    time.textContent = clock(entry.time);
    time.dateTime = entry.time.toISOString();
    if (entry.replayed) time.title = `published ${entry.time.toLocaleString()}`;
    const name = row.querySelector(".channel-name");
    name.textContent = entry.channel;
    name.style.setProperty("--hue", hue(entry.channel));
    const describe = { message: ({ payload }) => showPayload(payload), gap: describeGap, end: describeEnd }[entry.kind];
    row.querySelector(".body").append(...describe(entry));
    if (entry.kind === "message") row.querySelector(".place").append(...describePlace(entry));
    return row;
  }
}

/** Returns the hue of a channel in degrees: a name has the same colour everywhere on the page. */
export function hue(channel) {
  let hash = 0;
  for (const character of channel) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  return (hash % 12) * 30;
}

/** Returns the local time as HH:MM:SS.mmm */
export function clock(date) {
  const two = (number) => String(number).padStart(2, "0");
  const milliseconds = String(date.getMilliseconds()).padStart(3, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${milliseconds}`;
}

/** Returns the local time as HH:MM:SS, with the date when it is not today. */
export function timeOfDay(date) {
  const time = clock(date).slice(0, 8);
  return date.toDateString() === new Date().toDateString() ? time : `${date.toLocaleDateString()} ${time}`;
}

function describeGap({ tier, reason, since, until, position, hasLog }) {
  const what = tier === "log" ? "Messages of the log were missed"
    : `Messages ${hasLog ? "of NOTIFY " : ""}may have been missed`;
  const why = reason === "client_disconnected" ? "this page was not connected" : String(reason).replaceAll("_", " ");
  const parts = [why];
  if (since) parts.push(`since ${clockOf(since)}`);
  if (until) parts.push(`until ${clockOf(until)}`);
  if (position !== undefined) parts.push(`continues after #${position}`);
  return [element("strong", "", what), element("span", "gap-detail", parts.join(", "))];
}

function describeEnd({ why }) {
  return [element("strong", "", "No more messages"), element("span", "gap-detail", why)];
}

function describePlace({ position, published_at: publishedAt, from, ...kinds }) {
  const parts = [];
  // The server sets `from`. Anonymous clients have none, or only the id of their connection.
  if (from?.sub) parts.push(element("span", "sender", `from ${from.sub}`));
  for (const kind of ["ephemeral", "retained", "replayed"]) if (kinds[kind]) parts.push(element("span", "badge", kind));
  if (position !== undefined) {
    const place = element("span", "position", `#${position}`);
    place.title = `position ${position} in the log, published ${new Date(publishedAt).toLocaleString()}`;
    parts.push(place);
  }
  return parts;
}

function clockOf(text) {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? String(text) : clock(date);
}

function showPayload(payload) {
  const text = oneLine(payload);
  const code = element("code", "payload");
  if (text.length <= LONG_PAYLOAD) {
    code.append(...coloured(text));
    return [code];
  }
  code.textContent = `${text.slice(0, LONG_PAYLOAD)}…`;
  const button = element("button", "quiet", `Show all ${text.length.toLocaleString()} characters`);
  button.type = "button";
  button.addEventListener("click", () => {
    code.textContent = text;
    button.remove();
  });
  return [code, button];
}

// The parts of JSON text that are coloured: keys, strings, and words and numbers.
const TOKENS = /(?<key>"(?:[^"\\]|\\.)*"(?=:))|(?<string>"(?:[^"\\]|\\.)*")|(?<atom>[\w.+-]+)/g;

function coloured(json) {
  const parts = [];
  let end = 0;
  for (const match of json.matchAll(TOKENS)) {
    const kind = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
    parts.push(json.slice(end, match.index), element("span", kind, match[0]));
    end = match.index + match[0].length;
  }
  parts.push(json.slice(end));
  return parts;
}

function element(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}
