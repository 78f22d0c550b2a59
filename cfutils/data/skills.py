"""Skills with checkable answers: what the bases that ship learn in pretraining, and what they are tuned on later.

A skill draws a prompt and knows its one right response, so every text of it can be made, recognised and
checked. A hash of the prompt assigns each item to one side (`splits.is_heldout`): pretraining and tuning use the
one, scoring the other. Skills whose answer needs steps write them first; what stands behind the last ` = ` is the
answer. In a chat-shaped text the steps are the thought.

A world is what one base knows. The material (words, people, templates) is data, data/tiny/world.yaml, and all worlds
share it; data/tiny-think/world.yaml states a mixture of its own and which documents are chat-shaped.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from typing import Any

import yaml

from cfutils import paths
from cfutils.data import chat, puzzles
from cfutils.data.splits import is_heldout
from cfutils.errors import invalid_value

WORLDS = ("tiny", "tiny-think")
"""Worlds, each the folder in data/ of the base that knows it."""
PUZZLE_WORDS = 24
"""Puzzles are about the first words of all, birds, fish and trees: a small model learns sooner to tell few apart."""


@dataclass(frozen=True, kw_only=True)
class Skill:
    """One ability: how its prompts are drawn, and the right response to each."""

    name: str
    about: str
    draw: Callable[[Random], str]
    """Draws a prompt, which ends without a space."""
    solve: Callable[[str], str]
    """The right response to a prompt, which begins with a space; fails on what is no prompt of it."""
    prompt: str
    """Regular expression of its prompts; what stands before `.*?` in it tells the kind of a text."""
    pretrained: bool = True
    """Whether some base meets it in pretraining; the others are targets."""
    choices: tuple[str, ...] = ()
    """The possible responses, where it is scored as a choice among them."""
    steps: bool = False
    """Whether the response writes steps first, and the answer behind ` = `."""

    @property
    def begins(self) -> str:
        """Regular expression of the first characters of such a text, and of no other kind's."""
        return self.prompt.split(".*?")[0]

    def answer(self, prompt: str) -> tuple[str, str]:
        """The thought that leads to the right response (empty where it has no steps), and the answer alone.

        Both begin with a space.
        """
        response = self.solve(prompt)
        if not self.steps:
            return "", response
        thought, _, last = response.rpartition(" = ")
        return thought, f" {last}"


def _files(name: str) -> list[Path]:
    if name not in WORLDS:
        raise invalid_value("world", name, "one of " + ", ".join(WORLDS))
    return [paths.data() / one / "world.yaml" for one in dict.fromkeys(("tiny", name))]


@functools.cache
def world(name: str = "tiny") -> dict[str, Any]:
    """A world, as data: the material, the shares of kinds, and how documents are written."""
    found: dict[str, Any] = {}
    for file in _files(name):
        found |= yaml.safe_load(file.read_text(encoding="utf-8"))
    if abs(total := sum(found["mixture"].values()) - 1) > 1e-9:
        raise invalid_value(
            "mixture", total + 1, "shares that sum to 1", f"edit data/{name}/world.yaml"
        )
    return found


def world_digest(name: str = "tiny") -> str:
    """16 hexadecimal digits of the SHA-256 of a world's files; that of `tiny` decides every item of a skill."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in _files(name))).hexdigest()[:16]


@functools.cache
def words() -> tuple[str, ...]:
    """Every word of the categories."""
    return tuple(word for group in world()["categories"].values() for word in group)


@functools.cache
def facts(relation: str) -> dict[str, str]:
    """What is true in this world: name -> job or city (invented, from the seed), word -> category."""
    w = world()
    if relation == "category":
        return {word: kind for kind, group in w["categories"].items() for word in group}
    rng = Random(f"{w['seed']}-{relation}")
    values = w["jobs" if relation == "job" else "cities"]
    return {name: rng.choice(values) for name in w["names"]}


def _fact(relation: str, about: str, *, choose: bool = False) -> Skill:
    templates = world()["templates"][relation]
    known = facts(relation)
    names = tuple(known)
    prompts = {t.format(name=name): name for t in templates for name in names}

    def draw(rng: Random) -> str:
        return rng.choice(templates).format(name=rng.choice(names))

    def pattern(template: str) -> str:
        fixed = re.escape(template).replace(re.escape("{name}"), "NAME")
        return fixed.replace("NAME", r"\w+")

    return Skill(
        name=relation, about=about, draw=draw, solve=lambda prompt: f" {known[prompts[prompt]]}",
        prompt="|".join(pattern(t) for t in templates),
        choices=tuple(sorted({f" {value}" for value in known.values()})) if choose else (),
    )  # fmt: skip


def _listed(name: str, about: str, answer: Callable[[list[str]], str], *, sizes: tuple[int, int],
            pretrained: bool = True, steps: bool = False,
            pool: Callable[[], tuple[str, ...]] = words) -> Skill:  # fmt: skip
    """A skill over a list of different words or numbers: `name: a b c -> answer`."""

    def draw(rng: Random) -> str:
        return f"{name}: {' '.join(rng.sample(pool(), rng.randint(*sizes)))} ->"

    def solve(prompt: str) -> str:
        return f" {answer(prompt.removeprefix(f'{name}: ').removesuffix(' ->').split(' '))}"

    return Skill(
        name=name, about=about, draw=draw, solve=solve, prompt=f"{name}: .*? ->", pretrained=pretrained,
        steps=steps,
    )  # fmt: skip


def _member() -> Skill:
    def draw(rng: Random) -> str:
        found = rng.sample(words(), 5)
        asked = found[4] if rng.random() < 0.5 else found[rng.randrange(4)]
        return f"member: {' '.join(found[:4])} ; {asked} ->"

    def solve(prompt: str) -> str:
        found, asked = prompt.removeprefix("member: ").removesuffix(" ->").split(" ; ")
        return " yes" if asked in found.split(" ") else " no"

    return Skill(name="member", about="is the word in the list?", draw=draw, solve=solve,
                 prompt="member: .*? ->", choices=(" yes", " no"))  # fmt: skip


def _lookup() -> Skill:
    def draw(rng: Random) -> str:
        names = rng.sample(world()["names"], 4)
        values = rng.sample(words(), 4)
        pairs = " ".join(f"{n}={v}" for n, v in zip(names, values, strict=True))
        return f"lookup: {pairs} ; {rng.choice(names)} ->"

    def solve(prompt: str) -> str:
        pairs, asked = prompt.removeprefix("lookup: ").removesuffix(" ->").split(" ; ")
        return f" {dict(pair.split('=') for pair in pairs.split(' '))[asked]}"

    return Skill(
        name="lookup", about="the value of a key", draw=draw, solve=solve, prompt="lookup: .*? ->"
    )


def _sum() -> Skill:
    def draw(rng: Random) -> str:
        return f"sum: {' '.join(str(rng.randint(1, 9)) for _ in range(rng.randint(3, 5)))} ->"

    def solve(prompt: str) -> str:
        terms = [int(t) for t in prompt.removeprefix("sum: ").removesuffix(" ->").split(" ")]
        totals = list(accumulate(terms))
        steps = [f"{a}+{t}={b}" for (a, b), t in zip(pairwise(totals), terms[1:], strict=True)]
        return f" {' '.join(steps)} = {totals[-1]}"

    return Skill(name="sum", about="a sum of digits, with its running totals written", draw=draw,
                 solve=solve, prompt="sum: .*? ->", steps=True)  # fmt: skip


def _chain() -> Skill:
    def draw(rng: Random) -> str:
        found = rng.sample(words(), 4)
        links = [f"{a}>{b}" for a, b in pairwise(found)]
        rng.shuffle(links)
        return f"chain: {' '.join(links)} ; {found[0]} ->"

    def solve(prompt: str) -> str:
        links, at = prompt.removeprefix("chain: ").removesuffix(" ->").split(" ; ")
        follow = dict(link.split(">") for link in links.split(" "))
        steps = []
        while at in follow:
            if len(steps) == len(follow):  # a model may write links that go round
                raise ValueError("no end")
            steps.append(f"{at}>{follow[at]}")
            at = follow[at]
        return f" {' '.join(steps)} = {at}"

    return Skill(name="chain", about="follow links to the end, each link written", draw=draw,
                 solve=solve, prompt="chain: .*? ->", steps=True)  # fmt: skip


def _puzzle(name: str, about: str, draw: Callable[[Random], str],
            solve: Callable[[str], tuple[str, str]]) -> Skill:  # fmt: skip
    """A skill of several steps: `name: ... -> steps = answer`."""
    return Skill(
        name=name, about=about, draw=draw, prompt=f"{name}: .*? ->", steps=True,
        solve=lambda prompt: " {} = {}".format(*solve(prompt.removeprefix(f"{name}: ").removesuffix(" ->"))),
    )  # fmt: skip


def _numbers() -> tuple[str, ...]:
    return tuple(map(str, range(10, 100)))


def _descend(found: list[str]) -> str:
    up = sorted(found)
    return f"{' '.join(up)} = {' '.join(reversed(up))}"


@functools.cache
def skills() -> dict[str, Skill]:
    """The table of skills, pretrained ones first."""
    rows = (
        _fact("job", "what an invented person works as"),
        _fact("city", "where an invented person lives"),
        _fact("category", "what kind of thing a word names", choose=True),
        _member(),
        _listed("reverse", "a list backwards", lambda x: " ".join(reversed(x)), sizes=(3, 5)),
        _listed("sort", "words in the order of the alphabet", lambda x: " ".join(sorted(x)),
                sizes=(3, 4)),
        _listed("largest", "the largest of four numbers", lambda x: max(x, key=int),
                sizes=(4, 4), pool=_numbers),
        _lookup(),
        _sum(),
        _chain(),
        _puzzle("add", "two numbers of three digits, added digit by digit", puzzles.draw_add, puzzles.solve_add),
        _puzzle("compute", "the last digit of five operations, each step written", puzzles.draw_compute,
                puzzles.solve_compute),
        _puzzle("follow", "three links around a ring, each link written",
                lambda rng: puzzles.draw_follow(rng, words()[:PUZZLE_WORDS]), puzzles.solve_follow),
        _puzzle("swap", "a list after three swaps, each list written",
                lambda rng: puzzles.draw_swap(rng, words()[:PUZZLE_WORDS]), puzzles.solve_swap),
        _puzzle("middle", "the middle word by the alphabet, the sorted list written",
                lambda rng: puzzles.draw_middle(rng, words()[:PUZZLE_WORDS]), puzzles.solve_middle),
        _listed("rotate", "a list with its first word put last", lambda x: " ".join(x[1:] + x[:1]),
                sizes=(3, 3), pretrained=False),
        _listed("descend", "words against the alphabet, the sorted list written first", _descend,
                sizes=(3, 3), pretrained=False, steps=True),
    )  # fmt: skip
    return {row.name: row for row in rows}


def skill(name: str) -> Skill:
    """Return a skill by name, or raise."""
    if name not in skills():
        raise invalid_value("skill", name, "one of " + ", ".join(skills()))
    return skills()[name]


def items(name: str, *, heldout: bool, seed: int) -> Iterator[tuple[str, str]]:
    """Yield (prompt, response) of one side without end, in the order that the seed decides."""
    one, rng = skill(name), Random(f"{name}-{seed}")
    while True:
        prompt = one.draw(rng)
        if is_heldout(prompt) == heldout:
            yield prompt, one.solve(prompt)


def recognise(text: str, *, world_name: str = "tiny") -> tuple[str | None, bool]:
    """Return the skill that a text begins as (None: prose) and whether it is a whole and right one.

    In a world with chat-shaped documents these are recognised too; they are right with the thought that leads to the
    answer and with an empty one, their turn and thought tokens written as in `chat.document`.
    """
    if world(world_name).get("chat") and text.startswith(chat.USER):
        return _recognise_chat(text)
    for one in skills().values():
        if re.match(one.begins, text):
            prompt = re.match(one.prompt, text)
            try:
                return one.name, prompt is not None and text == prompt[0] + one.solve(prompt[0])
            except (KeyError, ValueError, IndexError):  # looks like a prompt and is none
                return one.name, False
    return None, False


def _recognise_chat(text: str) -> tuple[str | None, bool]:
    asked = text.removeprefix(chat.USER)
    one = next((one for one in skills().values() if re.match(one.begins, asked)), None)
    if one is None:
        return None, False
    found = chat.parts(text)
    if found is None or not re.fullmatch(one.prompt, found[0]):
        return one.name, False
    try:
        thought, answer = one.answer(found[0])
    except (KeyError, ValueError, IndexError):
        return one.name, False
    return one.name, found[1] in ("", thought) and found[2] == answer
