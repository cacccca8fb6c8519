"""The numbers a run prints: FLOPs, peaks, entropy, schedules."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import EsmForMaskedLM

from esm2_hyperpod.esm.model import build_config
from esm2_hyperpod.pretraining.schedule import cosine_hold_factor, esm2_factor, wsd_factor
from esm2_hyperpod.pretraining.validation import residue_frequency_entropy, share_of_packs
from esm2_hyperpod.sizes import SIZES
from esm2_hyperpod.training.throughput import peak_tflops


def test_flops_are_those_torch_counts():
    config = build_config("tiny")
    config._attn_implementation = "eager"
    model = EsmForMaskedLM(config)
    counted = 0
    for length in (50, 120):
        with FlopCounterMode(display=False) as counter:
            model(torch.randint(4, 24, (1, length))).logits.sum().backward()
        counted += counter.get_total_flops()
    ours = SIZES["tiny"].training_flops(tokens=170, squared_lengths=50**2 + 120**2, predicted=170)
    # torch counts the backward of the first layer's input, which nothing asks for, as well as ours does
    assert counted == pytest.approx(ours, rel=0.01)


@pytest.mark.parametrize(
    "size, millions", [("8M", 7.5), ("35M", 33.5), ("150M", 149), ("650M", 652), ("3B", 2841), ("15B", 15136)]
)
def test_sizes_are_esm2s(size, millions):
    with torch.device("meta"):
        model = EsmForMaskedLM(build_config(size))
    assert model.num_parameters() / 1e6 == pytest.approx(millions, rel=0.01)
    assert SIZES[size].parameters == pytest.approx(model.num_parameters(), rel=0.01)


def test_checkpoints_are_as_large_as_they_were_measured():
    assert SIZES["3B"].checkpoint_gb == pytest.approx(34, rel=0.01)
    assert SIZES["15B"].checkpoint_gb == pytest.approx(181, rel=0.01)


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", None),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("AMD Instinct MI250X", 191.5),
        ("AMD Instinct MI300X", 1307.4),
        ("AMD Instinct MI300X VF", 1307.4),
        ("AMD Radeon Graphics", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_by_device_name(name, peak):
    assert peak_tflops(name) == peak


@pytest.mark.parametrize("floor", [0.1, 0, 0.5])
@pytest.mark.parametrize(
    "factor, falls_until", [(esm2_factor, 450_000), (cosine_hold_factor, 450_000), (wsd_factor, 500_000)]
)
def test_schedules_rise_to_the_peak_fall_to_the_floor_and_hold(factor, falls_until, floor):
    values = [factor(step, 2_000, 500_000, floor) for step in range(0, 500_001, 100)]
    assert factor(0, 2_000, 500_000, floor) == pytest.approx(1 / 2_000)  # no step is lost to a rate of zero
    assert factor(1_999, 2_000, 500_000, floor) == factor(2_000, 2_000, 500_000, floor) == 1
    assert values[20:] == sorted(values[20:], reverse=True)
    assert factor(falls_until - 100, 2_000, 500_000, floor) > floor
    assert factor(falls_until, 2_000, 500_000, floor) == pytest.approx(floor)
    assert factor(500_000, 2_000, 500_000, floor) == pytest.approx(floor)


def test_esm2_and_cosine_schedules_are_half_way_down_in_the_middle():
    for factor in (esm2_factor, cosine_hold_factor):
        assert factor((2_000 + 450_000) // 2, 2_000, 500_000, 0.1) == pytest.approx(0.55)


def test_wsd_is_constant_for_80_percent_whatever_the_length_of_the_run():
    for total in (10_000, 500_000):
        assert {wsd_factor(step, 2_000, total, 0.1) for step in range(2_000, total * 8 // 10 + 1, 500)} == {1}
        assert wsd_factor(total * 9 // 10, 2_000, total, 0.1) == pytest.approx(0.55)  # linear
    assert wsd_factor(95, 90, 100, 0.1) == pytest.approx(0.55)  # a decay that begins after the warm-up


def test_entropy_of_equal_frequencies_is_that_of_twenty_letters():
    equal = dict.fromkeys("LAGVSERTIDPKQNFYMHWC", 1000)
    assert residue_frequency_entropy(equal, equal) == pytest.approx(math.log(20))
    only_l = {"L": 10_000_000}
    assert residue_frequency_entropy(only_l, only_l) < 0.001


@pytest.mark.parametrize("packs, ranks", [(1, 1), (5, 2), (4, 4), (1, 3), (7, 3)])
def test_ranks_validate_every_pack_once_in_equal_rounds(packs, ranks):
    shares = [share_of_packs(packs, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(number for share in shares for number in share if number >= 0) == list(range(packs))
