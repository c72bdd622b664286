"""Which rule was meant for a call: by the keys that ``attach`` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils._pytree import tree_unflatten

from lrp_rules import Composite, FoldBatchNorm
from lrp_rules.networks.keys import by_function, flat, goes_its_own_way, matches
from lrp_rules.networks.operations import operation_of
from verify.auditing.calls import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lrp_rules.hooks.hook import Hook
    from verify.auditing.calls import Call

LINEAR = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


class Meaning:
    """The rule that is meant for each module and function of a model."""

    def __init__(self, model: nn.Module, rules: Mapping[Any, Hook] | Composite) -> None:
        composite = rules if isinstance(rules, Composite) else None
        given = flat(rules.rules if isinstance(rules, Composite) else rules)
        special = {} if composite is None else composite.first
        #: Whether the gradient is meant where there is no rule.
        self.gradient = composite is not None and composite.gradient
        self.functions: dict[str | None, Hook]
        self.early: dict[str | None, Hook]
        self.functions, table = by_function(given)  # type: ignore[assignment]
        self.early, first = by_function(special)  # type: ignore[assignment]
        self.modules: dict[nn.Module, Hook] = {}
        self.first: dict[nn.Module, Hook] = {}
        #: By the id of a weight: the rule of its module, for functions that use it.
        self.weights: dict[int, Hook] = {}
        names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(name)
        taken: set[nn.Module] = set()
        for module, own in names.items():
            if module in taken:
                continue
            key = next(
                (k for k in table
                 if matches(k, module, own) and not (composite is not None and goes_its_own_way(k, module))), None,
            )  # fmt: skip
            if key is None:
                continue
            taken.update(module.modules())
            self.modules[module] = table[key]
            at_first = next((rule for k, rule in first.items() if matches(k, module, own)), None)
            if at_first is not None:
                self.first[module] = at_first
            if isinstance(module, LINEAR):
                self.weights[id(module.weight)] = table[key]

    def is_one_operation(self, module: nn.Module) -> bool:
        """Whether a module is one row of the table: it has a rule, or is a module of torch with none below it."""
        if module in self.modules:
            return True
        if next(module.children(), None) is not None:
            return False
        return type(module).__module__.startswith("torch.nn.") or _is_hooked(module)

    def is_first_layer(self, call: Call) -> bool:
        """Whether a call is of a layer after which no other is a first one."""
        return call.module in self.first or self._operation(call) in self.early

    def of(self, call: Call) -> Hook | None:
        """Return the rule that is meant for a call; None for its gradient."""
        if call.module is not None and call.module in self.modules:
            if call.raw and call.module in self.first:
                return self.first[call.module]
            return self.modules[call.module]
        operation = self._operation(call)
        if operation in {"linear", "convolution"} and call.function is not None:
            args, kwargs = tree_unflatten(call.arguments[0], call.arguments[1])
            weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
            if any(weight is x and reached for x, reached in zip(call.inputs, call.reached, strict=True)):
                operation = "matmul"  # a weight that the input reaches is a factor
            elif call.weight in self.weights:
                return self.weights[call.weight]
        table = self.early if call.raw and operation in self.early else self.functions
        found: Hook | None = table.get(operation)
        return found

    def resolved(self, call: Call) -> Hook | None:
        """Return the rule of a call that is no part of the layer before it."""
        rule = self.of(call)
        if isinstance(rule, FoldBatchNorm) and call.folded is None:
            return rule.otherwise
        return rule

    def _operation(self, call: Call) -> str | None:
        if call.function is not None:
            return operation_of(call.function)
        # what a module of torch without a rule calls may have one
        operations = {operation_of(function) for function in call.inner}
        return operations.pop() if len(operations) == 1 and call.module not in self.modules else None

    def folds(self, calls: list[Call]) -> list[tuple[Call, Call, bool]]:
        """Return each batch norm that is to be folded, the layer that it follows, and whether nothing else does."""
        found = []
        layers = {
            key_of(call.outs[0]): call
            for call in calls
            if len(call.outs) == 1 and call.outs[0] is not None and self.of(call) is not None
            and (isinstance(call.module, LINEAR) or self._operation(call) in {"linear", "convolution"})
        }  # fmt: skip
        uses: dict[tuple[int, int], int] = {}
        for call in calls:
            for end in call.ends:
                uses[key_of(end)] = uses.get(key_of(end), 0) + 1
        for call in calls:
            reached = [end for end, known in zip(call.ends, call.reached, strict=True) if known]
            if len(reached) != 1 or not isinstance(self.of(call), FoldBatchNorm):
                continue
            layer = layers.get(key_of(reached[0]))
            if layer is None:
                continue
            if "Linear" in layer.operation and layer.inputs[0].ndim != 2:
                continue
            found.append((call, layer, uses[key_of(reached[0])] == 1))
        return found

    def idle(self, model: nn.Module, called: set[nn.Module], used: set[int]) -> tuple[str, ...]:
        """Return the names of modules that have a rule, and were not called, nor their parameters used by functions."""
        names = {module: name for name, module in model.named_modules()}
        return tuple(
            names[module]
            for module in self.modules
            if module not in called and not any(id(one) in used for one in module.parameters(recurse=False))
        )


#: Hooks that change nothing.
_ONLOOKERS = ("lrp_rules.networks", "lrp_rules.hooks.calls", "verify.auditing")


def _is_hooked(module: nn.Module) -> bool:
    """Whether somebody has hooks on a module, besides those by which lrp_rules and the audit look on."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *module._backward_hooks.values())
    return any(not _module_of(hook).startswith(_ONLOOKERS) for hook in hooks)


def _module_of(hook: Any) -> str:
    owner = getattr(hook, "__self__", None)
    return str(getattr(hook if owner is None else type(owner), "__module__", ""))
