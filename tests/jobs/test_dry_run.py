"""DRY_RUN=1 of the wrappers: what would run, and every mistake that can be seen from outside."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from helpers.commands import on_demand, run
from helpers.misuse import refusal, table

from esm2_hyperpod.jobs import dry_run as dry_run_module
from esm2_hyperpod.planner.answer import Question, answer, describe
from esm2_hyperpod.planner.machines import find_machine
from esm2_hyperpod.planner.models import find_model
from esm2_hyperpod.sizes import SIZES

CPU = {"CUDA_VISIBLE_DEVICES": "", "DRY_RUN": "1"}


DRY_RUNS = [  # of what the wrapper would start
    ("step 1 left out", "train.py --dataset_dir gone --output_dir OUT",
     "problem: gone: no such folder; make it"),
    ("a size that is none", "train.py --dataset_dir gone --output_dir OUT --model_size 7B",
     "7B: not one of tiny"),
    ("a batch for other nodes", "train.py --dataset_dir arrow --output_dir OUT --global_batch_tokens 4096",
     "--global_batch_tokens 4,096 does not divide over 2 process(es)"),
    ("misspelt flag", "train.py --dataset_dir gone --output_dir OUT --max_step 9",
     "did you mean --max_steps?"),
    ("no such proteins",
     "finetune_localization.py --model_name_or_path x --output_dir OUT --train_file gone.csv",
     "problem: --train_file gone.csv: no such file"),
    ("no such base",
     "finetune_localization.py --model_name_or_path /gone --output_dir OUT --train_file x.csv",
     "--model_name_or_path /gone: no such folder; make it with: sbatch 2.train_ddp.sh"),
]  # fmt: skip


def dry_run(fsx: Path, wrapper: str, *arguments: object, processes: int = 2, **environment: str):
    places = {"FSX_DIR": str(fsx), "GPUS_PER_NODE": str(processes)}
    return run("bash", wrapper, *arguments, check=False, **places, **CPU, **environment)


def test_plan_of_pretraining(synthetic, tmp_path_factory, tmp_path):
    instance = tmp_path_factory.mktemp("node") / "instance_type"
    instance.write_text("g5.12xlarge\n")
    flags = "--output_dir", tmp_path / "a b", "--max_steps", 30, "--tp_size", 2
    result = dry_run(synthetic, "3.train_fsdp.sh", *flags, processes=4, INSTANCE_TYPE_FILE=str(instance))
    assert result.returncode == 0, result.stderr
    assert "esm2_hyperpod.jobs.launch accelerate " in result.stdout
    assert (
        rf"--output_dir {tmp_path}/a\ b --max_steps 30 --tp_size 2" in result.stdout
    )  # can be pasted into a shell
    assert "1 node(s) x 4 = 4" in result.stdout
    assert "2,097,152 tokens = 2 process(es) x 16,384 x 64 accumulated" in result.stdout
    assert "starts from the beginning" in result.stdout
    assert "checkpoints   90.1 MB each, 0 s at 293 MB/s, 3 kept: 361 MB to come, " in result.stdout
    machine = find_machine("g5.12xlarge", 1)
    plan = describe(answer(Question(find_model("8M", None, {}), machine, 30 * 2_097_152)))
    assert f"\n{plan}\n" in result.stdout  # the planner's own figures
    assert list(tmp_path.iterdir()) == []  # nothing was run


@table(DRY_RUNS)
def test_misuse_seen_by_a_dry_run(words, message, tokenized, tmp_path):
    (tmp_path / "arrow").symlink_to(tokenized)
    (tmp_path / "x.csv").touch()
    script = "esm2_hyperpod/jobs/dry_run.py"
    with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ""}):
        assert message in refusal(script, f"--nodes 1 --processes 2 {words}", tmp_path)


def test_a_folder_that_one_node_alone_sees_is_named_with_the_node(tmp_path):
    words = "train.py --dataset_dir gone --output_dir OUT"
    with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": "", "SLURM_STEP_NUM_NODES": "2"}):
        line = refusal("esm2_hyperpod/jobs/dry_run.py", f"--nodes 2 --processes 1 {words}", tmp_path)
    assert (
        f"gone: no such folder on {os.uname().nodename} (all nodes must see it, as they do $FSX_DIR)" in line
    )


def test_a_checkpoint_that_will_not_fit_is_said(monkeypatch, capsys, tmp_path):
    free = SimpleNamespace(free=100e9)
    monkeypatch.setattr(dry_run_module.shutil, "disk_usage", lambda folder: free)
    (tmp_path / "out" / "checkpoint-500").mkdir(parents=True)
    dry_run_module.say_checkpoints(SIZES["3B"], 3, tmp_path / "out")  # one of the four is there
    assert (
        "34.1 GB each, 116 s at 293 MB/s, 3 kept: 102 GB to come, 100 GB free: too little"
        in capsys.readouterr().out
    )
    dry_run_module.say_checkpoints(SIZES["3B"], 1, tmp_path / "none" / "yet")
    assert "68.1 GB to come, 100 GB free\n" in capsys.readouterr().out


@on_demand
def test_plan_of_pretraining_imports_nothing_of_fine_tuning(synthetic, tmp_path):
    """bitsandbytes and peft take seconds and print lines of their own."""
    arguments = "--dataset_dir", synthetic / "processed" / "arrow", "--output_dir", tmp_path / "out"
    words = "-m", "esm2_hyperpod.jobs.dry_run", "--nodes", 1, "--processes", 1, "train.py", *arguments
    imports = run(sys.executable, "-X", "importtime", *words, **CPU).stderr
    names = {
        line.rsplit("|", 1)[1].strip() for line in imports.splitlines() if line.startswith("import time:")
    }
    assert "esm2_hyperpod.pretraining.arguments" in names
    assert not names & {"bitsandbytes", "peft"}
