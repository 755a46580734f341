// Subscriptions that outlive their connection, for the stock Socket.IO client (socket.io-client 3 and 4): subscribed again
// after every reconnect, from the position in the log that was reached. It does not publish, and connects only where it
// has the token: again, when the server did not let it in.
//
//   const subscriptions = new Subscriptions(io("https://example.com", { transports: ["websocket"] }), {
//     token: async () => (await fetch("/token")).text(), // where the server asks for one
//   });
//   const orders = subscriptions.subscribe("orders", ({ payload }) => show(payload), {
//     since: JSON.parse(localStorage.getItem("orders")), // of the page before the reload, or null
//     onGap: (gap) => fetchOrders(),
//   });
//   addEventListener("pagehide", () => localStorage.setItem("orders", JSON.stringify(orders.position)));

/**
 * A place in the log. Positions can only be compared within one epoch.
 * @typedef {{epoch: string, position: number}} Position
 */

/**
 * A message, as in docs/protocol.md. Only those of the log have a position; it and `epoch` are what `since` takes.
 * @typedef {object} Message
 * @property {string} channel
 * @property {any} payload any JSON value
 * @property {string} [epoch]
 * @property {number} [position] its place in the log
 * @property {string} [published_at] ISO 8601, by the database's clock
 * @property {boolean} [replayed] sent because of `since` or `history`, also after a reconnect
 */

/**
 * Messages may have been missed: fetch again what must not be stale.
 *
 * `tier` says which. "notify": those of NOTIFY; all messages of the log still arrive, so who publishes only through
 * the log can ignore it. "log": those of the log are lost for this subscription. When both happen, both are reported.
 *
 * The reasons of docs/protocol.md, and "client_disconnected": this client's own connection was lost. That is a gap of
 * the tier "notify" at every reconnect, and one of the tier "log" only where the log was installed meanwhile.
 *
 * `since` and `until` (ISO 8601) bound the time that is in doubt: by the server's clock with
 * "database_connection_lost", and by this client's, from the last sign of the server's life, with
 * "client_disconnected". `epoch` and `position` are there when the subscription goes on from another position.
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
 * Without `since` and `history`, messages come from now on.
 * @typedef {object} SubscribeOptions
 * @property {Position | null} [since] a remembered position: what follows it in the log is replayed first
 * @property {Record<string, any> | null} [filter] only messages that fulfil it, as in docs/protocol.md: `{"new.id": 5}`.
 *   All handlers of a channel have the same
 * @property {number} [history] replay so many of the log's newest messages first. Not used where `since` is given
 * @property {(gap: Gap) => void} [onGap]
 * @property {(error: SubscriptionError) => void} [onError] every failure, also one after which it is tried again
 * @property {() => void} [onSubscribed] the server has confirmed it, at first and after each reconnect
 */

/** Why the server refused, or did not answer. */
export class SubscriptionError extends Error {
  /**
   * @param {string} code one of docs/protocol.md, or "no_answer", "unsubscribed"
   * @param {string} message
   * @param {string} channel
   */
  constructor(code, message, channel) {
    super(message);
    this.name = "SubscriptionError";
    this.code = code;
    this.channel = channel;
    /** Whether it is tried again by itself. If not, the subscription has ended. */
    this.retrying = false;
  }
}

/**
 * The server did not let the client in, or could not be given a new token before the old one's end.
 *
 * It is the latter when the socket is connected. Nothing is lost then: it is tried again until that end, when the server
 * closes the connection, and another one is made with what `token` returns by then.
 */
export class TokenError extends Error {
  /**
   * @param {string} code one of docs/protocol.md, or "no_answer", or "no_token": the function `token` had none, or only
   *   the old one
   * @param {string} message
   * @param {ErrorOptions} [options] `cause`: what `token` has thrown
   */
  constructor(code, message, options) {
    super(message, options);
    this.name = "TokenError";
    this.code = code;
    /** Whether it is tried again by itself. If not, the socket stays disconnected until its `connect()`. */
    this.retrying = false;
  }
}

// Worth another try, later. So is "internal" for what has worked before.
const TRANSIENT = new Set(["database_unavailable", "authentication_unavailable", "rate_limited", "no_answer"]);

// Tokens refused in a row before that is believed: one can expire on its way, or be newer than the server's clock.
const MAX_REFUSALS = 3;

// The server warns 30 s before a token's end, and many tokens may have the same: ms over which renewals are spread.
const RENEWAL_SPREAD = 10_000;

/**
 * @typedef {object} Options
 * @property {() => string | null | undefined | Promise<string | null | undefined>} [token] called for each connection,
 *   and before the token's end; without a token one is anonymous. For connecting, a `socket.auth` of the application's
 *   own is used instead
 * @property {(error: TokenError) => void} [onTokenError] every failure, also one after which it is tried again. Without
 *   it, one after which it is not is thrown for the page's or the process's handler of uncaught errors
 * @property {number} [timeout] ms to wait for the server's answers
 * @property {number} [retryDelay] ms before what has failed is tried again; doubles with each failure
 * @property {number} [retryDelayMax] ms, at most
 */

/** The subscriptions on one socket. Any number of handlers for a channel share one subscription at the server. */
export class Subscriptions {
  #socket;
  #options;
  #login;
  /** @type {Map<string, Channel>} */
  #channels = new Map();
  #heard = Date.now(); // from the server, in ms

  /**
   * @param {any} socket what io(...) returned; connected or not, but with `token` not yet
   * @param {Options} [options]
   */
  constructor(socket, options = {}) {
    this.#socket = socket;
    this.#options = { timeout: 15_000, retryDelay: 1_000, retryDelayMax: 15_000, ...options };
    this.#login = options.token && new Login(socket, this.#options);
    for (const [event, listener] of Object.entries(this.#listeners)) socket.on(event, listener);
    socket.io.on("ping", this.#hear);
  }

  /**
   * Calls `handler` with each message of `channel`, until the subscription's `unsubscribe()`.
   *
   * Messages of the log come in order, each once, also across reconnects. Between them and those of NOTIFY there is no
   * order. What a handler throws reaches nobody else: it is thrown again on its own, for the page's or the process's
   * handler of uncaught errors. Promises of a handler are not waited for.
   * @param {string} channel
   * @param {(message: Message) => void} handler
   * @param {SubscribeOptions} [options]
   * @returns {Subscription}
   * @throws {TypeError} when `since` is something else than a position, or another handler of `channel` has another filter
   */
  subscribe(channel, handler, options = {}) {
    const member = new Member(channel, handler, options);
    const shared = this.#channels.get(channel) ?? new Channel(channel, this.#socket, this.#options, this.#channels);
    shared.setFilter(options.filter ?? null);
    this.#channels.set(channel, shared);
    shared.members.add(member);
    shared.settle();
    return new Subscription(member, shared);
  }

  /** Ends all subscriptions and lets go of the socket, which stays as it is: connected, with its `auth`. */
  close() {
    this.#login?.close();
    for (const [event, listener] of Object.entries(this.#listeners)) this.#socket.off(event, listener);
    this.#socket.io.off("ping", this.#hear);
    for (const channel of this.#channels.values()) {
      for (const member of channel.members) channel.remove(member);
    }
  }

  #hear = () => { this.#heard = Date.now(); };

  /** @type {Record<string, (body: any) => void>} */
  #listeners = {
    connect: () => {
      this.#hear();
      for (const channel of this.#channels.values()) channel.settle();
    },
    disconnect: () => {
      for (const channel of this.#channels.values()) channel.lose(this.#heard);
    },
    event: (message) => {
      this.#hear();
      this.#channels.get(message.channel)?.receive(message);
    },
    gap: (gap) => this.#channels.get(gap.channel)?.receiveGap(gap),
    subscribed: (body) => this.#channels.get(body.channel)?.checkSubscribed(body),
    unsubscribed: (body) => this.#channels.get(body.channel)?.checkUnsubscribed(body),
  };
}

/** Brings the application's token to the server: with each connection, and a new one before the old one's end. */
class Login {
  #socket;
  #options;
  /** @type {string | null | undefined} */
  #token; // the last that was brought; null: none was
  #failures = 0; // in a row
  #refusals = 0; // of these, those that were about the token
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
      if (this.#socket.active) return; // it was only the network, and the stock client tries again by itself
      const code = error.data?.code ?? "refused";
      const again = code === "unauthorized" ? ++this.#refusals < MAX_REFUSALS && this.#token !== null
        : TRANSIENT.has(code);
      this.#fail(new TokenError(code, error.message), again && this.#reconnect);
    },
    token_expiring: ({ expires_at: end }) => {
      // A token that lives shorter than the server warns is not renewed all the time, either.
      const soon = (Date.parse(end) - Date.now()) / 3;
      const delay = Math.min(RENEWAL_SPREAD, Math.max(this.#options.retryDelay, soon));
      this.#later(delay * spread(), () => this.#renew());
    },
  };

  // Somebody's disconnect() while it is not connected: there is no other sign of it, and we must not connect then.
  #closed = (reason) => {
    if (reason === "forced close" && !this.#socket.active) clearTimeout(this.#timer);
  };

  #reconnect = () => {
    if (!this.#socket.active) this.#socket.connect(); // the application may have called it
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
      throw new TokenError("no_token", `There is no token: ${cause?.message ?? cause}`, { cause });
    }
  }

  /** The stock client's `auth`: calls `send` with what goes to the server, while the connection waits. */
  async #connect(send) {
    const { engine } = this.#socket.io;
    const inTime = () => this.#socket.active && this.#socket.io.engine === engine;
    try {
      const token = await this.#fetch();
      if (!inTime()) return; // the next connection asks for itself
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
      if (token === this.#token) throw new TokenError("no_token", "There is no new token, only the old one again.");
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

  /** Tells of it, and lets it be tried `again` where that is a function. */
  #fail(error, again) {
    error.retrying = Boolean(again);
    // First, so that who is told can call connect() or disconnect().
    if (again) this.#later(backoff(this.#options, this.#failures++), again);
    else this.#rest();
    const { onTokenError } = this.#options;
    if (onTokenError || !again) call(onTokenError ?? (() => { throw error; }), error);
  }
}

/** What `subscribe()` returns: one handler's subscription. */
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
   * Fulfilled when the server has confirmed it for the first time: from then on nothing is missed without a gap.
   * Rejected with the SubscriptionError that ended it before.
   * @type {Promise<void>}
   */
  get ready() { return this.#member.ready; }

  /** Whether the server has confirmed it on the connection that there is now. */
  get active() { return this.#member.live; }

  /**
   * The place in the log up to which everything was handed to the handler, the message that it is handling included:
   * store it, and pass it as `since` next time. Null where the server has no log, and before it has answered.
   * @type {Position | null}
   */
  get position() { return this.#member.lacksEpoch ? null : this.#member.position; }

  /**
   * Ends it: the handler is not called any more. Twice is harmless.
   * @returns {Promise<void>} fulfilled when the server has confirmed it, where this was the channel's last handler
   */
  async unsubscribe() {
    this.#channel.remove(this.#member);
    if (!this.#channel.members.size) await this.#channel.settle();
  }
}

/** One handler's subscription: how far it has come, and whether what the server sends now follows without a hole. */
class Member {
  established = false; // the server has confirmed it once
  live = false;
  lostAt = 0; // ms; since when messages of NOTIFY are missing

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
     * The epoch is "" while it is not known: the log was installed when we had subscribed already.
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
    if (onError) this.ready.catch(() => {}); // is told there
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
  tell(gap) {
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

/** A channel: brings the server's subscription to what the members need, with one request at a time. */
class Channel {
  /** @type {Set<Member>} */
  members = new Set();
  #socket;
  #options;
  #channels;
  /** @type {Record<string, any> | null} */
  #filter = null;
  #open = false; // as far as is known, the server has a subscription
  #awaited = ""; // the event that is not answered yet
  /** @type {Promise<void> | null} */
  #settling = null;
  /** @type {(() => void) | null} */
  #wake = null;

  /**
   * @param {string} name
   * @param {any} socket
   * @param {{timeout: number, retryDelay: number, retryDelayMax: number}} options
   * @param {Map<string, Channel>} channels those that are in use, which it leaves by itself
   */
  constructor(name, socket, options, channels) {
    this.name = name;
    this.#socket = socket;
    this.#options = options;
    this.#channels = channels;
  }

  /** @param {Record<string, any> | null} filter */
  setFilter(filter) {
    if (!this.members.size) this.#filter = filter;
    else if (JSON.stringify(filter) !== JSON.stringify(this.#filter)) {
      throw new TypeError(`another handler of ${this.name} has another filter: the server knows one for each client`);
    }
  }

  /** @param {Member} member */
  remove(member) {
    if (!this.members.delete(member)) return;
    member.live = false;
    if (!member.established) {
      member.ready.catch(() => {}); // whoever unsubscribes knows
      member.reject(new SubscriptionError("unsubscribed", "unsubscribed before the server had answered", this.name));
    }
    this.settle();
  }

  settle() {
    this.#wake?.();
    this.#settling ??= this.#settle();
    return this.#settling;
  }

  async #settle() {
    await null; // what is subscribed in one go can share a request
    let request;
    let attempt = 0;
    while (this.#socket.connected && (request = this.#next())) {
      const { id } = this.#socket;
      const error = await this.#send(request);
      if (!error) attempt = 0;
      else if (this.#socket.id === id && this.#fail(error, request.whose)) await this.#sleep(attempt++);
    }
    this.#settling = null;
    if (!this.members.size && !this.#open && this.#channels.get(this.name) === this) this.#channels.delete(this.name);
  }

  /** The request that is to be sent next, and whose it is; null when all is well. */
  #next() {
    if (!this.members.size) return this.#open ? { event: "unsubscribe", body: {}, whose: [] } : null;
    const waiting = [...this.members].filter((one) => !one.live || one.lacksEpoch);
    if (!waiting.length) return null;
    // Those first that know where they were, from the lowest of their positions on: a replay that begins later, for a
    // new member's history, would take the live messages past them.
    const places = waiting.flatMap((one) => (one.position && !one.lacksEpoch ? [one.position] : []));
    if (places.length) {
      const [{ epoch }] = places;
      const since = places.filter((place) => place.epoch === epoch).reduce((a, b) => (b.position < a.position ? b : a));
      const whose = waiting.filter(({ position }) => position?.epoch === epoch && position.position === since.position);
      return { event: "subscribe", body: { since }, whose };
    }
    const { history } = waiting.find((one) => !one.history) ?? waiting[0];
    const whose = waiting.filter((one) => (history ? one.history === history : !one.history));
    return { event: "subscribe", body: history ? { history } : {}, whose };
  }

  /** Returns the error, or null. */
  #send({ event, body, whose }) {
    this.#awaited = event;
    const sent = { channel: this.name, ...body };
    if (event === "subscribe") {
      this.#open = true;
      if (this.#filter) sent.filter = this.#filter;
    }
    return new Promise((resolve) => {
      request(this.#socket, this.#options.timeout, event, sent, (failure, answer) => {
        this.#awaited = "";
        // Here, and not after the promise: the messages behind the answer may be handled sooner.
        if (!failure && event === "subscribe") this.#accept(answer, body, whose);
        else if (!failure) this.#open = false;
        resolve(failure && new SubscriptionError(failure.code, failure.message, this.name));
      });
    });
  }

  /** The server has subscribed us, and sends the log's messages after `start` where that was asked for. */
  #accept(answer, { since, history }, whose) {
    this.#open = true;
    const wasLive = new Set([...this.members].filter((one) => one.live));
    const start = positionOf(answer);
    const lost = answer.recovered === false;
    for (const one of this.members) one.learnEpoch(start);
    if (start && !lost && (since || history)) {
      for (const one of this.members) {
        if (one.live) one.position ??= start; // subscribed before there was a log
        if (one.position) one.live = one.follows(start);
      }
    }
    for (const one of whose) {
      if (!this.members.has(one) || one.live) continue;
      one.live = true;
      if (lost || !since) {
        const installed = one.established && !one.position && start;
        one.position = start;
        one.history = 0;
        if (lost) one.tell({ tier: "log", reason: answer.reason, ...start });
        else if (installed) one.tell({ tier: "log", reason: "client_disconnected", ...start });
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
    one.tell({ tier: "notify", reason: "client_disconnected", since, until });
  }

  /** Tells of the error; returns whether to try again. */
  #fail(error, whose) {
    const members = whose.filter((one) => this.members.has(one));
    const worked = members.some((one) => one.established);
    error.retrying = TRANSIENT.has(error.code) || (error.code === "internal" && worked);
    if (!error.retrying && !whose.length) this.#open = false; // it was unsubscribe
    this.#tell(error, members);
    return error.retrying;
  }

  /**
   * @param {SubscriptionError} error
   * @param {Member[]} members
   */
  #tell(error, members) {
    for (const one of error.retrying ? [] : members) {
      one.live = false;
      this.members.delete(one);
    }
    for (const one of members) one.fail(error);
  }

  /** Waits before another attempt, or until something is new. */
  #sleep(attempt) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, backoff(this.#options, attempt));
      this.#wake = () => {
        clearTimeout(timer);
        resolve(undefined);
      };
    }).finally(() => { this.#wake = null; });
  }

  // --- What the server says by itself ---

  /** The server's subscription is gone; `at` (ms) it was still there. */
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
      if (!this.members.has(one) || !one.established) continue; // another handler has ended it just now
      if (message.position !== undefined) {
        if (!one.live || (one.position && message.position <= one.position.position)) continue; // comes again, or has come
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
    const start = positionOf(gap);
    for (const one of [...this.members]) {
      if (!one.established) continue;
      if (concernsLog) {
        if (!one.live || (start && one.follows(start))) continue;
        one.position = start;
      }
      one.tell({ tier: concernsLog ? "log" : "notify", ...gap });
    }
  }

  /** Not our request: one given up for lost, or the application's own. Another replay may have begun. */
  checkSubscribed(body) {
    const start = positionOf(body);
    if (this.#awaited === "subscribe" || !start) return;
    for (const one of this.members) {
      one.learnEpoch(start);
      if (one.live && one.position) one.live = one.follows(start);
    }
    this.settle();
  }

  /** Not our request: it is not allowed any more, or the application has asked for it itself. */
  checkUnsubscribed({ reason }) {
    if (reason) {
      this.#open = false;
      const why = reason === "forbidden" ? "it is not allowed any more" : reason;
      const error = new SubscriptionError(reason, `The server has ended the subscription: ${why}.`, this.name);
      this.#tell(error, [...this.members]);
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

/** Sends a request. `answered` gets why it has failed, as {code, message}, or null and the answer. */
function request(socket, timeout, event, body, answered) {
  socket.timeout(timeout).emit(event, body, (failure, answer) => {
    if (failure) answered({ code: "no_answer", message: "The server did not answer." });
    else if (answer?.ok === true) answered(null, answer);
    else answered({ code: answer?.error?.code ?? "internal", message: answer?.error?.message ?? "" });
  });
}

/** Milliseconds before another attempt. */
function backoff({ retryDelay, retryDelayMax }, attempt) {
  return Math.min(retryDelayMax, retryDelay * 2 ** attempt) * spread();
}

/** A factor at random, so that many do not come all at once. */
function spread() {
  return 0.5 + Math.random() / 2;
}

/** Calls somebody else's function: what it throws must not end what we are doing. */
function call(callback, ...values) {
  try {
    callback?.(...values);
  } catch (error) {
    queueMicrotask(() => { throw error; });
  }
}
