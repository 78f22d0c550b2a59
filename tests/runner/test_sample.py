"""`cfutils sample`: what it draws, what it refuses, and that its files say what was drawn."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from datasets import load_dataset, load_from_disk
from huggingface_hub import DatasetCard

from cfutils import __main__ as cli
from cfutils.data.splits import is_heldout
from cfutils.integrations import exports
from cfutils.models import tokenizers
from cfutils.models.generation.transformers_engine import TransformersEngine

N = 10
FILES = [
    "MIXING.md", "README.md", "command.json", "dataset", "dataset_info.json", "prompt_completion.jsonl",
    "samples.parquet", "text.jsonl",
]  # fmt: skip


@pytest.fixture
def sample(tiny_base, store, tmp_path, capsys):
    """Run the command on the tiny base; return its exit code, what it said, and the folder."""

    def run(*options, out="out", model=None, n=N):
        argv = ["sample", model or str(tiny_base), "-n", str(n), "--out", str(tmp_path / out), "--max-tokens", "16",
                "--engine", "transformers", "--chunk", "4", *options]  # fmt: skip
        code = cli.main(argv)
        return code, "".join(capsys.readouterr()), tmp_path / out

    return run


@pytest.fixture
def drawn(monkeypatch):
    """Record the seeds that engines are asked for; `drawn.left` is how many calls they live."""

    class Engine(TransformersEngine):
        seeds, left = [], 10**9

        def draw(self, requests, **settings):
            if Engine.left == 0:
                raise KeyboardInterrupt
            Engine.left -= 1
            Engine.seeds += [request.seed for request in requests]
            return super().draw(requests, **settings)

    monkeypatch.setattr("cfutils.models.generation.transformers_engine.TransformersEngine", Engine)
    return Engine


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_file_holds_the_samples_that_were_drawn(sample, tiny_base):
    code, said, out = sample()
    assert code == 0 and "10 samples" in said
    assert "1 step is missing: time unknown, nothing like it was measured (samples)" in said
    assert sorted(path.name for path in out.iterdir()) == FILES
    frame = pd.read_parquet(out / "samples.parquet")
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    for row in frame.itertuples():
        assert row.text == tokenizer.decode(row.token_ids, skip_special_tokens=True) and list(row.prompt_ids) == [0]
    assert load_from_disk(out / "dataset")["token_ids"] == frame["token_ids"].map(list).tolist()
    texts = [text for text in frame["text"] if text]
    assert [row["text"] for row in lines(out / "text.jsonl")] == texts
    assert [row["completion"] for row in lines(out / "prompt_completion.jsonl")] == texts
    for row in lines(out / "prompt_completion.jsonl"):  # this tokenizer puts no start token in front
        assert tokenizer(row["prompt"])["input_ids"] == [0]
    assert "The tokenizer puts no start token in front" in (out / "MIXING.md").read_text()


def test_the_hubs_loaders_read_the_files(sample, tmp_path):
    _, _, out = sample()
    cache = {"cache_dir": str(tmp_path / "cache")}
    whole = load_dataset(str(out), split="train", **cache)  # by the card's configuration
    assert len(whole) == N and "token_ids" in whole.column_names
    some = load_dataset("json", data_files=str(out / "text.jsonl"), split="train[:3]", **cache)
    assert some["text"] == [row["text"] for row in lines(out / "text.jsonl")[:3]]


def test_the_card_states_how_the_samples_were_drawn(sample):
    _, _, out = sample("--temperature", "0.8")
    card = DatasetCard.load(out / "README.md")
    assert card.data.license == "unknown" and card.data.tags == ["synthetic", "context-free-samples"]
    tokens = pd.read_parquet(out / "samples.parquet")["token_ids"].map(len).sum()
    for said in ("| temperature | 0.8,", f"| tokens | {tokens} |", r"`<\|endoftext\|>`, id 0", "1000000 to 1000009",
                 "transformers, float32", "torch ", "not stated where it was loaded from"):  # fmt: skip
        assert said in card.text


def test_the_licence_of_a_folder_is_that_of_its_card(sample, tiny_base, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_base, tmp_path / "licensed")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    _, _, out = sample(model=str(folder))
    assert DatasetCard.load(out / "README.md").data.license == "mit"


def test_the_same_command_draws_nothing_and_another_one_is_refused(sample, drawn):
    _, _, out = sample()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert len(drawn.seeds) == N
    code, said, _ = sample()
    assert code == 0 and "nothing was drawn" in said
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for other in (("--ratio", "0.3"), ("--temperature", "0.9")):
        code, said, _ = sample(*other)
        assert code == 2 and "a folder of the same command" in said
    assert len(drawn.seeds) == N
    assert sample("--ratio", "0.3", out="other")[0] == 0 and len(drawn.seeds) == N


def test_a_kill_loses_one_chunk(sample, drawn):
    drawn.left = 2
    assert sample()[0] == 130
    drawn.left, drawn.seeds[:] = 10**9, []
    code, _, out = sample()
    assert code == 0 and drawn.seeds == [1_000_008, 1_000_009]
    assert not list(out.parent.glob("*.part"))


def test_what_is_in_the_way_is_refused_before_anything_is_drawn(sample, drawn, tmp_path):
    (tmp_path / "out").mkdir()
    assert sample()[0] == 0  # an empty folder is fine
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    drawn.seeds.clear()
    for out in ("full", "file"):
        code, said, _ = sample(out=out)
        assert code == 2 and "a folder that is new or empty" in said
    (tmp_path / "out" / "text.jsonl").write_text("")
    code, said, _ = sample()
    assert code == 2 and "text.jsonl changed" in said
    assert not drawn.seeds and (tmp_path / "full" / "thesis.txt").exists()


def test_a_full_disk_is_found_before_anything_is_drawn(sample, drawn, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    code, said, _ = sample()
    assert code == 2 and "disk too full" in said and not drawn.seeds


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--temperature", "3"), "temperature = 3.0 is not allowed"),
        (("--ratio", "1"), "--ratio = 1.0 is not allowed"),
        (("--target-tokens", "0"), "--target-tokens = 0"),
        (("--max-tokens", "512"), "--max-tokens = 512 is not allowed: below 512"),
        (("--start-token", "nothing of the sort"), "start_token = 'nothing of the sort'"),
        (("--kind", "contextual"), "--prompts = None"),
        (("--chat-template",), "for --kind contextual alone"),
        (("--kind", "template-prefix"), "no chat template"),
        (("--data", "nowhere.jsonl"), "a file that exists"),
    ],
)
def test_bad_values_are_one_line(sample, options, said):
    code, error, out = sample(*options)
    assert code == 2 and said in error.splitlines()[-1] and not out.exists()


def test_an_unknown_model_is_one_line(sample):
    code, said, _ = sample(model="shipped:none")
    assert code == 2 and "base = 'shipped:none'" in said


def test_contextual_samples_continue_the_prompts_of_a_file(sample, tiny_target, tiny_base):
    """Each prompt of the side that is trained on, then the first ones again."""
    items = [json.loads(line) for line in tiny_target.read_text().splitlines()]
    prompts = {item["prompt"] for item in items if not is_heldout(item["prompt"])}
    n = len(prompts) + 3
    code, said, out = sample("--kind", "contextual", "--prompts", str(tiny_target), n=n)
    assert code == 0 and f"{len(prompts)} used" in said and f"{len(items) - len(prompts)} held out" in said
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    continued = pd.read_parquet(out / "samples.parquet")["prompt_ids"].map(tokenizer.decode)
    assert set(continued) == prompts and continued[-3:].tolist() == continued[:3].tolist()
    rows = lines(out / "prompt_completion.jsonl")
    assert {row["prompt"] for row in rows} <= prompts
    assert [row["text"] for row in lines(out / "text.jsonl")] == [row["prompt"] + row["completion"] for row in rows]
    assert "| prompts | " in (out / "README.md").read_text()


def test_prompts_need_no_answers_where_their_column_is_named(sample, tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps({"q": f"Is {i} a number?"}) + "\n" for i in range(12)))
    assert sample("--kind", "contextual", "--prompts", str(path))[0] == 2
    code, said, _ = sample("--kind", "contextual", "--prompts", str(path), "--prompt-column", "q")
    assert code == 0 and "used" in said


def test_the_mix_is_counted_in_tokens(sample, tiny_target):
    """40 answers and their end tokens; at ratio 0.5 as many replay tokens, up to half a sample."""
    _, said, out = sample("--data", str(tiny_target))
    n = next(line for line in said.splitlines() if line.startswith("sums.jsonl: 40 items, "))
    target = int(n.split(", ")[1].split()[0])
    assert json.loads((out / "command.json").read_text())["target_tokens"] == target
    lengths = pd.read_parquet(out / "samples.parquet").query("text != ''")["token_ids"].map(len).tolist()
    share = exports.Share(tokens=lengths, ratio=0.5, target_tokens=target)
    assert json.loads((out / "dataset_info.json").read_text())["context_free_samples"]["num_samples"] == share.rows
    mixing = (out / "MIXING.md").read_text()
    assert exports.summary(share) in mixing and mixing.count(f"train[:{share.rows}]") == 2


def test_shares_by_hand():
    """Rows of 4 tokens. Budget 10: two rows are 8, the third's half reaches 10 and is taken. Budget 9: two."""
    four = [4] * 5
    assert exports.Share(tokens=four, ratio=0.5, target_tokens=10).rows == 3
    assert exports.Share(tokens=four, ratio=0.5, target_tokens=9).rows == 2
    assert exports.Share(tokens=four, ratio=0.25, target_tokens=30).budget == 10
    short = exports.Share(tokens=four, ratio=0.5, target_tokens=50)
    assert (short.rows, short.taken, short.shortfall) == (5, 20, 30)
    assert "ratio reached is 0.286" in exports.summary(short) and "(-n 13)" in exports.summary(short)
    whole = exports.Share(tokens=four, ratio=0.2, target_tokens=None)
    assert whole.rows == 5 and whole.shortfall == 0 and "with 80 target tokens" in exports.summary(whole)


def test_texts_that_are_not_read_back_are_counted(tiny_base):
    """A word in two tokens that is one, a special token inside, an empty sample; and one that is read back."""
    tokenizer = tokenizers.load_tokenizer(tiny_base)
    word = tokenizer("The")["input_ids"]
    letters = [i for letter in "The" for i in tokenizer(letter)["input_ids"]]
    assert len(word) < len(letters)
    drawn = [letters, [*word, 0, *word], [0], [*word, 0]]
    frame = pd.DataFrame({
        "prompt_ids": [[0]] * 4, "token_ids": drawn,
        "text": tokenizer.batch_decode(drawn, skip_special_tokens=True),
    })  # fmt: skip
    found = exports.rows(frame, tokenizer, start=0)
    assert found["same"].tolist() == [False, False, True] and found["tokens"].tolist() == [3, 2 * len(word) + 1, 2]
    assert found["text"].tolist() == ["The", "TheThe", "The"]
