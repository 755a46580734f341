/** `createClient`: one connection to a server, its channels and tables. */

import type { Socket } from "socket.io-client";
import { ChannelHandle } from "./channel.js";
import { Emitter } from "./emitter.js";
import { SocketIoPgError, SubscriptionError, TokenError } from "./errors.js";
import { Hub } from "./hub.js";
import { io } from "./io.js";
import { Login } from "./login.js";
import { PARTS } from "./parts.js";
import { TableHandle } from "./table.js";
import type {
  ChannelOptions, Client, ClientError, ClientEvents, ClientOptions, ClientState, Health, Published, PublishOptions, TableOptions,
} from "./types.js";
import { backoff, call, onAbort, pause, type Failure } from "./util.js";

// Transactions that are remembered for seen(), and for how long, in ms.
const MAX_SEEN = 1_000;
const SEEN_FOR = 60_000;

type Parts = typeof PARTS;

/**
 * Connects to a server, and reconnects until `close()`.
 * @param to the server's address, or a socket of socket.io-client that is not connected yet, which the caller connects
 */
export function createClient<Channels = unknown>(to: string | Socket, options: ClientOptions<Channels> = {}): Client<Channels> {
  return new Core(to, options) as Client<any> as Client<Channels>;
}

/** The client, as its channels and parts know it. */
export class Core extends Emitter<ClientEvents> implements Client<any> {
  readonly socket: Socket;
  readonly hub: Hub;
  readonly options: ClientOptions<any>;
  /** Why it has ended; null: it has not. */
  closed: (SocketIoPgError & ClientError) | null = null;
  #state: ClientState;
  #wasConnected = false;
  #isOwn;
  #ended = new AbortController();
  #parts = new Map<keyof Parts, Promise<any>>();
  #added = new Map<keyof Parts, Promise<any>>();
  /** When a transaction was seen, in ms. */
  #seen = new Map<string, number>();
  #waiting = new Map<string, Set<() => void>>();

  constructor(to: string | Socket, options: ClientOptions<any>) {
    super();
    const { token, socket, timeout, retryDelay, retryDelayMax, publishTimeout, numbers } = options;
    this.options = options;
    this.#isOwn = typeof to === "string";
    this.socket = typeof to === "string" ? io(to, { ...socket, autoConnect: false }) : to;
    const given = Object.entries({ timeout, retryDelay, retryDelayMax, publishTimeout, numbers });
    this.hub = new Hub(this.socket, Object.fromEntries(given.filter(([, value]) => value !== undefined)), {
      onHealth: (health) => this.emit("health", health),
      onDirect: (message) => this.emit("direct", message),
      onEnded: (end) => this.#disconnected(end),
    });
    this.#state = this.socket.connected ? connected : state(this.socket.active ? "connecting" : "disconnected", "not_connected");
    this.hub.add({ events: this.#events });
    this.hub.add(new Login(this.socket, this.hub.options, {
      token: typeof token === "function" ? token : () => token,
      onTokenError: (error) => this.#refused(error),
    }));
    if (options.integers && options.integers !== "number") this.#readExactly();
    else if (this.#isOwn && socket?.autoConnect !== false) this.connect();
  }

  get state(): ClientState { return this.#state; }

  get health(): Health | null { return this.hub.health; }

  channel(channel: string, options: ChannelOptions<any, any> = {}): ChannelHandle {
    return new ChannelHandle(this, { channel }, options);
  }

  pattern(pattern: string, options: ChannelOptions<any, any> = {}): ChannelHandle {
    return new ChannelHandle(this, { pattern }, options);
  }

  table(name: string, options: TableOptions<any> = {}): TableHandle { return new TableHandle(this, name, options); }

  publish(channel: string, payload: unknown, options?: PublishOptions): Promise<Published> {
    return this.added("publisher", ({ Publisher }) => new Publisher(this.hub))
      .then((publisher) => publisher.publish(channel, payload, options));
  }

  /** For channels. */
  send(channel: string, payload: unknown, options?: { key?: string; echo?: boolean }): void {
    this.added("ephemeral", ({ EphemeralSender }) => new EphemeralSender(this.hub))
      .then((sender) => sender.send(channel, payload, options));
  }

  connect(): void {
    if (!this.closed && !this.socket.active) {
      this.#become("connecting", "connecting");
      this.socket.connect();
    }
  }

  close(): void {
    if (this.closed) return;
    this.closed = new SubscriptionError("closed", "close() was called.", "") as ClientError;
    this.#ended.abort();
    this.hub.close();
    if (this.#isOwn) this.socket.disconnect();
    this.#become("ended", "closed", this.closed.message);
  }

  // --- For channels and tables ---

  /** Loads a part of the library. If that fails, it is reported and tried again. */
  part<Key extends keyof Parts>(key: Key): Promise<Awaited<ReturnType<Parts[Key]>>> {
    const { signal } = this.#ended;
    const load = async () => {
      for (let attempt = 0; ; attempt++) {
        if (this.closed) throw this.closed;
        try {
          return await PARTS[key]();
        } catch (cause) {
          const error = new SocketIoPgError("PartError", "part_unavailable", `Loading "${key}" failed: ${cause}`, { cause });
          error.retrying = true;
          this.fail(error as ClientError);
          await pause(backoff(this.hub.options, attempt), signal);
        }
      }
    };
    if (!this.#parts.has(key)) this.#parts.set(key, load());
    return this.#parts.get(key)!;
  }

  /** Returns the one object of a part that follows the connection. */
  added<Key extends keyof Parts, Added extends object>(
    key: Key, make: (part: Awaited<ReturnType<Parts[Key]>>) => Added,
  ): Promise<Added> {
    if (!this.#added.has(key)) this.#added.set(key, this.part(key).then((part) => this.hub.add(make(part))));
    return this.#added.get(key)!;
  }

  /** Reports what nobody has heard where it has happened. Thrown if nobody hears it here either, and it is final. */
  fail(error: ClientError, isUnheard = true): void {
    if (!this.emit("error", error) && isUnheard && !error.retrying) call(() => { throw error; });
  }

  /** Listeners have got a change. */
  saw(payload: any): void {
    const txid = payload?.txid;
    if (typeof txid !== "string") return;
    this.#seen.delete(txid);
    this.#seen.set(txid, Date.now());
    if (this.#seen.size > MAX_SEEN) for (const [oldest] of this.#seen) { this.#seen.delete(oldest); break; }
    for (const resolve of this.#waiting.get(txid) ?? []) resolve();
    this.#waiting.delete(txid);
  }

  seen(txid: string | number | bigint, { signal, timeout }: { signal?: AbortSignal; timeout?: number } = {}): Promise<void> {
    const id = String(txid);
    return new Promise((resolve, reject) => {
      if (Date.now() - (this.#seen.get(id) ?? 0) < SEEN_FOR) {
        resolve();
        return;
      }
      const all = this.#waiting.get(id) ?? new Set();
      const done = (error?: Error) => {
        clearTimeout(timer);
        forget();
        forgetClose();
        all.delete(found);
        if (!all.size) this.#waiting.delete(id);
        if (error) reject(error);
        else resolve();
      };
      const give = (code: string, message: string) => () => done(new SubscriptionError(code, message, ""));
      const found = () => done();
      const timer = timeout === undefined ? undefined : setTimeout(give("no_answer", "The change did not come in time."), timeout);
      this.#waiting.set(id, all.add(found));
      let forget = () => {};
      let forgetClose = () => {};
      forgetClose = onAbort(this.#ended.signal, give("closed", "close() was called."));
      forget = onAbort(signal, give("aborted", "the signal was aborted"));
    });
  }

  // --- The connection ---

  #events: Record<string, (value: any) => void> = {
    connect: () => {
      this.#wasConnected = true;
      this.#set(connected);
    },
    disconnect: (reason: string) => {
      if (this.closed) return;
      const code = reason.replace(/ /g, "_");
      if (this.socket.active) this.#become("reconnecting", code, reason);
      else if (reason !== "io server disconnect") this.#become("disconnected", code, reason);
    },
    connect_error: (error: Error) => {
      if (this.socket.active) this.#becomeLate("unreachable", error.message);
    },
  };

  #disconnected({ code, message }: Failure) { this.#become("disconnected", code, message); }

  #refused(error: TokenError) {
    if (!this.socket.connected) {
      if (error.retrying) this.#becomeLate(error.code, error.message);
      else this.#become("disconnected", error.code, error.message);
    }
    this.fail(error as unknown as ClientError);
  }

  #becomeLate(code: string, reason: string) { this.#become(this.#wasConnected ? "reconnecting" : "connecting", code, reason); }

  #become(status: ClientState["status"], code: string, reason = "") { this.#set(state(status, code, reason)); }

  #set(next: ClientState) {
    if (next.status === this.#state.status && next.code === this.#state.code) return;
    this.#state = next;
    this.emit("state", next);
  }

  /** Connects when numbers can be read exactly. */
  async #readExactly() {
    const { readExactly } = await this.part("exact");
    readExactly(this.socket, this.options.integers as "bigint" | "string");
    if (this.#isOwn && this.options.socket?.autoConnect !== false) this.connect();
  }
}

function state(status: ClientState["status"], code: string, reason = ""): ClientState { return { status, code, reason }; }

const connected = state("connected", "connected");
