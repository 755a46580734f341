// The types of the hooks, from the maps that `socketio-pg types` writes. This file is only compiled.
import type { RowChange } from "socketio-pg";
import { useChannel, useClient, useConnectionState, usePresence, useTable } from "socketio-pg/react";

interface Order { id: number; status: "open" | "paid" }
declare module "socketio-pg/react" {
  interface Register {
    channels: { "orders:${number}": RowChange<Order>; chat: { text: string } };
    tables: { "public.orders": Order };
  }
}

export function Component() {
  const chat = useChannel("chat", { history: 20, onMessage: ({ payload }) => { payload.text satisfies string; } });
  chat.messages[0]?.payload.text satisfies string | undefined;
  chat.publish({ text: "hello" });
  // @ts-expect-error another payload
  chat.publish("hello");
  useChannel("orders:5", { onMessage: ({ payload }) => { payload.txid satisfies string; } });
  useChannel<number>("chat").messages[0]?.payload satisfies number | undefined;
  useChannel(null);

  const { rows } = useTable("public.orders", { where: { status: "open" }, order: "id" });
  rows[0]?.status satisfies "open" | "paid" | undefined;
  // @ts-expect-error no such column
  rows[0]?.nothing;
  useTable<{ own: true }>("public.others").rows[0]?.own satisfies true | undefined;

  usePresence<{ name: string }>("chat", { name: "Ann" }).members[0]?.metas[0]?.state.name satisfies string | undefined;
  useConnectionState().status satisfies string;
  useClient().publish("chat", { text: "hello" });
}
