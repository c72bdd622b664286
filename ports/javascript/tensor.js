// Tensors in JSON, and arithmetic in the precision of a case.

const BYTES = { float64: 8, float32: 4 };

/** Rounds to the dtype. JavaScript computes in float64; Math.fround after each operation makes that float32. */
export const ROUND = { float64: (value) => value, float32: Math.fround };

/** The tensor that a form `{dtype, shape, order: "C", hex}` holds, as `{dtype, shape, values}`. */
export function decode({ dtype, shape, hex }) {
  const bytes = Buffer.from(hex, "hex");
  const read = dtype === "float64" ? bytes.readDoubleLE : bytes.readFloatLE;
  const values = new Float64Array(size(shape));
  for (let i = 0; i < values.length; i++) values[i] = read.call(bytes, i * BYTES[dtype]);
  return { dtype, shape, values };
}

export function encode({ dtype, shape, values }) {
  const bytes = Buffer.alloc(values.length * BYTES[dtype]);
  const write = dtype === "float64" ? bytes.writeDoubleLE : bytes.writeFloatLE;
  values.forEach((value, i) => write.call(bytes, value, i * BYTES[dtype]));
  return { dtype, shape, order: "C", hex: bytes.toString("hex") };
}

export const size = (shape) => shape.reduce((product, length) => product * length, 1);

/** A matrix of m rows and n columns, row by row. */
export class Matrix {
  constructor(m, n) {
    [this.m, this.n] = [m, n];
    this.values = new Float64Array(m * n);
  }

  static diagonal(values) {
    const matrix = new Matrix(values.length, values.length);
    values.forEach((value, i) => (matrix.values[i * values.length + i] = value));
    return matrix;
  }

  get T() {
    const other = new Matrix(this.n, this.m);
    for (let i = 0; i < this.m; i++)
      for (let j = 0; j < this.n; j++) other.values[j * this.m + i] = this.values[i * this.n + j];
    return other;
  }

  /** A v, every product and every sum rounded by f. */
  times(v, f) {
    const result = new Float64Array(this.m);
    for (let i = 0; i < this.m; i++) {
      let sum = 0;
      for (let j = 0; j < this.n; j++) sum = f(sum + f(this.values[i * this.n + j] * v[j]));
      result[i] = sum;
    }
    return result;
  }
}
