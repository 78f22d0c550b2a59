"""One notebook through papermill, with the holes closed that papermill leaves open.

papermill calls a run good whose kernel ended by SystemExit, overwrites the last good output with a
failed one, and writes into a dead kernel's notebook that every cell was completed. Here a run is
good only if no exception came, every cell was completed, and every figure that it states was made;
output goes to a temporary name and takes the real one on success. The kernel is always this
interpreter, whatever kernel specs the user has (nteract/papermill#251), and what it has started
ends with it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import nbformat
import papermill
from jupyter_client import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

from cfutils.environment import variables
from cfutils.runner.notebook import Notebook

START_TIMEOUT = 180  # seconds for a kernel to answer; the 60 of papermill are few on a busy machine
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

logging.getLogger("papermill").setLevel(
    logging.CRITICAL
)  # failures are reported once, by the caller


@dataclass(frozen=True)
class Failure:
    """Why a notebook is not good."""

    cell: int | None
    """Place in the source, counted from 1, all cells; None if no cell was to blame."""
    line: str
    """First line of that cell."""
    error: str
    """Name of the error."""
    value: str

    def __str__(self) -> str:
        where = f"cell {self.cell} ({self.line}): " if self.cell else ""
        return f"{where}{self.error}: {self.value}".rstrip(": ")


class Kernel(AsyncKernelManager):
    """A kernel of this very interpreter, whose child processes end when it ends."""

    stderr: TextIO
    """Where its process's own stderr goes: ipykernel reports there what an interrupt broke off."""

    async def start_kernel(self, **how: Any) -> None:
        """Start its process."""
        await super()._async_start_kernel(**how, stderr=self.stderr)

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        """Return the command of ipykernel under this interpreter."""
        command = [
            sys.executable,
            "-m",
            "ipykernel_launcher",
            "-f",
            os.path.realpath(self.connection_file),
            # below errors, the kernel's own log only warns of TCP: its ports are local, messages signed
            "--log-level=ERROR",
        ]
        return command + (extra_arguments or [])

    async def cleanup_resources(self, restart: bool = False) -> None:
        """Kill what a dead kernel has left behind (an engine's workers): it leads its own group."""
        await super()._async_cleanup_resources(restart=restart)
        group = getattr(self.provisioner, "pgid", None)
        if group and group != os.getpgrp():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)


class Output:
    """A kernel's stdout, file-like as papermill wants it: all to a log, lines to a function."""

    def __init__(self, log: TextIO, show: Callable[[str], None]) -> None:
        self.log, self.show, self.rest = log, show, ""

    def write(self, text: str) -> None:
        """Take a piece of stdout; of a line rewritten by carriage returns, show its last state."""
        self.log.write(text)
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            if shown := line.rstrip("\r").rsplit("\r", 1)[-1].rstrip():
                self.show(_ANSI.sub("", shown))

    def flush(self) -> None:
        """Let a reader of the log file see it at once."""
        self.log.flush()


def run(
    notebook: Notebook,
    parameters: dict[str, Any],
    *,
    folder: Path,
    env: dict[str, str],
    show: Callable[[str], None],
) -> Failure | None:
    """Execute a notebook into `folder`; return None if it is good, else why not.

    Writes NAME.ipynb on success, NAME.failed.ipynb otherwise (a good NAME.ipynb stays), and
    NAME.log and NAME.events.jsonl (see `read_events`) either way. `show` gets the lines of stdout
    as they come. Raises KeyboardInterrupt after the kernel has been shut down.
    """
    happened = events_file(notebook, folder)
    happened.unlink(missing_ok=True)
    env = {**env, "CFUTILS_EVENTS": str(happened)}
    running = folder / f".{notebook.name}.running.ipynb"
    good, failed = folder / f"{notebook.name}.ipynb", folder / f"{notebook.name}.failed.ipynb"
    failure: Failure | None = Failure(None, "", "KeyboardInterrupt", "interrupted")
    # MPLBACKEND goes: with the user's own one, figures would not be shown in the notebook
    kernel = variables({"MPLBACKEND": None, **env})
    with open(folder / f"{notebook.name}.log", "w", encoding="utf-8") as log, kernel:
        try:
            failure = _execute(notebook, parameters, running, Output(log, show))
            failure = failure or _missing_figures(notebook, read_events(happened))
        finally:
            if failure:
                log.write(f"\n{failure}\n")
            if running.exists():
                os.replace(running, failed if failure else good)
            if not failure:
                failed.unlink(missing_ok=True)
    return failure


def events_file(notebook: Notebook, folder: Path) -> Path:
    """Where a notebook's kernel says what it builds, reuses, loads and draws (`store.emit`)."""
    return folder / f"{notebook.name}.events.jsonl"


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of one execution; a line that a dying kernel left torn is no event."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _missing_figures(notebook: Notebook, events: list[dict[str, Any]]) -> Failure | None:
    made = {Path(e["path"]).stem for e in events if e["event"] == "figure"}
    if missing := [name for name in notebook.figures if name not in made]:
        return Failure(
            None, "", "MissingFigure", f"states that it makes {', '.join(missing)}, but did not"
        )
    return None


def source(notebook: Notebook) -> nbformat.NotebookNode:
    """Read a source without what an earlier execution may have left in it."""
    node = nbformat.read(notebook.path, as_version=4)
    node.cells = [c for c in node.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for part in (node, *node.cells):
        part.metadata.pop("papermill", None)
    return node


def _execute(notebook: Notebook, parameters: dict, running: Path, output: Output) -> Failure | None:
    begun: list[Any] = []  # cells in the order in which they began; the last one is to blame

    def begin(cell: Any, cell_index: int) -> None:
        if "injected-parameters" not in cell.metadata.get("tags", []):
            begun.append(cell)

    try:
        done = papermill.execute_notebook(
            source(notebook),  # an object: papermill would expand braces in a path
            str(running).replace("{", "{{").replace("}", "}}"),
            parameters,
            kernel_name="python3",
            language="python",
            kernel_manager_class=type("Kernel", (Kernel,), {"stderr": output.log}),
            start_timeout=START_TIMEOUT,
            progress_bar=False,
            log_output=False,
            stdout_file=output,
            stderr_file=output.log,
            on_cell_start=begin,
        )
    except PapermillExecutionError as error:
        output.log.write("\n" + _ANSI.sub("", "\n".join(error.traceback)) + "\n")
        return _blame(begun, error.ename, error.evalue)
    except (
        Exception
    ) as error:  # a dead kernel, a timeout, a full disk: each is this notebook's failure
        return _blame(begun, type(error).__name__, str(error))
    if all(cell.metadata.papermill["status"] == "completed" for cell in done.cells):
        return None
    exits = [o for o in begun[-1].get("outputs", ()) if o.output_type == "error"] if begun else []
    name = exits[-1].ename if exits else "Unfinished"
    unrun = sum(cell.metadata.papermill["status"] == "pending" for cell in done.cells)
    return _blame(begun, name, f"the notebook ended here; {unrun} cells after it never ran")


def _blame(begun: list[Any], error: str, value: str) -> Failure:
    first = value.strip().splitlines()[0] if value.strip() else ""
    if not begun:
        return Failure(None, "", error, first)
    lines = [line.strip() for line in begun[-1].source.splitlines() if line.strip()]
    return Failure(len(begun), lines[0] if lines else "", error, first)
