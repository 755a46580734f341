// PresenceState of socketio_pg.js without a server: reads histories as JSON, prints what each of their steps returns.
import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";

// Imported by path, a .js file would be parsed as CommonJS by Node before 20.19.
const source = await readFile(new URL("../../socketio_pg/static/socketio_pg.js", import.meta.url));
const { PresenceState } = await import(`data:text/javascript,${encodeURIComponent(source)}`);

const results = JSON.parse(await text(process.stdin)).map((history) => {
  const state = new PresenceState();
  return history.map(([method, ...values]) => {
    const changes = state[method](...values) ?? [];
    const { current, complete, count, members } = state;
    return { changes, current, complete, count, members: [...members] };
  });
});
process.stdout.write(JSON.stringify(results));
