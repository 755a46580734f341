// Made from js/src by `npm run build` in js/: change it there. docs/javascript.md describes it.
/** Small functions that several modules share: requests to the server, pauses, callbacks. */
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
    return { code: "internal", message: "", ...answer?.error };
}
/** Returns the milliseconds before the next attempt: a random part, so that many clients do not retry at the same time. */
function backoff({ retryDelay, retryDelayMax }, attempt) {
    return Math.min(retryDelayMax, retryDelay * 2 ** attempt) * (0.5 + Math.random() / 2);
}
function isoTime(ms = Date.now()) { return new Date(ms).toISOString(); }
/** Returns a state for the application. */
function stateOf(status, code = status, reason = "") {
    return { status, code, reason };
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
/** Marks a promise as one that may be rejected without anybody who handles it. */
function quiet(promise) {
    promise.catch(() => { });
    return promise;
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
/** @param listened called when a listener of the event was added or removed */
function makeEmitter(listened) {
    /** By event and listener: what forgets the listener's signal. */
    const listeners = Object.create(null);
    const hears = (name) => !!listeners[name]?.size;
    return {
        hears,
        on(name, listener, { signal } = {}) {
            if (signal?.aborted)
                return this;
            (listeners[name] ??= new Map()).set(listener, onAbort(signal, () => this.off(name, listener)));
            listened?.(name, true);
            return this;
        },
        off(name, listener) {
            const all = listeners[name];
            all?.get(listener)?.();
            if (all?.delete(listener))
                listened?.(name);
            return this;
        },
        emit(name, value) {
            const all = [...listeners[name]?.keys() ?? []];
            for (const listener of all)
                if (listeners[name].has(listener))
                    call(listener, value);
            return !!all[0]; // also if it has removed itself
        },
    };
}

/** The errors: one class for each kind of failure, and a union by `code` for `switch`. */
/** What all errors of this library have. */
class SocketIoPgError extends Error {
    code;
    /** True when it is retried automatically. Otherwise what failed has ended. */
    retrying = false;
    constructor(code, message, options) {
        super(message, options);
        this.code = code;
    }
}
/** The server refused a subscription, or did not answer, or `load` failed. */
class SubscriptionError extends SocketIoPgError {
    channel;
    name = "SubscriptionError";
    /**
     * @param code one of docs/protocol.md, or "no_answer" or "unsubscribed", or "load_failed": `load` failed
     * @param options `cause`: the error that `load` has thrown
     */
    constructor(code, message, channel, options) {
        super(code, message, options);
        this.channel = channel;
    }
}

/** Objects whose code is loaded when they are first used. */
/**
 * Returns an object with listeners, whose fields are those of the inner object, or `fields` as long as there is none, and
 * whose methods wait for it.
 * The application may leave their promises alone: the event `error` reports failures.
 * @param open loads the inner object; called once, by the first method or listener
 */
function lazy(open, fields, methods) {
    let inner = fields;
    let opening;
    const use = () => quiet(opening ??= open(handle).then((found) => inner = found));
    const handle = makeEmitter(use);
    for (const name in fields)
        Object.defineProperty(handle, name, { get: () => inner[name] });
    for (const name of methods)
        handle[name] = (...values) => quiet(use().then(() => inner[name](...values)));
    return handle;
}

/** One user of a channel: its position in the log, and whether it receives the live messages after it. */
function makeMember(place, { since, history, filter }, report) {
    const [ready, caughtUp] = [deferred(), deferred()];
    for (const { promise } of [ready, caughtUp])
        promise.catch(() => { }); // the event `error` reports it
    return {
        place, report, ready, caughtUp,
        filter: filter ?? null,
        position: since ? positionOf(since) : null,
        // The server knows a position as text, too.
        start: since instanceof Date ? since.toISOString() : typeof since === "string" ? since : null,
        history: since ? 0 : history ?? 0,
    };
}
function startsFromSnapshot({ start }) { return !!start?.startsWith("snapshot:"); }
function lacksEpoch({ position }) { return position?.epoch === ""; }
function learnEpoch(one, start) {
    if (lacksEpoch(one))
        one.position = start && { epoch: start.epoch, position: one.position.position };
}
function follows({ position }, start) {
    return position?.epoch === start.epoch && position.position >= start.position;
}
/** Returns the position up to which the handler has got all messages. */
function doneUpTo(one) { return lacksEpoch(one) || one.start ? null : one.position; }
function reportGap({ report, place }, gap) {
    report("gap", { ...place, ...gap });
}
function fail$1(one, error) {
    one.report("error", error);
    if (!error.retrying)
        end(one, error);
}
/** The server has confirmed the subscription on this connection. */
function confirm(one) {
    const { lost, report } = one;
    one.established = true;
    one.ready.resolve();
    report("state");
    report("subscribed");
    if (!lost)
        return;
    one.lost = "";
    reportGap(one, { tier: "notify", reason: "client_disconnected", since: lost, until: isoTime() });
}
/** The subscription has ended. */
function end(one, error) {
    one.live = one.current = false;
    one.loader?.end();
    one.caughtUp.reject(error);
    one.ready.reject(error); // unless it is resolved
    one.report("state");
}
/** Delivers a message, or holds one of NOTIFY until the rows are there. */
function deliver({ loader, report }, message) {
    if (loader?.isStale)
        loader.hold(message);
    else
        report("message", message);
}
/** All messages up to `edge` were delivered. */
function becomeCurrent(one, edge) {
    one.start = null;
    one.loader?.becomeCurrent();
    if (edge) {
        learnEpoch(one, edge);
        if (!one.position || (one.position.epoch === edge.epoch && !follows(one, edge)))
            one.position = edge;
    }
    if (one.current)
        return;
    one.current = true;
    one.caughtUp.resolve();
    one.report("state");
    one.report("current");
}
function positionOf({ epoch, position }) {
    return typeof epoch === "string" && typeof position === "number" ? { epoch, position } : null;
}

/** A channel or pattern as one part of the program uses it. */
/** Events that need the subscription. */
const LASTING = ["message", "gap", "rows", "ephemeral"];
function makeChannel(core, place, name, options = {}) {
    const { load, schema } = options;
    let state = stateOf("idle");
    let shared;
    let member;
    let isWanted = false; // by subscribe()
    let isStopped = false; // as by unsubscribe(): listeners that are still there do not count
    let final;
    let retried;
    let presence;
    /** What `schema` and `load` need. */
    let extras;
    let checker;
    let preparing;
    const emitter = makeEmitter((event, isAdded) => {
        if (event === "presence") {
            if (isAdded)
                self.presence.watch();
        }
        else if (LASTING.includes(event)) {
            if (isAdded)
                isStopped = false;
            // Starts at once, and ends in a microtask, if nobody has begun to listen again by then.
            if (isUsed())
                start();
            else
                queueMicrotask(() => { if (!isUsed())
                    stop(); });
        }
    });
    const { emit } = emitter;
    const isUsed = () => !isStopped && (isWanted || LASTING.some(emitter.hears));
    const start = () => {
        if (member || final || preparing)
            return;
        const { schemas } = core.options;
        if (!extras && (load || schema || schemas)) {
            preparing = core.part("reading").then((found) => {
                extras = found;
                checker = found.checkerFor(self, schema, schemas);
                preparing = undefined;
                if (isUsed())
                    start();
                change();
            }, finish);
            return change();
        }
        if (core.closed)
            return finish(core.closed);
        const made = member = makeMember(place, options, (event, value) => {
            if (event === "error")
                fail(value);
            else if (event === "state")
                change();
            else if (event !== "message")
                emit(event, value);
            else if (checker)
                checker.receive(value, doneUpTo(made), () => member === made);
            else
                self.deliver(value, value);
        });
        shared = core.hub.shared(place);
        if (load)
            made.loader = new extras.Loader(made, shared, load, (rows) => emit("rows", rows));
        // If others have another filter, the error comes when listeners to it are there.
        if (shared.allows(made))
            shared.add(made);
        else
            queueMicrotask(() => shared.add(made));
        change();
    };
    const stop = () => {
        const former = member;
        isStopped = true;
        member = undefined;
        if (former)
            shared.remove(former);
        change();
    };
    /** Ends for good, unless `subscribe()` is called. */
    const finish = (error) => {
        final = error;
        stop();
    };
    const fail = (error) => {
        if (error.retrying)
            retried = error;
        else
            final = error;
        if (!emit("error", error))
            core.fail(error, isWanted);
        change();
    };
    /** Reports the state if it is another one. */
    const change = () => {
        const error = final ?? (member && core.closed);
        let status = "idle";
        if (error) {
            status = "ended";
            member = undefined;
        }
        else if (member?.live) {
            retried = undefined;
            status = member.current ? "live" : "subscribed";
        }
        else if (member || preparing)
            status = member?.established || retried ? "reconnecting" : "subscribing";
        const why = error ?? (member && retried);
        const next = stateOf(status, why?.code, why?.message);
        if (status === state.status && next.code === state.code)
            return;
        state = next;
        emit("state", state);
    };
    const begin = (until) => {
        isWanted = true;
        isStopped = false;
        if (!options.signal?.aborted)
            final = undefined;
        start();
        const done = (async () => {
            await preparing;
            if (!member)
                throw final ?? new SubscriptionError("unsubscribed", "unsubscribed", name);
            await member[until].promise;
        })();
        const told = done.then();
        // An unhandled rejection only if nobody else reports it, and the application has not ended it itself.
        done.catch(() => { if (!final || isStopped || emitter.hears("error") || core.hears("error"))
            quiet(told); });
        return told;
    };
    const self = {
        ...emitter,
        name,
        place,
        get state() { return state; },
        get final() { return final; },
        get position() { return checker?.position ?? (member ? doneUpTo(member) : null); },
        get maxRate() { return shared?.maxRate ?? null; },
        get presence() {
            return presence ??= lazy((handle) => core.part("presence").then(({ openPresence }) => (openPresence(core, self, handle))), { members: new Map(), count: 0, complete: false, key: null }, ["watch", "join", "update", "leave", "close"]);
        },
        subscribe: () => begin("ready"),
        live: () => begin("caughtUp"),
        async unsubscribe() {
            isWanted = false;
            stop();
            if (!shared?.members.size)
                await shared?.settle();
        },
        deliver(original, message) {
            emit("message", message);
            core.saw(original.payload);
        },
        messages(how) {
            // No generator: return() must end a next() that waits.
            const early = []; // that come while the code is loaded
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

/** One channel or pattern of a connection, shared by all its users: which request comes next, and what answers mean. */
/**
 * Changes the server's subscription to what is needed, with one request at a time.
 * @param all the channels, or patterns, in use; an unused one removes itself
 */
function makeShared(place, name, socket, sendRequest, options, all) {
    const members = new Set();
    /** The newest message, of a channel with retained messages: the server sends it to a client once, not to each user. */
    let retained = null;
    let filter = null;
    let isOpen = false; // the server has a subscription, as far as we know
    let awaited = ""; // the event whose answer is pending
    let settling = null;
    let wake = null;
    const self = {
        place,
        name,
        options,
        members,
        presence: null,
        maxRate: null,
        allows: (member) => !members.size || JSON.stringify(member.filter) === JSON.stringify(filter),
        add(member) {
            if (!self.allows(member)) {
                failAll(new SubscriptionError("conflicting_filter", "another filter", name), [member]);
                return;
            }
            filter = member.filter;
            members.add(member);
            if (member.loader?.isStale)
                member.loader.load();
            self.use();
        },
        remove(member) {
            if (!members.delete(member))
                return;
            end(member, new SubscriptionError("unsubscribed", "unsubscribed", name));
            settle();
        },
        use() {
            all.set(name, self);
            settle();
        },
        settle,
        lose(at) {
            close();
            for (const one of members) {
                one.live = one.current = false;
                learnEpoch(one, null);
                if (one.established)
                    one.lost ||= at;
                one.report("state");
            }
            settle();
        },
        event(message) {
            const { position } = message;
            if (message.ephemeral) {
                for (const one of established())
                    if (members.has(one))
                        one.report("ephemeral", message);
                return;
            }
            if (message.retained || (retained && position > retained.position))
                retained = message;
            for (const one of established()) {
                if (!members.has(one))
                    continue; // ended by another handler of this message
                if (position !== undefined) {
                    // It will be replayed, or was already delivered.
                    if (!one.live || (one.position && position <= one.position.position))
                        continue;
                    one.position = { epoch: one.position?.epoch ?? "", position };
                    if (lacksEpoch(one))
                        settle();
                    else
                        message.epoch = one.position.epoch;
                }
                deliver(one, message);
            }
        },
        live(edge) {
            for (const one of members)
                if (one.live)
                    becomeCurrent(one, positionOf(edge));
            settle();
        },
        gap(gap) {
            const concernsLog = "position" in gap;
            if (concernsLog)
                retained = null;
            for (const one of concernsLog ? missing(gap) : established()) {
                if (concernsLog && one.loader) {
                    one.loader.load();
                    continue;
                }
                // Also to a lower position: the log may have begun again, in the same epoch too.
                if (concernsLog)
                    [one.position, one.start] = [positionOf(gap), null];
                reportGap(one, { tier: concernsLog ? "log" : "notify", ...gap });
            }
        },
        subscribed(body) {
            const start = positionOf(body);
            if (awaited === "subscribe" || !start)
                return;
            for (const one of members) {
                learnEpoch(one, start);
                if (one.live && one.position && !one.start)
                    one.live = follows(one, start);
            }
            settle();
        },
        unsubscribed({ reason }) {
            if (reason) {
                isOpen = false;
                const why = reason === "forbidden" ? "it is no longer allowed" : reason;
                const error = new SubscriptionError(reason, `The server has ended the subscription: ${why}.`, name);
                failAll(error, [...members]);
                self.presence?.end(error);
                settle();
            }
            else if (awaited !== "unsubscribe") {
                self.lose(isoTime());
            }
        },
    };
    return self;
    function settle() {
        wake?.();
        return settling ??= work();
    }
    async function work() {
        await null; // so that subscriptions made in the same task share a request
        let next;
        let attempt = 0;
        while (socket.connected && (next = nextRequest())) {
            const { id } = socket;
            const error = await send(next, attempt > 0);
            if (!error)
                attempt = 0;
            else if (socket.id === id && report(error, next))
                await sleep(attempt++);
        }
        settling = null;
        if (!isUsed() && !isOpen && all.get(name) === self)
            all.delete(name);
    }
    function isUsed() { return members.size || self.presence?.wish; }
    function established() { return [...members].filter((one) => one.established); }
    /** Returns the next request and the members that need it (`requesters`); null when there is nothing to do. */
    function nextRequest() {
        if (!isUsed())
            return isOpen ? { event: "unsubscribe", body: {}, requesters: [] } : null;
        const next = nextForMembers();
        return self.presence ? self.presence.plan(next) : next;
    }
    function nextForMembers() {
        if ([...members].some((one) => one.live && startsFromSnapshot(one)))
            return null; // see accept()
        const waiting = [...members].filter((one) => !one.loader?.isStale && (!one.live || lacksEpoch(one)));
        if (!waiting[0])
            return null;
        // Members with a position come first, from the lowest position on: a replay that starts later, for a new member's
        // history, would move the live messages past them.
        const places = waiting.flatMap((one) => (one.position && !lacksEpoch(one) && !one.start ? [one.position] : []));
        const subscribe = (body, needs) => ({ event: "subscribe", body, requesters: waiting.filter(needs) });
        if (places[0]) {
            const [{ epoch }] = places;
            const since = places.filter((place) => place.epoch === epoch).reduce((a, b) => (b.position < a.position ? b : a));
            return subscribe({ since }, ({ position, start }) => (!start && position?.epoch === epoch && position.position === since.position));
        }
        const since = waiting.find((one) => one.start)?.start;
        if (since)
            return subscribe({ since }, (one) => one.start === since);
        const { history } = waiting.find((one) => !one.history) ?? waiting[0];
        return subscribe(history ? { history } : {}, (one) => one.history === history);
    }
    /** Returns the error, or null. */
    function send(request, retry) {
        const { event, body } = request;
        const sent = { ...place, ...body };
        awaited = event;
        if (event === "subscribe") {
            isOpen = sent.batch = true;
            if (filter)
                sent.filter = filter;
            if (options.numbers)
                sent.numbers = options.numbers;
        }
        return new Promise((resolve) => sendRequest({ event, body: sent, answered(failure, answer) {
                awaited = "";
                if (!failure) {
                    // Here, not after the promise: messages that follow the answer may be handled before the promise resolves.
                    if (event === "subscribe")
                        accept(answer, request);
                    else if (event === "unsubscribe")
                        close();
                    self.presence?.accept(request, answer);
                }
                resolve(failure && new SubscriptionError(failure.code, failure.message, name));
            } }, retry));
    }
    /** The server has confirmed the subscription; with `since` or `history`, it replays the log after `start`. */
    function accept(answer, { body: { since, history }, requesters }) {
        isOpen = true;
        const wasLive = [...members].filter((one) => one.live);
        const start = positionOf(answer);
        self.maxRate = answer.max_rate ?? null;
        const lost = answer.recovered === false;
        const given = typeof since === "string"; // a time or a snapshot
        for (const one of members) {
            learnEpoch(one, start);
            if (start && !lost && (since || history)) {
                if (one.live)
                    one.position ??= start; // subscribed before the log was installed
                if (one.position && !one.start)
                    one.live = follows(one, start);
            }
        }
        for (const one of requesters) {
            if (!members.has(one) || one.live || (given && one.start !== since))
                continue;
            if (lost && one.loader && answer.reason !== "history_off") {
                one.loader.load();
                continue;
            }
            // Not if a gap has moved it since the request: it then requests what follows its new position.
            one.live = lost || !since || given || follows(one, since);
            if (lost || !since) {
                const installed = one.established && !one.position && start;
                one.position = start;
                one.start = null;
                one.history = 0;
                if (lost || installed)
                    reportGap(one, { tier: "log", reason: lost ? answer.reason : "client_disconnected", ...start });
            }
            else if (given) {
                one.position ??= start;
                if (!startsFromSnapshot(one))
                    one.start = null;
            }
        }
        // The server leaves out the messages that are in the snapshot, which the other handlers need: they wait until this
        // is done, and then get a replay of their own.
        if (requesters.some((one) => one.live && startsFromSnapshot(one))) {
            for (const one of members)
                if (!requesters.includes(one))
                    one.live = false;
        }
        for (const one of members)
            if (one.live && !wasLive.includes(one))
                confirm(one);
        const isLive = requesters.filter((one) => one.live);
        if (!since && !history && retained && retained.payload !== null && wasLive[0]) {
            for (const one of isLive)
                if (one.live)
                    deliver(one, { ...retained, retained: true });
        }
        // Otherwise the server reports when the replay has caught up.
        if ((!since && !history) || !options.sendsLive)
            for (const one of isLive)
                if (one.live)
                    becomeCurrent(one, null);
    }
    function close() {
        isOpen = false;
        self.presence?.lose();
    }
    /** Reports the error. Returns whether to wait before the next request. */
    function report(error, request) {
        const concerned = request.requesters.filter((one) => members.has(one));
        error.retrying = TRANSIENT.has(error.code)
            || (error.code === "internal" && (concerned.some((one) => one.established) || !!self.presence?.worked(request)));
        if (self.presence?.fail(error, request))
            return false;
        if (!error.retrying && request.event === "unsubscribe")
            close();
        failAll(error, concerned);
        return error.retrying;
    }
    function failAll(error, concerned) {
        if (!error.retrying)
            for (const one of concerned)
                members.delete(one);
        for (const one of concerned)
            fail$1(one, error);
    }
    /** Waits before the next attempt, or until something changes. */
    function sleep(attempt) {
        return new Promise((resolve) => {
            // At one of few moments, so that the retries of many channels share a request.
            const slot = options.retryDelay / 4 || 1;
            const at = Math.ceil((Date.now() + backoff(options, attempt)) / slot) * slot;
            wake = () => {
                wake = null;
                clearTimeout(timer);
                resolve();
            };
            const timer = setTimeout(wake, at - Date.now());
        });
    }
    /**
     * Returns the members that miss messages of the log. With "trimmed" these are the ones before the gap's position: the
     * replay may have begun for one that was behind the others. If there are none, all members get the gap.
     */
    function missing(gap) {
        const start = positionOf(gap);
        const behind = gap.reason === "trimmed" && start ? established().filter((one) => !follows(one, start)) : [];
        return behind[0] ? behind : established();
    }
}

/** What a connection carries: its channels and patterns, and the parts that follow it. Distributes the server's events. */
/** Events for channels and patterns. */
const SHARED_EVENTS = ["event", "gap", "live", "subscribed", "unsubscribed"];
/** Hands the messages of a batch to all listeners of the socket, as if each had come alone. */
function spread(bodies) {
    for (const body of bodies) {
        for (const listener of [...this.listeners("event")])
            if (this.connected)
                call(listener.bind(this), body);
    }
}
/** @param getMany returns what sends several requests together, when that is needed first; rejects if there is none */
function makeHub(socket, given, report, getMany) {
    const channels = new Map();
    const patterns = new Map();
    const parts = new Set();
    const options = { ...given, sendsLive: true };
    options.timeout ??= 15_000; // also if `given` has it as undefined
    options.retryDelay ??= 1_000;
    options.retryDelayMax ??= 15_000;
    let health = null;
    let heard = Date.now(); // when the server last sent something, in ms
    let features; // of the server, on this connection
    let isClosed = false;
    /** The last event `error` on this connection. */
    let lastError;
    const send = (one, retry) => {
        const alone = () => request(socket, options.timeout, one.event, one.body, one.answered);
        if (self.many)
            self.many.send(one, retry);
        else if (channels.size + patterns.size < 2)
            alone();
        else
            getMany().then((many) => (self.many = many).send(one, retry), alone);
    };
    const listen = (method, events) => {
        for (const event in events)
            socket[method](event, events[event]);
    };
    /** Returns those that an event of the server is for. */
    const named = ({ channel, pattern, matches = [pattern ?? channel] }) => (matches.flatMap((name) => (name?.includes("*") ? patterns : channels).get(name) ?? []));
    const all = () => [...channels.values(), ...patterns.values()];
    const hear = () => { heard = Date.now(); };
    const events = {
        connect() {
            hear();
            lastError = { code: "disconnected", message: "The server has ended the connection." };
            for (const shared of all())
                shared.settle();
        },
        error(failure) { lastError = failure ?? lastError; },
        disconnect(reason) {
            features = undefined;
            for (const part of parts)
                part.lose?.();
            for (const shared of all())
                shared.lose(isoTime(heard));
            if (reason === "io server disconnect")
                report("ended", lastError);
        },
        server_hello(hello) {
            const found = features = hello.features ?? [];
            options.sendsLive = found.includes("live");
            for (const part of parts)
                part.open?.(found);
            events.health(hello.health);
        },
        health(found) {
            if (!found || JSON.stringify(found) === JSON.stringify(health))
                return;
            health = found;
            report("health", found);
        },
        direct(message) {
            hear();
            report("direct", message);
        },
    };
    for (const name of SHARED_EVENTS) {
        events[name] = (body) => {
            hear();
            if (body.table)
                return; // for tables.ts
            for (const one of body.channels?.filter((each) => each.ok) ?? [body]) {
                for (const shared of named(one))
                    shared[name](one);
            }
        };
    }
    listen("on", events);
    // Only once for all users of the socket. It stays after `close()`: the server does not know of that.
    socket.off("events", spread).on("events", spread);
    socket.io.on("ping", hear);
    const self = {
        socket,
        options,
        channels,
        all,
        hear,
        get health() { return health; },
        add(part) {
            if (isClosed)
                part.close?.();
            else {
                parts.add(part);
                listen("on", part.events);
                if (features)
                    part.open?.(features);
            }
            return part;
        },
        shared(place) {
            const found = place.pattern ? patterns : channels;
            const name = (place.pattern ?? place.channel);
            return found.get(name) ?? makeShared(place, name, socket, send, options, found);
        },
        takeLate: events.subscribed,
        close() {
            isClosed = true;
            for (const part of parts) {
                part.close?.();
                listen("off", part.events);
            }
            parts.clear();
            listen("off", events);
            socket.io.off("ping", hear);
            for (const shared of all())
                for (const member of shared.members)
                    shared.remove(member);
        },
    };
    return self;
}

/** The stock client in the single file: the global `io`, which `/static/vendor/socket.io.min.js` sets. */
const io = ((...values) => {
    const { io: found } = globalThis;
    if (!found)
        throw new TypeError("load the Socket.IO client first, or pass a socket in place of the address");
    return found(...values);
});

/** Reads integers of messages that JavaScript's numbers would round, as BigInt or as texts. */
// Only with so many digits can an integer be beyond 2^53.
const LONG$1 = /\d{16}/;
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
    if (!LONG$1.test(text))
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
        const packet = typeof received === "string" && LONG$1.test(received) && !decoder.reconstructor && decode(received, nsp, read);
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

/** Why the connection has no valid token. */
/**
 * The server refused the connection, or the token could not be renewed before it expired.
 *
 * When the socket is connected, it is the renewal that failed. Nothing is lost then: the renewal is retried until the
 * token expires. The server then closes the connection, and the client reconnects with the token that `token` returns.
 */
class TokenError extends SocketIoPgError {
    name = "TokenError";
    /**
     * @param code one of docs/protocol.md, or "no_answer", or "no_token": the function `token` failed, or returned the
     *   old token again
     * @param options `cause`: the error that `token` has thrown
     */
    constructor(code, message, options) {
        super(code, message, options);
    }
}

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
        if (!login.token)
            this.#token = null;
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
        token_expiring: ({ expires_at: end }) => {
            // Limits how often tokens are renewed that live shorter than the server's warning period.
            const soon = (Date.parse(end) - Date.now()) / 3;
            const delay = Math.min(RENEWAL_SPREAD, Math.max(this.#options.retryDelay, soon));
            this.#later(delay * (0.5 + Math.random() / 2), () => this.#renew());
        },
    };
    /** Handles the event `connect_error`. */
    refuse(error) {
        if (this.#socket.active)
            return; // a network error: the stock client reconnects automatically
        const code = error.data?.code ?? "refused";
        const again = code === "unauthorized" ? ++this.#refusals < MAX_REFUSALS && this.#token !== null
            : TRANSIENT.has(code);
        this.#fail(new TokenError(code, error.message), again && this.#reconnect);
    }
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
            return (await this.#login.token?.()) ?? null;
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

const login = /*#__PURE__*/Object.freeze(/*#__PURE__*/Object.defineProperty({
    __proto__: null,
    Login
}, Symbol.toStringTag, { value: 'Module' }));

/** Parts of which a connection has one. */
/** Returns a function that returns the part of a connection, which `make` makes when it is needed first. */
function perHub(make) {
    const all = new WeakMap();
    return (hub) => {
        if (!all.has(hub))
            all.set(hub, hub.add(make(hub)));
        return all.get(hub);
    };
}

/** Requests of many channels in few messages to the server. */
// ms for which a retry waits for those of other channels, to share a request with them.
const JOIN_DELAY = 20;
// Requests that can be for many channels.
const EVENTS = ["subscribe", "unsubscribe"];
// Limits of one request for many channels: the server allows 500, and limits the bytes.
const MAX_TOGETHER = 250;
const MAX_CHARACTERS = 100_000;
/**
 * Sends the requests of channels. Requests that are made in the same task are sent together, up to 250 at a time: after
 * a reconnect, one for each channel would exceed the server's limit of events.
 */
class Many {
    #socket;
    #options;
    #onLate;
    #waiting = [];
    #timer;
    /** The failures of requests that await their answers. */
    #pending = new Set();
    #alone = ""; // the id of the connection to a server that takes one channel at a time: an older version
    constructor(hub) {
        this.#socket = hub.socket;
        this.#options = hub.options;
        this.#onLate = hub.takeLate;
    }
    send = (one, retry) => {
        if (!EVENTS.includes(one.event))
            this.#sendAlone([one]);
        else if (this.#waiting.push(one) && retry)
            this.#timer ??= setTimeout(() => this.#flush(), JOIN_DELAY);
        else
            queueMicrotask(() => this.#flush());
    };
    /** Fails all requests, because the connection is lost. */
    lose() {
        for (const lost of [...this.#pending])
            lost();
        this.#flush();
    }
    #flush() {
        clearTimeout(this.#timer);
        this.#timer = undefined;
        const waiting = this.#waiting.splice(0);
        if (!this.#socket.connected)
            fail(waiting);
        else
            for (const event of EVENTS)
                this.#send(waiting.filter((one) => one.event === event));
    }
    /** Sends requests for one event, one part after the other. */
    async #send(requests) {
        const { id } = this.#socket;
        for (const part of divide(requests)) {
            if (this.#socket.id !== id)
                fail(part);
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
                this.#pending.delete(lost);
                if (failure?.code.startsWith("invalid_") && this.#socket.id === id) {
                    this.#alone = id;
                    this.#sendAlone(part);
                }
                else {
                    part.forEach(({ answered }, index) => answered(failure ?? failureOf(results?.[index]), results?.[index]));
                }
                resolve();
            };
            const lost = () => finish(NO_ANSWER);
            const timer = setTimeout(lost, this.#options.timeout);
            this.#pending.add(lost);
            this.#socket.emit(event, { channels }, (answer) => {
                if (this.#pending.has(lost))
                    finish(failureOf(answer), answer?.channels);
                else if (event === "subscribe" && answer?.channels)
                    this.#onLate(answer);
            });
        });
    }
}
const manyOf = perHub((hub) => new Many(hub));
function fail(requests) {
    for (const { answered } of requests)
        answered(NO_ANSWER);
}
/** Divides requests into parts that are small enough for one request. */
function divide(requests) {
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

const many = /*#__PURE__*/Object.freeze(/*#__PURE__*/Object.defineProperty({
    __proto__: null,
    Many,
    manyOf
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
    /** False after `close()`, and when the server has ended it. */
    get isOpen() { return this.#shared.handles.has(this); }
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
    #worked = false; // the server has confirmed it once
    #combines = true; // presence is requested together with messages, unless the server has refused that
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
    plan(forMessages) {
        const next = this.#next();
        if (!forMessages)
            return next && { ...next, requesters: [] };
        if (next?.event === "subscribe" && this.#combines)
            Object.assign(forMessages.body, next.body);
        return forMessages;
    }
    worked(request) { return this.#worked && isForPresence(request); }
    #next() {
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
    accept(request, answer) {
        const { event, body: { presence: wish, state } } = request;
        if (!isForPresence(request))
            return;
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
        this.#worked = true;
        for (const handle of this.handles)
            handle.settle();
        this.#resolve();
    }
    /** A request has failed. Unless it is retried, what it was for is given up. */
    fail(error, request) {
        if (isForPresence(request)) {
            if (!error.retrying && request.requesters.length) {
                this.#combines = false; // the next requests tell which of both the server refuses
                return true;
            }
            this.#fail(error, request);
        }
        return false;
    }
    #fail(error, { event, body: { presence, state } }) {
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
/** Returns whether a request changes or asks for presence. */
function isForPresence({ event, body }) {
    return event.startsWith("presence") || "presence" in body;
}

/** The presence of a channel for one part of the program: `channel.presence`. */
/** The channel has the event `presence` for each change. */
function openPresence(core, { name, emit }, handle) {
    const onChange = (change) => emit("presence", change);
    let people;
    const open = () => {
        if (core.closed)
            throw core.closed;
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
            onError: (error) => { if (!handle.emit("error", error))
                core.fail(error); },
        });
    };
    let forget = () => { }; // the signal of the last join()
    open();
    return {
        get members() { return people.members; },
        get count() { return people.count; },
        get complete() { return people.complete; },
        get key() { return people.key; },
        watch: () => open().ready,
        join(state, { key, signal } = {}) {
            forget();
            if (signal?.aborted)
                return Promise.reject(new SubscriptionError("aborted", "The signal was aborted.", name));
            forget = onAbort(signal, () => people.leave());
            return open().join(state, { key });
        },
        update: (state) => open().update(state),
        leave() {
            forget();
            return open().leave();
        },
        close() {
            forget();
            people.close();
        },
    };
}

const presence = /*#__PURE__*/Object.freeze(/*#__PURE__*/Object.defineProperty({
    __proto__: null,
    openPresence
}, Symbol.toStringTag, { value: 'Module' }));

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

/** Why a message was not published. */
/** The server refused to publish a message, or the attempt was given up. */
class PublishError extends SocketIoPgError {
    channel;
    uncertain;
    name = "PublishError";
    /**
     * @param code one of docs/protocol.md, or "no_answer", or "closed": after `close()`
     * @param uncertain true when the message may have been published. Otherwise it was not
     */
    constructor(code, message, channel, uncertain) {
        super(code, message);
        this.channel = channel;
        this.uncertain = uncertain;
    }
}

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
        const { durable, id, wait, echo, traceparent, timeout = this.#hub.options.publishTimeout ?? 60_000 } = options;
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
/** Return what publishes on a connection. */
const publisherOf = perHub((hub) => new Publisher(hub));
const senderOf = perHub((hub) => new EphemeralSender(hub));
/** Returns an id that others do not guess. `crypto.randomUUID` exists only in pages served over https. */
function randomId() {
    return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const publishing = /*#__PURE__*/Object.freeze(/*#__PURE__*/Object.defineProperty({
    __proto__: null,
    Publisher,
    publisherOf,
    senderOf
}, Symbol.toStringTag, { value: 'Module' }));

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

/** Waiting. */
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

/** Rows that the application loads, before the messages that are not in them. */
// Messages of NOTIFY that one handler holds while it loads rows.
const MAX_HELD = 1_000;
class Loader {
    isStale; // the rows must be loaded first
    #member;
    #shared;
    #load;
    #onRows;
    #isLoading = false;
    #loads = 0; // 1 after it was current
    /** Messages of NOTIFY that arrived while it was stale. */
    #held = [];
    #heldTooMany = false;
    #ended = new AbortController();
    constructor(member, shared, load, onRows) {
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
    async load() {
        const one = this.#member;
        this.isStale = true;
        one.live = one.current = false;
        one.position = one.start = null;
        one.report("state");
        if (this.#isLoading)
            return;
        this.#isLoading = true;
        const { signal } = this.#ended;
        while (this.isStale) {
            if (this.#loads++)
                await pause(backoff(this.#shared.options, this.#loads - 2), signal);
            if (signal.aborted)
                return;
            try {
                const loaded = await this.#load({ signal });
                if (signal.aborted)
                    return;
                if (typeof loaded?.token !== "string" || !loaded.token)
                    throw new TypeError("load must return {rows, token}");
                this.#accept(loaded);
            }
            catch (cause) {
                if (signal.aborted)
                    return;
                const message = `Loading failed: ${cause?.message ?? cause}`;
                const error = new SubscriptionError("load_failed", message, this.#shared.name, { cause });
                error.retrying = true;
                fail$1(one, error);
            }
        }
        this.#isLoading = false;
        this.#shared.settle();
    }
    end() {
        this.#ended.abort();
    }
    /** Keeps a message of NOTIFY until the rows are there. */
    hold(message) {
        if (this.#held.push(message) > MAX_HELD) {
            this.#held.shift();
            this.#heldTooMany = true;
        }
    }
    /** All messages up to now were delivered. The next load is spread over some time: all clients may need one at once. */
    becomeCurrent() {
        this.#loads = 1;
    }
    /** The rows are there, with the token of their snapshot. */
    #accept({ rows, token }) {
        const member = this.#member;
        this.isStale = false;
        member.start = token;
        call(this.#onRows, rows);
        const held = this.#held.splice(0);
        if (this.#ended.signal.aborted)
            return; // by onRows
        for (const message of held)
            member.report("message", message);
        if (this.#heldTooMany)
            reportGap(member, { tier: "notify", reason: "too_many_while_loading" });
        this.#heldTooMany = false;
    }
}

/** What channels with the options `schema` and `load` need besides. */
/** Returns what checks a channel's payloads, if something does. */
function checkerFor(channel, schema, schemas) {
    const found = schema ?? schemaFor(schemas, channel.name);
    return found && new Checker(channel, found);
}
/** Checks the payloads of one subscription, in order. */
class Checker {
    /** The position before the messages that are being checked; undefined: none is. */
    position;
    #channel;
    #schema;
    #last = null;
    /** With a schema that needs time: the end of the checks so far. */
    #checks = null;
    constructor(channel, schema) {
        this.#channel = channel;
        this.#schema = schema;
    }
    /** @param isCurrent returns whether the subscription still goes on */
    receive(message, position, isCurrent) {
        const checked = check(this.#schema, message.payload);
        if (!this.#checks && !(checked instanceof Promise)) {
            this.#pass(message, checked);
            this.#last = position;
            return;
        }
        this.position ??= this.#last;
        const checks = (this.#checks ?? Promise.resolve()).then(() => checked).then((found) => {
            this.position = this.#last = position;
            if (isCurrent())
                this.#pass(message, found);
            if (this.#checks !== checks)
                return;
            this.#checks = null;
            this.position = undefined;
        });
        this.#checks = checks;
    }
    /** Returns the messages that the schema accepts. */
    async filter(messages) {
        const all = await Promise.all(messages.map(async (message) => [message, await check(this.#schema, message.payload)]));
        return all.flatMap(([message, checked]) => {
            if (!checked.issues)
                return { ...message, payload: checked.value };
            this.#channel.emit("invalid", { ...checked, message });
            return [];
        });
    }
    #pass(message, checked) {
        if (!checked.issues)
            this.#channel.deliver(message, { ...message, payload: checked.value });
        else
            this.#channel.emit("invalid", { ...checked, message });
    }
}

/** Reads older messages of a channel, beside its live subscription. */
/** @returns oldest first. Rejects with a SubscriptionError */
async function readHistory(core, channel, { filter, schema }, options = {}) {
    const { limit = 100, since, signal } = typeof options === "number" ? { limit: options } : options;
    const shared = core.hub.shared(channel.place);
    const found = [];
    await new Promise((resolve, reject) => {
        const end = (error) => {
            forget();
            shared.remove(member);
            if (error)
                reject(error);
            else
                resolve();
        };
        const member = makeMember(channel.place, { since, history: limit, filter }, (name, value) => {
            if (name === "message") {
                // Others are live, and came while the older ones were on their way.
                const message = value;
                if (message.replayed && found.length < limit && found.push(message) === limit && since)
                    end();
            }
            else if (name === "error") {
                if (!value.retrying)
                    end(value);
            }
            else if (name === "current" || (name === "subscribed" && !member.position && !member.start)) {
                end(); // without a log, or with a rule against replays, there is nothing to read
            }
            else if (core.closed)
                end(core.closed);
        });
        let forget = () => { };
        if (core.closed)
            end(core.closed);
        else if (limit < 1)
            end();
        else {
            forget = onAbort(signal, () => end(new SubscriptionError("aborted", "The signal was aborted.", shared.name)));
            if (!signal?.aborted)
                shared.add(member);
        }
    });
    return checkerFor(channel, schema, core.options.schemas)?.filter(found) ?? found;
}

/** The messages of a channel for a loop: `for await (const message of channel)`. */
/** Listens to a channel from now on, and keeps up to `size` messages that the loop has not taken yet. */
class Loop {
    #channel;
    #size;
    #buffer = [];
    #dropped = 0;
    #isEnded = false;
    #error;
    #wake = [];
    #forget = () => { };
    /**
     * @param options those of the channel, and then those of the loop
     * @param early messages that have come before, and what has listened to them
     */
    constructor(channel, options, { signal, buffer = options.buffer } = {}, early, hear) {
        this.#channel = channel;
        this.#size = buffer ?? 1_000;
        this.#change(channel.state); // it may have ended while this code was loaded
        if (!this.#isEnded)
            channel.on("message", this.#add).on("state", this.#change);
        channel.off("message", hear);
        for (const message of early)
            this.#add(message);
        this.#forget = onAbort(signal, () => this.#end());
    }
    [Symbol.asyncIterator]() { return this; }
    async next() {
        while (!this.#buffer.length && !this.#isEnded)
            await new Promise((resolve) => this.#wake.push(resolve));
        const dropped = this.#dropped;
        this.#dropped = 0;
        if (dropped)
            this.#channel.emit("gap", { ...this.#channel.place, tier: "buffer", reason: "buffer_full", dropped });
        if (this.#buffer.length)
            return { value: this.#buffer.shift(), done: false };
        const error = this.#error;
        this.#error = undefined;
        if (error)
            throw error;
        return { value: undefined, done: true };
    }
    async return() {
        this.#buffer = [];
        this.#end();
        return { value: undefined, done: true };
    }
    #add = (message) => {
        if (this.#buffer.push(message) > this.#size) {
            this.#buffer.shift();
            this.#dropped++;
        }
        this.#wake.shift()?.();
    };
    /** The channel has ended: the loop gets the messages that it has not taken yet, then the error. */
    #change = (state) => {
        if (state.status === "ended" && state.code !== "aborted" && state.code !== "closed")
            this.#error = this.#channel.final;
        if (state.status === "ended" || state.status === "idle")
            this.#end();
    };
    #end() {
        if (this.#isEnded)
            return;
        this.#isEnded = true;
        this.#channel.off("message", this.#add).off("state", this.#change);
        this.#forget();
        for (const wake of this.#wake.splice(0))
            wake();
    }
}

/** `client.seen(txid)`: waits for the change of a transaction. */
// For how long a change that has come is remembered, in ms.
const SEEN_FOR = 60_000;
function waitFor(core, txid, { signal, timeout } = {}) {
    const id = String(txid);
    return new Promise((resolve, reject) => {
        if (Date.now() - core.transactions.get(id) < SEEN_FOR) {
            resolve();
            return;
        }
        const done = (error) => {
            clearTimeout(timer);
            forget();
            core.off("transaction", check).off("state", checkState);
            if (error)
                reject(error);
            else
                resolve();
        };
        const give = (code, message) => () => done(new SubscriptionError(code, message, ""));
        const check = (seen) => { if (seen === id)
            done(); };
        const checkState = () => { if (core.closed)
            done(core.closed); };
        const timer = timeout === undefined ? undefined : setTimeout(give("no_answer", "The change did not come in time."), timeout);
        let forget = () => { };
        core.on("transaction", check).on("state", checkState);
        checkState();
        forget = onAbort(signal, give("aborted", "The signal was aborted."));
    });
}

/** What channels need besides listeners: loops, history, waiting for a transaction, schemas, and rows that are loaded. */

const reading = /*#__PURE__*/Object.freeze(/*#__PURE__*/Object.defineProperty({
    __proto__: null,
    Loader,
    Loop,
    checkerFor,
    readHistory,
    waitFor
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
        this.#body = { table, id: String(++tableIds), batch: true };
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
        this.#change(payload);
        call(this.#handlers.onPayload, payload);
    }
    #change(payload) {
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

/** A live table's rows for an application, as `client.table()` returns it: sorted, checked by its schema, with a state. */
const tablesOf = perHub((hub) => new Tables(hub));
// What the options `numbers` and `integers` make of numbers.
const NUMBER = /^-?\d+(?:\.\d+)?(?:e[-+]?\d+)?$/i;
const LONG = /^-?\d{16,}$/;
class TableView {
    state = { status: "subscribing", code: "subscribing", reason: "" };
    #core;
    #handle;
    #table;
    #order;
    #list = null;
    #error = null;
    #wasCurrent = false;
    #isEnded = false;
    name;
    constructor(core, name, options, handle) {
        const { where, order, limit, schema, signal } = options ?? {};
        this.name = name;
        this.#handle = handle;
        this.#order = (order === undefined ? [] : Array.isArray(order) ? order : [order]).map((one) => (typeof one === "string" ? { column: one, desc: false } : { column: one.column, desc: one.desc ?? false }));
        const checked = (row) => {
            const found = schema ? check(schema, row) : { value: row };
            if (found instanceof Promise)
                throw new TypeError("the schema of a table must not need time");
            if (!found.issues)
                return found.value;
            handle.emit("invalid", { ...found, row });
            return null;
        };
        this.#core = core;
        this.#table = tablesOf(core.hub).subscribe({ table: name, where, order, limit }, {
            check: schema && checked,
            onRows: (rows, reason) => {
                this.#list = null;
                handle.emit("rows", { rows, reason });
            },
            onChange: (change) => {
                this.#list = null;
                handle.emit("change", change);
            },
            onPayload: core.saw,
            onError: (error) => {
                this.#error = error;
                if (!error.retrying)
                    this.#isEnded = true;
                if (!handle.emit("error", error))
                    core.fail(error);
                this.#change();
            },
            onState: () => this.#change(),
        });
        if (core.closed)
            this.#table.unsubscribe();
        onAbort(signal, () => this.unsubscribe());
    }
    get rows() { return this.#table.rows; }
    get key() { return this.#table.key; }
    get complete() { return this.#table.complete; }
    get list() { return this.#list ??= this.#sort([...this.rows.values()]); }
    live() { return this.#table.live; }
    keyOf(row) { return this.#table.keyOf(row); }
    unsubscribe() {
        this.#isEnded = true;
        return this.#table.unsubscribe();
    }
    #sort(rows) {
        const { numbers, integers } = this.#core.options;
        const digits = numbers === "string" ? NUMBER : integers === "string" ? LONG : null;
        const columns = [...this.#order, ...this.key.map((column) => ({ column, desc: false }))].map(({ column, desc }) => ({
            column, desc,
            isNumber: !!digits && rows.every(({ [column]: value }) => typeof value !== "string" || digits.test(value)),
        }));
        return rows.sort((a, b) => {
            for (const { column, desc, isNumber } of columns) {
                const order = compare(a[column], b[column], isNumber);
                if (order)
                    return desc ? -order : order;
            }
            return 0;
        });
    }
    /** Reports the state if it is another one. */
    #change() {
        const table = this.#table; // while it is being made there is none
        let status = table?.confirmed ? "subscribed" : this.#wasCurrent ? "reconnecting" : "subscribing";
        const { closed } = this.#core;
        if (this.#isEnded || closed)
            status = "ended";
        else if (table?.active) {
            this.#error = null;
            this.#wasCurrent = true;
            status = "live";
        }
        const why = this.#isEnded ? this.#error : closed ?? this.#error;
        const code = why?.code ?? (status === "ended" ? "unsubscribed" : status);
        if (status === this.state.status && code === this.state.code)
            return;
        this.state = { status, code, reason: why?.message ?? "" };
        this.#handle.emit("state", this.state);
    }
}
/**
 * As PostgreSQL sorts: null comes last. Texts by their characters, as with the collation "C".
 * @param isNumber texts are numbers, which the client's options have made texts
 */
function compare(a, b, isNumber) {
    if (a === b)
        return 0;
    if (a === null || a === undefined)
        return 1;
    if (b === null || b === undefined)
        return -1;
    if (isNumber && typeof a === "string" && typeof b === "string") {
        const [x, y] = [Number(a), Number(b)];
        // Rounded to the same value, they have the same number of digits.
        return x !== y ? x - y : (a < b) === (x > 0) ? -1 : 1;
    }
    return a < b ? -1 : a > b ? 1 : 0;
}

const table = /*#__PURE__*/Object.freeze(/*#__PURE__*/Object.defineProperty({
    __proto__: null,
    TableView
}, Symbol.toStringTag, { value: 'Module' }));

/** The parts of the library in the single file: they are there. */
const PARTS = {
    exact: async () => exact,
    login: async () => login,
    many: async () => many,
    presence: async () => presence,
    publishing: async () => publishing,
    reading: async () => reading,
    table: async () => table,
};

/** `createClient`: one connection to a server, its channels and tables. */
// Transactions that are remembered for seen().
const MAX_SEEN = 10_000;
/**
 * Connects to a server, and reconnects until `close()`.
 * @param to the server's address, or a socket of socket.io-client that is not connected yet, which the caller connects
 */
function createClient(to, options = {}) {
    const { token, integers } = options;
    const isOwn = typeof to === "string";
    const socket = isOwn ? io(to, { ...options.socket, autoConnect: false }) : to;
    const transactions = new Map();
    let made;
    const emitter = makeEmitter();
    const { emit } = emitter;
    let closed;
    let wasConnected = false;
    let state = {};
    const become = (...values) => {
        const next = stateOf(...values);
        if ((closed && next.status !== "ended") || (next.status === state.status && next.code === state.code))
            return;
        state = next;
        emit("state", state);
    };
    const becomeLate = (code, reason) => become(wasConnected ? "reconnecting" : "connecting", code, reason);
    const part = async (key) => {
        for (let attempt = 0; !closed || !attempt; attempt++) {
            try {
                return await PARTS[key]();
            }
            catch (cause) {
                const error = new SubscriptionError("part_unavailable", `${key}: ${cause}`, "", { cause });
                error.retrying = true;
                self.fail(error);
                await new Promise((resolve) => setTimeout(resolve, backoff(hub.options, attempt)));
            }
        }
        throw closed;
    };
    const login = (then) => {
        (made ??= part("login").then((found) => hub.add(new found.Login(socket, hub.options, {
            token: typeof token === "string" ? () => token : token,
            onTokenError(error) {
                if (!socket.connected) {
                    if (error.retrying)
                        becomeLate(error.code, error.message);
                    else
                        become("disconnected", error.code, error.message);
                }
                self.fail(error);
            },
        })))).then(then, () => { });
    };
    const hub = makeHub(socket, options, (name, value) => {
        if (name === "ended")
            become("disconnected", value.code, value.message);
        else
            emit(name, value);
    }, () => part("many").then(({ manyOf }) => manyOf(hub)));
    const self = {
        ...emitter,
        socket,
        hub,
        options,
        transactions,
        part,
        get closed() { return closed; },
        get state() { return state; },
        get health() { return hub.health; },
        channel: (channel, how) => makeChannel(self, { channel }, channel, how),
        pattern: (pattern, how) => makeChannel(self, { pattern }, pattern, how),
        table(name, how) {
            const view = lazy(async (handle) => new (await part("table")).TableView(self, name, how, handle), {
                name, state: stateOf("subscribing"), rows: new Map(), list: [], key: [], complete: true,
                keyOf: () => undefined,
            }, ["live", "unsubscribe"]);
            view.live();
            return view;
        },
        publish: (channel, payload, how) => part("publishing").then(({ publisherOf }) => publisherOf(hub).publish(channel, payload, how)),
        send(channel, payload, how) {
            part("publishing").then(({ senderOf }) => { senderOf(hub).send(channel, payload, how); }, () => { });
        },
        seen: (txid, how) => part("reading").then(({ waitFor }) => waitFor(self, txid, how)),
        connect() {
            if (closed || socket.active)
                return;
            become("connecting");
            socket.connect();
        },
        close() {
            if (closed)
                return;
            closed = new SubscriptionError("closed", "closed", "");
            hub.close();
            if (isOwn)
                socket.disconnect();
            become("ended", "closed", closed.message);
        },
        fail(error, isKnown) {
            if (!emit("error", error) && !isKnown && !error.retrying)
                call(() => { throw error; });
        },
        saw(payload) {
            const txid = payload?.txid;
            if (!txid)
                return;
            transactions.set(txid, Date.now());
            if (transactions.size > MAX_SEEN)
                transactions.delete(transactions.keys().next().value);
            emit("transaction", txid);
        },
    };
    hub.add({ events: {
            connect() {
                wasConnected = true;
                become("connected");
            },
            disconnect(reason) {
                if (reason !== "io server disconnect") {
                    become(socket.active ? "reconnecting" : "disconnected", reason.replace(/ /g, "_"), reason);
                }
            },
            connect_error(error) {
                if (socket.active)
                    becomeLate("unreachable", error.message);
                else
                    login((found) => found.refuse(error));
            },
        } });
    become(socket.connected ? "connected" : socket.active ? "connecting" : "disconnected");
    if (token) {
        login();
        socket.auth ??= (send) => login((found) => found.connect(send));
    }
    const connect = () => { if (isOwn && options.socket?.autoConnect !== false)
        self.connect(); };
    if (integers && integers !== "number") {
        part("exact").then(({ readExactly }) => {
            readExactly(socket, integers);
            connect();
        }, () => { });
    }
    else
        connect();
    return self;
}

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
        this.#hub = makeHub(socket, delays, (name, value) => (call(name === "health" ? onHealth : name === "direct" ? onDirect : onEnded, value)));
        this.#hub.many = this.#hub.add(new Many(this.#hub));
        if (token) {
            const login = this.#hub.add(new Login(socket, this.#hub.options, { token, onTokenError }));
            socket.auth ??= (send) => login.connect(send);
            this.#hub.add({ events: { connect_error: (error) => login.refuse(error) } });
        }
        this.#publisher = this.#hub.add(new Publisher(this.#hub));
        this.#ephemeral = this.#hub.add(new EphemeralSender(this.#hub));
        this.#tables = this.#hub.add(new Tables(this.#hub));
    }
    subscribe(channel, handler, options = {}) {
        if (channel.table)
            return this.#tables.subscribe(channel, handler);
        const shared = this.#hub.shared(placeOf(channel));
        const { since, load } = options;
        const member = makeMember(shared.place, { ...options, since: since && startOf(since), history: load ? 0 : options.history }, (name, value) => {
            if (name === "message")
                call(handler, value);
            else
                call(options[CALLBACKS[name]], value);
            if (name === "error" && !value.retrying && member.established && !options.onError)
                call(() => { throw value; });
        });
        if (load)
            member.loader = new Loader(member, shared, load, options.onRows);
        if (!shared.allows(member))
            throw new TypeError(`another handler of ${shared.name} has another filter: the server keeps one for each client`);
        shared.add(member);
        return new Subscription(member, shared, Boolean(options.onError));
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
const CALLBACKS = {
    ephemeral: "onEphemeral", gap: "onGap", error: "onError", subscribed: "onSubscribed", current: "onLive",
};
/** One handler's subscription, as returned by `subscribe()`. */
class Subscription {
    #member;
    #shared;
    #ready;
    constructor(member, shared, reportsErrors) {
        this.#member = member;
        this.#shared = shared;
        this.#ready = member.ready.promise.then(() => { });
        // An unhandled rejection only if nobody else reports it, and the application has not ended it itself.
        member.ready.promise.catch(({ code }) => { if (reportsErrors || code === "unsubscribed")
            this.#ready.catch(() => { }); });
    }
    /** The channel, or the pattern. */
    get channel() { return this.#shared.name; }
    /**
     * Resolves when the server has confirmed the subscription for the first time: from then on, missed messages are
     * reported as a gap. Rejects with the SubscriptionError if the subscription ended before that.
     */
    get ready() { return this.#ready; }
    /**
     * Messages per second, of each key, that arrive at most: others are skipped. Null without such a rule, and before the
     * server has confirmed the subscription.
     */
    get maxRate() { return this.#shared.maxRate; }
    /** True when the server has confirmed the subscription on the current connection. */
    get active() { return !!this.#member.live; }
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
    get position() { return doneUpTo(this.#member); }
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
/** Checks a `since`. Returns a position, or a string for the server: a time, or the token of a snapshot. */
function startOf(since) {
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
function placeOf(channel) {
    return typeof channel === "object" ? { pattern: channel.pattern } : { channel };
}

export { LiveTable, People as Presence, PresenceState, PublishError, SocketIoPgError, Subscription, SubscriptionError, Subscriptions, TokenError, createClient };
