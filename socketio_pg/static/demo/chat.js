// A chat room: all visitors subscribe to one channel and publish to it. The log keeps the last messages, presence knows
// who is here, and ephemeral messages tell who is typing.

import { hue } from "./cursors.js";
import { $, connect, element, showProblem, textOf, visitor } from "./demo.js";

const SHOWN = 12; // members
const TYPING = 4_000; // ms for which a visitor is shown as typing after the last sign of it

const { subscriptions } = await connect();
subscriptions.subscribe("chat", show, {
  history: 50,
  onGap: ({ tier }) => tier === "log" && location.reload(), // disconnected for longer than the log's retention
  onEphemeral: ({ from, payload }) => noteTyping(from.client, payload?.typing === true),
  onError: showProblem,
  onSubscribed: () => showProblem(null),
});
const room = subscriptions.presence("chat", { onSync: () => showHere(), onError: () => {} });
join();

// --- Messages ---

$("#name").value = visitor.name;
$("#say button").disabled = false;
$("#say").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { name, text } = Object.fromEntries(new FormData(event.target));
  tellTyping(false);
  try {
    await subscriptions.publish("chat", { from: name, text }, { timeout: 10_000 });
    $("#text").value = "";
    showProblem(null);
  } catch (error) {
    showProblem(error);
  }
  $("#text").focus();
});

/** Shows a message. Other visitors' text is never inserted as markup. */
function show({ payload, published_at: at }) {
  const sender = textOf(payload?.from, "anonymous");
  const line = element("li");
  line.append(
    element("strong", "", sender),
    element("span", "", textOf(payload?.text, JSON.stringify(payload))),
    element("time", "", new Date(at ?? Date.now()).toLocaleTimeString([], { timeStyle: "short" })),
  );
  line.dataset.mine = String(sender === $("#name").value);
  $("#messages").append(line);
  while ($("#messages").children.length > 200) $("#messages").firstChild.remove();
  $("#empty").hidden = true;
  $(".lines").scrollTop = $(".lines").scrollHeight;
}

// --- Who is here ---

$("#name").addEventListener("change", () => {
  if (!$("#name").value.trim()) return;
  visitor.name = $("#name").value;
  join();
});

/** Joins, or changes the name of this visitor's member. */
function join() {
  room.join({ name: visitor.name }, { key: visitor.key }).catch(() => {}); // the server may not allow it
}

/** The name that a member has chosen: the one of its newest connection. */
const nameOf = ({ metas }) => textOf(metas.at(-1)?.state?.name, "Somebody").slice(0, 30);

function showHere() {
  const members = [...room.members.values()].slice(0, SHOWN);
  $("#here").replaceChildren(...members.map((member) => {
    const line = element("li", "", nameOf(member));
    line.style.setProperty("--hue", hue(member.key));
    if (member.metas.length > 1) line.append(element("span", "hint", `in ${member.metas.length} windows`));
    if (member.key === room.key) line.append(element("span", "hint", "you"));
    return line;
  }));
  // The server sends no members when there are too many of them.
  const more = room.count - members.length;
  if (more > 0) $("#here").append(element("li", "more", members.length ? `and ${more} more` : `${more} people`));
}

// --- Who is typing ---

const typing = new Map(); // client → the timer that ends it
let toldAt = 0; // when this visitor has last been told to be typing

$("#text").addEventListener("input", () => tellTyping($("#text").value !== ""));

function tellTyping(isTyping) {
  if (isTyping && Date.now() - toldAt < TYPING / 2) return;
  if (!isTyping && !toldAt) return;
  toldAt = isTyping ? Date.now() : 0;
  subscriptions.publishEphemeral("chat", { typing: isTyping }, { key: "typing" });
}

function noteTyping(client, isTyping) {
  clearTimeout(typing.get(client));
  if (isTyping) typing.set(client, setTimeout(() => noteTyping(client, false), TYPING));
  else typing.delete(client);
  const others = [...room.members.values()].filter(({ key }) => key !== room.key);
  const writers = others.filter(({ metas }) => metas.some((meta) => typing.has(meta.client))).map(nameOf);
  $("#typing").textContent = writers.length === 0 ? ""
    : writers.length > 3 ? "Several people are typing…"
    : `${new Intl.ListFormat("en").format(writers)} ${writers.length === 1 ? "is" : "are"} typing…`;
}

$("#code").textContent = await (await fetch("./chat.js")).text();
