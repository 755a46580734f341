// Small line charts over the last ten minutes, with the figures as texts beside them and as a table on demand.

import { h, setAttribute, setText, svg } from "./dom.js";
import { time } from "./format.js";

const WIDTH = 300;
const HEIGHT = 56;
export const MINUTES = 10;
const SPAN = MINUTES * 60_000;
const TABLE_STEP = 30_000; // ms between two rows of the table

/** The point in time at which the pointer is, shared by all charts of the page: null shows the newest figures. */
class Crosshair extends EventTarget {
  time = null;

  move(to) {
    if (this.time === to) return;
    this.time = to;
    this.dispatchEvent(new Event("move"));
  }
}

export const crosshair = new Crosshair();

/** One chart. `series`: [{name, key}], of which `key(sample)` is the value or null. `format(value)` writes one. */
export class Chart {
  #series;
  #format;
  #samples = [];
  #values = [];
  #lines = [];
  #areas = [];
  #cross = svg("line", { class: "cross", y1: 0, y2: HEIGHT });
  #title = svg("title");
  #top = h("span", { class: "scale" });
  #table = h("tbody");
  #details;
  #drawing;

  /** `name` is the title, `floor` the smallest top of the scale, `note` an explanation for a tooltip. */
  constructor({ name, note, series, format, floor = 1 }) {
    this.name = name;
    this.floor = floor;
    this.#series = series;
    this.#format = format;
    const id = `chart-${name.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
    for (const [index] of series.entries()) {
      this.#areas.push(svg("path", { class: `area series-${index}` }));
      this.#lines.push(svg("path", { class: `line series-${index}` }));
    }
    this.#title.id = `${id}-title`;
    this.#title.textContent = `${name}: no figures yet`;
    this.#drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-labelledby": `${id}-title` },
      this.#title, svg("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
      ...this.#areas.slice(0, 1), ...[...this.#lines].reverse(), this.#cross);
    this.#cross.style.display = "none";
    this.#drawing.addEventListener("pointermove", (event) => this.#point(event));
    this.#drawing.addEventListener("pointerleave", () => crosshair.move(null));
    const names = series.map(({ name: seriesName }, index) => {
      const value = h("span", { class: "value" });
      this.#values.push(value);
      return h("span", { class: `figure series-${index}` },
        series.length > 1 ? h("span", { class: "series-name", text: seriesName }) : null, value);
    });
    this.#details = h("details", { class: "as-table", on: { toggle: () => this.#fillTable() } },
      h("summary", {}, h("span", { text: "Table" }), h("span", { class: "visually-hidden", text: ` of ${name}` })),
      h("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": `${name}, every ${TABLE_STEP / 1000} seconds` }, h("table", { "aria-label": `${name}, every ${TABLE_STEP / 1000} seconds` },
        h("thead", {}, h("tr", {}, h("th", { scope: "col", text: "Time" }),
          ...series.map((one) => h("th", { scope: "col", class: "number", text: series.length > 1 ? one.name : "Value" })))),
        this.#table)));
    this.element = h("figure", { class: "chart" },
      h("figcaption", {}, h("span", { class: "name", text: name, title: note }), h("span", { class: "figures" }, ...names)),
      h("div", { class: "plot" }, this.#drawing, this.#top), this.#details);
    crosshair.addEventListener("move", this.#follow);
  }

  /** Ends the chart. */
  close() {
    crosshair.removeEventListener("move", this.#follow);
  }

  /** Draws samples, oldest first; `at` is their time in ms. `now` is the right edge. */
  draw(samples, now) {
    this.#samples = samples;
    this.now = now;
    let highest = this.floor;
    for (const { key } of this.#series) for (const sample of samples) highest = Math.max(highest, key(sample) ?? 0);
    const top = niceTop(highest);
    setText(this.#top, this.#format(top));
    const x = (at) => round(WIDTH - ((now - at) / SPAN) * WIDTH);
    const y = (value) => round(HEIGHT - 1 - (value / top) * (HEIGHT - 4));
    this.#series.forEach(({ key }, index) => {
      const parts = runs(samples, key);
      setAttribute(this.#lines[index], "d", parts.map((run) => run.map(([at, value], position) => `${position ? "L" : "M"}${x(at)} ${y(value)}`).join("")
        + (run.length === 1 ? "h1" : "")).join(""));
      setAttribute(this.#areas[index], "d", index ? "" : parts.map((run) => `M${x(run[0][0])} ${HEIGHT}${run.map(([at, value]) => `L${x(at)} ${y(value)}`).join("")}L${x(run.at(-1)[0])} ${HEIGHT}Z`).join(""));
    });
    this.#follow();
    this.#describe(samples);
    this.#fillTable();
  }

  #point(event) {
    const { left, width } = this.#drawing.getBoundingClientRect();
    crosshair.move(this.now - SPAN * (1 - (event.clientX - left) / width));
  }

  /** Shows the figures at the crosshair, or else the newest. */
  #follow = () => {
    const sample = crosshair.time === null ? this.#samples.at(-1) : nearest(this.#samples, crosshair.time);
    this.#series.forEach(({ key }, index) => setText(this.#values[index], this.#format(sample ? key(sample) : null)));
    this.element.classList.toggle("past", crosshair.time !== null);
    this.#cross.style.display = crosshair.time !== null && sample ? "" : "none";
    if (crosshair.time === null || !sample) return;
    const x = WIDTH - ((this.now - sample.at) / SPAN) * WIDTH;
    this.#cross.setAttribute("x1", x);
    this.#cross.setAttribute("x2", x);
  };

  #describe(samples) {
    const parts = this.#series.map(({ name, key }) => {
      const values = samples.map(key).filter((value) => value !== null && value !== undefined);
      const prefix = this.#series.length > 1 ? `${name} ` : "";
      if (!values.length) return `${prefix}no figures`;
      return `${prefix}${this.#format(values.at(-1))} now, at most ${this.#format(Math.max(...values))}`;
    });
    setText(this.#title, `${this.name} over ${MINUTES} minutes: ${parts.join("; ")}`);
  }

  #fillTable() {
    if (!this.#details.open) return;
    const rows = [];
    let last = Infinity;
    for (const sample of [...this.#samples].reverse()) {
      if (last - sample.at < TABLE_STEP) continue;
      last = sample.at;
      rows.push(h("tr", {}, h("th", { scope: "row", text: time(sample.at) }),
        ...this.#series.map(({ key }) => h("td", { class: "number", text: this.#format(key(sample)) }))));
    }
    this.#table.replaceChildren(...rows);
  }
}

/** Splits samples where a value is missing or the time between two is long. */
function runs(samples, key) {
  const parts = [];
  let run = null;
  let before = null;
  for (const sample of samples) {
    const value = key(sample);
    if (value === null || value === undefined) { run = null; continue; }
    if (!run || (before !== null && sample.at - before > 20_000)) parts.push(run = []);
    run.push([sample.at, value]);
    before = sample.at;
  }
  return parts;
}

function nearest(samples, at) {
  let found = null;
  for (const sample of samples) if (!found || Math.abs(sample.at - at) < Math.abs(found.at - at)) found = sample;
  return found;
}

/** The next number above that is 1, 2 or 5 times a power of ten. */
function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  for (const factor of [1, 2, 5, 10]) if (value <= factor * power * 1.0001) return factor * power;
  return 10 * power;
}

const round = (number) => Math.round(number * 10) / 10;
