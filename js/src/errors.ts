/** The errors: one class for each kind of failure, and a union by `code` for `switch`. */

/** Codes of the server (docs/protocol.md) with which it refuses or ends subscriptions and requests. */
export type ServerCode =
  | "invalid_request"
  | "invalid_channel"
  | "unauthorized"
  | "authentication_unavailable"
  | "forbidden"
  | "rate_limited"
  | "too_many_subscriptions"
  | "too_many_rows"
  | "filter_too_expensive"
  | "ended_by_server"
  | "payload_too_large"
  | "database_unavailable"
  | "log_not_installed"
  | "not_supported"
  | "identity_changed"
  | "idle_timeout"
  | "internal";

/** Codes that this client gives itself. */
export type OwnCode =
  /** The server did not answer in time, or the connection was lost before. */
  | "no_answer"
  /** It was ended by this program before it was done. */
  | "unsubscribed"
  | "closed"
  | "aborted"
  /** The application's function `load` failed; see `cause`. */
  | "load_failed"
  /** The application's function `token` failed (see `cause`), or returned the old token again. */
  | "no_token"
  /** The connection was refused by something other than the server. */
  | "refused"
  /** Another user of the channel has another filter: the server keeps one for each client. */
  | "conflicting_filter"
  /** The application says that a table has another primary key than it has. */
  | "wrong_key"
  /** A part of this library could not be loaded; see `cause`. It is tried again. */
  | "part_unavailable";

/** All codes, for a `switch` over all of them. A server of a later version may have further ones. */
export type ErrorCode = ServerCode | OwnCode;

/** What all errors of this library have. */
export class SocketIoPgError<Code extends string = string> extends Error {
  readonly code: Code;
  /** True when it is retried automatically. Otherwise what failed has ended. */
  retrying = false;

  constructor(code: Code, message: string, options?: { cause?: unknown }) {
    super(message, options as ErrorOptions);
    this.code = code;
  }
}

/** The server refused a subscription, or did not answer, or `load` failed. */
export class SubscriptionError<Code extends string = string> extends SocketIoPgError<Code> {
  override name = "SubscriptionError";

  /**
   * @param code one of docs/protocol.md, or "no_answer" or "unsubscribed", or "load_failed": `load` failed
   * @param options `cause`: the error that `load` has thrown
   */
  constructor(code: Code, message: string, readonly channel: string, options?: { cause?: unknown }) {
    super(code, message, options);
  }
}

/** Each error as a member of a union by `code`. */
type Coded<Code extends string> = Code extends string
  ? SocketIoPgError<Code> & { readonly channel?: string; readonly uncertain?: boolean }
  : never;

/** An error in an event `error`: a union by `code`, so that a `switch` can be exhaustive. */
export type ClientError = Coded<ErrorCode>;
