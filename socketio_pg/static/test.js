// The demo page of socketio_pg: a plain Socket.IO client, and also an example to copy from.
//
// The parts to look at first: `socket.on(...)`, which is all that the server sends; `request()`, which asks it for
// something; and `settle()`, which keeps subscriptions alive, as Socket.IO forgets them with each connection.

import { MessageLog, clock, hue } from "./log.js";
import { notifyStatement, oneLine } from "./sql.js";

// The stock client from the CDN, for when `npm run vendor` was not run. The same bytes or nothing: see "integrity".
const CDN_CLIENT = "https://cdn.socket.io/4.8.4/socket.io.min.js";
const CDN_INTEGRITY = "sha384-fBrXvbDtHoeKWJ/hcA6M+YGueiDW+h45I7V6F2kD1S8bOkrF9rZYPLVkCR6BLR/1";

const ANSWER_TIMEOUT = 10_000; // ms to wait for the server's acknowledgement
const TRANSIENT = new Set(["database_unavailable", "rate_limited", "no_answer"]); // worth another try, later
const MOST_ERRORS = 4; // shown at once

const $ = (selector) => document.querySelector(selector);

// --- The connection ---------------------------------------------------------------------------------------------

const io = await loadClient();
// WebSocket first: long polling would need a load balancer that sends all requests of a client to one process.
const socket = io({
  autoConnect: false,
  transports: ["websocket", "polling"],
  tryAllTransports: true,
  reconnectionDelay: 500,
});

let wasConnected = false;
let refusals = 0; // how often the server itself has ended or refused the connection in a row

socket.on("connect", () => {
  wasConnected = true;
  showStatus("connected", "Connected");
  for (const channel of channels.values()) settle(channel);
});

socket.on("server_hello", ({ client, sid, version }) => {
  refusals = 0;
  for (const [field, value] of Object.entries({ version, client: client ?? "anonymous", sid })) {
    $(`#hello [data-field=${field}]`).textContent = value;
  }
  $("#hello").hidden = false;
});

socket.on("disconnect", (reason) => {
  $("#hello").hidden = true;
  for (const channel of channels.values()) {
    if (channel.subscribed) channel.lostAt = new Date();
    channel.subscribed = false;
    if (!channel.wanted) channels.delete(channel.name);
  }
  render();
  if (reason === "io client disconnect") showStatus("disconnected", "Disconnected");
  else reconnect();
});

socket.on("connect_error", (error) => {
  // While the socket is active it was only the network, and Socket.IO tries again by itself.
  if (!socket.active) showError(error.data?.code ?? "refused", error.message, { action: "connect" });
  if (socket.active || TRANSIENT.has(error.data?.code)) reconnect();
  else showStatus("disconnected", "The server refused the connection");
});

function reconnect() {
  if (wasConnected) showStatus("reconnecting", "Reconnecting…");
  else showStatus("connecting", "Server not reached, trying again…");
  // Socket.IO does not come back by itself when the server ended the connection in so many words.
  if (!socket.active) reconnectTimer = setTimeout(() => socket.connect(), backoff(refusals++));
}
let reconnectTimer;

$("#connection-toggle").addEventListener("click", () => {
  clearTimeout(reconnectTimer);
  if (connectionWanted()) {
    socket.disconnect();
    showStatus("disconnected", "Disconnected");
  } else {
    showStatus("connecting", "Connecting…");
    socket.connect();
  }
});

const connectionWanted = () => $("#status").dataset.state !== "disconnected";

function showStatus(state, text) {
  $("#status").dataset.state = state;
  if ($("#status-text").textContent !== text) $("#status-text").textContent = text; // unchanged text is not read out again
  $("#connection-toggle").textContent = connectionWanted() ? "Disconnect" : "Connect";
  if (state === "connected") clearErrors("connect");
}

/** Sends a request and returns the server's answer. Throws RequestError when it is an error, or does not come. */
async function request(event, data) {
  let answer;
  try {
    answer = await socket.timeout(ANSWER_TIMEOUT).emitWithAck(event, data);
  } catch {
    throw new RequestError("no_answer", "The server did not answer, so it is not known whether this was done.");
  }
  if (answer?.ok !== true) throw new RequestError(answer?.error?.code ?? "internal", answer?.error?.message ?? "");
  return answer;
}

class RequestError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

// --- Subscriptions ----------------------------------------------------------------------------------------------

// name → {name, wanted, subscribed, ...}: what the user wants, and what the server has confirmed.
const channels = new Map();

function subscribe(name) {
  let channel = channels.get(name);
  if (!channel) {
    channel = { name, wanted: true, subscribed: false, settling: false, note: "", count: 0, lostAt: null, chip: null };
    channels.set(name, channel);
  }
  channel.wanted = true;
  settle(channel);
}

function unsubscribe(channel) {
  channel.wanted = false;
  channel.wake?.();
  clearErrors("subscribe", channel.name);
  settle(channel);
}

/** Brings the server's state of a channel to the wanted one, with one request at a time, retried with backoff. */
async function settle(channel) {
  render();
  if (channel.settling) return channel.wake?.(); // the running turn sees the change; it need not sleep on
  channel.settling = true;
  let attempt = 0;
  while (socket.connected && channel.subscribed !== channel.wanted) {
    const action = channel.wanted ? "subscribe" : "unsubscribe";
    try {
      await request(action, { channel: channel.name });
      channel.subscribed = action === "subscribe";
      channel.note = "";
      clearErrors(action, channel.name);
      if (channel.subscribed && channel.lostAt) {
        const reason = "this page was not connected";
        log.addGap({ channel: channel.name, reason, since: channel.lostAt, until: new Date() });
        channel.lostAt = null;
      }
      announce(`${channel.subscribed ? "Subscribed to" : "Unsubscribed from"} ${channel.name}`);
    } catch (error) {
      if (!(error instanceof RequestError)) throw error;
      if (!socket.connected) break; // the next "connect" tries again
      showError(error.code, error.message, { action, channel: channel.name });
      if (TRANSIENT.has(error.code)) {
        channel.note = "trying again";
        render();
        await sleepUntilWoken(channel, backoff(attempt++));
      } else {
        channel.wanted = channel.subscribed = false;
      }
    }
    render();
  }
  channel.settling = false;
  if (!channel.wanted && !channel.subscribed) channels.delete(channel.name);
  render();
}

function sleepUntilWoken(channel, milliseconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    channel.wake = () => {
      clearTimeout(timer);
      resolve();
    };
  }).finally(() => { channel.wake = null; });
}

/** 1 s, 2 s, 4 s … 15 s, spread at random so that many pages do not return all at once. */
function backoff(attempt) {
  return Math.min(15_000, 1000 * 2 ** attempt) * (0.5 + Math.random() / 2);
}

$("#subscribe-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = $("#subscribe-channel");
  const names = namesIn(input.value);
  showFieldError(input, names.length ? "" : "Enter the name of a channel, for example foo.");
  names.forEach(subscribe);
  if (names.length) input.value = "";
});

/** The names in a list separated by commas. Spaces inside a name belong to it. */
function namesIn(text) {
  return [...new Set(text.split(",").map((name) => name.trim()).filter(Boolean))];
}

// --- Messages ---------------------------------------------------------------------------------------------------

const log = new MessageLog($("#messages"), render);
let received = 0;

socket.on("event", (message) => {
  const channel = channels.get(message.channel);
  if (!channel?.wanted) return; // was on its way when the user unsubscribed
  channel.count += 1;
  received += 1;
  log.addMessage(message);
});

socket.on("gap", (gap) => log.addGap(gap));

socket.on("error", ({ code, message, channel }) => showError(code, message, { channel }));

$("#pause").addEventListener("click", () => { log.paused = !log.paused; });
$("#clear").addEventListener("click", () => {
  received = 0;
  log.clear();
});
$("#filter").addEventListener("change", (event) => { log.filter = event.target.value; });

// --- Publishing -------------------------------------------------------------------------------------------------

$("#publish-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const channel = $("#publish-channel").value.trim();
  $("#publish-result").textContent = "";
  showFieldError($("#publish-channel"), channel ? "" : "Enter the name of a channel, for example foo.");
  if (!channel) return;
  let payload;
  try {
    payload = JSON.parse($("#publish-payload").value);
  } catch (error) {
    showFieldError($("#publish-payload"), `Not sent, this is not JSON: ${error.message}. A text needs quotes: "hello"`);
    return;
  }
  showFieldError($("#publish-payload"), "");
  // Socket.IO would keep it and send it some time later, when nobody expects it any more.
  if (!socket.connected) {
    showError("not_connected", "Not sent: there is no connection to the server.", { action: "publish", channel });
    return;
  }
  const start = performance.now();
  try {
    await request("publish", { channel, payload });
    $("#publish-result").textContent = `Committed in ${Math.max(1, Math.round(performance.now() - start))} ms`;
    clearErrors("publish", channel);
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    showError(error.code, error.message, { action: "publish", channel });
  }
});

$("#publish-form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    event.currentTarget.requestSubmit();
  }
});
if (/Mac|iPhone|iPad/.test(navigator.platform)) $("#modifier").textContent = "⌘";

$("#publish-form").addEventListener("input", () => {
  showSql();
  // A complaint about the JSON goes away as soon as it is right; it never appears while someone is typing.
  if ($("#publish-payload").hasAttribute("aria-invalid") && parsed($("#publish-payload").value) !== undefined) {
    showFieldError($("#publish-payload"), "");
  }
});

function showSql() {
  const text = $("#publish-payload").value;
  const value = parsed(text);
  const channel = $("#publish-channel").value.trim() || "foo";
  $("#sql").textContent = notifyStatement(channel, value === undefined ? text : oneLine(value));
}

function parsed(json) {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}

$("#sql-copy").addEventListener("click", async () => {
  let copied = true;
  try {
    await navigator.clipboard.writeText($("#sql").textContent);
  } catch {
    // Browsers keep the clipboard from pages without HTTPS, but not from a selection.
    getSelection().selectAllChildren($("#sql"));
    copied = document.execCommand("copy");
  }
  $("#sql-copy").textContent = copied ? "Copied" : "Selected";
  announce(copied ? "Copied" : "Selected, not copied");
  setTimeout(() => { $("#sql-copy").textContent = "Copy"; }, 1500);
});

// --- What the page shows ----------------------------------------------------------------------------------------

let frame = 0;

/** Brings chips, counters and buttons up to date in the next animation frame, however often it is called before. */
function render() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    renderChannels();
    renderFilter();
    renderLog();
  });
}

function renderChannels() {
  const chips = [];
  for (const channel of channels.values()) {
    if (!channel.wanted) continue;
    channel.chip ??= makeChip(channel);
    channel.chip.dataset.state = channel.subscribed ? "subscribed" : "pending";
    setText(channel.chip.querySelector(".channel-note"), channel.subscribed ? "" : channel.note || "waiting");
    setText(channel.chip.querySelector(".channel-count"), channel.count.toLocaleString());
    chips.push(channel.chip);
  }
  const list = $("#channels");
  // Only when the set has changed: moving a chip would take the focus from its button.
  if (chips.length !== list.children.length || chips.some((chip, index) => chip !== list.children[index])) {
    list.replaceChildren(...chips);
  }
}

function makeChip(channel) {
  const chip = $("#channel-template").content.firstElementChild.cloneNode(true);
  chip.dataset.channel = channel.name;
  chip.style.setProperty("--hue", hue(channel.name));
  chip.querySelector(".channel-name").textContent = channel.name;
  const button = chip.querySelector("button");
  button.setAttribute("aria-label", `Unsubscribe from ${channel.name}`);
  button.title = `Unsubscribe from ${channel.name}`;
  button.addEventListener("click", () => {
    unsubscribe(channel);
    $("#subscribe-channel").focus(); // the button that had the focus goes away
  });
  return chip;
}

function renderFilter() {
  const select = $("#filter");
  const known = new Set([...select.options].map((option) => option.value));
  for (const { name, subscribed } of channels.values()) {
    if (subscribed && !known.has(name)) select.add(new Option(name, name));
  }
}

function renderLog() {
  const numbers = [];
  if (received) numbers.push(`${received.toLocaleString()} received`);
  if (received > log.size && log.size && !log.paused) numbers.push(`newest ${log.size} kept`);
  if (log.paused) numbers.push(`paused, ${log.held.toLocaleString()} waiting`);
  setText($("#message-count"), numbers.join(" · "));
  $("#pause").setAttribute("aria-pressed", log.paused);
  setText($("#pause"), log.paused ? "Resume" : "Pause");
  $("#empty").hidden = log.size > 0;
  const [title, text] = describeEmptyLog();
  setText($("#empty-title"), title);
  setText($("#empty-text"), text);
}

function describeEmptyLog() {
  if (log.paused) return ["Paused", "New messages wait here until you resume."];
  const wanted = [...channels.values()].filter((channel) => channel.wanted);
  const names = wanted.filter((channel) => channel.subscribed).map((channel) => channel.name).join(", ");
  if (names) {
    return ["Listening", `The next message on ${names} appears here. Publish one, or paste the SQL line into psql.`];
  }
  if (wanted.length) return ["Not listening yet", "The server has not confirmed the subscription."];
  return ["Nothing here yet", "Subscribe to a channel. Then publish to it, or paste the SQL line into psql."];
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function announce(text) {
  $("#announcer").textContent = text;
}

/** The complaint below a form about one of its fields; "" takes it away. */
function showFieldError(field, text) {
  const place = document.getElementById(field.getAttribute("aria-describedby"));
  place.textContent = text;
  for (const input of field.form.elements) input.removeAttribute("aria-invalid");
  if (text) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
}

/** Shows an error until it is dismissed, or until what failed has worked. A repeated one is counted. */
function showError(code, message, { action = "", channel = "" } = {}) {
  const list = $("#errors");
  const row = $("#error-template").content.firstElementChild.cloneNode(true);
  const same = [...list.children].find(
    ({ dataset }) => dataset.code === code && dataset.action === action && dataset.channel === channel,
  );
  const times = Number(same?.dataset.times ?? 0) + 1;
  Object.assign(row.dataset, { code, action, channel, times });
  row.querySelector(".error-code").textContent = code;
  row.querySelector(".error-context").textContent = `${action} ${channel}`.trim();
  row.querySelector(".error-times").textContent = times > 1 ? `${times} times` : "";
  row.querySelector(".error-message").textContent = `${message} (${clock(new Date())})`;
  row.querySelector("button").addEventListener("click", () => {
    (row.nextElementSibling ?? row.previousElementSibling)?.querySelector("button").focus();
    row.remove();
  });
  if (same) same.replaceWith(row);
  else list.prepend(row);
  while (list.children.length > MOST_ERRORS) list.lastElementChild.remove();
}

function clearErrors(action, channel = "") {
  for (const row of [...$("#errors").children]) {
    if (row.dataset.action === action && row.dataset.channel === channel) row.remove();
  }
}

// --- Start ------------------------------------------------------------------------------------------------------

/** The function `io` of the vendored client, else of the CDN's. */
async function loadClient() {
  if (globalThis.io) return globalThis.io; // the <script> in test.html has run before this module
  const script = document.createElement("script");
  script.src = CDN_CLIENT;
  script.integrity = CDN_INTEGRITY;
  script.crossOrigin = "anonymous";
  try {
    await new Promise((resolve, reject) => {
      script.addEventListener("load", resolve);
      script.addEventListener("error", reject);
      document.head.append(script);
    });
    return globalThis.io;
  } catch {
    $("#status").dataset.state = "failed";
    $("#status-text").textContent = "Cannot start";
    $("#fatal").hidden = false;
    $("#fatal").textContent =
      "The Socket.IO client could not be loaded, so this page cannot connect. Run “npm ci” and “npm run vendor” " +
      `to put it into static/vendor, or give this browser access to ${new URL(CDN_CLIENT).host}. Then reload the page.`;
    throw new Error("neither the vendored Socket.IO client nor the CDN's could be loaded");
  }
}

for (const button of document.querySelectorAll("button:disabled")) button.disabled = false;
showSql();
namesIn(new URLSearchParams(location.search).get("channels") ?? "").forEach(subscribe);
render();
socket.connect();
