/** The presence of a channel for one part of the program: `channel.presence`. */

import type { ChannelHandle } from "./channel.js";
import type { Core } from "./client.js";
import type { Emitter } from "./emitter.js";
import { SubscriptionError } from "./errors.js";
import type { Inner } from "./lazy.js";
import { watch, type People } from "./people.js";
import type { ClientError, PresenceChange, PresenceEvents, PresenceMember } from "./types.js";
import { onAbort } from "./util.js";

/** The channel has the event `presence` for each change. */
export function openPresence(core: Core, { name, emit }: ChannelHandle, handle: Emitter<PresenceEvents>): Inner {
  const onChange = (change: PresenceChange) => emit("presence", change);
  let people: People | undefined;
  const open = () => {
    if (core.closed) throw core.closed;
    return people?.isOpen ? people : people = watch(core.hub, core.hub.shared({ channel: name }), {
      onJoin: (member) => {
        handle.emit("join", member);
        onChange({ kind: "join", member });
      },
      onUpdate: (member, before) => {
        handle.emit("update", { member, before });
        onChange({ kind: "update", member, before });
      },
      onLeave: (member) => {
        handle.emit("leave", member);
        onChange({ kind: "leave", member });
      },
      onSync: (members) => handle.emit("sync", members),
      onError: (error) => { if (!handle.emit("error", error as ClientError)) core.fail(error as ClientError); },
    });
  };
  let forget = () => {}; // the signal of the last join()
  open();
  return {
    get members(): ReadonlyMap<string, PresenceMember> { return people!.members; },
    get count() { return people!.count; },
    get complete() { return people!.complete; },
    get key() { return people!.key; },
    watch: () => open().ready,
    join(state: any, { key, signal }: { key?: string; signal?: AbortSignal } = {}) {
      forget();
      if (signal?.aborted) return Promise.reject(new SubscriptionError("aborted", "The signal was aborted.", name));
      forget = onAbort(signal, () => people!.leave());
      return open().join(state, { key });
    },
    update: (state: any) => open().update(state),
    leave() {
      forget();
      return open().leave();
    },
    close() {
      forget();
      people!.close();
    },
  };
}
