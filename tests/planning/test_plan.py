"""Whole plans: sums, what does not fit and what would, the paper's profiles, and the command."""

from dataclasses import replace

import pytest

from cfutils import profiles, recipes
from cfutils.__main__ import main
from cfutils.errors import UserError
from cfutils.pipeline.steps import Steps, all_steps
from cfutils.pipeline.store import Store
from cfutils.planning import architecture, costs, devices, memory, plan, work, workloads
from cfutils.planning.setting import Setting

STUDIES = ("samples", "estimates", "methods")


def planned(profile, device, *, count=1, studies=STUDIES):
    """A plan, and the steps it is of."""
    steps = Steps(profile, Store())
    found = all_steps([step for name in studies for step in steps.study(name)])
    return plan.make(found, Setting.of(profile, architecture.read(profile.base), device), count=count), found


def kind(made, name):
    return next(one for one in made.kinds if one.name == name)


def test_every_kind_of_step_is_planned(h100):
    """And what a plan sums up is what its steps take."""
    made, steps = planned(profiles.load("olmo-1b"), h100)
    assert {one.name for one in made.kinds} == {step.kind for step in steps}
    works = [work.work(step, made.setting) for step in steps]
    assert sum(one.flops for one in made.kinds) == pytest.approx(sum(one.flops for one in works))
    assert made.seconds == pytest.approx(sum(costs.seconds(one, h100) for one in works))
    assert made.dollars == pytest.approx(made.seconds / 3600 * h100.price)
    for name in ("tuned", "retained", "samples", "probe", "estimate"):
        assert kind(made, name).flops > 0 and kind(made, name).peak > 0 and kind(made, name).seconds > 0, name


def test_tokens_of_a_run_are_those_of_the_profile(h100):
    """5,000 items of 270 tokens, 3 epochs; replay of as many tokens as carry loss, 190, beside them."""
    made, steps = planned(profiles.load("olmo-1b"), h100)
    runs = {step.label.split()[0]: work.work(step, made.setting) for step in steps if step.kind == "tuned"}
    assert runs["ft"].trained == pytest.approx(3 * 5000 * 270)
    assert runs["cfs"].trained == pytest.approx(3 * 5000 * (270 + 190))
    assert runs["ft"].scored == 0
    assert runs["cf_kl"].scored == pytest.approx(5000 * 190)  # the base runs once over what is replayed
    assert runs["lora"].flops < runs["ft"].flops


def test_devices_run_steps_side_by_side_and_are_paid_for_the_whole_time(h100):
    one, eight = (planned(profiles.load("olmo-1b"), h100, count=n)[0] for n in (1, 8))
    assert eight.seconds < one.seconds / 4
    assert eight.dollars >= one.dollars
    assert sum(kind.seconds for kind in eight.kinds) == pytest.approx(sum(kind.seconds for kind in one.kinds))


def test_8_billion_weights_are_tuned_on_several_devices_that_share_them(h100):
    profile = profiles.load("r1-distill-llama-8b", devices=8)
    assert planned(profile, h100, count=8)[0].too_large() == []
    alone = planned(profile.change(devices=1), h100, count=8)[0]
    assert [one.name for one in alone.too_large()] == ["tuned"]


def test_what_does_not_fit_is_named_with_changes_that_fit(h100):
    """8 billion weights with gradients and moments are 128 GB, and the reference of L2 32 more."""
    profile, large = profiles.load("r1-distill-llama-8b", devices=1), replace(h100, memory=170e9, reserve=0.0)
    made, steps = planned(profile, large, count=8)
    assert [one.name for one in made.too_large()] == ["tuned"]
    fixes = [change for change, _ in plan.fixes(made, steps, kind(made, "tuned"))]
    rest = [name for name in profile.recipes if name != "l2"]
    for change in ({"devices": 2}, {"offload": True}, {"recipes": rest}):
        assert change in fixes
    for change in fixes:  # each is a profile that is valid, and fits
        assert planned(profile.change(**change), large, count=8)[0].too_large() == [], change


def test_changes_are_summed_up_where_none_is_enough(h100):
    profile = profiles.load("olmo-1b", recipes=["ft"])
    small = replace(h100, memory=9e9, reserve=0.0)
    made, steps = planned(profile, small)
    found = list(plan.fixes(made, steps, kind(made, "tuned")))
    assert found and all(peak <= 9e9 for _, peak in found)


def test_a_larger_device_needs_no_changes():
    made, _ = planned(profiles.load("r1-distill-llama-8b", devices=1), devices.get("MI300X"))
    assert made.too_large() == []


@pytest.mark.parametrize("name", ["olmo2-1b", "qwen2.5-1.5b"])
@pytest.mark.parametrize("gpu", ["L4", "RTX4090"])
def test_profiles_for_one_card_fit_it_with_all_weights_and_with_adapters(name, gpu):
    profile = profiles.load(name)
    low = [one for one in profile.recipes if recipes.get(one).train == "all" and not recipes.get(one).penalty]
    for one in (
        profile,
        profile.change(train="lora", recipes=low, offload=False),
        profile.change(train="all", recipes=low, offload=True, gradient_checkpointing=True),
    ):
        assert planned(one, devices.get(gpu))[0].too_large() == [], one


def test_more_devices_than_there_are_are_refused(h100):
    with pytest.raises(UserError, match=r"--count = 1.*devices = 2"):
        planned(profiles.load("olmo-1b", devices=2), h100)


def test_a_task_that_the_table_does_not_have_is_assumed_aloud():
    said = workloads.said(profiles.load("olmo-1b", retained=["hellaswag", "some_task"]))
    assert "items of some_task: unknown, assumed 2,000 of 100 tokens each" in said


def test_questions_of_ones_own_are_counted(tmp_path):
    """Three lines of 40 bytes, which are 10 tokens each."""
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{'x' * 39}\n" * 3, encoding="utf-8")
    one = workloads.tasks(profiles.load("olmo-1b", retained=[str(path)]))[str(path)]
    assert (one.items, one.tokens, one.generates) == (3, 10.0, True)


def test_data_of_ones_own_are_counted_in_characters():
    """data/example.jsonl: items of a skill, a dozen tokens each."""
    one = workloads.target(profiles.load("own"))
    assert one.assumed and 5 < one.tokens < 32 and one.supervised < one.tokens


def test_samples_that_are_cut_have_the_truncated_laws_mean():
    """800 (1 - exp(-128/800)) of at most 128 tokens: SmolLM2's samples have 118.6."""
    assert workloads.sample("asset:smollm2", 128) == pytest.approx(118.3, abs=0.1)
    assert workloads.sample("shipped:tiny", 96) == pytest.approx(8846649 / 400000, rel=0.02)


def test_every_device_of_the_table_is_valid():
    for name in devices.names():
        if name != devices.CPU:
            assert devices.get(name.lower(), price=1.5).price == 1.5
    with pytest.raises(UserError, match=r"--gpu = 'H1000'.*H100"):
        devices.get("H1000")
    with pytest.raises(UserError, match="--price"):
        devices.get("H100", price=-1)


def test_this_processor_is_measured():
    found = devices.measured(threads=1)
    assert 1e9 < found.fp32 < 1e13 and 1e8 < found.bandwidth < 1e12 and found.memory > 1e9


def test_the_command_prints_a_plan_and_says_by_its_code_whether_it_fits(capsys):
    assert main(["plan", "olmo-1b", "--gpu", "H100", "--price", "2"]) == 0
    text = capsys.readouterr().out
    for part in ("olmo-1b on H100", "tuned", "peak memory", "2 $ per device and hour", "Assumed:", "assumed, never"):
        assert part in text
    assert main(["plan", "r1-distill-llama-8b", "--gpu", "A100-40"]) == 1
    assert "DOES NOT FIT: tuned" in capsys.readouterr().out
    assert main(["plan", "olmo-1b", "--gpu", "L4", "-p", "train=lora", "recipes=[ft, cfs]", "num_fewshot={}"]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--count", "0"], "--count = 0"), (["-p", "devices"], "NAME=VALUE"), (["-p", "device=2"], "mean devices")],
)
def test_what_is_wrong_is_said_in_a_line(capsys, given, message):
    assert main(["plan", "olmo-1b", "--gpu", "H100", *given]) == 2
    assert message in capsys.readouterr().err


def test_predictions_stand_beside_what_was_measured(capsys):
    """Of the shipped results of tiny-think, on whatever processor they were made."""
    assert main(["plan", "tiny-think"]) == 0
    text = capsys.readouterr().out
    assert "Predicted beside measured" in text and "retained" in text.split("Predicted beside measured")[1]
    assert memory.total({}) == 0
