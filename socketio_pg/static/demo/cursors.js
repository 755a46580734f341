// Cursors of other visitors over an element. Positions arrive at any rate; the cursors move smoothly between them.

const SMOOTHING = 35; // ms in which a cursor covers two thirds of its way to the newest position
const SILENCE = 9_000; // ms after which a cursor disappears; its page sends the position at least every REMINDER
const MOST = 200; // cursors shown
/** ms after which a page sends the position of a pointer that rests. */
export const REMINDER = 3_000;

export class Cursors {
  #layer;
  #size = { width: 0, height: 0 };
  #cursors = new Map(); // client → {element, x, y, target, heard}
  #frame = 0;
  #drawn = 0; // the time of the frame before; 0 after a rest

  /** `layer` is an empty element over the one that the pointers are at. `onChange` is called when a cursor comes or goes. */
  constructor(layer, onChange) {
    this.#layer = layer;
    this.onChange = onChange;
    new ResizeObserver(([{ contentRect }]) => {
      this.#size = contentRect;
      this.#schedule();
    }).observe(layer);
    setInterval(() => this.#forget(), 1000);
  }

  get count() { return this.#cursors.size; }

  /** Moves a cursor, or adds it. `x` and `y` are 0 to 1, from the layer's top left corner. */
  move(client, name, x, y) {
    let cursor = this.#cursors.get(client);
    if (!cursor) {
      if (this.#cursors.size >= MOST) return;
      cursor = { element: this.#make(client), x, y };
      this.#cursors.set(client, cursor);
      this.onChange();
    }
    if (cursor.name !== name) cursor.element.lastChild.textContent = cursor.name = name;
    Object.assign(cursor, { target: { x, y }, heard: performance.now() });
    this.#schedule();
  }

  remove(client) {
    const cursor = this.#cursors.get(client);
    if (!cursor) return;
    cursor.element.remove();
    this.#cursors.delete(client);
    this.onChange();
  }

  clear() {
    for (const client of [...this.#cursors.keys()]) this.remove(client);
  }

  #make(client) {
    const element = document.createElement("div");
    element.className = "cursor";
    element.innerHTML = '<svg viewBox="0 0 16 20"><path d="M1 1l5 16 3-6 6-2z"/></svg><span></span>';
    element.style.setProperty("--hue", hue(client));
    this.#layer.append(element);
    return element;
  }

  #forget() {
    const now = performance.now();
    for (const [client, { heard }] of this.#cursors) if (now - heard > SILENCE) this.remove(client);
  }

  #schedule() {
    this.#frame ||= requestAnimationFrame((now) => this.#draw(now));
  }

  #draw(now) {
    const part = 1 - Math.exp(-(this.#drawn ? now - this.#drawn : 16) / SMOOTHING);
    let isMoving = false;
    for (const cursor of this.#cursors.values()) {
      const { element, target } = cursor;
      const [dx, dy] = [target.x - cursor.x, target.y - cursor.y];
      const isThere = Math.abs(dx) * this.#size.width < 0.3 && Math.abs(dy) * this.#size.height < 0.3;
      cursor.x = isThere ? target.x : cursor.x + dx * part;
      cursor.y = isThere ? target.y : cursor.y + dy * part;
      isMoving ||= !isThere;
      const [x, y] = [cursor.x * this.#size.width, cursor.y * this.#size.height];
      const place = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
      if (place !== cursor.place) element.style.transform = cursor.place = place;
    }
    this.#drawn = isMoving ? now : 0;
    this.#frame = 0;
    if (isMoving) this.#schedule();
  }
}

/** Returns the hue of a client in degrees: the same on every page. */
export function hue(client) {
  let hash = 0;
  for (const character of client) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  return hash % 360;
}
