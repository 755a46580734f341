// The map of channels: payloads by the channel's name. This file is only compiled.
import { createClient, type Channel, type Message, type PayloadOf, type RowChange } from "socketio-pg";

interface Order { id: number; customer_id: number; status: "open" | "paid" }
interface Chat { text: string }
interface Channels {
  "orders:${number}": RowChange<Order, { id: number }>;
  "table:public.orders": RowChange<Order, { id: number }>;
  chat: Chat;
  "room:${string}:state": { open: boolean };
  "room:lobby:state": { open: true; since: string };
  "sensors:*": number;
}
const client = createClient<Channels>("http://127.0.0.1:3030");

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function check<_ extends true>(): void {}

check<Equal<PayloadOf<Channels, "chat">, Chat>>();
check<Equal<PayloadOf<Channels, "orders:5">, RowChange<Order, { id: number }>>>();
check<Equal<PayloadOf<Channels, `orders:${number}`>, RowChange<Order, { id: number }>>>();
check<Equal<PayloadOf<Channels, "room:a:state">, { open: boolean }>>();
// A channel's own key comes before patterns.
check<Equal<PayloadOf<Channels, "room:lobby:state">, { open: true; since: string }>>();
check<Equal<PayloadOf<Channels, "sensors:kitchen">, number>>();
// Outside the map a payload is unknown, as is everything without a map.
check<Equal<PayloadOf<Channels, "orders:x">, unknown>>();
check<Equal<PayloadOf<Channels, "other">, unknown>>();
check<Equal<PayloadOf<unknown, "chat">, unknown>>();

client.channel("chat").on("message", ({ payload, channel }) => {
  payload.text satisfies string;
  channel satisfies string;
  // @ts-expect-error no such field
  payload.nothing;
});
const id: number = 5;
client.channel(`orders:${id}`).on("message", ({ payload }) => {
  // @ts-expect-error the message may have no row
  payload.new.id;
  if (payload.truncated) return;
  switch (payload.op) {
    case "INSERT": payload.new.status satisfies "open" | "paid"; break;
    case "UPDATE": payload.old.id satisfies number; payload.changed satisfies (keyof Order)[]; break;
    case "DELETE": payload.old.id satisfies number; payload.new satisfies null; break;
    case "TRUNCATE": payload.pk satisfies null; break;
    default: payload satisfies never;
  }
});
client.channel("unknown").on("message", ({ payload }) => {
  // @ts-expect-error unknown
  payload.text;
});

// A type of its own comes before the map.
client.channel<{ own: true }>("chat") satisfies Channel<{ own: true }>;
client.pattern("orders:*").on("message", ({ payload }) => { payload.txid satisfies string; });
client.pattern("other:*").on("message", ({ payload }) => { payload satisfies unknown; });

client.publish("chat", { text: "hello" });
client.channel("chat").publish({ text: "hello" });
// @ts-expect-error another payload
client.publish("chat", { words: "hello" });
// @ts-expect-error another payload
client.channel("chat").publish("hello");
client.publish("not in the map", { anything: 1 });

async function loop(signal: AbortSignal) {
  for await (const message of client.channel("chat")) message satisfies Message<Chat>;
  for await (const { payload } of client.channel("chat").messages({ signal })) payload satisfies Chat;
  (await client.channel("chat").history(10)) satisfies Message<Chat>[];
  await client.seen("4711", { signal, timeout: 1_000 });
}
loop(new AbortController().signal);

// Listeners chain, and are called with what the event has.
client.channel("chat")
  .on("gap", ({ tier, reason }) => { tier satisfies "notify" | "log" | "buffer"; reason satisfies string; })
  .on("state", ({ status }) => { status satisfies "idle" | "subscribing" | "subscribed" | "live" | "reconnecting" | "ended"; })
  .on("invalid", ({ issues }) => { issues[0]?.message satisfies string | undefined; })
  .off("message", () => {});
// @ts-expect-error no such event
client.channel("chat").on("messages", () => {});

const table = client.table<Order>("public.orders", { where: { status: "open" }, order: { column: "id", desc: true } });
table.list[0]?.status satisfies "open" | "paid" | undefined;
table.on("change", (change) => {
  if (change.op === "DELETE") change.before.id satisfies number;
  else change.row.id satisfies number;
  change.payload.txid satisfies string;
});
