/** The messages of watched tables as types, which `socketio-pg types` writes for each table. No code. */

/** What a watch sends. */
export type Operation = "INSERT" | "UPDATE" | "DELETE" | "TRUNCATE";

/**
 * What is known about a watch: the names of its table, the operations of its messages, and whether they have the old
 * row. Without `op`, all operations; without `old`, old rows.
 */
export interface ChangeSettings {
  schema?: string;
  table?: string;
  op?: Operation;
  old?: boolean;
}

type Setting<Settings, Name extends string, Otherwise> = Settings extends { [one in Name]: infer Value }
  ? Value
  : Otherwise;

/** Fields of all messages of a watched table (docs/watch.md). */
interface ChangeBase<Settings> {
  schema: Setting<Settings, "schema", string>;
  /** The table's name at that time. */
  table: Setting<Settings, "table", string>;
  /** The time at which the statement ended, ISO 8601. */
  at: string;
  /** The transaction's number (`pg_current_xact_id()`). Pass it to `client.seen()`. */
  txid: string;
}

/** The columns that may be in `changed`: those of the row, and of the key. */
type ColumnOf<Row, Key> = Extract<keyof Row | keyof Key, string>;

/** A row was added, or has come from another channel (`moved`). */
export interface InsertedRow<Row, Key = Partial<Row> | null, Settings = ChangeSettings> extends ChangeBase<Settings> {
  op: "INSERT";
  /** Null for a table without a primary key. */
  pk: Key;
  new: Row;
  old: null;
  changed: [];
  moved?: true;
  truncated?: undefined;
}

/** A row was changed. */
export interface UpdatedRow<Row, Key = Partial<Row> | null, Settings = ChangeSettings> extends ChangeBase<Settings> {
  op: "UPDATE";
  pk: Key;
  new: Row;
  /** Of a watch with `old => false`, only the former key if it has changed. */
  old: Setting<Settings, "old", true> extends false ? Key | null : Row;
  /** The columns that differ. */
  changed: ColumnOf<Row, Key>[];
  moved?: undefined;
  truncated?: undefined;
}

/** A row was removed, or has gone to another channel (`moved`). */
export interface DeletedRow<Row, Key = Partial<Row> | null, Settings = ChangeSettings> extends ChangeBase<Settings> {
  op: "DELETE";
  pk: Key;
  new: null;
  old: Setting<Settings, "old", true> extends false ? null : Row;
  changed: [];
  moved?: true;
  truncated?: undefined;
}

/** All rows are gone. */
export interface TruncatedTable<Settings = ChangeSettings> extends ChangeBase<Settings> {
  op: "TRUNCATE";
  pk: null;
  new: null;
  old: null;
  changed: [];
  moved?: undefined;
  truncated?: undefined;
}

type RowOperation<Settings> = Exclude<Setting<Settings, "op", Operation>, "TRUNCATE">;

/** A message without the row, which is too large, or has no JSON: fetch it by `pk`. */
export interface UnsentRow<Key, Settings = ChangeSettings> extends ChangeBase<Settings> {
  op: RowOperation<Settings>;
  truncated: true;
  reason: "too_large" | "no_json";
  /** Null if even the key is too large. */
  pk: Key | null;
  new?: undefined;
  old?: undefined;
  changed?: undefined;
  moved?: true;
}

/** One message for the many rows of a statement: fetch all rows again. */
export interface UnsentRows<Settings = ChangeSettings> extends ChangeBase<Settings> {
  op: RowOperation<Settings>;
  truncated: true;
  reason: "many_rows";
  /** The number of rows that the message stands for. */
  count: number;
  pk?: undefined;
  new?: undefined;
  old?: undefined;
  changed?: undefined;
  moved?: undefined;
}

type WithOperation<Settings, Op, Change> = Op extends Setting<Settings, "op", Operation> ? Change : never;

/**
 * The payload of a watched table's message: `client.channel<RowChange<Order>>("table:public.orders")`. Test `truncated`
 * first, then `op`: each selects its fields.
 */
export type RowChange<Row, Key = Partial<Row> | null, Settings extends ChangeSettings = {}> =
  | WithOperation<Settings, "INSERT", InsertedRow<Row, Key, Settings>>
  | WithOperation<Settings, "UPDATE", UpdatedRow<Row, Key, Settings>>
  | WithOperation<Settings, "DELETE", DeletedRow<Row, Key, Settings>>
  | WithOperation<Settings, "TRUNCATE", TruncatedTable<Settings>>
  | UnsentRow<Key, Settings>
  | UnsentRows<Settings>;

/**
 * The payload of a change of a live table, as in docs/live-tables.md: `new` has the row, complete, unless it was removed
 * (`DELETE`). `old_pk` is the former key if it has changed. `entered`: the row matches since this change; `left`: it
 * matches no longer, or is hidden from this client.
 */
export interface LiveChange<Row> extends ChangeBase<{}> {
  op: Exclude<Operation, "TRUNCATE">;
  pk: Partial<Row>;
  new: Row | null;
  old: Partial<Row> | null;
  changed: ColumnOf<Row, null>[];
  old_pk?: Partial<Row>;
  entered?: true;
  left?: true;
}
