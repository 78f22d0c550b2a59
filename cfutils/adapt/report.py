"""report.html: recommendation, figure, tables and samples in one file that needs no other; all texts are escaped."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from cfutils import atomic
from cfutils.adapt import deliver
from cfutils.analysis import plots, recommend
from cfutils.gallery.page import ENVIRONMENT
from cfutils.profiles import Profile

PAGE = """{% extends "layout.html" %}
{% block body %}<main class="report">
<h1>{{ title }}</h1>
{% for line in reasons %}<p class="lead">{{ line }}</p>{% endfor %}
<h2>All runs</h2>
<img alt="Drop of every run with its interval" src="data:image/png;base64,{{ figure }}">
<div class="scroll"><table><tr>{% for name in header %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr{% if row.chosen %} class="chosen"{% endif %}>{% for cell in row.cells %}<td>{{ cell }}</td>
{% endfor %}</tr>{% endfor %}</table></div>
<p>Target: {{ metric }}. Drop from the base in {{ unit }}; above 0 is worse. Learned less: its target score is below
that of plain fine-tuning by more than the window within which scores count as equal, and it learned less than 95 % of
what plain fine-tuning did.</p>
<h2>Task by task, the recommended run</h2>
<div class="scroll"><table>
<tr><th>task</th><th>metric</th><th>base</th><th>tuned</th><th>drop [95 %]</th><th>items</th></tr>
{% for cells in tasks %}<tr>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table></div>
<h2>Data and time</h2><ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
<h2>What the base says, given its start token alone</h2>
<p>Samples like these were replayed.</p>
{% for text in samples %}<pre>{{ text }}</pre>{% endfor %}
</main>{% endblock %}
"""
"""In the layout and style of the gallery's pages."""


def write(
    path: Path, profile: Profile, table: pd.DataFrame, items: pd.DataFrame, notes: list[str], samples: pd.DataFrame
) -> None:
    """Write the report. table: of `recommend.compare`; items: what it was made of; samples: of the Lab, with texts."""
    plots.style()
    page = ENVIRONMENT.from_string(PAGE).render(
        title=f"{profile.about}: what it learned and what it forgot",
        reasons=recommend.reasons(table), figure=_png(plots.run_choice(table)[0]),
        header=recommend.HEADER, metric=table["target_metric"].iloc[0], unit=deliver.UNITS[table["metric"].iloc[0]],
        rows=[{"chosen": row["recommended"], "cells": recommend.cells(row)} for _, row in table.iterrows()],
        tasks=_tasks(table, items), notes=notes, samples=samples["text"].tolist(),
    )  # fmt: skip
    atomic.write_text(path, page)


def _png(fig: Figure) -> str:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def _tasks(table: pd.DataFrame, items: pd.DataFrame) -> list[list[str]]:
    """Return rows of the recommended run's tasks: right answers and bits per byte."""
    drops = deliver.tasks(table, items)
    kept = drops[(drops["group"] == "retained") & drops["metric"].isin(["acc", "bpb_gold"])]
    return [
        [plots.label(row["task"]), plots.label(row["metric"]), f"{row['base']:.3f}", f"{row['tuned']:.3f}",
         f"{row['drop']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]", f"{row['n']:.0f}"]
        for row in kept.to_dict("records")
    ]  # fmt: skip
