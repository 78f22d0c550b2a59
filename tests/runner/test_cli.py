"""Command line: exit codes, one-line errors, lists without heavy imports, cleaning."""

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock

import cfutils
from cfutils import __main__ as cli
from cfutils.data import assets
from cfutils.pipeline.estimate import Expected
from cfutils.runner import batch
from cfutils.runner import plan as plans

HERE = Path(cfutils.__file__).resolve().parent.parent
KEY = "0123456789abcdef0123"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return a project of one notebook and one profile."""
    for folder in ("notebooks", "profiles"):
        (tmp_path / folder).mkdir()
    (tmp_path / "profiles" / "tiny.yaml").write_text("about: a tiny one\nbase: nowhere/none\n")
    node = nbformat.v4.new_notebook()
    node.metadata["cfutils"] = {"title": "First", "takes": "nothing", "makes": "a figure"}
    source = 'profile: str = "tiny"  # scale\nratio: float = None  # share of replay'
    node.cells = [nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})]
    nbformat.write(node, tmp_path / "notebooks" / "01_first.ipynb")
    monkeypatch.setenv("CFUTILS_ROOT", str(tmp_path))
    monkeypatch.delenv("CFUTILS_RUNS", raising=False)
    return tmp_path


@pytest.fixture
def world(root):
    """Put the skills' material into the project."""
    (root / "data" / "tiny").mkdir(parents=True)
    for name in ("tiny", "tiny-think"):
        (root / "data" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "data" / name / "world.yaml", root / "data" / name)


@pytest.fixture
def plan(monkeypatch):
    """A plan of one built, one shipped and one missing step."""
    none = {"changes": set(), "expected": None}
    rows = [
        {"state": "built", "kind": "samples", "label": "T=1", "key": "aa", "seconds": 61.0, **none,
         "changes": {"code", "versions"}},
        {"state": "shipped", "kind": "log", "label": "ft", "key": "cc", "seconds": 2.0, **none},
        {"state": "missing", "kind": "tuned", "label": "ft", "key": "bb", "seconds": None, **none,
         "expected": Expected("tuned", 40.0, 6e6, "built here")},
    ]  # fmt: skip
    monkeypatch.setattr(plans, "plan", lambda profile, studies: rows)


def piece(root: Path, path: str, text: str = "12345") -> Path:
    """Put a file below the runs folder."""
    file = root / "data" / "runs" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["run", "tini"], "profile = 'tini'"),
        (["run", "tiny", "-n", "7"], "notebook = '7' is not allowed: one of 01_first"),
        (["run", "tiny", "-p", "ratoi=1"], "Did you mean ratio?"),
        (["run", "tiny", "--dry-run", "-p", "ratio=2"], "ratio = 2.0"),
        (["list", "colours"], "profiles, notebooks, recipes, tasks"),
        (["run", "broken"], "broken.yaml is not a valid profile"),
        (["status", "tini"], "profile = 'tini'"),
        (["assets", "where", "x"], "takes no names"),
        (["run", "--rebuild-changed=colour"], "--rebuild-changed = 'colour' is not allowed: code, versions"),
        (["run", "--dry-run", "--rebuild"], "leave out --rebuild"),
        (["results", "compare", "tiny"], "takes 2 names"),
        (["results", "compare", "here", "here"], "one of them a profile or a folder"),
        (["results", "export", "tini"], "profile = 'tini'"),
    ],
)
def test_a_user_error_is_one_line_and_exit_2(root, plan, capsys, argv, said):
    (root / "profiles" / "broken.yaml").write_text("a: [")
    assert cli.main(argv) == 2
    out, error = capsys.readouterr()
    assert error.startswith("cfutils: error: ") and said in error
    assert error.count("\n") == 1 and not out


@pytest.mark.parametrize("argv", [[], ["fly"], ["run", "--fast"], ["assets", "burn"]])
def test_a_command_line_that_makes_no_sense_is_exit_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2 and "usage: cfutils" in capsys.readouterr().err


def test_run_passes_everything_on_and_returns_its_code(monkeypatch):
    asked = []
    monkeypatch.setattr(batch, "run", lambda *a, **k: asked.append((a, k)) or 1)
    assert cli.main(["run", "-n", "1", "2", "-n", "03", "-p", "a=1", "b=[1, 2]", "--rebuild"]) == 1
    given = {"rebuild": True, "rebuild_changed": None, "ray": None}
    assert asked == [(("tiny", ["1", "2", "03"], ["a=1", "b=[1, 2]"]), given)]
    cli.main(["run", "--rebuild-changed", "--ray", "auto"])
    assert asked[-1][1] == {"rebuild": False, "rebuild_changed": ["code", "versions"], "ray": "auto"}
    cli.main(["run", "--rebuild-changed=code"])
    assert asked[-1][1]["rebuild_changed"] == ["code"]


def test_an_interrupt_is_exit_130(monkeypatch, capsys):
    class HalfWritten:
        def __del__(self):
            raise ValueError("the file is closed")  # as pyarrow's writer does

    def interrupt(*_, **__):
        _writer = HalfWritten()
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(batch, "run", interrupt)
    assert cli.main(["run"]) == 130
    assert capsys.readouterr().err == "cfutils: interrupted; the same command goes on where it stopped\n"


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def fault(*_, **__):
        raise ValueError("not the user's")

    monkeypatch.setattr(batch, "run", fault)
    with pytest.raises(ValueError, match="not the user's"):
        cli.main(["run"])


def test_lists(root, world, capsys):
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    for text in ("a tiny one", "01_first", "takes nothing", "share of replay", "cf_kl", "gsm8k"):
        assert text in said
    rows = [line.split()[:2] for line in said.splitlines() if line.startswith("  ")]
    assert ["rotate", "target"] in rows and ["chain", "retained"] in rows
    assert cli.main(["list", "profiles"]) == 0
    assert capsys.readouterr().out == "Profiles\n  tiny  a tiny one\n"


def test_help_and_lists_import_nothing_heavy(root, world):
    code = (
        "import sys\nfrom cfutils.__main__ import main\nmain(['list'])\n"
        "print([m for m in ('torch', 'papermill', 'transformers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE)
    assert done.stdout.endswith("\n[]\n"), done.stdout + done.stderr


def test_status_and_dry_run_show_what_is_built(root, plan, capsys):
    assert cli.main(["status", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "built    samples  T=1  aa  1:01   other code and versions" in said
    assert "shipped  log      ft   cc  0:02" in said and "missing  tuned    ft   bb  ~40 s" in said
    assert "3 steps: 1 built, 1 shipped, 1 missing; built in 1:03; 1 by other code or versions" in said
    outlook = "1 step is missing: about 40 s, measured on like steps (built here); 6 MB of disk\n"
    assert said.endswith(outlook)
    assert cli.main(["status", "tiny", "--changed"]) == 0
    said = capsys.readouterr().out
    assert "samples" in said and "tuned" not in said
    assert cli.main(["run", "tiny", "--dry-run", "-p", "ratio=0.5"]) == 0
    said = capsys.readouterr().out
    assert "with profile='tiny', ratio=0.5" in said and said.endswith(outlook)
    assert not (root / "data").exists()


def test_assets(monkeypatch, capsys):
    monkeypatch.setattr(assets, "names", lambda: ["a", "b"])
    monkeypatch.setattr(assets, "fetch", lambda name: Path("/x") / name)
    assert cli.main(["assets", "fetch"]) == 0
    assert cli.main(["assets", "fetch", "b"]) == 0
    assert capsys.readouterr().out == "a: /x/a\nb: /x/b\nb: /x/b\n"
    for state, code in (("sound", 0), ("damaged", 1)):
        monkeypatch.setattr(assets, "verify", lambda s=state: [{"package": "a", "state": s}])
        assert cli.main(["assets", "verify"]) == code
        assert capsys.readouterr().out.split() == ["package", "state", "a", state]


def test_doctor(monkeypatch, capsys):
    doctor = types.SimpleNamespace(table=lambda checks: f"{len(checks)} checks")
    monkeypatch.setitem(sys.modules, "cfutils.runner.doctor", doctor)
    monkeypatch.setattr(cfutils.runner, "doctor", doctor, raising=False)
    for oks, code in (([True, None], 0), ([True, False], 1)):
        doctor.examine = lambda oks=oks: [types.SimpleNamespace(ok=ok) for ok in oks]
        assert cli.main(["doctor"]) == code
    assert "2 checks" in capsys.readouterr().out


def test_clean_takes_what_a_kill_has_left(root, capsys):
    left = piece(root, f"run/.work-{KEY}/state")
    running = piece(root, "notebooks/tiny/.01_first.running.ipynb")
    stay = [
        piece(root, f"run/{KEY}/record.json"),
        piece(root, "notebooks/tiny/01_first.ipynb"),
        piece(root, "notebooks/tiny/.lock", ""),
        piece(root, "mine/precious/thesis.txt"),
    ]
    assert cli.main(["clean"]) == 0
    assert capsys.readouterr().out == "removed 2 unfinished pieces, 10 bytes\n"
    assert not left.parent.exists() and not running.exists() and all(p.exists() for p in stay)

    assert cli.main(["clean", "--all"]) == 2
    assert "2 finished results (10 bytes)" in capsys.readouterr().err
    assert all(p.exists() for p in stay)

    assert cli.main(["clean", "--all", "--yes"]) == 0
    assert [p.exists() for p in stay] == [False, False, False, True]


def test_clean_leaves_what_is_being_built(root, capsys):
    left = piece(root, f"run/.work-{KEY}/state")
    with FileLock(left.parent.with_name(f".lock-{KEY}")):
        assert cli.main(["clean"]) == 0
    assert "is in use and stays" in capsys.readouterr().out and left.exists()


def built(root, kind, key, *needs, seconds=60.0, files=("items.parquet",)):
    """A finished artifact of 5 bytes a file, with its record."""
    for name in files:
        piece(root, f"{kind}/{key}/{name}")
    inputs = {"kind": kind, "needs": {str(i): need for i, need in enumerate(needs)}}
    return piece(root, f"{kind}/{key}/record.json", json.dumps({"key": key, "seconds": seconds, "inputs": inputs}))


@pytest.fixture
def runs(root):
    """A scored run, one that is not, and the scores."""
    a, b, c = ("a" * 20, "b" * 20, "c" * 20)
    for key in (a, b):
        built(root, "tuned", key, seconds=3600.0, files=("model.safetensors", "log.parquet"))
    built(root, "target", c, a)
    return root / "data" / "runs"


def test_clean_prunes_weights_of_scored_runs_alone(runs, capsys):
    assert cli.main(["clean", "--weights"]) == 0
    assert "pruned the weights of 1 runs, 5 bytes" in capsys.readouterr().out
    left = {path.name for path in (runs / "tuned" / ("a" * 20)).iterdir()}
    assert left == {"record.json", "log.parquet", "pruned.json"}
    assert (runs / "tuned" / ("b" * 20) / "model.safetensors").exists()
    assert cli.main(["clean", "--weights"]) == 0
    assert "of 0 runs, 0 bytes" in capsys.readouterr().out


def test_clean_lists_what_there_is_and_what_it_costs(runs, capsys):
    assert cli.main(["clean", "--dry-run"]) == 0
    head, target, tuned = capsys.readouterr().out.splitlines()
    assert head.split() == ["kind", "count", "size", "to", "build", "again", "what", "was", "made", "from", "it"]
    assert target.split()[:2] == ["target", "1"] and tuned.split()[:2] == ["tuned", "2"]
    assert tuned.endswith("1 target") and "2.0 h" in tuned
    assert (runs / "tuned" / ("a" * 20) / "model.safetensors").exists()


def test_clean_of_some_kinds(runs, capsys):
    assert cli.main(["clean", "--kind", "tuned"]) == 2
    assert "--kind tuned removes 2 finished results" in capsys.readouterr().err
    assert cli.main(["clean", "--kind", "tuned", "--yes"]) == 0
    assert not list(runs.glob("tuned/*/record.json")) and list(runs.glob("target/*/record.json"))
    assert cli.main(["clean", "--kind", "tunned"]) == 2
    assert "kinds that there are: target" in capsys.readouterr().err
