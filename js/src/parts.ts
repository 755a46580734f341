/** The parts of the library that are loaded when they are first used: bundlers make a file of each. */

export const PARTS = {
  ephemeral: () => import("./ephemeral.js"),
  exact: () => import("./exact.js"),
  history: () => import("./history.js"),
  people: () => import("./people.js"),
  publisher: () => import("./publisher.js"),
  view: () => import("./view.js"),
};
