// What the demos share: the connection with its light, and the buttons that have the server run SQL.

import { loadClient } from "../static/client.js";
import { Subscriptions } from "../static/socketio_pg.js";

export const $ = (selector) => document.querySelector(selector);

/** Connects. Returns the socket, and the subscriptions that outlive its connections. */
export async function connect() {
  let io;
  try {
    io = await loadClient();
  } catch (error) {
    show("failed", "Cannot start");
    tell(error);
    throw error;
  }
  const socket = io({ transports: ["websocket", "polling"], tryAllTransports: true });
  socket.on("connect", () => show("connected", "Connected"));
  socket.on("disconnect", () => show("reconnecting", "Reconnecting…"));
  const onTokenError = ({ message }) => { // a demo has no token
    show("disconnected", "Not let in");
    tell(new Error(`${message}. The demos bring no token: start the server with AUTH=off.`));
  };
  return { socket, subscriptions: new Subscriptions(socket, { token: () => null, onTokenError }) };
}

function show(state, text) {
  $("#status").dataset.state = state;
  $("#status-text").textContent = text;
}

/** Shows a problem in the page; null: there is none any more. */
export function tell(error) {
  $("#problem").hidden = !error;
  $("#problem").textContent = error?.message ?? "";
}

/**
 * The SQL of a demo: shows NAME.sql, runs it when it was not run, and has changes made.
 * Calls `load(rows)` when there are rows to begin with; `pause` is in milliseconds, between two changes.
 */
export async function runSql(name, load, pause) {
  $("#sql").textContent = (await (await fetch(`./${name}.sql`)).text()).trim();
  const begin = async () => {
    const { ready, rows } = await ask(`./${name}/rows`);
    $("#setup").hidden = ready;
    $("#change").disabled = $("#keep").disabled = !ready;
    if (ready) load(rows);
  };
  const change = async () => {
    const { sql } = await ask(`./${name}/change`, "POST");
    const line = document.createElement("li");
    line.textContent = sql;
    $("#statements").prepend(line);
    while ($("#statements").children.length > 8) $("#statements").lastChild.remove();
  };
  let going = false;
  const keep = async () => {
    if (!going) return;
    await guarded(change);
    setTimeout(keep, pause);
  };
  $("#setup").addEventListener("click", () => guarded(async () => {
    await ask(`./${name}/setup`, "POST");
    await begin();
  }));
  $("#change").addEventListener("click", () => guarded(change));
  $("#keep").addEventListener("click", () => {
    going = !going;
    $("#keep").setAttribute("aria-pressed", String(going));
    $("#keep").textContent = going ? "Stop" : "Keep going";
    keep();
  });
  await guarded(begin);
}

/** Asks the server for something of this demo's: its rows, or with POST a change. */
async function ask(path, method = "GET") {
  const json = { method, headers: { "Content-Type": "application/json" }, body: "{}" };
  const answer = await fetch(path, method === "POST" ? json : {});
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? `${path}: ${answer.status}`);
  return body;
}

async function guarded(what) {
  try {
    await what();
    tell(null);
  } catch (error) {
    tell(error);
  }
}
