"""Known deviations excuse what is known and nothing else: no new bug in the same rule, nothing that passes now."""

import tomllib
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch

from verify.checks.cases import all_cases
from verify.explaining.deviations import (
    Deviation,
    DeviationError,
    Deviations,
    apply,
    available,
    is_known,
    load,
    reading,
    schema,
)
from verify.explaining.deviations.formulas import FORMULAS, gives
from verify.model import BAD, RULES, Case, Level, Outcome, Subject, Verdict
from verify.runs.outcomes import ask
from verify.subjects.loading import load as load_subject

HEADER = 'library = "mine"\nversions = ["1.0", "1.2"]\n'
ENTRY = '[[deviation]]\npattern = "agreement/ZBox/*"\nverdict = "fail"\nreason = "so it is"\n'


def _but(old: str, new: str) -> str:
    assert old in ENTRY
    return HEADER + ENTRY.replace(old, new)


def _outcome(id_: str, verdict: Verdict = Verdict.FAIL, reason: str = "", **details: Any) -> Outcome:
    check, rule, *_ = id_.split("/")
    return Outcome(id_, rule, "-", check, "-", Level.MUST, verdict, reason=reason, details=details)


def _deviations(*entries: Deviation) -> Deviations:
    return Deviations("mine", "mine", ("1.0", "1.0"), entries)


def _entry(*patterns: str, verdict: Verdict = Verdict.FAIL, **rest: Any) -> Deviation:
    return Deviation(patterns, verdict, "so it is", **rest)


# --- files ------------------------------------------------------------------------------------------------------------


def _write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_entry_is_read(tmp_path: Path) -> None:
    more = 'link = "https://example.org/1"\nsays = "no  *"\nformula = "unsigned-epsilon"\nsometimes = true\n'
    found = load(_write(tmp_path, HEADER + ENTRY + more))
    assert (found.name, found.library, found.versions) == ("mine", "mine", ("1.0", "1.2"))
    (entry,) = found.entries
    assert entry == Deviation(
        ("agreement/ZBox/*",),
        Verdict.FAIL,
        "so it is",
        "https://example.org/1",
        "no *",
        "unsigned-epsilon",
        sometimes=True,
        place="mine.toml, deviation 1",
    )


MISTAKES = {
    "not-toml": ("library = mine", "mine.toml is not TOML: Invalid value .at line 1"),
    "no-library": ('versions = ["1", "1"]', "library is missing"),
    "no-versions": ('library = "mine"', "versions is missing"),
    "empty": ("", 'library and versions are missing; the smallest file is\n\nlibrary = "my_package"\n'),
    "empty-library": ('library = ""\nversions = ["1", "1"]', "library is ''"),
    "one-version": ('library = "mine"\nversions = "1"', "versions is '1', expected the first and the last"),
    "versions-reversed": ('library = "mine"\nversions = ["2", "1"]', "versions is ..2', '1'., expected the first"),
    "unknown-header": (
        HEADER + "colour = 1",
        "colour is unknown; expected deviation, extends, library, versions, without",
    ),
    "no-table": (HEADER + "deviation = 1", "deviation is 1, expected tables"),
    "unknown-key": (HEADER + ENTRY + ENTRY + "excuse = 1", "deviation 2: excuse is unknown; expected formula, link"),
    "no-reason": (HEADER + "[[deviation]]\npattern = 'a/*'\nverdict = 'fail'", "deviation 1: reason is missing"),
    "pattern-number": (_but('"agreement/ZBox/*"', "3"), "pattern is 3, expected a text, or a list"),
    "no-pattern": (_but('"agreement/ZBox/*"', "[]"), "pattern is .., expected a text, or a list"),
    "pattern-of-all": (_but("agreement/ZBox/*", "*"), r"pattern is '\*', expected the name of a check first"),
    "pattern-of-all-checks": (_but("agreement/ZBox/*", "*/ZBox/*"), "expected the name of a check first"),
    "pattern-of-a-check": (_but("agreement/ZBox/*", "agreement"), "expected the name of a check first"),
    "pattern-with-one-brace": (_but("agreement/ZBox/*", "agreement/{ZBox/*"), "expected the name of a check first"),
    "verdict": (_but('"fail"', '"pass"'), "verdict is 'pass', expected one of crash, error, fail, timeout"),
    "empty-reason": (_but("so it is", " "), "reason is ' ', expected a text"),
    "link": (HEADER + ENTRY + "link = 'issue 3'", "link is 'issue 3', expected an address"),
    "formula": (HEADER + ENTRY + "formula = 'e=mc2'", "formula is 'e=mc2', expected one of amplified-weights"),
    "sometimes": (HEADER + ENTRY + "sometimes = 'yes'", "sometimes is 'yes', expected true or false"),
    "error-without-says": (_but('"fail"', '"error"'), "deviation 1: says is missing; an accepted error needs it"),
    "refusal-without-says": (_but("agreement/", "errors/"), "deviation 1: says is missing; an accepted error needs it"),
    "one-of-errors": (_but("agreement/", "{api,errors}/"), "deviation 1: says is missing"),
    "without-alone": (HEADER + "without = ['a/*']", "without needs extends"),
    "without-text": (HEADER + "without = 'a/*'", "without is 'a/.*', expected a list"),
    "extends-number": (HEADER + "extends = 3", "extends is 3, expected the name of a file"),
    "extends-nothing": (HEADER + "extends = 'nowhere'", "'nowhere' cannot be read: No such file"),
    "extends-itself": (HEADER + "extends = 'mine.toml'", "extends 'mine.toml' leads back to mine.toml"),
    "without-unknown": (
        HEADER + "extends = 'lxt'\nwithout = ['a/*']",
        "without has a/.*, expected patterns of lxt.toml",
    ),
}


#: What a schema cannot say: what other files and other keys hold.
NOT_IN_THE_SCHEMA = {
    "not-toml", "versions-reversed", "pattern-with-one-brace", "formula", "extends-nothing", "extends-itself",
    "without-unknown", "refusal-without-says", "one-of-errors",
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_in_a_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DeviationError, match=message):
        load(_write(tmp_path, text))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviationError, match=r"'nowhere.toml' cannot be read: No such file.*captum, lxt, .*zennit"):
        load("nowhere.toml")
    with pytest.raises(DeviationError, match="cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DeviationError, match=r"binary\.toml is not TOML"):
        load(tmp_path / "binary.toml")


def test_a_file_extends_another(tmp_path: Path) -> None:
    _write(tmp_path, HEADER + ENTRY + ENTRY.replace('"agreement/ZBox/*"', '["api/a", "api/b"]'))
    other = tmp_path / "other.toml"
    more = ENTRY.replace("ZBox", "Flat")
    other.write_text(
        f'{HEADER.replace("1.0", "1.1")}extends = "mine.toml"\nwithout = ["api/a"]\n{more}', encoding="utf-8"
    )
    found = load(other)
    assert (found.name, found.versions) == ("other", ("1.1", "1.2"))
    assert [(entry.patterns, entry.place) for entry in found.entries] == [
        (("agreement/ZBox/*",), "mine.toml, deviation 1"),
        (("api/b",), "mine.toml, deviation 2"),
        (("agreement/Flat/*",), "other.toml, deviation 1"),
    ]


def test_several_files_are_one(tmp_path: Path) -> None:
    mine, other = _write(tmp_path, HEADER + ENTRY), tmp_path / "other.toml"
    other.write_text(HEADER.replace("1.2", "1.0") + ENTRY, encoding="utf-8")
    found = load(mine, other)
    assert (found.name, len(found.entries)) == ("mine, other", 2)
    assert [doubt.split(";")[0] for doubt in found.doubts("1.1")] == [
        "Note: the known deviations in other were recorded with mine 1.0, and this is version 1.1"
    ]


@pytest.mark.parametrize(
    ("version", "name"),
    [("", "lib"), ("0.4", "lib"), ("0.5.1", "lib"), ("0.7", "lib"), ("1.0.0", "lib-1.0.0"), ("2.0", "lib-1.0.0")],
)
def test_the_file_of_the_version_is_picked(
    version: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FOLDER", tmp_path)
    for stem, versions in (
        ("lib", '["0.5.1", "0.5.1"]'),
        ("lib-1.0.0", '["1.0.0", "1.0.0"]'),
        ("library", '["0", "9"]'),
    ):
        (tmp_path / f"{stem}.toml").write_text(f'library = "lib"\nversions = {versions}', encoding="utf-8")
    assert load("lib", version=version).name == name
    assert load("lib-1.0.0", version=version).name == "lib-1.0.0"


@pytest.mark.parametrize("name", available())
def test_files_that_come_along_are_as_the_schema_says(name: str) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    content = tomllib.loads((reading.FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    assert not list(validator.iter_errors(content))


@pytest.mark.parametrize("mistake", sorted(MISTAKES.keys() - NOT_IN_THE_SCHEMA))
def test_schema_refuses_what_reading_refuses(mistake: str) -> None:
    content = tomllib.loads(MISTAKES[mistake][0])
    assert list(jsonschema.Draft202012Validator(schema()).iter_errors(content))


def test_version_outside_of_those_read_is_doubted(tmp_path: Path) -> None:
    found = load(_write(tmp_path, HEADER))
    assert found.doubt("1.0") is None
    assert found.doubt("1.1.dev3+cpu") is None
    assert found.doubt("1.10") == (
        "Note: the known deviations in mine were recorded with mine 1.0 to 1.2, and this is version 1.10"
    )
    assert found.doubt("unknown") is not None


# --- apply ------------------------------------------------------------------------------------------------------------


def test_known_deviation_is_marked_and_others_are_not() -> None:
    outcomes = (
        _outcome("errors/ZBox/a", reason="is accepted"),
        _outcome("errors/ZBox/b", reason="raises KeyError"),
        _outcome("errors/ZBox/c", Verdict.CRASH, reason="is accepted"),
        _outcome("errors/ZBox/d", Verdict.PASS),
        _outcome("errors/ZBox/a/deeper", reason="is accepted"),
        _outcome("errors/Flat/a", reason="is accepted"),
    )
    entry = _entry("errors/ZBox/*", says="is *", link="https://example.org", place="mine.toml, deviation 1")
    marked, stale = apply(outcomes, _deviations(entry))
    assert [outcome.id for outcome in marked if is_known(outcome)] == ["errors/ZBox/a", "errors/ZBox/a/deeper"]
    assert marked[0].details["known deviation"] == {
        "reason": "so it is",
        "link": "https://example.org",
        "entry": "mine.toml, deviation 1",
    }
    assert (*marked[1:4], marked[5]) == (*outcomes[1:4], outcomes[5])
    assert not stale


@pytest.mark.parametrize(
    ("outcomes", "why"),
    [
        ([_outcome("api/Flat/a")], "matches no case; correct it, or delete it"),
        ([_outcome("errors/ZBox/a", Verdict.PASS)], "matches 1 pass, expected fail: delete this entry if"),
        (
            [_outcome("errors/ZBox/a", Verdict.PASS), _outcome("errors/ZBox/b", Verdict.NOT_OFFERED)],
            "matches 1 pass, 1 not-offered",
        ),
        ([_outcome("errors/ZBox/a", Verdict.CRASH)], "matches 1 crash, expected fail"),
        (
            [_outcome("errors/ZBox/a", reason="raises KeyError")],
            "matches 1 fail, expected fail with says 'is *': look at what has changed; now it says: raises KeyError",
        ),
    ],
    ids=["nothing", "passes", "not-offered", "crash", "says"],
)
def test_entry_that_excuses_nothing_is_stale(outcomes: list[Outcome], why: str) -> None:
    entry = _entry("errors/ZBox/*", says="is *", place="mine.toml, deviation 1")
    _, stale = apply(outcomes, _deviations(entry))
    (found,) = map(str, stale)
    assert found.startswith("mine.toml, deviation 1: errors/ZBox/* " + why)


def test_each_pattern_and_each_alternative_has_to_excuse_something() -> None:
    entry = _entry("errors/{ZBox,Flat}/a", "errors/Gamma/*")
    _, stale = apply([_outcome("errors/ZBox/a"), _outcome("errors/Flat/a", Verdict.PASS)], _deviations(entry))
    assert [found.pattern for found in stale] == ["errors/Flat/a", "errors/Gamma/*"]


def test_rounding_may_let_all_cases_pass_but_there_have_to_be_some() -> None:
    entry = _entry("errors/ZBox/*", sometimes=True)
    assert apply([_outcome("errors/ZBox/a", Verdict.PASS)], _deviations(entry))[1] == ()
    assert len(apply([_outcome("errors/Flat/a", Verdict.PASS)], _deviations(entry))[1]) == 1


def test_what_was_not_asked_is_not_judged() -> None:
    mine = _deviations(_entry("errors/ZBox/*"))
    ids = ["errors/ZBox/a", "errors/ZBox/b", "errors/Flat/a"]
    passes = [_outcome("errors/ZBox/a", Verdict.PASS)]
    assert apply([_outcome("errors/Flat/a")], mine, ids=ids)[1] == ()
    assert apply(passes, mine, ids=ids)[1] == ()  # b may deviate still
    both = [*passes, _outcome("errors/ZBox/b", Verdict.PASS)]
    assert len(apply(both, mine, ids=ids)[1]) == 1
    assert len(apply([_outcome("errors/Flat/a")], mine, ids=["errors/Flat/a", "errors/Gamma/a"])[1]) == 1


def test_first_entry_explains_and_all_that_would_are_in_use() -> None:
    one, other = _entry("errors/ZBox/*", place="one"), _entry("errors/*/a", place="other")
    (marked,), stale = apply([_outcome("errors/ZBox/a")], _deviations(one, other))
    assert marked.details["known deviation"]["entry"] == "one"
    assert not stale


def test_pattern_takes_nothing_but_stars_and_braces_for_more_than_themselves() -> None:
    entry = _entry("errors/ZBox/low-{a.b,c[d]?}-*")
    ids = ["low-a.b-", "low-axb-1", "low-c[d]?-1", "low-cdx-1", "low-a.b-1/2"]
    marked, _ = apply([_outcome(f"errors/ZBox/{id_}") for id_ in ids], _deviations(entry))
    assert [is_known(outcome) for outcome in marked] == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("errors/ZBx/*", "errors/ZBox/low-nan, errors/ZBox/low-shape, "),
        ("errors/ZBox/low-nam", "errors/ZBox/low-nan, errors/ZBox/low-shape, "),
        ("errors/ZBox/*/float64", "errors/ZBox/low-nan, errors/ZBox/low-shape, "),
        ("errors/{ZBox,Gama}/*", "errors/Gamma/negative-gamma, "),
        ("agreement/Gamma/*", "errors/Gamma/negative-gamma, "),
    ],
)
def test_pattern_without_a_case_is_told_with_the_nearest_ids(pattern: str, near: str) -> None:
    ids = ("errors/Gamma/negative-gamma", "errors/ZBox/low-nan", "errors/ZBox/low-shape", "errors/Flat/stabilizer")
    _, stale = apply([_outcome(id_) for id_ in ids], _deviations(_entry(pattern)))
    assert f" matches no case; the nearest ids are {near}" in str(stale[0])
    assert str(stale[0]).endswith("; correct it, or delete it")


# --- the files that come along ----------------------------------------------------------------------------------------


@cache
def _ids() -> tuple[str, ...]:
    return tuple(case.id for case in all_cases())


def test_there_is_a_file_for_each_library() -> None:
    assert available() == ("autolrp", "captum", "lxt", "zennit", "zennit-1.0.0")


@pytest.mark.parametrize("name", available())
def test_every_pattern_is_about_some_case_and_where_numbers_are_compared_about_few(name: str) -> None:
    # those of a file that it extends are looked at with that file
    for entry in (entry for entry in load(name).entries if entry.place.startswith(f"{name}.toml,")):
        for pattern, expression in entry.expressions.items():
            found = [id_ for id_ in _ids() if expression.fullmatch(id_)]
            assert found, f"{entry.place}: {pattern}"
            if pattern.startswith(("agreement/", "conservation/")) and (entry.formula, entry.says) == ("", "*"):
                # nothing but the id tells what is excused
                check, rule, *_ = found[0].split("/")
                of_rule = sum(id_.startswith(f"{check}/{rule}/") for id_ in _ids())
                assert 10 * len(found) <= of_rule, f"{entry.place}: {pattern}"


@pytest.mark.parametrize("name", available())
def test_links_of_a_file_go_to_issues_of_its_library(name: str) -> None:
    homes = {
        "autolrp": "Wa-lead/autoLRP",
        "captum": "meta-pytorch/captum",
        "lxt": "rachtibat/LRP-eXplains-Transformers",
        "zennit": "chr5tphr/zennit",
    }
    found = load(name)
    for entry in found.entries:
        assert not entry.link or entry.link.startswith(f"https://github.com/{homes[found.library]}/")


# --- the libraries, on part of the grid -------------------------------------------------------------------------------

#: A layer of each kind that deviates, and everything that needs no layer but takes no time.
PARTS = (
    "agreement/*/linear-5-4/*",
    "conservation/*/linear-5-4/*",
    "agreement/*/batchnorm*",
    "agreement/*/relu/*",
    "errors/*",
    "api/*",
    "second-order/*/linear-5-4/*",
    "conduct/Pass/*",
)
SUBJECTS = {
    "autolrp": "verify.subjects.autolrp",
    "captum": "verify.subjects.captum",
    "lxt": "verify.subjects.lxt",
    "zennit": "zennit.rules",
}


def _subject(name: str) -> Subject:
    # not imported here: subjects.load helps where torchvision, which zennit imports, lacks its operators
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    return load_subject(SUBJECTS[name])


def _ask(subject: Subject, cases: Iterable[Case]) -> tuple[Outcome, ...]:
    return tuple(ask(case, subject, 0, here=False) for case in cases)


def _cases(*parts: str) -> list[Case]:
    # a batched relevance takes captum's process with it, here all tests
    cases = (case for case in all_cases(dtypes=("float64",)) if "/batched-relevance-of/" not in case.id)
    return [case for case in cases if any(fnmatchcase(case.id, part) for part in parts)]


def _unexplained(outcomes: Iterable[Outcome]) -> list[str]:
    return [outcome.id for outcome in outcomes if outcome.verdict in BAD and not is_known(outcome)]


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_failure_of_a_library_is_known(name: str) -> None:
    subject = _subject(name)
    outcomes = _ask(subject, _cases(*PARTS))
    marked, stale = apply(outcomes, load(name, version=subject.version), ids=_ids(), subject=subject)
    assert any(map(is_known, marked))
    assert _unexplained(marked) == []
    assert [str(found) for found in stale] == []


def _planted(subject: Subject, rule: str, change: Callable[[Any], Callable[..., Any]]) -> Subject:
    rules = {name: getattr(subject.namespace, name) for name in RULES if subject.offers(name)}
    rules[rule] = change(rules[rule])
    return replace(subject, namespace=SimpleNamespace(**rules))


def _twice_the_epsilon(rule: Any) -> Callable[..., Any]:
    return lambda epsilon=1e-6, zero_params=None: rule(2 * epsilon, zero_params)


def _half_the_gamma(rule: Any) -> Callable[..., Any]:
    return lambda gamma=0.25, stabilizer=1e-6, zero_params=None: rule(gamma / 2, stabilizer, zero_params)


def _clamps_relevance(rule: Any) -> Callable[..., Any]:
    """Of what comes from above, what is negative is lost."""

    class Clamped(rule):  # type: ignore[misc]
        def register(self, module: torch.nn.Module) -> Any:
            def clamped(_module: torch.nn.Module, _inputs: Any, y: torch.Tensor) -> None:
                y.register_hook(lambda R: R.clamp(min=0))

            handles = super().register(module), module.register_forward_hook(clamped)

            def remove() -> None:
                for handle in handles:
                    handle.remove()

            return SimpleNamespace(remove=remove)

    return Clamped


@pytest.mark.parametrize(
    ("name", "rule", "change", "parts"),
    [
        ("lxt", "Epsilon", _twice_the_epsilon, ("agreement/Epsilon/linear-5-4/*/signed/*",)),
        ("autolrp", "Gamma", _half_the_gamma, ("agreement/Gamma/linear-5-4/*/signed/*",)),
        ("autolrp", "Epsilon", _clamps_relevance, ("conservation/Epsilon/linear-5-4/*/signed/*",)),
        ("captum", "Gamma", _half_the_gamma, ("agreement/Gamma/linear-5-4/*/signed/*",)),
        ("captum", "ZPlus", _clamps_relevance, ("conservation/ZPlus/linear-5-4/*/signed/*",)),
        ("zennit", "WSquare", _clamps_relevance, ("agreement/WSquare/batchnorm1d/*/signed/*",)),
        ("zennit", "Gamma", _half_the_gamma, ("agreement/Gamma/batchnorm1d/*/signed/*",)),
    ],
    ids=lambda value: value.strip("_") if isinstance(value, str) else getattr(value, "__name__", None),
)
def test_another_bug_in_a_rule_that_deviates_is_seen(
    name: str, rule: str, change: Callable[[Any], Callable[..., Any]], parts: tuple[str, ...]
) -> None:
    subject = _subject(name)
    cases = _cases(*parts)
    honest, _ = apply(_ask(subject, cases), load(name), ids=_ids())
    assert any(map(is_known, honest))
    assert _unexplained(honest) == []
    wrong, _ = apply(_ask(_planted(subject, rule, change), cases), load(name), ids=_ids())
    assert _unexplained(wrong) != []


# --- formulas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("formula", sorted(FORMULAS))
def test_formula_gives_the_answer_of_its_library_and_no_other(formula: str) -> None:
    name, part = {
        "unsigned-epsilon": ("lxt", "Epsilon/linear-5-4/*"),
        "positive-weights": ("captum", "ZPlus/linear-5-4/*"),
        "amplified-weights": ("captum", "Gamma/linear-5-4/*"),
        "module-with-changed-parameters": ("zennit", "AlphaBeta/batchnorm1d/*"),
        "zeroed-by-substring": ("zennit", "Gamma/linear-5-4/zero_params=other"),
        "bounds-in-single-precision": ("zennit", "ZBox/linear-5-4/low=-2.1-high=2.6"),
        "bias-by-magnitude": ("autolrp", "Gamma/linear-5-4/*"),
        "stabilizer-counts-twice": ("autolrp", "Bilinear/matmul/*"),
    }[formula]
    outcomes = _ask(_subject(name), _cases(f"agreement/{part}/signed/float64"))
    failing = [outcome for outcome in outcomes if outcome.verdict in BAD]
    assert failing
    for outcome in failing:
        assert gives(formula, outcome)
        off = {**outcome.details["worst entry"]}
        off["got"] += 1e-9 * max(1.0, abs(off["got"]))
        assert not gives(formula, replace(outcome, details={"worst entry": off}))
        assert not gives(formula, replace(outcome, details={}))
        assert not gives(formula, replace(outcome, details={"worst entry": {**off, "got": float("nan")}}))
