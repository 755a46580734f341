// Payloads by a schema: any that has `parse`, or the interface of Standard Schema. This file is only compiled.
import { createClient, type StandardSchema } from "socketio-pg";

interface Order { id: number; total: string }
declare const parsing: { parse(value: unknown): Order };
declare const standard: StandardSchema<Order>;
/** As zod 4 has it: both, and more. */
declare const both: StandardSchema<Order> & { parse(value: unknown, options?: object): Order; safeParse(value: unknown): unknown };

const client = createClient("http://127.0.0.1:3030");
for (const schema of [parsing, standard, both]) {
  client.channel("orders", { schema }).on("message", ({ payload }) => {
    payload.total satisfies string;
    // @ts-expect-error no such field
    payload.nothing;
  });
}
client.table("public.orders", { schema: both }).list[0]?.id satisfies number | undefined;

// Schemas of the client check the channels of its map.
interface Channels { "orders:${number}": Order; chat: { text: string } }
createClient<Channels>("/", { schemas: { "orders:${number}": standard } });
// @ts-expect-error the schema of another type
createClient<Channels>("/", { schemas: { chat: standard } });
// @ts-expect-error not in the map
createClient<Channels>("/", { schemas: { other: standard } });

createClient("/", { integers: "bigint", token: async () => "token" });
// @ts-expect-error no such form of integers
createClient("/", { integers: "int" });
// @ts-expect-error no such option
createClient("/", { tokens: "token" });
