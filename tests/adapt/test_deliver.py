"""What adapt leaves behind: model, adapters, cards; and a disk that cannot hold them."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple

import pytest
import torch

from cfutils.adapt import command, deliver
from cfutils.analysis import recommend
from cfutils.errors import UserError
from cfutils.profiles import Profile
from tests.adapt.conftest import HOW, make_small, write_items


@pytest.fixture(scope="module")
def studies(tiny_base, tmp_path_factory):
    """A folder with what two studies deliver, `all` of all weights and `low` of adapters of rank 4."""
    folder = tmp_path_factory.mktemp("studies")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFUTILS_RUNS", str(folder / "runs"))
        make_small(patch)
        for name, rank in (("all", None), ("low", 4)):
            how = {**HOW, "lora": rank}
            command.adapt(str(tiny_base), str(write_items(folder)), str(folder / name), **how)
        yield folder


@pytest.fixture
def again(studies):
    """Run a study again, of which everything is there: its lab and its items."""

    def make(name):
        return command.study(Profile(**json.loads((studies / name / "adapt.json").read_text())["profile"]))

    return make


def test_adapters_are_delivered_beside_the_model_that_has_them_merged(studies, tiny_base):
    from huggingface_hub import ModelCard
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    assert not (studies / "all" / "adapter").exists()
    folder = studies / "low" / "adapter"
    assert {path.name for path in folder.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    model = AutoModelForCausalLM.from_pretrained(studies / "low" / "model").state_dict()
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert any(not torch.equal(model[name], weight) for name, weight in base.state_dict().items())
    apart = PeftModel.from_pretrained(base, folder)
    by_itself = AutoPeftModelForCausalLM.from_pretrained(folder)  # finds the base by its configuration
    for loaded in (apart, by_itself):
        merged = loaded.merge_and_unload().state_dict()
        for name, weight in model.items():
            torch.testing.assert_close(merged[name], weight, atol=1e-6, rtol=1e-5)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 4, "LORA")
    assert config["base_model_name_or_path"] == str(tiny_base)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft" and "lora" in card.data.tags
    assert "(LoRA) of rank 4 on all linear layers" in card.text


def test_an_average_with_the_base_has_adapters_too(again, tiny_base, tmp_path):
    """WiSE-FT of a run of low rank: whichever run is recommended, its adapters are there."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lab, items = again("low")
    table = recommend.compare(items)
    half = table["recipe"].eq("wise_ft") & table["alpha"].eq(0.5)
    plan = deliver.plan_of(lab, table.assign(recommended=half))
    model, folder = deliver.model(tmp_path, lab, plan), deliver.adapter(tmp_path, lab, plan)
    found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder).merge_and_unload()
    for name, weight in AutoModelForCausalLM.from_pretrained(model).state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, atol=1e-6, rtol=1e-5)


def test_a_base_that_takes_no_adapters_is_refused_before_anything_is_sampled(store, tiny_base, mine, small, tmp_path):
    from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

    base = tmp_path / "mamba"
    MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1)).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(base)
    with pytest.raises(UserError, match=r"MambaForCausalLM takes no adapters .*: train all weights, without --lora"):
        command.adapt(str(base), str(mine), str(tmp_path / "out"), **{**HOW, "lora": 4})
    assert [path.name for path in store.folder.iterdir()] == ["base"] and not (tmp_path / "out").exists()


def test_the_card_states_the_scores_of_every_task(studies):
    """Those of results.json, and of the retained tasks that were scored."""
    from huggingface_hub import ModelCard

    out = studies / "all"
    own = next(row for row in json.loads((out / "results.json").read_text())["runs"] if row["recommended"])
    scores = ModelCard.load(out / "model" / "README.md").data.eval_results
    found = {(one.dataset_name, one.metric_type): one.metric_value for one in scores}
    assert found["held-out target, 4 items", own["target_metric"]] == pytest.approx(own["target"], abs=1e-6)
    assert found["mean of retained tasks, 2 items", "drop"] == pytest.approx(own["drop"], abs=1e-6)
    assert {metric for name, metric in found if name == "largest, 2 items"} == {"acc", "bpb_gold"}


def test_the_scores_of_one_run_are_picked_out(again):
    """The recommended run's drop by task is the one that the comparison of all runs states."""
    _, items = again("all")
    table = recommend.compare(items)
    for place, row in table[table["recipe"] != "base"].iterrows():
        found = deliver.tasks(table.assign(recommended=table.index == place), items)
        bits = found[(found["task"] == "largest") & (found["metric"] == "bpb_gold")]
        assert len(bits) == 1 and bits["drop"].iloc[0] == pytest.approx(row["drop"])


def test_a_disk_that_cannot_hold_the_model_is_told_before_the_work(tmp_path, monkeypatch):
    """3 billion weights in fp32 are 12 GB."""
    usage = namedtuple("usage", "total used free")
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage(0, 0, 11_999_999_999))
    with pytest.raises(UserError, match=r"disk too full: about 12 GB are needed .*give --out on a larger disk"):
        deliver.check_disk(tmp_path / "not" / "there", parameters=3_000_000_000)
    assert asked == [tmp_path]
    deliver.check_disk(tmp_path, parameters=2_900_000_000)
