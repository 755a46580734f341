/** The parts of the library in the single file: they are there. */

import * as exact from "./exact.js";
import * as login from "./login.js";
import * as many from "./many.js";
import * as presence from "./presence.js";
import * as publishing from "./publishing.js";
import * as reading from "./reading.js";
import * as table from "./table.js";

export const PARTS = {
  exact: async () => exact,
  login: async () => login,
  many: async () => many,
  presence: async () => presence,
  publishing: async () => publishing,
  reading: async () => reading,
  table: async () => table,
};
