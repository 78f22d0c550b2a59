"""Skills: answers worked by hand, what is recognised as whole and right, sides that never mix."""

from __future__ import annotations

import re
from itertools import islice
from random import Random

import pytest
import yaml

from cfutils import paths
from cfutils.data import corpus, skills
from cfutils.data.splits import is_heldout
from cfutils.errors import UserError

NAMES = list(skills.skills())
GOLDEN = {
    # what people do and where they live is drawn once; the base that ships has learned it
    "job": ("what does Anna do? Anna is a", " sailor"),
    "city": ("Ben lives in", " Paris"),
    "category": ("every pike is a", " fish"),
    "member": ("member: cat dog oak red ; oak ->", " yes"),
    "reverse": ("reverse: cat dog oak red ->", " red oak dog cat"),
    "sort": ("sort: pike ash owl ->", " ash owl pike"),
    "largest": ("largest: 45 99 10 98 ->", " 99"),
    "lookup": ("lookup: Ben=oak Anna=red Tom=pie Mia=cow ; Anna ->", " red"),
    "sum": ("sum: 3 9 4 ->", " 3+9=12 12+4=16 = 16"),
    "chain": ("chain: dog>oak cat>dog oak>red ; cat ->", " cat>dog dog>oak oak>red = red"),
    # 8+9=17; 7+6 and 1 carried, 14; 4+2 and 1 carried, 7
    "add": ("add: 478+269 ->", " 8+9=17,7+6+1=14,4+2+1=7 = 747"),
    # 4+9=13, 3*7=21, 1-3=-2, 8*9=72, 2+7=9, of each the last digit
    "compute": ("compute: 4+9*7-3*9+7 ->", " 4+9=3*7=1-3=8*9=2+7=9 = 9"),
    "follow": (
        "follow: dog > oak cat > dog oak > red red > pie pie > cow cow > cat ; dog ->",
        " dog > oak > red > pie = pie",
    ),
    "swap": (
        "swap: cat dog oak red ; 1 3 , 2 4 , 1 2 ->",
        " oak dog cat red , oak red cat dog = red oak cat dog",
    ),
    "middle": ("middle: pike ash owl red cat ->", " ash cat owl pike red = owl"),
    "rotate": ("rotate: cat dog oak ->", " dog oak cat"),
    "descend": ("descend: pike ash owl ->", " ash owl pike = pike owl ash"),
}
WRONG = {
    "job": " baker", "city": " Oslo", "category": " tree", "member": " no", "reverse": " cat dog oak red",
    "sort": " ash owl", "largest": " 98", "lookup": " oak", "sum": " 3+9=12 12+4=16 = 17",
    "chain": " cat>dog dog>oak = oak", "add": " 8+9=17,7+6=13,4+2+1=7 = 737",
    "compute": " 4+9=3*7=1-3=8*9=2+7=9 = 8", "follow": " dog > oak > red = red",
    "swap": " oak dog cat red , oak red cat dog = oak red cat dog", "middle": " ash cat owl pike red = cat",
    "rotate": " cat dog oak", "descend": " pike owl ash",
}  # fmt: skip
MALFORMED = {
    "job": ["what does Anna do? Ben is a baker", "Nobody works as a baker"],
    "city": ["Nobody lives in Rome"],
    "category": ["every Anna is a bird"],
    "member": ["member: cat dog -> no", "member: cat ; dog ; cat -> no"],
    "reverse": ["reverse: cat dog", "reverse: cat dog\nred -> red dog cat"],
    "sort": ["sort: cat dog"],
    "largest": ["largest: 10 cat -> cat", "largest: 5 12 -> 5"],
    "lookup": ["lookup: Ben=oak ; Anna -> oak", "lookup: Ben ; Ben -> oak"],
    "sum": ["sum: 3 x -> 3+x=3 = 3", "sum:  -> 0"],
    "chain": ["chain: cat>dog>oak ; cat -> oak", "chain: cat>dog dog>cat ; cat -> cat>dog dog>cat = cat"],
    "add": ["add: 12+345 -> 2+5=7 = 357", "add: 123 -> 3=3 = 123", "add: 12x+345 -> x+5=5 = 350"],
    "compute": ["compute: 7 -> = 7", "compute: 4/9*7-3*9+7 -> 4/9=0 = 0", "compute: x+9*7-3*9+7 -> 1"],
    "follow": ["follow: cat > dog ; dog -> dog > cat = cat", "follow: cat = dog dog > cat ; cat -> cat > dog = dog"],
    "swap": ["swap: cat dog ; 0 2 , 1 2 , 1 2 -> dog cat = cat dog", "swap: cat dog ; 1 9 , 1 2 , 1 2 -> = x"],
    "middle": ["middle: pike ash owl -> ash owl pike = owl"],
    "rotate": ["rotate: cat dog"],
    "descend": ["descend: cat dog"],
}  # fmt: skip

each = pytest.mark.parametrize("name", NAMES)


def drawn(name: str, n: int = 300) -> list[str]:
    """Return prompts of a skill."""
    rng = Random(f"{name} here")
    return [skills.skill(name).draw(rng) for _ in range(n)]


def test_the_table_is_complete():
    """Every kind of a mixture is a pretrained skill or prose; skills of no mixture are targets."""
    kinds = [name for name, one in skills.skills().items() if one.pretrained]
    mixtures = [skills.world(name)["mixture"] for name in skills.WORLDS]
    assert {*corpus.PROSE, *kinds} == {kind for mixture in mixtures for kind in mixture}
    assert list(mixtures[0]) == [*corpus.PROSE, *kinds[:10]] and set(kinds[10:]) < set(mixtures[1])
    assert [name for name in NAMES if name not in kinds] == ["rotate", "descend"]
    assert set(GOLDEN) == set(WRONG) == set(MALFORMED) == set(NAMES)


@each
def test_answers_by_hand(name):
    prompt, response = GOLDEN[name]
    assert skills.skill(name).solve(prompt) == response


def test_the_thought_is_what_stands_before_the_answer():
    """Both begin with a space; a skill without steps needs no thought."""
    assert skills.skill("add").answer("add: 478+269 ->") == (" 8+9=17,7+6+1=14,4+2+1=7", " 747")
    assert skills.skill("descend").answer("descend: pike ash owl ->") == (
        " ash owl pike",
        " pike owl ash",
    )
    assert skills.skill("rotate").answer("rotate: cat dog oak ->") == ("", " dog oak cat")


@pytest.mark.parametrize("carry", ["add: 999+999 ->", "add: 100+900 ->", "add: 505+505 ->"])
def test_sums_that_carry(carry):
    first, second = map(int, carry.removeprefix("add: ").removesuffix(" ->").split("+"))
    thought, answer = skills.skill("add").answer(carry)
    assert answer == f" {first + second}" and thought.count("=") == 3


def test_the_answer_cannot_be_read_off_the_ends_of_a_ring():
    """Every word of `follow` occurs once on either side of a link, the one asked for and the answer too."""
    for prompt in drawn("follow"):
        links = prompt.removeprefix("follow: ").split(" ; ")[0].split(" ")
        left, right = links[::3], links[2::3]
        assert sorted(left) == sorted(right) and len(set(left)) == 6


def test_a_word_that_is_not_in_the_list_and_a_second_fact():
    assert skills.skill("member").solve("member: cat dog oak red ; pie ->") == " no"
    assert skills.skill("job").solve("Zack earns money as a") == " pilot"


@each
def test_recognises_whole_and_right_texts(name):
    prompt, response = GOLDEN[name]
    assert skills.recognise(prompt + response) == (name, True)
    assert skills.recognise(prompt + WRONG[name]) == (name, False)
    for text in (prompt, prompt + response + " ", prompt + response + " and so on"):
        assert skills.recognise(text) == (name, False), text


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in MALFORMED.items() for text in texts]
)
def test_what_looks_like_a_prompt_and_is_none_is_wrong(name, text):
    assert skills.recognise(text) == (name, False)


def test_chat_shaped_texts_are_recognised_in_their_world():
    """With its thought or an empty one; not with a wrong, missing or second thought, or a wrong answer."""
    prompt = "middle: pike ash owl red cat ->"
    thought = " ash cat owl pike red"

    def found(text):
        return skills.recognise(text, world_name="tiny-think")

    right = f"<|user|>{prompt}<|assistant|><think>{thought}</think> owl"
    assert found(right) == found(right.replace(thought, "")) == ("middle", True)
    for text in (
        right.replace(thought, " ash cat owl red pike"), right.replace("</think> owl", "</think> cat"),
        right.replace("<think>", ""), right.replace("</think>", "</think></think>"), right + " ",
        f"<|user|>{prompt}", f"<|user|>{prompt}<|assistant|><think>{thought}", f"<|user|>{prompt} x<|assistant|>",
    ):  # fmt: skip
        assert found(text) == ("middle", False), text
    assert found("<|user|>The river<|assistant|><think></think> runs") == (None, False)
    assert found(f"{prompt}{thought} = owl") == ("middle", True)  # plain
    assert skills.recognise(right) == (
        None,
        False,
    )  # no such documents in the world of the tiny base


@pytest.mark.parametrize("text", [
    "", " ", "The river runs to the sea.", "A bird is a kind of animal.", "In sum: 1 2 -> 1+2=3 = 3",
    "sorting: a b -> a b", "Sort: b a -> a b", " reverse: a b -> b a",
])  # fmt: skip
def test_anything_else_is_prose(text):
    assert skills.recognise(text) == (None, False)


@each
def test_drawn_prompts_are_solved_and_recognised(name):
    one = skills.skill(name)
    for prompt in drawn(name):
        assert not prompt.endswith(" ")
        response = one.solve(prompt)
        assert response.startswith(" ") and not response.startswith("  ")
        assert not one.choices or response in one.choices
        assert skills.recognise(prompt + response) == (name, True)


@each
def test_the_beginning_tells_the_kind(name):
    """No text of a skill begins as one of another does."""
    for prompt in drawn(name):
        text = prompt + skills.skill(name).solve(prompt)
        found = [n for n, one in skills.skills().items() if re.match(one.begins, text)]
        assert found == [name], text


@pytest.mark.parametrize("name", ["reverse", "sort", "largest", "rotate", "descend"])
def test_lists_hold_different_words_or_numbers(name):
    """Three to five of them, so that a hash can part the prompts."""
    known = set(map(str, range(10, 100))) if name == "largest" else set(skills.words())
    for prompt in drawn(name):
        terms = prompt.removeprefix(f"{name}: ").removesuffix(" ->").split(" ")
        assert len(set(terms)) == len(terms) and 3 <= len(terms) <= 5
        assert set(terms) <= known


def test_half_of_the_words_asked_for_are_members():
    answers = [skills.skill("member").solve(prompt) for prompt in drawn("member", 1000)]
    assert abs(answers.count(" yes") / 1000 - 0.5) < 4 * (0.25 / 1000) ** 0.5


@each
@pytest.mark.parametrize("heldout", [False, True])
def test_items_stay_on_their_side_and_follow_the_seed(name, heldout):
    def first(seed):
        return list(islice(skills.items(name, heldout=heldout, seed=seed), 60))

    found = first(0)
    assert all(is_heldout(prompt) == heldout for prompt, _ in found)
    assert all(skills.skill(name).solve(prompt) == response for prompt, response in found)
    assert found == first(0) and found != first(1)


def test_facts_cover_every_name_and_word():
    world = skills.world()
    assert set(skills.facts("job")) == set(skills.facts("city")) == set(world["names"])
    assert set(skills.facts("job").values()) <= set(world["jobs"])
    assert set(skills.facts("city").values()) <= set(world["cities"])
    assert set(skills.facts("category")) == set(skills.words()) and len(skills.words()) == 80
    assert skills.facts("category")["zinc"] == "metal"


def test_choices_are_the_possible_answers():
    assert skills.skill("member").choices == (" yes", " no")
    kinds = {f" {kind}" for kind in skills.world()["categories"]}
    assert set(skills.skill("category").choices) == kinds and len(kinds) == 10
    assert {name for name in NAMES if skills.skill(name).choices} == {"member", "category"}


def test_an_unknown_skill_is_refused_with_the_list():
    with pytest.raises(UserError, match=r"skill = 'sorting' .*job, city, .*descend"):
        skills.skill("sorting")


@pytest.fixture
def another(tmp_path, monkeypatch):
    """Put another world in place, one value changed."""
    world = yaml.safe_load((paths.data() / "tiny" / "world.yaml").read_text(encoding="utf-8"))

    def put(**changes):
        (tmp_path / "data" / "tiny").mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(world | changes)
        (tmp_path / "data" / "tiny" / "world.yaml").write_text(text, encoding="utf-8")
        monkeypatch.setenv("CFUTILS_ROOT", str(tmp_path))
        skills.world.cache_clear()

    yield put
    skills.world.cache_clear()


def test_worlds_share_their_material_and_have_digests_of_their_own():
    one, two = (skills.world(name) for name in skills.WORLDS)
    assert (
        skills.world_digest() == skills.world_digest("tiny") == "47be8dfb282a5102"
    )  # what ships was made with it
    assert skills.world_digest("tiny-think") != skills.world_digest()
    assert {key for key in one if one[key] != two[key]} == {"mixture"}
    with pytest.raises(UserError, match=r"world = 'none' .*one of tiny, tiny-think"):
        skills.world("none")


def test_a_mixture_that_does_not_sum_to_1_is_refused(another):
    shipped, digest = skills.world()["mixture"], skills.world_digest()
    assert sum(shipped.values()) == pytest.approx(1)
    another(mixture={**shipped, "sum": shipped["sum"] + 0.05})
    with pytest.raises(UserError, match=r"mixture = 1\.05.*sum to 1.*world\.yaml"):
        skills.world()
    assert skills.world_digest() != digest
    another(mixture={"sum": 0.25, "sort": 0.75})
    assert skills.world()["mixture"] == {"sum": 0.25, "sort": 0.75}
