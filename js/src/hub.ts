/** What a connection carries: its channels and patterns, and the parts that follow it. Distributes the server's events. */

import type { Socket } from "socket.io-client";
import type { Many, Send } from "./many.js";
import type { Place } from "./member.js";
import { makeShared, type Shared } from "./shared.js";
import type { DirectMessage, Health } from "./types.js";
import { call, isoTime, request, type Failure, type Options, type Wire } from "./util.js";

/** Events for channels and patterns. */
const SHARED_EVENTS = ["event", "gap", "live", "subscribed", "unsubscribed"] as const;

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

/** What a connection reports. */
export interface HubEvents {
  health: Health;
  direct: DirectMessage<any>;
  /** The server has ended the connection, and the stock client does not reconnect automatically. */
  ended: Failure;
}

export interface Hub {
  readonly socket: Socket;
  readonly options: Options;
  readonly channels: Map<string, Shared>;
  readonly health: Health | null;
  /** What sends the requests of several channels together. */
  many?: Many;
  /** Adds a part, which hears of the connection from now on. After `close()`, it closes the part. */
  add<Added extends Part>(part: Added): Added;
  /** Returns the object that all users of a channel or pattern share. */
  shared(place: Place): Shared;
  all(): Shared[];
  /** The server has sent something. */
  hear(): void;
  /** Handles an answer to `subscribe` that comes after the timeout. */
  takeLate(answer: Wire): void;
  /** Ends all subscriptions and detaches from the socket, which stays connected. */
  close(): void;
}

/** Hands the messages of a batch to all listeners of the socket, as if each had come alone. */
function spread(this: Socket, bodies: Wire[]) {
  for (const body of bodies) {
    for (const listener of [...this.listeners("event")]) if (this.connected) call(listener.bind(this), body);
  }
}

/** @param getMany returns what sends several requests together, when that is needed first; rejects if there is none */
export function makeHub(
  socket: Socket, given: Partial<Options>, report: <Name extends keyof HubEvents>(name: Name, value: HubEvents[Name]) => void,
  getMany?: () => Promise<Many>,
): Hub {
  const channels = new Map<string, Shared>();
  const patterns = new Map<string, Shared>();
  const parts = new Set<Part>();
  const options: Options = { ...given, sendsLive: true } as Options;
  options.timeout ??= 15_000; // also if `given` has it as undefined
  options.retryDelay ??= 1_000;
  options.retryDelayMax ??= 15_000;
  let health: Health | null = null;
  let heard = Date.now(); // when the server last sent something, in ms
  let features: string[] | undefined; // of the server, on this connection
  let isClosed = false;
  /** The last event `error` on this connection. */
  let lastError: Failure;

  const send: Send = (one, retry) => {
    const alone = () => request(socket, options.timeout, one.event, one.body, one.answered);
    if (self.many) self.many.send(one, retry);
    else if (channels.size + patterns.size < 2) alone();
    else getMany!().then((many) => (self.many = many).send(one, retry), alone);
  };

  const listen = (method: "on" | "off", events: Part["events"]) => {
    for (const event in events) socket[method](event, events[event]);
  };

  /** Returns those that an event of the server is for. */
  const named = ({ channel, pattern, matches = [pattern ?? channel] }: Wire): Shared[] => (
    matches.flatMap((name: string) => (name?.includes("*") ? patterns : channels).get(name) ?? [])
  );

  const all = () => [...channels.values(), ...patterns.values()];

  const hear = () => { heard = Date.now(); };

  const events: Record<string, (body: Wire) => void> = {
    connect() {
      hear();
      lastError = { code: "disconnected", message: "The server has ended the connection." };
      for (const shared of all()) shared.settle();
    },
    error(failure) { lastError = failure ?? lastError; },
    disconnect(reason) {
      features = undefined;
      for (const part of parts) part.lose?.();
      for (const shared of all()) shared.lose(isoTime(heard));
      if (reason === "io server disconnect") report("ended", lastError);
    },
    server_hello(hello) {
      const found: string[] = features = hello.features ?? [];
      options.sendsLive = found.includes("live");
      for (const part of parts) part.open?.(found);
      events.health(hello.health);
    },
    health(found) {
      if (!found || JSON.stringify(found) === JSON.stringify(health)) return;
      health = found;
      report("health", found);
    },
    direct(message) {
      hear();
      report("direct", message);
    },
  };
  for (const name of SHARED_EVENTS) {
    events[name] = (body) => {
      hear();
      if (body.table) return; // for tables.ts
      for (const one of body.channels?.filter((each: Wire) => each.ok) ?? [body]) {
        for (const shared of named(one)) shared[name](one);
      }
    };
  }
  listen("on", events);
  // Only once for all users of the socket. It stays after `close()`: the server does not know of that.
  socket.off("events", spread).on("events", spread);
  socket.io.on("ping", hear);

  const self: Hub = {
    socket,
    options,
    channels,
    all,
    hear,
    get health() { return health; },
    add(part) {
      if (isClosed) part.close?.();
      else {
        parts.add(part);
        listen("on", part.events);
        if (features) part.open?.(features);
      }
      return part;
    },
    shared(place) {
      const found = place.pattern ? patterns : channels;
      const name = (place.pattern ?? place.channel)!;
      return found.get(name) ?? makeShared(place, name, socket, send, options, found);
    },
    takeLate: events.subscribed,
    close() {
      isClosed = true;
      for (const part of parts) {
        part.close?.();
        listen("off", part.events);
      }
      parts.clear();
      listen("off", events);
      socket.io.off("ping", hear);
      for (const shared of all()) for (const member of shared.members) shared.remove(member);
    },
  };
  return self;
}
