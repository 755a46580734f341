/** One user of a channel: its position in the log, and whether it receives the live messages after it. */

import type { SubscriptionError } from "./errors.js";
import type { Loader } from "./loading.js";
import type { EphemeralMessage, Filter, Gap, Message, Position, Start } from "./types.js";
import { deferred, isoTime, type Deferred, type Wire } from "./util.js";

/** A channel or a pattern, as requests name it. */
export interface Place {
  channel?: string;
  pattern?: string;
}

export interface MemberOptions {
  since?: Start | null;
  history?: number;
  filter?: Filter | null;
}

/** What a member hears of. */
export interface MemberEvents {
  message: Message<any>;
  ephemeral: EphemeralMessage<any>;
  gap: Gap;
  error: SubscriptionError;
  /** The server has confirmed it on this connection. */
  subscribed: undefined;
  /** It is up to date. */
  current: undefined;
  /** `live`, `current` or `established` may have changed. */
  state: undefined;
}

/** Must not throw. */
export type Report = <Name extends keyof MemberEvents>(name: Name, value?: MemberEvents[Name]) => void;

/** The state of one handler's subscription. */
export interface Member {
  readonly place: Place;
  readonly report: Report;
  readonly filter: Filter | null;
  /** The server has confirmed it once. */
  established?: boolean;
  live?: boolean;
  /** When the connection was lost, and with it messages of NOTIFY: ISO 8601. */
  lost?: string;
  /** It has been up to date on this connection. */
  current?: boolean;
  readonly ready: Deferred;
  readonly caughtUp: Deferred;
  /** The epoch is "" while it is unknown: the log was installed after we subscribed. */
  position: Position | null;
  /**
   * A start that is no position. A time counts until the server has answered with its position, the token of a
   * snapshot until the subscription is live: a message with a higher position may be in the snapshot.
   */
  start: string | null;
  history: number;
  /** With the option `load`. */
  loader?: Loader;
}

export function makeMember(place: Place, { since, history, filter }: MemberOptions, report: Report): Member {
  const [ready, caughtUp] = [deferred(), deferred()];
  for (const { promise } of [ready, caughtUp]) promise.catch(() => {}); // the event `error` reports it
  return {
    place, report, ready, caughtUp,
    filter: filter ?? null,
    position: since ? positionOf(since as Position) : null,
    // The server knows a position as text, too.
    start: since instanceof Date ? since.toISOString() : typeof since === "string" ? since : null,
    history: since ? 0 : history ?? 0,
  };
}

export function startsFromSnapshot({ start }: Member): boolean { return !!start?.startsWith("snapshot:"); }

export function lacksEpoch({ position }: Member): boolean { return position?.epoch === ""; }

export function learnEpoch(one: Member, start: Position | null): void {
  if (lacksEpoch(one)) one.position = start && { epoch: start.epoch, position: one.position!.position };
}

export function follows({ position }: Member, start: Position): boolean {
  return position?.epoch === start.epoch && position.position >= start.position;
}

/** Returns the position up to which the handler has got all messages. */
export function doneUpTo(one: Member): Position | null { return lacksEpoch(one) || one.start ? null : one.position; }

export function reportGap({ report, place }: Member, gap: Wire): void {
  report("gap", { ...place, ...gap });
}

export function fail(one: Member, error: SubscriptionError): void {
  one.report("error", error);
  if (!error.retrying) end(one, error);
}

/** The server has confirmed the subscription on this connection. */
export function confirm(one: Member): void {
  const { lost, report } = one;
  one.established = true;
  one.ready.resolve();
  report("state");
  report("subscribed");
  if (!lost) return;
  one.lost = "";
  reportGap(one, { tier: "notify", reason: "client_disconnected", since: lost, until: isoTime() });
}

/** The subscription has ended. */
export function end(one: Member, error: SubscriptionError): void {
  one.live = one.current = false;
  one.loader?.end();
  one.caughtUp.reject(error);
  one.ready.reject(error); // unless it is resolved
  one.report("state");
}

/** Delivers a message, or holds one of NOTIFY until the rows are there. */
export function deliver({ loader, report }: Member, message: Message): void {
  if (loader?.isStale) loader.hold(message);
  else report("message", message);
}

/** All messages up to `edge` were delivered. */
export function becomeCurrent(one: Member, edge: Position | null): void {
  one.start = null;
  one.loader?.becomeCurrent();
  if (edge) {
    learnEpoch(one, edge);
    if (!one.position || (one.position.epoch === edge.epoch && !follows(one, edge))) one.position = edge;
  }
  if (one.current) return;
  one.current = true;
  one.caughtUp.resolve();
  one.report("state");
  one.report("current");
}

export function positionOf({ epoch, position }: { epoch?: string | null; position?: number }): Position | null {
  return typeof epoch === "string" && typeof position === "number" ? { epoch, position } : null;
}
