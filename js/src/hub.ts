/** What a connection carries: its channels and patterns, and the parts that follow it. Distributes the server's events. */

import type { Socket } from "socket.io-client";
import type { Place } from "./member.js";
import { Requests } from "./requests.js";
import { Shared } from "./shared.js";
import type { Health } from "./types.js";
import { call, DEFAULTS, type Failure, type Options, type Wire } from "./util.js";

/** A part of the connection that is made when it is first used. */
export interface Part {
  /** The connection is ready; `features` of the server's `server_hello`. Also when the part is added later. */
  open?(features: string[]): void;
  /** The connection is lost. */
  lose?(): void;
  /** The application has closed everything. */
  close?(): void;
  /** Events of the socket that the part listens to. */
  events?: Record<string, (body: Wire) => void>;
}

export interface HubEvents {
  onHealth?: (health: Health) => void;
  onDirect?: (message: { payload: any }) => void;
  onEnded?: (end: Failure) => void;
}

export class Hub {
  readonly channels = new Map<string, Shared>();
  readonly patterns = new Map<string, Shared>();
  readonly options: Options;
  health: Health | null = null;
  heard = Date.now(); // when the server last sent something, in ms
  /** Of the server, on this connection; null before `server_hello`. */
  features: string[] | null = null;
  #requests;
  #parts = new Set<Part>();
  /** The last event `error` on this connection. */
  #lastError: Failure = { code: "", message: "" };

  constructor(readonly socket: Socket, options: Partial<Options>, readonly events: HubEvents) {
    this.options = { ...DEFAULTS, ...options, sendsLive: true };
    this.#requests = new Requests(socket, this.options, this.#events.subscribed);
    this.#listen("on", this.#events);
    socket.io.on("ping", this.hear);
  }

  /** Adds a part, which hears of the connection from now on. */
  add<Added extends Part>(part: Added): Added {
    this.#parts.add(part);
    this.#listen("on", part.events);
    if (this.features) part.open?.(this.features);
    return part;
  }

  remove(part: Part): void {
    this.#parts.delete(part);
    this.#listen("off", part.events);
  }

  /** Returns the object that all users of a channel or pattern share. */
  shared(place: Place): Shared {
    const all = place.pattern === undefined ? this.channels : this.patterns;
    return all.get((place.pattern ?? place.channel) as string)
      ?? new Shared(place, this.socket, this.#requests, this.options, all);
  }

  all(): Shared[] { return [...this.channels.values(), ...this.patterns.values()]; }

  /** Ends all subscriptions and detaches from the socket, which stays connected. */
  close(): void {
    for (const part of [...this.#parts]) {
      part.close?.();
      this.remove(part);
    }
    this.#listen("off", this.#events);
    this.socket.io.off("ping", this.hear);
    for (const shared of this.all()) for (const member of shared.members) shared.remove(member);
  }

  #listen(method: "on" | "off", events: Part["events"] = {}) {
    for (const [event, listener] of Object.entries(events)) this.socket[method](event, listener);
  }

  /** Returns those that an event of the server is for. */
  #named({ channel, pattern, matches = [pattern ?? channel] }: Wire): Shared[] {
    return matches.flatMap((name: string) => (name?.includes("*") ? this.patterns : this.channels).get(name) ?? []);
  }

  #report(health: Health | undefined) {
    if (!health || JSON.stringify(health) === JSON.stringify(this.health)) return;
    this.health = health;
    call(this.events.onHealth, health);
  }

  hear = (): void => { this.heard = Date.now(); };

  #events: Record<string, (body: Wire) => void> = {
    connect: () => {
      this.hear();
      this.#lastError = { code: "disconnected", message: "The server has ended the connection." };
      for (const shared of this.all()) shared.settle();
    },
    error: ({ code, message }) => { this.#lastError = { code, message }; },
    disconnect: (reason) => {
      this.features = null;
      this.#requests.lose();
      for (const part of this.#parts) part.lose?.();
      for (const shared of this.all()) shared.lose(this.heard);
      if (reason === "io server disconnect") call(this.events.onEnded, this.#lastError);
    },
    event: (message) => {
      this.hear();
      if (message.table) return; // for tables.ts
      if (message.ephemeral) this.channels.get(message.channel)?.receiveEphemeral(message);
      else for (const shared of this.#named(message)) shared.receive(message);
    },
    server_hello: ({ health, features = [] }) => {
      this.features = features;
      this.options.sendsLive = features.includes("live");
      for (const part of this.#parts) part.open?.(features);
      this.#report(health);
    },
    health: (health) => this.#report(health),
    gap: (gap) => this.#named(gap).forEach((one) => one.receiveGap(gap)),
    live: (edge) => {
      if (!edge.table) for (const shared of this.#named(edge)) shared.receiveLive(edge);
    },
    subscribed: (body) => {
      for (const one of resultsOf(body)) for (const shared of this.#named(one)) shared.checkSubscribed(one);
    },
    unsubscribed: (body) => {
      for (const one of resultsOf(body)) for (const shared of this.#named(one)) shared.checkUnsubscribed(one);
    },
    direct: (message) => {
      this.hear();
      call(this.events.onDirect, message);
    },
  };
}

/** Returns the results in the body of `subscribed` or `unsubscribed`: one, or one for each channel. None for tables. */
function resultsOf(body: Wire): Wire[] {
  if (body.table) return [];
  return body.channels ? body.channels.filter((one: Wire) => one.ok) : [body];
}
