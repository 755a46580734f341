/** Objects whose code is loaded when they are first used. */

import { makeEmitter, type Emitter } from "./emitter.js";
import { quiet } from "./util.js";

/** What is behind such an object, once it is loaded. */
export type Inner = Record<string, any>;

/**
 * Returns an object with listeners, whose fields are those of the inner object, or `fields` as long as there is none, and
 * whose methods wait for it.
 * The application may leave their promises alone: the event `error` reports failures.
 * @param open loads the inner object; called once, by the first method or listener
 */
export function lazy(open: (handle: Emitter<any>) => Promise<Inner>, fields: Inner, methods: string[]): any {
  let inner = fields;
  let opening: Promise<Inner> | undefined;
  const use = () => quiet(opening ??= open(handle).then((found) => inner = found));
  const handle: any = makeEmitter(use);
  for (const name in fields) Object.defineProperty(handle, name, { get: () => inner[name] });
  for (const name of methods) handle[name] = (...values: any[]) => quiet(use().then(() => inner[name](...values)));
  return handle;
}
