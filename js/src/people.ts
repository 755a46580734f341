/** Who is present on a channel: what the application's objects want, the next request, and what the answers mean. */

import { SubscriptionError } from "./errors.js";
import type { Hub, Part } from "./hub.js";
import { isEqual, PresenceState } from "./presence-state.js";
import type { PresencePart, Request, Shared } from "./shared.js";
import type { PresenceMember } from "./types.js";
import { call, deferred, type Deferred, type Wire } from "./util.js";

export interface PresenceHandlers {
  /** Not called for those who are there at first. */
  onJoin?: (member: PresenceMember) => void;
  /** The state of a connection has changed, or another connection of the same member has come or gone. */
  onUpdate?: (member: PresenceMember, before: PresenceMember) => void;
  onLeave?: (member: PresenceMember) => void;
  /** Called after these, and when the members are known for the first time or again after a reconnect. */
  onSync?: (members: Map<string, PresenceMember>, presence: People) => void;
  /** Called with every failure, including those that are retried. */
  onError?: (error: SubscriptionError) => void;
}

/** What the client wants to join with. */
interface Joining {
  key?: string;
  state: any;
}

interface Call extends Deferred {
  handle: People;
  wish: Joining | true;
}

/** The events of presence, once for each connection. */
class PresenceEvents implements Part {
  #hub;

  constructor(hub: Hub) {
    this.#hub = hub;
  }

  close(): void {
    for (const shared of this.#hub.all()) {
      for (const handle of (shared.presence as ChannelPresence | null)?.handles ?? []) handle.close();
    }
  }

  events = {
    presence: (difference: Wire) => this.#with(difference, (one) => one.receive("apply", difference)),
    presence_state: (state: Wire) => this.#with(state, (one) => one.receive("sync", state)),
    presence_ended: (ended: Wire) => this.#with(ended, (one) => one.receiveEnded(ended)),
  };

  #with({ channel }: Wire, what: (presence: ChannelPresence) => void) {
    const shared = this.#hub.channels.get(channel);
    if (!shared?.presence) return;
    what(shared.presence as ChannelPresence);
    shared.settle();
  }
}

const listening = new WeakSet<Hub>();

/** Watches the presence of a channel, until `close()`. */
export function watch(hub: Hub, shared: Shared, handlers: PresenceHandlers): People {
  if (!listening.has(hub)) {
    listening.add(hub);
    hub.add(new PresenceEvents(hub));
  }
  shared.presence ??= new ChannelPresence(shared);
  const made = new People(shared, shared.presence as ChannelPresence, handlers);
  shared.use();
  return made;
}

/**
 * Who is present on a channel, as returned by `presence()`. All of a channel share its members, and whether this client
 * has joined. After a reconnect the client joins again, with the same state.
 */
export class People {
  #channel;
  #shared;
  #settled = deferred();

  constructor(channel: Shared, shared: ChannelPresence, /** For ChannelPresence. */ readonly handlers: PresenceHandlers) {
    this.#channel = channel;
    this.#shared = shared;
    if (handlers.onError) this.#settled.promise.catch(() => {}); // onError reports it
    this.#shared.add(this);
  }

  get channel(): string { return this.#channel.name; }

  /**
   * The members by key, in a Map that follows the server's: only this class may change it. After a lost connection it
   * has the last known members.
   */
  get members(): Map<string, PresenceMember> { return this.#shared.state.members; }

  /** The number of members. */
  get count(): number { return this.#shared.state.count; }

  /** False before the members are known, and when there are too many of them: then only `count` is known. */
  get complete(): boolean { return this.#shared.state.complete; }

  /** The key of this client's own member; null if it has not joined. */
  get key(): string | null { return this.#shared.key; }

  /** False after `close()`, and when the server has ended it. */
  get isOpen(): boolean { return this.#shared.handles.has(this); }

  /** Resolves when the members are known for the first time. Rejects with the SubscriptionError. */
  get ready(): Promise<void> { return this.#settled.promise; }

  /**
   * Joins, also after each reconnect, until `leave()` or `close()`. If it has joined already, the state changes.
   * @param state any JSON value, up to 1 KB
   * @param options `key`: for anonymous clients, to be one member with several connections
   * @returns resolves when the server has confirmed it. Rejects with the SubscriptionError
   */
  join(state: any = null, { key }: { key?: string } = {}): Promise<void> {
    return this.#shared.join(this, key === undefined ? { state } : { key, state });
  }

  /** Changes the state. Of changes in quick succession only the last one is sent. */
  update(state: any): Promise<void> { return this.#shared.update(this, state); }

  /** Leaves, and goes on to watch. */
  leave(): Promise<void> { return this.#shared.join(this, null); }

  /** Leaves, if this object has joined, and ends the calls of its handlers. Idempotent. */
  close(): void {
    this.#settled.promise.catch(() => {}); // not an unhandled rejection: the application closed it itself
    const error = new SubscriptionError("unsubscribed", "closed before the server answered", this.channel);
    this.settle(error);
    this.#shared.remove(this, error);
    this.#channel.settle();
  }

  // --- For ChannelPresence ---

  settle(error?: Error): void {
    if (error) this.#settled.reject(error);
    else this.#settled.resolve();
  }
}

/** The presence of one channel: which request comes next, and what the answers mean. */
export class ChannelPresence implements PresencePart {
  readonly state = new PresenceState();
  readonly handles = new Set<People>();
  #worked = false; // the server has confirmed it once
  #combines = true; // presence is requested together with messages, unless the server has refused that
  #channel;
  /** What the application wants to join with. */
  #join: Joining | null = null;
  /** The object that has joined. */
  #joiner: People | null = null;
  /** What the server has confirmed, on this connection. */
  #confirmed: boolean | Joining = false;
  #sees = false; // the client may see the members
  #key: string | null = null;
  /** Calls that wait for the answer. */
  #calls: Call[] = [];

  constructor(channel: Shared) {
    this.#channel = channel;
  }

  get wish(): boolean | Joining { return this.#join ?? this.handles.size > 0; }

  /** The key of this client's own member; null if it has not joined. */
  get key(): string | null { return this.#join && this.#key; }

  add(handle: People): void {
    this.handles.add(handle);
    if (this.#confirmed) {
      handle.settle();
      if (this.state.current) queueMicrotask(() => this.#sync([handle]));
    }
  }

  remove(handle: People, error: Error): void {
    this.handles.delete(handle);
    if (this.#joiner === handle || !this.handles.size) this.#join = this.#joiner = null;
    this.#reject(error, (one) => one.handle === handle);
    this.#resolve();
  }

  join(handle: People, joined: Joining | null): Promise<void> {
    // A copy: the application may change its object, and pass it again.
    const wish: Joining | null = joined && JSON.parse(JSON.stringify({ ...joined, state: joined.state ?? null }));
    const made: Call = { handle, wish: wish ?? true, ...deferred() };
    // `onError` reports it, or the application has closed it.
    if (handle.handlers.onError || !this.handles.has(handle)) made.promise.catch(() => {});
    this.#calls.push(made);
    if (this.handles.has(handle)) {
      this.#join = wish;
      this.#joiner = wish && handle;
      this.#resolve();
      this.#channel.settle();
    } else this.#reject(this.#error("unsubscribed", "close() was called."), (one) => one === made);
    return made.promise;
  }

  update(handle: People, state: any): Promise<void> {
    if (!this.#join) throw new TypeError("join() comes before update()");
    return this.join(handle, { ...this.#join, state });
  }

  plan(forMessages: Request | null): Request | null {
    const next = this.#next();
    if (!forMessages) return next && { ...next, requesters: [] };
    if (next?.event === "subscribe" && this.#combines) Object.assign(forMessages.body, next.body);
    return forMessages;
  }

  worked(request: Request): boolean { return this.#worked && isForPresence(request); }

  #next(): { event: string; body: Wire } | null {
    const [wish, now] = [this.wish, this.#confirmed];
    if (isEqual(wish, now)) return this.#sees && !this.state.current ? { event: "presence_get", body: {} } : null;
    if (wish === true && now) return { event: "presence_leave", body: {} };
    if (typeof wish === "object" && typeof now === "object" && wish.key === now.key) {
      return { event: "presence_update", body: { state: wish.state } };
    }
    return { event: "subscribe", body: { presence: wish } };
  }

  /** The server has confirmed a request. */
  accept(request: Request, answer: Wire): void {
    const { event, body: { presence: wish, state } } = request;
    if (!isForPresence(request)) return;
    if (event === "presence_get") {
      this.receive("sync", answer);
      return;
    }
    const { presence } = answer;
    if (event === "presence_update") this.#confirmed = { ...(this.#confirmed as Joining), state };
    else if (event === "presence_leave") this.#confirmed = true;
    else if (wish && !presence) this.end(this.#error("not_supported", "The server is of an older version."));
    else this.#confirmed = wish;
    this.#key = typeof this.#confirmed === "object" ? presence?.key ?? this.#key : null;
    if (event === "subscribe") {
      this.#sees = presence?.version !== undefined;
      if (this.#sees) this.receive("sync", presence);
    }
    this.#worked = true;
    for (const handle of this.handles) handle.settle();
    this.#resolve();
  }

  /** A request has failed. Unless it is retried, what it was for is given up. */
  fail(error: SubscriptionError, request: Request): boolean {
    if (isForPresence(request)) {
      if (!error.retrying && request.requesters.length) {
        this.#combines = false; // the next requests tell which of both the server refuses
        return true;
      }
      this.#fail(error, request);
    }
    return false;
  }

  #fail(error: SubscriptionError, { event, body: { presence, state } }: Request) {
    const wish = event === "presence_update" ? { ...(this.#confirmed as Joining), state } : presence ?? true;
    if (error.retrying) this.#report(error);
    else if (event === "presence_get" && typeof this.#confirmed === "object") {
      this.#sees = false;
      this.#report(error);
    } else if (typeof wish !== "object") this.end(error);
    else {
      this.#reject(error, (one) => isEqual(one.wish, wish));
      if (isEqual(wish, this.#join)) { // the client remains what it was, and earlier calls cannot succeed
        this.#reject(error, () => true);
        this.#join = typeof this.#confirmed === "object" ? this.#confirmed : null;
        this.#joiner = this.#join && this.#joiner;
      }
      this.#report(error);
    }
  }

  /** The server has ended the subscription, or refuses it. */
  end(error: SubscriptionError): void {
    const handles = [...this.handles];
    this.lose();
    this.handles.clear();
    this.#join = this.#joiner = this.#key = null;
    this.#reject(error, () => true);
    this.#report(error, handles);
    for (const handle of handles) handle.settle(error);
  }

  lose(): void {
    this.#confirmed = this.#sees = false;
    this.state.lose();
  }

  /** Takes the state or a difference. */
  receive(method: "sync" | "apply", body: Wire): void {
    for (const { kind, member, before } of this.state[method](body)) {
      for (const { handlers } of [...this.handles]) {
        if (kind === "join") call(handlers.onJoin, member);
        else if (kind === "update") call(handlers.onUpdate, member, before!);
        else call(handlers.onLeave, member);
      }
    }
    if (this.state.current) this.#sync([...this.handles]);
  }

  /** The server has ended what the client did not end. After a change of identity it joins again. */
  receiveEnded({ reason, joined, watching }: Wire): void {
    this.#confirmed = joined && this.#confirmed;
    if (!joined && watching) this.#confirmed = true;
    if (!watching) this.#sees = false;
    this.#resolve();
    if (reason === "identity_changed") return;
    const error = this.#error(reason, "The server has ended the presence: it is no longer allowed.");
    if (!joined) this.#join = this.#joiner = this.#key = null;
    if (joined || watching) this.#report(error);
    else this.end(error);
  }

  #error(code: string, message: string) { return new SubscriptionError(code, message, this.#channel.name); }

  #resolve() {
    if (!isEqual(this.wish, this.#confirmed)) return;
    for (const one of this.#calls.splice(0)) one.resolve();
  }

  #reject(error: Error, concerns: (one: Call) => boolean) {
    for (const one of this.#calls) if (concerns(one)) one.reject(error);
    this.#calls = this.#calls.filter((one) => !concerns(one));
  }

  #sync(handles: People[]) {
    for (const handle of handles) {
      if (this.handles.has(handle)) call(handle.handlers.onSync, this.state.members, handle);
    }
  }

  #report(error: SubscriptionError, handles = [...this.handles]) {
    for (const { handlers } of handles) call(handlers.onError, error);
  }
}

/** Returns whether a request changes or asks for presence. */
function isForPresence({ event, body }: Request) {
  return event.startsWith("presence") || "presence" in body;
}
