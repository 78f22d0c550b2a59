"""`cfutils adapt` and `cfutils check`: from a file to a recommended model, and a gate on what it forgot."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pandas as pd

from cfutils import progress
from cfutils.adapt import check as checks
from cfutils.adapt import deliver, report
from cfutils.analysis import recommend
from cfutils.errors import UserError, invalid_value
from cfutils.events import say
from cfutils.lab import Lab
from cfutils.profiles import Profile
from cfutils.units import duration

UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """Read a budget: 30m, 2h, 90s; a number alone is minutes."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "m")
    try:
        found = float(number) * UNITS[unit]
    except ValueError:
        found = 0.0
    if not 0 < found < 1e7:
        raise invalid_value("budget", text, "a time such as 30m, 2h or 90s")
    return found


def adapt(
    base: str, data: str, out: str, *, budget: float, keep: tuple[str, ...], columns: dict[str, str],
    start_token: str | None, lora: int | None, n_seeds: int, dry_run: bool, command: list[str],
) -> list[str]:  # fmt: skip
    """Check, tune, compare and deliver; return the recommendation in sentences.

    budget in seconds. lora: rank of the adapters that are tuned, None to tune all weights. A run that was cut off goes
    on where it stopped when the same command is given again: the study that was fitted is kept in `out`. Raises
    `UserError` before anything long for whatever is wrong.
    """
    folder = checks.out_folder(out)
    asked = {"base": base, "data": data, "budget": budget, "keep": list(keep), "columns": columns,
             "start_token": start_token, "lora": lora, "seeds": n_seeds}  # fmt: skip
    profile, notes = _resume(folder, asked)
    if profile is None:
        with progress.task("checking base and data"):
            found = checks.check(
                base, data, budget=budget, keep=keep, columns=columns, start_token=start_token, lora=lora,
                seeds=tuple(range(n_seeds)),
            )  # fmt: skip
        deliver.check_disk(folder, parameters=found.facts.parameters)
        profile, notes = found.profile, list(found.notes)
        parts = found.sizes.seconds(found.facts)
        spent = ", ".join(f"{part} {duration(n_seeds * s)}" for part, s in parts.items())
        notes.append(f"time: about {duration(n_seeds * sum(parts.values()))} ({spent}), measured on this machine")
    for note in notes:
        say(note)
    if dry_run:
        return []
    deliver.begin(folder, profile, asked, notes)
    lab, chosen = study(profile)
    table = recommend.compare(chosen)
    plan = deliver.plan_of(lab, table)
    deliver.model(folder, lab, plan)
    if lora is not None:
        deliver.adapter(folder, lab, plan)
    deliver.results(folder, lab.profile, table, chosen, shlex.join(command), notes)
    report.write(folder / "report.html", lab.profile, table, chosen, notes, samples(lab))
    return recommend.reasons(table)


def study(profile: Profile) -> tuple[Lab, pd.DataFrame]:
    """Run the study: learning rate by validation items, then every run scored. Returns the lab at the rate chosen."""
    rates = Lab(profile, recipes=("ft",)).choice()
    lab = Lab(profile, lr=float(rates["lr"].iloc[0]))
    return lab, pd.concat([lab.study(name).items for name in deliver.STUDIES], ignore_index=True)


def samples(lab: Lab, n: int = 12) -> pd.DataFrame:
    """Return some context-free samples of the base, to be read."""
    return lab.samples("context_free").head(n)


def _resume(folder: Path, asked: dict) -> tuple[Profile | None, list[str]]:
    """Return the study that the same command fitted before it was cut off, so that it goes on unchanged."""
    state = folder / deliver.STATE
    if not state.is_file():
        return None, []
    kept = json.loads(state.read_text(encoding="utf-8"))
    if differ := ", ".join(k for k in asked if kept["asked"].get(k) != asked[k]):
        raise invalid_value("out", str(folder), f"a folder of the same command ({differ} differ)", "Give a new one.")
    return Profile(**kept["profile"]), kept["notes"]


def gate(text: str, *, max_drop: float) -> tuple[int, str]:
    """Judge a delivered model by the interval of what it forgot; return an exit code and a sentence.

    0: the interval's upper end is at most `max_drop` (in the unit of the results, bits per byte or nats per token);
    1: its lower end is above it; 3: it lies on both sides, so that these items do not tell.
    """
    path = Path(text).expanduser() / deliver.RESULTS
    if not path.is_file():
        raise invalid_value("folder", text, f"a folder that cfutils adapt has written ({deliver.RESULTS} is not there)")
    try:
        own = next(row for row in json.loads(path.read_text(encoding="utf-8"))["runs"] if row["recommended"])
        drop, low, high = (float(own[name]) for name in ("drop", "low", "high"))
    except (ValueError, KeyError, StopIteration, TypeError) as error:
        raise UserError(f"{path.name} in {text} is damaged ({error}): run cfutils adapt again") from None
    shown = f"drop {drop:+.4f} [{low:+.4f}, {high:+.4f}], allowed {max_drop:g}"
    if high <= max_drop:
        return 0, f"passed: {shown}"
    return (1, f"failed: {shown}") if low > max_drop else (3, f"undecided, more items are needed: {shown}")
