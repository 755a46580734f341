/** A channel or pattern as one part of the program uses it. */

import type { Core } from "./client.js";
import { makeEmitter, type Emitter } from "./emitter.js";
import { SubscriptionError } from "./errors.js";
import type { Checker } from "./extras.js";
import { lazy } from "./lazy.js";
import { doneUpTo, makeMember, type Member, type Place } from "./member.js";
import type { Shared } from "./shared.js";
import type { Channel, ChannelEvents, ChannelOptions, ChannelState, ClientError, Message, Presence } from "./types.js";
import { onAbort, quiet, stateOf } from "./util.js";

/** A channel, as this library knows it. */
export interface ChannelHandle extends Omit<Channel<any, any>, "on" | "off">, Emitter<ChannelEvents<any, any>> {
  readonly place: Place;
  /** Why it has ended. */
  readonly final: ClientError | undefined;
  /** Gives a message to the listeners. `original`: before a schema has changed it. */
  deliver(original: Message, message: Message): void;
}

/** Events that need the subscription. */
const LASTING = ["message", "gap", "rows", "ephemeral"] as const;

export function makeChannel(core: Core, place: Place, name: string, options: ChannelOptions<any, any> = {}): ChannelHandle {
  const { load, schema } = options;
  let state: ChannelState = stateOf("idle");
  let shared: Shared | undefined;
  let member: Member | undefined;
  let isWanted = false; // by subscribe()
  let isStopped = false; // as by unsubscribe(): listeners that are still there do not count
  let final: ClientError | undefined;
  let retried: ClientError | undefined;
  let presence: Presence | undefined;
  /** What `schema` and `load` need. */
  let extras: typeof import("./reading.js") | undefined;
  let checker: Checker | undefined;
  let preparing: Promise<void> | undefined;

  const emitter = makeEmitter<ChannelEvents<any, any>>((event, isAdded) => {
    if (event === "presence") {
      if (isAdded) self.presence.watch();
    } else if ((LASTING as readonly string[]).includes(event)) {
      if (isAdded) isStopped = false;
      // Starts at once, and ends in a microtask, if nobody has begun to listen again by then.
      if (isUsed()) start();
      else queueMicrotask(() => { if (!isUsed()) stop(); });
    }
  });
  const { emit } = emitter;

  const isUsed = () => !isStopped && (isWanted || LASTING.some(emitter.hears));

  const start = () => {
    if (member || final || preparing) return;
    const { schemas } = core.options;
    if (!extras && (load || schema || schemas)) {
      preparing = core.part("reading").then((found) => {
        extras = found;
        checker = found.checkerFor(self, schema, schemas);
        preparing = undefined;
        if (isUsed()) start();
        change();
      }, finish);
      return change();
    }
    if (core.closed) return finish(core.closed);
    const made: Member = member = makeMember(place, options, (event, value: any) => {
      if (event === "error") fail(value);
      else if (event === "state") change();
      else if (event !== "message") emit(event as "gap", value);
      else if (checker) checker.receive(value, doneUpTo(made), () => member === made);
      else self.deliver(value, value);
    });
    shared = core.hub.shared(place);
    if (load) made.loader = new extras!.Loader(made, shared, load, (rows) => emit("rows", rows));
    // If others have another filter, the error comes when listeners to it are there.
    if (shared.allows(made)) shared.add(made);
    else queueMicrotask(() => shared!.add(made));
    change();
  };

  const stop = () => {
    const former = member;
    isStopped = true;
    member = undefined;
    if (former) shared!.remove(former);
    change();
  };

  /** Ends for good, unless `subscribe()` is called. */
  const finish = (error: ClientError) => {
    final = error;
    stop();
  };

  const fail = (error: ClientError) => {
    if (error.retrying) retried = error;
    else final = error;
    if (!emit("error", error)) core.fail(error, isWanted);
    change();
  };

  /** Reports the state if it is another one. */
  const change = () => {
    const error = final ?? (member && core.closed);
    let status: ChannelState["status"] = "idle";
    if (error) {
      status = "ended";
      member = undefined;
    } else if (member?.live) {
      retried = undefined;
      status = member.current ? "live" : "subscribed";
    } else if (member || preparing) status = member?.established || retried ? "reconnecting" : "subscribing";
    const why = error ?? (member && retried);
    const next = stateOf(status, why?.code, why?.message);
    if (status === state.status && next.code === state.code) return;
    state = next;
    emit("state", state);
  };

  const begin = (until: "ready" | "caughtUp") => {
    isWanted = true;
    isStopped = false;
    if (!options.signal?.aborted) final = undefined;
    start();
    const done = (async () => {
      await preparing;
      if (!member) throw final ?? new SubscriptionError("unsubscribed", "unsubscribed", name);
      await member[until].promise;
    })();
    const told = done.then();
    // An unhandled rejection only if nobody else reports it, and the application has not ended it itself.
    done.catch(() => { if (!final || isStopped || emitter.hears("error") || core.hears("error")) quiet(told); });
    return told;
  };

  const self: ChannelHandle = {
    ...(emitter as unknown as ChannelHandle),
    name,
    place,
    get state() { return state; },
    get final() { return final; },
    get position() { return checker?.position ?? (member ? doneUpTo(member) : null); },
    get maxRate() { return shared?.maxRate ?? null; },
    get presence() {
      return presence ??= lazy((handle) => core.part("presence").then(({ openPresence }) => (
        openPresence(core, self, handle)
      )), { members: new Map(), count: 0, complete: false, key: null }, ["watch", "join", "update", "leave", "close"]) as Presence;
    },
    subscribe: () => begin("ready"),
    live: () => begin("caughtUp"),
    async unsubscribe() {
      isWanted = false;
      stop();
      if (!shared?.members.size) await shared?.settle();
    },
    deliver(original, message) {
      emit("message", message);
      core.saw(original.payload);
    },
    messages(how) {
      // No generator: return() must end a next() that waits.
      const early: Message<any>[] = []; // that come while the code is loaded
      const hear = early.push.bind(early);
      const loop = lazy(async () => {
        self.on("message", hear);
        return new (await core.part("reading")).Loop(self, options, how, early, hear);
      }, {}, ["next", "return"]);
      loop[Symbol.asyncIterator] = () => loop;
      return loop;
    },
    [Symbol.asyncIterator]: () => self.messages(),
    history: (how) => core.part("reading").then(({ readHistory }) => readHistory(core, self, options, how)),
    publish: (payload, how) => core.publish(name, payload, how),
    send: (payload, how) => core.send(name, payload, how),
  };
  onAbort(options.signal, () => finish(new SubscriptionError("aborted", "aborted", name)));
  return self;
}
