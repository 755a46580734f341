// Beside the tail of a channel: its figures, the members present, who may do what, its rule, and its subscribers.

import { get, repeat } from "./api.js";
import { kinds } from "./channels.js";
import { clientAddress } from "./clients.js";
import { fact, h, setText } from "./dom.js";
import { ago, bytes, count, plural, short, time } from "./format.js";
import { jsonLine } from "./json.js";

const PAUSE = 3_000;
const MEMBERS = 50; // shown
const ACTIONS = ["subscribe", "publish", "presence", "join", "ephemeral"];
// Beside the tail there is room for all of it. Above it, on a phone, it would fill the first screen.
const beside = matchMedia("(min-width: 64rem) and (min-height: 30rem)"); // as in tail.css

export class About {
  /** A short line for the heading. */
  line = h("p", { class: "hint about-line" });
  #facts = h("dl", { class: "facts" });
  #members = h("ul", { class: "members" });
  #memberCount = h("span", { class: "hint" });
  #clients = h("ul", { class: "subscribers" });
  #clientCount = h("span", { class: "hint" });
  #rule = h("dl", { class: "facts small" });
  #access = h("div", { class: "access" });
  #problems = h("ul", { class: "problems" });
  #accessPart;
  #loading;
  #seen = {};
  #isStopped = false;

  constructor(inspector, name, isPattern) {
    this.name = name;
    this.#accessPart = part("Who may", "", this.#access);
    this.#accessPart.addEventListener("toggle", () => { if (this.#accessPart.open) this.#loadAccess(); });
    const parts = [this.#problems, this.#facts,
      isPattern ? null : part("Members", this.#memberCount, this.#members, true),
      part("Subscribers", this.#clientCount, this.#clients, true), this.#accessPart, part("Rule", "", this.#rule)];
    this.element = h("details", { class: "about" }, h("summary", { text: "About this channel" }), h("div", {}, ...parts.filter(Boolean)));
    this.#arrange();
    beside.addEventListener("change", this.#arrange);
    this.#loading = repeat(async (signal) => {
      const answer = await get("channel", { name }, { signal });
      inspector.reportAnswers(answer);
      this.#show(answer);
    }, PAUSE, (error) => this.#showProblems([error.message]));
  }

  stop() {
    this.#isStopped = true;
    this.#loading.stop();
    beside.removeEventListener("change", this.#arrange);
  }

  #arrange = () => {
    this.element.open = beside.matches;
    this.element.firstChild.tabIndex = beside.matches ? -1 : 0;
  };

  #show(answer) {
    this.#showProblems(answer.problems ?? []);
    setText(this.line, [plural(answer.subscribers ?? 0, "subscriber"), answer.messages_in === null || answer.messages_in === undefined ? "" : `${short(answer.messages_in)} messages/s`,
      answer.last_position ? `#${count(answer.last_position)}` : ""].filter(Boolean).join(" · "));
    const byKind = kinds(answer.by_kind);
    write(this.#facts, [
      ["Subscribers", byKind ? `${count(answer.subscribers)} (${byKind})` : count(answer.subscribers)],
      ["In", `${short(answer.messages_in)} messages/s, ${bytes(answer.bytes_in)}/s`],
      ["Out", `${short(answer.messages_out)} messages/s`],
      ["Last message", ago(answer.last_at && Math.max(0, Date.now() / 1000 - answer.last_at))],
      ["In the log", answer.stored === null || answer.stored === undefined ? "–" : `${count(answer.stored)}${answer.stored_more ? " or more" : ""}${answer.oldest_position ? `, from #${count(answer.oldest_position)}` : ""}`],
    ]);
    this.#once("members", answer.members, () => this.#showMembers(answer.members));
    this.#once("clients", [answer.clients, answer.clients_more], () => this.#showClients(answer));
    this.#once("rule", [answer.rule, answer.rule_columns], () => this.#showRule(answer));
  }

  #once(name, value, show) {
    const text = JSON.stringify(value);
    if (this.#seen[name] === text) return;
    this.#seen[name] = text;
    show();
  }

  #showProblems(texts) {
    this.#once("problems", texts, () => this.#problems.replaceChildren(...texts.map((text) => h("li", { text }))));
  }

  #showMembers(members) {
    setText(this.#memberCount, members ? count(members.count) : "");
    if (!members || !members.count) {
      this.#members.replaceChildren(h("li", { class: "hint", text: members ? "Nobody is present. A client is, if it subscribes with presence." : "Presence cannot be read now." }));
      return;
    }
    const shown = members.members.slice(0, MEMBERS);
    this.#members.replaceChildren(...shown.map(({ key, metas }) => h("li", {},
      metas[0] ? h("a", { href: clientAddress(metas[0].client), class: "who", text: key }) : h("span", { class: "who", text: key }),
      metas[0] ? h("span", { class: "hint", text: `since ${time(metas[0].joined_at)}` }) : null,
      ...metas.filter(({ state }) => state !== null && state !== undefined).slice(0, 3).map(({ state }) => jsonLine(state)),
      metas.length > 1 ? h("span", { class: "badge", text: `${metas.length} connections` }) : null)),
      ...(members.count > shown.length ? [h("li", { class: "hint", text: `${count(members.count - shown.length)} more` })] : []));
  }

  #showClients({ clients = [], clients_more: more = 0, subscribers }) {
    setText(this.#clientCount, subscribers === undefined ? "" : count(subscribers));
    if (!clients.length) {
      this.#clients.replaceChildren(h("li", { class: "hint", text: "No client subscribes." }));
      return;
    }
    this.#clients.replaceChildren(...clients.map((client) => h("li", {},
      client.sid ? h("a", { href: clientAddress(client.sid), class: client.sub ? "who" : "who nobody", text: client.sub ?? "anonymous" }) : h("span", { text: client.sub ?? (client.kind === "python" ? "a program in the server, such as this tail" : client.kind) }),
      client.kind && !["socket", "python"].includes(client.kind) ? h("span", { class: "badge", text: client.kind }) : null,
      client.replay_lag ? h("span", { class: "warn", text: `${plural(client.replay_lag, "message")} behind` }) : null,
      client.filter ? h("code", { class: "filter-text", text: JSON.stringify(client.filter) }) : null)),
      ...(more ? [h("li", { class: "hint", text: `${count(more)} more` })] : []));
  }

  #showRule({ rule, rule_columns: columns = [] }) {
    const own = columns.filter(({ source }) => source !== "default");
    const facts = own.map(({ column, value, source }) => fact(column, `${value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : value} `, h("span", { class: "hint", text: source })));
    this.#rule.replaceChildren(...(rule ? [fact("Pattern", h("code", { text: rule.pattern }), " ", h("span", { class: "hint", text: rule.source ?? "" }))] : []), ...facts);
    if (!this.#rule.hasChildNodes()) this.#rule.append(fact("Rule", "None: the defaults apply."));
  }

  #hasAccess = false;
  async #loadAccess() {
    if (this.#hasAccess) return;
    this.#hasAccess = true;
    this.#access.replaceChildren(h("p", { class: "hint", text: "Asking…" }));
    try {
      const answer = await get("channel/access", { name: this.name });
      if (!this.#isStopped) this.#showAccess(answer);
    } catch (error) {
      this.#hasAccess = false;
      this.#access.replaceChildren(h("p", { class: "field-error", text: error.message }));
    }
  }

  #showAccess({ who = [], policies = [], authorization, auth }) {
    const actions = ACTIONS.filter((action) => who.some((one) => one.actions?.[action]));
    const cell = (decision) => (decision ? h("td", { title: decision.reason ?? "" }, h("span", { class: decision.allowed ? "yes" : "no", text: decision.allowed ? "yes" : "no" }),
      " ", h("span", { class: "hint", text: decision.by ?? "" })) : h("td", { text: "–" }));
    this.#access.replaceChildren(
      h("p", { class: "hint", text: `AUTH=${auth ?? "?"}, AUTHORIZATION=${authorization ?? "?"}; beside each answer, what decides.` }),
      // One block per kind of client: a table of five actions would not fit.
      ...who.map((one) => h("table", { class: "matrix" }, h("caption", { text: one.who }),
        h("tbody", {}, ...actions.map((action) => h("tr", {}, h("th", { scope: "row", text: action }), cell(one.actions[action])))))),
      ...policies.map((policy) => h("details", { class: "policy" }, h("summary", {}, policy.name, h("span", { class: "hint", text: ` ${policy.permissive === false ? "restrictive " : ""}${policy.command} to ${(policy.roles ?? []).join(", ")}` })),
        policy.using ? h("p", {}, "USING ", h("code", { text: policy.using })) : null, policy.check ? h("p", {}, "WITH CHECK ", h("code", { text: policy.check })) : null)),
      h("p", {}, h("a", { href: `#/try?channel=${encodeURIComponent(this.name)}`, text: "Try with claims" })));
  }
}

function part(title, hint, content, isOpen = false) {
  return h("details", { class: "part", open: isOpen }, h("summary", {}, title, " ", hint), content);
}

function write(list, facts) {
  if (list.children.length !== facts.length) list.replaceChildren(...facts.map(([term, text]) => fact(term, text)));
  else facts.forEach(([, text], index) => setText(list.children[index].lastChild, text));
}
