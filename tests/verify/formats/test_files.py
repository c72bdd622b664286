"""How files are written: whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from verify.formats.files import atomically, check_writable, write


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(b"old")
    path.chmod(0o600)
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_whoever_reads_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        write(path, b"new")
        assert reader.read() == b"old"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_old_file_survives_what_goes_wrong(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomically(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_check_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "run.json")
    assert not list(tmp_path.iterdir())


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link.json", tmp_path / "folder" / "run.json"
    link.symlink_to(target)
    write(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_device_stays_a_device() -> None:
    write(Path(os.devnull), b"new")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@pytest.mark.parametrize(
    "name", ["", "no/such/run.json", "file/run.json", "x" * 300], ids=["folder", "missing", "below a file", "long name"]
)
def test_what_cannot_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"."):
        check_writable(tmp_path / name)
