/** Rows that the application loads, before the messages that are not in them. */

import { SubscriptionError } from "./errors.js";
import { fail, reportGap, type Member } from "./member.js";
import { pause } from "./pause.js";
import type { Shared } from "./shared.js";
import type { Loaded, Message } from "./types.js";
import { backoff, call } from "./util.js";

// Messages of NOTIFY that one handler holds while it loads rows.
const MAX_HELD = 1_000;

export type Load = (how: { signal: AbortSignal }) => Loaded<any> | Promise<Loaded<any>>;

export class Loader {
  isStale; // the rows must be loaded first
  #member;
  #shared;
  #load;
  #onRows;
  #isLoading = false;
  #loads = 0; // 1 after it was current
  /** Messages of NOTIFY that arrived while it was stale. */
  #held: Message[] = [];
  #heldTooMany = false;
  #ended = new AbortController();

  constructor(member: Member, shared: Shared, load: Load, onRows?: (rows: any) => void) {
    this.#member = member;
    this.#shared = shared;
    this.#load = load;
    this.#onRows = onRows;
    this.isStale = !member.position && !member.start;
    member.history = 0;
  }

  /**
   * Calls the application's `load` until it succeeds. The server then replays what is not in the rows, or says that
   * their token is too old. Never two at once for one handler.
   */
  async load(): Promise<void> {
    const one = this.#member;
    this.isStale = true;
    one.live = one.current = false;
    one.position = one.start = null;
    one.report("state");
    if (this.#isLoading) return;
    this.#isLoading = true;
    const { signal } = this.#ended;
    while (this.isStale) {
      if (this.#loads++) await pause(backoff(this.#shared.options, this.#loads - 2), signal);
      if (signal.aborted) return;
      try {
        const loaded = await this.#load({ signal });
        if (signal.aborted) return;
        if (typeof loaded?.token !== "string" || !loaded.token) throw new TypeError("load must return {rows, token}");
        this.#accept(loaded);
      } catch (cause) {
        if (signal.aborted) return;
        const message = `Loading failed: ${(cause as Error)?.message ?? cause}`;
        const error = new SubscriptionError("load_failed", message, this.#shared.name, { cause });
        error.retrying = true;
        fail(one, error);
      }
    }
    this.#isLoading = false;
    this.#shared.settle();
  }

  end(): void {
    this.#ended.abort();
  }

  /** Keeps a message of NOTIFY until the rows are there. */
  hold(message: Message): void {
    if (this.#held.push(message) > MAX_HELD) {
      this.#held.shift();
      this.#heldTooMany = true;
    }
  }

  /** All messages up to now were delivered. The next load is spread over some time: all clients may need one at once. */
  becomeCurrent(): void {
    this.#loads = 1;
  }

  /** The rows are there, with the token of their snapshot. */
  #accept({ rows, token }: Loaded) {
    const member = this.#member;
    this.isStale = false;
    member.start = token;
    call(this.#onRows, rows);
    const held = this.#held.splice(0);
    if (this.#ended.signal.aborted) return; // by onRows
    for (const message of held) member.report("message", message);
    if (this.#heldTooMany) reportGap(member, { tier: "notify", reason: "too_many_while_loading" });
    this.#heldTooMany = false;
  }
}
