"""`cfutils plan`: what a profile will cost on some devices, before anything is fetched, loaded or paid."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from cfutils import profiles, yaml_input
from cfutils.errors import UserError, invalid_value
from cfutils.pipeline.steps import all_steps
from cfutils.pipeline.store import Step, Store
from cfutils.planning import architecture, devices, memory, plan, workloads
from cfutils.planning.plan import Kind, Plan
from cfutils.planning.setting import Setting
from cfutils.profiles import Profile
from cfutils.runner.jobs import prepare, store_of
from cfutils.runner.terminal import indent, table
from cfutils.units import about, size

EXAMPLE = """examples:
  cfutils plan tiny                                      on this machine's processor
  cfutils plan olmo-1b --gpu A100-40                     what it takes, and what does not fit
  cfutils plan olmo-1b --gpu A100-40 --price 1.1 -p gradient_checkpointing=true n_samples=4000
  cfutils plan r1-distill-llama-8b --gpu H100 --count 8

Everything counts as not built yet. Numbers are arithmetic on the sizes of model and profile, with the device's data
sheet and stated efficiencies; only those of a processor were checked by measurement."""


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command by `command(name, about, call, epilog=...)`."""
    parser = command("plan", "Say what a profile will cost: tokens, FLOPs, memory, disk, hours, money.", run,
                     epilog=EXAMPLE)  # fmt: skip
    add = parser.add_argument
    add("profile", nargs="?", default=profiles.DEFAULT, metavar="PROFILE", help="name, or path of its YAML file")
    add("--gpu", default=devices.CPU, metavar="DEVICE",
        help="H100, A100-40, L4, ... of data/devices.yaml, or cpu: this machine's (default)")  # fmt: skip
    add("--count", type=int, metavar="N", help="devices, all of one machine (default: those of one tuning run)")
    add("--price", type=float, metavar="DOLLARS", help="per device and hour, in place of the example's")
    add("-p", "--parameter", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="another value for a field of the profile")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Print the plan; return 1 where something does not fit into memory."""
    changes = _changes(options.parameter)
    profile = profiles.load(options.profile, **changes)
    count = profile.devices if options.count is None else options.count
    if count < 1 or (count > 1 and options.gpu == devices.CPU):
        raise invalid_value("--count", count, "1 or more devices, and 1 with --gpu cpu")
    shape = architecture.read(profile.base, profile.revision)
    device = devices.get(options.gpu, price=options.price, workers=profile.workers)
    store, steps = store_of(profile), all_steps(list(_tops(options.profile, changes)))
    made = plan.make(steps, Setting.of(profile, shape, device), count=count)
    print(_heading(made))
    print(indent(table(HEADER, [_row(kind, made) for kind in made.kinds if kind.name != "log"] + [_total(made)])))
    print("\n".join(["", *_notes(made, steps, store)]))
    return int(bool(made.too_large()))


def _changes(given: Iterable[str]) -> dict[str, Any]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"-p {text}: write NAME=VALUE, for example -p pass_tokens=2048")
        found[name] = yaml_input.parse(value)
    return found


def _tops(name: str, changes: dict[str, Any]) -> Iterable[Step]:
    """Yield what the notebooks of the profile's whole run read."""
    from cfutils.studies import planned  # and pandas

    for job in prepare(name, (), ()):
        profile = job.profile.change(**changes)
        for study in job.notebook.studies:
            yield from planned(profile, Store(), study)[0]


NOTABLE = 0.8
"""Share of the time below which another dtype is worth a sentence."""
HEADER = ("kind", "steps", "sampled", "trained", "scored", "PFLOP", "peak memory", "disk", "device time", "cost")


def _row(kind: Kind, made: Plan) -> tuple[Any, ...]:
    price = kind.seconds / 3600 * made.setting.device.price
    return (
        kind.name, kind.steps, *(_tokens(n) for n in (kind.sampled, kind.trained, kind.scored)), _pflop(kind.flops),
        size(kind.peak) + (" !" if kind in made.too_large() else "") if kind.parts else "",
        size(kind.disk) if kind.disk else "", about(kind.seconds) if kind.seconds else "", _money(price),
    )  # fmt: skip


def _total(made: Plan) -> tuple[Any, ...]:
    def total(name: str) -> float:
        return sum(getattr(kind, name) for kind in made.kinds)

    spent = total("seconds") / 3600 * made.setting.device.price
    return (
        "all", int(total("steps")), *(_tokens(total(n)) for n in ("sampled", "trained", "scored")),
        _pflop(total("flops")), size(max(kind.peak for kind in made.kinds)), size(made.disk), about(total("seconds")),
        _money(spent),
    )  # fmt: skip


def _heading(made: Plan) -> str:
    set_ = made.setting
    p, shape, device = set_.profile, set_.shape, set_.device
    many = f"{made.count} x " if made.count > 1 else ""
    return (
        f"{p.name} on {many}{device.name}: {p.base}, {shape.parameters:,} parameters ({shape.source}), tuned in "
        f"float32{' with bf16 autocast' if set_.autocast else ''}, written, sampled and scored in {p.dtype}"
    )


def _notes(made: Plan, steps: list[Step], store: Store) -> Iterable[str]:
    set_, device = made.setting, made.setting.device
    price = f" and {_money(made.dollars)} at {device.price:g} $ per device and hour" if device.price else ""
    together = f", as many steps side by side as {made.count} devices allow" if made.count > 1 else ""
    if device.name == devices.CPU and set_.profile.workers > 1:
        together = f", {set_.profile.workers} steps side by side"
    yield f"Time: {about(made.seconds)}{price}{together}."
    if set_.profile.dtype == "float32" and device.name != devices.CPU:
        half = replace(set_, profile=set_.profile.change(dtype="bfloat16"))
        other = plan.make(steps, half, count=made.count)
        if other.seconds < NOTABLE * made.seconds:
            yield (
                f"  In float32 sampling and scoring compute at {device.fp32 / device.bf16:.0%} of the rate of bf16. "
                f"With dtype: bfloat16 all takes {about(other.seconds)}, {_money(other.dollars)}."
            )
    kept = set_.profile.keep_weights
    pruned = "" if kept == "all" else f" with keep_weights: {kept} ({size(made.all_weights)} of weights with all)"
    yield f"Disk: {size(made.disk)}{pruned}, and {size(made.transient)} more while a run is tuned (its checkpoint)."
    yield f"Memory: {size(made.room)} of {size(device.memory)} on each device are for tensors."
    if host := memory.host(set_):
        yield f"Processor's memory: {size(host)} for what is offloaded."
    for kind in made.too_large():
        largest = sorted(kind.parts.items(), key=lambda part: -part[1])[:4]
        parts = ", ".join(f"{name} {size(value)}" for name, value in largest)
        yield f"DOES NOT FIT: {kind.name} needs {size(kind.peak)} ({parts}), at its largest for {kind.label}."
        found = [f"{_setting(change, set_.profile)} ({size(peak)})" for change, peak in plan.fixes(made, steps, kind)]
        yield f"  What makes it fit: {'; or '.join(found) or 'nothing that a profile can say: a larger device'}."
    there = sum(store.find(step) is not None for step in steps)
    if there:
        yield f"{there} of {len(steps)} steps are there or shipped; they are counted as if they were not."
    yield f"Assumed: {'; '.join(workloads.said(set_.profile)) or 'nothing of the items'}."
    how = device.efficiency
    yield (
        f"Device: {device.about}: {device.bf16 / 1e12:.3g} TFLOP/s in bf16, {device.fp32 / 1e12:.3g} in fp32, "
        f"{device.bandwidth / 1e9:,.0f} GB/s ({device.source}). Reached: {how.bf16:.0%} and {how.fp32:.0%} of the two "
        f"in products, {how.rows:.0%} in decoding, {how.traffic:.0%} of the bandwidth"
        + (", measured on SmolLM2." if device.name == devices.CPU else ": assumed, never measured on a GPU.")
    )
    if rows := plan.measured(steps, set_, store):
        yield "Predicted beside measured, seconds of a step (median); another machine, or other work on it, counts in:"
        header = ("kind", "steps", "predicted", "measured", "times", "measured on")
        yield indent(table(header, [
            (one.kind, one.steps, f"{one.predicted:.3g}", f"{one.seconds:.3g}",
             f"{one.predicted / one.seconds:.2f}" if one.seconds else "", one.machine)
            for one in rows
        ]))  # fmt: skip


def _setting(change: dict[str, Any], profile: Profile) -> str:
    texts = [f"{k}: {str(v).lower() if isinstance(v, bool) else v}" for k, v in change.items() if k != "recipes"]
    if "recipes" in change:
        texts.append("recipes without " + " and ".join(n for n in profile.recipes if n not in change["recipes"]))
    return " and ".join(texts)


def _tokens(n: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= unit:
            return f"{n / unit:.3g}{name}"
    return f"{n:.0f}" if n else ""


def _pflop(n: float) -> str:
    return f"{n / 1e15:.3g}" if n else ""


def _money(dollars: float) -> str:
    return f"{dollars:,.0f} $" if dollars >= 10 else f"{dollars:.2g} $" if dollars else ""
