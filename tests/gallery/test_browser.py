"""The page in a real browser: headless Chromium draws it, and the address sets its filters."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.gallery.conftest import MARKUP, Read

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=10000",
]  # fmt: skip

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no Chromium on the path ({', '.join(NAMES)}): install one")


@pytest.fixture
def opened(tmp_path):
    """Open a page with a fragment; return the document as its script has left it."""

    def open_page(path, fragment: str = "") -> str:
        command = [
            BROWSER,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'browser'}",
            "--dump-dom",
            f"{path.as_uri()}{fragment}",
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    return open_page


def rows(document: str) -> list[str]:
    """The rows of the table of items, each as markup."""
    table = document.split('id="items-rows"')[1].split("</table>")[0]
    return table.split("<tbody>")[1].split("<tr>")[1:]


def test_markup_stays_text_and_no_script_of_it_runs(written, opened):
    document = opened(written, "#items?change=all")
    read = Read(document)
    assert "<title>tiny: report and gallery</title>" in document, "a script in a text has run"
    assert len(read.scripts) == 2 and len(rows(document)) == 4
    for text in (f"Is {MARKUP} it?", MARKUP, f"once {MARKUP}"):
        assert text in read.text


def test_a_link_opens_the_items_of_one_run_and_task_that_were_lost(claims_page, opened):
    """As many rows as the embedded scores have items of that task that were right before and are wrong after."""
    data = json.loads(Read(claims_page.read_text(encoding="utf-8")).scripts[0])["items"]
    run = next(run for run in data["runs"] if run["id"] == "ft,lr=0.002")
    lost = [
        item
        for item, after in zip(data["items"], run["right"], strict=True)
        if item[0] == "reverse" and item[5] > 0.5 >= after
    ]
    assert len(lost) > 10
    document = opened(claims_page, "#items?run=ft,lr=0.002&task=reverse&change=lost")
    assert len(rows(document)) == len(lost)
    assert all("✓ right" in row and "✗ wrong" in row for row in rows(document))
    assert f"{len(lost)} of 40 items." in Read(document).text
    text = lost[0][3].split(" ")[1]
    assert 0 < len(rows(opened(claims_page, f"#items?run=ft,lr=0.002&task=reverse&change=lost&q={text}"))) < len(lost)


def test_a_link_opens_one_passage_under_one_run(claims_page, opened):
    data = json.loads(Read(claims_page.read_text(encoding="utf-8")).scripts[0])["tokens"]
    document = opened(claims_page, "#tokens?run=ft,lr=0.002&passage=3")
    block = document.split('<article class="passage">')
    assert len(block) == 2 and "Plain fine-tuning lr=0.002" in block[1]
    spans = block[1].split('<p class="run">')[1].split("</p>")[0].count("<span")
    assert spans == len(data["passages"][2]["tokens"])


def test_samples_are_filtered_by_their_text(claims_page, opened):
    document = opened(claims_page, "#samples?set=context_free,T=1&q=sum:")
    shown = int(Read(document).text.split(" samples.")[0].split()[-1])
    pool = document.split('data-set="context_free,T=1"')[1].split("</ol>")[0]
    assert 0 < shown == pool.count("<li>") < 40, "others have the attribute hidden"
