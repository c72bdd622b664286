// Elementwise functions and their slopes, as reference/pointwise.py. Both are computed in float64.

export const sigmoid = (x) => Math.exp(Math.min(x, 0)) / (1 + Math.exp(-Math.abs(x)));

/** By name: (x, options) -> [value, slope]. gelu is missing: JavaScript has no erf. */
export const FUNCTIONS = {
  identity: (x) => [x, 1],
  relu: (x) => [Math.max(x, 0), x > 0 ? 1 : 0],
  leaky_relu: (x, { negative_slope: slope }) => (x > 0 ? [x, 1] : [slope * x, slope]),
  tanh: (x) => [Math.tanh(x), 1 - Math.tanh(x) ** 2],
  sigmoid: (x) => [sigmoid(x), sigmoid(x) * sigmoid(-x)],
  softplus: (x, { beta, threshold }) => {
    const t = beta * x;
    return t > threshold
      ? [x, 1]
      : [(Math.max(t, 0) + Math.log1p(Math.exp(-Math.abs(t)))) / beta, sigmoid(t)];
  },
  silu: (x) => [x * sigmoid(x), sigmoid(x) * (1 + x * sigmoid(-x))],
  elu: (x, { alpha }) => (x > 0 ? [x, 1] : [alpha * Math.expm1(x), alpha * Math.exp(x)]),
};
