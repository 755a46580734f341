/** One channel or pattern of a connection, shared by all its users: which request comes next, and what answers mean. */

import type { Socket } from "socket.io-client";
import { SubscriptionError } from "./errors.js";
import { positionOf, type Member, type Place } from "./member.js";
import type { Requests } from "./requests.js";
import type { EphemeralMessage, Filter, Message, Position } from "./types.js";
import { backoff, call, pause, request, TRANSIENT, type Failure, type Options, type Wire } from "./util.js";

interface Request {
  event: string;
  body: Wire;
  requesters: Member[];
}

/** The presence of a channel, as `presence.ts` makes it when it is first used. */
export interface PresencePart {
  /** The field `presence` of `subscribe`. */
  readonly wish: any;
  /** The server has confirmed it once. */
  readonly worked: boolean;
  /** Returns the next request; null when there is nothing to do. */
  next(): { event: string; body: Wire } | null;
  accept(event: string, body: Wire, answer: Wire): void;
  fail(error: SubscriptionError, event: string, body: Wire): void;
  /** The server has ended the subscription, or refuses it. */
  end(error: SubscriptionError): void;
  lose(): void;
}

/** Changes the server's subscription to what is needed, with one request at a time. */
export class Shared {
  readonly members = new Set<Member>();
  readonly name: string;
  presence: PresencePart | null = null;
  maxRate: number | null = null;
  /** The newest message, of a channel with retained messages: the server sends it to a client once, not to each user. */
  #retained: Message | null = null;
  #combines = true; // presence is requested together with messages, unless the server has refused that
  #socket;
  #requests;
  #options;
  #all;
  #filter: Filter | null = null;
  #open = false; // the server has a subscription, as far as we know
  #awaited = ""; // the event whose answer is pending
  #settling: Promise<void> | null = null;
  #wake: (() => void) | null = null;

  /** @param all the channels, or patterns, in use; an unused one removes itself */
  constructor(readonly place: Place, socket: Socket, requests: Requests, options: Options, all: Map<string, Shared>) {
    this.name = (place.pattern ?? place.channel) as string;
    this.#socket = socket;
    this.#requests = requests;
    this.#options = options;
    this.#all = all;
  }

  /** @throws {TypeError} when other users have another filter */
  add(member: Member): void {
    const filter = member.on.filter ?? null;
    if (!this.members.size) this.#filter = filter;
    else if (JSON.stringify(filter) !== JSON.stringify(this.#filter)) {
      throw new TypeError(`another handler of ${this.name} has another filter: the server keeps one for each client`);
    }
    this.members.add(member);
    if (member.isStale) this.#load(member);
    this.use();
  }

  remove(member: Member): void {
    if (!this.members.delete(member)) return;
    member.ready.promise.catch(() => {}); // not an unhandled rejection: the application unsubscribed itself
    member.end(new SubscriptionError("unsubscribed", "unsubscribed before the server answered", this.name));
    this.settle();
  }

  /** Something has begun to use this object. */
  use(): void {
    this.#all.set(this.name, this);
    this.settle();
  }

  /**
   * Calls the application's `load` until it succeeds. The server then replays what is not in the rows, or says that
   * their token is too old. Never two at once for one handler.
   */
  async #load(one: Member) {
    one.becomeStale();
    if (one.isLoading) return;
    one.isLoading = true;
    const { signal } = one.ended;
    while (one.isStale) {
      if (one.loads++) await pause(backoff(this.#options, one.loads - 2), signal);
      if (signal.aborted) return;
      try {
        const loaded = await one.on.load!({ signal });
        if (signal.aborted) return;
        if (typeof loaded?.token !== "string" || !loaded.token) throw new TypeError("load must return {rows, token}");
        one.accept(loaded);
      } catch (cause) {
        if (signal.aborted) return;
        const message = `Loading failed: ${(cause as Error)?.message ?? cause}`;
        const error = new SubscriptionError("load_failed", message, this.name, { cause });
        error.retrying = true;
        one.fail(error);
      }
    }
    one.isLoading = false;
    this.settle();
  }

  settle(): Promise<void> {
    this.#wake?.();
    this.#settling ??= this.#settle();
    return this.#settling;
  }

  async #settle() {
    await null; // so that subscriptions made in the same task share a request
    let next: Request | null;
    let attempt = 0;
    while (this.#socket.connected && (next = this.#next())) {
      const { id } = this.#socket;
      const error = await this.#send(next, attempt > 0);
      if (!error) attempt = 0;
      else if (this.#socket.id === id && this.#fail(error, next)) await this.#sleep(attempt++);
    }
    this.#settling = null;
    if (!this.#isUsed && !this.#open && this.#all.get(this.name) === this) this.#all.delete(this.name);
  }

  get #isUsed() { return this.members.size > 0 || Boolean(this.presence?.wish); }

  /** Returns the next request and the members that need it (`requesters`); null when there is nothing to do. */
  #next(): Request | null {
    if (!this.#isUsed) return this.#open ? { event: "unsubscribe", body: {}, requesters: [] } : null;
    const presence = this.presence?.next();
    const next = this.#nextForMembers();
    if (!next) return presence ? { ...presence, requesters: [] } : null;
    if (presence?.event === "subscribe" && this.#combines) Object.assign(next.body, presence.body);
    return next;
  }

  #nextForMembers(): Request | null {
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
  #send({ event, body, requesters }: Request, retry: boolean): Promise<SubscriptionError | null> {
    this.#awaited = event;
    const sent = { ...this.place, ...body };
    if (event === "subscribe") {
      this.#open = true;
      if (this.#filter) sent.filter = this.#filter;
      if (this.#options.numbers) sent.numbers = this.#options.numbers;
    }
    return new Promise((resolve) => {
      const answered = (failure: Failure | null, answer: Wire) => {
        this.#awaited = "";
        // Here, not after the promise: messages that follow the answer may be handled before the promise resolves.
        if (!failure && event === "subscribe") this.#accept(answer, body, requesters);
        else if (!failure && event === "unsubscribe") this.#close();
        if (!failure && isForPresence(event, body)) this.presence?.accept(event, body, answer);
        resolve(failure && new SubscriptionError(failure.code, failure.message, this.name));
      };
      if (event.startsWith("presence")) request(this.#socket, this.#options.timeout, event, sent, answered);
      else this.#requests.send(event, sent, retry, answered);
    });
  }

  /** The server has confirmed the subscription; with `since` or `history`, it replays the log after `start`. */
  #accept(answer: Wire, { since, history }: Wire, requesters: Member[]) {
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
      if (lost && one.on.load && answer.reason !== "history_off") {
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
    if ((!since && !history) || !this.#options.sendsLive) {
      for (const one of requesters) if (one.live) one.becomeCurrent(null);
    }
  }

  #confirm(one: Member) {
    one.established = true;
    one.ready.resolve();
    call(one.on.onState);
    call(one.on.onSubscribed);
    if (!one.lostAt) return;
    const [since, until] = [new Date(one.lostAt).toISOString(), new Date().toISOString()];
    one.lostAt = 0;
    one.reportGap({ tier: "notify", reason: "client_disconnected", since, until });
  }

  #close() {
    this.#open = false;
    this.presence?.lose();
  }

  /** Reports the error. Returns whether to wait before the next request. */
  #fail(error: SubscriptionError, { event, body, requesters }: Request) {
    const members = requesters.filter((one) => this.members.has(one));
    const forPresence = isForPresence(event, body);
    const worked = members.some((one) => one.established) || (forPresence && this.presence?.worked);
    error.retrying = TRANSIENT.has(error.code) || (error.code === "internal" && Boolean(worked));
    if (!error.retrying && forPresence && requesters.length) {
      this.#combines = false; // the next requests tell which of both the server refuses
      return false;
    }
    if (forPresence) this.presence?.fail(error, event, body);
    if (!error.retrying && event === "unsubscribe") this.#close();
    this.#report(error, members);
    return error.retrying;
  }

  #report(error: SubscriptionError, members: Member[]) {
    for (const one of error.retrying ? [] : members) this.members.delete(one);
    for (const one of members) one.fail(error);
  }

  /** Waits before the next attempt, or until something changes. */
  #sleep(attempt: number) {
    return new Promise<void>((resolve) => {
      // At one of few moments, so that the retries of many channels share a request.
      const slot = Math.max(1, this.#options.retryDelay / 4);
      const end = Math.ceil((Date.now() + backoff(this.#options, attempt)) / slot) * slot;
      const timer = setTimeout(resolve, end - Date.now());
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    }).finally(() => { this.#wake = null; });
  }

  // --- Events from the server ---

  /** The server's subscription is lost; `at` (ms) is when it was last known to be alive. */
  lose(at: number): void {
    this.#close();
    for (const one of this.members) {
      one.live = one.isCurrent = false;
      one.learnEpoch(null);
      if (one.established) one.lostAt ||= at;
      call(one.on.onState);
    }
    this.settle();
  }

  receive(message: Message): void {
    const { position } = message;
    if (message.retained || (this.#retained && position! > this.#retained.position!)) this.#retained = message;
    for (const one of [...this.members]) {
      if (!this.members.has(one) || !one.established) continue; // ended by another handler of this message
      if (position !== undefined) {
        // It will be replayed, or was already delivered.
        if (!one.live || (one.position && position <= one.position.position)) continue;
        one.position = { epoch: one.position?.epoch ?? "", position };
        if (one.lacksEpoch) this.settle();
        else message.epoch = one.position.epoch;
      }
      one.deliver(message);
    }
  }

  receiveEphemeral(message: EphemeralMessage): void {
    for (const one of [...this.members]) if (this.members.has(one) && one.established) call(one.on.onEphemeral, message);
  }

  /** The server has replayed everything: what follows are live messages. */
  receiveLive(edge: Position): void {
    for (const one of this.members) if (one.live) one.becomeCurrent(positionOf(edge));
    this.settle();
  }

  receiveGap(gap: Wire): void {
    const concernsLog = "position" in gap;
    if (concernsLog) this.#retained = null;
    for (const one of concernsLog ? this.#missing(gap) : [...this.members].filter((each) => each.established)) {
      if (concernsLog && one.on.load) {
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
  #missing(gap: Wire) {
    const all = [...this.members].filter((one) => one.established);
    const start = positionOf(gap);
    const behind = gap.reason === "trimmed" && start ? all.filter((one) => !one.follows(start)) : [];
    return behind.length ? behind : all;
  }

  /** Handles the answer to a request that timed out or that the application sent: another replay may have started. */
  checkSubscribed(body: Wire): void {
    const start = positionOf(body);
    if (this.#awaited === "subscribe" || !start) return;
    for (const one of this.members) {
      one.learnEpoch(start);
      if (one.live && one.position && !one.start) one.live = one.follows(start);
    }
    this.settle();
  }

  /** Handles the end of a subscription that is no longer allowed, or that the application ended with its own request. */
  checkUnsubscribed({ reason }: Wire): void {
    if (reason) {
      this.#open = false;
      const why = reason === "forbidden" ? "it is no longer allowed" : reason;
      const error = new SubscriptionError(reason, `The server has ended the subscription: ${why}.`, this.name);
      this.#report(error, [...this.members]);
      this.presence?.end(error);
      this.settle();
    } else if (this.#awaited !== "unsubscribe") {
      this.lose(Date.now());
    }
  }
}

/** Returns whether a request changes or asks for presence. */
function isForPresence(event: string, body: Wire) {
  return event.startsWith("presence") || "presence" in body;
}
