"""Run a step many times in forked processes, SIGKILL each at a random instant, finish it, say what came out.

    python tests/helpers/kill_at_random.py INSTANTS SEED FOLDER SCRIPT ARGUMENT...  ({}: the output folder)

Prints one JSON object a line: where the kill fell and the digests of all files after the second run. The
step's modules are imported once, before the forks, so that kills fall into its work and not into imports.
"""

import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.commands import run  # noqa: E402
from helpers.proteins import digests  # noqa: E402


def killed_runs(instants: int, seed: int, folder: Path, script: str, *arguments: object) -> list[dict]:
    """What a process that runs this file prints; the first is of a run that was not killed."""
    result = run(sys.executable, __file__, instants, seed, folder, script, *arguments)
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    instants, seed, folder, script, *arguments = sys.argv[1:]
    step = runpy.run_path(str(ROOT / script), run_name="step")["main"]
    folder, random_source = Path(folder), random.Random(int(seed))
    began = time.monotonic()
    wait(start(step, script, arguments, folder))
    duration = time.monotonic() - began
    print(json.dumps({"killed": False, "left": [], "digests": digests(folder)}))
    for instant in range(int(instants)):
        shutil.rmtree(folder)
        child = start(step, script, arguments, folder)
        time.sleep(random_source.uniform(0, duration) if instant else 0)
        os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        left = sorted(digests(folder)) if folder.exists() else []
        wait(start(step, script, arguments, folder))
        print(json.dumps({"killed": killed, "left": left, "digests": digests(folder)}))


def start(step, script: str, arguments: list[str], folder: Path) -> int:
    """Fork a process that runs the step; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    sys.argv = [script, *(argument.replace("{}", str(folder)) for argument in arguments)]
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    status = 1
    try:
        step()
        status = 0
    finally:
        os._exit(status)


def wait(child: int) -> None:
    """Wait for a child that must succeed."""
    if status := os.waitpid(child, 0)[1]:
        sys.exit(f"the step failed: wait status {status}")


if __name__ == "__main__":
    main()
