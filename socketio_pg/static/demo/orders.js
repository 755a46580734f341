// A table that follows the table `orders`: subscribe first, then read the rows, then apply what arrives.

import { $, connect, runSql } from "./demo.js";

const CHANNEL = "table:socketio_pg_demo.orders";
const rows = new Map(); // id → its <tr>
const waiting = []; // messages that arrived before the rows
let loaded = false;

const { subscriptions } = await connect();
const orders = subscriptions.subscribe(CHANNEL, receive, {
  onGap: ({ tier }) => tier === "log" && location.reload(), // disconnected for longer than the log's retention
});
await orders.ready;
await runSql("orders", load, 700);

function load(found) {
  for (const order of found) draw(order);
  loaded = true;
  count();
  // In order: the rows may already contain some of these changes, but they end up as in the table.
  for (const message of waiting.splice(0)) receive(message);
}

function receive(message) {
  if (!loaded) {
    waiting.push(message);
    return;
  }
  const { op, pk, new: order } = message.payload;
  if (op === "DELETE") remove(pk.id);
  else if (op === "TRUNCATE") for (const id of rows.keys()) remove(id);
  else if (order) flash(draw(order));
  count();
}

function draw({ id, customer, item, total, status }) {
  const row = rows.get(id) ?? $("#orders").insertRow(0);
  rows.set(id, row);
  row.replaceChildren();
  for (const text of [id, customer, item, Number(total).toFixed(2)]) row.insertCell().textContent = text;
  row.cells[3].className = "number";
  row.insertCell().innerHTML = "<span class=\"pill\"></span>";
  row.querySelector(".pill").textContent = status;
  row.dataset.status = status;
  return row;
}

function remove(id) {
  rows.get(id)?.remove();
  rows.delete(id);
}

function flash(row) {
  row.animate([{ background: "var(--flash)" }, {}], { duration: 1200, easing: "ease-out" });
}

function count() {
  $("#empty").hidden = rows.size > 0;
  $(".orders").hidden = rows.size === 0;
  $("#count").textContent = `${rows.size} ${rows.size === 1 ? "order" : "orders"}`;
}
