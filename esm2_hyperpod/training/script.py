"""How a training script starts and ends: what `train.py` and `finetune_localization.py` have in common."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState

from esm2_hyperpod.artifacts import check_same_options, only_writer, package_versions
from esm2_hyperpod.errors import TO_BE_CONTINUED, UserError
from esm2_hyperpod.runs.record import is_finished, place, read_run
from esm2_hyperpod.training.arguments import RunArguments
from esm2_hyperpod.training.stopping import StopRequests
from esm2_hyperpod.training.throughput import device_name


def run_on_all_ranks(args: RunArguments, wrapper: str, work: Callable[[], int | None]) -> int | None:
    """Do `work` as the only run that writes to `--output_dir`, then leave the process group.

    `wrapper` is the script that starts one process a GPU. Returns what `work` returns: an exit code, or None.
    Raises `UserError` if this process sees several GPUs, or another run holds the folder.
    """
    if args.n_gpu > 1:
        raise UserError(
            f"{args.n_gpu} GPUs but one process: bash {wrapper} uses all, CUDA_VISIBLE_DEVICES=0 one"
        )
    with only_writer(Path(args.output_dir)) if args.process_index == 0 else nullcontext():
        exit_code = work()
    PartialState().destroy_process_group()
    return exit_code


def earlier_run(args: RunArguments, options: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the run that `--output_dir` holds, or None. Raises `UserError` if its options differ."""
    output_dir = Path(args.output_dir)
    run = read_run(output_dir)
    if run is not None:
        defaults = {field.name: field.default for field in fields(args)}
        check_same_options(output_dir, run["options"], options, f"rm -r {output_dir}", defaults)
    return run


def is_done(args: RunArguments, options: dict[str, Any], results: str, last_step: int | None = None) -> bool:
    """Whether nothing is left to do; rank 0 says so and names the `results`. Raises as `earlier_run` does."""
    output_dir = Path(args.output_dir)
    run = earlier_run(args, options)
    if run is None or not is_finished(run, last_step):
        return False
    if args.process_index == 0:
        print(f"{output_dir}: finished already, {run['steps']:,} steps; see {results}", flush=True)
    return True


def facts(args: RunArguments, synthetic: bool, *packages: str, **more: Any) -> dict[str, Any]:
    """What is worth knowing about this start of a run, beyond its options, for run.json."""
    automatic = "bf16" if args.bf16 else "fp32"
    return {
        **place(),
        "processes": args.world_size,
        "device": device_name(args.device),
        "precision": automatic if args.precision == "auto" else args.precision,
        "synthetic_data": synthetic,
        "versions": package_versions("torch", "transformers", "accelerate", *packages),
        **more,
    }


def leave(request: StopRequests, kept: str) -> int:
    """Say why the run stopped early and what is `kept`; returns the exit code for it."""
    if int(os.environ.get("RANK", "0")) == 0:
        why = request.reason or "another rank was asked to"
        print(f"stopped early ({why}); {kept}; run the same command again to resume", flush=True)
    return TO_BE_CONTINUED
