import { defineConfig } from "vite";

const target = process.env.SERVER ?? "http://127.0.0.1:3030";
const proxy = { "/socket.io": { target, ws: true }, "/demo": { target } };

export default defineConfig({
  server: { proxy },
  preview: { proxy },
});
