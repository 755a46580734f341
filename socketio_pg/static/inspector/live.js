// The connection to the namespace `/inspector`: figures each second, and the tail of a channel. Without it, because the
// Socket.IO client is missing or the network lets no connection through, the figures are polled from the JSON API.

import { get, post, repeat } from "./api.js";

const ROOT = new URL("../", document.baseURI); // with the prefix, if there is one
const CLIENT = new URL("static/vendor/socket.io.min.js", ROOT);
const ANSWER_TIMEOUT = 10_000;
const POLL = 2_000;
const HIDDEN_PAUSE = 30_000; // ms after which a page that nobody sees gets no figures

/** Events: `state`, `now` (detail: the figures), and those of the tail: tail, tail_waiting, tail_gap, tail_live, tail_end. */
export class Live extends EventTarget {
  /** connecting, connected, reconnecting, polling or closed */
  state = "connecting";
  /** Whether the Socket.IO client could not be loaded. */
  clientMissing = false;
  #socket = null;
  #wantsNow = 0;
  #polling = null;
  #hiddenTimer;
  #isHidden = false;

  async start() {
    document.addEventListener("visibilitychange", () => this.#onVisibility());
    const io = await loadClient();
    if (!io) {
      this.clientMissing = true;
      this.#set("polling");
      return;
    }
    this.#socket = io(`${ROOT.origin}/inspector`, {
      path: `${ROOT.pathname}socket.io`,
      transports: ["websocket", "polling"],
      tryAllTransports: true,
      reconnectionDelay: 500,
      reconnectionDelayMax: 5_000,
      // The cookie is not for the namespace: each connection gets a ticket, good for half a minute.
      auth: (give) => post("ticket").then(({ ticket }) => give({ ticket }), () => give({})),
    });
    this.#socket.on("connect", () => this.#onConnect());
    this.#socket.on("disconnect", (reason) => {
      if (reason === "io server disconnect") this.#connectSoon();
      this.#set("reconnecting");
    });
    this.#socket.on("connect_error", () => {
      if (!this.#socket.active) this.#connectSoon();
      this.#set(this.state === "connecting" || this.state === "polling" ? "polling" : "reconnecting");
    });
    this.#socket.on("error", ({ code }) => {
      if (code === "unauthorized") get("session").then((session) => this.#emit("session", session), () => {});
    });
    for (const event of ["now", "tail", "tail_waiting", "tail_gap", "tail_live", "tail_end"]) {
      this.#socket.on(event, (detail) => this.#emit(event, detail));
    }
  }

  /** Ends the connection, until `resume()`. */
  pause() {
    clearTimeout(this.#timer);
    this.#socket?.disconnect();
    this.#set("closed");
  }

  resume() {
    if (!this.#socket) { this.#set("polling"); return; }
    this.#set("connecting");
    this.#socket.connect();
  }

  /** Lets figures come as events `now`, until the returned function is called. */
  watchNow() {
    this.#wantsNow += 1;
    this.#arrange();
    return () => {
      this.#wantsNow -= 1;
      this.#arrange();
    };
  }

  /** Sends a request of the tail. Returns the answer; throws an Error with a code. */
  async request(event, data) {
    if (!this.#socket?.connected) throw Object.assign(new Error("There is no connection to the server."), { code: "not_connected" });
    let answer;
    try {
      answer = await this.#socket.timeout(ANSWER_TIMEOUT).emitWithAck(event, data);
    } catch {
      throw Object.assign(new Error("The server did not answer."), { code: "no_answer" });
    }
    if (answer?.ok !== true) throw Object.assign(new Error(answer?.error?.message ?? ""), { code: answer?.error?.code ?? "internal" });
    return answer;
  }

  #timer;
  #connectSoon() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#socket.connect(), 1_000 + 2_000 * Math.random());
  }

  #onConnect() {
    this.#nowIsOn = false;
    this.#set("connected");
    this.#arrange();
  }

  #nowIsOn = false;
  #arrange() {
    const wants = this.#wantsNow > 0 && !this.#isHidden && this.state !== "closed";
    if (this.state === "connected" && this.#nowIsOn !== wants) {
      this.#nowIsOn = wants;
      this.request("now", { on: wants }).catch(() => { this.#nowIsOn = !wants; });
    }
    const polls = wants && this.state !== "connected";
    if (polls && !this.#polling) {
      this.#polling = repeat(async (signal) => this.#emit("now", await get("now", { history: 0 }, { signal })), POLL,
        (error) => this.#emit("now_error", error));
    } else if (!polls && this.#polling) {
      this.#polling.stop();
      this.#polling = null;
    }
  }

  #onVisibility() {
    clearTimeout(this.#hiddenTimer);
    if (!document.hidden) {
      this.#isHidden = false;
      this.#arrange();
    } else {
      this.#hiddenTimer = setTimeout(() => {
        this.#isHidden = true;
        this.#arrange();
      }, HIDDEN_PAUSE);
    }
  }

  #set(state) {
    if (this.state === state) return;
    this.state = state;
    this.#arrange();
    this.#emit("state", state);
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** Returns `io`, or null if the server has no copy of the client. */
async function loadClient() {
  const script = document.createElement("script");
  script.src = CLIENT;
  return await new Promise((resolve) => {
    script.addEventListener("load", () => resolve(globalThis.io ?? null));
    script.addEventListener("error", () => resolve(null));
    document.head.append(script);
  });
}
