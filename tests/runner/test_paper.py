"""Numbers of a paper beside ours. All numbers here are made up: none is from a paper."""

import pandas as pd
import pytest

from cfutils import paths
from cfutils.__main__ import main
from cfutils.errors import UserError
from cfutils.runner import paper

MADE_UP = """system,method,ability,task,metric,value,page,note
tiny-think,cfs,retained,mean,acc,0.30,7,made up
shipped:tiny-think,base,retained,mean,acc,0.99,7,made up
tiny-think,lora_mlp,retained,mean,acc,0.5,7,made up
some-model,cfs,retained,mean,acc,0.5,7,made up
"""


@pytest.fixture
def numbers(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text(MADE_UP, encoding="utf-8")
    return path


def test_the_file_that_ships_has_no_numbers_and_the_command_says_so(capsys):
    assert paper.read(str(paths.data() / "paper_numbers.csv")).empty
    assert main(["paper", "tiny-think"]) == 0
    assert "none of the paper's could be read" in capsys.readouterr().out


def test_made_up_numbers_stand_beside_shipped_results(numbers, capsys):
    assert main(["paper", "tiny-think", str(numbers)]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "0.990" in rows["base"] and "outside ours" in rows["base"]
    assert "not measured here" in rows["lora_mlp"]
    assert "3 numbers of tiny-think; 1 of other systems are left out" in text


def test_difference_and_interval():
    """Ours 0.5 in [0.4, 0.6]: 0.45 lies inside, 0.7 outside; one without ours is not measured."""
    stated = pd.DataFrame({
        "method": ["cfs", "ft", "l2"], "ability": "retained", "task": "mean", "metric": "acc",
        "value": [0.45, 0.7, 0.1], "page": "1",
    })  # fmt: skip
    ours = pd.DataFrame({
        "recipe": ["cfs", "ft"], "group": "retained", "task": "mean", "metric": "acc", "value": 0.5, "low": 0.4,
        "high": 0.6,
    })  # fmt: skip
    found = paper.compare(stated, ours)
    assert found["verdict"].tolist() == ["inside ours", "outside ours", "not measured here"]
    assert found["difference"].round(6).tolist()[:2] == [0.05, -0.2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tiny-think,magic,retained,mean,acc,0.3,1,", r"method, line 2.*'magic'.*cfs"),
        ("tiny-think,cfs,skills,mean,acc,0.3,1,", r"ability, line 2.*retained"),
        ("tiny-think,cfs,retained,mean,acc,high,1,", r"value, line 2.*a number"),
        ("tiny-think,cfs,retained,mean,acc,30,1,", r"value, line 2.*Divide by 100"),
    ],
)
def test_a_row_that_cannot_be_compared_is_refused(tmp_path, line, message):
    path = tmp_path / "numbers.csv"
    path.write_text(f"{','.join(paper.COLUMNS)}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        paper.read(str(path))


def test_a_file_without_a_column_is_refused(tmp_path):
    path = tmp_path / "numbers.csv"
    path.write_text("system,method\n", encoding="utf-8")
    with pytest.raises(UserError, match="Add ability, task"):
        paper.read(str(path))
