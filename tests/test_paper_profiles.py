"""The paper's two settings at tiny size: their architectures, start tokens, templates and plans."""

import shutil

import pandas as pd
import pytest

from cfutils import profiles, recipes
from cfutils.data import assets, sequences
from cfutils.errors import UserError
from cfutils.models import bases, tokenizers
from cfutils.models.generation import sampling
from cfutils.models.generation.transformers_engine import TransformersEngine
from cfutils.pipeline.steps import Steps
from cfutils.runner import plan
from cfutils.training import trainer

STUDIES = ["samples", "estimates", *recipes.STUDIES]


@pytest.mark.parametrize("name", ["olmo-1b", "r1-distill-llama-8b"])
def test_every_step_of_a_paper_profile_is_planned_and_nothing_is_fetched(name, store, monkeypatch):
    monkeypatch.setattr(assets, "fetch", lambda _: pytest.fail("fetched"))
    profile = profiles.load(name)
    rows = plan.plan(profile, STUDIES)
    assert {row["state"] for row in rows} == {"missing"}
    runs = [row["label"] for row in rows if row["kind"] in ("tuned", "averaged")]
    for recipe in profile.recipes:
        for seed in profile.seeds:
            assert any(label.startswith(f"{recipe} seed={seed}") for label in runs), (recipe, seed)


def test_a_retained_task_that_nobody_knows_is_refused_at_once(tiny_profile, store, lm_eval_index):
    profile = tiny_profile.change(benchmarks="package", retained=["gsm7k"])
    with pytest.raises(UserError, match=r"retained = .gsm7k.*hellaswag.*Did you mean gsm8k"):
        Steps(profile, store).check()


def test_pretraining_documents_of_an_unknown_base_are_refused_at_once(store):
    profile = profiles.load("olmo-1b", recipes=["ft", "pretraining"])
    with pytest.raises(UserError, match=r"base = .*shipped:tiny.*leave it out of recipes"):
        Steps(profile, store).study("methods")


@pytest.fixture(scope="module")
def tiny_olmo(tiny_base, tmp_path_factory):
    """A random OLMo (no biases, non-parametric norms) with the tiny base's tokenizer: EOS, no BOS."""
    import torch
    from transformers import OlmoConfig, OlmoForCausalLM

    folder = tmp_path_factory.mktemp("olmo") / "tiny_olmo"
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    tokenizer.save_pretrained(folder)
    config = OlmoConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, initializer_range=0.3,
        bos_token_id=7, eos_token_id=0,  # wrong on purpose, as in a released OLMo
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        OlmoForCausalLM(config).save_pretrained(folder)
    return folder


def test_olmo_starts_with_its_tokenizers_eos_whatever_the_configuration_says(tiny_olmo):
    tokenizer = tokenizers.load_tokenizer(tiny_olmo)
    assert tokenizer.bos_token_id is None
    start = tokenizers.start_token(tokenizer, None)
    assert start == tokenizer.eos_token_id
    assert tokenizers.end_tokens(tokenizer, start) == (start,)


@pytest.mark.parametrize("recipe", ["cf_kl", "lora", "l2"])
def test_olmo_is_sampled_and_tuned(tiny_olmo, tiny_profile, tmp_path, recipe):
    tokenizer = tokenizers.load_tokenizer(tiny_olmo)
    start = tokenizers.start_token(tokenizer, None)
    with TransformersEngine(tiny_olmo, dtype="float32", chunk=4, pass_tokens=64) as engine:
        n = sampling.draw(
            tmp_path, engine=lambda: engine, tokenizer=tokenizer, prompts=[(start,)] * 4, first_seed=0,
            temperature=1.0, max_tokens=6, stop=(start,), chunk=4,
        )  # fmt: skip
    assert 4 <= n <= 24
    pool = sequences.from_samples(pd.read_parquet(tmp_path / "samples.parquet"))
    target = [sequences.Sequence((start, 5, 6, 7, 8), 2), sequences.Sequence((start, 9, 5, 6), 2)]
    profile = tiny_profile.change(lr=1e-3, autocast=False)
    tuning = trainer.Tuning(**recipes.tuning(profile, recipes.plan(profile, recipe, seed=0)))
    notes = trainer.tune(
        tmp_path, tiny_olmo, target, pool, tuning=tuning, execution=tiny_profile.execution, label=recipe
    )
    assert notes["steps"] == 1
    assert bases.weight_bytes(tmp_path) > 0


def test_a_thinking_models_template_begins_with_one_start_token(tiny_base, tmp_path):
    """R1's tokenizer adds BOS by itself and its template writes it too: it must stand there once."""
    shutil.copytree(tiny_base, tmp_path / "r1")
    tokenizer = tokenizers.load_tokenizer(tmp_path / "r1")
    tokenizer.add_special_tokens({"bos_token": "<|begin|>", "additional_special_tokens": ["<|user|>"]})
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<think>\n{% endif %}"
    )
    ids = sequences.prompt_ids(tokenizer, "2 + 2?", chat_template=True)
    assert ids[0] == tokenizers.start_token(tokenizer, None) == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids).endswith("<think>\n")


@pytest.mark.slow
def test_olmos_own_tokenizer():
    """The tokenizer file of OLMo-1B in the benchmark package: <|endoftext|> is 50279, not 0."""
    from transformers import PreTrainedTokenizerFast

    file = assets.folder("ai2-olmo-eval") / "olmo_eval/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|endoftext|>")
    assert tokenizers.start_token(tokenizer, None) == 50279
    assert tokenizer.convert_ids_to_tokens(0) == "|||IP_ADDRESS|||"
    with pytest.raises(UserError, match="start_token"):
        tokenizers.start_token(tokenizer, "<|im_start|>")


def test_the_target_of_olmo_is_scored_with_five_examples_and_its_retained_tasks_without(store):
    profile = profiles.load("olmo-1b")
    steps = Steps(profile, store)
    assert steps.scores(None, "target").params["num_fewshot"] == {"gsm8k": 5}
    assert steps.scores(None, "retained").params["tasks"]["num_fewshot"] == {}
    assert "num_fewshot" not in Steps(profile.change(num_fewshot={}), store).scores(None, "target").params


def test_examples_of_a_target_come_from_the_train_split_and_are_never_scored(monkeypatch):
    """GSM8K as lm-eval defines it, on made-up items: five of the train split in front of each of the test split."""
    import datasets

    from cfutils.data import benchmarks, task_index

    splits = {
        split: datasets.Dataset.from_list(
            [{"question": f"{split} question {i}", "answer": f"So it is.\n#### {i}"} for i in range(8)]
        )
        for split in ("train", "test")
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: datasets.DatasetDict(splits))
    task_index._fetched.cache_clear()
    task = benchmarks.lm_eval_task("gsm8k", hub=True, n_examples=5)
    task_index._fetched.cache_clear()
    for doc in task.eval_docs:
        text = task.fewshot_context(doc, task.config.num_fewshot)
        assert text.count("train question") == 5 and text.count("test question") == 1
        assert text.endswith(f"Question: {doc['question']}\nAnswer:")


@pytest.mark.parametrize(
    ("given", "said"),
    [({"gsm7k": 5}, "gsm7k is not among the retained tasks"), ({"gsm8k": 5, "piqa": 1}, None)],
)
def test_num_fewshot_names_retained_tasks_and_those_of_the_target(store, given, said):
    steps = Steps(profiles.load("olmo-1b", num_fewshot=given), store)
    if said is None:
        return steps.check()
    with pytest.raises(UserError, match=said):
        steps.check()


def test_a_task_whose_library_is_missing_is_refused_with_the_command(monkeypatch, store):
    from cfutils.data import task_index

    monkeypatch.setattr(task_index, "_is_there", lambda package: package != "math_verify")
    with pytest.raises(UserError, match=r"minerva_math500.*math_verify is missing: pip install 'lm_eval\[math\]'"):
        Steps(profiles.load("olmo-1b", retained=["piqa", "minerva_math500"]), store).check()
