"""A whole study on the tiny base, and what a change of one parameter builds again."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from cfutils import profiles, recipes
from cfutils.analysis import mixture_fit
from cfutils.data import benchmarks, prose, skills
from cfutils.data.splits import is_heldout
from cfutils.errors import UserError
from cfutils.lab import Lab
from cfutils.pipeline.steps import Steps, all_steps
from cfutils.pipeline.store import Store
from cfutils.runner import plan

SETTINGS = ["recipe", "seed", "lr", "temperature", "ratio", "replay_weight", "alpha", "strength"]
SCORES = ["profile", *SETTINGS, "run", "group", "task", "metric", "value", "stderr", "n"]
ITEMS = ["profile", *SETTINGS, "run", "group", "task", "metric", "item", "value", "weight"]
SAMPLED = {"cfs", "cf_kl", "contextual"}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_choices):
    """Prose and a retained task held in memory, a store and an events file for the whole module."""
    folder = tmp_path_factory.mktemp("world")
    texts = tuple(f"A story of the {i} foxes and the sea." for i in range(60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "documents", lambda kind: texts)
        patch.setattr(benchmarks, "lm_eval_tasks", lambda name, **_: {name: tiny_choices()})
        patch.setattr(benchmarks, "check", lambda *_, **__: None)
        patch.setenv("CFUTILS_RUNS", str(folder / "runs"))
        patch.setenv("CFUTILS_EVENTS", str(folder / "events.jsonl"))
        yield folder


@pytest.fixture(scope="module")
def events(world):
    """Events since the last call."""
    path = world / "events.jsonl"

    def read():
        found = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("")
        return found

    return read


@pytest.fixture(scope="module")
def planned(world, tiny_profile):
    """The plan before anything is built."""
    rows = plan.plan(tiny_profile, ["methods"])
    assert not (world / "events.jsonl").exists()
    assert not (world / "runs").exists() or not list((world / "runs").rglob("record.json"))
    return rows


@pytest.fixture(scope="module")
def study(planned, tiny_profile):
    return Lab(tiny_profile).study("methods")


@pytest.fixture(scope="module")
def first_events(study, events):
    """What happened while the study was built."""
    return events()


def missing(profile, study="methods", **changes):
    """The labels that a changed profile would build, by kind."""
    rows = plan.plan(profile.change(**changes), [study])
    found = {}
    for row in rows:
        if row["state"] == "missing":
            found.setdefault(row["kind"], []).append(row["label"])
    return found


# ---- the study


def test_the_plan_lists_every_step_once_and_builds_nothing(planned):
    """Base, 3 sets of samples, 8 runs (wise_ft averages ft), 3 groups of 9 models, 7 logs."""
    assert Counter(row["kind"] for row in planned) == {
        "base": 1, "samples": 3, "tuned": 7, "averaged": 1, "target": 9, "retained": 9, "probe": 9, "log": 7
    }  # fmt: skip
    assert {row["state"] for row in planned} == {"missing"}
    assert len({row["key"] for row in planned}) == len(planned)
    kinds = [row["kind"] for row in planned]
    assert kinds[0] == "base" and kinds.index("samples") < kinds.index("tuned")


def test_building_follows_the_plan(study, first_events, planned):
    built = [e["key"] for e in first_events if e["event"] == "built"]
    assert sorted(built) == sorted(row["key"] for row in planned)
    assert {row["state"] for row in plan.plan(study.lab.profile, ["methods"])} == {"built"}


def test_scores_are_tidy(study, tiny_profile):
    scores = study.scores
    assert list(scores) == SCORES
    assert list(dict.fromkeys(scores["recipe"])) == ["base", *tiny_profile.recipes]
    assert set(scores["profile"]) == {"tiny"} and scores["run"].nunique() == 9
    assert not scores.duplicated([*SETTINGS, "group", "task", "metric"]).any()
    assert np.isfinite(scores["value"]).all()
    per_model = {
        ("target", "sums"): ["nll", "bpb"],
        ("retained", "tiny_choices"): ["acc", "acc_norm", "margin", "bpb_gold"],
        **{
            ("probe", t): ["nll", "kl", "bpb"]
            for t in ("context_free", "prose", "stories", "target_inputs")
        },
    }
    for _, rows in scores.groupby("run"):
        found = rows.groupby(["group", "task"], sort=False)["metric"].agg(list).to_dict()
        assert found == per_model
    n = scores.drop_duplicates(["group", "task"]).set_index("task")["n"]
    assert n["sums"] == 4 and n["tiny_choices"] == 4 and n["prose"] == n["context_free"] == 2


def test_base_rows(study):
    base = study.scores[study.scores["recipe"] == "base"]
    assert set(base["seed"]) == {-1}
    assert base[SETTINGS[2:]].isna().all().all()
    assert (base.loc[base["metric"] == "kl", "value"] == 0).all()
    tuned = study.scores[(study.scores["recipe"] != "base") & (study.scores["metric"] == "kl")]
    assert (tuned["value"] > 0).all()


def test_settings_stand_where_a_recipe_uses_them(study):
    rows = study.scores.drop_duplicates("run").set_index("recipe")
    sampled, replays = rows.index.isin(SAMPLED), rows.index.isin(SAMPLED | {"replay_text"})
    assert (rows["temperature"].notna() == sampled).all()
    assert (rows["ratio"].notna() == replays).all()
    assert (rows["replay_weight"].notna() == replays).all()
    assert rows.loc["cfs", "replay_weight"] == pytest.approx(3 / 7)
    assert rows["alpha"].dropna().to_dict() == {"wise_ft": 0.5}
    assert rows["strength"].dropna().to_dict() == {"l2": 0.01, "lora": 4}


def test_items_lie_behind_the_scores(study):
    items = study.items
    assert list(items) == ITEMS
    keys = ["run", "group", "task", "metric"]
    assert not items.duplicated([*keys, "item"]).any()
    products = items.assign(value=items["value"] * items["weight"])
    sums = products.groupby(keys)[["value", "weight"]].sum()
    expected = (sums["value"] / sums["weight"]).sort_index()
    found = study.scores.set_index(keys)["value"].sort_index()
    np.testing.assert_allclose(found.to_numpy(), expected.to_numpy())
    by_model = items.groupby(["group", "task", "metric", "item"])["run"].nunique()
    assert (by_model == 9).all()  # paired: each model answers the same items


def test_the_log_has_a_row_for_each_step(study):
    """8 train items in batches of 2: 4 steps of each of the 7 tuned runs; lr is the step's."""
    log = study.log()
    names = set(log)
    assert {
        "recipe", "seed", "step", "epoch", "lr", "target_loss", "replay_loss", "penalty",
        "grad_norm", "target_tokens", "replay_tokens", "seconds",
    } <= names  # fmt: skip
    assert log.groupby("recipe")["step"].agg(list).map(tuple).to_dict() == {
        r: (0, 1, 2, 3) for r in study.lab.profile.recipes if r != "wise_ft"
    }
    np.testing.assert_allclose(
        log.loc[log["recipe"] == "ft", "lr"], 1e-3 * np.array([1, 1, 3 / 4, 1 / 4])
    )


def test_mixes_state_what_was_trained_on(study):
    mixes = study.mixes().set_index("recipe")
    assert mixes["target_tokens"].nunique() == 1
    assert (mixes["replay_tokens"] > 0).to_dict() == {
        r: r in SAMPLED | {"replay_text"} for r in mixes.index
    }


def test_tokens_of_a_probe(study):
    tokens = study.tokens(recipes=["ft", "cfs"])
    assert set(tokens["recipe"]) == {"ft", "cfs"} and set(tokens["task"]) == {"context_free"}
    ft, cfs = (tokens[tokens["recipe"] == r].reset_index() for r in ("ft", "cfs"))
    assert (ft["nll_base"] == cfs["nll_base"]).all() and (ft["token"] == cfs["token"]).all()
    row = study.scores.query("recipe == 'ft' and task == 'context_free' and metric == 'kl'")
    assert ft["kl"].mean() == pytest.approx(row["value"].item())
    assert not (ft["nll"] == ft["nll_base"]).all()


def test_a_second_call_builds_nothing_and_loads_no_model(study, first_events, events, tiny_profile):
    events()
    again = Lab(tiny_profile).study("methods")
    assert {e["event"] for e in events()} == {"reused"}
    assert again.scores.equals(study.scores) and again.items.equals(study.items)
    again.log(), again.mixes(), again.tokens(recipes=["ft"])
    assert {e["event"] for e in events()} == {"reused"}


def test_held_out_items_are_never_trained_on(study, tiny_profile):
    heldout = study.lab.heldout()
    assert list(heldout) == ["id", "prompt", "response"] and len(heldout) == 4
    assert all(map(is_heldout, heldout["prompt"]))
    scored = study.items.query("group == 'target'")["item"].unique()
    assert set(scored) == set(heldout["id"])


# ---- one parameter changed


@pytest.mark.usefixtures("study")
class TestChanges:
    """What a change would build: known from the keys, without building."""

    def test_nothing_changed(self, tiny_profile):
        assert missing(tiny_profile) == {}
        assert missing(tiny_profile, temperature=1.0, ratio=0.3, lr=None) == {}
        assert missing(tiny_profile, checkpoint_minutes=9.0) == {}

    def test_temperature_reaches_samples_and_the_runs_that_replay_them(self, tiny_profile):
        found = missing(tiny_profile, temperature=0.7)
        assert found.pop("samples") == [
            "10 context_free samples at T=0.7", "10 contextual samples at T=0.7"
        ]  # fmt: skip
        assert {label.split()[0] for label in found.pop("tuned")} == SAMPLED
        for kind in ("target", "retained", "probe", "log"):
            assert {label.split()[2] for label in found.pop(kind)} == SAMPLED
        assert found == {}

    @pytest.mark.parametrize(
        "changes, group",
        [
            ({"limit": 3}, "retained"),
            ({"retained": ["tiny_choices", "other"]}, "retained"),
            ({"n_generate": 2}, "target"),
            ({"n_probe": 3}, "probe"),
        ],
    )
    def test_a_size_of_a_score_reaches_that_group_alone(self, tiny_profile, changes, group):
        found = missing(tiny_profile, **changes)
        assert len(found.pop(group)) == 9
        assert set(found) <= {"samples"}
        assert found.get("samples", []) in ([], ["3 probe samples at T=1"])

    @pytest.mark.parametrize(
        "changes, touched",
        [
            ({"ratio": 0.4}, SAMPLED | {"replay_text"}),
            ({"replay_weight": 2.0}, SAMPLED | {"replay_text"}),
            ({"strengths": {"l2": 1.0, "lora": 4}}, {"l2"}),
            ({"strengths": {"lora": 2}}, {"lora"}),
            ({"alphas": [0.75]}, {"wise_ft"}),
            ({"recipe_lr": {"lora": 5e-3}}, {"lora"}),
            ({"n_samples": 11}, {"cfs", "cf_kl", "replay_text"}),
            ({"n_contextual": 11}, {"contextual"}),
        ],
    )
    def test_a_setting_reaches_the_recipes_that_use_it(self, tiny_profile, changes, touched):
        found = missing(tiny_profile, **changes)
        runs = [*found.get("tuned", ()), *found.get("averaged", ())]
        assert {label.split()[0] for label in runs} == touched

    @pytest.mark.parametrize(
        "changes", [{"lr": 2e-3}, {"epochs": 2}, {"batch_size": 4}, {"clip": 2.0}, {"n_train": 7},
                    {"warmup": 0.5}, {"weight_decay": 0.1}, {"seeds": [1]}]
    )  # fmt: skip
    def test_a_setting_of_tuning_reaches_every_run(self, tiny_profile, changes):
        found = missing(tiny_profile, **changes)
        runs = {label.split()[0] for label in (*found["tuned"], *found["averaged"])}
        assert runs == set(tiny_profile.recipes)
        assert "base" not in found
        # prompts of contextual samples are those of the train items
        assert ("samples" in found) == ("n_train" in changes)

    def test_a_number_may_be_written_as_an_int(self, tiny_profile):
        steps = Steps(tiny_profile, Store())
        assert steps.samples("context_free", temperature=1).key == steps.samples("context_free").key

    def test_a_learning_rate_of_ft_is_that_of_the_run_that_wise_ft_averages(self, tiny_profile):
        """Of one study: the averaged run is the study's own ft, not a second one."""
        p = tiny_profile.change(recipe_lr={"ft": 2e-3})
        steps = Steps(p, Store())
        ft = steps.run(recipes.plan(p, "ft", seed=0))
        (plan,) = recipes.plans(p, "wise_ft", seed=0)
        assert steps.run(plan).needs["tuned"].key == ft.key

    def test_a_changed_lab_builds_what_the_plan_says(self, tiny_profile, events):
        """Temperature 0.7, cfs alone: samples, one run, its log and scores; the rest is reused."""
        changes = {"temperature": 0.7, "recipes": ["ft", "cfs"]}
        expected = missing(tiny_profile, **changes)
        once = {"samples": 1, "tuned": 1, "target": 1, "retained": 1, "probe": 1, "log": 1}
        assert {kind: len(labels) for kind, labels in expected.items()} == once
        events()
        study = Lab(tiny_profile, **changes).study("methods")
        built = Counter(e["kind"] for e in events() if e["event"] == "built")
        assert built == once
        assert set(study.scores["temperature"].dropna()) == {0.7}


# ---- estimates and shares


@pytest.fixture(scope="module")
def estimates(study, first_events, tiny_profile):
    """Of two recipes, one of which the study above has tuned; at three temperatures."""
    return Lab(tiny_profile, estimated=["ft", "cfs"], n_estimate=8, temperatures=[0.7, 1.0])


def test_estimates_are_planned_source_by_source(estimates, tiny_profile):
    """n and as many for the reference at T = 1, fewer elsewhere; runs are those of the study."""
    found = estimates.steps.estimates()
    assert [tuple(columns.values()) for columns, _ in found] == [
        (recipe, source, purpose, t)
        for recipe in ("ft", "cfs")
        for source, purpose, t in [
            ("context_free", "reference", 1), ("context_free", "estimate", 1),
            ("context_free", "estimate", 0.7), ("contextual", "", None), ("text", "", None),
        ]
    ]  # fmt: skip
    sizes = [step.needs["samples"].params["n"] for _, step in found if "samples" in step.needs]
    assert sizes == [8, 8, 2, 10] * 2
    assert all(estimates.store.find(step.needs["model"]) for _, step in found)
    kinds = Counter(s.kind for s in all_steps(estimates.steps.study("estimates")))
    # samples: at both temperatures, contextual, and those that cfs replays
    assert kinds == {"base": 1, "samples": 5, "tuned": 2, "estimate": 10}


def test_estimates_are_one_row_a_sequence(estimates, events):
    """Texts outside the training side alone, and samples that no run has seen."""
    events()
    frame = estimates.estimates()
    built = Counter(e["kind"] for e in events() if e["event"] == "built")
    assert built == {"samples": 3, "estimate": 10}
    assert list(frame) == [
        "index", "tokens", "log_ratio", "kl", "recipe", "source", "purpose", "temperature",
        "seconds_log_ratio", "seconds_kl",
    ]  # fmt: skip
    n = frame.groupby(["recipe", "source", "purpose", "temperature"], dropna=False, sort=False).size()
    texts = n["ft", "text"].item()
    assert n.tolist() == [8, 8, 2, 10, 2] * 2 and texts == 2
    assert frame["temperature"].isna().sum() == 2 * (10 + texts)
    assert frame.loc[frame["source"] == "contextual", "temperature"].isna().all()
    assert (frame["kl"] > 0).all() and np.isfinite(frame["log_ratio"]).all()
    assert frame["tokens"].between(1, 16).all()
    ft, cfs = (frame[frame["recipe"] == r] for r in ("ft", "cfs"))
    assert ft["tokens"].tolist() == cfs["tokens"].tolist()  # the same texts
    assert not np.allclose(ft["kl"], cfs["kl"])
    assert (frame[["seconds_log_ratio", "seconds_kl"]] > 0).all(axis=None)
    assert estimates.estimates().equals(frame)
    assert {e["event"] for e in events()} == {"reused"}


def test_what_is_estimated_with_was_never_trained_on(estimates):
    drawn = {
        source: {tuple(ids) for ids in Lab(estimates.profile).samples(source)["token_ids"]}
        for source in ("context_free", "estimate", "reference")
    }
    assert not drawn["context_free"] & (drawn["estimate"] | drawn["reference"])
    assert not drawn["estimate"] & drawn["reference"]


def test_an_averaged_model_is_measured_as_what_it_is(world, tiny_profile):
    """WiSE-FT is no run of its own: its KL is that of the averaged weights, not of ft's."""
    steps = Steps(tiny_profile.change(estimated=["ft", "wise_ft"]), Store())
    first = {columns["recipe"]: step for columns, step in reversed(steps.estimates())}
    assert first["wise_ft"].needs["model"].key != first["ft"].needs["model"].key


def test_kinds_of_samples_are_counted(estimates):
    """A random model writes prose alone; 16 at T = 1, 2 at 0.7, and 10 contextual ones."""
    table = estimates.mixture_counts()
    prose = table[(table["kind"] == "prose") & (table["source"] != "mixture")]
    assert prose[["source", "temperature", "n"]].to_numpy().tolist() == [
        ["context_free", 1.0, 16], ["context_free", 0.7, 2], ["contextual", 1.0, 10]
    ]  # fmt: skip
    assert prose["count"].tolist() == [16, 2, 10]
    assert table.loc[table["source"] == "mixture", "share"].sum() == pytest.approx(1)
    assert table["kind"].nunique() == len(mixture_fit.declared())


def test_the_start_token_belongs_to_no_text(estimates, monkeypatch):
    seen = []
    monkeypatch.setattr(skills, "recognise", lambda text, **world: seen.append(text) or (None, False))
    estimates.mixture_counts()
    assert seen[:8] == Lab(estimates.profile).samples("estimate")["text"].tolist()


# ---- the profile of the base that ships


@pytest.fixture
def shipped(world):
    return Steps(profiles.load("tiny"), Store())


class TestShipped:
    """Steps of the default profile: known from their keys, nothing is built."""

    def test_pretraining_is_replayed_where_it_is_known(self, shipped, tiny_profile):
        p = shipped.profile
        plan = recipes.plan(p, "pretraining", seed=0)
        step = shipped.run(plan)
        assert set(step.needs) == {"base"} and step.params["replay"]["source"] == "pretraining"
        with pytest.raises(UserError, match=r"base = .*shipped:tiny.*leave it out of recipes"):
            Steps(tiny_profile, Store()).run(plan)
        with pytest.raises(UserError, match="leave it out of recipes"):
            Lab(tiny_profile, recipes=["ft", "pretraining"]).study("methods")

    @pytest.mark.parametrize(
        "changes", [{"n_samples": 11}, {"max_tokens": 50}, {"start_token": "<|end|>"}, {"ratio": 0.3}]
    )
    def test_documents_hang_on_what_decides_them(self, shipped, changes):
        """Their number, the length that they are cut at, what stands before them."""
        p = shipped.profile
        changed = p.change(**changes)
        keys = [
            Steps(one, Store()).run(recipes.plan(one, "pretraining", seed=0)).key
            for one in (p, changed)
        ]
        assert keys[0] != keys[1]

    def test_estimates_have_documents_too(self, shipped):
        found = shipped.estimates()
        rows = [tuple(columns.values())[1:] for columns, _ in found]
        others = [("context_free", "estimate", t) for t in shipped.profile.temperatures if t != 1]
        assert list(dict.fromkeys(rows)) == [
            ("context_free", "reference", 1.0), ("context_free", "estimate", 1.0), *others,
            *((name, "", None) for name in ("contextual", "text", "pretraining")),
        ]  # fmt: skip
        other = Steps(shipped.profile.change(n_estimate=64), Store()).estimates()
        assert not {step.key for c, step in found if c["source"] == "pretraining"} & {
            step.key for _, step in other
        }

    def test_kinds_are_counted_at_1_and_at_the_profiles_temperatures(self, shipped):
        steps = shipped.mixture_samples()
        found = [(s.params["purpose"], s.params["temperature"], s.params["n"]) for s in steps]
        n, *others = shipped.profile.n_estimate, *found[1:-2]
        assert found[0] == ("estimate", 1.0, n) and found[-2] == ("reference", 1.0, n)
        assert [row[:2] for row in others] == [
            ("estimate", t) for t in shipped.profile.temperatures if t != 1
        ]
        assert others and all(100 <= row[2] <= n for row in others)
        assert found[-1] == ("replay", 1.0, shipped.profile.n_contextual)
        assert steps[-1].params["source"] == "contextual"
        # notebook 06 estimates with the very same samples
        keys = {step.key for step in all_steps(shipped.study("estimates"))}
        assert {step.key for step in steps} <= keys

    def test_the_study_of_the_base_scores_nothing_else(self, shipped):
        kinds = Counter(step.kind for step in all_steps(shipped.study("base")))
        assert kinds == {"base": 1, "samples": 1, "target": 1, "retained": 1, "probe": 1}

    def test_skills_hang_on_the_world_they_are_made_from(self, shipped, tiny_profile):
        """A changed world scores again where skills are scored, and does not where they are not."""
        assert skills.world_digest() in shipped.scores(None, "retained").params["items"]
        items = Steps(tiny_profile, Store()).scores(None, "retained").params["items"]
        assert skills.world_digest() not in items

    def test_pretraining_again_hangs_on_world_and_code(self, shipped):
        step = shipped.pretrain()
        assert step.params["settings"]["documents"] == 400_000 and not step.needs
        assert step.params["world"] == skills.world_digest()

    def test_another_target_scores_the_base_anew_but_not_its_skills(self, shipped):
        """As notebook 00 asks for each target: retained scores are shared."""
        other = Steps(shipped.profile.change(target="descend"), Store())
        same = [g for g in ("target", "retained") if
                shipped.scores(None, g).key == other.scores(None, g).key]  # fmt: skip
        assert same == ["retained"]


def test_kinds_of_the_shipped_bases_samples(world):
    """For real, but few: 16 samples at T = 1, 8 contextual ones behind prompts of the target."""
    lab = Lab("tiny", n_estimate=8, temperatures=[1.0], n_contextual=8, max_tokens=48)
    table = lab.mixture_counts()
    drawn = table[table["source"] != "mixture"]
    assert drawn.groupby("source")["count"].sum().to_dict() == {"context_free": 16, "contextual": 8}
    own = drawn[drawn["source"] == "contextual"].set_index("kind")
    assert own.loc["rotate", "count"] == 8  # the prompts' own kind
    free = drawn[drawn["source"] == "context_free"]
    assert free.loc[free["kind"] != "prose", "count"].sum() >= 8


# ---- samples, names, refusals


def test_samples_of_several_sources_and_temperatures(study, tiny_profile):
    frame = Lab(tiny_profile).samples("context_free", "contextual", temperatures=[0.7, 1.0])
    assert frame.groupby(["source", "temperature"]).size().to_dict() == {
        (s, t): 10 for s in ("context_free", "contextual") for t in (0.7, 1.0)
    }
    record = study.lab.samples_record("context_free")
    assert record["notes"]["start_token"] == "<|endoftext|>"
    assert record["notes"]["base"] == "local folder tiny_base"
    entropy = Lab(tiny_profile).entropy("context_free")
    tokens = frame.query("source == 'context_free' and temperature == 1")["token_ids"]
    assert len(entropy) == tokens.map(len).sum()
    drawn = frame.query("source == 'context_free' and temperature == 1")["logprobs"].explode()
    np.testing.assert_allclose(entropy["logprob"], drawn.to_numpy(float), atol=1e-4)


@pytest.mark.parametrize("temperature", [0, -1.0, 3.0, float("nan"), "hot"])
def test_a_temperature_of_samples_is_checked_as_a_profiles_is(study, tiny_profile, temperature):
    with pytest.raises(UserError, match="temperature"):
        Lab(tiny_profile).samples("context_free", temperatures=[temperature])


def test_the_name_tells_what_was_changed(tiny_profile):
    assert Lab(tiny_profile).name == "tiny"
    assert Lab(tiny_profile, temperature=None, ratio=0.3).name == "tiny"
    changed = Lab(tiny_profile, temperature=0.8, seeds=[0, 1], target="/my/sums2.jsonl")
    assert changed.name == "tiny+temperature=0.8+seeds=0,1+target=sums2.jsonl"


def test_studies_beside_methods(study, tiny_profile):
    """learning_rate is judged by validation items alone; at ratio 0 an ablation's run is ft."""
    steps = Steps(tiny_profile.change(lrs=[1e-3, 2e-3]), Store())
    found = Counter(s.kind for s in steps.study("learning_rate"))
    assert found == {"validation": 3, "log": 2}
    found = missing(tiny_profile, "ratio", ratios=[0.0, 0.3], ablation_recipes=["cfs"])
    assert found == {}


def test_bad_input_is_refused_before_anything_is_built(world, tiny_profile):
    with pytest.raises(UserError, match="Did you mean temperature"):
        Lab(tiny_profile, temprature=0.7)
    with pytest.raises(UserError, match="study = 'method'"):
        Lab(tiny_profile).study("method")
    with pytest.raises(UserError, match=r"recipes\[0\] = 'cfx'"):
        Lab(tiny_profile, recipes=["cfx"]).study("methods")
    with pytest.raises(UserError, match="a file that exists"):
        Lab(tiny_profile, target="/nowhere/x.jsonl").study("methods")


def test_a_full_disk_is_told_before_anything_is_built(study, tiny_profile, events, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    events()
    with pytest.raises(UserError, match="disk too full"):
        Lab(tiny_profile, lr=5e-3).study("methods")
    assert not [e for e in events() if e["event"] == "built"]


def test_too_few_target_items_are_refused(study, tiny_profile):
    with pytest.raises(UserError, match="n_train = 500"):
        Lab(tiny_profile, n_train=500, recipes=["ft"]).study("methods")
