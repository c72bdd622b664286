"""Composites: which rule goes on which kind of layer and operation, for any network.

>>> import torch
>>> from torch import nn
>>> from lrp_rules import attach
>>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
>>> x = torch.rand(1, 3, 4, 4, requires_grad=True)
>>> with attach(model, EpsilonPlus()) as rules:
...     output = model(x)
>>> (relevance,) = torch.autograd.grad(output[0, 0], x)

Names and arguments are those of zennit. Beside the layers that zennit knows, these have rules for what lies between:
sums and means (Norm), gates (SignalTakesAll), attention and other products of two signals (Bilinear), normalisations
and activations (Pass), softmax (Stop). A batch norm is a part of the layer before it (FoldBatchNorm), so that no
canonizer is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from lrp_rules.network_rules import Bilinear, LayerNormRule, SignalTakesAll, Softmax, Stop, Uniform
from lrp_rules.networks.attaching import Composite
from lrp_rules.networks.folding import FoldBatchNorm
from lrp_rules.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Pass,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    ZBox,
    ZPlus,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from lrp_rules.hooks.hook import Hook

    Pairs = Sequence[tuple[Any, Hook]] | Mapping[Any, Hook]
    Names = str | Iterable[str] | None

__all__ = [
    "CPLRP",
    "AttnLRP",
    "BetaSmooth",
    "Composite",
    "DeconvNet",
    "EpsilonAlpha2Beta1",
    "EpsilonAlpha2Beta1Flat",
    "EpsilonGammaBox",
    "EpsilonPlus",
    "EpsilonPlusFlat",
    "ExcitationBackprop",
    "GuidedBackprop",
    "LayerMapComposite",
    "MixedComposite",
    "NameLayerMapComposite",
    "NameMapComposite",
    "SpecialFirstLayerMapComposite",
    "between_layers",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (*CONVOLUTIONS, nn.Linear)
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Softshrink,
    nn.Hardshrink, nn.Tanhshrink, nn.Threshold, nn.LogSigmoid,
)  # fmt: skip
NORMALISATIONS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def between_layers(stabilizer: Any = 1e-6) -> dict[Any, Hook]:
    """Return the rules for all that is no linear layer or convolution, as every composite here has them."""
    norm, keep = Norm(stabilizer), Pass()
    return {
        ACTIVATIONS: keep, F.relu: keep, F.gelu: keep,
        torch.add: norm, torch.sum: norm, torch.mean: norm, F.avg_pool2d: norm, F.interpolate: norm, torch.norm: norm,
        POOLS: norm, nn.Upsample: norm,
        torch.mul: SignalTakesAll(), torch.div: SignalTakesAll(signal=0), torch.pow: keep,
        torch.matmul: Bilinear(stabilizer), F.softmax: Stop(), nn.Softmax: Stop(),
        NORMALISATIONS: keep, F.layer_norm: keep,
        BATCH_NORMS: FoldBatchNorm(Epsilon(stabilizer)), F.batch_norm: FoldBatchNorm(Epsilon(stabilizer)),
    }  # fmt: skip


def _pairs(given: Pairs | None) -> dict[Any, Hook]:
    if given is None:
        return {}
    pairs = given.items() if isinstance(given, Mapping) else given
    return {tuple(key) if isinstance(key, list) else key: rule for key, rule in pairs}


def _functions(rules: Mapping[Any, Hook]) -> dict[Any, Hook]:
    """Return the rules of layers for the functions that are such layers, too."""
    found: dict[Any, Hook] = {}
    for keys, rule in rules.items():
        for key in keys if isinstance(keys, tuple) else (keys,):
            for kind, function in ((nn.Linear, F.linear), (nn.Conv2d, F.conv2d)):
                if isinstance(key, type) and issubclass(kind, key):
                    found.setdefault(function, rule)
    return found


class LayerMapComposite(Composite):
    """Rules by types of layers.

    Parameters
    ----------
    layer_map
        Pairs of a type, a tuple of types, or a function, and a rule; the first that matches decides.
    canonizers
        Of zennit, if any are wanted: batch norms are folded, and sums have rules, without.

    """

    def __init__(self, layer_map: Pairs, canonizers: Iterable[Any] | None = None, *, gradient: bool = False) -> None:
        rules = _pairs(layer_map)
        super().__init__({**rules, **_functions(rules)}, gradient=gradient, canonizers=canonizers)


class SpecialFirstLayerMapComposite(Composite):
    """Rules by types of layers, and others for the layers that the model's input reaches first.

    Which these are is seen in each call: a layer of a type in ``first_map`` with no other such layer between it and the
    model's input. The order of modules in the model means nothing.

    Parameters
    ----------
    layer_map, first_map
        Pairs of a type, a tuple of types, or a function, and a rule; the first that matches decides.
    canonizers
        Of zennit, if any are wanted.

    """

    def __init__(self, layer_map: Pairs, first_map: Pairs, canonizers: Iterable[Any] | None = None) -> None:
        rules = _pairs(layer_map)
        first = _pairs(first_map)
        super().__init__({**rules, **_functions(rules)}, first={**first, **_functions(first)}, canonizers=canonizers)


class NameMapComposite(Composite):
    """Rules by names of modules.

    Parameters
    ----------
    name_map
        Pairs of a name or a tuple of names, as in ``model.named_modules()``, or patterns, and a rule.
    canonizers
        Of zennit, if any are wanted.

    """

    def __init__(self, name_map: Pairs, canonizers: Iterable[Any] | None = None) -> None:
        super().__init__(_pairs(name_map), canonizers=canonizers)


class MixedComposite(Composite):
    """Several composites: the first that has a rule for a module or function decides.

    Parameters
    ----------
    composites
        Composites, the most important first.
    canonizers
        Of zennit, in addition to those of the composites.

    """

    def __init__(self, composites: Sequence[Composite], canonizers: Iterable[Any] | None = None) -> None:
        rules: dict[Any, Hook] = {}
        first: dict[Any, Hook] = {}
        for composite in composites:
            rules = {**rules, **{key: rule for key, rule in composite.rules.items() if key not in rules}}
            first = {**first, **{key: rule for key, rule in composite.first.items() if key not in first}}
        super().__init__(
            rules, first=first, gradient=all(composite.gradient for composite in composites),
            canonizers=[*(canonizers or ()), *(one for composite in composites for one in composite.canonizers)],
        )  # fmt: skip


class NameLayerMapComposite(MixedComposite):
    """Rules by names of modules, and by types for all that is not named.

    Parameters
    ----------
    name_map, layer_map, canonizers
        As for :class:`NameMapComposite` and :class:`LayerMapComposite`.

    """

    def __init__(
        self, name_map: Pairs | None = None, layer_map: Pairs | None = None, canonizers: Iterable[Any] | None = None
    ) -> None:
        super().__init__([NameMapComposite(name_map or {}), LayerMapComposite(layer_map or {})], canonizers)


def _with_layers(layer_map: Pairs | None, convolutions: Hook, linear: Hook, stabilizer: Any) -> dict[Any, Hook]:
    given = _pairs(layer_map)
    layers: dict[Any, Hook] = {CONVOLUTIONS: convolutions, nn.Linear: linear}
    return {
        **given,
        **{k: v for k, v in {**layers, **_functions(layers), **between_layers(stabilizer)}.items() if k not in given},
    }


class EpsilonPlus(Composite):
    """ZPlus for convolutions, Epsilon for linear layers (Lapuschkin et al. 2019, doi:10.1038/s41467-019-08987-4).

    Parameters
    ----------
    epsilon
        Of Epsilon.
    stabilizer
        Of all other rules.
    layer_map
        Pairs that come before those of the composite.
    zero_params
        Names of parameters that the rules set to zero, such as 'bias'.
    canonizers
        Of zennit, if any are wanted.

    """

    def __init__(
        self, epsilon: Any = 1e-6, stabilizer: Any = 1e-6, layer_map: Pairs | None = None, zero_params: Names = None,
        canonizers: Iterable[Any] | None = None,
    ) -> None:  # fmt: skip
        convolutions, linear = ZPlus(stabilizer, zero_params), Epsilon(epsilon, zero_params)
        super().__init__(_with_layers(layer_map, convolutions, linear, stabilizer), canonizers=canonizers)


class EpsilonPlusFlat(Composite):
    """EpsilonPlus, with Flat for the first layers.

    Parameters
    ----------
    epsilon, stabilizer, layer_map, zero_params, canonizers
        As for :class:`EpsilonPlus`.
    first_map
        Pairs for first layers that come before those of the composite.

    """

    def __init__(
        self, epsilon: Any = 1e-6, stabilizer: Any = 1e-6, layer_map: Pairs | None = None,
        first_map: Pairs | None = None, zero_params: Names = None, canonizers: Iterable[Any] | None = None,
    ) -> None:  # fmt: skip
        convolutions, linear = ZPlus(stabilizer, zero_params), Epsilon(epsilon, zero_params)
        first = {**_pairs(first_map), LINEAR: Flat(stabilizer, zero_params)}
        first |= _functions(first)
        super().__init__(_with_layers(layer_map, convolutions, linear, stabilizer), first=first, canonizers=canonizers)


class EpsilonAlpha2Beta1(Composite):
    """AlphaBeta(2, 1) for convolutions, Epsilon for linear layers.

    Parameters
    ----------
    epsilon, stabilizer, layer_map, zero_params, canonizers
        As for :class:`EpsilonPlus`.

    """

    def __init__(
        self, epsilon: Any = 1e-6, stabilizer: Any = 1e-6, layer_map: Pairs | None = None, zero_params: Names = None,
        canonizers: Iterable[Any] | None = None,
    ) -> None:  # fmt: skip
        convolutions, linear = AlphaBeta(2, 1, stabilizer, zero_params), Epsilon(epsilon, zero_params)
        super().__init__(_with_layers(layer_map, convolutions, linear, stabilizer), canonizers=canonizers)


class EpsilonAlpha2Beta1Flat(Composite):
    """EpsilonAlpha2Beta1, with Flat for the first layers.

    Parameters
    ----------
    epsilon, stabilizer, layer_map, first_map, zero_params, canonizers
        As for :class:`EpsilonPlusFlat`.

    """

    def __init__(
        self, epsilon: Any = 1e-6, stabilizer: Any = 1e-6, layer_map: Pairs | None = None,
        first_map: Pairs | None = None, zero_params: Names = None, canonizers: Iterable[Any] | None = None,
    ) -> None:  # fmt: skip
        convolutions, linear = AlphaBeta(2, 1, stabilizer, zero_params), Epsilon(epsilon, zero_params)
        first = {**_pairs(first_map), LINEAR: Flat(stabilizer, zero_params)}
        first |= _functions(first)
        super().__init__(_with_layers(layer_map, convolutions, linear, stabilizer), first=first, canonizers=canonizers)


class EpsilonGammaBox(Composite):
    """Gamma for convolutions, Epsilon for linear layers, ZBox for the first convolutions.

    Parameters
    ----------
    low, high
        Bounds of the model's input, as for :class:`~lrp_rules.ZBox`.
    gamma
        Of Gamma.
    epsilon, stabilizer, layer_map, first_map, zero_params, canonizers
        As for :class:`EpsilonPlusFlat`.

    """

    def __init__(
        self, low: float | Tensor, high: float | Tensor, epsilon: Any = 1e-6, gamma: float = 0.25,
        stabilizer: Any = 1e-6, layer_map: Pairs | None = None, first_map: Pairs | None = None,
        zero_params: Names = None, canonizers: Iterable[Any] | None = None,
    ) -> None:  # fmt: skip
        convolutions, linear = Gamma(gamma, stabilizer, zero_params), Epsilon(epsilon, zero_params)
        first = {**_pairs(first_map), CONVOLUTIONS: ZBox(low, high, stabilizer, zero_params)}
        first |= _functions(first)
        super().__init__(_with_layers(layer_map, convolutions, linear, stabilizer), first=first, canonizers=canonizers)


class GuidedBackprop(Composite):
    """ReLUGuidedBackprop for each ReLU; all else has its gradient (Springenberg et al. 2015, arXiv:1412.6806).

    Parameters
    ----------
    layer_map, canonizers
        As for :class:`EpsilonPlus`.

    """

    def __init__(self, layer_map: Pairs | None = None, canonizers: Iterable[Any] | None = None) -> None:
        rule = ReLUGuidedBackprop()
        super().__init__({**_pairs(layer_map), nn.ReLU: rule, F.relu: rule}, gradient=True, canonizers=canonizers)


class DeconvNet(Composite):
    """ReLUDeconvNet for each ReLU; all else has its gradient (Zeiler and Fergus 2014, arXiv:1311.2901).

    Parameters
    ----------
    layer_map, canonizers
        As for :class:`EpsilonPlus`.

    """

    def __init__(self, layer_map: Pairs | None = None, canonizers: Iterable[Any] | None = None) -> None:
        rule = ReLUDeconvNet()
        super().__init__({**_pairs(layer_map), nn.ReLU: rule, F.relu: rule}, gradient=True, canonizers=canonizers)


class BetaSmooth(Composite):
    """ReLUBetaSmooth for each ReLU; all else has its gradient (Dombrowski et al. 2019, arXiv:1906.07983).

    Parameters
    ----------
    beta_smooth
        Of ReLUBetaSmooth.
    layer_map, canonizers
        As for :class:`EpsilonPlus`.

    """

    def __init__(
        self, beta_smooth: float = 10.0, layer_map: Pairs | None = None, canonizers: Iterable[Any] | None = None
    ) -> None:
        rule = ReLUBetaSmooth(beta_smooth)
        super().__init__({**_pairs(layer_map), nn.ReLU: rule, F.relu: rule}, gradient=True, canonizers=canonizers)


class ExcitationBackprop(Composite):
    """ZPlus for linear layers and convolutions (Zhang et al. 2016, arXiv:1608.00507).

    Parameters
    ----------
    stabilizer, layer_map, zero_params, canonizers
        As for :class:`EpsilonPlus`.

    """

    def __init__(
        self, stabilizer: Any = 1e-6, layer_map: Pairs | None = None, zero_params: Names = None,
        canonizers: Iterable[Any] | None = None,
    ) -> None:  # fmt: skip
        rule = ZPlus(stabilizer, zero_params)
        super().__init__(_with_layers(layer_map, rule, rule, stabilizer), canonizers=canonizers)


class AttnLRP(Composite):
    """For transformers (Achtibat et al. 2024, arXiv:2402.05602): relevance goes through the weights of attention, too.

    Epsilon for linear layers; Bilinear for products of two signals, Uniform for gates; Softmax for the weights of
    attention; LayerNormRule for normalisations (its proposition 3.4, and Epsilon for the centring), Pass for
    activations. Softmax does not conserve: its constant term keeps a share.

    Parameters
    ----------
    epsilon, layer_map, zero_params, canonizers
        As for :class:`EpsilonPlus`.
    gamma
        Of Gamma for convolutions, such as the patches of a vision transformer; None: Epsilon there, too.

    """

    def __init__(
        self, epsilon: Any = 1e-6, gamma: float | None = None, layer_map: Pairs | None = None,
        zero_params: Names = None, canonizers: Iterable[Any] | None = None,
    ) -> None:  # fmt: skip
        linear, norm, softmax = Epsilon(epsilon, zero_params), LayerNormRule(epsilon, zero_params), Softmax()
        convolutions = linear if gamma is None else Gamma(gamma, epsilon, zero_params)
        own = {torch.mul: Uniform(), F.softmax: softmax, nn.Softmax: softmax, NORMALISATIONS: norm, F.layer_norm: norm}
        rules = _with_layers({**own, **_pairs(layer_map)}, convolutions, linear, epsilon)
        super().__init__({**_pairs(layer_map), **rules}, canonizers=canonizers)


class CPLRP(Composite):
    """For transformers (Ali et al. 2022, arXiv:2202.07304): the weights of attention are constants.

    Epsilon for linear layers; all relevance of attention goes through the values; LayerNormRule for normalisations.

    Parameters
    ----------
    epsilon, layer_map, zero_params, canonizers
        As for :class:`EpsilonPlus`.

    """

    def __init__(
        self, epsilon: Any = 1e-6, layer_map: Pairs | None = None, zero_params: Names = None,
        canonizers: Iterable[Any] | None = None,
    ) -> None:  # fmt: skip
        linear, norm = Epsilon(epsilon, zero_params), LayerNormRule(epsilon, zero_params)
        rules = _with_layers({NORMALISATIONS: norm, F.layer_norm: norm, **_pairs(layer_map)}, linear, linear, epsilon)
        super().__init__({**_pairs(layer_map), **rules}, canonizers=canonizers)
