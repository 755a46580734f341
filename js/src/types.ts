/** The public types: what messages, events and options look like. No code. */

import type { ManagerOptions, SocketOptions } from "socket.io-client";
import type { LiveChange } from "./changes.js";
import type { ClientError, SocketIoPgError } from "./errors.js";

// --- Places in the log --------------------------------------------------------------------------------------------

/** A place in the log. Only positions of the same epoch can be compared. */
export interface Position {
  epoch: string;
  position: number;
}

/**
 * Where to start in the log: a position, also as "epoch:position", a time (ISO 8601 with time zone, or a Date), or the
 * token of a snapshot, which is what `SELECT socketio_pg.snapshot()` returns.
 */
export type Start = Position | string | Date;

// --- Messages -----------------------------------------------------------------------------------------------------

/** The client that published a message, as the server knows it: `sub` of its token and further claims. */
export interface Sender {
  sub?: string;
  [claim: string]: unknown;
}

/** A message, as in docs/protocol.md. Only messages of the log have `position` and `epoch`; pass both as `since`. */
export interface Message<Payload = unknown> {
  /** The channel to which it was published, also when it came through a pattern. */
  channel: string;
  /** Any JSON value. */
  payload: Payload;
  /** The pattern through which it came, if no other subscription of this socket matches. */
  pattern?: string;
  /** The subscriptions through which it came, if there are several. */
  matches?: string[];
  epoch?: string;
  /** Its place in the log. */
  position?: number;
  /** ISO 8601, by the database's clock. */
  published_at?: string;
  /** Whether it was replayed because of `since` or `history`, or after a reconnect. */
  replayed?: boolean;
  /** Whether it is the channel's retained message, which comes first. */
  retained?: boolean;
  /** Absent for anonymous clients, and for messages that no client published. */
  from?: Sender;
  /** The trace that was given when it was published (W3C Trace Context). */
  traceparent?: string;
}

/** An ephemeral message, which is stored nowhere: of each sender and key the newest one. */
export interface EphemeralMessage<Payload = unknown> {
  channel: string;
  payload: Payload;
  ephemeral: true;
  key?: string;
  /** `client`: the sender's Socket.IO id. */
  from: Sender & { client: string };
}

/** A message to this user, without a subscription. */
export interface DirectMessage<Payload = unknown> {
  payload: Payload;
}

/**
 * Messages may have been missed: fetch state that must not be stale again.
 *
 * `tier` says which messages. "notify": messages sent with NOTIFY; all messages of the log still arrive, so an
 * application that publishes only through the log can ignore it. "log": messages of the log are lost for this
 * subscription. When both happen, two gaps are reported. "buffer": this program's own loop (`for await`) was so slow
 * that `dropped` messages did not fit into its buffer.
 *
 * `reason` is one of docs/protocol.md, or "client_disconnected": this client's own connection was lost. That is a gap
 * of the tier "notify" at every reconnect, and one of the tier "log" only when the log was installed in the meantime.
 * With "too_many_while_loading", more than 1,000 messages of NOTIFY came while `load` ran. With "buffer_full", the tier
 * is "buffer".
 *
 * `since` and `until` (ISO 8601) bound the time in which messages may be missing: by the server's clock with
 * "database_connection_lost"; by this client's clock, from the last packet of the server, with "client_disconnected".
 * `epoch` and `position` are set when the subscription continues from another position.
 */
export interface Gap {
  channel?: string;
  /** In place of `channel`, for the subscription to a pattern. */
  pattern?: string;
  tier: "notify" | "log" | "buffer";
  reason: string;
  since?: string;
  until?: string;
  epoch?: string;
  position?: number;
  dropped?: number;
}

/**
 * Whether the server reaches its database. While it is "unreachable", nothing arrives and nothing can be published: the
 * connection to the server stays, and messages of the log arrive later. `since`: ISO 8601, by the server's clock.
 */
export interface Health {
  database: "reachable" | "unreachable";
  since: string;
}

/** A message whose payload the schema does not accept. The subscription goes on. */
export interface InvalidMessage {
  /** As it came. */
  message: Message;
  /** What a Standard Schema reports; one issue with the error's text for an object with `parse`. */
  issues: readonly SchemaIssue[];
  /** What `parse` or `validate` has thrown, if it has. */
  cause?: unknown;
}

// --- Schemas --------------------------------------------------------------------------------------------------------

/** An issue of a Standard Schema (https://standardschema.dev). */
export interface SchemaIssue {
  readonly message: string;
  readonly path?: ReadonlyArray<PropertyKey | { readonly key: PropertyKey }> | undefined;
}

/** A schema of zod, valibot, arktype or another library with the interface of Standard Schema. */
export interface StandardSchema<Output = unknown> {
  readonly "~standard": {
    readonly version: 1;
    readonly vendor: string;
    readonly validate: (value: unknown) =>
      | { readonly value: Output; readonly issues?: undefined }
      | { readonly issues: ReadonlyArray<SchemaIssue> }
      | Promise<
        { readonly value: Output; readonly issues?: undefined } | { readonly issues: ReadonlyArray<SchemaIssue> }
      >;
    readonly types?: { readonly input: unknown; readonly output: Output } | undefined;
  };
}

/** What checks payloads: a Standard Schema, or an object whose `parse` returns the value or throws. */
export type Schema<Output = unknown> = StandardSchema<Output> | { parse(value: unknown): Output };

// --- The map of channels --------------------------------------------------------------------------------------------

/** A map's key as a type of names: `"orders:${number}"` and `"orders:*"` stand for many channels. */
export type NamesOf<Key> = Key extends `${infer Before}\${number}${infer After}`
  ? `${Before}${number}${NamesOf<After>}`
  : Key extends `${infer Before}\${string}${infer After}`
    ? `${Before}${string}${NamesOf<After>}`
    : Key extends `${infer Before}*${infer After}`
      ? `${Before}${string}${NamesOf<After>}`
      : Key;

/** The payload of the channel `Name`: that of its own key in the map, else that of the keys whose names include it. */
export type PayloadOf<Channels, Name extends string> = Name extends keyof Channels
  ? Channels[Name]
  : OrUnknown<{ [Key in keyof Channels]: Name extends NamesOf<Key> ? Channels[Key] : never }[keyof Channels]>;

/** The payload of a pattern: a union over all keys of the map that it can match. */
export type PayloadOfPattern<Channels, Pattern extends string> = OrUnknown<
  { [Key in keyof Channels]: NamesOf<Key> extends NamesOf<Pattern> ? Channels[Key] : never }[keyof Channels]
>;

type OrUnknown<Found> = [Found] extends [never] ? unknown : Found;

/** What a call like `channel<Given>("name")` has: its own type argument or schema, else what the map says. */
export type Given<Payload, Otherwise> = [Payload] extends [never] ? Otherwise : Payload;

// --- Options --------------------------------------------------------------------------------------------------------

/** Returns the current token, or nothing for an anonymous client. */
export type TokenSource = () => string | null | undefined | Promise<string | null | undefined>;

export interface ClientOptions<Channels = unknown> {
  /**
   * Called for each connection, and before the token expires. A text is a token that is never renewed. If the
   * application sets `socket.auth` itself, that is used for connecting instead.
   */
  token?: TokenSource | string;
  /** Checks payloads, by channel, pattern or key of the map. `schema` of a channel comes first. */
  schemas?: { readonly [Key in keyof Channels]?: Schema<Channels[Key]> };
  /**
   * What integers beyond ±(2^53 − 1) become, which JavaScript's numbers round: "bigint" or "string". By default
   * "number": they are rounded. Smaller integers are always numbers.
   */
  integers?: "number" | "bigint" | "string";
  /** "string": all numbers in payloads are strings, with all their digits, also decimals. */
  numbers?: "string";
  /** Options of socket.io-client, for `createClient(url)`. */
  socket?: Partial<ManagerOptions & SocketOptions>;
  /** ms to wait for each answer of the server. Default: 15,000. */
  timeout?: number;
  /** ms before the first retry; doubles with each failure. Default: 1,000. */
  retryDelay?: number;
  /** The longest delay before a retry, in ms. Default: 15,000. */
  retryDelayMax?: number;
  /** ms until `publish` is given up, also while the socket is not connected. Default: 60,000. */
  publishTimeout?: number;
}

/** Rows of the database, and the snapshot token of the transaction that read them. */
export interface Loaded<Rows = unknown> {
  rows: Rows;
  token: string;
}

/** Without `since`, `history` and `load`, a subscription gets new messages only. */
export interface ChannelOptions<Payload = unknown, Rows = unknown> {
  /** The messages of the log after this place are replayed first. */
  since?: Start | null;
  /** Replays this many of the log's newest messages first. Ignored when `since` is given. */
  history?: number;
  /** Only messages that match it, as in docs/protocol.md: `{"new.id": 5}`. All users of a channel have the same one. */
  filter?: Filter | null;
  /** Checks each payload: what it returns is the message's `payload`. */
  schema?: Schema<Payload>;
  /**
   * Reads the rows that the messages change. It is called at once, unless `since` is given, and again whenever messages
   * of the log were missed, so that there is no gap of the tier "log". A failure is an event `error` and is retried.
   * The rows are the event `rows`. `signal` is aborted when the subscription ends.
   */
  load?: (how: { signal: AbortSignal }) => Loaded<Rows> | Promise<Loaded<Rows>>;
  /** Ends the subscription when it is aborted. */
  signal?: AbortSignal;
  /** Messages that a loop (`for await`) has not taken yet, at most: older ones are dropped. Default: 1,000. */
  buffer?: number;
}

/** A filter in the server's language: paths of the payload and what they must be. */
export type Filter = Record<string, unknown>;

export interface HistoryOptions {
  /** How many of the newest messages, up to 1,000. Default: 100. */
  limit?: number;
  /** The messages after this place, in place of the newest ones. */
  since?: Start;
  signal?: AbortSignal;
}

export interface PublishOptions {
  /** true: through the log; false: with NOTIFY. By default through the log, if there is one. */
  durable?: boolean;
  /** 1 to 64 bytes: the same id on a channel is published once within five minutes. By default a random one. */
  id?: string;
  /** false: resolve after the commit, without the position. */
  wait?: boolean;
  /** false: this client does not get the message itself. */
  echo?: boolean;
  /** The current trace (W3C Trace Context), for those who get the message. */
  traceparent?: string;
  /** ms until it is given up, also while not connected. Default: `publishTimeout`. */
  timeout?: number;
}

/**
 * What the server answered. Messages of the log have `epoch` and `position`, which are null when the relay has not
 * numbered the message in time. `duplicate`: this `id` was published before, so this call has published nothing.
 */
export interface Published {
  channel: string;
  epoch?: string | null;
  position?: number | null;
  duplicate?: boolean;
}

export interface ListenOptions {
  /** Removes the listener when it is aborted. */
  signal?: AbortSignal;
}

// --- States -----------------------------------------------------------------------------------------------------------

/**
 * The connection to the server. `code` says why: "disconnected" (not yet connected), "connecting", "connected", the reason of
 * socket.io-client with "_" for spaces ("transport_close", "ping_timeout", "io_client_disconnect", …), a code of the
 * server that has refused the connection or ended it ("unauthorized", "ended_by_server", …), "unreachable", "no_token",
 * or "closed" after `close()`. `reason` is for people.
 *
 * "reconnecting" goes on by itself; "disconnected" lasts until `connect()`; "ended" is for ever.
 */
export interface ClientState {
  readonly status: "connecting" | "connected" | "reconnecting" | "disconnected" | "ended";
  readonly code: string;
  readonly reason: string;
}

/**
 * The subscription of one channel object. "idle": nobody listens. "reconnecting": the connection is lost, or the
 * request is retried. "live": the server has confirmed it, and all messages up to now were delivered; "subscribed":
 * confirmed, and older messages are still coming. "ended": the server has refused or ended it with `code`, or the
 * client is closed ("closed").
 */
export interface ChannelState {
  readonly status: "idle" | "subscribing" | "subscribed" | "live" | "reconnecting" | "ended";
  readonly code: string;
  readonly reason: string;
}

// --- Presence ---------------------------------------------------------------------------------------------------------

/**
 * A person who is present: the connections (`metas`) with one key, which is the `sub` of the token. `client` is the
 * connection's Socket.IO id, `state` what that client says about itself. `anonymous`: the client has no token, and has
 * chosen the key itself.
 */
export interface PresenceMember<State = any> {
  key: string;
  anonymous?: boolean;
  metas: { ref: string; client: string; state: State; joined_at: string }[];
}

/**
 * A change of presence: `before` is the former member. "update": the state of a connection has changed, or another
 * connection of the same member has come or gone.
 */
export interface PresenceChange<State = any> {
  kind: "join" | "update" | "leave";
  member: PresenceMember<State>;
  before?: PresenceMember<State>;
}

// --- Live tables ------------------------------------------------------------------------------------------------------

export type Order = string | { column: string; desc?: boolean };

export interface TableOptions<Row = Record<string, any>> {
  /** Only rows that match: `{status: ["new", "paid"], total: {gt: 100}}`. */
  where?: Filter | null;
  /** The order of `list`, and of the first rows with `limit`. The primary key follows. */
  order?: Order | Order[];
  /** Only that many rows at first. */
  limit?: number;
  /** Checks each row. */
  schema?: Schema<Row>;
  signal?: AbortSignal;
}

/**
 * A change of a live table: `before` is the row that `rows` had, and `row` the one that it has now. A row that begins to
 * match `where` is an INSERT, one that no longer matches a DELETE. `payload` is the message as in docs/live-tables.md.
 */
export type TableChange<Row = Record<string, any>> =
  | { op: "INSERT"; key: any; row: Row; before?: undefined; payload: LiveChange<Row> }
  | { op: "UPDATE"; key: any; row: Row; before: Row; payload: LiveChange<Row> }
  | { op: "DELETE"; key: any; row?: undefined; before: Row; payload: LiveChange<Row> };

// --- Events -----------------------------------------------------------------------------------------------------------

export interface ClientEvents {
  state: ClientState;
  health: Health;
  /** Failures of the connection and its token, and each failure of a channel or table that nobody listens to there. */
  error: ClientError;
  direct: DirectMessage;
}

export interface ChannelEvents<Payload = unknown, Rows = unknown> {
  message: Message<Payload>;
  gap: Gap;
  /** Each failure, including those that are retried (`retrying`). */
  error: ClientError;
  state: ChannelState;
  /** The rows of `load`, before the messages that are not in them. They replace earlier rows. */
  rows: Rows;
  ephemeral: EphemeralMessage;
  invalid: InvalidMessage;
  /** A member has come, changed or gone. Listening watches the channel's presence. */
  presence: PresenceChange;
}

export interface TableEvents<Row = Record<string, any>> {
  /** All rows are new: at first, and when they were replaced, with the reason of docs/live-tables.md, or "truncate". */
  rows: { rows: ReadonlyMap<any, Row>; reason?: string };
  change: TableChange<Row>;
  error: ClientError;
  state: ChannelState;
  invalid: { row: unknown; issues: readonly SchemaIssue[]; cause?: unknown };
}

export interface PresenceEvents<State = any> {
  join: PresenceMember<State>;
  update: { member: PresenceMember<State>; before: PresenceMember<State> };
  leave: PresenceMember<State>;
  /** After these, and when the members are known for the first time or again after a reconnect. */
  sync: ReadonlyMap<string, PresenceMember<State>>;
  error: ClientError;
}

/** Adds and removes listeners. What a listener throws is rethrown in a microtask, and affects no other listener. */
export interface Listening<Events> {
  on<Name extends keyof Events>(name: Name, listener: (value: Events[Name]) => void, options?: ListenOptions): this;
  off<Name extends keyof Events>(name: Name, listener: (value: Events[Name]) => void): this;
}

// --- What createClient returns ------------------------------------------------------------------------------------------

/** A channel or a pattern, as one part of the program uses it: others have their own object of the same name. */
export interface Channel<Payload = unknown, Rows = unknown>
  extends Listening<ChannelEvents<Payload, Rows>>, AsyncIterable<Message<Payload>> {
  /** The channel, or the pattern. */
  readonly name: string;
  readonly state: ChannelState;
  /**
   * The position in the log up to which all messages were passed to the listeners, including the one that they are
   * handling: store it, and pass it as `since` next time. Null if the server has no log or has not answered yet, and
   * after starting from a snapshot until the subscription is live.
   */
  readonly position: Position | null;
  /** Messages per second, of each key, that arrive at most: others are skipped. Null without such a rule. */
  readonly maxRate: number | null;
  /** Who is present on the channel. Not for patterns. */
  readonly presence: Presence;
  /** Subscribes, also without a listener. Resolves when the server has confirmed it; rejects if it ended before. */
  subscribe(): Promise<void>;
  /** Subscribes. Resolves when all messages up to now were delivered, and with `load` the rows before them. */
  live(): Promise<void>;
  /** The messages from now on, for `for await`. The loop's end, or `signal`, ends its part of the subscription. */
  messages(options?: { signal?: AbortSignal; buffer?: number }): AsyncIterableIterator<Message<Payload>>;
  /** Reads older messages of the log, oldest first. */
  history(options?: HistoryOptions | number): Promise<Message<Payload>[]>;
  /** Publishes once, also across reconnects. Rejects with a PublishError. */
  publish(payload: Payload, options?: PublishOptions): Promise<Published>;
  /** Sends an ephemeral message, for what is worthless a moment later. Of each key the newest one is sent. */
  send(payload: unknown, options?: { key?: string; echo?: boolean }): void;
  /** Ends this object's subscription and loops; listeners stay, and a new `subscribe()` or `on("message")` starts again. */
  unsubscribe(): Promise<void>;
}

/** Who is present on a channel. All objects of a channel share its members, and whether this client has joined. */
export interface Presence<State = any> extends Listening<PresenceEvents<State>> {
  /** By key. After a lost connection, the last known ones. */
  readonly members: ReadonlyMap<string, PresenceMember<State>>;
  readonly count: number;
  /** False before the members are known, and when there are too many of them: then only `count` is known. */
  readonly complete: boolean;
  /** The key of this client's own member; null if it has not joined. */
  readonly key: string | null;
  /** Watches, also without a listener. Resolves when the members are known for the first time. */
  watch(): Promise<void>;
  /** Joins, also after each reconnect, until `leave()` or `close()`. If it has joined already, the state changes. */
  join(state?: State, options?: { key?: string; signal?: AbortSignal }): Promise<void>;
  /** Changes the state. Of changes in quick succession only the last one is sent. */
  update(state: State): Promise<void>;
  /** Leaves, and goes on to watch. */
  leave(): Promise<void>;
  /** Leaves, if this object has joined, and ends the calls of its listeners. */
  close(): void;
}

/** The rows of a table, kept in step with the database. Starts when it is made, until `unsubscribe()`. */
export interface Table<Row = Record<string, any>> extends Listening<TableEvents<Row>> {
  readonly name: string;
  readonly state: ChannelState;
  /** By primary key: by its value, or with several columns by the JSON of the list of values; see `keyOf`. */
  readonly rows: ReadonlyMap<any, Row>;
  /** The rows, sorted by `order` and the primary key. The same array until something changes. */
  readonly list: readonly Row[];
  /** The columns of the primary key. */
  readonly key: readonly string[];
  /** False when `limit` has left out rows. */
  readonly complete: boolean;
  /** Resolves when the rows are current for the first time. Rejects if the subscription has ended before. */
  live(): Promise<void>;
  keyOf(row: any): any;
  unsubscribe(): Promise<void>;
}

export interface Client<Channels = unknown> extends Listening<ClientEvents> {
  /** The stock client's socket, for events of the application's own. */
  readonly socket: import("socket.io-client").Socket;
  readonly state: ClientState;
  /** The server's last report on its database; null before the first one. */
  readonly health: Health | null;
  /** Returns an object for a channel. It subscribes when something listens to its messages. */
  channel<Payload = never, Name extends string = string, Rows = unknown>(
    name: Name,
    options?: ChannelOptions<Payload, Rows>,
  ): Channel<Given<Payload, PayloadOf<Channels, Name>>, Rows>;
  /** The same for all channels that match a pattern, in which `*` stands for any characters. */
  pattern<Payload = never, Pattern extends string = string, Rows = unknown>(
    pattern: Pattern,
    options?: ChannelOptions<Payload, Rows>,
  ): Channel<Given<Payload, PayloadOfPattern<Channels, Pattern>>, Rows>;
  /** Subscribes to the rows of a table: "schema.table". */
  table<Row = Record<string, any>>(name: string, options?: TableOptions<Row>): Table<Row>;
  /** Publishes once, also across reconnects. Rejects with a PublishError. */
  publish<Name extends string>(
    channel: Name,
    payload: PayloadOf<Channels, Name>,
    options?: PublishOptions,
  ): Promise<Published>;
  /**
   * Resolves with the message of a watched table's change that the transaction `txid` has made, when listeners have got
   * it on any channel or table of this client; also if that was within the last minute.
   */
  seen(txid: string | number | bigint, options?: { signal?: AbortSignal; timeout?: number }): Promise<void>;
  /** Connects again after "disconnected". */
  connect(): void;
  /** Ends everything. A socket that the application made stays connected. */
  close(): void;
}

export type { ClientError, SocketIoPgError };
