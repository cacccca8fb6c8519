"""Run torchrun or accelerate so that stopping is graceful and the exit code says what happened.

    python -m esm2_hyperpod.jobs.launch torchrun   --nproc_per_node 2 train.py ...
    python -m esm2_hyperpod.jobs.launch accelerate --config_file accelerate_fsdp.yaml train.py ...

By themselves both give their workers 30 s after SIGTERM, too little for a large checkpoint, die of
SIGUSR1 at once, and exit with 1 whatever a worker exited with. Here SIGTERM, SIGUSR1 and a hang-up are
passed on to the workers, which save and stop when they are ready, and the exit code is

    0        all workers finished
    75       all workers saved and stopped early: to be continued
    128 + N  a worker was killed by signal N
    other    the exit code of the worker that failed
"""

import importlib
import os
import signal
import sys
from collections.abc import Iterable

import psutil

from esm2_hyperpod.errors import TO_BE_CONTINUED

LAUNCHERS = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.launch"}
PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def main() -> int:
    """Start the launcher named by the first argument; return the exit code described above."""
    if len(sys.argv) < 2 or sys.argv[1] not in LAUNCHERS:
        sys.exit("usage: python -m esm2_hyperpod.jobs.launch torchrun|accelerate ARGUMENTS")
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGINT,SIGQUIT"  # the rest is ours
    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish is respected
            signal.signal(number, _pass_on)

    launcher = importlib.import_module(LAUNCHERS[sys.argv.pop(1)])
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launcher.main()
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            print(f"rank {rank} (process {failure.pid}) {how_it_ended(failure.exitcode)}", file=sys.stderr)
        return exit_code(failure.exitcode for failure in error.failures.values())
    except SignalException:
        return 128 + signal.SIGINT
    finally:
        for number in PASSED_ON:
            signal.signal(number, signal.SIG_IGN)  # the exit code is settled; Python's own end takes a while
    return 0


def exit_code(worker_codes: Iterable[int]) -> int:
    """One exit code for a group of workers that did not all end with 0; negative means by signal.

    A worker that fails takes the others down: they are terminated, or lose their connection and fail
    too. So a signal other than SIGTERM outranks an error, and "to be continued" outranks signals.
    """
    codes = set(worker_codes)
    errors = {code for code in codes if code > 0}
    if errors == {TO_BE_CONTINUED}:
        return TO_BE_CONTINUED
    signals = {-code for code in codes if code < 0}
    deadly = signals - {signal.SIGTERM}
    if deadly:
        return 128 + max(deadly)
    return max(errors - {TO_BE_CONTINUED}, default=128 + signal.SIGTERM)


def how_it_ended(code: int) -> str:
    """What a process's exit code means, in words."""
    if code == TO_BE_CONTINUED:
        return "saved and stopped early"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def _pass_on(_number, _frame) -> None:
    for worker in psutil.Process().children():
        worker.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
