"""Results that ship: a read-only layer of the store with tables and records, and no weights.

    data/results/<profile>/records.parquet      one row per artifact: key, record (JSON)
    data/results/<profile>/TABLE.parquet        that table of all artifacts, with a column for the key

Whatever a figure is drawn from can be read here; whatever is built anew is built from artifacts of this machine.
Scores are computed in fp32, so that 24 bits of them ship, which halves the size; statistics on them are in fp64.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils import atomic, paths
from cfutils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from cfutils.pipeline.store import Artifact

TABLES = ("items", "tokens", "log", "estimate", "entropy", "samples")
"""Tables that ship. None holds texts of others: prompts of contextual samples are left out."""
KEY = "artifact"
FLOATS = ("value", "weight")
"""Columns of item scores that are numbers."""
LIMIT = 5_000_000
"""Bytes that one profile's results may take in the repository."""


class Shipped:
    """The shipped results of one profile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, profile: str) -> Shipped | None:
        """Return the results that ship for a profile, if there are any."""
        found = cls(paths.results(profile))
        return found if found.records else None

    @functools.cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """Record of each artifact, by key."""
        path = self.folder / "records.parquet"
        if not path.is_file():
            return {}
        import pandas as pd  # not for a list or a status without shipped results

        frame = pd.read_parquet(path)
        return {key: json.loads(text) for key, text in zip(frame[KEY], frame["record"], strict=True)}

    def holds(self, key: str) -> bool:
        """Whether an artifact's tables are here; of weights there is a record alone."""
        return bool(self.records.get(key, {}).get("tables"))

    def record(self, key: str) -> dict[str, Any] | None:
        """Return an artifact's record."""
        return self.records.get(key)

    def table(self, name: str, key: str) -> pd.DataFrame:
        """Return one table of an artifact."""
        found = self._tables(name).get_group(key).drop(columns=KEY).reset_index(drop=True)
        return found.astype(dict.fromkeys(_numbers(name, found), float))

    def __str__(self) -> str:
        """When, where and in which precision these results were made."""
        records = self.records.values()
        days = sorted({record["started"][:10] for record in records})
        machines = sorted({r["machine"].get("gpu") or r["machine"]["cpu"] for r in records})
        precisions = sorted({p for r in records if (p := r["notes"].get("precision"))})
        span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        return f"made on {', '.join(machines)}, {span}, in {' and '.join(precisions)}"

    @functools.cache  # noqa: B019  one object per profile and process
    def _tables(self, name: str) -> Any:
        import pandas as pd

        return pd.read_parquet(self.folder / f"{name}.parquet").groupby(KEY, sort=False)


def export(
    folder: Path, artifacts: Iterable[Artifact], records: Iterable[Mapping[str, Any]], *, tokens: Container[str]
) -> dict[str, int]:
    """Write the tables of artifacts, and records of what they were made from, in place of `folder`.

    tokens: keys of the artifacts whose scores of every token ship too, which take most room. Returns the bytes of each
    file. Raises `UserError` if together they exceed `LIMIT`; then nothing changes.
    """
    import pandas as pd

    tables: dict[str, list[pd.DataFrame]] = {}
    kept = {record["key"]: {**record, "files": {}, "tables": []} for record in records}
    for artifact in artifacts:
        names = [name for name in TABLES if _has(artifact, name)]
        if artifact.key not in tokens:
            names = [name for name in names if name != "tokens"]
        kept[artifact.key] = {**artifact.record, "files": {}, "tables": names}
        for name in names:
            frame = _public(artifact.table(name))
            frame.insert(0, KEY, artifact.key)
            tables.setdefault(name, []).append(frame)
    rows = [{KEY: key, "record": json.dumps(record)} for key, record in sorted(kept.items())]
    frames = {"records": pd.DataFrame(rows, columns=[KEY, "record"])}
    frames |= {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    with atomic.replacing_folder(folder) as work:
        for name, frame in frames.items():
            numbers = _numbers(name, frame)
            # the bytes of numbers of one size are alike, place by place; other columns repeat themselves
            frame.astype(dict.fromkeys(numbers, "float32")).to_parquet(
                work / f"{name}.parquet", index=False, compression="zstd", compression_level=19,
                column_encoding=dict.fromkeys(numbers, "BYTE_STREAM_SPLIT"),
                use_dictionary=[column for column in frame if column not in numbers],
            )  # fmt: skip
        sizes = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
        if (total := sum(sizes.values())) > LIMIT:
            largest = max(sizes, key=sizes.__getitem__)
            raise UserError(
                f"the results take {total / 1e6:.1f} MB, at most {LIMIT / 1e6:g} MB may ship per profile; the "
                f"largest file is {largest} ({sizes[largest] / 1e6:.1f} MB). Lower n_estimate or n_samples."
            )
    return sizes


def _numbers(table: str, frame: pd.DataFrame) -> list[str]:
    """Return the columns of a table that hold scores."""
    return [column for column in FLOATS if table == "items" and column in frame]


def _has(artifact: Artifact, name: str) -> bool:
    if artifact.path is None:
        return name in artifact.record["tables"]
    return (artifact.path / f"{name}.parquet").is_file()


def _public(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out prompts that are longer than a start token: they are the benchmark's texts."""
    if "prompt_ids" in frame and frame["prompt_ids"].map(len).max() > 1:
        return frame.drop(columns="prompt_ids")
    return frame.copy()
