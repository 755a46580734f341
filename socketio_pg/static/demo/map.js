// People on a map. One UPDATE of all people is one statement in the database, and one message per person here.
// "West of the river" is a filter that the server applies: messages about the east do not reach this page.

import { City, RIVER } from "./city.js";
import { $, ask, connect, runSql } from "./demo.js";

const FILTERS = { all: null, west: { "new.lon": { lt: RIVER } }, east: { "new.lon": { gte: RIVER } } };
const city = new City($("#map"));
let received = 0; // messages in the current second

const { subscriptions } = await connect();
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
