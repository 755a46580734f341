/** What the single file `/static/socketio_pg.js` has. */

export * from "./index.js";
export { People as Presence } from "./people.js";
export { PresenceState } from "./presence-state.js";
export { Subscription, Subscriptions } from "./subscriptions.js";
export { LiveTable } from "./tables.js";
