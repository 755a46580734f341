// The inspector's JSON API. Its addresses are relative to the page, so that a prefix in front of it works.

const BASE = new URL("./api/", document.baseURI);

/** An answer that is an error: `code` as in the documentation, or `unreachable` when there was no answer. */
export class ApiError extends Error {
  constructor(code, message, status = 0, retryAfter = null) {
    super(message && message[0].toUpperCase() + message.slice(1)); // the server writes them for the middle of a line
    this.code = code;
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }
}

/** Dispatches `unauthorized` when the session has ended. */
export const sessions = new EventTarget();

/** Requests `path` with the parameters that are neither undefined, null nor empty. */
export function get(path, parameters = {}, { signal } = {}) {
  const address = new URL(path, BASE);
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined && value !== null && value !== "") address.searchParams.set(name, value);
  }
  return send(address, { signal });
}

export function post(path, body = {}, { signal } = {}) {
  return send(new URL(path, BASE), {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  });
}

async function send(address, options) {
  let answer;
  let body;
  try {
    answer = await fetch(address, { ...options, credentials: "same-origin", cache: "no-store" });
    body = await answer.json().catch(() => ({}));
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("unreachable", "The server does not answer.");
  }
  if (answer.ok) return body;
  const { code = "internal", message = `The server answered with status ${answer.status}.` } = body.error ?? {};
  if (answer.status === 401 && !address.pathname.endsWith("/login")) sessions.dispatchEvent(new Event("unauthorized"));
  throw new ApiError(code, message, answer.status, Number(answer.headers.get("Retry-After")) || null);
}

/**
 * Calls `action(signal)` now and again `pause` ms after each end, or after as many as it returns if these are more, as long
 * as somebody can see the page. `onError` gets what it throws. Returns {stop, again}: `again()` calls it at once, in place of a call that is still going on.
 */
export function repeat(action, pause, onError) {
  let timer;
  let aborter = new AbortController();
  let stopped = false;
  async function run() {
    clearTimeout(timer);
    aborter.abort();
    const mine = aborter = new AbortController();
    let wanted = 0;
    if (!document.hidden) {
      try {
        wanted = Number(await action(mine.signal)) || 0;
      } catch (error) {
        if (mine.signal.aborted) return;
        onError(error);
      }
    }
    if (!stopped && mine === aborter) timer = setTimeout(run, Math.max(pause, wanted));
  }
  const onVisible = () => { if (!document.hidden) run(); };
  document.addEventListener("visibilitychange", onVisible);
  run();
  return {
    again: run,
    stop() {
      stopped = true;
      clearTimeout(timer);
      aborter.abort();
      document.removeEventListener("visibilitychange", onVisible);
    },
  };
}
