// The city of the map demo as SVG, and the people in it. Used by the map and by its preview.

const SVG = "http://www.w3.org/2000/svg";
const [SOUTH, NORTH, WEST, EAST] = [50.93, 50.95, 6.94, 6.98];
const MARGIN = 24; // so that no circle is clipped at the edge

/** The size of the city in the units of the SVG. */
export const [WIDTH, HEIGHT] = [800, 500];
/** The longitude of the river. */
export const RIVER = 6.9605;

export class City {
  #people = new Map(); // id → its <g>
  #group = document.createElementNS(SVG, "g");

  /** Draws the city into `svg`, without people. */
  constructor(svg) {
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.innerHTML = `
      <rect class="land" width="800" height="500"/>
      <path class="park" d="M40 60h170l30 90-60 70H60zM560 330l150-20 50 90-90 70-130-30z"/>
      <path class="street" d="M0 120h800M0 250h800M0 380h800M110 0v500M250 0v500M330 0v500M500 0v500M610 0v500M720 0v500"/>
      <path class="avenue" d="M0 480L330 250M330 250L800 190M500 250L640 0"/>
      <path class="river" d="M410 -10C360 120 460 200 410 300S370 430 430 510"/>
      <path class="bridge" d="M350 120h100M370 250h100M345 380h90"/>`;
    this.#group.classList.add("people");
    svg.append(this.#group);
  }

  /** The elements of the people. `dataset.side` of each is "west" or "east" of the river. */
  get people() { return [...this.#people.values()]; }

  /** Adds a person, or moves it. Returns its element. */
  place({ id, name, lat, lon }) {
    let group = this.#people.get(id);
    if (!group) {
      group = document.createElementNS(SVG, "g");
      group.innerHTML = '<circle r="13"/><text y="4" text-anchor="middle"></text><title></title>';
      group.querySelector("text").textContent = name.slice(0, 2);
      group.querySelector("title").textContent = name;
      group.style.setProperty("--hue", (id * 137.5) % 360);
      this.#group.append(group);
      this.#people.set(id, group);
    }
    const x = MARGIN + ((lon - WEST) / (EAST - WEST)) * (WIDTH - 2 * MARGIN);
    const y = MARGIN + ((NORTH - lat) / (NORTH - SOUTH)) * (HEIGHT - 2 * MARGIN);
    group.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
    group.dataset.side = lon < RIVER ? "west" : "east";
    return group;
  }

  /** Removes a person. */
  remove(id) {
    this.#people.get(id)?.remove();
    this.#people.delete(id);
  }
}
