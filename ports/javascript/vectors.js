// node vectors.js DIR: answers the vectors in a folder, a line each, for `lrp-vectors verify`.

import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";

import { answer } from "./answer.js";

const [folder] = process.argv.slice(2);
if (!folder) {
  console.error("usage: node vectors.js DIR > RESULTS, where DIR holds the vectors");
  process.exit(2);
}
for (const file of readdirSync(folder).sort()) {
  const { rule, groups } = file.endsWith(".json") ? JSON.parse(readFileSync(join(folder, file))) : {};
  for (const { parameters, layer, cases } of groups ?? [])
    for (const { id, dtype, tensors } of cases)
      console.log(JSON.stringify({ id, ...answer({ rule, parameters, layer, dtype, tensors }) }));
}
