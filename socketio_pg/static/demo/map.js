// People on a map. One UPDATE of all people is one statement in the database, and one message per person here.
// "West of the river" is a filter that the server applies: messages about the east do not reach this page.

import { $, ask, connect, runSql } from "./demo.js";

const [SOUTH, NORTH, WEST, EAST, RIVER] = [50.93, 50.95, 6.94, 6.98, 6.9605];
const FILTERS = { all: null, west: { "new.lon": { lt: RIVER } }, east: { "new.lon": { gte: RIVER } } };
const people = new Map(); // id → its <g>
let received = 0; // messages in the current second

const { subscriptions } = await connect();
let subscription;
await follow("all");
$("#area").addEventListener("change", () => follow($("#area").value));
setInterval(() => {
  const messages = `${received} ${received === 1 ? "message" : "messages"}`;
  $("#count").textContent = `${people.size} people, ${messages} in the last second`;
  received = 0;
}, 1000);
await runSql("map", start, 400);

async function start() {
  const { ready, rows } = await ask("./map/rows");
  rows.forEach(draw);
  return ready;
}

async function follow(area) {
  await subscription?.unsubscribe();
  subscription = subscriptions.subscribe("people", receive, { filter: FILTERS[area] });
  await subscription.ready;
  for (const person of people.values()) person.dataset.followed = area === "all" || person.dataset.side === area;
}

function receive({ payload: { op, pk, new: person } }) {
  received++;
  if (op === "DELETE") {
    people.get(pk.id)?.remove();
    people.delete(pk.id);
  } else if (person) {
    draw(person).dataset.followed = true;
  }
}

function draw({ id, name, lat, lon }) {
  let group = people.get(id);
  if (!group) {
    group = document.createElementNS("http://www.w3.org/2000/svg", "g");
    group.innerHTML = '<circle r="13"/><text y="4" text-anchor="middle"></text><title></title>';
    group.querySelector("text").textContent = name.slice(0, 2);
    group.querySelector("title").textContent = name;
    group.style.setProperty("--hue", (id * 137.5) % 360);
    $("#people").append(group);
    people.set(id, group);
  }
  const x = 24 + ((lon - WEST) / (EAST - WEST)) * 752; // a margin, so that no circle is clipped at the edge
  const y = 24 + ((NORTH - lat) / (NORTH - SOUTH)) * 452;
  group.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
  group.dataset.side = lon < RIVER ? "west" : "east";
  return group;
}
