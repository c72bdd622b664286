"""The helpers of the API, each argument with each: Stabilizer over its options and shapes, BasicHook part by part."""

from __future__ import annotations

import contextlib
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.checks.probing import fail, layer_and_data, passed, same
from verify.model import Case, Finding, Level
from verify.subjects.asking import relevance_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from verify.model import Subject

_DIMS: tuple[tuple[str, Any], ...] = (
    ("none", None), ("0", 0), ("1", 1), ("last", -1), ("1-2", (1, 2)), ("all", (0, 1, 2)),
)  # fmt: skip
_EPSILONS = (0.0, 1e-6, 0.3, 4.0)
#: A square one, where a sum over the wrong dimension has the right shape, and a batch of one.
_SHAPES = ((4, 3), (4, 4), (2, 3, 4), (3, 2, 2, 3), (1, 2, 4, 4))


def cases() -> Iterator[Case]:
    """Yield the cases, of check ``api``."""
    for clip, norm_scale in product((False, True), repeat=2):
        for name, dim in _DIMS if norm_scale else _DIMS[:1]:
            spelled = f"clip={clip},norm_scale={norm_scale},dim={name}"
            run = partial(_stabilizes, {"clip": clip, "norm_scale": norm_scale, "dim": dim})
            yield _case("Stabilizer", spelled, run)
    for rule in ("Epsilon", "Norm", "ZPlus", "AlphaBeta", "Gamma", "ZBox", "WSquare", "Flat"):
        yield _case(rule, "takes-a-Stabilizer", partial(_taken, rule))
    for name, ask in _BASIC.items():
        yield _case("BasicHook", name, ask)
    for modifier in ("ClampMod", "GammaMod", "NoMod"):
        yield _case(modifier, "in-place", partial(_written, modifier))
        yield _case(modifier, "exception-inside", partial(_interrupted, modifier))


def _case(rule: str, name: str, run: Callable[[Subject], Finding]) -> Case:
    id_ = f"api/{rule}/{name}"
    return Case(id=id_, rule=rule, layer="-", check="api", dtype="-", level=Level.MUST, run=run)


def _denominators(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    d = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    d.view(-1)[0], d.view(-1)[1] = 0.0, -0.0
    return d.to(dtype)


def _stabilizes(options: dict[str, Any], subject: Subject) -> Finding:
    for epsilon, shape, dtype in product(_EPSILONS, _SHAPES, (torch.float64, torch.float32)):
        dim = options["dim"]
        if isinstance(dim, tuple) and max(dim) >= len(shape):
            continue
        d = _denominators(shape, dtype)
        kept = d.clone()
        found = subject.get("Stabilizer")(epsilon=epsilon, **options)(d)
        if not same(d, kept):
            return fail(f"Stabilizer({epsilon}, {options}) writes to what it is given")
        wanted, room = _expected(d, epsilon, **options)
        of = f"Stabilizer({epsilon}, {options}) of shape {tuple(shape)} in {dtype}"
        if found.shape != d.shape or found.dtype != dtype:
            return fail(f"{of} gives shape {tuple(found.shape)} and {found.dtype}")
        if not bool(((found.double() - wanted).abs() <= room).all()):
            return fail(f"{of} gives {found.tolist()}, expected {wanted.tolist()}")
    return passed()


def _expected(d: Tensor, epsilon: float, *, clip: bool, norm_scale: bool, dim: Any) -> tuple[Tensor, Tensor]:
    """Return S(d), and what rounding makes of it: squares, sum and mean, the root, epsilon and a product, a sum."""
    u, exact = torch.finfo(d.dtype).eps / 2, d.double()
    scale: Tensor | float = 1.0
    if norm_scale:
        axes = tuple(range(1, d.ndim)) if dim is None else dim
        scale = exact.square().mean(axes, keepdim=True).sqrt()
    eps = torch.as_tensor(epsilon * scale, dtype=torch.float64)
    sign = torch.where(exact < 0, -1.0, 1.0).double()
    wanted = sign * torch.maximum(exact.abs(), eps) if clip else exact + sign * eps
    return wanted, (d.numel() + 8) * u * eps.expand_as(wanted) + u * wanted.abs()


def _taken(rule: str, subject: Subject) -> Finding:
    """Check that a Stabilizer as the stabilizer of a rule does what the same as a function does."""
    name, box = "epsilon" if rule == "Epsilon" else "stabilizer", {"low": -4.0, "high": 3.0} if rule == "ZBox" else {}
    module, x, R = layer_and_data(rule)
    # which denominators of Gamma belong together, where each gate has its own, nobody says
    tried: tuple[dict[str, bool], ...] = ({"clip": True}, {"norm_scale": True}, {"clip": True, "norm_scale": True})
    for options in tried[:1] if rule == "Gamma" else tried:
        stabilizer = subject.get("Stabilizer")(epsilon=0.5, **options)

        def function(d: Tensor, options: dict[str, Any] = options) -> Tensor:
            given = {"clip": False, "norm_scale": False, "dim": None} | options
            return _expected(d, 0.5, **given)[0]

        found = relevance_of(subject.get(rule)(**box, **{name: stabilizer}), module, x, R)
        wanted = relevance_of(subject.get(rule)(**box, **{name: function}), module, x, R)
        if not _near(found, wanted):
            return fail(f"{rule} with Stabilizer(0.5, {options}) gives {found.tolist()}, expected {wanted.tolist()}")
    return passed()


def _near(found: Tensor, wanted: Tensor) -> bool:
    # denominators are no less than half of the least entry of what is divided; 64 roundings of the largest result
    room = 64 * torch.finfo(wanted.dtype).eps * wanted.abs().max()
    return found.shape == wanted.shape and bool(((found - wanted).abs() <= room).all())


def _ask(rule: Any, wanted: Callable[[Any, Tensor, Tensor], Any]) -> Finding:
    module, x, R = layer_and_data("Epsilon")
    expected = wanted(module, x, R).detach()
    for which, one in (("", rule), ("a copy of ", rule.copy())):
        found = relevance_of(one, module, x, R)
        if not _near(found, expected):
            return fail(f"{which}the hook gives {found.tolist()}, expected {expected.tolist()}")
    return passed()


def _mapper(subject: Subject) -> Finding:
    """Check that the mapper gets R and all outputs, in order, and that each gradient gets its own of what it gives."""
    rule = subject.get("BasicHook")(
        input_modifiers=[lambda v: v, lambda v: 2 * v, lambda v: v - 1],
        param_modifiers=[subject.get("NoMod")() for _ in range(3)],
        output_modifiers=[lambda z: z] * 3,
        gradient_mapper=lambda R, z: [R * z[0], R * z[1] * 2, R + z[2]],
        reducer=lambda v, c: v[0] * c[0] + v[1] * c[1] - v[2] * c[2],
    )

    def wanted(m: Any, x: Tensor, R: Tensor) -> Any:
        v = (x, 2 * x, x - 1)
        z = [m(one) for one in v]
        s = (R * z[0], R * z[1] * 2, R + z[2])
        c = [one @ m.weight for one in s]
        return v[0] * c[0] + v[1] * c[1] - v[2] * c[2]

    return _ask(rule, wanted)


def _outputs(subject: Subject) -> Finding:
    """Check that output modifiers change what the mapper gets and what is differentiated."""
    rule = subject.get("BasicHook")(
        input_modifiers=[lambda v: v],
        param_modifiers=[subject.get("NoMod")()],
        output_modifiers=[lambda z: 4 * z],
        gradient_mapper=lambda R, z: [R * z[0]],
        reducer=lambda v, c: v[0] * c[0],
    )
    return _ask(rule, lambda m, x, R: x * ((4 * R * (4 * m(x))) @ m.weight))


def _parameters(subject: Subject) -> Finding:
    """Check that each run has its own parameters, and that one setting to zero does not reach the others."""
    clamp = subject.get("ClampMod")
    rule = subject.get("BasicHook")(
        input_modifiers=[lambda v: v * 1, lambda v: v * 1],
        param_modifiers=[clamp(min=0.0, zero_params="bias"), clamp(max=0.0)],
        output_modifiers=[lambda z: z] * 2,
        gradient_mapper=lambda R, z: [R * z[0], R * z[1]],
        reducer=lambda v, c: v[0] * c[0] + 2 * v[1] * c[1],
    )

    def wanted(m: Any, x: Tensor, R: Tensor) -> Any:
        plus, minus = m.weight.clamp(min=0), m.weight.clamp(max=0)
        first, second = x @ plus.T, x @ minus.T + m.bias.clamp(max=0)
        return x * ((R * first) @ plus) + 2 * x * ((R * second) @ minus)

    return _ask(rule, wanted)


def _reduced(subject: Subject) -> Finding:
    """Check that the reducer gets the changed inputs, and that its result is the relevance."""
    rule = subject.get("BasicHook")(
        input_modifiers=[lambda v: 3 * v],
        param_modifiers=[subject.get("NoMod")()],
        output_modifiers=[lambda z: z],
        gradient_mapper=lambda R, z: [R + 0 * z[0]],
        reducer=lambda v, c: v[0] - c[0],
    )
    # the input is changed outside of what is differentiated
    return _ask(rule, lambda m, x, R: 3 * x - R @ m.weight)


def _shared(subject: Subject) -> Finding:
    """Check that each run has a gradient of its own, also where modifiers give back the input itself."""
    clamp = subject.get("ClampMod")
    rule = subject.get("BasicHook")(
        input_modifiers=[lambda v: v, lambda v: v],
        param_modifiers=[clamp(min=0.0), clamp(max=0.0)],
        output_modifiers=[lambda z: z] * 2,
        gradient_mapper=lambda R, z: [R + 0 * z[0], 2 * R + 0 * z[1]],
        reducer=lambda v, c: v[0] * c[0] - v[1] * c[1],
    )
    return _ask(rule, lambda m, x, R: x * (R @ m.weight.clamp(min=0)) - x * (2 * R @ m.weight.clamp(max=0)))


_BASIC: dict[str, Callable[[Subject], Finding]] = {
    "gradient_mapper": _mapper, "output_modifiers": _outputs, "param_modifiers": _parameters, "reducer": _reduced,
    "shared-input": _shared,
}  # fmt: skip


def _written(modifier: str, subject: Subject) -> Finding:
    """Check that the parameters themselves keep their numbers while a modifier is in force, and are back afterwards."""
    module = nn.Linear(2, 2, dtype=torch.float64)
    own = dict(module.named_parameters())
    kept = {name: parameter.detach().clone() for name, parameter in own.items()}
    arguments: dict[str, Any] = {} if modifier == "NoMod" else {"min": 0.0}
    with subject.get(modifier)(zero_params="bias", **arguments)(module) as modified, torch.no_grad():
        modified(torch.ones(1, 2, dtype=torch.float64))
        if any(not same(own[name].detach(), kept[name]) for name in own):
            return fail("the numbers of a parameter are overwritten, though others may hold it")
    if any(module.get_parameter(name) is not parameter for name, parameter in own.items()):
        return fail("a parameter is another object afterwards")
    return passed()


class _BoomError(Exception):
    """What is raised here while a modifier is in force."""


def _interrupted(modifier: str, subject: Subject) -> Finding:
    """Check that an exception inside leaves the parameters as they were."""
    module = nn.Linear(2, 2, dtype=torch.float64)
    own = dict(module.named_parameters())
    kept = {name: parameter.detach().clone() for name, parameter in own.items()}
    arguments: dict[str, Any] = {} if modifier == "NoMod" else {"min": 0.0}
    with contextlib.suppress(_BoomError), subject.get(modifier)(zero_params="bias", **arguments)(module):
        raise _BoomError
    if any(module.get_parameter(name) is not parameter for name, parameter in own.items()):
        return fail("after an exception inside, a parameter is another object")
    if any(not same(own[name].detach(), kept[name]) for name in own):
        return fail("after an exception inside, the numbers of a parameter are others")
    return passed()
