// A chat room: all visitors subscribe to one channel and publish to it. The log keeps the last messages.

import { $, connect, showProblem } from "./demo.js";

const { subscriptions } = await connect();
subscriptions.subscribe("chat", show, {
  history: 50,
  onGap: ({ tier }) => tier === "log" && location.reload(), // disconnected for longer than the log's retention
});

$("#name").value = localStorage.getItem("name") ?? "";
$("#say button").disabled = false;
$("#say").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { name, text } = Object.fromEntries(new FormData(event.target));
  localStorage.setItem("name", name);
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
  const line = document.createElement("li");
  const [sender, text, time] = ["strong", "span", "time"].map((name) => document.createElement(name));
  sender.textContent = payload?.from ?? "anonymous";
  text.textContent = payload?.text ?? JSON.stringify(payload);
  time.textContent = new Date(at ?? Date.now()).toLocaleTimeString([], { timeStyle: "short" });
  line.append(sender, text, time);
  line.dataset.mine = sender.textContent === $("#name").value;
  $("#messages").append(line);
  while ($("#messages").children.length > 200) $("#messages").firstChild.remove();
  $("#empty").hidden = true;
  $(".lines").scrollTop = $(".lines").scrollHeight;
}

$("#code").textContent = await (await fetch("./chat.js")).text();
