"""Texts as words alone, and the boundary between prompt and response, for tokenizers of several kinds."""

from __future__ import annotations

import pytest
import tokenizer_families
import tokenizers as hf
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cfutils.data import chat, sequences, text_ids
from cfutils.data.example import Example
from cfutils.errors import UserError

CORPUS = ["The quick brown fox jumps over the lazy dog.", "Question: 3 bags of 4 apples? Answer: 12 apples."] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|bot|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + ('user' if m.role == 'user' else 'bot') + '|>' + m.content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}"
)


def made(kind):
    """A tokenizer of a kind: GPT-2's bytes, Llama's with a space before every text and its own BOS, one with EOS."""
    bpe = hf.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    space = kind.startswith("llama")
    bpe.pre_tokenizer = pre_tokenizers.Metaspace() if space else pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.Metaspace() if space else decoders.ByteLevel()
    letters = list("abcdefghijklmnopqrstuvwxyzATQ<>|/.:?0123456789▁\n")
    bpe.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=letters if space else pre_tokenizers.ByteLevel.alphabet(),
    ))  # fmt: skip
    if kind != "gpt2":
        end = " </s>" if kind.endswith("eos") else ""
        bpe.post_processor = processors.TemplateProcessing(
            single=f"<s> $A{end}", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


KINDS = ("gpt2", "llama", "llama eos", "bytes eos")


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return made(request.param)


def test_a_text_without_tokens_with_a_role_is_encoded_as_ever(tokenizer):
    text = "The quick brown fox: 12 apples?"
    assert text_ids.encode(tokenizer, text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    with_bos = text_ids.encode(tokenizer, text, bos=True)
    whole = tokenizer(text)["input_ids"]
    assert with_bos == (whole[:-1] if whole[-1] == 2 else whole)


@pytest.mark.parametrize("text", ["a</s>b", "<s>", "a <|user|> b <|user|></s>", "<|bot|"])
def test_what_a_text_spells_out_stays_words(tokenizer, text):
    ids = text_ids.encode(tokenizer, text)
    assert not set(ids) & {1, 2, 3, 4}
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")
    assert text_ids.spelled(tokenizer, text) == sum(text.count(t) for t in SPECIAL)


def test_an_added_token_that_is_not_special_has_a_role_too_and_white_space_has_none(tokenizer):
    tokenizer.add_tokens(["[TOOL]", "   "])
    assert "[TOOL]" in text_ids.controls(tokenizer) and "   " not in text_ids.controls(tokenizer)
    assert tokenizer.convert_tokens_to_ids("[TOOL]") not in text_ids.encode(tokenizer, "say [TOOL] now")


def test_prompt_and_response_are_what_generation_meets(tokenizer):
    """The prompt's tokens are those of the prompt alone, BOS once, and together they decode to the whole text."""
    for prompt, response in [("Question: 3 bags?\nAnswer:", " 12 apples."), ("The quick", " brown"), ("fox", "jumps")]:
        one = sequences.from_example(tokenizer, Example(prompt, response, {}), chat_template=False)
        head = list(one.ids[: one.first])
        assert head == text_ids.encode(tokenizer, prompt, bos=True)
        assert head.count(1) == (tokenizer("a")["input_ids"][0] == 1)
        assert one.ids[-1] == 2 and one.ids.count(2) == 1
        assert tokenizer.decode(one.ids[:-1], skip_special_tokens=True) == prompt + response


def test_no_space_is_added_between_prompt_and_response():
    """A tokenizer that puts a space before every text would, if it encoded the response alone."""
    tokenizer = made("llama")
    one = sequences.from_example(tokenizer, Example("fox:", "jumps", {}), chat_template=False)
    alone = tokenizer("jumps", add_special_tokens=False)["input_ids"]
    assert list(one.ids[one.first : -1]) != alone
    assert tokenizer.decode(one.ids[:-1], skip_special_tokens=True) == "fox:jumps"


def test_where_a_token_reaches_over_the_boundary_the_response_is_encoded_alone():
    tokenizer = made("gpt2")
    whole = tokenizer("apples")["input_ids"]
    assert len(whole) == 1 or whole != [*tokenizer("app")["input_ids"], *tokenizer("les")["input_ids"]]
    one = sequences.from_example(tokenizer, Example("app", "les", {}), chat_template=False)
    assert list(one.ids) == [*tokenizer("app")["input_ids"], *tokenizer("les")["input_ids"], 2]


def test_a_response_that_is_encoded_alone_has_no_space_of_the_tokenizers():
    """SentencePiece's tokenizers begin every text with a space; their tokens reach over the prompt's end."""
    tokenizer = tokenizer_families.made("llama 2", ["Answer:(A) is right."] * 4, template="mistral")
    prompt, response = "Answer:", "(A) is right."
    head = tokenizer(prompt)["input_ids"]
    assert tokenizer(prompt + response)["input_ids"][: len(head)] != head
    one = sequences.from_example(tokenizer, Example(prompt, response, {}), chat_template=False)
    assert tokenizer.decode(one.ids) == "<s> Answer:(A) is right.</s>"


def test_words_that_spell_out_a_token_get_no_space_inside():
    tokenizer = tokenizer_families.made("llama 2", ["Answer:(A) is right."] * 4, template="mistral")
    assert tokenizer.decode(text_ids.encode(tokenizer, "is</s>right", bos=True)) == "<s> is</s>right"
    ids = chat.turn_ids(tokenizer, (("user", "is</s>right"),))
    assert tokenizer.decode(ids) == "<s>[INST] is</s>right [/INST]"
    assert ids.count(tokenizer.eos_token_id) == 0


def test_turns_in_a_template(tokenizer):
    turns = (("user", "3 bags?"), ("assistant", "12"), ("user", "The fox"))
    one = sequences.from_example(tokenizer, Example("x", "jumps over.", {}, turns=turns), chat_template=True)
    text = "<s><|user|>3 bags?<|bot|>12<|user|>The fox<|bot|>"
    assert list(one.ids[: one.first]) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert one.ids.count(1) == 1 and one.ids[-1] == 2
    assert tokenizer.decode(one.ids[one.first : -1]).strip() == "jumps over."


def test_words_in_a_template_that_spell_out_its_tokens(tokenizer):
    turns = (("user", "a<|bot|>b"), ("assistant", "</s>"), ("user", "c"))
    ids = chat.turn_ids(tokenizer, turns)
    roles = [i for i in ids if i in (1, 2, 3, 4)]
    assert roles == [1, 3, 4, 3, 4]  # those of the template, and no others


def test_a_template_without_a_system_role_has_its_words_before_the_users():
    tokenizer = made("gpt2")
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
    )
    assert chat.render(tokenizer, (("system", "Be brief."), ("user", "Hi"))) == "<s><|user|>Be brief.\n\nHi<|bot|>"


def test_the_systems_words_are_never_the_assistants():
    """Of a conversation that the assistant opens; one that the template still refuses is named, with the fix."""
    tokenizer = made("gpt2")
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refuses + TEMPLATE
    turns = (("system", "Be brief."), ("assistant", "Hello!"), ("user", "Hi"))
    assert chat.render(tokenizer, turns) == "<s><|bot|>Hello!<|user|>Be brief.\n\nHi<|bot|>"
    tokenizer.chat_template = refuses.replace("system", "assistant").replace("no", "must not open in an") + TEMPLATE
    with pytest.raises(UserError, match=r"\(assistant, user; it begins 'Hello!'\).*Leave .* set chat_template: false"):
        chat.render(tokenizer, turns[1:])


def test_a_text_without_a_prompt_has_no_thought_to_close():
    """Of a conversation that the assistant opens, under a template that opens thoughts."""
    tokenizer = made("gpt2")
    tokenizer.chat_template = TEMPLATE.replace("{{ '<|bot|>' }}{% endif %}", "{{ '<|bot|><think>' }}{% endif %}")
    assert chat.closing(tokenizer) == "</think>"
    one = sequences.from_example(tokenizer, Example("", "Hello!", {}), chat_template=True, start=1)
    assert tokenizer.decode(one.ids) == "<s>Hello!</s>"


def test_a_conversation_without_a_template_is_paragraphs():
    tokenizer = made("gpt2")
    example = Example("Be brief.\n\nHi", "Hello", {}, turns=(("system", "Be brief."), ("user", "Hi")))
    one = sequences.from_example(tokenizer, example, chat_template=False)
    assert tokenizer.decode(one.ids) == "Be brief.\n\nHi\n\nHello</s>"


def test_a_text_without_a_prompt_follows_the_start_token(tokenizer):
    one = sequences.from_example(tokenizer, Example("", "The quick fox", {}), chat_template=False, start=1)
    assert one.first == 1 and one.ids[0] == 1 and one.ids[-1] == 2
    assert list(one.ids[1:-1]) == tokenizer("The quick fox", add_special_tokens=False)["input_ids"]
