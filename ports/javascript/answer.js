// One question, as vectors and the process protocol pose it, and its answer.

import { layerOf } from "./known.js";
import { DIRECT, NEEDS, PARTS as OTHERS } from "./network_rules.js";
import { Refused, parametersOf } from "./parameters.js";
import { Affine, GRADIENT, PARTS, relevance } from "./rules.js";
import { ROUND, decode, encode } from "./tensor.js";

const ALL = { ...PARTS, ...OTHERS };
const WITHOUT = { ...GRADIENT, ...DIRECT };

const RULES = [...Object.keys(ALL), ...Object.keys(WITHOUT)];

/** `{relevance}`, `{skipped}` or `{error, message}` for `{rule, parameters, layer, dtype, tensors}`. */
export function answer({ rule, parameters, layer: description, dtype, tensors }) {
  if (!RULES.includes(rule)) return { skipped: `no rule ${rule}` };
  if (!(dtype in ROUND)) return { skipped: `no dtype ${dtype}` };
  try {
    const f = ROUND[dtype];
    const { x, R, ...own } = Object.fromEntries(Object.entries(tensors).map(([name, form]) => [name, decode(form)]));
    const layer = layerOf(description, own, x.shape.slice(1), f);
    if (!layer) return { skipped: `no layer ${description.type} ${description.function ?? ""}`.trim() };
    const [needed, fits] = NEEDS[rule] ?? ["", () => true];
    if (!fits(layer)) return { skipped: `${rule} needs ${needed}` };
    const given = parametersOf(rule, parameters, x.shape, f);
    const values = new Float64Array(x.values.length);
    for (let sample = 0; sample < x.shape[0]; sample++) {
      const of = (whole) => {
        const length = whole.length / x.shape[0];
        return whole.subarray(sample * length, (sample + 1) * length);
      };
      values.set(one(rule, layer, of(x.values), of(R.values), of, given, f), (sample * values.length) / x.shape[0]);
    }
    return { relevance: encode({ dtype, shape: x.shape, values }) };
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    return { error: error.kind, message: error.message };
  }
}

function one(rule, layer, x, R, of, given, f) {
  if (rule in WITHOUT) return WITHOUT[rule](layer, x, R, given);
  const bounds = rule === "ZBox" ? { low: of(given.low), high: of(given.high) } : {};
  const parts = ALL[rule](new Affine(layer, x, given.zero_params ?? []), { ...given, ...bounds });
  return relevance(parts, R, given.stabilizer, f);
}
