/** The package `socketio-pg`. */

export { createClient } from "./client.js";
export { SocketIoPgError, SubscriptionError } from "./errors.js";
export type { ClientError, ErrorCode, OwnCode, ServerCode } from "./errors.js";
export { PublishError } from "./publish-error.js";
export { TokenError } from "./token-error.js";
export type * from "./changes.js";
export type * from "./types.js";
