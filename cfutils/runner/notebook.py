"""Notebooks as the batch runner sees them: parameters, inputs, outputs and needs, read from the source.

A notebook states its parameters in one cell tagged `parameters`, one per line
(`name: type = literal  # help`), and the rest in its metadata under `cfutils`. Values from the command
line are checked against those lines before anything runs, because papermill itself only warns about a
parameter that no notebook has (nteract/papermill#818) and guesses the types of values. Trade-off:
parameters are plain JSON types, since papermill turns every other type into a string (#586, #784).
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cfutils import paths, yaml_input
from cfutils.data import skills, targets
from cfutils.errors import UserError, invalid_value, shown

TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_CHECKS = {name: TypeAdapter(kind, config=_STRICT) for name, kind in TYPES.items()}
_CHECKS["list"] = TypeAdapter(list[bool | int | float | str | None], config=_STRICT)
_EXAMPLES = {"int": "7", "float": "0.5", "str": "text", "bool": "true", "list": "'[1, 2]'"}
_FILE = re.compile(r"[0-9][0-9]_\w+")


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell."""

    name: str
    annotation: str
    """One of `TYPES`."""
    default: Any
    help: str

    def read(self, text: str) -> Any:
        """Return the value that a text of the command line stands for.

        Raises `UserError` if it is of another type, or not finite.
        """
        if self.default is None and text.strip() in ("None", "null", "~"):
            return None
        try:
            value = text if self.annotation == "str" else yaml_input.parse(text)
            return _CHECKS[self.annotation].validate_python(value)
        except (UserError, ValidationError):
            example = f"For example: -p {self.name}={_EXAMPLES[self.annotation]}"
            raise invalid_value(self.name, text, f"expected {self.annotation}", example) from None


@dataclass(frozen=True)
class Notebook:
    """One notebook of the suite."""

    number: str
    """Two digits; the order of the suite."""
    name: str
    """File name without .ipynb."""
    path: Path
    parameters: Mapping[str, Parameter]
    title: str
    needs: tuple[str, ...] = ()
    """Numbers of the notebooks that it builds on: it is skipped if one of them fails."""
    figures: tuple[str, ...] = ()
    """Figures that every successful run makes."""
    studies: tuple[str, ...] = ()
    """Sets of runs that it compares (`recipes.STUDIES`)."""
    takes: str = ""
    makes: str = ""
    base: str = ""
    """The only base that it is about, if there is one; runs of other bases leave it out."""

    @classmethod
    def read(cls, path: Path) -> Notebook:
        """Read a source file; raises `UserError` naming the notebook if it is malformed."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            stated = content["metadata"].get("cfutils")
            tagged = [
                "".join(cell["source"])
                for cell in content["cells"]
                if "parameters" in cell.get("metadata", {}).get("tags", [])
            ]
        except _UNREADABLE as error:
            raise UserError(f"notebook {path.name} cannot be read: {shown(error)}") from error
        if len(tagged) != 1:
            raise UserError(
                f"notebook {path.name} has {len(tagged)} cells tagged `parameters`: "
                "it must have exactly one"
            )
        try:
            facts = _facts(stated)
            parameters = {p.name: p for p in _parameters(tagged[0])}
        except UserError as error:
            raise UserError(f"notebook {path.name}: {error}") from error
        return cls(path.stem[:2], path.stem, path, parameters, **facts)


_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
_TEXTS, _LISTS = ("title", "takes", "makes", "base"), ("needs", "figures", "studies")


def _facts(stated: Any) -> dict[str, Any]:
    """Check metadata["cfutils"]: title, takes, makes, base are texts, the rest are lists of texts."""
    if not isinstance(stated, dict) or not stated.get("title"):
        raise UserError('metadata["cfutils"] must be a table with a "title"')
    facts: dict[str, Any] = {}
    for key, value in stated.items():
        if key in _TEXTS and isinstance(value, str):
            facts[key] = value
        elif key in _LISTS and isinstance(value, list) and all(isinstance(v, str) for v in value):
            facts[key] = tuple(value)
        else:
            raise invalid_value(
                f'metadata["cfutils"]["{key}"]',
                value,
                f"{', '.join(_TEXTS)} are texts, {', '.join(_LISTS)} are lists of texts",
            )
    return facts


def _parameters(source: str) -> list[Parameter]:
    """Read `name: type = literal  # help` lines; raises `UserError` naming the line."""
    try:
        statements = ast.parse(source).body
        notes = {
            token.start[0]: token.string.lstrip("# ").rstrip()
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise UserError(f"the parameters cell is not valid Python: {error}") from error
    found = [_parameter(source.splitlines(), node, notes) for node in statements]
    if len({p.name for p in found}) != len(found):
        raise UserError("the parameters cell has one parameter twice")
    return found


def _parameter(lines: list[str], node: ast.stmt, notes: dict[int, str]) -> Parameter:
    line = lines[node.lineno - 1].strip()
    malformed = UserError(
        f"parameters cell, {shown(line)}: expected `name: type = literal  # help` on one line, "
        f"type one of {', '.join(TYPES)}, and a literal of that type or None"
    )
    match node:
        case ast.AnnAssign(
            target=ast.Name(id=name), annotation=ast.Name(id=kind), value=ast.expr() as value
        ):
            pass
        case _:
            raise malformed
    try:
        default = ast.literal_eval(value)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise malformed from None
    fits = default is None or type(default) is TYPES.get(kind)
    if kind not in TYPES or not fits or node.lineno != node.end_lineno:
        raise malformed
    return Parameter(name, kind, default, notes.get(node.lineno, ""))


def notebooks() -> list[Notebook]:
    """Return the notebooks of the suite in order, those named NN_name.ipynb.

    Raises `UserError` if one is malformed, if two have the same number, or if one needs a later one.
    """
    found = [
        Notebook.read(path)
        for path in sorted(paths.notebooks().glob("*.ipynb"))
        if _FILE.fullmatch(path.stem)
    ]
    if not found:
        raise UserError(f"no notebooks named NN_name.ipynb in {paths.notebooks()}")
    before: set[str] = set()
    for notebook in found:
        if notebook.number in before:
            raise UserError(
                f"two notebooks have the number {notebook.number}: rename {notebook.name}"
            )
        if strangers := set(notebook.needs) - before:
            raise UserError(
                f"notebook {notebook.name} needs {', '.join(sorted(strangers))}: not before it"
            )
        before.add(notebook.number)
    return found


def select(names: Iterable[str]) -> list[Notebook]:
    """Return notebooks by number ("01", "1") or name ("01_generation"), in order; default all."""
    everything = notebooks()
    known = {key: n for n in everything for key in (n.number, str(int(n.number)), n.name)}
    wanted = set()
    for name in names:
        if (key := name.removesuffix(".ipynb")) not in known:
            raise invalid_value("notebook", name, "one of " + ", ".join(n.name for n in everything))
        wanted.add(known[key].number)
    return [n for n in everything if not wanted or n.number in wanted]


def arguments(chosen: list[Notebook], given: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read NAME=VALUE texts into {notebook number: {parameter: value}}, for the notebooks that have them.

    Raises `UserError` for a text without `=`, a name given twice or of no chosen notebook, a value of the
    wrong type, and an unknown name in notebook 00's `targets`. The profile checks the limits of its values.
    """
    texts: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise invalid_value("-p", text, "expected NAME=VALUE", "For example: -p n_train=64")
        if name in texts:
            raise UserError(f"-p {shown(name)} is given twice: {shown(texts[name])} and {shown(value)}")
        if name == "profile":
            first = "the profile is the first argument of `cfutils run`"
            raise UserError(f"-p profile={shown(value)}: {first}")
        texts[name] = value
    for name in texts:
        if not any(name in notebook.parameters for notebook in chosen):
            raise _unknown(name, chosen)
    found = {
        n.number: {
            name: n.parameters[name].read(text) for name, text in texts.items() if name in n.parameters
        }
        for n in chosen
    }
    for values in found.values():
        if "targets" in values:
            _check_targets(values["targets"])
    return found


def _check_targets(names: list) -> None:
    """Check notebook 00's `targets`, a list that is no value of the profile; raises `UserError`."""
    known = [name for name in targets.TARGETS if name in skills.skills()]
    if not names or len(set(names)) < len(names) or not set(names) <= set(known):
        raise invalid_value("targets", names, f"one or more different names of {', '.join(known)}")


def _unknown(name: str, chosen: list[Notebook]) -> UserError:
    known = {p for notebook in chosen for p in notebook.parameters if p != "profile"}
    elsewhere = [n.name for n in notebooks() if name in n.parameters]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    if elsewhere:
        hint += f" It is a parameter of {', '.join(elsewhere)}, not among those to run."
    each = "; ".join(
        f"{n.name}: {', '.join(p for p in n.parameters if p != 'profile')}" for n in chosen
    )
    return UserError(
        f"no notebook to run has the parameter {shown(name)}.{hint} Their parameters are: {each}."
    )
