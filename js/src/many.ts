/** Requests of many channels in few messages to the server. */

import type { Hub, Part } from "./hub.js";
import { perHub } from "./per-hub.js";
import { failureOf, NO_ANSWER, request, type Failure, type Wire } from "./util.js";

// ms for which a retry waits for those of other channels, to share a request with them.
const JOIN_DELAY = 20;

// Requests that can be for many channels.
const EVENTS = ["subscribe", "unsubscribe"];

// Limits of one request for many channels: the server allows 500, and limits the bytes.
const MAX_TOGETHER = 250;
const MAX_CHARACTERS = 100_000;

export interface Waiting {
  event: string;
  body: Wire;
  /** Called with the error, or with null and the answer. */
  answered: (failure: Failure | null, answer?: Wire) => void;
}

/** Sends a request. `retry`: it was sent before. */
export type Send = (one: Waiting, retry: boolean) => void;

/**
 * Sends the requests of channels. Requests that are made in the same task are sent together, up to 250 at a time: after
 * a reconnect, one for each channel would exceed the server's limit of events.
 */
export class Many implements Part {
  #socket;
  #options;
  #onLate;
  #waiting: Waiting[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** The failures of requests that await their answers. */
  #pending = new Set<() => void>();
  #alone: string | undefined = ""; // the id of the connection to a server that takes one channel at a time: an older version

  constructor(hub: Hub) {
    this.#socket = hub.socket;
    this.#options = hub.options;
    this.#onLate = hub.takeLate;
  }

  send: Send = (one, retry) => {
    if (!EVENTS.includes(one.event)) this.#sendAlone([one]);
    else if (this.#waiting.push(one) && retry) this.#timer ??= setTimeout(() => this.#flush(), JOIN_DELAY);
    else queueMicrotask(() => this.#flush());
  };

  /** Fails all requests, because the connection is lost. */
  lose(): void {
    for (const lost of [...this.#pending]) lost();
    this.#flush();
  }

  #flush() {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const waiting = this.#waiting.splice(0);
    if (!this.#socket.connected) fail(waiting);
    else for (const event of EVENTS) this.#send(waiting.filter((one) => one.event === event));
  }

  /** Sends requests for one event, one part after the other. */
  async #send(requests: Waiting[]) {
    const { id } = this.#socket;
    for (const part of divide(requests)) {
      if (this.#socket.id !== id) fail(part);
      else if (part.length === 1 || this.#alone === id) this.#sendAlone(part);
      else await this.#sendTogether(part);
    }
  }

  #sendAlone(part: Waiting[]) {
    for (const { event, body, answered } of part) request(this.#socket, this.#options.timeout, event, body, answered);
  }

  #sendTogether(part: Waiting[]) {
    const { id } = this.#socket;
    const [{ event }] = part;
    const channels = part.map(({ body }) => (event === "subscribe" || body.pattern ? body : body.channel));
    return new Promise<void>((resolve) => {
      const finish = (failure: Failure | null, results?: Wire[]) => {
        clearTimeout(timer);
        this.#pending.delete(lost);
        if (failure?.code.startsWith("invalid_") && this.#socket.id === id) {
          this.#alone = id;
          this.#sendAlone(part);
        } else {
          part.forEach(({ answered }, index) => answered(failure ?? failureOf(results?.[index]), results?.[index]));
        }
        resolve();
      };
      const lost = () => finish(NO_ANSWER);
      const timer = setTimeout(lost, this.#options.timeout);
      this.#pending.add(lost);
      this.#socket.emit(event, { channels }, (answer: Wire) => {
        if (this.#pending.has(lost)) finish(failureOf(answer), answer?.channels);
        else if (event === "subscribe" && answer?.channels) this.#onLate(answer);
      });
    });
  }
}

export const manyOf = perHub((hub) => new Many(hub));

function fail(requests: Waiting[]) {
  for (const { answered } of requests) answered(NO_ANSWER);
}

/** Divides requests into parts that are small enough for one request. */
function divide(requests: Waiting[]) {
  const found: Waiting[][] = [];
  let characters = 0;
  for (const one of requests) {
    const size = JSON.stringify(one.body).length;
    characters += size;
    if (!found.length || found[found.length - 1].length === MAX_TOGETHER || characters > MAX_CHARACTERS) {
      found.push([]);
      characters = size;
    }
    found[found.length - 1].push(one);
  }
  return found;
}
