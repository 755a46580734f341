// People on a map. One UPDATE of all of them is one statement in the database, and a message for each person here.
// "West of the river" is a filter that the server applies: what is east does not even reach this page.

import { $, connect, runSql } from "./demo.js";

const [SOUTH, NORTH, WEST, EAST, RIVER] = [50.93, 50.95, 6.94, 6.98, 6.9605];
const FILTERS = { all: null, west: { "new.lon": { lt: RIVER } }, east: { "new.lon": { gte: RIVER } } };
const people = new Map(); // id → its <g>
let heard = 0; // messages in this second

const { subscriptions } = await connect();
let subscription;
await follow("all");
$("#area").addEventListener("change", () => follow($("#area").value));
setInterval(() => {
  $("#count").textContent = `${people.size} people, ${heard} ${heard === 1 ? "message" : "messages"} in the last second`;
  heard = 0;
}, 1000);
await runSql("map", (rows) => rows.forEach(draw), 400);

async function follow(area) {
  await subscription?.unsubscribe();
  subscription = subscriptions.subscribe("people", receive, { filter: FILTERS[area] });
  await subscription.ready;
  for (const person of people.values()) person.dataset.followed = area === "all" || person.dataset.side === area;
}

function receive({ payload: { op, pk, new: person } }) {
  heard++;
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
  const x = 24 + ((lon - WEST) / (EAST - WEST)) * 752; // nobody is cut off at the edge
  const y = 24 + ((NORTH - lat) / (NORTH - SOUTH)) * 452;
  group.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
  group.dataset.side = lon < RIVER ? "west" : "east";
  return group;
}
