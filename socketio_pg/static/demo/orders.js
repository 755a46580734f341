// A table that follows the table `orders`: the subscription brings the rows, and then each change of them.

import { $, connect, element, flash, runSql } from "./demo.js";

const REQUEST = { table: "socketio_pg_demo.orders", order: "id" };
const lines = new Map(); // primary key → its <tr>

const { socket, subscriptions } = await connect();
socket.on("disconnect", () => count());
let orders;
await runSql("orders", start, 700);

/** Subscribes. Returns false if the table does not exist yet, or the log does not. */
async function start() {
  orders = subscriptions.subscribe(REQUEST, {
    onRows: (rows) => drawAll(rows),
    onChange: ({ key, row }) => {
      if (row) flash(draw(key, row));
      else remove(key);
      count();
    },
    onLive: () => count(),
    onError: () => {},
  });
  try {
    await orders.live;
    return true;
  } catch (error) {
    if (["invalid_request", "log_not_installed"].includes(error.code)) return false;
    throw error;
  }
}

function drawAll(rows) {
  for (const key of [...lines.keys()]) remove(key);
  for (const [key, row] of rows) draw(key, row);
  count();
}

function draw(key, { id, customer, item, total, status }) {
  const line = lines.get(key) ?? $("#orders").insertRow(0);
  lines.set(key, line);
  line.replaceChildren();
  for (const text of [id, customer, item, Number(total).toFixed(2)]) line.insertCell().textContent = text;
  line.cells[3].className = "number";
  line.insertCell().append(element("span", "pill", status));
  line.dataset.status = status;
  return line;
}

function remove(key) {
  lines.get(key)?.remove();
  lines.delete(key);
}

function count() {
  $("#empty").hidden = lines.size > 0;
  $(".orders").hidden = lines.size === 0;
  $("#count").textContent = `${lines.size} ${lines.size === 1 ? "order" : "orders"}`;
  $("#edge").dataset.state = orders?.active ? "live" : "stale";
  $("#edge").textContent = orders?.active ? "live" : "catching up…";
}
