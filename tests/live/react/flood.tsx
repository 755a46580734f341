// A list of thousands of messages of which only the visible lines are rendered, and a record of each frame.

import { useRef, useState } from "react";
import type { Client } from "socketio-pg";
import { SocketIoPgProvider, useChannel } from "socketio-pg/react";

const LINE = 20; // px
const HEIGHT = 600;

export function Flood({ client, channel }: { client: Client; channel: string }) {
  return <SocketIoPgProvider client={client}><List channel={channel} /></SocketIoPgProvider>;
}

export const flood = { renders: 0, total: 0, last: null as unknown, status: "" };
Object.assign(window, { flood });

function List({ channel }: { channel: string }) {
  const { messages, total, state } = useChannel<[number, string]>(channel, { limit: 10_000 });
  const [top, setTop] = useState(0);
  const box = useRef<HTMLDivElement>(null);
  flood.renders++;
  Object.assign(flood, { total, last: messages.at(-1)?.payload[0] ?? null, status: state.status });
  // Newest first: a line's place on the screen changes with each frame, as in any live list.
  const first = Math.floor(top / LINE);
  const visible = messages.slice(Math.max(0, messages.length - first - HEIGHT / LINE - 1), messages.length - first).reverse();
  return (
    <div id="list" ref={box} style={{ height: HEIGHT, overflowY: "auto" }} onScroll={() => setTop(box.current!.scrollTop)}>
      <div style={{ height: messages.length * LINE, position: "relative" }}>
        <ol style={{ position: "absolute", top: first * LINE, margin: 0, padding: 0, listStyle: "none" }}>
          {visible.map(({ payload, position }, index) => (
            <li key={index} style={{ height: LINE }}><b>{payload[0]}</b> <span>{position}</span></li>
          ))}
        </ol>
      </div>
    </div>
  );
}
