/** Sends the application's token to the server with each connection, and renews it before it expires. */

import type { Socket } from "socket.io-client";
import type { Part } from "./hub.js";
import { TokenError } from "./token-error.js";
import type { TokenSource } from "./types.js";
import { backoff, call, request, TRANSIENT, type Options, type Wire } from "./util.js";

// Refused tokens in a row before giving up: a token can expire on its way, or be newer than the server's clock.
const MAX_REFUSALS = 3;

// ms over which renewals are spread. The server warns 30 s before a token expires, and many tokens may expire together.
const RENEWAL_SPREAD = 10_000;

export interface LoginOptions {
  /** Without it, the client is anonymous: a refusal for lack of a token is final. */
  token?: TokenSource;
  /** Called with every failure. Without it, one that is not retried is thrown, for the handler of uncaught errors. */
  onTokenError?: (error: TokenError) => void;
}

export class Login implements Part {
  #socket;
  #options;
  #login;
  #token: string | null | undefined; // the last that was sent; null: connected without one
  #failures = 0; // in a row
  #refusals = 0; // failures because of the token
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(socket: Socket, options: Options, login: LoginOptions) {
    this.#socket = socket;
    this.#options = options;
    this.#login = login;
    if (!login.token) this.#token = null;
    socket.io.on("close", this.#closed);
  }

  close(): void {
    this.#rest();
    this.#socket.io.off("close", this.#closed);
  }

  events: Record<string, (body: Wire) => void> = {
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
  refuse(error: Wire): void {
    if (this.#socket.active) return; // a network error: the stock client reconnects automatically
    const code = error.data?.code ?? "refused";
    const again = code === "unauthorized" ? ++this.#refusals < MAX_REFUSALS && this.#token !== null
      : TRANSIENT.has(code);
    this.#fail(new TokenError(code, error.message), again && this.#reconnect);
  }

  // The application called disconnect() while not connected: do not reconnect. No other event reports this call.
  #closed = (reason: string) => {
    if (reason === "forced close" && !this.#socket.active) clearTimeout(this.#timer);
  };

  #reconnect = () => {
    if (!this.#socket.active) this.#socket.connect(); // unless the application has already done it
  };

  #rest() {
    clearTimeout(this.#timer);
    this.#failures = this.#refusals = 0;
  }

  #later(delay: number, what: () => void) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(what, delay);
  }

  async #fetch(): Promise<string | null> {
    try {
      return (await this.#login.token?.()) ?? null;
    } catch (cause) {
      throw new TokenError("no_token", `Getting a token failed: ${(cause as Error)?.message ?? cause}`, { cause });
    }
  }

  /** The stock client's `auth` function: calls `send` with the data for the server. The connection waits for it. */
  async connect(send: (data: object) => void): Promise<void> {
    const { engine } = this.#socket.io;
    const inTime = () => this.#socket.active && this.#socket.io.engine === engine;
    try {
      const token = await this.#fetch();
      if (!inTime()) return; // the next connection calls `auth` again
      this.#token = token;
      send(token === null ? {} : { token });
    } catch (error) {
      if (!inTime()) return;
      this.#socket.disconnect();
      this.#fail(error as TokenError, this.#reconnect);
    }
  }

  async #renew() {
    const { id } = this.#socket;
    try {
      const token = await this.#fetch();
      if (this.#socket.id !== id) return;
      if (token === this.#token) throw new TokenError("no_token", "`token` returned the old token again.");
      await new Promise<void>((resolve, reject) => {
        request(this.#socket, this.#options.timeout, "authenticate", { token }, (failure) => {
          if (failure) reject(new TokenError(failure.code, failure.message));
          else resolve();
        });
      });
      this.#token = token;
    } catch (error) {
      if (this.#socket.id === id) this.#fail(error as TokenError, () => this.#renew());
    }
  }

  /** Reports the error, and schedules `again` if it is a function. */
  #fail(error: TokenError, again: (() => void) | false) {
    error.retrying = Boolean(again);
    // Scheduled first, so that the callback can call connect() or disconnect().
    if (again) this.#later(backoff(this.#options, this.#failures++), again);
    else this.#rest();
    const { onTokenError } = this.#login;
    if (onTokenError || !again) call(onTokenError ?? (() => { throw error; }), error);
  }
}
