"""Made-up records with the columns, splits and configurations of the data sets that the profiles of hub bases read.

A handful of each: enough for every step to run, none to measure anything. A data set is stored as on the hub, with one
parquet file for each configuration and split, and a card that names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ITEMS = 12
"""Records of a split of a task; few-shot examples come from these too."""
TARGET_ITEMS = 96
"""Records of a target's data set; a hash holds a quarter out."""
THINGS = (
    "apple", "book", "chair", "drum", "engine", "feather", "garden", "hammer",
    "island", "jacket", "kettle", "lamp",
)  # fmt: skip
VERBS = ("puts", "drops", "kicks", "sings")
PLACES = (
    "attic", "barn", "cellar", "dock", "kitchen", "library", "market", "office",
    "park", "school", "tower", "yard",
)  # fmt: skip


@dataclass(frozen=True)
class DataSet:
    """A data set of the hub."""

    make: Callable[[int], dict[str, Any]]
    """The record of a number."""
    splits: tuple[str, ...] = ("train", "validation", "test")
    configurations: tuple[str, ...] = ("default",)
    items: int = ITEMS
    """Records of each split."""
    gated: bool = False
    """Whether its files ask for a token."""


def _thing(i: int) -> str:
    return THINGS[i % len(THINGS)]


def _place(i: int) -> str:
    return PLACES[(i // len(THINGS) + i) % len(PLACES)]


def _question(i: int) -> str:
    return f"Where is {_thing(i)} number {i} kept"


def _options(i: int) -> list[str]:
    """Four options; the right one is that at place i % 4."""
    others = [place for place in PLACES if place != _place(i)]
    options = [f"In the {others[(i + n) % len(others)]}" for n in range(3)]
    options.insert(i % 4, f"In the {_place(i)}")
    return options


def _sum(i: int) -> tuple[str, str, int]:
    """Return a question, its solution and the answer."""
    a, b = 3 + i, 2 + i % 7
    question = f"There are {a} {_thing(i)}s in the {_place(i)} and {b} in the yard. How many are there in all?"
    return question, f"There are {a} + {b} = {a + b} {_thing(i)}s.", a + b


def _metamath(i: int) -> dict[str, Any]:
    question, steps, answer = _sum(i)
    return {
        "type": "GSM_Rephrased", "query": f"{question} Take it that none is lost.", "original_question": question,
        "response": f"{steps}\n#### {answer}\nThe answer is: {answer}",
    }  # fmt: skip


def _medreason(i: int) -> dict[str, Any]:
    return {
        "dataset_name": "medmcqa", "id_in_dataset": i, "question": f"{_question(i)}?",
        "answer": f"{_options(i)[i % 4]}. It is kept there.",
        "reasoning": f"Finding reasoning paths:\n1. {_thing(i)} -> {_place(i)}\n\nConclusion: in the {_place(i)}.",
        "options": "Answer Choices:\n" + "\n".join(f"{'ABCD'[n]}. {one}" for n, one in enumerate(_options(i))),
    }  # fmt: skip


def _gsm8k(i: int) -> dict[str, Any]:
    question, steps, answer = _sum(i)
    return {"question": question, "answer": f"{steps}\n#### {answer}"}


def _hellaswag(i: int) -> dict[str, Any]:
    return {
        "ind": i, "activity_label": f"Moving the {_thing(i)}", "ctx_a": f"A man lifts the {_thing(i)}.",
        "ctx_b": "then he", "ctx": f"A man lifts the {_thing(i)}. then he",
        "endings": [f"{verb} it into the {_place(i + n)}." for n, verb in enumerate(VERBS)],
        "source_id": f"made-up~{i}", "split": "val", "split_type": "indomain", "label": str(i % 4),
    }  # fmt: skip


def _lettered(i: int) -> dict[str, Any]:
    return {"text": _options(i), "label": list("ABCD")}


def _arc(i: int) -> dict[str, Any]:
    return {"id": f"made-up-{i}", "question": f"{_question(i)}?", "choices": _lettered(i), "answerKey": "ABCD"[i % 4]}


def _piqa(i: int) -> dict[str, Any]:
    return {"goal": f"Keep the {_thing(i)} dry.", "sol1": f"Put it in the {_place(i)}.",
            "sol2": "Put it into the rain.", "label": i % 2}  # fmt: skip


def _siqa(i: int) -> dict[str, Any]:
    return {"context": f"Ann gave Bo a {_thing(i)}.", "question": "How does Bo feel?", "answerA": "glad",
            "answerB": f"in the {_place(i)}", "answerC": "asleep", "label": str(1 + i % 3)}  # fmt: skip


def _openbookqa(i: int) -> dict[str, Any]:
    return {"id": f"made-up-{i}", "question_stem": _question(i), "choices": _lettered(i), "answerKey": "ABCD"[i % 4]}


def _winogrande(i: int) -> dict[str, Any]:
    return {"sentence": f"The {_thing(i)} does not fit into the box because the _ is too large.", "option1": _thing(i),
            "option2": "box", "answer": str(1 + i % 2)}  # fmt: skip


def _boolq(i: int) -> dict[str, Any]:
    return {"question": f"is the {_thing(i)} kept in the {_place(i)}", "idx": i, "label": i % 2,
            "passage": f"The {_thing(i)} is kept in the {_place(i + i % 2)}."}  # fmt: skip


def _sciq(i: int) -> dict[str, Any]:
    wrong = [one for n, one in enumerate(_options(i)) if n != i % 4]
    return {"question": f"{_question(i)}?", **{f"distractor{n}": one for n, one in enumerate(wrong, 1)},
            "correct_answer": _options(i)[i % 4], "support": f"The {_thing(i)} is in the {_place(i)}."}  # fmt: skip


def _mmlu(i: int) -> dict[str, Any]:
    return {"question": f"{_question(i)}?", "subject": "made_up", "choices": _options(i), "answer": i % 4}


def _medqa(i: int) -> dict[str, Any]:
    endings = {f"ending{n}": one for n, one in enumerate(_options(i))}
    return {"id": f"made-up-{i}", "sent1": f"{_question(i)}?", "sent2": "", **endings, "label": i % 4}


def _medmcqa(i: int) -> dict[str, Any]:
    options = {f"op{letter}": one for letter, one in zip("abcd", _options(i), strict=True)}
    return {"id": f"made-up-{i}", "question": f"{_question(i)}?", **options, "cop": i % 4, "choice_type": "single",
            "exp": f"It is in the {_place(i)}.", "subject_name": "Anatomy", "topic_name": None}  # fmt: skip


def _pubmedqa(i: int) -> dict[str, Any]:
    context = {
        "contexts": [f"The {_thing(i)} was looked for."], "labels": ["METHODS"], "meshes": ["Furniture"],
        "reasoning_required_pred": ["y", "e", "s"], "reasoning_free_pred": ["y", "e", "s"],
    }  # fmt: skip
    return {
        "pubid": i, "question": f"Is the {_thing(i)} kept in the {_place(i)}?", "context": context,
        "long_answer": f"It was found in the {_place(i)}.", "final_decision": ("yes", "no", "maybe")[i % 3],
    }  # fmt: skip


def _math500(i: int) -> dict[str, Any]:
    question, steps, answer = _sum(i)
    return {"problem": question, "solution": f"{steps} The answer is $\\boxed{{{answer}}}$.", "answer": str(answer),
            "subject": "Algebra", "level": 1 + i % 5, "unique_id": f"made/up/{i}.json"}  # fmt: skip


def _aime24(i: int) -> dict[str, Any]:
    question, steps, answer = _sum(i)
    return {"ID": f"2024-I-{i}", "Problem": question, "Solution": steps, "Answer": answer}


def _aime25(i: int) -> dict[str, Any]:
    question, _, answer = _sum(i)
    return {"id": str(i), "problem": question, "answer": str(answer)}


def _gpqa(i: int) -> dict[str, Any]:
    wrong = [one for n, one in enumerate(_options(i)) if n != i % 4]
    return {
        "Question": f"{_question(i)}?", "Correct Answer": _options(i)[i % 4],
        **{f"Incorrect Answer {n}": one for n, one in enumerate(wrong, 1)},
        "Explanation": f"It is in the {_place(i)}.", "Record ID": f"made-up-{i}", "High-level domain": "Physics",
    }  # fmt: skip


DATA_SETS = {
    "meta-math/MetaMathQA": DataSet(_metamath, ("train",), items=TARGET_ITEMS),
    "UCSC-VLAA/MedReason": DataSet(_medreason, ("train",), items=TARGET_ITEMS),
    "openai/gsm8k": DataSet(_gsm8k, ("train", "test"), ("main", "socratic")),
    "Rowan/hellaswag": DataSet(_hellaswag),
    "allenai/ai2_arc": DataSet(_arc, configurations=("ARC-Challenge", "ARC-Easy")),
    "baber/piqa": DataSet(_piqa),
    "lighteval/siqa": DataSet(_siqa, ("train", "validation")),
    "allenai/openbookqa": DataSet(_openbookqa, configurations=("additional", "main")),
    "allenai/winogrande": DataSet(_winogrande, configurations=("winogrande_xl",)),
    "aps/super_glue": DataSet(_boolq, configurations=("boolq",)),
    "allenai/sciq": DataSet(_sciq),
    "cais/mmlu": DataSet(_mmlu, ("test", "validation", "dev"), items=5),
    "GBaker/MedQA-USMLE-4-options-hf": DataSet(_medqa),
    "openlifescienceai/medmcqa": DataSet(_medmcqa),
    "qiaojin/PubMedQA": DataSet(_pubmedqa, ("train",), ("pqa_artificial", "pqa_labeled", "pqa_unlabeled")),
    "HuggingFaceH4/MATH-500": DataSet(_math500, ("test",)),
    "Maxwell-Jia/AIME_2024": DataSet(_aime24, ("train",)),
    "math-ai/aime25": DataSet(_aime25, ("test",)),
    "Idavidrein/gpqa": DataSet(_gpqa, ("train",), ("gpqa_diamond", "gpqa_extended", "gpqa_main"), gated=True),
}
"""By hub id."""


def texts() -> Iterator[str]:
    """Yield texts of the records, for a tokenizer to be trained on."""
    for data_set in DATA_SETS.values():
        for i in range(ITEMS):
            yield " ".join(map(str, data_set.make(i).values()))


def write(name: str, folder: Path, configurations: Iterable[str] = ()) -> None:
    """Write a data set into `folder` as the hub has it.

    configurations: names beside those of the table, for a data set with very many. Records of different splits differ.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    data_set = DATA_SETS[name]
    names = tuple(dict.fromkeys((*data_set.configurations, *configurations)))
    for configuration in names:
        for number, split in enumerate(data_set.splits):
            rows = [data_set.make(number * data_set.items + i) for i in range(data_set.items)]
            path = folder / configuration / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), path)
    (folder / "README.md").write_text(_card({one: data_set.splits for one in names}), encoding="utf-8")


def _card(splits: Mapping[str, Iterable[str]]) -> str:
    lines = ["---", "configs:"]
    for configuration, names in splits.items():
        lines += [f"- config_name: {configuration}", "  data_files:"]
        for split in names:
            lines += [f"  - split: {split}", f"    path: {configuration}/{split}-*"]
    return "\n".join([*lines, "---", "Made-up records with the columns of this data set."]) + "\n"
