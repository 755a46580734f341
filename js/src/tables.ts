/** Live tables: rows that are kept in step with the database. */

import { SubscriptionError } from "./errors.js";
import { pause } from "./pause.js";
import type { Hub, Part } from "./hub.js";
import type { Filter, Order, Position } from "./types.js";
import { backoff, call, deferred, request, TRANSIENT, type Failure, type Wire } from "./util.js";

export interface TableRequest {
  /** "schema.table" */
  table: string;
  /** Only rows that match: `{status: ["new", "paid"], total: {gt: 100}}`. */
  where?: Filter | null;
  /** Of the first rows. Rows that come later are at the end of `rows`. */
  order?: Order | Order[] | null;
  /** Only that many rows at first. */
  limit?: number;
}

/**
 * A change of a live table: `before` is the row that `rows` had, and `row` the one that it has now.
 *
 * `op` is "INSERT", "UPDATE" or "DELETE". A row that begins to match `where` is an INSERT, one that no longer matches a
 * DELETE. `payload` is the message as in docs/live-tables.md.
 */
export interface Change {
  op: string;
  key: any;
  row?: Record<string, any>;
  before?: Record<string, any>;
  payload: any;
}

export interface TableHandlers {
  /**
   * Called when the first rows have arrived, and when all rows were replaced, with the reason of docs/live-tables.md, or
   * "truncate": there are none.
   */
  onRows?: (rows: Map<any, Record<string, any>>, reason?: string) => void;
  /** Called after each change. */
  onChange?: (change: Change, rows: Map<any, Record<string, any>>) => void;
  /** Called after that with each payload, also if it changes no row. */
  onPayload?: (payload: any) => void;
  /** Called when the rows are current, also after each reconnect. */
  onLive?: () => void;
  /** Called with every failure, including those that are retried. */
  onError?: (error: SubscriptionError) => void;
  /** Called when `active` or `confirmed` may have changed. */
  onState?: () => void;
  /** Returns the row as the application gets it; null: it is left out. */
  check?: (row: any) => any;
}

/** The last id of a live table: a page may have several connections' objects on one socket. */
let tableIds = 0;

/** The live tables of a connection, by the id that the server echoes. */
export class Tables implements Part {
  readonly all = new Map<string, LiveTable>();
  readonly hub;

  constructor(hub: Hub) {
    this.hub = hub;
  }

  subscribe(table: TableRequest, handlers?: TableHandlers): LiveTable { return new LiveTable(this, table, handlers); }

  lose(): void {
    for (const table of this.all.values()) table.lose();
  }

  close(): void {
    for (const table of this.all.values()) table.unsubscribe();
  }

  events: Record<string, (body: Wire) => void> = {
    connect: () => { for (const table of this.all.values()) table.settle(); },
    snapshot: (page) => {
      this.hub.hear();
      this.all.get(page.id)?.receivePage(page);
    },
    event: (message) => this.#of(message)?.receive(message),
    live: (edge) => this.#of(edge)?.receiveLive(edge),
    unsubscribed: (body) => this.#of(body)?.checkUnsubscribed(body),
  };

  #of({ table, id }: Wire) { return table ? this.all.get(id) : undefined; }
}

/**
 * The rows of a table, kept in step with the database: as returned by `subscribe({table})`. The server's row-level
 * security and column privileges apply.
 */
export class LiveTable {
  /**
   * The rows, by primary key: by its value, or with several columns by the JSON of the list of values; see `keyOf`.
   * Before the first rows have arrived it is empty. Only this class may change it.
   */
  rows = new Map<any, Record<string, any>>();
  /** The columns of the primary key. */
  key: string[] = [];
  /** The columns of the rows. */
  columns: string[] = [];
  /** False when `limit` has left out rows. */
  complete = true;
  #socket;
  #options;
  #tables;
  #body: Wire;
  #handlers;
  /** The rows of a new set, until its last page. */
  #next: Map<any, Record<string, any>> | null = null;
  /** Where to continue after a reconnect; null: with all rows. */
  #position: Position | null = null;
  #epoch = "";
  #isActive = false;
  #isCurrent = false;
  #isSettling = false;
  #ready = deferred();
  #caughtUp = deferred();
  #ended = new AbortController();

  constructor(tables: Tables, { table, where, order, limit }: TableRequest, handlers: TableHandlers = {}) {
    const { socket, options } = tables.hub;
    this.#socket = socket;
    this.#options = options;
    this.#tables = tables.all;
    this.#handlers = handlers;
    // Small numbers, not random ones: the server writes an event once for all clients that use the same id.
    this.#body = { table, id: String(++tableIds), batch: true };
    for (const [name, value] of Object.entries({ where, order, limit, numbers: options.numbers })) {
      if (value !== undefined && value !== null) this.#body[name] = value;
    }
    if (handlers.onError) this.#ready.promise.catch(() => {}); // onError reports it
    this.#caughtUp.promise.catch(() => {}); // `ready` reports it
    this.#tables.set(this.#body.id, this);
    this.settle();
  }

  get table(): string { return this.#body.table; }

  /** Resolves when the server has confirmed it. Rejects with the SubscriptionError. */
  get ready(): Promise<void> { return this.#ready.promise; }

  /** Resolves when the rows are current for the first time. Rejects like `ready`. */
  get live(): Promise<void> { return this.#caughtUp.promise; }

  /** True when the rows follow the table at the moment. */
  get active(): boolean { return this.#isCurrent; }

  /** True when the server has confirmed it on this connection. */
  get confirmed(): boolean { return this.#isActive; }

  /** Returns the key of a row, or of another object that has the columns of the primary key. */
  keyOf(row: any): any {
    return this.key.length === 1 ? row[this.key[0]] : JSON.stringify(this.key.map((column) => row[column]));
  }

  /** Ends the subscription: `rows` stay as they are. Idempotent. */
  async unsubscribe(): Promise<void> {
    if (this.#ended.signal.aborted) return;
    this.#ready.promise.catch(() => {}); // not an unhandled rejection: the application unsubscribed itself
    this.#end(new SubscriptionError("unsubscribed", "unsubscribed before the rows were current", this.table));
    const { table, id } = this.#body;
    if (this.#socket.connected) {
      const socket = this.#socket;
      await new Promise((resolve) => request(socket, this.#options.timeout, "unsubscribe", { table, id }, resolve));
    }
  }

  // --- For Tables ---

  async settle(): Promise<void> {
    if (this.#isSettling) return;
    this.#isSettling = true;
    const { signal } = this.#ended;
    for (let attempt = 0; this.#socket.connected && !this.#isActive && !signal.aborted;) {
      const { id } = this.#socket;
      const failure = await this.#subscribe();
      if (!failure || signal.aborted || this.#socket.id !== id) continue;
      const error = new SubscriptionError(failure.code, failure.message, this.table);
      error.retrying = TRANSIENT.has(error.code);
      this.#report(error);
      if (error.retrying) await pause(backoff(this.#options, attempt++), signal);
    }
    this.#isSettling = false;
  }

  lose(): void {
    this.#isActive = this.#isCurrent = false;
    this.#next = null;
    call(this.#handlers.onState);
  }

  receivePage({ first, last, rows, key, columns, complete, epoch, reason }: Wire): void {
    if (!this.#isActive) return;
    if (first) {
      this.#next = new Map();
      [this.key, this.columns, this.#epoch, this.#position] = [key, columns, epoch, null];
      this.complete = complete !== false;
      this.#isCurrent = false;
    }
    if (!this.#next) return;
    for (const row of rows) {
      const checked = this.#check(row);
      if (checked !== null) this.#next.set(this.keyOf(row), checked);
    }
    if (!last) return;
    this.rows = this.#next;
    this.#next = null;
    call(this.#handlers.onRows, this.rows, reason);
  }

  receive({ payload, position }: Wire): void {
    if (!this.#isActive || this.#next) return;
    if (this.#position) {
      if (position <= this.#position.position) return;
      this.#position = { epoch: this.#epoch, position };
    }
    this.#change(payload);
    call(this.#handlers.onPayload, payload);
  }

  #change(payload: Wire) {
    const { op, pk, old_pk: oldKey } = payload;
    const { rows } = this;
    if (op === "TRUNCATE") {
      rows.clear();
      call(this.#handlers.onRows, rows, "truncate");
      return;
    }
    const key = this.keyOf(pk);
    const oldName = oldKey ? this.keyOf(oldKey) : key;
    const before = rows.get(oldName) ?? rows.get(key);
    if (op === "DELETE") {
      if (!rows.delete(key)) return;
      call(this.#handlers.onChange, { op, key, before, payload }, rows);
    } else {
      if (oldName !== key) rows.delete(oldName);
      const row = this.#check(payload.new);
      if (row === null) {
        if (rows.delete(key) || oldName !== key) call(this.#handlers.onChange, { op: "DELETE", key, before, payload }, rows);
        return;
      }
      rows.set(key, row);
      call(this.#handlers.onChange, { op: before ? "UPDATE" : "INSERT", key, row, before, payload }, rows);
    }
  }

  receiveLive({ epoch, position }: Position): void {
    if (!this.#isActive) return;
    this.#epoch = epoch;
    this.#position = { epoch, position };
    if (this.#isCurrent) return;
    this.#isCurrent = true;
    this.#caughtUp.resolve();
    call(this.#handlers.onState);
    call(this.#handlers.onLive);
  }

  checkUnsubscribed({ reason, message }: Wire): void {
    if (!reason || !this.#isActive) return;
    this.lose();
    this.#position = null;
    const text = message ?? `The server has ended the subscription: ${reason}.`;
    const error = new SubscriptionError(reason, text, this.table);
    error.retrying = TRANSIENT.has(reason);
    this.#report(error);
    this.settle();
  }

  #subscribe(): Promise<Failure | null> {
    const body = this.#position ? { ...this.#body, since: this.#position } : this.#body;
    return new Promise((resolve) => {
      request(this.#socket, this.#options.timeout, "subscribe", body, (failure, answer) => {
        // Here, not after the promise: the rows may be handled before the promise resolves.
        if (!failure && !this.#ended.signal.aborted) {
          this.#isActive = true;
          if (answer.recovered !== true) this.#position = null; // all rows follow
          this.#ready.resolve();
          call(this.#handlers.onState);
        }
        resolve(failure);
      });
    });
  }

  #check(row: any) { return this.#handlers.check ? this.#handlers.check(row) : row; }

  #report(error: SubscriptionError) {
    const { onError } = this.#handlers;
    call(onError, error);
    if (error.retrying) return;
    const worked = this.key.length > 0;
    this.#end(error);
    if (worked && !onError) call(() => { throw error; });
  }

  #end(error: SubscriptionError) {
    this.#ended.abort();
    this.lose();
    this.#tables.delete(this.#body.id);
    this.#ready.reject(error);
    this.#caughtUp.reject(error);
  }
}
