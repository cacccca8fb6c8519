"""cluster_setup/local_slurm.sh: a real Slurm, apart from any other, of which nothing stays behind."""

import getpass
import subprocess
from pathlib import Path

import psutil
import pytest
from helpers.commands import ROOT
from helpers.local_slurm import LocalSlurm

from esm2_hyperpod.cluster.sessions import parse_idle_times

WHERE = "srun --ntasks-per-node=1 bash -c 'echo $SLURM_NODEID $SLURMD_NODENAME $SLURM_RESTART_COUNT'"
# Script, step and their children ignore SIGTERM; one child has left session and environment as well.
STUBBORN = """#!/bin/bash
trap '' TERM INT HUP
sleep 600 &
srun bash -c "trap '' TERM INT HUP; setsid env -i sleep 600 & echo step; sleep 600; true" &
echo script
wait
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Three nodes for all tests that leave it running."""
    cluster = LocalSlurm(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()
    assert processes_of(cluster.folder) == []


def script(*words: str) -> subprocess.CompletedProcess:
    command = ["bash", "cluster_setup/local_slurm.sh", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def processes_of(folder: Path) -> list[psutil.Process]:
    """All that name the folder in command line or environment, and the children of them."""
    found = set()
    for process in psutil.process_iter():
        files = [Path(f"/proc/{process.pid}/{name}") for name in ("cmdline", "environ")]
        try:
            if any(str(folder).encode() in file.read_bytes() for file in files):
                found |= {process, *process.children(recursive=True)}
        except (OSError, psutil.NoSuchProcess):  # it has ended, or belongs to somebody else
            continue
    return [process for process in found if command_of(process)]


def command_of(process: psutil.Process) -> str:
    """Its command line; empty where it has ended, though its parent may not have noticed."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_jobs_run_on_all_nodes_and_a_requeued_one_keeps_its_id_and_its_log(slurm):
    daemons = [command_of(process).split(" ")[0] for process in processes_of(slurm.folder)]
    assert {name: daemons.count(name) for name in ("munged", "slurmctld", "slurmd")} == {
        "munged": 1, "slurmctld": 1, "slurmd": 3
    }  # fmt: skip
    wide = slurm.sbatch("--nodes=3", f"--wrap={WHERE}")
    again = f'{WHERE}; [ "$SLURM_RESTART_COUNT" ] || scontrol requeue $SLURM_JOB_ID'
    requeued = slurm.sbatch("--nodes=1", "--requeue", "--open-mode=append", f"--wrap={again}")
    assert (slurm.wait(wide), slurm.wait(requeued)) == ("COMPLETED", "COMPLETED")
    assert sorted(slurm.log(wide).splitlines()) == ["0 node1", "1 node2", "2 node3"]
    lines = slurm.log(requeued).splitlines()
    assert lines[0] == "0 node1" and lines[-1] == "0 node1 1"
    # What hyperpod.py status reads on the controller.
    idle = parse_idle_times(slurm.run("bash", "-c", "date +%Y-%m-%dT%H:%M:%S; scontrol show node --oneliner"))
    assert set(idle) == {"node1", "node2", "node3"} and all(
        0 <= t.total_seconds() < 600 for t in idle.values()
    )


def test_what_slurm_does_becomes_metrics(slurm, tmp_path):
    """A job whose name has all that the format must escape, one that waits, and a node given up."""
    job = slurm.sbatch("--nodes=1", "--job-name", 'a|b"c\\', "--wrap=sleep 600")
    waiting = slurm.sbatch("--nodes=3", "--wrap=true")
    slurm.until(lambda: slurm.field(job, "JobState") == "RUNNING", "the job to start", job=job)
    slurm.run("scontrol", "update", "nodename=node3", "state=fail", "reason=Action:Replace")
    try:
        slurm.run("python3", "cluster_setup/slurm_metrics.py", str(tmp_path / "slurm.prom"))
    finally:
        slurm.run("scontrol", "update", "nodename=node3", "state=resume")
        slurm.run("scancel", job, waiting)
    lines = (tmp_path / "slurm.prom").read_text().splitlines()
    user = getpass.getuser()
    for line in (
        "slurm_up 1",
        'slurm_nodes{partition="dev",state="allocated"} 1',
        'slurm_nodes{partition="dev",state="fail"} 1',
        'slurm_node_action{node="node3",action="Replace"} 1',
        'slurm_jobs{state="RUNNING",user=""} 0',
        f'slurm_jobs{{state="RUNNING",user="{user}"}} 1',
        f'slurm_jobs{{state="PENDING",user="{user}"}} 1',
        rf'slurm_job_nodes{{jobid="{job}",name="a|b\"c\\",user="{user}"}} 1',
    ):
        assert line in lines, lines
    slurm.until(lambda: slurm.run("sinfo", "-h", "-o", "%t").strip() == "idle", "all nodes idle")
    assert [path.name for path in tmp_path.iterdir()] == ["slurm.prom"]


def test_stop_leaves_nothing_not_even_what_ignores_it_and_touches_nothing_else(slurm, tmp_path):
    other = LocalSlurm(tmp_path, 2)
    # Who has exported SLURM_CONF, as `start` says, uses this Slurm and is no part of it.
    users_shell = subprocess.Popen(["sleep", "600"], env=other.environment())
    try:
        (tmp_path / "stubborn.sh").write_text(STUBBORN)
        polite = other.sbatch("--nodes=1", "--wrap=srun sleep 600")
        stubborn = other.sbatch("--nodes=1", str(tmp_path / "stubborn.sh"))
        other.until(lambda: other.field(polite, "JobState") == "RUNNING", "the job to start")
        other.until(lambda: {"script", "step"} <= set(other.log(stubborn).split()), "script and step")
        running = [process for process in processes_of(tmp_path) if process.pid != users_shell.pid]
        commands = [command_of(process) for process in running]
        assert sum(command.endswith("sleep 600") for command in commands) >= 3
        assert sum(command.startswith("slurmstepd") for command in commands) >= 3
        other.stop()
        assert [command_of(process) for process in running if command_of(process)] == []
        assert [process.pid for process in processes_of(tmp_path)] == [users_shell.pid]
        assert not other.folder.exists()
    finally:
        if other.conf.exists():
            other.stop()
        users_shell.kill()
        users_shell.wait()
    assert slurm.wait(slurm.sbatch("--nodes=1", "--wrap=srun true")) == "COMPLETED"


def test_status_and_second_start(slurm):
    folder = str(slurm.folder)
    status = script("status", "--dir", folder)
    assert "node1" in status.stdout and f"export SLURM_CONF={folder}/slurm.conf" in status.stdout
    again = script("start", "--dir", folder)
    assert again.returncode == 1 and "already started" in again.stderr
    assert "idle" in slurm.run("sinfo", "-h", "-o", "%t")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["start", "--nodes", "0"], "--nodes 0"),
        (["start", "--nodes"], "--nodes: a value is missing"),
        (["start", "--hosts", "3"], "unknown option --hosts"),
        (["begin"], "usage: local_slurm.sh"),
        (["status"], "no local Slurm runs there"),
        (["stop"], "no local Slurm there"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, message):
    result = script(words[0], "--dir", str(tmp_path / "none"), *words[1:])
    assert result.returncode == 1
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "slurm.conf").write_text("ClusterName=precious\n")
    for action in ("start", "stop"):
        assert script(action, "--dir", str(tmp_path)).returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["slurm.conf"]
