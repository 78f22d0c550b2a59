"""A file, or a folder, is there whole or not at all."""

from __future__ import annotations

import pytest

from cfutils import atomic


def test_a_file_takes_the_place_of_the_one_before(tmp_path):
    path = tmp_path / "a.json"
    for text in ("one", "zwei ä"):
        atomic.write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_file_before_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(error), atomic.replacing(path) as part:
        part.write_text("ha")
        assert path.read_text() == "before"
        raise error
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_a_kill_has_left_is_written_over(tmp_path):
    (tmp_path / "a.json.part").write_text("half of something long")
    atomic.write_text(tmp_path / "a.json", "whole")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    (tmp_path / "model.part").mkdir()
    (tmp_path / "model.part" / "of-a-kill").touch()
    with atomic.replacing_folder(tmp_path / "model") as part:
        (part / "new").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/new"]
    with pytest.raises(KeyboardInterrupt), atomic.replacing_folder(tmp_path / "model") as part:
        (part / "half").touch()
        raise KeyboardInterrupt
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/new"]
