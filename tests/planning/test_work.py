"""FLOPs, bytes and tokens of small work, worked by hand."""

from dataclasses import replace

import pytest

from cfutils.planning import costs, memory, work
from cfutils.planning.work import Part, Work


def test_flops_of_a_forward_pass(setting):
    """2 layers x 10 tokens x (2 x 576 + 4 x 8 x half of 4), and 2 x 32 x 8 for each of 3 rows of logits."""
    part = work.forward(setting, tokens=10, length=4, rows=3)
    assert part.flops == 2 * 10 * (1152 + 64) + 2 * 256 * 3
    assert part.dtype == "float32"
    assert part.layers == 2  # one pass
    assert work.forward(setting, tokens=130, length=4, rows=0).layers == 3 * 2  # of 64 tokens


def test_flops_of_a_kl_have_the_bases_logits_too(setting):
    plain, divergent = (work.forward(setting, tokens=10, length=4, rows=3, kl=kl) for kl in (False, True))
    assert divergent.flops - plain.flops == 2 * 256 * 3


def test_training_is_three_forward_passes_and_recomputed_activations_a_fourth(setting):
    layers = work.layer_flops(setting.shape, 20, 10)
    part = work.train(setting, tokens=20, length=10, rows=8, steps=1)
    assert part.flops == 3 * layers + 6 * 256 * 8
    assert part.dtype == "bfloat16"  # autocast
    again = replace(setting, profile=setting.profile.change(gradient_checkpointing=True))
    assert work.train(again, tokens=20, length=10, rows=8, steps=1).flops == 4 * layers + 6 * 256 * 8


def test_frozen_weights_have_no_gradients_of_their_own(setting):
    part = work.train(setting, tokens=20, length=10, rows=8, steps=1, rank=2)
    adapters = setting.shape.adapters(2)
    assert part.flops == 2 * work.layer_flops(setting.shape, 20, 10) + 6 * adapters * 20 + 4 * 256 * 8


def test_decoding_reads_all_weights_at_every_step(setting):
    """Four sequences of 6 tokens behind 2, side by side: 6 steps, each reads 2 x 576 + 256 weights of 4 bytes."""
    _, made = work.decode(setting, n=4, prompt=2, mean=6, longest=6, engine="vllm")
    keys = 4 * 6 * (2 + 3) * 2 * 2 * 4 * 4  # tokens x what each reads: 5 places of 2 layers, keys and values of 4
    rows = 4 * 6 * 32 * 4 * work.ROW_MOVES["decode"]
    assert made.traffic == 6 * (2 * 576 + 256) * 4 + keys + rows
    assert made.steps == 6
    assert made.flops == 2 * 24 * (1152 + 4 * 8 * 5) + 2 * 256 * 24


def test_answers_fill_places_that_get_free_with_vllm_and_wait_for_the_longest_without(setting):
    setting = replace(setting, profile=setting.profile.change(chunk=2))
    vllm, own = (
        work.decode(setting, n=4, prompt=0, mean=5, longest=10, engine=name, at_once=True)[1]
        for name in ("vllm", "transformers")
    )
    assert vllm.steps == 4 * 5 / 2 + 10 / 2
    assert own.layers == 2 * 10 * 2  # two chunks of 10 steps, 2 layers each


def test_seconds_are_products_then_traffic_then_what_is_fixed(device):
    """1e8 FLOPs at half of 1e9 are 0.2 s, 1e8 bytes at half of 1e9 too; in decoding the larger counts alone."""
    part = Part(what="train", dtype="bfloat16", flops=1e8, traffic=1e8)
    assert costs.part_seconds(part, device) == pytest.approx(0.4)
    assert costs.part_seconds(replace(part, what="decode", traffic=2e8), device) == pytest.approx(0.4)
    assert costs.part_seconds(replace(part, dtype="float32", traffic=0), device) == pytest.approx(2.0)
    whole = Work(parts=(part,), loads=2e9, writes=1e9)
    assert costs.seconds(whole, device) == pytest.approx(1 + 5 + 0.4)
    assert costs.seconds(whole, device, over=2) == pytest.approx(1 + 5 + 0.2)
    assert costs.seconds(Work(), device) == 0
    # what devices send each other goes on beside the work, at 0.7 of 1e9; what is in another memory is waited for
    assert costs.part_seconds(replace(part, link=1.4e8), device) == pytest.approx(0.4)
    assert costs.part_seconds(replace(part, link=7e8), device) == pytest.approx(1.0)
    assert costs.part_seconds(replace(part, host=25e9), device) == pytest.approx(0.4 + 1 / 0.7)


def test_sharded_weights_are_gathered_twice_and_gradients_reduced_once(setting):
    shared = replace(setting, profile=setting.profile.change(devices=2))
    part = work.train(shared, tokens=20, length=10, rows=8, steps=1)
    assert part.link == 2 * 3 * memory.weights(setting)  # by both devices, one pass each
    assert work.train(setting, tokens=20, length=10, rows=8, steps=1).link == 0
