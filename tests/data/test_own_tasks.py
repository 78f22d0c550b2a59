"""Files of one's own as kept abilities: their names, what decides them, and items that are tuned on."""

from __future__ import annotations

import json

import pytest

from cfutils.data import own_tasks
from cfutils.errors import UserError

MINE = [{"prompt": f"Say {i}", "completion": f" number {i}"} for i in range(40)]


@pytest.fixture
def write(tmp_path):
    def made(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return made


@pytest.mark.parametrize(
    "name, label",
    [("a/my.jsonl", "my"), ("my.v2.YAML", "my.v2"), ("b/x.yml", "x"), ("q.csv", "q"), ("sum", None), ("a.txt", None)],
)
def test_names(name, label):
    assert own_tasks.is_own(name) == (label is not None)
    assert own_tasks.label(name) == (label or name)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("none.jsonl", "none.yaml", "folder.jsonl"):
        with pytest.raises(UserError, match=rf"retained = .*{name}.*a file that exists and can be read"):
            own_tasks.digest(str(tmp_path / name))


def test_the_digest_is_that_of_name_and_bytes_and_not_of_the_folder(write, tmp_path):
    path = write("a.jsonl", [{"prompt": "a", "answer": "b"}])
    found = own_tasks.digest(path)
    (tmp_path / "deeper").mkdir()
    assert own_tasks.digest(write("deeper/a.jsonl", [{"prompt": "a", "answer": "b"}])) == found
    assert own_tasks.digest(write("b.jsonl", [{"prompt": "a", "answer": "b"}])) != found
    assert own_tasks.digest(write("a.jsonl", [{"prompt": "a", "answer": "c"}])) != found


def test_questions_that_are_tuned_on_are_counted_and_refused(write):
    """A changed file is looked at again, so is a changed target."""
    data = write("mine.jsonl", MINE)
    fresh = [{"prompt": f"Tell {i}", "answer": "x"} for i in range(5)]
    own_tasks.check(kept := write("kept.jsonl", fresh), target=data, columns={})
    write("kept.jsonl", [*fresh, {"prompt": "say 3", "answer": "x"}, {"prompt": "Say 7", "answer": "y"}])
    says = r"2 of its 7 are among the items of .*mine\.jsonl \(first: kept\.jsonl, line 6\).* Leave them out of one"
    with pytest.raises(UserError, match=says):
        own_tasks.check(kept, target=data, columns={})
    own_tasks.check(kept, target="", columns=None)
    write("mine.jsonl", MINE[10:])
    own_tasks.check(kept, target=data, columns={})


def test_columns_of_the_target_are_those_that_are_given(write):
    data = write("mine.jsonl", [{"prompt": "no", "query": "Say 3", "gold": "x"}])
    kept = write("kept.jsonl", [{"prompt": "Say 3", "answer": "x"}])
    with pytest.raises(UserError, match="1 of its 1"):
        own_tasks.check(kept, target=data, columns={"prompt": "query", "response": "gold"})


def test_items_of_a_task_in_yaml_are_looked_for_too(write, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write("rows.jsonl", [{"q": "Say 3", "a": "x"}, {"q": "Tell 3", "a": "x"}])
    (tmp_path / "kept.yaml").write_text(
        "dataset_path: json\ndataset_kwargs: {data_files: rows.jsonl}\ntest_split: train\n"
        'doc_to_text: "Question: {{q}}\\nAnswer:"\ndoc_to_target: "{{a}}"\n'
    )
    with pytest.raises(UserError, match=r"1 of its 2 .*\(first: kept\.yaml, item 1\)"):
        own_tasks.check(str(tmp_path / "kept.yaml"), target=write("mine.jsonl", MINE), columns={})


def test_data_on_the_hub_wait_until_they_are_fetched(tmp_path, write, offline):
    (tmp_path / "kept.yaml").write_text("dataset_path: owner/name\ntest_split: a\ndoc_to_text: q\ndoc_to_target: a\n")
    name, data = str(tmp_path / "kept.yaml"), write("mine.jsonl", MINE)
    own_tasks.check(name, target=data, columns={})
    with pytest.raises(UserError, match="owner/name"):
        own_tasks.check(name, target=data, columns={}, fetch=True)
    own_tasks.check(write("kept.jsonl", [{"prompt": "a", "answer": "b"}]), target="metamathqa", columns={})
