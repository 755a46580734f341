// JSON with integers as they were written: JavaScript's numbers round those above 2^53.

/** Parses a JSON text. Integers that a number cannot hold become raw JSON, if the engine can do that. */
export function parseExact(text) {
  if (!JSON.rawJSON) return JSON.parse(text);
  return JSON.parse(text, function keep(key, value, context) {
    const source = context?.source;
    if (typeof value !== "number" || Number.isSafeInteger(value) || !source || !/^-?\d+$/.test(source)) return value;
    return JSON.rawJSON(source);
  });
}

/** Whether a value of parseExact is an integer that a number cannot hold. */
export const isRaw = (value) => Boolean(JSON.isRawJSON?.(value));
