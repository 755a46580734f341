// The connection light of the demo of votes, from the events of htmx's extension for Server-Sent Events. The list itself
// needs no script.

const states = {
  "htmx:sseOpen": ["connected", "Connected"],
  "htmx:sseError": ["reconnecting", "Reconnecting…"], // the extension connects again
};

for (const [event, [state, text]] of Object.entries(states)) {
  document.addEventListener(event, () => {
    document.querySelector("#status").dataset.state = state;
    document.querySelector("#status-text").textContent = text;
  });
}
