// Subscriptions for the stock Socket.IO client (socket.io-client 3 and 4) that survive reconnects: after each reconnect
// they subscribe again, from the last position in the log that was delivered. `publish` repeats a message after a lost
// connection, so that it is published once. This module calls `connect()` only when it has the option `token`, to
// reconnect after the server refused the connection.
//
//   const subscriptions = new Subscriptions(io("https://example.com", { transports: ["websocket"] }), {
//     token: async () => (await fetch("/token")).text(), // if the server requires one
//   });
//   const orders = subscriptions.subscribe("orders", ({ payload }) => change(payload), {
//     load: async () => (await fetch("/orders")).json(), // {rows, token}: read in one transaction
//     onRows: (rows) => showAll(rows),
//   });
//   await orders.live; // the rows are current
//   await subscriptions.publish("orders", { id: 7 });

/**
 * A place in the log. Only positions of the same epoch can be compared.
 * @typedef {{epoch: string, position: number}} Position
 */

/**
 * A message, as in docs/protocol.md. Only messages of the log have `position` and `epoch`; pass both as `since`.
 * @typedef {object} Message
 * @property {string} channel the channel to which it was published, also when it came through a pattern
 * @property {any} payload any JSON value
 * @property {string} [pattern] the pattern through which it came, if no other subscription of this socket matches
 * @property {string[]} [matches] the subscriptions through which it came, if there are several
 * @property {string} [epoch]
 * @property {number} [position] its place in the log
 * @property {string} [published_at] ISO 8601, by the database's clock
 * @property {boolean} [replayed] whether it was replayed because of `since` or `history`, or after a reconnect
 * @property {boolean} [retained] whether it is the channel's retained message, which comes first
 * @property {Record<string, any>} [from] the client that published it, as the server knows it: `sub` of its token and
 *   further claims. Absent for anonymous clients, and for messages that no client published
 * @property {string} [traceparent] the trace that was given when it was published (W3C Trace Context)
 */

/**
 * An ephemeral message, which is stored nowhere: of each sender and key the newest one. `from.client` is the sender's
 * Socket.IO id, `from.sub` the `sub` of its token.
 * @typedef {{channel: string, payload: any, ephemeral: true, key?: string,
 *   from: {client: string, sub?: string, [claim: string]: any}}} EphemeralMessage
 */

/**
 * Messages may have been missed: fetch state that must not be stale again.
 *
 * `tier` says which messages. "notify": messages sent with NOTIFY; all messages of the log still arrive, so an
 * application that publishes only through the log can ignore it. "log": messages of the log are lost for this
 * subscription. When both happen, two gaps are reported.
 *
 * `reason` is one of docs/protocol.md, or "client_disconnected": this client's own connection was lost. That is a gap
 * of the tier "notify" at every reconnect, and one of the tier "log" only when the log was installed in the meantime.
 * With "too_many_while_loading", more than 1,000 messages of NOTIFY came while `load` ran.
 *
 * `since` and `until` (ISO 8601) bound the time in which messages may be missing: by the server's clock with
 * "database_connection_lost"; by this client's clock, from the last packet of the server, with "client_disconnected".
 * `epoch` and `position` are set when the subscription continues from another position.
 * @typedef {object} Gap
 * @property {string} [channel]
 * @property {string} [pattern] in place of `channel`, for the subscription to a pattern
 * @property {"notify" | "log"} tier
 * @property {string} reason
 * @property {string} [since]
 * @property {string} [until]
 * @property {string} [epoch]
 * @property {number} [position]
 */

/**
 * Whether the server reaches its database. While it is "unreachable", nothing arrives and nothing can be published: the
 * connection to the server stays, and messages of the log arrive later. `since`: ISO 8601, by the server's clock.
 * @typedef {{database: "reachable" | "unreachable", since: string}} Health
 */

/**
 * Where to start in the log: a position, also as "epoch:position", a time (ISO 8601 with time zone, or a Date), or the
 * token of a snapshot, which is what `SELECT socketio_pg.snapshot()` returns.
 * @typedef {Position | string | Date} Start
 */

/**
 * Rows of the database, and the snapshot token of the transaction that read them.
 * @typedef {{rows: any, token: string}} Loaded
 */

/**
 * Without `since`, `history` and `load`, a subscription gets new messages only.
 * @typedef {object} SubscribeOptions
 * @property {Start | null} [since] the messages of the log after this place are replayed first
 * @property {(how: {signal: AbortSignal}) => Loaded | Promise<Loaded>} [load] reads the rows that the messages change.
 *   It is called at once, unless `since` is given, and again whenever messages of the log were missed, so that there is
 *   no gap of the tier "log". A failure is reported to `onError` and retried. `signal` is aborted by `unsubscribe()`
 * @property {(rows: any) => void} [onRows] called with the rows of `load`, before the messages that are not in them.
 *   They replace earlier rows. Each change in the log is either in the rows, or arrives as a message
 * @property {() => void} [onLive] called when all messages up to now were delivered, also after each reconnect
 * @property {(message: EphemeralMessage) => void} [onEphemeral] called with ephemeral messages: `handler` gets none
 * @property {Record<string, any> | null} [filter] only messages that match it, as in docs/protocol.md: `{"new.id": 5}`.
 *   All handlers of a channel must have the same filter
 * @property {number} [history] replay this many of the log's newest messages first. Ignored when `since` is given
 * @property {(gap: Gap) => void} [onGap]
 * @property {(error: SubscriptionError) => void} [onError] called with every failure, including those that are retried
 * @property {() => void} [onSubscribed] called when the server has confirmed it, also after each reconnect
 */

/**
 * A live table, as in docs/live-tables.md.
 * @typedef {object} TableRequest
 * @property {string} table "schema.table"
 * @property {Record<string, any> | null} [where] only rows that match: `{status: ["new", "paid"], total: {gt: 100}}`
 * @property {string | {column: string, desc?: boolean} | (string | {column: string, desc?: boolean})[]} [order] of the
 *   first rows. Rows that come later are at the end of `rows`
 * @property {number} [limit] only that many rows at first
 */

/**
 * A change of a live table: `before` is the row that `rows` had, and `row` the one that it has now.
 *
 * `op` is "INSERT", "UPDATE" or "DELETE". A row that begins to match `where` is an INSERT, one that no longer matches a
 * DELETE. `payload` is the message as in docs/live-tables.md.
 * @typedef {{op: string, key: any, row?: Record<string, any>, before?: Record<string, any>, payload: any}} Change
 */

/**
 * @typedef {object} TableHandlers
 * @property {(rows: Map<any, Record<string, any>>, reason?: string) => void} [onRows] called when the first rows have
 *   arrived, and when all rows were replaced, with the reason of docs/live-tables.md, or "truncate": there are none
 * @property {(change: Change, rows: Map<any, Record<string, any>>) => void} [onChange] called after each change
 * @property {() => void} [onLive] called when the rows are current, also after each reconnect
 * @property {(error: SubscriptionError) => void} [onError] called with every failure, including those that are retried
 */

/**
 * @typedef {object} PublishOptions
 * @property {boolean} [durable] true: through the log; false: with NOTIFY. By default through the log, if there is one
 * @property {string} [id] 1 to 64 bytes: the same id on a channel is published once within five minutes. By default a
 *   random one
 * @property {boolean} [wait] false: resolve after the commit, without the position
 * @property {boolean} [echo] false: this client does not get the message itself
 * @property {string} [traceparent] the current trace (W3C Trace Context), for those who get the message
 * @property {number} [timeout] ms until it is given up, also while not connected. Default: `publishTimeout`
 */

/**
 * What the server answered. Messages of the log have `epoch` and `position`, which are null when the relay has not
 * numbered the message in time. `duplicate`: this `id` was published before, so this call has published nothing.
 * @typedef {{channel: string, epoch?: string | null, position?: number | null, duplicate?: boolean}} Published
 */

/**
 * A person who is present: the connections (`metas`) with one key, which is the `sub` of the token. `client` is the
 * connection's Socket.IO id, `state` what that client says about itself. `anonymous`: the client has no token, and has
 * chosen the key itself.
 * @typedef {{key: string, anonymous?: boolean, metas: {ref: string, client: string, state: any, joined_at: string}[]}}
 *   PresenceMember
 */

/**
 * A change of presence: `before` is the former member. "update": the state of a connection has changed, or another
 * connection of the same member has come or gone.
 * @typedef {{kind: "join" | "update" | "leave", member: PresenceMember, before?: PresenceMember}} PresenceChange
 */

/**
 * @typedef {object} PresenceHandlers
 * @property {(member: PresenceMember) => void} [onJoin] not called for those who are there at first
 * @property {(member: PresenceMember, before: PresenceMember) => void} [onUpdate] the state of a connection has
 *   changed, or another connection of the same member has come or gone
 * @property {(member: PresenceMember) => void} [onLeave]
 * @property {(members: Map<string, PresenceMember>, presence: Presence) => void} [onSync] called after these, and when
 *   the members are known for the first time or again after a reconnect
 * @property {(error: SubscriptionError) => void} [onError] called with every failure, including those that are retried
 */

/** The server refused to publish a message, or the attempt was given up. */
export class PublishError extends Error {
  /**
   * @param {string} code one of docs/protocol.md, or "no_answer", or "closed": after `close()`
   * @param {string} message
   * @param {string} channel
   * @param {boolean} uncertain
   */
  constructor(code, message, channel, uncertain) {
    super(message);
    this.name = "PublishError";
    this.code = code;
    this.channel = channel;
    /** True when the message may have been published. Otherwise it was not. */
    this.uncertain = uncertain;
  }
}

/** The server refused a subscription, or did not answer, or `load` failed. */
export class SubscriptionError extends Error {
  /**
   * @param {string} code one of docs/protocol.md, or "no_answer" or "unsubscribed", or "load_failed": `load` failed
   * @param {string} message
   * @param {string} channel
   * @param {ErrorOptions} [options] `cause`: the error that `load` has thrown
   */
  constructor(code, message, channel, options) {
    super(message, options);
    this.name = "SubscriptionError";
    this.code = code;
    this.channel = channel;
    /** True when it is retried automatically. Otherwise the subscription has ended. */
    this.retrying = false;
  }
}

/**
 * The server refused the connection, or the token could not be renewed before it expired.
 *
 * When the socket is connected, it is the renewal that failed. Nothing is lost then: the renewal is retried until the
 * token expires. The server then closes the connection, and the client reconnects with the token that `token` returns.
 */
export class TokenError extends Error {
  /**
   * @param {string} code one of docs/protocol.md, or "no_answer", or "no_token": the function `token` failed, or
   *   returned the old token again
   * @param {string} message
   * @param {ErrorOptions} [options] `cause`: the error that `token` has thrown
   */
  constructor(code, message, options) {
    super(message, options);
    this.name = "TokenError";
    this.code = code;
    /** True when it is retried automatically. Otherwise the socket stays disconnected until its `connect()`. */
    this.retrying = false;
  }
}

// Errors that are retried. "internal" is retried too, for a subscription that has worked before.
const TRANSIENT = new Set(["database_unavailable", "authentication_unavailable", "rate_limited", "no_answer"]);

// Refused tokens in a row before giving up: a token can expire on its way, or be newer than the server's clock.
const MAX_REFUSALS = 3;

// Differences of presence that wait for the state. Without an older one the state is requested once more.
const MAX_EARLY = 1_000;

// Limits of one request for many channels: the server allows 500, and limits the bytes.
const MAX_TOGETHER = 250;
const MAX_CHARACTERS = 100_000;

// Messages of NOTIFY that one handler holds while it loads rows.
const MAX_HELD = 1_000;

// ms for which a retry waits for those of other channels, to share a request with them.
const JOIN_DELAY = 20;

// ms for which a message is repeated after it was sent first. The server knows its id for five minutes.
const MAX_REPEATING = 240_000;

// ms between two ephemeral messages of one key: the server gathers those of 50 ms.
const EPHEMERAL_INTERVAL = 20;

// ms over which renewals are spread. The server warns 30 s before a token expires, and many tokens may expire together.
const RENEWAL_SPREAD = 10_000;

/**
 * @typedef {object} Options
 * @property {() => string | null | undefined | Promise<string | null | undefined>} [token] called for each connection,
 *   and before the token expires; a client without a token is anonymous. If the application sets `socket.auth` itself,
 *   that is used for connecting instead
 * @property {(error: TokenError) => void} [onTokenError] called with every failure, including those that are retried.
 *   Without it, a failure that is not retried is thrown, for the global handler of uncaught errors
 * @property {(health: Health) => void} [onHealth] called with the server's first report, and with each change
 * @property {(message: {payload: any}) => void} [onDirect] called with messages that are sent to this user, without a
 *   subscription
 * @property {(end: {code: string, message: string}) => void} [onEnded] called when the server has ended the connection,
 *   and the stock client does not reconnect automatically: with the code "ended_by_server", the application or an
 *   operator has disconnected this client
 * @property {"string"} [numbers] "string": numbers in payloads are strings, with all their digits. JavaScript rounds
 *   integers over 2^53 and decimals
 * @property {number} [timeout] ms to wait for each answer of the server
 * @property {number} [retryDelay] ms before the first retry; doubles with each failure
 * @property {number} [retryDelayMax] the longest delay before a retry, in ms
 * @property {number} [publishTimeout] ms until `publish` is given up, also while the socket is not connected
 */

/** The subscriptions on one socket. All handlers of a channel share one subscription at the server. */
export class Subscriptions {
  #socket;
  #options;
  #login;
  #requests;
  #publisher;
  #ephemeral;
  /** @type {Map<string, Channel>} */
  #channels = new Map();
  /** @type {Map<string, Channel>} */
  #patterns = new Map();
  /** @type {Map<string, LiveTable>} by the id that the server echoes */
  #tables = new Map();
  /** @type {Health | null} */
  #health = null;
  #heard = Date.now(); // when the server last sent something, in ms
  /** The last event `error` on this connection. @type {{code: string, message: string}} */
  #lastError = { code: "", message: "" };

  /**
   * @param {any} socket returned by io(...). With the option `token` it must not be connected yet
   * @param {Options} [options]
   */
  constructor(socket, options = {}) {
    this.#socket = socket;
    this.#options = {
      timeout: 15_000, retryDelay: 1_000, retryDelayMax: 15_000, publishTimeout: 60_000, ...options,
      sendsLive: true, // the server reports when a replay has caught up; servers of older versions do not
    };
    this.#login = options.token && new Login(socket, this.#options);
    this.#requests = new Requests(socket, this.#options, this.#listeners.subscribed);
    this.#publisher = new Publisher(socket, this.#options);
    this.#ephemeral = new EphemeralSender(socket);
    for (const [event, listener] of Object.entries(this.#listeners)) socket.on(event, listener);
    socket.io.on("ping", this.#hear);
  }

  /**
   * Calls `handler` with each message of `channel`, until the subscription's `unsubscribe()`.
   *
   * Messages of the log come in order, each once, also across reconnects. There is no order between messages of the
   * log and messages of NOTIFY. An error that a handler throws does not affect other handlers: it is rethrown in a
   * microtask, for the global handler of uncaught errors. Promises that a handler returns are not awaited.
   * @overload
   * @param {string} channel
   * @param {(message: Message) => void} handler
   * @param {SubscribeOptions} [options]
   * @returns {Subscription}
   * @throws {TypeError} when `since` is not a start, or another handler of `channel` has another filter
   */
  /**
   * Calls `handler` with each message of the channels that match a pattern, in which `*` stands for any characters. All
   * messages of the log arrive, but not all of NOTIFY. A message also goes to the handlers of its channel. No `since`,
   * `history` or position of one subscription concerns another one.
   * @overload
   * @param {{pattern: string}} channel
   * @param {(message: Message) => void} handler
   * @param {SubscribeOptions} [options]
   * @returns {Subscription}
   */
  /**
   * Keeps the rows of a table in a Map, until `unsubscribe()`.
   * @overload
   * @param {TableRequest} table
   * @param {TableHandlers} [handlers]
   * @returns {LiveTable}
   */
  subscribe(channel, handler, options = {}) {
    if (channel.table) return new LiveTable(this.#socket, this.#options, this.#tables, channel, handler);
    const shared = this.#shared(channel);
    const member = new Member(shared.place, handler, options);
    shared.setFilter(options.filter ?? null);
    shared.add(member);
    return new Subscription(member, shared);
  }

  /**
   * Watches who is present on a channel, until `close()`, and joins with `join()`.
   * @param {string} channel
   * @param {PresenceHandlers} [handlers]
   * @returns {Presence}
   */
  presence(channel, handlers = {}) { return this.#shared(channel).watch(handlers); }

  /** Returns the object that all handlers of a channel or pattern share. @param {string | {pattern: string}} channel */
  #shared(channel) {
    const place = typeof channel === "object" ? { pattern: channel.pattern } : { channel };
    const all = place.pattern === undefined ? this.#channels : this.#patterns;
    return all.get(nameOf(place)) ?? new Channel(place, this.#socket, this.#requests, this.#options, all);
  }

  /** Returns those that an event of the server is for. */
  #named({ channel, pattern, matches = [pattern ?? channel] }) {
    return matches.flatMap((name) => (name?.includes("*") ? this.#patterns : this.#channels).get(name) ?? []);
  }

  /**
   * Publishes a message. Repeats it when the connection is lost before the answer, or the server cannot publish at the
   * moment: it is published once, because all attempts have the same id. Messages keep their order, unless one of them
   * is repeated.
   *
   * Without a log in the database, a message that may have been published is not repeated. Nor is one on a connection
   * that was there before this object: create it before the socket connects.
   * @param {string} channel
   * @param {any} payload any JSON value
   * @param {PublishOptions} [options]
   * @returns {Promise<Published>} rejects with a PublishError
   */
  publish(channel, payload, options = {}) { return this.#publisher.publish(channel, payload, options); }

  /**
   * Sends an ephemeral message to the subscribers of `channel`, for what is worthless a moment later: a cursor, who is
   * typing. Only the newest message of each `key` is sent, at most one each 20 ms. It may get lost.
   *
   * Returns false if it is not sent, because the socket is not connected or the server does not know such messages.
   * What the server refuses arrives as the event `error`, as in docs/protocol.md.
   * @param {string} channel
   * @param {any} payload any JSON value, with the whole state of its key
   * @param {{key?: string, echo?: boolean}} [options] `echo`: true sends it to this client, too
   * @returns {boolean}
   */
  publishEphemeral(channel, payload, options = {}) { return this.#ephemeral.send(channel, payload, options); }

  /**
   * The server's last report on its database; null before the first one. Create this object before the socket connects:
   * the first report comes with the connection.
   * @type {Health | null}
   */
  get health() { return this.#health; }

  /** Ends all subscriptions and detaches from the socket, which stays connected and keeps its `auth`. */
  close() {
    this.#publisher.close();
    this.#ephemeral.lose();
    for (const table of this.#tables.values()) table.unsubscribe();
    this.#login?.close();
    for (const [event, listener] of Object.entries(this.#listeners)) this.#socket.off(event, listener);
    this.#socket.io.off("ping", this.#hear);
    for (const channel of this.#all()) {
      for (const member of channel.members) channel.remove(member);
      for (const presence of channel.presence.handles) presence.close();
    }
  }

  #all() { return [...this.#channels.values(), ...this.#patterns.values()]; }

  #report(health) {
    if (!health || JSON.stringify(health) === JSON.stringify(this.#health)) return;
    this.#health = health;
    call(this.#options.onHealth, health);
  }

  #hear = () => { this.#heard = Date.now(); };

  /** @type {Record<string, (body: any) => void>} */
  #listeners = {
    connect: () => {
      this.#hear();
      this.#lastError = { code: "disconnected", message: "The server has ended the connection." };
      for (const channel of this.#all()) channel.settle();
      for (const table of this.#tables.values()) table.settle();
    },
    error: ({ code, message }) => { this.#lastError = { code, message }; },
    disconnect: (reason) => {
      this.#requests.lose();
      this.#publisher.lose();
      this.#ephemeral.lose();
      for (const channel of this.#all()) channel.lose(this.#heard);
      for (const table of this.#tables.values()) table.lose();
      if (reason === "io server disconnect") call(this.#options.onEnded, this.#lastError);
    },
    event: (message) => {
      this.#hear();
      if (message.table) this.#tables.get(message.id)?.receive(message);
      else if (message.ephemeral) this.#channels.get(message.channel)?.receiveEphemeral(message);
      else for (const channel of this.#named(message)) channel.receive(message);
    },
    snapshot: (page) => {
      this.#hear();
      this.#tables.get(page.id)?.receivePage(page);
    },
    server_hello: ({ health, features = [] }) => {
      this.#options.sendsLive = features.includes("live");
      this.#publisher.open(features.includes("publish_id"));
      this.#ephemeral.open(features.includes("ephemeral"));
      this.#report(health);
    },
    health: (health) => this.#report(health),
    gap: (gap) => this.#named(gap).forEach((one) => one.receiveGap(gap)),
    live: (edge) => {
      if (edge.table) this.#tables.get(edge.id)?.receiveLive(edge);
      else for (const channel of this.#named(edge)) channel.receiveLive(edge);
    },
    subscribed: (body) => {
      if (body.table) return; // LiveTable has the acknowledgement
      for (const one of resultsOf(body)) for (const channel of this.#named(one)) channel.checkSubscribed(one);
    },
    unsubscribed: (body) => {
      if (body.table) this.#tables.get(body.id)?.checkUnsubscribed(body);
      else for (const one of resultsOf(body)) for (const channel of this.#named(one)) channel.checkUnsubscribed(one);
    },
    presence: (difference) => this.#channels.get(difference.channel)?.receivePresence("apply", difference),
    presence_state: (state) => this.#channels.get(state.channel)?.receivePresence("sync", state),
    presence_ended: (ended) => this.#channels.get(ended.channel)?.receivePresenceEnded(ended),
    direct: (message) => {
      this.#hear();
      call(this.#options.onDirect, message);
    },
  };
}

/** Publishes messages, and repeats those that the server may not have received. */
class Publisher {
  #socket;
  #options;
  /** @type {Set<any>} the messages without an answer, in order */
  #waiting = new Set();
  #isOpen; // the connection is ready
  #knowsIds = false; // the server publishes an id once
  #isClosed = false;

  /**
   * @param {any} socket
   * @param {any} options
   */
  constructor(socket, options) {
    this.#socket = socket;
    this.#options = options;
    this.#isOpen = socket.connected;
  }

  publish(channel, payload, { durable, id, wait, echo, traceparent, timeout = this.#options.publishTimeout }) {
    return new Promise((resolve, reject) => {
      // JSON leaves out what is undefined. Messages that may be lost need no id, which costs the database a row.
      const ownId = durable === false ? undefined : randomId();
      const body = { channel, payload, durable, wait, echo, traceparent, id: id ?? ownId };
      const one = {
        body, resolve, reject, hasOwnId: id === undefined, attempt: 0, inFlight: false, sentAt: 0, isUncertain: false,
        canRepeat: true, timer: undefined, deadline: undefined,
      };
      if (timeout < 2 ** 31) one.deadline = setTimeout(() => this.#reject(one, NO_ANSWER), timeout);
      this.#waiting.add(one);
      if (this.#isClosed) this.#reject(one, CLOSED);
      this.#flush();
    });
  }

  open(knowsIds) {
    this.#isOpen = true;
    this.#knowsIds = knowsIds;
    this.#flush();
  }

  lose() {
    this.#isOpen = this.#knowsIds = false;
    for (const one of [...this.#waiting]) if (one.inFlight) this.#fail(one, NO_ANSWER);
  }

  close() {
    this.#isClosed = true;
    for (const one of [...this.#waiting]) this.#reject(one, CLOSED);
  }

  #flush() {
    for (const one of [...this.#waiting]) if (this.#isOpen && !one.inFlight && !one.timer) this.#send(one);
  }

  #send(one) {
    if (one.isUncertain && !(one.canRepeat && this.#knowsIds && Date.now() - one.sentAt < MAX_REPEATING)) {
      this.#reject(one, NO_ANSWER); // another attempt could publish it again
      return;
    }
    const attempt = ++one.attempt;
    one.inFlight = true;
    one.sentAt ||= Date.now();
    one.canRepeat &&= this.#knowsIds && one.body.id !== undefined;
    try {
      request(this.#socket, this.#options.timeout, "publish", one.body, (failure, answer) => {
        if (!failure) this.#resolve(one, answer);
        else if (one.attempt === attempt && one.inFlight) this.#fail(one, failure);
      });
    } catch (error) { // the payload has no JSON
      this.#finish(one);
      one.reject(error);
    }
  }

  #fail(one, failure) {
    if (!this.#waiting.has(one)) return;
    one.inFlight = false;
    if (failure.code === "log_not_installed" && one.hasOwnId && one.body.id && !one.body.durable) {
      one.body.id = undefined; // a database without a log knows no ids
      this.#send(one);
      return;
    }
    one.isUncertain ||= UNCERTAIN.has(failure.code);
    if (!TRANSIENT.has(failure.code) || (one.isUncertain && !one.canRepeat)) this.#reject(one, failure);
    else if (this.#isOpen) {
      one.timer = setTimeout(() => {
        one.timer = undefined;
        this.#flush();
      }, backoff(this.#options, one.attempt - 1));
    }
  }

  #resolve(one, { ok, ...published }) {
    this.#finish(one);
    one.resolve(published);
  }

  #reject(one, { code, message }) {
    this.#finish(one);
    const uncertain = one.inFlight || one.isUncertain;
    one.reject(new PublishError(code, message, one.body.channel, uncertain));
  }

  #finish(one) {
    this.#waiting.delete(one);
    clearTimeout(one.timer);
    clearTimeout(one.deadline);
  }
}

/** Sends ephemeral messages: the newest of each channel and key. */
class EphemeralSender {
  #socket;
  #isOpen = false; // connected to a server that knows them: an older one would publish them
  /** @type {Map<string, any>} the messages that wait for the end of the interval */
  #waiting = new Map();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** @param {any} socket */
  constructor(socket) {
    this.#socket = socket;
  }

  open(isKnown) {
    this.#isOpen = isKnown;
  }

  lose() {
    this.#isOpen = false;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#waiting.clear();
  }

  send(channel, payload, { key, echo }) {
    if (!this.#isOpen) return false;
    this.#waiting.set(JSON.stringify([channel, key ?? null]), { channel, payload, ephemeral: true, key, echo });
    if (!this.#timer) this.#flush();
    return true;
  }

  #flush() {
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    this.#timer = waiting.length ? setTimeout(() => this.#flush(), EPHEMERAL_INTERVAL) : undefined;
    for (const body of waiting) this.#socket.emit("publish", body);
  }
}

/** Sends the application's token to the server with each connection, and renews it before it expires. */
class Login {
  #socket;
  #options;
  /** @type {string | null | undefined} */
  #token; // the last that was sent; null: connected without one
  #failures = 0; // in a row
  #refusals = 0; // failures because of the token
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /**
   * @param {any} socket
   * @param {any} options
   */
  constructor(socket, options) {
    this.#socket = socket;
    this.#options = options;
    socket.auth ??= (send) => this.#connect(send);
    for (const [event, listener] of Object.entries(this.#listeners)) socket.on(event, listener);
    socket.io.on("close", this.#closed);
  }

  close() {
    this.#rest();
    for (const [event, listener] of Object.entries(this.#listeners)) this.#socket.off(event, listener);
    this.#socket.io.off("close", this.#closed);
  }

  /** @type {Record<string, (body: any) => void>} */
  #listeners = {
    connect: () => this.#rest(),
    authenticated: () => this.#rest(), // the application may have sent it
    disconnect: () => this.#rest(),
    connect_error: (error) => {
      if (this.#socket.active) return; // a network error: the stock client reconnects automatically
      const code = error.data?.code ?? "refused";
      const again = code === "unauthorized" ? ++this.#refusals < MAX_REFUSALS && this.#token !== null
        : TRANSIENT.has(code);
      this.#fail(new TokenError(code, error.message), again && this.#reconnect);
    },
    token_expiring: ({ expires_at: end }) => {
      // Limits how often tokens are renewed that live shorter than the server's warning period.
      const soon = (Date.parse(end) - Date.now()) / 3;
      const delay = Math.min(RENEWAL_SPREAD, Math.max(this.#options.retryDelay, soon));
      this.#later(delay * spread(), () => this.#renew());
    },
  };

  // The application called disconnect() while not connected: do not reconnect. No other event reports this call.
  #closed = (reason) => {
    if (reason === "forced close" && !this.#socket.active) clearTimeout(this.#timer);
  };

  #reconnect = () => {
    if (!this.#socket.active) this.#socket.connect(); // unless the application has already done it
  };

  #rest() {
    clearTimeout(this.#timer);
    this.#failures = this.#refusals = 0;
  }

  #later(delay, what) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(what, delay);
  }

  async #fetch() {
    try {
      return (await this.#options.token()) ?? null;
    } catch (cause) {
      throw new TokenError("no_token", `Getting a token failed: ${cause?.message ?? cause}`, { cause });
    }
  }

  /** The stock client's `auth` function: calls `send` with the data for the server. The connection waits for it. */
  async #connect(send) {
    const { engine } = this.#socket.io;
    const inTime = () => this.#socket.active && this.#socket.io.engine === engine;
    try {
      const token = await this.#fetch();
      if (!inTime()) return; // the next connection calls `auth` again
      this.#token = token;
      send(token === null ? {} : { token });
    } catch (error) {
      if (!inTime()) return;
      this.#socket.disconnect();
      this.#fail(error, this.#reconnect);
    }
  }

  async #renew() {
    const { id } = this.#socket;
    try {
      const token = await this.#fetch();
      if (this.#socket.id !== id) return;
      if (token === this.#token) throw new TokenError("no_token", "`token` returned the old token again.");
      await new Promise((resolve, reject) => {
        request(this.#socket, this.#options.timeout, "authenticate", { token }, (failure) => {
          if (failure) reject(new TokenError(failure.code, failure.message));
          else resolve(undefined);
        });
      });
      this.#token = token;
    } catch (error) {
      if (this.#socket.id === id) this.#fail(error, () => this.#renew());
    }
  }

  /** Reports the error, and schedules `again` if it is a function. */
  #fail(error, again) {
    error.retrying = Boolean(again);
    // Scheduled first, so that the callback can call connect() or disconnect().
    if (again) this.#later(backoff(this.#options, this.#failures++), again);
    else this.#rest();
    const { onTokenError } = this.#options;
    if (onTokenError || !again) call(onTokenError ?? (() => { throw error; }), error);
  }
}

/**
 * Sends the requests of channels. Requests that are made in the same task are sent together, up to 250 at a time: after
 * a reconnect, one for each channel would exceed the server's limit of events.
 */
class Requests {
  #socket;
  #options;
  #onLate;
  /** @type {{event: string, body: any, answered: (failure: any, answer?: any) => void}[]} */
  #waiting = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** @type {Set<() => void>} the failures of requests that await their answers */
  #pending = new Set();
  #alone = ""; // the id of the connection to a server that takes one channel at a time: an older version

  /**
   * @param {any} socket
   * @param {{timeout: number}} options
   * @param {(answer: any) => void} onLate called with an answer that comes after the timeout
   */
  constructor(socket, options, onLate) {
    this.#socket = socket;
    this.#options = options;
    this.#onLate = onLate;
  }

  /** Calls `answered` with the error as {code, message}, or with null and the answer. `retry`: it was sent before. */
  send(event, body, retry, answered) {
    this.#waiting.push({ event, body, answered });
    if (retry) this.#timer ??= setTimeout(() => this.#flush(), JOIN_DELAY);
    else queueMicrotask(() => this.#flush());
  }

  /** Fails all requests, because the connection is lost. */
  lose() {
    for (const fail of [...this.#pending]) fail();
    this.#flush();
  }

  #flush() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const waiting = this.#waiting.splice(0);
    if (!this.#socket.connected) for (const { answered } of waiting) answered(NO_ANSWER);
    else for (const event of ["subscribe", "unsubscribe"]) this.#send(waiting.filter((one) => one.event === event));
  }

  /** Sends requests for one event, one part after the other. */
  async #send(requests) {
    const { id } = this.#socket;
    for (const part of parts(requests)) {
      if (this.#socket.id !== id) for (const { answered } of part) answered(NO_ANSWER);
      else if (part.length === 1 || this.#alone === id) this.#sendAlone(part);
      else await this.#sendTogether(part);
    }
  }

  #sendAlone(part) {
    for (const { event, body, answered } of part) request(this.#socket, this.#options.timeout, event, body, answered);
  }

  #sendTogether(part) {
    const { id } = this.#socket;
    const [{ event }] = part;
    const channels = part.map(({ body }) => (event === "subscribe" || body.pattern ? body : body.channel));
    return new Promise((resolve) => {
      const finish = (failure, results) => {
        clearTimeout(timer);
        this.#pending.delete(fail);
        if (failure?.code.startsWith("invalid_") && this.#socket.id === id) {
          this.#alone = id;
          this.#sendAlone(part);
        } else {
          part.forEach(({ answered }, index) => answered(failure ?? failureOf(results?.[index]), results?.[index]));
        }
        resolve(undefined);
      };
      const fail = () => finish(NO_ANSWER);
      const timer = setTimeout(fail, this.#options.timeout);
      this.#pending.add(fail);
      this.#socket.emit(event, { channels }, (answer) => {
        if (this.#pending.has(fail)) finish(failureOf(answer), answer?.channels);
        else if (event === "subscribe" && answer?.channels) this.#onLate(answer);
      });
    });
  }
}

/** Divides requests into parts that are small enough for one request. */
function parts(requests) {
  const found = [];
  let characters = 0;
  for (const one of requests) {
    const size = JSON.stringify(one.body).length;
    characters += size;
    if (!found.length || found.at(-1).length === MAX_TOGETHER || characters > MAX_CHARACTERS) {
      found.push([]);
      characters = size;
    }
    found.at(-1).push(one);
  }
  return found;
}

/** One handler's subscription, as returned by `subscribe()`. */
export class Subscription {
  #member;
  #channel;

  /**
   * @param {Member} member
   * @param {Channel} channel
   */
  constructor(member, channel) {
    this.#member = member;
    this.#channel = channel;
  }

  /** The channel, or the pattern. */
  get channel() { return this.#channel.name; }

  /**
   * Resolves when the server has confirmed the subscription for the first time: from then on, missed messages are
   * reported as a gap. Rejects with the SubscriptionError if the subscription ended before that.
   * @type {Promise<void>}
   */
  get ready() { return this.#member.ready; }

  /**
   * Messages per second, of each key, that arrive at most: others are skipped. Null without such a rule, and before the
   * server has confirmed the subscription.
   * @type {number | null}
   */
  get maxRate() { return this.#channel.maxRate; }

  /** True when the server has confirmed the subscription on the current connection. */
  get active() { return this.#member.live; }

  /**
   * Resolves when all messages up to now were delivered for the first time, and with `load` the rows before them: a
   * page can then hide its spinner. Rejects like `ready`. `onLive` is also called after each reconnect.
   * @type {Promise<void>}
   */
  get live() { return this.#member.caughtUp.promise; }

  /**
   * The position in the log up to which all messages were passed to the handler, including the one it is handling:
   * store it, and pass it as `since` next time. Null if the server has no log or has not answered yet, and after
   * starting from a snapshot until the subscription is live.
   * @type {Position | null}
   */
  get position() {
    const { lacksEpoch, start, position } = this.#member;
    return lacksEpoch || start ? null : position;
  }

  /**
   * Ends the subscription: the handler is not called any more. Idempotent.
   * @returns {Promise<void>} if this was the channel's last handler, resolves when the server has confirmed it
   */
  async unsubscribe() {
    this.#channel.remove(this.#member);
    if (!this.#channel.members.size) await this.#channel.settle();
  }
}

/** The state of one handler's subscription: its position, and whether it receives the live messages after it. */
class Member {
  established = false; // the server has confirmed it once
  live = false;
  lostAt = 0; // ms: when the connection was lost, and with it messages of NOTIFY; 0: not lost
  isCurrent = false; // has been up to date on this connection
  caughtUp = deferred();

  // With `load`:
  isStale = false; // the rows must be loaded first
  isLoading = false;
  loads = 0; // 1 after it was current
  /** @type {Message[]} messages of NOTIFY that arrived while it was stale */
  held = [];
  heldTooMany = false;
  ended = new AbortController();

  /**
   * @param {{channel?: string, pattern?: string}} subscribed
   * @param {(message: Message) => void} handler
   * @param {SubscribeOptions} options
   */
  constructor(subscribed, handler, options) {
    const { since, history, load, onRows, onLive, onEphemeral, onGap, onError, onSubscribed } = options;
    this.subscribed = subscribed;
    this.handler = handler;
    const place = since ? placeOf(since) : null;
    /**
     * The epoch is "" while it is unknown: the log was installed after we subscribed.
     * @type {Position | null}
     */
    this.position = typeof place === "string" ? null : place;
    /**
     * A start that is no position. A time counts until the server has answered with its position, the token of a
     * snapshot until the subscription is live: a message with a higher position may be in the snapshot.
     * @type {string | null}
     */
    this.start = typeof place === "string" ? place : null;
    this.load = load;
    this.isStale = Boolean(load && !place);
    this.history = place || load ? 0 : history ?? 0;
    this.onRows = onRows;
    this.onLive = onLive;
    this.onEphemeral = onEphemeral;
    this.onGap = onGap;
    this.onError = onError;
    this.onSubscribed = onSubscribed;
    this.ready = new Promise((resolve, reject) => {
      this.resolve = /** @type {() => void} */ (resolve);
      this.reject = reject;
    });
    if (onError) this.ready.catch(() => {}); // onError reports it
    this.caughtUp.promise.catch(() => {}); // `ready` reports it
  }

  get startsFromSnapshot() { return Boolean(this.start?.startsWith("snapshot:")); }

  get lacksEpoch() { return this.position?.epoch === ""; }

  /** @param {Position | null} start */
  learnEpoch(start) {
    if (this.lacksEpoch) this.position = start && { epoch: start.epoch, position: this.position?.position ?? 0 };
  }

  /** @param {Position} start */
  follows(start) {
    return this.position?.epoch === start.epoch && this.position.position >= start.position;
  }

  /** @param {Partial<Gap>} gap */
  reportGap(gap) {
    call(this.onGap, { ...this.subscribed, ...gap });
  }

  /** @param {SubscriptionError} error */
  fail(error) {
    if (this.onError) call(this.onError, error);
    if (error.retrying) return;
    this.end(error);
    if (this.established && !this.onError) call(() => { throw error; });
  }

  /** The subscription has ended. */
  end(error) {
    this.live = this.isCurrent = false;
    this.ended.abort();
    this.caughtUp.reject(error);
    if (!this.established) this.reject(error);
  }

  /** Delivers a message, or holds one of NOTIFY until the rows are there. @param {Message} message */
  deliver(message) {
    if (!this.isStale) call(this.handler, message);
    else if (this.held.push(message) > MAX_HELD) {
      this.held.shift();
      this.heldTooMany = true;
    }
  }

  /** All messages up to `edge` were delivered. @param {Position | null} edge */
  becomeCurrent(edge) {
    this.start = null;
    this.loads = 1; // the next one is spread over some time: all clients may have missed messages at once
    if (edge) {
      this.learnEpoch(edge);
      if (!this.position || (this.position.epoch === edge.epoch && !this.follows(edge))) this.position = edge;
    }
    if (this.isCurrent) return;
    this.isCurrent = true;
    this.caughtUp.resolve();
    call(this.onLive);
  }

  /** The messages so far are not enough: rows must be loaded. */
  becomeStale() {
    this.isStale = true;
    this.live = this.isCurrent = false;
    this.position = this.start = null;
  }

  /** The rows are there, with the token of their snapshot. @param {Loaded} loaded */
  accept({ rows, token }) {
    this.isStale = false;
    this.start = token;
    call(this.onRows, rows);
    const held = this.held.splice(0);
    if (this.ended.signal.aborted) return; // by onRows
    for (const message of held) call(this.handler, message);
    if (this.heldTooMany) this.reportGap({ tier: "notify", reason: "too_many_while_loading" });
    this.heldTooMany = false;
  }
}

/** One channel or pattern: changes the server's subscription to what is needed, with one request at a time. */
class Channel {
  /** @type {Set<Member>} */
  members = new Set();
  presence = new ChannelPresence(this);
  /** @type {number | null} */
  maxRate = null;
  /**
   * The newest message, of a channel with retained messages: the server sends it to a client once, not to each handler.
   * @type {Message | null}
   */
  #retained = null;
  #combines = true; // presence is requested together with messages, unless the server has refused that
  #socket;
  #requests;
  #options;
  #channels;
  /** @type {Record<string, any> | null} */
  #filter = null;
  #open = false; // the server has a subscription, as far as we know
  #awaited = ""; // the event whose answer is pending
  /** @type {Promise<void> | null} */
  #settling = null;
  /** @type {(() => void) | null} */
  #wake = null;

  /**
   * @param {{channel?: string, pattern?: string}} place
   * @param {any} socket
   * @param {Requests} requests
   * @param {any} options
   * @param {Map<string, Channel>} channels the channels in use; an unused channel removes itself
   */
  constructor(place, socket, requests, options, channels) {
    this.place = place;
    this.name = nameOf(place);
    this.#socket = socket;
    this.#requests = requests;
    this.#options = options;
    this.#channels = channels;
  }

  /** @param {Record<string, any> | null} filter */
  setFilter(filter) {
    if (!this.members.size) this.#filter = filter;
    else if (JSON.stringify(filter) !== JSON.stringify(this.#filter)) {
      throw new TypeError(`another handler of ${this.name} has another filter: the server keeps one for each client`);
    }
  }

  /** @param {Member} member */
  add(member) {
    this.#channels.set(this.name, this);
    this.members.add(member);
    if (member.isStale) this.#load(member);
    this.settle();
  }

  /** @param {PresenceHandlers} handlers */
  watch(handlers) {
    this.#channels.set(this.name, this);
    const presence = new Presence(this, handlers);
    this.settle();
    return presence;
  }

  /** @param {Member} member */
  remove(member) {
    if (!this.members.delete(member)) return;
    member.ready.catch(() => {}); // not an unhandled rejection: the application unsubscribed itself
    member.end(new SubscriptionError("unsubscribed", "unsubscribed before the server answered", this.name));
    this.settle();
  }

  /**
   * Calls the application's `load` until it succeeds. The server then replays what is not in the rows, or says that
   * their token is too old. Never two at once for one handler.
   * @param {Member} one
   */
  async #load(one) {
    one.becomeStale();
    if (one.isLoading) return;
    one.isLoading = true;
    const { signal } = one.ended;
    while (one.isStale) {
      if (one.loads++) await pause(backoff(this.#options, one.loads - 2), signal);
      if (signal.aborted) return;
      try {
        const loaded = await one.load({ signal });
        if (signal.aborted) return;
        if (typeof loaded?.token !== "string" || !loaded.token) throw new TypeError("load must return {rows, token}");
        one.accept(loaded);
      } catch (cause) {
        if (signal.aborted) return;
        const message = `Loading failed: ${cause?.message ?? cause}`;
        const error = new SubscriptionError("load_failed", message, this.name, { cause });
        error.retrying = true;
        one.fail(error);
      }
    }
    one.isLoading = false;
    this.settle();
  }

  settle() {
    this.#wake?.();
    this.#settling ??= this.#settle();
    return this.#settling;
  }

  async #settle() {
    await null; // so that subscriptions made in the same task share a request
    let request;
    let attempt = 0;
    while (this.#socket.connected && (request = this.#next())) {
      const { id } = this.#socket;
      const error = await this.#send(request, attempt > 0);
      if (!error) attempt = 0;
      else if (this.#socket.id === id && this.#fail(error, request)) await this.#sleep(attempt++);
    }
    this.#settling = null;
    if (!this.#isUsed && !this.#open && this.#channels.get(this.name) === this) this.#channels.delete(this.name);
  }

  get #isUsed() { return this.members.size > 0 || this.presence.wish !== false; }

  /** Returns the next request and the members that need it (`requesters`); null when there is nothing to do. */
  #next() {
    if (!this.#isUsed) return this.#open ? { event: "unsubscribe", body: {}, requesters: [] } : null;
    const presence = this.presence.next();
    const request = this.#nextForMembers();
    if (!request) return presence && { ...presence, requesters: [] };
    if (presence?.event === "subscribe" && this.#combines) Object.assign(request.body, presence.body);
    return request;
  }

  #nextForMembers() {
    const members = [...this.members];
    if (members.some((one) => one.live && one.startsFromSnapshot)) return null; // see #accept
    const waiting = members.filter((one) => !one.isStale && (!one.live || one.lacksEpoch));
    if (!waiting.length) return null;
    // Members with a position come first, from the lowest position on: a replay that starts later, for a new member's
    // history, would move the live messages past them.
    const places = waiting.flatMap((one) => (one.position && !one.lacksEpoch && !one.start ? [one.position] : []));
    if (places.length) {
      const [{ epoch }] = places;
      const since = places.filter((place) => place.epoch === epoch).reduce((a, b) => (b.position < a.position ? b : a));
      const requesters = waiting.filter(
        ({ position, start }) => !start && position?.epoch === epoch && position.position === since.position,
      );
      return { event: "subscribe", body: { since }, requesters };
    }
    const since = waiting.find((one) => one.start)?.start;
    if (since) return { event: "subscribe", body: { since }, requesters: waiting.filter((one) => one.start === since) };
    const { history } = waiting.find((one) => !one.history) ?? waiting[0];
    const requesters = waiting.filter((one) => (history ? one.history === history : !one.history));
    return { event: "subscribe", body: history ? { history } : {}, requesters };
  }

  /** Returns the error, or null. */
  #send({ event, body, requesters }, retry) {
    this.#awaited = event;
    const sent = { ...this.place, ...body };
    if (event === "subscribe") {
      this.#open = true;
      if (this.#filter) sent.filter = this.#filter;
      if (this.#options.numbers) sent.numbers = this.#options.numbers;
    }
    return new Promise((resolve) => {
      const answered = (failure, answer) => {
        this.#awaited = "";
        // Here, not after the promise: messages that follow the answer may be handled before the promise resolves.
        if (!failure && event === "subscribe") this.#accept(answer, body, requesters);
        else if (!failure && event === "unsubscribe") this.#close();
        if (!failure && isForPresence(event, body)) this.presence.accept(event, body, answer);
        resolve(failure && new SubscriptionError(failure.code, failure.message, this.name));
      };
      if (event.startsWith("presence")) request(this.#socket, this.#options.timeout, event, sent, answered);
      else this.#requests.send(event, sent, retry, answered);
    });
  }

  /** The server has confirmed the subscription; with `since` or `history`, it replays the log after `start`. */
  #accept(answer, { since, history }, requesters) {
    this.#open = true;
    const wasLive = new Set([...this.members].filter((one) => one.live));
    const start = positionOf(answer);
    this.maxRate = answer.max_rate ?? null;
    const lost = answer.recovered === false;
    const given = typeof since === "string"; // a time or a snapshot
    for (const one of this.members) one.learnEpoch(start);
    if (start && !lost && (since || history)) {
      for (const one of this.members) {
        if (one.live) one.position ??= start; // subscribed before the log was installed
        if (one.position && !one.start) one.live = one.follows(start);
      }
    }
    for (const one of requesters) {
      if (!this.members.has(one) || one.live || (given && one.start !== since)) continue;
      if (lost && one.load && answer.reason !== "history_off") {
        this.#load(one);
        continue;
      }
      // Not if a gap has moved it since the request: it then requests what follows its new position.
      one.live = lost || !since || given || one.follows(since);
      if (lost || !since) {
        const installed = one.established && !one.position && start;
        one.position = start;
        one.start = null;
        one.history = 0;
        if (lost) one.reportGap({ tier: "log", reason: answer.reason, ...start });
        else if (installed) one.reportGap({ tier: "log", reason: "client_disconnected", ...start });
      } else if (given) {
        one.position ??= start;
        if (!one.startsFromSnapshot) one.start = null;
      }
    }
    // The server leaves out the messages that are in the snapshot, which the other handlers need: they wait until this
    // is done, and then get a replay of their own.
    if (requesters.some((one) => one.live && one.startsFromSnapshot)) {
      for (const one of this.members) if (!requesters.includes(one)) one.live = false;
    }
    for (const one of this.members) if (one.live && !wasLive.has(one)) this.#confirm(one);
    if (this.#retained && this.#retained.payload !== null && wasLive.size && !since && !history) {
      for (const one of requesters) if (one.live) one.deliver({ ...this.#retained, retained: true });
    }
    // Otherwise the server reports when the replay has caught up.
    if (!since && !history || !this.#options.sendsLive) {
      for (const one of requesters) if (one.live) one.becomeCurrent(null);
    }
  }

  /** @param {Member} one */
  #confirm(one) {
    one.established = true;
    one.resolve();
    call(one.onSubscribed);
    if (!one.lostAt) return;
    const [since, until] = [new Date(one.lostAt).toISOString(), new Date().toISOString()];
    one.lostAt = 0;
    one.reportGap({ tier: "notify", reason: "client_disconnected", since, until });
  }

  #close() {
    this.#open = false;
    this.presence.lose();
  }

  /** Reports the error. Returns whether to wait before the next request. */
  #fail(error, { event, body, requesters }) {
    const members = requesters.filter((one) => this.members.has(one));
    const forPresence = isForPresence(event, body);
    const worked = members.some((one) => one.established) || (forPresence && this.presence.worked);
    error.retrying = TRANSIENT.has(error.code) || (error.code === "internal" && worked);
    if (!error.retrying && forPresence && requesters.length) {
      this.#combines = false; // the next requests tell which of both the server refuses
      return false;
    }
    if (forPresence) this.presence.fail(error, event, body);
    if (!error.retrying && event === "unsubscribe") this.#close();
    this.#report(error, members);
    return error.retrying;
  }

  /**
   * @param {SubscriptionError} error
   * @param {Member[]} members
   */
  #report(error, members) {
    for (const one of error.retrying ? [] : members) this.members.delete(one);
    for (const one of members) one.fail(error);
  }

  /** Waits before the next attempt, or until something changes. */
  #sleep(attempt) {
    return new Promise((resolve) => {
      // At one of few moments, so that the retries of many channels share a request.
      const slot = Math.max(1, this.#options.retryDelay / 4);
      const end = Math.ceil((Date.now() + backoff(this.#options, attempt)) / slot) * slot;
      const timer = setTimeout(resolve, end - Date.now());
      this.#wake = () => {
        clearTimeout(timer);
        resolve(undefined);
      };
    }).finally(() => { this.#wake = null; });
  }

  // --- Events from the server ---

  /** The server's subscription is lost; `at` (ms) is when it was last known to be alive. */
  lose(at) {
    this.#close();
    for (const one of this.members) {
      one.live = one.isCurrent = false;
      one.learnEpoch(null);
      if (one.established) one.lostAt ||= at;
    }
    this.settle();
  }

  /** @param {Message} message */
  receive(message) {
    if (message.retained || (this.#retained && message.position > this.#retained.position)) this.#retained = message;
    for (const one of [...this.members]) {
      if (!this.members.has(one) || !one.established) continue; // ended by another handler of this message
      if (message.position !== undefined) {
        // It will be replayed, or was already delivered.
        if (!one.live || (one.position && message.position <= one.position.position)) continue;
        one.position = { epoch: one.position?.epoch ?? "", position: message.position };
        if (one.lacksEpoch) this.settle();
        else message.epoch = one.position.epoch;
      }
      one.deliver(message);
    }
  }

  /** @param {EphemeralMessage} message */
  receiveEphemeral(message) {
    for (const one of [...this.members]) if (this.members.has(one) && one.established) call(one.onEphemeral, message);
  }

  receivePresence(method, body) {
    this.presence.receive(method, body);
    this.settle();
  }

  receivePresenceEnded(ended) {
    this.presence.receiveEnded(ended);
    this.settle();
  }

  /** The server has replayed everything: what follows are live messages. @param {Position} edge */
  receiveLive(edge) {
    for (const one of this.members) if (one.live) one.becomeCurrent(positionOf(edge));
    this.settle();
  }

  /** @param {any} gap */
  receiveGap(gap) {
    const concernsLog = "position" in gap;
    if (concernsLog) this.#retained = null;
    for (const one of concernsLog ? this.#missing(gap) : [...this.members].filter((each) => each.established)) {
      if (concernsLog && one.load) {
        this.#load(one);
        continue;
      }
      // Also to a lower position: the log may have begun again, in the same epoch too.
      if (concernsLog) [one.position, one.start] = [positionOf(gap), null];
      one.reportGap({ tier: concernsLog ? "log" : "notify", ...gap });
    }
  }

  /**
   * Returns the members that miss messages of the log. With "trimmed" these are the ones before the gap's position: the
   * replay may have begun for one that was behind the others. If there are none, all members get the gap.
   */
  #missing(gap) {
    const all = [...this.members].filter((one) => one.established);
    const start = positionOf(gap);
    const behind = gap.reason === "trimmed" && start ? all.filter((one) => !one.follows(start)) : [];
    return behind.length ? behind : all;
  }

  /** Handles the answer to a request that timed out or that the application sent: another replay may have started. */
  checkSubscribed(body) {
    const start = positionOf(body);
    if (this.#awaited === "subscribe" || !start) return;
    for (const one of this.members) {
      one.learnEpoch(start);
      if (one.live && one.position && !one.start) one.live = one.follows(start);
    }
    this.settle();
  }

  /** Handles the end of a subscription that is no longer allowed, or that the application ended with its own request. */
  checkUnsubscribed({ reason }) {
    if (reason) {
      this.#open = false;
      const why = reason === "forbidden" ? "it is no longer allowed" : reason;
      const error = new SubscriptionError(reason, `The server has ended the subscription: ${why}.`, this.name);
      this.#report(error, [...this.members]);
      this.presence.end(error);
      this.settle();
    } else if (this.#awaited !== "unsubscribe") {
      this.lose(Date.now());
    }
  }
}

/**
 * The rows of a table, kept in step with the database: as returned by `subscribe({table})`. The server's row-level
 * security and column privileges apply.
 */
export class LiveTable {
  /**
   * The rows, by primary key: by its value, or with several columns by the JSON of the list of values; see `keyOf`.
   * Before the first rows have arrived it is empty. Only this class may change it.
   * @type {Map<any, Record<string, any>>}
   */
  rows = new Map();
  /** The columns of the primary key. @type {string[]} */
  key = [];
  /** The columns of the rows. @type {string[]} */
  columns = [];
  /** False when `limit` has left out rows. */
  complete = true;
  #socket;
  #options;
  #tables;
  #body;
  #handlers;
  /** @type {Map<any, Record<string, any>> | null} the rows of a new set, until its last page */
  #next = null;
  /** @type {Position | null} where to continue after a reconnect; null: with all rows */
  #position = null;
  #epoch = "";
  #isActive = false;
  #isCurrent = false;
  #isSettling = false;
  #ready = deferred();
  #caughtUp = deferred();
  #ended = new AbortController();

  /**
   * @param {any} socket
   * @param {any} options
   * @param {Map<string, LiveTable>} tables the tables in use
   * @param {TableRequest} request
   * @param {TableHandlers} [handlers]
   */
  constructor(socket, options, tables, { table, where, order, limit }, handlers = {}) {
    this.#socket = socket;
    this.#options = options;
    this.#tables = tables;
    this.#handlers = handlers;
    // Small numbers, not random ones: the server writes an event once for all clients that use the same id.
    this.#body = { table, id: String(++tableIds) };
    for (const [name, value] of Object.entries({ where, order, limit, numbers: options.numbers })) {
      if (value !== undefined && value !== null) this.#body[name] = value;
    }
    if (handlers.onError) this.#ready.promise.catch(() => {}); // onError reports it
    this.#caughtUp.promise.catch(() => {}); // `ready` reports it
    tables.set(this.#body.id, this);
    this.settle();
  }

  get table() { return this.#body.table; }

  /** Resolves when the server has confirmed it. Rejects with the SubscriptionError. @type {Promise<void>} */
  get ready() { return this.#ready.promise; }

  /** Resolves when the rows are current for the first time. Rejects like `ready`. @type {Promise<void>} */
  get live() { return this.#caughtUp.promise; }

  /** True when the rows follow the table at the moment. */
  get active() { return this.#isCurrent; }

  /** Returns the key of a row, or of another object that has the columns of the primary key. */
  keyOf(row) {
    return this.key.length === 1 ? row[this.key[0]] : JSON.stringify(this.key.map((column) => row[column]));
  }

  /** Ends the subscription: `rows` stay as they are. Idempotent. @returns {Promise<void>} */
  async unsubscribe() {
    if (this.#ended.signal.aborted) return;
    this.#ready.promise.catch(() => {}); // not an unhandled rejection: the application unsubscribed itself
    this.#end(new SubscriptionError("unsubscribed", "unsubscribed before the rows were current", this.table));
    const { table, id } = this.#body;
    if (this.#socket.connected) {
      const socket = this.#socket;
      await new Promise((resolve) => request(socket, this.#options.timeout, "unsubscribe", { table, id }, resolve));
    }
  }

  // --- For Subscriptions ---

  async settle() {
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

  lose() {
    this.#isActive = this.#isCurrent = false;
    this.#next = null;
  }

  receivePage({ first, last, rows, key, columns, complete, epoch, reason }) {
    if (!this.#isActive) return;
    if (first) {
      this.#next = new Map();
      [this.key, this.columns, this.#epoch, this.#position] = [key, columns, epoch, null];
      this.complete = complete !== false;
      this.#isCurrent = false;
    }
    if (!this.#next) return;
    for (const row of rows) this.#next.set(this.keyOf(row), row);
    if (!last) return;
    this.rows = this.#next;
    this.#next = null;
    call(this.#handlers.onRows, this.rows, reason);
  }

  receive({ payload, position }) {
    if (!this.#isActive || this.#next) return;
    if (this.#position) {
      if (position <= this.#position.position) return;
      this.#position = { epoch: this.#epoch, position };
    }
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
      const row = payload.new;
      rows.set(key, row);
      call(this.#handlers.onChange, { op: before ? "UPDATE" : "INSERT", key, row, before, payload }, rows);
    }
  }

  receiveLive({ epoch, position }) {
    if (!this.#isActive) return;
    this.#epoch = epoch;
    this.#position = { epoch, position };
    if (this.#isCurrent) return;
    this.#isCurrent = true;
    this.#caughtUp.resolve();
    call(this.#handlers.onLive);
  }

  checkUnsubscribed({ reason, message }) {
    if (!reason || !this.#isActive) return;
    this.lose();
    this.#position = null;
    const text = message ?? `The server has ended the subscription: ${reason}.`;
    const error = new SubscriptionError(reason, text, this.table);
    error.retrying = TRANSIENT.has(reason);
    this.#report(error);
    this.settle();
  }

  /** Returns the error as {code, message}, or null. */
  #subscribe() {
    const body = this.#position ? { ...this.#body, since: this.#position } : this.#body;
    return new Promise((resolve) => {
      request(this.#socket, this.#options.timeout, "subscribe", body, (failure, answer) => {
        // Here, not after the promise: the rows may be handled before the promise resolves.
        if (!failure && !this.#ended.signal.aborted) {
          this.#isActive = true;
          if (answer.recovered !== true) this.#position = null; // all rows follow
          this.#ready.resolve();
        }
        resolve(failure);
      });
    });
  }

  #report(error) {
    const { onError } = this.#handlers;
    if (onError) call(onError, error);
    if (error.retrying) return;
    const worked = this.key.length > 0;
    this.#end(error);
    if (worked && !onError) call(() => { throw error; });
  }

  #end(error) {
    this.lose();
    this.#tables.delete(this.#body.id);
    this.#ended.abort();
    this.#ready.reject(error);
    this.#caughtUp.reject(error);
  }
}

/**
 * Who is present on a channel, as returned by `presence()`. All of a channel share its members, and whether this client
 * has joined. After a reconnect the client joins again, with the same state.
 */
export class Presence {
  #channel;
  #shared;
  #settled = deferred();

  /**
   * @param {Channel} channel
   * @param {PresenceHandlers} handlers
   */
  constructor(channel, handlers) {
    this.#channel = channel;
    this.#shared = channel.presence;
    /** For ChannelPresence. */
    this.handlers = handlers;
    if (handlers.onError) this.#settled.promise.catch(() => {}); // onError reports it
    this.#shared.add(this);
  }

  get channel() { return this.#channel.name; }

  /**
   * The members by key, in a Map that follows the server's: only this class may change it. After a lost connection it
   * has the last known members.
   * @type {Map<string, PresenceMember>}
   */
  get members() { return this.#shared.state.members; }

  /** The number of members. */
  get count() { return this.#shared.state.count; }

  /** False before the members are known, and when there are too many of them: then only `count` is known. */
  get complete() { return this.#shared.state.complete; }

  /** The key of this client's own member; null if it has not joined. @type {string | null} */
  get key() { return this.#shared.key; }

  /**
   * Resolves when the members are known for the first time. Rejects with the SubscriptionError.
   * @type {Promise<void>}
   */
  get ready() { return this.#settled.promise; }

  /**
   * Joins, also after each reconnect, until `leave()` or `close()`. If it has joined already, the state changes.
   * @param {any} [state] any JSON value, up to 1 KB
   * @param {{key?: string}} [options] `key`: for anonymous clients, to be one member with several connections
   * @returns {Promise<void>} resolves when the server has confirmed it. Rejects with the SubscriptionError
   */
  join(state = null, { key } = {}) { return this.#shared.join(this, key === undefined ? { state } : { key, state }); }

  /**
   * Changes the state. Of changes in quick succession only the last one is sent.
   * @param {any} state
   * @returns {Promise<void>}
   */
  update(state) { return this.#shared.update(this, state); }

  /** Leaves, and goes on to watch. @returns {Promise<void>} */
  leave() { return this.#shared.join(this, null); }

  /** Leaves, if this object has joined, and ends the calls of its handlers. Idempotent. */
  close() {
    this.#settled.promise.catch(() => {}); // not an unhandled rejection: the application closed it itself
    const error = new SubscriptionError("unsubscribed", "closed before the server answered", this.channel);
    this.settle(error);
    this.#shared.remove(this, error);
    this.#channel.settle();
  }

  // --- For ChannelPresence ---

  settle(error) {
    if (error) this.#settled.reject(error);
    else this.#settled.resolve();
  }
}

/** The presence of one channel: which request comes next, and what the answers mean. */
class ChannelPresence {
  state = new PresenceState();
  /** @type {Set<Presence>} */
  handles = new Set();
  worked = false; // the server has confirmed it once
  #channel;
  /** @type {{key?: string, state: any} | null} what the application wants to join with */
  #join = null;
  /** @type {Presence | null} the object that has joined */
  #joiner = null;
  /** @type {boolean | {key?: string, state: any}} what the server has confirmed, on this connection */
  #confirmed = false;
  #sees = false; // the client may see the members
  /** @type {string | null} */
  #key = null;
  /** @type {any[]} calls that wait for the answer */
  #calls = [];

  /** @param {Channel} channel */
  constructor(channel) {
    this.#channel = channel;
  }

  /** The field `presence` of `subscribe`. */
  get wish() { return this.#join ?? this.handles.size > 0; }

  /** The key of this client's own member; null if it has not joined. */
  get key() { return this.#join && this.#key; }

  add(handle) {
    this.handles.add(handle);
    if (this.#confirmed) {
      handle.settle();
      if (this.state.current) queueMicrotask(() => this.#sync([handle]));
    }
  }

  remove(handle, error) {
    this.handles.delete(handle);
    if (this.#joiner === handle || !this.handles.size) this.#join = this.#joiner = null;
    this.#reject(error, (one) => one.handle === handle);
    this.#resolve();
  }

  join(handle, joined) {
    // A copy: the application may change its object, and pass it again.
    const wish = joined && JSON.parse(JSON.stringify({ ...joined, state: joined.state ?? null }));
    const made = { handle, wish: wish ?? true, ...deferred() };
    // `onError` reports it, or the application has closed it.
    if (handle.handlers.onError || !this.handles.has(handle)) made.promise.catch(() => {});
    this.#calls.push(made);
    if (this.handles.has(handle)) {
      this.#join = wish;
      this.#joiner = wish && handle;
      this.#resolve();
      this.#channel.settle();
    } else this.#reject(this.#error("unsubscribed", "close() was called."), (one) => one === made);
    return made.promise;
  }

  update(handle, state) {
    if (!this.#join) throw new TypeError("join() comes before update()");
    return this.join(handle, { ...this.#join, state });
  }

  /** Returns the next request; null when there is nothing to do. */
  next() {
    const [wish, now] = [this.wish, this.#confirmed];
    if (isEqual(wish, now)) return this.#sees && !this.state.current ? { event: "presence_get", body: {} } : null;
    if (wish === true && now) return { event: "presence_leave", body: {} };
    if (typeof wish === "object" && typeof now === "object" && wish.key === now.key) {
      return { event: "presence_update", body: { state: wish.state } };
    }
    return { event: "subscribe", body: { presence: wish } };
  }

  /** The server has confirmed a request. */
  accept(event, { presence: wish, state }, answer) {
    if (event === "presence_get") {
      this.receive("sync", answer);
      return;
    }
    const { presence } = answer;
    if (event === "presence_update") this.#confirmed = { .../** @type {any} */ (this.#confirmed), state };
    else if (event === "presence_leave") this.#confirmed = true;
    else if (wish && !presence) this.end(this.#error("not_supported", "The server is of an older version."));
    else this.#confirmed = wish;
    this.#key = typeof this.#confirmed === "object" ? presence?.key ?? this.#key : null;
    if (event === "subscribe") {
      this.#sees = presence?.version !== undefined;
      if (this.#sees) this.receive("sync", presence);
    }
    this.worked = true;
    for (const handle of this.handles) handle.settle();
    this.#resolve();
  }

  /** A request has failed. Unless it is retried, what it was for is given up. */
  fail(error, event, { presence, state }) {
    const wish = event === "presence_update" ? { .../** @type {any} */ (this.#confirmed), state } : presence ?? true;
    if (error.retrying) this.#report(error);
    else if (event === "presence_get" && typeof this.#confirmed === "object") {
      this.#sees = false;
      this.#report(error);
    } else if (typeof wish !== "object") this.end(error);
    else {
      this.#reject(error, (one) => isEqual(one.wish, wish));
      if (isEqual(wish, this.#join)) { // the client remains what it was, and earlier calls cannot succeed
        this.#reject(error, () => true);
        this.#join = typeof this.#confirmed === "object" ? this.#confirmed : null;
        this.#joiner = this.#join && this.#joiner;
      }
      this.#report(error);
    }
  }

  /** The server has ended the subscription, or refuses it. */
  end(error) {
    const handles = [...this.handles];
    this.lose();
    this.handles.clear();
    this.#join = this.#joiner = this.#key = null;
    this.#reject(error, () => true);
    this.#report(error, handles);
    for (const handle of handles) handle.settle(error);
  }

  lose() {
    this.#confirmed = this.#sees = false;
    this.state.lose();
  }

  /** Takes the state or a difference. @param {"sync" | "apply"} method */
  receive(method, body) {
    const changes = this.state[method](body);
    for (const { kind, member, before } of changes) {
      for (const { handlers } of [...this.handles]) {
        if (kind === "join") call(handlers.onJoin, member);
        else if (kind === "update") call(handlers.onUpdate, member, before);
        else call(handlers.onLeave, member);
      }
    }
    if (this.state.current) this.#sync([...this.handles]);
  }

  /** The server has ended what the client did not end. After a change of identity it joins again. */
  receiveEnded({ reason, joined, watching }) {
    this.#confirmed = joined && this.#confirmed;
    if (!joined && watching) this.#confirmed = true;
    if (!watching) this.#sees = false;
    this.#resolve();
    if (reason === "identity_changed") return;
    const error = this.#error(reason, "The server has ended the presence: it is no longer allowed.");
    if (!joined) this.#join = this.#joiner = this.#key = null;
    if (joined || watching) this.#report(error);
    else this.end(error);
  }

  #error(code, message) { return new SubscriptionError(code, message, this.#channel.name); }

  #resolve() {
    if (!isEqual(this.wish, this.#confirmed)) return;
    for (const one of this.#calls.splice(0)) one.resolve();
  }

  #reject(error, concerns) {
    for (const one of this.#calls) if (concerns(one)) one.reject(error);
    this.#calls = this.#calls.filter((one) => !concerns(one));
  }

  #sync(handles) {
    for (const handle of handles) {
      if (this.handles.has(handle)) call(handle.handlers.onSync, this.state.members, handle);
    }
  }

  #report(error, handles = [...this.handles]) {
    for (const { handlers } of handles) call(handlers.onError, error);
  }
}

/**
 * The members of a channel's presence, kept in step with what the server sends. Pure: it calls nothing and waits for
 * nothing. Each change replaces a member, and never modifies it.
 */
export class PresenceState {
  /** The members by key, in a Map: keys come from users, and may be "__proto__". @type {Map<string, PresenceMember>} */
  members = new Map();
  /** How many members there are. More than `members` has when the server sends only the count. */
  count = 0;
  /** Whether `members` has all of them. */
  complete = false;
  /** @type {number | null} on this connection; null: the state must be requested */
  #version = null;
  /** @type {any[]} the differences that have arrived since */
  #early = [];

  /** Whether the next difference can be applied. If not, the state must be requested. */
  get current() { return this.#version !== null; }

  /** The connection is lost: the next state is compared with the members of now. */
  lose() {
    this.#version = null;
    this.#early = [];
  }

  /**
   * Takes the state that the server has sent. Returns the changes, but not for the members who are there at first.
   * @returns {PresenceChange[]}
   */
  sync({ version, count, members }) {
    const early = this.#early.splice(0);
    this.#version = version;
    const changes = this.#replace(members, count);
    for (const difference of early) {
      if (this.#version === null || difference.version > this.#version) changes.push(...this.apply(difference));
    }
    return changes;
  }

  /**
   * Takes a difference. Returns the changes. Afterwards `current` is false if an earlier difference is missing.
   * @returns {PresenceChange[]}
   */
  apply(difference) {
    const { version, previous, count, joined, updated, left } = difference;
    if (previous !== this.#version) {
      this.#version = null;
      if (this.#early.push(difference) > MAX_EARLY) this.#early.shift();
      return [];
    }
    this.#version = version;
    if (!joined || !this.complete) return this.#replace(undefined, count); // too many members: no lists
    this.count = count;
    const changes = [...joined, ...updated].flatMap((member) => this.#set(member));
    return [...changes, ...left.flatMap(({ key }) => this.#remove(key))];
  }

  /** Takes all members; undefined: they are not known any more. */
  #replace(members, count) {
    const changes = [];
    this.count = count;
    if (members && this.complete) {
      const present = new Set(members.map(({ key }) => key));
      for (const member of members) changes.push(...this.#set(member));
      for (const key of [...this.members.keys()]) if (!present.has(key)) changes.push(...this.#remove(key));
    }
    this.complete = Boolean(members);
    this.members.clear();
    for (const member of members ?? []) this.members.set(member.key, member);
    return changes;
  }

  /** @returns {PresenceChange[]} */
  #set(member) {
    const before = this.members.get(member.key);
    this.members.set(member.key, member);
    if (!before) return [{ kind: "join", member }];
    // By ref: the Socket.IO id of a connection that has returned is no change.
    const states = new Map(before.metas.map(({ ref, state }) => [ref, state]));
    const isSame = states.size === member.metas.length
      && member.metas.every(({ ref, state }) => states.has(ref) && isEqual(states.get(ref), state));
    return isSame ? [] : [{ kind: "update", member, before }];
  }

  /** @returns {PresenceChange[]} */
  #remove(key) {
    const before = this.members.get(key);
    return this.members.delete(key) ? [{ kind: "leave", member: before, before }] : [];
  }
}

/** @param {{channel?: string, pattern?: string}} place */
function nameOf({ channel, pattern }) {
  return /** @type {string} */ (pattern ?? channel);
}

/** Returns whether a request changes or asks for presence. */
function isForPresence(event, body) {
  return event.startsWith("presence") || "presence" in body;
}

/**
 * @param {{epoch?: string | null, position?: number}} body
 * @returns {Position | null}
 */
function positionOf({ epoch, position }) {
  return typeof epoch === "string" && typeof position === "number" ? { epoch, position } : null;
}

/**
 * Checks a `since`. Returns a position, or a string for the server: a time, or the token of a snapshot.
 * @param {any} since
 * @returns {Position | string}
 */
function placeOf(since) {
  if (since instanceof Date) return since.toISOString();
  if (typeof since !== "string") {
    const position = positionOf(since);
    if (!position) throw new TypeError("since must be like {epoch: \"…\", position: 0}, a string or a Date");
    return position;
  }
  const [, epoch, position] = /^([0-9a-f-]{36}):(\d+)$/.exec(since) ?? [];
  return epoch ? { epoch, position: Number(position) } : since;
}

/** Sends a request. Calls `answered` with the error as {code, message}, or with null and the answer. */
function request(socket, timeout, event, body, answered) {
  socket.timeout(timeout).emit(event, body, (failure, answer) => {
    if (failure) answered(NO_ANSWER);
    else answered(failureOf(answer), answer);
  });
}

// After these errors, a message may have been published.
const UNCERTAIN = new Set(["no_answer", "database_unavailable", "internal"]);

const CLOSED = { code: "closed", message: "close() was called." };
const NO_ANSWER = { code: "no_answer", message: "The server did not answer." };

/** Returns the error of an answer as {code, message}, or null. */
function failureOf(answer) {
  if (answer?.ok === true) return null;
  return { code: answer?.error?.code ?? "internal", message: answer?.error?.message ?? "" };
}

/** Returns the results in the body of `subscribed` or `unsubscribed`: one, or one for each channel. */
function resultsOf(body) {
  return body.channels ? body.channels.filter((one) => one.ok) : [body];
}

/** Returns whether two JSON values are equal. */
function isEqual(a, b) {
  if (a === b || typeof a !== "object" || typeof b !== "object" || !a || !b) return a === b;
  const keys = Object.keys(a);
  return Array.isArray(a) === Array.isArray(b) && keys.length === Object.keys(b).length
    && keys.every((key) => Object.hasOwn(b, key) && isEqual(a[key], b[key]));
}

/** Returns the milliseconds before the next attempt. */
function backoff({ retryDelay, retryDelayMax }, attempt) {
  return Math.min(retryDelayMax, retryDelay * 2 ** attempt) * spread();
}

/** Waits, also when the time is zero. Ends early when `signal` is aborted. */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve(undefined);
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
  });
}

/** The last id of a live table: a page may have several `Subscriptions` on one socket. */
let tableIds = 0;

/** Returns an id that others do not guess. `crypto.randomUUID` exists only in pages served over https. */
function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Returns a promise with the functions that settle it. */
function deferred() {
  const made = /** @type {{promise: Promise<void>, resolve: () => void, reject: (error: Error) => void}} */ ({});
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}

/** Returns a random factor, so that many clients do not retry at the same time. */
function spread() {
  return 0.5 + Math.random() / 2;
}

/** Calls a callback of the application. Rethrows its errors in a microtask, so that they do not affect the caller. */
function call(callback, ...values) {
  try {
    callback?.(...values);
  } catch (error) {
    queueMicrotask(() => { throw error; });
  }
}
