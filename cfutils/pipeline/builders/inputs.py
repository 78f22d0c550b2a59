"""Sequences that several builders are fed with: target items, prompts, prose, documents of pretraining."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfutils.data import corpus, prose, rewriting, sequences, targets
from cfutils.data.example import Example
from cfutils.data.sequences import Sequence
from cfutils.data.splits import is_heldout
from cfutils.digests import canonical
from cfutils.errors import UserError
from cfutils.models import tokenizers

if TYPE_CHECKING:
    import pandas as pd

    from cfutils.pipeline.session import Session

MARK = "\u27e8content\u27e9"
"""Stands in a chat template where a turn's content will be."""


class Inputs:
    """Sequences under the tokenizer of one base."""

    def __init__(self, base: Path, session: Session, params: dict[str, Any]) -> None:
        """Take what `params` state of them: target, start_token, max_tokens, where they are used."""
        self.params, self._base, self._session = params, base, session
        self.tokenizer = session.tokenizer(base)

    @property
    def start(self) -> int:
        """Id of the start token."""
        return tokenizers.start_token(self.tokenizer, self.params["start_token"])

    def split(
        self, *, n_heldout: int = 0, n_validation: int = 0
    ) -> tuple[list[Example], list[Example], int]:
        """Return train items (and validation items behind them), held-out items, and how many were too long."""
        target, name = self.params["target"], self.params["target_name"]
        n_train = target["n_train"] + n_validation
        return self._session.split(
            canonical([str(self._base), name, target, n_train, n_heldout]),
            lambda: targets.split(
                name, lambda example: len(self.encode(example).ids), max_length=target["max_length"],
                n_train=n_train, n_heldout=n_heldout, columns=target.get("columns"),
            ),
        )  # fmt: skip

    def encode(self, example: Example) -> Sequence:
        """Return a target item as a sequence whose response carries loss."""
        template = self.params["target"]["chat_template"]
        start = None if example.prompt else self.start
        return sequences.from_example(self.tokenizer, example, chat_template=template, start=start)

    def prompts(self, n: int) -> list[tuple[int, ...]]:
        """Return the prompts of the train items, again from the first where n is larger."""
        train, template = self.split()[0], self.params["target"]["chat_template"]
        return [
            tuple(sequences.prompt_ids(self.tokenizer, e.prompt, chat_template=template, turns=e.turns))
            for e in (train[i % len(train)] for i in range(n))
        ]

    def user_header(self) -> tuple[tuple[int, ...], bool]:
        """Return the chat template's tokens up to the content of a user turn, and whether EOS ends that turn.

        Raises `UserError` for a tokenizer without a chat template.
        """
        if not self.tokenizer.chat_template:
            raise UserError(
                "the base's tokenizer has no chat template, so there is no header of a user turn to sample from: "
                "leave recipes with template_prefix samples out of recipes"
            )
        turns = [{"role": "user", "content": MARK}, {"role": "assistant", "content": MARK}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        head, between, *_ = text.split(MARK)
        ids = self.tokenizer(head, add_special_tokens=False)["input_ids"]
        ended = self.tokenizer(between, add_special_tokens=False)["input_ids"]
        return tuple(ids) or (self.start,), self.tokenizer.eos_token_id in ended

    def rewrite_prompts(self) -> list[tuple[int, ...]]:
        """Return the prompt of each train item that asks the base for an answer of its own."""
        template = bool(self.tokenizer.chat_template)
        return [
            tuple(sequences.prompt_ids(self.tokenizer, rewriting.request(e), chat_template=template))
            for e in self.split()[0]
        ]

    def rewritten(self, train: list[Example], samples: pd.DataFrame) -> list[Example]:
        """Return train items with the base's own answers where these are good and not too long."""
        limit, found = self.params["target"]["max_length"], []
        for example, row in zip(train, samples.itertuples(), strict=True):
            new = rewriting.chosen(example, row.text, ended=row.finish_reason == "stop")
            found.append(new if len(self.encode(new).ids) <= limit else example)
        return found

    def documents(self, n: int, world: str) -> list[Sequence]:
        """Return the first documents of the pretraining of the base that knows a world."""
        from cfutils.training import pretraining

        seed = pretraining.get(world).settings.seed
        texts = [one.text for one in corpus.documents(n, seed=seed, world=world)]
        return self._whole(texts, end=self.tokenizer.eos_token_id)

    def prose(self, kind: str, *, heldout: bool, n: int) -> list[Sequence]:
        """Return the first documents of real prose on one side of the split."""
        return self._whole([t for t in prose.documents(kind) if is_heldout(t) == heldout][:n])

    def _whole(self, texts: list[str], end: int | None = None) -> list[Sequence]:
        return sequences.from_text(
            self.tokenizer, texts, start=self.start, max_tokens=self.params["max_tokens"], end=end
        )
