"""Data as people have them: formats, columns, what is counted, what is refused and where."""

from __future__ import annotations

import json

import pytest

from cfutils.data import files, targets
from cfutils.data.example import Example
from cfutils.errors import UserError

ROWS = [{"prompt": "one?", "response": " 1"}, {"prompt": "two?", "response": " 2"}]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def write(tmp_path):
    """Write a file; returns its path."""

    def made(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return made


def read(path, **columns):
    return files.read(str(path), path, columns=columns)


def pairs(found):
    return [(e.prompt, e.response) for e in found.examples]


WANTED = [(row["prompt"], row["response"]) for row in ROWS]


# ---- formats


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.jsonl", lines(ROWS)),
        ("a.JSONL", lines(ROWS)),
        ("a.ndjson", lines(ROWS)),
        ("a.jsonl", "\ufeff" + lines(ROWS).replace("\n", "\r\n\r\n")),  # BOM, CRLF, blank lines
        ("a.json", lines(ROWS)),
        ("a.json", json.dumps(ROWS, indent=1)),
        ("a.json", json.dumps({"data": ROWS})),
        ("a.csv", "prompt,response\none?, 1\ntwo?, 2\n"),
        ("a.csv", "\ufeffresponse;prompt\r\n 1;one?\r\n 2;two?\r\n"),
        ("a.tsv", "prompt\tresponse\none?\t 1\n\ntwo?\t 2"),
        ("a.CSV", 'prompt,response\n"one?"," 1"\n"two?"," 2"\n'),
    ],
)
def test_text_formats(write, name, text):
    found = read(write(name, text))
    assert pairs(found) == WANTED
    assert found.shape == "prompt, response" and found.counts == {"rows": 2}


def test_parquet_and_folders_of_datasets(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(ROWS)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(test=rows.select([1]), train=rows).save_to_disk(tmp_path / "two")
    DatasetDict(a=rows, b=rows).save_to_disk(tmp_path / "three")
    for name in ("a.parquet", "one", "two"):
        assert pairs(read(tmp_path / name)) == WANTED
        assert files.is_file(str(tmp_path / name))
    with pytest.raises(UserError, match="a split named train, not a, b"):
        read(tmp_path / "three")
    (tmp_path / "four").mkdir()
    with pytest.raises(UserError, match=r"save_to_disk.* one of its files"):
        read(tmp_path / "four")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(UserError, match=r"bad\.parquet is not a Parquet file"):
        read(tmp_path / "bad.parquet")


def test_a_quoted_value_may_hold_line_ends_and_any_length(write):
    long = "x" * 300_000
    found = read(write("a.csv", f'prompt,response\n"a\nb, c","{long}"\np,"say ""hi"""\n'))
    assert pairs(found) == [("a\nb, c", long), ("p", 'say "hi"')]


# ---- columns


@pytest.mark.parametrize(
    "row, prompt, response",
    [
        ({"prompt": "p", "completion": "c", "text": "t"}, "p", "c"),
        ({"question": "q", "answer": "a"}, "q", "a"),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n\n1 2\n\n", "3"),
        ({"instruction": "Say hi.", "input": "", "output": "hi"}, "Say hi.\n\n", "hi"),
        ({"instruction": "Say hi.", "input": None, "output": "hi"}, "Say hi.\n\n", "hi"),
        ({"instruction": "Say hi.", "output": "hi"}, "Say hi.\n\n", "hi"),
        ({"text": "A whole text."}, "", "A whole text."),
    ],
)
def test_columns_that_are_known(write, row, prompt, response):
    assert pairs(read(write("a.jsonl", lines([row])))) == [(prompt, response)]


def test_columns_by_name(write):
    path = write("a.jsonl", lines([{"query": "q", "gold": "g", "prompt": "no"}]))
    assert pairs(read(path, prompt="query", response="gold")) == [("q", "g")]
    assert pairs(read(path, text="gold")) == [("", "g")]
    with pytest.raises(UserError, match="line 1: no column 'response'; there are query, gold, prompt"):
        read(path, prompt="query")
    with pytest.raises(UserError, match="names for prompt and response, for messages, or for text"):
        read(path, prompt="query", text="gold")


def test_each_of_the_assistants_turns_is_an_item_behind_what_was_said_before(write):
    found = read(write("a.jsonl", lines([{"messages": CHAT}])))
    one, two = found.examples
    assert one.turns == (("system", "Be brief."), ("user", "Hi")) and one.response == "Hello"
    assert two.turns == (*one.turns, ("assistant", "Hello"), ("user", "Bye")) and two.response == "See you"
    assert one.prompt == "Be brief.\n\nHi" and one.id != two.id
    assert one.group == two.group == "Hi"  # one conversation, one side
    assert found.counts == {"rows": 1, "later turns": 1}


def test_other_shapes_of_conversations(write):
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    split = {"prompt": CHAT[:2], "completion": CHAT[2:3]}
    (one,) = read(write("a.json", json.dumps([{"conversations": shared}]))).examples
    (two,) = read(write("b.json", json.dumps([split]))).examples
    assert (one.turns, one.response) == ((("user", "Hi"),), "Hello")
    assert (two.turns, two.response) == ((("system", "Be brief."), ("user", "Hi")), "Hello")


# ---- what is counted


def test_nothing_is_dropped_in_silence(write):
    rows = [
        {"prompt": "a", "response": "1"}, {"prompt": "a", "response": "2"}, {"prompt": "a", "response": "1"},
        {"prompt": "b", "response": " \n"}, {"prompt": "", "response": "3"}, {"prompt": "c", "response": "4"},
    ]  # fmt: skip
    found = read(write("a.jsonl", lines(rows)))
    assert pairs(found) == [("a", "1"), ("a", "2"), ("c", "4")]
    assert found.counts == {
        "rows": 6, "exact duplicates": 1, "empty answers": 1, "empty prompts": 1, "repeated prompts": 1,
    }  # fmt: skip
    one, two, _ = found.examples
    assert one.id == Example("a", "", {}).id and two.id == f"{one.id}-1" and one.group == two.group


def test_a_prompt_with_several_answers_keeps_them_all_on_one_side(write):
    """120 rows on 40 prompts: 120 items."""
    rows = [{"prompt": f"prompt {i}", "response": f"answer {j}"} for i in range(40) for j in range(3)]
    path = write("a.jsonl", lines(rows))
    sizes = {"n_train": 0, "n_heldout": 0}
    for side, key in ((False, "n_train"), (True, "n_heldout")):
        groups = {r["prompt"] for r in rows if targets.is_heldout(r["prompt"]) is side}
        sizes[key] = 3 * len(groups)
    train, heldout, _ = targets.split(str(path), lambda e: 1, max_length=9, **sizes)
    assert len(train) + len(heldout) == 120 and len({e.id for e in (*train, *heldout)}) == 120
    assert not {e.prompt for e in train} & {e.prompt for e in heldout}


# ---- what is refused


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("a.jsonl", '{"prompt": "p", "response": "r"}\n{"prompt": "p"}', r"a\.jsonl, line 2: wants a text under 'resp"),
        ("a.jsonl", '{"prompt": "p", "response": 3}', r"line 1: wants a text under 'response', not 3"),
        ("a.jsonl", '{"prompt": "p", "response": "\\ud800"}', r"line 1: half a surrogate pair"),
        ("a.jsonl", '{"prompt": "p", "prompt": "q", "response": "r"}', r"line 1: the column 'prompt' stands"),
        ("a.jsonl", "[1]", r"line 1: wants an object with named columns, not list"),
        ("a.jsonl", "[" * 100_000, r"line 1: not valid JSON"),
        ("a.jsonl", '{"story": "s"}', r"line 1: no columns to train on\. There are story; wanted are prompt and"),
        ("a.jsonl", "", r"a\.jsonl holds no item: it is empty"),
        ("a.jsonl", '{"prompt": "p", "response": ""}', r"holds no item \(1 rows, 1 empty answers\)"),
        ("a.jsonl", "café".encode("latin-1"), r"a\.jsonl is not UTF-8 text"),
        ("a.json", "[1, 2", r"not valid JSON"),
        ("a.json", "[1, 2]", r"a\.json, item 1: wants an object"),
        ("a.csv", "prompt,response\na,b,c\n", r"a\.csv, line 2: 3 values for 2 columns"),
        ("a.csv", "prompt,prompt\na,b\n", r"the column 'prompt' stands there twice"),
        ("a.jsonl", '{"messages": []}', r"line 1: a conversation in which the assistant says nothing"),
        ("a.jsonl", '{"messages": [{"role": "tool", "content": "x"}]}', r"messages, turn 1: wants a role"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": null}]}', r"messages, turn 1: wants a role.*not 'user'"),
        ("a.jsonl", '{"messages": ["x"]}', r"messages, turn 1: wants an object with role and content"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_where_it_stands(write, name, text, says):
    with pytest.raises(UserError, match=says):
        read(write(name, text))


@pytest.mark.parametrize(
    "name, own", [("gsm8k", False), ("x.jsonl", True), ("x.PARQUET", True), ("hub:a/b", True), ("x.txt", False)]
)
def test_names_of_data_of_ones_own(name, own):
    assert files.is_file(name) is own


def test_items_that_are_all_too_long_are_refused_with_their_length(write):
    path = write("a.jsonl", lines([{"prompt": f"p{i}", "response": "x" * 49} for i in range(20)]))
    with pytest.raises(UserError, match=r"n_train = 4 .*at most 0 .*= 10\. \d+ have more, up to 52; raise max"):
        targets.split(str(path), lambda e: len(e.prompt + e.response), max_length=10, n_train=4, n_heldout=0)
