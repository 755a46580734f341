// Renders the test page on a server, as Next.js does, and prints {html, connections}. No connection may be opened.

import net from "node:net";
import { StrictMode } from "react";
import { renderToString } from "react-dom/server";
import { createClient } from "socketio-pg";
import { App } from "./app";

let connections = 0;
const { connect } = net.Socket.prototype;
net.Socket.prototype.connect = function counted(this: net.Socket, ...values: any[]) {
  connections++;
  return connect.apply(this, values as any);
} as typeof connect;

const [url, props] = process.argv.slice(2);
const client = createClient(url!, { token: () => "none", socket: { autoConnect: false } });
const html = renderToString(<StrictMode><App client={client} {...JSON.parse(props!)} /></StrictMode>);
// A connection would be opened after the rendering at the latest.
setTimeout(() => console.log(JSON.stringify({ html, connections })), 200);
