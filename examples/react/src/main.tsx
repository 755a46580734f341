import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { createClient } from "socketio-pg";
import { SocketIoPgProvider } from "socketio-pg/react";
import { App } from "./App";
import "./style.css";

const client = createClient(location.origin);

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <SocketIoPgProvider client={client}>
      <App />
    </SocketIoPgProvider>
  </StrictMode>,
);
