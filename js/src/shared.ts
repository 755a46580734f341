/** One channel or pattern of a connection, shared by all its users: which request comes next, and what answers mean. */

import type { Socket } from "socket.io-client";
import { SubscriptionError } from "./errors.js";
import {
  becomeCurrent, confirm, deliver, end, fail, follows, lacksEpoch, learnEpoch, positionOf, reportGap, startsFromSnapshot,
  type Member, type Place,
} from "./member.js";
import type { Send } from "./many.js";
import type { Filter, Message } from "./types.js";
import { backoff, isoTime, TRANSIENT, type Options, type Wire } from "./util.js";

export interface Request {
  event: string;
  body: Wire;
  requesters: Member[];
}

/** The presence of a channel, as `people.ts` makes it when it is first used. */
export interface PresencePart {
  /** The field `presence` of `subscribe`. */
  readonly wish: any;
  /** Returns the next request: that for messages, together with presence, or one for presence alone. */
  plan(forMessages: Request | null): Request | null;
  /** The server has confirmed a request. */
  accept(request: Request, answer: Wire): void;
  /** Returns whether presence has worked before, if the request is for it. */
  worked(request: Request): boolean;
  /** A request has failed. Returns true if it is divided into one for messages and one for presence. */
  fail(error: SubscriptionError, request: Request): boolean;
  /** The server has ended the subscription, or refuses it. */
  end(error: SubscriptionError): void;
  lose(): void;
}

/** A channel or pattern of a connection. */
export interface Shared {
  readonly place: Place;
  readonly name: string;
  readonly options: Options;
  readonly members: Set<Member>;
  presence: PresencePart | null;
  maxRate: number | null;
  /** Returns whether the member has the same filter as the others: the server keeps one for each client. */
  allows(member: Member): boolean;
  /** If the member has another filter, it ends. */
  add(member: Member): void;
  remove(member: Member): void;
  /** Something has begun to use this object. */
  use(): void;
  /** Changes the server's subscription to what is needed. Resolves when that is done. */
  settle(): Promise<void>;

  // Events from the server:

  /** The server's subscription is lost; `at` (ISO 8601) is when it was last known to be alive. */
  lose(at: string): void;
  event(message: Wire): void;
  gap(gap: Wire): void;
  /** The server has replayed everything: what follows are live messages. */
  live(edge: Wire): void;
  /** Handles the answer to a request that timed out or that the application sent: another replay may have started. */
  subscribed(body: Wire): void;
  /** Handles the end of a subscription that is no longer allowed, or that the application ended with its own request. */
  unsubscribed(body: Wire): void;
}

/**
 * Changes the server's subscription to what is needed, with one request at a time.
 * @param all the channels, or patterns, in use; an unused one removes itself
 */
export function makeShared(
  place: Place, name: string, socket: Socket, sendRequest: Send, options: Options, all: Map<string, Shared>,
): Shared {
  const members = new Set<Member>();
  /** The newest message, of a channel with retained messages: the server sends it to a client once, not to each user. */
  let retained: Message | null = null;
  let filter: Filter | null = null;
  let isOpen = false; // the server has a subscription, as far as we know
  let awaited = ""; // the event whose answer is pending
  let settling: Promise<void> | null = null;
  let wake: (() => void) | null = null;

  const self: Shared = {
    place,
    name,
    options,
    members,
    presence: null,
    maxRate: null,

    allows: (member) => !members.size || JSON.stringify(member.filter) === JSON.stringify(filter),

    add(member) {
      if (!self.allows(member)) {
        failAll(new SubscriptionError("conflicting_filter", "another filter", name), [member]);
        return;
      }
      filter = member.filter;
      members.add(member);
      if (member.loader?.isStale) member.loader.load();
      self.use();
    },

    remove(member) {
      if (!members.delete(member)) return;
      end(member, new SubscriptionError("unsubscribed", "unsubscribed", name));
      settle();
    },

    use() {
      all.set(name, self);
      settle();
    },

    settle,

    lose(at) {
      close();
      for (const one of members) {
        one.live = one.current = false;
        learnEpoch(one, null);
        if (one.established) one.lost ||= at;
        one.report("state");
      }
      settle();
    },

    event(message) {
      const { position } = message;
      if (message.ephemeral) {
        for (const one of established()) if (members.has(one)) one.report("ephemeral", message);
        return;
      }
      if (message.retained || (retained && position! > retained.position!)) retained = message;
      for (const one of established()) {
        if (!members.has(one)) continue; // ended by another handler of this message
        if (position !== undefined) {
          // It will be replayed, or was already delivered.
          if (!one.live || (one.position && position <= one.position.position)) continue;
          one.position = { epoch: one.position?.epoch ?? "", position };
          if (lacksEpoch(one)) settle();
          else message.epoch = one.position.epoch;
        }
        deliver(one, message);
      }
    },

    live(edge) {
      for (const one of members) if (one.live) becomeCurrent(one, positionOf(edge));
      settle();
    },

    gap(gap) {
      const concernsLog = "position" in gap;
      if (concernsLog) retained = null;
      for (const one of concernsLog ? missing(gap) : established()) {
        if (concernsLog && one.loader) {
          one.loader.load();
          continue;
        }
        // Also to a lower position: the log may have begun again, in the same epoch too.
        if (concernsLog) [one.position, one.start] = [positionOf(gap), null];
        reportGap(one, { tier: concernsLog ? "log" : "notify", ...gap });
      }
    },

    subscribed(body) {
      const start = positionOf(body);
      if (awaited === "subscribe" || !start) return;
      for (const one of members) {
        learnEpoch(one, start);
        if (one.live && one.position && !one.start) one.live = follows(one, start);
      }
      settle();
    },

    unsubscribed({ reason }) {
      if (reason) {
        isOpen = false;
        const why = reason === "forbidden" ? "it is no longer allowed" : reason;
        const error = new SubscriptionError(reason, `The server has ended the subscription: ${why}.`, name);
        failAll(error, [...members]);
        self.presence?.end(error);
        settle();
      } else if (awaited !== "unsubscribe") {
        self.lose(isoTime());
      }
    },
  };
  return self;

  function settle(): Promise<void> {
    wake?.();
    return settling ??= work();
  }

  async function work() {
    await null; // so that subscriptions made in the same task share a request
    let next: Request | null;
    let attempt = 0;
    while (socket.connected && (next = nextRequest())) {
      const { id } = socket;
      const error = await send(next, attempt > 0);
      if (!error) attempt = 0;
      else if (socket.id === id && report(error, next)) await sleep(attempt++);
    }
    settling = null;
    if (!isUsed() && !isOpen && all.get(name) === self) all.delete(name);
  }

  function isUsed() { return members.size || self.presence?.wish; }

  function established() { return [...members].filter((one) => one.established); }

  /** Returns the next request and the members that need it (`requesters`); null when there is nothing to do. */
  function nextRequest(): Request | null {
    if (!isUsed()) return isOpen ? { event: "unsubscribe", body: {}, requesters: [] } : null;
    const next = nextForMembers();
    return self.presence ? self.presence.plan(next) : next;
  }

  function nextForMembers(): Request | null {
    if ([...members].some((one) => one.live && startsFromSnapshot(one))) return null; // see accept()
    const waiting = [...members].filter((one) => !one.loader?.isStale && (!one.live || lacksEpoch(one)));
    if (!waiting[0]) return null;
    // Members with a position come first, from the lowest position on: a replay that starts later, for a new member's
    // history, would move the live messages past them.
    const places = waiting.flatMap((one) => (one.position && !lacksEpoch(one) && !one.start ? [one.position] : []));
    const subscribe = (body: Wire, needs: (one: Member) => unknown) => (
      { event: "subscribe", body, requesters: waiting.filter(needs) }
    );
    if (places[0]) {
      const [{ epoch }] = places;
      const since = places.filter((place) => place.epoch === epoch).reduce((a, b) => (b.position < a.position ? b : a));
      return subscribe({ since }, ({ position, start }) => (
        !start && position?.epoch === epoch && position.position === since.position
      ));
    }
    const since = waiting.find((one) => one.start)?.start;
    if (since) return subscribe({ since }, (one) => one.start === since);
    const { history } = waiting.find((one) => !one.history) ?? waiting[0];
    return subscribe(history ? { history } : {}, (one) => one.history === history);
  }

  /** Returns the error, or null. */
  function send(request: Request, retry: boolean): Promise<SubscriptionError | null> {
    const { event, body } = request;
    const sent = { ...place, ...body };
    awaited = event;
    if (event === "subscribe") {
      isOpen = sent.batch = true;
      if (filter) sent.filter = filter;
      if (options.numbers) sent.numbers = options.numbers;
    }
    return new Promise((resolve) => sendRequest({ event, body: sent, answered(failure, answer) {
      awaited = "";
      if (!failure) {
        // Here, not after the promise: messages that follow the answer may be handled before the promise resolves.
        if (event === "subscribe") accept(answer, request);
        else if (event === "unsubscribe") close();
        self.presence?.accept(request, answer);
      }
      resolve(failure && new SubscriptionError(failure.code, failure.message, name));
    } }, retry));
  }

  /** The server has confirmed the subscription; with `since` or `history`, it replays the log after `start`. */
  function accept(answer: Wire, { body: { since, history }, requesters }: Request) {
    isOpen = true;
    const wasLive = [...members].filter((one) => one.live);
    const start = positionOf(answer);
    self.maxRate = answer.max_rate ?? null;
    const lost = answer.recovered === false;
    const given = typeof since === "string"; // a time or a snapshot
    for (const one of members) {
      learnEpoch(one, start);
      if (start && !lost && (since || history)) {
        if (one.live) one.position ??= start; // subscribed before the log was installed
        if (one.position && !one.start) one.live = follows(one, start);
      }
    }
    for (const one of requesters) {
      if (!members.has(one) || one.live || (given && one.start !== since)) continue;
      if (lost && one.loader && answer.reason !== "history_off") {
        one.loader.load();
        continue;
      }
      // Not if a gap has moved it since the request: it then requests what follows its new position.
      one.live = lost || !since || given || follows(one, since);
      if (lost || !since) {
        const installed = one.established && !one.position && start;
        one.position = start;
        one.start = null;
        one.history = 0;
        if (lost || installed) reportGap(one, { tier: "log", reason: lost ? answer.reason : "client_disconnected", ...start });
      } else if (given) {
        one.position ??= start;
        if (!startsFromSnapshot(one)) one.start = null;
      }
    }
    // The server leaves out the messages that are in the snapshot, which the other handlers need: they wait until this
    // is done, and then get a replay of their own.
    if (requesters.some((one) => one.live && startsFromSnapshot(one))) {
      for (const one of members) if (!requesters.includes(one)) one.live = false;
    }
    for (const one of members) if (one.live && !wasLive.includes(one)) confirm(one);
    const isLive = requesters.filter((one) => one.live);
    if (!since && !history && retained && retained.payload !== null && wasLive[0]) {
      for (const one of isLive) if (one.live) deliver(one, { ...retained, retained: true });
    }
    // Otherwise the server reports when the replay has caught up.
    if ((!since && !history) || !options.sendsLive) for (const one of isLive) if (one.live) becomeCurrent(one, null);
  }

  function close() {
    isOpen = false;
    self.presence?.lose();
  }

  /** Reports the error. Returns whether to wait before the next request. */
  function report(error: SubscriptionError, request: Request) {
    const concerned = request.requesters.filter((one) => members.has(one));
    error.retrying = TRANSIENT.has(error.code)
      || (error.code === "internal" && (concerned.some((one) => one.established) || !!self.presence?.worked(request)));
    if (self.presence?.fail(error, request)) return false;
    if (!error.retrying && request.event === "unsubscribe") close();
    failAll(error, concerned);
    return error.retrying;
  }

  function failAll(error: SubscriptionError, concerned: Member[]) {
    if (!error.retrying) for (const one of concerned) members.delete(one);
    for (const one of concerned) fail(one, error);
  }

  /** Waits before the next attempt, or until something changes. */
  function sleep(attempt: number) {
    return new Promise<void>((resolve) => {
      // At one of few moments, so that the retries of many channels share a request.
      const slot = options.retryDelay / 4 || 1;
      const at = Math.ceil((Date.now() + backoff(options, attempt)) / slot) * slot;
      wake = () => {
        wake = null;
        clearTimeout(timer);
        resolve();
      };
      const timer = setTimeout(wake, at - Date.now());
    });
  }

  /**
   * Returns the members that miss messages of the log. With "trimmed" these are the ones before the gap's position: the
   * replay may have begun for one that was behind the others. If there are none, all members get the gap.
   */
  function missing(gap: Wire) {
    const start = positionOf(gap);
    const behind = gap.reason === "trimmed" && start ? established().filter((one) => !follows(one, start)) : [];
    return behind[0] ? behind : established();
  }
}
