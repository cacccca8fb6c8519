"""Check this machine and the nodes for anything that would make a job fail.

    python cluster_setup/doctor.py                     this machine and, with Slurm, two nodes
    python cluster_setup/doctor.py --nodes 8 --shared_dir /fsx/$USER
    CONTAINER_IMAGE=/fsx/$USER/esm2-hyperpod.sqsh python3 cluster_setup/doctor.py

Each finding is one line, with a remedy if it is not ok. The exit code is 1 if anything is wrong.
"""

import argparse
import getpass
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from node_probe import facts, shell_fact

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from esm2_hyperpod.instances import GPUS  # noqa: E402

LITTLE_SPACE_GB = 100
"""UniRef50 takes about 60 GB as CSV and Arrow; the rest is for checkpoints."""

CLOCK_SECONDS = 5
"""If clocks differ by more, credentials fail and logs of several nodes cannot be compared."""


class Finding(NamedTuple):
    """One line of the diagnosis."""

    level: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<5}  {self.text}"


def ok(text: str) -> Finding:
    """As it should be."""
    return Finding("ok", text)


def note(text: str, remedy: str) -> Finding:
    """A job can run with this, but perhaps not as expected."""
    return Finding("note", f"{text}: {remedy}")


def wrong(text: str, remedy: str) -> Finding:
    """A job would fail, or not resume after a fault."""
    return Finding("WRONG", f"{text}: {remedy}")


def has_problems(findings: list[Finding]) -> bool:
    """Whether a job would fail."""
    return any(finding.level == "WRONG" for finding in findings)


def main() -> int:
    """Print all findings; return 1 if any is wrong."""
    default = os.environ.get("FSX_DIR", f"/fsx/{getpass.getuser()}")
    parser = argparse.ArgumentParser(description="Check for anything that would make a job fail.")
    parser.add_argument("--shared_dir", type=Path, default=Path(default), help=f"default: {default}")
    parser.add_argument("--nodes", type=int, default=2, help="nodes to check through srun (default: 2)")
    args = parser.parse_args()

    here = facts(args.shared_dir, "login")
    findings = check_node("this machine", here, args.shared_dir)
    if shutil.which("srun") is None:
        findings.append(ok("no Slurm here, so only this machine was checked"))
    else:
        slurm = check_slurm() or [ok("Slurm answers and requeues jobs; no node is out of service")]
        findings += slurm
        if not has_problems(slurm):
            findings += check_nodes(here, args.shared_dir, args.nodes)
    for path in args.shared_dir.glob(".doctor.*"):
        path.unlink(missing_ok=True)
    print(*findings, sep="\n")
    wrong_ones = has_problems(findings)
    print("fix what is WRONG, then run this again" if wrong_ones else "no problems found")
    return 1 if wrong_ones else 0


def check_node(name: str, node: dict, shared: Path) -> list[Finding]:
    """The findings about one node, from its facts (see node_probe.py)."""
    findings = []
    missing = [package for package, version in node["packages"].items() if version is None]
    if missing and "CONTAINER_IMAGE" not in os.environ:  # the packages are in the image then
        remedy = f"bash cluster_setup/create_environment.sh, or call its Python instead of {sys.executable}"
        findings.append(wrong(f"{name}: {', '.join(missing)} not installed", remedy))
    if node["free_gb"] is None:
        findings.append(wrong(f"{name}: {shared}: no such folder", "mount it, make it, or give --shared_dir"))
    elif node["write_error"]:
        findings.append(wrong(f"{name}: {shared}: {node['write_error']}", "change its owner or permissions"))
    elif node["free_gb"] < LITTLE_SPACE_GB:
        free = f"{name}: {shared}: {node['free_gb']:.0f} GB free"
        findings.append(note(free, f"UniRef50 and checkpoints need about {LITTLE_SPACE_GB} GB"))
    findings += check_devices(name, node)
    gpus = f"{len(node['gpus'])} x {node['gpus'][0]}" if node["gpus"] else "no GPU"
    return [*findings, ok(f"{name}: Python {node['python']}, {gpus}, {node['efa']} EFA")]


def check_devices(name: str, node: dict) -> list[Finding]:
    """Whether the node has the GPUs and EFA devices of its instance type, and the GPUs work."""
    if any("fails" in gpu for gpu in node["gpus"]):
        return [wrong(f"{name}: {node['gpus'][0]}", "reboot or replace the node")]
    if node["gpu_fault"]:
        return [wrong(f"{name}: GPUs are missing", node["gpu_fault"])]
    should = GPUS.get(f"ml.{node['instance_type']}")
    if should is None or (len(node["gpus"]) >= should.count and node["efa"] >= should.efa):
        return []
    has = f"{len(node['gpus'])} GPU(s) and {node['efa']} EFA device(s)"
    kind = f"{node['instance_type']}, which has {should.count} and {should.efa}"
    return [wrong(f"{name}: has {has}, but is a {kind}", "have the node replaced")]


def check_slurm() -> list[Finding]:
    """Settings of the cluster that make jobs fail or not resume, and nodes that are out of service."""
    result = command("scontrol", "show", "config", timeout=15)
    if result.returncode:
        remedy = "start slurmctld, or set SLURM_CONF to the right file"
        return [wrong(f"Slurm does not answer ({last_line(result.stderr)})", remedy)]
    pairs = (line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)
    settings = {name.strip(): value.strip() for name, value in pairs}
    findings = []
    if settings.get("JobRequeue") == "0":
        findings.append(wrong("JobRequeue=0, so a lost node ends the job", "set JobRequeue=1 in slurm.conf"))
    if settings.get("MpiDefault", "none") not in ("none", "(null)"):
        mpi = f"MpiDefault={settings['MpiDefault']} makes srun wait for MPI"
        findings.append(note(mpi, "if jobs hang at their start: export SLURM_MPI_TYPE=none"))
    if int(settings.get("KillWait", "30 sec").split()[0]) < 30:
        kill = f"KillWait={settings['KillWait']}, so a cancelled job may be killed before it has saved"
        findings.append(note(kill, "set KillWait=30 in slurm.conf"))
    findings += check_auto_resume(settings) if shell_fact("on_hyperpod && echo yes") else []
    out = command("sinfo", "--noheader", "--Node", "--states=down,drain,fail", "--format=%N is %T (%E)")
    remedy = "fix it, then: scontrol update nodename=NAME state=resume"
    return findings + [note(line, remedy) for line in sorted(set(out.stdout.splitlines()))]


def check_auto_resume(settings: dict[str, str]) -> list[Finding]:
    """What HyperPod's auto-resume needs; without it our wrappers requeue the job, which takes longer.

    TaskPlugin and SchedulerParameters: AWS's page on what HyperPod manages in Slurm's configuration files.
    PrologFlags: the plug-in's own `Config unsupported : PrologFlags=Alloc`, as quoted in pull request 584 of
    awslabs/awsome-distributed-ai; Contain, X11 and others imply Alloc (slurm.conf's manual page).
    """
    remedy = "auto-resume will not work; set it so in slurm.conf, then: sudo scontrol reconfigure"
    findings = []
    if settings.get("TaskPlugin") != "task/none":
        plugin = f"TaskPlugin={settings.get('TaskPlugin')}, not task/none"
        findings.append(note(plugin, remedy))
    if "permit_job_expansion" not in settings.get("SchedulerParameters", ""):
        findings.append(note("SchedulerParameters lacks permit_job_expansion", remedy))
    if settings.get("PrologFlags", "(null)") != "(null)":
        findings.append(note(f"PrologFlags={settings['PrologFlags']}, not empty", remedy))
    if "--auto-resume" not in command("srun", "--help").stdout:
        findings.append(note("srun --help knows no --auto-resume", "the wrappers will requeue instead"))
    return findings


def check_nodes(here: dict, shared: Path, count: int) -> list[Finding]:
    """What each node reports, whether it agrees with this machine, and how fast the nodes communicate."""
    allocation = [f"--nodes={count}", *"--ntasks-per-node=1 --exclusive --immediate=60 --time=10".split()]
    if partition := shell_fact("training_partition"):
        allocation.append(f"--partition={partition}")
    # The others must not wait for a node that fails.
    srun = ["srun", *allocation, "--kill-on-bad-exit=1", "--wait=30"]
    probe = [sys.executable, str(ROOT / "cluster_setup" / "node_probe.py"), str(shared)]
    before = time.time()
    result = command(*srun, *probe)
    after = time.time()
    nodes = json_lines(result)
    findings = []
    if len(nodes) < count:
        why = f"{len(nodes)} of {count} nodes answered ({last_line(result.stderr)})"
        findings.append(wrong(why, "see sinfo -N -l, or ask for fewer with --nodes"))
    for node in nodes:
        name = node["node"]
        findings += check_node(name, node, shared) + compare(node, here)
        if not node["write_error"] and not (shared / f".doctor.{name}").exists():
            remedy = "mount the same file system on both"
            findings.append(wrong(f"{name}: its {shared} is not the {shared} of this machine", remedy))
        if not before - CLOCK_SECONDS < node["time"] < after + CLOCK_SECONDS:
            late = node["time"] - (before if node["time"] < before else after)
            findings.append(note(f"{name}: its clock is {late:+.0f} s off", "start chrony there"))
    step = srun
    if "CONTAINER_IMAGE" in os.environ and not has_problems(findings):
        same_nodes = f"--nodelist={','.join(node['node'] for node in nodes)}"
        start, *how = steps_of_the_wrappers(count)
        step = [start, *allocation, same_nodes, *how]  # a .sif's own words come last
        findings += check_container(step, nodes, shared)
    return findings if has_problems(findings) else [*findings, *check_all_reduce(step, nodes)]


def steps_of_the_wrappers(count: int) -> list[str]:
    """The srun with which the wrappers start a job's step on `count` nodes."""
    script = 'source "$REPOSITORY/cluster_setup/job_environment.sh"; set_step; printf "%s\\n" "${step[@]}"'
    return command(
        "bash", "-c", script, REPOSITORY=str(ROOT), SLURM_JOB_NUM_NODES=str(count)
    ).stdout.splitlines()


def check_container(step: list[str], nodes: list[dict], shared: Path) -> list[Finding]:
    """Whether a step that asks for the container of CONTAINER_IMAGE is in it, with GPUs and packages."""
    outside = {node["node"]: node for node in nodes}
    result = command(*step, "python3", str(ROOT / "cluster_setup" / "node_probe.py"), str(shared))
    inside = json_lines(result)
    findings = []
    if len(inside) < len(nodes):
        why = f"a container starts on {len(inside)} of {len(nodes)} nodes ({last_line(result.stderr)})"
        remedy = "see whether `srun --help` has --container-image, and make the image again"
        if (image := os.environ["CONTAINER_IMAGE"]).endswith(".sif"):
            remedy = f"see what `apptainer exec {image} true` says there"
        findings.append(wrong(why, remedy))
    for node in inside:
        name, gpus = f"{node['node']}, container", len(outside[node["node"]]["gpus"])
        if node["root"] == outside[node["node"]]["root"]:
            remedy = "slurmd has not loaded pyxis: sudo systemctl restart slurmd on the node"
            findings.append(wrong(f"{name}: --container-image is ignored, the step ran on the node", remedy))
        elif len(node["gpus"]) < gpus:
            remedy = (
                "set NVIDIA_VISIBLE_DEVICES and NVIDIA_DRIVER_CAPABILITIES as in cluster_setup/Dockerfile"
            )
            findings.append(wrong(f"{name}: {len(node['gpus'])} of the node's {gpus} GPU(s)", remedy))
        elif missing := [package for package, version in node["packages"].items() if version is None]:
            findings.append(wrong(f"{name}: {', '.join(missing)} not installed", "make the image again"))
        else:
            findings.append(ok(f"{name}: Python {node['python']}, {len(node['gpus'])} GPU(s)"))
    return findings


def compare(node: dict, here: dict) -> list[Finding]:
    """Versions that differ between a node and this machine."""
    remedy = "use one environment, on the shared folder"
    ours, theirs = ({"Python": side["python"], **side["packages"]} for side in (here, node))
    return [
        wrong(f"{node['node']}: {name} {theirs[name]}, but {version} here", remedy)
        for name, version in ours.items()
        if version and theirs.get(name) and theirs[name] != version
    ]


def check_all_reduce(step: list[str], nodes: list[dict]) -> list[Finding]:
    """Time an all-reduce over the nodes, started the way a training job is, and see which network it took."""
    count = len(nodes)
    launch = str(ROOT / "cluster_setup" / "node_launch.sh")
    environment = {"REPOSITORY": str(ROOT), "VENV": sys.prefix, "NCCL_DEBUG": "INFO"}
    result = command(*step, "bash", launch, "torchrun", "cluster_setup/all_reduce.py", **environment)
    timing = next((line for line in json_lines(result) if "all_reduce" in line), None)
    if timing is None:
        failed = f"all-reduce over {count} node(s) failed ({last_line(result.stderr)})"
        return [wrong(failed, "open all ports between the nodes (security group)")]
    if not timing["all_reduce"]:
        return [wrong("all-reduce gave a wrong sum", "test the GPUs with dcgmi diag -r 3")]
    speed = f"{timing['gb_per_second']:.2f} GB/s bus bandwidth"
    text = f"all-reduce over {count} node(s), {timing['processes']} processes: {speed}"
    if count == 1 or not all(node["efa"] for node in nodes):
        return [ok(text)]
    # What the plug-in for EFA prints: AWS's page "Get started with EFA and NCCL for ML workloads".
    if "NET/OFI" not in result.stdout + result.stderr:
        remedy = "install NCCL's plug-in for EFA (aws-ofi-nccl) there, see cluster_setup/Dockerfile"
        return [wrong(f"{text}, over TCP although the nodes have EFA (no NET/OFI in NCCL's log)", remedy)]
    return [ok(f"{text}, over EFA")]


def command(*words: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess:
    """Run a command. The caller judges a failure; a timeout counts as one."""
    variables = {**os.environ, **environment}
    try:
        return subprocess.run(words, env=variables, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 124, "", f"not finished after {timeout} s")


def json_lines(result: subprocess.CompletedProcess) -> list[dict]:
    """The JSON objects among the lines of a command's stdout."""
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def last_line(text: str) -> str:
    """The last line that is not empty or srun's advice: there programs say why they failed."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    return lines[-1] if lines else "no message"


if __name__ == "__main__":
    sys.exit(main())
