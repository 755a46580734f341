// Prints how many bytes `import { createClient } from "socketio-pg"` adds to a page's first files, minified and with gzip,
// without socket.io-client; as JSON, with the files that are loaded later.
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const { outputFiles, metafile } = await build({
  stdin: {
    contents: 'import { createClient } from "./dist/index.js"; globalThis.made = createClient("/");',
    resolveDir: fileURLToPath(new URL(".", import.meta.url)),
  },
  bundle: true, minify: true, splitting: true, format: "esm", target: "es2022", outdir: "out", write: false, metafile: true,
  external: ["socket.io-client"],
});

const sizes = new Map(outputFiles.map(({ path, contents }) => [path.slice(path.indexOf("/out/") + 1), gzipSync(contents, { level: 9 }).length]));
const first = new Set(["out/stdin.js"]);
for (const path of first) {
  for (const { path: imported, kind } of metafile.outputs[path].imports) if (kind === "import-statement" && sizes.has(imported)) first.add(imported);
}
const sum = (paths) => paths.reduce((total, path) => total + sizes.get(path), 0);
const later = [...sizes.keys()].filter((path) => !first.has(path));
console.log(JSON.stringify({ first: sum([...first]), later: Object.fromEntries(later.map((path) => [path, sizes.get(path)])) }));
