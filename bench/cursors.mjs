// People who move their cursors on the map demo: stock Socket.IO clients. For cursors.py.
//
//   node cursors.mjs URL PEOPLE RATE
//
// Prints "ready" when all are connected, then once a second a line of JSON: messages sent, events received.

import { io } from "socket.io-client";

const [url, people, rate] = [process.argv[2], ...process.argv.slice(3).map(Number)];
const counts = { sent: 0, received: 0 };

const sockets = await Promise.all(Array.from({ length: people }, async () => {
  const socket = io(url, { transports: ["websocket"], forceNew: true });
  await new Promise((resolve, reject) => socket.once("connect", resolve).once("connect_error", reject));
  socket.on("event", () => { counts.received++; });
  await socket.emitWithAck("subscribe", { channel: "cursors" });
  return socket;
}));
console.log("ready");

const start = performance.now();
setInterval(() => {
  // In turn, so that the moves of all are spread evenly. A late timer catches up.
  for (const due = ((performance.now() - start) / 1000) * rate * people; counts.sent < due; counts.sent++) {
    const number = counts.sent % people;
    const angle = (performance.now() - start) / 1000 + number;
    const payload = {
      x: 0.5 + 0.45 * Math.cos(angle) * Math.cos(number), y: 0.5 + 0.45 * Math.sin(angle), name: `Person ${number + 1}`,
    };
    sockets[number].emit("publish", { channel: "cursors", payload, ephemeral: true });
  }
}, 2);
setInterval(() => console.log(JSON.stringify(counts)), 1000);
