// The field for a filter in the server's filter language: the server checks what is typed.

import { post } from "./api.js";
import { h, setText } from "./dom.js";

const TYPING = 300; // ms after the last key

/** `onFilter(filter)` is called with each valid filter, or null without one. */
export class FilterField {
  /** The filter that applies, and its text. */
  filter = null;
  #problem = h("p", { id: "filter-problem", class: "field-error", role: "status" });
  #timer;
  #aborter = new AbortController();
  #onFilter;

  constructor(text, onFilter) {
    this.#onFilter = onFilter;
    this.input = h("input", {
      id: "filter", type: "text", value: text, placeholder: 'Filter: {"new.status": "paid", "new.total": {"gt": 100}}', "aria-label": "Filter by payload",
      "aria-describedby": "filter-problem", autocomplete: "off", autocapitalize: "none", spellcheck: "false", "aria-keyshortcuts": "f",
    });
    this.element = h("div", { class: "filter-field" }, this.input, this.#problem);
    this.input.addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.check(), TYPING);
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      clearTimeout(this.#timer);
      this.check();
    });
  }

  get text() { return this.input.value.trim(); }

  /** Asks the server about the text; resolves when the filter applies, or its error is shown. */
  async check() {
    this.#aborter.abort();
    this.#aborter = new AbortController();
    const { text } = this;
    let answer;
    try {
      answer = text ? await post("filter", { text }, this.#aborter) : { ok: true, filter: null };
    } catch (error) {
      if (error.name !== "AbortError") this.#show(error.message);
      return;
    }
    if (!answer.ok) {
      this.#show(describe(text, answer));
      return;
    }
    this.#show("");
    if (JSON.stringify(answer.filter) === JSON.stringify(this.filter)) return;
    this.filter = answer.filter;
    this.#onFilter(answer.filter);
  }

  #show(problem) {
    setText(this.#problem, problem);
    if (problem) this.input.setAttribute("aria-invalid", "true");
    else this.input.removeAttribute("aria-invalid");
  }

  stop() {
    clearTimeout(this.#timer);
    this.#aborter.abort();
  }
}

function describe(text, { message: found, at }) {
  const words = found.replace(/^filter: /, "");
  const message = words[0].toUpperCase() + words.slice(1);
  if (at === null || at === undefined) return message;
  const before = text.slice(Math.max(0, at - 16), at);
  return at >= text.length ? `${message} At the end, after ${before}` : `${message} At character ${at + 1}: ${before}▸${text.slice(at, at + 12)}`;
}
