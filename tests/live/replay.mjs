// socketio_pg.js on the stock client, driven by test_replay_clients.py, test_client_tokens.py and
// test_javascript_helper.py: reads one JSON command per line, writes one JSON line per event.
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

// Imported by path, a .js file would be parsed as CommonJS by Node before 20.19.
const source = await readFile(new URL("../../socketio_pg/static/socketio_pg.js", import.meta.url));
// Counts the module's own timers, not those of the stock client and its WebSocket.
const timers = new Set();
globalThis.counted = {
  setTimeout(what, delay) {
    const timer = setTimeout(() => { timers.delete(timer); what(); }, delay);
    timers.add(timer);
    return timer;
  },
  clearTimeout(timer) {
    timers.delete(timer);
    clearTimeout(timer);
  },
};
const counting = "const { setTimeout, clearTimeout } = globalThis.counted;\n";
const { Subscriptions } = await import(`data:text/javascript,${encodeURIComponent(counting + source)}`);

const [url, transports, login, numbers, auth] = process.argv.slice(2);
const socket = io(url, {
  transports: transports.split(","), reconnectionDelay: 100, reconnectionDelayMax: 500, auth: auth ? JSON.parse(auth) : undefined,
});
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const tokens = login && login !== "none" && JSON.parse(login); // for each purpose: one token per call, the last one repeated; "" makes it throw
const subscriptions = new Subscriptions(socket, {
  retryDelay: 100,
  retryDelayMax: 500,
  numbers: numbers || undefined,
  onHealth: (health) => say({ kind: "health", health, known: subscriptions.health }),
  onEnded: ({ code }) => say({ kind: "ended", code }),
  onDirect: (message) => say({ kind: "direct", message }),
  ...(tokens && {
    async token() {
      const left = tokens[socket.connected ? "renewing" : "connecting"];
      const token = left.length > 1 ? left.shift() : left[0];
      if (token === "") throw new Error("nobody is signed in");
      return token;
    },
    onTokenError: ({ code, retrying }) => say({ kind: "token error", code, retrying, connected: socket.connected }),
  }),
});
const made = new Map(); // name → Subscription or LiveTable
const loading = new Map(); // name → the functions that settle the promise of its `load`

process.on("uncaughtException", (error) => say({ kind: "uncaught", text: error.message }));
process.on("unhandledRejection", (error) => say({ kind: "rejected", text: error.message }));
socket.on("connect", () => say({ kind: "connect", recovered: socket.recovered }));
socket.on("disconnect", () => say({ kind: "disconnect" }));
socket.on("server_hello", ({ client }) => say({ kind: "hello", client }));
socket.on("error", ({ code, channel }) => say({ kind: "server error", code, channel }));
socket.on("authenticated", ({ client }) => say({ kind: "authenticated", client }));

const commands = {
  async subscribe({ name, channel, options, raises, loads }) {
    const subscription = subscriptions.subscribe(channel, (message) => {
      say({ kind: "message", name, message, position: subscription.position });
      if (raises) throw new Error("the handler's own");
    }, {
      ...options,
      ...(loads && {
        load: ({ signal }) => new Promise((resolve, reject) => {
          say({ kind: "load", name, running: loading.has(name) });
          loading.set(name, { resolve, reject });
          signal.addEventListener("abort", () => say({ kind: "aborted", name }));
        }).finally(() => loading.delete(name)),
        onRows: (rows) => say({ kind: "rows", name, rows }),
      }),
      onLive: () => say({ kind: "live", name, position: subscription.position }),
      onEphemeral: (message) => say({ kind: "ephemeral", name, message }),
      onGap: (gap) => say({ kind: "gap", name, gap, position: subscription.position }),
      onError: ({ code, retrying }) => say({ kind: "error", name, code, retrying }),
    });
    made.set(name, subscription);
    if (!loads) await subscription.ready;
  },
  async loaded({ name, error, ...loaded }) {
    if (error) loading.get(name).reject(new Error(error));
    else loading.get(name).resolve(loaded);
  },
  async table({ name, request }) {
    made.set(name, subscriptions.subscribe(request, {
      onRows: (rows, reason) => say({ kind: "rows", name, rows: [...rows], reason }),
      onChange: ({ payload, ...change }, rows) => say({ kind: "change", name, change, size: rows.size }),
      onLive: () => say({ kind: "live", name }),
      onError: ({ code, retrying }) => say({ kind: "error", name, code, retrying }),
    }));
  },
  async watch({ name, channel }) {
    const change = (change) => ({ key, metas }) => say({ kind: "change", name, change, key, metas });
    const presence = subscriptions.presence(channel, {
      onJoin: change("join"),
      onUpdate: change("update"),
      onLeave: change("leave"),
      onSync: (members, { count }) => say({ kind: "sync", name, keys: [...members.keys()], count }),
      onError: ({ code, retrying }) => say({ kind: "error", name, code, retrying }),
    });
    made.set(name, presence);
    await presence.ready;
  },
  presence: async ({ name, method, values }) => made.get(name)[method](...values),
  async changeState({ name, state, change }) {
    await made.get(name).join(state);
    await made.get(name).update(Object.assign(state, change)); // the same object
  },
  async members({ name }) {
    const { members, count, complete, key } = made.get(name);
    return { members: [...members], count, complete, key };
  },
  ephemeral: async ({ channel, payload, options }) => subscriptions.publishEphemeral(channel, payload, options),
  rows: async ({ name }) => [...made.get(name).rows],
  live: async ({ name }) => made.get(name).live,
  async publish({ number, channel, payload, options }) {
    subscriptions.publish(channel, payload, options).then(
      (answer) => say({ kind: "published", number, answer }),
      ({ code, uncertain }) => say({ kind: "published", number, error: code, uncertain }),
    );
  },
  async subscribeAll({ channels }) {
    await Promise.all(channels.map((channel) => commands.subscribe({ name: channel, channel })));
  },
  maxRate: async ({ name }) => made.get(name).maxRate,
  position: async ({ name }) => made.get(name).position,
  unsubscribe: async ({ name }) => made.get(name).unsubscribe(),
  tokens: async (change) => Object.assign(tokens, change),
  connect: async () => { socket.connect(); },
  disconnect: async () => { socket.disconnect(); },
  timers: async () => timers.size,
  emit: async ({ event, argument }) => socket.timeout(60_000).emitWithAck(event, argument),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...values } = JSON.parse(line);
  try {
    say({ kind: "done", value: (await commands[command](values)) ?? null });
  } catch (error) {
    say({ kind: "done", error: error.code ?? error.message });
  }
}
socket.close();
