/** A channel or pattern as one part of the program uses it. */

import type { Core } from "./client.js";
import { Emitter } from "./emitter.js";
import { SocketIoPgError, SubscriptionError } from "./errors.js";
import { Member, type Place } from "./member.js";
import { PresenceHandle } from "./presence.js";
import { check, schemaFor, type Checked } from "./schema.js";
import type { Shared } from "./shared.js";
import type {
  Channel, ChannelEvents, ChannelOptions, ChannelState, ClientError, HistoryOptions, Message, Position, Presence,
  Published, PublishOptions,
} from "./types.js";
import { onAbort } from "./util.js";

/** Events that need the subscription. */
const LASTING = ["message", "gap", "rows", "ephemeral"] as const;

const IDLE: ChannelState = { status: "idle", code: "idle", reason: "" };

export class ChannelHandle extends Emitter<ChannelEvents<any, any>> implements Channel<any, any> {
  readonly name: string;
  #core;
  #place;
  #options;
  #shared: Shared | null = null;
  #member: Member | null = null;
  #state = IDLE;
  #isWanted = false; // by subscribe()
  #isStopped = false; // by unsubscribe(): listeners that are still there do not count
  #final: ClientError | null = null;
  #retry: ClientError | null = null;
  #loops = new Set<Loop>();
  #presence: PresenceHandle | null = null;
  #schema;
  /** With a schema that needs time: the end of the checks so far, and the position before them. */
  #checks: Promise<void> | null = null;
  #checked: Position | null = null;

  constructor(core: Core, place: Place, options: ChannelOptions<any, any>) {
    super();
    this.#core = core;
    this.#place = place;
    this.#options = options;
    this.name = (place.pattern ?? place.channel) as string;
    this.#schema = options.schema ?? schemaFor(core.options.schemas, this.name);
    new Member(place, () => {}, options); // throws if `since` is none
    onAbort(options.signal, () => this.#end(new SubscriptionError("aborted", "the signal was aborted", this.name)));
  }

  get state(): ChannelState { return this.#state; }

  get position(): Position | null { return this.#checks ? this.#checked : this.#member?.done ?? null; }

  get maxRate(): number | null { return this.#shared?.maxRate ?? null; }

  get presence(): Presence {
    return this.#presence ??= new PresenceHandle(this.#core, this.name, (change) => this.emit("presence", change));
  }

  subscribe(): Promise<void> {
    this.#isWanted = true;
    this.#isStopped = false;
    this.#final = null;
    this.#start();
    return this.#member?.ready.promise ?? Promise.reject(this.#final);
  }

  async live(): Promise<void> {
    await this.subscribe();
    await this.#member?.caughtUp.promise;
  }

  protected override listened(name: keyof ChannelEvents): void {
    if (name === "presence") (this.presence as PresenceHandle).forward(this.hears(name));
    if (!(LASTING as readonly string[]).includes(name)) return;
    if (this.hears(name)) this.#isStopped = false;
    this.#update();
  }

  /** Starts at once, and ends in a microtask, if nobody has begun to listen again by then. */
  #update() {
    if (this.#isUsed) this.#start();
    else queueMicrotask(() => { if (!this.#isUsed) this.#stop(); });
  }

  get #isUsed() {
    return !this.#isStopped && (this.#isWanted || this.#loops.size > 0 || LASTING.some((name) => this.hears(name)));
  }

  #start() {
    if (this.#member || this.#final) return;
    const { since, history, filter, load } = this.#options;
    const member = new Member(this.#place, (message) => this.#receive(message), {
      since, history, filter, load,
      onRows: (rows) => this.emit("rows", rows),
      onGap: (gap) => this.emit("gap", gap),
      onEphemeral: (message) => this.emit("ephemeral", message),
      onError: (error) => this.#fail(error as ClientError),
      onState: () => this.#changed(),
    });
    if (this.#core.closed) {
      this.#end(this.#core.closed);
      return;
    }
    try {
      this.#shared = this.#core.hub.shared(this.#place);
      this.#shared.add(member);
      this.#member = member;
      this.#changed();
    } catch (error) {
      const found = new SubscriptionError("conflicting_filter", (error as Error).message, this.name);
      this.#end(found);
      queueMicrotask(() => this.#fail(found));
    }
  }

  #stop() {
    const member = this.#member;
    this.#member = null;
    if (member) this.#shared!.remove(member);
    for (const loop of this.#loops) loop.end();
    this.#changed();
  }

  /** Ends for good, unless `subscribe()` is called. */
  #end(error: SocketIoPgError) {
    this.#final = error as ClientError;
    this.#stop();
  }

  async unsubscribe(): Promise<void> {
    this.#isWanted = false;
    this.#isStopped = true;
    this.#stop();
    if (!this.#shared?.members.size) await this.#shared?.settle();
  }

  #fail(error: ClientError) {
    if (error.retrying) this.#retry = error;
    else this.#final = error;
    const heard = this.emit("error", error);
    this.#changed();
    if (!heard) this.#core.fail(error, !this.#isWanted);
  }

  /** Reports the state if it is another one. */
  #changed() {
    const state = this.#find();
    const { status, code } = this.#state;
    if (status === state.status && code === state.code) return;
    this.#state = state;
    this.emit("state", state);
  }

  #find(): ChannelState {
    const member = this.#member;
    const error = this.#final ?? (member ? this.#core.closed : null);
    if (error) {
      this.#member = null;
      for (const loop of this.#loops) loop.end(error);
      return { status: "ended", code: error.code, reason: error.message };
    }
    if (!member) return IDLE;
    if (member.live) {
      this.#retry = null;
      const status = member.isCurrent ? "live" : "subscribed";
      return { status, code: status, reason: "" };
    }
    const status = member.established || this.#retry ? "reconnecting" : "subscribing";
    return { status, code: this.#retry?.code ?? status, reason: this.#retry?.message ?? "" };
  }

  // --- Messages ---

  #receive(message: Message) {
    if (!this.#schema) {
      this.#deliver(message, message);
      return;
    }
    const checked = check(this.#schema, message.payload);
    if (!this.#checks && !(checked instanceof Promise)) {
      this.#pass(message, checked);
      this.#checked = this.position;
      return;
    }
    const member = this.#member;
    const place = member?.done ?? null;
    const checks: Promise<void> = (this.#checks ?? Promise.resolve()).then(() => checked).then((found) => {
      this.#checked = place;
      if (this.#member === member) this.#pass(message, found);
      if (this.#checks === checks) this.#checks = null;
    });
    this.#checks = checks;
  }

  #pass(message: Message, checked: Checked) {
    if (!checked.issues) this.#deliver(message, { ...message, payload: checked.value });
    else this.emit("invalid", { ...checked, message });
  }

  #deliver(original: Message, message: Message) {
    this.emit("message", message);
    for (const loop of this.#loops) loop.add(message);
    this.#core.saw(original.payload);
  }

  messages({ signal, buffer = this.#options.buffer ?? 1_000 }: { signal?: AbortSignal; buffer?: number } = {}): Loop {
    const loop = new Loop(buffer, signal, (dropped) => {
      this.emit("gap", { ...this.#place, tier: "buffer", reason: "buffer_full", dropped });
    }, () => {
      this.#loops.delete(loop);
      this.#update();
    });
    if (!signal?.aborted) {
      this.#isStopped = false;
      this.#loops.add(loop);
      this.#start();
      if (this.#final) loop.end(this.#final);
    }
    return loop;
  }

  [Symbol.asyncIterator](): Loop { return this.messages(); }

  async history(options: HistoryOptions | number = {}): Promise<Message<any>[]> {
    const how = typeof options === "number" ? { limit: options } : options;
    const { read } = await this.#core.part("history");
    const found = await read(this.#core, this.#place, this.#options.filter, how);
    if (!this.#schema) return found;
    const kept = await Promise.all(found.map(async (message) => [message, await check(this.#schema!, message.payload)] as const));
    return kept.flatMap(([message, checked]) => {
      if (!checked.issues) return { ...message, payload: checked.value };
      this.emit("invalid", { ...checked, message });
      return [];
    });
  }

  publish(payload: unknown, options?: PublishOptions): Promise<Published> {
    return this.#core.publish(this.name, payload as any, options);
  }

  send(payload: unknown, options?: { key?: string; echo?: boolean }): void {
    this.#core.send(this.name, payload, options);
  }
}

/** The messages of a channel for a loop. */
class Loop implements AsyncIterableIterator<Message<any>> {
  #buffer: Message<any>[] = [];
  #dropped = 0;
  #size;
  #onDrop;
  #onEnd;
  #isEnded = false;
  #error: SocketIoPgError | null | undefined;
  #wake: (() => void)[] = [];
  #forget;

  constructor(size: number, signal: AbortSignal | undefined, onDrop: (dropped: number) => void, onEnd: () => void) {
    this.#size = size;
    this.#onDrop = onDrop;
    this.#onEnd = onEnd;
    this.#forget = () => {};
    this.#forget = onAbort(signal, () => this.end());
  }

  add(message: Message<any>): void {
    if (this.#buffer.push(message) > this.#size) {
      this.#buffer.shift();
      this.#dropped++;
    }
    this.#wake.shift()?.();
  }

  /** No more messages come. The loop gets those that it has not taken yet, then the error if there is one. */
  end(error?: SocketIoPgError): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#error = error;
    this.#forget();
    for (const wake of this.#wake.splice(0)) wake();
    queueMicrotask(this.#onEnd);
  }

  async next(): Promise<IteratorResult<Message<any>>> {
    while (!this.#buffer.length && !this.#isEnded) await new Promise<void>((resolve) => this.#wake.push(resolve));
    const dropped = this.#dropped;
    this.#dropped = 0;
    if (dropped) this.#onDrop(dropped);
    if (this.#buffer.length) return { value: this.#buffer.shift()!, done: false };
    const error = this.#error;
    this.#error = null;
    if (error) throw error;
    return { value: undefined, done: true };
  }

  async return(): Promise<IteratorResult<Message<any>>> {
    this.#buffer = [];
    this.end();
    return { value: undefined, done: true };
  }

  [Symbol.asyncIterator](): this { return this; }
}
