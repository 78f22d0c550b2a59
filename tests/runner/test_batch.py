"""Runner: what is refused before anything runs, and what becomes of good and bad notebooks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from pseudo_terminal import Terminal, screen, states

from cfutils import display, profiles
from cfutils.errors import UserError
from cfutils.pipeline.estimate import Expected
from cfutils.runner import batch, notebook, plan
from cfutils.runner import terminal as terminals
from cfutils.runner.jobs import prepare

PROFILE = "about: tiny\nbase: nowhere/none\nratio: 0.25\n"
PARAMETERS = 'profile: str = "tiny"  # scale\n'


def write(root: Path, name: str, *cells: str, tags: int = 1, parameters: str = PARAMETERS, **facts):
    """Put a notebook into a project; `facts` become its metadata."""
    node = nbformat.v4.new_notebook()
    node.metadata["cfutils"] = {"title": name[3:].capitalize(), **facts}
    for _ in range(tags):
        node.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    node.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(node, root / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return an empty project; its folder's name holds braces, which papermill would expand."""
    root = tmp_path / "project {x}"
    for folder in ("notebooks", "profiles"):
        (root / folder).mkdir(parents=True)
    (root / "profiles" / "tiny.yaml").write_text(PROFILE)
    monkeypatch.setenv("CFUTILS_ROOT", str(root))
    monkeypatch.delenv("CFUTILS_RUNS", raising=False)
    monkeypatch.delenv("CFUTILS_EVENTS", raising=False)
    return root


@pytest.fixture
def two(root):
    """Return a project of two notebooks with parameters."""
    write(
        root, "01_one", parameters=PARAMETERS + "ratio: float = None  # share\nseeds: list = None\n"
    )
    write(root, "02_two", parameters=PARAMETERS + "n_train: int = 8  # 'a # b'\nlabel: str = 'x'\n")
    return root


def results(root: Path) -> dict:
    """Return the lines of the summary by notebook."""
    summary = json.loads((root / "data/runs/notebooks/tiny/summary.json").read_text())
    return {row["notebook"]: row for row in summary["notebooks"]}


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ends(pid: int) -> bool:
    """Whether a process is gone, or is soon."""
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive(pid)


# --- sources -------------------------------------------------------------------------------------


def test_reads_what_a_notebook_states(two):
    write(
        two,
        "03_three",
        title="Third",
        needs=["01"],
        figures=["curve"],
        studies=["ratio"],
        makes="it",
    )
    (two / "notebooks" / "scratch.ipynb").write_text("not the suite's")
    first, second, third = notebook.notebooks()
    assert (first.number, first.name, first.title) == ("01", "01_one", "One")
    assert second.parameters["n_train"] == notebook.Parameter("n_train", "int", 8, "'a # b'")
    assert third.needs == ("01",) and third.figures == ("curve",) and third.studies == ("ratio",)
    assert third.makes == "it" and third.takes == third.base == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tags": 0}, "0 cells tagged `parameters`"),
        ({"tags": 2}, "2 cells tagged `parameters`"),
        ({"parameters": "a = 1"}, "'a = 1': expected"),
        ({"parameters": "a: int | None = None"}, "expected `name: type = literal"),
        ({"parameters": "a: int = 'x'"}, "expected `name: type = literal"),
        ({"parameters": "a: int = f()"}, "expected `name: type = literal"),
        ({"parameters": "a: list = [\n 1]"}, "on one line"),
        ({"parameters": "a: int = 1\na: int = 2"}, "twice"),
        ({"parameters": "a: int ="}, "not valid Python"),
        ({"title": ""}, '"title"'),
        ({"needs": "01"}, "lists of texts"),
        ({"colour": "red"}, "colour"),
        ({"base": ["shipped:tiny"]}, "base"),
        ({"needs": ["09"]}, "needs 09"),
    ],
)
def test_refuses_a_malformed_notebook_by_name(root, change, said):
    write(root, "01_one", **change)
    with pytest.raises(UserError, match="01_one") as caught:
        notebook.notebooks()
    assert said in str(caught.value)


def test_refuses_what_is_no_notebook_and_a_number_used_twice(root):
    with pytest.raises(UserError, match="no notebooks"):
        notebook.notebooks()
    (root / "notebooks" / "01_one.ipynb").write_text("{")
    with pytest.raises(UserError, match=r"01_one\.ipynb cannot be read"):
        notebook.notebooks()
    write(root, "01_one")
    write(root, "01_two")
    with pytest.raises(UserError, match="two notebooks have the number 01"):
        notebook.notebooks()


def test_selects_by_number_or_name_in_order(two):
    assert [n.name for n in notebook.select(["2", "01_one", "02"])] == ["01_one", "02_two"]
    assert len(notebook.select([])) == 2
    with pytest.raises(UserError, match=r"'three'.*01_one, 02_two"):
        notebook.select(["three"])


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("float", "1e-5", 1e-5),
        ("float", "2", 2.0),
        ("float", "-.5", -0.5),
        ("int", "-7", -7),
        ("bool", "true", True),
        ("bool", "False", False),
        ("str", "007", "007"),
        ("str", "a: [b", "a: [b"),
        ("str", "1e-5", "1e-5"),
        ("list", "[1, 2e-3, ft, null]", [1, 0.002, "ft", None]),
        ("list", "[]", []),
        ("int", "None", None),
        ("str", "null", None),
    ],
)
def test_reads_values_as_they_are_meant(kind, text, value):
    found = notebook.Parameter("x", kind, None, "").read(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("int", "007"), ("int", "1.0"), ("int", "1_000"), ("int", "true"), ("int", "0x10"),
        ("int", ""), ("float", "nan"), ("float", ".inf"), ("float", "1e999"), ("float", "007"),
        ("float", "half"),
        ("bool", "yes"), ("bool", "1"), ("list", "1, 2"), ("list", "[1"), ("list", "{a: 1}"),
        ("list", "[1e999]"), ("int", "2001-01-01"), ("int", "1:30"),
    ],
)  # fmt: skip
def test_refuses_values_of_another_type(kind, text):
    with pytest.raises(UserError, match=f"expected {kind}"):
        notebook.Parameter("x", kind, None, "").read(text)


def test_none_is_only_for_parameters_whose_default_it_is():
    assert notebook.Parameter("x", "str", "a", "").read("None") == "None"
    with pytest.raises(UserError, match="expected int"):
        notebook.Parameter("x", "int", 1, "").read("None")


def test_parameters_go_where_they_are_taken(two):
    jobs = prepare("tiny", [], ["ratio=0.5", "n_train=3", "label=a=b"])
    assert [job.parameters for job in jobs] == [
        {"profile": "tiny", "ratio": 0.5},
        {"profile": "tiny", "n_train": 3, "label": "a=b"},
    ]
    assert [(job.profile.ratio, job.profile.n_train) for job in jobs] == [(0.5, 64), (0.25, 3)]


def test_defaults_of_a_notebook_count_as_the_profile_that_its_lab_sees(two):
    assert prepare("tiny", ["02"], [])[0].profile.n_train == 8


@pytest.mark.parametrize(
    ("profile", "names", "given", "said"),
    [
        ("tini", [], [], "profile = 'tini'.*tiny"),
        ("tiny", ["03"], [], "notebook = '03'"),
        (
            "tiny",
            [],
            ["ratoi=0.5"],
            "ratoi.*Did you mean ratio.*01_one: ratio, seeds; 02_two: n_train",
        ),
        ("tiny", ["02"], ["ratio=0.5"], "It is a parameter of 01_one, not among"),
        ("tiny", [], ["ratio=half"], "ratio = 'half'.*expected float"),
        ("tiny", [], ["n_train=1.5"], "n_train = '1.5'.*expected int"),
        ("tiny", [], ["ratio=1.5"], r"ratio = 1.5.*\[0, 1\)"),
        ("tiny", [], ["seeds=[0, x]"], r"seeds\[1\] = 'x'"),
        ("tiny", [], ["ratio"], "NAME=VALUE"),
        ("tiny", [], ["ratio=0.1", "ratio=0.2"], "given twice"),
        ("tiny", [], ["profile=tiny"], "first argument"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(two, profile, names, given, said):
    with pytest.raises(UserError, match=said):
        batch.run(profile, names, given)
    assert not (two / "data").exists()


@pytest.fixture
def own(two):
    """A third notebook, about one base alone, and a profile with that base."""
    write(two, "00_base", parameters=PARAMETERS + "pretrain: bool = False\n", base="shipped:tiny")
    text = PROFILE.replace("nowhere/none", "shipped:tiny")
    (two / "profiles" / "shipped.yaml").write_text(text)
    return two


def test_a_notebook_about_one_base_is_left_out_of_a_run_of_another(own):
    assert notebook.notebooks()[0].base == "shipped:tiny"
    assert [job.notebook.number for job in prepare("tiny", [], [])] == ["01", "02"]
    assert [job.notebook.number for job in prepare("shipped", [], [])] == ["00", "01", "02"]


def test_a_notebook_about_one_base_is_refused_by_name_for_another(own):
    said = r"notebook = '00_base' .*a profile with base shipped:tiny.*tiny has nowhere/none"
    for names in (["00"], ["01", "00_base"], iter(["00"])):
        with pytest.raises(UserError, match=said):
            prepare("tiny", names, [])
    assert [job.notebook.number for job in prepare("shipped", ["00"], [])] == ["00"]


def test_a_parameter_of_the_notebook_left_out_is_refused(own):
    """It would be taken by nothing that runs."""
    assert prepare("shipped", [], ["pretrain=true"])[0].parameters["pretrain"] is True
    with pytest.raises(UserError, match="pretrain"):
        prepare("tiny", [], ["pretrain=true"])


# --- plan ----------------------------------------------------------------------------------------


def test_dry_run_lists_steps_once_and_runs_nothing(two, monkeypatch, capsys):
    write(two, "03_three", "raise RuntimeError", studies=["methods"])
    asked = []

    def states(profile, studies):
        asked.append((profile.n_train, tuple(studies)))
        row = {"kind": "samples", "label": "T=1", "key": "a1", "state": "built", "seconds": 75.0,
               "changes": {"code"}, "expected": None}  # fmt: skip
        other = {"kind": "tuned", "key": f"{profile.n_train}", "state": "missing", "seconds": None,
                 "expected": Expected("tuned", None, 0)}  # fmt: skip
        return [row, row | other | {"changes": set()}]

    monkeypatch.setattr(plan, "plan", states)
    assert plan.dry_run("tiny", [], ["n_train=64"]) == 0
    said = capsys.readouterr().out
    assert asked == [(64, ()), (64, ()), (64, ("methods",))]
    assert said.count("samples") == 1 and "1:15" in said and "other code" in said
    assert "profile='tiny', n_train=64, label='x'" in said
    assert "2 steps: 1 there, 1 missing. Nothing was run." in said
    assert "1 step is missing: time unknown, nothing like it was measured (tuned)" in said
    assert not (two / "data").exists()


# --- execution -----------------------------------------------------------------------------------

WORK = """import os, sys
from cfutils.events import emit, say
say(f"working on {profile}, {n_train}")
print("quiet", file=sys.stderr)
for _ in range(2):
    emit("built", kind="run", key="a", label="", seconds=1.0)
    emit("reused", kind="run", key="a", label="")
    emit("reused", kind="samples", key="b", label="", shipped=True, changed=["code"])
    emit("model", path="m")
emit("figure", path="f/curve.png")
emit("figure", path="f/curve.pdf")
open("env.json", "w").write(__import__("json").dumps(dict(os.environ)))
"""


def test_good_run_counts_events_and_keeps_names(root, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    taken = PARAMETERS + "n_train: int = 8\n"
    write(root, "01_one", WORK, "assert n_train == 3", parameters=taken, figures=["curve"])
    stale = nbformat.read(root / "notebooks/01_one.ipynb", 4)
    stale.metadata["papermill"] = {"exception": True, "parameters": {"n_train": 1}}
    nbformat.write(stale, root / "notebooks/01_one.ipynb")
    folder = root / "data/runs/notebooks/tiny"
    folder.mkdir(parents=True)
    (folder / "01_one.failed.ipynb").write_text("from an earlier run")
    (folder / "01_one.events.jsonl").write_text('{"event": "model"}\n')

    assert batch.run("tiny", [], ["n_train=3"], rebuild=True) == 0

    row = results(root)["01_one"]
    assert (row["status"], row["built"], row["reused"], row["models"]) == ("good", 1, 1, 2)
    assert (row["shipped"], row["changed"]) == (1, 1)
    assert row["figures"] == ["curve"] and row["reason"] == ""
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["parameters"] == {"01_one": {"profile": "tiny", "n_train": 3}}
    assert summary["exit_code"] == 0
    here = {path.name for path in folder.iterdir()} - {".lock"}
    endings = ("ipynb", "log", "events.jsonl", "fresh.json")
    assert here == {"summary.json", *(f"01_one.{ending}" for ending in endings)}
    done = nbformat.read(folder / "01_one.ipynb", 4)
    assert done.metadata.papermill.exception is None
    said, complained = capfd.readouterr()
    assert "IPKernelApp" not in complained
    assert "01 +0:0" in said and "| working on tiny, 3" in said and "1 of 1 good" in said
    assert "1 artifacts were made by other code or library versions" in said
    assert "quiet" not in said and "quiet" in (folder / "01_one.log").read_text()
    env = json.loads(Path("env.json").read_text())
    assert env["CFUTILS_ROOT"] == str(root) and env["PYTHONHASHSEED"] == "0"
    assert abs(float(env["CFUTILS_REBUILD"]) - time.time()) < 600
    assert "inline" in env["MPLBACKEND"] and os.environ["MPLBACKEND"] == "Agg"
    assert "CFUTILS_REBUILD" not in os.environ


def test_a_whole_run_is_of_the_notebooks_that_the_profile_names(root):
    for name in ("01_one", "02_two", "07_more"):
        write(root, name, "x = 1")
    assert [job.notebook.number for job in prepare("tiny", [], [])] == ["01", "02"]
    assert [job.notebook.number for job in prepare("tiny", ["7"], [])] == ["07"]
    file = root / "profiles" / "tiny.yaml"
    file.write_text(file.read_text() + 'notebooks: ["07"]\n')
    assert [job.notebook.number for job in prepare("tiny", [], [])] == ["07"]


def test_each_way_to_fail_is_a_failure_and_the_rest_runs(root, capfd):
    write(root, "01_error", "x = 1", "# why\n1 / 0  # here", "never = 1")
    leave = "import os, subprocess\nchild = subprocess.Popen(['sleep', '600'])\n"
    leave += f"open({str(root / 'pid')!r}, 'w').write(str(child.pid))\nos._exit(0)"
    write(root, "02_dies", leave)
    write(root, "03_exits", "import sys\nsys.exit(0)", "never = 1")
    write(root, "04_needs", "x = 1", needs=["01"])
    write(root, "05_needs_that", "x = 1", needs=["04"])
    write(root, "06_no_figure", "x = 1", figures=["curve"])
    write(root, "00_alone", "x = 1")
    folder = root / "data/runs/notebooks/tiny"
    folder.mkdir(parents=True)
    for name in ("01_error", "02_dies"):
        (folder / f"{name}.ipynb").write_text("last good output")

    assert batch.run("tiny") == 1

    rows = results(root)
    assert [row["status"] for row in rows.values()] == [
        "good", "failed", "failed", "failed", "skipped", "skipped", "failed",
    ]  # fmt: skip
    assert rows["01_error"]["reason"] == "cell 3 (# why): ZeroDivisionError: division by zero"
    assert rows["02_dies"]["reason"].startswith("cell 2 (import os, subprocess): DeadKernelError")
    assert rows["03_exits"]["reason"].startswith("cell 2 (import sys): SystemExit")
    assert "1 cell" in rows["03_exits"]["reason"]
    assert rows["04_needs"]["reason"] == "needs 01_error"
    assert rows["05_needs_that"]["reason"] == "needs 04_needs"
    assert "curve" in rows["06_no_figure"]["reason"]
    for name in ("01_error", "02_dies"):
        assert (folder / f"{name}.ipynb").read_text() == "last good output"
        assert (folder / f"{name}.failed.ipynb").exists()
    assert not (folder / "03_exits.ipynb").exists() and (folder / "00_alone.ipynb").exists()
    assert not list(folder.glob(".*.ipynb"))
    said = capfd.readouterr().out
    assert (
        "01_error: FAILED" in said
        and "01_error.log" in said
        and "last good output, which stays" in said
    )
    assert "ZeroDivisionError" in (folder / "01_error.log").read_text()
    assert "1 of 7 good" in said
    assert ends(int((root / "pid").read_text()))


def test_a_second_run_of_a_profile_is_refused(two):
    from filelock import FileLock

    folder = two / "data/runs/notebooks/tiny"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(UserError, match="under way"):
        batch.run("tiny")


def test_interrupt_ends_the_kernel_and_what_it_started(root):
    start = "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '600'])\n"
    write(
        root,
        "01_slow",
        start + "print('pids', os.getpid(), child.pid, flush=True)\ntime.sleep(600)",
    )
    write(root, "02_next", "x = 1")
    command = [sys.executable, "-m", "cfutils", "run", "tiny"]
    here = Path(batch.__file__).resolve().parents[2]
    heed = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    process = subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, heed)
    with process:
        line = next(line for line in process.stdout if "| pids" in line)
        pids = [int(word) for word in line.split()[-2:]]
        assert all(map(alive, pids))
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        assert process.wait(60) == 130
    assert "0 of 2 good" in said
    assert [row["status"] for row in results(root).values()] == ["interrupted", "not run"]
    assert all(map(ends, pids))


LONG = """import time
from cfutils import progress
print("hello", flush=True)
with progress.task("step", total=9, alike=False), progress.task("tuning", total=60) as advance:
    for _ in range(60):
        time.sleep(0.05)
        advance()
print("built tuned: ft in 3 s")
"""


def test_what_a_kernel_is_at_is_shown_and_leaves_nothing_in_its_notebook(root, monkeypatch, capsys):
    monkeypatch.setattr(display, "PLAIN_EVERY", (1.0, 1.0))
    write(root, "01_long", LONG)
    assert batch.run("tiny") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"01 long · tuning \d+/60 · 0:0\d left · step 1 of 9", line) for line in lines)
    done = nbformat.read(root / "data/runs/notebooks/tiny/01_long.ipynb", 4)
    outputs = [output for cell in done.cells for output in cell.get("outputs", ())]
    assert "".join(output.text for output in outputs) == "hello\nbuilt tuned: ft in 3 s\n"


def test_what_a_kernel_says_of_itself_goes_to_the_log(root, capfd):
    write(root, "01_one", "import sys\nprint('[IPKernelApp] ERROR', file=sys.__stderr__, flush=True)")
    assert batch.run("tiny") == 0
    assert "IPKernelApp" not in "".join(capfd.readouterr())
    assert "[IPKernelApp] ERROR" in (root / "data/runs/notebooks/tiny/01_one.log").read_text()


def test_a_terminal_shows_one_line_and_ctrl_c_leaves_it_clean(root):
    write(root, "01_long", LONG, LONG)
    terminal = Terminal([sys.executable, "-m", "cfutils", "run", "tiny"], env={"CFUTILS_ROOT": str(root)})
    terminal.until(lambda written: "built tuned" in written and states(written)[-1].startswith("01 long · tuning"))
    terminal.type("\x03")
    code, written = terminal.end()
    shown, rows = states(written), screen(written)
    assert any(re.fullmatch(r"01 long · \d:\d\d · hello", line) for line in shown)
    assert code == 130 and rows[0] == "01_long: Long"
    assert re.fullmatch(r"01 \+0:\d\d \| built tuned: ft in 3 s", rows[1])
    assert rows[2].startswith("01_long: INTERRUPTED") and rows[-2].startswith("0 of 1 good")
    assert not any("·" in row or "^C" in row for row in rows)


# --- terminal ------------------------------------------------------------------------------------


def test_a_table():
    text = terminals.table(("name", "n"), [("a", 1), ("long", 20)])
    assert text == "name   n\na      1\nlong  20"


def test_a_profile_of_your_own_file(two, tmp_path):
    (tmp_path / "mine.yaml").write_text(PROFILE)
    job = prepare(str(tmp_path / "mine.yaml"), ["01"], [])[0]
    assert isinstance(job.profile, profiles.Profile) and job.profile.name == "mine"
