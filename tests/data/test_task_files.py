"""lm-eval tasks in YAML files of one's own: data, functions, what decides them, and what is refused."""

from __future__ import annotations

import json

import pytest
import yaml

from cfutils.data import own_tasks, task_files
from cfutils.errors import UserError

ROWS = [{"q": f"Q{i}?", "a": f"A{i}", "n": i, "options": ["x", "y"], "right": i % 2} for i in range(5)]
OPEN = {
    "task": "other", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"]}, "metric_list": [{"metric": "exact_match"}],
}  # fmt: skip
CLOSED = {"output_type": "multiple_choice", "doc_to_choice": "options", "doc_to_target": "right",
          "metric_list": [{"metric": "acc"}]}  # fmt: skip
PYTHON = """
def text(doc):
    return doc["q"].lower()

def nothing(doc):
    return doc["nothing"]

def good(doc, results):
    return {"acc": "good"}
"""


class Function(str):
    """Written with the tag !function."""


yaml.SafeDumper.add_representer(Function, lambda dumper, text: dumper.represent_scalar("!function", str(text)))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a definition with changes (None leaves a key out) and its files; returns the YAML file's path."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "fns.py").write_text(PYTHON)

    def made(name="mine.yaml", *, data=None, **changes):
        found = {k: v for k, v in {**OPEN, **changes}.items() if v is not None}
        if data is not None:
            (tmp_path / "data.jsonl").write_text(data)
            found["dataset_kwargs"] = {"data_files": {"test": "data.jsonl"}}
        (tmp_path / name).write_text(yaml.safe_dump(found))
        return tmp_path / name

    return made


def docs(path):
    return [doc["q"] for doc in task_files.load(path, name="mine").eval_docs]


# ---- the task


@pytest.mark.parametrize(
    "changes, arguments",
    [
        ({}, ("Q1?", None)),
        (CLOSED, ("Q1?", " y")),
        ({**CLOSED, "output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": " {{a}}"}, ("Q1?", " A1")),
        ({"doc_to_text": Function("fns.text")}, ("q1?", None)),
    ],
)
def test_output_types_and_functions(write, changes, arguments):
    task = own_tasks.load(str(write(**changes)))
    assert task.config.task == "mine" and len(task.eval_docs) == 5  # shown under the file's name
    doc = task.eval_docs[1]
    asked = task.construct_requests(doc, task.fewshot_context(doc, 0), metadata=(None, 0, 1))
    context, behind = (asked[1] if isinstance(asked, list) else asked).args
    assert (context, behind if isinstance(behind, str) else None) == arguments


def test_data_are_looked_for_where_lm_eval_does_then_beside_the_file(write, tmp_path):
    path = write()
    assert docs(path) == [row["q"] for row in ROWS]  # beside it: the working directory has none
    (tmp_path / "work" / "rows.jsonl").write_text('{"q": "here?", "a": "b"}\n')
    assert docs(path) == ["here?"]
    assert docs(write(dataset_kwargs={"data_files": {"test": str(tmp_path / "rows.jsonl")}})) == [r["q"] for r in ROWS]
    (tmp_path / "work" / "rows.jsonl").unlink()
    (tmp_path / "rows-2.jsonl").write_text(json.dumps(ROWS[0] | {"q": "more?"}) + "\n")
    assert docs(write(dataset_kwargs={"data_files": "rows*.jsonl"}, test_split="train"))[:2] == ["more?", "Q0?"]
    with pytest.raises(UserError, match=rf"data no\.jsonl are not there; looked for in {tmp_path}/work or {tmp_path}"):
        docs(write(dataset_kwargs={"data_files": {"test": "no.jsonl"}}))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_other_kinds_of_data(write, tmp_path, kind):
    from datasets import Dataset

    rows = Dataset.from_list(ROWS).remove_columns("options")
    getattr(rows, f"to_{kind}")(str(tmp_path / f"rows.{kind}"))
    path = write(dataset_path=kind, dataset_kwargs={"data_files": {"test": f"rows.{kind}"}})
    assert docs(path) == [row["q"] for row in ROWS] and task_files.is_local(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset_path": "folder", "dataset_kwargs": None},
        {"dataset_path": "folder", "dataset_kwargs": {"data_files": {"test": "test.jsonl"}}},
        {"dataset_kwargs": {"data_dir": "folder"}, "test_split": "train"},
        {"dataset_kwargs": {"data_dir": "folder", "data_files": {"test": "t*.jsonl"}}},
    ],
)
def test_a_folder_of_data(write, tmp_path, changes):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "test.jsonl").write_text('{"q": "in it?", "a": "b"}\n')
    path = write(**changes)
    before = task_files.digest(path)
    assert docs(path) == ["in it?"] and task_files.is_local(path)
    (tmp_path / "folder" / "test.jsonl").write_text('{"q": "changed?", "a": "b"}\n')
    assert task_files.digest(path) != before


# ---- what decides it


def test_every_file_that_it_is_made_from_decides_it(write, tmp_path):
    """Not the folder, and not a Python file that nothing is taken from."""
    (tmp_path / "common.yaml").write_text('description: "Answer."\n')
    path = write(include="common.yaml", doc_to_text=Function("fns.text"))
    found = [task_files.digest(path)]
    for name in ("mine.yaml", "common.yaml", "fns.py", "rows.jsonl"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text + "\n")
        found.append(task_files.digest(path))
        (tmp_path / name).write_text(text)
    assert len(set(found)) == 5
    (tmp_path / "unrelated.py").write_text("x = 1")
    assert task_files.digest(path) == found[0]
    assert task_files.load(path, name="mine").fewshot_context(ROWS[0], 0) == "Answer.q0?"


@pytest.mark.parametrize("kwargs", [None, {"data_dir": "en", "data_files": {"test": "test.csv"}}])
def test_data_on_the_hub_are_not_looked_at(write, offline, kwargs):
    path = write(dataset_path="owner/name", dataset_kwargs=kwargs)
    assert not task_files.is_local(path) and task_files.digest(path)
    with pytest.raises(UserError, match=r"mine\.yaml: cannot be made into a task \(.*owner/name"):
        task_files.load(path, name="mine")


# ---- what is refused


@pytest.mark.parametrize(
    "text, says",
    [
        ("task: [a\n", r"mine\.yaml, line 2: not valid YAML"),
        ("- a\n", "is no task of lm-eval"),
        ("task: a\n", "a dataset_path is missing"),
        ("group: a\ntask: [b, c]\n", "is a group of tasks"),
        ("include: nothing.yaml\n", r"is no task of lm-eval .*nothing\.yaml"),
        (b"task: \xff\n", "is no task of lm-eval"),
    ],
)
def test_files_that_define_no_task(tmp_path, text, says):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=says):
        task_files.digest(path)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"data": '{"q": "a", "a": "b"}\n{"q": \n'}, r"data\.jsonl, line 2: not valid JSON"),
        ({"data": ""}, r"its data file data\.jsonl is empty"),
        ({"data": '{"q": "a", "a": "b"}\n{"q": "c", "a": " "}\n'}, "item 2: no gold answer"),
        ({"data": '{"q": "a", "options": ["x", "y"], "right": 1}\n{"q": "b", "options": ["x", "y"], "right": 2}\n',
          **CLOSED}, "item 2: the gold answer '2' is not among its 2 choices"),
        ({**CLOSED, "doc_to_choice": "{{[q]}}"}, "item 1: wants a list of at least two texts as choices"),
        ({"test_split": "dev"}, "KeyError: 'dev'; is it a split or a column"),
        ({"doc_to_text": "{{nothing}}"}, "UndefinedError: 'nothing' is undefined"),
        ({"doc_to_text": "nothing"}, "all 5 items ask the same, 'nothing'; is it the name of a column"),
        ({"doc_to_text": Function("fns.nothing")}, r"KeyError in fns\.py, line 6: 'nothing'"),
        ({"doc_to_text": Function("fns.missing")}, "has no attribute 'missing'"),
        ({"doc_to_text": Function("missing.text")}, "No module named 'missing'"),
        ({"process_results": Function("fns.good")}, "item 1: its metric acc is 'good', not a number"),
        ({"metric_list": [{"metric": "exakt"}]}, "lm-eval knows no metric 'exakt'"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
        ({"metric_list": ["acc"]}, r"metric_list wants a list of tables, not \['acc'\]"),
        ({"generation_kwargs": "greedy"}, "generation_kwargs wants a table, not 'greedy'"),
        ({"dataset_kwargs": None}, "names no data: data_files are missing"),
    ],
)
def test_one_line_says_what_is_wrong_before_anything_is_scored(write, changes, says):
    with pytest.raises(UserError, match=says) as error:
        task_files.check(write(**changes), name="mine")
    assert "\n" not in str(error.value)
