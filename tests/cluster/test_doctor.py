"""cluster_setup/doctor.py on healthy and unhealthy set-ups, on a real Slurm of virtual nodes."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT, run
from helpers.local_slurm import LocalSlurm


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> LocalSlurm:
    cluster = LocalSlurm(tmp_path_factory.mktemp("doctor"))
    yield cluster
    cluster.stop()


def doctor(
    slurm: LocalSlurm, shared: Path, *options: object, python: object = sys.executable, **variables: str
):
    """The exit code and the lines of a diagnosis."""
    command = [python, "cluster_setup/doctor.py", "--shared_dir", shared, *options]
    environment = slurm.environment(**variables)
    result = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stdout.splitlines()


def wrongs(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("WRONG")]


def test_healthy(slurm, tmp_path):
    code, lines = doctor(slurm, tmp_path)
    assert wrongs(lines) == [] and code == 0
    assert {"this machine", "node1", "node2"} <= {
        line[7:].split(":")[0] for line in lines if line.startswith("ok")
    }
    assert any("all-reduce over 2 node(s), 2 processes" in line and "GB/s" in line for line in lines)
    assert lines[-1] == "no problems found"
    assert list(tmp_path.iterdir()) == []


def test_shared_folder_is_missing_or_cannot_be_written(slurm, tmp_path):
    code, lines = doctor(slurm, tmp_path / "none", "--nodes=1")
    assert code == 1
    assert [
        line
        for line in wrongs(lines)
        if "no such folder" in line and ("this machine" in line or "node1" in line)
    ]
    code, lines = doctor(slurm, Path("/proc/self/fdinfo"), "--nodes=1")
    assert code == 1 and any("change its owner or permissions" in line for line in wrongs(lines))


def test_another_version_on_one_node(slurm, tmp_path):
    """The Python of the nodes is a script that finds another transformers on node2."""
    other = tmp_path / "other" / "transformers-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 0.0.1\n")
    # A virtual environment is found by the path of its Python, so this one gets its packages by PYTHONPATH.
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={packages}\n"
        f'[ "$SLURMD_NODENAME" != node2 ] || PYTHONPATH={other.parent}:{packages}\n'
        f'exec "{Path(sys.executable).resolve()}" "$@"\n'
    )
    python.chmod(0o755)
    # A script has no sys.executable of its own: say which one the nodes shall run.
    start = (
        f"import sys; sys.executable = {str(python)!r}; sys.path.insert(0, 'cluster_setup'); import doctor"
    )
    command = [sys.executable, "-c", f"{start}; sys.exit(doctor.main())", "--shared_dir", str(tmp_path)]
    result = subprocess.run(
        command, cwd=ROOT, env=slurm.environment(), capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 1, result.stderr
    found = [line for line in result.stdout.splitlines() if "node2: transformers 0.0.1, but " in line]
    assert len(found) == 1 and "node1: transformers" not in result.stdout


def test_environment_without_packages(slurm, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    code, lines = doctor(slurm, tmp_path, "--nodes=1", python=tmp_path / "venv" / "bin" / "python")
    assert code == 1
    assert any(
        "this machine: torch, transformers" in line and "not installed" in line for line in wrongs(lines)
    )


def test_lost_node_and_settings_that_bite(slurm, tmp_path):
    text = slurm.conf.read_text()
    changed = text.replace("JobRequeue=1", "JobRequeue=0").replace("KillWait=30", "KillWait=5")
    slurm.conf.write_text(f"{changed}\nPrologFlags=Alloc\n")
    slurm.run("scontrol", "reconfigure")
    slurm.run("scontrol", "update", "nodename=node3", "state=drain", "reason=fan failed")
    code, lines = doctor(slurm, tmp_path, "--nodes=1", HYPERPOD_DIR=str(tmp_path))
    slurm.conf.write_text(text)
    slurm.run("scontrol", "reconfigure")
    slurm.run("scontrol", "update", "nodename=node3", "state=resume")
    assert code == 1
    assert [line for line in wrongs(lines) if "JobRequeue=0" in line]
    assert any("KillWait=5" in line for line in lines)
    assert any("node3 is drained (fan failed)" in line for line in lines)
    # What HyperPod's auto-resume needs, and this Slurm lacks; its TaskPlugin is right.
    for lacking in ("PrologFlags=Alloc", "lacks permit_job_expansion", "knows no --auto-resume"):
        assert any(line.startswith("note") and lacking in line for line in lines), lacking
    assert not any("TaskPlugin" in line for line in lines)


def test_jobs_go_to_the_training_partition_where_there_is_one(slurm, tmp_path):
    """As on HyperPod: dev, the default, has every node, train only the workers. These lack their GPUs."""
    text = slurm.conf.read_text()
    slurm.conf.write_text(f"{text}PartitionName=train Nodes=node2,node3 State=UP OverSubscribe=EXCLUSIVE\n")
    slurm.run("scontrol", "reconfigure")
    try:
        (tmp_path / "type").write_text("g5.24xlarge\n")
        code, lines = doctor(slurm, tmp_path, "--nodes=1", INSTANCE_TYPE_FILE=str(tmp_path / "type"))
        has = "node2: has 0 GPU(s) and 0 EFA device(s), but is a g5.24xlarge, which has 4 and 1"
        assert code == 1 and any(has in line for line in wrongs(lines)), lines
        wrapper = "2.train_ddp.sh"
        job = slurm.sbatch("--nodes=1", "--nodelist=node1", wrapper, HYPERPOD_DIR=str(tmp_path), DRY_RUN="1")
        assert slurm.wait(job) == "FAILED"
        assert "not all of node1 are training nodes: submit it with sbatch --partition=train" in slurm.log(
            job
        )
        asked = {"SBATCH_PARTITION": "train", "SLURM_PARTITION": "train"}  # what a login sets
        job = slurm.sbatch("--nodes=1", "--wrap=srun hostname", **asked)
        assert slurm.wait(job) == "COMPLETED" and slurm.field(job, "Partition") == "train"
    finally:
        slurm.conf.write_text(text)
        slurm.run("scontrol", "reconfigure")


def test_a_container_that_slurm_refuses_or_ignores_is_wrong(slurm, tmp_path):
    """Stock Slurm knows no --container-image. A srun that drops the flags is a node without pyxis."""
    image = {"CONTAINER_IMAGE": "/fsx/esm2.sqsh"}
    code, lines = doctor(slurm, tmp_path, "--nodes=1", **image)
    (line,) = wrongs(lines)
    assert code == 1 and "a container starts on 0 of 1 nodes (srun: unrecognized option" in line
    fake = tmp_path / "bin" / "srun"
    fake.parent.mkdir()
    fake.write_text(
        '#!/bin/bash\nwords=()\nfor word in "$@"; do\n'
        '  case "$word" in --container-*) echo "$word" >>"$FLAGS" ;; *) words+=("$word") ;; esac\ndone\n'
        f'exec {shutil.which("srun")} "${{words[@]}}"\n'
    )
    fake.chmod(0o755)
    path, flags = f"{fake.parent}:{os.environ['PATH']}", tmp_path / "flags"
    code, lines = doctor(slurm, tmp_path, "--nodes=1", PATH=path, FLAGS=str(flags), **image)
    (line,) = wrongs(lines)
    assert code == 1 and "node1, container: --container-image is ignored, the step ran on the node" in line
    assert "--container-image=/fsx/esm2.sqsh" in flags.read_text().split()
    assert f"--container-mounts={ROOT}:{ROOT},{slurm.fsx}:{slurm.fsx}" in flags.read_text().split()

    image = {"CONTAINER_IMAGE": "/fsx/esm2.sif"}  # its words follow srun's
    apptainer = fake.with_name("apptainer")
    apptainer.write_text(
        '#!/bin/bash\necho "$@" >"$FLAGS"\nuntil [[ $1 == *.sif ]]; do shift; done\nexec "${@:2}"\n'
    )
    apptainer.chmod(0o755)
    code, lines = doctor(slurm, tmp_path, "--nodes=1", PATH=path, FLAGS=str(flags), **image)
    assert code == 1 and "node1, container: " in wrongs(lines)[0]  # the stub runs it on the node
    assert flags.read_text().startswith(f"exec --bind {ROOT}:{ROOT},{slurm.fsx}:{slurm.fsx}")


def test_a_container_with_fewer_gpus_than_its_node_is_wrong(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "cluster_setup"))
    doctor = importlib.import_module("doctor")
    packages = {"torch": "2"}
    node = {"node": "ip-1", "root": "1:2", "gpus": ["A10G"] * 4, "packages": packages, "python": "3.11"}
    for inside, level, text in (
        ({"root": "7:8", "gpus": []}, "WRONG", "0 of the node's 4 GPU(s): set NVIDIA_VISIBLE_DEVICES"),
        ({"root": "7:8", "packages": {"torch": None}}, "WRONG", "torch not installed"),
        ({"root": "7:8"}, "ok", "Python 3.11, 4 GPU(s)"),
    ):
        answer = subprocess.CompletedProcess([], 0, json.dumps(node | inside), "")
        monkeypatch.setattr(doctor, "command", lambda *_, answer=answer, **__: answer)
        (finding,) = doctor.check_container(["srun"], [node], Path("/fsx"))
        assert finding.level == level and text in finding.text
    nodes = [node | {"efa": 1}] * 2
    timing = '{"all_reduce": true, "processes": 8, "gb_per_second": 5.0}'
    for log, level in (("NET/OFI Selected provider is efa", "ok"), ("NET/Socket : Using ens5", "WRONG")):
        answer = subprocess.CompletedProcess([], 0, f"ip-1: {log}\n{timing}", "")
        monkeypatch.setattr(doctor, "command", lambda *_, answer=answer, **__: answer)
        (finding,) = doctor.check_all_reduce(["srun"], nodes)
        assert finding.level == level


def test_slurm_does_not_answer(slurm, tmp_path):
    code, lines = doctor(slurm, tmp_path, SLURM_CONF=str(tmp_path / "none.conf"))
    assert code == 1 and any("Slurm does not answer" in line for line in wrongs(lines))


def test_no_slurm(slurm, tmp_path):
    code, lines = doctor(slurm, tmp_path, PATH=str(tmp_path))
    assert code == 0 and any("only this machine" in line for line in lines)


def test_the_default_folder_is_that_of_the_user_also_where_no_variable_names_the_user():
    nameless = ["env", "-u", "USER", "-u", "LOGNAME", "-u", "LNAME", "-u", "USERNAME", "-u", "FSX_DIR"]
    text = run(*nameless, sys.executable, "cluster_setup/doctor.py", "--help", COLUMNS="200").stdout
    assert f"default: /fsx/{run('id', '-un').stdout.strip()}\n" in text
