/** Reads older messages of a channel, beside its live subscription. */

import type { Core } from "./client.js";
import { SubscriptionError } from "./errors.js";
import { Member, type Place } from "./member.js";
import type { Filter, HistoryOptions, Message } from "./types.js";
import { onAbort } from "./util.js";

/** @returns oldest first. Rejects with a SubscriptionError */
export function read(
  core: Core, place: Place, filter: Filter | null | undefined, { limit = 100, since, signal }: HistoryOptions,
): Promise<Message[]> {
  const shared = core.hub.shared(place);
  const found: Message[] = [];
  return new Promise((resolve, reject) => {
    const fail = (code: string, message: string) => end(new SubscriptionError(code, message, shared.name));
    const end = (error?: Error) => {
      forget();
      shared.remove(member);
      if (error) reject(error);
      else resolve(found);
    };
    const member: Member = new Member(place, (message) => {
      // Others are live, and came while the older ones were on their way.
      if (message.replayed && found.length < limit && found.push(message) === limit && since) end();
    }, {
      since, history: limit, filter,
      // Without a log, or with a rule against replays, there is nothing to read.
      onSubscribed: () => { if (!member.position && !member.start) end(); },
      onLive: () => end(),
      onError: (error) => { if (!error.retrying) end(error); },
      onState: () => { if (core.closed) fail("closed", core.closed.message); },
    });
    let forget = () => {};
    try {
      if (core.closed) throw core.closed;
      if (limit > 0) shared.add(member);
      else end();
    } catch (error) {
      end(error === core.closed ? core.closed! : new SubscriptionError("conflicting_filter", String(error), shared.name));
      return;
    }
    forget = onAbort(signal, () => fail("aborted", "the signal was aborted"));
  });
}
