/** A live table's rows for an application: sorted, checked by its schema, with a state. */

import type { Core } from "./client.js";
import type { Hub } from "./hub.js";
import { check } from "./schema.js";
import { Tables, type LiveTable } from "./tables.js";
import type { ChannelState, ClientError, Order, TableEvents, TableOptions } from "./types.js";

type Report = <Name extends keyof TableEvents>(event: Name, value: TableEvents<any>[Name]) => void;

export function tablesOf(hub: Hub): Tables { return new Tables(hub); }

export function open(core: Core, tables: Tables, name: string, options: TableOptions<any>, report: Report): View {
  return new View(core, tables, name, options, report);
}

export class View {
  #table: LiveTable;
  #order: { column: string; desc: boolean }[];
  #list: any[] | null = null;
  #error: ClientError | null = null;
  #wasCurrent = false;
  #isEnded = false;

  constructor(core: Core, tables: Tables, name: string, { where, order, limit, schema }: TableOptions<any>, report: Report) {
    this.#order = (order === undefined ? [] : Array.isArray(order) ? order : [order]).map((one: Order) => (
      typeof one === "string" ? { column: one, desc: false } : { column: one.column, desc: one.desc ?? false }
    ));
    const checked = (row: any) => {
      const found = schema ? check(schema, row) : { value: row };
      if (found instanceof Promise) throw new TypeError("the schema of a table must not need time");
      if (!found.issues) return found.value;
      report("invalid", { ...found, row });
      return null;
    };
    this.#table = tables.subscribe({ table: name, where, order, limit }, {
      check: schema && checked,
      onRows: (rows, reason) => {
        this.#list = null;
        report("rows", { rows, reason });
      },
      onChange: (change) => {
        this.#list = null;
        report("change", change as any);
        core.saw(change.payload);
      },
      onError: (error) => {
        this.#error = error as ClientError;
        if (!error.retrying) this.#isEnded = true;
        report("error", error as ClientError);
        report("state", this.#state());
      },
      onState: () => report("state", this.#state()),
    });
  }

  get rows(): ReadonlyMap<any, any> { return this.#table.rows; }

  get key(): readonly string[] { return this.#table.key; }

  get complete(): boolean { return this.#table.complete; }

  get live(): Promise<void> { return this.#table.live; }

  get list(): readonly any[] { return this.#list ??= [...this.rows.values()].sort((a, b) => this.#compare(a, b)); }

  keyOf(row: any): any { return this.#table.keyOf(row); }

  unsubscribe(): Promise<void> {
    this.#isEnded = true;
    return this.#table.unsubscribe();
  }

  #compare(a: any, b: any): number {
    for (const { column, desc } of this.#order) {
      const order = compare(a[column], b[column]);
      if (order) return desc ? -order : order;
    }
    for (const column of this.key) {
      const order = compare(a[column], b[column]);
      if (order) return order;
    }
    return 0;
  }

  #state(): ChannelState {
    if (this.#isEnded) return { status: "ended", code: this.#error?.code ?? "unsubscribed", reason: this.#error?.message ?? "" };
    const table = this.#table as LiveTable | undefined;
    if (table?.active) {
      this.#error = null;
      this.#wasCurrent = true;
      return { status: "live", code: "live", reason: "" };
    }
    const status = table?.confirmed ? "subscribed" : this.#wasCurrent ? "reconnecting" : "subscribing";
    return { status, code: this.#error?.code ?? status, reason: this.#error?.message ?? "" };
  }
}

/** As PostgreSQL sorts: null comes last. Texts by their characters, as with the collation "C". */
function compare(a: any, b: any): number {
  if (a === b) return 0;
  if (a === null || a === undefined) return 1;
  if (b === null || b === undefined) return -1;
  return a < b ? -1 : a > b ? 1 : 0;
}
