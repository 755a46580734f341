// Shortcuts of single keys, and the dialog that lists them. They can be switched off, for people who dictate.

import { $, h } from "./dom.js";

const STORED = "socketio_pg.inspector.keys"; // in localStorage: "off" or nothing
const everywhere = [];
let ofView = [];

/** Adds shortcuts: [{keys: ["/"], text, run(event)}]. Keys are those of KeyboardEvent.key; without `run` it is only listed. */
export function addKeys(shortcuts) {
  everywhere.push(...shortcuts);
}

/** Replaces the shortcuts of the view. */
export function setViewKeys(shortcuts) {
  ofView = shortcuts;
}

const isOn = () => localStorage.getItem(STORED) !== "off";

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.defaultPrevented) return;
  if ($("dialog[open]")) return;
  const writes = event.target.matches?.("input:not([type=checkbox]):not([type=radio]), textarea, select");
  if (event.key === "Escape" && writes) {
    event.target.blur();
    return;
  }
  if (writes || (!isOn() && event.key !== "Escape")) return;
  const found = [...ofView, ...everywhere].find(({ keys, run }) => run && keys.includes(event.key));
  if (!found) return;
  event.preventDefault();
  found.run(event);
});

const NAMES = { ArrowDown: "↓", ArrowUp: "↑", Escape: "Esc" };

/** Shows the list of shortcuts. */
export function showKeys() {
  const list = (title, shortcuts) => shortcuts.length ? [
    h("h3", { text: title }),
    h("dl", { class: "keys" }, ...shortcuts.map(({ keys, text }) => h("div", {},
      h("dt", {}, ...keys.flatMap((key, index) => [index ? " " : "", h("kbd", { text: NAMES[key] ?? key })])),
      h("dd", { text })))),
  ] : [];
  const box = h("input", { type: "checkbox" });
  box.checked = isOn();
  box.addEventListener("change", () => (box.checked ? localStorage.removeItem(STORED) : localStorage.setItem(STORED, "off")));
  const dialog = h("dialog", { class: "dialog", "aria-labelledby": "keys-title" },
    h("div", { class: "dialog-head" }, h("h2", { id: "keys-title", text: "Keyboard shortcuts" }),
      h("form", { method: "dialog" }, h("button", { class: "quiet", text: "Close" }))),
    h("div", { class: "columns" }, h("div", {}, ...list("Everywhere", everywhere)), h("div", {}, ...list("In this view", ofView))),
    h("label", { class: "check" }, box, h("span", { text: "Single keys are shortcuts" })));
  openDialog(dialog);
}

/** Opens a dialog that is removed when it closes. `form-action` is none: its forms are only closed by the script. */
export function openDialog(dialog) {
  document.body.append(dialog);
  for (const form of dialog.querySelectorAll("form[method=dialog]")) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close(event.submitter?.value ?? "");
    });
  }
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.showModal();
}

/** Asks whether to do what `title` says. Resolves to whether the answer is yes. */
export function confirmed(title, text, yes) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { class: "dialog small", "aria-labelledby": "confirm-title" },
      h("h2", { id: "confirm-title", text: title }), h("p", { text }),
      h("form", { method: "dialog", class: "dialog-buttons" },
        h("button", { class: "quiet", value: "", text: "Cancel" }), h("button", { class: "danger", value: "yes", text: yes })));
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"));
    openDialog(dialog);
  });
}
