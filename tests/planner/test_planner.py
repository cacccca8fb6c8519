"""The planner's memory is what autograd keeps, and its answer is a command that can be run."""

import json
import shlex
import sys
from argparse import ArgumentTypeError
from dataclasses import fields, replace
from itertools import accumulate

import pytest
import torch
from helpers.commands import run
from torch.distributed.device_mesh import init_device_mesh
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import EsmForMaskedLM

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.esm import packed
from esm2_hyperpod.esm.model import build_config
from esm2_hyperpod.esm.parallel import Parallel, divide_weights
from esm2_hyperpod.planner.answer import Question, answer, count
from esm2_hyperpod.planner.machines import find_machine
from esm2_hyperpod.planner.models import find_model
from esm2_hyperpod.planner.speed import step
from esm2_hyperpod.planner.ways import strategies
from esm2_hyperpod.pretraining import memory, sharding
from esm2_hyperpod.pretraining.arguments import PretrainingArguments
from esm2_hyperpod.pretraining.memory import Strategy
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


def build(size: Size, checkpointing: bool = False) -> packed.PackedEsmForMaskedLM:
    """A model that computes in bf16."""
    config = build_config("tiny")
    config.num_hidden_layers, config.hidden_size = size.layers, size.width
    config.num_attention_heads, config.intermediate_size = size.heads, size.feed_forward
    model = packed.PackedEsmForMaskedLM(config)
    model.compute_dtype = torch.bfloat16
    model.esm.contact_head.requires_grad_(False)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def loss_of(model: packed.PackedEsmForMaskedLM) -> torch.Tensor:
    ids, borders = torch.full((1, TOKENS), 5), torch.tensor([0, TOKENS], dtype=torch.int32)
    places = torch.arange(TOKENS)
    logits = model(ids, places[None], borders, TOKENS, predict=places[: TOKENS // 6]).logits
    return packed.masked_lm_loss(logits, places[: TOKENS // 6] % 33, 100)


def kept(size: Size, layers: int, parallel: Parallel | None = None) -> int:
    """Bytes that autograd keeps of a forward pass in bf16, parameters not counted."""
    model = build(replace(size, layers=layers))
    if parallel:
        divide_weights(model, parallel.tensor)
        model.parallel = parallel
    local = [tensor.to_local() if parallel else tensor for tensor in model.parameters()]
    known = {tensor.untyped_storage().data_ptr() for tensor in [*local, *model.buffers()]}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model)
    del loss
    return sum(tensor.untyped_storage().nbytes() for place, tensor in storages.items() if place not in known)


@pytest.fixture
def like_the_kernel(monkeypatch):
    monkeypatch.setattr(
        packed, "_one_by_one", lambda query, key, value, _: LikeTheKernel.apply(query, key, value)
    )


# Joined query, key and value; and not; and a feed-forward that is not four times the width.
@pytest.mark.parametrize("size", [Size(2, 320, 20), Size(2, 1280, 20), Size(2, 320, 20, 640)])
def test_memory_is_what_autograd_keeps(like_the_kernel, size):
    one, two = kept(size, 1), kept(size, 2)
    weights = 2 * (size.layer_parameters - 9 * size.width - size.feed_forward)  # planned as weights
    assert two - one - weights == pytest.approx(memory.kept_by_layer(size, TOKENS, compiled=False), rel=0.01)
    beside = one - (two - one) - 2 * size.width**2
    assert beside == pytest.approx(memory.kept_beside_layers(size, TOKENS, TOKENS // 6), rel=0.1)


def test_memory_of_tensor_parallel_is_what_autograd_keeps(like_the_kernel):
    """One of two processes; what the other would send is not there, and its size is all that counts."""
    size = Size(2, 1280, 20)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        parallel = Parallel(init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))["tp"])
        one, two = kept(size, 1, parallel), kept(size, 2, parallel)
    finally:
        torch.distributed.destroy_process_group()
    weights = 2 * 12 * size.width**2 / 2
    expected = memory.kept_by_layer(size, TOKENS, compiled=False, tp=2)
    assert two - one - weights == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_what_a_step_takes(like_the_kernel, checkpointing):
    size = Size(4, 320, 20)
    model = build(size, checkpointing)
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    loss_of(model).backward()
    optimizer.step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss_of(model).backward()  # the second micro-batch of a step: it finds gradients
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    highest = max(accumulate(event.nbytes() for event in events))
    parts = memory.memory(size, Strategy("ddp", 1, checkpointing, compiled=False), TOKENS, 2)
    states = [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.dim()]
    assert parts["optimizer"] == pytest.approx(sum(tensor.nbytes for tensor in states), rel=0.01)
    comes_and_goes = "activations", "embedding and logits", "working", "weights in bf16"
    assert sum(parts[part] for part in comes_and_goes) == pytest.approx(highest, rel=0.1)


def test_the_plan_knows_what_training_does():
    assert memory.JOINED_WIDTH == packed.JOINED_WIDTH
    assert memory.KEEP_WHOLE_BYTES == sharding.KEEP_WHOLE_BYTES


def plan(*words: object, check: bool = True):
    return run(sys.executable, "-m", "esm2_hyperpod.planner", *words, check=check)


def ask(model_size: str, instance: str, nodes: int = 1, **shape: int) -> dict:
    """In this process: a command takes a second."""
    machine = find_machine(instance, nodes)
    return answer(Question(find_model(model_size, None, shape), machine, 10**11, dollars_per_node_hour=10))


def test_every_size_gets_a_command_that_train_knows():
    known = {field.name for field in fields(PretrainingArguments)}
    rates = []
    for size in SIZES:
        found = ask(size, "ml.p4de.24xlarge")
        words = shlex.split(found["command"])
        assert words[:3] == [f"MODEL_SIZE={size}", "sbatch", "--nodes=1"]
        assert {word.removeprefix("--") for word in words[3:] if word.startswith("--")} <= known
        assert sum(found["memory_gb"].values()) < 80
        rates.append(max(way.get("residues_per_second", 0) for way in found["ways"]))
    assert rates == sorted(rates, reverse=True)


def test_the_command_prints_the_same_figures():
    found = json.loads(plan("--model_size", "8M", "--instance", "g5.24xlarge", "--nodes", "2",
                            "--dollars_per_node_hour", "10", "--json").stdout)  # fmt: skip
    assert found == ask("8M", "ml.g5.24xlarge", 2)
    muon = json.loads(
        plan("--model_size", "8M", "--instance", "g5.24xlarge", "--optim", "muon", "--json").stdout
    )
    assert "--optim muon" in muon["command"]


@pytest.mark.parametrize(
    "refused, why",
    [
        (lambda: find_machine("g7.huge", 1), "the nearest are ml.g6.xlarge"),
        (lambda: find_machine("g5.xlarge", 0), "must be 1 or more"),
        (lambda: find_model("9M", None, {}), "not one of tiny, 8M"),
        (lambda: find_model("8M", None, {"hidden_size": 330}), "even multiple of the heads"),
        (lambda: find_model(None, "no/such/folder", {}), "--config_name no/such/folder: no config.json"),
    ],
)
def test_what_cannot_be_planned_is_one_line(refused, why):
    with pytest.raises(UserError, match=why):
        refused()
    with pytest.raises(ArgumentTypeError, match="not a number such as"):
        count("many")


def test_the_ways_are_those_that_can_be_run():
    def ways(size, instance, nodes):
        return list(strategies(SIZES[size], find_machine(instance, nodes)))

    assert {way.replicas for way in ways("650M", "g5.24xlarge", 1)} == {1}
    two = ways("650M", "g5.24xlarge", 2)
    assert {(way.replicas, way.shards) for way in two if way.name == "fsdp" and way.tp == 1} == {
        (1, 8),
        (2, 4),
    }
    # 20 heads divide by 2, 4 and 5, four GPUs by 2 and 4; with 4 of 4 a node has nothing left to shard
    assert {(way.tp, way.replicas) for way in two if way.tp > 1} == {(2, 1), (2, 2), (4, 1)}
    assert {way.tp for way in ways("15B", "p5.48xlarge", 2)} == {1, 2, 4, 8}
    assert {way.tp for way in ways("650M", "p5.48xlarge", 2)} == {1, 2, 4}
    assert {way.name for way in ways("8M", "g5.xlarge", 1)} == {"ddp"}


def test_strategies_divide_what_they_say():
    size, tokens = SIZES["15B"], 4096
    whole = memory.memory(size, Strategy("fsdp", 16, False), tokens, 8)
    hybrid = memory.memory(size, Strategy("fsdp", 16, False, replicas=2), tokens, 8)
    tensor = memory.memory(size, Strategy("fsdp", 16, False, tp=2), tokens, 8)
    for part in ("weights", "gradients", "optimizer"):
        assert hybrid[part] == 2 * whole[part]
        assert tensor[part] == pytest.approx(whole[part], rel=0.01)  # embedding and head stay whole
    assert 0.5 < tensor["activations"] / whole["activations"] < 0.6  # what products gather stays whole
    context = memory.memory(size, Strategy("fsdp", 16, False, cp=2), 2 * tokens, 8)
    assert context == whole  # half of twice the tokens
    machine = find_machine("p4de.24xlarge", 2)
    flat, tensor_step = (step(size, Strategy("fsdp", 16, False, tp=tp), machine, tokens, 8) for tp in (1, 2))
    assert tensor_step.products == pytest.approx(flat.products / 2)
    assert tensor_step.tokens == flat.tokens / 2  # two GPUs share a micro-batch
    assert tensor_step.network > 0


def test_a_slow_network_asks_for_replicas_and_their_flag():
    found = ask("650M", "ml.g5.24xlarge", 2)
    rates = {way["way"]: way["residues_per_second"] for way in found["ways"] if way["fits"]}
    assert rates["HSDP"] > 1.1 * rates["FSDP2"]
    assert rates["FSDP2, tensor parallel 2"] < rates["FSDP2"]  # over PCIe
    assert found["recommended"] == "HSDP"
    assert "3.train_fsdp.sh --tokens_per_device 8192 --dp_replicate_size 2 " in found["command"]
    tensor = ask("15B", "ml.p4d.24xlarge")
    assert "tensor parallel 4" in tensor["recommended"] and " --tp_size 4 " in tensor["command"]


def test_any_architecture(tmp_path):
    config = build_config("tiny")
    config.intermediate_size = 256
    config.save_pretrained(tmp_path)
    model = find_model(None, str(tmp_path), {"num_hidden_layers": 2})
    with torch.device("meta"):
        config.num_hidden_layers = 2
        real = EsmForMaskedLM(config)
    assert model.size == Size(2, 128, 4, 256)
    assert model.size.parameters == pytest.approx(real.num_parameters(), rel=0.001)
    machine = find_machine("g5.xlarge", 1)
    line = answer(Question(model, machine, 10**9))["command"]
    assert f"--config_name {tmp_path} --num_hidden_layers 2" in line and "MODEL_SIZE" not in line
    assert find_model(None, "facebook/esm2_t33_650M_UR50D", {}).size == SIZES["650M"]
    wider = find_model("8M", None, {"hidden_size": 640})
    assert wider.size.feed_forward == 2560 and wider.name == "8M, hidden_size 640"
