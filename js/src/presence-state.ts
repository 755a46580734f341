/** The members of a channel's presence, kept in step with what the server sends. Pure. */

import type { PresenceChange, PresenceMember } from "./types.js";
import type { Wire } from "./util.js";

// Differences of presence that wait for the state. Without an older one the state is requested once more.
const MAX_EARLY = 1_000;

/** Calls nothing and waits for nothing. Each change replaces a member, and never modifies it. */
export class PresenceState {
  /** The members by key, in a Map: keys come from users, and may be "__proto__". */
  members = new Map<string, PresenceMember>();
  /** How many members there are. More than `members` has when the server sends only the count. */
  count = 0;
  /** Whether `members` has all of them. */
  complete = false;
  /** On this connection; null: the state must be requested. */
  #version: number | null = null;
  /** The differences that have arrived since. */
  #early: Wire[] = [];

  /** Whether the next difference can be applied. If not, the state must be requested. */
  get current(): boolean { return this.#version !== null; }

  /** The connection is lost: the next state is compared with the members of now. */
  lose(): void {
    this.#version = null;
    this.#early = [];
  }

  /** Takes the state that the server has sent. Returns the changes, but not for the members who are there at first. */
  sync({ version, count, members }: Wire): PresenceChange[] {
    const early = this.#early.splice(0);
    this.#version = version;
    const changes = this.#replace(members, count);
    for (const difference of early) {
      if (this.#version === null || difference.version > this.#version) changes.push(...this.apply(difference));
    }
    return changes;
  }

  /** Takes a difference. Returns the changes. Afterwards `current` is false if an earlier difference is missing. */
  apply(difference: Wire): PresenceChange[] {
    const { version, previous, count, joined, updated, left } = difference;
    if (previous !== this.#version) {
      this.#version = null;
      if (this.#early.push(difference) > MAX_EARLY) this.#early.shift();
      return [];
    }
    this.#version = version;
    if (!joined || !this.complete) return this.#replace(undefined, count); // too many members: no lists
    this.count = count;
    const changes = [...joined, ...updated].flatMap((member) => this.#set(member));
    return [...changes, ...left.flatMap(({ key }: PresenceMember) => this.#remove(key))];
  }

  /** Takes all members; undefined: they are not known any more. */
  #replace(members: PresenceMember[] | undefined, count: number) {
    const changes: PresenceChange[] = [];
    this.count = count;
    if (members && this.complete) {
      const present = new Set(members.map(({ key }) => key));
      for (const member of members) changes.push(...this.#set(member));
      for (const key of [...this.members.keys()]) if (!present.has(key)) changes.push(...this.#remove(key));
    }
    this.complete = Boolean(members);
    this.members.clear();
    for (const member of members ?? []) this.members.set(member.key, member);
    return changes;
  }

  #set(member: PresenceMember): PresenceChange[] {
    const before = this.members.get(member.key);
    this.members.set(member.key, member);
    if (!before) return [{ kind: "join", member }];
    // By ref: the Socket.IO id of a connection that has returned is no change.
    const states = new Map(before.metas.map(({ ref, state }) => [ref, state]));
    const isSame = states.size === member.metas.length
      && member.metas.every(({ ref, state }) => states.has(ref) && isEqual(states.get(ref), state));
    return isSame ? [] : [{ kind: "update", member, before }];
  }

  #remove(key: string): PresenceChange[] {
    const before = this.members.get(key);
    if (!before) return [];
    this.members.delete(key);
    return [{ kind: "leave", member: before, before }];
  }
}

/** Returns whether two JSON values are equal. */
export function isEqual(a: any, b: any): boolean {
  if (a === b || typeof a !== "object" || typeof b !== "object" || !a || !b) return a === b;
  const keys = Object.keys(a);
  return Array.isArray(a) === Array.isArray(b) && keys.length === Object.keys(b).length
    && keys.every((key) => Object.hasOwn(b, key) && isEqual(a[key], b[key]));
}
