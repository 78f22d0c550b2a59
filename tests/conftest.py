"""Order of the tests: fast ones first, so that a plain mistake shows within a minute."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move tests marked slow to the end; keep the order otherwise."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
