// Node's socket.io with a LISTEN bridge on `pg`: same wire protocol as socketio_pg, default settings.
// With two WORKERS: Node's cluster with @socket.io/sticky, which long-polling needs; each worker listens for itself, so
// that no adapter is needed for the fan-out.
// Usage: DATABASE_URL=… node node_server.mjs PORT [WORKERS]
import cluster from "node:cluster";
import { createServer } from "node:http";
import { setupMaster, setupWorker } from "@socket.io/sticky";
import pg from "pg";
import { Server } from "socket.io";

const [port, workers] = process.argv.slice(2).map(Number);
const place = { port, host: "127.0.0.1", backlog: 4096 };
if (cluster.isPrimary && workers > 1) {
  const entrance = createServer();
  setupMaster(entrance, { loadBalancingMethod: "least-connection" });
  for (let n = 0; n < workers; n++) cluster.fork();
  let ready = 0;
  cluster.on("message", (worker, message) => {
    if (message === "ready" && ++ready === workers) entrance.listen(place);
  });
} else {
  await serve();
}

async function serve() {
  const http = createServer((request, response) => response.end("ready"));
  const io = new Server(http);

  // libpq's `postgresql://user@/database?host=/socket/folder`: `pg` accepts it too once it has a host name.
  const url = new URL(process.env.DATABASE_URL.replace("@/", "@localhost/"));
  const config = {
    host: url.searchParams.get("host") ?? url.hostname,
    port: Number(url.searchParams.get("port") ?? (url.port || 5432)),
    user: url.username,
    password: url.password || undefined,
    database: url.pathname.slice(1),
  };
  const pool = new pg.Pool({ ...config, max: 10 });
  const listener = new pg.Client(config);
  await listener.connect();
  listener.on("notification", ({ channel, payload }) => {
    io.to(channel).emit("event", { channel, payload: JSON.parse(payload) });
  });

  const listening = new Map();
  function listen(channel) {
    if (!listening.has(channel)) {
      listening.set(channel, listener.query(`LISTEN ${listener.escapeIdentifier(channel)}`));
    }
    return listening.get(channel);
  }

  io.on("connection", (socket) => {
    socket.on("subscribe", async ({ channel }, acknowledge) => {
      await listen(channel);
      await socket.join(channel);
      acknowledge?.({ ok: true });
    });
    socket.on("publish", async ({ channel, payload }, acknowledge) => {
      await pool.query("SELECT pg_notify($1, $2)", [channel, JSON.stringify(payload)]);
      acknowledge?.({ ok: true });
    });
  });

  if (cluster.isWorker) {
    setupWorker(io);
    process.send("ready");
  } else {
    http.listen(place);
  }
}
