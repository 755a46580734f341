// The package `socketio-pg` as the single file, on the stock client, driven by test_javascript_package.py: reads one JSON
// command per line, and writes one JSON line per event.
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import * as stock from "socket.io-client";

globalThis.io = stock.io; // as the script of the pages does
// Imported by path, a .js file would be parsed as CommonJS by Node before 20.19.
const source = await readFile(new URL("../../socketio_pg/static/socketio_pg.js", import.meta.url));
const { createClient, SocketIoPgError } = await import(`data:text/javascript,${encodeURIComponent(source)}`);

const [url, , given = "{}"] = process.argv.slice(2);
const { tokens, ...options } = JSON.parse(given); // for each call of `token` one; the last one is repeated
const big = (_key, value) => (typeof value === "bigint" ? { bigint: String(value) } : value);
const say = (line) => process.stdout.write(JSON.stringify(line, big) + "\n");
process.on("uncaughtException", (error) => say({ kind: "uncaught", text: error.message }));
process.on("unhandledRejection", (error) => say({ kind: "rejected", text: error.message }));

const positive = (payload) => {
  if (typeof payload?.n !== "number" || payload.n < 1) throw new TypeError("n must be positive");
  return { n: payload.n, checked: true };
};
const schemas = {
  parse: { parse: positive },
  standard: { "~standard": { version: 1, vendor: "test", validate(value) {
    try { return { value: positive(value) }; } catch (error) { return { issues: [{ message: error.message, path: ["n"] }] }; }
  } } },
  slow: { "~standard": { version: 1, vendor: "test", async validate(value) {
    await new Promise((resolve) => setTimeout(resolve, value?.n === 1 ? 30 : 0)); // the first one takes longest
    return value?.n > 0 ? { value } : { issues: [{ message: "n must be positive" }] };
  } } },
};

const client = createClient(url, {
  retryDelay: 100, retryDelayMax: 500, timeout: 20_000, ...options,
  socket: { transports: ["websocket"], reconnectionDelay: 100, reconnectionDelayMax: 500 },
  ...(tokens && { token: async () => (tokens.length > 1 ? tokens.shift() : tokens[0]) }),
  schemas: { "checked:${number}": schemas.standard },
});
client.on("state", (state) => say({ kind: "client state", ...state, same: client.state === state }));
client.on("health", (health) => say({ kind: "health", health }));
client.on("error", ({ code, retrying }) => say({ kind: "client error", code, retrying }));

const made = new Map(); // name → channel or table
const controllers = new Map();
const signal = (name) => {
  if (!name) return undefined;
  if (!controllers.has(name)) controllers.set(name, new AbortController());
  return controllers.get(name).signal;
};

const commands = {
  async channel({ name, channel, pattern, options: { schema, aborts, load, ...how } = {} }) {
    if (schema) how.schema = schemas[schema];
    if (aborts) how.signal = signal(aborts);
    if (load) how.load = async () => load;
    made.set(name, pattern ? client.pattern(pattern, how) : client.channel(channel, how));
  },
  async on({ name, events, aborts }) {
    let target = made.get(name);
    for (const event of events) {
      target = target.on(event, (value) => say({ kind: event, name, value, position: made.get(name).position }), { signal: signal(aborts) });
    }
  },
  async off({ name, event }) { // a second listener that hears nothing, then none of its own: the first one stays
    const listener = () => say({ kind: "wrong", name });
    made.get(name).on(event, listener).off(event, listener);
  },
  async raise({ name }) { made.get(name).on("message", () => { throw new Error("the listener's own"); }); },
  async loop({ name, count, aborts, buffer, slow }) {
    const taken = [];
    (async () => {
      for await (const { payload } of made.get(name).messages({ signal: signal(aborts), buffer })) {
        if (slow && !taken.length) await new Promise((resolve) => made.set("slow", resolve));
        taken.push(payload);
        say({ kind: "taken", name, payload });
        if (taken.length === count) break;
      }
    })().then(() => say({ kind: "loop", name, taken }), ({ code }) => say({ kind: "loop", name, taken, code }));
  },
  async go() { made.get("slow")(); },
  async table({ name, table, options: how }) {
    const found = client.table(table, how);
    made.set(name, found);
    found.on("rows", ({ rows, reason }) => say({ kind: "rows", name, size: rows.size, reason }));
    found.on("change", ({ op, key }) => say({ kind: "change", name, op, key, list: found.list, same: found.list === found.list }));
    found.on("state", (state) => say({ kind: "state", name, value: state }));
    found.on("error", ({ code, retrying }) => say({ kind: "error", name, value: { code, retrying } }));
  },
  async list({ name }) {
    const { list, key, complete, state } = made.get(name);
    return { list, key, complete, state };
  },
  async presenceOn({ name, events }) {
    const { presence } = made.get(name);
    for (const event of events) {
      presence.on(event, (value) => say({ kind: event, name, keys: value instanceof Map ? [...value.keys()] : undefined, value }));
    }
  },
  async presence({ name, method, values = [] }) { return made.get(name).presence[method](...values); },
  async people({ name }) {
    const { members, count, complete, key } = made.get(name).presence;
    return { members: [...members.keys()], count, complete, key };
  },
  async call({ name, method, values = [] }) { return made.get(name)[method](...values); },
  async send({ name, payload, options: how }) { made.get(name).send(payload, how); },
  async state({ name }) { return name ? made.get(name).state : client.state; },
  async seen({ txid, options: { aborts, ...how } = {} }) {
    client.seen(txid, { ...how, signal: signal(aborts) })
      .then(() => say({ kind: "seen", txid }), ({ code }) => say({ kind: "seen", txid, code }));
  },
  async publish({ channel, payload, options: how }) { return client.publish(channel, payload, how); },
  async abort({ name }) { controllers.get(name).abort(); },
  async disconnect() { client.socket.disconnect(); },
  async connect() { client.connect(); },
  async kinds({ name }) {
    const error = await made.get(name).subscribe().catch((found) => found);
    return [error instanceof SocketIoPgError, error.name, error.code, error.channel, error.retrying];
  },
  async close() { client.close(); },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...values } = JSON.parse(line);
  try {
    say({ kind: "done", value: (await commands[command](values)) ?? null });
  } catch (error) {
    say({ kind: "done", error: error.code ?? error.message });
  }
}
client.close();
