// All layers by their types.

import { FUNCTIONS } from "./functions.js";
import { CLASSES } from "./layers.js";
import { GroupNorm, LayerNorm, MatMul, Product, RMSNorm, Sum } from "./operations.js";

const KNOWN = { ...CLASSES, Sum, Product, MatMul, LayerNorm, RMSNorm, GroupNorm };

/** The layer that a description in JSON stands for, with its tensors, for samples of this shape; null for an unknown. */
export function layerOf({ type, ...options }, tensors, inputShape, f) {
  const known = type in KNOWN && (type !== "Elementwise" || options.function in FUNCTIONS);
  return known ? new KNOWN[type](options, tensors, inputShape, f) : null;
}
