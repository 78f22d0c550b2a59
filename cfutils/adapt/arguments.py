"""Options of `cfutils adapt` and `cfutils check`; what they call is imported when it is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from cfutils.errors import UserError

ADAPT = """examples:
  cfutils adapt --base shipped:tiny --data mine.jsonl --out adapted
  cfutils adapt --base ./my-model --data chats.parquet --out adapted --budget 2h --keep piqa triviaqa faq.jsonl
  cfutils adapt --base ./my-model --data old.csv --columns prompt=query response=gold --dry-run

data: JSONL, JSON, CSV, TSV, Parquet, a folder of `datasets`, or hub:ID; prompt and response (or completion), question
and answer, instruction, input and output, chat messages, or text. The same command goes on where it was cut off.

keep: names of `cfutils list tasks`; any other lm-eval task, group or tag, with items from the hub (a group counts as
one, with the items of all its tasks); questions of yours (JSONL, JSON, CSV, TSV, Parquet: question or prompt; answer,
gold or a list answers; choices, if any); an lm-eval task of yours (YAML: functions named with !function are run).
"""
CHECK = """exit codes: 0 the interval of the drop ends at or below the limit, 1 it lies above, 3 it lies on both sides
"""
Command = Callable[..., argparse.ArgumentParser]


def add(command: Command) -> None:
    """Add both commands by `command(name, about, call, epilog=...)`."""
    sub = command("adapt", "Tune a base of yours on data of yours; get a model, a recommendation, a report.", _adapt,
                  epilog=ADAPT)  # fmt: skip
    sub.add_argument("--base", required=True, metavar="FOLDER|HUB_ID", help="also shipped:tiny or asset:smollm2")
    sub.add_argument("--data", required=True, metavar="FILE|FOLDER|hub:ID", help="what is tuned on")
    sub.add_argument("--out", default="adapted", metavar="DIR", help="folder to write to (default: adapted)")
    sub.add_argument("--budget", default="30m", metavar="TIME", help="30m, 2h; sizes are fitted into it (default: 30m)")
    sub.add_argument("--keep", nargs="+", default=[], metavar="TASK|FILE",
                     help="abilities to watch: tasks, or files of questions or lm-eval tasks; see below")  # fmt: skip
    sub.add_argument("--columns", nargs="+", default=[], metavar="WHAT=COLUMN",
                     help="prompt=, response=, messages= or text=, where columns have other names")  # fmt: skip
    sub.add_argument("--start-token", metavar="TEXT", help="what a document begins with, if not with BOS or EOS")
    sub.add_argument("--lora", nargs="?", type=int, const=64, metavar="RANK",
                     help="tune low-rank adapters (rank: 64), not all weights, in about half of the memory; they are "
                          "merged in the model, and by themselves in adapter/")  # fmt: skip
    sub.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds of every run (default: 1)")
    sub.add_argument("--dry-run", action="store_true", help="check everything, estimate the time, tune nothing")
    sub = command("check", "Judge an adapted model by the interval of what it forgot: a gate for CI.", _check,
                  epilog=CHECK)  # fmt: skip
    sub.add_argument("folder", metavar="DIR", help="what cfutils adapt has written")
    sub.add_argument("--max-drop", type=float, default=0.02, metavar="X", help="largest drop allowed (default: 0.02)")


def _adapt(options: argparse.Namespace) -> int:
    from cfutils.adapt import command

    if not 1 <= options.seeds <= 100:
        raise UserError(f"--seeds = {options.seeds} is not allowed: a number from 1 to 100.")
    if options.lora is not None and not 1 <= options.lora <= 1024:
        raise UserError(f"--lora = {options.lora} is not allowed: a rank from 1 to 1024.")
    columns = dict(pair.partition("=")[::2] for pair in options.columns)
    if not all(columns.values()):
        raise UserError(f"--columns {' '.join(options.columns)} is not allowed: pairs such as prompt=query.")
    said = command.adapt(
        options.base, options.data, options.out, budget=command.seconds(options.budget), keep=tuple(options.keep),
        columns=columns, start_token=options.start_token, lora=options.lora, n_seeds=options.seeds,
        dry_run=options.dry_run, command=["cfutils", *sys.argv[1:]],
    )  # fmt: skip
    for line in said:
        print(line)
    if said:
        print(f"model, card, report.html and results.json are in {options.out}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from cfutils.adapt import command

    code, said = command.gate(options.folder, max_drop=options.max_drop)
    print(said)
    return code
