/** Listeners by event, and signals that remove them. */

import type { Listening, ListenOptions } from "./types.js";
import { call, onAbort } from "./util.js";

export class Emitter<Events> implements Listening<Events> {
  #listeners = new Map<keyof Events, Set<(value: any) => void>>();

  on<Name extends keyof Events>(name: Name, listener: (value: Events[Name]) => void, { signal }: ListenOptions = {}): this {
    if (signal?.aborted) return this;
    const all = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, all.add(listener));
    onAbort(signal, () => this.off(name, listener));
    this.listened(name);
    return this;
  }

  off<Name extends keyof Events>(name: Name, listener: (value: Events[Name]) => void): this {
    if (this.#listeners.get(name)?.delete(listener)) this.listened(name);
    return this;
  }

  /** Returns whether somebody listens to the event. */
  protected hears(name: keyof Events): boolean { return Boolean(this.#listeners.get(name)?.size); }

  /** A listener of the event was added or removed. */
  protected listened(_name: keyof Events): void {}

  /** Calls the listeners. Returns whether there was one. */
  protected emit<Name extends keyof Events>(name: Name, value: Events[Name]): boolean {
    const all = this.#listeners.get(name);
    for (const listener of [...all ?? []]) if (all!.has(listener)) call(listener, value);
    return this.hears(name);
  }
}
