"""`lrp-vectors verify`: our own rules answer every vector, a wrong rule does not, and each answer gets its verdict."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lrp_rules
from verify.formats.tensor_json import decode, encode
from verify.model import Outcome, Subject, Verdict
from verify.reports.report import Report, grid
from verify.runs.selection import UnusableError
from verify.subjects.loading import load
from verify.vectors import reading
from verify.vectors.asking import answers
from verify.vectors.results import judge

CORPUS = Path(__file__).parents[3] / "vectors"
Json = dict[str, Any]

VALID = "epsilon-default-linear-5-4-signed-float64"
UNDECIDED = "epsilon-default-linear-5-4-undecided-float64"
INVALID = "alphabeta-invalid-equal"
TYPE = "flat-invalid-stabilizer-null"
SHAPE = "zbox-invalid-low-does-not-broadcast"
ADVISED = "gamma-advised-gamma-negative"
POLE = "epsilon-epsilon-0-linear-12-3-zeros-float64"


@pytest.fixture(scope="module")
def documents() -> dict[str, Json]:
    return reading.load(CORPUS)


@pytest.fixture(scope="module")
def ids(documents: dict[str, Json]) -> list[str]:
    return [case["id"] for _, _, case in reading.each(documents)]


def lines(*given: Json) -> bytes:
    return "\n".join(json.dumps(one) for one in given).encode()


@pytest.fixture
def verdict(documents: dict[str, Json]) -> Callable[..., Outcome]:
    """Judge answers to one case."""

    def ask(id_: str, *given: Json) -> Outcome:
        content = lines(*({"id": id_, **answer} for answer in given))
        [outcome] = judge("port", content, documents, [id_], strict=False).outcomes
        return outcome

    return ask


@pytest.fixture
def case(documents: dict[str, Json]) -> Callable[[str], Json]:
    return lambda id_: reading.find(documents, id_)[2]


# --- whole runs -------------------------------------------------------------------------------------------------------


def test_our_own_rules_answer_every_vector(documents: dict[str, Json], ids: list[str]) -> None:
    given = list(answers(documents.values(), load("lrp_rules"), ids))
    report = judge("lrp_rules", lines(*given), documents, ids, strict=True)
    assert [outcome.id for outcome in report.outcomes if outcome.verdict is not Verdict.PASS] == []
    assert report.passed
    assert len(report.outcomes) == len(ids)


class Unsigned(lrp_rules.Epsilon):  # planted: sgn(d) is forgotten
    """Epsilon with d + eps in place of d + eps sgn(d)."""

    def __init__(self, epsilon: Any = 1e-6, zero_params: Any = None) -> None:
        super().__init__(epsilon=lambda d: d + epsilon, zero_params=zero_params)


class SignOfZero(lrp_rules.WSquare):  # planted: sgn(0) = 0
    """WSquare without a stabilizer where d is zero."""

    def __init__(self, stabilizer: Any = 1e-6, zero_params: Any = None) -> None:
        super().__init__(stabilizer=lambda d: d + stabilizer * d.sign(), zero_params=zero_params)


@pytest.mark.parametrize(
    ("rule", "planted", "only"),
    [("Epsilon", Unsigned, "epsilon-default-"), ("WSquare", SignOfZero, "wsquare-default-")],
)
def test_a_wrong_rule_fails(rule: str, planted: type, only: str, documents: dict[str, Json], ids: list[str]) -> None:
    own = [id_ for id_ in ids if id_.startswith(only)]
    subject = Subject("planted", SimpleNamespace(**{rule: planted}), "0")
    report = judge("planted", lines(*answers(documents.values(), subject, own)), documents, own, strict=False)
    assert not report.passed
    assert {outcome.rule for outcome in report.failures} == {rule}
    assert all("times the bound" in outcome.reason or "nan" in outcome.reason for outcome in report.failures)


def test_missing_rules_are_skipped_with_a_reason(documents: dict[str, Json], ids: list[str]) -> None:
    own = [id_ for id_ in ids if id_.startswith("pass-")]
    given = list(answers(documents.values(), Subject("empty", SimpleNamespace(), "0"), own))
    assert given[0] == {"id": own[0], "skipped": "empty has no Pass"}
    report = judge("empty", lines(*given), documents, own, strict=False)
    assert not report.asked
    assert not report.passed


def test_the_table_has_rules_and_layers(documents: dict[str, Json], ids: list[str]) -> None:
    found = grid(judge("nobody", lines({"id": ids[0], "skipped": "because"}), documents, ids, strict=False))
    assert set(found.rules) == {document["rule"] for document in documents.values()}
    assert {"Linear", "Conv2d", "ConvTranspose3d", "AvgPool", "Activation", "no layer"} <= set(found.families)


# --- one answer -------------------------------------------------------------------------------------------------------


def test_expected_passes(verdict: Callable[..., Outcome], case: Callable[[str], Json]) -> None:
    outcome = verdict(VALID, {"relevance": case(VALID)["relevance"]})
    assert (outcome.verdict, outcome.ratio, outcome.undecided) == (Verdict.PASS, 0.0, 0.0)
    assert (outcome.rule, outcome.layer, outcome.dtype) == ("Epsilon", "Linear", "float64")


@pytest.mark.parametrize(("times", "expected"), [(0.9, Verdict.PASS), (1.1, Verdict.FAIL), (np.nan, Verdict.FAIL)])
def test_the_bound_is_the_limit(
    times: float, expected: Verdict, verdict: Callable[..., Outcome], case: Callable[[str], Json]
) -> None:
    relevance, bound = (decode(case(VALID)[name]).astype(float) for name in ("relevance", "bound"))
    relevance[1, 2] += times * bound[1, 2]
    outcome = verdict(VALID, {"relevance": encode(relevance)})
    assert outcome.verdict is expected
    if expected is Verdict.FAIL:
        assert outcome.reason.startswith("entry [1, 2]: got ")


def test_undecided_entries_are_counted(verdict: Callable[..., Outcome], case: Callable[[str], Json]) -> None:
    relevance = decode(case(UNDECIDED)["relevance"])
    relevance[0, :3] = 1e300
    outcome = verdict(UNDECIDED, {"relevance": encode(relevance)})
    assert (outcome.verdict, outcome.undecided) == (Verdict.PASS, 0.6)
    relevance[0, 0] = np.nan
    assert verdict(UNDECIDED, {"relevance": encode(relevance)}).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("id_", "answer", "expected", "says"),
    [
        pytest.param(
            VALID, {"error": "value", "message": "no"}, Verdict.FAIL, "raises .* value: no; expected a", id="e"
        ),
        pytest.param(VALID, {"skipped": "later", "link": "https://x.y"}, Verdict.SKIPPED, "later: https", id="skipped"),
        pytest.param(VALID, {}, Verdict.ERROR, "not in the form of results-1.schema.json", id="nothing"),
        pytest.param(VALID, {"relevance": 1.0}, Verdict.ERROR, "not in the form", id="number"),
        pytest.param(VALID, {"skipped": ""}, Verdict.ERROR, "not in the form", id="no reason"),
        pytest.param(VALID, {"error": "crash"}, Verdict.ERROR, "not in the form", id="unknown kind"),
        pytest.param(INVALID, {"error": "value"}, Verdict.PASS, "", id="refused"),
        pytest.param(INVALID, {"error": "type"}, Verdict.FAIL, "kind type; expected one of kind value", id="kind"),
        pytest.param(INVALID, {"error": "other"}, Verdict.FAIL, "expected one of kind value", id="other kind"),
        pytest.param(TYPE, {"error": "type"}, Verdict.PASS, "", id="type"),
        pytest.param(SHAPE, {"error": "other"}, Verdict.PASS, "", id="any kind"),
        pytest.param(ADVISED, {"error": "value"}, Verdict.PASS, "", id="advised"),
        pytest.param(POLE, {"error": "other"}, Verdict.PASS, "", id="pole, error"),
    ],
)
def test_verdicts(id_: str, answer: Json, expected: Verdict, says: str, verdict: Callable[..., Outcome]) -> None:
    outcome = verdict(id_, answer)
    assert outcome.verdict is expected
    assert says.rsplit(" .* ", maxsplit=1)[-1] in outcome.reason


@pytest.mark.parametrize(
    ("id_", "expected", "decides"), [(INVALID, "fail", True), (ADVISED, "fail", False), (POLE, "pass", True)]
)
def test_a_number_where_none_is_expected(
    id_: str, expected: str, *, decides: bool, documents: dict[str, Json], case: Callable[[str], Json]
) -> None:
    content = lines({"id": id_, "relevance": case(id_)["tensors"]["x"]})
    for strict in (False, True):
        report: Report = judge("port", content, documents, [id_], strict=strict)
        [outcome] = report.outcomes
        assert outcome.verdict.value == expected
        assert report.passed is (expected == "pass" or not (decides or strict))


def test_a_constant_that_not_everyone_shares_is_advised(
    documents: dict[str, Json], case: Callable[[str], Json]
) -> None:
    id_ = "zplus-default-batchnorm-images-signed-float64"
    content = lines({"id": id_, "relevance": case(id_)["tensors"]["x"]})
    assert case(id_)["flags"] == ["ConstantOfBatchNorm"]
    assert not judge("port", content, documents, [id_], strict=False).failures
    assert judge("port", content, documents, [id_], strict=True).failures


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((5, 2)), "relevance in float64 of shape [5, 2], expected float64 of shape [2, 5], as x"),
        (np.zeros((2, 5), np.float32), "relevance in float32 of shape [2, 5], expected float64"),
    ],
    ids=["transposed", "dtype"],
)
def test_shape_and_dtype_are_those_of_x(array: Any, says: str, verdict: Callable[..., Outcome]) -> None:
    outcome = verdict(VALID, {"relevance": encode(array)})
    assert outcome.verdict is Verdict.FAIL
    assert says in outcome.reason


def test_a_broken_tensor_is_an_error(verdict: Callable[..., Outcome], case: Callable[[str], Json]) -> None:
    form = {**case(VALID)["relevance"]}
    form["hex"] = form["hex"][:-1]
    outcome = verdict(VALID, {"relevance": form})
    assert outcome.verdict is Verdict.ERROR
    assert "given 159 digits of hex, expected 160" in outcome.reason


def test_no_answer_and_two(verdict: Callable[..., Outcome]) -> None:
    with pytest.raises(UnusableError, match="port has no answers"):
        verdict(VALID)
    assert verdict(INVALID, {"error": "value"}, {"error": "value"}).reason == "2 answers, expected one"


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_list_is_as_good_as_lines(documents: dict[str, Json]) -> None:
    content = json.dumps([{"id": INVALID, "error": "value"}]).encode()
    assert judge("port", content, documents, [INVALID], strict=False).passed


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "line 1 of the answers is not JSON"),
        (b'{"id": "x"}\n\n}', "line 3 of the answers is not JSON"),
        (b"[1", "not a list in JSON"),
        (b'{"id": 1, "id": 2}', "the key 'id' stands twice"),
        (b'{"id": "x", "relevance": NaN}', "NaN is not JSON"),
        (b'{"id": "x", "skipped": "y"}', 'port, answer 1: {"id": "x", "skipped": "y"} has no id of these test vectors'),
        (b"[7]", "port, answer 1: 7 has no id"),
        (b"\xff", "line 1 of the answers is not JSON"),
    ],
    ids=str,
)
def test_a_file_that_is_none(content: bytes, says: str, documents: dict[str, Json]) -> None:
    with pytest.raises(UnusableError) as error:
        judge("port", content, documents, [VALID], strict=False)
    assert says in str(error.value)
