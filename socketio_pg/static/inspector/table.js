// A table of which the server sorts and limits the rows. Rows that stay keep their elements, and so the focus.

import { h, setAttribute, setChildren, setText } from "./dom.js";

/**
 * `columns`: [{id, name, number?, sorts?, text(row) | node(row, cell), depends?(row), title?(row), hidden?}]. `text` is
 * written at each update, `node` only when `depends` (by default the row's field) has changed. `key(row)` identifies a row.
 * With `onSort(sort)` the columns that have `sorts` sort: "name" or "-name".
 */
export class Table {
  #columns;
  #key;
  #onSort;
  #heads = new Map();
  #body = h("tbody");
  #rows = new Map(); // key → {element, cells, seen}
  #select;

  constructor({ label, columns, key, onSort = null, className = "" }) {
    this.#columns = columns;
    this.#key = key;
    this.#onSort = onSort;
    const head = columns.map((column) => {
      const th = h("th", { scope: "col", role: "columnheader", class: column.number ? "number" : null });
      if (onSort && column.sorts) {
        th.append(h("button", { type: "button", class: "sort", text: column.name, on: { click: () => this.#sortBy(column) } }));
      } else if (column.name) {
        th.textContent = column.name;
      } else {
        th.append(h("span", { class: "visually-hidden", text: column.label }));
      }
      this.#heads.set(column.id, th);
      return th;
    });
    this.table = h("table", { class: `list ${className}`, role: "table", "aria-label": label },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...head)), this.#body);
    this.#body.setAttribute("role", "rowgroup");
    this.element = h("div", { class: "table" }, this.table);
    if (onSort) {
      // On a phone the rows are blocks without a head.
      this.#select = h("select", { "aria-label": "Sort by", class: "sort-by", on: { change: () => onSort(this.#select.value) } },
        ...columns.filter((column) => column.sorts).map((column) => h("option", { value: this.#first(column), text: `by ${column.name.toLowerCase()}` })));
    }
  }

  /** A select with which a phone sorts. */
  get sortSelect() { return this.#select; }

  #first(column) {
    return column.number || column.newest ? `-${column.sorts}` : column.sorts;
  }

  #sortBy(column) {
    const first = this.#first(column);
    const other = first.startsWith("-") ? first.slice(1) : `-${first}`;
    this.#onSort(this.sort === first ? other : first);
  }

  /** Shows these rows, in this order. `sort`: by which the server has sorted them. */
  update(rows, sort = "") {
    this.sort = sort;
    for (const column of this.#columns) {
      const name = sort.replace(/^-/, "");
      const direction = column.sorts && column.sorts === name ? (sort.startsWith("-") ? "descending" : "ascending") : null;
      setAttribute(this.#heads.get(column.id), "aria-sort", direction);
    }
    if (this.#select) this.#select.value = sort;
    const kept = new Map();
    const elements = rows.map((row) => {
      const key = this.#key(row);
      const entry = this.#rows.get(key) ?? this.#make();
      kept.set(key, entry);
      this.#fill(entry, row);
      return entry.element;
    });
    this.#rows = kept;
    setChildren(this.#body, elements);
  }

  #make() {
    const cells = this.#columns.map((column, index) => h(index ? "td" : "th", {
      role: index ? "cell" : "rowheader", scope: index ? null : "row", class: column.number ? "number" : null,
      data: { label: column.name || "", column: column.id },
    }));
    return { element: h("tr", { role: "row" }, ...cells), cells, seen: [] };
  }

  #fill(entry, row) {
    this.#columns.forEach((column, index) => {
      const cell = entry.cells[index];
      if (column.title) setAttribute(cell, "title", column.title(row) || null);
      if (column.text) {
        const text = column.text(row);
        setText(cell, text);
        cell.classList.toggle("none", text === "–" || text === "");
        return;
      }
      const seen = JSON.stringify(column.depends ? column.depends(row) : row[column.id]) ?? "";
      if (entry.seen[index] === seen) return;
      entry.seen[index] = seen;
      const node = column.node(row, cell);
      cell.replaceChildren(...(Array.isArray(node) ? node : [node]).filter(Boolean));
    });
    entry.element.dataset.key = this.#key(row);
  }

  /** Moves the focus to the first link or button of the next (1) or previous (-1) row. */
  step(by) {
    const links = [...this.#body.rows].map((row) => row.querySelector("a, button")).filter(Boolean);
    if (!links.length) return;
    const current = links.findIndex((link) => link.closest("tr").contains(document.activeElement));
    links[Math.min(links.length - 1, Math.max(0, current < 0 ? 0 : current + by))].focus();
  }
}
