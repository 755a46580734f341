// People on a map. One UPDATE of all people is one statement in the database, and one message per person here.
// "West of the river" is a filter that the server applies: messages about the east do not reach this page.
// The cursors of other visitors are ephemeral messages, which do not go through the database.

import { City, RIVER } from "./city.js";
import { Cursors, REMINDER } from "./cursors.js";
import { $, ask, connect, runSql, textOf, visitor } from "./demo.js";

const FILTERS = { all: null, west: { "new.lon": { lt: RIVER } }, east: { "new.lon": { gte: RIVER } } };
const city = new City($("#map"));
const cursors = new Cursors($("#cursors"), () => countVisitors());
let place = null; // of this visitor's pointer; null: not on the map
let received = 0; // messages in the current second

const { socket, subscriptions } = await connect({ onLeave: () => point(null) });
shareCursors();
let subscription;
await follow("all");
$("#area").addEventListener("change", () => follow($("#area").value));
setInterval(() => {
  const messages = `${received} ${received === 1 ? "message" : "messages"}`;
  $("#count").textContent = `${city.people.length} people, ${messages} in the last second`;
  received = 0;
}, 1000);
await runSql("map", start, 400);

async function start() {
  const { ready, rows } = await ask("./map/rows");
  for (const person of rows) city.place(person);
  return ready;
}

async function follow(area) {
  await subscription?.unsubscribe();
  subscription = subscriptions.subscribe("people", receive, { filter: FILTERS[area] });
  await subscription.ready;
  for (const person of city.people) person.dataset.followed = area === "all" || person.dataset.side === area;
}

function receive({ payload: { op, pk, new: person } }) {
  received++;
  if (op === "DELETE") city.remove(pk.id);
  else if (person) city.place(person).dataset.followed = true;
}

// --- The cursors of the visitors ---

/** Moves this visitor's cursor for the others; null removes it. */
function point(next) {
  if (!place && !next) return;
  place = next;
  subscriptions.publishEphemeral("cursors", place && { ...place, name: visitor.name });
}

function showCursor({ from: { client }, payload }) {
  const { x, y, name } = payload ?? {};
  if (isPart(x) && isPart(y)) cursors.move(client, textOf(name, "Somebody").slice(0, 30), x, y);
  else cursors.remove(client);
}

function shareCursors() {
  subscriptions.subscribe("cursors", () => {}, { onEphemeral: showCursor, onError: () => {} });
  socket.on("disconnect", () => cursors.clear());
  $("#city").addEventListener("pointermove", ({ clientX, clientY }) => {
    const { left, top, width, height } = $("#cursors").getBoundingClientRect();
    point({ x: part(clientX - left, width), y: part(clientY - top, height) });
  });
  $("#city").addEventListener("pointerleave", () => point(null));
  addEventListener("visibilitychange", () => document.hidden && point(null));
  setInterval(() => point(place), REMINDER);
  $("#name").value = visitor.name;
  $("#name").addEventListener("change", () => { visitor.name = $("#name").value; });
  $("#visitor").addEventListener("submit", (event) => event.preventDefault());
  countVisitors();
}

function countVisitors() {
  const { count } = cursors;
  $("#visitors").textContent = count === 0
    ? "Others see your pointer on the map: open this page in a second window."
    : `${count} ${count === 1 ? "other visitor points" : "other visitors point"} at the map.`;
}

function isPart(value) {
  return typeof value === "number" && value >= 0 && value <= 1;
}

function part(length, whole) {
  return Math.min(1, Math.max(0, Math.round((length / whole) * 10_000) / 10_000));
}
