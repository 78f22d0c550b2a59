"""From a file to a model: checks, a study in small, what is delivered, and the gate; on the tiny random base."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import yaml

from cfutils import profiles
from cfutils.__main__ import main
from cfutils.adapt import check, command, deliver, report
from cfutils.analysis import forgetting, recommend
from cfutils.errors import UserError
from cfutils.lab import Lab
from tests.adapt.conftest import HOW


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
    assert {row["recipe"] for row in found["runs"]} == {"base", "ft", "l2", "cfs", "cf_kl", "wise_ft"}
    card = ModelCard.load(out / "model" / "README.md")
    assert card.data.base_model is None and f"- tuned from {tiny_base}" in card.text and card.data.eval_results
    assert all(line in card.text for line in said)
    page = (out / "report.html").read_text()
    assert "<script" not in page and said[0] in page and "data:image/png;base64," in page
    profile = profiles.load(str(out / "profile.yaml"))
    assert profile.target == str(mine) and profile.n_train == 12
    assert "cfutils adapt" in (out / "commands.sh").read_text()
    capsys.readouterr()
    command.adapt(str(tiny_base), str(mine), str(out), **HOW)
    assert "built " not in capsys.readouterr().out


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


def test_files_of_ones_own_are_kept_beside_tasks(store, tiny_base, mine, small, tmp_path, monkeypatch, capsys):
    """Hundreds of questions, choices and an lm-eval task, from file to report; a changed file has no scores yet."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    opened, closed, task = (tmp_path / name for name in ("opened.jsonl", "closed.jsonl", "task.yaml"))
    rows = ({"prompt": f"Tell {i}:", "answers": [f"{i}", "no"]} for i in range(400))
    opened.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = ({"question": f"Is {i} even?", "choices": ["yes", "no"], "answer": ["yes", "no"][i % 2]} for i in range(300))
    closed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task.write_text(
        "dataset_path: json\ndataset_kwargs: {data_files: opened.jsonl}\ntest_split: train\n"
        'output_type: loglikelihood\ndoc_to_text: "{{prompt}}"\ndoc_to_target: "{{answers[0]}}"\n'
        "metric_list: [{metric: acc}]\n"
    )
    how = {**HOW, "keep": (str(opened), str(closed), str(task), "largest")}
    command.adapt(str(tiny_base), str(mine), str(tmp_path / "out"), **how)
    said = capsys.readouterr().out
    assert "kept: opened (400 items), closed (300 items), task (400 items), largest; at most 2 items of each" in said
    records = [json.loads(path.read_text()) for path in (store.folder / "retained").glob("*/record.json")]
    assert len(records) == 10 and str(tmp_path) not in json.dumps([r["inputs"] for r in records])
    items = pd.concat(pd.read_parquet(path) for path in (store.folder / "retained").glob("*/items.parquet"))
    metrics = {name: set(own["metric"]) for name, own in items.groupby("task")}
    assert metrics == {
        "opened": {"acc", "f1", "bpb_gold"}, "closed": {"acc", "margin", "bpb_gold"}, "task": {"acc", "bpb_gold"},
        "largest": {"acc", "bpb_gold"},
    }  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f"<td>{name}</td>" in page for name in ("opened", "closed", "task"))
    profile = profiles.load(str(tmp_path / "out" / "profile.yaml"))
    assert store.find(Lab(profile).steps.scores(None, "retained"))
    opened.write_text(opened.read_text().replace("Tell 0:", "Tell me:"))
    assert store.find(Lab(profile).steps.scores(None, "retained")) is None
    assert store.find(Lab(profile).steps.scores(None, "target"))


def test_a_file_that_changes_while_the_work_goes_on_is_not_scored(store, tiny_profile, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n')
    lab = Lab(tiny_profile.change(benchmarks="package", retained=(str(path),)))
    step = lab.steps.scores(None, "retained")
    path.write_text('{"prompt": "a", "answer": "c"}\n')
    with pytest.raises(UserError, match="was changed while the work went on: give the same command again"):
        lab.ensure(step)


def test_a_folder_from_before_an_option_was_there_goes_on(tmp_path, tiny_profile, capsys):
    asked = {"base": "b", "data": "d", "budget": HOW["budget"], "keep": [*HOW["keep"]], "columns": {},
             "start_token": None, "seeds": 1}  # fmt: skip
    deliver.begin(tmp_path, tiny_profile, asked, ["what was found"])
    assert command.adapt("b", "d", str(tmp_path), **{**HOW, "dry_run": True}) == []
    assert "what was found" in capsys.readouterr().out


@pytest.mark.parametrize("given, rank", [([], None), (["--lora"], 64), (["--lora", "8"], 8)])
def test_the_rank_of_adapters(monkeypatch, given, rank):
    asked = []
    monkeypatch.setattr(command, "adapt", lambda *a, **k: asked.append(k["lora"]) or [])
    assert main(["adapt", *given, "--base", "shipped:tiny", "--data", "mine.jsonl"]) == 0
    assert asked == [rank]


def test_no_rank_of_adapters(capsys):
    assert main(["adapt", "--base", "shipped:tiny", "--data", "mine.jsonl", "--lora", "0"]) == 2
    assert "--lora = 0 is not allowed: a rank from 1 to 1024" in capsys.readouterr().err


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
def test_whatever_is_wrong_is_said_before_anything_is_built(
    store, tiny_base, mine, tmp_path, lm_eval_index, change, says
):
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


def test_the_profile_that_is_written_is_the_one_that_ran(tmp_path, tiny_profile):
    deliver.begin(tmp_path, tiny_profile, {}, [])
    stated = yaml.safe_load((tmp_path / "profile.yaml").read_text())
    assert "name" not in stated and stated["n_train"] == 8 and "warmup" not in stated
    assert Lab(profiles.load(str(tmp_path / "profile.yaml"))).profile.change(name=tiny_profile.name) == tiny_profile
