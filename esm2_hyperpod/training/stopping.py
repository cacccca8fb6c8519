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

import torch
import torch.distributed as dist
from transformers import TrainerCallback

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
        self._previous = None

    def listen(self) -> None:
        """From now on take SIGTERM and SIGUSR1 as requests instead of dying of them."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def on_train_begin(self, args, state, control, **_):
        """Forget a request that an earlier run has left behind."""
        self._previous = None
        if state.is_world_process_zero:
            self._stop_file.unlink(missing_ok=True)

    def on_step_end(self, args, state, control, **_):
        """Share this step's wishes; act on those of the step before.

        Acting one step late keeps the GPU busy: the answer is already there when it is read.
        """
        wishes = self._share(self._wants_stop(state), self._wants_save(state), args.device)
        stop, save = wishes if args.device.type == "cpu" else self._read_previous(wishes)
        if save:
            self._last_save = time.monotonic()
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
        return bool(
            self._save_seconds
            and state.is_world_process_zero
            and time.monotonic() - self._last_save > self._save_seconds
        )

    def _share(self, stop: bool, save: bool, device: torch.device) -> tuple | torch.Tensor:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return stop, save
        flags = torch.tensor([stop, save], dtype=torch.int32, device=device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return flags if device.type == "cuda" else tuple(flags.tolist())

    def _read_previous(self, flags) -> tuple[bool, bool]:
        if isinstance(flags, tuple):
            return flags
        host = torch.empty(2, dtype=torch.int32, pin_memory=True)
        host.copy_(flags, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        previous, self._previous = self._previous, (host, copied)
        if previous is None:
            return False, False
        previous[1].synchronize()
        return tuple(previous[0].tolist())


class StopAfter(TrainerCallback):
    """Ends training, with a checkpoint, after a step that lies before the end of the schedule."""

    def __init__(self, last_step: int):
        self._last_step = last_step

    def on_step_end(self, args, state, control, **_):
        """End after `last_step`."""
        if state.global_step >= self._last_step:
            control.should_log = control.should_save = control.should_training_stop = True
        return control


def end_with_launcher() -> None:
    """Have the kernel send this process SIGTERM when the launcher that started it dies, however it dies.

    Otherwise a worker whose torchrun was killed trains on, unseen, and holds the output folder. Linux.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        pr_set_pdeathsig = 1  # <linux/prctl.h>
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
