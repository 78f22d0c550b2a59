"""Disks that are full or cannot be written, and paths that are not what they should be: one line, nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time

import pytest

from cfutils.__main__ import main
from cfutils.errors import disk_full
from tests.adapt.conftest import ARGV, Adapt


def one_line(said: str) -> str:
    """The one line of an error."""
    assert said.startswith("cfutils: error: ") and said.count("\n") == 1, said
    return said


@pytest.fixture
def mounted(tmp_path):
    """Mount a file system of memory, of so many MB; needs root."""
    places = []

    def mount(name: str, *, mb: int):
        place = tmp_path / name
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mb}m", "tmpfs", place], capture_output=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here ({done.stderr.decode().strip()})")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def read_only(tmp_path, mounted):
    """A folder that cannot be written, by root neither."""
    if os.geteuid():
        place = tmp_path / "read-only"
        place.mkdir(mode=0o555)
        return place
    place = mounted("read-only", mb=100)
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    return place


def fill(folder, *, leave: int = 0) -> None:
    """Take what room a file system has but for some bytes."""
    room = os.statvfs(folder)
    with open(folder / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_the_work_goes_on(adapted, tmp_path, mounted):
    one = Adapt(tmp_path / "full")
    one.runs = mounted("runs", mb=200)
    process = one.start()
    while not any(one.runs.glob("tuned/.work-*")):
        assert process.poll() is None
        time.sleep(0.002)
    fill(one.runs, leave=100_000)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "No space left on device: " in one_line(said) and "give the same command again" in said
    (one.runs / "filler").unlink()
    assert one.run() == (0, "")
    assert one.delivered() == adapted.delivered()


@pytest.mark.slow
def test_weights_that_a_disk_takes_no_more(adapted, tmp_path):
    """The limit of a file's size, which any user may set: safetensors, no error of Python's own, finds it."""
    one = Adapt(tmp_path / "limited")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))  # noqa: E731
    shutil.copytree(adapted.runs / "base", one.runs / "base")
    code, said = one.run(preexec_fn=limit)
    assert code == 2 and "File too large: " in one_line(said)
    assert one.run() == (0, "")
    assert one.delivered() == adapted.delivered()


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_model_is_delivered(adapted, tmp_path, mounted):
    """What was delivered before stays; the artifacts do too."""
    one = Adapt(tmp_path / "late")
    one.runs, place = adapted.runs, mounted("out", mb=50)
    shutil.copytree(one.out, place / "out")
    shutil.rmtree(one.out)
    one.out.symlink_to(place / "out")
    (place / "out" / "model").mkdir()
    (place / "out" / "model" / "before").touch()
    fill(place, leave=1_000_000)
    code, said = one.run()
    assert code == 2 and "model.part/" in one_line(said) and "No space left on device" in said
    assert [path.name for path in (one.out / "model").iterdir()] == ["before"] and not (one.out / "model.part").exists()
    (place / "filler").unlink()
    assert one.run() == (0, "")
    assert one.delivered() == adapted.delivered()


def test_other_errors_are_no_full_disk():
    from safetensors import SafetensorError

    assert disk_full(OSError(28, "No space left on device")) == "No space left on device"
    assert disk_full(SafetensorError("I/O error: No space left on device (os error 28)")) == "No space left on device"
    for error in (OSError(13, "Permission denied"), ValueError("28"), SafetensorError("I/O error (os error 2)")):
        assert disk_full(error) is None


def adapt(capsys, **changes: str) -> str:
    """Give the command with other options; return the one line that it says."""
    argv = list(ARGV)
    for name, value in changes.items():
        argv[argv.index(f"--{name}") + 1] = value
    assert main(argv) == 2
    return one_line(capsys.readouterr().err)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with data in it, to work in."""
    one = Adapt(tmp_path / "here")
    shutil.rmtree(one.out)
    monkeypatch.chdir(one.folder)
    monkeypatch.setenv("CFUTILS_RUNS", str(one.runs))
    return one


def test_a_folder_that_cannot_be_written(folder, read_only, capsys):
    for out in (read_only, read_only / "deeper" / "out"):
        said = adapt(capsys, out=str(out))
        assert "out = " in said and f"a folder that can be written ({read_only} cannot)" in said
    assert not folder.runs.exists()


def test_artifacts_that_cannot_be_written(folder, read_only, capsys, monkeypatch):
    for runs in (read_only, read_only / "runs"):
        monkeypatch.setenv("CFUTILS_RUNS", str(runs))
        said = adapt(capsys)
        assert str(read_only) in said and ("Read-only file system" in said or "Permission denied" in said)
        assert not folder.out.exists()


def test_a_file_in_the_place_of_the_folder(folder, capsys):
    folder.out.write_text("my thesis")
    for out in ("out", "out/deeper"):
        assert f"out = {out!r} is not allowed: a folder" in adapt(capsys, out=out)
    assert folder.out.read_text() == "my thesis" and not folder.runs.exists()


@pytest.mark.parametrize("name, content", [
    ("nothing.jsonl", None), ("empty.jsonl", b""), ("image.jsonl", b"\x89PNG\r\n\x1a\n\x00\x00"),
    ("half.jsonl", b'{"prompt": "a", '), ("list.json", b"[1, 2]"), ("other.csv", b"a,b\n1,2\n"),
    ("no.parquet", b"PAR1 but not really"), ("mine.exe", b"MZ"),
])  # fmt: skip
def test_a_wrong_file(folder, capsys, name, content):
    if content is not None:
        (folder.folder / name).write_bytes(content)
    adapt(capsys, data=name)
    assert not folder.out.exists() and not folder.runs.exists()
