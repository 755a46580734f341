// Starts the inspector: the session, the connection, the views by the address's hash, and the notices about all of them.

import { get, post, sessions } from "./api.js";
import { showChannel } from "./channel.js";
import { showChannels } from "./channels.js";
import { showClient, showClients } from "./clients.js";
import { showDoctor } from "./doctor.js";
import { $, announce, h, setText } from "./dom.js";
import { time } from "./format.js";
import { addKeys, setViewKeys, showKeys } from "./keys.js";
import { Live } from "./live.js";
import { showNow } from "./now.js";
import { showSignIn } from "./sign-in.js";
import { showTry } from "./try.js";
import { showWatches } from "./watches.js";

// Address → [its link in the navigation, title, view]. A view is a function (root, inspector, ...parts of the address) that
// fills `root` and returns {keys?, stop}.
const VIEWS = [
  [/^\/now$/, "now", "Now", showNow],
  [/^\/channels$/, "channels", "Channels", showChannels],
  [/^\/channels\/(.+)$/, "channels", "Channel", showChannel],
  [/^\/clients$/, "clients", "Clients", showClients],
  [/^\/clients\/(.+)$/, "clients", "Client", showClient],
  [/^\/try$/, "try", "Try", showTry],
  [/^\/watches$/, "watches", "Watches", showWatches],
  [/^\/doctor$/, "doctor", "Doctor", showDoctor],
];

const live = new Live();
let session = null;
let shown = null; // the view
let startedLive = false;

/** What the views get. */
const inspector = {
  live,
  get session() { return session; },
  /** The parameters after the `?` of the hash. */
  get parameters() { return new URLSearchParams(location.hash.split("?")[1] ?? ""); },
  /** Writes parameters into the address without a new view; empty ones are left out. */
  setParameters(values) {
    const parameters = inspector.parameters;
    for (const [name, value] of Object.entries(values)) {
      if (value) parameters.set(name, value);
      else parameters.delete(name);
    }
    const text = String(parameters);
    history.replaceState(null, "", `${location.hash.split("?")[0] || "#/now"}${text && `?${text}`}`);
  },
  go(hash) { location.hash = hash; },
  /** Shows a notice above the view until it is called with null. */
  notice,
  /** Reports which processes have not answered a request, and that the API's database is away. */
  reportAnswers({ unanswered = [] }) {
    const names = unanswered.map(({ node, worker }) => (worker === null || worker === undefined ? node : `${node} worker ${worker}`));
    notice("unanswered", names.length ? ["warning", h("strong", { text: `${names.join(", ")} ${names.length === 1 ? "does" : "do"} not answer.` }),
      " Its figures, channels and clients are missing here. Look at its log, and at the database or message queue between the nodes."] : null);
  },
};

// --- Notices ----------------------------------------------------------------------------------------------------

const ORDER = ["server", "client", "database", "unanswered", "read-only"];

function notice(name, content) {
  const place = $("#notices");
  const before = place.querySelector(`[data-name="${name}"]`);
  if (!content) {
    before?.remove();
    return;
  }
  const [level, ...parts] = content;
  const made = h("p", { class: `notice-line ${level}`, data: { name } }, ...parts);
  if (before?.outerHTML === made.outerHTML) return; // screen readers would read it again
  if (before) before.replaceWith(made);
  else place.append(made);
  place.append(...[...place.children].sort((one, other) => ORDER.indexOf(one.dataset.name) - ORDER.indexOf(other.dataset.name)));
}

let database = null;
let lastFigures = null;
live.addEventListener("now", ({ detail }) => {
  lastFigures = new Date();
  database = detail.database;
  notice("server", null);
  inspector.reportAnswers(detail);
  showDatabase();
  showStatus();
});
live.addEventListener("now_error", ({ detail }) => {
  if (detail.code === "unauthorized") return;
  notice("server", ["error", h("strong", { text: detail.message }),
    lastFigures ? ` The figures are those of ${time(lastFigures)}. This page asks again every few seconds.` : " This page asks again every few seconds."]);
  showStatus();
});

function showDatabase() {
  notice("database", database?.reachable === false ? ["warning",
    h("strong", { text: database.since ? `The database has been unreachable since ${time(database.since * 1000)}.` : "The database is unreachable." }),
    ` Clients stay connected and get nothing until it is back${database.problem ? `: ${database.problem}` : ""}.`] : null);
}

function showStatus() {
  const [state, text] = {
    connecting: ["connecting", "Connecting…"],
    connected: ["connected", "Live"],
    reconnecting: ["reconnecting", "Reconnecting…"],
    polling: ["degraded", "Polling"],
    closed: ["disconnected", "Signed out"],
  }[live.state];
  const isDown = database?.reachable === false && ["connected", "polling"].includes(live.state);
  $("#status").dataset.state = isDown ? "degraded" : state;
  setText($("#status-text"), isDown ? "Database unreachable" : text);
}

live.addEventListener("state", ({ detail: state }) => {
  if (live.clientMissing) {
    notice("client", ["warning", h("strong", { text: "This server has no copy of the Socket.IO client," }),
      " so this page asks for figures every 2 seconds, and the tail shows only messages of the log. Run ",
      h("code", { text: "npm ci && npm run vendor" }), ", then reload this page."]);
  }
  if (state === "connected") notice("server", null);
  showStatus();
});

// --- The session ------------------------------------------------------------------------------------------------

async function begin() {
  try {
    session = await get("session");
  } catch (error) {
    $("#status").dataset.state = "failed";
    setText($("#status-text"), "Cannot start");
    stopView();
    $("#view").replaceChildren(h("div", { class: "empty" }, h("p", { text: "The inspector cannot start" }), h("p", { text: error.message }),
      h("button", { type: "button", text: "Try again", on: { click: begin } })));
    return;
  }
  showSession();
  if (!session.signed_in) {
    signIn("");
    return;
  }
  if (startedLive) {
    live.resume();
  } else {
    startedLive = true;
    live.start();
  }
  route();
}

function showSession() {
  const { signed_in: isIn, may_act: mayAct, by, name, until, pages = {} } = session;
  for (const link of document.querySelectorAll(".pages [data-page]")) link.hidden = !pages[link.dataset.page];
  $(".pages").hidden = !Object.values(pages).includes(true);
  $(".views").hidden = !isIn;
  setText($("#identity"), !isIn ? "" : [name ?? (by === "development" ? "development" : ""), mayAct ? "" : "read-only"].filter(Boolean).join(" · "));
  $("#identity").hidden = !$("#identity").textContent;
  $("#identity").title = until ? `signed in until ${time(until * 1000)}` : "this machine needs no token while DEBUG is on";
  $("#sign-out").hidden = !isIn || by === "development";
}

function signIn(reason) {
  live.pause();
  stopView();
  for (const name of ORDER) notice(name, null);
  database = null;
  showStatus();
  document.title = "Inspector · socketio_pg";
  showSignIn($("#view"), session, reason, (signedIn) => {
    session = signedIn;
    begin();
  });
}

function onEnd() {
  if (!session?.signed_in) return;
  session = { ...session, signed_in: false, may_act: false };
  showSession();
  signIn("Your session has ended. Sign in again: this page goes on where it is.");
}
sessions.addEventListener("unauthorized", onEnd);
live.addEventListener("session", ({ detail }) => { if (!detail.signed_in) onEnd(); });

$("#sign-out").addEventListener("click", async () => {
  session = await post("logout").catch(() => ({ ...session, signed_in: false, may_act: false }));
  showSession();
  signIn("You have signed out.");
});

// --- Views ------------------------------------------------------------------------------------------------------

function stopView() {
  shown?.stop();
  shown = null;
  setViewKeys([]);
}

let isFirst = true;
function route() {
  if (!session?.signed_in) return;
  const path = location.hash.slice(1).split("?")[0] || "/now";
  const [, link, title, show] = VIEWS.find(([pattern]) => pattern.test(path)) ?? VIEWS[0];
  const parts = (path.match(VIEWS.find(([, , , view]) => view === show)[0]) ?? []).slice(1).map(decoded);
  stopView();
  for (const anchor of document.querySelectorAll(".views a")) {
    if (anchor.getAttribute("href") === `#/${link}`) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  const name = parts[0] ?? title;
  document.title = `${name === "Now" ? "" : `${name} · `}Inspector · socketio_pg`;
  const root = $("#view");
  root.replaceChildren();
  root.className = `view view-${title.toLowerCase()}`;
  scrollTo(0, 0);
  shown = show(root, inspector, ...parts);
  setViewKeys(shown.keys ?? []);
  if (!isFirst) {
    root.focus({ preventScroll: true });
    announce(name);
  }
  isFirst = false;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

addEventListener("hashchange", route);

$("#keys").addEventListener("click", showKeys);
addKeys([
  ...[...document.querySelectorAll(".views a")].map((link, index) => (
    { keys: [String(index + 1)], text: link.textContent, run: () => link.click() })),
  { keys: ["/"], text: "Search", run: () => $("#search")?.focus() },
  { keys: ["j", "ArrowDown"], text: "Next row", run: () => shown?.step?.(1) },
  { keys: ["k", "ArrowUp"], text: "Previous row", run: () => shown?.step?.(-1) },
  { keys: ["Escape"], text: "Leave a field; close", run: () => shown?.escape?.() },
  { keys: ["?"], text: "This list", run: showKeys },
]);

begin();
