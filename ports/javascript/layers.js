// Layers as matrices, as reference/layers.py. A linear one answers matrix(weight), for any weight of its shape, and
// offset(bias, weight); one that is not linear answers value(x) and jacobian(x). There is no batch axis here.

import { FUNCTIONS } from "./functions.js";
import { Matrix, size } from "./tensor.js";
import { channelwise, combine, convolve, pooled, taps, wrap } from "./windows.js";

const zip = (...lists) => lists[0].map((_, i) => lists.map((list) => list[i]));
const repeat = (values, times) => Float64Array.from(values, (v) => v).reduce(
  (all, v, i) => all.fill(v, i * times, (i + 1) * times), new Float64Array(values.length * times));

class Layer {
  constructor(options, tensors, inputShape, f) {
    Object.assign(this, options, { inputShape, f, weight: null, bias: null });
    for (const [name, tensor] of Object.entries(tensors)) {
      this[name] = tensor.values;
      this[`${name}Shape`] = tensor.shape;
    }
    this.linear = true;
  }

  offset() {
    return new Float64Array(size(this.outputShape));
  }
}

/** y = W x + b along the last axis; the axes before it are positions of one sample. */
class Linear extends Layer {
  get outputShape() {
    return [...this.inputShape.slice(0, -1), this.weightShape[0]];
  }

  get positions() {
    return size(this.inputShape.slice(0, -1));
  }

  matrix(weight) {
    const own = new Matrix(...this.weightShape);
    own.values.set(weight);
    return channelwise(own, this.positions);
  }

  offset(bias) {
    if (!bias) return super.offset();
    return Float64Array.from({ length: bias.length * this.positions }, (_, i) => bias[i % bias.length]);
  }
}

/** A layer whose first output axis is the channel, one bias each. */
class Channels extends Layer {
  offset(bias) {
    return bias ? repeat(bias, size(this.outputShape.slice(1))) : super.offset();
  }
}

/** Convolution over (C, ...spatial), weight (O, C/groups, ...kernel). */
class Conv extends Channels {
  get axes() {
    return zip(this.inputShape.slice(1), this.weightShape.slice(2), this.stride, this.padding, this.dilation);
  }

  get outputShape() {
    const spatial = this.axes.map(
      ([n, k, step, [before, after], spread]) => Math.floor((n + before + after - spread * (k - 1) - 1) / step) + 1,
    );
    return [this.weightShape[0], ...spatial];
  }

  matrix(weight) {
    const outputs = this.outputShape.slice(1);
    const positions = this.axes.map(([n, k, step, [before], spread], axis) =>
      wrap(taps(outputs[axis], k, step, before, spread), n, this.padding_mode),
    );
    const [spatial, [O, C]] = [this.inputShape.slice(1), this.weightShape];
    return convolve(weight, O, C, this.groups, combine(positions, spatial), size(spatial), this.f);
  }
}

/** Transposed convolution, weight (C, O/groups, ...kernel): a convolution's map, transposed. */
class ConvTranspose extends Channels {
  get axes() {
    const kernel = this.weightShape.slice(2);
    return zip(this.inputShape.slice(1), kernel, this.stride, this.padding, this.dilation, this.output_padding);
  }

  get outputShape() {
    const spatial = this.axes.map(
      ([n, k, step, pad, spread, extra]) => (n - 1) * step - 2 * pad + spread * (k - 1) + extra + 1,
    );
    return [this.weightShape[1] * this.groups, ...spatial];
  }

  matrix(weight) {
    const spatial = this.outputShape.slice(1);
    const positions = this.axes.map(([n, k, step, pad, spread], axis) =>
      wrap(taps(n, k, step, pad, spread), spatial[axis], "zeros"),
    );
    const [C, O] = this.weightShape;
    return convolve(weight, C, O, this.groups, combine(positions, spatial), size(spatial), this.f).T;
  }
}

/** y = (x - mean) w / sqrt(var + eps) + bias; its constant is bias - A(w) mean. */
class BatchNorm extends Channels {
  get outputShape() {
    return this.inputShape;
  }

  scale(weight) {
    const { f } = this;
    return this.running_var.map((variance, c) => {
      const scale = f(1 / f(Math.sqrt(f(variance + f(this.eps)))));
      return weight ? f(weight[c] * scale) : scale;
    });
  }

  matrix(weight) {
    return Matrix.diagonal(repeat(this.scale(weight), size(this.inputShape.slice(1))));
  }

  offset(bias, weight) {
    const { f } = this;
    const scale = this.scale(weight);
    return repeat(
      scale.map((value, c) => f((bias ? bias[c] : 0) - f(value * this.running_mean[c]))),
      size(this.inputShape.slice(1)),
    );
  }
}

/** A mean over windows, the same in every channel. Each axis says which inputs its outputs read, and how many count. */
class Average extends Layer {
  get spatial() {
    return this.inputShape.slice(1);
  }

  matrix() {
    // one row of [share, ...] an output: the axes' windows multiplied
    let rows = [{ reads: [1], counted: 1 }];
    for (const axis of this.windows)
      rows = rows.flatMap((before) =>
        axis.map((here) => ({
          reads: before.reads.flatMap((b) => here.reads.map((h) => b * h)),
          counted: before.counted * here.counted,
        })),
      );
    const window = new Matrix(rows.length, size(this.spatial));
    rows.forEach(({ reads, counted }, p) => {
      const divisor = this.divisor(reads, counted);
      reads.forEach((read, n) => (window.values[p * window.n + n] = this.f(read / divisor)));
    });
    return channelwise(window, this.inputShape[0]);
  }
}

const reading = (length, start, end) =>
  Array.from({ length }, (_, i) => (start <= i && i < end ? 1 : 0));

class AvgPool extends Average {
  get axes() {
    return zip(this.spatial, this.kernel_size, this.stride, this.padding);
  }

  get outputShape() {
    const spatial = this.axes.map(([n, k, step, pad]) => pooled(n, k, step, pad, this.ceil_mode));
    return [this.inputShape[0], ...spatial];
  }

  get windows() {
    const outputs = this.outputShape.slice(1);
    return this.axes.map(([n, k, step, pad], axis) =>
      Array.from({ length: outputs[axis] }, (_, o) => {
        const start = o * step - pad;
        const end = Math.min(start + k, n + pad); // under ceil_mode the last window may run past the padding
        return { reads: reading(n, start, end), counted: end - start };
      }),
    );
  }

  divisor(reads, counted) {
    if (this.divisor_override !== null) return this.divisor_override;
    return this.count_include_pad ? counted : reads.reduce((sum, read) => sum + read, 0);
  }
}

class AdaptiveAvgPool extends Average {
  get outputShape() {
    return [this.inputShape[0], ...this.output_size.map((out, axis) => out ?? this.spatial[axis])];
  }

  get windows() {
    return zip(this.outputShape.slice(1), this.spatial).map(([out, n]) =>
      Array.from({ length: out }, (_, o) => ({
        reads: reading(n, Math.floor((o * n) / out), Math.ceil(((o + 1) * n) / out)),
        counted: 0,
      })),
    );
  }

  divisor(reads) {
    return reads.reduce((sum, read) => sum + read, 0);
  }
}

export class Nonlinear extends Layer {
  constructor(...given) {
    super(...given);
    this.linear = false;
  }

  get outputShape() {
    return this.inputShape;
  }
}

/** Maximum over windows, padded with minus infinity; of equal maxima the first one wins. */
class MaxPool extends Nonlinear {
  get axes() {
    return zip(this.inputShape.slice(1), this.kernel_size, this.stride, this.padding, this.dilation);
  }

  get outputShape() {
    const spatial = this.axes.map(([n, k, step, pad, spread]) =>
      pooled(n, spread * (k - 1) + 1, step, pad, this.ceil_mode),
    );
    return [this.inputShape[0], ...spatial];
  }

  winners(x) {
    const [spatial, outputs] = [this.inputShape.slice(1), this.outputShape.slice(1)];
    const positions = this.axes.map(([n, k, step, pad, spread], axis) =>
      wrap(taps(outputs[axis], k, step, pad, spread), n, "zeros"),
    );
    const windows = combine(positions, spatial).map((reads) => reads.filter((from) => from >= 0));
    return Array.from({ length: this.inputShape[0] }, (_, c) => c * size(spatial)).flatMap((channel) =>
      windows.map((reads) =>
        reads.map((from) => channel + from).reduce((best, from) => (x[from] > x[best] ? from : best)),
      ),
    );
  }

  value(x) {
    return Float64Array.from(this.winners(x), (from) => x[from]);
  }

  jacobian(x) {
    const winners = this.winners(x);
    const matrix = new Matrix(winners.length, x.length);
    winners.forEach((from, i) => (matrix.values[i * x.length + from] = 1));
    return matrix;
  }
}

class Elementwise extends Nonlinear {
  value(x) {
    return x.map((v) => this.f(FUNCTIONS[this.function](v, this)[0]));
  }

  slope(x) {
    return x.map((v) => this.f(FUNCTIONS[this.function](v, this)[1]));
  }

  jacobian(x) {
    return Matrix.diagonal(this.slope(x));
  }
}

/** exp(x) / sum(exp(x)) along one axis of a sample. */
class Softmax extends Nonlinear {
  /** Flat positions of the entries that are normalised together. */
  get groups() {
    const axis = this.axis < 0 ? this.axis + this.inputShape.length : this.axis;
    const [length, inner] = [this.inputShape[axis], size(this.inputShape.slice(axis + 1))];
    return Array.from({ length: size(this.inputShape) / length }, (_, g) => {
      const first = Math.floor(g / inner) * length * inner + (g % inner);
      return Array.from({ length }, (__, i) => first + i * inner);
    });
  }

  exact(x) {
    const y = new Float64Array(x.length);
    for (const group of this.groups) {
      const largest = Math.max(...group.map((i) => x[i]));
      const total = group.reduce((sum, i) => sum + Math.exp(x[i] - largest), 0);
      for (const i of group) y[i] = Math.exp(x[i] - largest) / total;
    }
    return y;
  }

  value(x) {
    return this.exact(x).map(this.f);
  }

  jacobian(x) {
    const y = this.exact(x);
    const matrix = new Matrix(y.length, y.length);
    for (const group of this.groups)
      for (const i of group)
        for (const j of group) matrix.values[i * y.length + j] = this.f((i === j ? y[i] : 0) - y[i] * y[j]);
    return matrix;
  }
}

/** By type; `known.js` adds operations. */
export const CLASSES = { Linear, BatchNorm, Elementwise, Softmax };
for (const d of [1, 2, 3])
  for (const kind of [Conv, ConvTranspose, AvgPool, AdaptiveAvgPool, MaxPool]) CLASSES[`${kind.name}${d}d`] = kind;
