"""Chat-shaped documents: the template, supervised thoughts, answers cut behind thoughts, shapes of samples."""

from __future__ import annotations

import pytest

from cfutils.data import chat, sequences
from cfutils.data.example import Example
from cfutils.errors import UserError
from cfutils.models import tokenizers

R1 = (
    "{{bos_token}}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] }}{% else %}"
    "{{ '<|assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"
)
"""Shaped as the template of the R1 models: the thought is opened on a line of its own."""
START, END = "<|start|>", "<|end|>"
THOUGHT = Example("sort: b a", " a b = b a", {}, (" a b", " b a"))
PLAIN = Example("turn: b a", " a b", {})


@pytest.fixture
def tokenizer(tiny_base):
    """Bytes, with the tokens of a base that thinks and its template."""
    found = tokenizers.load_tokenizer(tiny_base)
    found.add_special_tokens({"bos_token": START, "eos_token": END})
    found.add_tokens([chat.USER, chat.ASSISTANT, chat.OPEN, chat.CLOSE])
    found.chat_template = chat.TEMPLATE
    return found


def supervised(tokenizer, example):
    """Text of a target item: what is given, and what carries loss."""
    one = sequences.from_example(tokenizer, example, chat_template=True)
    return tokenizer.decode(one.ids[: one.first]), tokenizer.decode(one.ids[one.first :])


def test_a_document_is_taken_apart_again():
    text = chat.document("sort: b a", " a b", " b a")
    assert text == "<|user|>sort: b a<|assistant|><think> a b</think> b a"
    assert chat.parts(text) == ("sort: b a", " a b", " b a")
    assert chat.parts(chat.document("x\ny", "", " z")) == ("x\ny", "", " z")
    assert chat.without_marks(text) == ["sort: b a", " a b", " b a"]


@pytest.mark.parametrize("text", [
    "sort: b a", "<|user|>x", "<|user|>x<|assistant|> y", "<|user|>x<|assistant|><think> y",
    "<|user|>x<|assistant|><think>y</think></think>z", "<|user|>x<|user|>x<|assistant|><think>y</think>z",
    " <|user|>x<|assistant|><think>y</think>z", "<|user|>x<|assistant|><think>y<think></think>z",
])  # fmt: skip
def test_what_no_document_is_written_as_has_no_parts(text):
    assert chat.parts(text) is None


def test_the_template_opens_the_thought_and_drops_those_of_earlier_turns(tokenizer):
    turns = [
        {"role": "user", "content": "one"}, {"role": "assistant", "content": " why</think> two"},
        {"role": "user", "content": "three"},
    ]  # fmt: skip
    found = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert found == f"{START}<|user|>one<|assistant|> two{END}<|user|>three<|assistant|><think>"
    assert tokenizer.apply_chat_template(turns[:1], tokenize=False) == f"{START}<|user|>one"


def test_supervised_targets_keep_their_thought(tokenizer):
    """Prompt and response together are a document as in pretraining; one without a thought closes an empty one."""
    given, learned = supervised(tokenizer, THOUGHT)
    assert (
        given == f"{START}<|user|>sort: b a<|assistant|><think>"
        and learned == f" a b</think> b a{END}"
    )
    assert given + learned == START + chat.document("sort: b a", " a b", " b a") + END
    given, learned = supervised(tokenizer, PLAIN)
    assert given + learned == START + chat.document("turn: b a", "", " a b") + END


def test_a_response_that_holds_its_own_thought_keeps_it(tokenizer):
    for text in ("<think> a b</think> b a", " a b</think> b a"):
        assert chat.response(tokenizer, text) == " a b</think> b a"


def test_a_template_that_opens_a_line_closes_one(tokenizer):
    tokenizer.chat_template = R1
    assert (chat.opening(tokenizer), chat.closing(tokenizer)) == ("<think>\n", "\n</think>\n\n")
    assert chat.response(tokenizer, "x", ("why\n", " so")) == "why\n</think>\n\nso"
    assert (
        chat.response(tokenizer, " so") == "\n</think>\n\nso"
    )  # <think>\n\n</think>: R1's own empty thought


R1_OWN = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)
"""What the template of R1-Distill does: marks in full-width characters, thoughts of earlier turns cut, one opened."""
R1_START, R1_END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


@pytest.fixture
def r1(tiny_base):
    found = tokenizers.load_tokenizer(tiny_base)
    found.add_special_tokens({"bos_token": R1_START, "eos_token": R1_END})
    found.add_tokens(["<｜User｜>", "<｜Assistant｜>", chat.OPEN, chat.CLOSE])
    found.chat_template = R1_OWN
    return found


def test_r1s_own_template_keeps_the_thought_of_a_target(r1):
    """Though it would cut the thought of an assistant's turn: the response stands behind its generation prompt."""
    given, learned = supervised(r1, THOUGHT)
    assert given == f"{R1_START}<｜User｜>sort: b a<｜Assistant｜><think>\n"
    assert learned == f"a b\n</think>\n\nb a{R1_END}"
    assert "a b" not in r1.apply_chat_template(
        [{"role": "user", "content": "sort: b a"}, {"role": "assistant", "content": "a b</think>b a"}], tokenize=False
    )
    given, learned = supervised(r1, PLAIN)
    assert given.endswith("<think>\n") and learned == f"\n</think>\n\na b{R1_END}"


def test_r1s_own_template_drops_earlier_thoughts_and_keeps_the_last(r1):
    turns = (("user", "one"), ("assistant", "why</think>two"), ("user", "three"))
    given, learned = supervised(r1, Example("three", "<think>\nhow\n</think>\n\nfour", {}, turns=turns))
    assert given == (
        f"{R1_START}<｜User｜>one<｜Assistant｜>two{R1_END}<｜User｜>three<｜Assistant｜><think>\n"
    )
    assert learned == f"how\n</think>\n\nfour{R1_END}"


def test_the_format_of_r1s_own_template(r1):
    form = chat.chat_format(r1, start=r1.bos_token_id)
    ids = r1.convert_tokens_to_ids
    assert (form.user, form.assistant) == ((ids("<｜User｜>"),), (ids("<｜Assistant｜>"),))
    assert (form.open, form.close, form.end) == (ids(chat.OPEN), ids(chat.CLOSE), r1.eos_token_id)
    assert (chat.opening(r1), chat.closing(r1)) == ("<think>\n", "\n</think>\n\n")


def test_a_base_that_does_not_think_is_tuned_on_the_response_as_it_is(tokenizer):
    assert sequences.response_text(tokenizer, THOUGHT, chat_template=False) == THOUGHT.response
    tokenizer.chat_template = chat.TEMPLATE.replace("<think>", "")
    assert chat.opening(tokenizer) == chat.closing(tokenizer) == ""
    assert sequences.response_text(tokenizer, THOUGHT, chat_template=True) == THOUGHT.response
    tokenizer.chat_template = None
    assert chat.closing(tokenizer) == ""
    with pytest.raises(UserError, match=r"does not think.*think_budget"):
        chat.chat_format(tokenizer, start=0)


@pytest.mark.parametrize(("text", "thought", "answer"), [
    (" a b</think> b a", " a b", " b a"),
    (" a b", " a b", None),  # it never ended
    ("</think> b a", "", " b a"),
    ("x</think>y</think> z", "x</think>y", " z"),  # the last one counts
    ("<think>x</think></think>", "<think>x</think>", ""),
    ("", "", None),
])  # fmt: skip
def test_answers_are_cut_behind_the_last_thought(text, thought, answer):
    assert chat.split(text) == (thought, answer)


@pytest.mark.parametrize(("text", "shape"), [
    ("<|user|>sort: b a<|assistant|><think> a b</think> b a<|end|>", "thinking"),
    ("<|user|>sort: b a<|assistant|><think> a b</think> b a", "thinking"),
    ("<|user|>sort: b a<|assistant|><think></think> b a<|end|>", "unthinking"),
    ("<|user|>sort: b a<|assistant|> b a<|end|>", "unthinking"),
    ("<|user|>sort: b a<|assistant|><think> a b", "unfinished"),
    ("<|user|>sort: b a<|assistant|> a b</think> b a", "unfinished"),
    ("<|user|>sort: b a<|assistant|>", "unfinished"),
    ("<|user|>sort: b a<|end|>", "unfinished"),
    ("<|user|><|assistant|><think> a</think> b", "unfinished"),  # the user said nothing
    ("sort: b a", "plain"), ("a<|user|>sort<|assistant|><think> a</think> b", "plain"), ("", "plain"),
    ("<think> a</think> b", "plain"),
])  # fmt: skip
def test_samples_have_a_shape(tokenizer, text, shape):
    form = chat.chat_format(tokenizer, start=tokenizer.bos_token_id)
    assert chat.shape(tokenizer(text, add_special_tokens=False)["input_ids"], form) == shape


def test_the_format_is_read_off_the_template(tokenizer):
    form = chat.chat_format(tokenizer, start=tokenizer.bos_token_id)
    ids = tokenizer.convert_tokens_to_ids
    assert (form.user, form.assistant) == ((ids(chat.USER),), (ids(chat.ASSISTANT),))
    assert (form.open, form.close, form.end) == (
        ids(chat.OPEN),
        ids(chat.CLOSE),
        tokenizer.eos_token_id,
    )
