// The stock JavaScript client with connection state recovery, driven by tests/support/recovery.py: reads one JSON command per
// line, writes one JSON line for each event. A command is {emit, argument}, {cut}, {desert}, {disconnect},
// {connect}, {auth} or {url}.
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const [url, transports, options = "{}"] = process.argv.slice(2);
const { auth, ...others } = JSON.parse(options);
const socket = io(url, {
  transports: transports.split(","), reconnectionDelay: 20, reconnectionDelayMax: 200, randomizationFactor: 0,
  auth: { recovery: true, ...auth }, ...others,
});
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

socket.on("connect", () => say({ event: "connect", recovered: socket.recovered, id: socket.id, pid: socket._pid }));
socket.on("connect_error", (error) => say({ event: "connect_error", message: error.message }));
socket.on("disconnect", (reason) => say({ event: "disconnect", reason }));
socket.onAny((event, argument, ...more) => say({ event, argument, more, connected: socket.connected }));

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  const transport = socket.io.engine?.transport;
  if (command.auth) socket.auth = { recovery: true, ...command.auth };
  if (command.url) socket.io.uri = command.url;
  if (command.emit) {
    socket.timeout(60_000).emitWithAck(command.emit, command.argument).then(
      (answer) => say({ kind: "answer", answer }), (error) => say({ kind: "answer", error: error.message }));
  }
  if (command.cut) transport?.ws?.terminate(); // the connection breaks, without a closing handshake
  if (command.desert) transport?.onClose("deserted"); // the client gives up, and the server does not notice
  if (command.disconnect) socket.disconnect();
  if (command.connect) socket.connect();
}
