import { useState } from "react";
import { usePresence, useTable } from "socketio-pg/react";
import type { Person } from "./People";

export interface Order {
  id: number;
  customer: string;
  item: string;
  total: number;
  status: string;
}

const COLUMNS = ["id", "customer", "item", "total", "status"] as const;

interface Props {
  status: string;
  selected: number | null;
  onSelect: (id: number | null) => void;
}

export function Orders({ status, selected, onSelect }: Props) {
  const [order, setOrder] = useState({ column: "id", desc: true });
  const where = status === "all" ? null : { status };
  const { rows, state, error } = useTable<Order>("socketio_pg_demo.orders", { where, order });
  const { members } = usePresence<Person>("react:orders");
  const namesAt = (id: number) =>
    members.filter(({ metas }) => metas.some((one) => one.state.order === id)).map(({ metas }) => metas[0].state.name);
  if (error && !error.retrying) return <p role="alert">{error.message}</p>;
  return (
    <table aria-busy={state.status !== "live"}>
      <thead>
        <tr>
          {COLUMNS.map((column) => (
            <th key={column} aria-sort={order.column === column ? (order.desc ? "descending" : "ascending") : "none"}>
              <button onClick={() => setOrder({ column, desc: order.column === column && !order.desc })}>{column}</button>
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {rows.map((row) => (
          <tr key={row.id} data-selected={row.id === selected}>
            <td>
              <button aria-pressed={row.id === selected} onClick={() => onSelect(row.id === selected ? null : row.id)}>
                {row.id}
              </button>
            </td>
            <td>{row.customer} {namesAt(row.id).map((name) => <mark key={name}>{name}</mark>)}</td>
            <td>{row.item}</td>
            <td>{row.total.toFixed(2)}</td>
            <td><span className="pill" data-state={row.status}>{row.status}</span></td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
