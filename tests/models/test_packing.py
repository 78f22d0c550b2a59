"""Packed rows give what each document alone gives, on one architecture after another."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertGenerationConfig,
    BertGenerationDecoder,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from cfutils.data.sequences import Sequence
from cfutils.errors import UserError
from cfutils.models import packed_attention, packed_rows, packing
from cfutils.models.lm_head import Head
from cfutils.models.packed_rows import Block, Trunk

SIZE = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
            pad_token_id=0)  # fmt: skip
GPT2 = dict(vocab_size=97, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
PACKED = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZE)),
    "olmo": (OlmoForCausalLM, OlmoConfig(**SIZE)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZE)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SIZE, head_dim=8)),
    "granite": (GraniteForCausalLM, GraniteConfig(**SIZE, logits_scaling=3.0)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**GPT2)),
}
MAMBA = MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2)
SEQUENCES = [
    Sequence(tuple(range(3 + 5 * n, 3 + 5 * n + length)), first)
    for n, (length, first) in enumerate([(9, 3), (4, 1), (7, 5), (2, 1)])
]


def made(kind, config):
    """A model whose matrices are large enough for errors to show."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.3)
    return model


@pytest.fixture(params=PACKED)
def model(request):
    return made(*PACKED[request.param])


@pytest.fixture(params=[0, 64**2], autouse=True)
def groups(request, monkeypatch):
    """Every test with attention in several groups, and in one."""
    monkeypatch.setattr(packed_rows, "FREE", request.param)


@pytest.fixture
def llama():
    model = made(*PACKED["llama"])
    assert packing.prepare(model) is None
    return model


@torch.inference_mode()
def alone(model, ids):
    """Logits of one document by itself, in the model's first attention."""
    return model(input_ids=torch.tensor([ids])).logits[0].float()


@torch.inference_mode()
def in_a_row(model, sequences):
    found = packing.documents(sequences, model.device)
    return Head(model)(packing.last_hidden(model, found.packed)[found.rows])


def test_documents_in_a_row_are_what_each_is_alone(model):
    expected = torch.cat([alone(model, s.ids)[s.first - 1 : -1] for s in SEQUENCES])
    assert packing.prepare(model) is None and packing.supports_packing(model)
    torch.testing.assert_close(in_a_row(model, SEQUENCES), expected, atol=1e-4, rtol=1e-4)
    # one document, and documents of one length, take a shorter way
    same = [s for s in SEQUENCES if len(s.ids) == 9] * 2
    torch.testing.assert_close(in_a_row(model, same)[:6], expected[:6], atol=1e-4, rtol=1e-4)


def test_a_model_that_cannot_be_packed_says_so_and_gets_padded_batches():
    model = made(MambaForCausalLM, MAMBA)
    assert packing.prepare(model) and not packing.supports_packing(model)
    expected = torch.cat([alone(model, s.ids)[s.first - 1 : -1] for s in SEQUENCES])
    torch.testing.assert_close(in_a_row(model, SEQUENCES), expected, atol=1e-4, rtol=1e-4)


def test_logits_that_the_head_does_not_explain_are_refused():
    class Odd(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits + torch.arange(97.0)
            return out

    with pytest.raises(UserError, match=r"Odd cannot be scored .* extend lm_head\.Head"):
        packing.prepare(made(Odd, LlamaConfig(**SIZE)))


def test_a_model_that_sees_what_follows_is_refused():
    """BERT as it is by default: its logits of a token change with the tokens behind it."""
    model = made(BertGenerationDecoder, BertGenerationConfig(**SIZE))
    with pytest.raises(UserError, match=r"whatever follows it in a batch. Choose another decoder"):
        packing.prepare(model)


@pytest.mark.parametrize(
    ("kind", "config", "why"),
    [
        (MambaForCausalLM, MAMBA, "its layers carry a state from token to token"),
        (LlamaForCausalLM, LlamaConfig(**SIZE, attn_implementation="eager"), "its attention is eager"),
        (DiffLlamaForCausalLM, DiffLlamaConfig(**SIZE), "logits differ by"),  # attends twice in each layer
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_packed_says_why(kind, config, why):
    assert why in packing.prepare(made(kind, config))


def test_branches_of_a_tree_do_not_see_each_other(model):
    """(5 6 7) (8 9 | 10 | 11 12 13): each branch against its document; another tree beside it."""
    documents = [[5, 6, 7, 8, 9], [5, 6, 7, 10], [5, 6, 7, 11, 12, 13]]
    expected = torch.stack([alone(model, ids)[-1] for ids in documents])
    assert packing.prepare(model) is None
    tree = Block()
    stem = tree.grow([], [5, 6, 7])
    ends = [tree.grow(stem, ids[3:])[-1] for ids in documents]
    assert ends == [4, 5, 8] and tree.parents == [-1, 0, 1, 2, 3, 2, 2, 6, 7] and tree.branches
    with torch.inference_mode():
        row = packed_rows.row([packed_rows.chain([40, 41]), tree], model.device)
        assert row.positions.tolist() == [[0, 1, 0, 1, 2, 3, 4, 3, 3, 4, 5]]
        found = Head(model)(packing.last_hidden(model, row)[[2 + end for end in ends]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_trunk_is_what_its_tokens_in_every_block_are(model):
    ids = list(range(20, 31))
    expected = torch.stack([alone(model, [*ids, 50, 51])[-1], alone(model, [*ids, 60])[-1]])
    assert packing.prepare(model) is None
    trunk = Trunk(len(ids))
    packing.last_hidden(model, packed_rows.row([packed_rows.chain(ids)], model.device, record=trunk))
    row = packed_rows.row([packed_rows.chain([50, 51]), packed_rows.chain([60])], model.device, trunk=trunk)
    assert row.positions.tolist() == [[11, 12, 11]]
    found = Head(model)(packing.last_hidden(model, row)[[1, 2]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_documents_alone(llama):
    found = packing.documents(SEQUENCES, llama.device)
    Head(llama)(packing.last_hidden(llama, found.packed)[found.rows]).square().sum().backward()
    grads = [p.grad.clone() for p in llama.parameters()]
    llama.zero_grad()
    llama.set_attn_implementation("sdpa")
    for s in SEQUENCES:
        llama(input_ids=torch.tensor([s.ids])).logits[0, s.first - 1 : -1].square().sum().backward()
    for one, p in zip(grads, llama.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad, atol=1e-2, rtol=1e-3)


def test_gradients_with_checkpoints_are_those_without():
    """What a layer attends to is there when it is computed again for its gradient."""
    model = made(MistralForCausalLM, MistralConfig(**SIZE, sliding_window=4)).train()
    assert packing.prepare(model) is None

    def gradients():
        model.zero_grad()
        found = packing.documents(SEQUENCES, model.device)
        Head(model)(packing.last_hidden(model, found.packed)[found.rows]).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable()
    for one, two in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_ordinary_calls_of_a_prepared_model_are_what_they_were(llama):
    """Whole passes, and one new token behind a cache, with a padded row."""
    ids = torch.tensor([[0, 0, 7, 8, 9], [3, 4, 5, 6, 7]])
    seen = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])

    def outputs():
        first = llama(input_ids=ids[:, :4], attention_mask=seen[:, :4], use_cache=True)
        second = llama(input_ids=ids[:, 4:], attention_mask=seen, past_key_values=first.past_key_values)
        return first.logits[seen[:, :4] > 0], second.logits

    found = outputs()
    llama.set_attn_implementation("sdpa")
    for one, two in zip(found, outputs(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_token_sees_its_window_in_its_document_alone():
    """Windows of 4: a chain, a tree and both behind a trunk of 6, each against documents alone."""
    model = made(MistralForCausalLM, MistralConfig(**SIZE, sliding_window=4))
    documents = [range(20, 31), range(40, 43), (*range(20, 28), *range(50, 55))]
    expected = torch.stack([alone(model, list(ids))[-1] for ids in documents])
    assert packing.prepare(model) is None
    tree = Block()
    stem = tree.grow([], range(20, 28))
    ends = [tree.grow(stem, list(ids)[8:])[-1] for ids in (documents[0], documents[2])]
    row = packed_rows.row([tree, packed_rows.chain(documents[1])], model.device)
    states = packing.last_hidden(model, row)[[ends[0], len(tree.ids) + 2, ends[1]]]
    torch.testing.assert_close(Head(model)(states), expected, atol=1e-4, rtol=1e-4)
    trunk = Trunk(6)
    packing.last_hidden(
        model, packed_rows.row([packed_rows.chain(range(20, 26))], model.device, record=trunk)
    )
    blocks = [packed_rows.chain(list(ids)[6:]) for ids in (documents[0], documents[2])]
    states = packing.last_hidden(model, packed_rows.row(blocks, model.device, trunk=trunk))[[4, 11]]
    torch.testing.assert_close(Head(model)(states), expected[[0, 2]], atol=1e-4, rtol=1e-4)


def test_a_document_within_the_window_needs_no_mask():
    """Masks by hand: none up to the window of 4; beyond it three before each token, in every layer of the kind."""
    model = made(MistralForCausalLM, MistralConfig(**SIZE, sliding_window=4))
    assert packing.prepare(model) is None
    masks = []
    attend = packed_attention._attend
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            packed_attention.AttentionInterface._global_mapping, packed_attention.NAME,
            lambda *args, **kwargs: masks.append(args[4].masks) or attend(*args, **kwargs),
        )  # fmt: skip
        for n in (3, 5):
            packing.last_hidden(model, packed_rows.row([packed_rows.chain(range(n))], model.device))
    (within, _), (beyond, again) = masks[:2], masks[2:]
    assert within == [None]
    assert beyond is again
    assert beyond[0][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 1, 1, 1, 1]
    ]  # fmt: skip


def test_documents_by_hand(monkeypatch):
    """(1 2 3 4), loss from 2 on; (5 6), loss from 1 on: rows 1 2 predict 3 4, row 3 predicts 6."""
    monkeypatch.setattr(packed_rows, "FREE", 1000)
    found = packing.documents([Sequence((1, 2, 3, 4), 2), Sequence((5, 6), 1)], torch.device("cpu"))
    assert found.packed.ids.tolist() == [[1, 2, 3, 5]]
    assert found.packed.positions.tolist() == [[0, 1, 2, 0]]
    (group,) = found.packed.groups
    assert group.tokens == slice(0, 4) and group.mask is None
    assert group.shape == (2, 3) and group.places.tolist() == [0, 1, 2, 3]
    assert found.rows.tolist() == [1, 2, 3] and found.targets.tolist() == [3, 4, 6]
    assert found.counts == [2, 1]


def test_attention_pads_little(monkeypatch):
    """3 x 25 <= 1.5 (16 + 16 + 25), but 4 x 81 > 1.5 (57 + 81) and 2 x 81 > 1.5 (81 + 4)."""
    monkeypatch.setattr(packed_rows, "FREE", 0)
    lengths = [4, 4, 5, 9, 2]
    row = packed_rows.row([packed_rows.chain(range(n)) for n in lengths], torch.device("cpu"))
    assert [group.shape for group in row.groups] == [(3, 5), (1, 9), (1, 2)]
    assert [group.tokens for group in row.groups] == [slice(0, 13), slice(13, 22), slice(22, 24)]
    monkeypatch.setattr(packed_rows, "FREE", 1000)
    (group,) = packed_rows.row([packed_rows.chain(range(n)) for n in lengths], torch.device("cpu")).groups
    assert group.shape == (5, 9)


def test_groups_by_length():
    """Shortest first, at most 10 together; what is longer than that stands alone."""
    assert list(packing.by_length([4, 12, 5, 1, 6], limit=10)) == [[3, 0, 2], [4], [1]]
    assert list(packing.by_length([], limit=10)) == []
