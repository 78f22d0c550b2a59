r"""What a generated answer says: rules that read a choice, a number or an expression off a text, without thoughts.

Each rule is a pure function of a text. It takes the first row below that finds anything, the *last* place where there
are several, and returns None where none does: the text then holds no answer, which is wrong, and counted as such
(`answered`). A row that finds several choices at once ("A and C") ends the search without an answer.

| row | `choice` (letters, or words such as yes, no, maybe) | `number` | `integer` | `expression` |
|---|---|---|---|---|
| 1 | last complete `\boxed{}` | the same | the same | the same |
| 2 | last "answer is", "answer:", "correct option is" | `#### 18` | "answer is", "answer:" | "answer is", "answer:" |
| 3 | last bold text | "answer is", "answer:" | last bold text | last bold text |
| 4 | last line: a choice alone, or in front of its option | last bold text | last line alone | last formula |
| 5 | last line: the text of one option | last number of the text | | |

A letter in prose is none: it must stand alone in its place, be followed by its option, or by words such as "because".
Where options are given, the text of one stands for its letter in every row. A box without its closing brace (a text
that was cut) is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction

BOXES = re.compile(r"\\(?:boxed|fbox)\s*\{")
WRAPPED = re.compile(r"\\(?:text(?:bf|it|rm|sf)?|math(?:bf|it|rm|sf)|operatorname|mbox|boldsymbol)\s*\{([^{}]*)\}")
STATED = re.compile(
    r"\b(?:final |correct |right |best )*(?:answer|choice|option)\s*"
    r"(?:\([^()]*\)\s*)?(?:is|are|would be|should be|must be|:|=)(?!\w)(?:\s*(?:the|option|choice|letter|:)(?!\w))*\s*",
    flags=re.IGNORECASE,
)  # fmt: skip
BOLD = re.compile(r"\*\*(?!\s)(.+?)(?<!\s)\*\*|__(?!\s)(.+?)(?<!\s)__")
REASONS = r"because|since|as|due|for|which|where|and|or"
"""Words that may follow a choice in a sentence; before any other, "A" is an article and "I" a pronoun."""
SEPARATOR = r"\s*(?:,\s*(?:and|or)\b|,|/|&|;|\band\b|\bor\b)\s*"
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)])-\s*)?(?<![A-Za-z_])(?<!\d\.)(?:"
    r"\\[dtc]?frac\s*\{\s*(?P<upper>\d+)\s*\}\s*\{\s*(?P<lower>\d+)\s*\}|\\[dtc]?frac\s*(?P<up>\d)\s*(?P<low>\d)|"
    r"(?:(?P<whole>\d+)\s+)?(?P<over>\d+)\s*/\s*(?P<under>\d+)|"
    r"(?P<plain>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+))"
)


def boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{}` or `\fbox{}` that is complete, braces nested in it included."""
    found = None
    for begin in BOXES.finditer(text):
        depth, at = 1, begin.end()
        while at < len(text) and depth:
            escaped = text[at] == "\\"
            depth += 0 if escaped else (text[at] == "{") - (text[at] == "}")
            at += 1 + escaped
        if not depth:
            found = text[begin.end() : at - 1]
    return found.strip() if found is not None else None


def plain(text: str) -> str:
    r"""Return a text without LaTeX's fonts, spaces and dollar signs around it, and without Markdown's bold."""
    text = text.replace("−", "-").replace("–", "-").replace("\u00a0", " ")
    while (inner := WRAPPED.sub(r"\1", text)) != text:
        text = inner
    text = re.sub(r"\\[,;:! ]|~|\\quad\b|\\left\b|\\right\b|\\\(|\\\)|\\\[|\\\]", " ", text)
    return re.sub(r"\s+", " ", text.replace("**", "").replace("__", "").replace("\\%", "%").replace("\\$", "$")).strip()


def choice(text: str, options: Mapping[str, str]) -> str | None:
    """Return the choice that a text names.

    options: by label ("A" or "yes"), the text of each option; empty where it is not known, or is the label itself.
    """
    for place, whole in _places(text):
        named = _named(place, options, whole=whole)
        if named:
            return next(iter(named)) if len(named) == 1 else None
    return None


def _places(text: str) -> Iterator[tuple[str, bool]]:
    """Yield where a choice is looked for, in the order of the table, and whether it must be all that stands there."""
    if (box := boxed(text)) is not None:
        yield plain(box), True
    for found in reversed([text[one.end() :] for one in STATED.finditer(text)]):
        yield plain(found.partition("\n")[0]), False
    for bold in reversed(BOLD.findall(text)):
        yield plain("".join(bold)).rstrip(":"), True
    if line := _last_line(text):
        yield plain(line), True


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _named(place: str, options: Mapping[str, str], *, whole: bool) -> set[str]:
    """Return the labels that a place begins with: several for a list of them; none where it is prose.

    whole: the place holds a choice and nothing but its option behind it, else a sentence may go on.
    """
    if letters := all(len(label) == 1 for label in options):  # small ones are read in brackets, or where all is one
        pattern = r"[\[(]?[a-z][\])]?[.:]?$" if whole else r"[\[(][a-z][\])]"
        text = re.sub(f"^{pattern}", lambda found: found.group().upper(), place)
    else:
        text = place.lower()
    known = {label if letters else label.lower(): label for label in options}
    single = rf"[\[(]?({'|'.join(map(re.escape, known))})[\])]?"
    if many := re.match(rf"{single}(?:{SEPARATOR}{single})+(?!\w)", text):
        return {known[name] for name in re.findall(rf"(?<!\w){single}(?!\w)", many.group())}
    one = re.match(rf"{single}(?![\w'’-])", text)
    if one:
        label, bracket = known[one.group(1)], text[0] in "(["
        if _ends_a_choice(text[one.end() :], options[label], letter=letters, bracket=bracket, whole=whole):
            return {label}
    said = _words(place)
    texts = {label: _words(option) for label, option in options.items()}
    fit = {label: words for label, words in texts.items() if words and said[: None if whole else len(words)] == words}
    longest = max(map(len, fit.values()), default=0)
    return {label for label, words in fit.items() if len(words) == longest}


def _ends_a_choice(rest: str, option: str, *, letter: bool, bracket: bool, whole: bool) -> bool:
    """Say whether what stands behind a label lets it be a choice; brackets around it always do."""
    words = _words(option)
    if bracket or not rest.strip(" .,:;!)*") or (words and _words(rest)[: len(words)] == words):
        return True
    if whole:  # "C. Aspirin", also where the option is spelt otherwise; "Yes, it does."
        return bool(re.match(r"[.):]\s" if letter else r"[.:,]\s", rest))
    return bool(re.match(rf"[.,:;)]|\s+(?:{REASONS})\b", rest))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def numbers(text: str) -> list[Fraction]:
    """Return the numbers of a text: signs, currencies, separators of thousands, decimals and fractions are read.

    A number in a word ("H2") is none, and the minus of a difference ("7-2") no sign.
    """
    text = re.sub(r"(?<=\d)(?:\{,\}|\\[,!])+(?=\d{3})", ",", text)
    text = re.sub(r"[$€£¥]\s*", "", plain(text))
    return [_value(found) for found in NUMBER.finditer(text)]


def _value(found: re.Match) -> Fraction:
    part = found.groupdict()
    if part["plain"]:
        value = Fraction(part["plain"].replace(",", ""))
    else:
        pairs = (("upper", "lower"), ("up", "low"), ("over", "under"))
        upper, lower = next((part[over], part[under]) for over, under in pairs if part[over])
        value = int(part["whole"] or 0) + (Fraction(int(upper), int(lower)) if int(lower) else int(upper))
    return -value if part["sign"] else value


def number(text: str) -> Fraction | None:
    """Return the number that a text answers with; its unit is not read, and a per cent is not divided by 100."""
    places = [box] if (box := boxed(text)) is not None else []
    places += [one.partition("\n")[0] for one in text.split("####")[:0:-1]]
    places += [text[one.end() :].partition("\n")[0] for one in reversed(list(STATED.finditer(text)))]
    places += ["".join(bold) for bold in reversed(BOLD.findall(text))]
    for place in places:  # "x = 18" and "18 dollars a day": what stands behind the last sign of equality counts
        if found := numbers(re.split(r"=|≈|\\approx", place)[-1]):
            return found[0]
    found = numbers(text)
    return found[-1] if found else None


def integer(text: str, *, largest: int = 999) -> int | None:
    """Return the integer from 0 to `largest` that a text answers with (AIME: leading zeros are allowed)."""
    places = [box] if (box := boxed(text)) is not None else []
    places += [text[one.end() :].partition("\n")[0] for one in reversed(list(STATED.finditer(text)))]
    places += ["".join(bold) for bold in reversed(BOLD.findall(text))]
    line = _last_line(text)
    places += [line] if len(numbers(line)) == 1 and len(_words(plain(line))) == 1 else []
    for place in places:
        found = numbers(re.split(r"=|≡", place)[-1])
        if found:
            return int(found[0]) if found[0].denominator == 1 and 0 <= found[0] <= largest else None
    return None


def expression(text: str) -> str | None:
    """Return the LaTeX that a text answers with, for `equivalent`."""
    if (box := boxed(text)) is not None:
        return box
    places = [text[one.end() :].partition("\n")[0] for one in reversed(list(STATED.finditer(text)))]
    places += ["".join(bold) for bold in reversed(BOLD.findall(text))]
    for place in places:
        formula = re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)", place)
        found = "".join(formula[0]) if formula else place.strip().rstrip(".")
        if found:
            return found
    formulas = re.findall(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", text, flags=re.DOTALL)
    return "".join(formulas[-1]).strip() if formulas else None


def equivalent(gold: str, found: str) -> bool:
    """Whether two expressions in LaTeX are equal, by math-verify; equal texts are, whatever it can read.

    Degrees, per cent and units are left out of both.
    """
    from math_verify import LatexExtractionConfig, parse, verify

    gold, found = (re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|\\?%|\\\$", "", one).strip() for one in (gold, found))
    if _bare(gold) == _bare(found):
        return True
    how = [LatexExtractionConfig()]
    return bool(verify(*(parse(f"${one}$", extraction_config=how) or [one] for one in (gold, found))))


def _bare(text: str) -> str:
    return re.sub(r"\s", "", plain(text)).strip("$").rstrip(".").lower()
