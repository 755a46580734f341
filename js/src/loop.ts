/** The messages of a channel for a loop: `for await (const message of channel)`. */

import type { ChannelHandle } from "./channel.js";
import type { ChannelState, ClientError, Message } from "./types.js";
import { onAbort } from "./util.js";

interface LoopOptions {
  signal?: AbortSignal;
  buffer?: number;
}

/** Listens to a channel from now on, and keeps up to `size` messages that the loop has not taken yet. */
export class Loop implements AsyncIterableIterator<Message<any>> {
  #channel;
  #size;
  #buffer: Message<any>[] = [];
  #dropped = 0;
  #isEnded = false;
  #error: ClientError | undefined;
  #wake: (() => void)[] = [];
  #forget = () => {};

  /**
   * @param options those of the channel, and then those of the loop
   * @param early messages that have come before, and what has listened to them
   */
  constructor(
    channel: ChannelHandle, options: LoopOptions, { signal, buffer = options.buffer }: LoopOptions = {},
    early: Message<any>[], hear: (message: Message<any>) => void,
  ) {
    this.#channel = channel;
    this.#size = buffer ?? 1_000;
    this.#change(channel.state); // it may have ended while this code was loaded
    if (!this.#isEnded) channel.on("message", this.#add).on("state", this.#change);
    channel.off("message", hear);
    for (const message of early) this.#add(message);
    this.#forget = onAbort(signal, () => this.#end());
  }

  [Symbol.asyncIterator](): this { return this; }

  async next(): Promise<IteratorResult<Message<any>>> {
    while (!this.#buffer.length && !this.#isEnded) await new Promise<void>((resolve) => this.#wake.push(resolve));
    const dropped = this.#dropped;
    this.#dropped = 0;
    if (dropped) this.#channel.emit("gap", { ...this.#channel.place, tier: "buffer", reason: "buffer_full", dropped });
    if (this.#buffer.length) return { value: this.#buffer.shift()!, done: false };
    const error = this.#error;
    this.#error = undefined;
    if (error) throw error;
    return { value: undefined, done: true };
  }

  async return(): Promise<IteratorResult<Message<any>>> {
    this.#buffer = [];
    this.#end();
    return { value: undefined, done: true };
  }

  #add = (message: Message<any>) => {
    if (this.#buffer.push(message) > this.#size) {
      this.#buffer.shift();
      this.#dropped++;
    }
    this.#wake.shift()?.();
  };

  /** The channel has ended: the loop gets the messages that it has not taken yet, then the error. */
  #change = (state: ChannelState) => {
    if (state.status === "ended" && state.code !== "aborted" && state.code !== "closed") this.#error = this.#channel.final;
    if (state.status === "ended" || state.status === "idle") this.#end();
  };

  #end() {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#channel.off("message", this.#add).off("state", this.#change);
    this.#forget();
    for (const wake of this.#wake.splice(0)) wake();
  }
}
