/** The orders of server.py as a collection. */

import { createCollection, type PendingMutation } from "@tanstack/db";
import { createClient } from "socketio-pg";
import { tableCollection } from "./collection.js";

/** As `socketio-pg types` writes it. */
export interface Order {
  id: string;
  customer: string;
  status: "new" | "paid" | "shipped";
  /** How often the server has changed the order. */
  changes: number;
}

/** The server's refusal of a change. */
export class Refused extends Error {}

export function orders(server: string) {
  const client = createClient(server);

  async function change(mutations: PendingMutation<Order>[]): Promise<string> {
    const answer = await fetch(`${server}/orders`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(mutations.map(({ type, key, changes }) => ({ type, id: key, changes }))),
    });
    const body = await answer.json();
    if (!answer.ok) throw new Refused(body.error);
    return body.txid;
  }

  const collection = createCollection(
    tableCollection<Order, string>({ client, table: "public.tanstack_orders", getKey: (order) => order.id, change }),
  );
  return { client, collection };
}
