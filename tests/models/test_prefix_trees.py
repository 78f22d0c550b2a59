"""Log-likelihoods against a plain pass per text, and how many tokens that takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfutils.models import lm_head, loading, prefix_trees
from cfutils.models.prefix_trees import Text


@pytest.fixture(scope="module")
def model(tiny_base):
    return loading.load(tiny_base, dtype="float32")


@pytest.fixture
def counted(model):
    """Tokens that go through the model, pass by pass."""
    passes = []
    hook = model.model.embed_tokens.register_forward_pre_hook(
        lambda _, args: passes.append(args[0].numel())
    )
    yield passes
    hook.remove()


def text(context, continuation):
    ids = (*context, *continuation)
    return Text(ids[:-1], tuple(continuation))


@torch.inference_mode()
def plain(model, one):
    """One pass over one text."""
    log_p = model(input_ids=torch.tensor([one.ids])).logits[0, -len(one.wanted) :].double().log_softmax(-1)
    wanted = torch.tensor(one.wanted)
    return log_p.gather(1, wanted[:, None]).sum().item(), bool((log_p.argmax(-1) == wanted).all())


def draw(seed, n):
    return tuple(map(int, np.random.default_rng(seed).integers(1, 300, n)))


def check(model, texts, *, limit):
    found = prefix_trees.loglikelihoods(model, texts, limit=limit)
    expected = [plain(model, one) for one in texts]
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-4)
    assert [flag for _, flag in found] == [flag for _, flag in expected]
    return expected


@pytest.mark.parametrize("limit", [1, 40, 4096])
@pytest.mark.parametrize("rows", [2, 128])
def test_every_kind_of_text(model, monkeypatch, limit, rows):
    """Choices, one-token choices, doubles, contexts that part late and end alike, one without company."""
    monkeypatch.setattr(lm_head, "LOGIT_ROWS", rows)
    texts = []
    for item in range(6):
        context = draw(item, 9 + item)
        texts += [text(context, draw((item, c), 1 + c)) for c in range(5)]
        texts += [text(context, (c,)) for c in range(30, 34)]
        texts.append(texts[-1])
        for name in ((7,), (8, 9)):
            texts.append(text((*context, 4, 5, 6, *name), (11, 12, 13)))
    texts.append(text((5,), (6,)))
    best = int(model(input_ids=torch.tensor([draw(0, 9)])).logits[0, -1].argmax())
    texts.append(text(draw(0, 9), (best,)))
    expected = check(model, texts, limit=limit)
    assert expected[-1][1] and not expected[0][1]


def test_a_context_goes_through_the_model_once_for_all_choices(model, counted):
    """12 tokens of context, choices of 1, 3 and 4 that part at once: 12 + 0 + 2 + 3 tokens."""
    context = draw(1, 12)
    texts = [text(context, (9,)), text(context, (1, 2, 3)), text(context, (4, 5, 6, 7))]
    prefix_trees.loglikelihoods(model, texts, limit=4096)
    assert counted == [17]


def test_a_beginning_of_many_is_a_trunk(model, counted):
    """70 common tokens, then 10 questions of 8 with 2 choices of 2: 70 once, 10 x (8 + 2 x 1) in passes."""
    start = draw(2, 70)
    texts = [
        text((*start, 10 + item, *draw((3, item), 7)), (200 + c, 5)) for item in range(10) for c in range(2)
    ]
    check(model, texts, limit=60)
    counted.clear()
    prefix_trees.loglikelihoods(model, texts, limit=60)
    assert counted[0] == 70 and sum(counted) == 170 and max(counted[1:]) <= 60


def test_a_trunk_leaves_every_text_a_token(model, counted):
    """One text is the beginning itself: the trunk ends before what predicts its continuation."""
    start = draw(4, 80)
    texts = [text(start, (7,)), *(text((*start, item), draw((5, item), 30)) for item in range(4))]
    check(model, texts, limit=90)
    counted.clear()
    prefix_trees.loglikelihoods(model, texts, limit=90)
    assert counted[0] == 79


def test_texts_that_share_most_stay_together_however_long(model, monkeypatch, counted):
    """A context of 50 with LONGEST at 40: 50 + 4 x 2, not 4 x 52."""
    monkeypatch.setattr(prefix_trees, "LONGEST", 40)
    context = draw(6, 50)
    prefix_trees.loglikelihoods(model, [text(context, (c, 1, 2)) for c in range(4)], limit=4096)
    assert sum(counted) == 58


def test_no_texts(model):
    assert prefix_trees.loglikelihoods(model, [], limit=8) == []
