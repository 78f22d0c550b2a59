"""A lab whose store was filled by hand with texts that would run as markup, and the page made from it."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from cfutils import paths
from cfutils.analysis import plots
from cfutils.data import benchmarks
from cfutils.digests import file_digest
from cfutils.gallery import page
from cfutils.lab import Lab
from cfutils.pipeline.store import Step
from cfutils.runner.notebook import Notebook

MARKUP = "<script>document.title='taken'</script>"
BEFORE = {"0": (1.0, 0.5), "1": (1.0, 0.25), "2": (0.0, 1.0), "3": (0.0, 2.0)}
"""The base: right, bits per byte, by item."""
AFTER = {"0": (0.0, 1.5), "1": (1.0, 0.5), "2": (1.0, 0.75), "3": (0.0, 2.5)}
"""A tuned model: item 0 is lost, item 2 is gained."""


def put(lab: Lab, step: Step, tables: dict[str, pd.DataFrame]) -> None:
    """Put an artifact into the lab's store as a builder would have left it."""
    place = lab.store.place(step)
    place.mkdir(parents=True)
    for name, frame in tables.items():
        frame.to_parquet(place / f"{name}.parquet", index=False)
    files = {p.name: {"sha256": file_digest(p), "bytes": p.stat().st_size} for p in place.iterdir()}
    record = {"key": step.key, "files": files, "notes": {}, "started": "2026-01-02T00:00:00Z", "finished": 1.0,
              "machine": {"cpu": "a processor"}}  # fmt: skip
    (place / "record.json").write_text(json.dumps(record))


def scores(values: dict[str, tuple[float, float]], task: str) -> pd.DataFrame:
    """Items of one retained task: right, and bits per byte."""
    rows = [
        ["retained", task, metric, item, value, 1.0]
        for item, both in values.items()
        for metric, value in zip(("acc", "bpb_gold"), both, strict=True)
    ]
    return pd.DataFrame(rows, columns=["group", "task", "metric", "item", "value", "weight"])


def tokens(nll: list[float], kl: list[float]) -> pd.DataFrame:
    """Two passages of two tokens, the first of them markup."""
    texts = [MARKUP, " b", "c", "\n"]
    columns = {"task": "context_free", "sequence": [0, 0, 1, 1], "position": [0, 1, 0, 1], "token": texts}
    return pd.DataFrame({**columns, "nll": nll, "kl": kl})


def draw(lab: Lab, name: str, data: pd.DataFrame) -> None:
    """Draw a figure into the lab's folder, with data behind it."""
    fig, ax = plt.subplots(figsize=(2, 1))
    ax.plot([0, 1])
    lab.save(fig, data, name)
    plt.close(fig)


@pytest.fixture
def notebook() -> Notebook:
    return Notebook(
        "03", "03_more", Path("03_more.ipynb"), {}, f"More {MARKUP}", figures=("curve",), studies=("methods",)
    )


@pytest.fixture
def lab(tiny_base, tiny_profile, store, tmp_path, monkeypatch) -> Lab:
    """Base, plain fine-tuning and context-free NLL, one task of four items; the base's name is markup too."""
    monkeypatch.setenv("CFUTILS_FIGURES", str(tmp_path / "figures"))
    plots.style()
    base = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(tiny_base, base)
    asked = {"question": f"Is {MARKUP} it?", "options": ["yes", f"no {MARKUP}"], "gold": 1}

    def task(*_, **__):
        from datasets import Dataset
        from lm_eval.api.task import ConfigurableTask

        rows = Dataset.from_list([asked] * 4)
        return ConfigurableTask(config={
            "task": "markup", "custom_dataset": lambda **_: {"validation": rows}, "validation_split": "validation",
            "output_type": "multiple_choice", "doc_to_text": "{{question}}\nAnswer:", "doc_to_target": "{{gold}}",
            "doc_to_choice": "{{options}}", "metric_list": [{"metric": "acc"}],
        })  # fmt: skip

    monkeypatch.setattr(benchmarks, "lm_eval_tasks", lambda name, **_: {name: task()})
    profile = tiny_profile.change(base=str(base), retained=("markup",), recipes=("ft", "cfs"), about=f"A {MARKUP}.")
    made = Lab(profile, store=store)
    steps = made.steps
    put(made, steps.scores(None, "retained"), {"items": scores(BEFORE, "markup")})
    put(made, steps.scores(None, "probe"), {"tokens": tokens([1.0, 2.0, 3.0, 4.0], [0.0] * 4)})
    for plan in steps.plans("methods"):
        put(made, steps.scores(plan, "retained"), {"items": scores(AFTER, "markup")})
        put(made, steps.scores(plan, "probe"), {"tokens": tokens([1.5, 2.0, 2.0, 4.0], [0.5, 0.0, 0.25, 0.125])})
    drawn = {"index": [0], "seed": [1], "temperature": [1.0], "token_ids": [[1, 2]], "logprobs": [[-1.0, -2.0]],
             "finish_reason": ["stop"], "text": [f"once {MARKUP}"]}  # fmt: skip
    put(made, steps.samples("context_free"), {"samples": pd.DataFrame(drawn)})
    draw(made, "curve", pd.DataFrame({MARKUP: [1]}))
    return made


class Read(HTMLParser):
    """The elements of a page, and the text of its scripts by their place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.scripts, self.text, self._inside = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
            self._inside = True

    def handle_endtag(self, tag):
        if tag == "script":
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def written(lab, notebook) -> Path:
    """The page of the lab of markup."""
    return page.write(lab, [notebook])


@pytest.fixture(scope="session")
def claims_page(tmp_path_factory) -> Path:
    """The page of profile tiny-claims, from the figures and results that ship: 430 runs."""
    from cfutils.runner.jobs import prepare

    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("claims")
        patch.setenv("CFUTILS_FIGURES", str(home))
        patch.setenv("CFUTILS_RUNS", str(home / "runs"))
        shutil.copytree(
            paths.root() / "figures" / "tiny-claims",
            home / "tiny-claims",
            ignore=shutil.ignore_patterns("notebooks", "*.html"),
        )
        return page.write(Lab("tiny-claims"), [job.notebook for job in prepare("tiny-claims", (), ())])
