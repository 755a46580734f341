// Makes and changes elements. Texts from the network are only written as text, so they cannot become markup.

export const $ = (selector, root = document) => root.querySelector(selector);

const SVG = "http://www.w3.org/2000/svg";

/**
 * Returns a new element. `props`: attributes; `class`; `text`; `on`: {event: listener}; `data`: the dataset; a boolean
 * attribute is set if true and left out if false; undefined and null are left out.
 */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** Returns a new SVG element, as `h` does. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Writes a text, unless it is there already: screen readers would read it again, and a selection would be lost. */
export function setText(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

/** Sets an attribute, or removes it (null), unless that is so already. */
export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Makes `parent` have exactly these children, and moves only those that are not in place: a moved one loses the focus. */
export function setChildren(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.childNodes]) if (!wanted.has(child)) child.remove();
  let next = parent.firstChild;
  for (const child of children) {
    if (child === next) next = next.nextSibling;
    else parent.insertBefore(child, next);
  }
}

/** A term with its value, for a <dl>. */
export function fact(term, ...value) {
  return h("div", {}, h("dt", { text: term }), h("dd", {}, ...value));
}

/** The text shown instead of a list without rows: a title, and what to do next. */
export function empty(title, ...next) {
  return h("div", { class: "empty" }, h("p", { text: title }), next.length ? h("p", {}, ...next) : null);
}

export const code = (text) => h("code", { text });

/** A label with its field and an optional hint; the field gets the id. */
export function labelled(id, text, field, hint = "") {
  field.id = id;
  return [h("label", { for: id }, text, hint && " ", hint && h("span", { class: "hint" }, hint)), field];
}

/** Lets a screen reader say something. */
export function announce(text) {
  setText($("#announcer"), text);
}

/** A pattern's or channel's name in its colour, which is the same on all pages. */
export function channelName(name) {
  const element = h("span", { class: "channel-name", text: name });
  element.style.setProperty("--hue", hue(name));
  return element;
}

// As in log.js of the playground.
function hue(channel) {
  let hash = 0;
  for (const character of channel) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  return (hash % 12) * 30;
}
