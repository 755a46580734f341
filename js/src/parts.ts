/** The parts of the library that are loaded when they are first used: bundlers make a file of each. */

export const PARTS = {
  exact: () => import("./exact.js"),
  login: () => import("./login.js"),
  many: () => import("./many.js"),
  presence: () => import("./presence.js"),
  publishing: () => import("./publishing.js"),
  reading: () => import("./reading.js"),
  table: () => import("./table.js"),
};
