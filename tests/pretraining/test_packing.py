"""Packs and epochs: complete, full, repeatable."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.pretraining import epochs
from esm2_hyperpod.pretraining.epochs import EpochPlans, PackStream, SharedPlans, StepSampler
from esm2_hyperpod.pretraining.packing import packed_layout, padded_layout, plan_epoch

lengths_lists = st.lists(st.integers(1, 100), min_size=1, max_size=200)


@settings(max_examples=150, deadline=None)
@given(lengths_lists, st.integers(100, 400), st.integers(0, 5), st.integers(0, 3))
def test_every_sequence_is_in_one_pack_and_no_pack_overflows(lengths, capacity, seed, epoch):
    lengths = np.asarray(lengths, dtype=np.int32)
    layout = packed_layout(lengths, capacity, seed)
    plan = plan_epoch(layout, seed, epoch)
    packs = [plan[position] for position in range(len(plan))]
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    assert all(0 < lengths[pack].sum() <= capacity for pack in packs)
    assert max(map(len, packs)) == layout.most_sequences


@settings(max_examples=100, deadline=None)
@given(lengths_lists, st.integers(100, 400))
def test_padded_rows_fit_when_padded_to_their_longest(lengths, capacity):
    lengths = np.asarray(lengths, dtype=np.int32)
    plan = plan_epoch(padded_layout(lengths, capacity), 0, 0)
    packs = [plan[position] for position in range(len(plan))]
    assert sorted(np.concatenate(packs).tolist()) == list(range(len(lengths)))
    assert all(len(pack) * lengths[pack].max() <= capacity for pack in packs)


def test_an_epoch_is_repeatable_and_unlike_the_next():
    lengths = np.random.default_rng(0).integers(30, 1024, 5000).astype(np.int32)
    layout = packed_layout(lengths, 4096, 7)
    first, again, second = (plan_epoch(layout, 7, epoch) for epoch in (0, 0, 1))
    assert np.array_equal(first.members, again.members) and np.array_equal(first.order, again.order)
    assert len(first) == len(second)  # step numbers are arithmetic
    neighbours = [{frozenset(plan[i].tolist()) for i in range(len(plan))} for plan in (first, second)]
    assert len(neighbours[0] & neighbours[1]) < 0.01 * len(first)


@pytest.mark.parametrize("capacity", [1024, 2048, 4096, 16384])
def test_packs_of_real_lengths_are_full(real_data, capacity):
    import gzip

    with gzip.open(real_data / "uniref_sample.fasta.gz", "rb") as file:
        records = file.read().split(b">")[1:]
    lengths = np.asarray([len(b"".join(record.split()[1:])) + 2 for record in records])
    lengths = np.minimum(lengths, 1024).astype(np.int32)
    layout = packed_layout(lengths, capacity, 0)
    assert lengths.sum() / (layout.packs * capacity) > 0.97


def test_all_ranks_together_visit_each_step_once_wherever_they_start():
    lengths = np.random.default_rng(1).integers(10, 100, 300).astype(np.int32)

    def plans() -> EpochPlans:
        return EpochPlans(lambda: lengths, lambda lengths: packed_layout(lengths, 200, 0), seed=0)

    def visited(ranks: int, steps: range) -> list[list[tuple]]:
        """The packs of each step, in no order."""
        per_rank = [
            list(StepSampler(PackStream(plans()), 4, 100, steps, rank, ranks)) for rank in range(ranks)
        ]
        flat = [(epoch, tuple(pack.tolist())) for round_ in zip(*per_rank) for epoch, pack in round_]
        return [sorted(flat[start : start + 4]) for start in range(0, len(flat), 4)]

    whole = visited(1, range(0, 60))
    assert visited(2, range(0, 60)) == visited(4, range(0, 60)) == whole
    assert visited(2, range(37, 60)) == whole[37:]
    epoch_0 = [pack for step in whole for epoch, pack in step if epoch == 0]
    assert (
        len(epoch_0) == PackStream(plans()).packs_per_epoch
    )  # 60 steps reach into later epochs, and skip nothing


def clustered(seed: int = 0, folder: Path | None = None) -> tuple[np.ndarray, np.ndarray, EpochPlans]:
    rng = np.random.default_rng(2)
    clusters = rng.permutation(np.repeat(np.arange(400), rng.integers(1, 6, 400))).astype(np.int32)
    lengths = rng.integers(10, 100, len(clusters)).astype(np.int32)
    plans = EpochPlans(
        lambda: lengths, lambda lengths: packed_layout(lengths, 200, 0), seed, clusters, folder
    )
    return lengths, clusters, plans


def test_an_epoch_takes_one_member_of_each_cluster_and_the_next_another():
    lengths, clusters, plans = clustered()
    for epoch in range(3):
        plan = plans[epoch]
        assert sorted(clusters[plan.members].tolist()) == list(range(400))
        assert all(lengths[plan[position]].sum() <= 200 for position in range(len(plan)))
    taken = [set(plans[epoch].members.tolist()) for epoch in range(40)]
    assert taken[0] != taken[1]
    assert set.union(*taken) == set(range(len(clusters)))  # every member has its turn


def test_clustered_epochs_follow_each_other_without_gap():
    _, clusters, plans = clustered()
    stream, packs = PackStream(plans), [len(plans[epoch]) for epoch in range(3)]
    visits = [stream[number] for number in range(sum(packs))]
    assert [epoch for epoch, _ in visits] == [0] * packs[0] + [1] * packs[1] + [2] * packs[2]
    last = np.concatenate([pack for epoch, pack in visits if epoch == 2])
    assert sorted(clusters[last].tolist()) == list(range(400))
    assert np.array_equal(
        PackStream(plans)[sum(packs) - 1][1], visits[-1][1]
    )  # straight there, as in a resume


def test_shared_plans_are_the_makers(tmp_path):
    _, _, plans = clustered()
    maker, reader = (SharedPlans(clustered(seed, tmp_path)[2], seed == 0) for seed in (0, 9))
    for epoch in range(4):
        made, read = maker[epoch], reader[epoch]
        for name in ("members", "pack_starts", "order"):
            assert np.array_equal(getattr(plans[epoch], name), getattr(made, name))
            assert np.array_equal(getattr(made, name), getattr(read, name))
    assert len(list(tmp_path.glob("*.npy"))) == 2 * 3  # this epoch and the one before


def test_a_resumed_run_plans_only_the_first_epoch_and_its_own(tmp_path, monkeypatch):
    _, _, plans = clustered(folder=tmp_path)
    packs = [len(plans[epoch]) for epoch in range(6)]
    planned = []
    monkeypatch.setattr(epochs, "plan_epoch", lambda *words: planned.append(words[-1]) or plan_epoch(*words))
    number = sum(packs[:5]) + 3
    epoch, members = PackStream(clustered(folder=tmp_path)[2])[number]
    assert planned == [0, 5] and epoch == 5
    assert np.array_equal(members, plans[5][3])


def test_a_rank_that_is_late_finds_what_it_needs_when_older_plans_are_gone(tmp_path):
    maker = PackStream(SharedPlans(clustered(folder=tmp_path)[2], maker=True))
    packs = [len(clustered()[2][epoch]) for epoch in range(6)]
    numbers = [sum(packs[:epoch]) for epoch in range(6)]
    for number in numbers:
        maker[number]  # plans of epochs 0 to 3 are deleted
    maker[0]
    late = PackStream(SharedPlans(clustered(folder=tmp_path)[2], maker=False))
    assert np.array_equal(late[numbers[5]][1], maker[numbers[5]][1])


def test_no_wait_for_another_rank_is_endless(tmp_path, monkeypatch):
    monkeypatch.setattr(epochs, "WAIT_SECONDS", 0)
    with pytest.raises(UserError, match="rank 0 has not written it"):
        PackStream(SharedPlans(clustered(folder=tmp_path)[2], maker=False))
