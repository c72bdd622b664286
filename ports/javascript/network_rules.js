// The rules for what lies between layers, as reference/network_rules.py.

import { Refused } from "./parameters.js";
import { Affine } from "./rules.js";

/** d = n O, and J_k^T back to each of n operands: J x is n O. */
function bilinear(layer) {
  const matrix = layer.A();
  return [{ terms: [[matrix, layer.x]], bias: new Float64Array(matrix.m) }];
}

/** Epsilon on the normalisation with its deviation as a constant. */
function layerNorm({ layer, x, zeroParams }) {
  const given = new Affine(layer, x, zeroParams);
  return [{ terms: [[layer.frozen(x, given.parameter("weight")), x]], bias: layer.offset(given.parameter("bias")) }];
}

/** The same share of R to each of these factors of a product, summed where a factor was broadcast. */
function routed({ f, reads, starts, variables }, x, R, receiving) {
  const r = new Float64Array(x.length);
  for (const k of receiving.filter((place) => variables.includes(place)))
    reads[k].forEach((from, j) => (r[starts[k] + from] = f(r[starts[k] + from] + f(R[j] / receiving.length))));
  return r;
}

/** The position of the signal: null is the only operand that is not constant, else the only one like the output. */
function signalOf({ shapes, variables, outputShape }, signal) {
  const refuse = (given, expected) => {
    throw new Refused("value", `SignalTakesAll: signal: given ${given}, expected ${expected}`);
  };
  if (signal !== null) return signal < shapes.length ? signal : refuse(signal, `one of ${shapes.length} operands`);
  const whole = variables.filter((k) => String(shapes[k]) === String(outputShape));
  const found = [variables, whole].find((places) => places.length === 1);
  return found ? found[0] : refuse("null", "a position: not one operand alone is as large as the output");
}

/** x * (R - s * sum R) along the axis of a softmax; a masked input, -Infinity, is none. `dim` counts the batch, too. */
function softmax(layer, x, R, { dim }) {
  const { f, axis } = layer;
  const [rank, own] = [layer.inputShape.length + 1, axis < 0 ? axis : axis + 1];
  if (dim !== null && (dim - own) % rank !== 0)
    throw new Refused("value", `Softmax: dim: given ${dim}, expected the dimension of the softmax, ${own}`);
  const [s, r] = [layer.value(x), new Float64Array(x.length)];
  for (const group of layer.groups) {
    const total = group.reduce((sum, i) => f(sum + R[i]), 0);
    for (const i of group) r[i] = x[i] === -Infinity ? 0 : f(x[i] * f(R[i] - f(s[i] * total)));
  }
  return r;
}

export const PARTS = { Bilinear: bilinear, LayerNormRule: layerNorm };

export const DIRECT = {
  Uniform: (layer, x, R) => routed(layer, x, R, layer.variables),
  SignalTakesAll: (layer, x, R, { signal }) => routed(layer, x, R, [signalOf(layer, signal)]),
  Softmax: softmax,
  Stop: (layer, x) => new Float64Array(x.length),
};

/** By name: what a rule needs, and how a layer shows that it is that. */
export const NEEDS = {
  Uniform: ["a product", (layer) => layer.multiplies && layer.reads],
  SignalTakesAll: ["a product", (layer) => layer.multiplies && layer.reads],
  Bilinear: ["a product", (layer) => layer.multiplies],
  LayerNormRule: ["a normalisation", (layer) => layer.frozen],
  Softmax: ["a softmax", (layer) => layer.exact],
  ReLUGuidedBackprop: ["an elementwise layer", (layer) => layer.slope],
};
