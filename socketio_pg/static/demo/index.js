// The previews of the demos: each follows what its demo follows, all on one connection.

import { oneLine } from "../static/sql.js";
import { City } from "./city.js";
import { $, ask, connect, element, flash, repeat, textOf } from "./demo.js";

const NEWEST = 4; // rows or lines in a preview
const ignore = () => {}; // what cannot be shown stays empty

const { subscriptions } = await connect();
const changeable = []; // the demos whose table exists
// Each shows what there is, and then what changes. Empty ones tell what to do, once all have been asked.
await Promise.allSettled([orders(), map(), chat(), votes(), playground()]);
$(".cards").dataset.ready = "true";
$("#run").disabled = changeable.length === 0;
repeat($("#run"), 1000, async () => {
  for (const name of changeable) await ask(`./${name}/change`, "POST");
});

async function orders() {
  const body = $("[data-demo=orders] tbody");
  const request = { table: "socketio_pg_demo.orders", order: { column: "id", desc: true }, limit: 50 };
  const table = subscriptions.subscribe(request, {
    onRows: () => draw(null),
    onChange: ({ key, row }) => draw(row ? key : null),
    onError: ignore, // there is no table yet
  });
  await table.live;
  changeable.push("orders");

  function draw(changed) {
    const newest = [...table.rows].sort(([a], [b]) => b - a).slice(0, NEWEST);
    body.replaceChildren(...newest.map(([key, { customer, item, total, status }]) => {
      const line = element("tr");
      line.dataset.status = status;
      const cells = [customer, item, Number(total).toFixed(2), ""].map((text) => element("td", "", text));
      cells[2].className = "number";
      cells[3].append(element("span", "pill", status));
      line.append(...cells);
      if (key === changed) flash(line);
      return line;
    }));
  }
}

async function map() {
  const city = new City($("[data-demo=map] svg"));
  const subscription = subscriptions.subscribe("people", ({ payload: { op, pk, new: person } }) => {
    if (op === "DELETE") city.remove(pk.id);
    else if (person) city.place(person);
  }, { onError: ignore });
  await subscription.ready;
  const { ready, rows } = await ask("./map/rows");
  if (ready) changeable.push("map");
  for (const person of rows) city.place(person);
}

async function chat() {
  const list = $("[data-demo=chat] ol");
  await subscriptions.subscribe("chat", ({ payload, replayed }) => {
    const line = element("li");
    line.append(
      element("strong", "", textOf(payload?.from, "anonymous")),
      element("span", "", textOf(payload?.text, oneLine(payload))),
    );
    add(list, line, replayed);
  }, { history: NEWEST, onError: ignore }).live;
}

async function votes() {
  const list = $("[data-demo=votes] ul");
  // The messages are HTML for htmx. Only their texts are used here.
  const show = (html) => {
    const choices = new DOMParser().parseFromString(html, "text/html").querySelectorAll(".votes > li");
    const counts = [...choices].map((choice) => [text(choice, "button"), Number(text(choice, "output"))]);
    const all = counts.reduce((sum, [, count]) => sum + count, 0);
    list.replaceChildren(...counts.map(([name, count]) => {
      const line = element("li");
      const bar = element("progress");
      Object.assign(bar, { max: all || 1, value: count, ariaLabel: name });
      line.append(element("span", "", name), bar, element("output", "", String(count)));
      return line;
    }));
  };
  const text = (choice, selector) => choice.querySelector(selector)?.textContent ?? "";
  show(await (await fetch("./votes")).text());
  await subscriptions.subscribe("demo:votes", ({ payload }) => show(payload?.html ?? ""), { onError: ignore }).ready;
}

async function playground() {
  const list = $("[data-demo=playground] ol");
  await subscriptions.subscribe("foo", ({ payload, replayed }) => {
    const line = element("li");
    line.append(element("span", "channel-name", "foo"), element("code", "payload", oneLine(payload)));
    add(list, line, replayed);
  }, { history: NEWEST, onError: ignore }).live;
}

/** Adds a line, and removes the oldest. */
function add(list, line, isReplayed) {
  list.append(line);
  if (!isReplayed) flash(line);
  while (list.children.length > NEWEST) list.firstChild.remove();
}
