// Builds the package into dist/, and the single file for `<script type="module">`. `node build.mjs FILE` writes that file
// elsewhere. Needs no network.
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { rollup } from "rollup";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const target = process.argv[2] ?? here("../socketio_pg/static/socketio_pg.js");

execFileSync(process.execPath, [here("node_modules/typescript/bin/tsc"), "-p", here("tsconfig.json")], { stdio: "inherit" });

/** In the single file, all parts are there, and the stock client is a global. */
const inOne = {
  name: "in one file",
  resolveId: (source) => (/^\.\/(parts|io)\.js$/.test(source) ? here(`dist/${source.slice(2, -3)}.static.js`) : null),
};
const bundle = await rollup({
  input: here("dist/static.js"),
  plugins: [inOne],
  onwarn: (warning) => { throw new Error(warning.message); },
});
await bundle.write({
  file: target,
  format: "es",
  banner: "// Made from js/src by `npm run build` in js/: change it there. docs/javascript.md describes it.",
  generatedCode: "es2015",
});
await bundle.close();
