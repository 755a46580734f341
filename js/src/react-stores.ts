/**
 * What React components show, kept outside of React: one store for each channel, table or presence with its options, which
 * all components share that ask for the same. No React here.
 *
 * A store subscribes when the first component is mounted, and ends its subscription some time after the last one is
 * gone: React unmounts and mounts again in StrictMode, and a change of the page often unmounts one component and mounts
 * another one with the same channel. Changes are gathered for each frame of the screen.
 */

import { SubscriptionError } from "./errors.js";
import type { ClientError } from "./errors.js";
import type {
  Channel, ChannelOptions, ChannelState, Client, ClientState, Health, Message, Presence, PresenceMember, Table,
  TableOptions,
} from "./types.js";

/** ms for which a subscription stays after its last component was unmounted. */
const LINGER = 500;

/** ms after which changes are shown when the browser draws no frames: the page is hidden, or this is no browser. */
const FRAMELESS = 250;

// --- Frames -----------------------------------------------------------------------------------------------------------

const dirty = new Set<Store<any>>();
let frame = 0;
let timer: ReturnType<typeof setTimeout> | undefined;

/** Calls `flush` of all stores together, so that React renders them together. */
function flushAll(): void {
  clearTimeout(timer);
  timer = undefined;
  if (frame) cancelAnimationFrame(frame);
  frame = 0;
  const stores = [...dirty];
  dirty.clear();
  for (const store of stores) store.flush();
}

// --- Stores -----------------------------------------------------------------------------------------------------------

/** Something that `useSyncExternalStore` can show. `Snapshot` is replaced, never modified. */
export abstract class Store<Snapshot> {
  /** What is shown before the first change, and on a server. */
  readonly initial: Snapshot;
  /** Two stores with the same place, such as a channel, may ask for it with different options. */
  readonly place: string;
  protected readonly client: Client<any>;
  protected snapshot: Snapshot;
  #listeners = new Set<() => void>();
  #users = 0;
  #isOpen = false;
  #ending: ReturnType<typeof setTimeout> | undefined;

  constructor(client: Client<any>, place: string, initial: Snapshot) {
    this.client = client;
    this.place = place;
    this.initial = this.snapshot = initial;
  }

  protected get isOpen(): boolean { return this.#isOpen; }

  /** Keeps the store open until the returned function is called. */
  retain(): () => void {
    this.#users++;
    clearTimeout(this.#ending);
    if (!this.#isOpen) {
      // A component that asks for the same channel with another filter: the server keeps one filter for each client.
      for (const other of stores.get(this.client)?.values() ?? []) other.deref()?.yieldTo(this);
      this.#isOpen = true;
      this.snapshot = this.initial;
      // Made with `autoConnect: false`, so that a server that renders the page does not connect.
      const { code, reason } = this.client.state;
      if (code === "disconnected" && !reason) this.client.connect();
      this.open();
    }
    return () => {
      if (!--this.#users) this.#ending = setTimeout(() => this.#end(), LINGER);
    };
  }

  /** Ends at once if nobody uses it any more, and `other` is for the same place. */
  yieldTo(other: Store<any>): void {
    if (this.#isOpen && !this.#users && other.place === this.place) this.#end();
  }

  #end(): void {
    clearTimeout(this.#ending);
    this.#isOpen = false;
    dirty.delete(this);
    this.close();
    this.snapshot = this.initial; // what a component shows that is mounted later
  }

  // --- For useSyncExternalStore ---

  subscribe = (listener: () => void): (() => void) => {
    const release = this.retain();
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
      release();
    };
  };

  getSnapshot = (): Snapshot => this.snapshot;

  getServerSnapshot = (): Snapshot => this.initial;

  // --- For subclasses ---

  protected abstract open(): void;

  protected abstract close(): void;

  /** Returns what is to be shown now: `snapshot` if nothing has changed. */
  protected abstract next(): Snapshot;

  /** Something has changed: `next()` will be called before the next frame. */
  protected change(): void {
    if (!this.#isOpen) return;
    dirty.add(this);
    if (timer !== undefined) return;
    const hasFrames = typeof requestAnimationFrame === "function";
    timer = setTimeout(flushAll, hasFrames ? FRAMELESS : 0);
    if (hasFrames) frame = requestAnimationFrame(flushAll);
  }

  flush(): void {
    const next = this.next();
    if (next === this.snapshot) return;
    this.snapshot = next;
    for (const listener of [...this.#listeners]) listener();
  }
}

/** The same store for the same client and options, as long as somebody uses it. */
const stores = new WeakMap<Client<any>, Map<string, WeakRef<Store<any>>>>();

/** Returns the store with this key, which `make` makes unless there is one. */
export function shared<Kind extends Store<any>>(client: Client<any>, key: string, make: () => Kind): Kind {
  let all = stores.get(client);
  if (!all) stores.set(client, all = new Map());
  const found = all.get(key)?.deref();
  if (found) return found as Kind;
  // A component may render without ever being mounted, so nothing but the components keeps a store.
  for (const [name, store] of all) if (!store.deref()) all.delete(name);
  const made = make();
  all.set(key, new WeakRef(made));
  return made;
}

/** Returns a text that is the same for values with the same content, whatever the order of the fields. */
export function keyOf(value: unknown): string {
  return JSON.stringify(value, (_, one) => {
    if (typeof one === "bigint") return `${one}n`;
    if (!one || typeof one !== "object" || Array.isArray(one)) return one;
    return Object.fromEntries(Object.entries(one).sort(([a], [b]) => (a < b ? -1 : 1)));
  }) ?? "";
}

const IDLE: ChannelState = { status: "idle", code: "idle", reason: "" };

// --- Channels -----------------------------------------------------------------------------------------------------------

export interface ChannelView<Payload> {
  /** The newest messages, the oldest one first. */
  readonly messages: readonly Message<Payload>[];
  /** How many messages there were, including those that `messages` no longer has. */
  readonly total: number;
  readonly state: ChannelState;
  /** The last failure, until the subscription works again. */
  readonly error: ClientError | null;
}

export const NO_CHANNEL: ChannelView<any> = { messages: [], total: 0, state: IDLE, error: null };

export class ChannelStore<Payload> extends Store<ChannelView<Payload>> {
  readonly #make: () => Channel<Payload>;
  #channel: Channel<Payload> | null = null;
  readonly #limit: number;
  #pending: Message<Payload>[] = [];
  #total = 0;
  #error: ClientError | null = null;

  constructor(client: Client<any>, name: string, options: ChannelOptions<any>, limit: number) {
    super(client, `channel ${name}`, NO_CHANNEL);
    // A new one each time: one that has ended, for example because it was forbidden, would not start again.
    this.#make = () => (
      (name.includes("*") ? client.pattern(name, options) : client.channel(name, options)) as Channel<Payload>
    );
    this.#limit = limit;
  }

  /** The channel, while a component is mounted. */
  get channel(): Channel<Payload> | null { return this.#channel; }

  protected override open(): void {
    this.#pending = [];
    this.#total = 0;
    this.#error = null;
    this.#channel = this.#make();
    this.#channel.on("state", this.#onState).on("error", this.#onError).on("message", this.#onMessage);
    this.change();
  }

  protected override close(): void {
    const channel = this.#channel!;
    this.#channel = null;
    channel.off("state", this.#onState).off("error", this.#onError).off("message", this.#onMessage);
    void channel.unsubscribe();
  }

  #onState = (state: ChannelState): void => {
    if (state.status === "subscribed" || state.status === "live") this.#error = null;
    this.change();
  };

  #onError = (error: ClientError): void => {
    this.#error = error;
    this.change();
  };

  #onMessage = (message: Message<Payload>): void => {
    if (!this.#limit) return;
    this.#total++;
    // A hidden page draws nothing for a long time: no more than what is shown is kept.
    if (this.#pending.push(message) > 2 * this.#limit + 100) this.#pending.splice(0, this.#pending.length - this.#limit);
    this.change();
  };

  protected override next(): ChannelView<Payload> {
    const { snapshot } = this;
    if (!this.#channel) return snapshot;
    const { state } = this.#channel;
    if (!this.#pending.length && state === snapshot.state && this.#error === snapshot.error) return snapshot;
    let { messages } = snapshot;
    if (this.#pending.length) {
      messages = messages.concat(this.#pending);
      if (messages.length > this.#limit) messages = messages.slice(-this.#limit);
      this.#pending = [];
    }
    return { messages, total: this.#total, state, error: this.#error };
  }
}

// --- Tables -------------------------------------------------------------------------------------------------------------

export interface TableView<Row> {
  /** The rows, sorted by `order` and the primary key. */
  readonly rows: readonly Row[];
  /** False when `limit` has left out rows. */
  readonly complete: boolean;
  /** The columns of the primary key; none before the first rows have come. */
  readonly key: readonly string[];
  readonly state: ChannelState;
  /** The last failure, until the subscription works again. */
  readonly error: ClientError | null;
}

export const NO_TABLE: TableView<any> = { rows: [], complete: true, key: [], state: IDLE, error: null };

export class TableStore<Row> extends Store<TableView<Row>> {
  readonly #name: string;
  readonly #make: () => Table<Row>;
  /** The columns of the primary key, as the components expect them. */
  readonly #columns: readonly string[] | undefined;
  #table: Table<Row> | null = null;
  #error: ClientError | null = null;

  constructor(client: Client<any>, name: string, options: TableOptions<Row>, columns?: readonly string[]) {
    super(client, `table ${name}`, NO_TABLE);
    this.#name = name;
    this.#make = () => client.table<Row>(name, options);
    this.#columns = columns;
  }

  /** The table, while a component is mounted. */
  get table(): Table<Row> | null { return this.#table; }

  protected override open(): void {
    this.#error = null;
    this.#table = this.#make();
    this.#table.on("state", this.#onState).on("error", this.#onError).on("rows", this.#onRows).on("change", this.#onRows);
    this.change();
  }

  protected override close(): void {
    void this.#table?.unsubscribe();
    this.#table = null;
  }

  #onRows = (): void => this.change();

  #onState = (state: ChannelState): void => {
    if (state.status === "live") this.#error = this.#wrongKey();
    this.change();
  };

  #onError = (error: ClientError): void => {
    this.#error = error;
    this.change();
  };

  #wrongKey(): ClientError | null {
    const [expected, key] = [this.#columns, this.#table?.key];
    if (!expected || !key || (expected.length === key.length && key.every((column) => expected.includes(column)))) return null;
    const message = `the primary key of ${this.#name} is ${key.join(", ")}, not ${expected.join(", ")}`;
    return new SubscriptionError("wrong_key", message, this.#name);
  }

  protected override next(): TableView<Row> {
    const { snapshot } = this;
    if (!this.#table) return snapshot;
    const { list: rows, complete, key, state } = this.#table;
    const isSame = rows === snapshot.rows && complete === snapshot.complete && key === snapshot.key
      && state === snapshot.state && this.#error === snapshot.error;
    return isSame ? snapshot : { rows, complete, key, state, error: this.#error };
  }
}

// --- Presence -----------------------------------------------------------------------------------------------------------

export interface PresenceView<State> {
  /** Those who are present, in the order in which they have come. Empty when there are too many: see `complete`. */
  readonly members: readonly PresenceMember<State>[];
  readonly count: number;
  /** False before the members are known, and when there are too many of them: then only `count` is known. */
  readonly complete: boolean;
  /** The key of this client's own member; null if it has not joined. */
  readonly key: string | null;
  /** The last failure, until the members are known again. */
  readonly error: ClientError | null;
}

export const NO_PRESENCE: PresenceView<any> = { members: [], count: 0, complete: false, key: null, error: null };

export class PresenceStore<State> extends Store<PresenceView<State>> {
  readonly #make: () => Presence<State>;
  readonly #key: string | undefined;
  #presence: Presence<State> | null = null;
  #error: ClientError | null = null;
  #hasChanged = false;
  /** What components want to join with: the last one counts. */
  #wishes: { state: State }[] = [];
  /** The wish that this client has joined with, as text; null: it has not. */
  #joined: string | null = null;
  #leaving: ReturnType<typeof setTimeout> | undefined;

  constructor(client: Client<any>, name: string, key: string | undefined) {
    super(client, `presence ${name}`, NO_PRESENCE);
    this.#make = () => client.channel(name).presence as Presence<State>;
    this.#key = key;
  }

  /** Joins, or changes the state, until the returned function is called. */
  join(state: State): () => void {
    const wish = { state };
    this.#wishes.push(wish);
    this.#settle();
    return () => {
      this.#wishes = this.#wishes.filter((one) => one !== wish);
      this.#settle();
    };
  }

  protected override open(): void {
    this.#error = null;
    this.#hasChanged = true;
    this.#presence = this.#make();
    this.#presence.on("sync", this.#onSync).on("error", this.#onError);
    this.#presence.watch().catch(() => {}); // `error` reports it
    this.#settle();
  }

  protected override close(): void {
    clearTimeout(this.#leaving);
    this.#joined = null;
    this.#presence?.close();
    this.#presence = null;
  }

  #settle(): void {
    clearTimeout(this.#leaving);
    if (!this.#presence) return;
    const wish = this.#wishes.at(-1);
    if (!wish) {
      if (this.#joined === null) return;
      this.#leaving = setTimeout(() => {
        this.#joined = null;
        this.#presence?.leave().then(this.#onSync, () => {});
      }, LINGER);
    } else if (this.#joined !== keyOf(wish)) {
      this.#joined = keyOf(wish);
      const how = this.#key === undefined ? {} : { key: this.#key };
      this.#presence.join(wish.state, how).then(this.#onSync, () => {}); // `error` reports it
    }
  }

  #onSync = (): void => {
    this.#error = null;
    this.#hasChanged = true;
    this.change();
  };

  #onError = (error: ClientError): void => {
    this.#error = error;
    this.#hasChanged = true;
    this.change();
  };

  protected override next(): PresenceView<State> {
    if (!this.#presence || !this.#hasChanged) return this.snapshot;
    this.#hasChanged = false;
    const { members, count, complete, key } = this.#presence;
    return { members: [...members.values()], count, complete, key, error: this.#error };
  }
}

// --- The connection -----------------------------------------------------------------------------------------------------

export interface ConnectionView extends ClientState {
  /** Whether the server reaches its database; null before its first report. */
  readonly health: Health | null;
}

export const NO_CONNECTION: ConnectionView = { status: "connecting", code: "connecting", reason: "", health: null };

export class ConnectionStore extends Store<ConnectionView> {
  constructor(client: Client<any>) {
    super(client, "", NO_CONNECTION);
  }

  /** Before it is open, too: a component that is mounted later does not begin with "connecting". */
  override getSnapshot = (): ConnectionView => {
    if (!this.isOpen) this.snapshot = this.next();
    return this.snapshot;
  };

  protected override open(): void {
    this.client.on("state", this.#onChange).on("health", this.#onChange);
    this.snapshot = this.next();
  }

  protected override close(): void {
    this.client.off("state", this.#onChange).off("health", this.#onChange);
  }

  #onChange = (): void => this.change();

  protected override next(): ConnectionView {
    const { state: { status, code, reason }, health } = this.client;
    const { snapshot } = this;
    const isSame = status === snapshot.status && code === snapshot.code && reason === snapshot.reason
      && health === snapshot.health;
    return isSame ? snapshot : { status, code, reason, health };
  }
}
