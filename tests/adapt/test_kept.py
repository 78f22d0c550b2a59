"""What files of one's own and tasks on the hub cost, and items that do not fit the base."""

from __future__ import annotations

import json

import pytest

from cfutils.adapt import kept
from cfutils.adapt.sizes import GENERATED
from cfutils.data import task_index
from cfutils.errors import UserError
from cfutils.models import tokenizers


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return tokenizers.load_tokenizer(tiny_base)


@pytest.fixture
def write(tmp_path):
    def made(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return made


def measure(profile, tokenizer, *names, context=512):
    profile = profile.change(benchmarks="package", retained=names)
    return kept.measure(profile, kept.load(profile), tokenizer, context=context, typical=20.0)


def test_the_cost_of_an_item_by_hand(tiny_profile, tokenizer, write):
    """Choices share their context; a generated answer costs its tokens, and the gold answer's pass over the context."""
    size = {text: len(tokenizer(text)["input_ids"]) for text in ("Is it a dog?", " yes", " no", "Say it:", " dog")}
    closed = write("closed.jsonl", [{"prompt": "Is it a dog?", "choices": ["yes", "no"], "answer": "no"}])
    opened = write("opened.jsonl", [{"prompt": "Say it:", "answer": "dog"}])
    cap = tiny_profile.max_new_tokens
    costs = [
        size["Is it a dog?"] + size[" yes"] + size[" no"],
        2 * size["Say it:"] + size[" dog"] + GENERATED * cap,
        20.0,
    ]
    for name, cost in zip((closed, opened, "sum"), costs, strict=True):
        assert measure(tiny_profile, tokenizer, name).tokens == pytest.approx(cost)
    found = measure(tiny_profile, tokenizer, closed, opened, "sum")
    assert found.tokens == pytest.approx(sum(costs) / 3) and found.tasks == 3
    assert found.names == ("closed (1 items)", "opened (1 items)", "sum") and found.max_new_tokens == cap


def test_a_group_on_the_hub_is_as_many_tasks_as_it_has(
    tiny_profile, tokenizer, lm_eval_index, tiny_choices, monkeypatch
):
    made = {name: tiny_choices() for name in ("one", "two")}
    for task in made.values():
        task.set_config("num_fewshot", 0)
    monkeypatch.setattr(task_index, "load", lambda name: made)
    found = measure(tiny_profile, tokenizer, "sum", "mmlu")
    assert found.tasks == 3 and found.names == ("sum", "mmlu (a group: 2 tasks, counts as one)")


def test_an_answer_may_be_as_long_as_the_users_own_task_says(tiny_profile, tokenizer, write, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write("rows.jsonl", [{"q": "Say it:", "a": "dog"}])
    (tmp_path / "mine.yaml").write_text(
        'dataset_path: json\ndataset_kwargs: {data_files: rows.jsonl}\ntest_split: train\ndoc_to_text: "{{q}}"\n'
        "doc_to_target: a\ngeneration_kwargs: {until: [x], max_gen_toks: 300}\n"
    )
    name = str(tmp_path / "mine.yaml")
    assert measure(tiny_profile, tokenizer, name).max_new_tokens == 300 > tiny_profile.max_new_tokens
    with pytest.raises(UserError, match=r"fit into the 300 tokens .*included; 1 do not \(first: item 1 with 30\d"):
        measure(tiny_profile, tokenizer, name, context=300)


def test_items_that_are_longer_than_the_context_are_counted_and_refused(tiny_profile, tokenizer, write):
    rows = [{"prompt": f"{i} " + "word " * (300 if i in (2, 4) else 3), "choices": ["a", "b"], "answer": "a"}
            for i in range(6)]  # fmt: skip
    with pytest.raises(UserError, match=r"mine\.jsonl.*fit into the 512 tokens.*; 2 do not \(first: item 3 with"):
        measure(tiny_profile, tokenizer, write("mine.jsonl", rows))


def test_a_hub_out_of_reach_is_told(tiny_profile, tokenizer, lm_eval_index, offline):
    with pytest.raises(UserError, match="the items of gsm8k cannot be loaded from the hub: "):
        measure(tiny_profile, tokenizer, "sum", "gsm8k")
