// The process protocol: one request a line on standard input, one answer a line on standard output.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import { answer } from "./answer.js";
import { FUNCTIONS } from "./functions.js";
import { CLASSES } from "./layers.js";
import { GRADIENT, PARTS } from "./rules.js";
import { ROUND } from "./tensor.js";

const { name, version } = JSON.parse(readFileSync(new URL("package.json", import.meta.url)));
const OFFERED = {
  protocol: 1,
  name,
  version,
  language: `JavaScript, Node ${process.versions.node}`,
  // the protocol has no operations of several operands, and no rules for them: the vectors ask for these
  rules: [...Object.keys(PARTS), ...Object.keys(GRADIENT)],
  layers: Object.keys(CLASSES),
  functions: Object.keys(FUNCTIONS),
  dtypes: Object.keys(ROUND),
};

function reply(request) {
  if (request.do === "start") return OFFERED;
  if (request.do === "stop") return { stopped: true };
  try {
    return { seq: request.seq, ...answer(request) };
  } catch (error) {
    return { seq: request.seq, error: "other", message: error.message, context: error.stack };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  process.stdout.write(`${JSON.stringify(reply(request))}\n`);
  if (request.do === "stop") break;
}
