"""Pages: one style and one escape for all of them; every value that is not of the template is text.

A page asks for nothing from elsewhere: its policy (Content-Security-Policy) lets it run the one script that it was
written with, whose digest it states, and load images.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cfutils import atomic, paths
from cfutils.analysis import plots
from cfutils.analysis.verdicts import VERDICTS
from cfutils.data import own_tasks, skills
from cfutils.gallery import figures, items, runs, samples, tables, tokens
from cfutils.gallery.runs import Part, Run
from cfutils.lab import Lab

if TYPE_CHECKING:
    from cfutils.runner.notebook import Notebook

TEMPLATES = Path(__file__).parent / "templates"
ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False, "ensure_ascii": False}
SCRIPT = "explore.js"
PAGE, COPIES = "index.html", "notebooks"
"""The page of a folder of figures, and the folder of the notebooks as HTML beside it."""


def write(lab: Lab, notebooks: Sequence[Notebook]) -> Path:
    """Write the page of a lab's folder of figures; return its path.

    notebooks: those whose figures and studies it shows. Nothing is built; what there is depends on the folder, the
    store and the shipped results alone, so that the same results give the same page.
    """
    folder = paths.figures(lab.name)
    chosen, n_runs = runs.shown(lab, notebooks)
    changed, drift = items.changed(lab, chosen), tokens.drift(lab, chosen)
    judged, tests = tables.judged(folder)
    script = ENVIRONMENT.get_template(SCRIPT).render().encode()
    atomic.write_text(
        folder / PAGE,
        ENVIRONMENT.get_template("page.html").render(
            title=f"{lab.name}: report and gallery", name=lab.name, profile=lab.profile,
            target=_target(lab), n_runs=n_runs,
            facts=_facts(lab, chosen, n_runs), verdicts=judged, tests=tests, tally=_tally(judged),
            galleries=figures.gathered(folder, notebooks), tables=tables.gathered(folder),
            pools=samples.pools(lab), changed=changed, drift=drift, quoted=_quoted(lab, changed),
            left_out=n_runs - len(chosen),
            chapters=[(one, (folder / COPIES / f"{one.name}.html").is_file()) for one in notebooks],
            copies=COPIES, data={"items": changed.data, "tokens": drift.data},
            script=SCRIPT, digest=base64.b64encode(hashlib.sha256(script).digest()).decode(),
        ),
    )  # fmt: skip
    return folder / PAGE


def _target(lab: Lab) -> str:
    return plots.label(Path(lab.profile.target).name)  # of data of one's own the file's name


def _facts(lab: Lab, chosen: Sequence[Run], n_runs: int) -> list[tuple[str, str]]:
    """Return what the run is about, as pairs of a name and a text."""
    p = lab.profile
    each = f", up to {p.limit:,} items each" if p.limit else ""
    facts = [
        ("base", p.base), ("target", f"{_target(lab)}, {p.n_train:,} items trained on, {p.n_heldout:,} held out"),
        ("retained", f"{', '.join(plots.label(own_tasks.label(name)) for name in p.retained)}{each}"),
        ("runs", f"{n_runs:,} in the studies of these notebooks, {len(chosen):,} different recipes and settings"),
        ("seeds", ", ".join(map(str, p.seeds))),
    ]  # fmt: skip
    return [*facts, ("made", made)] if (made := runs.made(lab, chosen)) else facts


def _tally(judged: Sequence[tables.Verdict]) -> list[tuple[str, int]]:
    """Return how often each verdict was given."""
    found = Counter(one.word for one in judged)
    return [(word, found[word]) for word in VERDICTS if word in found]


def _quoted(lab: Lab, changed: Part) -> list[str]:
    """Return the tasks whose items are quoted and belong to others: benchmarks, not skills or files of one's own."""
    quoted = {task: name for task, name, _, question, *_ in (changed.data or {"items": ()})["items"] if question}
    own = {own_tasks.label(name) for name in lab.profile.retained if own_tasks.is_own(name)}
    return [name for task, name in quoted.items() if task not in own and task not in skills.skills()]
