"use client";

/**
 * Hooks for React 18 and later. Effects subscribe, so nothing is connected while a server renders, and React's
 * StrictMode may mount each component twice. Options are compared by value; functions may be new ones with each render.
 */

import {
  createContext, createElement, useCallback, useContext, useEffect, useMemo, useRef, useSyncExternalStore,
} from "react";
import type { ReactElement, ReactNode } from "react";
import type { ClientError } from "./errors.js";
import {
  ChannelStore, ConnectionStore, keyOf, NO_CHANNEL, NO_CONNECTION, NO_PRESENCE, NO_TABLE, PresenceStore, shared,
  TableStore,
} from "./react-stores.js";
import type { ChannelView, ConnectionView, PresenceView, Store, TableView } from "./react-stores.js";
import type {
  ChannelOptions, Client, EphemeralMessage, Gap, Given, InvalidMessage, Message, PayloadOf, Published, PublishOptions,
  TableChange, TableOptions,
} from "./types.js";

export type { ChannelView, ConnectionView, PresenceView, TableView };

/**
 * Gives the hooks the types of channels and tables, which `socketio-pg types` writes:
 *
 *     declare module "socketio-pg/react" {
 *       interface Register { channels: Channels; tables: Tables }
 *     }
 */
export interface Register {}

type Channels = Register extends { channels: infer Map } ? Map : unknown;
type Tables = Register extends { tables: infer Map } ? Map : unknown;
type RowOf<Name> = Name extends keyof Tables ? Tables[Name] : Record<string, any>;

const Context = createContext<Client<any> | null>(null);

export interface SocketIoPgProviderProps {
  /** Returned by `createClient()`, outside of the component. */
  client: Client<any>;
  children?: ReactNode;
}

/** Provides the client for the hooks of the components inside. */
export function SocketIoPgProvider({ client, children }: SocketIoPgProviderProps): ReactElement {
  return createElement(Context.Provider, { value: client }, children);
}

/** Returns the client of the provider. */
export function useClient(): Client<Channels> {
  const client = useContext(Context);
  if (!client) throw new Error("useChannel, useTable and the other hooks need a <SocketIoPgProvider client={…}>");
  return client;
}

// --- Channels -----------------------------------------------------------------------------------------------------------

export interface UseChannelOptions<Payload = unknown> extends Omit<ChannelOptions<Payload>, "load" | "signal" | "buffer"> {
  /** How many of the newest messages `messages` keeps. Default: 100, and none with `onMessage`. */
  limit?: number;
  /** Called with each message at once. Without `limit`, messages then cause no render. */
  onMessage?: (message: Message<Payload>) => void;
  /** Messages may have been missed: fetch what must not be stale again. */
  onGap?: (gap: Gap) => void;
  onEphemeral?: (message: EphemeralMessage) => void;
  /** Called with messages that `schema` refuses. */
  onInvalid?: (invalid: InvalidMessage) => void;
  /** Called with each failure, including those that are retried. */
  onError?: (error: ClientError) => void;
  /** true: subscribe to nothing. */
  skip?: boolean;
}

export interface UseChannelResult<Payload> extends ChannelView<Payload> {
  /** Publishes once, also across reconnects. Rejects with a PublishError. */
  publish: (payload: Payload, options?: PublishOptions) => Promise<Published>;
  /** Sends an ephemeral message, for what is worthless a moment later. Of each key the newest one is sent. */
  send: (payload: unknown, options?: { key?: string; echo?: boolean }) => void;
}

/**
 * Subscribes to a channel, or to a pattern (a name with `*`), and returns its newest messages. Without a name it does
 * nothing. Components with the same name and options share the messages.
 */
export function useChannel<Payload = never, Name extends string = string>(
  name: Name | null | undefined,
  options: UseChannelOptions<Given<Payload, PayloadOf<Channels, Name>>> = {},
): UseChannelResult<Given<Payload, PayloadOf<Channels, Name>>> {
  type Found = Given<Payload, PayloadOf<Channels, Name>>;
  const client = useClient();
  const { since, history, filter, schema, skip } = options;
  const limit = options.limit ?? (options.onMessage ? 0 : 100);
  const key = name && !skip ? keyOf(["channel", name, since, history, filter, limit]) : null;
  const store = useMemo(() => {
    if (key === null) return null;
    const asked = { since, history, filter, schema };
    return shared(client, key, () => new ChannelStore<Found>(client, name!, asked as ChannelOptions, limit));
  }, [client, key]); // `key` has all others but the schema, which may be a new object with each render
  const view = useStore<ChannelView<Found>>(store, NO_CHANNEL);
  const handlers = useLatest(options);
  useEffect(() => {
    if (!store) return undefined;
    const release = store.retain();
    const [end, channel] = [new AbortController(), store.channel!];
    const { signal } = end;
    channel.on("message", (message) => handlers.current.onMessage?.(message), { signal });
    channel.on("gap", (gap) => handlers.current.onGap?.(gap), { signal });
    channel.on("ephemeral", (message) => handlers.current.onEphemeral?.(message), { signal });
    channel.on("invalid", (invalid) => handlers.current.onInvalid?.(invalid), { signal });
    channel.on("error", (error) => handlers.current.onError?.(error), { signal });
    return () => {
      end.abort();
      release();
    };
  }, [store]);
  const publish = useCallback<UseChannelResult<Found>["publish"]>((payload, how) => {
    if (!name) throw new TypeError("useChannel has no channel to publish to");
    return client.publish(name, payload as PayloadOf<Channels, Name>, how);
  }, [client, name]);
  const send = useCallback<UseChannelResult<Found>["send"]>((payload, how) => {
    if (name) client.channel(name).send(payload, how);
  }, [client, name]);
  return { ...view, publish, send };
}

// --- Tables -------------------------------------------------------------------------------------------------------------

export interface UseTableOptions<Row = Record<string, any>> extends Omit<TableOptions<Row>, "signal"> {
  /**
   * The columns of the primary key, if components rely on them: with another primary key `error` is `wrong_key`. The
   * server knows the key, so that rows are kept by it without this option.
   */
  key?: (keyof Row & string) | readonly (keyof Row & string)[];
  /** Called with each change at once, for example to highlight a row. */
  onChange?: (change: TableChange<Row>) => void;
  /** Called with each failure, including those that are retried. */
  onError?: (error: ClientError) => void;
  /** true: subscribe to nothing. */
  skip?: boolean;
}

/**
 * Follows the rows of a live table: "orders" is "public.orders". `rows` is sorted by `order` and the primary key, also
 * after changes, and the same array until something changes. Rows that do not change are the same objects.
 */
export function useTable<Row = never, Name extends string = string>(
  name: Name | null | undefined,
  options: UseTableOptions<Given<Row, RowOf<Name>>> = {},
): TableView<Given<Row, RowOf<Name>>> {
  type Found = Given<Row, RowOf<Name>>;
  const client = useClient();
  const { where, order, limit, schema, skip } = options;
  const columns = typeof options.key === "string" ? [options.key] : options.key;
  const key = name && !skip ? keyOf(["table", name, where, order, limit, columns]) : null;
  const store = useMemo(() => {
    if (key === null) return null;
    const whole = name!.includes(".") ? name! : `public.${name!}`;
    const asked = { where, order, limit, schema } as TableOptions<Found>;
    return shared(client, key, () => new TableStore<Found>(client, whole, asked, columns));
  }, [client, key]);
  const view = useStore<TableView<Found>>(store, NO_TABLE);
  const handlers = useLatest(options);
  useEffect(() => {
    if (!store) return undefined;
    const release = store.retain();
    const [end, table] = [new AbortController(), store.table!];
    const { signal } = end;
    table.on("change", (change) => handlers.current.onChange?.(change), { signal });
    table.on("error", (error) => handlers.current.onError?.(error), { signal });
    return () => {
      end.abort();
      release();
    };
  }, [store]);
  return view;
}

// --- Presence and the connection ------------------------------------------------------------------------------------------

export interface UsePresenceOptions {
  /** For anonymous clients, to be one member with several connections. */
  key?: string;
  /** true: neither join nor watch. */
  skip?: boolean;
}

/**
 * Shows who is present on a channel. With `state` (any JSON value but null) this client joins, and its state follows the
 * argument; without, it only watches.
 */
export function usePresence<State = any>(
  name: string | null | undefined,
  state?: State | null,
  { key: ownKey, skip }: UsePresenceOptions = {},
): PresenceView<State> {
  const client = useClient();
  const key = name && !skip ? keyOf(["presence", name, ownKey]) : null;
  const store = useMemo(
    () => (key === null ? null : shared(client, key, () => new PresenceStore<State>(client, name!, ownKey))),
    [client, key],
  );
  const view = useStore<PresenceView<State>>(store, NO_PRESENCE);
  const wish = state === undefined || state === null ? null : keyOf(state);
  useEffect(() => {
    if (!store || wish === null) return undefined;
    const release = store.retain();
    const leave = store.join(state!);
    return () => {
      leave();
      release();
    };
  }, [store, wish]);
  return view;
}

/** The state of the connection, and whether the server reaches its database. */
export function useConnectionState(): ConnectionView {
  const client = useClient();
  const store = useMemo(() => shared(client, "connection", () => new ConnectionStore(client)), [client]);
  return useStore(store, NO_CONNECTION);
}

// --- What they have in common ---------------------------------------------------------------------------------------------

function useStore<Snapshot>(store: Store<Snapshot> | null, initial: Snapshot): Snapshot {
  const none = useCallback(() => initial, [initial]);
  return useSyncExternalStore(store?.subscribe ?? subscribeToNothing, store?.getSnapshot ?? none, none);
}

const subscribeToNothing = (): (() => void) => () => {};

/** Returns a reference to the value of the last render that was shown. */
function useLatest<Value>(value: Value): { readonly current: Value } {
  const latest = useRef(value);
  useEffect(() => {
    latest.current = value;
  });
  return latest;
}
