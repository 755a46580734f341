/** A TanStack DB collection of the rows of a watched table, with optimistic changes. Copy this file into your project. */

import type { CollectionConfig, PendingMutation } from "@tanstack/db";
import type { Client, ClientError, TableOptions } from "socketio-pg";

/** ms for the message of a change to come after rows that do not have it. */
const AFTER_READ = 2_000;

export interface TableCollection<Row extends object, Key extends string | number> {
  client: Client<any>;
  /** "schema.table": a live table, as in docs/live-tables.md. */
  table: string;
  getKey: (row: Row) => Key;
  where?: TableOptions<Row>["where"];
  /**
   * Makes changes in one transaction of the database, and returns its `pg_current_xact_id()::text`. When it throws, the
   * rows on the page become what they were.
   */
  change: (mutations: PendingMutation<Row>[]) => Promise<string>;
  /** ms until a change that does not come is given up: the row may not match `where`, or may be hidden. */
  timeout?: number;
  onError?: (error: ClientError) => void;
}

/** Returns options for `createCollection()`. Its rows are those of the database, and the changes that are on their way. */
export function tableCollection<Row extends object, Key extends string | number>(
  { client, table, getKey, where = null, change, timeout = 10_000, onError }: TableCollection<Row, Key>,
): CollectionConfig<Row, Key> {
  /** How often all rows have been read, and who waits for the next time. */
  let reads = 0;
  const waiting = new Set<() => void>();

  /** Resolves when the change is in the rows. Until then, TanStack DB shows the optimistic state. */
  async function commit({ transaction }: { transaction: { mutations: PendingMutation<Row, any>[] } }): Promise<void> {
    const before = reads;
    const txid = await change(transaction.mutations);
    const given = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    // Rows that were read again may have the change, and no message follows then.
    const wait = () => { timer ??= setTimeout(() => given.abort(), AFTER_READ); };
    if (reads === before) waiting.add(wait);
    else wait();
    try {
      await client.seen(txid, { timeout, signal: given.signal });
    } catch (error) {
      // The change is made, and the rows are those of the database: there is nothing to roll back.
      if (!["no_answer", "aborted"].includes((error as ClientError).code)) throw error;
    } finally {
      clearTimeout(timer);
      waiting.delete(wait);
    }
  }

  return {
    getKey,
    sync: {
      rowUpdateMode: "full",
      sync({ begin, write, commit, truncate, markReady, markError }) {
        const rows = client.table<Row>(table, { where });
        rows.on("rows", ({ rows: all }) => {
          begin();
          truncate();
          for (const row of all.values()) write({ type: "insert", value: row });
          commit();
          markReady();
          reads++;
          for (const wait of waiting) wait();
        });
        rows.on("change", ({ row, before }) => {
          begin();
          const isSame = row && before && getKey(row) === getKey(before);
          if (before && !isSame) write({ type: "delete", value: before });
          if (row) write({ type: isSame ? "update" : "insert", value: row });
          commit();
        });
        rows.on("error", (error) => {
          onError?.(error);
          if (!error.retrying) markError(error);
        });
        return () => { rows.unsubscribe(); };
      },
    },
    onInsert: commit,
    onUpdate: commit,
    onDelete: commit,
  };
}
