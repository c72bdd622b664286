// The parameters of a rule: defaults, and what is refused. A message says what was given and what was expected.

import { decode, size } from "./tensor.js";

/** An answer instead of a relevance: `kind` is value or type. */
export class Refused extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

const STABILIZER = { stabilizer: 1e-6 };
const DEFAULTS = {
  Epsilon: { epsilon: 1e-6, zero_params: [] },
  Norm: STABILIZER,
  ZPlus: { ...STABILIZER, zero_params: [] },
  AlphaBeta: { alpha: 2, beta: 1, ...STABILIZER, zero_params: [] },
  Gamma: { gamma: 0.25, ...STABILIZER, zero_params: [] },
  ZBox: { low: null, high: null, ...STABILIZER, zero_params: [] },
  WSquare: { ...STABILIZER, zero_params: [] },
  Flat: { ...STABILIZER, zero_params: [] },
  Pass: {},
  ReLUDeconvNet: {},
  ReLUGuidedBackprop: {},
  ReLUBetaSmooth: { beta_smooth: 10 },
  Uniform: {},
  SignalTakesAll: { signal: null },
  Bilinear: STABILIZER,
  Softmax: { dim: null },
  Stop: {},
  LayerNormRule: { ...STABILIZER, zero_params: [] },
};

/** What JSON has no number for; any other text is no number. */
const WORDS = { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity };

/** The parameters of a rule on an input of this shape, checked, defaults filled in, bounds one an entry of x. */
export function parametersOf(rule, given, shape, f) {
  const unknown = Object.keys(given).filter((name) => !(name in DEFAULTS[rule]));
  if (unknown.length) throw new Refused("type", `${rule}: given ${unknown}, expected ${Object.keys(DEFAULTS[rule])}`);
  const found = { ...DEFAULTS[rule], ...given };
  for (const name of ["epsilon", "stabilizer"])
    if (name in found) found.stabilizer = stabilizerOf(`${rule}: ${name}`, found[name]);
  for (const name of ["alpha", "beta"]) if (name in found) found[name] = finite(`${rule}: ${name}`, found[name], 0);
  if (rule === "AlphaBeta") {
    const { alpha, beta } = found;
    // 1.4 - 0.4 is 1 but for rounding
    if (!(Math.abs(alpha - beta - 1) <= 4 * Number.EPSILON * Math.max(alpha, 1)))
      throw new Refused("value", `AlphaBeta: given alpha ${shown(alpha)}, beta ${shown(beta)}, expected alpha - beta = 1`);
  }
  for (const name of ["signal", "dim"])
    if (name in found && found[name] !== null && !Number.isInteger(found[name]))
      throw new Refused("type", `${rule}: ${name}: given ${JSON.stringify(found[name])}, expected null or an integer`);
  if (found.signal < 0) throw new Refused("value", `SignalTakesAll: signal: given ${found.signal}, expected at least 0`);
  if (rule === "Gamma") found.gamma = finite("Gamma: gamma", found.gamma, 0);
  if (rule === "ReLUBetaSmooth") {
    found.beta_smooth = finite("ReLUBetaSmooth: beta_smooth", found.beta_smooth, 0);
    if (found.beta_smooth === 0) throw new Refused("value", "ReLUBetaSmooth: given beta_smooth 0.0, expected above 0");
  }
  if (rule === "ZBox") {
    for (const name of ["low", "high"]) found[name] = bound(`ZBox: ${name}`, found[name], shape, f);
    const wrong = found.low.findIndex((low, i) => !(low <= found.high[i]));
    if (wrong >= 0)
      throw new Refused("value", `ZBox: given low ${found.low[wrong]} above high ${found.high[wrong]}, expected low <= high`);
  }
  return found;
}

function number(what, given) {
  const value = typeof given === "string" && given in WORDS ? WORDS[given] : given;
  if (typeof value !== "number") throw new Refused("type", `${what}: given ${JSON.stringify(given)}, expected a number`);
  return value;
}

function finite(what, given, least) {
  const value = number(what, given);
  if (!(value >= least && value < Infinity))
    throw new Refused("value", `${what}: given ${shown(value)}, expected a finite number of at least ${least}`);
  return value;
}

function stabilizerOf(what, given) {
  const whole = given !== null && typeof given === "object" && "epsilon" in given;
  const { epsilon, clip = false, norm_scale = false } = whole ? given : { epsilon: given };
  return { epsilon: finite(what, epsilon, 0), clip, norm_scale };
}

/** A bound of ZBox for each entry of x: a tensor gets trailing ones, is cut to the batch, and broadcast. */
function bound(what, given, shape, f) {
  const total = size(shape);
  if (given === null || typeof given !== "object") return new Float64Array(total).fill(f(number(what, given)));
  const { shape: own, values } = decode(given);
  let padded = own.length === 0 ? shape.map(() => 1) : [...own, ...shape.slice(own.length).map(() => 1)];
  if (padded.length === shape.length && padded[0] > shape[0]) padded = [shape[0], ...padded.slice(1)];
  const fits = padded.length === shape.length && padded.every((length, axis) => length === 1 || length === shape[axis]);
  if (!fits) throw new Refused("value", `${what}: given a tensor of shape (${own.join(", ")}), expected one that broadcasts to (${shape.join(", ")})`);
  return Float64Array.from({ length: total }, (_, flat) => {
    let [position, stride] = [0, 1];
    for (let axis = shape.length - 1, rest = flat; axis >= 0; axis--) {
      if (padded[axis] > 1) position += (rest % shape[axis]) * stride;
      stride *= padded[axis];
      rest = Math.floor(rest / shape[axis]);
    }
    return f(values[position]);
  });
}

function shown(value) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  return Number.isInteger(value) ? value.toFixed(1) : String(value);
}
