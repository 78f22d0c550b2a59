"""`cfutils paper`: numbers that a paper states, beside those of a profile with their intervals.

The file has one row per number: system (a profile's name, or its base), method (a recipe's name, or base), ability
(target, retained or probe), task, metric (acc, exact_match, bpb_gold, ... in the suite's units: a share and not per
cent), value, page, note. data/paper_numbers.csv ships with this header and without rows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cfutils import paths, profiles, recipes
from cfutils.errors import UserError, invalid_value
from cfutils.pipeline.steps import GROUPS, Steps
from cfutils.pipeline.store import Store
from cfutils.profiles import Profile
from cfutils.runner.jobs import store_of
from cfutils.runner.terminal import table

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("system", "method", "ability", "task", "metric", "value", "page", "note")
SHARES = ("acc", "acc_norm", "exact_match", "em", "f1")
"""Metrics that lie between 0 and 1."""
NONE_SHIPPED = (
    "data/paper_numbers.csv holds no numbers: none of the paper's could be read when it was written. Fill in a copy, "
    "one row per number, and name it: cfutils paper PROFILE FILE"
)


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command by `command(name, about, call, epilog=...)`."""
    parser = command("paper", "Show numbers that a paper states beside a profile's own, with intervals.", run,
                     epilog="example: cfutils paper olmo-1b numbers.csv")  # fmt: skip
    parser.add_argument("profile", metavar="PROFILE")
    parser.add_argument(
        "file", nargs="?", default="data/paper_numbers.csv", metavar="FILE", help=f"a table with {', '.join(COLUMNS)}"
    )


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    profile = profiles.load(options.profile)
    stated = read(options.file)
    if stated.empty:
        print(NONE_SHIPPED)
        return 0
    mine = stated[stated["system"].isin([profile.name, profile.base])]
    found = compare(mine, own(profile, store_of(profile)))
    rows = [
        (row.method, row.ability, row.task, row.metric, f"{row.value:.3f}", _interval(row), _signed(row.difference),
         row.verdict, str(row.page))
        for row in found.itertuples()
    ]  # fmt: skip
    header = ("method", "ability", "task", "metric", "paper", "ours [95 %]", "ours - paper", "paper's value", "page")
    print(table(header, rows))
    others = len(stated) - len(mine)
    print(f"\n{len(mine)} numbers of {profile.name}" + (f"; {others} of other systems are left out" if others else ""))
    return 0


def read(file: str) -> pd.DataFrame:
    """Return a file's numbers; raises `UserError`, with the row, for what cannot be compared."""
    import pandas as pd  # not for `cfutils list`

    path = paths.given("FILE", file)
    try:
        found = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' errors of parsing are ValueErrors
        raise UserError(f"{file} cannot be read as a CSV file: {error}") from None
    if missing := [name for name in COLUMNS if name not in found]:
        raise invalid_value(file, ", ".join(found), f"columns {', '.join(COLUMNS)}", f"Add {', '.join(missing)}.")
    for line, row in enumerate(found.to_dict("records"), 2):
        where = f"line {line} of {Path(file).name}"
        if row["method"] != "base" and row["method"] not in recipes.RECIPES:
            raise invalid_value(f"method, {where}", row["method"], "base, or one of " + ", ".join(recipes.RECIPES))
        if row["ability"] not in GROUPS:
            raise invalid_value(f"ability, {where}", row["ability"], "one of " + ", ".join(GROUPS))
        try:
            value = float(row["value"])
        except ValueError:
            raise invalid_value(f"value, {where}", row["value"], "a number") from None
        if row["metric"] in SHARES and not 0 <= value <= 1:
            raise invalid_value(f"value, {where}", value, f"{row['metric']} as a share from 0 to 1", "Divide by 100.")
    return found.assign(value=found["value"].astype(float))


def own(profile: Profile, store: Store) -> pd.DataFrame:
    """Return the profile's scores of notebook 03's runs, one row per recipe, setting, task and metric (`levels`).

    Nothing is built: scores that are neither here nor shipped are left out.
    """
    import pandas as pd

    from cfutils.analysis import forgetting
    from cfutils.studies import BASE, beside

    steps, frames = Steps(profile, store), []
    for plan in (None, *steps.plans("methods")):
        settings = plan.settings() if plan else BASE
        for group in GROUPS:
            step = steps.scores(plan, group)
            if artifact := store.find(step):
                columns = {"profile": profile.name, **settings, "run": step.needs["model"].key}
                frames.append(beside(columns, artifact.table("items")))
    if not frames:
        raise UserError(f"no scores of profile {profile.name} are here: `cfutils run {profile.name} -n 03` makes them")
    return forgetting.levels(pd.concat(frames, ignore_index=True))


def compare(stated: pd.DataFrame, ours: pd.DataFrame) -> pd.DataFrame:
    """Return stated numbers beside ours, one row for each pair of number and setting.

    Columns: those of both, `ours`, `low`, `high`, `difference` (ours - stated), and `verdict`: inside or outside of our
    interval, or not measured here. Our interval covers our items and seeds; the paper's own error is unknown.
    """
    keys = ["recipe", "group", "task", "metric"]
    left = stated.rename(columns={"method": "recipe", "ability": "group"})
    found = left.merge(ours.rename(columns={"value": "ours"}), on=keys, how="left", suffixes=("", "_ours"))
    inside = (found["low"] <= found["value"]) & (found["value"] <= found["high"])
    verdict = inside.map({True: "inside ours", False: "outside ours"}).where(found["ours"].notna(), "not measured here")
    found = found.assign(difference=found["ours"] - found["value"], verdict=verdict)
    return found.rename(columns={"recipe": "method", "group": "ability"})


def _interval(row: object) -> str:
    return "" if math.isnan(row.ours) else f"{row.ours:.3f} [{row.low:.3f}, {row.high:.3f}]"


def _signed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.3f}"
