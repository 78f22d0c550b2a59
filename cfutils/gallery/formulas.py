"""Formulas of notebooks as pictures in the page: drawn by matplotlib's mathtext, so that no page loads a typesetter."""

from __future__ import annotations

import re
from functools import cache
from html import escape

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import TextPath, text_to_path

FONT = FontProperties(family="STIXGeneral", math_fontfamily="stix", size=100)
"""Drawn at 100 units for 1 em, so that whole numbers are exact enough."""
EM = 85
"""Units of the drawing that are one em of the text around it: STIX is smaller than fonts for screens."""
SPELLINGS = (
    (r"\s+", " "),
    (r"\\[bB]ig[lr]?(?![a-z])", ""),
    (r"\\([tl])(frac|Vert)", r"\\\2"),
    (r"\\rVert", r"\\Vert"),
    (r"\\frac ?(\d)([A-Za-z0-9])", r"\\frac{\1}{\2}"),
    (r"\\(sqrt|mathcal|mathbf) ?([A-Za-z0-9])(?![A-Za-z])", r"\\\1{\2}"),
    (r"\\([lg])e(?![a-z])", r"\\\1eq"),
    (r"\\texttt", r"\\mathtt"),
    (r"\\mathbb\{1\}", r"\\mathbf{1}"),
)
"""TeX that mathtext does not know, and how it knows it."""
_LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}


@cache
def html(tex: str, *, block: bool) -> str:
    """Return a formula as an SVG named by its TeX, or the TeX itself where it cannot be drawn.

    tex: without the dollars. block: on a line of its own, with its fractions at full size.
    """
    found = _svg(tex, f"${_spelt(tex, block=block)}$")
    return f'<div class="formula">{found}</div>' if block else found


def _svg(tex: str, spelt: str) -> str:
    name = escape(tex.strip())
    try:
        path = TextPath((0, 0), spelt, prop=FONT)
        width, height, depth = text_to_path.get_text_width_height_descent(spelt, FONT, ismath=True)
    except ValueError:  # of mathtext's parser
        return f"<code>{name}</code>"
    box = f"0 {depth - height:.0f} {width:.0f} {height:.0f}"
    look = f"width:{width / EM:.3f}em;height:{height / EM:.3f}em;vertical-align:{-depth / EM:.3f}em"
    return (
        f'<svg class="formula" role="img" aria-label="{name}" viewBox="{box}" style="{look}">'
        f'<path d="{_drawn(path)}"/></svg>'
    )


def _spelt(tex: str, *, block: bool) -> str:
    for pattern, spelling in SPELLINGS:
        tex = re.sub(pattern, spelling, tex.strip())
    return tex.replace(r"\frac", r"\dfrac") if block else tex


def _drawn(path: Path) -> str:
    """Return a path in SVG's words; its y axis points down."""
    parts = []
    for points, code in path.iter_segments(curves=True, simplify=False):
        ends = " ".join(f"{x:.0f} {-y:.0f}" for x, y in points.reshape(-1, 2))
        parts.append(_LETTERS[code] + ("" if code == Path.CLOSEPOLY else ends))
    return "".join(parts)
