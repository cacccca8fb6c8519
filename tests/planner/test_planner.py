"""The planner's memory is what autograd keeps, and its answer is a command that can be run."""

import json
import shlex
import sys
from dataclasses import fields

import pytest
import torch
from helpers.commands import run

from esm2_hyperpod.esm import packed
from esm2_hyperpod.esm.model import build_config
from esm2_hyperpod.pretraining import memory, sharding
from esm2_hyperpod.pretraining.arguments import PretrainingArguments
from esm2_hyperpod.sizes import SIZES, Size

TOKENS = 512


class LikeTheKernel(torch.autograd.Function):
    """Keeps for its backward pass what the CUDA kernel does: its inputs, its result, the softmax's sums."""

    @staticmethod
    def forward(context, query, key, value):
        result = query + key + value
        context.save_for_backward(query, key, value, result, torch.zeros(query.shape[1], len(query)))
        return result

    @staticmethod
    def backward(context, gradient):
        return gradient, gradient, gradient


def kept(size: Size, layers: int) -> int:
    """Bytes that autograd keeps of a forward pass in bf16, parameters not counted."""
    config = build_config("tiny")
    config.num_hidden_layers, config.hidden_size = layers, size.width
    config.num_attention_heads, config.intermediate_size = size.heads, 4 * size.width
    model = packed.PackedEsmForMaskedLM(config)
    model.compute_dtype = torch.bfloat16
    known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other takes its address
        return tensor

    ids, borders = torch.full((1, TOKENS), 5), torch.tensor([0, TOKENS], dtype=torch.int32)
    places = torch.arange(TOKENS)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(ids, places[None], borders, TOKENS, predict=places[: TOKENS // 6]).logits
        loss = packed.masked_lm_loss(logits, places[: TOKENS // 6] % 33, 100)
    del loss
    return sum(tensor.untyped_storage().nbytes() for place, tensor in storages.items() if place not in known)


@pytest.mark.parametrize("width, heads", [(320, 20), (1280, 20)])  # joined query, key and value; and not
def test_memory_is_what_autograd_keeps(monkeypatch, width, heads):
    monkeypatch.setattr(
        packed, "_one_by_one", lambda query, key, value, _: LikeTheKernel.apply(query, key, value)
    )
    size = Size(2, width, heads)
    one, two = kept(size, 1), kept(size, 2)
    weights = 2 * 12 * width**2  # bf16 copies, which are planned as weights
    assert two - one - weights == pytest.approx(memory.kept_by_layer(size, TOKENS, compiled=False), rel=0.01)
    beside = one - (two - one) - 2 * width**2
    assert beside == pytest.approx(memory.kept_beside_layers(size, TOKENS, TOKENS // 6), rel=0.1)


def test_the_plan_knows_what_training_does():
    assert memory.JOINED_WIDTH == packed.JOINED_WIDTH
    assert memory.KEEP_WHOLE_BYTES == sharding.KEEP_WHOLE_BYTES


def plan(*words: object, check: bool = True):
    return run(sys.executable, "-m", "esm2_hyperpod.planner", *words, check=check)


def test_every_size_gets_a_command_that_train_knows_or_one_line():
    known = {field.name for field in fields(PretrainingArguments)}
    rates = []
    for size in SIZES:
        answer = json.loads(plan("--model_size", size, "--instance", "ml.p4de.24xlarge", "--json").stdout)
        words = shlex.split(answer["command"])
        assert words[:3] == [f"MODEL_SIZE={size}", "sbatch", "--nodes=1"]
        assert {word.removeprefix("--") for word in words[3:] if word.startswith("--")} <= known
        assert sum(answer["memory_gb"].values()) < 80
        rates.append(max(way.get("residues_per_second", 0) for way in answer["ways"]))
    assert rates == sorted(rates, reverse=True)
    large = plan("--model_size", "15B", "--instance", "g5.xlarge", check=False)
    assert large.returncode == 1 and "15B does not fit on 1 x ml.g5.xlarge" in large.stderr
    wrong = plan("--model_size", "8M", "--instance", "g7.huge", check=False)
    assert wrong.returncode == 1 and "not one of ml.g5.xlarge" in wrong.stderr.splitlines()[-1]
    assert "not a number such as" in plan("--model_size", "8M", "--instance", "g5.xlarge", "--tokens", "many",
                                          check=False).stderr  # fmt: skip
