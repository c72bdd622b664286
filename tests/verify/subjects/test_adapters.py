"""Other libraries as subjects: the question goes to the library's own rule, and nothing of the answer is altered."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from verify.formats.operands import MatMul
from verify.model import NotOfferedError, Subject, SubjectError
from verify.subjects.asking import relevance_of, smoke
from verify.subjects.loading import load


def _captum() -> Any:
    pytest.importorskip("captum", reason="captum is not installed: pip install captum")
    return load("verify.subjects.captum").namespace


def _lxt() -> Any:
    pytest.importorskip("lxt", reason="LXT is not installed: pip install --no-deps lxt")
    return load("verify.subjects.lxt").namespace


LIBRARIES = pytest.mark.parametrize("library", [_captum, _lxt], ids=["captum", "lxt"])


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    module = nn.Linear(len(weight[0]), len(weight), bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(_tensor(weight))
        if bias is not None:
            module.bias.copy_(_tensor(bias))
    return module


# z = 2 and -4, so that R / z is exact
MODULE = _linear([[2.0, -1.0], [1.0, 2.0]], [1.0, -2.0])
X = _tensor([[0.0, -1.0]])
R = _tensor([[3.0, -5.0]])


# --- captum -----------------------------------------------------------------------------------------------------------


def test_captum_does_not_split_inputs_by_sign() -> None:
    captum = _captum()
    module, x = _linear([[1.0, -1.0]]), _tensor([[-1.0, 2.0]])
    r = relevance_of(captum.ZPlus(stabilizer=0.0), module, x, module(x).detach())
    assert torch.equal(r, _tensor([[-3.0, 0.0]]))


def test_captum_leaves_the_bias_unclamped() -> None:
    captum = _captum()
    module, x = _linear([[1.0, -1.0]], [-1.0]), _tensor([[1.0, 1.0]])
    r = relevance_of(captum.ZPlus(stabilizer=1e-9), module, x, module(x).detach())
    assert torch.equal(r, _tensor([[-1 / 1e-9, 0.0]]))


def test_relevance_at_the_output_is_what_is_given() -> None:
    captum = _captum()
    r = relevance_of(captum.Epsilon(epsilon=0.0), MODULE, X, R)
    # s = R / z = (1.5, 1.25)
    assert torch.equal(r, X * _tensor([[1.5 * 2 + 1.25 * 1, 1.5 * -1 + 1.25 * 2]]))
    for scale in (0.0, -2.0, 1024.0):
        assert torch.equal(relevance_of(captum.Epsilon(epsilon=0.0), MODULE, X, scale * R), scale * r)


@pytest.mark.parametrize("target", [0, 1])
def test_same_as_attribute_on_a_target(target: int) -> None:
    captum = _captum()
    from captum.attr import LRP  # noqa: PLC0415  may not be installed
    from captum.attr._utils.lrp_rules import GammaRule  # noqa: PLC0415

    model = nn.Sequential(_linear([[2.0, -1.0], [1.0, 2.0]]))
    x = _tensor([[2.0, 0.5]])
    model[0].rule = GammaRule(gamma=1.0)
    expected = LRP(model).attribute(x.clone().requires_grad_(), target=target).detach()
    start = torch.zeros(1, 2, dtype=torch.float64)
    start[0, target] = model(x)[0, target]
    got = relevance_of(captum.Gamma(gamma=1.0, stabilizer=1e-9), model[0], x, start)
    # captum divides 1 and multiplies by the output at last, where R is divided here: two roundings each
    assert bool(((got - expected).abs() <= 4 * torch.finfo(x.dtype).eps * expected.abs()).all())


def test_gamma_passes_on_its_parameters() -> None:
    captum = _captum()
    module, x = _linear([[1.0, -1.0]], [5.0]), _tensor([[2.0, 1.0]])
    r = relevance_of(captum.Gamma(gamma=3.0, stabilizer=0.5, zero_params="bias"), module, x, _tensor([[15.0]]))
    # w + 3 w+ = (4, -1), d = 7, S = 7.5
    assert torch.equal(r, _tensor([[16.0, -2.0]]))


def test_captum_identity_passes_relevance() -> None:
    assert torch.equal(relevance_of(_captum().Pass(), nn.Tanh(), X, R), R)


def test_captum_several_inputs() -> None:
    class Add(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    a, b = _tensor([[1.0, 6.0]]).requires_grad_(), _tensor([[3.0, 2.0]]).requires_grad_()
    handle = _captum().Epsilon(epsilon=0.0).register(module := Add())
    try:
        found = torch.autograd.grad(module(a, b), (a, b), _tensor([[8.0, 4.0]]))
    finally:
        handle.remove()
    assert torch.equal(found[0], _tensor([[2.0, 3.0]]))
    assert torch.equal(found[1], _tensor([[6.0, 1.0]]))


def test_captum_has_no_second_derivative() -> None:
    x = X.clone().requires_grad_()
    handle = _captum().Epsilon().register(MODULE)
    try:
        y = MODULE(x)
        with pytest.raises(NotOfferedError, match="cannot be differentiated again"):
            torch.autograd.grad(y, x, R, create_graph=True)
    finally:
        handle.remove()


def test_captum_by_keyword() -> None:
    handle = _captum().Epsilon().register(MODULE)
    try:
        with pytest.raises(NotOfferedError, match="by position"):
            MODULE(input=X.clone().requires_grad_())
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("rule", "arguments"),
    [
        ("Epsilon", {"epsilon": torch.abs}),
        ("Epsilon", {"zero_params": "bias"}),
        ("Gamma", {"stabilizer": torch.abs}),
        ("Gamma", {"zero_params": "weight"}),
        ("ZPlus", {"zero_params": ["bias", "weight"]}),
        ("AlphaBeta", {}),
        ("AlphaBeta", {"alpha": 1.5, "beta": 0.5}),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v) or "default",
)
def test_captum_does_not_offer(rule: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(NotOfferedError, match="captum"):
        getattr(_captum(), rule)(**arguments)


# --- LXT --------------------------------------------------------------------------------------------------------------


def test_lxt_adds_epsilon_whatever_the_sign() -> None:
    r = relevance_of(_lxt().Epsilon(epsilon=2.0), MODULE, X, R)
    # z + 2 = (4, -2)
    assert torch.equal(r, X * _tensor([[0.75 * 2 + 2.5 * 1, 0.75 * -1 + 2.5 * 2]]))


def test_lxt_identity_passes_relevance() -> None:
    assert torch.equal(relevance_of(_lxt().Pass(), nn.Softmax(dim=1), X, R), R)


@pytest.mark.parametrize("arguments", [{"epsilon": torch.abs}, {"zero_params": "bias"}], ids="-".join)
def test_lxt_does_not_offer(arguments: dict[str, Any]) -> None:
    with pytest.raises(NotOfferedError, match="LXT"):
        _lxt().Epsilon(**arguments)


# --- autoLRP ----------------------------------------------------------------------------------------------------------


def _autolrp() -> Any:
    pytest.importorskip("autolrp", reason="autoLRP is not installed: pip install autolrp")
    return load("verify.subjects.autolrp").namespace


# z = 1 and -2 without bias
PLAIN = _linear([[2.0, -1.0], [1.0, 2.0]])


def test_autolrp_gets_the_relevance_that_is_given() -> None:
    r = relevance_of(_autolrp().Epsilon(epsilon=0.0), PLAIN, X, R)
    # s = R / z = (3, 2.5)
    assert torch.equal(r, X * _tensor([[3 * 2 + 2.5 * 1, 3 * -1 + 2.5 * 2]]))
    for scale in (0.0, -2.0, 1024.0):
        assert torch.equal(relevance_of(_autolrp().Epsilon(epsilon=0.0), PLAIN, X, scale * R), scale * r)


def test_autolrp_gives_the_bias_its_share_by_magnitude() -> None:
    r = relevance_of(_autolrp().Epsilon(epsilon=0.0), MODULE, X, R)
    # |z| / (|z| + |b|) = 1/2 of either output, and s = (1.5, 1.25)
    assert torch.equal(r, X * _tensor([[1.5 * 2 + 1.25 * 1, 1.5 * -1 + 1.25 * 2]]))


def test_autolrp_passes_on_its_parameters() -> None:
    rules, x = _autolrp(), _tensor([[1.0, 2.0]])
    module = _linear([[1.0, -1.0]])
    # contributions 1 and -2: S+ = 1 + 1 = 2, S- = -2 - 1 = -3
    r = relevance_of(rules.AlphaBeta(alpha=3.0, beta=2.0, stabilizer=1.0), module, x, _tensor([[6.0]]))
    assert torch.equal(r, _tensor([[3 * 6 / 2, -2 * 6 / -3 * -2]]))
    # z = -1 < 0: d = 1 * 1 - 2 (1 + 1) = -3, S = -4
    r = relevance_of(rules.Gamma(gamma=1.0, stabilizer=1.0), module, x, _tensor([[6.0]]))
    assert torch.equal(r, _tensor([[-1.5, 6.0]]))


def test_autolrp_on_a_product_of_two_inputs() -> None:
    a, b = (t.requires_grad_() for t in (_tensor([[1.0, 2.0]]), _tensor([[3.0], [0.5]])))
    handle = _autolrp().Bilinear(stabilizer=0.0).register(module := MatMul())
    try:
        found = torch.autograd.grad(module(a, b), (a, b), _tensor([[8.0]]))
        constant = torch.autograd.grad(module(a, b.detach()), a, _tensor([[8.0]]))
    finally:
        handle.remove()
    assert torch.equal(found[0], _tensor([[3.0, 1.0]]))
    assert torch.equal(found[1], _tensor([[3.0], [1.0]]))
    assert torch.equal(constant[0], _tensor([[6.0, 2.0]]))


@pytest.mark.parametrize(
    ("rule", "arguments", "module"),
    [
        ("Epsilon", {"epsilon": torch.abs}, PLAIN),
        ("Epsilon", {}, nn.AvgPool1d(2)),
        ("Pass", {}, PLAIN),
        ("ZBox", {"low": X, "high": 3.0}, PLAIN),
        ("Softmax", {"dim": 1}, nn.Softmax(dim=1)),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v) if isinstance(v, dict) else type(v).__name__,
)
def test_autolrp_does_not_offer(rule: str, arguments: dict[str, Any], module: nn.Module) -> None:
    with pytest.raises(NotOfferedError, match="autoLRP"):
        getattr(_autolrp(), rule)(**arguments).register(module)


def test_autolrp_runs_and_leaves_nothing() -> None:
    rules = _autolrp()
    assert smoke(Subject("adapter", rules, "0")) is None
    copied = rules.Epsilon(epsilon=0.5).copy()
    assert not torch.equal(relevance_of(copied, PLAIN, X, R), relevance_of(rules.Epsilon(), PLAIN, X, R))
    assert "forward" not in vars(PLAIN)


# --- both -------------------------------------------------------------------------------------------------------------


@LIBRARIES
def test_handle_gives_the_forward_pass_back(library: Callable[[], Any]) -> None:
    rules, module = library(), _linear([[2.0, -1.0]])
    attributes = set(vars(module))
    handle = rules.Epsilon().register(module)
    with pytest.raises(RuntimeError, match="remove it before another is registered"):
        rules.Pass().register(module)
    assert "forward" in vars(module)
    for _ in range(2):
        handle.remove()
        assert set(vars(module)) == attributes
    x = X.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(module(x), x, _tensor([[3.0]]))[0], _tensor([[6.0, -3.0]]))


@LIBRARIES
def test_own_forward_of_an_instance_comes_back(library: Callable[[], Any]) -> None:
    module, own = nn.Identity(), torch.neg
    vars(module)["forward"] = own
    library().Epsilon().register(module).remove()
    assert vars(module)["forward"] is own


@LIBRARIES
def test_copy_keeps_arguments(library: Callable[[], Any]) -> None:
    rule = library().Epsilon(epsilon=0.5)
    copied = rule.copy()
    assert copied is not rule
    assert torch.equal(relevance_of(copied, MODULE, X, R), relevance_of(rule, MODULE, X, R))
    assert not torch.equal(relevance_of(copied, MODULE, X, R), relevance_of(type(rule)(), MODULE, X, R))


@LIBRARIES
def test_output_is_that_of_the_module(library: Callable[[], Any]) -> None:
    handle = library().Epsilon().register(MODULE)
    try:
        assert torch.equal(MODULE(X.clone().requires_grad_()), _tensor([[2.0, -4.0]]))
        with torch.no_grad():
            assert torch.equal(MODULE(X), _tensor([[2.0, -4.0]]))
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("module", "needed", "command"),
    [
        ("captum", "captum", "pip install captum"),
        ("lxt", "lxt.explicit.rules", "pip install --no-deps lxt"),
        ("autolrp", "autolrp", "pip install autolrp"),
    ],
)
def test_missing_library_is_named(module: str, needed: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, needed, None)
    monkeypatch.delitem(sys.modules, f"verify.subjects.{module}", raising=False)
    with pytest.raises(SubjectError, match=command):
        load(f"verify.subjects.{module}")


# --- smoke ------------------------------------------------------------------------------------------------------------


@LIBRARIES
def test_adapter_runs(library: Callable[[], Any]) -> None:
    assert smoke(Subject("adapter", library(), "0")) is None


def test_own_rules_run() -> None:
    assert smoke(load("lrp_rules")) is None


class _Rule:
    """A rule that answers what its class says."""

    answer: Any = None

    def register(self, module: nn.Module) -> Any:
        answer = self.answer
        return module.register_forward_hook(lambda _module, _inputs, y: answer(y))


class _Broken(_Rule):
    @staticmethod
    def answer(y: Tensor) -> Tensor:
        msg = "no such kernel"
        raise RuntimeError(msg)


class _Wrong(_Rule):
    @staticmethod
    def answer(y: Tensor) -> Tensor:
        return 1000 * y


class _Lacking(_Rule):
    def __init__(self) -> None:
        msg = "only on Sundays"
        raise NotOfferedError(msg)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"Epsilon": _Broken, "Pass": _Broken}, "Epsilon: RuntimeError: no such kernel; Pass: RuntimeError"),
        ({"Epsilon": _Lacking}, None),
        ({"Bilinear": _Broken}, None),
        ({"Epsilon": _Broken, "Pass": _Lacking}, None),
        ({}, "has none of the classes"),
        ({"Epsilon": _Wrong}, None),
        ({"Epsilon": _Broken, "Pass": _Wrong}, None),
    ],
    ids=["broken", "not-offered", "for-networks", "one-not-offered", "empty", "wrong", "one-broken"],
)
def test_what_cannot_run_is_told_from_what_is_wrong(rules: dict[str, Any], reason: str | None) -> None:
    found = smoke(Subject("mine", SimpleNamespace(**rules), "0"))
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert reason in found
