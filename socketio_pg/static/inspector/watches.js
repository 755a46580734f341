// The view of the watched tables.

import { get, post, repeat } from "./api.js";
import { channelAddress } from "./channels.js";
import { toast } from "./copying.js";
import { channelName, code, empty, h, labelled, setChildren, setText } from "./dom.js";
import { count, plural, short, time } from "./format.js";
import { confirmed } from "./keys.js";
import { Table } from "./table.js";

const PAUSE = 3_000;
const keyOf = ({ table, channel }) => `${table} ${channel}`;

/** Shows the view. */
export function showWatches(root, inspector) {
  const removed = new Map(); // what was switched off in this page: it can be switched on again as it was
  let mayAct = inspector.session.may_act;
  const number = h("p", { class: "hint", role: "status" });
  const reason = h("p", { class: "hint" });
  const problem = h("p", { class: "field-error", role: "alert" });
  const place = h("div", { class: "list-place" });
  const search = h("input", { id: "search", type: "search", "aria-label": "Search watches", placeholder: "Table or channel", autocomplete: "off", spellcheck: "false", value: inspector.parameters.get("search") ?? "" });
  const form = addForm(switchTo);
  const table = new Table({
    label: "Watched tables", key: keyOf, className: "list-watches",
    columns: [
      { id: "table", name: "Table", depends: (row) => [row.table, row.live], node: (row) => [h("span", { class: "mono", text: row.table }), row.live ? h("span", { class: "badge", text: "live table", title: "clients may get its rows" }) : null] },
      { id: "channel", name: "Channel", node: (row) => (row.channel.includes("{") ? h("a", { href: channelAddress(row.channel.replaceAll(/\{[^}]*\}/g, "*")) }, channelName(row.channel)) : h("a", { href: channelAddress(row.channel) }, channelName(row.channel))) },
      { id: "options", name: "Options", depends: options, node: (row) => options(row).map(([text, value]) => h("span", { class: "option" }, text, value ? " " : "", value ? h("code", { text: value }) : null)) },
      { id: "messages_in", name: "Messages/s", number: true, text: (row) => (row.isOff ? "–" : short(row.messages_in)) },
      { id: "last_error", name: "Last error", depends: (row) => [row.failures, row.last_error, row.last_error_at],
        node: (row) => (row.last_error ? [h("span", { class: "bad", text: row.last_error }), h("span", { class: "hint", text: ` ${row.last_error_at ? time(toMs(row.last_error_at)) : ""}${row.failures > 1 ? `, ${count(row.failures)} in all` : ""}` })] : h("span", { class: "none", text: "–" })) },
      { id: "switch", name: "", label: "On or off", depends: (row) => [row.isOff, row.disabled, mayAct], node: (row) => switchFor(row) },
    ],
  });
  root.append(h("section", { "aria-labelledby": "watches-title" },
    h("div", { class: "head" }, h("h2", { id: "watches-title", text: "Watches" }), number, h("div", { class: "tools" }, search)),
    reason, problem, place), form.element);
  setText(reason, "");

  let typing;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      inspector.setParameters({ search: search.value.trim() });
      loading.again();
    }, 250);
  });

  const loading = repeat(async (signal) => {
    const answer = await get("watches", { search: search.value.trim() }, { signal });
    setText(problem, "");
    mayAct = inspector.session.may_act && answer.may_switch !== false;
    setText(reason, !inspector.session.may_act ? "You may read only: the admin token may switch watches on and off." : answer.may_switch === false ? `This server cannot switch watches: ${answer.reason}` : "");
    for (const watch of answer.watches) removed.delete(keyOf(watch));
    const rows = [...answer.watches, ...removed.values()];
    setText(number, count(answer.total));
    table.update(rows);
    form.update(mayAct, answer.tables ?? []);
    if (rows.length) setChildren(place, [table.element]);
    else place.replaceChildren(search.value.trim() ? empty("No watch matches", "Search for a part of the table's or the channel's name.")
      : empty("No table is watched yet", "Watch one below, or run ", code("SELECT socketio_pg.watch('orders');"), ". From then on, each committed change of a row is a message."));
  }, PAUSE, (error) => setText(problem, error.message));

  function switchFor(row) {
    if (row.isOff) return h("button", { type: "button", class: "quiet", text: "Switch on again", disabled: !mayAct, on: { click: () => switchTo({ ...settings(row), enabled: true }) } });
    return [row.disabled ? h("span", { class: "badge warn", text: "triggers disabled", title: "ALTER TABLE … ENABLE TRIGGER switches them on" }) : null,
      h("button", { type: "button", class: "quiet", text: "Switch off", disabled: !mayAct, "aria-label": `Switch off the watch of ${row.table} on ${row.channel}`, on: { click: () => switchOff(row) } })];
  }

  async function switchOff(row) {
    if (!await confirmed(`Switch off the watch of ${row.table}?`, `Changes of its rows are no longer published on ${row.channel}. What clients miss until it is on again is not sent later.`, "Switch off")) return;
    removed.set(keyOf(row), { ...row, isOff: true });
    if (!await switchTo({ table: row.table, channel: row.channel, enabled: false })) removed.delete(keyOf(row));
  }

  async function switchTo(body) {
    try {
      const answer = await post("watches/set", body);
      toast([body.enabled ? `Watching ${answer.table ?? body.table}` : `Switched off: ${answer.table ?? body.table}`, ...(answer.notices ?? [])].join(". "));
      return true;
    } catch (error) {
      setText(problem, error.message);
      return false;
    } finally {
      loading.again();
    }
  }

  return {
    step: (by) => table.step(by),
    stop() {
      clearTimeout(typing);
      loading.stop();
    },
  };
}

const toMs = (value) => (typeof value === "number" ? value * 1000 : value);

/** The options of a watch that are not the defaults, as [text, value]. */
function options(row) {
  const found = [];
  if (row.operations && row.operations.length < 3) found.push([row.operations.join(", "), ""]);
  if (row.columns) found.push(["columns", row.columns.join(", ")]);
  if (row.exclude) found.push(["without", row.exclude.join(", ")]);
  if (row.when) found.push(["when", row.when]);
  if (row.old === false) found.push(["without old", ""]);
  if (row.tier) found.push([row.tier === "log" ? "log" : "NOTIFY", ""]);
  if (row.per) found.push([`per ${row.per}`, ""]);
  return found;
}

/** The fields of `watch()` of a watch that was there. */
function settings(row) {
  const body = {};
  for (const name of ["table", "channel", "operations", "columns", "exclude", "when", "old", "tier", "per", "bulk_limit"]) {
    if (row[name] !== null && row[name] !== undefined) body[name] = row[name];
  }
  return body;
}

function addForm(switchTo) {
  const tables = h("datalist", { id: "unwatched" });
  const plain = { type: "text", autocomplete: "off", autocapitalize: "none", spellcheck: "false" };
  const table = h("input", { ...plain, list: "unwatched", placeholder: "public.orders", required: true });
  const channel = h("input", { ...plain, placeholder: "orders:{customer_id}" });
  const exclude = h("input", { ...plain, placeholder: "note, card" });
  const button = h("button", { type: "submit", text: "Watch" });
  const hint = h("p", { class: "hint" });
  const form = h("form", { class: "watch-form", novalidate: true },
    h("div", {}, ...labelled("watch-table", "Table", table)), h("div", {}, ...labelled("watch-channel", "Channel", channel, "empty: table:…")),
    h("div", {}, ...labelled("watch-exclude", "Without columns", exclude)), button, tables);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!table.value.trim()) {
      table.focus();
      return;
    }
    const body = { table: table.value.trim(), enabled: true };
    if (channel.value.trim()) body.channel = channel.value.trim();
    const names = exclude.value.split(",").map((name) => name.trim()).filter(Boolean);
    if (names.length) body.exclude = names;
    if (await switchTo(body)) form.reset();
  });
  let seen = "";
  return {
    element: h("section", { class: "watch-section", "aria-labelledby": "watch-title" }, h("h2", { id: "watch-title", text: "Watch a table" }), form, hint),
    update(mayAct, found) {
      for (const field of form.elements) field.disabled = !mayAct;
      const names = found.filter(({ may_watch: may }) => may !== false).map((one) => one.table);
      setText(hint, found.length ? `${plural(found.length, "table")} without a watch${found.length > names.length ? `, ${count(found.length - names.length)} of other owners` : ""}.` : "");
      if (seen === names.join("\n")) return;
      seen = names.join("\n");
      tables.replaceChildren(...names.map((name) => h("option", { value: name })));
    },
  };
}
