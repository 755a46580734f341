/** One user of a channel: its position in the log, and whether it receives the live messages after it. */

import { SubscriptionError } from "./errors.js";
import type { EphemeralMessage, Filter, Gap, Loaded, Message, Position, Start } from "./types.js";
import { call, deferred, type Wire } from "./util.js";

// Messages of NOTIFY that one handler holds while it loads rows.
const MAX_HELD = 1_000;

/** A channel or a pattern, as requests name it. */
export interface Place {
  channel?: string;
  pattern?: string;
}

export interface MemberOptions {
  since?: Start | null;
  load?: (how: { signal: AbortSignal }) => Loaded<any> | Promise<Loaded<any>>;
  onRows?: (rows: any) => void;
  onLive?: () => void;
  onEphemeral?: (message: EphemeralMessage) => void;
  filter?: Filter | null;
  history?: number;
  onGap?: (gap: Gap) => void;
  onError?: (error: SubscriptionError) => void;
  onSubscribed?: () => void;
  /** Called when `live`, `isCurrent` or `established` may have changed. */
  onState?: () => void;
}

/** The state of one handler's subscription. */
export class Member {
  established = false; // the server has confirmed it once
  live = false;
  lostAt = 0; // ms: when the connection was lost, and with it messages of NOTIFY; 0: not lost
  isCurrent = false; // has been up to date on this connection
  ready = deferred();
  caughtUp = deferred();

  /** The epoch is "" while it is unknown: the log was installed after we subscribed. */
  position: Position | null;
  /**
   * A start that is no position. A time counts until the server has answered with its position, the token of a
   * snapshot until the subscription is live: a message with a higher position may be in the snapshot.
   */
  start: string | null;
  history: number;

  // With `load`:
  isStale: boolean; // the rows must be loaded first
  isLoading = false;
  loads = 0; // 1 after it was current
  /** Messages of NOTIFY that arrived while it was stale. */
  held: Message[] = [];
  heldTooMany = false;
  ended = new AbortController();

  constructor(readonly place: Place, readonly handler: (message: Message<any>) => void, readonly on: MemberOptions) {
    const { since, history, load } = on;
    const place_ = since ? placeOf(since) : null;
    this.position = typeof place_ === "string" ? null : place_;
    this.start = typeof place_ === "string" ? place_ : null;
    this.isStale = Boolean(load && !place_);
    this.history = place_ || load ? 0 : history ?? 0;
    if (on.onError) this.ready.promise.catch(() => {}); // onError reports it
    this.caughtUp.promise.catch(() => {}); // `ready` reports it
  }

  get startsFromSnapshot(): boolean { return Boolean(this.start?.startsWith("snapshot:")); }

  get lacksEpoch(): boolean { return this.position?.epoch === ""; }

  learnEpoch(start: Position | null): void {
    if (this.lacksEpoch) this.position = start && { epoch: start.epoch, position: this.position?.position ?? 0 };
  }

  follows(start: Position): boolean {
    return this.position?.epoch === start.epoch && this.position.position >= start.position;
  }

  /** The position up to which the handler has got all messages. */
  get done(): Position | null { return this.lacksEpoch || this.start ? null : this.position; }

  reportGap(gap: Wire): void {
    call(this.on.onGap, { ...this.place, ...gap });
  }

  fail(error: SubscriptionError): void {
    const { onError } = this.on;
    call(onError, error);
    if (error.retrying) return;
    this.end(error);
    if (this.established && !onError) call(() => { throw error; });
  }

  /** The subscription has ended. */
  end(error: SubscriptionError): void {
    this.live = this.isCurrent = false;
    this.ended.abort();
    this.caughtUp.reject(error);
    if (!this.established) this.ready.reject(error);
    call(this.on.onState);
  }

  /** Delivers a message, or holds one of NOTIFY until the rows are there. */
  deliver(message: Message): void {
    if (!this.isStale) call(this.handler, message);
    else if (this.held.push(message) > MAX_HELD) {
      this.held.shift();
      this.heldTooMany = true;
    }
  }

  /** All messages up to `edge` were delivered. */
  becomeCurrent(edge: Position | null): void {
    this.start = null;
    this.loads = 1; // the next one is spread over some time: all clients may have missed messages at once
    if (edge) {
      this.learnEpoch(edge);
      if (!this.position || (this.position.epoch === edge.epoch && !this.follows(edge))) this.position = edge;
    }
    if (this.isCurrent) return;
    this.isCurrent = true;
    this.caughtUp.resolve();
    call(this.on.onState);
    call(this.on.onLive);
  }

  /** The messages so far are not enough: rows must be loaded. */
  becomeStale(): void {
    this.isStale = true;
    this.live = this.isCurrent = false;
    this.position = this.start = null;
    call(this.on.onState);
  }

  /** The rows are there, with the token of their snapshot. */
  accept({ rows, token }: Loaded): void {
    this.isStale = false;
    this.start = token;
    call(this.on.onRows, rows);
    const held = this.held.splice(0);
    if (this.ended.signal.aborted) return; // by onRows
    for (const message of held) call(this.handler, message);
    if (this.heldTooMany) this.reportGap({ tier: "notify", reason: "too_many_while_loading" });
    this.heldTooMany = false;
  }
}

export function positionOf({ epoch, position }: { epoch?: string | null; position?: number }): Position | null {
  return typeof epoch === "string" && typeof position === "number" ? { epoch, position } : null;
}

/** Checks a `since`. Returns a position, or a string for the server: a time, or the token of a snapshot. */
function placeOf(since: Start): Position | string {
  if (since instanceof Date) return since.toISOString();
  if (typeof since !== "string") {
    const position = positionOf(since);
    if (!position) throw new TypeError("since must be like {epoch: \"…\", position: 0}, a string or a Date");
    return position;
  }
  const [, epoch, position] = /^([0-9a-f-]{36}):(\d+)$/.exec(since) ?? [];
  return epoch ? { epoch, position: Number(position) } : since;
}
