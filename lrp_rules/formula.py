"""Rules with a formula: what their steps have in common, and how large layers are done part by part."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from lrp_rules.hooks import BasicHook
from lrp_rules.params import parameter_names
from lrp_rules.parts import into
from lrp_rules.stabilizer import Stabilizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from lrp_rules.layer import Layer

    Names = str | Iterable[str] | None
    Stabilizing = float | Callable[[Tensor], Tensor]


class FormulaRule(BasicHook):
    """A rule that shares relevance out among vectors v, which are made of the input.

        d = sum A_v v + bias        s = R / S(d)        c_v = A_v^T s        r = sum v * c_v

    A rule says in ``vectors`` what v are, and in ``coefficients`` how c follows from them and R.
    """

    #: Whether ``coefficients`` takes each sample by itself, and whether it is a sum over outputs, each by itself, in
    #: one ``A.T @ s``: then parts may be done one after the other.
    samples_apart: ClassVar[bool] = True
    outputs_apart: ClassVar[bool] = True
    #: Whether it uses other weights than the layer's own.
    changes_weights: ClassVar[bool] = True

    def __init__(self, stabilizer: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        super().__init__(stabilizer=stabilizer)
        self.zero_params = parameter_names(zero_params)

    @property
    def changed_parameters(self) -> frozenset[str] | None:  # type: ignore[override]
        return frozenset() if self.changes_weights else frozenset(self.zero_params) or None

    def vectors(self, layer: Layer) -> Sequence[Tensor]:
        """Return the vectors that share the relevance."""
        return (layer.x,)

    def coefficients(self, layer: Layer, vectors: Sequence[Tensor], R: Tensor) -> Sequence[Tensor]:
        """Return the coefficient of each vector."""
        raise NotImplementedError

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        if layer.small:  # to ask what is to be cut takes as long as an operation
            vectors = self.vectors(layer)
            return self._total(layer, vectors, self.coefficients(layer, vectors, R), None)
        # a stabilizer that may look at several denominators is to see them all
        if not self.samples_apart or not self.stabilizes_entries:
            return self._relevance(layer, R)
        return layer.by_samples(self._relevance, R)

    def _relevance(self, layer: Layer, R: Tensor, out: Tensor | None = None) -> Tensor:
        vectors = self.vectors(layer)
        if self.outputs_apart and self.stabilizes_entries:
            found = layer.by_outputs(self.coefficients, vectors, R, changes_weights=self.changes_weights)
        else:
            found = self.coefficients(layer, vectors, R)
        return self._total(layer, vectors, found, out)

    def _total(
        self, layer: Layer, vectors: Sequence[Tensor], coefficients: Sequence[Tensor], out: Tensor | None
    ) -> Tensor:
        return layer.total(vectors, coefficients, out)

    def shares(self, R: Tensor, d: Tensor) -> Tensor:
        """Return s = R / S(d)."""
        S = self.stabilizer(d)
        # one's own callable may keep what it gives
        own = type(self.stabilizer) is Stabilizer and S.shape == R.shape
        return torch.div(R, S, out=into(S) if own else None)

    @property
    def stabilizes_entries(self) -> bool:
        """Whether S is known to take each entry of a denominator by itself."""
        return isinstance(self.stabilizer, Stabilizer) and not self.stabilizer.norm_scale
