"""The covering arrays cover what they say, are what the generator makes, and ask what the small grid could not see."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from reference.affine import positive
from reference.layers import affine
from verify.formats.torch_layers import describe
from verify.questions.covering import arrays, making, numbers
from verify.questions.covering.factors import RULES, spaces
from verify.questions.covering.rows import questions

if TYPE_CHECKING:
    from verify.questions.covering.rows import Question

ROWS = arrays.read(2)
SPACES = {f"{rule}/{name}": space for rule in RULES for name, space in spaces(rule).items()}
QUESTIONS = list(questions(2, 0))


@pytest.mark.parametrize("name", SPACES)
def test_every_pair_that_can_meet_is_asked(name: str) -> None:
    covered, of = making.coverage(SPACES[name], ROWS[name], 2)
    assert covered == of
    said = arrays.coverage(2)[name]
    assert (said.covered, said.of, said.rows) == (covered, of, len(ROWS[name]))


@pytest.mark.parametrize("name", ["Gamma/windows", "Epsilon/linear", "ZBox/derivatives"])
def test_pairs_are_covered_without_the_levels_that_hide_others(name: str) -> None:
    telling = SPACES[name].telling
    rows = [row for row in ROWS[name] if all(row[factor] in levels for factor, levels in telling.factors.items())]
    covered, of = making.coverage(telling, rows, 2)
    assert covered == of


def test_a_row_less_covers_less() -> None:
    name = "Flat/linear"
    covered, of = making.coverage(SPACES[name], ROWS[name][:-1], 2)
    assert covered < of


@pytest.mark.parametrize("name", SPACES)
def test_the_file_is_what_the_generator_makes_and_keeps_what_is_there(name: str) -> None:
    assert making.made(SPACES[name], 2) == ROWS[name]
    assert making.made(SPACES[name], 2, ROWS[name]) == ROWS[name]


@pytest.mark.parametrize("name", SPACES)
def test_rows_can_be_asked(name: str) -> None:
    assert all(SPACES[name].allows(row) for row in ROWS[name])


def test_triples_begin_with_the_pairs_and_are_all_covered() -> None:
    deeper = arrays.read(3)
    assert deeper.keys() == ROWS.keys()
    for name, rows in ROWS.items():
        assert deeper[name][: len(rows)] == rows
    assert all(found.covered == found.of > 0 for found in arrays.coverage(3).values())


def test_ids_are_those_of_the_levels_and_one_each() -> None:
    assert len({question.id for question in QUESTIONS}) == len(QUESTIONS)
    for question in QUESTIONS[::97]:
        for factor, level in question.row.items():
            base = SPACES[f"{question.rule}/{question.space}"].factors[factor][0]
            assert (f"{factor}={level}" in question.id) == (level != base and factor not in {"layer", "dtype"})


def _of(**levels: str) -> list[Question]:
    return [q for q in QUESTIONS if all(q.row.get(factor) == level for factor, level in levels.items())]


def test_the_same_question_draws_the_same_data_and_another_seed_others() -> None:
    first, again = (_of(layer="conv2d", x="signed", R="signed")[0].problem() for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.relevance, again.relevance)
    question = next(q for q in questions(2, 1) if q.row.get("layer") == "conv2d" and q.row["x"] == "signed")
    assert not torch.equal(question.problem().x.flatten()[:5], first.x.flatten()[:5])


def test_circular_layers_tell_the_clamped_weight_from_the_clamped_matrix() -> None:
    told = 0
    for question in _of(mode="circular"):
        problem, layer = question.problem(), question.layer
        at_zero = affine(describe(problem.module, layer.sample_shape), np.zeros(int(np.prod(layer.sample_shape))))
        told += not np.array_equal(np.maximum(at_zero.A(), 0), at_zero.A(positive))
    assert told >= 8


def test_values_that_float32_does_not_have_are_asked_in_float64() -> None:
    alphas = [q.variant.arguments((), torch.float64) for q in _of(alpha="1.4", dtype="float64")]
    assert {(given["alpha"], given["beta"]) for given in alphas} == {(1.4, 0.4)}
    gammas = {q.variant.arguments((), torch.float64)["gamma"] for q in _of(gamma="0.1", dtype="float64")}
    assert gammas == {0.1}
    assert any(float(np.float32(value)) != value for value in gammas)


@pytest.mark.parametrize(
    ("level", "least", "most"), [("0.001..0.1", 1e-3, 0.1), ("1e-12..1e-7", 1e-12, 1e-7), ("0.25", 0.25, 0.25)]
)
def test_numbers_come_from_their_range(level: str, least: float, most: float) -> None:
    found = [numbers.ranged(numbers.Source(str(seed)), "a", level) for seed in range(50)]
    assert all(least <= value <= most * (1 + 1e-12) for value in found)
    assert (len(set(found)) > 40) == (least < most)


@pytest.mark.parametrize("level", ["signed", "one-hot", "sum-zero", "sample-zero", "output", "nonnegative"])
def test_relevance_is_what_its_level_says(level: str) -> None:
    z = torch.randn(3, 4, dtype=torch.float64)
    R = numbers.relevance(level, numbers.Source("test"), z, batched=True)
    holds = {
        "signed": bool((R * z < 0).any()),
        "one-hot": bool(((R != 0).sum(1) == 1).all()),
        "sum-zero": bool((R.sum(1) == 0).all()) and bool((R != 0).any()),
        "sample-zero": not R[0].any() and bool(R[1].any()),
        "output": torch.equal(R, z),
        "nonnegative": bool((R >= 0).all()),
    }
    assert holds[level]


def test_levels_meet_on_every_rule() -> None:
    for rule in ("Epsilon", "Gamma", "ZBox"):
        space = SPACES[f"{rule}/windows"]
        for one, other in combinations(("groups", "mode", "stabilizer", "dilation"), 2):
            for level in space.factors[one]:
                for another in space.factors[other]:
                    wanted = {one: level, other: another}
                    assert any(wanted.items() <= row.items() for row in ROWS[f"{rule}/windows"]), wanted
