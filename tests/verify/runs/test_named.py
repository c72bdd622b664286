"""Cases are selected by what their ids say: a layer, one of its attributes, a kind of data."""

from functools import cache

import pytest

from verify.checks.cases import all_cases
from verify.model import Case
from verify.runs.selection import UnusableError, of_kinds, on_layers


@cache
def _cases() -> tuple[Case, ...]:
    return all_cases(dtypes=("float64",))


def _on(*patterns: str, check: str = "agreement") -> list[list[str]]:
    families = list(dict.fromkeys(case.layer for case in _cases()))
    found = on_layers([case for case in _cases() if case.check == check], patterns, families, _cases())
    return [case.id.split("/") for case in found]


def test_a_type_of_layer_is_no_attribute() -> None:
    assert {parts[2].split("-")[0].split(",")[0] for parts in _on("linear")} == {"linear"}
    # whose layer is an activation, although its name has a linear layer in it
    assert not any(parts[1] == "Pass" for parts in _on("linear", check="second-order"))


def test_a_single_layer() -> None:
    for check, place in (("agreement", 2), ("conservation", 2), ("laws", 3)):
        assert {parts[place] for parts in _on("linear-5-4", check=check)} == {"linear-5-4"}


def test_an_attribute_also_where_options_meet() -> None:
    layers = {parts[2] for parts in _on("circular")}
    assert {"conv2d-circular", "conv1d-k3-circular"} <= layers
    assert any("mode=circular" in layer for layer in layers)
    assert all("circular" in layer for layer in layers)
    assert all("mode=circular" in parts[2] for parts in _on("mode=circular"))


def test_types_and_attributes_together() -> None:
    layers = {parts[2] for parts in _on("MaxPool", "nobias")}
    assert {"maxpool1d", "linear-7-3-nobias", "conv2d-nobias"} <= layers
    assert "linear-5-4" not in layers


def test_a_kind_of_data() -> None:
    named = [case.id.split("/")[4] for case in of_kinds(list(_cases()), ("zeros", "single"), _cases())]
    assert {"zeros", "single"} <= set(named)
    assert all(kind in {"zeros", "single"} or "x=single" in kind.split(",") for kind in named)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nobais", "or a single layer or attribute as ids name them, such as linear-5-4"),
        ("Convo2d", r"did you mean Conv2d\?"),
    ],
)
def test_a_layer_that_there_is_not_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(UnusableError, match=message):
        _on(pattern)


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(UnusableError, match=r"--kind 'zeroes' is unknown \(did you mean zeros\?\)"):
        of_kinds(list(_cases()), ("zeroes",), _cases())
