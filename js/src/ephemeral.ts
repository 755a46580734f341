/** Sends ephemeral messages: the newest of each channel and key. */

import type { Hub, Part } from "./hub.js";
import type { Wire } from "./util.js";

// ms between two ephemeral messages of one key: the server gathers those of 50 ms.
const EPHEMERAL_INTERVAL = 20;

export class EphemeralSender implements Part {
  #hub;
  #isOpen = false; // connected to a server that knows them: an older one would publish them
  /** The messages that wait for the end of the interval. */
  #waiting = new Map<string, Wire>();
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(hub: Hub) {
    this.#hub = hub;
  }

  open(features: string[]): void {
    this.#isOpen = features.includes("ephemeral");
  }

  lose(): void {
    this.#isOpen = false;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#waiting.clear();
  }

  close(): void {
    this.lose();
  }

  /** Returns false if it is not sent. */
  send(channel: string, payload: unknown, { key, echo }: { key?: string; echo?: boolean } = {}): boolean {
    if (!this.#isOpen) return false;
    this.#waiting.set(JSON.stringify([channel, key ?? null]), { channel, payload, ephemeral: true, key, echo });
    if (!this.#timer) this.#flush();
    return true;
  }

  #flush() {
    const waiting = [...this.#waiting.values()];
    this.#waiting.clear();
    this.#timer = waiting.length ? setTimeout(() => this.#flush(), EPHEMERAL_INTERVAL) : undefined;
    for (const body of waiting) this.#hub.socket.emit("publish", body);
  }
}
