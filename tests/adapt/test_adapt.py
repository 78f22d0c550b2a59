"""From a file to a model: checks, a study in small, what is delivered, and the gate; on the tiny random base."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml

from cfutils import profiles
from cfutils.adapt import check, command, deliver, report
from cfutils.analysis import forgetting, recommend
from cfutils.errors import UserError
from cfutils.lab import Lab

HOW = {"budget": 1e9, "keep": ("largest",), "columns": {}, "start_token": None, "n_seeds": 1, "dry_run": False,
       "command": ["cfutils", "adapt"]}  # fmt: skip


@pytest.fixture
def mine(tmp_path):
    """48 items of one's own, 2 of them with a tag in the text."""
    path = tmp_path / "mine.jsonl"
    tags = ["<script>alert(1)</script>"] * 2 + [""] * 46
    items = [{"prompt": f"Say {i}", "completion": f" number {i}{tag}"} for i, tag in enumerate(tags)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.fixture
def small(monkeypatch):
    """Every part as small as it gets."""
    monkeypatch.setattr(check.sizes, "MAX_TOKENS", 12)
    monkeypatch.setattr(check.sizes, "PROBE", 2)
    fit = check.sizes.fit

    def smaller(facts, *, budget):
        found = fit(facts, budget=budget)
        return check.sizes.replace(found, n_train=12, n_validation=2, n_heldout=4, epochs=1, limit=2)

    monkeypatch.setattr(check.sizes, "fit", smaller)


@pytest.fixture
def delivered(store, tiny_base, mine, small, tmp_path):
    out = tmp_path / "out"
    said = command.adapt(str(tiny_base), str(mine), str(out), **HOW)
    return out, said


def test_what_is_delivered(delivered, tiny_base, mine, capsys):
    """The model loads as it is; card, results, report and profile say the same; a second call computes nothing."""
    from huggingface_hub import ModelCard
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, said = delivered
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert tokenizer("a b")["input_ids"] == AutoTokenizer.from_pretrained(tiny_base)("a b")["input_ids"]
    assert model.generate(**tokenizer("Say 3", return_tensors="pt"), max_new_tokens=2).shape[1] > 2
    found = json.loads((out / "results.json").read_text())
    assert found["recommendation"] == said and sum(row["recommended"] for row in found["runs"]) == 1
    assert {row["recipe"] for row in found["runs"]} == {"base", "ft", "cfs", "cf_kl", "wise_ft"}
    card = ModelCard.load(out / "model" / "README.md")
    assert card.data.base_model == str(tiny_base) and card.data.eval_results
    assert all(line in card.text for line in said)
    page = (out / "report.html").read_text()
    assert "<script" not in page and said[0] in page and "data:image/png;base64," in page
    profile = profiles.load(str(out / "profile.yaml"))
    assert profile.target == str(mine) and profile.n_train == 12
    assert "cfutils adapt" in (out / "commands.sh").read_text()
    capsys.readouterr()
    command.adapt(str(tiny_base), str(mine), str(out), **HOW)
    assert "build " not in capsys.readouterr().out


def test_the_weights_are_those_of_the_recommended_run(delivered, tiny_base, mine):
    from safetensors.torch import load_file

    out, _ = delivered
    state = json.loads((out / "adapt.json").read_text())
    lab, items = command.study(profiles.Profile(**state["profile"]))
    plan = deliver.plan_of(lab, recommend.compare(items))
    folder = lab.ensure(lab.steps.run(plan)).model_folder
    one, other = (load_file(path / "model.safetensors") for path in (folder, out / "model"))
    assert all((one[name] == other[name]).all() for name in one)


def test_another_command_does_not_write_over_a_study(delivered, tiny_base, mine):
    out, _ = delivered
    with pytest.raises(UserError, match=r"a folder of the same command \(budget differ\)"):
        command.adapt(str(tiny_base), str(mine), str(out), **{**HOW, "budget": 7e8})


def test_a_dry_run_checks_and_tunes_nothing(store, tiny_base, mine, small, tmp_path, capsys):
    command.adapt(str(tiny_base), str(mine), str(tmp_path / "out"), **{**HOW, "dry_run": True})
    said = capsys.readouterr().out
    assert "data: 48 items from prompt, completion (48 rows)" in said and "time: about" in said
    assert not (tmp_path / "out").exists()
    assert {path.name for path in store.folder.iterdir()} <= {"base", "samples"}


def test_control_tokens_in_the_data_are_told(store, tiny_base, small, tmp_path, capsys):
    path = tmp_path / "odd.jsonl"
    rows = [{"prompt": f"Say <|endoftext|> {i}", "completion": " ok"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command.adapt(str(tiny_base), str(path), str(tmp_path / "out"), **{**HOW, "dry_run": True})
    assert "40 tokens with a role are spelt out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, says",
    [
        ({"keep": ("nothing",)}, "retained = 'nothing'"),
        ({"columns": {"prompt": "q"}}, r"no column 'q'"),
        ({"budget": 1e-6}, "is too small for"),
        ({"start_token": "<no>"}, "start_token"),
    ],
)
def test_whatever_is_wrong_is_said_before_anything_is_built(store, tiny_base, mine, tmp_path, change, says):
    with pytest.raises(UserError, match=says):
        command.adapt(str(tiny_base), str(mine), str(tmp_path / "out"), **{**HOW, **change})
    assert not (tmp_path / "out").exists()


def test_folders_that_are_not_ours(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="empty, new, or was written by"):
        check.out_folder(str(tmp_path / "mine"))
    for name in ("thesis.tex", "thesis.tex/deeper"):
        with pytest.raises(UserError, match=r"out = .*a folder"):
            check.out_folder(str(tmp_path / "mine" / name))


@pytest.mark.parametrize(
    "low, high, code, word", [(-0.01, 0.02, 0, "passed"), (0.03, 0.05, 1, "failed"), (0.01, 0.05, 3, "undecided")]
)
def test_the_gate_reads_the_interval(tmp_path, low, high, code, word):
    runs = [{"recommended": False, "drop": 9}, {"recommended": True, "drop": 0.02, "low": low, "high": high}]
    (tmp_path / "results.json").write_text(json.dumps({"runs": runs}))
    found, said = command.gate(str(tmp_path), max_drop=0.02)
    assert found == code and said.startswith(word)


def test_a_folder_that_cannot_be_judged(tmp_path):
    with pytest.raises(UserError, match=r"results\.json is not there"):
        command.gate(str(tmp_path), max_drop=0.02)
    (tmp_path / "results.json").write_text('{"runs": []}')
    with pytest.raises(UserError, match="damaged"):
        command.gate(str(tmp_path), max_drop=0.02)


@pytest.mark.parametrize("text, found", [("30m", 1800), ("2h", 7200), ("90s", 90), ("5", 300), ("0.5h", 1800)])
def test_budgets(text, found):
    assert command.seconds(text) == found


@pytest.mark.parametrize("text", ["", "m", "x", "-3m", "0", "1e9h", "nanm"])
def test_no_budgets(text):
    with pytest.raises(UserError, match="30m, 2h or 90s"):
        command.seconds(text)


def test_generated_text_is_escaped(make_report):
    page = make_report(["<script>alert(1)</script>", "a & b"])
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "a &amp; b" in page


@pytest.fixture
def make_report(tmp_path, tiny_profile):
    from tests.analysis.conftest import CELLS  # the same plain scores

    def make(texts):
        rows = []
        for run, (recipe, seed, bits) in enumerate([("base", -1, 1.0), ("ft", 0, 1.5), ("cfs", 0, 1.2)]):
            for key, value in (("bits", bits), ("nll", 1.0), ("kl", 0.0)):
                group, task, metric = CELLS[key]
                rows += [
                    {"run": f"r{run}", "recipe": recipe, "seed": seed, "group": group, "task": task, "metric": metric,
                     "item": str(i), "value": value + 0.01 * (i % 3), "weight": 1.0}
                    for i in range(9)
                ]  # fmt: skip
        items = pd.DataFrame(rows).assign(**dict.fromkeys(forgetting.SETTINGS, float("nan")))
        table = recommend.compare(items)
        report.write(tmp_path / "report.html", tiny_profile, table, items, ["a note"], pd.DataFrame({"text": texts}))
        return (tmp_path / "report.html").read_text()

    return make


def test_a_licence_is_the_bases_own(tmp_path):
    assert deliver.licence("asset:smollm2") == "apache-2.0"
    assert deliver.licence(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert deliver.licence(str(tmp_path)) == "mit"


def test_the_profile_that_is_written_is_the_one_that_ran(tmp_path, tiny_profile):
    deliver.begin(tmp_path, tiny_profile, {}, [])
    stated = yaml.safe_load((tmp_path / "profile.yaml").read_text())
    assert "name" not in stated and stated["n_train"] == 8 and "warmup" not in stated
    assert Lab(profiles.load(str(tmp_path / "profile.yaml"))).profile.change(name=tiny_profile.name) == tiny_profile
