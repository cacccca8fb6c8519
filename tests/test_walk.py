"""The pages' commands, run from the pages, in their order, in one shell, on a Slurm of this machine.

    SURVIVAL=all .venv/bin/python -m pytest tests/test_walk.py -s -n 0     also prints each command's seconds

tests/walk.sh makes sizes small. helpers/pages.py lists what is not walked; what is for AWS runs in
tests/cluster/test_moto.py.
"""

import os
import re
import selectors
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from helpers import pages
from helpers.commands import ROOT, on_demand

# A reader types these while a job runs. Before any other the queue is empty again.
MEANWHILE = re.compile(
    r"squeue|JOB=|tail -F|python -m esm2_hyperpod.runs.status|bash cluster_setup/fault_drill.sh"
)
STOP = "bash cluster_setup/local_slurm.sh stop"  # at the end of the front page; the other pages come after it


class Shell:
    """A bash that keeps its variables and its folder from one command to the next."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.output = folder, folder / "output"
        read, self.script = os.pipe()
        self.codes, write = os.pipe()
        self.bash = subprocess.Popen(
            ["bash", "--norc", f"/dev/fd/{read}"],
            cwd=folder / "esm2",
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[read, write],
        )
        os.close(read)
        self.write = write

    def run(self, command: str, timeout: float = 1200) -> str:
        """What it prints. Fails if it fails."""
        text = f"{{ {command}\n}} >{shlex.quote(str(self.output))} 2>&1\necho $? >&{self.write}\n"
        os.write(self.script, text.encode())
        with selectors.DefaultSelector() as ready:
            ready.register(self.codes, selectors.EVENT_READ)
            ended = ready.select(timeout)
        printed = self.output.read_text(errors="replace")
        assert ended, f"{command}: still running after {timeout} s\n{printed}"
        code = os.read(self.codes, 16).decode().strip()
        assert code == "0", f"{command}: exit {code}\n{printed}"
        return printed

    def close(self) -> None:
        """End it."""
        os.close(self.script)
        self.bash.wait(30)


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """In a copy of the repository, with the installed packages for its environment."""
    folder = tmp_path_factory.mktemp("walk")
    copy = folder / "esm2"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in filter(lambda name: (ROOT / name).is_file(), files):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", copy / ".venv"], check=True)
    (site_packages,) = copy.glob(".venv/lib/python*/site-packages")
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    (copy / ".venv" / ".installed").touch()
    kept = {
        name: value for name, value in os.environ.items() if not re.match("SLURM|PYTEST|VENV$|FSX_DIR$", name)
    }
    kept["PATH"] += ":/usr/sbin:/sbin"
    shell = Shell(folder, {**kept, "WALK": str(folder), "CUDA_VISIBLE_DEVICES": ""})
    shell.run(f". {copy}/tests/walk.sh")
    yield shell
    shell.run(STOP)
    shell.close()


@on_demand
@pytest.mark.parametrize(
    "page", pages.PAGES, ids=lambda page: page.name if page in pages.DOCS else page.parent.name
)
def test_every_command_of(page, shell):
    """The pages after the first use what the first has made."""
    names = {"/home/you": str(shell.folder), "laptop:": f"{os.uname().nodename}:"}
    for block in pages.blocks(page):
        printed = ""
        for command in block.commands:
            if (
                command in pages.NOT_WALKED
                or pages.AWS.match(command)
                or command.endswith("local_slurm.sh stop")
            ):
                continue  # the fixture stops it
            if not MEANWHILE.match(command):
                shell.run("wait_for_jobs")
            began = time.monotonic()
            cluster = block.door == "cluster" or page == pages.CLUSTER
            run = f"on_a_cluster {shlex.quote(command)}" if cluster else command
            printed += shell.run(run)
            print(f"{time.monotonic() - began:5.0f} s  {command}")
        assert pages.missing(block.expected, printed, names) == [], printed
    shell.run("wait_for_jobs")
