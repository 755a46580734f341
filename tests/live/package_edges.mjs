// Uses of the package at the edges of its states, driven by test_javascript_package.py: runs each scenario on a client of
// its own, and prints what it has found as one JSON object, with all errors that nobody has caught.
import { getEventListeners } from "node:events";
import { readFile } from "node:fs/promises";
import * as stock from "socket.io-client";

globalThis.io = stock.io;
const source = await readFile(new URL("../../socketio_pg/static/socketio_pg.js", import.meta.url));
const { createClient } = await import(`data:text/javascript,${encodeURIComponent(source)}`);

const [url, , prefix] = process.argv.slice(2);
const uncaught = [];
process.on("uncaughtException", (error) => uncaught.push(error.code ?? error.message));
process.on("unhandledRejection", (error) => uncaught.push(error.code ?? error.message));

const open = (options = {}) => createClient(url, { retryDelay: 20, ...options, socket: { transports: ["websocket"], ...options.socket } });
const code = (promise) => promise.then(() => "done", (error) => error.code ?? error.message);
const turn = () => new Promise((resolve) => setTimeout(resolve, 20)); // unhandled rejections are reported before it
const state = (channel, status) => new Promise((resolve) => {
  if (channel.state.status === status) resolve(channel.state);
  else channel.on("state", (found) => { if (found.status === status) resolve(found); });
});

const scenarios = {
  async closedWhilePartsLoad() {
    const client = open({ token: () => "none", integers: "bigint" });
    const channel = client.channel(prefix, { schema: { parse: (value) => value } }).on("message", () => {});
    channel.presence.on("join", () => {});
    channel.presence.join({});
    channel.presence.close();
    const table = client.table("public.none");
    client.close();
    await turn();
    return [channel.state.code, table.state.code, client.state.code];
  },
  async closed() {
    const client = open();
    const table = client.table("public.edges");
    await table.live();
    client.close();
    return [table.state.status, table.state.code, await code(client.channel(prefix).subscribe())];
  },
  async publishAfterClose() {
    const client = open();
    const early = client.publish(prefix, 1);
    client.close();
    return Promise.all([early, client.publish(prefix, 2)].map((one) => one.catch(({ name, code: found, uncertain }) => [name, found, uncertain])));
  },
  async endedBeforeTheAnswer() {
    const client = open();
    const channel = client.channel(prefix);
    channel.subscribe();
    channel.live();
    await turn();
    channel.unsubscribe();
    await turn();
    client.close();
    return channel.state.status;
  },
  async refusedWithAListener() {
    const client = open();
    const codes = [];
    const channel = client.channel("x".repeat(300)).on("error", (error) => codes.push(error.code));
    channel.subscribe();
    await state(channel, "ended");
    await turn();
    client.close();
    return codes;
  },
  async listenerRemovesItself() {
    const client = open();
    const once = new AbortController();
    const channel = client.channel("x".repeat(300)).on("error", () => once.abort(), { signal: once.signal }).on("message", () => {});
    await state(channel, "ended");
    await turn();
    client.close();
    return channel.state.code;
  },
  async abortedBefore() {
    const client = open();
    const channel = client.channel(prefix, { signal: AbortSignal.abort() });
    const found = [await code(channel.subscribe()), channel.state.code];
    client.close();
    return found;
  },
  async unsubscribedWhilePreparing() {
    const client = open();
    const channel = client.channel(prefix, { schema: { parse: (value) => value } }).on("message", () => {});
    const subscribing = code(channel.subscribe());
    channel.unsubscribe();
    const found = [await subscribing, channel.state.status];
    client.close();
    return found;
  },
  async retried() {
    const client = open();
    let attempt = 0;
    const load = () => { if (!attempt++) throw new Error("not yet"); return new Promise(() => {}); };
    const channel = client.channel(prefix, { load }).on("rows", () => {}).on("error", () => {});
    const found = await state(channel, "reconnecting");
    client.close();
    return [found.code, found.reason];
  },
  async iteratorIsAbandoned() {
    const client = open();
    const channel = client.channel(prefix);
    const loop = channel.messages();
    const next = loop.next();
    await state(channel, "live");
    const found = [await loop.return(), await next];
    await turn();
    client.close();
    return [...found.map(({ done }) => done), channel.state.status];
  },
  async messageWhileTheLoopLoads() {
    const client = open();
    const channel = client.channel(`${prefix}:loop`);
    await channel.live();
    const loop = channel.messages();
    const next = loop.next();
    for (const hear of client.socket.listeners("event")) hear({ channel: `${prefix}:loop`, payload: 5 }); // no later than this
    const found = (await next).value.payload;
    const other = channel.messages();
    const ended = other.next();
    channel.unsubscribe();
    const all = [found, (await ended).done, (await loop.next()).done];
    client.close();
    return all;
  },
  async signalOfALongLife() {
    const client = open();
    const { signal } = new AbortController();
    const channel = client.channel(prefix);
    for (let count = 0; count < 5; count++) {
      const listener = () => {};
      channel.on("message", listener, { signal }).off("message", listener);
    }
    await code(client.seen("1", { timeout: 1, signal }));
    client.close();
    return getEventListeners(signal, "abort").length;
  },
  async seenAmongMany() {
    const client = open();
    const channel = client.channel(`${prefix}:many`, { history: 1_000 }).on("message", () => {});
    for (let count = 0; count < 3; count++) client.channel(`${prefix}:many`, { history: 1_000 }).on("message", () => {});
    await channel.live();
    const found = await code(client.seen("77", { timeout: 50 }));
    client.close();
    return found;
  },
  async listenersOfTheSocket() {
    const client = open();
    let batches = 0, heard = 0, received = 0;
    client.socket.onAny((event) => { if (event === "events") batches++; });
    client.socket.on("event", () => { heard++; }).on("event", () => { throw new Error("own"); });
    await client.channel(`${prefix}:many`, { history: 1_000 }).on("message", () => { received++; }).live();
    client.close();
    await turn();
    return [batches > 0, received, heard, uncaught.splice(0).filter((message) => message === "own").length];
  },
  async undefinedOptions() {
    const client = open({ timeout: undefined, retryDelay: undefined, retryDelayMax: undefined });
    const found = await code(client.channel(prefix).subscribe());
    client.close();
    return found;
  },
  async notConnected() {
    const client = open({ socket: { autoConnect: false } });
    const { status, code: why } = client.state;
    client.connect();
    await state(client, "connected");
    client.close();
    return [status, why];
  },
  async ordered() {
    const lists = [];
    for (const how of [{}, { numbers: "string" }, { integers: "string" }]) {
      const client = open(how);
      const table = client.table("public.edges", { order: "id" });
      await table.live();
      lists.push(table.list.map(({ name }) => name).join(" "));
      client.close();
    }
    return lists;
  },
};

const found = {};
for (const [name, scenario] of Object.entries(scenarios)) {
  const limit = new Promise((resolve) => setTimeout(resolve, 90_000, "does not end").unref());
  found[name] = await Promise.race([scenario().catch((error) => `failed: ${error.stack}`), limit]);
  await turn();
  if (uncaught.length) found[name] = { found: found[name], uncaught: uncaught.splice(0) };
}
console.log(JSON.stringify(found));
process.exit();
