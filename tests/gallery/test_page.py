"""The page: what it shows of a store, what it says of what is missing, and that no text becomes markup."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json

import pandas as pd

from cfutils import paths
from cfutils.analysis import verdicts
from cfutils.gallery import page
from cfutils.lab import Lab
from tests.gallery.conftest import MARKUP, Read, draw


def test_no_text_becomes_markup(written):
    """Markup in the base's name, a question, an answer, a token, a sample, a title and a column is text."""
    read = Read(written.read_text(encoding="utf-8"))
    assert len(read.scripts) == 2, "the data and the page's own script"
    assert all("onerror" not in attrs for _, attrs in read.tags)
    data = json.loads(read.scripts[0])
    assert data["items"]["items"][0][3] == f"Is {MARKUP} it?\nAnswer:\n– yes\n– no {MARKUP}"
    assert data["items"]["items"][0][4] == f"no {MARKUP}"
    assert data["tokens"]["passages"][0]["tokens"][0] == MARKUP
    for text in (
        f"A {MARKUP}.",
        "<img src=x onerror=alert(1)>",
        f"once {MARKUP}",
        f"More {MARKUP}",
        f"rows: {MARKUP}.",
    ):
        assert text in read.text


def test_only_the_pages_own_script_may_run_and_nothing_is_loaded(written):
    text = written.read_text(encoding="utf-8")
    read = Read(text)
    policy = next(attrs["content"] for attrs in read.all("meta") if attrs.get("http-equiv"))
    own = base64.b64encode(hashlib.sha256(read.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{own}'" in policy and "default-src 'none'" in policy
    loaded = [attrs["src"] for _, attrs in read.tags if "src" in attrs]
    assert loaded and all(source.startswith("data:image/webp;base64,") for source in loaded)
    assert not read.all("link") and "http:" not in text.replace("http-equiv", "") and "https:" not in text
    links = [attrs["href"] for attrs in read.all("a")]
    assert {"curve.png", "curve.pdf", "curve.csv"} <= set(links)
    assert all((written.parent / link).is_file() for link in links if not link.startswith("#"))


def test_the_same_results_give_the_same_bytes(lab, notebook, written):
    before = written.read_bytes()
    assert page.write(Lab(lab.profile, store=lab.store), [notebook]).read_bytes() == before


def test_what_is_missing_is_said(tiny_profile, store, notebook, tmp_path, monkeypatch):
    """A folder of figures alone: no scores, no samples, no executed notebook."""
    monkeypatch.setenv("CFUTILS_FIGURES", str(tmp_path))
    lab = Lab(tiny_profile.change(benchmarks="package", retained=("job",)), store=store)
    draw(lab, "curve", pd.DataFrame({"x": [1]}))
    read = Read(page.write(lab, [notebook]).read_text(encoding="utf-8"))
    for what in ("scores of items", "scores of tokens", "samples"):
        assert f"No {what} are here: they are neither built on this machine nor shipped." in read.text
    assert "no executed copy" in read.text
    assert json.loads(read.scripts[0]) == {"items": None, "tokens": None}


def test_a_large_study_stays_small(claims_page):
    """430 runs of 400 items: of each recipe and setting the first seed, and what is left out is said."""
    text = claims_page.read_text(encoding="utf-8")
    assert len(text.encode()) < 2_000_000
    read = Read(text)
    data = json.loads(read.scripts[0])
    assert len(data["items"]["items"]) == 400 and len(data["items"]["runs"]) == 86
    assert "344 runs with other seeds are left out" in read.text
    assert len({run["id"] for run in data["items"]["runs"]}) == 86
    assert "Scores of tokens are here for 19 of the 86 runs shown above." in read.text


def test_verdicts_are_those_of_the_figures_data(claims_page):
    found = verdicts.summary(pd.read_csv(paths.root() / "figures" / "tiny-claims" / "claims.csv"))
    read = Read(claims_page.read_text(encoding="utf-8"))
    order = [place for place, (tag, attrs) in enumerate(read.tags) if tag == "section"]
    assert [read.tags[i][1]["id"] for i in order][:2] == ["verdicts", "figures"]
    shown = [
        attrs["class"].removeprefix("verdict ")
        for attrs in read.all("span")
        if attrs.get("class", "").startswith("verdict ")
    ]
    counted = len(found["verdict"].unique())
    assert shown[counted:] == [word.replace(" ", "-") for word in found["verdict"]]


def test_headings_go_down_one_level_at_a_time(claims_page):
    levels = [
        int(tag[1])
        for tag, _ in Read(claims_page.read_text(encoding="utf-8")).tags
        if tag in ("h1", "h2", "h3", "h4")
    ]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_every_control_and_picture_has_a_name(claims_page):
    read = Read(claims_page.read_text(encoding="utf-8"))
    assert all(attrs["alt"] for attrs in read.all("img"))
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for attrs in read.all("svg"))
    assert all(attrs.get("scope") for attrs in read.all("th"))
