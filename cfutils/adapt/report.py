"""report.html: recommendation, figure, tables and samples in one file that needs no other; all texts are escaped."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure

from cfutils.adapt.deliver import UNITS
from cfutils.analysis import forgetting, plots, recommend
from cfutils.profiles import Profile

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .8rem; text-align: left }
tr.chosen { background: #e7f3ee; font-weight: 600 }
img { max-width: 100% } pre { white-space: pre-wrap; background: #f5f5f5; padding: .6rem; margin: .4rem 0 }
.lead { font-size: 1.1rem }
</style></head><body>
<h1>{{ title }}</h1>
{% for line in reasons %}<p class="lead">{{ line }}</p>{% endfor %}
<h2>All runs</h2>
<img alt="Drop of every run with its interval" src="data:image/png;base64,{{ figure }}">
<table><tr>{% for name in header %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr{% if row.chosen %} class="chosen"{% endif %}>{% for cell in row.cells %}<td>{{ cell }}</td>
{% endfor %}</tr>{% endfor %}</table>
<p>Target: {{ metric }}. Drop from the base in {{ unit }}; above 0 is worse. Learned less: its target score is below
that of plain fine-tuning by more than the window within which scores count as equal, and it learned less than 95 % of
what plain fine-tuning did.</p>
<h2>Task by task, the recommended run</h2>
<table><tr><th>task</th><th>metric</th><th>base</th><th>tuned</th><th>drop [95 %]</th><th>items</th></tr>
{% for cells in tasks %}<tr>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
<h2>Data and time</h2><ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
<h2>What the base says, given its start token alone</h2>
<p>Samples like these were replayed.</p>
{% for text in samples %}<pre>{{ text }}</pre>{% endfor %}
</body></html>
"""


def write(
    path: Path, profile: Profile, table: pd.DataFrame, items: pd.DataFrame, notes: list[str], samples: pd.DataFrame
) -> None:
    """Write the report. table: of `recommend.compare`; items: what it was made of; samples: of the Lab, with texts."""
    plots.style()
    page = Environment(autoescape=True).from_string(PAGE).render(
        title=f"{profile.about}: what it learned and what it forgot",
        reasons=recommend.reasons(table), figure=_png(plots.run_choice(table)[0]),
        header=recommend.HEADER, metric=table["target_metric"].iloc[0], unit=UNITS[table["metric"].iloc[0]],
        rows=[{"chosen": row["recommended"], "cells": recommend.cells(row)} for _, row in table.iterrows()],
        tasks=_tasks(table, items), notes=notes, samples=samples["text"].tolist(),
    )  # fmt: skip
    half = path.with_name(f".{path.name}.work")
    half.write_text(page, encoding="utf-8")
    half.replace(path)


def _png(fig: Figure) -> str:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def _tasks(table: pd.DataFrame, items: pd.DataFrame) -> list[list[str]]:
    """Return rows of the recommended run's tasks: right answers and bits per byte."""
    own = table[table["recommended"]].iloc[0]
    mine = items["recipe"].eq(own["recipe"])
    for setting in forgetting.SETTINGS:
        mine &= items[setting].isna() if pd.isna(own[setting]) else items[setting].eq(own[setting])
    drops = forgetting.pooled(items[mine | items["recipe"].eq("base")])
    kept = drops[(drops["group"] == "retained") & drops["metric"].isin(["acc", "bpb_gold"])]
    return [
        [plots.label(row["task"]), plots.label(row["metric"]), f"{row['base']:.3f}", f"{row['tuned']:.3f}",
         f"{row['drop']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]", f"{row['n']:.0f}"]
        for row in kept.to_dict("records")
    ]  # fmt: skip
