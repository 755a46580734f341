// The views of all clients, and of one.

import { get, post, repeat } from "./api.js";
import { channelAddress } from "./channels.js";
import { channelName, code, empty, fact, h, setText } from "./dom.js";
import { age, bytes, count, plural, seconds, short, time } from "./format.js";
import { jsonTree } from "./json.js";
import { confirmed } from "./keys.js";
import { showList } from "./list-view.js";
import { toast } from "./copying.js";

const PAUSE = 3_000;
const FEW = 3; // channels of a client that the list shows
export const clientAddress = (sid) => `#/clients/${encodeURIComponent(sid)}`;
const where = ({ node, worker }) => (worker === null || worker === undefined ? node : `${node}/${worker}`);

/** Shows the view of all clients. */
export function showClients(root, inspector) {
  return showList(root, inspector, {
    title: "Clients", label: "Clients", path: "clients", field: "clients", key: ({ sid }) => sid, sort: "-since",
    placeholder: "Name, id, channel",
    columns: [
      { id: "sub", name: "Client", sorts: "sub", depends: (row) => [row.sid, row.sub, row.namespace],
        node: (row) => [h("a", { href: clientAddress(row.sid), class: row.sub ? "who" : "who nobody", text: nameOf(row) }), h("span", { class: "mono hint sid", text: row.sid })] },
      { id: "address", name: "Address", sorts: "address", text: (row) => row.address ?? "–" },
      { id: "channels", name: "Channels", depends: (row) => [row.channels, row.tables],
        node: (row) => few([...row.channels ?? [], ...(row.tables ?? []).map((table) => `live table ${table}`)]) },
      { id: "subscriptions", name: "Subscr.", number: true, sorts: "subscriptions", text: (row) => count(row.subscriptions), title: () => "subscriptions to channels, patterns and live tables" },
      { id: "messages_in", name: "Messages in", number: true, sorts: "messages_in", text: (row) => per(short, row.messages_in), title: () => "from the client" },
      { id: "bytes_out", name: "Bytes out", number: true, sorts: "bytes_out", text: (row) => per(bytes, row.bytes_out), title: () => "to the client" },
      { id: "buffered", name: "Buffered", number: true, sorts: "slow", depends: (row) => [row.buffered, row.stuck > 1, row.replay_lag],
        node: (row) => h("span", { class: row.buffered || row.replay_lag ? "warn" : "", text: row.replay_lag ? `${plural(row.replay_lag, "message")} behind` : bytes(row.buffered),
          title: row.stuck > 1 ? `accepts nothing for ${seconds(row.stuck)}` : "bytes that wait in the server" }) },
      { id: "since", name: "Connected", number: true, newest: true, sorts: "since", text: (row) => age(Date.now() / 1000 - row.since), title: (row) => `since ${time(row.since * 1000)}` },
      { id: "transport", name: "Transport", sorts: "transport", text: (row) => row.transport },
      { id: "node", name: "Process", sorts: "node", text: where },
    ],
    note: ({ slow }) => (slow ? `${count(slow)} slow` : ""),
    nothing: () => empty("No clients are connected", "Open the playground in another tab, or run ", code(`curl -N ${new URL("../api/channels/foo/stream", document.baseURI)}`)),
  });
}

/** A client of the inspector has signed in there, and has no claims of an application. */
function nameOf({ sub, namespace }) {
  return sub ?? (namespace === "/inspector" ? "inspector" : "anonymous");
}

function few(names) {
  if (!names.length) return h("span", { class: "none", text: "–" });
  return h("span", { class: "few", text: `${names.slice(0, FEW).join(", ")}${names.length > FEW ? ` +${names.length - FEW}` : ""}` });
}

/** Shows the view of one client. */
export function showClient(root, inspector, sid) {
  const title = h("h2", { id: "client-title", text: "Client" });
  const facts = h("dl", { class: "facts" });
  const claims = h("div");
  const subscriptions = h("ul", { class: "subscriptions" });
  const body = h("div", { hidden: true });
  const gone = h("div");
  const problem = h("p", { class: "field-error", role: "alert" });
  const disconnect = h("button", { type: "button", class: "danger", text: "Disconnect", disabled: !inspector.session.may_act });
  const all = h("button", { type: "button", class: "quiet", hidden: true, disabled: !inspector.session.may_act });
  root.append(h("section", { "aria-labelledby": "client-title" },
    h("p", { class: "back" }, h("a", { href: "#/clients", text: "Clients" })),
    h("div", { class: "head" }, title, h("span", { class: "mono hint", text: sid }), h("div", { class: "tools" }, all, disconnect)),
    inspector.session.may_act ? null : h("p", { class: "hint", text: "You may read only: the admin token may disconnect." }),
    problem, gone, body));
  body.append(h("div", { class: "columns" }, h("div", {}, facts, h("h3", { text: "Claims" }), claims), h("div", {}, h("h3", { text: "Subscriptions" }), subscriptions)));

  let sub = null;
  let seen = "";
  const loading = repeat(async (signal) => {
    const answer = await get("clients", { sid, limit: 1 }, { signal });
    inspector.reportAnswers(answer);
    setText(problem, "");
    const client = answer.clients.find((one) => one.sid === sid);
    disconnect.hidden = !client;
    body.hidden = !client;
    if (!client) {
      all.hidden = true;
      if (!gone.hasChildNodes()) gone.append(empty("This client is not connected", "It has left, or it has come back with another id: ", h("a", { href: `#/clients?search=${encodeURIComponent(sub ?? "")}`, text: "search for it" }), "."));
      return;
    }
    gone.replaceChildren();
    ({ sub } = client);
    setText(title, nameOf(client));
    all.hidden = !sub;
    setText(all, `Disconnect all of ${sub}`);
    showFacts(facts, client);
    const now = JSON.stringify([client.claims, client.subscriptions_of, client.channels, client.tables]);
    if (now === seen) return;
    seen = now;
    claims.replaceChildren(Object.keys(client.claims ?? {}).length ? jsonTree(client.claims, "Claims")
      : h("p", { class: "hint", text: sub ? "Only sub is shown: FROM_CLAIMS names further claims that are no secret." : "None: the client sent no token." }));
    subscriptions.replaceChildren(...subscriptionsOf(client).map(subscription));
    if (!subscriptions.hasChildNodes()) subscriptions.append(h("li", { class: "hint", text: "None." }));
  }, PAUSE, (error) => setText(problem, error.message));

  async function end(body_, question, text) {
    if (!await confirmed(question, text, "Disconnect")) return;
    try {
      const answer = await post("clients/disconnect", body_);
      toast(answer.count ? `Disconnected ${plural(answer.count, "client")}` : "The client was gone already");
    } catch (error) {
      setText(problem, error.message);
    }
    loading.again();
  }
  disconnect.addEventListener("click", () => end({ sid }, "Disconnect this client?", "A client of ours connects again by itself, unless its token is no longer valid."));
  all.addEventListener("click", () => end({ sub }, `Disconnect all clients of ${sub}?`, "On all processes. They connect again by themselves, unless their tokens are no longer valid."));
  return { escape: () => inspector.go("#/clients"), stop: () => loading.stop() };
}

function subscriptionsOf(client) {
  if (client.subscriptions_of) return client.subscriptions_of;
  return [...(client.channels ?? []).map((channel) => ({ channel })), ...(client.tables ?? []).map((table) => ({ table }))];
}

function subscription({ channel, pattern, table, id, filter }) {
  const name = channel ?? pattern;
  return h("li", {}, name ? h("a", { href: channelAddress(name) }, channelName(name)) : h("a", { href: channelAddress(`table:${table}`), class: "mono", text: table }),
    pattern ? h("span", { class: "badge", text: "pattern" }) : null, table ? h("span", { class: "badge", text: "live table" }) : null,
    id ? h("span", { class: "hint", text: id }) : null,
    filter ? h("code", { class: "filter-text", text: JSON.stringify(filter) }) : null);
}

const per = (format, value) => (value === null || value === undefined ? "–" : `${format(value)}/s`);

/** What is known of: messages per second, bytes per second, bytes in all. */
function flow(messages, rate, total) {
  const known = (value) => value !== null && value !== undefined;
  return [known(messages) ? `${short(messages)} messages/s` : "", known(rate) ? `${bytes(rate)}/s` : "", known(total) ? `${bytes(total)} in all` : ""].filter(Boolean).join(", ") || "–";
}

function showFacts(list, client) {
  const facts = [
    ["Address", client.address ?? "–"],
    ["Transport", client.namespace && client.namespace !== "/" ? `${client.transport}, namespace ${client.namespace}` : client.transport],
    ["Connected", `${age(Date.now() / 1000 - client.since)}, since ${time(client.since * 1000)}`],
    ["Process", where(client)],
    ["In", flow(client.messages_in, client.bytes_in, client.total_in)],
    ["Out", flow(null, client.bytes_out, client.total_out)],
    ["Send buffer", `${bytes(client.buffered)}${client.stuck > 1 ? `, accepts nothing for ${seconds(client.stuck)}` : ""}`],
    ["Replay", client.replay_lag ? `${plural(client.replay_lag, "message")} behind` : "up to date"],
    ["Round trip", client.round_trip === null || client.round_trip === undefined ? "–" : `${short(client.round_trip * 1000)} ms`],
  ];
  if (list.children.length !== facts.length) list.replaceChildren(...facts.map(([term, text]) => fact(term, text)));
  else facts.forEach(([, text], index) => setText(list.children[index].lastChild, text));
}
