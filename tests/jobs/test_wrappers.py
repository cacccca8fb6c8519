"""The three wrappers, on a stubbed HyperPod and for real on this machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
from helpers.commands import ROOT, on_demand
from helpers.stub_cluster import StubCluster, option

from esm2_hyperpod.jobs.launch import exit_code

WRAPPERS = ["2.train_ddp.sh", "3.train_fsdp.sh", "4.finetune_qlora.sh"]

INSTANCES = [  # type, GPUs, EFA devices
    ("g5.4xlarge", 1, 0),
    ("g5.8xlarge", 1, 1),
    ("g5.12xlarge", 4, 1),
    ("g5.48xlarge", 8, 1),
    ("g6.12xlarge", 4, 1),
    ("g6e.12xlarge", 4, 1),
    ("p4d.24xlarge", 8, 4),
    ("p5.48xlarge", 8, 32),
    ("p6-b200.48xlarge", 8, 8),
    ("c5.large", 0, 0),
]


@pytest.fixture
def cluster(tmp_path) -> StubCluster:
    return StubCluster(tmp_path)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_nodes_agree_on_head_port_and_ranks(cluster, wrapper):
    cluster.instance("g5.12xlarge", gpus=4, efa=1)
    cluster.nodes("ip-9", "ip-3", "ip-5")
    result = cluster.sbatch(wrapper)
    assert result.returncode == 0, result.stderr
    ddp = wrapper != "3.train_fsdp.sh"
    rank, count, head, port, local = (
        ("--node_rank", "--nnodes", "--master_addr", "--master_port", "--nproc_per_node")
        if ddp
        else (
            "--machine_rank",
            "--num_machines",
            "--main_process_ip",
            "--main_process_port",
            "--num_processes",
        )
    )
    started = [cluster.arguments(node) for node in ("ip-9", "ip-3", "ip-5")]
    assert [option(words, rank) for words in started] == ["0", "1", "2"]
    assert {option(words, count) for words in started} == {"3"}
    assert {option(words, local) for words in started} == {"4" if ddp else "12"}
    assert {option(words, head) for words in started} == {"10.1.0.9"}  # not the stale ip-1
    ports = {option(words, port) for words in started}
    assert len(ports) == 1 and 1024 < int(ports.pop()) < 32768  # below the ephemeral ports


@pytest.mark.parametrize(("kind", "gpus", "efa"), INSTANCES)
def test_network_variables_of_each_instance_type(cluster, kind, gpus, efa):
    cluster.instance(kind, gpus, efa)
    assert cluster.sbatch("2.train_ddp.sh").returncode == 0
    for node in ("ip-7", "ip-4"):
        found = {
            name: value
            for name, value in cluster.variables(node).items()
            if name.startswith(("FI_", "NCCL_", "GLOO_")) or name == "OMP_NUM_THREADS"
        }
        expected = {"NCCL_SOCKET_IFNAME": "^docker,lo,veth", "GLOO_SOCKET_IFNAME": "ens5"}
        if efa:
            expected |= {"FI_PROVIDER": "efa", "FI_EFA_USE_HUGE_PAGE": "0"}
            if kind.startswith("g"):
                expected["NCCL_SHM_USE_CUDA_MEMCPY"] = "1"
        if not gpus:
            expected["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))
        assert found == expected
        assert option(cluster.arguments(node), "--nproc_per_node") == str(max(gpus, 1))


def test_cpu_processes_share_the_cores(cluster):
    assert cluster.sbatch("2.train_ddp.sh", GPUS_PER_NODE="4", SLURM_CPUS_ON_NODE="16").returncode == 0
    assert cluster.variables("ip-7")["OMP_NUM_THREADS"] == "4"
    assert option(cluster.arguments("ip-7"), "--nproc_per_node") == "4"


def test_auto_resume_exactly_where_it_exists(cluster):
    cluster.sbatch("2.train_ddp.sh")
    assert "--auto-resume=1" in cluster.lines("srun_options")
    (cluster.stub / "srun_options").unlink()
    cluster.sbatch("2.train_ddp.sh", HYPERPOD_DIR="/does/not/exist")
    cluster.write("srun_help", "  --no-shell\n")
    cluster.sbatch("2.train_ddp.sh")
    assert cluster.lines("srun_options") and "--auto-resume=1" not in cluster.lines("srun_options")


def test_container_gets_the_folders_it_needs(cluster, tmp_path):
    cluster.sbatch("2.train_ddp.sh", CONTAINER_IMAGE="/fsx/esm2.sqsh", NVME_DIR="/does/not/exist")
    assert "--container-image=/fsx/esm2.sqsh" in cluster.lines("srun_options")
    mounts = f"{cluster.repository}:{cluster.repository},{cluster.output.parent}:{cluster.output.parent}"
    assert f"--container-mounts={mounts}" in cluster.lines("srun_options")
    cluster.sbatch("2.train_ddp.sh", CONTAINER_IMAGE="/fsx/esm2.sqsh", NVME_DIR=str(tmp_path))
    assert f"--container-mounts={mounts},{tmp_path}:{tmp_path}" in cluster.lines("srun_options")


APPTAINER = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$STUB/apptainer_words"
until [[ $1 == *.sif ]]; do shift; done
shift
"$@"
"""


@pytest.mark.parametrize(
    ("program", "gpus", "flag"),
    [("apptainer", "nvidia", ["--nv"]), ("singularity", "amd", ["--rocm"]), ("apptainer", "none", [])],
)
def test_apptainer_starts_a_sif_with_the_same_folders(cluster, tmp_path, program, gpus, flag):
    """A stub that notes its words; Apptainer itself was not run."""
    image, path = tmp_path / "esm2.sif", f"{cluster.stub}/venv:{cluster.stub}/bin:/usr/bin:/bin"
    image.touch()
    cluster.executable(f"bin/{program}", APPTAINER)
    cluster.executable("venv/python3", (cluster.stub / "venv/bin/python").read_text())
    if gpus == "nvidia":
        cluster.instance("p4d.24xlarge", 8, 4)
    else:
        cluster.amd(8 if gpus == "amd" else 0)
    if program == "singularity" and shutil.which("apptainer", path="/usr/bin:/bin"):
        pytest.skip("Apptainer is installed here, and comes first")
    given = {"CONTAINER_IMAGE": str(image), "CONTAINER_MOUNTS": "/scratch:/scratch", "PATH": path,
             "NVME_DIR": "/does/not/exist", "TORCH_GPUS": "8" if gpus == "amd" else "0",
             "SLURM_STEP_NODELIST": "ip-[7,4]"}  # fmt: skip
    result = cluster.sbatch("2.train_ddp.sh", "--run_name", "a b", **given)
    assert result.returncode == 0, result.stderr
    repository, fsx = cluster.repository, cluster.output.parent
    mounts = f"{repository}:{repository},{fsx}:{fsx},/scratch:/scratch"
    words = cluster.lines("apptainer_words")
    assert words[: words.index(str(image))] == ["exec", "--bind", mounts, "--pwd", str(repository), *flag]
    assert not any("container" in word for word in cluster.lines("srun_options"))
    for node in ("ip-7", "ip-4"):
        assert cluster.arguments(node)[-2:] == ["--run_name", "a b"]
        assert option(cluster.arguments(node), "--nproc_per_node") == ("1" if gpus == "none" else "8")
        assert option(cluster.arguments(node), "--master_addr") == "ip-7"
        assert cluster.variables(node)["PYTHONNOUSERSITE"] == "1"


@pytest.mark.parametrize(
    ("image", "slurm", "why"),
    [
        ("gone.sif", True, "no such file; make it with: apptainer build"),
        ("there.sif", True, "neither apptainer nor singularity is on the PATH"),
        ("there.sqsh", False, "srun starts it, in a job of sbatch; without Slurm use a .sif"),
    ],
)
def test_a_container_that_cannot_start_is_said_before_the_step(cluster, tmp_path, image, slurm, why):
    image, path = tmp_path / image, f"{cluster.stub}/bin:/usr/bin:/bin"
    if "there" in image.name:
        image.touch()
        if any(shutil.which(name, path=path) for name in ("apptainer", "singularity")):
            pytest.skip("Apptainer is installed here")
    else:
        cluster.executable("bin/apptainer", APPTAINER)
    given = {"CONTAINER_IMAGE": str(image), "PATH": path}
    if slurm:
        result = cluster.sbatch("2.train_ddp.sh", **given)
    else:
        result = subprocess.run(["bash", "2.train_ddp.sh", "--run_name", "x"], cwd=cluster.repository,
                                env=cluster.environment(**given), capture_output=True, text=True)  # fmt: skip
    (line,) = result.stderr.splitlines()
    assert result.returncode == 1 and f"error: CONTAINER_IMAGE={image}: {why}" in line
    assert not cluster.lines("steps")


def test_apptainer_needs_no_slurm(cluster, tmp_path):
    (tmp_path / "esm2.sif").touch()
    cluster.executable("bin/apptainer", APPTAINER)
    cluster.executable("bin/python3", (cluster.stub / "venv/bin/python").read_text())
    given = {"CONTAINER_IMAGE": f"{tmp_path}/esm2.sif", "PATH": f"{cluster.stub}/bin:/usr/bin:/bin"}
    subprocess.run(["bash", "2.train_ddp.sh", "--run_name", "x"], cwd=cluster.repository, check=True,
                   env=cluster.environment(**given), capture_output=True)  # fmt: skip
    assert cluster.lines("apptainer_words")[0] == "exec"
    assert cluster.arguments("here")[-2:] == ["--run_name", "x"]


@pytest.mark.parametrize(
    ("listed", "torch", "variables", "processes"),
    [
        (8, 8, {}, 8),  # the eight halves of four MI250X
        (8, 2, {"ROCR_VISIBLE_DEVICES": "0,1"}, 2),  # what Slurm has given the job
        (8, 0, {"CUDA_VISIBLE_DEVICES": ""}, 1),  # the CPU is asked for
        (8, 0, {}, None),  # PyTorch is not ROCm's
        (1, 0, {"gres": "(null)"}, 1),  # a laptop's processor with graphics
    ],
)
def test_amd_gpus_are_counted_as_pytorch_does(cluster, listed, torch, variables, processes):
    """With a stub for PyTorch and AMD's driver; no AMD GPU was there."""
    cluster.amd(listed)
    cluster.write("gres", variables.pop("gres", "gpu:mi250:8"))
    result = cluster.sbatch("2.train_ddp.sh", TORCH_GPUS=str(torch), **variables)
    if processes:
        assert option(cluster.arguments("ip-7"), "--nproc_per_node") == str(processes), result.stderr
        assert ("OMP_NUM_THREADS" in cluster.variables("ip-7")) == (torch == 0)
    else:
        (line, _) = result.stderr.splitlines()
        assert "should have 8 GPU(s), but PyTorch sees 0: use a VENV or CONTAINER_IMAGE with PyTorch" in line


@pytest.mark.parametrize(
    ("nodes", "head"),
    [
        ("ip-7,ip-4", "ip-7"),
        ("ip-10-0-[12-13,20]", "ip-10-0-12"),
        ("gpu[003,001]-a,other", "gpu003-a"),
    ],
)
def test_container_finds_the_head_without_scontrol(cluster, nodes, head):
    cluster.executable("venv/python3", (cluster.stub / "venv/bin/python").read_text())
    path = f"{cluster.stub}/venv:{cluster.environment()['PATH']}"
    cluster.sbatch("2.train_ddp.sh", CONTAINER_IMAGE="/fsx/esm2.sqsh", SLURM_STEP_NODELIST=nodes, PATH=path)
    assert [option(cluster.arguments(node), "--node_rank") for node in ("ip-7", "ip-4")] == ["0", "1"]
    assert {option(cluster.arguments(node), "--master_addr") for node in ("ip-7", "ip-4")} == {head}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_arguments_arrive_unchanged_and_last(cluster, wrapper):
    odd = ["--run_name", "a  b 'c' \"d\" $HOME *", "--output_dir", f"{cluster.output} 2", ""]
    assert cluster.sbatch(wrapper, *odd).returncode == 0
    for node in ("ip-7", "ip-4"):
        assert cluster.arguments(node)[-len(odd) :] == odd


def test_each_wrapper_has_an_output_folder_of_its_own(cluster):
    folders = set()
    for wrapper in WRAPPERS:
        cluster.sbatch(wrapper)
        folders.add(option(cluster.arguments("ip-7"), "--output_dir"))
    assert folders == {str(cluster.output.parent / "runs" / name) for name in ("ddp", "fsdp", "localization")}


def test_each_task_of_step_4_has_an_output_folder_of_its_own(cluster):
    cluster.sbatch("4.finetune_qlora.sh", TASK="residue")
    arguments = cluster.arguments("ip-7")
    assert option(arguments, "--task") == "residue"
    assert option(arguments, "--output_dir") == str(cluster.output.parent / "runs" / "residue")


@pytest.mark.parametrize(
    ("step_codes", "steps", "requeued", "final"),
    [
        ([75], 1, True, 75),  # to be continued
        ([1], 1, False, 1),  # an error would only happen again
        ([137, 0], 2, False, 0),  # a process was killed
        ([137, 137, 137], 3, False, 137),  # ... and again and again
        ([137, 75], 2, True, 75),
    ],
)
def test_what_follows_the_end_of_a_step(cluster, step_codes, steps, requeued, final):
    cluster.write("exit_codes", "".join(f"{code}\n" for code in step_codes))
    assert cluster.sbatch("2.train_ddp.sh").returncode == final
    assert len(cluster.lines("steps")) == steps
    assert cluster.lines("requeued") == (["4242"] if requeued else [])


def test_a_run_that_advances_is_started_again_without_end(cluster):
    cluster.write("exit_codes", "137\n" * 5 + "0\n")
    cluster.executable("during_step", f'#!/usr/bin/env bash\nmkdir -p "{cluster.output}/checkpoint-$1"\n')
    assert cluster.sbatch("2.train_ddp.sh", f"--output_dir={cluster.output}").returncode == 0
    assert len(cluster.lines("steps")) == 6


def test_an_error_with_a_lost_node_is_requeued(cluster):
    cluster.write("exit_codes", "1\n")
    cluster.write("lost_node", "1\n")
    assert cluster.sbatch("2.train_ddp.sh").returncode == 1
    assert cluster.lines("requeued") == ["4242"] and len(cluster.lines("steps")) == 1


@pytest.mark.parametrize(
    ("verdict", "code", "steps", "requeued"),
    [
        ("ip-4 FAIL Action:Replace", 1, 1, True),  # a broken GPU: the node answers, the script's error is its
        ("ip-4 FAIL Action:Reboot", 1, 1, True),
        ("ip-4 FAIL Action:Replace", 137, 1, True),  # not a second time on the same node
        ("ip-4 MIXED+DRAIN fan failed", 1, 1, True),
        ("ip-4 DOWN* Not responding", 134, 1, True),
        ("ip-4 MIXED Action:Replace", 1, 1, True),
        ("ip-9 FAIL Action:Replace", 1, 1, False),  # somebody else's node
        ("ip-4 IDLE remember the milk", 1, 1, False),
        ("ip-4 IDLE remember the milk", 137, 2, False),
    ],
)
def test_a_failure_waits_for_the_verdict_on_its_nodes(cluster, verdict, code, steps, requeued):
    cluster.write("verdicts", f"{verdict}\n")
    cluster.write("exit_codes", f"{code}\n0\n")
    result = cluster.sbatch("2.train_ddp.sh")
    assert len(cluster.lines("steps")) == steps
    assert cluster.lines("requeued") == (["4242"] if requeued else [])
    assert ("node ip-4 is " in result.stdout) == requeued


def test_a_node_condemned_while_it_runs_ends_the_run_with_a_checkpoint(cluster):
    """What AWS waits for before it replaces the node."""
    wait = f'until [ -e "{cluster.output}/stop" ]; do sleep 0.1; done\n'
    condemn = 'echo "ip-4 FAIL Action:Replace" >"$STUB/verdicts"\n'
    cluster.executable("during_step", f"#!/usr/bin/env bash\n{condemn}{wait}")
    cluster.write("exit_codes", "75\n")
    result = cluster.sbatch("2.train_ddp.sh", "--output_dir", str(cluster.output), WATCH_SECONDS="0.2")
    assert "node ip-4 is FAIL (Action:Replace): asking the run to save and stop" in result.stdout
    assert result.returncode == 75 and cluster.lines("requeued") == ["4242"]
    assert not (cluster.output / "stop").exists()


SINFO = """#!/usr/bin/env bash
case "$*" in
  *--partition=train*--nodes=packed*) grep -Fxf "$STUB/nodes" "$STUB/train" ;;
  *--partition=train*) if [ -e "$STUB/train" ]; then echo train; fi ;;
esac
"""


@pytest.mark.parametrize(
    ("partition", "workers", "refused"),
    [("dev", "ip-4", True), ("dev", "ip-4\nip-7", False), ("train", "ip-4", False), ("dev", None, False)],
)
def test_a_job_that_landed_on_a_login_node_says_how_to_submit_it(cluster, partition, workers, refused):
    cluster.executable("bin/sinfo", SINFO)
    if workers:
        cluster.write("train", f"{workers}\n")
    result = cluster.sbatch("2.train_ddp.sh", SLURM_JOB_PARTITION=partition)
    assert (result.returncode == 1) == refused and bool(cluster.lines("steps")) != refused
    assert ("not all of packed are training nodes: submit it with sbatch --partition=train" in result.stderr
            ) == refused  # fmt: skip


def test_a_large_checkpoint_has_time_before_the_limit():
    """15B's 181 GB take ten minutes at the default file system's 293 MB/s."""
    seconds = {name: int(re.search(r"USR1@(\d+)", (ROOT / name).read_text())[1]) for name in WRAPPERS}
    assert seconds == {"2.train_ddp.sh": 120, "3.train_fsdp.sh": 900, "4.finetune_qlora.sh": 120}


def test_an_error_is_final_even_if_checkpoints_appear(cluster):
    """As they do when another job, which holds the output folder, goes on writing them."""
    cluster.write("exit_codes", "1\n0\n")
    cluster.executable("during_step", f'#!/usr/bin/env bash\nmkdir -p "{cluster.output}/checkpoint-$1"\n')
    assert cluster.sbatch("2.train_ddp.sh", f"--output_dir={cluster.output}").returncode == 1
    assert len(cluster.lines("steps")) == 1


def signal_to_batch_shell(name: str) -> str:
    """Shell lines with which a step signals the shell that started srun."""
    return f"#!/usr/bin/env bash\nkill -{name} $(ps -o ppid= $PPID)\n"


def test_near_the_time_limit_the_run_is_asked_to_stop_and_requeued(cluster):
    wait = f'until [ -e "{cluster.output}/stop" ]; do sleep 0.1; done\n'
    cluster.executable("during_step", signal_to_batch_shell("USR1") + wait)
    cluster.write("exit_codes", "75\n")
    result = cluster.sbatch("2.train_ddp.sh", "--output_dir", str(cluster.output))
    assert result.returncode == 75, result.stderr
    assert cluster.lines("requeued") == ["4242"]
    assert not (cluster.output / "stop").exists()


def test_a_cancelled_job_is_not_requeued(cluster):
    cluster.executable("during_step", signal_to_batch_shell("TERM"))
    cluster.write("exit_codes", "75\n")
    assert cluster.sbatch("2.train_ddp.sh").returncode == 75
    assert cluster.lines("requeued") == []


BROKEN = "#!/usr/bin/env bash\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n"
ONE_LOST = '#!/usr/bin/env bash\nfor i in 0 1 2; do echo "GPU $i: NVIDIA (UUID: GPU-$i)"; done\n'


@pytest.mark.parametrize(
    ("nvidia_smi", "where", "expected", "working"),
    [
        (BROKEN, "bus", 4, 0),
        (BROKEN, "type", 1, 0),  # fallen off the bus, all of them
        (BROKEN, "Slurm", 4, 0),
        (BROKEN, "a workstation's bus", 1, 0),
        (ONE_LOST, "bus", 4, 3),
        (ONE_LOST, "Slurm", 4, 3),
        (ONE_LOST, "a workstation's bus", 1, 3),  # a container may see more devices than it was given
    ],
)
def test_a_node_without_its_gpus_refuses_instead_of_training_on_its_cpu(
    cluster, nvidia_smi, where, expected, working
):
    cluster.instance("g5.12xlarge", gpus=4, efa=1)
    cluster.executable("bin/nvidia-smi", nvidia_smi)
    if "bus" not in where:
        shutil.rmtree(cluster.stub / "pci")
    if where in ("Slurm", "a workstation's bus"):
        cluster.write("instance_type", "X11DPi-N\n")
    if where == "Slurm":
        cluster.write("gres", "gpu:a10g:4(S:0-1),nvme:1\n")
    cluster.write("exit_codes", "1\n")
    result = cluster.sbatch("2.train_ddp.sh")
    refusals = [line for line in result.stderr.splitlines() if "error:" in line]
    if working >= expected:
        assert not refusals and option(cluster.arguments("ip-7"), "--nproc_per_node") == str(working)
        return
    assert len(refusals) == 2 and not cluster.lines("arguments.ip-7")
    assert f"should have {expected} GPU(s), but nvidia-smi --list-gpus shows {working}" in refusals[0]
    assert "scontrol update node=ip-7 state=fail reason=Action:Replace" in refusals[0]


def test_a_node_with_gpus_may_be_asked_for_its_cpu_but_not_by_accident(cluster):
    cluster.instance("g5.12xlarge", gpus=4, efa=1)
    assert cluster.sbatch("2.train_ddp.sh", CUDA_VISIBLE_DEVICES="NoDevFiles").returncode == 0
    assert not cluster.lines("arguments.ip-7")  # the stub of srun ends with 0, node_launch.sh has refused
    cluster.executable("bin/nvidia-smi", BROKEN)
    assert cluster.sbatch("2.train_ddp.sh", CUDA_VISIBLE_DEVICES="").returncode == 0
    assert option(cluster.arguments("ip-7"), "--nproc_per_node") == "1"


def test_the_image_gets_gpus_and_pinned_versions():
    """Enroot gives a container the GPUs only if the image's environment asks for them."""
    image = (ROOT / "cluster_setup" / "Dockerfile").read_text()
    assert re.search(r"^ENV .*\bNVIDIA_VISIBLE_DEVICES=all\b", image, re.M)
    assert re.search(r"^ENV .*\bNVIDIA_DRIVER_CAPABILITIES=compute,utility\b", image, re.M)
    assert re.search(r"^ARG EFA_INSTALLER=\d+\.\d+\.\d+$", image, re.M) and "installer-latest" not in image


# ---- for real, two processes on this machine -------------------------------------------------------

TRAIN = """
import json, os, signal, sys, time
import torch.distributed as dist
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
dist.init_process_group("gloo")
fsdp = os.environ.get("ACCELERATE_USE_FSDP")
seen = {"rank": dist.get_rank(), "size": dist.get_world_size(), "fsdp": fsdp, "args": sys.argv[1:]}
os.write(1, (json.dumps(seen) + "\\n").encode())  # one call: two ranks' lines never mix
if os.environ["THEN"] == "wait":
    while not asked:
        time.sleep(0.05)
dist.barrier()
dist.destroy_process_group()
if os.environ["THEN"] == "die" and os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(75 if asked else 0)
"""


def start(cluster, wrapper, then, *arguments):
    for name in ("train.py", "finetune_localization.py"):
        (cluster.repository / name).write_text(TRAIN)
    for name in ("esm2_hyperpod", "accelerate_fsdp.yaml"):
        if not (cluster.repository / name).exists():
            (cluster.repository / name).symlink_to(ROOT / name)
    return subprocess.Popen(
        ["bash", wrapper, *arguments],
        cwd=cluster.repository,
        env=cluster.environment(VENV=sys.prefix, GPUS_PER_NODE="2", CUDA_VISIBLE_DEVICES="", THEN=then),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "wrapper", [pytest.param(name, marks=[on_demand] if name.startswith("2") else []) for name in WRAPPERS]
)
def test_bash_starts_two_processes_which_sigterm_reaches_and_their_exit_code_comes_back(cluster, wrapper):
    process = start(cluster, wrapper, "wait", "--run_name", "a b")
    assert process.stdout.readline().startswith("node 0 of 1")
    lines = sorted((json.loads(process.stdout.readline()) for _ in range(2)), key=lambda line: line["rank"])
    assert [(line["rank"], line["size"]) for line in lines] == [(0, 2), (1, 2)]
    assert all(line["args"][-2:] == ["--run_name", "a b"] for line in lines)
    assert {line["fsdp"] for line in lines} == ({"true"} if "fsdp" in wrapper else {None})
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err


def test_a_killed_worker_is_named_and_told_by_the_exit_code(cluster):
    process = start(cluster, "2.train_ddp.sh", "die", "--run_name", "x")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGKILL
    assert "rank 1" in err and "was killed by SIGKILL" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("workers", "code"),
    [
        ([75, 75], 75),
        ([75, -15], 75),
        ([75, -9], 75),
        ([1, 75], 1),
        ([-9, 1], 137),
        ([-15, 2], 2),
        ([-15], 143),
        ([-6, -15], 134),
    ],
)
def test_exit_code_of_a_group(workers, code):
    assert exit_code(workers) == code
