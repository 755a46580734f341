// The view Now: charts over ten minutes, the processes, and PostgreSQL.

import { get } from "./api.js";
import { Chart } from "./chart.js";
import { fact, h, setText } from "./dom.js";
import { age, ago, bytes, count, milliseconds, plural, seconds, short, time } from "./format.js";
import { Table } from "./table.js";

const ALL = "";
const KEPT = 130; // samples of a series
const inMs = (value) => (value === null || value === undefined ? null : value * 1000);
const per = (format) => (value) => (value === null || value === undefined ? "–" : `${format(value)}/s`);

const CHARTS = [
  { name: "Messages", format: per(short), note: "from the database, and to clients and streams",
    series: [{ name: "out", key: (at) => at.messages_out }, { name: "in", key: (at) => at.messages_in }] },
  { name: "Bytes", format: per(bytes), floor: 1000, note: "of messages from the database, and to clients and streams",
    series: [{ name: "out", key: (at) => at.bytes_out }, { name: "in", key: (at) => at.bytes_in }] },
  { name: "Clients", format: count, floor: 5, series: [{ name: "clients", key: (at) => at.clients }] },
  { name: "Subscriptions", format: count, floor: 5, note: "of clients to channels, patterns and live tables",
    series: [{ name: "all", key: (at) => at.subscriptions }, { name: "live tables", key: (at) => at.live_tables }] },
  { name: "Publish to send", format: milliseconds, floor: 5, note: "from publishing a message of the log until the server has sent it to its clients",
    series: [{ name: "p99", key: (at) => inMs(at.p99) }, { name: "p50", key: (at) => inMs(at.p50) }] },
  { name: "Event-loop lag", format: milliseconds, floor: 5, note: "for how long other work keeps a process from doing the next",
    series: [{ name: "lag", key: (at) => inMs(at.loop_lag) }] },
  { name: "Outbox age", format: milliseconds, floor: 100, note: "how long the oldest message has waited for its position in the log",
    series: [{ name: "age", key: (at) => inMs(at.outbox_age) }] },
  { name: "Replay", format: per(short), floor: 10, note: "messages of the log that are sent again to clients that return",
    series: [{ name: "messages", key: (at) => at.replayed }] },
];

const processName = ({ node, worker }) => (worker === null || worker === undefined ? node : `${node} worker ${worker}`);

/** Shows the view. */
export function showNow(root, inspector) {
  const charts = CHARTS.map((chart) => new Chart(chart));
  const choice = h("select", { id: "process", "aria-label": "Charts of", on: { change: draw } }, h("option", { value: ALL, text: "All processes" }));
  const when = h("p", { class: "hint", "aria-live": "off" });
  const problems = h("ul", { class: "problems" });
  const processes = processTable();
  const postgres = h("dl", { class: "facts" });
  const log = h("dl", { class: "facts" });
  const sessions = sessionTable();
  const sessionCount = h("span", { class: "hint" });
  root.append(
    h("section", { "aria-labelledby": "now-title" },
      h("div", { class: "head" }, h("h2", { id: "now-title", text: "Now" }), when, h("div", { class: "tools" }, choice)),
      problems,
      h("div", { class: "charts" }, ...charts.map((chart) => chart.element))),
    h("section", { "aria-labelledby": "processes-title" }, h("div", { class: "head" }, h("h2", { id: "processes-title", text: "Processes" })), processes.element),
    h("section", { "aria-labelledby": "postgres-title" }, h("div", { class: "head" }, h("h2", { id: "postgres-title", text: "PostgreSQL" })),
      h("div", { class: "columns" }, postgres, log),
      h("details", { class: "part" }, h("summary", {}, "Sessions of this server ", sessionCount), sessions.element)),
  );

  const series = new Map([[ALL, []]]); // process → samples, oldest first
  let newest = 0;

  /** Adds what a figure is now; it replaces the one before if that is not yet 5 s old. */
  function add(name, at, figures) {
    if (!series.has(name)) series.set(name, []);
    const samples = series.get(name);
    const sample = { at, ...figures };
    if (samples.length > 1 && samples.at(-1).at - samples.at(-2).at < 4_500) samples.pop();
    samples.push(sample);
    if (samples.length > KEPT) samples.shift();
  }

  function addHistory(answer) {
    const { interval, count: number, last, names } = answer.series;
    const read = (name, { series: values }) => {
      const samples = [];
      for (let index = 0; index < number; index += 1) {
        const sample = { at: (last - interval * (number - 1 - index)) * 1000 };
        for (const one of names) sample[one] = values?.[one]?.[index] ?? null;
        samples.push(sample);
      }
      series.set(name, samples);
    };
    read(ALL, answer.total);
    for (const process of answer.processes) read(processName(process), process);
  }

  function show(answer) {
    newest = answer.at * 1000;
    const { series: _, ...total } = answer.total;
    add(ALL, newest, total);
    for (const { series: __, ...process } of answer.processes) add(processName(process), newest, process);
    const names = answer.processes.map(processName);
    const known = [...choice.options].slice(1).map((option) => option.value);
    if (names.join("\n") !== known.join("\n")) {
      const chosen = choice.value;
      choice.replaceChildren(h("option", { value: ALL, text: "All processes" }), ...names.map((name) => h("option", { value: name, text: name })));
      choice.value = names.includes(chosen) ? chosen : ALL;
    }
    choice.hidden = names.length < 2;
    setText(when, `${plural(answer.processes.length, "process", "processes")}, ${MINUTES_TEXT}`);
    showProblems(problems, answer.processes);
    processes.update(answer.processes);
    showDatabase(postgres, log, answer);
    sessions.update(answer.database.sessions ?? []);
    setText(sessionCount, answer.database.sessions?.length ? count(answer.database.sessions.length) : "");
    draw();
  }

  function draw() {
    const samples = (series.get(choice.value) ?? []).filter(({ at }) => newest - at <= 600_000);
    for (const chart of charts) chart.draw(samples, newest);
  }

  let isStopped = false;
  let hasHistory = false;
  const onNow = ({ detail }) => {
    if (hasHistory) show(detail);
  };
  inspector.live.addEventListener("now", onNow);
  const unwatch = inspector.live.watchNow();
  let retry;
  async function begin() {
    try {
      const answer = await get("now");
      if (isStopped) return;
      addHistory(answer);
      hasHistory = true;
      show(answer);
      inspector.live.dispatchEvent(new CustomEvent("now", { detail: answer }));
    } catch (error) {
      if (isStopped || error.code === "unauthorized") return;
      inspector.live.dispatchEvent(new CustomEvent("now_error", { detail: error }));
      retry = setTimeout(begin, 2_000);
    }
  }
  begin();

  return {
    stop() {
      isStopped = true;
      clearTimeout(retry);
      inspector.live.removeEventListener("now", onNow);
      unwatch();
      for (const chart of charts) chart.close();
    },
  };
}

const MINUTES_TEXT = "the last 10 minutes";

function showProblems(list, processes) {
  const lines = processes.flatMap((process) => Object.entries(process.problems ?? {}).map(([part, text]) => `${processName(process)}: ${part}: ${text}`));
  if (list.dataset.lines === lines.join("\n")) return;
  list.dataset.lines = lines.join("\n");
  list.replaceChildren(...lines.map((text) => h("li", { text })));
}

function processTable() {
  const table = new Table({
    label: "Processes", key: processName,
    columns: [
      { id: "node", name: "Process", node: (row) => [h("span", { class: "mono", text: row.node }), row.worker !== null ? h("span", { class: "hint", text: ` worker ${row.worker}` }) : null],
        depends: (row) => [row.node, row.worker] },
      { id: "duties", name: "Duties", node: (row) => duties(row).map(([text, title, level]) => h("span", { class: `badge ${level}`, text, title })),
        depends: duties },
      { id: "version", name: "Version", text: (row) => row.version },
      { id: "since", name: "Up", number: true, text: (row) => age(Date.now() / 1000 - row.since), title: (row) => `since ${time(row.since * 1000)}, process ${row.pid}` },
      { id: "clients", name: "Clients", number: true, text: (row) => count(row.clients), title: (row) => Object.entries(row.connections ?? {}).map(([kind, number]) => `${kind} ${count(number)}`).join(", ") },
      { id: "subscriptions", name: "Subscriptions", number: true, text: (row) => count(row.subscriptions), title: (row) => `to channels and patterns ${count(row.subscriptions - row.live_tables)}, to live tables ${count(row.live_tables)}` },
      { id: "messages_out", name: "Out/s", number: true, text: (row) => short(row.messages_out), title: () => "messages to clients per second" },
      { id: "p99", name: "p99", number: true, text: (row) => milliseconds(inMs(row.p99)), title: () => "publish to send" },
      { id: "loop_lag", name: "Lag", number: true, text: (row) => milliseconds(inMs(row.loop_lag)), title: () => "event-loop lag" },
      { id: "buffered", name: "Buffered", number: true, text: (row) => bytes(row.buffered), title: (row) => `waits in send buffers; ${plural(row.slow ?? 0, "slow client")}` },
      { id: "cpu", name: "CPU", number: true, text: (row) => (row.cpu === null || row.cpu === undefined ? "–" : `${short(row.cpu * 100)} %`) },
      { id: "memory", name: "Memory", number: true, text: (row) => bytes(row.memory) },
    ],
  });
  return table;
}

function duties({ leader, listens, draining, problems, slow }) {
  return [
    leader && ["leader", "relays the outbox to the log", "good"],
    listens && ["listens", "has the LISTEN connection for its node", ""],
    draining && ["draining", "moves its clients to other processes before it ends", "warn"],
    Object.keys(problems ?? {}).length > 0 && ["problem", Object.values(problems).join(", "), "bad"],
    slow > 0 && [`${slow} slow`, "clients whose send buffers are not empty", "warn"],
  ].filter(Boolean);
}

function sessionTable() {
  return new Table({
    label: "Sessions of this server in PostgreSQL", key: ({ pid }) => pid,
    columns: [
      { id: "pid", name: "Backend", text: (row) => row.pid },
      { id: "part", name: "Part", text: (row) => row.part },
      { id: "address", name: "Address", text: (row) => row.address ?? "local" },
      { id: "state", name: "State", text: (row) => row.state ?? "–", title: (row) => row.wait ?? "" },
      { id: "in_state", name: "For", number: true, text: (row) => age(row.in_state) },
      { id: "age", name: "Age", number: true, text: (row) => age(row.age) },
      { id: "listens", name: "LISTEN channels", number: true, text: (row) => count(row.channels) },
    ],
  });
}

function showDatabase(postgres, log, { at, database }) {
  const { reachable, log: found, backends, outbox, clock } = database;
  const facts = [];
  if (reachable === false) {
    facts.push(["State", `unreachable since ${time(database.since * 1000)}`], ["Problem", database.problem ?? "–"]);
  } else {
    facts.push(
      ["Database", `${database.name ?? "–"}, PostgreSQL ${database.version ?? "–"}${database.standby ? ", standby" : ""}`],
      ...(database.size ? [["Size", bytes(database.size)]] : []),
      ["Backends", backends ? `${count(backends.ours)} ours of ${count(backends.all)}, at most ${count(backends.most)}` : "–"],
      ["LISTEN", plural(database.listen_channels ?? 0, "channel")],
      ["NOTIFY queue", database.notify_queue === null || database.notify_queue === undefined ? "–" : `${short(database.notify_queue * 100)} % full`],
      ["Clock", clock ? `${milliseconds(Math.abs(clock.offset) * 1000)} ${clock.offset < 0 ? "behind" : "ahead of"} this server's` : "–"],
    );
  }
  const logFacts = [];
  if (found && found.installed === false) logFacts.push(["Log", "not installed: run socketio-pg init"]);
  else if (found) {
    logFacts.push(
      ["Log", `${plural(found.messages ?? 0, "message")}, ${bytes(found.bytes)}`],
      ["Newest position", count(found.position)],
      ["Oldest message", ago(found.oldest_at && at - found.oldest_at)],
      ["Retention", [found.retention ? seconds(found.retention) : "for ever", found.max_messages ? `at most ${plural(found.max_messages, "message")}` : ""].filter(Boolean).join(", ")],
      ["Outbox", outbox?.messages ? `${plural(outbox.messages, "message")}, the oldest ${milliseconds(outbox.age * 1000)}` : "empty"],
      ["Epoch", found.epoch ?? "–"],
    );
  }
  write(postgres, facts);
  write(log, logFacts);
}

function write(list, facts) {
  const terms = facts.map(([term]) => term).join("\n");
  if (list.dataset.terms !== terms) {
    list.dataset.terms = terms;
    list.replaceChildren(...facts.map(([term, text]) => fact(term, text)));
    return;
  }
  facts.forEach(([, text], index) => setText(list.children[index].lastChild, text));
}
