/** The parts of the library in the single file: they are there. */

import * as ephemeral from "./ephemeral.js";
import * as exact from "./exact.js";
import * as history from "./history.js";
import * as people from "./people.js";
import * as publisher from "./publisher.js";
import * as view from "./view.js";

export const PARTS = {
  ephemeral: async () => ephemeral,
  exact: async () => exact,
  history: async () => history,
  people: async () => people,
  publisher: async () => publisher,
  view: async () => view,
};
