"""What FSDP2 keeps in memory, measured on CPU processes."""

import json
import re
import sys

import pytest
from helpers.commands import ROOT, on_demand, run
from helpers.pretraining import CPU, SMALL

MEASURED = """
import gc, json, runpy, sys
sys.path.insert(0, ".")
from esm2_hyperpod.imports import without_peft
without_peft()
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from esm2_hyperpod.pretraining import sharding
from esm2_hyperpod.pretraining.trainer import PretrainingTrainer

sharding.KEEP_WHOLE_BYTES = float(sys.argv.pop(1))
plain = PretrainingTrainer.training_step

def measured(self, model, *rest):
    loss = plain(self, model, *rest)
    assert model.lm_head.decoder.weight is model.esm.embeddings.word_embeddings.weight
    parameters = [one for one in gc.get_objects() if isinstance(one, FSDPParam)]
    whole = [one.unsharded_accumulated_grad for one in parameters]
    whole += [one._unsharded_param.grad for one in parameters if hasattr(one, "_unsharded_param")]
    whole = sum(grad.nbytes for grad in whole if grad is not None)
    shards = [one.sharded_param.grad for one in parameters]
    shards = sum(grad.to_local().nbytes for grad in shards if grad is not None)
    if self.is_world_process_zero():
        print("MEASURED", json.dumps([self.accelerator.gradient_state.sync_gradients, whole, shards]))
    return loss

PretrainingTrainer.training_step = measured
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.parametrize("keep", [pytest.param("1e9", marks=on_demand), "0"])
def test_unsharded_gradients_are_kept_only_where_they_are_small(tokenized, tmp_path, keep):
    script = tmp_path / "measured.py"
    script.write_text(MEASURED)
    launcher = "-m esm2_hyperpod.jobs.launch accelerate --config_file accelerate_fsdp.yaml --num_machines 1"
    launcher += " --machine_rank 0 --num_processes 2 --main_process_ip 127.0.0.1 --main_process_port 0"
    places = "--dataset_dir", tokenized, "--output_dir", tmp_path / "run"
    flags = *SMALL, "--max_steps", 1
    result = run(
        sys.executable, *launcher.split(), script, keep, *places, *flags, **CPU, PYTHONPATH=str(ROOT)
    )
    measured = [json.loads(line) for line in re.findall(r"MEASURED (.*)", result.stdout)]
    assert [last for last, _, _ in measured] == [False, True]
    (_, whole, shards), (_, whole_after, shards_after) = measured
    gradients = 2 * shards_after  # two ranks; all of tiny's parameters divide
    assert whole_after == 0
    if keep == "0":
        assert whole == 0 and shards == shards_after
    else:
        assert whole == pytest.approx(gradients, rel=0.01) and shards == 0
