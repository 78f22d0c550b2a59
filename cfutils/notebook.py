"""Notebooks as the batch runner sees them: what each takes, makes and needs, read from its source.

A notebook states its parameters in one cell tagged `parameters`, a line each
(`name: type = literal  # help`), and the rest in its metadata under `cfutils`. Values from the
command line are read against those statements before anything runs, because papermill itself only
warns about a parameter that no notebook takes (nteract/papermill#818) and guesses the types of
values. Trade-off: parameters are plain JSON types, since papermill turns every other type into a
string (#586, #784).
"""

from __future__ import annotations

import ast
import difflib
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cfutils import paths
from cfutils.errors import UserError, bad

TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
_FILE = re.compile(r"(\d\d)_\w+")


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell."""

    name: str
    annotation: str
    """One of `TYPES`."""
    default: Any
    help: str

    def read(self, text: str) -> Any:
        """Return the value that a command line means; raises `UserError` if the type is another."""
        value = text if self.annotation == "str" else _scalar_or_list(text)
        if self.default is None and text.strip() in ("None", "null", "~"):
            return None
        if self.annotation == "float" and type(value) is int:
            value = float(value)
        if type(value) is not TYPES[self.annotation] or not _finite(value):
            example = _EXAMPLES[self.annotation]
            raise bad(
                self.name, text, f"wants {self.annotation}", f"Write {self.name}={example} say."
            )
        return value


_EXAMPLES = {"int": "7", "float": "0.5 or 1e-5", "str": "text", "bool": "true", "list": "'[1, 2]'"}


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
    """Numbers of notebooks without which it makes no sense: it is skipped if one of them fails."""
    figures: tuple[str, ...] = ()
    """Figures that every good run makes."""
    studies: tuple[str, ...] = ()
    """Sets of runs it compares (`recipes.STUDIES`)."""
    takes: str = ""
    makes: str = ""
    base: str = ""
    """The only base that it is about, if it is about one; a run of others leaves it out."""

    @classmethod
    def read(cls, path: Path) -> Notebook:
        """Read a source file; raises `UserError` naming the notebook if it is malformed."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            cells, stated = content["cells"], content["metadata"].get("cfutils")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"notebook {path.name} cannot be read: {error!r}") from error
        tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
        if len(tagged) != 1:
            raise UserError(
                f"notebook {path.name} has {len(tagged)} cells tagged `parameters`: "
                "it must have exactly one"
            )
        try:
            facts = _facts(stated)
            parameters = {p.name: p for p in _parameters("".join(tagged[0]["source"]))}
        except UserError as error:
            raise UserError(f"notebook {path.name}: {error}") from error
        return cls(path.stem[:2], path.stem, path, parameters, **facts)


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
            raise bad(
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
    except (SyntaxError, tokenize.TokenError) as error:
        raise UserError(f"the parameters cell is not valid Python: {error}") from error
    found = [_parameter(source.splitlines(), node, notes) for node in statements]
    if len({p.name for p in found}) != len(found):
        raise UserError("the parameters cell states one parameter twice")
    return found


def _parameter(lines: list[str], node: ast.stmt, notes: dict[int, str]) -> Parameter:
    line = lines[node.lineno - 1].strip()
    wanted = UserError(
        f"parameters cell, {line!r}: wants `name: type = literal  # help` on one line, "
        f"type one of {', '.join(TYPES)}, and a literal of that type or None"
    )
    match node:
        case ast.AnnAssign(
            target=ast.Name(id=name), annotation=ast.Name(id=kind), value=ast.expr() as value
        ):
            pass
        case _:
            raise wanted
    try:
        default = ast.literal_eval(value)
    except ValueError:
        raise wanted from None
    fits = default is None or type(default) is TYPES.get(kind)
    if kind not in TYPES or not fits or node.lineno != node.end_lineno:
        raise wanted
    return Parameter(name, kind, default, notes.get(node.lineno, ""))


def notebooks() -> list[Notebook]:
    """Return the notebooks of the suite in order; other files beside them are not the suite's.

    Raises `UserError` if one is malformed, two have one number, or one needs what is not before it.
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
            raise bad("notebook", name, "one of " + ", ".join(n.name for n in everything))
        wanted.add(known[key].number)
    return [n for n in everything if not wanted or n.number in wanted]


def arguments(chosen: list[Notebook], given: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Read NAME=VALUE texts into {notebook number: {parameter: value}}, each where it is taken.

    Raises `UserError` for a text without `=`, a name given twice or taken by no chosen notebook,
    and a value of the wrong type.
    """
    texts: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise bad("-p", text, "wants NAME=VALUE", "Write -p n_train=64 say.")
        if name in texts:
            raise UserError(f"-p {name} is given twice: {texts[name]!r} and {value!r}")
        if name == "profile":
            raise UserError(
                f"-p profile={value}: the profile is the first argument: cfutils run {value}"
            )
        texts[name] = value
    for name in texts:
        if not any(name in notebook.parameters for notebook in chosen):
            raise _unknown(name, chosen)
    return {
        n.number: {
            name: n.parameters[name].read(text)
            for name, text in texts.items()
            if name in n.parameters
        }
        for n in chosen
    }


def _unknown(name: str, chosen: list[Notebook]) -> UserError:
    known = {p for notebook in chosen for p in notebook.parameters if p != "profile"}
    elsewhere = [n.name for n in notebooks() if name in n.parameters]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    if elsewhere:
        hint = f" {' and '.join(elsewhere)} would take it, but that is not among those to run."
    each = "; ".join(
        f"{n.name}: {', '.join(p for p in n.parameters if p != 'profile')}" for n in chosen
    )
    return UserError(f"no notebook to run takes the parameter {name!r}.{hint} They take: {each}.")


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, where YAML 1.1 of `SafeLoader` reads 1e-5 as a text and 007 as octal."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|None|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


def _scalar_or_list(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def _finite(value: Any) -> bool:
    """Whether a value is, or holds, no infinity: a number too large for a float becomes one."""
    return (
        all(map(_finite, value))
        if isinstance(value, list)
        else not (isinstance(value, float) and not math.isfinite(value))
    )
