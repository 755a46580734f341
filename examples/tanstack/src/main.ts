/** Shows the orders, and pays the first one: `npm start`, with the server's address in SERVER. */

import { orders } from "./orders.js";

declare const process: { env: Record<string, string | undefined> };
declare const crypto: { randomUUID(): string };

const { client, collection } = orders(process.env.SERVER ?? "http://127.0.0.1:8000");
collection.subscribeChanges((changes) => {
  for (const { type, value } of changes) console.log(type, value);
});
await collection.preload();

const id = crypto.randomUUID();
await collection.insert({ id, customer: "Ann", status: "new", changes: 0 }).isPersisted.promise;
const paying = collection.update(id, (order) => { order.status = "paid"; });
console.log("at once:", collection.get(id)?.status);
await paying.isPersisted.promise;
console.log("from the database:", collection.get(id));

await collection.cleanup();
client.close();
