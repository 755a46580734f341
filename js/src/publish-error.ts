/** Why a message was not published. */

import { SocketIoPgError } from "./errors.js";

/** The server refused to publish a message, or the attempt was given up. */
export class PublishError<Code extends string = string> extends SocketIoPgError<Code> {
  override name = "PublishError";

  /**
   * @param code one of docs/protocol.md, or "no_answer", or "closed": after `close()`
   * @param uncertain true when the message may have been published. Otherwise it was not
   */
  constructor(code: Code, message: string, readonly channel: string, readonly uncertain: boolean) {
    super(code, message);
  }
}
