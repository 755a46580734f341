/** Listeners by event, and signals that remove them. */

import type { ListenOptions } from "./types.js";
import { call, onAbort } from "./util.js";

/** An object with listeners, as this library knows it. */
export interface Emitter<Events> {
  on<Name extends keyof Events>(name: Name, listener: (value: Events[Name]) => void, options?: ListenOptions): this;
  off<Name extends keyof Events>(name: Name, listener: (value: Events[Name]) => void): this;
  /** Returns whether somebody listens to the event. */
  hears(name: keyof Events): boolean;
  /** Calls the listeners. Returns whether there was one. */
  emit<Name extends keyof Events>(name: Name, value: Events[Name]): boolean;
}

/** @param listened called when a listener of the event was added or removed */
export function makeEmitter<Events>(listened?: (name: keyof Events, isAdded?: boolean) => void): Emitter<Events> {
  /** By event and listener: what forgets the listener's signal. */
  const listeners: { [Name in keyof Events]?: Map<(value: any) => void, () => void> } = Object.create(null);
  const hears = (name: keyof Events) => !!listeners[name]?.size;
  return {
    hears,
    on(name, listener, { signal } = {}) {
      if (signal?.aborted) return this;
      (listeners[name] ??= new Map()).set(listener, onAbort(signal, () => this.off(name, listener)));
      listened?.(name, true);
      return this;
    },
    off(name, listener) {
      const all = listeners[name];
      all?.get(listener)?.();
      if (all?.delete(listener)) listened?.(name);
      return this;
    },
    emit(name, value) {
      const all = [...listeners[name]?.keys() ?? []];
      for (const listener of all) if (listeners[name]!.has(listener)) call(listener, value);
      return !!all[0]; // also if it has removed itself
    },
  };
}
