/** What channels with the options `schema` and `load` need besides. */

import type { ChannelHandle } from "./channel.js";
import { check, schemaFor, type Checked } from "./schema.js";
import type { Message, Position, Schema } from "./types.js";

export { Loader } from "./loading.js";

/** Returns what checks a channel's payloads, if something does. */
export function checkerFor(
  channel: ChannelHandle, schema: Schema<any> | undefined, schemas: Record<string, Schema<any> | undefined> | undefined,
): Checker | undefined {
  const found = schema ?? schemaFor(schemas, channel.name);
  return found && new Checker(channel, found);
}

/** Checks the payloads of one subscription, in order. */
export class Checker {
  /** The position before the messages that are being checked; undefined: none is. */
  position: Position | null | undefined;
  #channel;
  #schema;
  #last: Position | null = null;
  /** With a schema that needs time: the end of the checks so far. */
  #checks: Promise<void> | null = null;

  constructor(channel: ChannelHandle, schema: Schema<any>) {
    this.#channel = channel;
    this.#schema = schema;
  }

  /** @param isCurrent returns whether the subscription still goes on */
  receive(message: Message, position: Position | null, isCurrent: () => boolean): void {
    const checked = check(this.#schema, message.payload);
    if (!this.#checks && !(checked instanceof Promise)) {
      this.#pass(message, checked);
      this.#last = position;
      return;
    }
    this.position ??= this.#last;
    const checks = (this.#checks ?? Promise.resolve()).then(() => checked).then((found) => {
      this.position = this.#last = position;
      if (isCurrent()) this.#pass(message, found);
      if (this.#checks !== checks) return;
      this.#checks = null;
      this.position = undefined;
    });
    this.#checks = checks;
  }

  /** Returns the messages that the schema accepts. */
  async filter(messages: Message[]): Promise<Message<any>[]> {
    const all = await Promise.all(messages.map(async (message) => [message, await check(this.#schema, message.payload)] as const));
    return all.flatMap(([message, checked]) => {
      if (!checked.issues) return { ...message, payload: checked.value };
      this.#channel.emit("invalid", { ...checked, message });
      return [];
    });
  }

  #pass(message: Message, checked: Checked) {
    if (!checked.issues) this.#channel.deliver(message, { ...message, payload: checked.value });
    else this.#channel.emit("invalid", { ...checked, message });
  }
}
