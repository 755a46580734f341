/** Objects whose code is loaded when they are first used. */

import { makeEmitter, type Emitter } from "./emitter.js";

/** What is behind such an object, once it is loaded. */
export type Inner = Record<string, any>;

/**
 * Returns an object with listeners, whose fields are those of the inner object, or `fields` as long as there is none, and
 * whose methods wait for it.
 * @param open loads the inner object; called once, by the first method or listener
 */
export function lazy(open: (handle: Emitter<any>) => Promise<Inner>, fields: Inner, methods: string[]): any {
  let inner = fields;
  let opening: Promise<Inner> | undefined;
  const use = () => opening ??= open(handle).then((found) => inner = found);
  const handle: any = makeEmitter(use);
  for (const name in fields) Object.defineProperty(handle, name, { get: () => inner[name] });
  for (const name of methods) handle[name] = async (...values: any[]) => (await use())[name](...values);
  return handle;
}
