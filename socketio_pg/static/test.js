// The playground: a plain Socket.IO client, and an example to copy from.
//
// Start reading with `subscribe()`, which uses socketio_pg.js to keep subscriptions across reconnects, and with
// `request()`, which sends all other requests.

import { loadClient } from "./client.js";
import { firstChannels, hasDemos } from "./demos.js";
import { outageBanner } from "./health.js";
import { hasInspector } from "./inspector_link.js";
import { MessageLog, clock, hue, timeOfDay } from "./log.js";
import { warnIfOpen } from "./open.js";
import { Subscriptions } from "./socketio_pg.js";
import { notifyStatement, oneLine, publishStatement } from "./sql.js";

const ANSWER_TIMEOUT = 10_000; // ms to wait for the server's acknowledgement
const MAX_ERRORS = 4; // shown at the same time
const ERROR_TIME = 15_000; // ms for which an error is shown, unless the visitor points at it or has the focus in it
const MAX_SEEN = 200; // channels to choose from
const HISTORY = 20; // messages that “Replay the last 20 messages” requests

const $ = (selector) => document.querySelector(selector);

// --- The connection ---------------------------------------------------------------------------------------------

const io = await client();
// WebSocket first: long polling needs a load balancer that sends all requests of a client to the same process.
const socket = io({
  path: new URL("../socket.io", import.meta.url).pathname, // also under a prefix, such as /app
  autoConnect: false,
  transports: ["websocket", "polling"],
  tryAllTransports: true,
  reconnectionDelay: 500,
});
let token = null; // only in memory, never in storage or in a URL, because both leak
const subscriptions = new Subscriptions(socket, { token: () => token, onTokenError, onHealth });
warnIfOpen(socket);
const showOutage = outageBanner(); // above the other banner

let wasConnected = false;
let refusals = 0; // connections in a row that the server has closed

socket.on("connect", () => {
  wasConnected = true;
  showConnected();
});

function onHealth(health) {
  showOutage(health);
  if (socket.connected) showConnected();
}

function showConnected() {
  if (subscriptions.health?.database === "unreachable") showStatus("degraded", "Database unreachable");
  else showStatus("connected", "Connected");
}

socket.on("server_hello", ({ sid, version, ...identity }) => {
  refusals = 0;
  showHello({ version, sid });
  showIdentity(identity);
  $("#hello").hidden = false;
});

socket.on("disconnect", (reason) => {
  $("#hello").hidden = true;
  render();
  if (reason === "io client disconnect") showStatus("disconnected", "Disconnected");
  else reconnect();
});

socket.on("connect_error", () => {
  // While the socket is active: a network error, and Socket.IO reconnects automatically. Otherwise see onTokenError.
  if (socket.active) reconnect();
});

function reconnect() {
  showReconnecting("Server unreachable, retrying…");
  // Socket.IO does not reconnect automatically after the server has sent a disconnect.
  if (!socket.active) reconnectTimer = setTimeout(() => socket.connect(), backoff(refusals++));
}
let reconnectTimer;

function showReconnecting(firstText) {
  if (wasConnected) showStatus("reconnecting", "Reconnecting…");
  else showStatus("connecting", firstText);
}

/** Returns 1 s, 2 s, 4 s … 15 s in ms, with random jitter, so that many pages do not reconnect at the same time. */
function backoff(attempt) {
  return Math.min(15_000, 1000 * 2 ** attempt) * (0.5 + Math.random() / 2);
}

$("#connection-toggle").addEventListener("click", () => {
  clearTimeout(reconnectTimer);
  if (connectionWanted()) {
    socket.disconnect();
    showStatus("disconnected", "Disconnected");
  } else {
    connect();
  }
});

function connect() {
  showStatus("connecting", "Connecting…");
  socket.connect();
}

const connectionWanted = () => $("#status").dataset.state !== "disconnected";

function showHello(fields) {
  for (const [field, value] of Object.entries(fields)) {
    const place = $(`#hello [data-field=${field}]`);
    place.textContent = value;
    place.parentElement.hidden = !value;
  }
}

function showStatus(state, text) {
  $("#status").dataset.state = state;
  setText($("#status-text"), text);
  $("#connection-toggle").textContent = connectionWanted() ? "Disconnect" : "Connect";
  if (state === "connected") clearErrors("connect");
  render();
}

/** Sends a request and returns the server's answer. Throws RequestError when it is an error or does not come. */
async function request(event, data) {
  let answer;
  try {
    answer = await socket.timeout(ANSWER_TIMEOUT).emitWithAck(event, data);
  } catch {
    throw new RequestError("no_answer", "The server did not answer. The request may or may not have been carried out.");
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

// --- The token --------------------------------------------------------------------------------------------------

/** Handles a refused connection, or a token that could not be renewed before it expires. */
function onTokenError({ code, message, retrying }) {
  if (socket.connected) return; // token_expiring has already asked the visitor for a new token
  if (code === "unauthorized") {
    socket.disconnect(); // retrying with the same token is useless
    askForToken(token ? "" : "This server requires a token.", token ? `Not accepted: ${message}.` : "");
    token = null;
    showStatus("disconnected", "Not signed in");
    return;
  }
  showError(code, message, { action: "connect" });
  if (retrying) showReconnecting("Connecting…");
  else showStatus("disconnected", "The server refused the connection");
}

socket.on("token_expiring", ({ expires_at: end }) => {
  askForToken(`Your token expires at ${timeOfDay(new Date(end))}. Enter a new one before that to stay connected.`);
});
socket.on("authenticated", showIdentity);

function askForToken(reason, error = "") {
  $("#login").hidden = false;
  setText($("#login-reason"), reason);
  setText($("#login-error"), error);
  // Unlike showFieldError(), this does not take the focus: the visitor may be typing in another field.
  $("#token").setAttribute("aria-invalid", error !== "");
}

/** Shows the name under which the server knows this client, and when its token expires. */
function showIdentity({ client, expires_at: end }) {
  const until = end ? new Date(end) : null;
  showHello({ client: client ?? (token ? "without a name" : "anonymous"), until: until ? timeOfDay(until) : "" });
  $("#hello [data-field=until]").title = until?.toLocaleString() ?? "";
  $("#sign-out").hidden = !token;
  $("#login").hidden = true;
  $("#token").value = "";
}

$("#login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = $("#token").value.trim().replace(/^Bearer\s+/i, "");
  showFieldError($("#token"), given ? "" : "Paste a token.");
  if (!given) return;
  const before = token;
  token = given;
  if (!socket.connected) {
    socket.disconnect(); // cancels a pending attempt with another token, or without one
    connect();
    return;
  }
  try {
    await request("authenticate", { token });
    announce("Signed in");
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    token = before;
    showFieldError($("#token"), `Not accepted: ${error.message}.`);
  }
});

/** Offers anonymous visitors to sign in, because a token may give them more permissions. */
function offerToken({ code }) {
  if (code === "forbidden" && !token) askForToken("You are anonymous. A token may give you more permissions.");
}

$("#sign-out").addEventListener("click", () => {
  token = null;
  $("#sign-out").hidden = true;
  socket.disconnect();
  connect();
});

// --- Subscriptions ----------------------------------------------------------------------------------------------

// name → {name, subscription, confirmed, note, count, chip}: the user's subscriptions. A name with * is a pattern.
const channels = new Map();
const seen = new Set(); // the channels of messages

/**
 * Subscribes to a channel, unless already subscribed. With `history`, always replays that many messages, or explains why
 * not if the visitor asked for them.
 */
function subscribe(name, history = 0, { isAsked = false } = {}) {
  const channel = channels.get(name) ?? { name, subscription: null, confirmed: false, note: "", count: 0, chip: null };
  const before = channel.subscription;
  if (before && !history) return;
  channels.set(name, channel);
  const show = (message) => {
    channel.count += 1;
    // A message that several subscriptions match is shown once.
    const first = message.matches?.find((one) => channels.has(one)) ?? name;
    if (first !== name) return;
    received += 1;
    if (seen.size < MAX_SEEN) seen.add(message.channel);
    log.addMessage(message);
  };
  channel.subscription = subscriptions.subscribe(name.includes("*") ? { pattern: name } : name, show, {
    history,
    onEphemeral: show,
    onGap: (gap) => log.addGap({ channel: name, ...gap }, channel.subscription.position !== null),
    onSubscribed: () => {
      channel.note = "";
      channel.confirmed = true;
      clearErrors("subscribe", name);
      announce(`Subscribed to ${name}`);
      if (isAsked && history && !channel.subscription.position) {
        const message = "This database has no log, so nothing was replayed. To install the log, run: socketio-pg init";
        showError("not_installed", message, { action: "subscribe", channel: name });
      }
      render();
    },
    onError: (error) => {
      showError(error.code, error.message, { action: "subscribe", channel: name });
      if (error.retrying) channel.note = "retrying";
      else channels.delete(name);
      if (!error.retrying && channel.confirmed) log.addEnd(name, error.message);
      offerToken(error);
      render();
    },
  });
  before?.unsubscribe();
  render();
}

async function unsubscribe(channel) {
  channels.delete(channel.name);
  clearErrors("subscribe", channel.name);
  render();
  await channel.subscription.unsubscribe();
  announce(`Unsubscribed from ${channel.name}`);
}

$("#subscribe-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = $("#subscribe-channel");
  const names = namesIn(input.value);
  showFieldError(input, names.length ? "" : "Enter the name of a channel, for example foo.");
  const history = $("#subscribe-history").checked ? HISTORY : 0;
  for (const name of names) subscribe(name, history, { isAsked: true });
  if (names.length) input.value = "";
});

/** Returns the names in a list separated by commas. Spaces inside a name are part of it. */
function namesIn(text) {
  return [...new Set(text.split(",").map((name) => name.trim()).filter(Boolean))];
}

// --- Messages ---------------------------------------------------------------------------------------------------

const log = new MessageLog($("#messages"), render);
let received = 0;

socket.on("error", ({ code, message, channel }) => {
  if (code !== "unauthorized") showError(code, message, { channel }); // the token has expired: onTokenError handles it
});

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
    showFieldError($("#publish-payload"), `Not sent, this is not JSON: ${error.message}. Text needs quotes: "hello"`);
    return;
  }
  showFieldError($("#publish-payload"), "");
  // Socket.IO would buffer the request and send it after a reconnect, when the visitor no longer expects it.
  if (!socket.connected) {
    showError("not_connected", "Not sent: there is no connection to the server.", { action: "publish", channel });
    return;
  }
  const start = performance.now();
  try {
    await request("publish", { channel, payload, durable: $("#publish-durable").checked });
    $("#publish-result").textContent = `Committed in ${Math.max(1, Math.round(performance.now() - start))} ms`;
    clearErrors("publish", channel);
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    showError(error.code, error.message, { action: "publish", channel });
    offerToken(error);
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
  // The error about invalid JSON disappears when the JSON becomes valid; it never appears while the visitor is typing.
  if ($("#publish-payload").hasAttribute("aria-invalid") && parsed($("#publish-payload").value) !== undefined) {
    showFieldError($("#publish-payload"), "");
  }
});

function showSql() {
  const text = $("#publish-payload").value;
  const value = parsed(text);
  const channel = $("#publish-channel").value.trim() || "foo";
  const statement = $("#publish-durable").checked ? publishStatement : notifyStatement;
  $("#sql").textContent = statement(channel, value === undefined ? text : oneLine(value));
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
    // Pages without HTTPS have no clipboard API, but can still copy a selection.
    getSelection().selectAllChildren($("#sql"));
    copied = document.execCommand("copy");
  }
  $("#sql-copy").textContent = copied ? "Copied" : "Selected";
  announce(copied ? "Copied" : "Selected, not copied");
  setTimeout(() => { $("#sql-copy").textContent = "Copy"; }, 1500);
});

// --- Rendering --------------------------------------------------------------------------------------------------

let frame = 0;

/** Updates chips, counters and buttons in the next animation frame, once for all calls before it. */
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
    const { active } = channel.subscription;
    channel.chip ??= makeChip(channel);
    channel.chip.dataset.state = active ? "subscribed" : "pending";
    setText(channel.chip.querySelector(".channel-note"), active ? "" : channel.note || "waiting");
    setText(channel.chip.querySelector(".channel-count"), channel.count.toLocaleString());
    chips.push(channel.chip);
  }
  const list = $("#channels");
  // Only when the list has changed: moving a chip would take the focus from its button.
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
    $("#subscribe-channel").focus(); // the button that has the focus is removed
  });
  return chip;
}

function renderFilter() {
  const select = $("#filter");
  const known = new Set([...select.options].map((option) => option.value));
  const active = [...channels.values()].filter(({ name, subscription }) => subscription.active && !name.includes("*"));
  for (const name of new Set([...active.map((channel) => channel.name), ...seen])) {
    if (!known.has(name)) select.add(new Option(name, name));
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
  const all = [...channels.values()];
  const names = all.filter(({ subscription }) => subscription.active).map(({ name }) => name).join(", ");
  if (names) {
    return ["Listening", `The next message on ${names} appears here. Publish one, here or in psql.`];
  }
  if (all.length && !connectionWanted()) return ["Not listening", "There is no connection to the server: click Connect."];
  if (all.length) return ["Not listening yet", "The server has not confirmed the subscription."];
  return ["No messages yet", "Subscribe to a channel, such as foo. Then publish to it, here or in psql."];
}

// Screen readers would read unchanged text again.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function announce(text) {
  $("#announcer").textContent = text;
}

/** Shows an error about a field below its form; "" removes it. */
function showFieldError(field, text) {
  const place = document.getElementById(field.getAttribute("aria-describedby"));
  place.textContent = text;
  for (const input of field.form.elements) input.removeAttribute("aria-invalid");
  if (text) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
}

/** Shows an error until it is dismissed, the action succeeds, or some time has passed. Repeated errors are counted. */
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
  dismissLater(row);
  if (same) same.replaceWith(row);
  else list.prepend(row);
  while (list.children.length > MAX_ERRORS) list.lastElementChild.remove();
}

/** Removes an error after a while, but never while the visitor points at it or has the focus in it. */
function dismissLater(row) {
  let timer;
  const start = () => {
    clearTimeout(timer);
    timer = setTimeout(() => (row.matches(":hover, :focus-within") ? start() : row.remove()), ERROR_TIME);
  };
  for (const event of ["pointerleave", "focusout"]) row.addEventListener(event, start);
  start();
}

function clearErrors(action, channel = "") {
  for (const row of [...$("#errors").children]) {
    if (row.dataset.action === action && row.dataset.channel === channel) row.remove();
  }
}

// --- Start ------------------------------------------------------------------------------------------------------

/** Returns the stock client. Shows the error in the page when it cannot be loaded. */
async function client() {
  try {
    return await loadClient();
  } catch (error) {
    $("#status").dataset.state = "failed";
    $("#status-text").textContent = "Cannot start";
    $("#fatal").hidden = false;
    $("#fatal").textContent = error.message;
    throw error;
  }
}

// Beside the messages the form for publishing is always open. Above them, on a phone, it would fill the first screen.
const beside = matchMedia("(min-width: 56rem) and (min-height: 30rem)"); // as in test.css
const summary = $("#publish > summary");
function arrange() {
  $("#publish").open = beside.matches;
  summary.tabIndex = beside.matches ? -1 : 0;
}
beside.addEventListener("change", arrange);
summary.addEventListener("click", (event) => { if (beside.matches) event.preventDefault(); });
arrange();

const pages = { demos: hasDemos, inspector: hasInspector };
for (const link of document.querySelectorAll(".pages [data-page]")) link.hidden = !pages[link.dataset.page];
$(".pages").hidden = !Object.values(pages).includes(true);
for (const button of document.querySelectorAll("button:disabled")) button.disabled = false;
showSql();
const named = new URLSearchParams(location.search).get("channels");
if (named === null) for (const name of firstChannels) subscribe(name, HISTORY);
else for (const name of namesIn(named)) subscribe(name);
render();
connect();
