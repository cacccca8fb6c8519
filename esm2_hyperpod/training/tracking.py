"""Weights & Biases and MLflow: one run of theirs for one of ours, however often it is started.

Trainer's callbacks report to the run that they find open, and open a new one where there is none. So it is
opened here, by the id that an earlier start has left in run.json, and is closed after the last evaluation.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import TrainingArguments

from esm2_hyperpod.errors import TO_BE_CONTINUED, UserError, first_sentence
from esm2_hyperpod.runs.record import CONTINUED, FINISHED


def open_trackers(args: TrainingArguments, earlier: Mapping[str, str]) -> dict[str, str]:
    """Open a run with each of `--report_to` that has such; returns their ids. Called on one rank.

    `earlier` are the ids of an earlier start. Raises `UserError` if a tracker refuses.
    """
    openers: dict[str, Callable] = {"wandb": _open_wandb, "mlflow": _open_mlflow}
    return {name: openers[name](args, earlier.get(name)) for name in openers if name in args.report_to}


def close_trackers(status: str) -> None:
    """Tell the trackers how this start ended: finished, to be continued, or anything else for failed."""
    wandb, mlflow = sys.modules.get("wandb"), sys.modules.get("mlflow")
    if wandb and wandb.run:
        if status == CONTINUED:
            wandb.run.mark_preempting()
        codes = {FINISHED: 0, CONTINUED: TO_BE_CONTINUED}
        wandb.finish(exit_code=codes.get(status, 1))
    if mlflow and mlflow.active_run():
        states = {FINISHED: "FINISHED", CONTINUED: "SCHEDULED"}
        mlflow.end_run(states.get(status, "FAILED"))


def _open_wandb(args: TrainingArguments, run_id: str | None) -> str:
    import wandb

    try:
        run = wandb.init(
            id=run_id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", args.project),
            name=_name(args),
            dir=os.environ.get("WANDB_DIR", args.output_dir),
        )
    except wandb.Error as error:
        raise UserError(
            f"--report_to wandb: {first_sentence(error)}; log in with: wandb login, or set WANDB_MODE=offline"
        ) from error
    return run.id


def _open_mlflow(args: TrainingArguments, run_id: str | None) -> str:
    import mlflow

    given = os.environ.pop("MLFLOW_RUN_ID", None)  # Trainer's callback would open its run once more
    run_id = run_id or given
    if run_id:  # MLflow logs an error for every flag that has changed, such as --max_minutes
        os.environ["MLFLOW_MAX_LOG_PARAMS"] = "0"
    try:
        if name := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            mlflow.set_experiment(name)
        run = mlflow.start_run(run_id=run_id, run_name=None if run_id else _name(args))
    except mlflow.exceptions.MlflowException as error:
        raise UserError(
            f"--report_to mlflow: MLFLOW_TRACKING_URI {mlflow.get_tracking_uri()}: "
            f"{' '.join(str(error).split())}"
        ) from error
    return run.info.run_id


def _name(args: TrainingArguments) -> str:
    return args.run_name or Path(args.output_dir).name
