"""On a real Slurm: a dry run, and faults while it trains. The run resumes and ends with the losses of an
undisturbed one.

The dry run and the loss of a node are always tested. All cases, on three virtual nodes, with a table of what
was lost (columns: fault, time until a step beyond it, steps done twice, starts, final loss):

    SURVIVAL=all .venv/bin/python -m pytest tests/jobs/test_survival.py -s -n 0
"""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from helpers.commands import on_demand, run, run_ranks
from helpers.local_slurm import LocalSlurm
from helpers.pretraining import CPU, fsdp_environment

from esm2_hyperpod.runs.checkpoints import list_checkpoints
from esm2_hyperpod.runs.record import read_metrics, read_run
from esm2_hyperpod.runs.report import summarize

WRAPPERS = {"ddp": "2.train_ddp.sh", "fsdp": "3.train_fsdp.sh"}
STEPS, SAVE_STEPS = 12, 4
TINY = (
    f"--model_size tiny --max_seq_length 128 --tokens_per_device 512 --global_batch_tokens 2048 "
    f"--max_steps {STEPS} --save_steps {SAVE_STEPS} --logging_steps 1 --eval_strategy no --report_to none"
).split()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> LocalSlurm:
    folder = tmp_path_factory.mktemp("survival")
    cluster = LocalSlurm(folder)
    csv, arrow = cluster.fsx / "csv", cluster.fsx / "processed" / "arrow"
    synthetic = "--source synthetic --max_records 300 --num_partitions 2".split()
    run("0.download_data.py", *synthetic, "--output_dir", csv)
    run("1.tokenize_uniref_csv.py", "--input_dir", csv, "--output_dir", arrow)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def undisturbed(slurm):
    """The logged losses of a run that nothing happens to, for each trainer, made when first asked for.

    Its two ranks are on no node: where they are changes no digit.
    """
    done = {}

    def losses(trainer: str) -> list:
        if trainer not in done:
            output = slurm.fsx / f"{trainer}-undisturbed"
            folders = "--dataset_dir", slurm.fsx / "processed" / "arrow", "--output_dir", output
            environment = fsdp_environment() if trainer == "fsdp" else {}
            run_ranks("train.py", *folders, *TINY, **CPU, **environment)
            done[trainer] = logged_losses(output)
            assert [step for step, *_ in done[trainer]] == [*range(1, STEPS + 1), STEPS]
        return done[trainer]

    return losses


def submit(slurm: LocalSlurm, trainer: str, output: Path, *options: str) -> str:
    return slurm.sbatch(*options, WRAPPERS[trainer], *TINY, "--output_dir", str(output))


def logged_losses(output: Path) -> list[tuple]:
    return [(line["step"], line.get("loss"), line.get("eval_loss")) for line in read_metrics(output)]


def lost(output: Path, fault: str, since: float | None = None) -> None:
    """One row of the table: seconds from the fault to the next new step, steps done twice, final loss."""
    figures = summarize(output)
    failures, loss = figures["failures"], figures["loss"]["last"]
    waited = "" if since is None else f"{since:.0f} s"
    print(f"\n| {fault} | {waited} | {failures['steps_done_twice']} | {failures['starts']} | {loss!r} |")


def goes_on(
    slurm: LocalSlurm, output: Path, job: str, fault: str, happened: float, last: int = STEPS
) -> float:
    """Wait until a run has got further than before the fault; returns the seconds that took."""
    reached = max(line["step"] for line in read_metrics(output))
    sessions = len(read_run(output)["sessions"])
    slurm.until(lambda: len(read_run(output)["sessions"]) > sessions, f"{fault}: a new start", job=job)
    slurm.until_step(output, min(reached + 1, last), job)
    return time.monotonic() - happened


def test_dry_run(slurm):
    output = slurm.fsx / "dry-run"
    flags = ["--output_dir", str(output), "--global_batch_tokens", "98304"]
    job = slurm.sbatch("2.train_ddp.sh", *flags, DRY_RUN="1", GPUS_PER_NODE="3")
    assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    log = slurm.log(job)
    assert "--nnodes 2 --node_rank 0 --nproc_per_node 3" in log
    assert "--nnodes 2 --node_rank 1 --nproc_per_node 3" in log
    assert "98,304 tokens = 6 process(es) x 16,384 x 1 accumulated" in log
    assert not output.exists()


@on_demand
@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_killed_process(slurm, undisturbed, trainer):
    output = slurm.fsx / f"{trainer}-killed-process"
    job = submit(slurm, trainer, output)
    slurm.until_step(output, 6, job)
    slurm.kill_rank(1)
    happened = time.monotonic()
    since = goes_on(slurm, output, job, "killed process", happened)
    assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    assert slurm.field(job, "Restarts") == "0"  # in the same allocation: seconds, not minutes
    assert logged_losses(output) == undisturbed(trainer)
    lost(output, f"{trainer}: process killed", since)


NODES = [
    ("ddp", "node2"),
    pytest.param("ddp", "node1", marks=on_demand),  # the head: rendezvous and batch shell are gone
    pytest.param("fsdp", "node2", marks=on_demand),
]


@pytest.mark.parametrize(("trainer", "node"), NODES)
def test_lost_node(slurm, undisturbed, trainer, node):
    output = slurm.fsx / f"{trainer}-lost-{node}"
    job = submit(slurm, trainer, output)
    slurm.until_step(output, 6, job)
    nodes = slurm.run("scontrol", "show", "hostnames", slurm.field(job, "NodeList")).split()
    assert nodes == ["node1", "node2"]
    slurm.lose_node(node)
    happened = time.monotonic()
    try:
        since = goes_on(slurm, output, job, f"lost {node}", happened)
        nodes = slurm.run("scontrol", "show", "hostnames", slurm.field(job, "NodeList")).split()
        assert node not in nodes and "node3" in nodes
        assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    finally:
        slurm.return_node(node)
    assert int(slurm.field(job, "Restarts")) >= 1
    assert logged_losses(output) == undisturbed(trainer)
    lost(output, f"{trainer}: {node} lost", since)


def condemn(slurm: LocalSlurm, node: str, reason: str) -> None:
    """What HyperPod's health agent does; AWS then waits for the node's jobs to end."""
    slurm.run("scontrol", "update", f"nodename={node}", "state=fail", f"reason={reason}")


@on_demand
@pytest.mark.parametrize("reason", ["Action:Replace", "Action:Reboot"])
def test_condemned_while_running(slurm, undisturbed, reason):
    """The run saves and leaves the node by itself: no step is lost."""
    output = slurm.fsx / f"ddp-condemned-{reason[7:]}"
    words = ["2.train_ddp.sh", *TINY, "--output_dir", str(output)]
    job = slurm.sbatch(*words, WATCH_SECONDS="1")
    slurm.until_step(output, 4, job)
    condemn(slurm, "node2", reason)
    happened = time.monotonic()
    try:
        slurm.until(lambda: slurm.field(job, "JobState") == "PENDING", "the requeue", job=job)
        stopped = logged_losses(output)[-1][0]
        assert list_checkpoints(output)[-1].name == f"checkpoint-{stopped}"
        assert f"({reason}): asking the run to save and stop" in slurm.log(job)
        since = goes_on(slurm, output, job, "condemned node", happened)
        nodes = slurm.run("scontrol", "show", "hostnames", slurm.field(job, "NodeList")).split()
        assert nodes == ["node1", "node3"]
        assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    finally:
        slurm.run("scontrol", "update", "nodename=node2", "state=resume")
    assert logged_losses(output) == undisturbed("ddp")
    lost(output, f"ddp: node2 marked {reason} while running", since)


@on_demand
def test_condemned_node_whose_process_dies(slurm, undisturbed):
    """Killed processes are started again in the same allocation; not on a node that HyperPod has given up."""
    output = slurm.fsx / "ddp-condemned-killed"
    job = slurm.sbatch("2.train_ddp.sh", *TINY, "--output_dir", str(output), WATCH_SECONDS="600")
    slurm.until_step(output, 6, job)
    condemn(slurm, "node2", "Action:Replace")
    slurm.kill_rank(1)
    happened = time.monotonic()
    try:
        since = goes_on(slurm, output, job, "killed on a condemned node", happened)
        assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    finally:
        slurm.run("scontrol", "update", "nodename=node2", "state=resume")
    assert slurm.field(job, "Restarts") == "1" and "node node2 is " in slurm.log(job)
    assert logged_losses(output) == undisturbed("ddp")
    lost(output, "ddp: process killed on a node marked Action:Replace", since)


@on_demand
@pytest.mark.parametrize("condemned", [False, True])
def test_a_script_error(slurm, tmp_path, condemned):
    """It would only happen again, unless a broken node is its cause."""
    marker = tmp_path / "tried"
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # Fails on its first start, as a program does on a broken GPU.
    python.write_text(f'#!/bin/sh\n[ -e {marker}.$SLURMD_NODENAME ] || [ -e {marker}.node3 ] && exit 0\n'
                      f'touch {marker}.$SLURMD_NODENAME; sleep 3; exit 1\n')  # fmt: skip
    python.chmod(0o755)
    words = ["--nodelist=node2", "--nodes=1", "2.train_ddp.sh", "--output_dir", str(tmp_path / "out")]
    job = slurm.sbatch(*words, VENV=str(python.parents[1]))
    slurm.until(lambda: any(tmp_path.glob("tried.*")), "the first start", job=job)
    if not condemned:
        assert slurm.wait(job) == "FAILED" and slurm.field(job, "Restarts") == "0"
        print("\n| a script's error, exit code 1 | job FAILED, not requeued |")
        return
    condemn(slurm, "node2", "Action:Replace")
    try:
        slurm.until(lambda: slurm.field(job, "Restarts") == "1", "the requeue", job=job)
    finally:
        slurm.run("scontrol", "update", "nodename=node2", "state=resume")
    assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    print("\n| exit code 1 on a node marked Action:Replace | requeued, then COMPLETED |")


@on_demand
def test_a_node_without_its_gpu(slurm, tmp_path):
    fake = tmp_path / "bin" / "nvidia-smi"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\necho 'Unable to determine the device handle for GPU0: Unknown Error'; exit 15\n"
    )
    fake.chmod(0o755)
    (tmp_path / "type").write_text("g5.24xlarge\n")
    output = slurm.fsx / "ddp-without-gpu"
    path = f"{fake.parent}:{os.environ['PATH']}"
    node = {"CUDA_VISIBLE_DEVICES": "0", "PATH": path, "INSTANCE_TYPE_FILE": str(tmp_path / "type")}
    job = slurm.sbatch("2.train_ddp.sh", *TINY, "--output_dir", str(output), **node)
    assert slurm.wait(job) == "FAILED"
    assert "should have 1 GPU(s), but nvidia-smi --list-gpus shows 0" in slurm.log(job)
    assert not (output / "run.json").exists()
    print("\n| g5 node whose nvidia-smi fails | refused on each node, job FAILED, no step on a CPU |")


@on_demand
def test_scancel_signal_term(slurm, undisturbed):
    output = slurm.fsx / "ddp-term"
    job = submit(slurm, "ddp", output)
    slurm.until_step(output, 6, job)
    slurm.run("scancel", "--signal=TERM", job)
    happened = time.monotonic()
    since = goes_on(slurm, output, job, "SIGTERM", happened)
    assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    assert slurm.field(job, "Restarts") == "1"
    assert logged_losses(output) == undisturbed("ddp")
    lost(output, "ddp: scancel --signal=TERM", since)


@on_demand
@pytest.mark.parametrize(("trainer", "steps"), [("fsdp", (3, 7)), ("ddp", (3, 7))])
def test_asked_to_stop(slurm, undisturbed, trainer, steps):
    """SIGUSR1 to the batch shell is what Slurm sends before the time limit; sent here at a known step."""
    output = slurm.fsx / f"{trainer}-asked-{len(steps)}"
    job = submit(slurm, trainer, output)
    for step in steps:
        slurm.until_step(output, step, job)
        slurm.run("scancel", "--batch", "--signal=USR1", job)
        happened = time.monotonic()
        slurm.until(lambda: slurm.field(job, "JobState") == "PENDING", "the requeue", job=job)
        stopped = logged_losses(output)[-1][0]
        assert list_checkpoints(output)[-1].name == f"checkpoint-{stopped}"  # not a step is lost
        since = goes_on(slurm, output, job, "asked to stop", happened)
        lost(output, f"{trainer}: asked to stop near the time limit", since)
    assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    assert slurm.field(job, "Restarts") == str(len(steps))
    assert logged_losses(output) == undisturbed(trainer)


@on_demand
def test_time_limit(slurm):
    """Slurm's own clock: a limit of one minute, and the signal as soon as Slurm's rounding allows."""
    output, in_peace = slurm.fsx / "ddp-time-limit", slurm.fsx / "ddp-no-time-limit"
    long = ["2.train_ddp.sh", *TINY, "--max_steps", "1000000", "--save_steps", "1000000"]
    job = slurm.sbatch("--time=1", "--signal=B:USR1@30", *long, "--output_dir", str(output))
    # On a slow machine the clock may end a start before its first step; then there is one more.
    begun: list[int] = []

    def resumed_after_two_limits() -> bool:
        restarts = int(slurm.field(job, "Restarts"))
        if (output / "run.json").exists():
            begun[:] = [session["from_step"] for session in read_run(output)["sessions"]]
        return restarts >= 2 and len(set(begun)) >= 3

    slurm.until(
        resumed_after_two_limits, "two starts from where the clock had ended the one before", 1500, job
    )
    slurm.run("scancel", job)
    slurm.wait(job)
    assert "DUE TO TIME LIMIT" not in slurm.log(job)
    assert begun[0] == 0 and begun == sorted(begun)
    steps = logged_losses(output)[-1][0] + 1  # however far this machine came
    for folder in (output, in_peace):
        job = slurm.sbatch(*long, "--stop_after_steps", str(steps), "--output_dir", str(folder))
        assert slurm.wait(job, 900) == "COMPLETED", slurm.log(job)
    assert logged_losses(output) == logged_losses(in_peace)
    print(f"\n| ddp: time limit, twice | sessions began at {begun} | {logged_losses(output)[-1][-1]!r} |")


@on_demand
def test_torn_checkpoint(slurm, undisturbed):
    output = slurm.fsx / "ddp-torn"
    job = submit(slurm, "ddp", output)
    slurm.until_step(output, 9, job)
    slurm.run("scancel", "--signal=KILL", "--full", job)
    slurm.run("scancel", job)
    slurm.wait(job)
    newest = list_checkpoints(output)[-1]
    weights = newest / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    job = submit(slurm, "ddp", output)
    assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    assert f"{newest.name}: skipped" in slurm.log(job)
    assert logged_losses(output) == undisturbed("ddp")
    lost(output, "ddp: newest checkpoint corrupt")


@on_demand
def test_disk_full_at_a_checkpoint(slurm, undisturbed):
    small = slurm.fsx / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    try:
        output = small / "ddp"
        job = submit(slurm, "ddp", output)
        assert slurm.wait(job) == "FAILED"
        assert "could not be written" in slurm.log(job) and "0.0 GB free there" in slurm.log(job)
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        job = submit(slurm, "ddp", output)
        assert slurm.wait(job) == "COMPLETED", slurm.log(job)
        assert logged_losses(output) == undisturbed("ddp")
        lost(output, "ddp: disk full, then space again")
        shutil.copytree(output, slurm.fsx / "ddp-disk-full")
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.fixture(scope="module")
def finetuning(slurm, undisturbed):
    """How to fine-tune the undisturbed run's model, and the losses of doing so in peace."""
    undisturbed("ddp")
    base, labels = slurm.fsx / "ddp-undisturbed" / "final_model", slurm.fsx / "csv" / "localization.csv"
    words = ["4.finetune_qlora.sh", "--model_name_or_path", str(base), "--train_file", str(labels)]
    words += "--num_train_epochs 3 --logging_steps 1 --max_seq_length 128".split()

    def submit(output: Path) -> str:
        return slurm.sbatch("--nodes=2", *words, "--output_dir", str(output))

    output = slurm.fsx / "finetuning-undisturbed"
    job = submit(output)
    assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    return submit, logged_losses(output)


@on_demand
@pytest.mark.parametrize("fault", ["killed process", "asked to stop"])
def test_finetuning(slurm, finetuning, fault):
    submit, expected = finetuning
    output = slurm.fsx / f"finetuning-{fault.split()[0]}"
    job = submit(output)
    step = 2 * max(step for step, *_ in expected) // 3
    slurm.until_step(output, step, job)
    if fault == "killed process":
        slurm.kill_rank(1)
    else:
        slurm.run("scancel", "--batch", "--signal=USR1", job)
    happened = time.monotonic()
    since = goes_on(slurm, output, job, fault, happened, last=step + 1)
    assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    assert logged_losses(output) == expected
    results = [
        json.loads((folder / "metrics.json").read_text())
        for folder in (output, output.parent / "finetuning-undisturbed")
    ]
    assert results[0] == results[1]
    lost(output, f"fine-tuning: {fault}", since)


@on_demand
@pytest.mark.parametrize("fault", ["process", "node", "gpu"])
def test_fault_drill(slurm, undisturbed, fault, tmp_path):
    """dcgmi is a stub that does what HyperPod's health agent does when DCGM reports an error."""
    mark = "scontrol update nodename=$SLURMD_NODENAME state=fail reason=Action:Replace"
    (tmp_path / "dcgmi").write_text(f'#!/bin/sh\necho "$*" >{tmp_path}/asked; {mark}\n')
    (tmp_path / "dcgmi").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    output = slurm.fsx / f"drill-{fault}"
    job = submit(slurm, "ddp", output)
    slurm.until_step(output, 5, job)
    words = ["bash", "cluster_setup/fault_drill.sh", fault, job, output]
    if fault == "gpu":
        asked = run(*words, check=False, **slurm.environment(PATH=path))  # nobody types yes
        assert asked.returncode == 1 and "stopped; nothing was broken" in asked.stderr
        assert "replace node2: 20 to 30 minutes" in asked.stdout and not (tmp_path / "asked").exists()
        words.append("--yes")
    drill = run(*words, **slurm.environment(PATH=path))
    assert "node2" in drill.stdout and "time lost: " in drill.stdout
    print(f"\n| fault_drill.sh {fault} | {drill.stdout.splitlines()[-1]} |")
    assert slurm.wait(job) == "COMPLETED", slurm.log(job)
    if fault == "gpu":
        assert (tmp_path / "asked").read_text() == "test --inject --gpuid 0 -f 319 -v 4\n"
        assert slurm.field(job, "Restarts") == "1"
        slurm.run("scontrol", "update", "nodename=node2", "state=resume")
    assert logged_losses(output) == undisturbed("ddp")
    assert slurm.run("sinfo", "-hn", "node2", "-o", "%t").strip() == "idle"


@on_demand
def test_submitted_twice(slurm):
    output = slurm.fsx / "ddp-twice-submitted"
    words = ["--nodes=1", "2.train_ddp.sh", *TINY, "--max_steps", "100000", "--output_dir", str(output)]
    first = slurm.sbatch(*words)
    slurm.until_step(output, 1, first)
    second = slurm.sbatch(*words)
    assert slurm.wait(second) == "FAILED", slurm.log(second)
    assert "another process is writing there" in slurm.log(second)
    assert slurm.field(first, "JobState") == "RUNNING"
    slurm.until_step(output, logged_losses(output)[-1][0] + 1, first)
    assert len(read_run(output)["sessions"]) == 1
    slurm.run("scancel", first)
