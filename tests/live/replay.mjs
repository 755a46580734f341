// socketio_pg.js on the stock client, driven by test_replay_clients.py and test_client_tokens.py: reads one JSON
// command per line, writes one JSON line per event.
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

const [url, transports, login, numbers] = process.argv.slice(2);
const socket = io(url, { transports: transports.split(","), reconnectionDelay: 100, reconnectionDelayMax: 500 });
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const tokens = login && login !== "none" && JSON.parse(login); // for each purpose: one token per call, the last one repeated; "" makes it throw
const subscriptions = new Subscriptions(socket, {
  retryDelay: 100,
  retryDelayMax: 500,
  numbers,
  onHealth: (health) => say({ kind: "health", health, known: subscriptions.health }),
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
const made = new Map(); // name → Subscription

process.on("uncaughtException", (error) => say({ kind: "uncaught", text: error.message }));
process.on("unhandledRejection", (error) => say({ kind: "rejected", text: error.message }));
socket.on("connect", () => say({ kind: "connect" }));
socket.on("disconnect", () => say({ kind: "disconnect" }));
socket.on("server_hello", ({ client }) => say({ kind: "hello", client }));
socket.on("authenticated", ({ client }) => say({ kind: "authenticated", client }));

const commands = {
  async subscribe({ name, channel, options, raises }) {
    const subscription = subscriptions.subscribe(channel, (message) => {
      say({ kind: "message", name, message, position: subscription.position });
      if (raises) throw new Error("the handler's own");
    }, {
      ...options,
      onGap: (gap) => say({ kind: "gap", name, gap, position: subscription.position }),
      onError: ({ code, retrying }) => say({ kind: "error", name, code, retrying }),
    });
    made.set(name, subscription);
    await subscription.ready;
  },
  async subscribeAll({ channels }) {
    await Promise.all(channels.map((channel) => commands.subscribe({ name: channel, channel })));
  },
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
