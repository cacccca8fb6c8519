"""A Hugging Face Trainer that loses nothing: whole checkpoints, exact logs, one record of the run."""

import contextlib
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import DistributedDataParallelKwargs
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.logging import disable_progress_bar

from esm2_hyperpod.artifacts import folder_size, write_json_atomically
from esm2_hyperpod.console import in_progress
from esm2_hyperpod.errors import LostPeer, UserError
from esm2_hyperpod.runs import checkpoints
from esm2_hyperpod.runs.record import (
    append_metrics,
    beat,
    begin_run,
    end_broken_session,
    end_run,
    forget_metrics_after,
    modified_at,
    tracker_ids,
)
from esm2_hyperpod.runs.report import write_report
from esm2_hyperpod.training.gradients import clip_gradients
from esm2_hyperpod.training.ranks import seconds_waited, wait_at_most
from esm2_hyperpod.training.tracking import close_trackers, open_trackers

WINDOW = "logging_window.json"
HEARTBEAT_SECONDS = 2


class ResumableTrainer(Trainer):
    """Trainer whose checkpoints are whole or absent and whose logged losses survive interruption.

    - A checkpoint is written in a hidden folder and renamed when all ranks have written their part;
      old ones go only after that.
    - The logged `loss` is the mean over the optimizer steps since the last log. The part of that
      window that lies before a checkpoint is kept in it, so an interrupted run logs the same numbers.
    - Every log is a line of `metrics.jsonl` and a plain line on stdout.
    - A loss or a gradient that is not finite stops the run before a checkpoint could keep the damage.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        disable_progress_bar()  # of every file written; the bar that counts steps is ours
        self.output_dir = Path(self.args.output_dir)
        self.first_step = 0  # where this start begins; set by resume_point
        self.saved_at: str | None = None  # when the checkpoint was written that this start resumed from
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(Heartbeat(self.output_dir))
        self.add_callback(StepsOfThisStart())
        self.add_callback(StepTimeout())
        self._window: list[float] = []  # losses of the steps since the last log, over all ranks
        self._unshared: list[torch.Tensor] = []  # the newest of them, this rank's part, on the device
        self._gradient_norms: list[torch.Tensor] = []  # of the same steps, over all ranks, on the device
        self._step_loss: torch.Tensor | None = None
        self._residues_unshared = 0  # residues in the training batches of this rank since they were shared
        self._residues_seen = 0  # in all training batches of all ranks, interrupted starts included
        self._bar: tqdm | None = None
        self.loss_factor = 1  # times the mean over ranks of what `compute_loss` returns is the step's loss

    # ---- resuming ------------------------------------------------------------------------------

    def resume_point(self) -> Path | None:
        """The newest whole checkpoint, or None to start from the beginning. Called on all ranks.

        Rank 0 prints what is skipped and deletes what came after the checkpoint.
        """
        checkpoint, skipped = checkpoints.newest_whole_checkpoint(self.output_dir)
        self.barrier()  # nothing is cleared before every rank has looked
        if checkpoint:
            self.first_step = checkpoints.step_of(checkpoint)
            self.saved_at = modified_at(checkpoint / checkpoints.COMPLETE)
        if self.is_world_process_zero():
            for line in skipped:
                self.say(line)
            end_broken_session(self.output_dir)
            checkpoints.remove_newer(self.output_dir, self.first_step)
            forget_metrics_after(self.output_dir, self.first_step)
            if checkpoint:
                self.say(f"resuming from {checkpoint}")
        self.barrier()
        return checkpoint

    def begin_run(self, options: dict[str, Any], facts: dict[str, Any]) -> None:
        """Put this start on record, here and with the trackers of --report_to. Rank 0 acts."""
        if self.is_world_process_zero():
            if ids := open_trackers(self.args, tracker_ids(self.output_dir)):
                facts = {**facts, "trackers": ids}
            begin_run(self.output_dir, options, facts, self.first_step, self.saved_at)

    def train_from(self, checkpoint: Path | None):
        """Train from what `resume_point` found."""
        if checkpoint is not None:
            window = json.loads((checkpoint / WINDOW).read_text(encoding="utf-8"))
            self._window, self._residues_seen = window["losses"], window["residues_seen"]
        title = f"loading {checkpoint.name}" if checkpoint else "placing the model on the devices"
        start = OnceTraining(in_progress(title))
        self.add_callback(start)
        try:
            with start:
                return self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except Exception as error:
            close_trackers("failed")
            waited = seconds_waited(error) if isinstance(error, RuntimeError) else None
            if waited is None:
                raise
            raise LostPeer(
                f"step {self.state.global_step + 1}: another process has not answered for {waited} s "
                "(--step_timeout; --ddp_timeout in a save): it or its network hangs; the same command "
                "resumes, python cluster_setup/doctor.py checks the nodes"
            ) from error

    def end_run(self, status: str, **facts) -> None:
        """Record how this start ended, with `facts`; print and write the run report. Rank 0 acts."""
        if self.is_world_process_zero():
            close_trackers(status)
            end_run(self.output_dir, status, steps=self.state.global_step, **facts)
            self.say(write_report(self.output_dir, self.args.dollars_per_node_hour))

    # ---- checkpoints ---------------------------------------------------------------------------
    # Overrides of Trainer's private methods, written against transformers 5.23. They go when Trainer itself
    # writes checkpoints under a temporary name and renames them when all ranks are done.

    def _get_output_dir(self, trial) -> str:
        # The one place where Trainer asks in which folder to write checkpoint-N.
        return str(self.output_dir / checkpoints.STAGING)

    def _save_checkpoint(self, model, trial):
        self._share_window()
        wait_at_most(self.args.ddp_timeout)  # one rank may write for long while the others wait
        staging = self.output_dir / checkpoints.STAGING
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        if self.is_world_process_zero():
            shutil.rmtree(staging, ignore_errors=True)
        self.barrier()
        title = f"writing checkpoint-{self.state.global_step}"
        newest = next(reversed(checkpoints.list_checkpoints(self.output_dir)), None)
        try:
            with in_progress(title, lambda: folder_size(staging), newest and folder_size(newest)):
                super()._save_checkpoint(model, trial)
            self._finish_checkpoint(staging / f"checkpoint-{self.state.global_step}")
        except (dist.DistError, torch.OutOfMemoryError):  # no fault of the disk
            raise
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and seconds_waited(error):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            free = shutil.disk_usage(self.output_dir).free
            shutil.rmtree(staging, ignore_errors=True)
            raise UserError(
                f"{self.output_dir}: checkpoint-{self.state.global_step} could not be written "
                f"({reason}; {free / 1e9:.1f} GB free there); earlier checkpoints are "
                "whole: free some space and run the same command again"
            ) from error
        finally:
            self.args.save_total_limit = limit
        if self.is_world_process_zero():
            checkpoints.remove_old(self.output_dir, limit, self.state.best_global_step)
        self.barrier()
        wait_at_most(self.args.step_timeout)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # transformers 5.23 by default writes ESM's weights under old names (LayerNorm.gamma), which Trainer,
        # loading without from_pretrained and not strictly, would leave out without a word. Ends when
        # save_pretrained writes the names that the model has.
        if isinstance(self.model, PreTrainedModel):
            if self.args.should_save:
                self.model.save_pretrained(output_dir, save_original_format=False)
        else:
            super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result) -> None:
        # Trainer (5.23) only warns, and would train on from weights that are half new. Ends when it raises.
        tied = set(self.model._tied_weights_keys or ())
        wrong = [*(set(load_result.missing_keys) - tied), *load_result.unexpected_keys]
        if wrong:
            raise UserError(
                f"{self.output_dir}: the checkpoint is of another model ({len(wrong)} parameters differ, "
                f"{min(wrong)} among them); use another --output_dir"
            )

    def _finish_checkpoint(self, staged: Path) -> None:
        """Add what is ours, and give the checkpoint its name once all ranks have written."""
        if self.state.best_global_step:
            best = self.output_dir / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best)
        if self.is_world_process_zero():
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            window = {"losses": self._window, "residues_seen": self._residues_seen}
            write_json_atomically(staged / WINDOW, window)
        self.barrier()
        if self.is_world_process_zero():
            checkpoints.publish(staged, self.output_dir)

    # ---- logs ----------------------------------------------------------------------------------

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-batch, as Trainer does it; the loss of each optimizer step is kept for the log."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        if self.accelerator.gradient_state.sync_gradients:
            self._unshared.append(self._step_loss)
            self._step_loss = None
        return loss

    def _clip_grad_norm(self, model):
        # torch's (2.13) sums squares in fp32, shard by shard.
        return clip_gradients(model.parameters(), self.args.max_grad_norm)

    def _get_grad_norm(self, model, grad_norm=None):
        # Kept, because Trainer (5.23) only logs it. Ends when Trainer stops at one that is not finite.
        norm = clip_gradients(model.parameters(), math.inf) if grad_norm is None else grad_norm
        self._gradient_norms.append(norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Complete a log with the exact loss and the figures of `log_figures`, and put it on record."""
        if "train_runtime" in logs:  # Trainer's own summary knows only the steps since the last start
            return
        if "loss" in logs:
            self._share_window()
            logs["loss"] = math.fsum(self._window) / len(self._window)
            self._window = []
            logs["residues_seen"] = self._residues_seen
            logs.update(self.log_figures())
        logs["epoch"] = self.epoch()
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)
        if self.is_world_process_zero():
            line = {"step": self.state.global_step, **logs}
            append_metrics(self.output_dir, line)
            self.say(self.describe(line))
            self._advance_bar()

    def floating_point_ops(self, inputs) -> int:
        """0: Trainer counts by a walk over all parameters in every micro-batch; see `throughput` instead."""
        return 0

    def _build_accelerator_args(self, **kwargs):
        # Gradients live in DDP's buckets, not beside them: one copy less. Against transformers 5.23; ends
        # when TrainingArguments has a flag for it.
        arguments = super()._build_accelerator_args(**kwargs)
        for handler in arguments["kwargs_handlers"]:
            if isinstance(handler, DistributedDataParallelKwargs):
                handler.gradient_as_bucket_view = True
        return arguments

    def count_residues(self, residues: int) -> None:
        """Count the residues of one training micro-batch of this rank."""
        self._residues_unshared += residues

    def log_figures(self) -> dict[str, float]:
        """What a subclass adds to a training log. Called on all ranks."""
        return {}

    def epoch(self) -> float:
        """Passes over the training data so far."""
        return float(self.state.epoch or 0.0)

    def describe(self, line: dict[str, float]) -> str:
        """A log as a line for people."""
        figures = (f"{name} {value:.4g}" for name, value in line.items() if name != "step")
        return f"step {line['step']}/{self.state.max_steps}  " + "  ".join(figures)

    def say(self, line: str) -> None:
        """Print a line without tearing the progress bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def on_bad_loss(self, step: int) -> str:
        """What to tell about the batch of a step whose loss is not finite. Called on all ranks."""
        return ""

    def barrier(self) -> None:
        """Wait for all ranks."""
        if dist.is_initialized():
            dist.barrier()

    def _share_window(self) -> None:
        """Move this rank's losses into the window of all; stop at a loss or gradient that is not finite."""
        if not self._unshared:
            return
        losses = torch.stack(self._unshared).double()
        local = torch.cat([losses, losses.new_tensor([self._residues_unshared])])
        norms = torch.stack(self._gradient_norms).double().tolist()
        self._unshared, self._gradient_norms, self._residues_unshared = [], [], 0
        # Gathered and summed in rank order: an all-reduce may add in an order that depends on the length.
        ranks = self.accelerator.gather(local).view(-1, len(local))
        self._residues_seen += int(ranks[:, -1].sum())
        losses = (ranks[:, :-1].mean(dim=0) * self.loss_factor).tolist()
        first_step = self.state.global_step - len(losses) + 1
        self._window += losses
        for step, (loss, norm) in enumerate(zip(losses, norms), start=first_step):
            for what, value in (("loss", loss), ("gradient norm", norm)):
                if not math.isfinite(value):
                    raise UserError(
                        f"{self.output_dir}: the {what} of step {step} is {value}; the last checkpoint is "
                        f"from before it; {self.on_bad_loss(step)}lower --learning_rate or fix the data"
                    )

    def _advance_bar(self) -> None:
        if self._bar is None and sys.stderr.isatty():
            self._bar = tqdm(total=self.state.max_steps, unit="step", initial=self.state.global_step)
        if self._bar is not None:
            self._bar.update(self.state.global_step - self._bar.n)


class StepsOfThisStart(TrainerCallback):
    """Logs, saves and evaluates as this start's flags say; Trainer (5.23) takes these from the checkpoint."""

    def on_train_begin(self, args, state, control, **_):
        """Overwrite what the checkpoint's state says."""
        state.compute_steps(args, state.max_steps)


class OnceTraining(contextlib.ExitStack, TrainerCallback):
    """Leaves a context when what precedes the first step is done, or has failed."""

    def __init__(self, context: contextlib.AbstractContextManager):
        super().__init__()
        self.enter_context(context)

    def on_train_begin(self, args, state, control, **_):
        """All is in its place."""
        self.close()


class StepTimeout(TrainerCallback):
    """Has the steps of a training wait less for a lost rank than its start and its end, which may be slow."""

    def on_train_begin(self, args, state, control, **_):
        """All ranks are there."""
        wait_at_most(args.step_timeout)

    def on_train_end(self, args, state, control, **_):
        """What follows is done by one rank while the others wait."""
        wait_at_most(args.ddp_timeout)


class Heartbeat(TrainerCallback):
    """Writes the step and the time every other second: a later start then knows when this one was killed.

    Args:
        output_dir: where it is left.
    """

    def __init__(self, output_dir: Path):
        self._output_dir = output_dir
        self._last = 0.0

    def on_train_begin(self, args, state, control, **_):
        """The first sign, before the first step."""
        self._beat(state)

    def on_step_end(self, args, state, control, **_):
        """A sign, if the last one is old enough."""
        if time.monotonic() - self._last > HEARTBEAT_SECONDS:
            self._beat(state)

    def _beat(self, state) -> None:
        if state.is_world_process_zero:
            beat(self._output_dir, state.global_step)
            self._last = time.monotonic()
