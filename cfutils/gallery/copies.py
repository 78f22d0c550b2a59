"""Executed notebooks as HTML: one file each, in the style of the page, without scripts and without a network."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from cfutils import atomic
from cfutils.gallery import formulas, page


class _Renderer(IPythonRenderer):
    """Markdown whose formulas are drawn."""

    def inline_math(self, body: str) -> str:
        return formulas.html(body, block=False)

    def block_math(self, body: str) -> str:
        return formulas.html(body, block=True)


def _markdown(source: str) -> str:
    return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


def write(executed: Path, title: str, folder: Path) -> None:
    """Write an executed notebook as HTML into the folder of copies beside a page.

    What a cell printed is text; HTML that a cell displayed stands as it is, and its scripts do not run.
    """
    node = nbformat.read(executed, as_version=4)
    for cell in node.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.metadata["image/png"] = {"alt": "Figure drawn by the cell above"}
    exporter = HTMLExporter(
        template_name="basic", filters={"markdown2html": _markdown},
        exclude_input_prompt=True, exclude_output_prompt=True,
    )  # fmt: skip
    body, _ = exporter.from_notebook_node(node)
    place = folder / page.COPIES
    place.mkdir(exist_ok=True)
    text = page.ENVIRONMENT.get_template("notebook.html").render(title=title, body=body, page=f"../{page.PAGE}")
    atomic.write_text(place / f"{executed.stem}.html", text)
