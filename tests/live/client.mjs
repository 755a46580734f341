// The stock JavaScript client, driven by test_javascript.py and test_nodes.py: reads one JSON command per line, writes one JSON answer per line.
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const [url, transports, options = "{}"] = process.argv.slice(2);
const socket = io(url, {
  transports: transports.split(","), reconnectionDelay: 100, reconnectionDelayMax: 500, ...JSON.parse(options),
});
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

socket.on("connect", () => say({ event: "connect", transport: socket.io.engine.transport.name }));
socket.on("disconnect", (reason) => say({ event: "disconnect", reason }));
socket.onAny((event, argument) => say({ event, argument }));
socket.io.engine.on("upgrade", (transport) => say({ event: "upgrade", transport: transport.name }));

for await (const line of createInterface({ input: process.stdin })) {
  const { emit, argument } = JSON.parse(line);
  const answer = await socket.timeout(60_000).emitWithAck(emit, argument);
  say({ kind: "answer", answer });
}
socket.close();
