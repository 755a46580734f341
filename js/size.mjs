// Prints how many bytes `import { createClient } from "socketio-pg"` adds to a page's first files, minified and with gzip,
// without socket.io-client; as JSON, with the files that are loaded later. After `npm run build`.
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { transform } from "esbuild";
import { rollup } from "rollup";

const index = fileURLToPath(new URL("dist/index.js", import.meta.url));
const page = "page";
const bundle = await rollup({
  input: page,
  external: ["socket.io-client"],
  plugins: [{
    name: "page",
    resolveId: (source) => (source === page ? page : null),
    load: (id) => (id === page ? `import { createClient } from ${JSON.stringify(index)}; globalThis.client = createClient("/");` : null),
    renderChunk: (code) => transform(code, { minify: true, format: "esm", target: "es2022" }),
  }],
});
const { output } = await bundle.generate({ format: "es" });
const files = new Map(output.map((file) => [file.fileName, file]));
const first = new Set(output.filter((file) => file.isEntry).map((file) => file.fileName));
for (const name of first) for (const imported of files.get(name).imports) if (files.has(imported)) first.add(imported);
const size = ({ code }) => gzipSync(code, { level: 9 }).length;
const later = output.filter(({ fileName }) => !first.has(fileName));
console.log(JSON.stringify({
  first: [...first].reduce((sum, name) => sum + size(files.get(name)), 0),
  files: [...first],
  later: Object.fromEntries(later.map((file) => [file.fileName, size(file)])),
}));
