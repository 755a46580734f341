/** Reads older messages of a channel, beside its live subscription. */

import type { ChannelHandle } from "./channel.js";
import type { Core } from "./client.js";
import { SubscriptionError } from "./errors.js";
import { checkerFor } from "./extras.js";
import { makeMember, type Member } from "./member.js";
import { onAbort } from "./util.js";
import type { ChannelOptions, HistoryOptions, Message } from "./types.js";

/** @returns oldest first. Rejects with a SubscriptionError */
export async function readHistory(
  core: Core, channel: ChannelHandle, { filter, schema }: ChannelOptions<any, any>, options: HistoryOptions | number = {},
): Promise<Message<any>[]> {
  const { limit = 100, since, signal }: HistoryOptions = typeof options === "number" ? { limit: options } : options;
  const shared = core.hub.shared(channel.place);
  const found: Message[] = [];
  await new Promise<void>((resolve, reject) => {
    const end = (error?: Error) => {
      forget();
      shared.remove(member);
      if (error) reject(error);
      else resolve();
    };
    const member: Member = makeMember(channel.place, { since, history: limit, filter }, (name, value) => {
      if (name === "message") {
        // Others are live, and came while the older ones were on their way.
        const message = value as Message;
        if (message.replayed && found.length < limit && found.push(message) === limit && since) end();
      } else if (name === "error") {
        if (!(value as SubscriptionError).retrying) end(value as SubscriptionError);
      } else if (name === "current" || (name === "subscribed" && !member.position && !member.start)) {
        end(); // without a log, or with a rule against replays, there is nothing to read
      } else if (core.closed) end(core.closed);
    });
    let forget = () => {};
    if (core.closed) end(core.closed);
    else if (limit < 1) end();
    else {
      forget = onAbort(signal, () => end(new SubscriptionError("aborted", "The signal was aborted.", shared.name)));
      if (!signal?.aborted) shared.add(member);
    }
  });
  return checkerFor(channel, schema, core.options.schemas)?.filter(found) ?? found;
}
