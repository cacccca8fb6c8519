"""Reasons to stop or save early, agreed on by all ranks at the same optimizer step.

SIGTERM, SIGUSR1, a file named `stop` in the output folder, or a time limit: the step in progress is
finished, a checkpoint is written, and the script exits with `errors.TO_BE_CONTINUED`. The same command
resumes it.
"""

import ctypes
import os
import signal
import time
from pathlib import Path

from transformers import TrainerCallback

from esm2_hyperpod.training.ranks import sum_over_ranks

STOP_FILE = "stop"


class StopRequests(TrainerCallback):
    """Stops a Trainer, on all ranks after the same step, when one rank is asked to.

    Args:
        output_dir: where the stop file is looked for.
        max_minutes: stop after so many minutes from now; None for no limit.
        save_minutes: write a checkpoint every so many minutes; None for none by time.
    """

    def __init__(self, output_dir: Path, max_minutes: float | None = None, save_minutes: float | None = None):
        self.reason: str | None = None
        self.stopped = False
        self._stop_file = output_dir / STOP_FILE
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        self._save_seconds = 60 * save_minutes if save_minutes else None
        self._last_save = time.monotonic()

    def listen(self) -> None:
        """From now on take SIGTERM and SIGUSR1 as requests instead of dying of them."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def on_train_begin(self, args, state, control, **_):
        """Forget a request that an earlier run has left behind."""
        if state.is_world_process_zero:
            self._stop_file.unlink(missing_ok=True)

    def on_step_end(self, args, state, control, **_):
        """Do after this step what any rank wishes."""
        stop, save = sum_over_ranks([self._wants_stop(state), self._wants_save(state)])
        if save:
            control.should_save = True
        if stop:
            self.stopped = control.should_save = control.should_training_stop = True
            if state.is_world_process_zero:
                self._stop_file.unlink(missing_ok=True)
        return control

    def _on_signal(self, number, _frame):
        self.reason = signal.Signals(number).name

    def _wants_stop(self, state) -> bool:
        if self.reason is None and self._deadline and time.monotonic() > self._deadline:
            self.reason = "--max_minutes"
        if self.reason is None and state.is_world_process_zero and self._stop_file.exists():
            self.reason = f"the file {self._stop_file}"
        return self.reason is not None

    def _wants_save(self, state) -> bool:
        # Rank 0's clock decides, so that no two ranks disagree about a minute.
        due = self._save_seconds and time.monotonic() - self._last_save > self._save_seconds
        if not (due and state.is_world_process_zero):
            return False
        self._last_save = time.monotonic()
        return True


class StopAfter(TrainerCallback):
    """Ends training, with a checkpoint, after a step that lies before the end of the schedule."""

    def __init__(self, last_step: int):
        self._last_step = last_step

    def on_step_end(self, args, state, control, **_):
        """End after `last_step`."""
        if state.global_step >= self._last_step:
            control.should_log = control.should_save = control.should_training_stop = True
        return control


class StopWhenStale(TrainerCallback):
    """Stops when the best evaluation lies more than `steps` back.

    A pure function of the Trainer's saved state, so an interrupted run stops where an uninterrupted one does.
    """

    def __init__(self, steps: int):
        self._steps = steps

    def on_step_end(self, args, state, control, **_):
        """Strictly more: the evaluation of this very step is still to come."""
        if state.best_global_step and state.global_step - state.best_global_step > self._steps:
            control.should_training_stop = True
        return control


def end_with_launcher() -> None:
    """Have the kernel send this process SIGTERM when the launcher that started it dies, however it dies.

    Otherwise a worker whose torchrun was killed trains on, unseen, and holds the output folder. Linux.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        pr_set_pdeathsig = 1  # <linux/prctl.h>
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
