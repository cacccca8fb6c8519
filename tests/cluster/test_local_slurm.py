"""cluster_setup/local_slurm.sh: a real Slurm, apart from any other, of which nothing stays behind."""

import subprocess
from pathlib import Path

import psutil
import pytest
from helpers.commands import ROOT
from helpers.local_slurm import LocalSlurm

WHERE = "srun --ntasks-per-node=1 bash -c 'echo $SLURM_NODEID $SLURMD_NODENAME $SLURM_RESTART_COUNT'"


@pytest.fixture
def two_clusters(tmp_path):
    clusters = []
    for name, nodes in (("one", 3), ("two", 1)):
        (tmp_path / name).mkdir()
        clusters.append(LocalSlurm(tmp_path / name, nodes))
    yield clusters
    for cluster in clusters:
        if cluster.conf.exists():
            cluster.stop()


def script(*words: str) -> subprocess.CompletedProcess:
    command = ["bash", "cluster_setup/local_slurm.sh", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def daemons_of(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in " ".join(process.info["cmdline"] or ()):
            found.append(process.info["cmdline"][0])
    return sorted(Path(name).name for name in found)


def test_two_instances_run_jobs_and_leave_nothing(two_clusters):
    three, one = two_clusters
    assert daemons_of(three.folder) == ["munged", "slurmctld", *["slurmd"] * 3]

    wide = three.sbatch("--nodes=3", f"--wrap={WHERE}")
    other = one.sbatch("--nodes=1", f"--wrap={WHERE}")
    assert (three.wait(wide), one.wait(other)) == ("COMPLETED", "COMPLETED")
    assert sorted(three.log(wide).splitlines()) == ["0 node1", "1 node2", "2 node3"]
    assert one.log(other) == "0 node1\n"

    running = three.sbatch("--nodes=2", "--wrap=srun sleep 300")
    three.until(lambda: three.field(running, "JobState") == "RUNNING", "the job to start")
    three.stop()
    assert daemons_of(three.folder) == [] and not three.folder.exists()
    assert three.processes() == []
    assert "idle" in one.run("sinfo", "-h", "-o", "%t")  # the other one lives on


def test_requeued_job_keeps_its_id_and_its_log(two_clusters):
    cluster = two_clusters[0]
    again = f'{WHERE}; [ "$SLURM_RESTART_COUNT" ] || scontrol requeue $SLURM_JOB_ID'
    job = cluster.sbatch("--nodes=1", "--requeue", "--open-mode=append", f"--wrap={again}")
    assert cluster.wait(job) == "COMPLETED"
    assert cluster.log(job).splitlines()[0] == "0 node1" and cluster.log(job).splitlines()[-1] == "0 node1 1"


def test_status_and_second_start(two_clusters):
    folder = str(two_clusters[1].folder)
    status = script("status", "--dir", folder)
    assert "node1" in status.stdout and f"export SLURM_CONF={folder}/slurm.conf" in status.stdout
    again = script("start", "--dir", folder)
    assert again.returncode == 1 and "already started" in again.stderr
    assert "idle" in two_clusters[1].run("sinfo", "-h", "-o", "%t")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["start", "--nodes", "0"], "--nodes 0"),
        (["start", "--nodes"], "--nodes: a value is missing"),
        (["start", "--hosts", "3"], "unknown option --hosts"),
        (["begin"], "say what to do"),
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
