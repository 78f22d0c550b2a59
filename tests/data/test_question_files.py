"""Questions of one's own: what is read, what is refused and in which line, and the lm-eval task that they make."""

from __future__ import annotations

import json

import pytest

from cfutils.data import own_tasks, question_files
from cfutils.errors import UserError

OPEN = {"question": "Who barks?", "answer": "a dog"}
CLOSED = {"prompt": "It barks:", "choices": ["cat", "dog"], "gold": "dog"}


@pytest.fixture
def write(tmp_path):
    """Write rows, or a text as it is; returns the path."""

    def made(content, name="mine.jsonl"):
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return made


def task(path):
    return own_tasks.load(str(path))


def asked(path):
    """Context, continuations and metrics of the first item."""
    made = task(path)
    doc = made.eval_docs[0]
    requests = made.construct_requests(doc, made.fewshot_context(doc, 0), metadata=(None, 0, 1))
    return made, [one.args for one in (requests if isinstance(requests, list) else [requests])]


# ---- what it is asked as


def test_a_question_is_framed_and_a_prompt_is_not(write):
    made, ((context, how),) = asked(write([OPEN]))
    assert context == "Question: Who barks?\nAnswer:" and made.config.target_delimiter == " "
    assert how["until"] == ["\n"] and not how["do_sample"]
    made, pairs = asked(write([CLOSED]))
    assert pairs == [("It barks:", " cat"), ("It barks:", " dog")]
    assert made.doc_to_target(made.eval_docs[0]) == 1 and list(made._metric_fn_list) == ["acc"]


@pytest.mark.parametrize(
    "rows, context, continuation",
    [
        ([{"prompt": "a ->", "answer": " b"}, {"prompt": "c ->\n", "answer": "d"}], "a ->", " b"),  # both have it
        ([{"prompt": "a\n", "answer": "b"}], "a\n", "b"),
        ([{"prompt": "a ->", "answer": " b"}, {"prompt": "c ->", "answer": "d"}], "a ->", " b"),  # one has none
        ([{"prompt": "c ->", "answer": "d"}, {"prompt": "a \n", "answer": " b"}], "c ->", " d"),
        ([{"prompt": "{{a}} ->", "answer": "{{b}}"}], "{{a}} ->", " {{b}}"),  # no template
    ],
)
def test_what_stands_between_prompt_and_answer(write, rows, context, continuation):
    made, ((found, _),) = asked(write(rows))
    assert found == context
    assert made.config.target_delimiter + made.doc_to_target(made.eval_docs[0])[0] == continuation


def test_accepted_answers_of_several_lines_are_not_cut_at_the_first(write):
    made, ((_, how),) = asked(write([{"question": "a?", "answers": ["b", "c\nd"]}]))
    assert made.doc_to_target(made.eval_docs[0]) == ["b", "c\nd"] and how["until"] == []


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.csv", "question,answer\nWho barks?,a dog\n"),
        ("a.json", json.dumps([OPEN])),
        ("a.jsonl", "\ufeff" + json.dumps(OPEN | {"choices": None, "source": "x"}) + "\r\n\r\n"),
    ],
)
def test_other_formats(write, name, text):
    (one,) = question_files.read(write(text, name))
    assert (one.asked, one.answers, one.choices) == ("Who barks?", ("a dog",), ())


# ---- scores


@pytest.mark.parametrize(
    "golds, said, exact, f1",
    [
        (["a dog"], " The dog.", 1, 1),  # articles, case and marks do not count
        (["a dog"], " a red dog", 0, 2 / 3),  # 1 of 2 words said, 1 of 1 wanted
        (["cat", "a dog barks loudly"], " black dog", 0, 0.4),  # the better one: 1 of 2 said, 1 of 3 wanted
        (["-3"], " 3", 0, 0),
        (["3.5"], " 35", 0, 0),
        (["-3.5"], " -3.5.", 1, 1),
        (["A"], " the", 0, 0),  # both are nothing in SQuAD's normalisation
        (["A"], " a", 1, 1),
        (["狗"], " 狗", 1, 1),
        (["4", "four"], "Four", 1, 1),
        (["a dog"], "", 0, 0),
    ],
)
def test_scores_by_hand(golds, said, exact, f1):
    assert question_files.scores({"answers": golds}, [said]) == {"exact_match": exact, "f1": pytest.approx(f1)}


# ---- what is refused


@pytest.mark.parametrize(
    "content, says",
    [
        ("", r"mine\.jsonl holds no question: it is empty"),
        ("\n \n", "holds no question"),
        ([{"query": "a", "answer": "b"}], r"line 1: wants the question in one column .*there are query, answer"),
        ([OPEN | {"prompt": "b"}], "line 1: wants the question in one column"),
        ([{"question": "a", "response": "b"}], "line 1: wants the gold answer in one column"),
        ([OPEN | {"gold": "b"}], "line 1: wants the gold answer in one column"),
        ([OPEN, {"question": "b"}], r"mine\.jsonl, line 2: no column 'answer'; there are question"),
        ([OPEN, {"question": "b", "answer": " "}], "line 2: wants a text under 'answer', not ' '"),
        ([{"question": "2 + 2?", "answer": 4}], "line 1: wants a text under 'answer', not 4"),
        ([{"question": "", "answer": "b"}], "line 1: wants a text under 'question'"),
        ([{"question": "a", "answers": []}], "line 1: wants a gold answer under 'answers'"),
        ([{"question": "a", "answers": ["b", None]}], "line 1: wants a text under 'answers', not None"),
        ([CLOSED, CLOSED | {"prompt": "b", "gold": "cow"}], r"line 2: the gold answer 'cow' is not among the choices"),
        ([CLOSED | {"gold": "B"}], "line 1: .*not its number or letter"),
        ([CLOSED | {"choices": ["dog"]}], "line 1: wants at least two choices"),
        ([CLOSED | {"choices": ["dog", " dog"]}], "line 1: .*each different"),
        ([CLOSED | {"choices": "cat, dog"}], "line 1: wants a list of texts under 'choices', not 'cat, dog'"),
        ([CLOSED | {"gold": ["dog", "cat"]}], "line 1: 2 gold answers; of choices one is right"),
        ([CLOSED, {"prompt": "b", "gold": "c"}], "line 2: has no choices, and line 1 has some"),
        ([OPEN, OPEN | {"question": "b"}, OPEN], "line 3: the question of line 1 again"),
        ([OPEN, OPEN | {"question": "Who barks? "}], "line 2: the question of line 1 again"),
        (json.dumps(OPEN).encode() + b'\n{"question": "\xff"}\n', r"not UTF-8 text \(line 2: invalid start byte\)"),
        (json.dumps(OPEN) + '\n{"question": \n', r"mine\.jsonl, line 2: not valid JSON"),
        (json.dumps(OPEN) + "\n[1]\n", "line 2: wants an object with named columns, not list"),
        ('{"question": "\\ud800", "answer": "b"}', "line 1: half a surrogate pair"),
    ],
)
def test_one_line_says_what_is_wrong_and_where(write, content, says):
    with pytest.raises(UserError, match=says):
        question_files.read(write(content))


def test_one_question_with_other_choices_is_another_question(write):
    path = write([CLOSED, CLOSED | {"choices": ["cow", "dog"]}])
    assert len(question_files.read(path)) == 2
