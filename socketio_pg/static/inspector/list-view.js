// A list that the server searches, sorts and limits: channels and clients.

import { get, repeat } from "./api.js";
import { empty, h, setChildren, setText } from "./dom.js";
import { count } from "./format.js";
import { Table } from "./table.js";

const PAUSE = 3_000; // ms between two requests
const PAUSE_PER_ROW = 3; // ms, for each row of the process that has most
const FIRST = 50;
const MOST = 500;
const TYPING = 250; // ms after the last key before the server is asked

/**
 * Fills `root`. `path` of the API, `field` of the rows in its answer, `columns` and `key` as for Table, `sort` at first;
 * `placeholder` of the search; `tools` are further elements; `nothing(search)` returns what is shown without rows;
 * `extra(search)` returns a line below the search or null; `note(answer)` a text beside the number of rows.
 */
export function showList(root, inspector, { title, path, field, label, columns, key, sort, placeholder, tools = [], nothing, extra, note, parameters = {}, onAnswer }) {
  let limit = FIRST;
  let state = { search: inspector.parameters.get("search") ?? "", sort: inspector.parameters.get("sort") ?? sort };
  const search = h("input", {
    id: "search", type: "search", "aria-label": `Search ${title.toLowerCase()}`, placeholder, value: state.search, autocomplete: "off",
    autocapitalize: "none", spellcheck: "false", "aria-keyshortcuts": "/",
  });
  const number = h("p", { class: "hint", role: "status" });
  const place = h("div", { class: "list-place" });
  const more = h("button", { type: "button", class: "quiet", hidden: true });
  const line = h("p", { class: "hint line" });
  const table = new Table({
    label, columns, key, className: `list-${field}`,
    onSort(wanted) {
      state = { ...state, sort: wanted };
      inspector.setParameters({ sort: wanted === sort ? "" : wanted });
      loading.again();
    },
  });
  const problem = h("p", { class: "field-error", role: "alert" });
  root.append(h("section", { "aria-labelledby": "list-title" },
    h("div", { class: "head" }, h("h2", { id: "list-title", text: title }), number,
      h("div", { class: "tools" }, search, table.sortSelect, ...tools)),
    line, problem, place, more));

  let typing;
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      state = { ...state, search: search.value.trim() };
      limit = FIRST;
      inspector.setParameters({ search: state.search });
      loading.again();
    }, TYPING);
    if (extra) line.replaceChildren(...[extra(search.value.trim())].flat().filter(Boolean));
  });
  if (extra) line.replaceChildren(...[extra(state.search)].flat().filter(Boolean));
  more.addEventListener("click", () => {
    limit = Math.min(MOST, limit * 2);
    loading.again();
  });

  let shownNothing = null;
  /** The most rows that a process had, with any search. */
  let most = 0;
  const loading = repeat(async (signal) => {
    const answer = await get(path, { ...parameters, ...state, limit }, { signal });
    const rows = answer[field];
    setText(problem, "");
    inspector.reportAnswers(answer);
    inspector.notice("server", null);
    onAnswer?.(answer);
    const found = answer.total === rows.length ? count(answer.total) : `${count(rows.length)} of ${count(answer.total)}`;
    // With many rows, an answer costs the servers more than one per cent of a core if it is asked for more often.
    most = Math.max(most, answer.total / Math.max(1, answer.processes ?? 1));
    const pause = most * PAUSE_PER_ROW;
    const slow = pause > PAUSE && `every ${Math.round(pause / 1000)} s`;
    setText(number, [`${found}${answer.complete === false ? " or more" : ""}`, note?.(answer), slow].filter(Boolean).join(" · "));
    table.update(rows, state.sort);
    if (rows.length) {
      shownNothing = null;
      setChildren(place, [table.element]);
    } else if (shownNothing !== state.search) {
      shownNothing = state.search;
      place.replaceChildren(state.search ? empty(`Nothing matches “${state.search}”`, "Search for a part of the name, or clear the search.") : nothing());
    }
    more.hidden = rows.length >= answer.total;
    setText(more, limit >= MOST ? `The first ${count(MOST)} are shown: search or sort to see others` : `Show more of ${count(answer.total)}`);
    more.disabled = limit >= MOST;
    return pause;
  }, PAUSE, (error) => {
    if (error.code === "unauthorized") return;
    setText(problem, `${error.message}${table.table.rows.length > 1 ? " The list below is older." : ""}`);
  });

  return {
    keys: [{ keys: ["Enter"], text: "Open the row that has the focus" }],
    step: (by) => table.step(by),
    again: () => loading.again(),
    stop() {
      clearTimeout(typing);
      loading.stop();
    },
  };
}
