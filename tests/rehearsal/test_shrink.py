"""`--shrink`: the paper-scale profiles whole, in minutes, against the hub on this machine."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from cfutils import paths, profiles, yaml_input
from cfutils.errors import UserError
from cfutils.rehearsal import models, shrink

PAPER = ("olmo-1b", "r1-distill-llama-8b")


def stated(name):
    return yaml_input.read(paths.profiles() / f"{name}.yaml")


@pytest.mark.parametrize("name", PAPER)
def test_sizes_alone_are_changed_and_only_made_smaller(name):
    before = profiles.load(name)
    after = profiles.Profile(name=name, **shrink.shrunk(before, stated(name)))
    changed = {field for field in profiles.FIELDS if getattr(before, field) != getattr(after, field)}
    assert changed <= {*shrink.overrides(), "about"}
    assert after.about.startswith(f"Rehearsal of {name}") and "mean nothing" in after.about
    for field in changed - {"about"}:
        old, new = getattr(before, field), getattr(after, field)
        small = len(new) <= len(old) if isinstance(old, tuple) else old is None or new < old
        assert small, field


def test_a_base_that_does_not_think_gets_no_thought():
    assert "think_budget" not in shrink.shrunk(profiles.load("olmo-1b"), stated("olmo-1b"))


def test_a_base_without_a_stand_in_is_refused():
    with pytest.raises(UserError, match=r"--shrink = .tiny.*OLMo-1B-hf.*shipped:tiny has no stand-in"):
        shrink.shrunk(profiles.load("tiny"), stated("tiny"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Both stand-ins, as the hub serves them."""
    folder = tmp_path_factory.mktemp("stand-ins")
    for name in models.STAND_INS:
        models.write(name, folder / name, ["one two three four five six seven eight nine ten"] * 20)
    return folder


def test_olmos_stand_in_declares_no_bos_and_its_configurations_name_a_wrong_end(bases):
    from transformers import AutoConfig, GenerationConfig

    from cfutils.models import tokenizers

    folder = bases / "allenai/OLMo-1B-hf"
    tokenizer = tokenizers.load_tokenizer(folder)
    start = tokenizers.start_token(tokenizer, None)
    assert tokenizer.convert_ids_to_tokens(start) == "<|endoftext|>" and tokenizer("one")["input_ids"][0] != start
    assert tokenizers.end_tokens(tokenizer, start) == (start,)
    wrong = AutoConfig.from_pretrained(folder).eos_token_id, GenerationConfig.from_pretrained(folder).eos_token_id
    assert wrong == (0, 0) and tokenizer.convert_ids_to_tokens(0) == "|||IP_ADDRESS|||"


def test_r1s_stand_in_starts_once_opens_the_thought_and_drops_earlier_ones(bases):
    from cfutils.data import sequences
    from cfutils.models import tokenizers

    tokenizer = tokenizers.load_tokenizer(bases / "deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    ids = sequences.prompt_ids(tokenizer, "one?", chat_template=True)
    text = "two words\n  and white space"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer.decode(ids) == "<｜begin▁of▁sentence｜><｜User｜>one?<｜Assistant｜><think>\n"
    assert tokenizer("one")["input_ids"][0] == tokenizer.bos_token_id == ids[0]
    turns = [
        {"role": "user", "content": "one?"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\ntwo"},
        {"role": "user", "content": "three?"},
    ]  # fmt: skip
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<｜begin▁of▁sentence｜><｜User｜>one?<｜Assistant｜>\n\ntwo<｜end▁of▁sentence｜><｜User｜>three?"
        "<｜Assistant｜><think>\n"
    )


def tables(runs, kind, file):
    return [pd.read_parquet(path) for path in sorted((runs / kind).glob(f"*/{file}"))]


@pytest.fixture(scope="module")
def rehearsals(tmp_path_factory):
    """Both, side by side: folder, process and output of each."""
    found = {}
    for name in PAPER:
        folder = tmp_path_factory.mktemp(name)
        env = {**os.environ, "CFUTILS_RUNS": str(folder), "HF_HOME": str(folder / "own cache"), "OMP_NUM_THREADS": "1"}
        env |= {"CFUTILS_FIGURES": str(folder / "own figures"), "HF_HUB_OFFLINE": "1"}  # the user's, which do not count
        said = folder / "said.txt"
        with said.open("w") as file:
            command = [sys.executable, "-m", "cfutils", "run", name, "--shrink"]
            found[name] = folder, subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT), said
    yield found
    for _, process, _ in found.values():
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_a_paper_profile_runs_whole(name, rehearsals):
    folder, process, said = rehearsals[name]
    code, text = process.wait(timeout=1800), said.read_text()
    assert code == 0, text[-5000:]
    assert f"Rehearsal of {name}" in text
    assert not (folder / "own cache").exists() and not (folder / "own figures").exists()
    folder = folder / "rehearsal"
    summary = json.loads((folder / f"runs/notebooks/{name}-rehearsal/summary.json").read_text())
    assert {one["status"] for one in summary["notebooks"]} == {"good"} and len(summary["notebooks"]) >= 6
    assert (folder / f"figures/{name}-rehearsal/frontier.png").is_file()
    records = [json.loads(path.read_text()) for path in (folder / "runs/samples").glob("*/record.json")]
    assert records and all(one["inputs"]["params"]["engine"] == "vllm" for one in records)
    assert "start vLLM" in (folder / f"runs/notebooks/{name}-rehearsal/01_generation.log").read_text()
    scores = pd.concat(tables(folder / "runs", "retained", "items.parquet"))
    retained = {*profiles.load(name).retained}
    assert set(scores["task"]) == retained  # a group counts as one
    if "mmlu" in retained:
        subjects = scores.loc[scores["task"] == "mmlu", "item"].str.rpartition(":")[0]
        assert subjects.nunique() == 57
