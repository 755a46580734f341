// Shared by the demos: the connection and its status light, and the buttons that make the server run SQL.

import { loadClient } from "../static/client.js";
import { outageBanner } from "../static/health.js";
import { warnIfOpen } from "../static/open.js";
import { Subscriptions } from "../static/socketio_pg.js";

export const $ = (selector) => document.querySelector(selector);

/**
 * Connects. Returns the socket and its Subscriptions, which survive reconnects. `onLeave` is called before the connection
 * ends because the visitor leaves the page.
 */
export async function connect({ onLeave } = {}) {
  let io;
  try {
    io = await loadClient();
  } catch (error) {
    show("failed", "Cannot start");
    showProblem(error);
    throw error;
  }
  const path = new URL("../socket.io", import.meta.url).pathname; // also under a prefix, such as /app
  const socket = io({ path, transports: ["websocket", "polling"], tryAllTransports: true });
  warnIfOpen(socket);
  const showOutage = outageBanner();
  const showConnected = () => {
    if (subscriptions.health?.database === "unreachable") show("degraded", "Database unreachable");
    else show("connected", "Connected");
  };
  const onHealth = (health) => {
    showOutage(health);
    if (socket.connected) showConnected();
  };
  socket.on("connect", showConnected);
  socket.on("disconnect", () => show("reconnecting", "Reconnecting…"));
  const onTokenError = ({ message }) => { // the demos have no token
    show("disconnected", "Connection refused");
    showProblem(new Error(`Connection refused: ${message}. The demos send no token: start the server with AUTH=off.`));
  };
  const subscriptions = new Subscriptions(socket, { token: () => null, onTokenError, onHealth });
  // Otherwise the others would see this visitor for some seconds more. A page may come back from the browser's cache.
  addEventListener("pagehide", () => {
    onLeave?.();
    socket.disconnect();
  });
  addEventListener("pageshow", ({ persisted }) => persisted && socket.connect());
  return { socket, subscriptions };
}

function show(state, text) {
  $("#status").dataset.state = state;
  $("#status-text").textContent = text;
}

const ANIMALS = ["Badger", "Beaver", "Falcon", "Heron", "Kestrel", "Lynx", "Marten", "Otter", "Owl", "Raven", "Seal", "Wren"];
const random = () => Math.random().toString(36).slice(2);

/** This visitor, the same in all tabs of the browser: a name, and a key, which are not checked. */
export const visitor = {
  get name() { return (localStorage.name ||= ANIMALS[Math.floor(Math.random() * ANIMALS.length)]); },
  set name(name) { localStorage.name = name.trim(); },
  get key() { return (localStorage.visitor ||= random() + random()); },
};

/** Shows an error in the page; null hides it. */
export function showProblem(error) {
  $("#problem").hidden = !error;
  $("#problem").textContent = error?.message ?? "";
}

/**
 * Runs the SQL of a demo: shows NAME.sql, offers to run it unless it was run before, and makes changes on request.
 * `start()` shows the rows, and returns false if the table does not exist yet. `pause` is the time between two changes,
 * in milliseconds.
 */
export async function runSql(name, start, pause) {
  $("#sql").textContent = (await (await fetch(`./${name}.sql`)).text()).trim();
  const begin = async () => {
    const ready = await start();
    $("#setup").hidden = ready;
    $("#change").disabled = $("#keep").disabled = !ready;
  };
  const change = async () => {
    const { sql } = await ask(`./${name}/change`, "POST");
    $("#statements").prepend(element("li", "", sql));
    while ($("#statements").children.length > 8) $("#statements").lastChild.remove();
  };
  $("#setup button").addEventListener("click", () => guarded(async () => {
    await ask(`./${name}/setup`, "POST");
    await begin();
  }));
  $("#change").addEventListener("click", () => guarded(change));
  repeat($("#keep"), pause, change);
  await guarded(begin);
}

/** Lets a button start `action`, again and again with `pause` ms between, and stop it. */
export function repeat(button, pause, action) {
  const name = button.textContent;
  let going = false;
  let timer;
  const step = async () => {
    if (!going) return;
    await guarded(action);
    clearTimeout(timer); // of a step that began before the button was pressed twice
    timer = setTimeout(step, pause);
  };
  button.addEventListener("click", () => {
    going = !going;
    button.setAttribute("aria-pressed", String(going));
    button.textContent = going ? "Stop" : name;
    step();
  });
}

/** Sends a request of this demo to the server: GET for its rows, POST for a change. */
export async function ask(path, method = "GET") {
  const json = { method, headers: { "Content-Type": "application/json" }, body: "{}" };
  const answer = await fetch(path, method === "POST" ? json : {});
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? `${path}: ${answer.status}`);
  return body;
}

/** Runs `action`, and shows its error in the page. */
export async function guarded(action) {
  try {
    await action();
    showProblem(null);
  } catch (error) {
    showProblem(error);
  }
}

/** Returns a value that another visitor has sent, if it is a text. */
export function textOf(value, otherwise) {
  return typeof value === "string" ? value : otherwise;
}

/** Returns a new element with a text. */
export function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Highlights a line that has changed. */
export function flash(line) {
  line.animate([{ background: "var(--flash)" }, {}], { duration: 1200, easing: "ease-out" });
}
