// A chat room: everybody subscribes to one channel and publishes to it. The log remembers the last messages.

import { $, connect, tell } from "./demo.js";

const { socket, subscriptions } = await connect();
subscriptions.subscribe("chat", show, {
  history: 50,
  onGap: ({ tier }) => tier === "log" && location.reload(), // away for longer than the log remembers
});

$("#name").value = localStorage.getItem("name") ?? "";
$("#say button").disabled = false;
$("#say").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { name, text } = Object.fromEntries(new FormData(event.target));
  localStorage.setItem("name", name);
  try {
    await publish({ from: name, text });
    $("#text").value = "";
    tell(null);
  } catch (error) {
    tell(error);
  }
  $("#text").focus();
});

async function publish(payload) {
  const answer = await socket.timeout(10_000).emitWithAck("publish", { channel: "chat", payload, durable: true });
  if (!answer.ok) throw new Error(answer.error.message);
}

/** What others write gets into the page as text, and never as markup. */
function show({ payload, published_at: at }) {
  const line = document.createElement("li");
  const [who, said, when] = ["strong", "span", "time"].map((name) => document.createElement(name));
  who.textContent = payload?.from ?? "somebody";
  said.textContent = payload?.text ?? JSON.stringify(payload);
  when.textContent = new Date(at ?? Date.now()).toLocaleTimeString([], { timeStyle: "short" });
  line.append(who, said, when);
  line.dataset.mine = who.textContent === $("#name").value;
  $("#messages").append(line);
  while ($("#messages").children.length > 200) $("#messages").firstChild.remove();
  line.scrollIntoView({ block: "end" });
}

$("#code").textContent = await (await fetch("./chat.js")).text();
