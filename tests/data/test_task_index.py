"""lm-eval's definitions by name: members of groups, and what is seen in a definition before data are loaded."""

from __future__ import annotations

import json
import re

import pytest

from cfutils.data import benchmarks, task_index
from cfutils.errors import UserError

GREEDY = {"do_sample": False, "temperature": 0.0}
FILES = {
    "one.yaml": {"task": "one", "output_type": "multiple_choice", "test_split": "test",
                 "training_split": "train"},
    "two.yaml": {"task": "two", "output_type": "generate_until", "test_split": "test",
                 "fewshot_split": "dev", "generation_kwargs": GREEDY},
    "warm.yaml": {"task": "warm", "output_type": "generate_until", "test_split": "test",
                  "generation_kwargs": {"do_sample": True, "temperature": 0.6, "top_k": 20}},
    "inner.yaml": {"group": "inner", "task": ["two"]},
    "outer.yaml": {"group": "outer", "task": [
        "inner", {"task": "one", "num_fewshot": 3},
        {"group": "own", "task": [{"task": "three", "output_type": "loglikelihood", "test_split": "test"}]},
    ]},
}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put a small index in the place of lm-eval's: JSON is YAML too."""
    from lm_eval.tasks._index import Entry, Kind

    found = {"tagged": Entry("tagged", Kind.TAG, None, tags={"two", "one"})}
    for name, content in FILES.items():
        (tmp_path / name).write_text(json.dumps(content))
        kind = Kind.GROUP if "group" in content else Kind.TASK
        key = content["group" if kind is Kind.GROUP else "task"]
        found[key] = Entry(key, kind, tmp_path / name)
    monkeypatch.setattr(task_index, "entries", lambda: found)


def check(*names, **num_fewshot):
    benchmarks.check(names, benchmarks="hub", num_fewshot=num_fewshot, target="gsm8k")


@pytest.mark.parametrize(
    "name, members",
    [
        ("one", ["one"]),
        ("tagged", ["one", "two"]),
        ("inner", ["two"]),
        ("outer", ["two", "one", "outer::own::three"]),
    ],
)
def test_groups_and_tags_are_their_member_tasks(hub, name, members):
    assert list(task_index.definitions(name)) == members


def test_what_a_group_sets_overrides_its_member(hub):
    found = task_index.definitions("outer")
    assert found["one"]["num_fewshot"] == 3 and found["one"]["output_type"] == "multiple_choice"
    assert "num_fewshot" not in task_index.definitions("one")["one"]


def test_what_can_be_scored_is_accepted(hub):
    check("outer", outer=0)
    check("tagged", tagged=5)  # for every member
    check("one", "two", one=5, two=5)


@pytest.mark.parametrize(
    "names, shots, says",
    [
        (["onne"], {}, r"retained = 'onne' .*a task, group or tag of lm-eval.*Did you mean one"),
        (["warm"], {}, r"retained = 'warm' .*warm cannot be scored, as it samples .*Leave it out"),
        (["inner", "two"], {}, r"retained = 'two' .*two would be scored twice"),
        (["outer"], {"outer": 1}, r"num_fewshot\['outer::own::three'\] = 1 .*items that are scored"),
        (["one"], {"two": 1}, r"two is not among the retained tasks"),
    ],
)
def test_what_cannot_be_scored_is_refused(hub, names, shots, says):
    with pytest.raises(UserError, match=says):
        check(*names, **shots)


@pytest.mark.parametrize(
    "definition, says",
    [
        ({"class": "x.Y"}, "Python class"),
        ({"output_type": "loglikelihood_rolling"}, "loglikelihood_rolling"),
        ({"unsafe_code": True}, "executes code"),
        ({"doc_to_image": ["image"]}, "not text alone"),
        ({"generation_kwargs": {"do_sample": True}}, None),
        ({"generation_kwargs": {"do_sample": True, "top_k": 20}}, "samples its answers with top_k"),
        ({"generation_kwargs": {"temperature": 0.7, "top_p": 0.95}}, None),
        ({"generation_kwargs": {"temperature": 0.0, "top_k": 20}}, None),
        ({"metric_list": [{"metric": "bleu"}, {"metric": "ter"}]}, r"bleu, ter\) have no value"),
        ({"generation_kwargs": {"temperature": 0.7, "do_sample": False}}, None),
        ({"generation_kwargs": {"temperature": "0.0"}}, None),
        ({"metric_list": [{"metric": "f1"}, {"metric": "exact_match"}]}, None),
        ({"output_type": "multiple_choice"}, None),
        ({}, None),
    ],
)
def test_reasons_that_a_definition_shows(definition, says):
    found = task_index.refusal(definition)
    assert found is None if says is None else re.search(says, found)


@pytest.mark.parametrize(
    "definition, n, refused",
    [
        ({"test_split": "test", "training_split": "train"}, 5, False),
        ({"test_split": "test", "validation_split": "val"}, 5, False),
        ({"test_split": "test"}, 1, True),
        ({"validation_split": "val"}, 1, True),
        ({"validation_split": "val", "fewshot_split": "val", "training_split": "train"}, 1, True),
        ({"test_split": "test", "fewshot_config": {"split": "test"}, "fewshot_split": "dev"}, 1, True),
        ({"test_split": "test", "fewshot_config": {"samples": [{}] * 8}}, 8, False),
        ({"test_split": "test", "fewshot_config": {"samples": [{}] * 8}}, 9, True),
        ({"test_split": "test", "fewshot_config": {"samples": "utils.samples"}}, 9, False),
    ],
)
def test_examples_that_would_be_scored_items_are_refused(definition, n, refused):
    assert (task_index.fewshot_refusal(definition, n) is not None) is refused


def test_tasks_of_the_hub_get_their_examples_and_a_seed(hub, monkeypatch):
    """Two of three examples of the split `dev` stand before each item, the same ones at every load."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = {
        "test": Dataset.from_list([{"q": f"t{i}", "a": "x"} for i in range(6)]),
        "dev": Dataset.from_list([{"q": f"d{i}", "a": "y"} for i in range(3)]),
    }

    def load(name):
        return {"two": ConfigurableTask(config={
            **FILES["two.yaml"], "custom_dataset": lambda **_: rows, "doc_to_text": "{{q}}",
            "doc_to_target": "{{a}}", "generation_kwargs": {"until": ["."], **GREEDY},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        })}  # fmt: skip

    monkeypatch.setattr(task_index, "load", load)

    def contexts(name, num_fewshot):
        (task,) = benchmarks.lm_eval_tasks(name, benchmarks="hub", num_fewshot=num_fewshot).values()
        return [task.fewshot_context(doc, task.config.num_fewshot) for doc in task.eval_docs]

    found = contexts("inner", {"inner": 2})
    assert all(c.count(" y\n\n") == 2 and c.endswith(f"t{i}") for i, c in enumerate(found))
    assert found == contexts("inner", {"two": 2})
    assert contexts("inner", {}) == [f"t{i}" for i in range(6)]
    with pytest.raises(UserError, match=r"num_fewshot\['two'\] = 4 .*at most 3"):
        contexts("two", {"two": 4})


@pytest.mark.slow
def test_lm_evals_own_index_is_kept_for_the_next_time(tmp_path, monkeypatch):
    monkeypatch.setattr(task_index.paths, "cache", lambda: tmp_path)
    task_index.entries.cache_clear()
    whole = task_index.entries()
    task_index.entries.cache_clear()
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: pytest.fail("indexed again"))
    again = task_index.entries()
    assert again == whole and len(whole) > 10_000
    assert list(task_index.definitions("ai2_arc")) == ["arc_challenge", "arc_easy"]
    assert len(task_index.definitions("mmlu")) == 57
    check("mmlu", "gsm8k", mmlu=5, gsm8k=5)
    task_index.entries.cache_clear()
