"""DRY_RUN=1 of the wrappers: what would run, and every mistake that can be seen from outside."""

import sys
from pathlib import Path
from types import SimpleNamespace

from helpers.commands import run

from esm2_hyperpod.jobs import dry_run as dry_run_module
from esm2_hyperpod.planner.answer import Question, answer, describe
from esm2_hyperpod.planner.machines import find_machine
from esm2_hyperpod.planner.models import find_model
from esm2_hyperpod.sizes import SIZES

CPU = {"CUDA_VISIBLE_DEVICES": "", "DRY_RUN": "1"}


def dry_run(fsx: Path, wrapper: str, *arguments: object, processes: int = 2, **environment: str):
    places = {"FSX_DIR": str(fsx), "GPUS_PER_NODE": str(processes)}
    return run("bash", wrapper, *arguments, check=False, **places, **CPU, **environment)


def problem(result) -> str:
    """The one line that says what is wrong; a library may print lines of its own."""
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stdout + result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "problem: " in line]
    return line


def test_plan_of_pretraining(synthetic, tmp_path_factory, tmp_path):
    instance = tmp_path_factory.mktemp("node") / "instance_type"
    instance.write_text("g5.12xlarge\n")
    flags = "--output_dir", tmp_path / "a b", "--max_steps", 30
    result = dry_run(synthetic, "3.train_fsdp.sh", *flags, processes=4, INSTANCE_TYPE_FILE=str(instance))
    assert result.returncode == 0, result.stderr
    assert "esm2_hyperpod.jobs.launch accelerate " in result.stdout
    assert rf"--output_dir {tmp_path}/a\ b --max_steps 30" in result.stdout  # can be pasted into a shell
    assert "1 node(s) x 4 = 4" in result.stdout
    assert "2,097,152 tokens = 4 process(es) x 16,384 x 32 accumulated" in result.stdout
    assert "starts from the beginning" in result.stdout
    assert "checkpoints   0.1 GB each, 0 s at 293 MB/s, 3 kept: 0 GB to come, " in result.stdout
    machine = find_machine("g5.12xlarge", 1)
    plan = describe(answer(Question(find_model("8M", None, {}), machine, 30 * 2_097_152)))
    assert f"\n{plan}\n" in result.stdout  # the planner's own figures
    assert list(tmp_path.iterdir()) == []  # nothing was run


def test_batch_that_does_not_divide(synthetic, tmp_path):
    unknown = {"INSTANCE_TYPE_FILE": str(tmp_path / "none")}
    result = dry_run(synthetic, "2.train_ddp.sh", "--output_dir", tmp_path, processes=3, **unknown)
    assert "--global_batch_tokens 2,097,152 does not divide over 3" in problem(result)


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
    assert "68 GB to come, 100 GB free\n" in capsys.readouterr().out


def test_dataset_that_is_missing(tmp_path):
    assert "processed/arrow: no such folder" in problem(dry_run(tmp_path, "2.train_ddp.sh"))


def test_files_of_finetuning(tmp_path):
    result = dry_run(tmp_path, "4.finetune_qlora.sh", "--train_file", tmp_path / "none.csv")
    assert result.returncode == 1
    assert "none.csv: no such file" in result.stderr
    assert "runs/ddp/final_model: no such folder; make it with: sbatch 2.train_ddp.sh" in result.stderr


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
