/** Small functions that several modules share: requests to the server, pauses, callbacks. */

import type { Socket } from "socket.io-client";

/** JSON from the server or for it: docs/protocol.md describes each event. */
export type Wire = any;

/** An error of the server, or that none came. */
export interface Failure {
  code: string;
  message: string;
}

export interface Delays {
  retryDelay: number;
  retryDelayMax: number;
}

/** What all parts of a connection know; times in ms. */
export interface Options extends Delays {
  timeout: number;
  publishTimeout?: number;
  numbers?: string;
  /** The server reports when a replay has caught up; servers of older versions do not. */
  sendsLive: boolean;
}

/** Errors that are retried. "internal" is retried too, for a subscription that has worked before. */
export const TRANSIENT = new Set(["database_unavailable", "authentication_unavailable", "rate_limited", "no_answer"]);

export const NO_ANSWER: Failure = { code: "no_answer", message: "The server did not answer." };

/** Sends a request. Calls `answered` with the error, or with null and the answer. */
export function request(
  socket: Socket, timeout: number, event: string, body: Wire, answered: (failure: Failure | null, answer?: Wire) => void,
): void {
  socket.timeout(timeout).emit(event, body, (failure: Error | null, answer: Wire) => {
    if (failure) answered(NO_ANSWER);
    else answered(failureOf(answer), answer);
  });
}

/** Returns the error of an answer, or null. */
export function failureOf(answer: Wire): Failure | null {
  if (answer?.ok === true) return null;
  return { code: "internal", message: "", ...answer?.error };
}

/** Returns the milliseconds before the next attempt: a random part, so that many clients do not retry at the same time. */
export function backoff({ retryDelay, retryDelayMax }: Delays, attempt: number): number {
  return Math.min(retryDelayMax, retryDelay * 2 ** attempt) * (0.5 + Math.random() / 2);
}

export function isoTime(ms = Date.now()): string { return new Date(ms).toISOString(); }

/** Returns a state for the application. */
export function stateOf<Status extends string>(status: Status, code: string = status, reason = "") {
  return { status, code, reason };
}

export interface Deferred {
  promise: Promise<void>;
  resolve: () => void;
  reject: (error: Error) => void;
}

/** Returns a promise with the functions that settle it. */
export function deferred(): Deferred {
  const made = {} as Deferred;
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}

/** Calls a callback of the application. Rethrows its errors in a microtask, so that they do not affect the caller. */
export function call<Values extends unknown[]>(callback: ((...values: Values) => void) | null | undefined, ...values: Values): void {
  try {
    callback?.(...values);
  } catch (error) {
    queueMicrotask(() => { throw error; });
  }
}

/** Marks a promise as one that may be rejected without anybody who handles it. */
export function quiet<Value>(promise: Promise<Value>): Promise<Value> {
  promise.catch(() => {});
  return promise;
}

/** Calls `end` when the signal is aborted, at once if it is already. Returns the function that ends that. */
export function onAbort(signal: AbortSignal | undefined, end: () => void): () => void {
  if (signal?.aborted) end();
  else signal?.addEventListener("abort", end, { once: true });
  return () => signal?.removeEventListener("abort", end);
}
