"""Check ``api``: names, parameters, defaults, and what the helpers of the API do."""

from __future__ import annotations

import inspect
import math
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from verify.checks.probing import fail, layer_and_data, passed, same
from verify.model import Case, Finding, Level, NotOfferedError
from verify.subjects.asking import relevance_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.model import Subject

_REQUIRED = inspect.Parameter.empty
_STABILIZER = ("stabilizer", 1e-6)
_ZERO = ("zero_params", None)

#: Parameters in order, with their defaults.
SIGNATURES: dict[str, tuple[tuple[str, Any], ...]] = {
    "zero_bias": (_ZERO,),
    "ClampMod": (("min", None), ("max", None)),
    "GammaMod": (("gamma", 0.25), ("min", None), ("max", None)),
    "NoMod": (),
    "Epsilon": (("epsilon", 1e-6), _ZERO),
    "Gamma": (("gamma", 0.25), _STABILIZER, _ZERO),
    "ZPlus": (_STABILIZER, _ZERO),
    "AlphaBeta": (("alpha", 2.0), ("beta", 1.0), _STABILIZER, _ZERO),
    "ZBox": (("low", _REQUIRED), ("high", _REQUIRED), _STABILIZER, _ZERO),
    "Pass": (),
    "Norm": (_STABILIZER,),
    "WSquare": (_STABILIZER, _ZERO),
    "Flat": (_STABILIZER, _ZERO),
    "ReLUDeconvNet": (),
    "ReLUGuidedBackprop": (),
    "ReLUBetaSmooth": (("beta_smooth", 10.0),),
}
_FURTHER_ARGUMENTS = ("ClampMod", "GammaMod", "NoMod")

#: Arguments other than the defaults, which a copy must keep.
_UNUSUAL: dict[str, dict[str, Any]] = {
    "Epsilon": {"epsilon": 0.5, "zero_params": "bias"},
    "Gamma": {"gamma": 2.0, "stabilizer": 0.5, "zero_params": ["bias"]},
    "ZPlus": {"stabilizer": 0.5, "zero_params": ["bias"]},
    "AlphaBeta": {"alpha": 3.0, "beta": 2.0, "stabilizer": 0.5, "zero_params": ["bias"]},
    "ZBox": {"low": -2.0, "high": 5.0, "stabilizer": 0.5},
    "Pass": {},
    "Norm": {"stabilizer": 0.5},
    "WSquare": {"stabilizer": 0.5, "zero_params": ["bias"]},
    "Flat": {"stabilizer": 0.5},
    "ReLUDeconvNet": {},
    "ReLUGuidedBackprop": {},
    "ReLUBetaSmooth": {"beta_smooth": 3.0},
}


def cases() -> Iterator[Case]:
    """Yield the cases of this check."""
    for name in SIGNATURES:
        yield _case(f"signature/{name}", name, partial(_signature, name))
    for name, given, expected in _ZERO_BIAS:
        yield _case(f"zero_bias/{name}", "zero_bias", partial(_zero_bias, given, expected))
    for name, modifier, arguments, weight, bias in _MODIFIERS:
        yield _case(f"{modifier}/{name}", modifier, partial(_modifier, modifier, arguments, weight, bias))
    for name in _UNUSUAL:
        yield _case(f"copy/{name}", name, partial(_copy, name))
        yield _case(f"remove/{name}", name, partial(_remove, name))
    for name, arguments, d, wanted in _STABILIZERS:
        yield _case(f"Stabilizer/{name}", "Stabilizer", partial(_stabilizer, arguments, d, wanted))
    yield _case("Stabilizer/norm_scale-derivative", "Stabilizer", _scale_derivative)
    yield _case("Stabilizer/ensure", "Stabilizer", _ensure)
    for name, value, error in _REFUSED:
        for of, prefix in (("Stabilizer", ""), ("Stabilizer.ensure", "ensure-")):
            run = partial(_refuses, of, value, error)
            yield _case(f"Stabilizer/{prefix}refuses-{name}", "Stabilizer", run, Level.SHOULD)
    yield _case("BasicHook/default-is-epsilon", "BasicHook", _basic_default, Level.SHOULD)
    yield _case("BasicHook/modifiers-make-zplus", "BasicHook", _basic_zplus)
    yield _case("Hook/tuples", "Hook", _hook)


def _case(name: str, rule: str, run: Callable[[Subject], Finding], level: Level = Level.MUST) -> Case:
    return Case(id=f"api/{name}", rule=rule, layer="-", check="api", dtype="-", level=level, run=run)


def _signature(name: str, subject: Subject) -> Finding:
    if subject.parameters.get(name):
        msg = f"{subject.spec} fixes parameters of {name}, which are never given to it"
        raise NotOfferedError(msg)
    expected = SIGNATURES[name]
    parameters = list(inspect.signature(subject.get(name)).parameters.values())
    plain = [p for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY}]
    found = tuple((p.name, p.default) for p in plain[: len(expected)])
    if found != expected:
        return fail(f"parameters {_spell(found)}, expected {_spell(expected)}")
    required = [p.name for p in plain[len(expected) :] if p.default is _REQUIRED]
    if required:
        return fail(f"further parameters {required} without a default")
    if name in _FURTHER_ARGUMENTS and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        missing = {"param_keys", "zero_params", "require_params"} - {p.name for p in parameters}
        if missing:
            return fail(f"does not take {sorted(missing)}, which ParamMod takes")
    return passed()


def _spell(parameters: tuple[tuple[str, Any], ...]) -> str:
    return "(" + ", ".join(name if d is _REQUIRED else f"{name}={d!r}" for name, d in parameters) + ")"


_ZERO_BIAS: tuple[tuple[str, Any, list[str]], ...] = (
    ("none", None, ["bias"]),
    ("name", "weight", ["weight", "bias"]),
    ("list", ["weight", "scale"], ["weight", "scale", "bias"]),
    ("empty-list", [], ["bias"]),
    ("list-with-bias", ["bias", "weight"], ["bias", "weight"]),
    ("bias", "bias", ["bias"]),
    ("name-that-contains-bias", "bias_hh", ["bias_hh", "bias"]),
)


def _zero_bias(given: Any, expected: list[str], subject: Subject) -> Finding:
    argument = list(given) if isinstance(given, list) else given
    found = subject.get("zero_bias")(argument)
    if found != expected:
        return fail(f"zero_bias({given!r}) is {found!r}, expected {expected!r}")
    if argument != given:
        return fail(f"zero_bias changed its argument {given!r} to {argument!r}")
    if found is argument:
        return fail(f"zero_bias({given!r}) returned its argument itself, expected a new list")
    return passed()


_W = torch.tensor([[-1.0, 2.0], [0.5, -0.25]], dtype=torch.float64)
_B = torch.tensor([-2.0, 4.0], dtype=torch.float64)
_MODIFIERS: tuple[tuple[str, str, dict[str, Any], torch.Tensor, torch.Tensor], ...] = (
    ("min", "ClampMod", {"min": 0.0}, _W.clamp(min=0), _B.clamp(min=0)),
    ("max", "ClampMod", {"max": 0.25}, _W.clamp(max=0.25), _B.clamp(max=0.25)),
    ("min-max", "ClampMod", {"min": -1.0, "max": 1.0}, _W.clamp(-1, 1), _B.clamp(-1, 1)),
    ("param_keys", "ClampMod", {"min": 0.0, "param_keys": ["weight"]}, _W.clamp(min=0), _B),
    ("no-param_keys", "ClampMod", {"min": 0.0, "param_keys": []}, _W, _B),
    ("zero_params", "ClampMod", {"min": -9.0, "zero_params": "bias"}, _W, _B * 0),
    ("not-required", "ClampMod", {"min": 0.0, "param_keys": ["scale"], "require_params": False}, _W, _B),
    ("default-gamma", "GammaMod", {"min": 0.0}, _W + 0.25 * _W.clamp(min=0), _B + 0.25 * _B.clamp(min=0)),
    ("max", "GammaMod", {"gamma": 0.5, "max": 0.0}, _W + 0.5 * _W.clamp(max=0), _B + 0.5 * _B.clamp(max=0)),
    (
        "zero_params",
        "GammaMod",
        {"gamma": 0.5, "min": 0.0, "zero_params": ["bias"]},
        _W + 0.5 * _W.clamp(min=0),
        _B * 0,
    ),
    # before anything else
    ("zero_params-first", "ClampMod", {"min": 0.5, "zero_params": "bias"}, _W.clamp(min=0.5), _B * 0 + 0.5),
    ("default", "NoMod", {}, _W, _B),
    ("zero_params", "NoMod", {"zero_params": ["bias"]}, _W, _B * 0),
    ("whole-names", "NoMod", {"zero_params": "bias_weight"}, _W, _B),
)


def _modifier(
    name: str, arguments: dict[str, Any], weight: torch.Tensor, bias: torch.Tensor, subject: Subject
) -> Finding:
    module = nn.Linear(2, 2, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(_W)
        module.bias.copy_(_B)
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    with subject.get(name)(**deepcopy(arguments))(module) as modified, torch.no_grad():
        # all numbers are small multiples of 1/16, so that what the modified module computes tells its parameters
        # exactly
        constant, *columns = modified(x)
    found = torch.stack(columns, dim=1) - constant[:, None]
    if not (same(found, weight) and same(constant, bias)):
        return fail(f"weight {found.tolist()}, bias {constant.tolist()}; expected {weight.tolist()}, {bias.tolist()}")
    if not (same(module.weight, _W) and same(module.bias, _B)):
        return fail("the module's own parameters are changed afterwards")
    return passed()


def _copy(name: str, subject: Subject) -> Finding:
    module, x, R = layer_and_data(name)
    rule = subject.get(name)(**deepcopy(_UNUSUAL[name]))
    copied = rule.copy()
    if copied is rule:
        return fail("copy() returned the rule itself, expected another object")
    before, after = relevance_of(rule, module, x, R), relevance_of(copied, module, x, R)
    return passed() if same(before, after) else fail(f"a copy of {name}({_UNUSUAL[name]}) gives another relevance")


def _remove(name: str, subject: Subject) -> Finding:
    module, x, R = layer_and_data(name)
    x.requires_grad_()
    (plain,) = torch.autograd.grad(module(x), x, R)
    handle = subject.get(name)(**deepcopy(_UNUSUAL[name])).register(module)
    handle.remove()
    (after,) = torch.autograd.grad(module(x), x, R)
    left = [key for key, value in vars(module).items() if key.endswith("_hooks") and value]
    if left:
        return fail(f"after remove(), the module still has {left}")
    return passed() if same(plain, after) else fail("after remove(), the gradient is not the plain one")


_D = torch.tensor([[3.0, -4.0], [0.0, -0.0]], dtype=torch.float64)
_STABILIZERS: tuple[tuple[str, dict[str, Any], list[list[float]], list[list[float]]], ...] = (
    ("number", {"epsilon": 0.5}, _D.tolist(), [[3.5, -4.5], [0.5, 0.5]]),
    ("clip", {"epsilon": 3.5, "clip": True}, _D.tolist(), [[3.5, -4.0], [3.5, 3.5]]),
    ("clip-below-epsilon", {"epsilon": 3.5, "clip": True}, [[-1.0, 1.0], [-3.5, 3.0]], [[-3.5, 3.5], [-3.5, 3.5]]),
    # root mean squares: of (1, 1, 7, 7) 5, of the samples 4 and 64, of the columns 3 and 40
    ("norm_scale", {"epsilon": 2.0, "norm_scale": True}, [[1.0, -1.0, -7.0, 7.0]], [[11.0, -11.0, -17.0, 17.0]]),
    (
        "norm_scale-of-each-sample",
        {"epsilon": 0.5, "norm_scale": True},
        [[4.0, -4.0], [64.0, -64.0]],
        [[6.0, -6.0], [96.0, -96.0]],
    ),
    (
        "norm_scale-dim",
        {"epsilon": 0.5, "norm_scale": True, "dim": 0},
        [[3.0, 40.0], [-3.0, -40.0]],
        [[4.5, 60.0], [-4.5, -60.0]],
    ),
    (
        "norm_scale-dims",
        {"epsilon": 0.5, "norm_scale": True, "dim": (0, 1)},
        [[1.0, -1.0], [-7.0, 7.0]],
        [[3.5, -3.5], [-9.5, 9.5]],
    ),
    (
        "norm_scale-clip",
        {"epsilon": 0.5, "clip": True, "norm_scale": True},
        [[1.0, -1.0, -7.0, 7.0], [0.0, 2.0, 0.0, 0.0]],
        [[2.5, -2.5, -7.0, 7.0], [0.5, 2.0, 0.5, 0.5]],
    ),
)


def _stabilizer(
    arguments: dict[str, Any], d: list[list[float]], expected: list[list[float]], subject: Subject
) -> Finding:
    found = subject.get("Stabilizer")(**arguments)(torch.tensor(d, dtype=torch.float64))
    wanted = torch.tensor(expected, dtype=torch.float64)
    # a sum or a choice is exact here; of a root mean square, the squares, their sum and mean, the root, the product
    room = 8 * torch.finfo(torch.float64).eps * wanted.abs() if arguments.get("norm_scale") else 0.0
    if found.shape == wanted.shape and found.dtype == wanted.dtype and bool(((found - wanted).abs() <= room).all()):
        return passed()
    return fail(f"Stabilizer({arguments}) of {d} is {found.tolist()}, expected {expected}")


def _scale_derivative(subject: Subject) -> Finding:
    """Check that the scale is a function of the denominator, for those who differentiate a relevance."""
    d = torch.tensor([[1.0, -1.0, -7.0, 7.0]], dtype=torch.float64, requires_grad=True)
    v = torch.tensor([[3.0, -2.0, -1.0, 4.0]], dtype=torch.float64)
    for clip in (False, True):
        stabilized = subject.get("Stabilizer")(2.0, clip=clip, norm_scale=True)(d)
        (found,) = torch.autograd.grad((v * stabilized).sum(), d)
        # rms is 5, eps 10, and its derivative d / 10; clipped, each S is eps alone
        plain, through = (v, (v * d.sign()).sum()) if not clip else (v * 0, (v * d.sign()).sum())
        wanted = (plain + through * d / 10).detach()
        # the scale, its derivative, two products and a sum, of terms no larger than these
        room = 16 * torch.finfo(torch.float64).eps * (v.abs() + v.abs().sum() * d.detach().abs() / 10)
        if not bool(((found - wanted).abs() <= room).all()):
            of = f"Stabilizer(2, clip={clip}, norm_scale=True)"
            return fail(f"the derivative of {of} of {d.tolist()} is {found.tolist()}, expected {wanted.tolist()}")
    return passed()


_REFUSED: tuple[tuple[str, Any, type[Exception]], ...] = (
    ("negative", -1.0, ValueError),
    ("inf", math.inf, ValueError),
    ("nan", math.nan, ValueError),
    ("text", "0.1", TypeError),
    ("none", None, TypeError),
)


def _refuses(of: str, value: Any, expected: type[Exception], subject: Subject) -> Finding:
    """Check that a stabilizer of this value is refused, by its constructor or by ``ensure``."""
    stabilizer = subject.get("Stabilizer")
    try:
        (stabilizer if of == "Stabilizer" else stabilizer.ensure)(value)
    except expected as error:
        return (
            passed()
            if str(value) in str(error)
            else fail(f"{expected.__name__} says {str(error)!r}, without {value!r}")
        )
    except Exception as error:
        return fail(f"{of}({value!r}) raises {type(error).__name__}: {error}; expected {expected.__name__}")
    return fail(f"{of}({value!r}) is accepted, expected {expected.__name__}")


def _ensure(subject: Subject) -> Finding:
    ensure = subject.get("Stabilizer").ensure

    def own(d: torch.Tensor) -> torch.Tensor:
        return d

    if ensure(own) is not own:
        return fail("Stabilizer.ensure does not pass a callable through")
    number = ensure(0.5)
    return (
        passed()
        if same(number(_D.clone()), torch.where(_D < 0, _D - 0.5, _D + 0.5))
        else fail("Stabilizer.ensure(0.5) is no stabilizer of 0.5")
    )


def _basic_default(subject: Subject) -> Finding:
    module, x, R = layer_and_data("Epsilon")
    z = module(x)
    expected = x * ((R / torch.where(z < 0, z - 0.5, z + 0.5)) @ module.weight)
    found = relevance_of(subject.get("BasicHook")(stabilizer=0.5), module, x, R)
    return _near(found, expected, "BasicHook(stabilizer=0.5)")


def _basic_zplus(subject: Subject) -> Finding:
    module, x, R = layer_and_data("ZPlus")
    clamp = subject.get("ClampMod")
    rule = subject.get("BasicHook")(
        input_modifiers=[lambda v: v.clamp(min=0), lambda v: v.clamp(max=0)],
        param_modifiers=[clamp(min=0.0), clamp(max=0.0, zero_params="bias")],
        output_modifiers=[lambda v: v, lambda v: v],
        gradient_mapper=lambda R, outputs: [R / (sum(outputs) + 0.5)] * 2,
        reducer=lambda inputs, gradients: sum(v * c for v, c in zip(inputs, gradients, strict=True)),
    )
    plus, minus = module.weight.clamp(min=0), module.weight.clamp(max=0)
    s = R / (x.clamp(min=0) @ plus.T + x.clamp(max=0) @ minus.T + module.bias.clamp(min=0) + 0.5)
    expected = x.clamp(min=0) * (s @ plus) + x.clamp(max=0) * (s @ minus)
    return _near(relevance_of(rule, module, x, R), expected, "a BasicHook made of the modifiers of ZPlus")


def _near(found: torch.Tensor, expected: torch.Tensor, what: str) -> Finding:
    # all terms of the sums here are of moderate size, and the denominators are 0.5 or more: 64 roundings of the
    # largest entry
    room = 64 * torch.finfo(expected.dtype).eps * expected.abs().max()
    return (
        passed()
        if not bool(((found - expected).abs() > room).any())
        else fail(f"{what} gives {found.tolist()}, expected {expected.tolist()}")
    )


def _hook(subject: Subject) -> Finding:
    seen: dict[str, Any] = {}

    base: Any = subject.get("Hook")

    class Own(base):  # type: ignore[misc]
        def forward(self, module: nn.Module, input: Any, output: Any) -> None:
            seen["forward"] = (type(input), module)

        def backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
            seen["backward"] = (type(grad_input), type(grad_output))
            return (2 * grad_input[0] + 0 * grad_output[0].sum(),)

        def copy(self) -> Any:
            return Own()

    module, x, R = layer_and_data("Epsilon")
    found = relevance_of(Own(), module, x, R)
    if seen.get("forward") != (tuple, module) or seen.get("backward") != (tuple, tuple):
        return fail(f"forward and backward got {seen}, expected tuples")
    return _near(found, 2 * (R @ module.weight).detach(), "a Hook that doubles grad_input")
