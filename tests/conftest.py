"""Order of the tests (fast ones first), guards, and the tiny base that hermetic tests run on.

No test writes into the checkout's own store or opens a connection to another machine. The tiny base is a random
Llama of two layers with a byte-level tokenizer, made here: no network, no data package. Its logits are spread
(initializer_range 0.3), so that its distribution is far from uniform.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from pathlib import Path

import pytest

from cfutils.pipeline.store import Store
from cfutils.profiles import Profile

CORPUS = [
    "Question: How many apples are there in 3 bags of 4? Answer: 3 * 4 = 12 apples.",
    "The quick brown fox jumps over the lazy dog while the river runs to the sea.",
    "A story of a small town, its people and the long road that leads away from it.",
] * 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move tests marked slow to the end; keep the order otherwise."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory):
    """Artifacts and figures of all tests that name no folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("own")
        patch.setenv("CFUTILS_RUNS", str(folder / "runs"))
        patch.setenv("CFUTILS_FIGURES", str(folder / "figures"))
        patch.delenv("CFUTILS_EVENTS", raising=False)
        patch.delenv("CFUTILS_REBUILD", raising=False)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Refuse connections that leave this machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0]
            local = host == "localhost" or ipaddress.ip_address(host).is_loopback
            if not local:
                raise OSError(f"a test tried to reach {host}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A Hugging Face folder with a random Llama; tied embeddings, no BOS, EOS `<|endoftext|>`."""
    import tokenizers
    import torch
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)  # for so small a model more threads are slower
    folder = tmp_path_factory.mktemp("tiny") / "tiny_base"
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_target(tmp_path_factory) -> Path:
    """A target of one's own: 40 items of one line each, 13 of them on the held-out side."""
    path = tmp_path_factory.mktemp("target") / "sums.jsonl"
    items = (
        {"prompt": f"Question: {a} + {b}?\nAnswer:", "response": f" {a + b} apples."}
        for a in range(8)
        for b in range(5)
    )
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_profile(tiny_base, tiny_target) -> Profile:
    """A profile on the tiny base: every step of the suite in seconds."""
    return Profile(
        name="tiny",
        about="A random model.",
        base=str(tiny_base),
        engine="transformers",
        target=str(tiny_target),
        n_samples=10,
        n_contextual=10,
        max_tokens=16,
        chunk=4,
        n_train=8,
        n_heldout=4,
        n_validation=3,
        max_length=80,
        lr=1e-3,
        batch_size=2,
        ratio=0.3,
        strengths={"lora": 4, "lora_mlp": 4, "stm": 300},
        benchmarks="hub",  # the tests put a task in memory in its place
        retained=("tiny_choices",),
        limit=4,
        n_probe=2,
        recipes=("ft", "cfs", "cf_kl", "contextual", "replay_text", "l2", "lora", "wise_ft"),
        alphas=(0.5,),
    )


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """An empty store, which is also the one that CFUTILS_RUNS names."""
    monkeypatch.setenv("CFUTILS_RUNS", str(tmp_path / "runs"))
    return Store()


@pytest.fixture
def events(tmp_path, monkeypatch):
    """Record the store's events; call it for those since the last call."""
    path = tmp_path / "events.jsonl"
    path.touch()
    monkeypatch.setenv("CFUTILS_EVENTS", str(path))

    def read() -> list[dict]:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        path.write_text("", encoding="utf-8")
        return found

    return read


@pytest.fixture
def offline(monkeypatch):
    """Let the hub's client know at once that it has no network: its environment is read when it is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def lm_eval_index(tmp_path, monkeypatch):
    """A small index in the place of lm-eval's, which takes time to make: gsm8k, and mmlu, a group of one and two."""
    from lm_eval.tasks._index import Entry, Kind

    from cfutils.data import task_index

    files = {
        "gsm8k": {"task": "gsm8k", "dataset_path": "openai/gsm8k", "test_split": "test", "training_split": "train"},
        "one": {"task": "one", "output_type": "multiple_choice", "test_split": "test", "training_split": "train"},
        "two": {"task": "two", "output_type": "generate_until", "test_split": "test"},
        "mmlu": {"group": "mmlu", "task": ["one", "two"]},
    }
    found = {}
    for name, content in files.items():
        path = tmp_path / f"lm-eval-{name}.yaml"
        path.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML too
        found[name] = Entry(name, Kind.GROUP if "group" in content else Kind.TASK, path)
    monkeypatch.setattr(task_index, "entries", lambda: found)


@pytest.fixture(scope="session")
def tiny_choices():
    """Make lm-eval's task of six multiple-choice items, held in memory."""

    def make(*_: object, **__: object):
        from datasets import Dataset
        from lm_eval.api.task import ConfigurableTask

        options = [["four apples", "five"], ["a dog", "the sea"], ["to it", "away from"]] * 2
        docs = [
            {"question": f"Question {i}?", "options": o, "gold": i % 2}
            for i, o in enumerate(options)
        ]
        rows = Dataset.from_list(docs)
        return ConfigurableTask(
            config={
                "task": "tiny_choices",
                "custom_dataset": lambda **_: {"validation": rows},
                "validation_split": "validation",
                "num_fewshot": 0,
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}\nAnswer:",
                "doc_to_target": "{{gold}}",
                "doc_to_choice": "{{options}}",
                "metric_list": [
                    {"metric": name, "aggregation": "mean", "higher_is_better": True}
                    for name in ("acc", "acc_norm")
                ],
            }
        )

    with pytest.MonkeyPatch.context() as patch:
        # lm-eval lists all installed packages at each call: more than a second, for a line of its report
        patch.setattr("lm_eval.evaluator.add_env_info", lambda *_: None, raising=False)
        yield make
