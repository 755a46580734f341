// Made from js/src by `npm run build` in js/: change it there. docs/javascript.md describes it.
/** Small functions that several modules share: requests to the server, pauses, callbacks. */
const DEFAULTS = { timeout: 15_000, retryDelay: 1_000, retryDelayMax: 15_000, publishTimeout: 60_000 };
/** Errors that are retried. "internal" is retried too, for a subscription that has worked before. */
const TRANSIENT = new Set(["database_unavailable", "authentication_unavailable", "rate_limited", "no_answer"]);
const NO_ANSWER = { code: "no_answer", message: "The server did not answer." };
/** Sends a request. Calls `answered` with the error, or with null and the answer. */
function request(socket, timeout, event, body, answered) {
    socket.timeout(timeout).emit(event, body, (failure, answer) => {
        if (failure)
            answered(NO_ANSWER);
        else
            answered(failureOf(answer), answer);
    });
}
/** Returns the error of an answer, or null. */
function failureOf(answer) {
    if (answer?.ok === true)
        return null;
    return { code: answer?.error?.code ?? "internal", message: answer?.error?.message ?? "" };
}
/** Returns the milliseconds before the next attempt. */
function backoff({ retryDelay, retryDelayMax }, attempt) {
    return Math.min(retryDelayMax, retryDelay * 2 ** attempt) * spread();
}
/** Returns a random factor, so that many clients do not retry at the same time. */
function spread() {
    return 0.5 + Math.random() / 2;
}
/** Waits, also when the time is zero. Ends early when `signal` is aborted. */
function pause(ms, signal) {
    return new Promise((resolve) => {
        const end = () => {
            clearTimeout(timer);
            signal.removeEventListener("abort", end);
            resolve();
        };
        const timer = setTimeout(end, ms);
        signal.addEventListener("abort", end);
    });
}
/** Returns a promise with the functions that settle it. */
function deferred() {
    const made = {};
    made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
    return made;
}
/** Calls a callback of the application. Rethrows its errors in a microtask, so that they do not affect the caller. */
function call(callback, ...values) {
    try {
        callback?.(...values);
    }
    catch (error) {
        queueMicrotask(() => { throw error; });
    }
}
/** Calls `end` when the signal is aborted, at once if it is already. Returns the function that ends that. */
function onAbort(signal, end) {
    if (signal?.aborted)
        end();
    else
        signal?.addEventListener("abort", end, { once: true });
    return () => signal?.removeEventListener("abort", end);
}

/** Listeners by event, and signals that remove them. */
class Emitter {
    #listeners = new Map();
    on(name, listener, { signal } = {}) {
        if (signal?.aborted)
            return this;
        const all = this.#listeners.get(name) ?? new Set();
        this.#listeners.set(name, all.add(listener));
        onAbort(signal, () => this.off(name, listener));
        this.listened(name);
        return this;
    }
    off(name, listener) {
        if (this.#listeners.get(name)?.delete(listener))
            this.listened(name);
        return this;
    }
    /** Returns whether somebody listens to the event. */
    hears(name) { return Boolean(this.#listeners.get(name)?.size); }
    /** A listener of the event was added or removed. */
    listened(_name) { }
    /** Calls the listeners. Returns whether there was one. */
    emit(name, value) {
        const all = this.#listeners.get(name);
        for (const listener of [...all ?? []])
            if (all.has(listener))
                call(listener, value);
        return this.hears(name);
    }
}

/** The errors: one class for each kind of failure, and a union by `code` for `switch`. */
/** What all errors of this library have. */
class SocketIoPgError extends Error {
    code;
    /** True when it is retried automatically. Otherwise what failed has ended. */
    retrying = false;
    constructor(name, code, message, options) {
        super(message, options);
        this.name = name;
        this.code = code;
    }
}
/** The server refused to publish a message, or the attempt was given up. */
class PublishError extends SocketIoPgError {
    channel;
    uncertain;
    /**
     * @param code one of docs/protocol.md, or "no_answer", or "closed": after `close()`
     * @param uncertain true when the message may have been published. Otherwise it was not
     */
    constructor(code, message, channel, uncertain) {
        super("PublishError", code, message);
        this.channel = channel;
        this.uncertain = uncertain;
    }
}
/** The server refused a subscription, or did not answer, or `load` failed. */
class SubscriptionError extends SocketIoPgError {
    channel;
    /**
     * @param code one of docs/protocol.md, or "no_answer" or "unsubscribed", or "load_failed": `load` failed
     * @param options `cause`: the error that `load` has thrown
     */
    constructor(code, message, channel, options) {
        super("SubscriptionError", code, message, options);
        this.channel = channel;
    }
}
/**
 * The server refused the connection, or the token could not be renewed before it expired.
 *
 * When the socket is connected, it is the renewal that failed. Nothing is lost then: the renewal is retried until the
 * token expires. The server then closes the connection, and the client reconnects with the token that `token` returns.
 */
class TokenError extends SocketIoPgError {
    /**
     * @param code one of docs/protocol.md, or "no_answer", or "no_token": the function `token` failed, or returned the
     *   old token again
     * @param options `cause`: the error that `token` has thrown
     */
    constructor(code, message, options) {
        super("TokenError", code, message, options);
    }
}

/** One user of a channel: its position in the log, and whether it receives the live messages after it. */
// Messages of NOTIFY that one handler holds while it loads rows.
const MAX_HELD = 1_000;
/** The state of one handler's subscription. */
class Member {
    place;
    handler;
    on;
    established = false; // the server has confirmed it once
    live = false;
    lostAt = 0; // ms: when the connection was lost, and with it messages of NOTIFY; 0: not lost
    isCurrent = false; // has been up to date on this connection
    ready = deferred();
    caughtUp = deferred();
    /** The epoch is "" while it is unknown: the log was installed after we subscribed. */
    position;
    /**
     * A start that is no position. A time counts until the server has answered with its position, the token of a
     * snapshot until the subscription is live: a message with a higher position may be in the snapshot.
     */
    start;
    history;
    // With `load`:
    isStale; // the rows must be loaded first
    isLoading = false;
    loads = 0; // 1 after it was current
    /** Messages of NOTIFY that arrived while it was stale. */
    held = [];
    heldTooMany = false;
    ended = new AbortController();
    constructor(place, handler, on) {
        this.place = place;
        this.handler = handler;
        this.on = on;
        const { since, history, load } = on;
        const place_ = since ? placeOf$1(since) : null;
        this.position = typeof place_ === "string" ? null : place_;
        this.start = typeof place_ === "string" ? place_ : null;
        this.isStale = Boolean(load && !place_);
        this.history = place_ || load ? 0 : history ?? 0;
        if (on.onError)
            this.ready.promise.catch(() => { }); // onError reports it
        this.caughtUp.promise.catch(() => { }); // `ready` reports it
    }
    get startsFromSnapshot() { return Boolean(this.start?.startsWith("snapshot:")); }
    get lacksEpoch() { return this.position?.epoch === ""; }
    learnEpoch(start) {
        if (this.lacksEpoch)
            this.position = start && { epoch: start.epoch, position: this.position?.position ?? 0 };
    }
    follows(start) {
        return this.position?.epoch === start.epoch && this.position.position >= start.position;
    }
    /** The position up to which the handler has got all messages. */
    get done() { return this.lacksEpoch || this.start ? null : this.position; }
    reportGap(gap) {
        call(this.on.onGap, { ...this.place, ...gap });
    }
    fail(error) {
        const { onError } = this.on;
        call(onError, error);
        if (error.retrying)
            return;
        this.end(error);
        if (this.established && !onError)
            call(() => { throw error; });
    }
    /** The subscription has ended. */
    end(error) {
        this.live = this.isCurrent = false;
        this.ended.abort();
        this.caughtUp.reject(error);
        if (!this.established)
            this.ready.reject(error);
        call(this.on.onState);
    }
    /** Delivers a message, or holds one of NOTIFY until the rows are there. */
    deliver(message) {
        if (!this.isStale)
            call(this.handler, message);
        else if (this.held.push(message) > MAX_HELD) {
            this.held.shift();
            this.heldTooMany = true;
        }
    }
    /** All messages up to `edge` were delivered. */
    becomeCurrent(edge) {
        this.start = null;
        this.loads = 1; // the next one is spread over some time: all clients may have missed messages at once
        if (edge) {
            this.learnEpoch(edge);
            if (!this.position || (this.position.epoch === edge.epoch && !this.follows(edge)))
                this.position = edge;
        }
        if (this.isCurrent)
            return;
        this.isCurrent = true;
        this.caughtUp.resolve();
        call(this.on.onState);
        call(this.on.onLive);
    }
    /** The messages so far are not enough: rows must be loaded. */
    becomeStale() {
        this.isStale = true;
        this.live = this.isCurrent = false;
        this.position = this.start = null;
        call(this.on.onState);
    }
    /** The rows are there, with the token of their snapshot. */
    accept({ rows, token }) {
        this.isStale = false;
        this.start = token;
        call(this.on.onRows, rows);
        const held = this.held.splice(0);
        if (this.ended.signal.aborted)
            return; // by onRows
        for (const message of held)
            call(this.handler, message);
        if (this.heldTooMany)
            this.reportGap({ tier: "notify", reason: "too_many_while_loading" });
        this.heldTooMany = false;
    }
}
function positionOf({ epoch, position }) {
    return typeof epoch === "string" && typeof position === "number" ? { epoch, position } : null;
}
/** Checks a `since`. Returns a position, or a string for the server: a time, or the token of a snapshot. */
function placeOf$1(since) {
    if (since instanceof Date)
        return since.toISOString();
    if (typeof since !== "string") {
        const position = positionOf(since);
        if (!position)
            throw new TypeError("since must be like {epoch: \"…\", position: 0}, a string or a Date");
        return position;
    }
    const [, epoch, position] = /^([0-9a-f-]{36}):(\d+)$/.exec(since) ?? [];
    return epoch ? { epoch, position: Number(position) } : since;
}

/** The presence of a channel as one part of the program uses it. `people.ts` is loaded when it is first used. */
const NOBODY = new Map();
class PresenceHandle extends Emitter {
    #core;
    #name;
    #onChange;
    #people = null;
    #opening = null;
    #isForwarding = false;
    constructor(core, name, onChange) {
        super();
        this.#core = core;
        this.#name = name;
        this.#onChange = onChange;
    }
    get members() { return this.#people?.members ?? NOBODY; }
    get count() { return this.#people?.count ?? 0; }
    get complete() { return this.#people?.complete ?? false; }
    get key() { return this.#people?.key ?? null; }
    watch() { return this.#open().then((people) => people.ready); }
    join(state, { key, signal } = {}) {
        onAbort(signal, () => this.leave());
        return this.#open().then((people) => people.join(state, { key }));
    }
    update(state) { return this.#open().then((people) => people.update(state)); }
    leave() { return this.#open().then((people) => people.leave()); }
    close() {
        this.#opening?.then((people) => people.close());
        this.#opening = this.#people = null;
    }
    /** The channel has a listener to `presence`, or none any more. */
    forward(isWanted) {
        this.#isForwarding = isWanted;
        this.#update();
    }
    listened() { this.#update(); }
    #update() {
        const isUsed = this.#isForwarding || ["join", "update", "leave", "sync"].some((name) => this.hears(name));
        if (isUsed)
            this.#open();
    }
    #open() {
        return this.#opening ??= this.#core.part("people").then(({ watch }) => {
            const made = watch(this.#core.hub, this.#core.hub.shared({ channel: this.#name }), {
                onJoin: (member) => {
                    this.emit("join", member);
                    this.#onChange({ kind: "join", member });
                },
                onUpdate: (member, before) => {
                    this.emit("update", { member, before });
                    this.#onChange({ kind: "update", member, before });
                },
                onLeave: (member) => {
                    this.emit("leave", member);
                    this.#onChange({ kind: "leave", member });
                },
                onSync: (members) => this.emit("sync", members),
                onError: (error) => { if (!this.emit("error", error))
                    this.#core.fail(error); },
            });
            this.#people = made;
            return made;
        });
    }
}

/** Checks payloads with the application's schemas. */
/** Returns the checked value or what is wrong with it; a promise if the schema needs time. */
function check(schema, value) {
    try {
        const found = "~standard" in schema ? schema["~standard"].validate(value) : { value: schema.parse(value) };
        return found instanceof Promise ? found.catch(wrong) : found;
    }
    catch (cause) {
        return wrong(cause);
    }
}
function wrong(cause) {
    return { issues: cause?.issues ?? [{ message: String(cause?.message ?? cause) }], cause };
}
/** Returns the schema of a channel: under its own name, or the first key that stands for it. */
function schemaFor(schemas, name) {
    if (!schemas)
        return undefined;
    // Not one that all objects inherit: a channel may be called "constructor".
    const key = Object.hasOwn(schemas, name) ? name : Object.keys(schemas).find((one) => matches(one, name));
    return key === undefined ? undefined : schemas[key];
}
/** Returns whether a name is one of `"orders:*"`, `"orders:${number}"` or `"orders:${string}"`. */
function matches(key, name) {
    const parts = key.split(/\*|\$\{string\}|(\$\{number\})/).map((part, index) => (index % 2 ? (part ? "-?[\\d.]+(?:e[-+]?\\d+)?" : ".*") : part.replace(/[^\w]/g, "\\$&")));
    return new RegExp(`^${parts.join("")}$`, "s").test(name);
}

/** A channel or pattern as one part of the program uses it. */
/** Events that need the subscription. */
const LASTING = ["message", "gap", "rows", "ephemeral"];
const IDLE = { status: "idle", code: "idle", reason: "" };
class ChannelHandle extends Emitter {
    name;
    #core;
    #place;
    #options;
    #shared = null;
    #member = null;
    #state = IDLE;
    #isWanted = false; // by subscribe()
    #isStopped = false; // by unsubscribe(): listeners that are still there do not count
    #final = null;
    #retry = null;
    #loops = new Set();
    #presence = null;
    #schema;
    /** With a schema that needs time: the end of the checks so far, and the position before them. */
    #checks = null;
    #checked = null;
    constructor(core, place, options) {
        super();
        this.#core = core;
        this.#place = place;
        this.#options = options;
        this.name = (place.pattern ?? place.channel);
        this.#schema = options.schema ?? schemaFor(core.options.schemas, this.name);
        new Member(place, () => { }, options); // throws if `since` is none
        onAbort(options.signal, () => this.#end(new SubscriptionError("aborted", "the signal was aborted", this.name)));
    }
    get state() { return this.#state; }
    get position() { return this.#checks ? this.#checked : this.#member?.done ?? null; }
    get maxRate() { return this.#shared?.maxRate ?? null; }
    get presence() {
        return this.#presence ??= new PresenceHandle(this.#core, this.name, (change) => this.emit("presence", change));
    }
    subscribe() {
        this.#isWanted = true;
        this.#isStopped = false;
        this.#final = null;
        this.#start();
        return this.#member?.ready.promise ?? Promise.reject(this.#final);
    }
    async live() {
        await this.subscribe();
        await this.#member?.caughtUp.promise;
    }
    listened(name) {
        if (name === "presence")
            this.presence.forward(this.hears(name));
        if (!LASTING.includes(name))
            return;
        if (this.hears(name))
            this.#isStopped = false;
        this.#update();
    }
    /** Starts at once, and ends in a microtask, if nobody has begun to listen again by then. */
    #update() {
        if (this.#isUsed)
            this.#start();
        else
            queueMicrotask(() => { if (!this.#isUsed)
                this.#stop(); });
    }
    get #isUsed() {
        return !this.#isStopped && (this.#isWanted || this.#loops.size > 0 || LASTING.some((name) => this.hears(name)));
    }
    #start() {
        if (this.#member || this.#final)
            return;
        const { since, history, filter, load } = this.#options;
        const member = new Member(this.#place, (message) => this.#receive(message), {
            since, history, filter, load,
            onRows: (rows) => this.emit("rows", rows),
            onGap: (gap) => this.emit("gap", gap),
            onEphemeral: (message) => this.emit("ephemeral", message),
            onError: (error) => this.#fail(error),
            onState: () => this.#changed(),
        });
        if (this.#core.closed) {
            this.#end(this.#core.closed);
            return;
        }
        try {
            this.#shared = this.#core.hub.shared(this.#place);
            this.#shared.add(member);
            this.#member = member;
            this.#changed();
        }
        catch (error) {
            const found = new SubscriptionError("conflicting_filter", error.message, this.name);
            this.#end(found);
            queueMicrotask(() => this.#fail(found));
        }
    }
    #stop() {
        const member = this.#member;
        this.#member = null;
        if (member)
            this.#shared.remove(member);
        for (const loop of this.#loops)
            loop.end();
        this.#changed();
    }
    /** Ends for good, unless `subscribe()` is called. */
    #end(error) {
        this.#final = error;
        this.#stop();
    }
    async unsubscribe() {
        this.#isWanted = false;
        this.#isStopped = true;
        this.#stop();
        if (!this.#shared?.members.size)
            await this.#shared?.settle();
    }
    #fail(error) {
        if (error.retrying)
            this.#retry = error;
        else
            this.#final = error;
        const heard = this.emit("error", error);
        this.#changed();
        if (!heard)
            this.#core.fail(error, !this.#isWanted);
    }
    /** Reports the state if it is another one. */
    #changed() {
        const state = this.#find();
        const { status, code } = this.#state;
        if (status === state.status && code === state.code)
            return;
        this.#state = state;
        this.emit("state", state);
    }
    #find() {
        const member = this.#member;
        const error = this.#final ?? (member ? this.#core.closed : null);
        if (error) {
            this.#member = null;
            for (const loop of this.#loops)
                loop.end(error);
            return { status: "ended", code: error.code, reason: error.message };
        }
        if (!member)
            return IDLE;
        if (member.live) {
            this.#retry = null;
            const status = member.isCurrent ? "live" : "subscribed";
            return { status, code: status, reason: "" };
        }
        const status = member.established || this.#retry ? "reconnecting" : "subscribing";
        return { status, code: this.#retry?.code ?? status, reason: this.#retry?.message ?? "" };
    }
    // --- Messages ---
    #receive(message) {
        if (!this.#schema) {
            this.#deliver(message, message);
            return;
        }
        const checked = check(this.#schema, message.payload);
        if (!this.#checks && !(checked instanceof Promise)) {
            this.#pass(message, checked);
            this.#checked = this.position;
            return;
        }
        const member = this.#member;
        const place = member?.done ?? null;
        const checks = (this.#checks ?? Promise.resolve()).then(() => checked).then((found) => {
            this.#checked = place;
            if (this.#member === member)
                this.#pass(message, found);
            if (this.#checks === checks)
                this.#checks = null;
        });
        this.#checks = checks;
    }
    #pass(message, checked) {
        if (!checked.issues)
            this.#deliver(message, { ...message, payload: checked.value });
        else
            this.emit("invalid", { ...checked, message });
    }
    #deliver(original, message) {
        this.emit("message", message);
        for (const loop of this.#loops)
            loop.add(message);
        this.#core.saw(original.payload);
    }
    messages({ signal, buffer = this.#options.buffer ?? 1_000 } = {}) {
        const loop = new Loop(buffer, signal, (dropped) => {
            this.emit("gap", { ...this.#place, tier: "buffer", reason: "buffer_full", dropped });
        }, () => {
            this.#loops.delete(loop);
            this.#update();
        });
        if (!signal?.aborted) {
            this.#isStopped = false;
            this.#loops.add(loop);
            this.#start();
            if (this.#final)
                loop.end(this.#final);
        }
        return loop;
    }
    [Symbol.asyncIterator]() { return this.messages(); }
    async history(options = {}) {
        const how = typeof options === "number" ? { limit: options } : options;
        const { read } = await this.#core.part("history");
        const found = await read(this.#core, this.#place, this.#options.filter, how);
        if (!this.#schema)
            return found;
        const kept = await Promise.all(found.map(async (message) => [message, await check(this.#schema, message.payload)]));
        return kept.flatMap(([message, checked]) => {
            if (!checked.issues)
                return { ...message, payload: checked.value };
            this.emit("invalid", { ...checked, message });
            return [];
        });
    }
    publish(payload, options) {
        return this.#core.publish(this.name, payload, options);
    }
    send(payload, options) {
        this.#core.send(this.name, payload, options);
    }
}
/** The messages of a channel for a loop. */
class Loop {
    #buffer = [];
    #dropped = 0;
    #size;
    #onDrop;
    #onEnd;
    #isEnded = false;
    #error;
    #wake = [];
    #forget;
    constructor(size, signal, onDrop, onEnd) {
        this.#size = size;
        this.#onDrop = onDrop;
        this.#onEnd = onEnd;
        this.#forget = () => { };
        this.#forget = onAbort(signal, () => this.end());
    }
    add(message) {
        if (this.#buffer.push(message) > this.#size) {
            this.#buffer.shift();
            this.#dropped++;
        }
        this.#wake.shift()?.();
    }
    /** No more messages come. The loop gets those that it has not taken yet, then the error if there is one. */
    end(error) {
        if (this.#isEnded)
            return;
        this.#isEnded = true;
        this.#error = error;
        this.#forget();
        for (const wake of this.#wake.splice(0))
            wake();
        queueMicrotask(this.#onEnd);
    }
    async next() {
        while (!this.#buffer.length && !this.#isEnded)
            await new Promise((resolve) => this.#wake.push(resolve));
        const dropped = this.#dropped;
        this.#dropped = 0;
        if (dropped)
            this.#onDrop(dropped);
        if (this.#buffer.length)
            return { value: this.#buffer.shift(), done: false };
        const error = this.#error;
        this.#error = null;
        if (error)
            throw error;
        return { value: undefined, done: true };
    }
    async return() {
        this.#buffer = [];
        this.end();
        return { value: undefined, done: true };
    }
    [Symbol.asyncIterator]() { return this; }
}

/** Requests of many channels in few messages to the server. */
// Limits of one request for many channels: the server allows 500, and limits the bytes.
const MAX_TOGETHER = 250;
const MAX_CHARACTERS = 100_000;
// ms for which a retry waits for those of other channels, to share a request with them.
const JOIN_DELAY = 20;
/**
 * Sends the requests of channels. Requests that are made in the same task are sent together, up to 250 at a time: after
 * a reconnect, one for each channel would exceed the server's limit of events.
 */
class Requests {
    #socket;
    #options;
    #onLate;
    #waiting = [];
    #timer;
    /** The failures of requests that await their answers. */
    #pending = new Set();
    #alone = ""; // the id of the connection to a server that takes one channel at a time: an older version
    /** @param onLate called with an answer that comes after the timeout */
    constructor(socket, options, onLate) {
        this.#socket = socket;
        this.#options = options;
        this.#onLate = onLate;
    }
    /** Calls `answered` with the error, or with null and the answer. `retry`: it was sent before. */
    send(event, body, retry, answered) {
        this.#waiting.push({ event, body, answered });
        if (retry)
            this.#timer ??= setTimeout(() => this.#flush(), JOIN_DELAY);
        else
            queueMicrotask(() => this.#flush());
    }
    /** Fails all requests, because the connection is lost. */
    lose() {
        for (const fail of [...this.#pending])
            fail();
        this.#flush();
    }
    #flush() {
        clearTimeout(this.#timer);
        this.#timer = undefined;
        const waiting = this.#waiting.splice(0);
        if (!this.#socket.connected)
            for (const { answered } of waiting)
                answered(NO_ANSWER);
        else
            for (const event of ["subscribe", "unsubscribe"])
                this.#send(waiting.filter((one) => one.event === event));
    }
    /** Sends requests for one event, one part after the other. */
    async #send(requests) {
        const { id } = this.#socket;
        for (const part of parts(requests)) {
            if (this.#socket.id !== id)
                for (const { answered } of part)
                    answered(NO_ANSWER);
            else if (part.length === 1 || this.#alone === id)
                this.#sendAlone(part);
            else
                await this.#sendTogether(part);
        }
    }
    #sendAlone(part) {
        for (const { event, body, answered } of part)
            request(this.#socket, this.#options.timeout, event, body, answered);
    }
    #sendTogether(part) {
        const { id } = this.#socket;
        const [{ event }] = part;
        const channels = part.map(({ body }) => (event === "subscribe" || body.pattern ? body : body.channel));
        return new Promise((resolve) => {
            const finish = (failure, results) => {
                clearTimeout(timer);
                this.#pending.delete(fail);
                if (failure?.code.startsWith("invalid_") && this.#socket.id === id) {
                    this.#alone = id;
                    this.#sendAlone(part);
                }
                else {
                    part.forEach(({ answered }, index) => answered(failure ?? failureOf(results?.[index]), results?.[index]));
                }
                resolve();
            };
            const fail = () => finish(NO_ANSWER);
            const timer = setTimeout(fail, this.#options.timeout);
            this.#pending.add(fail);
            this.#socket.emit(event, { channels }, (answer) => {
                if (this.#pending.has(fail))
                    finish(failureOf(answer), answer?.channels);
                else if (event === "subscribe" && answer?.channels)
                    this.#onLate(answer);
            });
        });
    }
}
/** Divides requests into parts that are small enough for one request. */
function parts(requests) {
    const found = [];
    let characters = 0;
    for (const one of requests) {
        const size = JSON.stringify(one.body).length;
        characters += size;
        if (!found.length || found[found.length - 1].length === MAX_TOGETHER || characters > MAX_CHARACTERS) {
            found.push([]);
            characters = size;
        }
        found[found.length - 1].push(one);
    }
    return found;
}

/** One channel or pattern of a connection, shared by all its users: which request comes next, and what answers mean. */
/** Changes the server's subscription to what is needed, with one request at a time. */
class Shared {
    place;
    members = new Set();
    name;
    presence = null;
    maxRate = null;
    /** The newest message, of a channel with retained messages: the server sends it to a client once, not to each user. */
    #retained = null;
    #combines = true; // presence is requested together with messages, unless the server has refused that
    #socket;
    #requests;
    #options;
    #all;
    #filter = null;
    #open = false; // the server has a subscription, as far as we know
    #awaited = ""; // the event whose answer is pending
    #settling = null;
    #wake = null;
    /** @param all the channels, or patterns, in use; an unused one removes itself */
    constructor(place, socket, requests, options, all) {
        this.place = place;
        this.name = (place.pattern ?? place.channel);
        this.#socket = socket;
        this.#requests = requests;
        this.#options = options;
        this.#all = all;
    }
    /** @throws {TypeError} when other users have another filter */
    add(member) {
        const filter = member.on.filter ?? null;
        if (!this.members.size)
            this.#filter = filter;
        else if (JSON.stringify(filter) !== JSON.stringify(this.#filter)) {
            throw new TypeError(`another handler of ${this.name} has another filter: the server keeps one for each client`);
        }
        this.members.add(member);
        if (member.isStale)
            this.#load(member);
        this.use();
    }
    remove(member) {
        if (!this.members.delete(member))
            return;
        member.ready.promise.catch(() => { }); // not an unhandled rejection: the application unsubscribed itself
        member.end(new SubscriptionError("unsubscribed", "unsubscribed before the server answered", this.name));
        this.settle();
    }
    /** Something has begun to use this object. */
    use() {
        this.#all.set(this.name, this);
        this.settle();
    }
    /**
     * Calls the application's `load` until it succeeds. The server then replays what is not in the rows, or says that
     * their token is too old. Never two at once for one handler.
     */
    async #load(one) {
        one.becomeStale();
        if (one.isLoading)
            return;
        one.isLoading = true;
        const { signal } = one.ended;
        while (one.isStale) {
            if (one.loads++)
                await pause(backoff(this.#options, one.loads - 2), signal);
            if (signal.aborted)
                return;
            try {
                const loaded = await one.on.load({ signal });
                if (signal.aborted)
                    return;
                if (typeof loaded?.token !== "string" || !loaded.token)
                    throw new TypeError("load must return {rows, token}");
                one.accept(loaded);
            }
            catch (cause) {
                if (signal.aborted)
                    return;
                const message = `Loading failed: ${cause?.message ?? cause}`;
                const error = new SubscriptionError("load_failed", message, this.name, { cause });
                error.retrying = true;
                one.fail(error);
            }
        }
        one.isLoading = false;
        this.settle();
    }
    settle() {
        this.#wake?.();
        this.#settling ??= this.#settle();
        return this.#settling;
    }
    async #settle() {
        await null; // so that subscriptions made in the same task share a request
        let next;
        let attempt = 0;
        while (this.#socket.connected && (next = this.#next())) {
            const { id } = this.#socket;
            const error = await this.#send(next, attempt > 0);
            if (!error)
                attempt = 0;
            else if (this.#socket.id === id && this.#fail(error, next))
                await this.#sleep(attempt++);
        }
        this.#settling = null;
        if (!this.#isUsed && !this.#open && this.#all.get(this.name) === this)
            this.#all.delete(this.name);
    }
    get #isUsed() { return this.members.size > 0 || Boolean(this.presence?.wish); }
    /** Returns the next request and the members that need it (`requesters`); null when there is nothing to do. */
    #next() {
        if (!this.#isUsed)
            return this.#open ? { event: "unsubscribe", body: {}, requesters: [] } : null;
        const presence = this.presence?.next();
        const next = this.#nextForMembers();
        if (!next)
            return presence ? { ...presence, requesters: [] } : null;
        if (presence?.event === "subscribe" && this.#combines)
            Object.assign(next.body, presence.body);
        return next;
    }
    #nextForMembers() {
        const members = [...this.members];
        if (members.some((one) => one.live && one.startsFromSnapshot))
            return null; // see #accept
        const waiting = members.filter((one) => !one.isStale && (!one.live || one.lacksEpoch));
        if (!waiting.length)
            return null;
        // Members with a position come first, from the lowest position on: a replay that starts later, for a new member's
        // history, would move the live messages past them.
        const places = waiting.flatMap((one) => (one.position && !one.lacksEpoch && !one.start ? [one.position] : []));
        if (places.length) {
            const [{ epoch }] = places;
            const since = places.filter((place) => place.epoch === epoch).reduce((a, b) => (b.position < a.position ? b : a));
            const requesters = waiting.filter(({ position, start }) => !start && position?.epoch === epoch && position.position === since.position);
            return { event: "subscribe", body: { since }, requesters };
        }
        const since = waiting.find((one) => one.start)?.start;
        if (since)
            return { event: "subscribe", body: { since }, requesters: waiting.filter((one) => one.start === since) };
        const { history } = waiting.find((one) => !one.history) ?? waiting[0];
        const requesters = waiting.filter((one) => (history ? one.history === history : !one.history));
        return { event: "subscribe", body: history ? { history } : {}, requesters };
    }
    /** Returns the error, or null. */
    #send({ event, body, requesters }, retry) {
        this.#awaited = event;
        const sent = { ...this.place, ...body };
        if (event === "subscribe") {
            this.#open = true;
            if (this.#filter)
                sent.filter = this.#filter;
            if (this.#options.numbers)
                sent.numbers = this.#options.numbers;
        }
        return new Promise((resolve) => {
            const answered = (failure, answer) => {
                this.#awaited = "";
                // Here, not after the promise: messages that follow the answer may be handled before the promise resolves.
                if (!failure && event === "subscribe")
                    this.#accept(answer, body, requesters);
                else if (!failure && event === "unsubscribe")
                    this.#close();
                if (!failure && isForPresence(event, body))
                    this.presence?.accept(event, body, answer);
                resolve(failure && new SubscriptionError(failure.code, failure.message, this.name));
            };
            if (event.startsWith("presence"))
                request(this.#socket, this.#options.timeout, event, sent, answered);
            else
                this.#requests.send(event, sent, retry, answered);
        });
    }
    /** The server has confirmed the subscription; with `since` or `history`, it replays the log after `start`. */
    #accept(answer, { since, history }, requesters) {
        this.#open = true;
        const wasLive = new Set([...this.members].filter((one) => one.live));
        const start = positionOf(answer);
        this.maxRate = answer.max_rate ?? null;
        const lost = answer.recovered === false;
        const given = typeof since === "string"; // a time or a snapshot
        for (const one of this.members)
            one.learnEpoch(start);
        if (start && !lost && (since || history)) {
            for (const one of this.members) {
                if (one.live)
                    one.position ??= start; // subscribed before the log was installed
                if (one.position && !one.start)
                    one.live = one.follows(start);
            }
        }
        for (const one of requesters) {
            if (!this.members.has(one) || one.live || (given && one.start !== since))
                continue;
            if (lost && one.on.load && answer.reason !== "history_off") {
                this.#load(one);
                continue;
            }
            // Not if a gap has moved it since the request: it then requests what follows its new position.
            one.live = lost || !since || given || one.follows(since);
            if (lost || !since) {
                const installed = one.established && !one.position && start;
                one.position = start;
                one.start = null;
                one.history = 0;
                if (lost)
                    one.reportGap({ tier: "log", reason: answer.reason, ...start });
                else if (installed)
                    one.reportGap({ tier: "log", reason: "client_disconnected", ...start });
            }
            else if (given) {
                one.position ??= start;
                if (!one.startsFromSnapshot)
                    one.start = null;
            }
        }
        // The server leaves out the messages that are in the snapshot, which the other handlers need: they wait until this
        // is done, and then get a replay of their own.
        if (requesters.some((one) => one.live && one.startsFromSnapshot)) {
            for (const one of this.members)
                if (!requesters.includes(one))
                    one.live = false;
        }
        for (const one of this.members)
            if (one.live && !wasLive.has(one))
                this.#confirm(one);
        if (this.#retained && this.#retained.payload !== null && wasLive.size && !since && !history) {
            for (const one of requesters)
                if (one.live)
                    one.deliver({ ...this.#retained, retained: true });
        }
        // Otherwise the server reports when the replay has caught up.
        if ((!since && !history) || !this.#options.sendsLive) {
            for (const one of requesters)
                if (one.live)
                    one.becomeCurrent(null);
        }
    }
    #confirm(one) {
        one.established = true;
        one.ready.resolve();
        call(one.on.onState);
        call(one.on.onSubscribed);
        if (!one.lostAt)
            return;
        const [since, until] = [new Date(one.lostAt).toISOString(), new Date().toISOString()];
        one.lostAt = 0;
        one.reportGap({ tier: "notify", reason: "client_disconnected", since, until });
    }
    #close() {
        this.#open = false;
        this.presence?.lose();
    }
    /** Reports the error. Returns whether to wait before the next request. */
    #fail(error, { event, body, requesters }) {
        const members = requesters.filter((one) => this.members.has(one));
        const forPresence = isForPresence(event, body);
        const worked = members.some((one) => one.established) || (forPresence && this.presence?.worked);
        error.retrying = TRANSIENT.has(error.code) || (error.code === "internal" && Boolean(worked));
        if (!error.retrying && forPresence && requesters.length) {
            this.#combines = false; // the next requests tell which of both the server refuses
            return false;
        }
        if (forPresence)
            this.presence?.fail(error, event, body);
        if (!error.retrying && event === "unsubscribe")
            this.#close();
        this.#report(error, members);
        return error.retrying;
    }
    #report(error, members) {
        for (const one of error.retrying ? [] : members)
            this.members.delete(one);
        for (const one of members)
            one.fail(error);
    }
    /** Waits before the next attempt, or until something changes. */
    #sleep(attempt) {
        return new Promise((resolve) => {
            // At one of few moments, so that the retries of many channels share a request.
            const slot = Math.max(1, this.#options.retryDelay / 4);
            const end = Math.ceil((Date.now() + backoff(this.#options, attempt)) / slot) * slot;
            const timer = setTimeout(resolve, end - Date.now());
            this.#wake = () => {
                clearTimeout(timer);
                resolve();
            };
        }).finally(() => { this.#wake = null; });
    }
    // --- Events from the server ---
    /** The server's subscription is lost; `at` (ms) is when it was last known to be alive. */
    lose(at) {
        this.#close();
        for (const one of this.members) {
            one.live = one.isCurrent = false;
            one.learnEpoch(null);
            if (one.established)
                one.lostAt ||= at;
            call(one.on.onState);
        }
        this.settle();
    }
    receive(message) {
        const { position } = message;
        if (message.retained || (this.#retained && position > this.#retained.position))
            this.#retained = message;
        for (const one of [...this.members]) {
            if (!this.members.has(one) || !one.established)
                continue; // ended by another handler of this message
            if (position !== undefined) {
                // It will be replayed, or was already delivered.
                if (!one.live || (one.position && position <= one.position.position))
                    continue;
                one.position = { epoch: one.position?.epoch ?? "", position };
                if (one.lacksEpoch)
                    this.settle();
                else
                    message.epoch = one.position.epoch;
            }
            one.deliver(message);
        }
    }
    receiveEphemeral(message) {
        for (const one of [...this.members])
            if (this.members.has(one) && one.established)
                call(one.on.onEphemeral, message);
    }
    /** The server has replayed everything: what follows are live messages. */
    receiveLive(edge) {
        for (const one of this.members)
            if (one.live)
                one.becomeCurrent(positionOf(edge));
        this.settle();
    }
    receiveGap(gap) {
        const concernsLog = "position" in gap;
        if (concernsLog)
            this.#retained = null;
        for (const one of concernsLog ? this.#missing(gap) : [...this.members].filter((each) => each.established)) {
            if (concernsLog && one.on.load) {
                this.#load(one);
                continue;
            }
            // Also to a lower position: the log may have begun again, in the same epoch too.
            if (concernsLog)
                [one.position, one.start] = [positionOf(gap), null];
            one.reportGap({ tier: concernsLog ? "log" : "notify", ...gap });
        }
    }
    /**
     * Returns the members that miss messages of the log. With "trimmed" these are the ones before the gap's position: the
     * replay may have begun for one that was behind the others. If there are none, all members get the gap.
     */
    #missing(gap) {
        const all = [...this.members].filter((one) => one.established);
        const start = positionOf(gap);
        const behind = gap.reason === "trimmed" && start ? all.filter((one) => !one.follows(start)) : [];
        return behind.length ? behind : all;
    }
    /** Handles the answer to a request that timed out or that the application sent: another replay may have started. */
    checkSubscribed(body) {
        const start = positionOf(body);
        if (this.#awaited === "subscribe" || !start)
            return;
        for (const one of this.members) {
            one.learnEpoch(start);
            if (one.live && one.position && !one.start)
                one.live = one.follows(start);
        }
        this.settle();
    }
    /** Handles the end of a subscription that is no longer allowed, or that the application ended with its own request. */
    checkUnsubscribed({ reason }) {
        if (reason) {
            this.#open = false;
            const why = reason === "forbidden" ? "it is no longer allowed" : reason;
            const error = new SubscriptionError(reason, `The server has ended the subscription: ${why}.`, this.name);
            this.#report(error, [...this.members]);
            this.presence?.end(error);
            this.settle();
        }
        else if (this.#awaited !== "unsubscribe") {
            this.lose(Date.now());
        }
    }
}
/** Returns whether a request changes or asks for presence. */
function isForPresence(event, body) {
    return event.startsWith("presence") || "presence" in body;
}

/** What a connection carries: its channels and patterns, and the parts that follow it. Distributes the server's events. */
class Hub {
    socket;
    events;
    channels = new Map();
    patterns = new Map();
    options;
    health = null;
    heard = Date.now(); // when the server last sent something, in ms
    /** Of the server, on this connection; null before `server_hello`. */
    features = null;
    #requests;
    #parts = new Set();
    /** The last event `error` on this connection. */
    #lastError = { code: "", message: "" };
    constructor(socket, options, events) {
        this.socket = socket;
        this.events = events;
        this.options = { ...DEFAULTS, ...options, sendsLive: true };
        this.#requests = new Requests(socket, this.options, this.#events.subscribed);
        this.#listen("on", this.#events);
        socket.io.on("ping", this.hear);
    }
    /** Adds a part, which hears of the connection from now on. */
    add(part) {
        this.#parts.add(part);
        this.#listen("on", part.events);
        if (this.features)
            part.open?.(this.features);
        return part;
    }
    remove(part) {
        this.#parts.delete(part);
        this.#listen("off", part.events);
    }
    /** Returns the object that all users of a channel or pattern share. */
    shared(place) {
        const all = place.pattern === undefined ? this.channels : this.patterns;
        return all.get((place.pattern ?? place.channel))
            ?? new Shared(place, this.socket, this.#requests, this.options, all);
    }
    all() { return [...this.channels.values(), ...this.patterns.values()]; }
    /** Ends all subscriptions and detaches from the socket, which stays connected. */
    close() {
        for (const part of [...this.#parts]) {
            part.close?.();
            this.remove(part);
        }
        this.#listen("off", this.#events);
        this.socket.io.off("ping", this.hear);
        for (const shared of this.all())
            for (const member of shared.members)
                shared.remove(member);
    }
    #listen(method, events = {}) {
        for (const [event, listener] of Object.entries(events))
            this.socket[method](event, listener);
    }
    /** Returns those that an event of the server is for. */
    #named({ channel, pattern, matches = [pattern ?? channel] }) {
        return matches.flatMap((name) => (name?.includes("*") ? this.patterns : this.channels).get(name) ?? []);
    }
    #report(health) {
        if (!health || JSON.stringify(health) === JSON.stringify(this.health))
            return;
        this.health = health;
        call(this.events.onHealth, health);
    }
    hear = () => { this.heard = Date.now(); };
    #events = {
        connect: () => {
            this.hear();
            this.#lastError = { code: "disconnected", message: "The server has ended the connection." };
            for (const shared of this.all())
                shared.settle();
        },
        error: ({ code, message }) => { this.#lastError = { code, message }; },
        disconnect: (reason) => {
            this.features = null;
            this.#requests.lose();
            for (const part of this.#parts)
                part.lose?.();
            for (const shared of this.all())
                shared.lose(this.heard);
            if (reason === "io server disconnect")
                call(this.events.onEnded, this.#lastError);
        },
        event: (message) => {
            this.hear();
            if (message.table)
                return; // for tables.ts
            if (message.ephemeral)
                this.channels.get(message.channel)?.receiveEphemeral(message);
            else
                for (const shared of this.#named(message))
                    shared.receive(message);
        },
        server_hello: ({ health, features = [] }) => {
            this.features = features;
            this.options.sendsLive = features.includes("live");
            for (const part of this.#parts)
                part.open?.(features);
            this.#report(health);
        },
        health: (health) => this.#report(health),
        gap: (gap) => this.#named(gap).forEach((one) => one.receiveGap(gap)),
        live: (edge) => {
            if (!edge.table)
                for (const shared of this.#named(edge))
                    shared.receiveLive(edge);
        },
        subscribed: (body) => {
            for (const one of resultsOf(body))
                for (const shared of this.#named(one))
                    shared.checkSubscribed(one);
        },
        unsubscribed: (body) => {
            for (const one of resultsOf(body))
                for (const shared of this.#named(one))
                    shared.checkUnsubscribed(one);
        },
        direct: (message) => {
            this.hear();
            call(this.events.onDirect, message);
        },
    };
}
/** Returns the results in the body of `subscribed` or `unsubscribed`: one, or one for each channel. None for tables. */
function resultsOf(body) {
    if (body.table)
        return [];
    return body.channels ? body.channels.filter((one) => one.ok) : [body];
}

/** The stock client in the single file: the global `io`, which `/static/vendor/socket.io.min.js` sets. */
const io = ((...values) => {
    const { io: found } = globalThis;
    if (!found)
        throw new TypeError("load the Socket.IO client first, or pass a socket in place of the address");
    return found(...values);
});

/** Sends the application's token to the server with each connection, and renews it before it expires. */
// Refused tokens in a row before giving up: a token can expire on its way, or be newer than the server's clock.
const MAX_REFUSALS = 3;
// ms over which renewals are spread. The server warns 30 s before a token expires, and many tokens may expire together.
const RENEWAL_SPREAD = 10_000;
class Login {
    #socket;
    #options;
    #login;
    #token; // the last that was sent; null: connected without one
    #failures = 0; // in a row
    #refusals = 0; // failures because of the token
    #timer;
    constructor(socket, options, login) {
        this.#socket = socket;
        this.#options = options;
        this.#login = login;
        socket.auth ??= (send) => this.connect(send);
        socket.io.on("close", this.#closed);
    }
    close() {
        this.#rest();
        this.#socket.io.off("close", this.#closed);
    }
    events = {
        connect: () => this.#rest(),
        authenticated: () => this.#rest(), // the application may have sent it
        disconnect: () => this.#rest(),
        connect_error: (error) => {
            if (this.#socket.active)
                return; // a network error: the stock client reconnects automatically
            const code = error.data?.code ?? "refused";
            const again = code === "unauthorized" ? ++this.#refusals < MAX_REFUSALS && this.#token !== null
                : TRANSIENT.has(code);
            this.#fail(new TokenError(code, error.message), again && this.#reconnect);
        },
        token_expiring: ({ expires_at: end }) => {
            // Limits how often tokens are renewed that live shorter than the server's warning period.
            const soon = (Date.parse(end) - Date.now()) / 3;
            const delay = Math.min(RENEWAL_SPREAD, Math.max(this.#options.retryDelay, soon));
            this.#later(delay * spread(), () => this.#renew());
        },
    };
    // The application called disconnect() while not connected: do not reconnect. No other event reports this call.
    #closed = (reason) => {
        if (reason === "forced close" && !this.#socket.active)
            clearTimeout(this.#timer);
    };
    #reconnect = () => {
        if (!this.#socket.active)
            this.#socket.connect(); // unless the application has already done it
    };
    #rest() {
        clearTimeout(this.#timer);
        this.#failures = this.#refusals = 0;
    }
    #later(delay, what) {
        clearTimeout(this.#timer);
        this.#timer = setTimeout(what, delay);
    }
    async #fetch() {
        try {
            return (await this.#login.token()) ?? null;
        }
        catch (cause) {
            throw new TokenError("no_token", `Getting a token failed: ${cause?.message ?? cause}`, { cause });
        }
    }
    /** The stock client's `auth` function: calls `send` with the data for the server. The connection waits for it. */
    async connect(send) {
        const { engine } = this.#socket.io;
        const inTime = () => this.#socket.active && this.#socket.io.engine === engine;
        try {
            const token = await this.#fetch();
            if (!inTime())
                return; // the next connection calls `auth` again
            this.#token = token;
            send(token === null ? {} : { token });
        }
        catch (error) {
            if (!inTime())
                return;
            this.#socket.disconnect();
            this.#fail(error, this.#reconnect);
        }
    }
    async #renew() {
        const { id } = this.#socket;
        try {
            const token = await this.#fetch();
            if (this.#socket.id !== id)
                return;
            if (token === this.#token)
                throw new TokenError("no_token", "`token` returned the old token again.");
            await new Promise((resolve, reject) => {
                request(this.#socket, this.#options.timeout, "authenticate", { token }, (failure) => {
                    if (failure)
                        reject(new TokenError(failure.code, failure.message));
                    else
                        resolve();
                });
            });
            this.#token = token;
        }
        catch (error) {
            if (this.#socket.id === id)
                this.#fail(error, () => this.#renew());
        }
    }
    /** Reports the error, and schedules `again` if it is a function. */
    #fail(error, again) {
        error.retrying = Boolean(again);
        // Scheduled first, so that the callback can call connect() or disconnect().
        if (again)
            this.#later(backoff(this.#options, this.#failures++), again);
        else
            this.#rest();
        const { onTokenError } = this.#login;
        if (onTokenError || !again)
            call(onTokenError ?? (() => { throw error; }), error);
    }
}

/** Sends ephemeral messages: the newest of each channel and key. */
// ms between two ephemeral messages of one key: the server gathers those of 50 ms.
const EPHEMERAL_INTERVAL = 20;
class EphemeralSender {
    #hub;
    #isOpen = false; // connected to a server that knows them: an older one would publish them
    /** The messages that wait for the end of the interval. */
    #waiting = new Map();
    #timer;
    constructor(hub) {
        this.#hub = hub;
    }
    open(features) {
        this.#isOpen = features.includes("ephemeral");
    }
    lose() {
        this.#isOpen = false;
        clearTimeout(this.#timer);
        this.#timer = undefined;
        this.#waiting.clear();
    }
    close() {
        this.lose();
    }
    /** Returns false if it is not sent. */
    send(channel, payload, { key, echo } = {}) {
        if (!this.#isOpen)
            return false;
        this.#waiting.set(JSON.stringify([channel, key ?? null]), { channel, payload, ephemeral: true, key, echo });
        if (!this.#timer)
            this.#flush();
        return true;
    }
    #flush() {
        const waiting = [...this.#waiting.values()];
        this.#waiting.clear();
        this.#timer = waiting.length ? setTimeout(() => this.#flush(), EPHEMERAL_INTERVAL) : undefined;
        for (const body of waiting)
            this.#hub.socket.emit("publish", body);
    }
}

const ephemeral = /*#__PURE__*/Object.freeze(/*#__PURE__*/Object.defineProperty({
    __proto__: null,
    EphemeralSender
}, Symbol.toStringTag, { value: 'Module' }));

/** Reads integers of messages that JavaScript's numbers would round, as BigInt or as texts. */
// Only with so many digits can an integer be beyond 2^53.
const LONG = /\d{16}/;
// A text, or a number. Texts come first, so that digits in them are left alone.
const TOKENS = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
// Marks a number that was put into a text. Texts that begin like that are marked, too.
const MARK = "\u0000n:";
const MARKED = "\u0000s:";
// What follows the name of a property, which JSON.parse does not revive.
const NAME_END = /\s*:/y;
/** Whether `JSON.parse` passes a number's own characters. */
const HAS_SOURCE = (() => {
    let found = false;
    JSON.parse("1", ((_key, _value, context) => { found = context?.source === "1"; }));
    return found;
})();
/** Parses JSON. Integers beyond ±(2^53 − 1) are what `read` makes of their digits. */
function parse(text, read, hasSource = HAS_SOURCE) {
    if (!LONG.test(text))
        return JSON.parse(text);
    if (hasSource) {
        return JSON.parse(text, ((_key, value, { source }) => (typeof value === "number" && isLong(source, value) ? read(source) : value)));
    }
    const marked = text.replace(TOKENS, (token, offset) => {
        if (token[0] === "\"") {
            if (!token.startsWith("\"\\u0000"))
                return token;
            NAME_END.lastIndex = offset + token.length;
            return NAME_END.test(text) ? token : `"\\u0000s:${token.slice(1)}`;
        }
        return isLong(token, Number(token)) ? `"\\u0000n:${token}"` : token;
    });
    return JSON.parse(marked, (_key, value) => {
        if (typeof value !== "string" || value[0] !== "\u0000")
            return value;
        return value.startsWith(MARK) ? read(value.slice(MARK.length)) : value.slice(MARKED.length);
    });
}
function isLong(source, value) {
    return !Number.isSafeInteger(value) && /^-?\d+$/.test(source);
}
/**
 * Makes a socket read the integers of its messages exactly. The stock client's decoder has an option for that only when
 * it is made: this decodes those packets of the socket in its place that have long numbers.
 */
function readExactly(socket, as) {
    const read = as === "bigint" ? BigInt : (digits) => digits;
    const { nsp, io: { decoder } } = socket;
    const add = decoder.add.bind(decoder);
    decoder.add = (received) => {
        const packet = typeof received === "string" && LONG.test(received) && !decoder.reconstructor && decode(received, nsp, read);
        if (packet)
            (decoder.emitReserved ?? decoder.emit).call(decoder, "decoded", packet);
        else
            add(received);
    };
}
/** Decodes an event or an acknowledgement of a namespace; null for other packets. */
function decode(text, nsp, read) {
    const [, type, namespace = "/", id, data] = /^([23])(?:(\/[^,]*),)?(\d*)(\[[^]*)$/.exec(text) ?? [];
    return type && namespace === nsp ? { type: Number(type), nsp, id: id ? Number(id) : undefined, data: parse(data, read) } : null;
}

const exact = /*#__PURE__*/Object.freeze(/*#__PURE__*/Object.defineProperty({
    __proto__: null,
    parse,
    readExactly
}, Symbol.toStringTag, { value: 'Module' }));

/** Reads older messages of a channel, beside its live subscription. */
/** @returns oldest first. Rejects with a SubscriptionError */
function read(core, place, filter, { limit = 100, since, signal }) {
    const shared = core.hub.shared(place);
    const found = [];
    return new Promise((resolve, reject) => {
        const fail = (code, message) => end(new SubscriptionError(code, message, shared.name));
        const end = (error) => {
            forget();
            shared.remove(member);
            if (error)
                reject(error);
            else
                resolve(found);
        };
        const member = new Member(place, (message) => {
            // Others are live, and came while the older ones were on their way.
            if (message.replayed && found.length < limit && found.push(message) === limit && since)
                end();
        }, {
            since, history: limit, filter,
            // Without a log, or with a rule against replays, there is nothing to read.
            onSubscribed: () => { if (!member.position && !member.start)
                end(); },
            onLive: () => end(),
            onError: (error) => { if (!error.retrying)
                end(error); },
            onState: () => { if (core.closed)
                fail("closed", core.closed.message); },
        });
        let forget = () => { };
        try {
            if (core.closed)
                throw core.closed;
            if (limit > 0)
                shared.add(member);
            else
                end();
        }
        catch (error) {
            end(error === core.closed ? core.closed : new SubscriptionError("conflicting_filter", String(error), shared.name));
            return;
        }
        forget = onAbort(signal, () => fail("aborted", "the signal was aborted"));
    });
}

const history = /*#__PURE__*/Object.freeze(/*#__PURE__*/Object.defineProperty({
    __proto__: null,
    read
}, Symbol.toStringTag, { value: 'Module' }));

/** The members of a channel's presence, kept in step with what the server sends. Pure. */
// Differences of presence that wait for the state. Without an older one the state is requested once more.
const MAX_EARLY = 1_000;
/** Calls nothing and waits for nothing. Each change replaces a member, and never modifies it. */
class PresenceState {
    /** The members by key, in a Map: keys come from users, and may be "__proto__". */
    members = new Map();
    /** How many members there are. More than `members` has when the server sends only the count. */
    count = 0;
    /** Whether `members` has all of them. */
    complete = false;
    /** On this connection; null: the state must be requested. */
    #version = null;
    /** The differences that have arrived since. */
    #early = [];
    /** Whether the next difference can be applied. If not, the state must be requested. */
    get current() { return this.#version !== null; }
    /** The connection is lost: the next state is compared with the members of now. */
    lose() {
        this.#version = null;
        this.#early = [];
    }
    /** Takes the state that the server has sent. Returns the changes, but not for the members who are there at first. */
    sync({ version, count, members }) {
        const early = this.#early.splice(0);
        this.#version = version;
        const changes = this.#replace(members, count);
        for (const difference of early) {
            if (this.#version === null || difference.version > this.#version)
                changes.push(...this.apply(difference));
        }
        return changes;
    }
    /** Takes a difference. Returns the changes. Afterwards `current` is false if an earlier difference is missing. */
    apply(difference) {
        const { version, previous, count, joined, updated, left } = difference;
        if (previous !== this.#version) {
            this.#version = null;
            if (this.#early.push(difference) > MAX_EARLY)
                this.#early.shift();
            return [];
        }
        this.#version = version;
        if (!joined || !this.complete)
            return this.#replace(undefined, count); // too many members: no lists
        this.count = count;
        const changes = [...joined, ...updated].flatMap((member) => this.#set(member));
        return [...changes, ...left.flatMap(({ key }) => this.#remove(key))];
    }
    /** Takes all members; undefined: they are not known any more. */
    #replace(members, count) {
        const changes = [];
        this.count = count;
        if (members && this.complete) {
            const present = new Set(members.map(({ key }) => key));
            for (const member of members)
                changes.push(...this.#set(member));
            for (const key of [...this.members.keys()])
                if (!present.has(key))
                    changes.push(...this.#remove(key));
        }
        this.complete = Boolean(members);
        this.members.clear();
        for (const member of members ?? [])
            this.members.set(member.key, member);
        return changes;
    }
    #set(member) {
        const before = this.members.get(member.key);
        this.members.set(member.key, member);
        if (!before)
            return [{ kind: "join", member }];
        // By ref: the Socket.IO id of a connection that has returned is no change.
        const states = new Map(before.metas.map(({ ref, state }) => [ref, state]));
        const isSame = states.size === member.metas.length
            && member.metas.every(({ ref, state }) => states.has(ref) && isEqual(states.get(ref), state));
        return isSame ? [] : [{ kind: "update", member, before }];
    }
    #remove(key) {
        const before = this.members.get(key);
        if (!before)
            return [];
        this.members.delete(key);
        return [{ kind: "leave", member: before, before }];
    }
}
/** Returns whether two JSON values are equal. */
function isEqual(a, b) {
    if (a === b || typeof a !== "object" || typeof b !== "object" || !a || !b)
        return a === b;
    const keys = Object.keys(a);
    return Array.isArray(a) === Array.isArray(b) && keys.length === Object.keys(b).length
        && keys.every((key) => Object.hasOwn(b, key) && isEqual(a[key], b[key]));
}

/** Who is present on a channel: what the application's objects want, the next request, and what the answers mean. */
/** The events of presence, once for each connection. */
class PresenceEvents {
    #hub;
    constructor(hub) {
        this.#hub = hub;
    }
    close() {
        for (const shared of this.#hub.all()) {
            for (const handle of shared.presence?.handles ?? [])
                handle.close();
        }
    }
    events = {
        presence: (difference) => this.#with(difference, (one) => one.receive("apply", difference)),
        presence_state: (state) => this.#with(state, (one) => one.receive("sync", state)),
        presence_ended: (ended) => this.#with(ended, (one) => one.receiveEnded(ended)),
    };
    #with({ channel }, what) {
        const shared = this.#hub.channels.get(channel);
        if (!shared?.presence)
            return;
        what(shared.presence);
        shared.settle();
    }
}
const listening = new WeakSet();
/** Watches the presence of a channel, until `close()`. */
function watch(hub, shared, handlers) {
    if (!listening.has(hub)) {
        listening.add(hub);
        hub.add(new PresenceEvents(hub));
    }
    shared.presence ??= new ChannelPresence(shared);
    const made = new People(shared, shared.presence, handlers);
    shared.use();
    return made;
}
/**
 * Who is present on a channel, as returned by `presence()`. All of a channel share its members, and whether this client
 * has joined. After a reconnect the client joins again, with the same state.
 */
class People {
    handlers;
    #channel;
    #shared;
    #settled = deferred();
    constructor(channel, shared, /** For ChannelPresence. */ handlers) {
        this.handlers = handlers;
        this.#channel = channel;
        this.#shared = shared;
        if (handlers.onError)
            this.#settled.promise.catch(() => { }); // onError reports it
        this.#shared.add(this);
    }
    get channel() { return this.#channel.name; }
    /**
     * The members by key, in a Map that follows the server's: only this class may change it. After a lost connection it
     * has the last known members.
     */
    get members() { return this.#shared.state.members; }
    /** The number of members. */
    get count() { return this.#shared.state.count; }
    /** False before the members are known, and when there are too many of them: then only `count` is known. */
    get complete() { return this.#shared.state.complete; }
    /** The key of this client's own member; null if it has not joined. */
    get key() { return this.#shared.key; }
    /** Resolves when the members are known for the first time. Rejects with the SubscriptionError. */
    get ready() { return this.#settled.promise; }
    /**
     * Joins, also after each reconnect, until `leave()` or `close()`. If it has joined already, the state changes.
     * @param state any JSON value, up to 1 KB
     * @param options `key`: for anonymous clients, to be one member with several connections
     * @returns resolves when the server has confirmed it. Rejects with the SubscriptionError
     */
    join(state = null, { key } = {}) {
        return this.#shared.join(this, key === undefined ? { state } : { key, state });
    }
    /** Changes the state. Of changes in quick succession only the last one is sent. */
    update(state) { return this.#shared.update(this, state); }
    /** Leaves, and goes on to watch. */
    leave() { return this.#shared.join(this, null); }
    /** Leaves, if this object has joined, and ends the calls of its handlers. Idempotent. */
    close() {
        this.#settled.promise.catch(() => { }); // not an unhandled rejection: the application closed it itself
        const error = new SubscriptionError("unsubscribed", "closed before the server answered", this.channel);
        this.settle(error);
        this.#shared.remove(this, error);
        this.#channel.settle();
    }
    // --- For ChannelPresence ---
    settle(error) {
        if (error)
            this.#settled.reject(error);
        else
            this.#settled.resolve();
    }
}
/** The presence of one channel: which request comes next, and what the answers mean. */
class ChannelPresence {
    state = new PresenceState();
    handles = new Set();
    worked = false; // the server has confirmed it once
    #channel;
    /** What the application wants to join with. */
    #join = null;
    /** The object that has joined. */
    #joiner = null;
    /** What the server has confirmed, on this connection. */
    #confirmed = false;
    #sees = false; // the client may see the members
    #key = null;
    /** Calls that wait for the answer. */
    #calls = [];
    constructor(channel) {
        this.#channel = channel;
    }
    get wish() { return this.#join ?? this.handles.size > 0; }
    /** The key of this client's own member; null if it has not joined. */
    get key() { return this.#join && this.#key; }
    add(handle) {
        this.handles.add(handle);
        if (this.#confirmed) {
            handle.settle();
            if (this.state.current)
                queueMicrotask(() => this.#sync([handle]));
        }
    }
    remove(handle, error) {
        this.handles.delete(handle);
        if (this.#joiner === handle || !this.handles.size)
            this.#join = this.#joiner = null;
        this.#reject(error, (one) => one.handle === handle);
        this.#resolve();
    }
    join(handle, joined) {
        // A copy: the application may change its object, and pass it again.
        const wish = joined && JSON.parse(JSON.stringify({ ...joined, state: joined.state ?? null }));
        const made = { handle, wish: wish ?? true, ...deferred() };
        // `onError` reports it, or the application has closed it.
        if (handle.handlers.onError || !this.handles.has(handle))
            made.promise.catch(() => { });
        this.#calls.push(made);
        if (this.handles.has(handle)) {
            this.#join = wish;
            this.#joiner = wish && handle;
            this.#resolve();
            this.#channel.settle();
        }
        else
            this.#reject(this.#error("unsubscribed", "close() was called."), (one) => one === made);
        return made.promise;
    }
    update(handle, state) {
        if (!this.#join)
            throw new TypeError("join() comes before update()");
        return this.join(handle, { ...this.#join, state });
    }
    next() {
        const [wish, now] = [this.wish, this.#confirmed];
        if (isEqual(wish, now))
            return this.#sees && !this.state.current ? { event: "presence_get", body: {} } : null;
        if (wish === true && now)
            return { event: "presence_leave", body: {} };
        if (typeof wish === "object" && typeof now === "object" && wish.key === now.key) {
            return { event: "presence_update", body: { state: wish.state } };
        }
        return { event: "subscribe", body: { presence: wish } };
    }
    /** The server has confirmed a request. */
    accept(event, { presence: wish, state }, answer) {
        if (event === "presence_get") {
            this.receive("sync", answer);
            return;
        }
        const { presence } = answer;
        if (event === "presence_update")
            this.#confirmed = { ...this.#confirmed, state };
        else if (event === "presence_leave")
            this.#confirmed = true;
        else if (wish && !presence)
            this.end(this.#error("not_supported", "The server is of an older version."));
        else
            this.#confirmed = wish;
        this.#key = typeof this.#confirmed === "object" ? presence?.key ?? this.#key : null;
        if (event === "subscribe") {
            this.#sees = presence?.version !== undefined;
            if (this.#sees)
                this.receive("sync", presence);
        }
        this.worked = true;
        for (const handle of this.handles)
            handle.settle();
        this.#resolve();
    }
    /** A request has failed. Unless it is retried, what it was for is given up. */
    fail(error, event, { presence, state }) {
        const wish = event === "presence_update" ? { ...this.#confirmed, state } : presence ?? true;
        if (error.retrying)
            this.#report(error);
        else if (event === "presence_get" && typeof this.#confirmed === "object") {
            this.#sees = false;
            this.#report(error);
        }
        else if (typeof wish !== "object")
            this.end(error);
        else {
            this.#reject(error, (one) => isEqual(one.wish, wish));
            if (isEqual(wish, this.#join)) { // the client remains what it was, and earlier calls cannot succeed
                this.#reject(error, () => true);
                this.#join = typeof this.#confirmed === "object" ? this.#confirmed : null;
                this.#joiner = this.#join && this.#joiner;
            }
            this.#report(error);
        }
    }
    /** The server has ended the subscription, or refuses it. */
    end(error) {
        const handles = [...this.handles];
        this.lose();
        this.handles.clear();
        this.#join = this.#joiner = this.#key = null;
        this.#reject(error, () => true);
        this.#report(error, handles);
        for (const handle of handles)
            handle.settle(error);
    }
    lose() {
        this.#confirmed = this.#sees = false;
        this.state.lose();
    }
    /** Takes the state or a difference. */
    receive(method, body) {
        for (const { kind, member, before } of this.state[method](body)) {
            for (const { handlers } of [...this.handles]) {
                if (kind === "join")
                    call(handlers.onJoin, member);
                else if (kind === "update")
                    call(handlers.onUpdate, member, before);
                else
                    call(handlers.onLeave, member);
            }
        }
        if (this.state.current)
            this.#sync([...this.handles]);
    }
    /** The server has ended what the client did not end. After a change of identity it joins again. */
    receiveEnded({ reason, joined, watching }) {
        this.#confirmed = joined && this.#confirmed;
        if (!joined && watching)
            this.#confirmed = true;
        if (!watching)
            this.#sees = false;
        this.#resolve();
        if (reason === "identity_changed")
            return;
        const error = this.#error(reason, "The server has ended the presence: it is no longer allowed.");
        if (!joined)
            this.#join = this.#joiner = this.#key = null;
        if (joined || watching)
            this.#report(error);
        else
            this.end(error);
    }
    #error(code, message) { return new SubscriptionError(code, message, this.#channel.name); }
    #resolve() {
        if (!isEqual(this.wish, this.#confirmed))
            return;
        for (const one of this.#calls.splice(0))
            one.resolve();
    }
    #reject(error, concerns) {
        for (const one of this.#calls)
            if (concerns(one))
                one.reject(error);
        this.#calls = this.#calls.filter((one) => !concerns(one));
    }
    #sync(handles) {
        for (const handle of handles) {
            if (this.handles.has(handle))
                call(handle.handlers.onSync, this.state.members, handle);
        }
    }
    #report(error, handles = [...this.handles]) {
        for (const { handlers } of handles)
            call(handlers.onError, error);
    }
}

const people = /*#__PURE__*/Object.freeze(/*#__PURE__*/Object.defineProperty({
    __proto__: null,
    ChannelPresence,
    People,
    watch
}, Symbol.toStringTag, { value: 'Module' }));

/** Publishes messages, and repeats those that the server may not have received. */
// ms for which a message is repeated after it was sent first. The server knows its id for five minutes.
const MAX_REPEATING = 240_000;
// After these errors, a message may have been published.
const UNCERTAIN = new Set(["no_answer", "database_unavailable", "internal"]);
const CLOSED = { code: "closed", message: "close() was called." };
class Publisher {
    #hub;
    /** The messages without an answer, in order. */
    #waiting = new Set();
    #isOpen; // the connection is ready
    #knowsIds = false; // the server publishes an id once
    #isClosed = false;
    constructor(hub) {
        this.#hub = hub;
        this.#isOpen = hub.socket.connected;
    }
    publish(channel, payload, options = {}) {
        const { durable, id, wait, echo, traceparent, timeout = this.#hub.options.publishTimeout } = options;
        return new Promise((resolve, reject) => {
            // JSON leaves out what is undefined. Messages that may be lost need no id, which costs the database a row.
            const ownId = durable === false ? undefined : randomId();
            const body = { channel, payload, durable, wait, echo, traceparent, id: id ?? ownId };
            const one = {
                body, resolve, reject, hasOwnId: id === undefined, attempt: 0, inFlight: false, sentAt: 0, isUncertain: false,
                canRepeat: true, timer: undefined, deadline: undefined,
            };
            if (timeout < 2 ** 31)
                one.deadline = setTimeout(() => this.#reject(one, NO_ANSWER), timeout);
            this.#waiting.add(one);
            if (this.#isClosed)
                this.#reject(one, CLOSED);
            this.#flush();
        });
    }
    open(features) {
        this.#isOpen = true;
        this.#knowsIds = features.includes("publish_id");
        this.#flush();
    }
    lose() {
        this.#isOpen = this.#knowsIds = false;
        for (const one of [...this.#waiting])
            if (one.inFlight)
                this.#fail(one, NO_ANSWER);
    }
    close() {
        this.#isClosed = true;
        for (const one of [...this.#waiting])
            this.#reject(one, CLOSED);
    }
    #flush() {
        for (const one of [...this.#waiting])
            if (this.#isOpen && !one.inFlight && !one.timer)
                this.#send(one);
    }
    #send(one) {
        if (one.isUncertain && !(one.canRepeat && this.#knowsIds && Date.now() - one.sentAt < MAX_REPEATING)) {
            this.#reject(one, NO_ANSWER); // another attempt could publish it again
            return;
        }
        const attempt = ++one.attempt;
        one.inFlight = true;
        one.sentAt ||= Date.now();
        one.canRepeat &&= this.#knowsIds && one.body.id !== undefined;
        try {
            request(this.#hub.socket, this.#hub.options.timeout, "publish", one.body, (failure, answer) => {
                if (!failure)
                    this.#resolve(one, answer);
                else if (one.attempt === attempt && one.inFlight)
                    this.#fail(one, failure);
            });
        }
        catch (error) { // the payload has no JSON
            this.#finish(one);
            one.reject(error);
        }
    }
    #fail(one, failure) {
        if (!this.#waiting.has(one))
            return;
        one.inFlight = false;
        if (failure.code === "log_not_installed" && one.hasOwnId && one.body.id && !one.body.durable) {
            one.body.id = undefined; // a database without a log knows no ids
            this.#send(one);
            return;
        }
        one.isUncertain ||= UNCERTAIN.has(failure.code);
        if (!TRANSIENT.has(failure.code) || (one.isUncertain && !one.canRepeat))
            this.#reject(one, failure);
        else if (this.#isOpen) {
            one.timer = setTimeout(() => {
                one.timer = undefined;
                this.#flush();
            }, backoff(this.#hub.options, one.attempt - 1));
        }
    }
    #resolve(one, { ok, ...published }) {
        this.#finish(one);
        one.resolve(published);
    }
    #reject(one, { code, message }) {
        this.#finish(one);
        const uncertain = one.inFlight || one.isUncertain;
        one.reject(new PublishError(code, message, one.body.channel, uncertain));
    }
    #finish(one) {
        this.#waiting.delete(one);
        clearTimeout(one.timer);
        clearTimeout(one.deadline);
    }
}
/** Returns an id that others do not guess. `crypto.randomUUID` exists only in pages served over https. */
function randomId() {
    return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const publisher = /*#__PURE__*/Object.freeze(/*#__PURE__*/Object.defineProperty({
    __proto__: null,
    Publisher
}, Symbol.toStringTag, { value: 'Module' }));

/** Live tables: rows that are kept in step with the database. */
/** The last id of a live table: a page may have several connections' objects on one socket. */
let tableIds = 0;
/** The live tables of a connection, by the id that the server echoes. */
class Tables {
    all = new Map();
    hub;
    constructor(hub) {
        this.hub = hub;
    }
    subscribe(table, handlers) { return new LiveTable(this, table, handlers); }
    lose() {
        for (const table of this.all.values())
            table.lose();
    }
    close() {
        for (const table of this.all.values())
            table.unsubscribe();
    }
    events = {
        connect: () => { for (const table of this.all.values())
            table.settle(); },
        snapshot: (page) => {
            this.hub.hear();
            this.all.get(page.id)?.receivePage(page);
        },
        event: (message) => this.#of(message)?.receive(message),
        live: (edge) => this.#of(edge)?.receiveLive(edge),
        unsubscribed: (body) => this.#of(body)?.checkUnsubscribed(body),
    };
    #of({ table, id }) { return table ? this.all.get(id) : undefined; }
}
/**
 * The rows of a table, kept in step with the database: as returned by `subscribe({table})`. The server's row-level
 * security and column privileges apply.
 */
class LiveTable {
    /**
     * The rows, by primary key: by its value, or with several columns by the JSON of the list of values; see `keyOf`.
     * Before the first rows have arrived it is empty. Only this class may change it.
     */
    rows = new Map();
    /** The columns of the primary key. */
    key = [];
    /** The columns of the rows. */
    columns = [];
    /** False when `limit` has left out rows. */
    complete = true;
    #socket;
    #options;
    #tables;
    #body;
    #handlers;
    /** The rows of a new set, until its last page. */
    #next = null;
    /** Where to continue after a reconnect; null: with all rows. */
    #position = null;
    #epoch = "";
    #isActive = false;
    #isCurrent = false;
    #isSettling = false;
    #ready = deferred();
    #caughtUp = deferred();
    #ended = new AbortController();
    constructor(tables, { table, where, order, limit }, handlers = {}) {
        const { socket, options } = tables.hub;
        this.#socket = socket;
        this.#options = options;
        this.#tables = tables.all;
        this.#handlers = handlers;
        // Small numbers, not random ones: the server writes an event once for all clients that use the same id.
        this.#body = { table, id: String(++tableIds) };
        for (const [name, value] of Object.entries({ where, order, limit, numbers: options.numbers })) {
            if (value !== undefined && value !== null)
                this.#body[name] = value;
        }
        if (handlers.onError)
            this.#ready.promise.catch(() => { }); // onError reports it
        this.#caughtUp.promise.catch(() => { }); // `ready` reports it
        this.#tables.set(this.#body.id, this);
        this.settle();
    }
    get table() { return this.#body.table; }
    /** Resolves when the server has confirmed it. Rejects with the SubscriptionError. */
    get ready() { return this.#ready.promise; }
    /** Resolves when the rows are current for the first time. Rejects like `ready`. */
    get live() { return this.#caughtUp.promise; }
    /** True when the rows follow the table at the moment. */
    get active() { return this.#isCurrent; }
    /** True when the server has confirmed it on this connection. */
    get confirmed() { return this.#isActive; }
    /** Returns the key of a row, or of another object that has the columns of the primary key. */
    keyOf(row) {
        return this.key.length === 1 ? row[this.key[0]] : JSON.stringify(this.key.map((column) => row[column]));
    }
    /** Ends the subscription: `rows` stay as they are. Idempotent. */
    async unsubscribe() {
        if (this.#ended.signal.aborted)
            return;
        this.#ready.promise.catch(() => { }); // not an unhandled rejection: the application unsubscribed itself
        this.#end(new SubscriptionError("unsubscribed", "unsubscribed before the rows were current", this.table));
        const { table, id } = this.#body;
        if (this.#socket.connected) {
            const socket = this.#socket;
            await new Promise((resolve) => request(socket, this.#options.timeout, "unsubscribe", { table, id }, resolve));
        }
    }
    // --- For Tables ---
    async settle() {
        if (this.#isSettling)
            return;
        this.#isSettling = true;
        const { signal } = this.#ended;
        for (let attempt = 0; this.#socket.connected && !this.#isActive && !signal.aborted;) {
            const { id } = this.#socket;
            const failure = await this.#subscribe();
            if (!failure || signal.aborted || this.#socket.id !== id)
                continue;
            const error = new SubscriptionError(failure.code, failure.message, this.table);
            error.retrying = TRANSIENT.has(error.code);
            this.#report(error);
            if (error.retrying)
                await pause(backoff(this.#options, attempt++), signal);
        }
        this.#isSettling = false;
    }
    lose() {
        this.#isActive = this.#isCurrent = false;
        this.#next = null;
        call(this.#handlers.onState);
    }
    receivePage({ first, last, rows, key, columns, complete, epoch, reason }) {
        if (!this.#isActive)
            return;
        if (first) {
            this.#next = new Map();
            [this.key, this.columns, this.#epoch, this.#position] = [key, columns, epoch, null];
            this.complete = complete !== false;
            this.#isCurrent = false;
        }
        if (!this.#next)
            return;
        for (const row of rows) {
            const checked = this.#check(row);
            if (checked !== null)
                this.#next.set(this.keyOf(row), checked);
        }
        if (!last)
            return;
        this.rows = this.#next;
        this.#next = null;
        call(this.#handlers.onRows, this.rows, reason);
    }
    receive({ payload, position }) {
        if (!this.#isActive || this.#next)
            return;
        if (this.#position) {
            if (position <= this.#position.position)
                return;
            this.#position = { epoch: this.#epoch, position };
        }
        const { op, pk, old_pk: oldKey } = payload;
        const { rows } = this;
        if (op === "TRUNCATE") {
            rows.clear();
            call(this.#handlers.onRows, rows, "truncate");
            return;
        }
        const key = this.keyOf(pk);
        const oldName = oldKey ? this.keyOf(oldKey) : key;
        const before = rows.get(oldName) ?? rows.get(key);
        if (op === "DELETE") {
            if (!rows.delete(key))
                return;
            call(this.#handlers.onChange, { op, key, before, payload }, rows);
        }
        else {
            if (oldName !== key)
                rows.delete(oldName);
            const row = this.#check(payload.new);
            if (row === null) {
                if (rows.delete(key) || oldName !== key)
                    call(this.#handlers.onChange, { op: "DELETE", key, before, payload }, rows);
                return;
            }
            rows.set(key, row);
            call(this.#handlers.onChange, { op: before ? "UPDATE" : "INSERT", key, row, before, payload }, rows);
        }
    }
    receiveLive({ epoch, position }) {
        if (!this.#isActive)
            return;
        this.#epoch = epoch;
        this.#position = { epoch, position };
        if (this.#isCurrent)
            return;
        this.#isCurrent = true;
        this.#caughtUp.resolve();
        call(this.#handlers.onState);
        call(this.#handlers.onLive);
    }
    checkUnsubscribed({ reason, message }) {
        if (!reason || !this.#isActive)
            return;
        this.lose();
        this.#position = null;
        const text = message ?? `The server has ended the subscription: ${reason}.`;
        const error = new SubscriptionError(reason, text, this.table);
        error.retrying = TRANSIENT.has(reason);
        this.#report(error);
        this.settle();
    }
    #subscribe() {
        const body = this.#position ? { ...this.#body, since: this.#position } : this.#body;
        return new Promise((resolve) => {
            request(this.#socket, this.#options.timeout, "subscribe", body, (failure, answer) => {
                // Here, not after the promise: the rows may be handled before the promise resolves.
                if (!failure && !this.#ended.signal.aborted) {
                    this.#isActive = true;
                    if (answer.recovered !== true)
                        this.#position = null; // all rows follow
                    this.#ready.resolve();
                    call(this.#handlers.onState);
                }
                resolve(failure);
            });
        });
    }
    #check(row) { return this.#handlers.check ? this.#handlers.check(row) : row; }
    #report(error) {
        const { onError } = this.#handlers;
        call(onError, error);
        if (error.retrying)
            return;
        const worked = this.key.length > 0;
        this.#end(error);
        if (worked && !onError)
            call(() => { throw error; });
    }
    #end(error) {
        this.#ended.abort();
        this.lose();
        this.#tables.delete(this.#body.id);
        this.#ready.reject(error);
        this.#caughtUp.reject(error);
    }
}

/** A live table's rows for an application: sorted, checked by its schema, with a state. */
function tablesOf(hub) { return new Tables(hub); }
function open(core, tables, name, options, report) {
    return new View(core, tables, name, options, report);
}
class View {
    #table;
    #order;
    #list = null;
    #error = null;
    #wasCurrent = false;
    #isEnded = false;
    constructor(core, tables, name, { where, order, limit, schema }, report) {
        this.#order = (order === undefined ? [] : Array.isArray(order) ? order : [order]).map((one) => (typeof one === "string" ? { column: one, desc: false } : { column: one.column, desc: one.desc ?? false }));
        const checked = (row) => {
            const found = schema ? check(schema, row) : { value: row };
            if (found instanceof Promise)
                throw new TypeError("the schema of a table must not need time");
            if (!found.issues)
                return found.value;
            report("invalid", { ...found, row });
            return null;
        };
        this.#table = tables.subscribe({ table: name, where, order, limit }, {
            check: schema && checked,
            onRows: (rows, reason) => {
                this.#list = null;
                report("rows", { rows, reason });
            },
            onChange: (change) => {
                this.#list = null;
                report("change", change);
                core.saw(change.payload);
            },
            onError: (error) => {
                this.#error = error;
                if (!error.retrying)
                    this.#isEnded = true;
                report("error", error);
                report("state", this.#state());
            },
            onState: () => report("state", this.#state()),
        });
    }
    get rows() { return this.#table.rows; }
    get key() { return this.#table.key; }
    get complete() { return this.#table.complete; }
    get live() { return this.#table.live; }
    get list() { return this.#list ??= [...this.rows.values()].sort((a, b) => this.#compare(a, b)); }
    keyOf(row) { return this.#table.keyOf(row); }
    unsubscribe() {
        this.#isEnded = true;
        return this.#table.unsubscribe();
    }
    #compare(a, b) {
        for (const { column, desc } of this.#order) {
            const order = compare(a[column], b[column]);
            if (order)
                return desc ? -order : order;
        }
        for (const column of this.key) {
            const order = compare(a[column], b[column]);
            if (order)
                return order;
        }
        return 0;
    }
    #state() {
        if (this.#isEnded)
            return { status: "ended", code: this.#error?.code ?? "unsubscribed", reason: this.#error?.message ?? "" };
        const table = this.#table;
        if (table?.active) {
            this.#error = null;
            this.#wasCurrent = true;
            return { status: "live", code: "live", reason: "" };
        }
        const status = table?.confirmed ? "subscribed" : this.#wasCurrent ? "reconnecting" : "subscribing";
        return { status, code: this.#error?.code ?? status, reason: this.#error?.message ?? "" };
    }
}
/** As PostgreSQL sorts: null comes last. Texts by their characters, as with the collation "C". */
function compare(a, b) {
    if (a === b)
        return 0;
    if (a === null || a === undefined)
        return 1;
    if (b === null || b === undefined)
        return -1;
    return a < b ? -1 : a > b ? 1 : 0;
}

const view = /*#__PURE__*/Object.freeze(/*#__PURE__*/Object.defineProperty({
    __proto__: null,
    View,
    open,
    tablesOf
}, Symbol.toStringTag, { value: 'Module' }));

/** The parts of the library in the single file: they are there. */
const PARTS = {
    ephemeral: async () => ephemeral,
    exact: async () => exact,
    history: async () => history,
    people: async () => people,
    publisher: async () => publisher,
    view: async () => view,
};

/** A live table as one part of the program uses it. `view.ts` is loaded with the first one. */
const NONE = new Map();
const EMPTY = [];
class TableHandle extends Emitter {
    name;
    #core;
    #view = null;
    #opening;
    #isEnded = false;
    #state = { status: "subscribing", code: "subscribing", reason: "" };
    constructor(core, name, options) {
        super();
        this.name = name;
        this.#core = core;
        this.#opening = core.part("view").then(async ({ open, tablesOf }) => {
            const tables = await core.added("view", () => tablesOf(core.hub));
            if (this.#isEnded)
                throw core.closed ?? new SubscriptionError("unsubscribed", "unsubscribed before it began", name);
            return this.#view = open(core, tables, name, options, (event, value) => this.#heard(event, value));
        });
        this.#opening.catch(() => { });
        onAbort(options.signal, () => this.unsubscribe());
    }
    get state() { return this.#state; }
    get rows() { return this.#view?.rows ?? NONE; }
    get list() { return this.#view?.list ?? EMPTY; }
    get key() { return this.#view?.key ?? EMPTY; }
    get complete() { return this.#view?.complete ?? true; }
    keyOf(row) { return this.#view?.keyOf(row); }
    live() { return this.#opening.then((view) => view.live); }
    async unsubscribe() {
        this.#isEnded = true;
        await this.#view?.unsubscribe();
    }
    #heard(event, value) {
        if (event === "state") {
            const { status, code } = value;
            if (status === this.#state.status && code === this.#state.code)
                return;
            this.#state = value;
        }
        if (!this.emit(event, value) && event === "error")
            this.#core.fail(value);
    }
}

/** `createClient`: one connection to a server, its channels and tables. */
// Transactions that are remembered for seen(), and for how long, in ms.
const MAX_SEEN = 1_000;
const SEEN_FOR = 60_000;
/**
 * Connects to a server, and reconnects until `close()`.
 * @param to the server's address, or a socket of socket.io-client that is not connected yet, which the caller connects
 */
function createClient(to, options = {}) {
    return new Core(to, options);
}
/** The client, as its channels and parts know it. */
class Core extends Emitter {
    socket;
    hub;
    options;
    /** Why it has ended; null: it has not. */
    closed = null;
    #state;
    #wasConnected = false;
    #isOwn;
    #ended = new AbortController();
    #parts = new Map();
    #added = new Map();
    /** When a transaction was seen, in ms. */
    #seen = new Map();
    #waiting = new Map();
    constructor(to, options) {
        super();
        const { token, socket, timeout, retryDelay, retryDelayMax, publishTimeout, numbers } = options;
        this.options = options;
        this.#isOwn = typeof to === "string";
        this.socket = typeof to === "string" ? io(to, { ...socket, autoConnect: false }) : to;
        const given = Object.entries({ timeout, retryDelay, retryDelayMax, publishTimeout, numbers });
        this.hub = new Hub(this.socket, Object.fromEntries(given.filter(([, value]) => value !== undefined)), {
            onHealth: (health) => this.emit("health", health),
            onDirect: (message) => this.emit("direct", message),
            onEnded: (end) => this.#disconnected(end),
        });
        this.#state = this.socket.connected ? connected : state(this.socket.active ? "connecting" : "disconnected", "not_connected");
        this.hub.add({ events: this.#events });
        this.hub.add(new Login(this.socket, this.hub.options, {
            token: typeof token === "function" ? token : () => token,
            onTokenError: (error) => this.#refused(error),
        }));
        if (options.integers && options.integers !== "number")
            this.#readExactly();
        else if (this.#isOwn && socket?.autoConnect !== false)
            this.connect();
    }
    get state() { return this.#state; }
    get health() { return this.hub.health; }
    channel(channel, options = {}) {
        return new ChannelHandle(this, { channel }, options);
    }
    pattern(pattern, options = {}) {
        return new ChannelHandle(this, { pattern }, options);
    }
    table(name, options = {}) { return new TableHandle(this, name, options); }
    publish(channel, payload, options) {
        return this.added("publisher", ({ Publisher }) => new Publisher(this.hub))
            .then((publisher) => publisher.publish(channel, payload, options));
    }
    /** For channels. */
    send(channel, payload, options) {
        this.added("ephemeral", ({ EphemeralSender }) => new EphemeralSender(this.hub))
            .then((sender) => sender.send(channel, payload, options));
    }
    connect() {
        if (!this.closed && !this.socket.active) {
            this.#become("connecting", "connecting");
            this.socket.connect();
        }
    }
    close() {
        if (this.closed)
            return;
        this.closed = new SubscriptionError("closed", "close() was called.", "");
        this.#ended.abort();
        this.hub.close();
        if (this.#isOwn)
            this.socket.disconnect();
        this.#become("ended", "closed", this.closed.message);
    }
    // --- For channels and tables ---
    /** Loads a part of the library. If that fails, it is reported and tried again. */
    part(key) {
        const { signal } = this.#ended;
        const load = async () => {
            for (let attempt = 0;; attempt++) {
                if (this.closed)
                    throw this.closed;
                try {
                    return await PARTS[key]();
                }
                catch (cause) {
                    const error = new SocketIoPgError("PartError", "part_unavailable", `Loading "${key}" failed: ${cause}`, { cause });
                    error.retrying = true;
                    this.fail(error);
                    await pause(backoff(this.hub.options, attempt), signal);
                }
            }
        };
        if (!this.#parts.has(key))
            this.#parts.set(key, load());
        return this.#parts.get(key);
    }
    /** Returns the one object of a part that follows the connection. */
    added(key, make) {
        if (!this.#added.has(key))
            this.#added.set(key, this.part(key).then((part) => this.hub.add(make(part))));
        return this.#added.get(key);
    }
    /** Reports what nobody has heard where it has happened. Thrown if nobody hears it here either, and it is final. */
    fail(error, isUnheard = true) {
        if (!this.emit("error", error) && isUnheard && !error.retrying)
            call(() => { throw error; });
    }
    /** Listeners have got a change. */
    saw(payload) {
        const txid = payload?.txid;
        if (typeof txid !== "string")
            return;
        this.#seen.delete(txid);
        this.#seen.set(txid, Date.now());
        if (this.#seen.size > MAX_SEEN)
            for (const [oldest] of this.#seen) {
                this.#seen.delete(oldest);
                break;
            }
        for (const resolve of this.#waiting.get(txid) ?? [])
            resolve();
        this.#waiting.delete(txid);
    }
    seen(txid, { signal, timeout } = {}) {
        const id = String(txid);
        return new Promise((resolve, reject) => {
            if (Date.now() - (this.#seen.get(id) ?? 0) < SEEN_FOR) {
                resolve();
                return;
            }
            const all = this.#waiting.get(id) ?? new Set();
            const done = (error) => {
                clearTimeout(timer);
                forget();
                forgetClose();
                all.delete(found);
                if (!all.size)
                    this.#waiting.delete(id);
                if (error)
                    reject(error);
                else
                    resolve();
            };
            const give = (code, message) => () => done(new SubscriptionError(code, message, ""));
            const found = () => done();
            const timer = timeout === undefined ? undefined : setTimeout(give("no_answer", "The change did not come in time."), timeout);
            this.#waiting.set(id, all.add(found));
            let forget = () => { };
            let forgetClose = () => { };
            forgetClose = onAbort(this.#ended.signal, give("closed", "close() was called."));
            forget = onAbort(signal, give("aborted", "the signal was aborted"));
        });
    }
    // --- The connection ---
    #events = {
        connect: () => {
            this.#wasConnected = true;
            this.#set(connected);
        },
        disconnect: (reason) => {
            if (this.closed)
                return;
            const code = reason.replace(/ /g, "_");
            if (this.socket.active)
                this.#become("reconnecting", code, reason);
            else if (reason !== "io server disconnect")
                this.#become("disconnected", code, reason);
        },
        connect_error: (error) => {
            if (this.socket.active)
                this.#becomeLate("unreachable", error.message);
        },
    };
    #disconnected({ code, message }) { this.#become("disconnected", code, message); }
    #refused(error) {
        if (!this.socket.connected) {
            if (error.retrying)
                this.#becomeLate(error.code, error.message);
            else
                this.#become("disconnected", error.code, error.message);
        }
        this.fail(error);
    }
    #becomeLate(code, reason) { this.#become(this.#wasConnected ? "reconnecting" : "connecting", code, reason); }
    #become(status, code, reason = "") { this.#set(state(status, code, reason)); }
    #set(next) {
        if (next.status === this.#state.status && next.code === this.#state.code)
            return;
        this.#state = next;
        this.emit("state", next);
    }
    /** Connects when numbers can be read exactly. */
    async #readExactly() {
        const { readExactly } = await this.part("exact");
        readExactly(this.socket, this.options.integers);
        if (this.#isOwn && this.options.socket?.autoConnect !== false)
            this.connect();
    }
}
function state(status, code, reason = "") { return { status, code, reason }; }
const connected = state("connected", "connected");

/**
 * The interface of earlier versions: `Subscriptions` on a socket that the application has made. It stays for a release;
 * `createClient` is what replaces it.
 *
 *   const subscriptions = new Subscriptions(io("https://example.com", { transports: ["websocket"] }), {
 *     token: async () => (await fetch("/token")).text(), // if the server requires one
 *   });
 *   const orders = subscriptions.subscribe("orders", ({ payload }) => change(payload), {
 *     load: async () => (await fetch("/orders")).json(), // {rows, token}: read in one transaction
 *     onRows: (rows) => showAll(rows),
 *   });
 *   await orders.live; // the rows are current
 *   await subscriptions.publish("orders", { id: 7 });
 */
/**
 * The subscriptions on one socket. All handlers of a channel share one subscription at the server.
 * @deprecated `createClient` replaces it.
 */
class Subscriptions {
    #hub;
    #publisher;
    #ephemeral;
    #tables;
    /** @param socket returned by io(...). With the option `token` it must not be connected yet */
    constructor(socket, options = {}) {
        const { token, onTokenError, onHealth, onDirect, onEnded, ...delays } = options;
        this.#hub = new Hub(socket, delays, { onHealth, onDirect, onEnded });
        if (token)
            this.#hub.add(new Login(socket, this.#hub.options, { token, onTokenError }));
        this.#publisher = this.#hub.add(new Publisher(this.#hub));
        this.#ephemeral = this.#hub.add(new EphemeralSender(this.#hub));
        this.#tables = this.#hub.add(new Tables(this.#hub));
    }
    subscribe(channel, handler, options = {}) {
        if (channel.table)
            return this.#tables.subscribe(channel, handler);
        const shared = this.#hub.shared(placeOf(channel));
        const { since, load, onRows, onLive, onEphemeral, filter, history, onGap, onError, onSubscribed } = options;
        const on = { since, load, onRows, onLive, onEphemeral, filter, history, onGap, onError, onSubscribed };
        const member = new Member(shared.place, handler, on);
        shared.add(member);
        return new Subscription(member, shared);
    }
    /** Watches who is present on a channel, until `close()`, and joins with `join()`. */
    presence(channel, handlers = {}) {
        return watch(this.#hub, this.#hub.shared(placeOf(channel)), handlers);
    }
    /**
     * Publishes a message. Repeats it when the connection is lost before the answer, or the server cannot publish at the
     * moment: it is published once, because all attempts have the same id. Messages keep their order, unless one of them
     * is repeated.
     *
     * Without a log in the database, a message that may have been published is not repeated. Nor is one on a connection
     * that was there before this object: create it before the socket connects.
     * @returns rejects with a PublishError
     */
    publish(channel, payload, options = {}) {
        return this.#publisher.publish(channel, payload, options);
    }
    /**
     * Sends an ephemeral message to the subscribers of `channel`, for what is worthless a moment later: a cursor, who is
     * typing. Only the newest message of each `key` is sent, at most one each 20 ms. It may get lost.
     *
     * Returns false if it is not sent, because the socket is not connected or the server does not know such messages.
     * What the server refuses arrives as the event `error`, as in docs/protocol.md.
     * @param payload any JSON value, with the whole state of its key
     * @param options `echo`: true sends it to this client, too
     */
    publishEphemeral(channel, payload, options = {}) {
        return this.#ephemeral.send(channel, payload, options);
    }
    /**
     * The server's last report on its database; null before the first one. Create this object before the socket connects:
     * the first report comes with the connection.
     */
    get health() { return this.#hub.health; }
    /** Ends all subscriptions and detaches from the socket, which stays connected and keeps its `auth`. */
    close() { this.#hub.close(); }
}
/** One handler's subscription, as returned by `subscribe()`. */
class Subscription {
    #member;
    #shared;
    constructor(member, shared) {
        this.#member = member;
        this.#shared = shared;
    }
    /** The channel, or the pattern. */
    get channel() { return this.#shared.name; }
    /**
     * Resolves when the server has confirmed the subscription for the first time: from then on, missed messages are
     * reported as a gap. Rejects with the SubscriptionError if the subscription ended before that.
     */
    get ready() { return this.#member.ready.promise; }
    /**
     * Messages per second, of each key, that arrive at most: others are skipped. Null without such a rule, and before the
     * server has confirmed the subscription.
     */
    get maxRate() { return this.#shared.maxRate; }
    /** True when the server has confirmed the subscription on the current connection. */
    get active() { return this.#member.live; }
    /**
     * Resolves when all messages up to now were delivered for the first time, and with `load` the rows before them: a
     * page can then hide its spinner. Rejects like `ready`. `onLive` is also called after each reconnect.
     */
    get live() { return this.#member.caughtUp.promise; }
    /**
     * The position in the log up to which all messages were passed to the handler, including the one it is handling:
     * store it, and pass it as `since` next time. Null if the server has no log or has not answered yet, and after
     * starting from a snapshot until the subscription is live.
     */
    get position() { return this.#member.done; }
    /**
     * Ends the subscription: the handler is not called any more. Idempotent.
     * @returns if this was the channel's last handler, resolves when the server has confirmed it
     */
    async unsubscribe() {
        this.#shared.remove(this.#member);
        if (!this.#shared.members.size)
            await this.#shared.settle();
    }
}
function placeOf(channel) {
    return typeof channel === "object" ? { pattern: channel.pattern } : { channel };
}

export { LiveTable, People as Presence, PresenceState, PublishError, SocketIoPgError, Subscription, SubscriptionError, Subscriptions, TokenError, createClient };
