"""Muon against torch's own; on several processes: test_layouts."""

import copy

import pytest
import torch

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.pretraining.arguments import PretrainingArguments
from esm2_hyperpod.pretraining.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (96, 96)])
def test_steps_are_those_of_torch(shape):
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    groups = [{"params": [ours], "weight_decay": 0.1}]
    ours_by = Muon(groups, [ours], torch.bfloat16, lr=0.01)
    theirs_by = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        ours_by.step()
        theirs_by.step()
    moved = (theirs - start).detach()
    assert (ours - theirs).detach().norm() < 0.03 * moved.norm()  # ours are scaled before they are rounded
    assert len(ours_by.state[ours]) == 1


def test_what_is_no_matrix_of_a_layer_gets_adamw():
    torch.manual_seed(0)
    matrix, bias = (torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 4), (8,)))
    like = torch.nn.Parameter(bias.detach().clone())
    ours = Muon([{"params": [matrix, bias], "weight_decay": 0.01}], [matrix], torch.float32, lr=0.1)
    theirs = torch.optim.AdamW([like], lr=0.1, weight_decay=0.01)
    for parameter in (matrix, bias):
        parameter.grad = torch.randn_like(parameter)
    like.grad = bias.grad.clone()
    ours.step()
    theirs.step()
    assert torch.equal(bias, like)
    assert [group["muon"] for group in ours.param_groups] == [True, False]


def test_many_are_made_orthogonal_as_one_is():
    torch.manual_seed(0)
    matrices = torch.randn(5, 12, 30)
    made = orthogonalize(matrices, torch.float32)
    singular = torch.linalg.svdvals(made)
    assert singular.min() > 0.6 and singular.max() < 1.3
    torch.testing.assert_close(made[3], orthogonalize(matrices[3:4], torch.float32)[0])
    torch.testing.assert_close(made.mT, orthogonalize(matrices.mT, torch.float32))


def test_a_saved_state_continues():
    torch.manual_seed(0)
    start = torch.randn(8, 4), torch.randn(8)
    gradients = [[torch.randn_like(value) for value in start] for _ in range(2)]

    def stepped(parameters, optimizer, by):
        for parameter, gradient in zip(parameters, by):
            parameter.grad = gradient.clone()
        optimizer.step()

    def made():
        parameters = [torch.nn.Parameter(value.clone()) for value in start]
        return parameters, Muon([{"params": parameters}], parameters[:1], torch.float32, lr=0.1)

    whole, by_whole = made()
    stepped(whole, by_whole, gradients[0])
    saved = copy.deepcopy(by_whole.state_dict())
    resumed, by_resumed = made()
    with torch.no_grad():
        for parameter, value in zip(resumed, whole):
            parameter.copy_(value)
    by_resumed.load_state_dict(saved)
    for parameters, optimizer in ((whole, by_whole), (resumed, by_resumed)):
        stepped(parameters, optimizer, gradients[1])
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed))


def test_divided_rows_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="--tp_size 2: not with --optim muon"):
        PretrainingArguments(dataset_dir="data", output_dir="run", tp_size=2, optim="muon")
