/**
 * The interface of earlier versions: `Subscriptions` on a socket that the application has made. It stays for a release;
 * `createClient` is what replaces it.
 *
 *   const subscriptions = new Subscriptions(io("https://example.com", { transports: ["websocket"] }), {
 *     token: async () => (await fetch("/token")).text(), // if the server requires one
 *   });
 *   const orders = subscriptions.subscribe("orders", ({ payload }) => change(payload), {
 *     load: async () => (await fetch("/orders")).json(), // {rows, token}: read in one transaction
 *     onRows: (rows) => showAll(rows),
 *   });
 *   await orders.live; // the rows are current
 *   await subscriptions.publish("orders", { id: 7 });
 */

import type { Socket } from "socket.io-client";
import { EphemeralSender } from "./ephemeral.js";
import type { SubscriptionError } from "./errors.js";
import { makeHub } from "./hub.js";
import { Loader } from "./loading.js";
import { Login } from "./login.js";
import { Many } from "./many.js";
import { doneUpTo, makeMember, positionOf, type Member, type Place } from "./member.js";
import { watch, type People, type PresenceHandlers } from "./people.js";
import { Publisher } from "./publishing.js";
import type { Shared } from "./shared.js";
import type { TokenError } from "./token-error.js";
import { Tables, type LiveTable, type TableHandlers, type TableRequest } from "./tables.js";
import type {
  EphemeralMessage, Filter, Gap, Health, Loaded, Message, Position, Published, PublishOptions, Start, TokenSource,
} from "./types.js";
import { call } from "./util.js";

/** Without `since`, `history` and `load`, a subscription gets new messages only. */
export interface SubscribeOptions {
  /** The messages of the log after this place are replayed first. */
  since?: Start | null;
  /**
   * Reads the rows that the messages change. It is called at once, unless `since` is given, and again whenever messages
   * of the log were missed, so that there is no gap of the tier "log". A failure is reported to `onError` and retried.
   * `signal` is aborted by `unsubscribe()`.
   */
  load?: (how: { signal: AbortSignal }) => Loaded<any> | Promise<Loaded<any>>;
  /**
   * Called with the rows of `load`, before the messages that are not in them. They replace earlier rows. Each change in
   * the log is either in the rows, or arrives as a message.
   */
  onRows?: (rows: any) => void;
  /** Called when all messages up to now were delivered, also after each reconnect. */
  onLive?: () => void;
  /** Called with ephemeral messages: `handler` gets none. */
  onEphemeral?: (message: EphemeralMessage<any>) => void;
  /** Only messages that match it, as in docs/protocol.md. All handlers of a channel must have the same filter. */
  filter?: Filter | null;
  /** Replay this many of the log's newest messages first. Ignored when `since` is given. */
  history?: number;
  onGap?: (gap: Gap) => void;
  /** Called with every failure, including those that are retried. */
  onError?: (error: SubscriptionError) => void;
  /** Called when the server has confirmed it, also after each reconnect. */
  onSubscribed?: () => void;
}

export interface SubscriptionsOptions {
  /**
   * Called for each connection, and before the token expires; a client without a token is anonymous. If the application
   * sets `socket.auth` itself, that is used for connecting instead.
   */
  token?: TokenSource;
  /** Called with every failure, including those that are retried. Without it, one that is not retried is thrown. */
  onTokenError?: (error: TokenError) => void;
  /** Called with the server's first report, and with each change. */
  onHealth?: (health: Health) => void;
  /** Called with messages that are sent to this user, without a subscription. */
  onDirect?: (message: { payload: any }) => void;
  /**
   * Called when the server has ended the connection, and the stock client does not reconnect automatically: with the
   * code "ended_by_server", the application or an operator has disconnected this client.
   */
  onEnded?: (end: { code: string; message: string }) => void;
  /** "string": numbers in payloads are strings, with all their digits. */
  numbers?: "string";
  /** ms to wait for each answer of the server. */
  timeout?: number;
  /** ms before the first retry; doubles with each failure. */
  retryDelay?: number;
  /** The longest delay before a retry, in ms. */
  retryDelayMax?: number;
  /** ms until `publish` is given up, also while the socket is not connected. */
  publishTimeout?: number;
}

/**
 * The subscriptions on one socket. All handlers of a channel share one subscription at the server.
 * @deprecated `createClient` replaces it.
 */
export class Subscriptions {
  #hub;
  #publisher;
  #ephemeral;
  #tables;

  /** @param socket returned by io(...). With the option `token` it must not be connected yet */
  constructor(socket: Socket, options: SubscriptionsOptions = {}) {
    const { token, onTokenError, onHealth, onDirect, onEnded, ...delays } = options;
    this.#hub = makeHub(socket, delays, (name, value: any) => (
      call(name === "health" ? onHealth : name === "direct" ? onDirect : onEnded as any, value)
    ));
    this.#hub.many = this.#hub.add(new Many(this.#hub));
    if (token) {
      const login = this.#hub.add(new Login(socket, this.#hub.options, { token, onTokenError }));
      socket.auth ??= (send) => login.connect(send);
      this.#hub.add({ events: { connect_error: (error) => login.refuse(error) } });
    }
    this.#publisher = this.#hub.add(new Publisher(this.#hub));
    this.#ephemeral = this.#hub.add(new EphemeralSender(this.#hub));
    this.#tables = this.#hub.add(new Tables(this.#hub));
  }

  /**
   * Calls `handler` with each message of `channel`, until the subscription's `unsubscribe()`.
   *
   * Messages of the log come in order, each once, also across reconnects. There is no order between messages of the
   * log and messages of NOTIFY. An error that a handler throws does not affect other handlers: it is rethrown in a
   * microtask, for the global handler of uncaught errors. Promises that a handler returns are not awaited.
   *
   * `channel` can be a pattern, in which `*` stands for any characters. All messages of the log arrive, but not all of
   * NOTIFY. A message also goes to the handlers of its channel. No `since`, `history` or position of one subscription
   * concerns another one.
   * @throws {TypeError} when `since` is not a start, or another handler of `channel` has another filter
   */
  subscribe(channel: string | { pattern: string }, handler: (message: Message<any>) => void, options?: SubscribeOptions): Subscription;
  /** Keeps the rows of a table in a Map, until `unsubscribe()`. */
  subscribe(table: TableRequest, handlers?: TableHandlers): LiveTable;
  subscribe(channel: any, handler?: any, options: SubscribeOptions = {}): Subscription | LiveTable {
    if (channel.table) return this.#tables.subscribe(channel, handler);
    const shared = this.#hub.shared(placeOf(channel));
    const { since, load } = options;
    const member = makeMember(shared.place, { ...options, since: since && startOf(since), history: load ? 0 : options.history }, (name, value: any) => {
      if (name === "message") call(handler, value);
      else call((options as any)[CALLBACKS[name]], value);
      if (name === "error" && !value.retrying && member.established && !options.onError) call(() => { throw value; });
    });
    if (load) member.loader = new Loader(member, shared, load, options.onRows);
    if (!shared.allows(member)) throw new TypeError(`another handler of ${shared.name} has another filter: the server keeps one for each client`);
    shared.add(member);
    return new Subscription(member, shared, Boolean(options.onError));
  }

  /** Watches who is present on a channel, until `close()`, and joins with `join()`. */
  presence(channel: string, handlers: PresenceHandlers = {}): People {
    return watch(this.#hub, this.#hub.shared(placeOf(channel)), handlers);
  }

  /**
   * Publishes a message. Repeats it when the connection is lost before the answer, or the server cannot publish at the
   * moment: it is published once, because all attempts have the same id. Messages keep their order, unless one of them
   * is repeated.
   *
   * Without a log in the database, a message that may have been published is not repeated. Nor is one on a connection
   * that was there before this object: create it before the socket connects.
   * @returns rejects with a PublishError
   */
  publish(channel: string, payload: unknown, options: PublishOptions = {}): Promise<Published> {
    return this.#publisher.publish(channel, payload, options);
  }

  /**
   * Sends an ephemeral message to the subscribers of `channel`, for what is worthless a moment later: a cursor, who is
   * typing. Only the newest message of each `key` is sent, at most one each 20 ms. It may get lost.
   *
   * Returns false if it is not sent, because the socket is not connected or the server does not know such messages.
   * What the server refuses arrives as the event `error`, as in docs/protocol.md.
   * @param payload any JSON value, with the whole state of its key
   * @param options `echo`: true sends it to this client, too
   */
  publishEphemeral(channel: string, payload: unknown, options: { key?: string; echo?: boolean } = {}): boolean {
    return this.#ephemeral.send(channel, payload, options);
  }

  /**
   * The server's last report on its database; null before the first one. Create this object before the socket connects:
   * the first report comes with the connection.
   */
  get health(): Health | null { return this.#hub.health; }

  /** Ends all subscriptions and detaches from the socket, which stays connected and keeps its `auth`. */
  close(): void { this.#hub.close(); }
}

const CALLBACKS: Record<string, keyof SubscribeOptions> = {
  ephemeral: "onEphemeral", gap: "onGap", error: "onError", subscribed: "onSubscribed", current: "onLive",
};

/** One handler's subscription, as returned by `subscribe()`. */
export class Subscription {
  #member;
  #shared;
  #ready;

  constructor(member: Member, shared: Shared, reportsErrors: boolean) {
    this.#member = member;
    this.#shared = shared;
    this.#ready = member.ready.promise.then(() => {});
    // An unhandled rejection only if nobody else reports it, and the application has not ended it itself.
    member.ready.promise.catch(({ code }) => { if (reportsErrors || code === "unsubscribed") this.#ready.catch(() => {}); });
  }

  /** The channel, or the pattern. */
  get channel(): string { return this.#shared.name; }

  /**
   * Resolves when the server has confirmed the subscription for the first time: from then on, missed messages are
   * reported as a gap. Rejects with the SubscriptionError if the subscription ended before that.
   */
  get ready(): Promise<void> { return this.#ready; }

  /**
   * Messages per second, of each key, that arrive at most: others are skipped. Null without such a rule, and before the
   * server has confirmed the subscription.
   */
  get maxRate(): number | null { return this.#shared.maxRate; }

  /** True when the server has confirmed the subscription on the current connection. */
  get active(): boolean { return !!this.#member.live; }

  /**
   * Resolves when all messages up to now were delivered for the first time, and with `load` the rows before them: a
   * page can then hide its spinner. Rejects like `ready`. `onLive` is also called after each reconnect.
   */
  get live(): Promise<void> { return this.#member.caughtUp.promise; }

  /**
   * The position in the log up to which all messages were passed to the handler, including the one it is handling:
   * store it, and pass it as `since` next time. Null if the server has no log or has not answered yet, and after
   * starting from a snapshot until the subscription is live.
   */
  get position(): Position | null { return doneUpTo(this.#member); }

  /**
   * Ends the subscription: the handler is not called any more. Idempotent.
   * @returns if this was the channel's last handler, resolves when the server has confirmed it
   */
  async unsubscribe(): Promise<void> {
    this.#shared.remove(this.#member);
    if (!this.#shared.members.size) await this.#shared.settle();
  }
}

/** Checks a `since`. Returns a position, or a string for the server: a time, or the token of a snapshot. */
function startOf(since: Start): Position | string {
  if (since instanceof Date) return since.toISOString();
  if (typeof since !== "string") {
    const position = positionOf(since);
    if (!position) throw new TypeError("since must be like {epoch: \"…\", position: 0}, a string or a Date");
    return position;
  }
  const [, epoch, position] = /^([0-9a-f-]{36}):(\d+)$/.exec(since) ?? [];
  return epoch ? { epoch, position: Number(position) } : since;
}

function placeOf(channel: string | { pattern: string }): Place {
  return typeof channel === "object" ? { pattern: channel.pattern } : { channel };
}

export { SubscriptionError } from "./errors.js";
export { PublishError } from "./publish-error.js";
export { TokenError } from "./token-error.js";
export { LiveTable } from "./tables.js";
export type { Change, TableHandlers, TableRequest } from "./tables.js";
export type { People as Presence, PresenceHandlers } from "./people.js";
