import { useState } from "react";
import { usePresence } from "socketio-pg/react";

export interface Person {
  name: string;
  /** The order that this person has selected. */
  order: number | null;
}

const NAMES = ["Badger", "Beaver", "Falcon", "Heron", "Lynx", "Marten", "Otter", "Owl", "Raven", "Seal"];

/** Shows who is here, and tells the others what this person has selected. */
export function People({ selected }: { selected: number | null }) {
  const [name] = useState(() => NAMES[Math.floor(Math.random() * NAMES.length)]);
  const { members, count } = usePresence<Person>("react:orders", { name, order: selected });
  const names = members.map(({ key, metas }) => <li key={key}>{metas[0].state.name}</li>);
  return <ul className="people" aria-label={`${count} people here`}>{names}</ul>;
}
