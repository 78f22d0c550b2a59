"""Durations and sizes, as they read."""

import pytest

from cfutils.units import about, duration, size


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (75, "1:15"), (59.6, "1:00"), (3675, "1:01:15")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (35, "35 s"), (89, "89 s"), (90, "2 min"), (840, "14 min"), (11520, "3.2 h")]
)
def test_estimated_times(seconds, text):
    assert about(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(10, "10 bytes"), (24_700_000, "24.7 MB"), (1.5e12, "1.5 TB")])
def test_sizes(number, text):
    assert size(number) == text
