/** `client.seen(txid)`: waits for the change of a transaction. */

import type { Core } from "./client.js";
import { SubscriptionError } from "./errors.js";
import { onAbort } from "./util.js";

// For how long a change that has come is remembered, in ms.
const SEEN_FOR = 60_000;

export function waitFor(
  core: Core, txid: string | number | bigint, { signal, timeout }: { signal?: AbortSignal; timeout?: number } = {},
): Promise<void> {
  const id = String(txid);
  return new Promise((resolve, reject) => {
    if (Date.now() - core.transactions.get(id)! < SEEN_FOR) {
      resolve();
      return;
    }
    const done = (error?: Error) => {
      clearTimeout(timer);
      forget();
      core.off("transaction", check).off("state", checkState);
      if (error) reject(error);
      else resolve();
    };
    const give = (code: string, message: string) => () => done(new SubscriptionError(code, message, ""));
    const check = (seen: string) => { if (seen === id) done(); };
    const checkState = () => { if (core.closed) done(core.closed); };
    const timer = timeout === undefined ? undefined : setTimeout(give("no_answer", "The change did not come in time."), timeout);
    let forget = () => {};
    core.on("transaction", check).on("state", checkState);
    checkState();
    forget = onAbort(signal, give("aborted", "The signal was aborted."));
  });
}
