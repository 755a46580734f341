// The view of one channel or pattern: its live tail, and beside it what is known about it.

import { get, repeat } from "./api.js";
import { About } from "./channel-about.js";
import { channelAddress } from "./channels.js";
import { asCurl, asSql, copy, save } from "./copying.js";
import { channelName, code, h, setText } from "./dom.js";
import { FilterField } from "./filter.js";
import { count, time } from "./format.js";
import { TailList, LIMIT } from "./tail.js";

const HISTORY = 50;
const POLL = 2_000;
const REASONS = { database_connection_lost: "the connection to the database was lost", client_disconnected: "this page was not connected" };

/** Shows the view. */
export function showChannel(root, inspector, name) {
  const isPattern = name.includes("*");
  const { live } = inspector;
  const parameters = inspector.parameters;
  let tail = null; // the server's number of the tail
  let last = null; // the place of the newest message of the log: {epoch, position}
  let epoch = null;
  let isPaused = false;
  let heldByServer = 0;
  let droppedByServer = 0;
  let isStopped = false;
  let state = "starting"; // starting, replaying, live, ended, waiting
  let problem = "";
  let polling = null;

  // --- The toolbar ---
  const filter = new FilterField(parameters.get("filter") ?? "", () => {
    inspector.setParameters({ filter: filter.text });
    begin();
  });
  const search = h("input", { id: "search", type: "search", placeholder: "Search", "aria-label": "Search the messages shown", autocomplete: "off", spellcheck: "false", "aria-keyshortcuts": "/" });
  search.addEventListener("input", () => { list.search = search.value.trim(); });
  const pause = h("button", { type: "button", class: "quiet", "aria-keyshortcuts": "p", text: "Pause", on: { click: togglePause } });
  const clear = h("button", { type: "button", class: "quiet", text: "Clear", on: { click: () => list.clear() } });
  const download = h("button", { type: "button", class: "quiet", text: "Save", title: "the messages shown, as NDJSON", on: { click: () => saveAll() } });
  const start = startField(parameters.get("start") ?? (isPattern ? "" : "history"), (value) => {
    inspector.setParameters({ start: value });
    begin();
  });
  const counts = h("p", { class: "hint counts", "aria-live": "off" });
  const stateText = h("p", { class: "tail-state", role: "status" });
  // Beside the status and not in it: a screen reader would read each new figure.
  const heldText = h("p", { class: "held", "aria-live": "off" });
  const nothing = h("div", { class: "empty" }, h("p"), h("p"));

  const list = new TailList({ showsChannel: isPattern, channelAddress, onReplay: replayFrom, onChange: showCounts });
  const scroller = h("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": "Messages" }, nothing, list.element);
  const about = new About(inspector, name, isPattern);
  root.append(
    h("div", { class: "channel-head" },
      h("p", { class: "back" }, h("a", { href: "#/channels", text: "Channels" })),
      h("h2", { id: "channel-title" }, channelName(name)), isPattern ? h("span", { class: "badge", text: "pattern" }) : null, about.line),
    h("div", { class: "channel" },
      about.element,
      h("section", { class: "tail", "aria-labelledby": "channel-title" },
        h("div", { class: "toolbar" }, filter.element, start.element, search, h("div", { class: "buttons" }, pause, clear, download)),
        h("div", { class: "tail-line" }, h("div", { class: "going" }, stateText, heldText), counts),
        scroller)));

  // --- The tail ---
  async function begin({ resumes = false } = {}) {
    polling?.stop();
    polling = null;
    problem = "";
    if (!resumes) {
      list.clear();
      last = null;
    }
    if (live.clientMissing) {
      poll();
      return;
    }
    if (live.state !== "connected") {
      showState("waiting");
      return;
    }
    showState("starting");
    tail = null;
    heldByServer = droppedByServer = 0;
    const request = { [isPattern ? "pattern" : "channel"]: name };
    if (filter.filter) request.filter = filter.filter;
    if (resumes && last) request.since = last;
    else if (!resumes) Object.assign(request, start.request(epoch));
    try {
      await begun(request);
    } catch (error) {
      if (isStopped) return;
      if (request.history && error.code === "log_not_installed") {
        delete request.history;
        try { await begun(request); } catch (again) { fail(again); }
      } else {
        fail(error);
      }
    }
  }

  async function begun(request) {
    early = [];
    const answer = await live.request("tail", request);
    if (isStopped) return;
    tail = answer.tail;
    epoch = answer.epoch ?? epoch;
    showState(request.since || request.history ? "replaying" : "live");
    for (const [event, detail] of early) if (detail.tail === tail) receive(event, detail);
    early = null;
    if (isPaused) live.request("tail_pause", { paused: true }).catch(() => {});
  }

  function fail(error) {
    if (error.code === "not_connected") {
      showState("waiting");
      return;
    }
    problem = error.message;
    showState("ended");
  }

  let early = null; // events that come before the answer that says the tail's number
  const handlers = {
    tail({ messages, dropped }) {
      list.add(messages, dropped);
      const newest = messages.findLast?.(({ position }) => position !== undefined && position !== null);
      if (newest) last = { epoch: newest.epoch ?? epoch, position: newest.position };
    },
    tail_waiting({ waiting, dropped }) {
      heldByServer = waiting;
      droppedByServer = dropped;
      showCounts();
    },
    tail_gap({ tier, reason, since, until, position }) {
      const what = tier === "log" ? "Messages of the log were missed" : "Messages may have been missed";
      const parts = [REASONS[reason] ?? String(reason).replaceAll("_", " ")];
      if (since) parts.push(`since ${time(since)}`);
      if (until) parts.push(`until ${time(until)}`);
      if (position !== undefined && position !== null) parts.push(`continues after #${position}`);
      list.note(what, parts.join(", "));
    },
    tail_live(detail) {
      epoch = detail.epoch ?? epoch;
      showState("live");
    },
    tail_end({ error }) {
      problem = error.message;
      showState("ended");
    },
  };
  function receive(event, detail) {
    if (early && tail === null) early.push([event, detail]);
    else if (detail.tail === tail) handlers[event](detail);
  }
  const listeners = Object.keys(handlers).map((event) => [event, ({ detail }) => receive(event, detail)]);
  for (const [event, listener] of listeners) live.addEventListener(event, listener);

  const onState = ({ detail }) => {
    if (detail === "connected") {
      if (list.size) list.note("Connected again", last ? "the log continues where it was; messages of NOTIFY may have been missed" : "messages may have been missed");
      begin({ resumes: list.size > 0 });
    } else if (live.clientMissing) {
      begin();
    } else {
      showState("waiting");
    }
  };
  live.addEventListener("state", onState);

  /** Without the Socket.IO client: the messages of the log. */
  function poll() {
    if (isPattern) {
      problem = "Patterns have a tail only with the Socket.IO client.";
      showState("ended");
      return;
    }
    filter.input.disabled = true;
    filter.input.placeholder = "A filter needs the Socket.IO client";
    const { since: place } = start.request(epoch);
    let since = place ? (place.epoch ? `${place.epoch}:${place.position}` : place) : null;
    showState("live");
    let isFirst = true;
    polling = repeat(async (signal) => {
      const answer = await get("channel/history", { name, text: 1, limit: HISTORY, since }, { signal });
      list.add(answer.messages.map((message) => ({ ...message, replayed: isFirst })));
      isFirst = false;
      since = answer.next ?? since;
      epoch = answer.epoch ?? epoch;
      problem = "";
      showState("live");
    }, POLL, (error) => {
      problem = error.message;
      showState("ended");
    });
  }

  // --- What is done ---
  async function togglePause() {
    isPaused = !isPaused;
    heldByServer = droppedByServer = 0;
    if (isPaused) list.paused = true;
    showState(state);
    try {
      if (tail !== null) await live.request("tail_pause", { paused: isPaused });
    } catch {
      // The next connection pauses again.
    }
    list.paused = isPaused; // it may have been pressed again meanwhile
    showCounts();
  }

  function replayFrom({ position, epoch: of }) {
    epoch = of ?? epoch;
    start.set(`position:${position}`);
  }

  function saveAll() {
    const lines = list.messages.map(({ json, payload, isCut, text, ...message }) => `${JSON.stringify(message).slice(0, -1)},"payload":${isCut ? JSON.stringify(text) : json}}`);
    save(`${name.replaceAll(/[^\w-]+/g, "_")}.ndjson`, `${lines.join("\n")}\n`);
  }

  const onFocused = (action) => () => {
    const message = list.focused;
    if (message && !message.isCut) action(message);
  };

  // --- What is shown ---
  function showState(to) {
    state = to;
    const isUp = live.state === "connected" || live.clientMissing;
    const isHeld = isPaused && (to === "live" || to === "replaying");
    const goes = `${isHeld ? "Paused" : "Live"}${filter.filter ? ", filtered" : ""}`;
    setText(stateText, { starting: "Starting…", replaying: isHeld ? goes : "Replaying…", live: goes, ended: `Stopped: ${problem}`, waiting: isUp ? "Starting…" : "Not connected" }[to]);
    stateText.dataset.state = isHeld ? "paused" : to;
    showCounts();
  }

  function showCounts() {
    const parts = [];
    if (search.value.trim()) parts.push(`${count(list.matching)} of ${count(list.size)} match`);
    else if (list.received) parts.push(`${count(list.received)} received`);
    if (list.dropped || list.droppedByServer) parts.push(`the newest ${count(LIMIT)} kept, ${count(list.dropped + list.droppedByServer)} dropped`);
    setText(counts, parts.join(" · "));
    setText(pause, isPaused ? "Resume" : "Pause");
    pause.classList.toggle("resumes", isPaused);
    setText(heldText, isPaused ? `${count(heldByServer + list.waiting + droppedByServer)} new${droppedByServer ? `, of which ${count(droppedByServer)} are dropped` : ""}` : "");
    nothing.hidden = list.matching > 0;
    const [title, ...text] = describeNothing();
    setText(nothing.firstChild, title);
    if (nothing.dataset.title !== title) {
      nothing.dataset.title = title;
      nothing.lastChild.replaceChildren(...text);
    }
    download.disabled = clear.disabled = !list.size;
  }

  function describeNothing() {
    if (list.size) return ["No message matches", "Search looks at the messages that are here. The filter asks the server."];
    if (state === "ended") return ["The tail has stopped", problem];
    if (state === "waiting") return ["No connection", "The tail goes on when this page is connected again."];
    if (isPaused) return ["Paused", "New messages wait in the server until you resume."];
    if (state !== "live") return ["Looking for messages", "…"];
    if (filter.filter) return ["No message matches the filter yet", "Each new one that matches appears here."];
    return isPattern ? ["Listening", `The next message on a channel that matches ${name} appears here.`]
      : ["Listening", "The next message appears here. Publish one in ", h("a", { href: `#/try?channel=${encodeURIComponent(name)}`, text: "Try" }), ", or run ", code(asSql(name, '{"hello": "world"}', false))];
  }

  if (filter.text) filter.check().then(() => { if (!filter.filter && !isStopped) begin(); });
  else begin();

  return {
    keys: [
      { keys: ["f"], text: "Filter", run: () => filter.input.focus() },
      { keys: ["p"], text: "Pause or resume", run: togglePause },
      { keys: ["Enter"], text: "Open or close a message" },
      { keys: ["c"], text: "Copy the message as JSON", run: onFocused(({ json }) => copy(json, "as JSON")) },
      { keys: ["s"], text: "Copy it as SQL", run: onFocused(({ channel, json, position }) => copy(asSql(channel, json, position !== undefined), "as SQL")) },
      { keys: ["u"], text: "Copy it as curl", run: onFocused(({ channel, json, position }) => copy(asCurl(channel, json, position !== undefined), "as curl")) },
      { keys: ["r"], text: "Replay from it", run: onFocused((message) => { if (message.position !== undefined) replayFrom(message); }) },
    ],
    step: (by) => list.step(by),
    escape: () => inspector.go("#/channels"),
    stop() {
      isStopped = true;
      polling?.stop();
      filter.stop();
      about.stop();
      for (const [event, listener] of listeners) live.removeEventListener(event, listener);
      live.removeEventListener("state", onState);
      live.request("tail_stop", {}).catch(() => {});
    },
  };
}

/** From where the tail starts: "" (new messages), "history", "time:ISO", "position:N". */
function startField(value, onChange) {
  const select = h("select", { id: "start", "aria-label": "Start" },
    h("option", { value: "", text: "New messages" }), h("option", { value: "history", text: `The last ${HISTORY}` }),
    h("option", { value: "time", text: "Since a time…" }), h("option", { value: "position", text: "From a position…" }));
  const moment = h("input", { type: "datetime-local", step: 1, "aria-label": "Since this time", hidden: true });
  const position = h("input", { type: "text", inputmode: "numeric", pattern: "[0-9]+", placeholder: "position", "aria-label": "From this position", hidden: true, autocomplete: "off" });
  const element = h("div", { class: "start" }, select, moment, position);
  let current = value;
  function show() {
    const [kind, ...rest] = current.split(":");
    select.value = kind;
    moment.hidden = kind !== "time";
    position.hidden = kind !== "position";
    if (kind === "time" && rest.length) moment.value = local(rest.join(":"));
    if (kind === "position") position.value = rest[0] ?? "";
  }
  function set(to) {
    if (to === current) { onChange(current); return; }
    current = to;
    show();
    onChange(current);
  }
  select.addEventListener("change", () => {
    if (select.value === "time") {
      current = `time:${new Date(Date.now() - 3_600_000).toISOString()}`;
      show();
      onChange(current);
      moment.focus();
    } else if (select.value === "position") {
      current = "position";
      show();
      position.focus();
    } else {
      set(select.value);
    }
  });
  moment.addEventListener("change", () => { if (moment.value) set(`time:${new Date(moment.value).toISOString()}`); });
  position.addEventListener("change", () => { if (/^\d+$/.test(position.value.trim())) set(`position:${position.value.trim()}`); });
  show();
  return {
    element,
    set,
    /** The fields of a request; `epoch` is that of the log, if it is known. */
    request(epoch) {
      const [kind, ...rest] = current.split(":");
      if (kind === "history") return { history: HISTORY };
      if (kind === "time" && rest.length) return { since: rest.join(":") };
      // A position is where a client has arrived: the message before is the place to go on from.
      if (kind === "position" && rest.length && epoch) return { since: { epoch, position: Math.max(0, Number(rest[0]) - 1) } };
      return {};
    },
  };
}

function local(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return "";
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}
