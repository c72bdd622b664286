"""What no rule can be right for, and is refused: modules when a rule is registered, tensors when they are called.

Where a rule cannot act, autograd would hand out the plain gradient, and nobody would notice. Every message says what
was given, what was expected and what to do, and where to read more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lrp_rules.errors import see
from lrp_rules.modules import modules_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lrp_rules.hooks.call import HookInterface


def _where(hook: HookInterface, module: nn.Module) -> str:
    return f"{type(hook).__name__} on {module}"


def check_scripted(what: str, module: nn.Module) -> None:
    """Refuse what TorchScript runs: it calls no hooks."""
    if isinstance(module, torch.jit.ScriptModule):
        msg = (
            f"{what} on {type(module).__name__}: TorchScript runs a traced or scripted module without the hooks of its "
            f"parts; expected the nn.Module it was made from. Put rules there{see('a-rule-that-never-acts')}"
        )
        raise TypeError(msg)


def check_module(hook: HookInterface, module: nn.Module) -> None:
    """Refuse a module on which this rule could never be right."""
    rule = type(hook).__name__
    check_scripted(rule, module)
    if isinstance(module, NonDynamicallyQuantizableLinear):
        msg = (
            f"{rule} on {module}: nn.MultiheadAttention never calls its out_proj, it uses the weight alone; expected a "
            f"module that is called. Put the rule on the attention, or write the attention with nn.Linear"
            f"{see('a-rule-that-never-acts')}"
        )
        raise RuntimeError(msg)  # noqa: TRY004  the type is right, its use is not
    changed = hook.changed_parameters
    if changed is None:
        return
    names = {name for name, _ in module.named_parameters() if not name.startswith("parametrizations.")}
    below = sorted(name for name in names if "." in name and (not changed or name.rpartition(".")[2] in changed))
    own = changed & names if changed else next(module.parameters(recurse=False), None) is not None or _has_own(module)
    if below and not own:
        parts = [name.rpartition(".")[0] for name in below]
        named = ", ".join(f"{part!r} ({type(module.get_submodule(part)).__name__})" for part in dict.fromkeys(parts))
        msg = (
            f"{rule} on {type(module).__name__}: the rule changes parameters, and those of this module are in its "
            f"parts: {named}; expected a layer with parameters of its own. Put rules on the parts, or use Epsilon, "
            f"Norm or Pass on the whole{see('containers')}"
        )
        raise RuntimeError(msg)


def _has_own(module: nn.Module) -> bool:
    """Whether a weight is there under another name than that of a parameter: computed, or a replica's."""
    return (
        bool(vars(module).get("_former_parameters"))
        or "parametrizations" in module._modules
        or isinstance(getattr(module, "weight", None), Tensor)
    )


def check_traced(hook: HookInterface, module: nn.Module) -> None:
    """Refuse a call that torch.jit.trace or torch.onnx records: what they make of it has no rule."""
    msg = (
        f"{_where(hook, module)} was called by torch.jit.trace or torch.onnx.export, and what they make of a model has "
        "no rules; expected a plain call. Trace the model before the rules are attached, or after they are removed"
        f"{see('a-rule-that-never-acts')}"
    )
    raise RuntimeError(msg)


def check_transforms(hook: HookInterface, module: nn.Module, tensors: Iterable[Tensor]) -> bool:
    """Refuse what is no backward pass, where no rule can act. Return whether this is a call under torch.func.grad."""
    interpreter = torch._C._functorch.peek_interpreter_stack()
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        where = _where(hook, module)
        msg = (
            f"{where} was called in forward mode; expected a backward pass, which is where relevance is propagated. "
            f"Use torch.autograd.grad, or torch.func.vjp or jacrev{see('torch-func')}"
        )
        raise RuntimeError(msg)
    if interpreter is None:
        return False
    kind = interpreter.key()
    if kind == torch._C._functorch.TransformType.Grad:
        return True
    where = _where(hook, module)
    msg = (
        f"{where} was called under torch.func's {str(kind).rpartition('.')[2].lower()}; expected a plain call, or one "
        "under vjp, grad or jacrev. Give the module the whole batch, and map over the relevance: "
        f"torch.autograd.grad(..., is_grads_batched=True){see('torch-func')}"
    )
    raise RuntimeError(msg)


def check_tensors(hook: HookInterface, module: nn.Module, given: Sequence[Any], results: Sequence[Any]) -> None:
    """Refuse kinds of tensors through which relevance would be lost, or the gradient."""
    for leaf, role in (*((leaf, "was given") for leaf in given), *((leaf, "returned") for leaf in results)):
        if not isinstance(leaf, Tensor):
            if not isinstance(leaf, PLAIN) and any(tensor.requires_grad for tensor in tensors_inside(leaf)):
                where = _where(hook, module)
                msg = (
                    f"{where} {role} a {type(leaf).__name__} with a tensor in it that requires a gradient, which no "
                    "rule sees; expected tensors, or lists, tuples and dicts of them. Hand the tensor over as an "
                    f"argument of its own, or detach it{see('tensors-beside-the-arguments')}"
                )
                raise TypeError(msg)
            continue
        strange = _strange(leaf)
        if strange and leaf.requires_grad:
            where = _where(hook, module)
            msg = (
                f"{where} {role} {strange}; expected dense tensors of real floating-point numbers. Put rules on what "
                f"is above and below it, and none here{see('tensors-that-are-refused')}"
            )
            raise TypeError(msg)


def _strange(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex numbers"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout in {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}:
        return "a sparse tensor"
    if type(tensor).__module__.startswith("torch.distributed"):
        return f"a {type(tensor).__name__}"
    return ""


def tensors_inside(leaf: Any, depth: int = 3) -> Iterator[Tensor]:
    """Find tensors in an object's attributes, and in what these hold."""
    if isinstance(leaf, Tensor):
        yield leaf
    elif depth and isinstance(leaf, (list, tuple, set)):
        for entry in leaf:
            yield from tensors_inside(entry, depth - 1)
    elif depth and isinstance(leaf, dict):
        for entry in leaf.values():
            yield from tensors_inside(entry, depth - 1)
    elif depth and not isinstance(leaf, (*PLAIN, type, nn.Module)) and not callable(leaf):
        slots = [name for cls in type(leaf).__mro__ for name in _slots(cls)]
        values = [*vars(leaf).values()] if hasattr(leaf, "__dict__") else []
        for entry in [*values, *(getattr(leaf, name) for name in slots if hasattr(leaf, name))]:
            yield from tensors_inside(entry, depth - 1)


def _slots(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    return [slots] if isinstance(slots, str) else [name for name in slots if name not in {"__weakref__", "__dict__"}]


def _may_hold(leaf: Any) -> bool:
    """Whether an object holds a tensor, or nobody can tell."""
    return isinstance(leaf, Iterator) or next(tensors_inside(leaf), None) is not None


def check_something(hook: HookInterface, module: nn.Module, leaves: Sequence[Any]) -> None:
    """Refuse arguments and results among which there is no tensor, but something that may hold one."""
    strange = sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, PLAIN) and _may_hold(leaf)})
    if strange:
        msg = (
            f"{type(hook).__name__} on {module}: no floating-point tensor is found in its arguments or "
            f"results, which hold {', '.join(strange)}; expected tensors, or lists, tuples and dicts of them"
            f"{see('tensors-beside-the-arguments')}"
        )
        raise TypeError(msg)


#: What may stand among arguments and results without carrying relevance.
PLAIN = (Tensor, int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device)


def check_graph(hook: HookInterface, module: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Refuse a call whose graph is cut, or comes from something else than its inputs and parameters.

    The rule's node takes the place of that graph: what else hangs on it would get neither relevance nor gradient.
    """
    tensors = list(inputs)
    for part in modules_of(module):
        tensors += [parameter for parameter in part._parameters.values() if parameter is not None]
        # those of a replica are plain attributes
        former = [getattr(part, name) for name in vars(part).get("_former_parameters", ())]
        tensors += [value for value in former if isinstance(value, Tensor)]
    # the nodes are kept, since what is asked is whether one is the very same
    ends = {id(tensor.grad_fn): tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None}
    leaves = {id(tensor) for tensor in tensors}
    begins = {id(x if x.grad_fn is None else x.grad_fn) for x in inputs if x.requires_grad}
    reached = False
    seen: dict[int, Any] = {}
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        variable = getattr(node, "variable", None)
        reached = reached or id(node if variable is None else variable) in begins
        if id(node) in seen or id(node) in ends:
            continue
        seen[id(node)] = node
        if variable is not None and id(variable) not in leaves and type(variable).__name__ != "FlatParameter":
            where = _where(hook, module)
            msg = (
                f"{where}: it uses a tensor of shape {tuple(variable.shape)} that requires a gradient, and that is "
                "neither an argument nor a parameter of its; expected modules that use nothing else. Hand it over as "
                f"an argument, detach it, or put the rule on a part{see('tensors-beside-the-arguments')}"
            )
            raise RuntimeError(msg)
        waiting += [below for below, _ in node.next_functions if below is not None]
    if hook.needs_graph and not reached:
        where = _where(hook, module)
        msg = (
            f"{where}: its output has no graph to its input, so that nothing is known of how it depends on it; "
            "expected a module that autograd can differentiate. Quantized and detached modules cannot be; use Pass "
            f"there, or put the rule on the module before it was quantized{see('tensors-that-are-refused')}"
        )
        raise RuntimeError(msg)


def check_twin(hook: HookInterface, module: nn.Module, outputs: Sequence[Tensor], ends: Sequence[Tensor]) -> None:
    """Refuse a rerun that has used parameters of the module itself, and not those that it was given."""
    stops = {id(end.grad_fn): end.grad_fn for end in ends if end.grad_fn is not None}
    leaves = {id(end) for end in ends}
    own = {id(parameter) for parameter in module.parameters()} - leaves
    seen: dict[int, Any] = {}
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or id(node) in stops:
            continue
        seen[id(node)] = node
        if id(getattr(node, "variable", None)) in own:
            msg = (
                f"{_where(hook, module)} has to run the module once more with other parameters, and it uses its own in "
                "any case: it reaches itself or its parts by references beside its attributes, such as a method or a "
                "list that it keeps; expected a module that uses self.name. Use nn.ModuleList, or put rules on its "
                f"parts{see('a-call-that-cannot-be-repeated')}"
            )
            raise RuntimeError(msg)
        waiting += [below for below, _ in node.next_functions if below is not None]
