"""`lrp-vectors check`: the corpus holds, and one changed digit, hash, id, file or case is named, whichever it is."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verify.formats.tensor_json import decode, encode
from verify.vectors.checking import Problem, check
from verify.vectors.corpus import dump
from verify.vectors.released import FLOOR, MANIFEST, NAME, cases, manifest, released

CORPUS = Path(__file__).parents[3] / "vectors"
FILE = "flat-zero-params.json"
CASE = "flat-zero-params-bias-linear-5-4-signed-float64"
PARTS = (FILE, "reludeconvnet-layers.json", "wsquare-arguments.json")
Json = dict[str, Any]


def test_the_corpus_holds() -> None:
    problems, held = check(CORPUS)
    assert not problems
    assert held == FLOOR, "after new cases raise FLOOR in verify/vectors/released.py to their number"


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus: three files of the real one."""
    folder = tmp_path_factory.mktemp("part")
    for name in (*PARTS, "vectors-1.schema.json"):
        shutil.copy(CORPUS / name, folder)
    seal(folder)
    assert check(folder, floor=0)[0] == []
    return folder


@pytest.fixture
def corpus(part: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(part, tmp_path / "corpus")


def seal(folder: Path) -> None:
    """Write digests and manifest anew, as somebody who hides a change would."""
    documents = {name: json.loads((folder / name).read_text()) for name in PARTS if (folder / name).exists()}
    (folder / NAME).write_text(dump(released(documents)))
    contents = {path.name: path.read_bytes() for path in folder.glob("*.json") if path.name != MANIFEST}
    (folder / MANIFEST).write_text(dump(manifest(documents, contents)))


def edited(folder: Path, change: Callable[[Json, Json], object], name: str = FILE) -> None:
    """Change a file, given as itself and its case CASE, and write it in the canonical form."""
    document = json.loads((folder / name).read_text())
    change(document, next((case for _, _, _, case in cases({name: document}) if case["id"] == CASE), {}))
    (folder / name).write_text(dump(document))


def replaced(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert text.count(old) >= 1
    (folder / name).write_text(text.replace(old, new, 1))


def named(problems: list[Problem]) -> set[tuple[str, str]]:
    return {(problem.file, problem.case) for problem in problems}


def said(problems: list[Problem]) -> str:
    return "\n".join(map(str, problems))


# --- one change, as it happens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", ["x", "weight", "bias", "R", "relevance", "bound"])
@pytest.mark.parametrize("digit", [0, -9], ids=["first", "last"])
def test_one_hex_digit(corpus: Path, tensor: str, digit: int) -> None:
    def change(_: Json, case: Json) -> None:
        form = case[tensor] if tensor in case else case["tensors"][tensor]
        digits = list(form["hex"])
        digits[digit] = "0" if digits[digit] != "0" else "1"
        form["hex"] = "".join(digits)

    edited(corpus, change)
    problems, _ = check(corpus, floor=0)
    assert {(FILE, ""), (FILE, CASE)} <= named(problems)  # the file's hash, and the case's digest


def test_one_digit_of_a_preview(corpus: Path) -> None:
    edited(corpus, lambda _, case: case["relevance"]["preview"].__setitem__(0, 0.5))
    problems, _ = check(corpus, floor=0)
    assert f"{FILE}, case {CASE}: relevance: tensor: given preview 0.5 at entry 0" in said(problems)


def test_one_hash_of_the_manifest(corpus: Path) -> None:
    known = json.loads((corpus / MANIFEST).read_text())["files"][FILE]["sha256"]
    replaced(corpus, MANIFEST, known, "0" * 64)
    problems, _ = check(corpus, floor=0)
    assert named(problems) == {(FILE, "")}
    assert "in the manifest 0000000000000000..." in said(problems)


@pytest.mark.parametrize("part_", ["question", "answer"])
def test_one_hash_of_a_case(corpus: Path, part_: str) -> None:
    known = json.loads((corpus / NAME).read_text())["cases"][CASE][part_]
    replaced(corpus, NAME, known, "0" * 64)
    problems, _ = check(corpus, floor=0)
    assert named(problems) == {(NAME, ""), (FILE, CASE)}
    assert f"its {part_} is not the one that was released" in said(problems)


def test_one_id(corpus: Path) -> None:
    replaced(corpus, FILE, CASE, f"{CASE}-2")
    problems, _ = check(corpus, floor=0)
    assert named(problems) == {(FILE, ""), (FILE, CASE), (FILE, f"{CASE}-2")}
    assert f"case {CASE}-2: the id is not in {NAME}" in said(problems)
    assert f"case {CASE}: was released, and is gone" in said(problems)


def test_an_id_twice(corpus: Path) -> None:
    other = CASE.replace("float64", "float32")
    replaced(corpus, FILE, f'"{other}"', f'"{CASE}"')
    problems, _ = check(corpus, floor=0)
    assert f"{FILE}, case {CASE}: the id is also that of a case in {FILE}" in said(problems)
    assert f"{FILE}, case {other}: was released, and is gone" in said(problems)


def test_a_file_dropped(corpus: Path) -> None:
    (corpus / FILE).unlink()
    problems, _ = check(corpus, floor=0)
    assert f"{FILE}: is missing, though the manifest names it" in said(problems)
    assert f"{FILE}, case {CASE.replace('linear-5-4', 'batchnorm-images')}: was released, and is gone" in said(problems)
    assert f"{MANIFEST}: counts.rule.Flat is 28, and in the files None" in said(problems)
    assert f"{FILE}: 23 more cases were released, and are gone" in said(problems)


@pytest.mark.parametrize("hide", [False, True], ids=["openly", "with the number of cases"])
def test_a_case_removed(corpus: Path, *, hide: bool) -> None:
    def change(document: Json, case: Json) -> None:
        for group in document["groups"]:
            group["cases"] = [one for one in group["cases"] if one is not case]
        document["cases"] -= hide

    edited(corpus, change)
    problems, held = check(corpus, floor=0)
    assert held == 37
    assert (FILE, CASE) in named(problems)
    assert ("says that it has 28 cases, and has 27" in said(problems)) is not hide


def test_a_shrinking_corpus(corpus: Path) -> None:
    def change(document: Json, case: Json) -> None:
        for group in document["groups"]:
            group["cases"] = [one for one in group["cases"] if one is not case]
        document["cases"] -= 1

    edited(corpus, change)
    seal(corpus)
    assert check(corpus, floor=37)[0] == []
    [problem] = check(corpus, floor=38)[0]
    assert str(problem) == f"{MANIFEST}: there are 37 cases, expected at least 38: the corpus never shrinks"


def test_a_file_nobody_listed(corpus: Path) -> None:
    shutil.copy(corpus / FILE, corpus / "more.json")
    assert "more.json: is not in the manifest" in said(check(corpus, floor=0)[0])


@pytest.mark.parametrize("name", [MANIFEST, NAME])
def test_without_manifest_or_digests(corpus: Path, name: str) -> None:
    (corpus / name).unlink()
    assert any(problem.file == name for problem in check(corpus, floor=0)[0])


# --- form -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"dtype": ', '"dtype":', "is not written in the canonical form, first in line"),
        ('"schema_version": 1,', '"schema_version": 1,\n "schema_version": 1,', "'schema_version' stands twice"),
        ("1e-06", "NaN", 'NaN is not JSON; write it as the string "NaN"'),
        ("{", "", "is no JSON"),
    ],
)
def test_text(corpus: Path, old: str, new: str, says: str) -> None:
    replaced(corpus, FILE, old, new)
    assert f"{FILE}: " in said(check(corpus, floor=0)[0])
    assert says in said(check(corpus, floor=0)[0])


FORM: dict[str, tuple[Callable[[Json, Json], object], str]] = {
    "version": (lambda document, _: document.update(corpus_version="0.9.0"), "is of corpus version '0.9.0', expected"),
    "flag": (lambda _, case: case["flags"].append("Odd"), f"case {CASE}: the flag 'Odd' is not in the notes"),
    "key": (lambda _, case: case.update(note=""), rf"case {CASE}: \$.*'note' was unexpected"),
    "no bound": (lambda _, case: case.pop("bound"), rf"case {CASE}: \$.*'bound' is a required property"),
    "result": (lambda _, case: case.update(result="right"), rf"case {CASE}: \$.*'right' is not one of"),
    "no R": (lambda _, case: case["tensors"].pop("R"), rf"case {CASE}: \$.*'R' is a required property"),
    "order": (lambda _, case: case["tensors"]["x"].update(order="F"), f"case {CASE}: x: tensor: given order 'F'"),
    "layer": (lambda document, _: document["groups"][0]["layer"].update(type="Lin"), r"\$\.groups\[0\]\.layer: "),
    "parameter": (
        lambda document, _: document["groups"][0]["parameters"].update(alpha=1),
        r"\$\.groups\[0\]\.parameters: .*alpha",
    ),
}


@pytest.mark.parametrize(("change", "says"), FORM.values(), ids=FORM)
def test_form(corpus: Path, change: Callable[[Json, Json], object], says: str) -> None:
    edited(corpus, change)
    assert re.search(rf"^{FILE}.*{says}", said(check(corpus, floor=0)[0]), re.MULTILINE)


# --- values: a wrong answer that was released as if it were right -----------------------------------------------------


def _moved(form: Json, factor: float) -> None:
    array = decode(form)
    array.ravel()[-1] *= factor
    form.update(encode(array))


VALUES: dict[str, tuple[Callable[[Json, Json], object], str]] = {
    "relevance": (lambda _, case: _moved(case["relevance"], 1 + 1e-9), "away from the reference, entry 9"),
    "bound too large": (lambda _, case: _moved(case["bound"], 1.01), "bound, entry 9: "),
    "bound too small": (lambda _, case: _moved(case["bound"], 0.99), "bound, entry 9: "),
    "bound infinite": (lambda _, case: _moved(case["bound"], float("inf")), "bound, entry 9: inf, the reference says"),
    "inconclusive": (lambda _, case: case.update(inconclusive=1), "inconclusive is 1, expected 0"),
    "no ledger": (lambda _, case: case.pop("ledger"), "the ledger has not 2 numbers"),
    "ledger": (lambda _, case: case["ledger"]["bias"].__setitem__(1, 0.5), "the ledger of sample 1 does not balance"),
    "sinks exchanged": (
        lambda _, case: case["ledger"].update(inputs=case["ledger"]["stabilizer"], stabilizer=case["ledger"]["inputs"]),
        "the inputs' share of sample 0 is",
    ),
    "R": (lambda _, case: _moved(case["tensors"]["R"], 2.0), "times the bound away from the reference"),
    # Flat looks at no weight: this is another question with the same answer
    "weight": (lambda _, case: _moved(case["tensors"]["weight"], 2.0), ""),
}


@pytest.mark.parametrize(("change", "says"), VALUES.values(), ids=VALUES)
def test_values(corpus: Path, change: Callable[[Json, Json], object], says: str) -> None:
    edited(corpus, change)
    seal(corpus)
    problems, _ = check(corpus, floor=0)
    assert named(problems) == ({(FILE, CASE)} if says else set())
    assert says in said(problems)
