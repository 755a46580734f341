/** Parts of which a connection has one. */

import type { Hub, Part } from "./hub.js";

/** Returns a function that returns the part of a connection, which `make` makes when it is needed first. */
export function perHub<Made extends Part>(make: (hub: Hub) => Made): (hub: Hub) => Made {
  const all = new WeakMap<Hub, Made>();
  return (hub) => {
    if (!all.has(hub)) all.set(hub, hub.add(make(hub)));
    return all.get(hub)!;
  };
}
