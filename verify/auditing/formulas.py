"""What a rule gives in one call: its formula in float64, with where the rest goes, and how far rounding can take it.

Written from RULES.md for whole layers of any size, without anything of ``lrp_rules``' own backward pass; a test holds
it to `reference`. Every entry has a bound, by the analysis of `reference.rounding` in a coarser form: a sum of n
products computed as up to four sums errs by at most gamma(4 (n + 8)) times the sum of their magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import lrp_rules as lrp
from verify.auditing.rounding import gamma

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from verify.auditing.layers import Layer

    Change = Callable[[Tensor], Tensor]
    Function = Callable[..., Any]
    Tensors = Sequence[Tensor]


class NoFormulaError(Exception):
    """There is no formula here for a rule on an operation."""


@dataclass
class Answer:
    """The relevance r of each input, how far rounding can take each entry, and what the inputs do not get."""

    r: list[Tensor]
    #: None: only as a whole, by the sizes of r and R.
    bound: list[Tensor] | None
    bias: float = 0.0
    stabilizer: float = 0.0
    dead: float = 0.0
    constants: float = 0.0


# --- rules by their parts ---------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """c * sum of v A(w)^T R / S(sum of A(w) v + b), for changes of w and of b; gate: which sign of z opens it."""

    coefficient: float
    terms: Sequence[tuple[Change, Tensor]]
    bias: Change | None
    gate: int = 0


def _same(v: Tensor) -> Tensor:
    return v


def _positive(v: Tensor) -> Tensor:
    return v.clamp(min=0)


def _negative(v: Tensor) -> Tensor:
    return v.clamp(max=0)


def _raised(g: float, part: Change) -> Change:
    return lambda v: v + g * part(v)


def _parts(rule: Any, x: Tensor) -> list[_Part]:  # noqa: PLR0911  one for each rule
    up, down = _positive(x), _negative(x)
    positive = [(_positive, up), (_negative, down)]
    match rule:
        case lrp.Epsilon():
            return [_Part(1, [(_same, x)], _same)]
        case lrp.ZPlus():
            return [_Part(1, positive, _positive)]
        case lrp.AlphaBeta():
            first = _Part(rule.alpha, positive, _positive)
            return [first, _Part(-rule.beta, [(_negative, up), (_positive, down)], _negative)][: 1 + (rule.beta != 0)]
        case lrp.Gamma():
            more, less = _raised(rule.gamma, _positive), _raised(rule.gamma, _negative)
            return [
                _Part(1, [(more, up), (less, down)], more, +1), _Part(1, [(less, up), (more, down)], less, -1)
            ]  # fmt: skip
        case lrp.ZBox():
            low, high = (_bound(value, x) for value in (rule.low, rule.high))
            return [_Part(1, [(_same, x), (_positive, -low), (_negative, -high)], None)]
        case lrp.WSquare():
            return [_Part(1, [(torch.square, torch.ones_like(x))], torch.square)]
        case lrp.Flat():
            return [_Part(1, [(torch.ones_like, torch.ones_like(x))], None)]
    msg = f"no formula for {type(rule).__name__} here"
    raise NoFormulaError(msg)


def _bound(value: Tensor, x: Tensor) -> Tensor:
    """Spread a bound of ZBox over the input: it gets trailing dimensions, and is cut to the batch."""
    value = value.detach().to(x)
    value = value.reshape(*value.shape, *[1] * (x.ndim - value.ndim)) if value.ndim else value
    return value[: len(x)].expand_as(x) if value.ndim and len(value) > len(x) else value.expand_as(x)


def by_parts(rule: Any, layer: Layer, x: Tensor, R: Tensor, u: float) -> Answer:
    """Answer for a rule on a linear layer."""
    x, R = x.double(), R.double()
    weight, bias = layer.weight, layer.bias
    if "weight" in rule.zero_params:
        weight = torch.zeros_like(weight)
    if "bias" in rule.zero_params and bias is not None:
        bias = torch.zeros_like(bias)
    parts = _parts(rule, x)
    answer = Answer([torch.zeros_like(x)], [torch.zeros_like(x)])
    assert answer.bound is not None
    z, unsure, g = None, None, gamma(4 * (layer.products + 8), u)
    if any(part.gate for part in parts):
        z, size = layer.apply(layer.weight, x), layer.apply(layer.weight.abs(), x.abs())
        if layer.bias is not None:
            constant = layer.constant(layer.bias, z)
            z, size = z + constant, size + constant.abs()
        unsure = z.abs() <= g * size
        answer.dead += float(R[z == 0].sum())
    for part in parts:
        vs = [v.detach().requires_grad_() for _, v in part.terms]
        sizes = [v.detach().abs().requires_grad_() for _, v in part.terms]
        with torch.enable_grad():
            a = sum(layer.apply(change(weight), v) for (change, _), v in zip(part.terms, vs, strict=True))
            m = sum(layer.apply(change(weight).abs(), v) for (change, _), v in zip(part.terms, sizes, strict=True))
        assert isinstance(a, Tensor)
        assert isinstance(m, Tensor)
        b = torch.zeros_like(a)
        if bias is not None and part.bias is not None:
            b = layer.constant(part.bias(bias), a)
        s, error, S = _shares(rule.stabilizer, a.detach() + b, m.detach() + b.abs(), R, g, u)
        if part.gate:
            assert z is not None
            assert unsure is not None
            error = torch.where(unsure, error + s.abs(), error)
            s = torch.where(z * part.gate > 0, s, 0.0)
            error = torch.where((s != 0) | unsure, error, 0.0)
        rs = torch.autograd.grad(a, vs, s)
        errors = torch.autograd.grad(m, sizes, error + g * s.abs())
        for v, r, e in zip(vs, rs, errors, strict=True):
            answer.r[0] += part.coefficient * v.detach() * r
            answer.bound[0] += abs(part.coefficient) * v.detach().abs() * e
        nothing = (m.detach() == 0) & (b == 0)
        took = part.coefficient * s * (S - (a.detach() + b))
        answer.bias += part.coefficient * float((s * b).sum())
        answer.dead += float(took[nothing].sum())
        answer.stabilizer += float(took[~nothing].sum())
    return answer


def _shares(stabilizer: Any, d: Tensor, size: Tensor, R: Tensor, g: float, u: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return s = R / S(d), how far it can be off, and S(d)."""
    S = stabilizer(d)
    s = torch.where((R == 0) & (S == 0), 0.0, R / S)  # there, R / S can be anything, and what it is shared by is 0
    off = g * size
    least = stabilizer(torch.zeros_like(d)).abs()
    # of one sign: S moves by no more than d does; of either sign: it is nowhere nearer to zero than S(0)
    inside = (S.abs() - off).clamp(min=0)
    one = s.abs() * (off / inside + 4 * u)
    both = R.abs() / least + s.abs()
    error = torch.where((d.abs() > off) & (inside > 0), one, both)
    return s, torch.where((R == 0) | (size == 0), s.abs() * 4 * u, error), S


# --- rules by the operation itself ------------------------------------------------------------------------------------

#: Functions that are linear, with coefficients of one sign for each input.
_ADDING = {"add", "sum", "mean", "avg_pool", "interpolate"}


def by_function(rule: Any, f: Function, operation: str | None, xs: Tensors, Rs: Tensors, u: float) -> Answer:
    """Answer for a rule that sees what a function of all its inputs does; the gradient where the rule is None."""
    with torch.enable_grad():
        given = [x.detach().double().requires_grad_() for x in xs]
        ys = outputs(f(*given))
        Rs = [R.double() for R in Rs]
        if len(ys) != len(Rs):
            msg = "it gave other outputs when it was computed again"
            raise NoFormulaError(msg)
        match rule:
            case None:
                return Answer(_pulled(ys, given, Rs), None)
            case lrp.Bilinear():
                n = len(given)
                return _contributions(rule, f, given, ys, Rs, u, scale=n, signed=False)
            case lrp.Epsilon():
                return _contributions(rule, f, given, ys, Rs, u, scale=1, signed=operation not in _ADDING)
            case lrp.ReLUGuidedBackprop():
                (r,) = _pulled(ys, given, Rs)
                return Answer([torch.where(Rs[0] > 0, r, 0.0)], None)
    msg = f"no formula for {type(rule).__name__} on {operation or 'this'} here"
    raise NoFormulaError(msg)


def outputs(found: Any) -> list[Tensor]:
    """Return the tensors of floating point among what a function returned."""
    leaves = tree_leaves(found)
    return [y for y in leaves if isinstance(y, Tensor) and y.is_floating_point()]


def _pulled(ys: Tensors, xs: Tensors, gradients: Tensors) -> list[Tensor]:
    pairs = [(y, R) for y, R in zip(ys, gradients, strict=True) if y.requires_grad]
    found = torch.autograd.grad([y for y, _ in pairs], xs, [R for _, R in pairs], allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if r is None else r for x, r in zip(xs, found, strict=True)]


def _contributions(
    rule: Any, f: Function, xs: Tensors, ys: Tensors, Rs: Tensors, u: float, *, scale: int, signed: bool
) -> Answer:
    """x_k * J_k^T (R / S(n f(x))), and what f(0) and the stabilizer take."""
    with torch.no_grad():
        zeros = [torch.zeros_like(x) for x in xs]
        none = outputs(f(*zeros))
        if scale > 1:
            sizes = [scale * y for y in outputs(f(*[x.abs() for x in xs]))]
        elif signed:
            sizes = [y.abs() + c.abs() for y, c in zip(ys, none, strict=True)]
        else:
            sizes = [c.abs() for c in none]
            for place, x in enumerate(xs):
                alone = [*zeros[:place], x.detach().abs(), *zeros[place + 1 :]]
                sizes = [size + (y - c).abs() for size, y, c in zip(sizes, outputs(f(*alone)), none, strict=True)]
        count = max(len(xs), *(x.numel() // max(1, min(y.numel() for y in ys)) for x in xs))
        g = gamma(4 * (16 * count + 8), u)
        answer, ss, errors = Answer([], []), [], []
        for y, size, c, R in zip(ys, sizes, none, Rs, strict=True):
            d = scale * y.detach()
            s, error, S = _shares(rule.stabilizer, d, size, R, g, u)
            nothing = size == 0
            took = s * (S - d)
            answer.dead += float(took[nothing].sum())
            answer.stabilizer += float(took[~nothing].sum())
            answer.bias += float((s * c).sum())
            ss.append(s)
            errors.append(error + g * s.abs())
    answer.r = [x.detach() * c for x, c in zip(xs, _pulled(ys, xs, ss), strict=True)]
    if signed:
        answer.bound = None
        return answer
    if scale > 1:
        with torch.enable_grad():
            positive = [x.detach().abs().requires_grad_() for x in xs]
            off = _pulled(outputs(f(*positive)), positive, errors)
    else:
        off = _pulled(ys, xs, errors)
    answer.bound = [x.detach().abs() * e.abs() for x, e in zip(xs, off, strict=True)]
    return answer


# --- rules by shapes --------------------------------------------------------------------------------------------------


def passed(xs: Tensors, Rs: Tensors, u: float) -> Answer:
    """R = R."""
    if [x.shape for x in xs] != [R.shape for R in Rs]:
        msg = "Pass, and its output does not look like its input"
        raise NoFormulaError(msg)
    return Answer([R.double() for R in Rs], [2 * u * R.double().abs() for R in Rs])


def stopped(xs: Tensors) -> Answer:
    """R = 0: the weights are constants, and keep what comes to them."""
    return Answer([torch.zeros_like(x, dtype=torch.float64) for x in xs], [torch.zeros_like(x).double() for x in xs])


def product(rule: Any, xs: Tensors, R: Tensor, u: float, signal: int | None) -> Answer:
    """R / n to each factor, or R to the signal alone, summed where a factor was broadcast."""
    R = R.double()
    answer = Answer([], [])
    assert answer.bound is not None
    if isinstance(rule, lrp.SignalTakesAll) and signal is None:
        whole = [place for place, x in enumerate(xs) if x.shape == R.shape]
        signal = 0 if len(xs) == 1 else whole[0] if len(whole) == 1 else None
        if signal is None:
            msg = "which factor is the signal is not known"
            raise NoFormulaError(msg)
    if signal == -1:
        answer.constants = float(R.sum())
    for place, x in enumerate(xs):
        weight = float(place == signal) if isinstance(rule, lrp.SignalTakesAll) else 1 / len(xs)
        r = (weight * R).sum_to_size(x.shape)
        answer.r.append(r)
        answer.bound.append(gamma(R.numel() / max(1, x.numel()) + 4, u) * (weight * R).abs().sum_to_size(x.shape))
    return answer


def softmax(dim: int, x: Tensor, R: Tensor, u: float) -> Answer:
    """X * (R - s sum R); the constant of the Taylor expansion keeps the rest."""
    x, R = x.double(), R.double()
    s = torch.softmax(x, dim)
    x = x.masked_fill(x == -torch.inf, 0)
    total, size = R.sum(dim, keepdim=True), R.abs().sum(dim, keepdim=True)
    r = x * (R - s * total)
    g = gamma(4 * (x.shape[dim] + 8) + 2 * float(x.abs().amax() if x.numel() else 0), u)
    return Answer([r], [g * x.abs() * (R.abs() + s * size)], bias=float(R.sum() - r.sum()))


def normalisation(rule: Any, module: nn.Module, x: Tensor, R: Tensor, u: float) -> Answer:
    """Epsilon on the centring alone, the deviation being a constant."""
    x, R = x.double().detach(), R.double()
    m: Any = module
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        dims, shape = tuple(range(-len(module.normalized_shape), 0)), x.shape
        seen, along = x, (1,) * (x.ndim - len(module.normalized_shape)) + tuple(module.normalized_shape)
    elif isinstance(module, nn.GroupNorm):
        dims, shape = (-1,), x.shape
        seen, along = x.reshape(len(x), module.num_groups, -1), (1, -1, *[1] * (x.ndim - 2))
    else:
        msg = f"no formula for LayerNormRule on {type(module).__name__} here"
        raise NoFormulaError(msg)
    centred = not isinstance(module, nn.RMSNorm)

    def centre(v: Tensor) -> Tensor:
        return v - v.mean(dims, keepdim=True) if centred else v

    eps = torch.finfo(m.weight.dtype if m.weight is not None else torch.float64).eps if m.eps is None else m.eps
    sd = (centre(seen).square().mean(dims, keepdim=True) + eps).sqrt()
    g = torch.ones(along if -1 not in along else (1,)) if m.weight is None else m.weight.detach().reshape(along)
    given = getattr(m, "bias", None)
    b = torch.zeros(()) if given is None or "bias" in rule.zero_params else given.detach().reshape(along)
    g, b = (v.to(x).expand(shape) for v in (g, b))
    z = (centre(seen) / sd).reshape(shape) * g
    n = seen[(0,) * (seen.ndim - len(dims))].numel()
    rounding = gamma(4 * (n + 16), u)
    most = ((seen.abs() + seen.abs().mean(dims, keepdim=True)) / sd).reshape(shape) * g.abs()
    s, error, S = _shares(rule.stabilizer, z + b, most + b.abs(), R, rounding, u)
    weighed = ((g * s).reshape(seen.shape)) / sd
    off = ((g.abs() * (error + rounding * s.abs())).reshape(seen.shape)) / sd
    r = seen * centre(weighed)
    bound = seen.abs() * (off + off.mean(dims, keepdim=True))
    return Answer(
        [r.reshape(shape)], [bound.reshape(shape)], bias=float((s * b).sum()), stabilizer=float((s * (S - z - b)).sum())
    )
