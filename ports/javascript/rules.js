// The rules, as reference/rules.py. A rule is a list of parts. Each part has one denominator and one way back,
//
//     d = sum_t A_t v_t + bias        s = gate * R / S(d)        r = sum_parts coefficient * sum_t v_t * (A_t^T s)
//
// and a function here says only which matrices, inputs and constants those are. `relevance` adds up.

import { sigmoid } from "./functions.js";

const same = (p) => p;
const positive = (p) => Math.max(p, 0);
const negative = (p) => Math.min(p, 0);
const sign = (d) => (d < 0 ? -1 : 1); // sgn(0) = +1, for -0 too

/** A layer at x as z = A(w) x + b, after the parameters named in `zeroParams` were set to zero. */
export class Affine {
  constructor(layer, x, zeroParams) {
    Object.assign(this, { layer, x, zeroParams, f: layer.f });
  }

  parameter(name) {
    const value = this.layer[name];
    return value && this.zeroParams.includes(name) ? value.map(() => 0) : value;
  }

  /** The matrix of the changed weight; without a weight the layer's own, or its Jacobian at x. */
  A(change = same) {
    if (!this.layer.linear) return this.layer.jacobian(this.x);
    const weight = this.parameter("weight");
    return this.layer.matrix(weight && weight.map((p) => change(p)));
  }

  /** The constant; that of a layer that is not linear is what the linearisation leaves over. */
  get b() {
    if (this.layer.linear) return this.layer.offset(this.parameter("bias"), this.parameter("weight"));
    const linear = this.A().times(this.x, this.f);
    return this.layer.value(this.x).map((z, j) => this.f(z - linear[j]));
  }

  offset(change) {
    return this.b.map((p) => change(p));
  }

  get real() {
    return new Affine(this.layer, this.x, []);
  }

  /** The layer's real output, nothing set to zero. */
  get z() {
    if (!this.layer.linear) return this.layer.value(this.x);
    const { b } = this.real;
    return this.real.A().times(this.x, this.f).map((value, j) => this.f(value + b[j]));
  }

  atOnes() {
    return new Affine(this.layer, this.x.map(() => 1), this.zeroParams);
  }
}

/** S(d) for all outputs of one sample. */
export function stabilized(d, { epsilon, clip, norm_scale: scaled }, f) {
  let eps = f(epsilon);
  if (scaled && d.length) {
    const mean = f(d.reduce((sum, v) => f(sum + f(v * v)), 0) / d.length);
    eps = f(eps * f(Math.sqrt(mean)));
  }
  return d.map((v) => (clip ? sign(v) * Math.max(Math.abs(v), eps) : f(v + eps * sign(v))));
}

/** The relevance of the inputs, for the relevance R of the outputs. */
export function relevance(parts, R, stabilizer, f) {
  const r = new Float64Array(parts[0].terms[0][1].length);
  for (const { terms, bias, coefficient = 1, gate = null } of parts) {
    let d = new Float64Array(bias.length);
    for (const [A, v] of terms) {
      const contributions = A.times(v, f);
      d = d.map((sum, j) => f(sum + contributions[j]));
    }
    d = d.map((sum, j) => f(sum + bias[j]));
    const S = stabilized(d, stabilizer, f);
    const s = R.map((value, j) => (gate === null || gate[j] ? f(value / S[j]) : 0));
    for (const [A, v] of terms) {
      const back = A.T.times(s, f);
      back.forEach((value, i) => (r[i] = f(r[i] + f(coefficient * f(v[i] * value)))));
    }
  }
  return r;
}

/** Half of a signed rule: d = A(first w) x+ + A(second w) x- + first b, and the same matrices back. */
function signed(layer, first, second) {
  return {
    terms: [
      [layer.A(first), layer.x.map(positive)],
      [layer.A(second), layer.x.map(negative)],
    ],
    bias: layer.offset(first),
  };
}

const epsilon = (layer) => [{ terms: [[layer.A(), layer.x]], bias: layer.b }];

const norm = (layer) => epsilon(layer.real);

const zplus = (layer) => [signed(layer, positive, negative)];

/** With beta = 0 there is no second half, so that it cannot contribute 0 * inf. */
const alphaBeta = (layer, { alpha, beta }) =>
  [
    { ...signed(layer, positive, negative), coefficient: layer.f(alpha) },
    { ...signed(layer, negative, positive), coefficient: layer.f(-beta) },
  ].filter((part) => part.coefficient !== 0);

/** Where z > 0, ZPlus with w + g w+ for w+ and w + g w- for w-; where z < 0, the two exchanged; where z = 0, nothing. */
function gammaRule(layer, { gamma }) {
  const { f, z } = layer;
  const up = (p) => f(p + f(f(gamma) * positive(p)));
  const down = (p) => f(p + f(f(gamma) * negative(p)));
  return [
    { ...signed(layer, up, down), gate: z.map((value) => (value > 0 ? 1 : 0)) },
    { ...signed(layer, down, up), gate: z.map((value) => (value < 0 ? 1 : 0)) },
  ];
}

/** d = A(w) x - A(w+) l - A(w-) h, and the same matrices back; the bias cancels. */
function zbox(layer, { low, high }) {
  const terms = [
    [layer.A(), layer.x],
    [layer.A(positive), low.map((v) => -v)],
    [layer.A(negative), high.map((v) => -v)],
  ];
  return [{ terms, bias: new Float64Array(terms[0][0].m) }];
}

function wsquare(layer) {
  const ones = layer.atOnes();
  const square = (p) => layer.f(p * p);
  return [{ terms: [[ones.A(square), ones.x]], bias: ones.offset(square) }];
}

function flat(layer) {
  const ones = layer.atOnes();
  const matrix = ones.A(() => 1);
  return [{ terms: [[matrix, ones.x]], bias: new Float64Array(matrix.m) }];
}

/** By name: (layer at x, parameters) -> parts. */
export const PARTS = {
  Epsilon: epsilon,
  Norm: norm,
  ZPlus: zplus,
  AlphaBeta: alphaBeta,
  Gamma: gammaRule,
  ZBox: zbox,
  WSquare: wsquare,
  Flat: flat,
};

/** By name: (layer, x, R, parameters) -> relevance, for the rules that look only at the gradient. */
export const GRADIENT = {
  Pass: (layer, x, R) => R,
  ReLUDeconvNet: (layer, x, R) => R.map(positive),
  ReLUGuidedBackprop: (layer, x, R) => {
    const slope = layer.slope(x);
    return R.map((value, i) => (value > 0 ? layer.f(slope[i] * value) : 0));
  },
  ReLUBetaSmooth: (layer, x, R, { beta_smooth: beta }) =>
    R.map((value, i) => layer.f(layer.f(sigmoid(layer.f(layer.f(beta) * x[i]))) * value)),
};
