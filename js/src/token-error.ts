/** Why the connection has no valid token. */

import { SocketIoPgError } from "./errors.js";

/**
 * The server refused the connection, or the token could not be renewed before it expired.
 *
 * When the socket is connected, it is the renewal that failed. Nothing is lost then: the renewal is retried until the
 * token expires. The server then closes the connection, and the client reconnects with the token that `token` returns.
 */
export class TokenError<Code extends string = string> extends SocketIoPgError<Code> {
  override name = "TokenError";

  /**
   * @param code one of docs/protocol.md, or "no_answer", or "no_token": the function `token` failed, or returned the
   *   old token again
   * @param options `cause`: the error that `token` has thrown
   */
  constructor(code: Code, message: string, options?: { cause?: unknown }) {
    super(code, message, options);
  }
}
