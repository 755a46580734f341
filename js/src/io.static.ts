/** The stock client in the single file: the global `io`, which `/static/vendor/socket.io.min.js` sets. */

import type { io as Io } from "socket.io-client";

export const io = ((...values: any[]) => {
  const { io: found } = globalThis as any;
  if (!found) throw new TypeError("load the Socket.IO client first, or pass a socket in place of the address");
  return found(...values);
}) as typeof Io;
