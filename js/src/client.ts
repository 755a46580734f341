/** `createClient`: one connection to a server, its channels and tables. */

import type { Socket } from "socket.io-client";
import { makeChannel } from "./channel.js";
import { makeEmitter, type Emitter } from "./emitter.js";
import { SubscriptionError } from "./errors.js";
import { makeHub, type Hub } from "./hub.js";
import { io } from "./io.js";
import { lazy } from "./lazy.js";
import type { Login } from "./login.js";
import { PARTS } from "./parts.js";
import type { Client, ClientError, ClientEvents, ClientOptions, ClientState } from "./types.js";
import { backoff, call, stateOf } from "./util.js";

// Transactions that are remembered for seen().
const MAX_SEEN = 10_000;

type Parts = typeof PARTS;
type PartOf<Key extends keyof Parts> = Awaited<ReturnType<Parts[Key]>>;

/** For this library only: the number of a transaction whose change has come. */
interface CoreEvents extends ClientEvents {
  transaction: string;
}

/** The client, as its channels and parts know it. */
export interface Core extends Omit<Client<any>, "on" | "off">, Emitter<CoreEvents> {
  readonly hub: Hub;
  readonly options: ClientOptions<any>;
  /** Why it has ended. */
  readonly closed: ClientError | undefined;
  /** The transactions whose changes have come, and when, in ms. */
  readonly transactions: Map<string, number>;
  send(channel: string, payload: unknown, options?: { key?: string; echo?: boolean }): void;
  /** Loads a part of the library. If that fails, it is reported and tried again. */
  part<Key extends keyof Parts>(key: Key): Promise<PartOf<Key>>;
  /** Reports what nobody has heard where it has happened. Thrown if it is final, nobody hears it here, and it is not known. */
  fail(error: ClientError, isKnown?: boolean): void;
  /** Listeners have got a message. */
  saw(payload: any): void;
}

/**
 * Connects to a server, and reconnects until `close()`.
 * @param to the server's address, or a socket of socket.io-client that is not connected yet, which the caller connects
 */
export function createClient<Channels = unknown>(to: string | Socket, options: ClientOptions<Channels> = {}): Client<Channels> {
  const { token, integers } = options;
  const isOwn = typeof to === "string";
  const socket = isOwn ? io(to, { ...options.socket, autoConnect: false }) : to;
  const transactions = new Map<string, number>();
  let made: Promise<Login> | undefined;
  const emitter = makeEmitter<CoreEvents>();
  const { emit } = emitter;
  let closed: ClientError | undefined;
  let wasConnected = false;
  let state = {} as ClientState;

  const become = (...values: Parameters<typeof stateOf<ClientState["status"]>>) => {
    const next = stateOf(...values);
    if ((closed && next.status !== "ended") || (next.status === state.status && next.code === state.code)) return;
    state = next;
    emit("state", state);
  };

  const becomeLate = (code: string, reason: string) => become(wasConnected ? "reconnecting" : "connecting", code, reason);

  const part = async <Key extends keyof Parts>(key: Key): Promise<PartOf<Key>> => {
    for (let attempt = 0; !closed || !attempt; attempt++) {
      try {
        return await PARTS[key]() as PartOf<Key>;
      } catch (cause) {
        const error = new SubscriptionError("part_unavailable", `${key}: ${cause}`, "", { cause });
        error.retrying = true;
        self.fail(error);
        await new Promise((resolve) => setTimeout(resolve, backoff(hub.options, attempt)));
      }
    }
    throw closed;
  };

  const login = (then?: (found: Login) => void) => { (made ??= part("login").then((found) => hub.add(new found.Login(socket, hub.options, {
    token: typeof token === "string" ? () => token : token,
    onTokenError(error) {
      if (!socket.connected) {
        if (error.retrying) becomeLate(error.code, error.message);
        else become("disconnected", error.code, error.message);
      }
      self.fail(error as ClientError);
    },
  })))).then(then, () => {}); };

  const hub: Hub = makeHub(socket, options, (name, value: any) => {
    if (name === "ended") become("disconnected", value.code, value.message);
    else emit(name, value);
  }, () => part("many").then(({ manyOf }) => manyOf(hub)));

  const self: Core & Client<any> = {
    ...(emitter as unknown as Core & Client<any>),
    socket,
    hub,
    options,
    transactions,
    part,
    get closed() { return closed; },
    get state() { return state; },
    get health() { return hub.health; },
    channel: (channel: string, how?: {}) => makeChannel(self, { channel }, channel, how) as any,
    pattern: (pattern: string, how?: {}) => makeChannel(self, { pattern }, pattern, how) as any,
    table(name, how) {
      const view: any = lazy(async (handle) => new (await part("table")).TableView(self, name, how, handle), {
        name, state: stateOf("subscribing"), rows: new Map(), list: [], key: [], complete: true,
        keyOf: () => undefined,
      }, ["live", "unsubscribe"]);
      view.live();
      return view;
    },
    publish: (channel, payload, how) => part("publishing").then(({ publisherOf }) => publisherOf(hub).publish(channel, payload, how)),
    send(channel, payload, how) {
      part("publishing").then(({ senderOf }) => { senderOf(hub).send(channel, payload, how); }, () => {});
    },
    seen: (txid, how) => part("reading").then(({ waitFor }) => waitFor(self, txid, how)),
    connect() {
      if (closed || socket.active) return;
      become("connecting");
      socket.connect();
    },
    close() {
      if (closed) return;
      closed = new SubscriptionError("closed", "closed", "");
      hub.close();
      if (isOwn) socket.disconnect();
      become("ended", "closed", closed.message);
    },
    fail(error, isKnown) {
      if (!emit("error", error) && !isKnown && !error.retrying) call(() => { throw error; });
    },
    saw(payload) {
      const txid = payload?.txid;
      if (!txid) return;
      transactions.set(txid, Date.now());
      if (transactions.size > MAX_SEEN) transactions.delete(transactions.keys().next().value!);
      emit("transaction", txid);
    },
  };

  hub.add({ events: {
    connect() {
      wasConnected = true;
      become("connected");
    },
    disconnect(reason: string) {
      if (reason !== "io server disconnect") {
        become(socket.active ? "reconnecting" : "disconnected", reason.replace(/ /g, "_"), reason);
      }
    },
    connect_error(error: Error) {
      if (socket.active) becomeLate("unreachable", error.message);
      else login((found) => found.refuse(error));
    },
  } });
  become(socket.connected ? "connected" : socket.active ? "connecting" : "disconnected");
  if (token) {
    login();
    socket.auth ??= (send) => login((found) => found.connect(send));
  }
  const connect = () => { if (isOwn && options.socket?.autoConnect !== false) self.connect(); };
  if (integers && integers !== "number") {
    part("exact").then(({ readExactly }) => {
      readExactly(socket, integers);
      connect();
    }, () => {});
  } else connect();
  return self;
}
