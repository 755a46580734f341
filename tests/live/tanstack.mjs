// The example examples/tanstack in Node: takes commands from standard input, prints what happens.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [server, example] = process.argv.slice(2);
const from = (name) => import(pathToFileURL(`${example}/dist/${name}.js`).href);
const { orders } = await from("orders");
const { tableCollection } = await from("collection");

const print = (kind, more = {}) => console.log(JSON.stringify({ kind, ...more }));

const stock = globalThis.fetch;
globalThis.fetch = async (...request) => {
  const answer = await stock(...request);
  print("answer", { status: answer.status });
  return answer;
};

const { client, collection } = orders(server);
/** Prints what happens, with a row as it is shown. */
const printRow = (kind, id, more = {}) => {
  const found = collection.get(id);
  const row = found && Object.fromEntries(Object.entries(found).filter(([name]) => !name.startsWith("$")));
  print(kind, { row: row ?? null, synced: found?.$synced ?? null, ...more });
};
/** Each state of the rows that a page would show. @type {string[]} */
let shown = [];
collection.subscribeChanges((changes) => {
  for (const { type, value } of changes) shown.push(`${type} ${value.status} ${value.changes}`);
});
const other = tableCollection({
  client, table: "public.tanstack_orders", getKey: (row) => row.id, timeout: 300, change: async () => "1",
});

const commands = {
  insert: (id) => collection.insert({ id, customer: "Ann", status: "new", changes: 0 }),
  update: (id, status) => collection.update(id, (order) => { order.status = status; }),
  delete: (id) => collection.delete(id),
  // Two changes in one transaction of the database.
  both: (first, second) => collection.update([first, second], (all) => { for (const order of all) order.status = "shipped"; }),
};

await collection.preload();
print("ready", { rows: collection.size });
for await (const line of createInterface({ input: process.stdin })) {
  const { command, row, given = [] } = JSON.parse(line);
  if (command === "show") {
    printRow("row", row, { shown });
    shown = [];
  } else if (command === "unseen") {
    const start = performance.now();
    await other.onUpdate({ transaction: { mutations: [] } });
    print("given up", { ms: performance.now() - start });
  } else if (command === "close") {
    await collection.cleanup();
    client.close();
    break;
  } else {
    const transaction = commands[command](...given);
    printRow("at once", given[0]);
    transaction.isPersisted.promise.then(
      () => printRow("persisted", given[0]),
      (error) => printRow("refused", given[0], { error: error.message }),
    );
  }
}
