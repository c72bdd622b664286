"""An audit only watches: nothing is another than without it."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode

import verify
from lrp_rules import Epsilon, UnruledWarning, attach, composites
from tests.lrp_rules.cases import handles
from tests.lrp_rules.networks import NETWORKS, prepared

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


def some_input(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def explained(
    model: nn.Module, x: Tensor, pipeline: Callable[[nn.Module], AbstractContextManager[Any]]
) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    with pipeline(model):
        output = model(x)
    R = torch.zeros_like(output)
    R[torch.arange(len(R)), output.argmax(1)] = 1
    (r,) = torch.autograd.grad(output, x, R)
    return output.detach(), r


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_are_those_without_it_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    make, shape = NETWORKS[name]
    model, x = prepared(make, constants=True).to(dtype), some_input(shape).to(dtype)
    before = copy.deepcopy(model.state_dict())
    rules = composites.AttnLRP() if name in {"encoder", "decoder"} else composites.EpsilonPlus()
    output, r = explained(model, x, lambda model: attach(model, rules))
    state = torch.get_rng_state()
    found = verify.audit(model, x, rules)
    assert torch.equal(found.output, output)
    assert found.relevance[0] is not None
    assert torch.equal(found.relevance[0], r)
    assert torch.equal(torch.get_rng_state(), state)
    assert handles(model) == []
    assert _get_current_function_mode() is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    again = explained(model, x, lambda model: attach(model, rules))
    assert torch.equal(again[1], r)
    if name in {"lstm", "gru", "rnn"}:
        assert [row.verdict for row in found.faults] == ["not judged"]
    else:
        assert found.faults == () or dtype == torch.float32
    assert not [row for row in found.rows if row.verdict in {"deviates", "unexplained"}]


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            msg = "of the model"
            raise LookupError(msg)
        return x


def test_exceptions_pass_through_and_leave_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Raises())
    with pytest.raises(LookupError, match="of the model"):
        verify.audit(model, torch.ones(1, 3), {nn.Linear: Epsilon()})
    assert handles(model) == []
    assert _get_current_function_mode() is None

    def interrupted(_module: nn.Module, _args: Any) -> None:
        raise KeyboardInterrupt

    handle = model[1].register_forward_pre_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):  # attach itself forgets what was interrupted only at its next call
        verify.audit(model, torch.ones(1, 3), {nn.Linear: Epsilon()}, pipeline="gradient")
    handle.remove()
    assert handles(model) == []
    assert _get_current_function_mode() is None
    handle = model[0].register_forward_hook(lambda *_: interrupted(model, ()))  # of which the audit sees nothing inside
    with pytest.raises(KeyboardInterrupt):
        verify.audit(model, torch.ones(1, 3), {nn.Linear: Epsilon()}, pipeline="gradient")
    handle.remove()
    assert handles(model) == []
    assert _get_current_function_mode() is None
    with pytest.raises(ValueError, match="no rule for"):
        verify.audit(model, torch.ones(1, 3), {nn.Conv2d: Epsilon()})


def test_warnings_of_the_pipeline_name_the_same_line() -> None:
    make, shape = NETWORKS["graph"]
    model, x = prepared(make, constants=True), some_input(shape)
    said = []
    for run in (
        lambda: explained(model, x, lambda model: attach(model, {nn.Linear: Epsilon()})),
        lambda: verify.audit(model, x, {nn.Linear: Epsilon()}),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
        said.append([str(one.message) for one in caught if one.category is UnruledWarning])
    assert said[0] == said[1]
    assert "networks.py" in said[0][0]


def test_what_cannot_be_audited_is_refused() -> None:
    model = nn.Linear(3, 3)
    with pytest.raises(TypeError, match="expected tensors of floating point"):
        verify.audit(model, torch.ones(1, 3, dtype=torch.long), {nn.Linear: Epsilon()})
    with pytest.raises(ValueError, match="target is 3; the model has 3 outputs"):
        verify.audit(model, torch.ones(1, 3), {nn.Linear: Epsilon()}, target=3)
    inside = nn.Sequential(nn.Linear(3, 3))
    inside[0].compile(backend="eager")
    outside: Any = torch.compile(model, backend="eager")
    for compiled in (outside, inside):
        with pytest.raises(TypeError, match="the model is compiled, and what it calls cannot be seen"):
            verify.audit(compiled, torch.ones(1, 3), {nn.Linear: Epsilon()})
    with pytest.raises(ValueError, match=r"the pipeline is 'other'; expected gradient, gradient\*input, zennit"):
        verify.audit(model, torch.ones(1, 3), {nn.Linear: Epsilon()}, pipeline="other")
    with pytest.raises(ValueError, match="captum's LRP cannot be audited: it calls the model twice"):
        verify.audit(model, torch.ones(1, 3), {nn.Linear: Epsilon()}, pipeline="captum")
    with pytest.raises(AssertionError, match="copied to both summands"):
        verify.assert_conserves(*_graph(), {nn.Linear: Epsilon()}, pipeline="gradient", expected={})


def test_a_copy_in_another_dtype_is_audited_and_the_model_stays() -> None:
    model, x = _graph()
    model, x = model.float(), x.float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rules = composites.EpsilonPlus()
    found = verify.assert_conserves(model, x, rules, dtype=torch.float64)
    assert found.output.dtype == torch.float64
    assert found.table.room.max() < 1e-9
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert verify.audit(model, x, rules).output.dtype == torch.float32
    both = verify.compare_pipelines(model, x, rules, None, lambda model: attach(model, rules), dtype=torch.float64)
    assert both.same
    assert both.a.output.dtype == both.b.output.dtype == torch.float64


def _graph() -> tuple[nn.Module, Tensor]:
    make, shape = NETWORKS["residual"]
    return prepared(make, constants=True), some_input(shape)
