"""Items of one's own, and the split that keeps held-out ones held out."""

from __future__ import annotations

import hashlib
import json

import pytest

from cfutils.data import packaged, skills, targets
from cfutils.data.splits import is_heldout
from cfutils.errors import UserError

GOOD = json.dumps({"prompt": "p", "response": "r"})


@pytest.fixture
def jsonl(tmp_path):
    """Write lines to a file; returns its path."""

    def write(*lines):
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


# ---- files


def test_a_malformed_file_is_refused_before_anything_is_keyed_by_it(jsonl):
    with pytest.raises(UserError, match=r"mine\.jsonl, line 2: not valid JSON"):
        targets.target_digest(str(jsonl(GOOD, "{")))


def test_a_missing_file_and_an_unknown_target_are_refused():
    with pytest.raises(UserError, match=r"target = '/nowhere/mine\.jsonl' .*a file that exists"):
        targets.target("/nowhere/mine.jsonl")
    with pytest.raises(UserError, match=r"target = 'gsm9k' .*gsm8k, medmcqa.*data of your own.*\.jsonl"):
        targets.target("gsm9k")


def test_items_are_read_whole(jsonl):
    """Blank lines are skipped; the native record stays."""
    first, second = {"prompt": "p", "response": " r", "source": "me"}, {"prompt": "p", "response": "other"}
    one, two = targets.own(str(jsonl(json.dumps(first), "", json.dumps(second)))).examples
    assert (one.prompt, one.response, one.doc) == ("p", " r", first)
    assert one.id == hashlib.sha256(b"p").hexdigest()[:16] and two.id == f"{one.id}-1"


def test_a_line_ends_at_a_newline_and_nowhere_else(jsonl):
    """U+2028 and U+0085 may stand inside a JSON text; they end no line of a file."""
    item = {"prompt": "a\u2028b", "response": "c\x85d"}
    (found,) = targets.own(str(jsonl(json.dumps(item, ensure_ascii=False)))).examples
    assert (found.prompt, found.response) == ("a\u2028b", "c\x85d")


def test_a_file_that_has_changed_is_read_again(jsonl):
    path = jsonl(GOOD)
    assert len(targets.own(str(path)).examples) == 1
    with path.open("a") as file:
        file.write("\n" + json.dumps({"prompt": "q", "response": "r"}))
    assert len(targets.own(str(path)).examples) == 2


def test_the_digest_follows_the_file(jsonl):
    one = targets.target_digest(str(jsonl(GOOD)))
    assert one == targets.target_digest(str(jsonl(GOOD)))
    assert one != targets.target_digest(str(jsonl(GOOD, GOOD)))


# ---- split


def split(target, *, max_length=100, n_train, n_heldout):
    """Split by the length of the prompt in characters."""
    return targets.split(
        str(target), lambda e: len(e.prompt), max_length=max_length, n_train=n_train,
        n_heldout=n_heldout,
    )  # fmt: skip


def test_the_hash_of_the_prompt_decides_the_side():
    """First 8 hexadecimal digits of the SHA-256 below 0.25 * 16^8, that is, first digit 0 to 3."""
    for i in range(200):
        text = f"text {i}"
        assert is_heldout(text) == (hashlib.sha256(text.encode()).hexdigest()[0] in "0123")
    share = sum(is_heldout(f"text {i}") for i in range(2000)) / 2000
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    half = [is_heldout(f"text {i}", share=0.5) for i in range(200)]
    assert half == [hashlib.sha256(f"text {i}".encode()).hexdigest()[0] < "8" for i in range(200)]


def test_the_sides_are_disjoint_and_the_split_is_always_the_same(tiny_target):
    train, heldout, too_long = split(tiny_target, n_train=20, n_heldout=8)
    assert (len(train), len(heldout), too_long) == (20, 8, 0)
    assert not {e.id for e in train} & {e.id for e in heldout}
    assert all(is_heldout(e.prompt) for e in heldout)
    assert not any(is_heldout(e.prompt) for e in train)
    assert split(tiny_target, n_train=20, n_heldout=8) == (train, heldout, 0)


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tiny_target):
    train, heldout, _ = split(tiny_target, n_train=20, n_heldout=8)
    fewer, less, _ = split(tiny_target, n_train=5, n_heldout=3)
    assert fewer == train[:5] and less == heldout[:3]


def test_the_order_of_the_file_and_doubles_change_nothing(tiny_target, tmp_path):
    lines = tiny_target.read_text().splitlines()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join([*reversed(lines), *lines[:5]]))
    assert split(other, n_train=20, n_heldout=8) == split(tiny_target, n_train=20, n_heldout=8)


def test_items_that_are_too_long_are_left_out_and_counted(jsonl):
    """Of 40 prompts every other one is 50 characters longer; all the short ones are asked for.

    Items come in the order of their hash, so the long ones behind the last short one are not met.
    """
    prompts = [f"item {i}" + " " * 50 * (i % 2) for i in range(40)]
    path = jsonl(*(json.dumps({"prompt": p, "response": "r"}) for p in prompts))
    train_side = [p for p in prompts if not is_heldout(p)]
    train_side.sort(key=lambda p: hashlib.sha256(p.encode()).hexdigest())
    short = [p for p in train_side if len(p) < 50]
    met = train_side[: train_side.index(short[-1])]
    train, heldout, too_long = split(path, max_length=40, n_train=len(short), n_heldout=0)
    assert [e.prompt for e in train] == short and heldout == []
    assert too_long == sum(len(p) > 40 for p in met) > 0


@pytest.mark.parametrize("name, n_train, n_heldout", [("n_train", 99, 3), ("n_heldout", 3, 99)])
def test_too_few_items_are_refused_with_the_number_there_is(tiny_target, name, n_train, n_heldout):
    with pytest.raises(UserError, match=rf"{name} = 99 .*at most \d+ for target"):
        split(tiny_target, n_train=n_train, n_heldout=n_heldout)


@pytest.mark.parametrize("name", ["rotate", "descend"])
def test_targets_that_the_base_has_never_seen(name):
    """Enough items of both sides for the default profile; responses are the skill's."""
    train, heldout, too_long = split(name, max_length=80, n_train=400, n_heldout=200)
    assert (len(train), len(heldout), too_long) == (400, 200, 0)
    for example in train + heldout:
        assert skills.recognise(example.prompt + example.response) == (name, True)
        assert example.doc == {"prompt": example.prompt, "response": example.response}
    assert not any(is_heldout(e.prompt) for e in train)
    assert all(is_heldout(e.prompt) for e in heldout)
    row = targets.target(name)
    assert (row.tasks, row.local, row.generates) == ((name,), True, True)
    assert not skills.skill(name).pretrained


def test_the_digest_of_a_skill_follows_the_world(monkeypatch):
    """And not the data package, which has no part in it."""
    one = targets.target_digest("rotate")
    assert one.startswith("rotate:") and one != targets.target_digest("descend")
    monkeypatch.setattr(packaged, "digest", lambda: "another")
    assert targets.target_digest("rotate") == one
    monkeypatch.setattr(skills, "world_digest", lambda: "another")
    assert targets.target_digest("rotate") == "rotate:another"


@pytest.mark.parametrize("name", ["~nosuchuser/x.jsonl", f"{'x' * 300}.jsonl", "a\0b.jsonl", "/no/such/x.jsonl"])
def test_a_path_that_leads_nowhere_is_refused_in_one_line(name):
    for use in (targets.target, targets.target_digest):
        with pytest.raises(UserError, match="target = "):
            use(name)


def test_the_letter_of_medmcqa_does_not_stand_behind_the_cue_of_other_tasks(monkeypatch):
    doc = {
        "question": "Scurvy lacks?", "opa": "Vitamin A", "opb": "Iron", "opc": "Vitamin C", "opd": "Zinc", "cop": 2,
        "exp": f" {'Collagen needs ascorbate. ' * 4}", "subject_name": "Medicine",
    }  # fmt: skip
    left_out = [{"subject_name": "Dental"}, {"exp": None}, {"exp": "x" * 79}, {"exp": "x" * 901}]
    monkeypatch.setattr(targets.packaged, "medmcqa", lambda: [doc, *(doc | change for change in left_out)])
    (one,) = targets.target("medmcqa").read()
    assert one.prompt == (
        "Question: Scurvy lacks?\nChoices:\nA. Vitamin A\nB. Iron\nC. Vitamin C\nD. Zinc\nExplanation:"
    )
    assert one.response == f" {('Collagen needs ascorbate. ' * 4).strip()}\nThe right choice is C."


def test_the_digest_of_a_target_follows_its_version():
    package = targets.packaged.digest()
    assert targets.target_digest("gsm8k") == f"gsm8k:{package}"
    assert targets.target_digest("medmcqa") == f"medmcqa:{package}:{targets.TARGETS['medmcqa'].version}"
