/** A live table as one part of the program uses it. `view.ts` is loaded with the first one. */

import type { Core } from "./client.js";
import { Emitter } from "./emitter.js";
import { SubscriptionError } from "./errors.js";
import type { ChannelState, ClientError, Table, TableEvents, TableOptions } from "./types.js";
import { onAbort } from "./util.js";
import type { View } from "./view.js";

const NONE: ReadonlyMap<any, any> = new Map();
const EMPTY: readonly any[] = [];

export class TableHandle extends Emitter<TableEvents<any>> implements Table<any> {
  #core;
  #view: View | null = null;
  #opening: Promise<View>;
  #isEnded = false;
  #state: ChannelState = { status: "subscribing", code: "subscribing", reason: "" };

  constructor(core: Core, readonly name: string, options: TableOptions<any>) {
    super();
    this.#core = core;
    this.#opening = core.part("view").then(async ({ open, tablesOf }) => {
      const tables = await core.added("view", () => tablesOf(core.hub));
      if (this.#isEnded) throw core.closed ?? new SubscriptionError("unsubscribed", "unsubscribed before it began", name);
      return this.#view = open(core, tables, name, options, (event, value) => this.#heard(event, value));
    });
    this.#opening.catch(() => {});
    onAbort(options.signal, () => this.unsubscribe());
  }

  get state(): ChannelState { return this.#state; }

  get rows(): ReadonlyMap<any, any> { return this.#view?.rows ?? NONE; }

  get list(): readonly any[] { return this.#view?.list ?? EMPTY; }

  get key(): readonly string[] { return this.#view?.key ?? EMPTY; }

  get complete(): boolean { return this.#view?.complete ?? true; }

  keyOf(row: any): any { return this.#view?.keyOf(row); }

  live(): Promise<void> { return this.#opening.then((view) => view.live); }

  async unsubscribe(): Promise<void> {
    this.#isEnded = true;
    await this.#view?.unsubscribe();
  }

  #heard<Name extends keyof TableEvents>(event: Name, value: TableEvents<any>[Name]) {
    if (event === "state") {
      const { status, code } = value as ChannelState;
      if (status === this.#state.status && code === this.#state.code) return;
      this.#state = value as ChannelState;
    }
    if (!this.emit(event, value) && event === "error") this.#core.fail(value as ClientError);
  }
}
