"""The stabilized denominator."""

from __future__ import annotations

import copy
import math
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from lrp_rules import Stabilizer
from tests.lrp_rules.cases import pickled

if TYPE_CHECKING:
    from collections.abc import Callable

D = [-2.0, -0.25, -0.0, 0.0, 0.25, 3.0]


def assert_values(stabilizer: Callable[[Tensor], Tensor]) -> None:
    """S(d) = d + eps sgn(d) for eps = 1/2, with sgn(0) = +1, also for the zero that is written -0."""
    assert stabilizer(torch.tensor(D)).tolist() == [-2.5, -0.75, 0.5, 0.5, 0.75, 3.5]


def test_sum() -> None:
    assert_values(Stabilizer(0.5))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda d: d + 0.5 * d.sign(),
        lambda d: d + 0.5,
        lambda d: d - 0.5 * torch.where(d > 0, -1.0, 1.0),
        lambda d: d + 0.5 * torch.ones(()).copysign(d),
        Stabilizer(0.5, clip=True),
    ],
    ids=["sgn(0)=0", "unsigned", "sgn(0)=-1", "sgn(-0)=-1", "clipped"],
)
def test_planted_mistakes_are_caught(wrong: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError):
        assert_values(wrong)


def test_clip() -> None:
    assert Stabilizer(0.5, clip=True)(torch.tensor(D)).tolist() == [-2.0, -0.5, 0.5, 0.5, 0.5, 3.0]


def test_norm_scale_takes_the_root_mean_square_of_each_sample() -> None:
    # rms(1, 7) = 5 and rms(0, 0) = 0; eps = 2 * rms
    d = torch.tensor([[1.0, -7.0], [0.0, 0.0]])
    assert Stabilizer(2, norm_scale=True)(d).tolist() == [[11.0, -17.0], [0.0, 0.0]]
    assert Stabilizer(2, clip=True, norm_scale=True)(d).tolist() == [[10.0, -10.0], [0.0, 0.0]]
    d = torch.tensor([[[1.0], [-7.0]], [[2.0], [14.0]]])
    assert Stabilizer(2, norm_scale=True)(d).tolist() == [[[11.0], [-17.0]], [[22.0], [34.0]]]


@pytest.mark.parametrize("dim", [0, (0,), -2])
def test_norm_scale_over_other_dimensions(dim: int | tuple[int, ...]) -> None:
    d = torch.tensor([[1.0, 0.0], [-7.0, 0.0]])
    assert Stabilizer(2, norm_scale=True, dim=dim)(d).tolist() == [[11.0, 0.0], [-17.0, 0.0]]


def test_norm_scale_of_one_value_a_sample() -> None:
    assert Stabilizer(2, norm_scale=True)(torch.tensor([1.0, -7.0])).tolist() == [3.0, -21.0]


def test_samples_do_not_see_each_other() -> None:
    d = torch.randn(4, 3, 2)
    for stabilizer in (Stabilizer(0.5), Stabilizer(0.5, norm_scale=True), Stabilizer(0.5, clip=True, norm_scale=True)):
        assert torch.equal(stabilizer(d)[1:2], stabilizer(d[1:2]))


@pytest.mark.parametrize("norm_scale", [False, True])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtype_and_shape_stay(dtype: torch.dtype, clip: bool, norm_scale: bool) -> None:
    for shape in ((2, 3), (0, 3), (2,), (), (2, 0)):
        if shape == () and norm_scale:
            continue
        d = torch.ones(shape, dtype=dtype)
        s = Stabilizer(clip=clip, norm_scale=norm_scale)(d)
        assert (s.dtype, s.shape) == (dtype, d.shape)
        assert torch.equal(d, torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_whole_numbers_become_floats(clip: bool, create_graph: bool) -> None:
    with torch.set_grad_enabled(create_graph):
        s = Stabilizer(0.5, clip=clip)(torch.tensor([2, 0, -1]))
    assert s.dtype == torch.get_default_dtype()
    assert s.tolist() == ([2.0, 0.5, -1.0] if clip else [2.5, 0.5, -1.5])


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_an_epsilon_beyond_the_dtype_is_infinite_there(dtype: torch.dtype, create_graph: bool) -> None:
    largest = 1.7e308 if dtype == torch.float64 else 1e300
    with torch.set_grad_enabled(create_graph):
        found = Stabilizer(largest)(torch.tensor([1.0, -1.0, 0.0], dtype=dtype))
    expected = torch.tensor([largest, -largest, largest], dtype=torch.float64).to(dtype)
    assert torch.equal(found, expected)


def test_zero_epsilon_changes_nothing() -> None:
    d = torch.randn(3, 4)
    assert torch.equal(Stabilizer(0)(d), d)
    assert torch.equal(Stabilizer(0, clip=True)(d), d)


@pytest.mark.parametrize("clip", [False, True])
def test_numbers_that_are_not_at_hand_are_made(clip: bool) -> None:
    # as on another device than the CPU, of which there may be none here
    bare, d = Stabilizer(0.5, clip=clip), torch.tensor(D)
    object.__setattr__(bare, "_numbers", {})
    assert torch.equal(bare(d), Stabilizer(0.5, clip=clip)(d))


@pytest.mark.parametrize("clip", [False, True])
def test_it_can_be_mapped_over_samples(clip: bool) -> None:
    d = torch.tensor([D, D[::-1]])
    assert torch.equal(torch.func.vmap(Stabilizer(0.5, clip=clip))(d), Stabilizer(0.5, clip=clip)(d))


def test_derivatives() -> None:
    d = torch.tensor([-2.0, -0.25, 0.25, 3.0], requires_grad=True)
    (plain,) = torch.autograd.grad(Stabilizer(0.5)(d).sum(), d)
    (clipped,) = torch.autograd.grad(Stabilizer(0.5, clip=True)(d).sum(), d)
    assert plain.tolist() == [1, 1, 1, 1]
    assert clipped.tolist() == [1, 0, 0, 1]


def test_ensure() -> None:
    assert Stabilizer.ensure(0.5) == Stabilizer(0.5)
    assert Stabilizer.ensure(1) == Stabilizer(1)
    assert Stabilizer.ensure(cast("float", np.float32(0.5))) == Stabilizer(0.5)
    given = Stabilizer(0.25, clip=True)
    assert Stabilizer.ensure(given) is given
    assert Stabilizer.ensure(torch.exp) is torch.exp


@pytest.mark.parametrize("make", [Stabilizer, Stabilizer.ensure])
@pytest.mark.parametrize("bad", [None, "1e-6", [1e-6], (1e-6,), 1j, True, {}], ids=repr)
def test_neither_number_nor_callable(make: Callable[[Any], Any], bad: Any) -> None:
    with pytest.raises(TypeError, match="expected a number") as error:
        make(bad)
    assert repr(bad) in str(error.value)


@pytest.mark.parametrize("make", [Stabilizer, Stabilizer.ensure])
@pytest.mark.parametrize("bad", [-1, -1e-300, math.nan, math.inf, -math.inf])
def test_negative_or_not_finite(make: Callable[[Any], Any], bad: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number") as error:
        make(bad)
    assert repr(bad) in str(error.value)


def test_value_semantics() -> None:
    stabilizer = Stabilizer(0.5, clip=True, norm_scale=True, dim=(1, 2))
    assert {stabilizer, copy.deepcopy(stabilizer), pickled(stabilizer)} == {stabilizer}
    with pytest.raises(FrozenInstanceError):
        stabilizer.epsilon = 1.0  # type: ignore[misc]


def test_it_is_printed_with_its_arguments_alone() -> None:
    assert repr(Stabilizer(0.25)) == "Stabilizer(epsilon=0.25, clip=False, norm_scale=False, dim=None)"


@pytest.mark.parametrize("number", [Fraction(1, 4), np.float32(0.25)])
def test_numbers_of_other_kinds_become_floats(number: Any) -> None:
    assert type(Stabilizer(number).epsilon) is float
    assert Stabilizer(number) == Stabilizer(0.25)


def test_other_devices_and_a_default_device() -> None:
    assert Stabilizer(0.25)(torch.ones(3, device="meta")).device.type == "meta"
    with torch.device("meta"):
        stabilizer = Stabilizer(0.25)
    assert torch.equal(stabilizer(torch.tensor([1.0, -1.0], device="cpu")), torch.tensor([1.25, -1.25]))


@pytest.mark.parametrize("bad", ["1", True, None])
def test_what_cannot_be_a_stabilizer_is_told_what_can(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"the stabilizer is .*; expected a number such as 1e-6, or a callable"):
        Stabilizer.ensure(bad)


@pytest.mark.parametrize("denominator", [torch.tensor([1, -2, 0]), torch.tensor(-2)])
def test_integers_are_stabilized_as_numbers(denominator: Tensor) -> None:
    assert torch.equal(Stabilizer(0.25)(denominator), Stabilizer(0.25)(denominator.to(torch.get_default_dtype())))


@pytest.mark.parametrize("clip", [False, True])
def test_one_that_was_made_in_inference_mode_can_be_differentiated(clip: bool) -> None:
    with torch.inference_mode():
        stabilizer = Stabilizer(0.25, clip=clip)
    d = torch.tensor([-0.5, 2.0], requires_grad=True)
    assert torch.equal(torch.autograd.grad(stabilizer(d).sum(), d)[0], torch.ones(2))
