"""The rules of layer-wise relevance propagation in NumPy: slow, explicit, independent of any implementation.

`layers` says what a layer is as a matrix, `rules` what each rule is, `rounding` how far rounding can take a result, and
`ledger` where the relevance went.

>>> import numpy as np
>>> from reference import layers, rules
>>> layer = layers.Linear((2,), np.array([[1.0, -2.0]]), np.array([0.5]))
>>> parts = rules.epsilon(layers.affine(layer, np.array([3.0, 1.0])))
>>> rules.relevance(parts, np.array([1.5]), 0.0)  # d = 3 - 2 + 0.5 = 1.5, s = 1
array([ 3., -2.])
"""

from importlib.util import find_spec

if find_spec("numpy") is None:
    msg = "reference needs numpy, which is not installed: run pip install 'lrp-rules[verify]'"
    raise ModuleNotFoundError(msg, name="numpy")
