"""The synthetic proteins look like UniRef50, repeat by seed, and hold something to learn."""

import csv
import math
from collections import Counter

import numpy as np
import pytest
from helpers.proteins import digests, read_partitions
from helpers.steps import manifest, step_0

from esm2_hyperpod.download.synthetic import LOCALIZATIONS, RESIDUE_PERCENT


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic") / "csv"
    result = step_0("synthetic", folder, "--max_records", 6000, "--num_partitions", 4, "--seed", 7)
    return folder, result


def test_it_says_that_it_is_synthetic(made):
    folder, result = made
    assert "SYNTHETIC" in result.stdout
    assert manifest(folder)["synthetic"] is True


def test_the_seed_decides_everything(tmp_path):
    for name, seed in (("one", 7), ("same", 7), ("other", 8)):
        step_0("synthetic", tmp_path / name, "--max_records", 600, "--num_partitions", 4, "--seed", seed)
    assert digests(tmp_path / "same") == digests(tmp_path / "one")
    assert digests(tmp_path / "other")["localization.csv"] != digests(tmp_path / "one")["localization.csv"]


def test_lengths_and_frequencies_are_those_of_proteins(made):
    rows = [row for partition in read_partitions(made[0]) for row in partition]
    lengths = np.array([len(text) for _, text in rows])
    assert len({name for name, _ in rows}) == len(rows) == 6000
    assert 180 < np.median(lengths) < 260
    assert 0.005 < (lengths > 1022).mean() < 0.05
    counts = Counter("".join(text for _, text in rows))
    total = sum(counts.values())
    assert set(counts) == set(RESIDUE_PERCENT)
    for residue, percent in RESIDUE_PERCENT.items():
        assert abs(100 * counts[residue] / total - percent) < max(0.5 * percent, 1)


def test_neighbours_predict_a_residue_far_better_than_frequencies_do(made):
    """A table of (two before, two after) from half of the data scores the other half in nats a residue."""
    rows = [text for partition in read_partitions(made[0]) for _, text in partition][:2000]
    counts = Counter("".join(rows))
    total = sum(counts.values())
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    seen: dict[str, Counter] = {}
    for text in rows[::2]:
        for at in range(2, len(text) - 2):
            seen.setdefault(text[at - 2 : at] + text[at + 1 : at + 3], Counter())[text[at]] += 1
    loss = places = 0
    for text in rows[1::20]:
        for at in range(2, len(text) - 2):
            found = seen.get(text[at - 2 : at] + text[at + 1 : at + 3], Counter())
            chance = (found[text[at]] + counts[text[at]] / total) / (found.total() + 1)
            loss -= math.log(chance)
            places += 1
    assert loss / places < 0.75 * entropy


def test_localizations_carry_their_signals(made):
    with open(made[0] / "localization.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 600
    labels = Counter(row["label"] for row in rows)
    assert set(labels) == set(LOCALIZATIONS)
    assert max(labels.values()) < 0.2 * len(rows)
    everything = {name for partition in read_partitions(made[0]) for name, _ in partition}
    for row in rows:
        assert row["id"] in everything
        assert row["sequence"].endswith("KDEL") == (row["label"] == "Endoplasmic.reticulum")
        assert row["sequence"].endswith("SKL") == (row["label"] == "Peroxisome")
        if row["label"] == "Mitochondrion":
            assert not set(row["sequence"][1:29]) & set("DE")
