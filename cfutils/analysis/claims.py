"""The claims that are tested, declared as data before any result: contrast, measure, what matters, what refutes.

C1 to C7 are those of arXiv 2505.13811, C8 and C9 those of work beside it (arXiv 2605.26097: KL on the same samples
forgets less than NLL; arXiv 2509.04259: forward KL predicts forgetting). `verdicts` judges them.

The smallest differences that matter are set by what a reader would act on, not by what can be resolved:

- 0.02 bits per byte of right answers: at the 0.16 to 1 bits per byte at which bases answer, 2 to 12 % of the bits, and
  no more than what published comparisons of methods call a small effect (0.02 to 0.05 nats per token of loss).
- 0.02 in shares of right answers: one answer in fifty, about the standard error of a benchmark of 600 items.
- 0.02 nats per token of KL: a tenth of what plain fine-tuning moves where it forgets mildly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cfutils.errors import invalid_value

ALPHA = 0.05
"""Level of every test; intervals have the level 1 - alpha."""
WINDOWS = {"exact_match": 0.02, "acc": 0.02, "nll": 0.05}
"""Target scores count as matched within this window: by right answers where plain fine-tuning raises them
(`Pool.window`), at the size that matters in any share of right answers; else by NLL, 0.05 nats per token, a change of
5 % in perplexity."""
PLAIN = "ft"
"""Recipe of plain fine-tuning. It must have forgotten, or there is nothing to mitigate, and what it learns tells by
which score targets are matched."""
POSITION = "nll"
"""Target metric along which frontiers are interpolated: shares of right answers stop at 1, where points pile up."""


@dataclass(frozen=True)
class Measure:
    """What is retained, and the smallest difference that matters."""

    metric: str
    group: Literal["retained", "probe", "target"] = "retained"
    task: str | None = None
    """One task; None takes all of the group, each counting alike."""
    skills: Literal["all", "thinking"] = "all"
    """Whether all tasks count, or those that the base solves by thinking."""
    delta: float = field(kw_only=True)
    """Smallest difference that matters, in the metric's unit."""
    unit: str = field(kw_only=True)
    primary: bool = True
    """Whether it decides, or stands beside what decides."""

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise invalid_value("delta", self.delta, "a number above 0")


BITS = Measure("bpb_gold", delta=0.02, unit="bits per byte")
KL = Measure("kl", group="probe", task="context_free", delta=0.02, unit="nats per token")
RIGHT = Measure("acc", delta=0.02, unit="share of right answers", primary=False)
THOUGHT = Measure("acc", skills="thinking", delta=0.02, unit="share of right answers")

Test = Literal["better", "differs", "unbiased", "predicts"]
IDS = tuple(f"C{number}" for number in range(1, 10))


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim. Raises `UserError` for parts that do not fit together."""

    id: str
    statement: str
    refuted_by: str
    """What would refute it."""
    test: Test = "better"
    """better: the treatment retains more than each rival. differs: it retains more or less than other values of a
    setting. unbiased: the estimate is equivalent to its reference. predicts: rank correlation over recipes."""
    treatment: str = "cfs"
    rivals: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = (BITS, KL, RIGHT)
    """The first decides on the claim."""
    family: Literal["all", "any"] = "all"
    """all: the claim says something of each rival, so that it holds only if every test does (intersection-union).
    any: it holds if one of the tests does. Either way the rivals' own verdicts are corrected by Holm."""
    study: Literal["methods", "temperature", "ratio", "estimates"] = "methods"
    """Results that it is tested on."""
    reference: float | None = None
    """Value of the setting `study` that the others are compared with; None takes the smallest."""
    bound: float | None = None
    """unbiased: largest bias that counts as none, as a share of the KL. predicts: rank correlation to exceed."""

    def __post_init__(self) -> None:
        if self.id not in IDS:
            raise invalid_value("id", self.id, "one of " + ", ".join(IDS))
        if (self.test == "better") != bool(self.rivals):
            raise invalid_value(
                "rivals", self.rivals, 'recipes for the test "better", none for any other'
            )
        if self.treatment in self.rivals:
            raise invalid_value("rivals", self.rivals, "recipes other than the treatment")
        if (self.test == "differs") != (self.study in ("temperature", "ratio")):
            raise invalid_value(
                "study", self.study, 'temperature or ratio for the test "differs", and no other'
            )
        if (self.test in ("unbiased", "predicts")) != (self.bound is not None):
            raise invalid_value(
                "bound", self.bound, 'a number for the tests "unbiased" and "predicts", else None'
            )
        if not self.measures:
            raise invalid_value("measures", self.measures, "one measure at least")


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="C1", statement="context-free replay mitigates forgetting", rivals=("ft",),
        refuted_by="plain fine-tuning retains as much or more at the same target score",
    ),
    Claim(
        id="C2", statement="it mitigates the forgetting of reasoning in a model that thinks", rivals=("ft",),
        measures=(THOUGHT,),
        refuted_by="after plain fine-tuning answers after a thought are right as often or more",
    ),
    Claim(
        id="C3", statement="contextual samples are less effective", rivals=("contextual",),
        refuted_by="the base's own continuations of target prompts retain as much or more",
    ),
    Claim(
        id="C4", statement="pretraining data are less effective", rivals=("pretraining", "replay_text"),
        refuted_by="as many tokens of the base's pretraining, or of prose like it, retain as much or more",
    ),
    Claim(
        id="C5", statement="context-free replay is better than L2, LoRA and WiSE-FT",
        rivals=("l2", "lora", "wise_ft"),
        refuted_by="one of them retains as much or more at the same target score",
    ),
    Claim(
        id="C6", statement="the generation temperature matters", test="differs", study="temperature",
        family="any", reference=1.0,
        refuted_by="at every other temperature retention is that of T = 1, to within what matters",
    ),
    Claim(
        id="C6", statement="the share of replay matters", test="differs", study="ratio", family="any",
        refuted_by="at every larger share retention is that of the smallest, to within what matters",
    ),
    Claim(
        id="C7", statement="the sample NLL estimates the KL without bias, approximately", test="unbiased",
        study="estimates", bound=0.1, measures=(KL,),
        refuted_by="from context-free samples at T = 1 the estimate is off by more than 10 % of the KL",
    ),
    Claim(
        id="C8", statement="KL on the same samples forgets less than NLL on them", treatment="cf_kl",
        rivals=("cfs",), refuted_by="NLL on the same samples retains as much or more at the same target score",
    ),
    Claim(
        id="C9", statement="forward KL on a probe predicts the drop", test="predicts", bound=0.5, family="any",
        measures=(KL, Measure("kl", group="probe", task="target_inputs", delta=0.02, unit="nats per token")),
        refuted_by="over recipes the rank correlation of KL and drop is 0.5 or less",
    ),
)  # fmt: skip
"""The claims, in the order of tables."""
