// The view Try: publish a message, ask the policies as somebody else, make a token for development.

import { get, post } from "./api.js";
import { asCurl, asSql, copyButton } from "./copying.js";
import { h, labelled, setText } from "./dom.js";
import { count, time } from "./format.js";
import { oneLine } from "./sql.js";

const ACTIONS = ["subscribe", "publish", "presence", "join", "ephemeral"];
const plain = { autocomplete: "off", autocapitalize: "none", spellcheck: "false" };

/** Shows the view. */
export function showTry(root, inspector) {
  const channel = inspector.parameters.get("channel") ?? "foo";
  const mayAct = inspector.session.may_act;
  const permission = permissionForm(channel);
  root.append(h("div", { class: "head" }, h("h2", { text: "Try" }), mayAct ? null : h("p", { class: "hint", text: "You may read only: the admin token may publish, and in development make tokens." })),
    h("div", { class: "tries" }, publishForm(channel, mayAct), permission.element, tokenForm(mayAct, permission.use)));
  return { stop() {} };
}

function section(id, title, ...content) {
  return h("section", { class: "try", "aria-labelledby": id }, h("h2", { id, text: title }), ...content);
}

/** Runs `action` for each submission; its error goes below the form. Ctrl+Enter submits, too. */
function onSubmit(form, button, problem, action) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    for (const field of form.elements) field.removeAttribute("aria-invalid");
    setText(problem, "");
    button.disabled = true;
    try {
      await action();
    } catch (error) {
      setText(problem, error.message);
      error.field?.setAttribute("aria-invalid", "true");
      error.field?.focus();
    } finally {
      button.disabled = false;
    }
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}

/** Parses the JSON in a field. Throws an Error with `field` set. */
function parsed(field, hint) {
  try {
    return JSON.parse(field.value);
  } catch (error) {
    throw Object.assign(new Error(`This is not JSON: ${error.message}. ${hint}`), { field });
  }
}

function publishForm(channel, mayAct) {
  const name = h("input", { ...plain, type: "text", value: channel, required: true });
  const payload = h("textarea", { ...plain, rows: 3, value: '{"hello": "world"}' });
  const tier = h("select", {}, h("option", { value: "", text: "as the channel's rule says" }), h("option", { value: "true", text: "durable: through the log" }), h("option", { value: "false", text: "plain: NOTIFY" }));
  const button = h("button", { type: "submit", text: "Publish", disabled: !mayAct });
  const problem = h("p", { class: "field-error", role: "alert" });
  const result = h("p", { class: "result", role: "status" });
  const sql = h("code");
  const curl = h("code");
  const form = h("form", { novalidate: true },
    ...labelled("publish-channel", "Channel", name), ...labelled("publish-payload", "Payload", payload, "any JSON value"), ...labelled("publish-tier", "Delivery", tier),
    h("div", { class: "actions" }, button, result), problem);
  form.addEventListener("input", write);
  function write() {
    let text = payload.value;
    try { text = oneLine(JSON.parse(text)); } catch { /* shown as it is until it is JSON */ }
    setText(sql, asSql(name.value.trim() || "foo", text, tier.value !== "false"));
    setText(curl, asCurl(name.value.trim() || "foo", text, tier.value !== "false"));
  }
  write();
  if (mayAct) {
    onSubmit(form, button, problem, async () => {
      setText(result, "");
      const value = parsed(payload, 'Text needs quotes: "hello"');
      const wanted = tier.value === "" ? null : tier.value === "true";
      const answer = await post("publish", { channel: name.value.trim(), payload: value, durable: wanted });
      result.replaceChildren(answer.durable ? (answer.position ? `Committed at #${count(answer.position)}. ` : "Committed. ") : "Sent with NOTIFY. ",
        h("a", { href: `#/channels/${encodeURIComponent(answer.channel)}`, text: "Watch the channel" }));
    });
  }
  return section("publish-title", "Publish", form,
    h("div", { class: "same" }, h("div", { class: "same-head" }, h("h3", { text: "The same from psql" }), copyButton("Copy", "the SQL", () => sql.textContent)), h("pre", { class: "sql", tabindex: 0, role: "region", "aria-label": "SQL" }, sql)),
    h("div", { class: "same" }, h("div", { class: "same-head" }, h("h3", { text: "The same with curl" }), copyButton("Copy", "the command", () => curl.textContent)), h("pre", { class: "sql", tabindex: 0, role: "region", "aria-label": "curl" }, curl)));
}

function permissionForm(channel) {
  const name = h("input", { ...plain, type: "text", value: channel, required: true });
  const claims = h("textarea", { ...plain, rows: 3, value: '{"sub": "alice", "role": "customer"}' });
  const token = h("textarea", { ...plain, rows: 3, placeholder: "eyJhbGciOi…" });
  const who = h("select", {}, h("option", { value: "claims", text: "a client with these claims" }), h("option", { value: "token", text: "the client of a token" }), h("option", { value: "anonymous", text: "an anonymous client" }));
  const button = h("button", { type: "submit", text: "Test" });
  const problem = h("p", { class: "field-error", role: "alert" });
  const result = h("div", { class: "decisions", role: "status" });
  const claimsPlace = h("div", {}, ...labelled("permission-claims", "Claims", claims, "a JSON object"));
  const tokenPlace = h("div", { hidden: true }, ...labelled("permission-token", "Token", token, "a JWT; it is not stored"));
  const form = h("form", { novalidate: true },
    ...labelled("permission-channel", "Channel or pattern", name), ...labelled("permission-who", "As", who), claimsPlace, tokenPlace, h("div", { class: "actions" }, button), problem);
  const arrange = () => {
    claimsPlace.hidden = who.value !== "claims";
    tokenPlace.hidden = who.value !== "token";
  };
  who.addEventListener("change", arrange);
  onSubmit(form, button, problem, async () => {
    result.replaceChildren();
    const body = { channel: name.value.trim() };
    if (who.value === "token") body.token = token.value.trim().replace(/^Bearer\s+/i, "");
    else body.claims = who.value === "claims" ? parsed(claims, 'Write an object: {"sub": "alice"}') : null;
    show(await post("permission", body));
  });
  function show({ actions, sub, role, channel: asked }) {
    const names = ACTIONS.filter((action) => actions[action]);
    result.replaceChildren(
      h("p", { class: "hint", text: `${sub ?? "An anonymous client"}${role ? ` with the role ${role}` : ""}, on ${asked}:` }),
      ...names.map((action) => decision(action, actions[action])));
  }
  return {
    element: section("permission-title", "Test a permission", h("p", { class: "hint", text: "A dry run: the settings, rules and policies decide, nothing is sent." }), form, result),
    /** Puts a token into the form. */
    use(text) {
      token.value = text;
      who.value = "token";
      arrange();
      button.focus();
    },
  };
}

function decision(action, { allowed, by, reason, policies }) {
  return h("div", { class: `decision ${allowed ? "allowed" : "refused"}` },
    h("p", {}, h("strong", { text: action }), " ", h("span", { class: allowed ? "yes" : "no", text: allowed ? "allowed" : "refused" }), " ", h("span", { class: "hint" }, by ? ["by ", h("code", { text: by })] : "")),
    reason ? h("p", { class: "why", text: reason }) : null,
    policies?.length ? h("details", {}, h("summary", { text: policies.length === 1 ? "1 policy" : `${policies.length} policies` }),
      h("ul", {}, ...policies.map((policy) => h("li", {},
        h("span", { class: policy.result ? "yes" : policy.result === false ? "no" : "failed", text: policy.result ? "true" : policy.result === false ? "false" : "failed" }), " ",
        h("span", { text: policy.name }), h("span", { class: "hint", text: ` ${policy.permissive === false ? "restrictive " : ""}${policy.command} to ${(policy.roles ?? []).join(", ")}` }),
        h("code", { class: "filter-text", text: policy.expression ?? "" }), policy.error ? h("p", { class: "field-error", text: policy.error }) : null)))) : null);
}

function tokenForm(mayAct, use) {
  const sub = h("input", { ...plain, type: "text", value: "alice" });
  const roles = h("datalist", { id: "token-roles" });
  const role = h("input", { ...plain, type: "text", list: "token-roles" });
  const claims = h("textarea", { ...plain, rows: 2, value: "{}" });
  const lifetime = h("select", {}, ...[[600, "10 minutes"], [3_600, "1 hour"], [86_400, "1 day"], [604_800, "1 week"]].map(([value, text]) => h("option", { value, text })));
  lifetime.value = "3600";
  const button = h("button", { type: "submit", text: "Make a token", disabled: true });
  const reason = h("p", { class: "hint" });
  const problem = h("p", { class: "field-error", role: "alert" });
  const made = h("div", { class: "same", role: "status" });
  let roleClaim = "role";
  let fixed = {};
  const form = h("form", { novalidate: true },
    ...labelled("token-sub", "Subject", sub, "sub"), ...labelled("token-role", "Role", role), roles,
    ...labelled("token-claims", "Further claims", claims, "a JSON object"), ...labelled("token-seconds", "Valid for", lifetime), h("div", { class: "actions" }, button), problem);
  get("token").then(({ possible, reason: why, roles: known = [], role_claim: claim = "role", claims: own = {} }) => {
    roleClaim = claim;
    fixed = own;
    roles.replaceChildren(...known.map((one) => h("option", { value: one })));
    if (!role.value && known.length) role.value = known[0];
    button.disabled = !possible || !mayAct;
    setText(reason, possible ? "For development: in production your login service signs tokens." : why ?? "");
  }, (error) => setText(reason, error.message));
  if (mayAct) {
    onSubmit(form, button, problem, async () => {
      const further = parsed(claims, "Write an object, or {}");
      const all = { ...fixed, ...further };
      if (sub.value.trim()) all.sub = sub.value.trim();
      if (role.value.trim()) all[roleClaim] = role.value.trim();
      const answer = await post("token", { claims: all, seconds: Number(lifetime.value) });
      made.replaceChildren(h("div", { class: "same-head" }, h("h3", { text: `Valid until ${time(answer.expires_at * 1000)}` }),
        copyButton("Copy", "the token", () => answer.token), h("button", { type: "button", class: "quiet", text: "Test it", on: { click: () => use(answer.token) } })),
        h("pre", { class: "sql token", tabindex: 0, role: "region", "aria-label": "Token", text: answer.token }));
    });
  }
  return section("token-title", "Make a token", reason, form, made);
}
