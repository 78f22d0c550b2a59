"""Bad values on the command line: each is refused in one line, before anything runs."""

from __future__ import annotations

import pytest

from cfutils import profiles
from cfutils.errors import UserError
from cfutils.runner import notebook


def refused(number: str, text: str) -> str:
    """Return the line for a -p text, from the notebook's statements or else from the profile."""
    with pytest.raises(UserError) as caught:
        found = notebook.arguments(notebook.select([number]), [text])[number]
        known = {name: value for name, value in found.items() if name in profiles.FIELDS}
        profiles.load("tiny", **known)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "number, text, wanted",
    [
        ("00", "targets=[nope]", "targets = ['nope'] is not allowed: one or more different names of rotate, descend."),
        ("00", "targets=[]", "targets = [] is not allowed: one or more different names of rotate, descend."),
        ("00", "targets=[rotate, rotate]", "targets = ['rotate', 'rotate'] is not allowed: one or more different"),
        ("00", "targets=[gsm8k]", "targets = ['gsm8k'] is not allowed: one or more different names of rotate"),
        ("00", "targets=[[rotate]]", "targets = '[[rotate]]' is not allowed: expected list. For example: -p targets="),
        ("00", "targets=rotate", "targets = 'rotate' is not allowed: expected list. For example: -p targets="),
        ("00", "target=rotate", "no notebook to run has the parameter 'target'. Did you mean targets? It is a"),
        ("00", "pretrain=yes", "pretrain = 'yes' is not allowed: expected bool. For example: -p pretrain=true"),
        ("00", "n_estimate=1.5", "n_estimate = '1.5' is not allowed: expected int. For example: -p n_estimate=7"),
        ("00", "n_estimate=" + "9" * 5000, "n_estimate = '99999"),
        ("00", "temperatures=[*a]", "temperatures = '[*a]' is not allowed: expected list. For example:"),
        ("00", "temperatures=[!!int a]", "temperatures = '[!!int a]' is not allowed: expected list. For"),
        ("00", "temperatures=[1e999]", "temperatures = '[1e999]' is not allowed: expected list. For example:"),
        ("00", "temperatures=[3]", "temperatures[0] = 3 is not allowed: a number above 0 and at most 2"),
        ("00", "temperatures=[]", "temperatures = [] is not allowed: a list of 1 to 100 different values"),
        ("01", "base=", "base = '' is not allowed: a text of 1 to 1,000 characters"),
        ("01", "target=", "target = '' is not allowed: a text of 1 to 1,000 characters"),
        ("01", "max_tokens=1000000000", "max_tokens = 1000000000 is not allowed: a whole number from 1 to 1,000,000"),
        ("02", "lr=nan", "lr = 'nan' is not allowed: expected float. For example: -p lr=0.5"),
        ("02", "epochs=1000000000", "epochs = 1000000000 is not allowed: a whole number from 1 to 1,000"),
        ("02", "seeds=[0, 007]", "seeds[1] = '007' is not allowed: a whole number from 0 to 2,147,483,647"),
        ("02", "seeds=[0, 0]", "seeds = [0, 0] is not allowed: a list of 1 to 100 different values, each a whole"),
        ("02", "seeds=" + "[" * 5000, "seeds = '[[[[["),
        ("03", "recipes=[nope]", "recipes[0] = 'nope' is not allowed: one of 'ft', 'cfs', 'cf_kl', 'contextual'"),
        ("01", "profile=a\nb", "-p profile='a\\nb': the profile is the first argument of `cfutils run`"),
        ("01", "nope=1", "no notebook to run has the parameter 'nope'. Their parameters are: 01_generation: base"),
        ("01", "=1", "-p = '=1' is not allowed: expected NAME=VALUE. For example: -p n_train=64"),
        ("01", "x" * 5000 + "=1", "no notebook to run has the parameter 'xxxxx"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_a_bad_argument_is_refused_in_one_line(number, text, wanted):
    assert refused(number, text).startswith(wanted)


def test_targets_of_a_notebook_are_read_where_they_are_known():
    chosen = notebook.select(["00"])
    assert notebook.arguments(chosen, ["targets=[descend]"]) == {"00": {"targets": ["descend"]}}
