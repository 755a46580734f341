// A page with each hook, for tests: `window.show(props)` renders, and the elements have as JSON what the hooks return.

import { StrictMode, useEffect, useState } from "react";
import { createRoot, hydrateRoot } from "react-dom/client";
import { createClient } from "socketio-pg";
import { App, recorded, renders, type Props } from "./app";
import { Flood } from "./flood";

const parameters = new URLSearchParams(location.search);
const root = document.getElementById("root")!;

/** The tokens that the page has asked for. */
let asked = 0;
const client = createClient(parameters.get("server")!, {
  token: async () => {
    asked++;
    if (parameters.has("anonymous")) return null;
    const answer = await fetch(`/token?${parameters.get("user")}`);
    if (!answer.ok) throw new Error(`no token: ${answer.status}`);
    return answer.text();
  },
  retryDelay: 100,
  socket: {
    autoConnect: false, // as on a page that a server has rendered: the first component connects
    transports: [parameters.get("transport") ?? "websocket"], reconnectionDelay: 100, reconnectionDelayMax: 500,
  },
});

/** Problems that React reports: a hydration mismatch, an error while rendering. */
const problems: string[] = [];
const report = { onRecoverableError: (error: unknown) => problems.push(String(error)) };

function Root() {
  const [props, setProps] = useState<Props>(JSON.parse(parameters.get("props") ?? "{}"));
  useEffect(() => {
    Object.assign(window, { show: setProps });
  }, []);
  return props.flood ? <Flood client={client} channel={props.flood} /> : <App client={client} {...props} />;
}

Object.assign(window, { client, recorded, renders, problems, tokens: () => asked });

const page = <StrictMode><Root /></StrictMode>;
if (root.firstChild) hydrateRoot(root, page, report);
else createRoot(root, report).render(page);
