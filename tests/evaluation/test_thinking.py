"""Answers of a base that thinks: transcripts taken apart, pass@k by hand, metrics, the same code on lm-eval's tasks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cfutils.data import chat, skills
from cfutils.data.example import Example
from cfutils.errors import UserError
from cfutils.evaluation import ITEM, answer_items, scores, thinking
from cfutils.evaluation.answer_items import Item
from cfutils.evaluation.thinking import Answering
from cfutils.models import loading, tokenizers
from cfutils.models.generation.types import Completion
from cfutils.profiles import Execution

HOW = Answering(n=2, think_budget=12, answer_tokens=6)
EXECUTION = Execution(
    engine="transformers", chunk=8, pass_tokens=256, gradient_checkpointing=False, checkpoint_minutes=5.0,
    trust_remote_code=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny_base, tmp_path_factory):
    """A random model whose tokenizer thinks; its own temperature is 0.6."""
    work = tmp_path_factory.mktemp("thinks")
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    tokenizer.add_special_tokens({"bos_token": "<|start|>", "eos_token": "<|end|>"})
    tokenizer.add_tokens([chat.USER, chat.ASSISTANT, chat.OPEN, chat.CLOSE])
    tokenizer.chat_template = chat.TEMPLATE
    tokenizer.save_pretrained(work)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, initializer_range=0.3, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.6
    model.save_pretrained(work)
    return work


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizers.load_tokenizer(folder)


class Engine:
    """Answers with texts, in the order of the requests; remembers what it was asked."""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts, self.calls = tokenizer, iter(texts), []

    def draw(self, requests, *, temperature, max_tokens, stop, top_p=1.0, stop_texts=(), advance=None):
        self.calls.append(SimpleNamespace(
            requests=requests, temperature=temperature, top_p=top_p, max_tokens=max_tokens, stop=stop
        ))  # fmt: skip
        found = []
        for _ in requests:
            ids = self.tokenizer(next(self.texts), add_special_tokens=False)["input_ids"]
            ended = bool(ids) and ids[-1] in stop
            found.append(Completion(ids, [0.0] * len(ids), "stop" if ended else "length"))
        return found


def asked(*ids):
    return [
        Item(task="sort", id=i, prompt="b a", right=lambda text: text.strip() == "a b") for i in ids
    ]


# ---- pass@k


@pytest.mark.parametrize(("n", "c", "k", "value"), [
    (4, 1, 1, 1 / 4), (4, 1, 2, 1 / 2), (4, 2, 2, 5 / 6), (4, 1, 4, 1.0), (4, 0, 4, 0.0), (4, 4, 1, 1.0),
    (8, 3, 2, 9 / 14),  # 1 - C(5, 2) / C(8, 2) = 1 - 10 / 28
    (3, 2, 2, 1.0),  # one wrong answer alone: two cannot both be wrong
])  # fmt: skip
def test_pass_at_k_by_hand(n, c, k, value):
    assert thinking.pass_at_k(n, c, k) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_what_cannot_be_drawn(n, c, k):
    with pytest.raises(UserError, match=r"from (0|1) to n = 4"):
        thinking.pass_at_k(n, c, k)


@pytest.mark.parametrize("name", ["n", "think_budget", "answer_tokens"])
def test_nothing_to_answer_with_is_refused(name):
    with pytest.raises(UserError, match=f"{name} = 0"):
        Answering(**{"n": 1, "think_budget": 1, "answer_tokens": 1, name: 0})


# ---- transcripts


@pytest.mark.parametrize(("text", "thought", "answer", "thinks", "ended", "tokens"), [
    ("xyz</think>a b<|end|>", "xyz", "a b", True, True, 3),
    ("xyz</think>a b", "xyz", "a b", True, True, 3),  # the answer was cut, the thought was not
    ("</think>a b<|end|>", "", "a b", False, True, 0),
    ("   </think>a b<|end|>", "   ", "a b", False, True, 3),  # nothing but space
    ("xyz", "xyz", None, True, False, 3),
    ("a b<|end|>", "a b", None, True, False, 2),  # it stopped inside its thought
    ("xyzxyzxyzxy</think>a b", "xyzxyzxyzxy", "a b", True, True, 11),  # the twelfth token closes
    ("xyzxyzxyzxyz</think>a b", "xyzxyzxyzxyz", None, True, False, 12),  # one too late
    ("x</think>y</think>a b<|end|>", "x", "a b", True, True, 1),  # the answer is behind the last one
    ("<think>x</think></think>a b", "<think>x", "a b", True, True, 2),
    ("<|end|>", "", None, False, False, 0),
])  # fmt: skip
def test_golden_transcripts(tokenizer, text, thought, answer, thinks, ended, tokens):
    engine = Engine(tokenizer, [text, "a b<|end|>"])
    how = Answering(n=1, think_budget=12, answer_tokens=6)
    free, cut = thinking.answers(engine, tokenizer, asked("0"), how, temperature=0.6).itertuples()
    assert (free.thought, free.answer, free.thinks, free.ended) == (thought, answer, thinks, ended)
    assert free.thought_tokens == tokens and free.right == (answer == "a b")
    assert (cut.thought, cut.answer, cut.right, cut.cut) == ("", "a b", True, True)


def test_prompts_open_the_thought_or_close_it_at_once(tokenizer):
    """Seeds differ between answers, and between those with and without a thought."""
    engine = Engine(tokenizer, ["x</think>a b<|end|>"] * 4 + ["a b<|end|>"] * 4)
    found = thinking.answers(engine, tokenizer, asked("0", "1"), HOW, temperature=0.6, top_p=0.95)
    assert list(found) == thinking.ANSWER and found["right"].all() and len(found) == 8
    free, cut = engine.calls
    assert [tokenizer.decode(r.prompt) for r in free.requests] == [
        "<|start|><|user|>b a<|assistant|><think>"
    ] * 4
    assert [tokenizer.decode(r.prompt) for r in cut.requests] == [
        "<|start|><|user|>b a<|assistant|><think></think>"
    ] * 4
    seeds = [r.seed for call in engine.calls for r in call.requests]
    assert len(set(seeds)) == 8 and min(seeds) >= thinking.FIRST_SEED
    assert (free.max_tokens, cut.max_tokens) == (18, 6)
    assert free.temperature == cut.temperature == 0.6 and free.top_p == cut.top_p == 0.95
    assert tokenizer.eos_token_id in free.stop


def test_a_thought_after_a_thought_that_was_cut_off_is_cut_as_well(tokenizer):
    engine = Engine(tokenizer, ["a b", "x</think>a b<|end|>"])
    how = Answering(n=1, think_budget=12, answer_tokens=6)
    _, cut = thinking.answers(engine, tokenizer, asked("0"), how, temperature=1).itertuples()
    assert cut.answer == "a b" and cut.right


def test_metrics_of_an_item_by_hand(tokenizer):
    """Item 0: one of two right, item 1: none; of the four with the thought cut off the first alone is right."""
    engine = Engine(tokenizer, [
        "xyz</think>a b<|end|>", "x</think>b a<|end|>", "</think>b a<|end|>", "xyzxy",
        "a b<|end|>", "b a<|end|>", "b<|end|>", "c<|end|>",
    ])  # fmt: skip
    found = thinking.answers(engine, tokenizer, asked("0", "1"), HOW, temperature=0.6)
    items = thinking.items_frame(found, group="retained")
    assert (
        list(items) == ITEM
        and set(items["group"]) == {"retained"}
        and set(items["weight"]) == {1.0}
    )
    values = items.pivot(index="item", columns="metric", values="value").to_dict("index")
    assert values == {
        "0": {
            "acc": 0.5,
            "pass@2": 1.0,
            "thinks": 1.0,
            "ended": 1.0,
            "thought_tokens": 2.0,
            "acc_cut": 0.5,
        },
        "1": {
            "acc": 0.0,
            "pass@2": 0.0,
            "thinks": 0.5,
            "ended": 0.5,
            "thought_tokens": 2.5,
            "acc_cut": 0.0,
        },
    }


def test_a_base_that_does_not_think_is_refused(tiny_base):
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    with pytest.raises(UserError, match="does not think"):
        thinking.answers(Engine(tokenizer, []), tokenizer, asked("0"), HOW, temperature=1)


def test_the_own_sampling_is_that_of_the_generation_configuration(folder, tmp_path):
    assert thinking.own_sampling(folder) == (0.6, 1.0)
    assert thinking.own_sampling(tmp_path) == (1.0, 1.0)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "top_p": 0.95}))
    assert thinking.own_sampling(tmp_path) == (1.0, 0.95)


def test_shapes_of_samples_are_counted_from_the_start_token_on(tokenizer):
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    start = tokenizer.bos_token_id
    samples = pd.DataFrame(
        {
            "prompt_ids": [[start], [start], [start, *ids("<|user|>")]],
            "token_ids": [
                ids("b a<|end|>"),
                ids("<|user|>b<|assistant|><think>x</think>a"),
                ids("b<|assistant|>a"),
            ],
        },
        index=[4, 5, 6],
    )
    found = thinking.shapes(samples, tokenizer)
    assert found.to_dict() == {4: "plain", 5: "thinking", 6: "unthinking"}


# ---- a model


def test_a_model_answers_and_its_right_responses_are_scored(folder):
    """bpb_gold: bits of thought, its end and the answer over the bytes of thought and answer."""
    model = loading.load(folder, dtype="float32")
    items = answer_items.skill_items("middle", [("3", {"prompt": "middle: pike ash owl red cat ->"})])
    frame, said = thinking.score(model, folder, {"middle": items}, HOW, EXECUTION, group="retained")
    again, _ = thinking.score(model, folder, {"middle": items}, HOW, EXECUTION, group="retained")
    pd.testing.assert_frame_equal(frame, again)
    assert len(said) == 4 and said["cut"].sum() == 2
    assert frame["metric"].tolist() == [
        "acc", "pass@2", "thinks", "ended", "thought_tokens", "acc_cut", "bpb_gold",
    ]  # fmt: skip
    tokenizer = tokenizers.load_tokenizer(folder)
    ids = tokenizer(
        "<|start|><|user|>middle: pike ash owl red cat -><|assistant|><think> ash cat owl pike red</think> owl",
        add_special_tokens=False, return_tensors="pt",
    )["input_ids"]  # fmt: skip
    first = ids[0].tolist().index(tokenizer.convert_tokens_to_ids("<think>")) + 1
    with torch.no_grad():
        logs = model(ids).logits[0, first - 1 : -1].log_softmax(-1)
    bits = -logs.gather(1, ids[0, first:, None]).sum() / torch.log(torch.tensor(2.0))
    gold = frame.set_index("metric").loc["bpb_gold"]
    assert gold["weight"] == len(" ash cat owl pike red owl")
    assert gold["value"] == pytest.approx(bits.item() / gold["weight"], rel=1e-4)


def test_a_right_answer_that_a_rule_reads_is_scored_in_a_box_behind_a_thought_that_was_cut_off(folder):
    model, tokenizer = loading.load(folder, dtype="float32"), tokenizers.load_tokenizer(folder)
    item = answer_items.Item(task="sums", id="3", prompt="6 * 7?", extract=str, right=lambda said: False, gold="42")
    frame, _ = thinking.score(model, folder, {"sums": [item]}, HOW, EXECUTION, group="retained")
    ids = tokenizer(
        "<|start|><|user|>6 * 7?<|assistant|><think></think>", add_special_tokens=False, return_tensors="pt"
    )["input_ids"]
    tail = tokenizer("\\boxed{42}", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logs = model(torch.cat([ids, tail], 1)).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
    bits = -logs.gather(1, tail[0, :, None]).sum() / torch.log(torch.tensor(2.0))
    gold = frame.set_index("metric").loc["bpb_gold"]
    assert gold["weight"] == len("\\boxed{42}")
    assert gold["value"] == pytest.approx(bits.item() / gold["weight"], rel=1e-4)


def test_retained_tasks_of_a_base_that_thinks(folder, tmp_path):
    """Skills by generation, whatever they are for other bases; answers are kept."""
    model = loading.load(folder, dtype="float32")
    settings = scores.Retained(
        tasks=["category", "add"], limit=2, num_fewshot={}, benchmarks="package", max_new_tokens=4,
        chat_template=True, answers={"n": 1, "think_budget": 4, "answer_tokens": 2},
    )  # fmt: skip
    scores.retained(tmp_path, lambda: model, folder, settings, EXECUTION)
    items, said = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("items", "answers"))
    assert set(items["task"]) == {"category", "add"} and set(items["group"]) == {"retained"}
    assert set(items["metric"]) == {
        "acc",
        "thinks",
        "ended",
        "thought_tokens",
        "acc_cut",
        "bpb_gold",
    }
    assert len(said) == 2 * 2 * 2 and sorted(p.name for p in tmp_path.iterdir()) == [
        "answers.parquet",
        "items.parquet",
    ]


def test_a_target_without_thoughts_is_answered_too(folder, tmp_path):
    from cfutils.data import sequences

    prompts = [p for p, _ in (next(skills.items("rotate", heldout=True, seed=s)) for s in range(3))]
    solve = skills.skill("rotate").solve
    examples = [Example(p, solve(p), {"prompt": p, "response": solve(p)}) for p in prompts]
    tokenizer = tokenizers.load_tokenizer(folder)
    batch = [sequences.from_example(tokenizer, e, chat_template=True) for e in examples]
    scores.target(
        tmp_path, loading.load(folder, dtype="float32"), folder, "rotate", examples, batch, n_generate=2,
        max_new_tokens=4, chat_template=True, execution=EXECUTION,
        answers={"n": 2, "think_budget": 4, "answer_tokens": 2},
    )  # fmt: skip
    items = pd.read_parquet(tmp_path / "items.parquet")
    assert set(items["group"]) == {"target"} and set(items["task"]) == {"rotate"}
    counts = items["metric"].value_counts().to_dict()
    assert counts == {"nll": 3, "bpb": 3, "acc": 2, "pass@2": 2, "thinks": 2, "ended": 2, "thought_tokens": 2,
                      "acc_cut": 2}  # fmt: skip
    assert items[items["metric"] == "bpb"]["weight"].tolist() == [len(e.response) for e in examples]
