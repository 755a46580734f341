// Numbers, sizes, durations and times as short texts. Null and undefined are "–".

const NONE = "–";
const missing = (value) => value === null || value === undefined || Number.isNaN(value);

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** 1,234 */
export function count(value) {
  return missing(value) ? NONE : whole.format(value);
}

/** Three significant digits: 0, 0.25, 4.1, 38, 1,204, 38.2k, 1.2M */
export function short(value) {
  if (missing(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1e6) return `${trim(value / 1e6)}M`;
  if (size >= 1e4) return `${trim(value / 1e3)}k`;
  if (size >= 100) return whole.format(value);
  return trim(value);
}

function trim(value) {
  const size = Math.abs(value);
  if (size > 0 && size < 0.01) return "<0.01";
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : 2;
  return String(Number(value.toFixed(digits)));
}

/** 512 B, 1.2 kB, 38 MB (powers of 1,000) */
export function bytes(value) {
  if (missing(value)) return NONE;
  for (const [size, unit] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (value >= size) return `${trim(value / size)} ${unit}`;
  }
  return `${whole.format(value)} B`;
}

/** Milliseconds: 0.4 ms, 12 ms, 1.5 s, 2 min */
export function milliseconds(value) {
  if (missing(value)) return NONE;
  return value < 1000 ? `${trim(value)} ms` : seconds(value / 1000);
}

/** Seconds: 0.4 s, 12 s, 5 min, 3 h 20 min, 2 d 4 h */
export function seconds(value) {
  if (missing(value)) return NONE;
  if (value < 60) return `${value < 10 ? trim(value) : Math.round(value)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  const days = Math.floor(hours / 24);
  return hours % 24 ? `${days} d ${hours % 24} h` : `${days} d`;
}

/** Seconds of age in whole units: now, 4 s, 3 min */
export function age(value) {
  if (missing(value)) return NONE;
  return value < 1 ? "now" : seconds(value < 60 ? Math.floor(value) : value);
}

/** How long ago that was: "now", "5 s ago". */
export function ago(value) {
  const text = age(value);
  return text === NONE || text === "now" ? text : `${text} ago`;
}

const two = (number) => String(number).padStart(2, "0");

/** The local time as HH:MM:SS of a Date or of a text that Date understands, with the date when it is not today. */
export function time(value) {
  if (missing(value)) return NONE;
  const date = new Date(value);
  if (Number.isNaN(date.getTime())) return String(value);
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return date.toDateString() === new Date().toDateString() ? clock : `${day(date)} ${clock}`;
}

/** The local time as HH:MM:SS.mmm */
export function preciseTime(value) {
  const date = new Date(value);
  if (Number.isNaN(date.getTime())) return String(value);
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

function day(date) {
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

/** "1 client", "2 clients" */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
