"""Conduct: around modules that write in place, and on layers whose weight is computed from others."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from verify.checks.conduct.looking import Look
from verify.checks.conduct.probing import (
    GRADIENT,
    WEIGHED,
    R,
    Topic,
    X,
    attached,
    batch_norm,
    complain,
    differs,
    fill,
    fresh,
    grad,
    layer,
    leaf,
    make,
    noisy,
    same_bits,
    tensor,
    unclear,
    watched,
)
from verify.model import Level, NotOfferedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.model import Subject


def _neighbours(rule: str, subject: Subject) -> Iterator[str]:
    """Modules before and behind that write in place give what they give without."""
    behind: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
        "ReLU": (nn.ReLU(inplace=True), nn.ReLU()),
        "mul_": (lambda y: y.mul_(-2), lambda y: y * -2),
        "add_": (lambda y: y.add_(X), lambda y: y + X),
    }
    # what a ReLU returns must not be overwritten: torch's own backward needs it
    modules = (nn.LeakyReLU(0.5),) if rule == "Pass" else (layer(rule), watched(rule))
    for module in modules:
        for name, (in_place, out_of_place) in behind.items():
            x = leaf(X)
            with attached(make(subject, rule), module):
                expected = grad(out_of_place(module(nn.ReLU()(x * 1))), x, R)
                y = in_place(module(nn.ReLU(inplace=True)(x * 1)))
                found = grad(y, x, R)
            yield from differs(found, expected, f"with {name} in place behind and ReLU in place before, the relevance")


def _replace_weight(module: Any, _h: Tensor) -> None:
    module.weight = nn.Parameter(tensor([[1.0, 0.0, 2.0], [0.5, 1.0, -1.0], [0.0, -1.0, 1.0]]))


#: What a call uses, and how it is overwritten.
_INPUT: dict[str, Callable[[Any, Tensor], Any]] = {"input": lambda _module, h: h.mul_(3)}
_PARAMETERS: dict[str, Callable[[Any, Tensor], Any]] = {
    "weight": lambda module, _h: module.weight.mul_(-2),
    "bias": lambda module, _h: module.bias.mul_(-2),
    "weight, by another Parameter,": _replace_weight,
}
_BUFFERS: dict[str, Callable[[Any, Tensor], Any]] = {
    "running mean": lambda module, _h: module.running_mean.add_(2),
    "running variance": lambda module, _h: module.running_var.mul_(16),
}


def _overwritten(
    written: dict[str, Callable[[Any, Tensor], Any]],
    kinds: tuple[Callable[[str], nn.Module], ...],
    rule: str,
    subject: Subject,
) -> Iterator[str]:
    """What a call used may be written before its backward pass: an error, as in torch itself, or no difference."""
    for name, write in written.items():
        for kind in kinds:
            module = kind(rule)
            expected, x = fresh(subject, rule, module), leaf(X)
            with attached(make(subject, rule), module):
                h = x * 1
                y = module(h)
                with torch.no_grad():
                    write(module, h)
                try:
                    found = grad(y, x, R)
                except NotOfferedError:
                    raise
                except Exception as error:
                    yield from unclear(error)
                else:
                    of = f"{type(module).__name__}, whose {name} was overwritten after the forward pass: the relevance"
                    yield from differs(found, expected, of)


def _switched(rule: str, subject: Subject) -> Iterator[str]:
    """A module that is switched to eval or train mode before the backward pass: the mode of the forward pass counts."""
    for build, training in ((batch_norm, True), (batch_norm, False), (noisy, False)):
        module = build().train(training)
        expected, x = fresh(subject, rule, module), leaf(X)
        with attached(make(subject, rule), module), torch.random.fork_rng(devices=[]):
            y = module(x)
            module.train(not training)
            found = grad(y, x, R)
        modes = ("eval", "train")[training], ("train", "eval")[training]
        of = f"{type(module).__name__}, forward in {modes[0]} and backward in {modes[1]} mode: the relevance"
        # train mode divides by a root that is no power of two
        room = 256 * torch.finfo(x.dtype).eps * expected.abs().max() if training else 0.0
        if not bool(((found - expected).abs() <= room).all()):
            yield f"{of} is {found.tolist()}, expected {expected.tolist()}, as without the switch"


def _in_place(rule: str, subject: Subject) -> Iterator[str]:
    """A rule on a ReLU in place gives what it gives on a ReLU."""
    x = leaf(X)
    expected = fresh(subject, rule, nn.ReLU())
    with attached(make(subject, rule), module := nn.ReLU(inplace=True)):
        h = x * 1
        y = module(h)
        if not same_bits(y, X.clamp(min=0)):
            yield f"the output is {y.tolist()}, expected {X.clamp(min=0).tolist()}"
        yield from differs(grad(y, x, R), expected, "the relevance")


class _Preactivated(nn.Module):
    """A residual block as in pre-activation networks: its shortcut is what the ReLU wrote, if it writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = -2 * self.relu(input)
        return out + input


def _shortcut(rule: str, subject: Subject) -> Iterator[str]:
    """A shortcut around a ReLU in place carries what the ReLU wrote, with the rule as without."""
    model = _Preactivated()
    plain = model(X * 1)
    for x in (X.clone(), leaf(X)):
        with attached(make(subject, rule), model.relu):
            y = model(x * 1)
        if not same_bits(y, plain):
            yield f"the model's output is {y.tolist()}, without the rule {plain.tolist()}"


# Layers whose weight is computed, with numbers chosen so that the weight that comes out is exact: rows of length 3 and
# 7 for weight_norm, and for spectral_norm a start of the power iteration from which one step gives the vectors
# (1, 1, 1, 1) / 2 and the norm 4 without rounding, and a further step another norm.

_ROWS = tensor([[1.0, 2.0, 2.0], [2.0, -3.0, 6.0]])
_MATRIX = tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 1.0, 0.0], [4.0, 0.0, 0.0, 0.0], [1.0, 3.0, 0.0, 0.0]])
_START = tensor([1.0, 0.0, 0.0, 0.0])
_BIAS = tensor([0.75, -1.25, 0.5, -0.25])


def _weight_norm_old() -> tuple[nn.Module, Tensor]:
    module = nn.Linear(3, 2, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in many a model
        module = nn.utils.weight_norm(module)
    fill(module, weight_v=_ROWS, weight_g=[[1.5], [3.5]], bias=_BIAS[:2])
    return module, _ROWS / 2


def _weight_norm() -> tuple[nn.Module, Tensor]:
    module = parametrizations.weight_norm(nn.Linear(3, 2, dtype=torch.float64))
    parts = {"parametrizations.weight.original0": tensor([[1.5], [3.5]]), "parametrizations.weight.original1": _ROWS}
    fill(module, bias=_BIAS[:2], **parts)
    return module, _ROWS / 2


def _spectral_norm_old() -> tuple[nn.Module, Tensor]:
    module = nn.utils.spectral_norm(nn.Linear(4, 4, dtype=torch.float64))
    fill(module, weight_orig=_MATRIX, bias=_BIAS)
    module.get_buffer("weight_u").copy_(_START)
    return module, _MATRIX / 4


def _spectral_norm() -> tuple[nn.Module, Tensor]:
    module = parametrizations.spectral_norm(nn.Linear(4, 4, dtype=torch.float64))
    # this one starts from the other side
    fill(module, bias=_BIAS, **{"parametrizations.weight.original": _MATRIX.T})
    module.get_buffer("parametrizations.weight.0._v").copy_(_START)
    return module, _MATRIX.T / 4


def _computed(kinds: tuple[Callable[[], tuple[nn.Module, Tensor]], ...], rule: str, subject: Subject) -> Iterator[str]:
    """In train mode, the relevance is that of a plain layer with the weight that the forward pass used."""
    for build in kinds:
        name = build.__name__.strip("_")
        module, weight = build()
        plain = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        fill(plain, weight=weight, bias=module.get_parameter("bias"))
        inputs = tensor([[1.0, -2.0, 0.5, -1.0], [0.25, 3.0, -1.5, 2.0]])[:, : weight.shape[1]]
        relevance = tensor([[1.5, -0.5, 2.0, 1.0], [0.0, 2.0, -3.0, 0.5]])[:, : weight.shape[0]]
        expected = fresh(subject, rule, plain, inputs, relevance)
        alone, _ = build()  # the older norms leave no module that can be copied
        output = alone(inputs)
        look, x = Look(module), leaf(inputs)
        with attached(make(subject, rule), module):
            y = module(x)
            if not same_bits(y, output):
                yield f"{name}: the output is {y.tolist()}, without the rule {output.tolist()}"
            found = grad(y, x, relevance)
        yield from differs(found, expected, f"{name}: the relevance")
        state = dict(module.named_buffers())
        for key, buffer in alone.named_buffers():
            if not same_bits(state[key], buffer):
                yield f"{name}: {key} is {state[key].tolist()} afterwards, without the rule {buffer.tolist()}"
        # the older norms set the weight anew in each forward pass
        yield from complain(look.changes(but="weight"), name)


TOPICS = (
    Topic("in-place-neighbours", _neighbours, (*WEIGHED, "Pass")),
    # The specification does not speak of an input that is written to between forward and backward
    Topic("overwritten-input", partial(_overwritten, _INPUT, (layer, watched)), level=Level.SHOULD),
    # Clause 7.5: the weights that the call used
    Topic("overwritten-parameters", partial(_overwritten, _PARAMETERS, (layer, watched)), WEIGHED),
    Topic("overwritten-buffers", partial(_overwritten, _BUFFERS, (lambda _: batch_norm(),)), WEIGHED),
    Topic("mode-switched", _switched, WEIGHED, Level.SHOULD),
    Topic("on-in-place-relu", _in_place, (*GRADIENT, "Norm")),
    # nor of a module that writes to its input
    Topic("shortcut-around-in-place-relu", _shortcut, (*GRADIENT, "Norm"), Level.SHOULD),
    Topic("weight-norm", partial(_computed, (_weight_norm_old, _weight_norm)), WEIGHED),
    Topic("spectral-norm", partial(_computed, (_spectral_norm_old, _spectral_norm)), WEIGHED),
)
