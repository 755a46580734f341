/** A live table's rows for an application, as `client.table()` returns it: sorted, checked by its schema, with a state. */

import type { Core } from "./client.js";
import type { Emitter } from "./emitter.js";
import { perHub } from "./per-hub.js";
import { check } from "./schema.js";
import { Tables, type LiveTable } from "./tables.js";
import type { ChannelState, ClientError, Order, TableEvents, TableOptions } from "./types.js";
import { onAbort } from "./util.js";

const tablesOf = perHub((hub) => new Tables(hub));

// What the options `numbers` and `integers` make of numbers.
const NUMBER = /^-?\d+(?:\.\d+)?(?:e[-+]?\d+)?$/i;
const LONG = /^-?\d{16,}$/;

export class TableView {
  state: ChannelState = { status: "subscribing", code: "subscribing", reason: "" };
  #core;
  #handle;
  #table: LiveTable;
  #order: { column: string; desc: boolean }[];
  #list: any[] | null = null;
  #error: ClientError | null = null;
  #wasCurrent = false;
  #isEnded = false;

  readonly name;

  constructor(core: Core, name: string, options: TableOptions<any> | undefined, handle: Emitter<TableEvents<any>>) {
    const { where, order, limit, schema, signal } = options ?? {};
    this.name = name;
    this.#handle = handle;
    this.#order = (order === undefined ? [] : Array.isArray(order) ? order : [order]).map((one: Order) => (
      typeof one === "string" ? { column: one, desc: false } : { column: one.column, desc: one.desc ?? false }
    ));
    const checked = (row: any) => {
      const found = schema ? check(schema, row) : { value: row };
      if (found instanceof Promise) throw new TypeError("the schema of a table must not need time");
      if (!found.issues) return found.value;
      handle.emit("invalid", { ...found, row });
      return null;
    };
    this.#core = core;
    this.#table = tablesOf(core.hub).subscribe({ table: name, where, order, limit }, {
      check: schema && checked,
      onRows: (rows, reason) => {
        this.#list = null;
        handle.emit("rows", { rows, reason });
      },
      onChange: (change) => {
        this.#list = null;
        handle.emit("change", change as any);
      },
      onPayload: core.saw,
      onError: (error) => {
        this.#error = error as ClientError;
        if (!error.retrying) this.#isEnded = true;
        if (!handle.emit("error", error as ClientError)) core.fail(error as ClientError);
        this.#change();
      },
      onState: () => this.#change(),
    });
    if (core.closed) this.#table.unsubscribe();
    onAbort(signal, () => this.unsubscribe());
  }

  get rows(): ReadonlyMap<any, any> { return this.#table.rows; }

  get key(): readonly string[] { return this.#table.key; }

  get complete(): boolean { return this.#table.complete; }

  get list(): readonly any[] { return this.#list ??= this.#sort([...this.rows.values()]); }

  live(): Promise<void> { return this.#table.live; }

  keyOf(row: any): any { return this.#table.keyOf(row); }

  unsubscribe(): Promise<void> {
    this.#isEnded = true;
    return this.#table.unsubscribe();
  }

  #sort(rows: any[]): any[] {
    const { numbers, integers } = this.#core.options;
    const digits = numbers === "string" ? NUMBER : integers === "string" ? LONG : null;
    const columns = [...this.#order, ...this.key.map((column) => ({ column, desc: false }))].map(({ column, desc }) => ({
      column, desc,
      isNumber: !!digits && rows.every(({ [column]: value }) => typeof value !== "string" || digits.test(value)),
    }));
    return rows.sort((a, b) => {
      for (const { column, desc, isNumber } of columns) {
        const order = compare(a[column], b[column], isNumber);
        if (order) return desc ? -order : order;
      }
      return 0;
    });
  }

  /** Reports the state if it is another one. */
  #change() {
    const table = this.#table as LiveTable | undefined; // while it is being made there is none
    let status: ChannelState["status"] = table?.confirmed ? "subscribed" : this.#wasCurrent ? "reconnecting" : "subscribing";
    const { closed } = this.#core;
    if (this.#isEnded || closed) status = "ended";
    else if (table?.active) {
      this.#error = null;
      this.#wasCurrent = true;
      status = "live";
    }
    const why = this.#isEnded ? this.#error : closed ?? this.#error;
    const code = why?.code ?? (status === "ended" ? "unsubscribed" : status);
    if (status === this.state.status && code === this.state.code) return;
    this.state = { status, code, reason: why?.message ?? "" };
    this.#handle.emit("state", this.state);
  }
}

/**
 * As PostgreSQL sorts: null comes last. Texts by their characters, as with the collation "C".
 * @param isNumber texts are numbers, which the client's options have made texts
 */
function compare(a: any, b: any, isNumber: boolean): number {
  if (a === b) return 0;
  if (a === null || a === undefined) return 1;
  if (b === null || b === undefined) return -1;
  if (isNumber && typeof a === "string" && typeof b === "string") {
    const [x, y] = [Number(a), Number(b)];
    // Rounded to the same value, they have the same number of digits.
    return x !== y ? x - y : (a < b) === (x > 0) ? -1 : 1;
  }
  return a < b ? -1 : a > b ? 1 : 0;
}
