"""Digests of code that follow meaning and imports, not comments and layout."""

from __future__ import annotations

import importlib

import pytest

from cfutils.digests import digest
from cfutils.pipeline import provenance

PLAIN = "RATE = 3\n\n\ndef f(x):\n    return x + 1\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules of a package `tinypack`; returns the code digest of one of them."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tinypack").mkdir()
    (tmp_path / "tinypack" / "__init__.py").touch()

    def write(module="a", **sources):
        for name, source in sources.items():
            (tmp_path / "tinypack" / f"{name}.py").write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        for cached in (provenance.code_digest, provenance.imports, provenance.source_digest,
                       provenance._find):  # fmt: skip
            cached.cache_clear()
        return provenance.code_digest(f"tinypack.{module}")

    return write


def test_comments_docstrings_and_blank_lines_do_not_count(package):
    plain = package(a=PLAIN)
    told = '"""Doc."""\n\nRATE = 3  # why\n"""What it is."""\n\n\ndef f(x):\n    """Add."""\n\n'
    assert package(a=told + "    return x + 1\n") == plain


@pytest.mark.parametrize(
    "source",
    [
        PLAIN.replace("3", "4"),
        PLAIN.replace("x + 1", "x + 2"),
        PLAIN.replace("x", "y"),
        PLAIN.replace("    return", "    print('#')\n    return"),
    ],
)
def test_a_change_of_code_counts(package, source):
    assert package(a=PLAIN) != package(a=source)


def test_a_hash_sign_in_a_text_is_no_comment(package):
    assert package(a="X = '#1'\n") != package(a="X = '#2'\n")


def test_imports_count_however_indirect_and_wherever_they_are(package):
    """a imports b in a function, b imports c; d is nobody's, and e is for type checkers alone."""
    sources = {
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tinypack import e\n"
             "def f():\n    from tinypack.b import g\n    return g\n",
        "b": "from . import c\ng = c.h\n", "c": "h = 1\n", "d": "i = 1\n", "e": "j = 1\n",
    }  # fmt: skip
    before = package(**sources)
    assert provenance.closure("tinypack.a") == {f"tinypack{x}" for x in ("", ".a", ".b", ".c")}
    assert package(d="i = 2\n", e="j = 2\n") == before
    assert package(c="h = 2\n") != before


def test_a_builder_counts_what_it_computes_with_and_not_what_keeps_it():
    found = provenance.closure("cfutils.pipeline.builders.tuning")
    assert {"cfutils.training.trainer", "cfutils.training.losses", "cfutils.models.packing"} <= found
    assert not {"cfutils.pipeline.store", "cfutils.lab", "cfutils.evaluation.scores"} & found


def test_a_function_without_a_source_file_has_a_digest_too():
    assert provenance.code_digest("no_such_module") == digest({})
