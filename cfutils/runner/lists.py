"""`cfutils list`: profiles, notebooks, recipes and tasks, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from cfutils import profiles, recipes
from cfutils.data import packaged, skills, targets
from cfutils.errors import UserError
from cfutils.runner.notebook import notebooks
from cfutils.runner.terminal import indent, table

SECTIONS = ("profiles", "notebooks", "recipes", "tasks")


def sections(names: Sequence[str]) -> str:
    """Return some sections, all without names; raises `UserError` for an unknown one."""
    for name in names:
        if name not in SECTIONS:
            raise UserError(f"{name!r} is not a section: {', '.join(SECTIONS)}")
    parts = {"profiles": _profiles, "notebooks": _notebooks, "recipes": _recipes, "tasks": _tasks}
    return "\n\n".join(f"{name.capitalize()}\n{indent(parts[name]())}" for name in names or SECTIONS)


def _profiles() -> str:
    loaded = [profiles.load(name) for name in profiles.names()]
    return table((), [(p.name, p.about) for p in loaded])


def _notebooks() -> str:
    blocks = []
    for notebook in notebooks():
        rows = [
            (p.name, p.annotation, "" if p.default is None else repr(p.default), p.help)
            for p in notebook.parameters.values()
        ]
        lines = [f"{notebook.name}  {notebook.title}"]
        lines += [
            f"  {word} {text}"
            for word, text in (("takes", notebook.takes), ("makes", notebook.makes))
            if text
        ]
        blocks.append("\n".join(lines) + ("\n" + indent(table((), rows)) if rows else ""))
    return "\n".join(blocks)


def _recipes() -> str:
    return table((), [(r.name, r.label, r.about) for r in recipes.RECIPES.values()])


def _tasks() -> str:
    rows = [(name, "target", target.about) for name, target in targets.TARGETS.items()]
    rows += [(name, "retained", packaged.TASKS[name].about) for name in packaged.RETAINED]
    for one in skills.skills().values():
        known = [name for name in skills.WORLDS if one.name in skills.world(name)["mixture"]]
        if known:
            rows.append((one.name, f"retained ({', '.join(known)})", one.about))
    return table((), rows)
