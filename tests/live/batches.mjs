// Batches on sockets that the application has made, driven by test_batches.py: prints "ready", waits for notifications
// with {"n": 1} to {"n": LAST} on the channel, and prints what each scenario has heard of them, as one JSON object. Each
// notification also has a large integer, "big".
import { readFile } from "node:fs/promises";
import { io } from "socket.io-client";

globalThis.io = io;
const source = await readFile(new URL("../../socketio_pg/static/socketio_pg.js", import.meta.url));
const { createClient, Subscriptions } = await import(`data:text/javascript,${encodeURIComponent(source)}`);

const [url, channel, last] = process.argv.slice(2);
const uncaught = [];
process.on("uncaughtException", (error) => uncaught.push(error.message));

/** Returns a socket, and a promise of all notifications. */
function connect() {
  const socket = io(url, { transports: ["websocket"], reconnection: false, forceNew: true });
  const sizes = [];
  const all = new Promise((resolve) => {
    socket.on("disconnect", resolve);
    socket.onAny((event, body) => {
      if (event !== "event" && event !== "events") return;
      const bodies = event === "event" ? [body] : body;
      sizes.push(bodies.length);
      if (bodies.some(({ payload }) => payload.n === Number(last))) resolve();
    });
  });
  return { socket, sizes, all };
}

/** Each returns, when it is subscribed, a function that returns what it has heard. */
const scenarios = {
  async twoUsers(socket) {
    const heard = [0, 0, 0];
    socket.on("event", () => { heard[0]++; });
    const clients = [createClient(socket), new Subscriptions(socket)];
    await clients[0].channel(channel).on("message", () => { heard[1]++; }).subscribe();
    await clients[1].subscribe(channel, () => { heard[2]++; }).ready;
    return () => heard;
  },
  async listenerRemovesItself(socket) {
    const heard = [0, 0];
    const own = () => { if (++heard[0] === 3) socket.off("event", own); };
    socket.on("event", own);
    await createClient(socket).channel(channel).on("message", () => { heard[1]++; }).subscribe();
    return () => heard;
  },
  async once(socket) {
    const heard = [0, 0];
    socket.once("event", function own() { heard[0] += this === socket; });
    await createClient(socket).channel(channel).on("message", () => { heard[1]++; }).subscribe();
    return () => heard;
  },
  async clientIsClosed(socket) {
    let heard = 0;
    const client = createClient(socket);
    await client.channel(`${channel}-other`).subscribe();
    await socket.timeout(30_000).emitWithAck("subscribe", { channel });
    socket.on("event", () => { heard++; });
    client.close();
    return () => heard;
  },
  async ownEventOfThatName(socket) {
    let heard = 0;
    socket.on("events", () => {});
    await createClient(socket).channel(channel).on("message", () => { heard++; }).subscribe();
    return () => heard;
  },
  async closesInTheMiddle(socket) {
    const heard = [0, 0];
    const client = createClient(socket);
    socket.on("event", () => { heard[0]++; });
    await client.channel(channel).on("message", () => { if (++heard[1] === 5) client.close(); }).subscribe();
    return () => heard;
  },
  async unsubscribesInTheMiddle(socket) {
    const heard = [0, 0];
    const client = createClient(socket);
    const [one, two] = [client.channel(channel), client.channel(channel)];
    await one.on("message", () => { if (++heard[0] === 5) one.unsubscribe(); }).subscribe();
    await two.on("message", () => { heard[1]++; }).subscribe();
    return () => heard;
  },
  async largeIntegers(socket) {
    const heard = new Set();
    const client = createClient(socket, { integers: "bigint" });
    await client.channel(channel).on("message", ({ payload: { n, big } }) => { heard.add(String(big - BigInt(n))); }).subscribe();
    return () => [...heard];
  },
  async disconnectsInTheMiddle(socket) {
    let heard = 0;
    await createClient(socket).channel(channel).on("message", () => { if (++heard === 5) socket.disconnect(); }).subscribe();
    return () => heard;
  },
};

const running = Object.entries(scenarios).map(async ([name, scenario]) => {
  const { socket, sizes, all } = connect();
  const result = await scenario(socket);
  return [name, async () => {
    await all;
    await new Promise((resolve) => setTimeout(resolve)); // after the last batch
    if (!sizes.some((size) => size > 1)) throw new Error(`no batches: ${name}`);
    socket.disconnect();
    return [name, result()];
  }];
});
const found = await Promise.all(running);
console.log("ready");
console.log(JSON.stringify({ ...Object.fromEntries(await Promise.all(found.map(([, finish]) => finish()))), uncaught }));
process.exit();
