"""What an implementation, a terminal, a disk or a signal may do to the command: its exit status stays true."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, devices and limits of POSIX")

SCRIPT = "from verify.faces import cli; from verify.runs import selection; selection.CASES = '{}:all_cases'; cli.main()"
CASE = "agreement/Epsilon/linear-5-4/default/signed/float64"
FAKES = Path(__file__).parents[1] / "verify" / "fakes"


def begin(hostile: Path, *words: object, source: str = "questions", **environment: str) -> subprocess.Popen[str]:
    """Start the command in a group of its own, as a shell does."""
    path = os.pathsep.join(filter(None, [str(hostile), str(FAKES), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(source), *map(str, words)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def call(hostile: Path, *words: object, source: str = "questions", **environment: str) -> tuple[int | None, str, str]:
    """Run it to its end."""
    with begin(hostile, *words, source=source, **environment) as process:
        out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.parametrize(("name", "workers"), [("raises_system_exit", 0), ("exits_with_0", 0), ("exits_with_0", 1)])
def test_a_subject_that_ends_in_a_case_fails_the_run(name: str, workers: int, hostile: Path) -> None:
    status, out, _ = call(hostile, "--subject", f"rules:{name}", "--workers", workers)
    assert status == 1
    assert "FAILED: 2 cases" in out


@pytest.mark.parametrize(
    ("statement", "workers"),
    [("import sys; sys.exit(0)", 1), ("import os; os._exit(0)", 0), ("raise BaseException", 1)],
    ids=["sys.exit", "os._exit", "BaseException"],
)
def test_a_subject_that_ends_when_it_is_imported_cannot_be_used(
    statement: str, workers: int, hostile: Path, tmp_path: Path
) -> None:
    (tmp_path / "ending.py").write_text(statement, encoding="utf-8")
    path = os.pathsep.join([str(hostile), str(tmp_path), os.environ.get("PYTHONPATH", "")])
    status, out, err = call(hostile, "--subject", "ending", "--workers", workers, PYTHONPATH=path)
    assert status == 2
    assert err.startswith("lrp-verify: 'ending' ")
    assert not out


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGHUP, 0)], ids=["SIGTERM", "SIGHUP"])
def test_a_signal_that_ends_the_command_leaves_the_report(
    workers: int, number: signal.Signals, hostile: Path, tmp_path: Path
) -> None:
    started, path = tmp_path / "started", tmp_path / "run.json"
    words = ["--subject", "behaving", "--check", "passes,hangs", "--dtype", "float64", "--workers", workers]
    words += ["--time-limit", 900, "--json", path]
    with begin(hostile, *words, source="behaving", BEHAVING_STARTED=str(started)) as process:
        try:
            while process.poll() is None and not (started.exists() and started.read_text()):
                time.sleep(0.05)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "INTERRUPTED: " in out
    assert "Traceback" not in err
    assert json.loads(path.read_text())["summary"]["interrupted"]


def test_a_terminal_that_knows_ascii_alone_and_has_20_columns(hostile: Path) -> None:
    words = ["--subject", "rules:raises_megabytes", "--workers", 0, "--case", CASE]
    status, out, err = call(hostile, *words, PYTHONIOENCODING="ascii", COLUMNS="20", NO_COLOR="1", TERM="dumb")
    assert status == 1
    assert "FAILED" in out
    assert out.isascii()
    assert "Traceback (most recent call last)" not in err


def test_a_full_disk_is_no_pass(hostile: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("the system has no /dev/full")
    words = ["--subject", "lrp_rules", "--workers", 0, "--json", "/dev/full"]
    status, out, err = call(hostile, *words)
    assert status == 2
    assert "PASSED: 2 cases" in out
    assert "--json /dev/full could not be written: No space left on device" in err


#: Terminal escapes, the end of CDATA, a script, a bar, a newline.
NAME = "\x1b[31mred ]]> <script>alert(1)</script> | & \n two"


def test_names_are_data_in_every_file(hostile: Path, tmp_path: Path) -> None:
    (tmp_path / "named.py").write_text(
        f"import lrp_rules\n__version__ = {NAME!r}\n"
        f"class Epsilon(lrp_rules.Epsilon):\n    def register(self, module): raise ValueError({NAME!r})\n",
        encoding="utf-8",
    )
    files = {name: tmp_path / f"run.{name}" for name in ("json", "junit", "markdown")}
    words = [word for name, path in files.items() for word in (f"--{name}", path)]
    path = os.pathsep.join([str(hostile), str(tmp_path), os.environ.get("PYTHONPATH", "")])
    status, out, _ = call(hostile, "--subject", "named", "--workers", 0, *words, PYTHONPATH=path)
    assert status == 1
    assert "\x1b" not in out
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    assert all("\x1b" not in text for text in texts.values())
    assert json.loads(texts["json"])["summary"]["failures"] == 1
    ET.fromstring(texts["junit"])  # noqa: S314  our own
    assert "<script" not in texts["markdown"]
    assert "<script" not in texts["junit"]


def test_nothing_is_asked_of_a_network(hostile: Path, tmp_path: Path) -> None:
    # in every process of the run, from its first line on
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.bind', 'socket.sendto'):\n"
        "        with open(os.environ['SEEN'], 'a') as file: print(event, arguments, file=file)\n"
        "sys.addaudithook(hook)\n"
        "with open(os.environ['SEEN'] + '.started', 'a') as file: print(os.getpid(), file=file)\n",
        encoding="utf-8",
    )
    seen, path = tmp_path / "seen", os.pathsep.join([str(tmp_path), str(hostile), os.environ.get("PYTHONPATH", "")])
    status, out, _ = call(hostile, "--subject", "lrp_rules", "--workers", 1, PYTHONPATH=path, SEEN=str(seen))
    assert status == 0, out
    assert "Tested: lrp_rules " in out
    assert len((tmp_path / "seen.started").read_text().split()) >= 2
    assert not seen.exists(), seen.read_text()
