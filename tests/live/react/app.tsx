// The components of the test page. They also render on a server.

import type { Client } from "socketio-pg";
import {
  SocketIoPgProvider, useChannel, useConnectionState, usePresence, useTable, type UseChannelOptions, type UseTableOptions,
} from "socketio-pg/react";

export interface Props {
  channel?: { name: string; options?: UseChannelOptions<any>; records?: boolean };
  table?: { name: string; options?: UseTableOptions };
  people?: { name: string; state?: unknown };
  flood?: string;
  /** Changes nothing: a parent that renders again. */
  tick?: number;
}

/** How often each component has rendered. */
export const renders: Record<string, number> = {};
/** The payloads that `onMessage` has got. */
export const recorded: unknown[] = [];

export function App({ client, channel, table, people }: Props & { client: Client }) {
  return (
    <SocketIoPgProvider client={client}>
      <Connection />
      {channel && <Channel {...channel} />}
      {table && <Table {...table} />}
      {people && <People {...people} />}
    </SocketIoPgProvider>
  );
}

function count(name: string) {
  renders[name] = (renders[name] ?? 0) + 1;
}

function Show({ id, value }: { id: string; value: unknown }) {
  return <pre id={id}>{JSON.stringify(value)}</pre>;
}

function Connection() {
  count("connection");
  const { status, code, health } = useConnectionState();
  return <Show id="connection" value={{ status, code, database: health?.database ?? null }} />;
}

function Channel({ name, options, records }: NonNullable<Props["channel"]>) {
  count("channel");
  const onMessage = records ? ({ payload }: { payload: unknown }) => recorded.push(payload) : undefined;
  const { messages, total, state, error } = useChannel<any>(name, {
    ...options, onMessage, onGap: ({ tier, reason }) => recorded.push(`gap ${tier} ${reason}`),
  });
  const payloads = messages.map(({ payload }) => payload);
  return <Show id="channel" value={{ payloads, total, status: state.status, code: state.code, error: error?.code ?? null }} />;
}

function Table({ name, options }: NonNullable<Props["table"]>) {
  count("table");
  const { rows, state, error, key, complete } = useTable(name, options);
  Object.assign(globalThis, { rows });
  return <Show id="table" value={{ rows, status: state.status, key, complete, error: error?.code ?? null }} />;
}

function People({ name, state }: NonNullable<Props["people"]>) {
  count("people");
  const { members, count: number, complete, key, error } = usePresence(name, state);
  const states = members.map((member) => [member.key, member.metas.map((one) => one.state)]);
  return <Show id="people" value={{ members: states, count: number, complete, key, error: error?.code ?? null }} />;
}
