import { useState } from "react";
import { useConnectionState } from "socketio-pg/react";
import { Orders } from "./Orders";
import { People } from "./People";

const STATUSES = ["all", "new", "paid", "packed", "shipped"];

export function App() {
  const [status, setStatus] = useState("all");
  const [selected, setSelected] = useState<number | null>(null);
  return (
    <main>
      <header>
        <h1>Orders</h1>
        <Connection />
        <People selected={selected} />
      </header>
      <div className="bar">
        <label>
          Status{" "}
          <select value={status} onChange={(event) => setStatus(event.target.value)}>
            {STATUSES.map((name) => <option key={name}>{name}</option>)}
          </select>
        </label>
        <ChangeButton />
      </div>
      <Orders status={status} selected={selected} onSelect={setSelected} />
    </main>
  );
}

function Connection() {
  const { status, health } = useConnectionState();
  const text = health?.database === "unreachable" ? "database unreachable" : status;
  return <span className="pill" role="status" data-state={text}>{text}</span>;
}

/** Lets the server change a row, as any other program would: the page learns of it like all others. */
function ChangeButton() {
  const [problem, setProblem] = useState("");
  async function change() {
    const how = { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" };
    const answer = await fetch("/demo/orders/change", how);
    setProblem(answer.ok ? "" : `${answer.status} ${answer.statusText}`);
  }
  return <button onClick={() => change().catch((error) => setProblem(String(error)))}>Change something {problem}</button>;
}
