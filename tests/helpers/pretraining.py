"""A pretraining of eight steps, alone or through its wrapper, and what it logged."""

import functools
import json
import sys
from pathlib import Path

import pytest

from helpers.commands import ROOT, run, run_ranks

SMALL = (
    "--model_size tiny --max_steps 8 --tokens_per_device 512 --global_batch_tokens 2048 --max_seq_length 256 "
    "--logging_steps 2 --save_steps 3 --eval_steps 4 --precision fp32 --report_to none"
).split()
CPU = {"CUDA_VISIBLE_DEVICES": ""}


def train(dataset: Path, output: Path, *flags: object, check: bool = True, **environment: str):
    """Pretrain in one process."""
    places = "--dataset_dir", dataset, "--output_dir", output
    return run("train.py", *places, *SMALL, *flags, check=check, **CPU, **environment)


def launch(
    dataset: Path,
    output: Path,
    *flags: str,
    processes: int = 2,
    fsdp: bool = False,
    check: bool = True,
    **environment: str,
):
    """Pretrain through the wrapper a user runs."""
    return run(*wrapper(fsdp), *flags, check=check, **places(dataset, output, processes), **environment)


def divide(
    dataset: Path, output: Path, *flags: object, processes: int = 2, fsdp: bool = False, **environment: str
):
    """Pretrain on several processes as the wrapper's launcher starts them, at less cost."""
    folders = "--dataset_dir", dataset, "--output_dir", output
    environment = {**CPU, **(fsdp_environment() if fsdp else {}), **environment}
    return run_ranks("train.py", *folders, *SMALL, *flags, processes=processes, **environment)


@functools.cache
def fsdp_environment() -> dict[str, str]:
    """The variables in which accelerate tells its workers what is in accelerate_fsdp.yaml."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = f"--config_file {ROOT}/accelerate_fsdp.yaml --num_processes 2 --num_machines 1 train.py".split()
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    environment = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in environment.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def wrapper(fsdp: bool) -> list[str]:
    """The command line of a small run."""
    return ["bash", "3.train_fsdp.sh" if fsdp else "2.train_ddp.sh", *SMALL]


def fsdp_launcher(processes: int) -> list[object]:
    """What stands before a script of a test's own that is to run as `3.train_fsdp.sh` runs train.py."""
    words = f"""-m esm2_hyperpod.jobs.launch accelerate --config_file accelerate_fsdp.yaml --num_machines 1
        --machine_rank 0 --num_processes {processes} --main_process_ip 127.0.0.1 --main_process_port 0"""
    return [sys.executable, *words.split()]


def places(dataset: Path, output: Path, processes: int) -> dict[str, str]:
    """The variables that a wrapper is given."""
    folders = {"DATASET_DIR": str(dataset), "OUTPUT_DIR": str(output)}
    return {**folders, "GPUS_PER_NODE": str(processes), **CPU}


def metrics(output: Path) -> list[tuple]:
    """What a run logged and can repeat: step, losses, gradient norm, learning rate, accuracy."""
    names = "step loss grad_norm learning_rate eval_loss eval_accuracy".split()
    path = output / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return [tuple(line.get(name, 0.0) for name in names) for line in lines]


def assert_close(some: list[tuple], others: list[tuple], tolerance: float = 1e-4) -> None:
    """Alike. Rounding can turn an accuracy by a residue, where two letters are nearly as likely."""
    assert [line[0] for line in some] == [line[0] for line in others]
    for one, other in zip(some, others):
        assert one[:-1] == pytest.approx(other[:-1], abs=tolerance, rel=tolerance)
        assert one[-1] == pytest.approx(other[-1], abs=max(tolerance, 0.01))
