"""The repository's commands, run as a user runs them."""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

on_demand = pytest.mark.skipif(os.environ.get("SURVIVAL") != "all", reason="takes long: SURVIVAL=all runs it")

ROOT = Path(__file__).parents[2]
REAL_DATA = ROOT.parent / "shared" / "data"


def run(*command: object, check: bool = True, timeout: float = 600, before: str = "", **environment: str):
    """Run a command in the repository's root; its output is shown when it fails and `check` is set.

    A numbered script, `train.py` or `finetune_localization.py` runs in a process forked from one that has
    imported what it imports (helpers/started.py), unless PYTHONPATH is given.
    `before` is Python that is run first.
    """
    words = [str(word) for word in command]
    environment = {**os.environ, "VENV": sys.prefix, **environment}
    if words[0].endswith(".py") and environment.get("PYTHONPATH") == os.environ.get("PYTHONPATH"):
        result = started(words[0]).run(words[1:], environment, timeout, before)
    else:
        if words[0].endswith(".py"):
            words.insert(0, sys.executable)
        result = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )
    if check and result.returncode:
        pytest.fail(f"{' '.join(words)}\nexit {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


def run_ranks(*command: object, processes: int = 2, check: bool = True, before: str = "", **environment: str):
    """Run a script on so many ranks, as torchrun does: one process a rank. Returns what all wrote.

    The processes are forked as `run`'s are: much cheaper than a launcher, which is tested where it matters.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    place |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "PYTHONPATH": str(ROOT)}
    words = [str(word) for word in command]

    def one(rank: int):
        ranks = {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
        everything = {**os.environ, "VENV": sys.prefix, **environment, **place, **ranks}
        return started(words[0], rank).run(words[1:], everything, 600, before)

    with ThreadPoolExecutor(processes) as pool:
        results = list(pool.map(one, range(processes)))
    for result in results:
        if check and result.returncode:
            pytest.fail(f"{' '.join(words)}\nexit {result.returncode}\n{result.stdout}\n{result.stderr}")
    texts = ("".join(getattr(result, name) for result in results) for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(words, max(result.returncode for result in results), *texts)


@functools.cache
def started(script: str, rank: int = 0) -> "Started":
    """The process that has imported what `script` imports, for all tests of this worker."""
    return Started(script)


class Started:
    """helpers/started.py for one script."""

    def __init__(self, script: str):
        self.script = script
        command = [sys.executable, Path(__file__).with_name("started.py"), script]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self.process.stdin.close)

    def run(
        self, arguments: list[str], environment: dict, timeout: float, before: str
    ) -> subprocess.CompletedProcess:
        """Run the script in a fork; returns what `subprocess.run` would."""
        with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
            os.umask(umask := os.umask(0))  # the only way to read it
            wanted = {"arguments": arguments, "environment": environment, "umask": umask, "before": before}
            print(json.dumps({**wanted, "stdout": stdout.name, "stderr": stderr.name}),
                  file=self.process.stdin, flush=True)  # fmt: skip
            child = int(self.process.stdout.readline())
            killer = threading.Timer(timeout, os.kill, (child, signal.SIGKILL))
            killer.start()
            code = int(self.process.stdout.readline())
            killer.cancel()
            texts = [file.read() for file in (stdout, stderr)]
        return subprocess.CompletedProcess([self.script, *arguments], code, *texts)
