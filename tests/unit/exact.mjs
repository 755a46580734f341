// Parses each line of standard input with js/src/exact.ts, in both ways that this engine has, and prints the results.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const { parse } = await import(pathToFileURL(process.argv[2]).href);
let hasSource = false;
JSON.parse("1", (_key, _value, context) => { hasSource = context?.source === "1"; });

for await (const line of createInterface({ input: process.stdin })) {
  const read = (digits) => ({ exact: digits });
  const found = [parse(line, read, false), ...(hasSource ? [parse(line, read, true)] : [])];
  console.log(JSON.stringify(found));
}
