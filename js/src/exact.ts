/** Reads integers of messages that JavaScript's numbers would round, as BigInt or as texts. */

import type { Socket } from "socket.io-client";

type Read = (digits: string) => unknown;

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
  JSON.parse("1", ((_key: string, _value: unknown, context?: { source?: string }) => { found = context?.source === "1"; }) as any);
  return found;
})();

/** Parses JSON. Integers beyond ±(2^53 − 1) are what `read` makes of their digits. */
export function parse(text: string, read: Read, hasSource = HAS_SOURCE): any {
  if (!LONG.test(text)) return JSON.parse(text);
  if (hasSource) {
    return JSON.parse(text, ((_key: string, value: unknown, { source }: { source?: string }) => (
      typeof value === "number" && isLong(source!, value) ? read(source!) : value
    )) as any);
  }
  const marked = text.replace(TOKENS, (token, offset) => {
    if (token[0] === "\"") {
      if (!token.startsWith("\"\\u0000")) return token;
      NAME_END.lastIndex = offset + token.length;
      return NAME_END.test(text) ? token : `"\\u0000s:${token.slice(1)}`;
    }
    return isLong(token, Number(token)) ? `"\\u0000n:${token}"` : token;
  });
  return JSON.parse(marked, (_key, value) => {
    if (typeof value !== "string" || value[0] !== "\u0000") return value;
    return value.startsWith(MARK) ? read(value.slice(MARK.length)) : value.slice(MARKED.length);
  });
}

function isLong(source: string, value: number) {
  return !Number.isSafeInteger(value) && /^-?\d+$/.test(source);
}

/**
 * Makes a socket read the integers of its messages exactly. The stock client's decoder has an option for that only when
 * it is made: this decodes those packets of the socket in its place that have long numbers.
 */
export function readExactly(socket: Socket, as: "bigint" | "string"): void {
  const read: Read = as === "bigint" ? BigInt : (digits) => digits;
  const { nsp, io: { decoder } } = socket as any;
  const add = decoder.add.bind(decoder);
  decoder.add = (received: unknown) => {
    const packet = typeof received === "string" && LONG.test(received) && !decoder.reconstructor && decode(received, nsp, read);
    if (packet) (decoder.emitReserved ?? decoder.emit).call(decoder, "decoded", packet);
    else add(received);
  };
}

/** Decodes an event or an acknowledgement of a namespace; null for other packets. */
function decode(text: string, nsp: string, read: Read) {
  const [, type, namespace = "/", id, data] = /^([23])(?:(\/[^,]*),)?(\d*)(\[[^]*)$/.exec(text) ?? [];
  return type && namespace === nsp ? { type: Number(type), nsp, id: id ? Number(id) : undefined, data: parse(data, read) } : null;
}
