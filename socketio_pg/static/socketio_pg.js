// Subscriptions for the stock Socket.IO client (socket.io-client 3 and 4) that survive reconnects: after each reconnect
// they subscribe again, from the last position in the log that was delivered. This module does not publish. It calls
// `connect()` only when it has the option `token`, to reconnect after the server refused the connection.
//
//   const subscriptions = new Subscriptions(io("https://example.com", { transports: ["websocket"] }), {
//     token: async () => (await fetch("/token")).text(), // if the server requires one
//   });
//   const orders = subscriptions.subscribe("orders", ({ payload }) => show(payload), {
//     since: JSON.parse(localStorage.getItem("orders")), // saved before the page was reloaded, or null
//     onGap: (gap) => fetchOrders(),
//   });
//   addEventListener("pagehide", () => localStorage.setItem("orders", JSON.stringify(orders.position)));

/**
 * A place in the log. Only positions of the same epoch can be compared.
 * @typedef {{epoch: string, position: number}} Position
 */

/**
 * A message, as in docs/protocol.md. Only messages of the log have `position` and `epoch`; pass both as `since`.
 * @typedef {object} Message
 * @property {string} channel
 * @property {any} payload any JSON value
 * @property {string} [epoch]
 * @property {number} [position] its place in the log
 * @property {string} [published_at] ISO 8601, by the database's clock
 * @property {boolean} [replayed] whether it was replayed because of `since` or `history`, or after a reconnect
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
 *
 * `since` and `until` (ISO 8601) bound the time in which messages may be missing: by the server's clock with
 * "database_connection_lost"; by this client's clock, from the last packet of the server, with "client_disconnected".
 * `epoch` and `position` are set when the subscription continues from another position.
 * @typedef {object} Gap
 * @property {string} channel
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
 * Without `since` and `history`, a subscription gets new messages only.
 * @typedef {object} SubscribeOptions
 * @property {Position | null} [since] a saved position: the messages after it in the log are replayed first
 * @property {Record<string, any> | null} [filter] only messages that match it, as in docs/protocol.md: `{"new.id": 5}`.
 *   All handlers of a channel must have the same filter
 * @property {number} [history] replay this many of the log's newest messages first. Ignored when `since` is given
 * @property {(gap: Gap) => void} [onGap]
 * @property {(error: SubscriptionError) => void} [onError] called with every failure, including those that are retried
 * @property {() => void} [onSubscribed] called when the server has confirmed it, also after each reconnect
 */

/** The server refused a subscription, or did not answer. */
export class SubscriptionError extends Error {
  /**
   * @param {string} code one of docs/protocol.md, or "no_answer" or "unsubscribed"
   * @param {string} message
   * @param {string} channel
   */
  constructor(code, message, channel) {
    super(message);
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

// Limits of one request for many channels: the server allows 500, and limits the bytes.
const MAX_TOGETHER = 250;
const MAX_CHARACTERS = 100_000;

// ms for which a retry waits for those of other channels, to share a request with them.
const JOIN_DELAY = 20;

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
 * @property {"string"} [numbers] "string": numbers in payloads are strings, with all their digits. JavaScript rounds
 *   integers over 2^53 and decimals
 * @property {number} [timeout] ms to wait for each answer of the server
 * @property {number} [retryDelay] ms before the first retry; doubles with each failure
 * @property {number} [retryDelayMax] the longest delay before a retry, in ms
 */

/** The subscriptions on one socket. All handlers of a channel share one subscription at the server. */
export class Subscriptions {
  #socket;
  #options;
  #login;
  #requests;
  /** @type {Map<string, Channel>} */
  #channels = new Map();
  /** @type {Health | null} */
  #health = null;
  #heard = Date.now(); // when the server last sent something, in ms

  /**
   * @param {any} socket returned by io(...). With the option `token` it must not be connected yet
   * @param {Options} [options]
   */
  constructor(socket, options = {}) {
    this.#socket = socket;
    this.#options = { timeout: 15_000, retryDelay: 1_000, retryDelayMax: 15_000, ...options };
    this.#login = options.token && new Login(socket, this.#options);
    this.#requests = new Requests(socket, this.#options, this.#listeners.subscribed);
    for (const [event, listener] of Object.entries(this.#listeners)) socket.on(event, listener);
    socket.io.on("ping", this.#hear);
  }

  /**
   * Calls `handler` with each message of `channel`, until the subscription's `unsubscribe()`.
   *
   * Messages of the log come in order, each once, also across reconnects. There is no order between messages of the
   * log and messages of NOTIFY. An error that a handler throws does not affect other handlers: it is rethrown in a
   * microtask, for the global handler of uncaught errors. Promises that a handler returns are not awaited.
   * @param {string} channel
   * @param {(message: Message) => void} handler
   * @param {SubscribeOptions} [options]
   * @returns {Subscription}
   * @throws {TypeError} when `since` is not a position, or another handler of `channel` has another filter
   */
  subscribe(channel, handler, options = {}) {
    const member = new Member(channel, handler, options);
    const shared = this.#channels.get(channel) ?? new Channel(channel, this.#socket, this.#requests, this.#options, this.#channels);
    shared.setFilter(options.filter ?? null);
    this.#channels.set(channel, shared);
    shared.members.add(member);
    shared.settle();
    return new Subscription(member, shared);
  }

  /**
   * The server's last report on its database; null before the first one. Create this object before the socket connects:
   * the first report comes with the connection.
   * @type {Health | null}
   */
  get health() { return this.#health; }

  /** Ends all subscriptions and detaches from the socket, which stays connected and keeps its `auth`. */
  close() {
    this.#login?.close();
    for (const [event, listener] of Object.entries(this.#listeners)) this.#socket.off(event, listener);
    this.#socket.io.off("ping", this.#hear);
    for (const channel of this.#channels.values()) {
      for (const member of channel.members) channel.remove(member);
    }
  }

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
      for (const channel of this.#channels.values()) channel.settle();
    },
    disconnect: () => {
      this.#requests.lose();
      for (const channel of this.#channels.values()) channel.lose(this.#heard);
    },
    event: (message) => {
      this.#hear();
      this.#channels.get(message.channel)?.receive(message);
    },
    server_hello: ({ health }) => this.#report(health),
    health: (health) => this.#report(health),
    gap: (gap) => this.#channels.get(gap.channel)?.receiveGap(gap),
    subscribed: (body) => {
      for (const one of resultsOf(body)) this.#channels.get(one.channel)?.checkSubscribed(one);
    },
    unsubscribed: (body) => {
      for (const one of resultsOf(body)) this.#channels.get(one.channel)?.checkUnsubscribed(one);
    },
  };
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
    const channels = part.map(({ body }) => (event === "subscribe" ? body : body.channel));
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

  get channel() { return this.#channel.name; }

  /**
   * Resolves when the server has confirmed the subscription for the first time: from then on, missed messages are
   * reported as a gap. Rejects with the SubscriptionError if the subscription ended before that.
   * @type {Promise<void>}
   */
  get ready() { return this.#member.ready; }

  /** True when the server has confirmed the subscription on the current connection. */
  get active() { return this.#member.live; }

  /**
   * The position in the log up to which all messages were passed to the handler, including the one it is handling:
   * store it, and pass it as `since` next time. Null if the server has no log or has not answered yet.
   * @type {Position | null}
   */
  get position() { return this.#member.lacksEpoch ? null : this.#member.position; }

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

  /**
   * @param {string} channel
   * @param {(message: Message) => void} handler
   * @param {SubscribeOptions} options
   */
  constructor(channel, handler, { since, history, onGap, onError, onSubscribed }) {
    this.channel = channel;
    this.handler = handler;
    if (since && !positionOf(since)) throw new TypeError("since must be like {epoch: \"…\", position: 0}");
    /**
     * The epoch is "" while it is unknown: the log was installed after we subscribed.
     * @type {Position | null}
     */
    this.position = since ? positionOf(since) : null;
    this.history = this.position ? 0 : history ?? 0;
    this.onGap = onGap;
    this.onError = onError;
    this.onSubscribed = onSubscribed;
    this.ready = new Promise((resolve, reject) => {
      this.resolve = /** @type {() => void} */ (resolve);
      this.reject = reject;
    });
    if (onError) this.ready.catch(() => {}); // onError reports it
  }

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
    call(this.onGap, { channel: this.channel, ...gap });
  }

  /** @param {SubscriptionError} error */
  fail(error) {
    if (this.onError) call(this.onError, error);
    if (error.retrying) return;
    if (!this.established) this.reject(error);
    else if (!this.onError) call(() => { throw error; });
  }
}

/** One channel: changes the server's subscription to what its members need, with one request at a time. */
class Channel {
  /** @type {Set<Member>} */
  members = new Set();
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
   * @param {string} name
   * @param {any} socket
   * @param {Requests} requests
   * @param {{retryDelay: number, retryDelayMax: number, numbers?: "string"}} options
   * @param {Map<string, Channel>} channels the channels in use; an unused channel removes itself
   */
  constructor(name, socket, requests, options, channels) {
    this.name = name;
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
  remove(member) {
    if (!this.members.delete(member)) return;
    member.live = false;
    if (!member.established) {
      member.ready.catch(() => {}); // not an unhandled rejection: the application unsubscribed itself
      member.reject(new SubscriptionError("unsubscribed", "unsubscribed before the server answered", this.name));
    }
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
      else if (this.#socket.id === id && this.#fail(error, request.requesters)) await this.#sleep(attempt++);
    }
    this.#settling = null;
    if (!this.members.size && !this.#open && this.#channels.get(this.name) === this) this.#channels.delete(this.name);
  }

  /** Returns the next request and the members that need it (`requesters`); null when there is nothing to do. */
  #next() {
    if (!this.members.size) return this.#open ? { event: "unsubscribe", body: {}, requesters: [] } : null;
    const waiting = [...this.members].filter((one) => !one.live || one.lacksEpoch);
    if (!waiting.length) return null;
    // Members with a position come first, from the lowest position on: a replay that starts later, for a new member's
    // history, would move the live messages past them.
    const places = waiting.flatMap((one) => (one.position && !one.lacksEpoch ? [one.position] : []));
    if (places.length) {
      const [{ epoch }] = places;
      const since = places.filter((place) => place.epoch === epoch).reduce((a, b) => (b.position < a.position ? b : a));
      const requesters = waiting.filter(
        ({ position }) => position?.epoch === epoch && position.position === since.position,
      );
      return { event: "subscribe", body: { since }, requesters };
    }
    const { history } = waiting.find((one) => !one.history) ?? waiting[0];
    const requesters = waiting.filter((one) => (history ? one.history === history : !one.history));
    return { event: "subscribe", body: history ? { history } : {}, requesters };
  }

  /** Returns the error, or null. */
  #send({ event, body, requesters }, retry) {
    this.#awaited = event;
    const sent = { channel: this.name, ...body };
    if (event === "subscribe") {
      this.#open = true;
      if (this.#filter) sent.filter = this.#filter;
      if (this.#options.numbers) sent.numbers = this.#options.numbers;
    }
    return new Promise((resolve) => {
      this.#requests.send(event, sent, retry, (failure, answer) => {
        this.#awaited = "";
        // Here, not after the promise: messages that follow the answer may be handled before the promise resolves.
        if (!failure && event === "subscribe") this.#accept(answer, body, requesters);
        else if (!failure) this.#open = false;
        resolve(failure && new SubscriptionError(failure.code, failure.message, this.name));
      });
    });
  }

  /** The server has confirmed the subscription; with `since` or `history`, it replays the log after `start`. */
  #accept(answer, { since, history }, requesters) {
    this.#open = true;
    const wasLive = new Set([...this.members].filter((one) => one.live));
    const start = positionOf(answer);
    const lost = answer.recovered === false;
    for (const one of this.members) one.learnEpoch(start);
    if (start && !lost && (since || history)) {
      for (const one of this.members) {
        if (one.live) one.position ??= start; // subscribed before the log was installed
        if (one.position) one.live = one.follows(start);
      }
    }
    for (const one of requesters) {
      if (!this.members.has(one) || one.live) continue;
      // Not if a gap has moved it since the request: it then requests what follows its new position.
      one.live = lost || !since || one.follows(since);
      if (lost || !since) {
        const installed = one.established && !one.position && start;
        one.position = start;
        one.history = 0;
        if (lost) one.reportGap({ tier: "log", reason: answer.reason, ...start });
        else if (installed) one.reportGap({ tier: "log", reason: "client_disconnected", ...start });
      }
    }
    for (const one of this.members) if (one.live && !wasLive.has(one)) this.#confirm(one);
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

  /** Reports the error. Returns whether to retry. */
  #fail(error, requesters) {
    const members = requesters.filter((one) => this.members.has(one));
    const worked = members.some((one) => one.established);
    error.retrying = TRANSIENT.has(error.code) || (error.code === "internal" && worked);
    if (!error.retrying && !requesters.length) this.#open = false; // it was unsubscribe
    this.#report(error, members);
    return error.retrying;
  }

  /**
   * @param {SubscriptionError} error
   * @param {Member[]} members
   */
  #report(error, members) {
    for (const one of error.retrying ? [] : members) {
      one.live = false;
      this.members.delete(one);
    }
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
    this.#open = false;
    for (const one of this.members) {
      one.live = false;
      one.learnEpoch(null);
      if (one.established) one.lostAt ||= at;
    }
    this.settle();
  }

  /** @param {Message} message */
  receive(message) {
    for (const one of [...this.members]) {
      if (!this.members.has(one) || !one.established) continue; // ended by another handler of this message
      if (message.position !== undefined) {
        // It will be replayed, or was already delivered.
        if (!one.live || (one.position && message.position <= one.position.position)) continue;
        one.position = { epoch: one.position?.epoch ?? "", position: message.position };
        if (one.lacksEpoch) this.settle();
        else message.epoch = one.position.epoch;
      }
      call(one.handler, message);
    }
  }

  /** @param {any} gap */
  receiveGap(gap) {
    const concernsLog = "position" in gap;
    for (const one of concernsLog ? this.#missing(gap) : [...this.members].filter((each) => each.established)) {
      // Also to a lower position: the log may have begun again, in the same epoch too.
      if (concernsLog) one.position = positionOf(gap);
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
      if (one.live && one.position) one.live = one.follows(start);
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
      this.settle();
    } else if (this.#awaited !== "unsubscribe") {
      this.lose(Date.now());
    }
  }
}

/**
 * @param {{epoch?: string | null, position?: number}} body
 * @returns {Position | null}
 */
function positionOf({ epoch, position }) {
  return typeof epoch === "string" && typeof position === "number" ? { epoch, position } : null;
}

/** Sends a request. Calls `answered` with the error as {code, message}, or with null and the answer. */
function request(socket, timeout, event, body, answered) {
  socket.timeout(timeout).emit(event, body, (failure, answer) => {
    if (failure) answered(NO_ANSWER);
    else answered(failureOf(answer), answer);
  });
}

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

/** Returns the milliseconds before the next attempt. */
function backoff({ retryDelay, retryDelayMax }, attempt) {
  return Math.min(retryDelayMax, retryDelay * 2 ** attempt) * spread();
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
