"""Batches that any number of processes cut alike, the loss, early stopping."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.localization.task import classification_loss
from esm2_hyperpod.localization.trainer import (
    BatchPlan,
    MicroBatches,
    balanced_weights,
    plan_batches,
)


@given(st.integers(24, 200), st.sampled_from([4, 8, 12, 24]), st.integers(1, 8), st.integers(0, 99))
def test_any_number_of_processes_takes_the_same_proteins_in_a_step(proteins, size, most, seed):
    lengths = np.arange(proteins) * 7 % 50
    steps = {}
    for processes in (1, 2, 4):
        plan = plan_batches(proteins, size, most, processes)
        assert plan.micro_batch * plan.accumulation * processes == size and plan.micro_batch <= most
        total = 2 * plan.steps_per_epoch
        ranks = [
            list(MicroBatches(lengths, plan, seed, total, 0, rank, processes)) for rank in range(processes)
        ]
        taken = [
            [
                i
                for rank in ranks
                for part in rank[s * plan.accumulation : (s + 1) * plan.accumulation]
                for i in part
            ]
            for s in range(total)
        ]
        steps[processes] = [sorted(step) for step in taken]
        first_epoch = sorted(i for step in steps[processes][: plan.steps_per_epoch] for i in step)
        assert len(set(first_epoch)) == len(first_epoch) == plan.steps_per_epoch * size
    assert steps[1] == steps[2] == steps[4]


def test_resuming_at_a_step_gives_the_rest():
    lengths, plan = np.arange(100) % 13, BatchPlan(4, 2, 12)
    whole = list(MicroBatches(lengths, plan, 5, 30, 0, 0, 1))
    assert list(MicroBatches(lengths, plan, 5, 30, 17, 0, 1)) == whole[17 * plan.accumulation :]


def test_batches_that_processes_cannot_share():
    with pytest.raises(UserError, match="does not divide over 3 processes; the next that does: 33"):
        plan_batches(100, 32, 8, 3)
    with pytest.raises(UserError, match="larger than the 20 training proteins"):
        plan_batches(20, 32, 8, 1)


def test_weighted_loss_does_not_depend_on_the_micro_batches():
    random = np.random.default_rng(0)
    targets = np.array([0] * 18 + [1] * 4 + [2] * 2)
    weights = balanced_weights(targets)
    assert weights[targets].mean() == pytest.approx(1.0)
    logits, order = torch.tensor(random.normal(size=(24, 3))), random.permutation(24)
    whole = classification_loss(logits, torch.tensor(targets), weights)
    parts = [
        classification_loss(logits[part], torch.tensor(targets[part]), weights) for part in np.split(order, 4)
    ]
    assert torch.stack(parts).sum() == pytest.approx(whole.item())
