"""A private Slurm for the tests, and the faults that can be played on it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from esm2_hyperpod.runs.record import read_metrics
from helpers.commands import ROOT


class LocalSlurm:
    """`cluster_setup/local_slurm.sh` in a folder of its own; jobs run the repository's wrappers."""

    def __init__(self, folder: Path, nodes: int = 3):
        self.folder, self.fsx = folder / "slurm", folder / "fsx"
        self.fsx.mkdir()
        self.conf = self.folder / "slurm.conf"
        self._script("start", "--nodes", str(nodes))

    def _script(self, action: str, *options: str) -> str:
        command = ["bash", "cluster_setup/local_slurm.sh", action, "--dir", str(self.folder), *options]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def stop(self) -> None:
        self._script("stop")

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        ours = {"SLURM_CONF": str(self.conf), "FSX_DIR": str(self.fsx), "VENV": sys.prefix}
        return {**kept, **ours, "CUDA_VISIBLE_DEVICES": "", **variables}

    def run(self, *command: str, **variables: str) -> str:
        """Run a Slurm command; returns its stdout."""
        result = subprocess.run(
            command, cwd=ROOT, env=self.environment(**variables), capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def sbatch(self, *words: str, **variables: str) -> str:
        """Submit; returns the job's id. Its log is `log(job)`."""
        return self.run("sbatch", "--parsable", f"--output={self.fsx}/%j.out", *words, **variables).strip()

    def log(self, job: str) -> str:
        path = self.fsx / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def field(self, job: str, name: str) -> str:
        """One field of `scontrol show job`, such as JobState or Restarts."""
        for word in self.run("scontrol", "show", "job", job).split():
            if word.startswith(f"{name}="):
                return word.split("=", 1)[1]
        raise KeyError(name)

    def wait(self, job: str, timeout: float = 400) -> str:
        """Wait for a job to end for good; returns its final state."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.field(job, "JobState") in ended, f"job {job} to end", timeout, job)
        return self.field(job, "JobState")

    def until(self, ready: Callable[[], bool], what: str, timeout: float = 400, job: str = "") -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout} s for {what}\n{self.log(job)}")
            time.sleep(0.1)

    def until_step(self, output: Path, step: int, job: str) -> None:
        """Wait until a run has logged `step`; fails if its job ends before."""

        def reached() -> bool:
            if self.field(job, "JobState") in ("COMPLETED", "FAILED"):
                raise AssertionError(f"job {job} ended before step {step}\n{self.log(job)}")
            return any(line["step"] >= step for line in read_metrics(output))

        self.until(reached, f"step {step}", job=job)

    # ---- faults --------------------------------------------------------------------------------

    def processes(self, **variables: str) -> list[psutil.Process]:
        """Processes of our jobs whose environment has these variables."""
        wanted = {"SLURM_CONF": str(self.conf), **variables}
        found = []
        for process in psutil.process_iter():
            try:
                if wanted.items() <= process.environ().items():
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def kill_rank(self, rank: int) -> None:
        """SIGKILL one training process."""
        training = self.processes(RANK=str(rank))
        assert training
        min(training, key=lambda process: process.create_time()).kill()

    def lose_node(self, node: str) -> None:
        """What a power cut leaves: no slurmd, no step daemon, no process of a job."""
        os.kill(int((self.folder / f"{node}.pid").read_text()), signal.SIGKILL)
        victims = self.processes(SLURMD_NODENAME=node)
        daemons = {
            parent for victim in victims for parent in victim.parents() if "slurmstepd" in parent.name()
        }
        for process in [*daemons, *victims]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def return_node(self, node: str) -> None:
        """Start the slurmd of a lost node again."""
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        self.run("slurmd", "-N", node, "-f", str(self.conf), PATH=path)
        self.until(lambda: "idle" in self.run("sinfo", "-hn", node, "-o", "%t"), f"{node} to be idle", 90)
