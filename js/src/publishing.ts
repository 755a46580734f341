/** Publishes messages, and repeats those that the server may not have received. */

import { EphemeralSender } from "./ephemeral.js";
import type { Hub, Part } from "./hub.js";
import { perHub } from "./per-hub.js";
import { PublishError } from "./publish-error.js";
import type { Published, PublishOptions } from "./types.js";
import { backoff, NO_ANSWER, request, TRANSIENT, type Failure, type Wire } from "./util.js";

// ms for which a message is repeated after it was sent first. The server knows its id for five minutes.
const MAX_REPEATING = 240_000;

// After these errors, a message may have been published.
const UNCERTAIN = new Set(["no_answer", "database_unavailable", "internal"]);

const CLOSED: Failure = { code: "closed", message: "close() was called." };

type Timer = ReturnType<typeof setTimeout> | undefined;

interface Waiting {
  body: Wire;
  resolve: (published: Published) => void;
  reject: (error: unknown) => void;
  hasOwnId: boolean;
  attempt: number;
  inFlight: boolean;
  sentAt: number;
  isUncertain: boolean;
  canRepeat: boolean;
  timer: Timer;
  deadline: Timer;
}

export class Publisher implements Part {
  #hub;
  /** The messages without an answer, in order. */
  #waiting = new Set<Waiting>();
  #isOpen; // the connection is ready
  #knowsIds = false; // the server publishes an id once
  #isClosed = false;

  constructor(hub: Hub) {
    this.#hub = hub;
    this.#isOpen = hub.socket.connected;
  }

  publish(channel: string, payload: unknown, options: PublishOptions = {}): Promise<Published> {
    const { durable, id, wait, echo, traceparent, timeout = this.#hub.options.publishTimeout ?? 60_000 } = options;
    return new Promise((resolve, reject) => {
      // JSON leaves out what is undefined. Messages that may be lost need no id, which costs the database a row.
      const ownId = durable === false ? undefined : randomId();
      const body = { channel, payload, durable, wait, echo, traceparent, id: id ?? ownId };
      const one: Waiting = {
        body, resolve, reject, hasOwnId: id === undefined, attempt: 0, inFlight: false, sentAt: 0, isUncertain: false,
        canRepeat: true, timer: undefined, deadline: undefined,
      };
      if (timeout < 2 ** 31) one.deadline = setTimeout(() => this.#reject(one, NO_ANSWER), timeout);
      this.#waiting.add(one);
      if (this.#isClosed) this.#reject(one, CLOSED);
      this.#flush();
    });
  }

  open(features: string[]): void {
    this.#isOpen = true;
    this.#knowsIds = features.includes("publish_id");
    this.#flush();
  }

  lose(): void {
    this.#isOpen = this.#knowsIds = false;
    for (const one of [...this.#waiting]) if (one.inFlight) this.#fail(one, NO_ANSWER);
  }

  close(): void {
    this.#isClosed = true;
    for (const one of [...this.#waiting]) this.#reject(one, CLOSED);
  }

  #flush() {
    for (const one of [...this.#waiting]) if (this.#isOpen && !one.inFlight && !one.timer) this.#send(one);
  }

  #send(one: Waiting) {
    if (one.isUncertain && !(one.canRepeat && this.#knowsIds && Date.now() - one.sentAt < MAX_REPEATING)) {
      this.#reject(one, NO_ANSWER); // another attempt could publish it again
      return;
    }
    const attempt = ++one.attempt;
    one.inFlight = true;
    one.sentAt ||= Date.now();
    one.canRepeat &&= this.#knowsIds && one.body.id !== undefined;
    try {
      request(this.#hub.socket, this.#hub.options.timeout, "publish", one.body, (failure, answer) => {
        if (!failure) this.#resolve(one, answer);
        else if (one.attempt === attempt && one.inFlight) this.#fail(one, failure);
      });
    } catch (error) { // the payload has no JSON
      this.#finish(one);
      one.reject(error);
    }
  }

  #fail(one: Waiting, failure: Failure) {
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
      }, backoff(this.#hub.options, one.attempt - 1));
    }
  }

  #resolve(one: Waiting, { ok, ...published }: Wire) {
    this.#finish(one);
    one.resolve(published);
  }

  #reject(one: Waiting, { code, message }: Failure) {
    this.#finish(one);
    const uncertain = one.inFlight || one.isUncertain;
    one.reject(new PublishError(code, message, one.body.channel, uncertain));
  }

  #finish(one: Waiting) {
    this.#waiting.delete(one);
    clearTimeout(one.timer);
    clearTimeout(one.deadline);
  }
}

/** Return what publishes on a connection. */
export const publisherOf = perHub((hub) => new Publisher(hub));
export const senderOf = perHub((hub) => new EphemeralSender(hub));

/** Returns an id that others do not guess. `crypto.randomUUID` exists only in pages served over https. */
function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
