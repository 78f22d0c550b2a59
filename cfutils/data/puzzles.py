"""Puzzles that take several steps: prompts, and the steps and answer of each. `data.skills` lists them as skills."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

LENGTH = 3
"""Digits of each number of an addition, and steps that are followed or swapped."""
OPERATIONS = 5
"""Operations of a computation."""
SORTED = 5
"""Words whose middle one is asked for."""


def draw_add(rng: Random) -> str:
    """Draw two numbers of three digits."""
    return f"add: {rng.randint(100, 999)}+{rng.randint(100, 999)} ->"


def solve_add(asked: str) -> tuple[str, str]:
    """Return the sums of the digits from the ones up, each with the carry before it, and the sum."""
    first, second = asked.split("+")
    if len(first) != LENGTH or len(second) != LENGTH or not (first + second).isdecimal():
        raise ValueError("not two numbers of three digits")
    steps, carry = [], 0
    for a, b in zip(first[::-1], second[::-1], strict=True):
        total = int(a) + int(b) + carry
        steps.append(f"{a}+{b}{f'+{carry}' if carry else ''}={total}")
        carry = total // 10
    return ",".join(steps), str(int(first) + int(second))


def draw_compute(rng: Random) -> str:
    """Draw a digit and five operations that lose nothing modulo 10."""
    terms = (f"{rng.choice('+-*')}{rng.choice('379')}" for _ in range(OPERATIONS))
    return f"compute: {rng.randrange(10)}{''.join(terms)} ->"


def solve_compute(asked: str) -> tuple[str, str]:
    """Return the last digit behind each operation, from left to right, and the last one."""
    begin, terms = asked[:1], re.findall(r"[-+*]\d", asked[1:])
    if begin + "".join(terms) != asked or len(terms) != OPERATIONS:
        raise ValueError("not a digit and five operations")
    at, steps = int(begin), begin
    for term in terms:
        n = int(term[1])
        at = {"+": at + n, "-": at - n, "*": at * n}[term[0]] % 10
        steps += f"{term}={at}"
    return steps, str(at)


def draw_follow(rng: Random, words: Sequence[str]) -> str:
    """Draw six words that point at each other in a ring, so that no end gives the answer away."""
    ring = rng.sample(words, 6)
    links = [f"{a} > {b}" for a, b in zip(ring, ring[1:] + ring[:1], strict=True)]
    rng.shuffle(links)
    return f"follow: {' '.join(links)} ; {ring[0]} ->"


def solve_follow(asked: str) -> tuple[str, str]:
    """Return three links from a word on, and where they lead."""
    links, at = asked.split(" ; ")
    pieces = links.split(" ")
    if pieces[1::3] != [">"] * (len(pieces) // 3):
        raise ValueError("not links")
    lead, steps = dict(zip(pieces[::3], pieces[2::3], strict=True)), at
    for _ in range(LENGTH):
        at = lead[at]
        steps += f" > {at}"
    return steps, at


def draw_swap(rng: Random, words: Sequence[str]) -> str:
    """Draw four words and three pairs of places."""
    pairs = (" ".join(map(str, sorted(rng.sample(range(1, 5), 2)))) for _ in range(LENGTH))
    return f"swap: {' '.join(rng.sample(words, 4))} ; {' , '.join(pairs)} ->"


def solve_swap(asked: str) -> tuple[str, str]:
    """Return the list after each swap but the last, and after the last."""
    listed, pairs = asked.split(" ; ")
    now, seen = listed.split(" "), []
    for pair in pairs.split(" , "):
        i, j = (int(place) - 1 for place in pair.split(" "))
        if min(i, j) < 0:
            raise ValueError("no such place")
        now[i], now[j] = now[j], now[i]
        seen.append(" ".join(now))
    return " , ".join(seen[:-1]), seen[-1]


def draw_middle(rng: Random, words: Sequence[str]) -> str:
    """Draw five words."""
    return f"middle: {' '.join(rng.sample(words, SORTED))} ->"


def solve_middle(asked: str) -> tuple[str, str]:
    """Return words in the order of the alphabet, and the one in the middle."""
    found = sorted(asked.split(" "))
    if len(found) != SORTED:
        raise ValueError("not five words")
    return " ".join(found), found[len(found) // 2]
