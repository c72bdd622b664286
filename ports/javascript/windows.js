// Index arithmetic, as reference/windows.py: which input position each tap of a window reads.

import { Matrix } from "./tensor.js";

const range = (n) => Array.from({ length: n }, (_, i) => i);

/** Position that each tap of each output reads along one axis [outputs][kernel]; it may lie outside the input. */
export const taps = (outputs, kernel, stride, before, dilation) =>
  range(outputs).map((o) => range(kernel).map((k) => o * stride + k * dilation - before));

/** Position inside the input that stands at a padded position; -1 where a zero stands there. */
export function wrap(positions, length, mode) {
  const inside = {
    zeros: (p) => (p >= 0 && p < length ? p : -1),
    reflect: (p) => (Math.abs(p) < length ? Math.abs(p) : 2 * (length - 1) - Math.abs(p)),
    replicate: (p) => Math.min(Math.max(p, 0), length - 1),
    circular: (p) => ((p % length) + length) % length, // % keeps the sign in JavaScript
  }[mode];
  return positions.map((row) => row.map(inside));
}

/** Flat input position of every flat output position and flat tap [P][K], from one array per axis; -1 is outside. */
export function combine(axes, lengths) {
  let flat = [[0]];
  axes.forEach((positions, axis) => {
    flat = flat.flatMap((before) =>
      positions.map((here) =>
        before.flatMap((b) => here.map((h) => (b < 0 || h < 0 ? -1 : b * lengths[axis] + h))),
      ),
    );
  });
  return flat;
}

/** Matrix of a convolution: weight (O, C/groups, K taps), position [P][K]; (O P) x (C inputs). */
export function convolve(weight, outputs, channels, groups, position, inputs, f) {
  const [perGroup, kernel] = [outputs / groups, position[0].length];
  const matrix = new Matrix(outputs * position.length, groups * channels * inputs);
  for (let o = 0; o < outputs; o++)
    for (let c = 0; c < channels; c++)
      position.forEach((reads, p) =>
        reads.forEach((from, k) => {
          if (from < 0) return;
          const column = (Math.floor(o / perGroup) * channels + c) * inputs + from;
          const entry = (o * position.length + p) * matrix.n + column;
          // several taps may read the same input
          matrix.values[entry] = f(matrix.values[entry] + weight[(o * channels + c) * kernel + k]);
        }),
      );
  return matrix;
}

/** Matrix of a layer that does the same to every channel: window (P x N) -> (C P) x (C N). */
export function channelwise(window, channels) {
  const matrix = new Matrix(channels * window.m, channels * window.n);
  for (let c = 0; c < channels; c++)
    for (let p = 0; p < window.m; p++)
      for (let n = 0; n < window.n; n++)
        matrix.values[(c * window.m + p) * matrix.n + c * window.n + n] = window.values[p * window.n + n];
  return matrix;
}

/** Outputs of a pooling along one axis; under ceil_mode the last window still starts before the right padding. */
export function pooled(length, extent, stride, padding, ceilMode) {
  const rest = length + 2 * padding - extent;
  if (!ceilMode) return Math.floor(rest / stride) + 1;
  const outputs = Math.ceil(rest / stride) + 1;
  return (outputs - 1) * stride >= length + padding ? outputs - 1 : outputs;
}
