/** The stock client. */

export { io } from "socket.io-client";
