/** The package `socketio-pg`. */

export { createClient } from "./client.js";
export { PublishError, SocketIoPgError, SubscriptionError, TokenError } from "./errors.js";
export type { ClientError, ErrorCode, OwnCode, ServerCode } from "./errors.js";
export type * from "./changes.js";
export type * from "./types.js";
