"""What FSDP2 keeps in memory, measured on CPU processes."""

import json
import re
from types import SimpleNamespace

import pytest
from helpers.commands import on_demand
from helpers.pretraining import divide

from esm2_hyperpod.pretraining.sharding import starts_lean

MEASURED = """
import gc, json, os, sys
sys.path.insert(0, "tests")
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from helpers.memory import LiveBytes
from esm2_hyperpod.pretraining import sharding, trainer
from esm2_hyperpod.pretraining.trainer import PretrainingTrainer

sharding.KEEP_WHOLE_BYTES = float(os.environ["KEEP"])
trainer.choose_replicas_and_checkpointing = lambda *_: (1, True)  # as on a GPU that is too small
live = LiveBytes()
build, create_optimizer = trainer.build_model, PretrainingTrainer.create_optimizer

def built(args):
    with live:
        model, weights = build(args)
    model.esm.contact_head.requires_grad_(True)  # its shards are empty on rank 1
    return model, weights

def created(self, *rest):
    with live:
        return create_optimizer(self, *rest)

trainer.build_model, PretrainingTrainer.create_optimizer = built, created
plain = PretrainingTrainer.training_step

def measured(self, model, *rest):
    optimized = [id(one) for group in self.optimizer.param_groups for one in group["params"]]
    assert sorted(optimized) == sorted(map(id, model.parameters()))
    assert all(layer.gradient_checkpointing for layer in model.esm.encoder.layer)
    model.esm.contact_head.requires_grad_(False)
    whole = 4 * model.num_parameters()
    os.write(1, f"START {json.dumps([whole, live.peak])}\\n".encode())  # in one piece: two ranks write
    loss = plain(self, model, *rest)
    assert model.lm_head.decoder.weight is model.esm.embeddings.word_embeddings.weight
    parameters = [one for one in gc.get_objects() if isinstance(one, FSDPParam)]
    whole = [one.unsharded_accumulated_grad for one in parameters]
    whole += [one._unsharded_param.grad for one in parameters if hasattr(one, "_unsharded_param")]
    whole = sum(grad.nbytes for grad in whole if grad is not None)
    shards = [one.sharded_param.grad for one in parameters]
    shards = sum(grad.to_local().nbytes for grad in shards if grad is not None)
    if self.is_world_process_zero():
        figures = json.dumps([self.accelerator.gradient_state.sync_gradients, whole, shards])
        os.write(1, f"MEASURED {figures}\\n".encode())
    return loss

PretrainingTrainer.training_step = measured
"""


@pytest.mark.parametrize("keep", [pytest.param("1e9", marks=on_demand), "0"])
def test_unsharded_gradients_are_kept_only_where_they_are_small(tokenized, tmp_path, keep):
    result = divide(tokenized, tmp_path, "--max_steps", 1, fsdp=True, before=MEASURED, KEEP=keep)
    measured = [json.loads(line) for line in re.findall(r"MEASURED (\[.*?\])", result.stdout)]
    assert [last for last, _, _ in measured] == [False, True]
    (_, whole, shards), (_, whole_after, shards_after) = measured
    starts = [json.loads(line) for line in re.findall(r"START (\[.*?\])", result.stdout)]
    assert len(starts) == 4
    for whole_model, peak in starts:
        assert whole_model / 2 < peak < 0.75 * whole_model  # half, and the largest parameters one at a time
    gradients = 2 * shards_after  # two ranks; all of tiny's parameters divide
    assert whole_after == 0
    if keep == "0":
        assert whole == 0 and shards == shards_after
    else:
        assert whole == pytest.approx(gradients, rel=0.01) and shards == 0


def test_a_model_starts_lean_where_we_place_its_shards(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    several, one = SimpleNamespace(world_size=2), SimpleNamespace(world_size=1)
    assert starts_lean(several) and not starts_lean(one)
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")  # as `accelerate launch` says it
    assert not starts_lean(several)
