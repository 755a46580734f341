/** Checks payloads with the application's schemas. */

import type { Schema, SchemaIssue } from "./types.js";

export interface Invalid {
  issues: readonly SchemaIssue[];
  cause?: unknown;
}

export type Checked = { value: any; issues?: undefined } | Invalid;

/** Returns the checked value or what is wrong with it; a promise if the schema needs time. */
export function check(schema: Schema<any>, value: unknown): Checked | Promise<Checked> {
  try {
    const found = "~standard" in schema ? schema["~standard"].validate(value) : { value: schema.parse(value) };
    return found instanceof Promise ? found.catch(wrong) : found;
  } catch (cause) {
    return wrong(cause);
  }
}

function wrong(cause: any): Invalid {
  return { issues: cause?.issues ?? [{ message: String(cause?.message ?? cause) }], cause };
}

/** Returns the schema of a channel: under its own name, or the first key that stands for it. */
export function schemaFor(schemas: Record<string, Schema<any> | undefined> | undefined, name: string): Schema<any> | undefined {
  if (!schemas) return undefined;
  // Not one that all objects inherit: a channel may be called "constructor".
  const key = Object.hasOwn(schemas, name) ? name : Object.keys(schemas).find((one) => matches(one, name));
  return key === undefined ? undefined : schemas[key];
}

/** Returns whether a name is one of `"orders:*"`, `"orders:${number}"` or `"orders:${string}"`. */
function matches(key: string, name: string) {
  const parts = key.split(/\*|\$\{string\}|(\$\{number\})/).map((part, index) => (
    index % 2 ? (part ? "-?[\\d.]+(?:e[-+]?\\d+)?" : ".*") : part.replace(/[^\w]/g, "\\$&")
  ));
  return new RegExp(`^${parts.join("")}$`, "s").test(name);
}
