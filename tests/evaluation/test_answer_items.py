"""Items that are answered by generation: lm-eval's own tasks on documents as the hub has them, and their judgements."""

from __future__ import annotations

import pytest

from cfutils.data import hub_tasks, task_index
from cfutils.errors import UserError
from cfutils.evaluation import answer_items


def task(kind, **values):
    """lm-eval's task of two questions in memory."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = Dataset.from_list(
        [{"q": "6 * 7?", "gold": "42", "letter": 1}, {"q": "2 + 2?", "gold": "4", "letter": 0}]
    )
    return ConfigurableTask(config={
        "task": "sums", "custom_dataset": lambda **_: {"validation": rows}, "validation_split": "validation",
        "output_type": kind, "doc_to_text": "{{q}}", "num_fewshot": 0, **values,
    })  # fmt: skip


def generating():
    return task(
        "generate_until", doc_to_target="{{gold}}", generation_kwargs={"until": ["\n"]},
        metric_list=[{"metric": "exact_match"}],
        filter_list=[
            {"name": "strict", "filter": [{"function": "regex", "regex_pattern": r"The answer is (\d+)\."},
                                          {"function": "take_first"}]},
            {"name": "last", "filter": [{"function": "regex", "regex_pattern": r"(\d+)", "group_select": -1},
                                        {"function": "take_first"}]},
        ],
    )  # fmt: skip


def test_items_of_a_task_are_judged_by_its_own_filters():
    """Right under any of them; the prompt is the task's own."""
    one, two = answer_items.task_items({"sums": generating()}, {"sums": [0, 1]})["sums"]
    assert (one.task, one.id, one.prompt, two.prompt) == ("sums", "0", "6 * 7?", "2 + 2?")
    assert (
        one.right("The answer is 42. Or 41?")
        and one.right("6 * 7 = 42")
        and not one.right("42, or 41")
    )
    assert not one.right("forty-two") and two.right("4") and not two.right("42")


def test_items_of_a_skill_want_its_one_answer():
    docs = [("7", {"prompt": "add: 478+269 ->"})]
    (one,) = answer_items.skill_items("add", docs)
    assert (one.id, one.prompt) == ("7", "add: 478+269 ->")
    assert (
        one.right(" 747")
        and one.right("747\n")
        and not one.right(" 8+9=17 = 747")
        and not one.right("")
    )


def judged(item, text):
    """True, False, or None where nothing is read off the text."""
    read = item.extract(text)
    return None if read is None else item.right(read)


def own(name, doc):
    """The only item of lm-eval's own task of a name, on a document as the hub has it."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(task_index.entries()[name].yaml_path) | hub_tasks.MOVED.get(name, {})
    config.pop("tag", None)
    rows = Dataset.from_list([doc])
    splits = dict.fromkeys(("train", "validation", "test"), rows)
    made = ConfigurableTask(config=config | {"custom_dataset": lambda **_: splits, "num_fewshot": 0})
    ((_, items),) = answer_items.task_items({name: made}, {name: [0]}).items()
    return items[0]


BOX = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
LETTER = "\n\nPlease reason step by step, and put the letter of your choice within \\boxed{}."
MEDICAL = "A. Vitamin A\nB. Vitamin B\nC. Vitamin C\nD. None" + LETTER
DOCS = {
    "gsm8k": ({"question": "6 * 7?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"}, "Question: 6 * 7?" + BOX,
              ("\\boxed{42}", "The answer is $42.00 a day."), ("\\boxed{43}", "#### 41")),
    "aime24": ({"ID": "2024-I-1", "Problem": "6 * 7?", "Solution": "...", "Answer": 42}, "Question: 6 * 7?" + BOX,
               ("\\boxed{042}", "**42**"), ("\\boxed{420}",)),
    "aime25": ({"problem": "6 * 7?", "answer": "42", "id": "0"}, "Question: 6 * 7?" + BOX,
               ("\\boxed{42}",), ("\\boxed{24}",)),
    "minerva_math500": ({"problem": "Half?", "solution": "It is $\\boxed{\\frac12}$.", "answer": "\\frac12"},
                        "Problem:\nHalf?" + BOX, ("\\boxed{0.5}", "Hence $\\frac{2}{4}$."), ("\\boxed{2}",)),
    "medmcqa": ({"question": "Scurvy?", "opa": "Vitamin A", "opb": "Vitamin B", "opc": "Vitamin C", "opd": "None",
                 "cop": 2}, "Question: Scurvy?\nChoices:\n" + MEDICAL,
                ("\\boxed{C}", "The answer is vitamin C."), ("\\boxed{A}", "Answer: D")),
    "medqa_4options": ({"sent1": "Scurvy?", "ending0": "Vitamin A", "ending1": "Vitamin B", "ending2": "Vitamin C",
                        "ending3": "None", "label": 2}, "Question: Scurvy?\n" + MEDICAL,
                       ("\\boxed{\\text{C}}", "**C. Vitamin C**"), ("\\boxed{None}",)),
    "pubmedqa": ({"question": "Does it help?", "context": {"contexts": ["We asked.", "They said."]},
                  "final_decision": "maybe"},
                 "Abstract: We asked.\nThey said.\nQuestion: Does it help?\n\nPlease reason step by step, and put your "
                 "answer (yes, no, maybe) within \\boxed{}.", ("\\boxed{maybe}", "Maybe."), ("\\boxed{yes}", "No.")),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCS)
def test_tasks_of_the_paper_profile_are_asked_and_read(name):
    """By their own prompts, without the cue at their end; what names no answer is none."""
    doc, prompt, right, wrong = DOCS[name]
    item = own(name, doc)
    assert item.prompt == prompt
    assert [judged(item, text) for text in right] == [True] * len(right)
    assert [judged(item, text) for text in wrong] == [False] * len(wrong)
    assert judged(item, "I cannot say.") is None


@pytest.mark.parametrize("name", ["gpqa_diamond_cot_zeroshot", "gpqa_diamond_zeroshot"])
def test_gpqa_is_read_by_letter_in_both_its_forms(name):
    """Its choices are shuffled when it is loaded."""
    doc = {"Question": "Scurvy?", "Correct Answer": "Vitamin C", "Incorrect Answer 1": "Vitamin A",
           "Incorrect Answer 2": "Vitamin B", "Incorrect Answer 3": "Vitamin D"}  # fmt: skip
    item = own(name, doc)
    assert item.prompt.endswith(LETTER) and "Let's think" not in item.prompt and "Answer:" not in item.prompt
    letter = next(line[1] for line in item.prompt.splitlines() if line.endswith(") Vitamin C"))
    assert judged(item, f"\\boxed{{{letter}}}") and judged(item, f"The answer is ({letter}).")
    assert judged(item, "The answer is vitamin C.") and judged(item, "The answer is vitamin D.") is False


def test_choices_that_are_letters_are_read_off_the_answer():
    lettered = task("multiple_choice", doc_to_target="letter", doc_to_choice=["A", "B"])
    one, two = answer_items.task_items({"sums": lettered}, {"sums": [0, 1]})["sums"]
    assert judged(one, "Not A. The answer is B.") and judged(one, "The answer is A.") is False
    assert judged(one, "B, no, A") is None and judged(one, "Be") is None
    assert judged(two, "**A**") and judged(two, "") is None


def test_choices_that_are_texts_are_left_to_likelihood():
    told = task("multiple_choice", doc_to_target="letter", doc_to_choice=["four", "five"])
    assert answer_items.task_items({"sums": told}, {"sums": [0]}) == {}


@pytest.mark.parametrize(("name", "doc", "says"), [
    ("gsm8k", {"question": "6 * 7?", "answer": "many"}, "item 0 of gsm8k has no right answer .* no number"),
    ("aime25", {"problem": "6 * 7?", "answer": "many", "id": "0"}, "item 0 of aime25 has no right answer"),
])  # fmt: skip
def test_an_item_without_a_right_answer_is_refused(name, doc, says):
    with pytest.raises(UserError, match=says):
        own(name, doc)
