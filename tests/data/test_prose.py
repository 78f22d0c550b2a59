"""Real prose in whole documents, from the records of the data package."""

from __future__ import annotations

import hashlib

import pytest

from cfutils.data import prose
from cfutils.errors import UserError

RECORDS = {
    "squad/bpb_5shot": [{"query": "Title\nBackground: The sea is deep.\nQuestion: How deep?"}] * 2,
    "boolq/val_rc_5shot": [{"query": "Sea -- The sea is salt. \nQuestion: is it?"}],
    "coqa/bpb_0shot": [{"story": " Ann went home. "}, {"story": "Ben did not."}],
}


@pytest.fixture
def records(monkeypatch):
    """Records in memory in the place of the package's."""
    monkeypatch.setattr(prose, "requests", lambda task: iter(RECORDS[task]))
    prose.documents.cache_clear()
    yield
    prose.documents.cache_clear()


@pytest.mark.parametrize(
    "kind, texts",
    [("wikipedia", {"The sea is deep.", "The sea is salt."}), ("stories", {"Ann went home.", "Ben did not."})],
)
def test_documents_are_passages_alone_each_once(records, kind, texts):
    found = prose.documents(kind)
    assert len(found) == 2 and set(found) == texts


def test_the_order_is_that_of_the_hash(monkeypatch, records):
    """Whatever the order of the records."""
    found = prose.documents("stories")
    stories = RECORDS["coqa/bpb_0shot"]
    monkeypatch.setattr(prose, "requests", lambda task: reversed(stories))
    prose.documents.cache_clear()
    assert prose.documents("stories") == found
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in found]
    assert digests == sorted(digests)


def test_an_unknown_kind_of_prose_is_refused():
    with pytest.raises(UserError, match="prose = 'poems'"):
        prose.documents("poems")
