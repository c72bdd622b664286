"""Conduct: which weight. Rules act on the one that the forward pass used, wherever it came from, or refuse."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from verify.checks.conduct.probing import (
    OTHER_R,
    WEIGHED,
    R,
    Topic,
    X,
    attached,
    differs,
    fill,
    fresh,
    gives,
    grad,
    leaf,
    linear,
    make,
    tensor,
    unless_refused,
)
from verify.checks.conduct.settings import halves
from verify.subjects.asking import relevance_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from verify.model import Subject

    #: Makes a module, and names the weight that it uses; its bias is that of ``linear()``, or none.
    Build = Callable[[], tuple[nn.Module, Tensor]]

_WEIGHT, _BIAS = linear().weight.detach(), linear().bias.detach()


def plain(weight: Tensor, bias: Tensor | None = _BIAS) -> nn.Linear:
    """Return a layer of torch with these parameters."""
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    fill(module, weight=weight, **({} if bias is None else {"bias": bias}))
    return module


def _uses(build: Build, rule: str, subject: Subject) -> Iterator[str]:
    """The relevance is that of a plain layer with the weight that the forward pass used, or there is an error."""
    module, weight = build()
    bias = _BIAS if any("bias" in name for name in dir(module)) else None
    name = build.__name__.strip("_").replace("_", " ")
    expected = fresh(subject, rule, plain(weight, bias))
    yield from unless_refused(gives(subject, rule, module, expected, f"{name}: the relevance"))


# Forward passes of one's own. The numbers are exact: the weight that comes out has few binary digits.


class _Adapted(nn.Linear):
    """A low-rank adapter in a subclass, as in loralib: the weight is W + B A."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.A = nn.Parameter(tensor([[1.0, -0.5, 0.25]]))
        self.B = nn.Parameter(tensor([[-1.0], [2.0], [0.5]]))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input @ self.A.T @ self.B.T


class _Standardised(nn.Linear):
    """Weight standardisation in a subclass, as in timm's StdConv2d."""

    def forward(self, input: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean(1, keepdim=True)) / self.weight.std(1, keepdim=True)
        return nn.functional.linear(input, weight, self.bias)


class _Scaled(nn.Linear):
    """A learning rate that is the same for all layers, as in StyleGAN2: the weight is halved."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight * -0.5, self.bias)


class _ScaledConvolution(nn.Conv2d):
    """The same of a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(input, self.weight * -0.5, self.bias)
        return y


def _convolution(rule: str, subject: Subject) -> Iterator[str]:
    """A convolution that makes its weight of its parameter, of both signs, with a stride, groups and padding."""
    generator = torch.Generator().manual_seed(1)
    for options in ({"stride": 2}, {"padding": 1, "groups": 2}, {"padding": 1, "padding_mode": "replicate"}):
        module, like = (kind(2, 4, 2, **options).double() for kind in (_ScaledConvolution, nn.Conv2d))
        weight, bias = (halves(generator, tuple(p.shape)) for p in module.parameters())
        fill(module, weight=weight, bias=bias)
        fill(like, weight=-0.5 * weight, bias=bias)
        x = halves(generator, (2, 2, 4, 5))
        relevance = halves(generator, tuple(like(x).shape))
        expected = fresh(subject, rule, like, x, relevance)

        def ask(
            module: nn.Module = module, x: Tensor = x, relevance: Tensor = relevance, expected: Tensor = expected
        ) -> Iterator[str]:
            found = relevance_of(make(subject, rule), module, x, relevance)
            yield from differs(found, expected, "of a convolution that scales its weight, the relevance")

        yield from unless_refused(ask())


def _low_rank_adapter() -> tuple[nn.Module, Tensor]:
    module = linear(_Adapted)
    assert isinstance(module, _Adapted)
    return module, _WEIGHT + (module.B @ module.A).detach()


def _standardised_weight() -> tuple[nn.Module, Tensor]:
    module = linear(_Standardised)
    # two deviations of 2 and -2 from the mean of three entries: their standard deviation is 2
    fill(module, weight=[[2.5, -1.5, 0.5], [-1.0, -3.0, 1.0], [0.25, 2.25, -1.75]])
    return module, tensor([[1.0, -1.0, 0.0], [0.0, -1.0, 1.0], [0.0, 1.0, -1.0]])


def _scaled_weight() -> tuple[nn.Module, Tensor]:
    return linear(_Scaled), -0.5 * _WEIGHT


# A weight that is no parameter of the module, or not when it is looked at.


def _without_weight() -> Any:
    module = linear()
    del module.weight
    return module


def _buffer() -> tuple[nn.Module, Tensor]:
    module = _without_weight()
    module.register_buffer("weight", _WEIGHT.clone())
    return module, _WEIGHT


def _attribute() -> tuple[nn.Module, Tensor]:
    module = _without_weight()
    module.weight = _WEIGHT.clone()
    return module, _WEIGHT


def _pre_hook() -> tuple[nn.Module, Tensor]:
    """As PyTorch's own weight_norm did."""
    module = _without_weight()
    module.register_parameter("weight_orig", nn.Parameter(_WEIGHT.clone()))
    module.weight = _WEIGHT.clone()
    module.register_forward_pre_hook(lambda module, _args: setattr(module, "weight", module.weight_orig * -0.5))
    return module, -0.5 * _WEIGHT


class _Property(nn.Linear):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.in_features = self.out_features = 3
        self.raw, self.bias = nn.Parameter(_WEIGHT.clone()), nn.Parameter(_BIAS.clone())

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.raw * -0.5


def _property() -> tuple[nn.Module, Tensor]:
    return _Property(), -0.5 * _WEIGHT


def _loaded_for_the_call() -> tuple[nn.Module, Tensor]:
    """The module has its parameters during its forward pass alone, as accelerate offloads them."""
    module, forward = linear(), nn.Linear.forward
    own = dict(module.named_parameters())

    def absent() -> None:
        for name, parameter in own.items():
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="meta")))

    def wrapped(input: Tensor) -> Tensor:
        for name, parameter in own.items():
            setattr(module, name, parameter)
        try:
            return forward(module, input)
        finally:
            absent()

    absent()
    vars(module)["forward"] = wrapped
    return module, _WEIGHT


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * (-2 if self.training else 1)


def _train_mode() -> tuple[nn.Module, Tensor]:
    return parametrize.register_parametrization(linear(), "weight", _Doubled()).train(), -2 * _WEIGHT


class _Random(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * torch.pow(2.0, torch.randint(-2, 3, weight.shape)) * (2 * torch.randint(0, 2, weight.shape) - 1)


def _random(rule: str, subject: Subject) -> Iterator[str]:
    """The weight is drawn anew whenever it is asked for; the one of the forward pass counts."""
    diagonal = tensor([1.0, -2.0, 0.5])

    def ask() -> Iterator[str]:
        module = parametrize.register_parametrization(linear(), "weight", _Random())
        x = leaf(diagonal.diag())
        with attached(make(subject, rule), module):
            y = module(x)
            found = grad(y, x, OTHER_R)
        used = ((y.detach() - _BIAS) / diagonal[:, None]).T
        expected = fresh(subject, rule, plain(used), x, OTHER_R)
        yield from differs(found, expected, "the relevance of a layer whose weight is drawn in each call")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield from unless_refused(ask())


def _functional_call(rule: str, subject: Subject) -> Iterator[str]:
    """torch.func.functional_call lends a module other parameters for one call."""
    other = plain(-0.5 * _WEIGHT, 2 * _BIAS)
    expected = fresh(subject, rule, other)

    def ask() -> Iterator[str]:
        module, x = linear(), leaf(X)
        with attached(make(subject, rule), module):
            y = torch.func.functional_call(module, dict(other.named_parameters()), (x,))
            yield from differs(grad(y, x, R), expected, "the relevance of a call with other parameters")

    yield from unless_refused(ask())


def _replica(rule: str, subject: Subject) -> Iterator[str]:
    """A replica as nn.DataParallel makes it on several GPUs: its weights are no parameters, but depend on some."""
    expected = fresh(subject, rule, linear())

    def ask() -> Iterator[str]:
        module, x = linear(), leaf(X)
        with attached(make(subject, rule), module):
            replica: Any = module._replicate_for_data_parallel()  # noqa: SLF001  as torch.nn.parallel.replicate does
            for name, parameter in module.named_parameters():
                setattr(replica, name, parameter * 1)
            vars(replica)["_former_parameters"] = dict(module.named_parameters())
            yield from differs(grad(replica(x), x, R), expected, "the relevance of a replica")

    yield from unless_refused(ask())


# A backward pass of one's own, which cannot be differentiated again, as those of fused kernels. That it is refused
# there or detached makes no difference to the relevance.


class _Once(torch.autograd.Function):
    """y = 2 W x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return 2 * x @ weight.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return 2 * gradient @ weight, 2 * gradient.T @ x


class _Detached(_Once):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = (t.detach() for t in ctx.saved_tensors)
        return 2 * gradient.detach() @ weight, 2 * gradient.detach().T @ x


class _Fused(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(_WEIGHT.clone()), function

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.function.apply(input, self.weight)
        return y


# Without a bias, the factor 2 has no part in the relevance of those rules that square the weight or replace it: their
# denominators are powers of two, and it cancels.


def _once_differentiable() -> tuple[nn.Module, Tensor]:
    return _Fused(_Once), 2 * _WEIGHT


def _detached_backward() -> tuple[nn.Module, Tensor]:
    return _Fused(_Detached), 2 * _WEIGHT


#: Those that are asked by what they build.
BUILDS: dict[str, Build] = {
    "low-rank-adapter": _low_rank_adapter,
    "standardised-weight": _standardised_weight,
    "scaled-weight": _scaled_weight,
    "weight-is-a-buffer": _buffer,
    "weight-is-an-attribute": _attribute,
    "weight-by-a-pre-hook": _pre_hook,
    "weight-is-a-property": _property,
    "weight-loaded-for-the-call": _loaded_for_the_call,
    "weight-depends-on-mode": _train_mode,
    "once-differentiable": _once_differentiable,
    "detached-backward": _detached_backward,
}

TOPICS = (
    *(Topic(what, partial(_uses, build), WEIGHED) for what, build in BUILDS.items()),
    Topic("scaled-convolution", _convolution, WEIGHED),
    Topic("random-weight", _random, WEIGHED),
    Topic("functional-call", _functional_call, WEIGHED),
    Topic("replica", _replica, WEIGHED),
)
