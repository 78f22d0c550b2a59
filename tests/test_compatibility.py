"""The table of architectures and data formats: figures/compatibility.md is what the code gives."""

from __future__ import annotations

import importlib.util
import re
import sys

import data_formats
import pytest
import torch

from cfutils import paths


def _script():
    """The script that writes the table."""
    path = paths.root() / "scripts" / "compatibility.py"
    spec = importlib.util.spec_from_file_location("compatibility", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()
TEXT = SCRIPT.FILE.read_text(encoding="utf-8")
GAP = re.compile(r"(?<=logits differ by )[\d.e+-]+(?=\))")
"""A number of a message, which another processor may round otherwise."""
FEW = {
    "GPT-2": ["prompt, response (JSONL)", "messages"],
    "Llama": ["messages", "text"],
    "Gemma2": ["`datasets` folder", "ShareGPT, gpt first"],
    "Mistral, sliding window": ["question, answer (CSV)", "ShareGPT"],
    "Mamba": ["Alpaca (JSON)"],
    "RecurrentGemma": ["text"],
    "RWKV": ["prompt, completion (Parquet)"],
}
"""Each kind of outcome, format and computation once."""


def shown() -> dict[str, dict[str, tuple[bool, tuple[str, ...]]]]:
    """The table of the file: whether it went well, and the notes, by architecture and format."""
    notes = dict(re.findall(r"^(\d+)\. (.*)$", TEXT, re.MULTILINE))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines() if line.startswith("|")]
    (_, *formats), _, *rows = lines
    return {
        name: {
            form: ("ok" in cell, tuple(notes[n] for n in re.findall(r"\((\d+)\)", cell)))
            for form, cell in zip(formats, row, strict=True)
        }
        for name, *row in rows
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("formats")
    data_formats.write(folder)
    return folder


def test_the_file_has_every_architecture_and_format_and_no_fault():
    table = shown()
    assert list(table) == list(SCRIPT.ROWS)
    assert all(list(row) == list(SCRIPT.FORMATS) for row in table.values())
    assert "FAULT" not in TEXT
    for row in table.values():
        for ok, notes in row.values():
            assert ok or (all(re.search(r"\b(Choose|Leave|Set|set) ", note) for note in notes) and notes)


@pytest.mark.parametrize("name", FEW)
def test_cells_are_what_the_code_gives(name, data):
    for form, cell in zip(FEW[name], SCRIPT.cells(name, FEW[name], data), strict=True):
        ok, notes = shown()[name][form]
        assert (cell.ok, [GAP.sub("", n) for n in cell.notes]) == (ok, [GAP.sub("", n) for n in notes])


def test_a_wrong_result_is_a_fault_and_not_ok(data, monkeypatch):
    """A response encoded with a BOS of its own, and scores that are off by a hundredth of a nat."""
    right, score = SCRIPT.sequences.from_example, SCRIPT.token_scores.score

    def doubled(tokenizer, *args, **kwargs):
        one = right(tokenizer, *args, **kwargs)
        return SCRIPT.Sequence((tokenizer.bos_token_id, *one.ids), one.first + 1)

    with monkeypatch.context() as patch:
        patch.setattr(SCRIPT.sequences, "from_example", doubled)
        (cell,) = SCRIPT.cells("Llama", ["messages"], data)
    assert not cell.ok and "FAULT" in cell.notes[0] and "2 BOS" in cell.notes[0]
    monkeypatch.setattr(
        SCRIPT.token_scores, "score", lambda *a, **k: [one._replace(nll=one.nll + 0.01) for one in score(*a, **k)]
    )
    (cell,) = SCRIPT.cells("Llama", ["messages"], data)
    assert not cell.ok and "NLLs differ by 0.01" in cell.notes[0]


@pytest.mark.slow
def test_the_whole_file_is_what_the_code_gives(tmp_path):
    table = SCRIPT.HEAD + SCRIPT.markdown(SCRIPT.table(tmp_path))
    assert GAP.sub("", TEXT.rpartition("\nMeasured with ")[0]) == GAP.sub("", table)
