"""What the corpus holds, how it is made, and what a release may change."""

import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference import layers, rules
from reference.rules import Stabilizer
from verify.formats.tensor_json import decode
from verify.vectors import CORPUS_VERSION, exact, smooth
from verify.vectors import released as releasing
from verify.vectors.corpus import CorpusError, case_of, dump
from verify.vectors.layers import LAYERS
from verify.vectors.numbers import Source, tidied, with_negative_zeros
from verify.vectors.parameters import GRADIENT_RULES, RULES
from verify.vectors.questions import Question, affine_of, questions
from verify.vectors.reading import each, load
from verify.vectors.released import ReleaseError, released

CORPUS = Path(__file__).parents[3] / "vectors"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def documents() -> dict[str, Json]:
    return load(CORPUS)


# --- the same bytes again ---------------------------------------------------------------------------------------------


def test_the_same_bytes_with_other_threads_and_other_kernels() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3", "OPENBLAS_CORETYPE": "Prescott"}
    program = "from verify.vectors.cli import main; main()"
    command = [sys.executable, "-c", program, "generate", "--compare", str(CORPUS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.endswith(" 0 differ\n"), done.stdout + done.stderr
    assert done.returncode == 0


def test_the_numbers_are_those_of_any_python() -> None:
    # random.Random("a").random(), as Python promises it
    assert Source("a").uniform((2,), 1.0).tolist() == [-0.45594092449304857, -0.8653267382274061]


# --- what the corpus holds --------------------------------------------------------------------------------------------


def test_it_is_small(documents: dict[str, Json]) -> None:
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < 10e6
    longest = max(len(form["hex"]) for _, _, case in each(documents) for form in case["tensors"].values())
    assert longest <= 2 * 4096


def test_every_rule_on_every_layer_in_both_dtypes(documents: dict[str, Json]) -> None:
    held = {(d["rule"], group["layer"]["type"], case["dtype"]) for d, group, case in each(documents)}
    kinds = {layer.type for layer in LAYERS if not layer.smooth}
    smooth_kinds = {layer.type for layer in LAYERS if layer.smooth}
    for rule in RULES:
        wanted = {"Elementwise"} if rule in GRADIENT_RULES else kinds
        wanted = wanted | smooth_kinds if rule in {"Epsilon", "Norm"} else wanted
        for dtype in ("float64", "float32"):
            assert {kind for r, kind, t in held if (r, t) == (rule, dtype)} >= wanted, rule


def test_zeros_of_both_signs_dead_units_and_outputs_that_cancel(documents: dict[str, Json]) -> None:
    for rule in set(RULES) - set(GRADIENT_RULES):
        negative = cancelled = dead = 0
        for document, group, case in each(documents):
            if document["rule"] == rule and "ExactZeros" in case["flags"] and group["layer"]["type"] == "Conv2d":
                tensors = {name: decode(form).astype(float) for name, form in case["tensors"].items()}
                known = affine_of(group["layer"], tensors, 0)
                contributions = np.abs(known.A()) @ np.abs(known.x) + np.abs(known.b)
                negative += int(np.sum((tensors["x"] == 0) & np.signbit(tensors["x"])))
                cancelled += int(np.sum((known.z == 0) & (contributions > 0)))
                dead += int(np.sum(contributions == 0))
        assert min(negative, cancelled, dead) > 0, rule


def test_relevance_has_both_signs_and_zeros_and_is_not_the_output(documents: dict[str, Json]) -> None:
    given = np.concatenate([decode(case["tensors"]["R"]).ravel() for _, _, case in each(documents)])
    assert 0.1 < np.mean(given == 0) < 0.4
    assert 0.2 < np.mean(given > 0) < 0.6
    assert 0.2 < np.mean(given < 0) < 0.6


def test_an_empty_batch_and_relevance_of_every_size(documents: dict[str, Json]) -> None:
    for rule in set(RULES) - set(GRADIENT_RULES):
        given = [decode(case["tensors"]["R"]) for d, _, case in each(documents) if d["rule"] == rule]
        assert any(array.size == 0 for array in given)
        assert max(np.abs(array).max(initial=0) for array in given) > 1e6


def test_few_entries_are_inconclusive(documents: dict[str, Json]) -> None:
    valid = [case for _, _, case in each(documents) if case["result"] == "valid"]
    assert 0 < sum(case["inconclusive"] for case in valid) < 0.01 * sum(decode(c["bound"]).size for c in valid)
    assert all(("Undecided" in case["flags"]) == (case["inconclusive"] > 0) for case in valid)


def test_invalid_parameters_and_legal_neighbours(documents: dict[str, Json]) -> None:
    results = [(d["rule"], case["result"]) for d, _, case in each(documents) if d["family"] == "arguments"]
    for rule in set(RULES) - {"Pass", "ReLUDeconvNet", "ReLUGuidedBackprop"}:
        wanted = {"valid", "implementation-defined"} | ({"invalid"} if rule not in GRADIENT_RULES else set())
        assert {result for own, result in results if own == rule} == wanted


# --- how it is computed -----------------------------------------------------------------------------------------------


def test_exact_by_hand() -> None:
    # d = 3 * 1 + 1 * (-2) + 0.5 = 1.5, S = 2, s = 1.5 / 2 = 0.75, r = (3 * 0.75, -2 * 0.75)
    layer = layers.Linear((2,), np.array([[1.0, -2.0]]), np.array([0.5]))
    found = exact.answer(rules.epsilon(layers.affine(layer, np.array([3.0, 1.0]))), np.array([1.5]), Stabilizer(0.5))
    assert found.relevance.tolist() == [2.25, -1.5]
    assert found.sinks == {"inputs": 0.75, "bias": 0.375, "stabilizer": 0.375, "zero_branch": 0.0}


def test_exact_is_rounded_once() -> None:
    # d = 0.1 + 0.2 - 0.3 in the numbers that float64 has for them; in float64 it would be 2^-54 or 0
    x, weight = np.array([0.1, 0.2, 0.3]), np.array([[1.0, 1.0, -1.0]])
    parts = rules.epsilon(layers.affine(layers.Linear((3,), weight, None), x))
    d = Fraction(0.1) + Fraction(0.2) - Fraction(0.3)
    found = exact.answer(parts, np.array([0.7]), Stabilizer(1e-6)).relevance
    assert found.tolist() == [float(Fraction(a) * Fraction(0.7) / (d + Fraction(1e-6))) for a in (0.1, 0.2, -0.3)]


def test_exact_cancellation_is_zero() -> None:
    # s = (1/3, -2/3) has no end in binary; 1 * 2/3 - 2/3 is 0 all the same
    layer = layers.Linear((2,), np.array([[2.0, 1.0], [1.0, 2.0]]), None)
    found = exact.answer(
        rules.epsilon(layers.affine(layer, np.array([1.0, 1.0]))), np.array([1.0, -2.0]), Stabilizer(0)
    )
    assert found.relevance[0] == 0


@pytest.mark.parametrize(
    ("stabilizer", "expected"),
    [
        (Stabilizer(0.5), [2.5, -0.75, 0.5]),
        (Stabilizer(0.5, clip=True), [2.0, -0.5, 0.5]),
        (Stabilizer(0.5, norm_scale=True), None),
        (Stabilizer(0.5, clip=True, norm_scale=True), None),
    ],
    ids=str,
)
def test_exact_stabilizers(stabilizer: Stabilizer, expected: list[float] | None) -> None:
    d = np.array([2.0, -0.25, -0.0])
    found = [float(Fraction(int(value), 1 << 600)) for value in exact.stabilized(exact.fixed(d), stabilizer)]
    assert found == pytest.approx(expected or stabilizer(d).tolist(), rel=1e-15, abs=0)


def test_exact_poles() -> None:
    layer = layers.Linear((1,), np.array([[0.0]]), None)
    parts = rules.epsilon(layers.affine(layer, np.array([1.0])))
    assert exact.answer(parts, np.array([1.0]), Stabilizer(0)).poles
    assert not exact.answer(parts, np.array([1.0]), Stabilizer(1e-6)).poles


def test_exact_refuses_digits_below_its_own() -> None:
    with pytest.raises(ValueError, match="digits at 2\\^-1074, expected none below 2\\^-300"):
        exact.fixed(np.array([5e-324]))


@pytest.mark.parametrize(
    "layer", [one for one in LAYERS if one.smooth and "Pool" not in one.type], ids=lambda o: o.name
)
def test_smooth_functions_agree_with_the_reference(layer: Any) -> None:
    x = Source(layer.name).uniform((1, *layer.input_shape))
    known = affine_of(layer.options, {"x": x}, 0)
    (part,) = smooth.parts_of(known.layer, known.x, rules.epsilon(known))
    assert part.terms[0][0] == pytest.approx(known.A(), rel=1e-14, abs=1e-16)
    assert part.denominator == pytest.approx(known.z, rel=1e-14, abs=1e-15)


def test_bounds_are_rounded_up_to_twelve_bits() -> None:
    bound = np.abs(Source("bounds").uniform((1000,))) ** 10
    short = tidied(bound)
    assert (short >= bound).all()
    assert (short <= bound * (1 + 2.0**-11)).all()
    assert (short.astype(np.float32) == short).all()
    assert tidied(np.array([0.0, np.inf, 1e-60, 1e300])).tolist() == [0.0, np.inf, 2.0**-126, np.inf]


def test_every_second_zero_becomes_negative() -> None:
    assert np.signbit(with_negative_zeros(np.array([0.0, 1.0, 0.0, 0.0]))).tolist() == [True, False, False, True]


def test_what_is_too_long_or_not_finite_is_refused() -> None:
    question = next(questions())
    with pytest.raises(CorpusError, match="a tensor of 4800 bytes; the corpus holds none above 4096"):
        case_of(Question(**{**vars(question), "tensors": {**question.tensors, "R": np.ones((150, 4))}}))


# --- what a release may change ----------------------------------------------------------------------------------------


def _document(*ids: str, answer: float = 1.0, x: float = 1.0) -> dict[str, Json]:
    rest = {"dtype": "float64", "tensors": {"x": x}, "result": "valid", "relevance": answer}
    cases = [{"id": id_, **rest} for id_ in ids]
    return {"a.json": {"rule": "Epsilon", "groups": [{"parameters": {}, "layer": {}, "cases": cases}]}}


CHANGES: dict[str, tuple[dict[str, Json], str, str]] = {
    "another question": (_document("a", "b", x=2.0), "", "2 cases would ask something else .*: a, b; give"),
    "another answer": (
        _document("a", "b", answer=2.0),
        "2.0.0",
        "2 cases would expect something else .*: a, b; .*major",
    ),
    "a case gone": (_document("a"), "2.0.0", "1 cases would be gone: b; .*major"),
    "a case more": (_document("a", "b", "c"), "1.3.0", "1 cases would be new: c; .*minor"),
}


@pytest.mark.parametrize(("changed", "enough", "says"), CHANGES.values(), ids=CHANGES)
def test_changes_need_a_version(
    changed: dict[str, Json], enough: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releasing, "CORPUS_VERSION", "1.2.0")
    before = released(_document("a", "b"))
    with pytest.raises(ReleaseError, match=says):
        released(changed, before)
    monkeypatch.setattr(releasing, "CORPUS_VERSION", enough or "9.0.0")
    if enough:
        assert released(changed, before)["corpus_version"] == enough
    else:
        with pytest.raises(ReleaseError, match=says):  # no version is enough for another question
            released(changed, before)


def test_words_may_change() -> None:
    before = released(_document("a"))
    worded = _document("a")
    worded["a.json"]["groups"][0]["cases"][0] |= {"comment": "better", "flags": ["Ties"]}
    assert released(worded, before) == before


def test_a_withdrawn_id_is_never_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = released(_document("a", "b"))
    monkeypatch.setattr(releasing, "CORPUS_VERSION", "3.0.0")
    later = released(_document("a"), before)
    assert later["withdrawn"] == ["b"]
    monkeypatch.setattr(releasing, "CORPUS_VERSION", "4.0.0")
    with pytest.raises(ReleaseError, match="1 cases were withdrawn, and would be used again: b"):
        released(_document("a", "b"), later)
    assert released(_document("a", "c"), later)["withdrawn"] == ["b"]


def test_versions_do_not_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = released(_document("a"))
    monkeypatch.setattr(releasing, "CORPUS_VERSION", "0.9.0")
    with pytest.raises(ReleaseError, match=rf"from {re.escape(CORPUS_VERSION)} back to 0\.9\.0"):
        released(_document("a"), before)


@pytest.mark.parametrize("value", [{}, [], {"a": list(range(100))}, {"a": [{"hex": "0" * 200}], "b": -0.0, "c": "µ"}])
def test_a_file_reads_back(value: object) -> None:
    assert json.loads(dump(value)) == value
    assert dump(json.loads(dump(value))) == dump(value)
