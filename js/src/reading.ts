/** What channels need besides listeners: loops, history, waiting for a transaction, schemas, and rows that are loaded. */

export { checkerFor, Loader } from "./extras.js";
export { readHistory } from "./history.js";
export { Loop } from "./loop.js";
export { waitFor } from "./seen.js";
