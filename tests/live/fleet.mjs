// Many stock JavaScript clients in one process, driven by test_workers_javascript.py: JSON commands and answers, a line each.
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const [url, transports, options = "{}"] = process.argv.slice(2);
const { clients: count, groups, ...given } = JSON.parse(options);
const names = transports.split(",");
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const problems = [];
let fail;
const failed = new Promise((done) => { fail = done; });
function problem(text) {
  problems.push(text);
  fail();
}

function open(number) {
  const socket = io(url, { transports: names, forceNew: true, reconnectionDelay: 100, ...given });
  const client = { socket, number, all: [], group: [], channel: `group-${number % groups}` };
  client.upgraded = names.length < 2 ? Promise.resolve() : new Promise((done) => socket.io.engine.once("upgrade", done));
  client.connected = new Promise((done) => socket.once("connect", done));
  socket.on("connect_error", (error) => problem(`${number} connect_error: ${error.message}`));
  socket.on("disconnect", (reason) => problem(`${number} disconnected: ${reason}`));
  socket.io.on("reconnect_attempt", () => problem(`${number} reconnects`));
  socket.io.engine.on("upgradeError", (error) => problem(`${number} upgrade: ${error.message}`));
  for (const name of ["gap", "error"]) socket.on(name, (what) => problem(`${number} ${name}: ${JSON.stringify(what)}`));
  socket.on("event", ({ channel, payload }) => (channel === client.channel ? client.group : client.all).push(payload));
  return client;
}

async function call(client, event, argument) {
  const answer = await client.socket.timeout(90_000).emitWithAck(event, argument);
  if (!answer.ok) problem(`${client.number} ${event}: ${JSON.stringify(answer)}`);
}

const clients = Array.from({ length: count }, (_, number) => open(number));
const commands = {
  subscribe: () => Promise.all(clients.map(async (client) => {
    await Promise.all([client.connected, client.upgraded]);
    await call(client, "subscribe", { channel: "all" });
    await call(client, "subscribe", { channel: client.channel });
  })),
  publish: ({ each }) => Promise.all(clients.map(async (client) => {
    for (let n = 0; n < each; n++) await call(client, "publish", { channel: client.channel, payload: [client.number, n] });
  })),
  // Messages arrive on their own: their number tells when all are there.
  async received({ all, group }) {
    while (clients.some((client) => client.all.length < all || client.group.length < group))
      await new Promise((again) => setTimeout(again, 20));
    return clients.map((client) => ({ all: client.all, channel: client.channel, group: client.group }));
  },
  transports: () => clients.map((client) => client.socket.io.engine.transport.name),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...argument } = JSON.parse(line);
  const answer = await Promise.race([commands[command](argument), failed]);
  say({ kind: "answer", answer: answer ?? null, problems });
}
process.exit();
