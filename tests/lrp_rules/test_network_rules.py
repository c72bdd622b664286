"""The rules for products, attention and normalisations: by hand, in integers, and against their formulas.

Numbers are small integers and the stabilizer a power of two, so that relevances are exact. Whole formulas are held
against the reference by ``lrp-verify``.
"""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from lrp_rules import Bilinear, Epsilon, Hook, LayerNormRule, SignalTakesAll, Softmax, Stop, Uniform
from lrp_rules.layers.numbers import agree
from tests.lrp_rules.cases import integers, power_of_two
from tests.lrp_rules.test_second_derivatives import assert_is_derivative

if TYPE_CHECKING:
    from collections.abc import Callable


class Call(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def multiply() -> Call:
    return Call(lambda first, *others: multiply()(first * others[0], *others[1:]) if others else first)


def shares(rule: Hook, module: nn.Module, inputs: list[Tensor], R: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """The relevance of each input that requires a gradient."""
    with rule.register(module):
        output = module(*inputs)
    return torch.autograd.grad(output, [x for x in inputs if x.requires_grad], R, **options)


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [integers(shape, seed).requires_grad_() for seed, shape in enumerate(shapes)]


def test_uniform_sums_over_what_was_broadcast() -> None:
    a, b = tensors((2, 2), (2, 1))
    R = torch.tensor([[2.0, -6.0], [0.0, 10.0]])
    r_a, r_b = shares(Uniform(), multiply(), [a, b], R)
    assert r_a.tolist() == [[1.0, -3.0], [0.0, 5.0]]
    assert r_b.tolist() == [[-2.0], [5.0]]


def test_uniform_counts_the_factors_that_require_a_gradient() -> None:
    a, b, c = tensors((2, 3), (3,), (2, 1))
    R = integers((2, 3), 9) * 3
    assert [r.sum().item() for r in shares(Uniform(), multiply(), [a, b, c], R)] == [R.sum().item() / 3] * 3
    (r,) = shares(Uniform(), multiply(), [a, b.detach()], R)
    assert torch.equal(r, R)


@pytest.mark.parametrize("rule", [SignalTakesAll(1), SignalTakesAll()], ids=["told", "broadcast"])
def test_signal_takes_all(rule: SignalTakesAll) -> None:
    gate, signal = tensors((2, 1), (2, 3))
    R = integers((2, 3), 9)
    r_gate, r_signal = shares(rule, multiply(), [gate, signal], R)
    assert torch.equal(r_signal, R)
    assert torch.equal(r_gate, torch.zeros(2, 1))


def test_a_constant_is_no_signal_unless_it_is_said_to_be() -> None:
    x, mask = tensors((3,), (2, 3))
    R = integers((2, 3), 9)
    (r,) = shares(SignalTakesAll(), multiply(), [x, mask.detach()], R)
    assert torch.equal(r, R.sum(0))
    (r,) = shares(SignalTakesAll(1), multiply(), [x, mask.detach()], R)
    assert torch.equal(r, torch.zeros(3))


def test_a_product_of_two_dtypes_gives_each_its_own() -> None:
    a, b = torch.ones(2, dtype=torch.float32).requires_grad_(), torch.ones(2).requires_grad_()
    for rule in (Uniform(), SignalTakesAll(0), SignalTakesAll(1)):
        assert [r.dtype for r in shares(rule, multiply(), [a, b], torch.ones(2))] == [torch.float32, torch.float64]


@pytest.mark.parametrize(
    ("function", "left", "right"),
    [
        (torch.matmul, (2, 3), (3, 2)),
        (torch.matmul, (2, 1, 2, 3), (4, 3, 2)),
        (torch.bmm, (2, 2, 3), (2, 3, 1)),
        (lambda a, v: torch.einsum("bij,bkj->bik", a, v), (2, 2, 3), (2, 4, 3)),
        (torch.mul, (2, 3), (3,)),
    ],
    ids=["matmul", "broadcast", "bmm", "einsum", "mul"],
)
def test_bilinear(function: Callable[..., Tensor], left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, v = tensors(left, right)
    product = function(a, v)
    R = integers(product.shape, 9)
    r_a, r_v = shares(Bilinear(power_of_two), Call(function), [a, v], R)
    s = R / power_of_two(2 * product)
    for share, factor in ((r_a, a), (r_v, v)):
        (by_factor,) = torch.autograd.grad((product * s).sum(), factor, retain_graph=True)
        assert torch.equal(share, factor * by_factor)
    # both get the half of what does not go to the stabilizer
    assert r_a.sum() == r_v.sum() == (product * s).sum()


def test_bilinear_by_hand() -> None:
    # O = 1 * 3 + 2 * 5 = 13 and 2 O = 26, stabilized to 32: s = 64 / 32 = 2
    a, v = torch.tensor([[1.0, 2.0]]).requires_grad_(), torch.tensor([[3.0], [5.0]]).requires_grad_()
    r_a, r_v = shares(Bilinear(power_of_two), Call(torch.matmul), [a, v], torch.tensor([[64.0]]))
    assert r_a.tolist() == [[6.0, 20.0]]
    assert r_v.tolist() == [[6.0], [20.0]]


def test_bilinear_with_a_constant_is_epsilon() -> None:
    a, v = tensors((2, 3), (3, 2))
    R = integers((2, 2), 9)
    (r,) = shares(Bilinear(power_of_two), Call(torch.matmul), [a, v.detach()], R)
    assert torch.equal(r, a * ((R / power_of_two(a @ v)) @ v.T))


@pytest.mark.parametrize(
    "R",
    [[[1.0, torch.inf]], [[torch.nan, 1.0]], [[1e30, -1e29]], [[0.1 + 0.2, -0.3]]],
    ids=["infinite", "NaN", "large", "cancels"],
)
def test_a_product_is_not_taken_for_something_else_by_its_relevance(R: list[list[float]]) -> None:
    a, v = torch.tensor([[0.3]]).requires_grad_(), torch.tensor([[0.1, 0.7]]).requires_grad_()
    r_a, r_v = shares(Bilinear(1e-30), Call(torch.matmul), [a, v], torch.tensor(R))
    assert agree(r_v, torch.tensor(R) / 2)
    assert agree(r_a, r_v.sum(1, keepdim=True)) or R == [[0.1 + 0.2, -0.3]]


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax(dim: int) -> None:
    # a softmax of zeros over 2 entries, or of 4: every s is a power of two
    x = torch.full((2, 4), 3.0).requires_grad_()
    R = integers((2, 4), 9)
    (r,) = shares(Softmax(), nn.Softmax(dim=dim), [x], R)
    assert torch.equal(r, 3 * (R - R.sum(dim, keepdim=True) / R.shape[dim]))
    (again,) = shares(Softmax(dim), Call(lambda t: t.softmax(dim)), [x], R)
    assert torch.equal(again, r)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (4, 2, 3), (2, 4, 1, 3)], ids=str)
@pytest.mark.filterwarnings("ignore:Implicit dimension choice for softmax")
def test_softmax_over_the_dimension_that_torch_chooses(shape: tuple[int, ...]) -> None:
    x = torch.full(shape, 3.0).requires_grad_()
    R = integers(shape, 9)
    (r,) = shares(Softmax(), nn.Softmax(), [x], R)
    dim = shape.index(4)
    assert torch.equal(r, 3 * (R - R.sum(dim, keepdim=True) / 4))


def test_softmax_of_a_masked_row() -> None:
    x = torch.tensor([2.0, 2.0, -torch.inf]).requires_grad_()
    (r,) = shares(Softmax(), nn.Softmax(-1), [x], torch.tensor([1.0, 3.0, 4.0]))
    # s = 1/2, 1/2, 0 and sum R = 8
    assert r.tolist() == [-6.0, -2.0, 0.0]


def test_softmax_over_channels() -> None:
    x = torch.ones(1, 2, 1, 1).requires_grad_()
    (r,) = shares(Softmax(), nn.Softmax2d(), [x], torch.tensor([[[[5.0]], [[1.0]]]]))
    assert r.flatten().tolist() == [2.0, -2.0]


def test_stop() -> None:
    a, b = tensors((2, 3), (3,))
    assert [r.tolist() for r in shares(Stop(), Call(torch.add), [a, b], torch.ones(2, 3))] == [
        [[0.0] * 3] * 2,
        [0.0] * 3,
    ]


def entries(*numbers: float) -> Tensor:
    return torch.tensor(numbers).requires_grad_()


def test_layer_norm_by_hand() -> None:
    module = nn.LayerNorm(2, eps=0.75)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([2.0, 4.0]))
        module.bias.copy_(torch.tensor([1.0, 2.0]))
    x = entries(2.0, 1.0)[None]
    # mean 3/2, variance 1/4, deviation 1: z = [2 * 1/2 + 1, 4 * -1/2 + 2] = [2, 0], stabilized to [4, 1]; s = [1, 3],
    # g s = [2, 12], less their mean 7
    (r,) = shares(LayerNormRule(power_of_two), module, [x], torch.tensor([[4.0, 3.0]]))
    assert r.tolist() == [[-10.0, 5.0]]
    # without bias z = [1, -2], stabilized to [2, -4]; s = [2, -3/4], g s = [4, -3], less 1/2
    (r,) = shares(LayerNormRule(power_of_two, "bias"), module, [x], torch.tensor([[4.0, 3.0]]))
    assert r.tolist() == [[7.0, -3.5]]


def test_rms_norm_by_hand() -> None:
    module = nn.RMSNorm(2, eps=1.5)
    x = entries(1.0, 2.0)[None]  # mean square 5/2, deviation 2: z = [1/2, 1], stabilized to [1, 2]
    (r,) = shares(LayerNormRule(power_of_two), module, [x], torch.tensor([[8.0, 6.0]]))
    assert r.tolist() == [[4.0, 3.0]]


@pytest.mark.parametrize("kind", [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d])
def test_an_instance_norm_without_a_batch_is_one_of_one_sample(kind: type[nn.InstanceNorm1d]) -> None:
    torch.manual_seed(0)
    module = kind(2, affine=True)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    shape = (2, 3, 2, 2)[: 1 + int(kind.__name__[-2])]
    x, R = torch.randn(shape).requires_grad_(), torch.randn(shape)
    (alone,) = shares(LayerNormRule(0.5), module, [x], R)
    (batched,) = shares(LayerNormRule(0.5), module, [x.detach()[None].requires_grad_()], R[None])
    assert agree(alone, batched[0])


def test_an_eps_that_the_dtype_decides() -> None:
    x = entries(2.0**-26, 2.0**-26)[None]  # mean square 2^-52, as large as eps
    (r,) = shares(LayerNormRule(1e-30), nn.RMSNorm(2), [x], torch.tensor([[3.0, 5.0]]))
    assert agree(r, torch.tensor([[3.0, 5.0]]))


@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm(4),
        nn.LayerNorm((2, 4), bias=False),
        nn.LayerNorm((3, 2, 4), elementwise_affine=False),
        nn.RMSNorm(4, eps=0.5),
        nn.GroupNorm(1, 2),
        nn.GroupNorm(2, 2, affine=False),
        nn.InstanceNorm1d(2, affine=True),
        nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
        nn.InstanceNorm1d(2, affine=True, track_running_stats=True).eval(),
        nn.BatchNorm1d(2).eval(),
    ],
    ids=lambda module: f"{module} {'training' if module.training else 'eval'}",
)
def test_a_constant_deviation_conserves_all_but_bias_and_stabilizer(module: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter)
    x, R = torch.randn(3, 2, 4).requires_grad_(), torch.randn(3, 2, 4)
    rule: Hook = Epsilon(0.5) if isinstance(module, nn.BatchNorm1d) else LayerNormRule(0.5)
    (r,) = shares(rule, module, [x], R)
    z = module(x)
    s = R / (z + 0.5 * torch.where(z < 0, -1.0, 1.0))
    b = module(torch.zeros_like(x)) if not getattr(module, "track_running_stats", False) or module.training else None
    if b is None:  # what a constant mean adds is bias, too
        b = z - x * torch.autograd.grad(z.sum(), x, retain_graph=True)[0]
    left = (s * (z - b)).sum()
    # r is summed over 24 entries, each of at most 20 operations
    assert abs(r.sum() - left) <= 1000 * 2.0**-53 * (s * z).abs().sum()


SMOOTH: dict[str, tuple[Callable[[], Hook], Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "Uniform": (Uniform, multiply, ((2, 3), (3,))),
    "SignalTakesAll": (SignalTakesAll, multiply, ((2, 3), (3,))),
    "Bilinear": (lambda: Bilinear(0.5), lambda: Call(torch.matmul), ((2, 1, 2, 3), (2, 3, 2))),
    "Softmax": (Softmax, lambda: nn.Softmax(-1), ((2, 3),)),
    "Stop": (Stop, lambda: nn.Softmax(-1), ((2, 3),)),
    "LayerNormRule": (lambda: LayerNormRule(0.5), lambda: nn.LayerNorm(4), ((3, 4),)),
    "LayerNormRule-zero-bias": (lambda: LayerNormRule(0.5, "bias"), lambda: nn.GroupNorm(2, 4), ((2, 4, 3),)),
    "LayerNormRule-rms": (lambda: LayerNormRule(0.5), lambda: nn.RMSNorm(4), ((3, 4),)),
}  # fmt: skip


def drawn(name: str) -> tuple[Hook, nn.Module, list[Tensor], Tensor]:
    torch.manual_seed(0)
    rule, make, shapes = SMOOTH[name]
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    inputs = [torch.randn(shape).requires_grad_() for shape in shapes]
    return rule(), module, inputs, torch.randn_like(module(*inputs))


@pytest.mark.parametrize("name", SMOOTH)
def test_second_derivative(name: str) -> None:
    rule, module, inputs, R = drawn(name)
    variables, weights = [*inputs, R.requires_grad_()], [torch.randn_like(x) for x in inputs]

    def value(*at: Tensor, **options: Any) -> Tensor:
        found = shares(rule, module, list(at[:-1]), at[-1], **options)
        return sum((r * v).sum() for r, v in zip(found, weights, strict=True))  # type: ignore[return-value]

    total = value(*variables, create_graph=True)
    if not total.requires_grad:
        assert isinstance(rule, Stop)
        return
    derivatives = torch.autograd.grad(total, variables, allow_unused=True, materialize_grads=True)
    for place, derivative in enumerate(derivatives):

        def moved(to: Tensor, place: int = place) -> Tensor:
            at = [v.detach().requires_grad_() for v in variables]
            return value(*at[:place], to.detach().requires_grad_(), *at[place + 1 :])

        assert_is_derivative(moved, variables[place].detach(), derivative, 10 * abs(total.item()) + 10)


@pytest.mark.parametrize("name", SMOOTH)
def test_batched_relevance_is_that_of_a_loop(name: str) -> None:
    rule, module, inputs, R = drawn(name)
    several = torch.stack([R, -2 * R, torch.zeros_like(R)])
    batched = shares(rule, module, inputs, several, is_grads_batched=True)
    looped = zip(*(shares(rule, module, inputs, one) for one in several), strict=True)
    for one, loop in zip(batched, looped, strict=True):
        assert agree(one, torch.stack(loop))


@pytest.mark.parametrize("name", SMOOTH)
def test_half_precision(name: str) -> None:
    rule, module, inputs, R = drawn(name)
    halves = [x.detach().half().requires_grad_() for x in inputs]
    found = shares(rule, module.half(), halves, R.half())
    singles = [x.detach().float().requires_grad_() for x in halves]
    for r, wanted in zip(found, shares(rule, module.float(), singles, R.half().float()), strict=True):
        assert r.dtype == torch.float16
        assert agree(r, wanted)


def test_a_constant_in_half_precision_is_widened_with_the_input() -> None:
    a, v = (integers(shape, 0).half() for shape in ((2, 3), (3, 2)))
    (r,) = shares(Bilinear(power_of_two), Call(torch.matmul), [a.requires_grad_(), v], torch.ones(2, 2).half())
    assert torch.equal(r, (a * ((1 / power_of_two((a @ v).float())) @ v.float().T)).half())


@pytest.mark.parametrize("name", SMOOTH)
def test_copies_are_the_same_rule(name: str) -> None:
    rule, module, inputs, R = drawn(name)
    expected = shares(rule, module, inputs, R)
    for other in (rule.copy(), copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):  # noqa: S301
        assert all(map(torch.equal, shares(other, module, inputs, R), expected))


def test_two_calls_with_one_rule_do_not_meet() -> None:
    rule, module = SignalTakesAll(), multiply()
    a, b, c = tensors((2, 3), (3,), (2, 1))
    with rule.register(module):
        first, second = module(a, b), module(c, first_like := a.detach().clone().requires_grad_())
    R = integers((2, 3), 9)
    r_a, r_b, r_c, r_d = torch.autograd.grad([first, second], [a, b, c, first_like], [R, 2 * R])
    assert torch.equal(r_a, R)
    assert torch.equal(r_d, 2 * R)
    assert not r_b.any()
    assert not r_c.any()
