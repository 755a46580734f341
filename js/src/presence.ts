/** The presence of a channel as one part of the program uses it. `people.ts` is loaded when it is first used. */

import type { Core } from "./client.js";
import { Emitter } from "./emitter.js";
import type { People } from "./people.js";
import type { ClientError, Presence, PresenceChange, PresenceEvents, PresenceMember } from "./types.js";
import { onAbort } from "./util.js";

const NOBODY: ReadonlyMap<string, PresenceMember> = new Map();

export class PresenceHandle extends Emitter<PresenceEvents> implements Presence {
  #core;
  #name;
  #onChange;
  #people: People | null = null;
  #opening: Promise<People> | null = null;
  #isForwarding = false;

  constructor(core: Core, name: string, onChange: (change: PresenceChange) => void) {
    super();
    this.#core = core;
    this.#name = name;
    this.#onChange = onChange;
  }

  get members(): ReadonlyMap<string, PresenceMember> { return this.#people?.members ?? NOBODY; }

  get count(): number { return this.#people?.count ?? 0; }

  get complete(): boolean { return this.#people?.complete ?? false; }

  get key(): string | null { return this.#people?.key ?? null; }

  watch(): Promise<void> { return this.#open().then((people) => people.ready); }

  join(state?: any, { key, signal }: { key?: string; signal?: AbortSignal } = {}): Promise<void> {
    onAbort(signal, () => this.leave());
    return this.#open().then((people) => people.join(state, { key }));
  }

  update(state: any): Promise<void> { return this.#open().then((people) => people.update(state)); }

  leave(): Promise<void> { return this.#open().then((people) => people.leave()); }

  close(): void {
    this.#opening?.then((people) => people.close());
    this.#opening = this.#people = null;
  }

  /** The channel has a listener to `presence`, or none any more. */
  forward(isWanted: boolean): void {
    this.#isForwarding = isWanted;
    this.#update();
  }

  protected override listened(): void { this.#update(); }

  #update() {
    const isUsed = this.#isForwarding || (["join", "update", "leave", "sync"] as const).some((name) => this.hears(name));
    if (isUsed) this.#open();
  }

  #open(): Promise<People> {
    return this.#opening ??= this.#core.part("people").then(({ watch }) => {
      const made: People = watch(this.#core.hub, this.#core.hub.shared({ channel: this.#name }), {
        onJoin: (member) => {
          this.emit("join", member);
          this.#onChange({ kind: "join", member });
        },
        onUpdate: (member, before) => {
          this.emit("update", { member, before });
          this.#onChange({ kind: "update", member, before });
        },
        onLeave: (member) => {
          this.emit("leave", member);
          this.#onChange({ kind: "leave", member });
        },
        onSync: (members) => this.emit("sync", members),
        onError: (error) => { if (!this.emit("error", error as ClientError)) this.#core.fail(error as ClientError); },
      });
      this.#people = made;
      return made;
    });
  }
}
