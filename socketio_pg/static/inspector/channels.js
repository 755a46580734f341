// The view of all channels.

import { channelName, code, empty, h } from "./dom.js";
import { age, bytes, count, plural, short, time } from "./format.js";
import { showList } from "./list-view.js";

export const channelAddress = (name) => `#/channels/${encodeURIComponent(name)}`;

const ago = (at) => (at === null || at === undefined ? "–" : `${age(Math.max(0, Date.now() / 1000 - at))}`);

/** Shows the view. */
export function showChannels(root, inspector) {
  return showList(root, inspector, {
    title: "Channels", label: "Channels", path: "channels", field: "channels", key: ({ channel, pattern }) => `${pattern ? "*" : ""}${channel}`,
    sort: "-messages_in", placeholder: "Search or open",
    columns: [
      { id: "channel", name: "Channel", sorts: "channel", depends: (row) => [row.channel, row.pattern, row.durable, row.retained],
        node: (row) => [h("a", { href: channelAddress(row.channel) }, channelName(row.channel)),
          row.pattern ? h("span", { class: "badge", text: "pattern" }) : null,
          row.retained ? h("span", { class: "badge", text: "retained", title: "the newest message is sent to new subscribers" }) : null] },
      { id: "messages_in", name: "In/s", number: true, sorts: "messages_in", text: (row) => short(row.messages_in), title: () => "messages per second from the database" },
      { id: "messages_out", name: "Out/s", number: true, sorts: "messages_out", text: (row) => short(row.messages_out), title: () => "messages per second times subscriptions" },
      { id: "bytes_in", name: "Bytes/s", number: true, sorts: "bytes_in", text: (row) => bytes(row.bytes_in), title: () => "bytes of payloads per second" },
      { id: "subscribers", name: "Subscribers", number: true, sorts: "subscribers", text: (row) => count(row.subscribers), title: (row) => kinds(row.by_kind) },
      { id: "members", name: "Members", number: true, sorts: "members", text: (row) => count(row.members), title: () => "who is present" },
      { id: "last_position", name: "Last position", number: true, sorts: "last_position", text: (row) => count(row.last_position) },
      { id: "last_at", name: "Last message", number: true, newest: true, sorts: "last_at", text: (row) => ago(row.last_at), title: (row) => (row.last_at ? time(row.last_at * 1000) : "") },
    ],
    note: (answer) => (answer.log?.read === false ? `figures of the log are missing: ${answer.log.problem}` : answer.measured === 0 ? "measuring…" : ""),
    extra: (search) => (search ? [h("a", { href: channelAddress(search) }, "Open ", code(search)), search.includes("*") ? " as a pattern: all matching channels in one tail." : ", whether or not somebody uses it."] : null),
    nothing: () => empty("No channels yet", "A channel is here as soon as somebody subscribes to it or it has a message in the log. Publish one in ",
      h("a", { href: "#/try", text: "Try" }), ", or run ", code("SELECT socketio_pg.publish('foo', '{\"hello\": \"world\"}');")),
  });
}

const KINDS = {
  sockets: (number) => plural(number, "client"), streams: (number) => plural(number, "stream"),
  python: (number) => `${count(number)} in the server`, patterns: (number) => `${count(number)} by a pattern`,
};

/** Subscribers by their kinds as a text. */
export function kinds(byKind = {}) {
  return Object.entries(byKind).filter(([, number]) => number).map(([kind, number]) => KINDS[kind](number)).join(", ");
}
