"""Executed notebooks as HTML: formulas are drawn, printed text is text, and nothing is loaded or run."""

from __future__ import annotations

import json
import re

import nbformat
import pytest

from cfutils.gallery import copies, formulas
from cfutils.runner.notebook import notebooks
from tests.gallery.conftest import MARKUP, Read

DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGD4DwABBAEAwS2OUAAAAABJRU5ErkJggg=="


@pytest.fixture
def copy(tmp_path) -> str:
    v4 = nbformat.v4
    printed = v4.new_output("stream", text=f"drawn: {MARKUP}\n")
    figure = v4.new_output("display_data", data={"image/png": DOT})
    table = v4.new_output("display_data", data={"text/html": f"<table><tr><td>1</td></tr></table>{MARKUP}"})
    node = v4.new_notebook(cells=[
        v4.new_markdown_cell("# A title\n\nof $x_t$ and `$5`, $\\unknown{1}$"),
        v4.new_code_cell("print(1)  # a comment", outputs=[printed, figure, table]),
    ])  # fmt: skip
    nbformat.write(node, tmp_path / "01_one.ipynb")
    copies.write(tmp_path / "01_one.ipynb", f"01 · One {MARKUP}", tmp_path)
    return (tmp_path / "notebooks" / "01_one.html").read_text(encoding="utf-8")


def test_what_was_printed_is_text_and_what_was_displayed_does_not_run(copy):
    read = Read(copy)
    assert f"drawn: {MARKUP}" in read.text and f"One {MARKUP}" in read.text
    assert len(read.scripts) == 1, "only HTML that a cell displayed on purpose stands as it is"
    policy = next(attrs["content"] for attrs in read.all("meta") if attrs.get("http-equiv"))
    assert "script-src 'none'" in policy and "default-src 'none'" in policy
    assert [attrs["src"][:22] for attrs in read.all("img")] == ["data:image/png;base64,"]
    assert read.all("img")[0]["alt"] and not read.all("link")
    assert {"href": "../index.html"} in read.all("a")


def test_formulas_are_drawn_and_code_is_left_alone(copy):
    assert 'aria-label="x_t"' in copy and "<code>$5</code>" in copy
    assert r"<code>\unknown{1}</code>" in copy


def test_a_formula_on_its_own_line_has_full_fractions():
    inline, block = (formulas.html(r"\frac1N", block=alone) for alone in (False, True))
    height = [float(re.search(r"height:([\d.]+)em", text)[1]) for text in (inline, block)]
    assert height[1] > 1.3 * height[0] and block.startswith('<div class="formula"><svg')


def test_the_name_of_a_formula_is_escaped():
    assert 'aria-label="a &lt; b"' in formulas.html("a < b", block=False)


def test_every_formula_of_the_suite_can_be_drawn():
    missing = []
    for notebook in notebooks():
        for cell in json.loads(notebook.path.read_text(encoding="utf-8"))["cells"]:
            text = re.sub(r"`[^`\n]*`", "", "".join(cell["source"]) if cell["cell_type"] == "markdown" else "")
            for alone, inline in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", text, re.DOTALL):
                if "<svg" not in formulas.html(alone or inline, block=bool(alone)):
                    missing.append(alone or inline)
    assert missing == []
