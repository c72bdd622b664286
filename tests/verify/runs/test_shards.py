"""Shards: together they are one run, and nothing that is not together passes for one."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from junitparser import JUnitXml
from typer.testing import CliRunner, Result

from verify.faces import cli
from verify.reports import export
from verify.runs import selection
from verify.runs.selection import UnusableError
from verify.runs.shards import deal, parse
from verify.runs.worker import Source

FAKES = Path(__file__).parents[1] / "fakes"
CHECKS = "passes,raises,is_far_off,is_advised,missing,gives_arrays,prints"
Damage = Callable[[dict[str, Any]], object]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.syspath_prepend(FAKES)
    monkeypatch.setattr(selection, "CASES", "behaving:all_cases")
    monkeypatch.setenv("COLUMNS", "100")
    return lambda *words: CliRunner().invoke(cli.app, [*map(str, words)], catch_exceptions=False)


@pytest.fixture
def shards(command: Callable[..., Result], tmp_path: Path) -> list[Path]:
    """Run three shards, and return their files."""
    paths = [tmp_path / f"{k}.json" for k in (1, 2, 3)]
    for k, path in enumerate(paths, 1):
        words = ["--subject", "behaving", "--workers", 0, "--check", CHECKS, "--shard", f"{k}/3", "--json", path]
        assert command(*words).exit_code in {0, 1}
    return paths


# --- dealing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_every_case_is_in_one_shard_and_checks_are_spread(of: int) -> None:
    cases = list(Source(("float64", "float32")).cases().values())
    dealt = [deal(cases, number, of) for number in range(1, of + 1)]
    place = {case.id: index for index, case in enumerate(cases)}
    assert sorted(place[case.id] for shard in dealt for case in shard) == list(range(len(cases)))
    for shard in dealt:
        assert [case.id for case in shard] == sorted((case.id for case in shard), key=place.__getitem__)
    for check in {case.check for case in cases}:
        counts = [Counter(case.check for case in shard)[check] for shard in dealt]
        assert max(counts) - min(counts) <= 1
    for dtype in ("float64", "float32"):  # which alternate in the order of cases
        assert all(sum(case.dtype == dtype for case in shard) > len(shard) / 3 for shard in dealt)


def test_dealing_does_not_depend_on_the_order_of_cases() -> None:
    cases = list(Source(("float64",)).cases().values())
    assert {case.id for case in deal(cases, 2, 3)} == {case.id for case in deal(cases[::-1], 2, 3)}


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/", "/2", "a/b", "-1/2", "1/2/3", "1.0/2"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UnusableError, match="expected K/N"):
        parse(text)


def test_more_shards_than_cases(command: Callable[..., Result]) -> None:
    result = command("--check", "particular", "--shard", "3/3", "--list")
    assert result.exit_code == 2
    assert "there are only 2 cases" in result.stderr


# --- merging ----------------------------------------------------------------------------------------------------------


def _without_time(whole: dict[str, Any]) -> dict[str, Any]:
    for case in whole["cases"]:
        del case["seconds"]
        case["details"].pop("traceback", None)  # it names lines of the command
    del whole["summary"]["seconds"], whole["environment"]["date"]
    return whole


def _output(text: str) -> str:
    return re.sub(r"[0-9.]+ s\b", "", text)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)], ids=["in order", "in another order"])
def test_the_report_is_that_of_one_run(
    order: tuple[int, ...], command: Callable[..., Result], shards: list[Path], tmp_path: Path
) -> None:
    files = [
        [f"--{name}", tmp_path / f"{run}.{name}"] for run in ("one", "all") for name in ("json", "junit", "markdown")
    ]
    one = command("--subject", "behaving", "--workers", 0, "--check", CHECKS, *sum(files[:3], []))  # noqa: RUF017  few
    merged = command("merge", *(shards[i] for i in order), *sum(files[3:], []))  # noqa: RUF017  few
    assert one.exit_code == merged.exit_code == 1
    assert _output(merged.stdout) == _output(one.stdout)
    read = {run: json.loads((tmp_path / f"{run}.json").read_text()) for run in ("one", "all")}
    assert _without_time(read["all"]) == _without_time(read["one"])
    assert _output((tmp_path / "all.markdown").read_text()) == _output((tmp_path / "one.markdown").read_text())
    xml = [JUnitXml.fromfile(str(tmp_path / f"{run}.junit")) for run in ("one", "all")]
    assert [[case.name for case in suite] for suite in xml[0]] == [[case.name for case in suite] for suite in xml[1]]
    assert [(x.tests, x.failures, x.errors, x.skipped) for x in xml[:1]] == [
        (x.tests, x.failures, x.errors, x.skipped) for x in xml[1:]
    ]


def test_shards_that_hold_make_a_run_that_holds(command: Callable[..., Result], tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.json" for k in (1, 2)]
    for k, path in enumerate(paths, 1):
        command("--subject", "behaving", "--workers", 0, "--check", "passes", "--shard", f"{k}/2", "--json", path)
    result = command("merge", *paths, "--json", "-", "--quiet")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["summary"]["passed"]
    first, second = result.stderr.splitlines()
    assert first.startswith("Tested: behaving unknown version; ")
    assert second.startswith("PASSED: 2 cases in ")


def test_a_shard_that_was_interrupted_makes_a_run_that_was(command: Callable[..., Result], shards: list[Path]) -> None:
    def interrupt(whole: dict[str, Any]) -> None:
        whole["summary"]["interrupted"] = True
        del whole["cases"][2:]

    _change(shards[1], interrupt)
    result = command("merge", *shards)
    assert result.exit_code == 130
    assert "INTERRUPTED: " in result.stdout


def _change(path: Path, damage: Damage) -> None:
    whole = json.loads(path.read_text())
    damage(whole)
    path.write_text(json.dumps(whole))


def _set(part: str, name: str, value: Any) -> Damage:
    return lambda whole: whole[part].__setitem__(name, value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(_set("environment", "lrp-rules", "9"), "its version of lrp-rules is 9, not ", id="package"),
        pytest.param(_set("environment", "torch", "9"), "its version of torch is 9, not ", id="torch"),
        pytest.param(_set("subject", "spec", "other"), "its subject is other, not behaving", id="subject"),
        pytest.param(
            _set("subject", "version", "9"), "its version of the subject is 9, not ", id="version of the subject"
        ),
        pytest.param(_set("shard", "corpus", "abc"), "its list of cases is abc, not ", id="corpus"),
        pytest.param(_set("shard", "of", 4), "its number of shards is 4, not 3", id="shards"),
        pytest.param(_set("call", "seed", 7), "its seed is 7, not 0", id="seed"),
        pytest.param(
            _set("call", "dtypes", ["float16"]), "its list of dtypes is float16, not float64, float32", id="dtypes"
        ),
        pytest.param(_set("call", "device", "cuda"), "its device is cuda, not cpu", id="device"),
        pytest.param(_set("call", "strict", True), "its strictness is True, not False", id="strict"),
        pytest.param(_set("call", "time_limit", 1.0), "its time limit is 1.0, not 20.0", id="time limit"),
        pytest.param(
            lambda whole: whole.update(schema="lrp-verify/0"),
            "has the schema 'lrp-verify/0'; expected 'lrp-verify/4'",
            id="schema",
        ),
        pytest.param(lambda whole: whole["cases"].pop(), "it was cut or changed", id="a case less"),
        pytest.param(
            lambda whole: whole.pop("cases"), "is not as lrp-verify --json writes it: KeyError: 'cases'", id="no cases"
        ),
        pytest.param(
            lambda whole: whole["cases"][0].update(verdict="good"),
            "is not as lrp-verify --json writes it: ValueError",
            id="verdict",
        ),
        pytest.param(
            lambda whole: whole["cases"][0].update(id="other"),
            "do not add up to the cases of one run",
            id="another case",
        ),
        pytest.param(
            lambda whole: whole["cases"][0].update(more=1),
            "is not as lrp-verify --json writes it: TypeError",
            id="unknown field",
        ),
        pytest.param(
            lambda whole: whole.update(call=[]), "is not as lrp-verify --json writes it: TypeError", id="no call"
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(
    damage: Damage, says: str, command: Callable[..., Result], shards: list[Path]
) -> None:
    _change(shards[1], damage)
    result = command("merge", *shards)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not result.stdout


def test_an_incomplete_set_is_refused(command: Callable[..., Result], shards: list[Path]) -> None:
    result = command("merge", shards[1])
    assert result.exit_code == 2
    assert result.stderr == "lrp-verify: the set of shards is incomplete: 1/3, 3/3 missing\n"


@pytest.mark.parametrize("same", [True, False], ids=["one file twice", "a copy"])
def test_a_shard_given_twice_is_refused(same: bool, command: Callable[..., Result], shards: list[Path]) -> None:
    again = shards[0]
    if not same:
        again = shards[0].with_name("again.json")
        again.write_bytes(shards[0].read_bytes())
    result = command("merge", *shards, again)
    assert result.exit_code == 2
    assert f"{again} is shard 1/3 again" in result.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is no JSON, or only the beginning of it"),
        (b'{"schema": "lrp-verify/4", "cas', "is no JSON, or only the beginning of it"),
        (b"\xff\xfe", "is no JSON, or only the beginning of it"),
        (b"[]", "has the schema None"),
    ],
    ids=["missing", "empty", "cut", "binary", "other"],
)
def test_what_cannot_be_read_is_refused(
    content: bytes | None, says: str, command: Callable[..., Result], shards: list[Path]
) -> None:
    shards[2].unlink()
    if content is not None:
        shards[2].write_bytes(content)
    result = command("merge", *shards)
    assert result.exit_code == 2
    assert f"{shards[2]} {says}" in result.stderr


def test_a_whole_run_is_a_set_of_one_shard(command: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    command("--subject", "behaving", "--workers", 0, "--check", "passes", "--json", path)
    assert command("merge", path).exit_code == 0


@pytest.mark.parametrize(
    "words", [["merge"], ["merge", "--no-such-option"], ["--seed", "3", "merge", "x.json"], ["urge"]]
)
def test_unusable_call(words: list[str], command: Callable[..., Result]) -> None:
    assert command(*words).exit_code == 2


def test_a_file_that_cannot_be_written_is_refused(command: Callable[..., Result], shards: list[Path]) -> None:
    result = command("merge", *shards, "--junit", "no/such/folder")
    assert result.exit_code == 2
    assert "--junit no/such/folder cannot be written" in result.stderr


def test_the_file_of_a_shard_follows_the_schema(shards: list[Path]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for number, path in enumerate(shards, 1):
        whole = json.loads(path.read_text())
        jsonschema.validate(whole, json.loads(export.SCHEMA_FILE.read_text(encoding="utf-8")))
        assert (whole["shard"]["number"], whole["shard"]["of"]) == (number, 3)


def test_known_deviations_are_judged_over_all_shards(
    command: Callable[..., Result], shards: list[Path], tmp_path: Path
) -> None:
    """A shard cannot tell whether an entry is stale, since the cases of it may be in another."""
    entries = {"raises/*": "error", "{returns_a_wrong_shape,is_far_off}/*": "fail", "passes/*": "fail"}
    path = tmp_path / "known.toml"
    lines = [
        f'[[deviation]]\npattern = "{pattern}"\nverdict = "{verdict}"\nsays = "*"\nreason = "so it is"\n'
        for pattern, verdict in entries.items()
    ]
    path.write_text('library = "behaving"\nversions = ["0", "9"]\n' + "\n".join(lines))
    result = command("merge", *shards, "--deviations", path)
    assert result.exit_code == 1
    assert "passes/*" in result.stdout
    assert "4 known deviations" in result.stdout
    path.write_text(path.read_text().replace(lines[-1], ""))
    result = command("merge", *shards, "--deviations", path, "--json", tmp_path / "all.json")
    assert "passes/*" not in result.stdout
    assert json.loads((tmp_path / "all.json").read_text())["summary"]["failures"] == 0
    assert command("merge", *shards, "--deviations", "no such file").exit_code == 2


# --- what explains failures -------------------------------------------------------------------------------------------


def _diagnosis(*names: str, layers: Sequence[str] = ()) -> dict[str, Any]:
    variants = [{"name": name, "sentence": f"{name} it is", "seen": "", "published": False} for name in names]
    told = {"variants": variants, "failing": 2, "passing": 3, "layers": list(layers), "sentence": ""}
    return {"rule": "Epsilon", "level": "must", **told}


@pytest.mark.parametrize(
    ("parts", "names", "layers"),
    [
        ([_diagnosis("a")] * 3, ["a"], []),
        ([_diagnosis("a", "b"), _diagnosis("b"), _diagnosis("c", "b")], ["b"], []),
        ([_diagnosis("a", layers=["x", "y"]), _diagnosis("a", layers=["y"]), _diagnosis("a")], ["a"], ["x", "y"]),
        ([_diagnosis("a"), _diagnosis("b"), _diagnosis("a")], None, None),
        ([_diagnosis("a"), _diagnosis("a"), None], None, None),
    ],
    ids=["same", "what is left", "layers", "contradiction", "one shard is not explained"],
)
def test_what_explains_every_shard_explains_the_run(
    parts: list[dict[str, Any] | None],
    names: list[str] | None,
    layers: list[str] | None,
    command: Callable[..., Result],
    shards: list[Path],
) -> None:
    def explain(whole: dict[str, Any], one: dict[str, Any] | None) -> None:
        for case in whole["cases"]:
            case["check"] = "agreement"
        whole["diagnoses"] = [one] if one else []

    for path, one in zip(shards, parts, strict=True):
        _change(path, partial(explain, one=one))
    found = json.loads(command("merge", *shards, "--json", "-").stdout)["diagnoses"]
    assert [[known["name"] for known in one["variants"]] for one in found] == ([] if names is None else [names])
    for one in found:
        assert (one["layers"], one["failing"], one["passing"]) == (layers, 6, 9)


def test_notes_and_stale_entries_are_kept_once(command: Callable[..., Result], shards: list[Path]) -> None:
    for number, path in enumerate(shards):
        stale = ["all", f"of {number}"]
        _change(path, partial(dict.update, notes=["of another version"], stale=stale))
    whole = json.loads(command("merge", *shards, "--json", "-").stdout)
    assert (whole["notes"], whole["stale"]) == (["of another version"], ["all", "of 0", "of 1", "of 2"])
    assert not whole["summary"]["passed"]
