"""Rules that are declared by their parts."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

from lrp_rules.evaluate import declared, rewriting
from lrp_rules.hooks.hook import BasicHook
from lrp_rules.layers.blocks import plain
from lrp_rules.params import parameter_names
from lrp_rules.parts import Part, same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from lrp_rules.evaluate.plan import Plan
    from lrp_rules.hooks.call import Call
    from lrp_rules.layers.layer import Layer
    from lrp_rules.parts import Parts

    Names = str | Iterable[str] | None
    Stabilizing = float | Callable[[Tensor], Tensor]
    Tensors = tuple[Tensor, ...]


class FormulaRule(BasicHook):
    """A rule that is declared by its parts. Subclasses write ``declare``; everything else follows from the parts."""

    def __init__(self, stabilizer: Stabilizing = 1e-6, zero_params: Names = None) -> None:
        super().__init__(stabilizer=stabilizer)
        self.zero_params = parameter_names(zero_params)

    @abstractmethod
    def declare(self) -> Parts:
        """Return the parts of the rule: see ``lrp_rules.parts``."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        vars(self)["_made"] = None  # made from the arguments that were there before

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": None}

    @property
    def parts(self) -> Parts:
        """The parts of the rule, made once."""
        return self._of_arguments().parts

    @property
    def changes_weights(self) -> bool:  # type: ignore[override]
        """Whether it uses other weights than the layer's own."""
        return any(part.changes_weights for part in self.parts)

    @property
    def uses_output(self) -> bool:  # type: ignore[override]
        """Whether the output of the forward pass must be kept, because a denominator may be taken from it."""
        return self._of_arguments().uses_output

    @property
    def changed_parameters(self) -> frozenset[str] | None:  # type: ignore[override]
        """Names of the parameters that the rule changes; empty for all of them, None for none."""
        return frozenset() if self.changes_weights else frozenset(self.zero_params) or None

    def relevance(self, layer: Layer, R: Tensor) -> Tensor:
        """Return the relevance of the layer's input, given that of its output."""
        made = self._of_arguments()
        if plain() or len(rewriting.off) == len(rewriting.REWRITINGS):
            return declared.relevance(made.parts, layer, R, self.stabilizer)
        facts = (layer.additive, layer.small, rewriting.off)
        if facts not in made.plans:
            made.plans[facts] = rewriting.plan(made.parts, self.stabilizer, rewriting.Facts(*facts))
        plan = made.plans[facts]
        if plan is None:
            return declared.relevance(made.parts, layer, R, self.stabilizer)
        return plan.relevance(layer, R)

    def _divide(
        self, call: Call, inputs: Tensors, saved: Tensors, relevance: Tensors, names: Sequence[str]
    ) -> Sequence[Tensor]:
        hook, layer, (R,) = self._seen(call, inputs, saved, relevance)
        return [hook.parameter_relevance(layer, R, name) for name in names]

    def ledger(self, layer: Layer, R: Tensor) -> declared.Ledger:
        """Return where the relevance of each output goes: to the inputs, the bias, the stabilizer, the zero branch."""
        return declared.ledger(self.parts, layer, R, self.stabilizer)

    @property
    def divides_parameters(self) -> bool:  # type: ignore[override]
        """Whether ``parameter_relevance`` is that of this rule: its relevance is made of its parts alone."""
        methods = (type(self).relevance, type(self).relevances, type(self).backward)
        return all(method.__module__.partition(".")[0] == "lrp_rules" for method in methods)

    def parameter_relevance(self, layer: Layer, R: Tensor, name: str) -> Tensor:
        """Return the relevance of the layer's ``weight`` or ``bias``, in its shape.

        Each entry has what passes through it (Becking et al. 2022, arXiv:2109.04236). With s and v of a part, as in
        ``lrp_rules.parts``, and w' = change(w),

            weight:  r_k = sum over parts and terms of  coefficient * sum_ij w'_k v_i s_j,  where w_k leads from i to j
            bias:    r_k = sum over parts of            coefficient * sum_j bias(b)_k s_j,  where b_k is added to j

        Positions and samples are summed. All weights together have the relevance of the inputs, all biases what the
        ledger says of the bias.
        """
        return declared.parameter_relevance(self.parts, layer, R, self.stabilizer, name)

    def _of_arguments(self) -> _Made:
        made: _Made | None = vars(self).get("_made")
        if made is None:
            parts = tuple(self.declare())
            if not parts or not all(isinstance(part, Part) and part.terms for part in parts):
                msg = (
                    f"{type(self).__name__}.declare gave {parts!r}; expected a tuple of Parts, each with a term, such "
                    "as (Part(terms=((positive, positive),), bias=positive),)"
                )
                raise TypeError(msg)
            uses_output = any(part.gate or any(change is same for change, _ in part.terms) for part in parts)
            made = vars(self)["_made"] = _Made(parts, uses_output, {})
        return made


class _Made(NamedTuple):
    """What depends on the arguments of a rule only, and is made once."""

    parts: Parts
    uses_output: bool
    plans: dict[tuple[bool, bool, frozenset[str]], Plan | None]
