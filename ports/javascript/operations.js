// Operations of several operands, and normalisations, as reference/operations.py. The operands of an operation are one
// input, side by side and each flattened; a constant operand is the tensor constant_k. There is no batch axis here.

import { Nonlinear } from "./layers.js";
import { Matrix, size } from "./tensor.js";

/** Flat positions of a tensor of shape `from` that each entry of one of shape `to` reads, broadcast. */
function positions(from, to) {
  const padded = [...to.slice(from.length).map(() => 1), ...from];
  return Array.from({ length: size(to) }, (_, flat) => {
    let [position, stride] = [0, 1];
    for (let axis = to.length - 1, rest = flat; axis >= 0; axis--) {
      if (padded[axis] > 1) position += (rest % to[axis]) * stride;
      stride *= padded[axis];
      rest = Math.floor(rest / to[axis]);
    }
    return position;
  });
}

function broadcast(shapes) {
  const rank = Math.max(...shapes.map((shape) => shape.length));
  return Array.from({ length: rank }, (_, axis) =>
    Math.max(...shapes.map((shape) => shape[axis - rank + shape.length] ?? 1)),
  );
}

class Operation extends Nonlinear {
  multiplies = true;

  /** Positions of the operands that are not constant. */
  get variables() {
    return this.shapes.map((_, k) => k).filter((k) => !this[`constant_${k}`]);
  }

  /** For each operand, where it begins in x; nothing for a constant. */
  get starts() {
    let next = 0;
    return this.shapes.map((shape, k) => {
      if (this[`constant_${k}`]) return undefined;
      next += size(shape);
      return next - size(shape);
    });
  }

  operands(x) {
    const { starts } = this;
    return this.shapes.map(
      (shape, k) => this[`constant_${k}`] ?? x.subarray(starts[k], starts[k] + size(shape)),
    );
  }

  /** Each output is a sum of products, of one entry of each operand: `terms[j]` lists their positions. */
  value(x) {
    const [operands, { f }] = [this.operands(x), this];
    const product = (reads) => reads.reduce((all, from, k) => f(all * operands[k][from]), 1);
    return Float64Array.from(this.terms, (list) => list.reduce((sum, reads) => f(sum + product(reads)), 0));
  }

  jacobian(x) {
    const [operands, { f, starts }] = [this.operands(x), this];
    const matrix = new Matrix(this.terms.length, x.length);
    this.terms.forEach((list, j) =>
      list.forEach((reads) =>
        this.variables.forEach((k) => {
          const others = reads.reduce((all, from, other) => (other === k ? all : f(all * operands[other][from])), 1);
          matrix.values[j * x.length + starts[k] + reads[k]] += others;
        }),
      ),
    );
    return matrix;
  }
}

export class Product extends Operation {
  get outputShape() {
    return broadcast(this.shapes);
  }

  /** For each operand, which of its entries each output reads. */
  get reads() {
    return this.shapes.map((shape) => positions(shape, this.outputShape));
  }

  get terms() {
    const { reads } = this;
    return reads[0].map((_, j) => [reads.map((read) => read[j])]);
  }
}

export class Sum extends Product {
  multiplies = false;

  value(x) {
    const [operands, { f, reads }] = [this.operands(x), this];
    return Float64Array.from(reads[0], (_, j) => operands.reduce((sum, v, k) => f(sum + v[reads[k][j]]), 0));
  }

  jacobian(x) {
    const [matrix, { starts, reads }] = [new Matrix(size(this.outputShape), x.length), this];
    for (const k of this.variables)
      reads[k].forEach((from, j) => (matrix.values[j * x.length + starts[k] + from] = 1));
    return matrix;
  }
}

/** O = A V: matrices in the last two axes, the axes before them are broadcast. */
export class MatMul extends Operation {
  get outputShape() {
    const [left, right] = this.shapes;
    return [...broadcast([left.slice(0, -2), right.slice(0, -2)]), left.at(-2), right.at(-1)];
  }

  get terms() {
    const [[left, right], whole] = [this.shapes, this.outputShape];
    const [rows, inner, columns] = [left.at(-2), left.at(-1), right.at(-1)];
    const batches = [left, right].map((shape) => positions(shape.slice(0, -2), whole.slice(0, -2)));
    return Array.from({ length: size(whole) }, (_, flat) => {
      const [batch, row, column] = [Math.floor(flat / (rows * columns)), Math.floor(flat / columns) % rows, flat % columns];
      return Array.from({ length: inner }, (__, i) => [
        (batches[0][batch] * rows + row) * inner + i,
        (batches[1][batch] * inner + i) * columns + column,
      ]);
    });
  }
}

/** (x - mean) w / sqrt(var + eps) + bias, by the statistics of groups of entries of the sample itself. */
class Normalization extends Nonlinear {
  centred = true;

  /** 1 / sqrt(var + eps) times w, and x - mean, for each entry. */
  seen(x, weight = this.weight) {
    const { f, groups } = this;
    const [scale, distance, deviation] = [0, 1, 2].map(() => new Float64Array(x.length));
    const mean = (values) => f(values.reduce((sum, v) => f(sum + v), 0) / values.length);
    for (const group of groups) {
      const middle = this.centred ? mean(group.map((i) => x[i])) : 0;
      for (const i of group) distance[i] = f(x[i] - middle);
      const root = f(Math.sqrt(f(mean(group.map((i) => f(distance[i] * distance[i]))) + f(this.eps))));
      for (const i of group) {
        deviation[i] = root;
        scale[i] = f((weight ? weight[this.parameterOf(i)] : 1) / root);
      }
    }
    return { scale, distance, deviation };
  }

  offset(bias = this.bias) {
    return Float64Array.from({ length: size(this.inputShape) }, (_, i) => (bias ? bias[this.parameterOf(i)] : 0));
  }

  value(x) {
    const [{ scale, distance }, offset] = [this.seen(x), this.offset()];
    return distance.map((v, i) => this.f(this.f(v * scale[i]) + offset[i]));
  }

  /** The matrix of the normalisation with the deviation that it has at x, whatever its input. */
  frozen(x, weight) {
    return this.matrixOf(this.seen(x, weight), () => 0);
  }

  jacobian(x) {
    const seen = this.seen(x);
    const normal = seen.distance.map((v, i) => v / seen.deviation[i]);
    return this.matrixOf(seen, (i, j) => normal[i] * normal[j]);
  }

  matrixOf({ scale }, curved) {
    const matrix = new Matrix(scale.length, scale.length);
    for (const group of this.groups)
      for (const i of group)
        for (const j of group) {
          const away = ((this.centred ? 1 : 0) + curved(i, j)) / group.length;
          matrix.values[i * matrix.n + j] = this.f(scale[i] * ((i === j ? 1 : 0) - away));
        }
    return matrix;
  }

  runs(length) {
    return Array.from({ length: size(this.inputShape) / length }, (_, g) =>
      Array.from({ length }, (__, i) => g * length + i),
    );
  }
}

/** Over the last `axes` axes, which are those of the parameters. */
export class LayerNorm extends Normalization {
  get length() {
    return size(this.inputShape.slice(-this.axes));
  }

  get groups() {
    return this.runs(this.length);
  }

  parameterOf(i) {
    return i % this.length;
  }
}

export class RMSNorm extends LayerNorm {
  centred = false;
}

/** Over groups of channels and all their positions; one parameter a channel. */
export class GroupNorm extends Normalization {
  get groups() {
    return this.runs(size(this.inputShape) / this.num_groups);
  }

  parameterOf(i) {
    return Math.floor(i / size(this.inputShape.slice(1)));
  }
}
