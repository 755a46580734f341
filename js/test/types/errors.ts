// Exhaustive switches over errors and states. This file is only compiled.
import { createClient, PublishError, SocketIoPgError, type ClientError, type ClientState } from "socketio-pg";

/** Says what to do; a new code is an error at `satisfies never`. */
export function advice(error: ClientError): string {
  switch (error.code) {
    case "unauthorized": case "no_token": case "identity_changed": return "sign in again";
    case "forbidden": return `no permission for ${error.channel}`;
    case "invalid_request": case "invalid_channel": case "conflicting_filter": case "wrong_key": case "not_supported": return "fix the program";
    case "too_many_subscriptions": case "too_many_rows": case "filter_too_expensive": return "ask for less";
    case "payload_too_large": return "send less";
    case "rate_limited": case "database_unavailable": case "authentication_unavailable": case "internal": case "no_answer":
    case "refused": case "part_unavailable": return error.retrying ? "wait" : "try again later";
    case "log_not_installed": return "socketio-pg init";
    case "ended_by_server": case "idle_timeout": return "connect again";
    case "load_failed": return String(error.cause);
    case "unsubscribed": case "closed": case "aborted": return "nothing";
    default: error satisfies never; return "update this program";
  }
}

/** A forgotten code is noticed. */
export function forgetful(error: ClientError): string {
  switch (error.code) {
    case "unauthorized": return "sign in again";
    // @ts-expect-error there are more
    default: error satisfies never; return "";
  }
}

export function shown({ status, code, reason }: ClientState): string {
  switch (status) {
    case "connecting": case "reconnecting": return "…";
    case "connected": return "";
    case "disconnected": case "ended": return `${code}: ${reason}`;
    default: return status satisfies never;
  }
}

const client = createClient("/");
client.on("error", (error) => {
  advice(error);
  error satisfies SocketIoPgError;
  // @ts-expect-error no such code
  error.code === "nonsense";
}).on("state", shown);
client.publish("chat", 1).catch((error: unknown) => {
  if (error instanceof PublishError) error.uncertain satisfies boolean;
});
