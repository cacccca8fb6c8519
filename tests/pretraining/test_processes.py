"""The wrappers of pretraining: the same run on any number of processes, interrupted or not."""

import functools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers.commands import ROOT, on_demand, run
from helpers.pretraining import (
    CPU,
    SMALL,
    assert_close,
    divide,
    fsdp_launcher,
    launch,
    metrics,
    places,
    train,
    wrapper,
)


@pytest.fixture(scope="module")
def undisturbed_by(tokenized, tmp_path_factory):
    """The output folder and the log of the same run on several processes, made when first asked for."""

    @functools.cache
    def divided(processes: int, fsdp: bool) -> tuple[Path, str]:
        output = tmp_path_factory.mktemp("divided")
        result = launch(tokenized, output, processes=processes, fsdp=fsdp)
        assert "gemm_4bit_forward" not in result.stderr  # of bitsandbytes, which pretraining does not import
        return output, result.stdout

    return divided


# DDP on demand: runs that workers end, or that are killed, compare their losses, too.
@pytest.mark.parametrize(
    "processes, fsdp",
    [pytest.param(2, False, marks=on_demand), pytest.param(4, False, marks=on_demand), (2, True)],
)
def test_losses_do_not_depend_on_how_the_work_is_divided(undisturbed, undisturbed_by, processes, fsdp):
    output, log = undisturbed_by(processes, fsdp)
    assert_close(metrics(output), metrics(undisturbed))
    if fsdp:  # the run says what its parameters are: half of each is here
        here, whole = re.search(r"FSDP2: .* is \[(\d+), \d+\] here of \[(\d+), \d+\]", log).groups()
        assert int(whole) == processes * int(here)
        assert list(output.glob("checkpoint-*/pytorch_model_fsdp_0/*.distcp"))
    else:
        assert "DDP: each process holds all parameters" in log


def start(
    dataset: Path, output: Path, *flags: str, processes: int = 2, fsdp: bool = False
) -> subprocess.Popen:
    """The same run as `launch`, in the background, as a process group of its own."""
    return subprocess.Popen(
        [*wrapper(fsdp), *flags],
        cwd=ROOT,
        env={**os.environ, "VENV": sys.prefix, **places(dataset, output, processes)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for_step(process: subprocess.Popen, output: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while not any(line[0] >= step for line in metrics(output)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL a run and all its processes, which the launcher puts into sessions of their own."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    psutil.wait_procs(family[1:])
    process.wait()


# DDP on demand: test_survival, where a node is lost, compares every digit, too.
@pytest.mark.parametrize("fsdp", [pytest.param(False, marks=on_demand), True])
def test_killed_and_started_again_repeats_every_digit(tokenized, undisturbed_by, tmp_path, fsdp):
    process = start(tokenized, tmp_path, fsdp=fsdp)
    wait_for_step(process, tmp_path, 4)
    kill_all(process)
    log = divide(tokenized, tmp_path, fsdp=fsdp).stdout
    assert "resuming from" in log
    whole, _ = undisturbed_by(2, fsdp)
    assert metrics(tmp_path) == metrics(whole)

    broken, last = json.loads((tmp_path / "run.json").read_text())["sessions"]
    assert broken["broken_off"] and 4 <= broken["reached_step"] < 8 and last["reached_step"] == 8
    twice = broken["reached_step"] - last["from_step"]
    expected, report = (json.loads((folder / "run_report.json").read_text()) for folder in (whole, tmp_path))
    failures = {"starts": 2, "stopped_early": 0, "broken_off": 1, "steps_done_twice": twice}
    assert report["failures"] == failures
    assert report["residues_seen"] == expected["residues_seen"] > 0
    assert (tmp_path / "run_report.md").read_text() in log


def test_workers_end_with_their_launcher_and_have_saved(tokenized, undisturbed, tmp_path):
    process = start(tokenized, tmp_path)
    wait_for_step(process, tmp_path, 2)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert not alive
    assert "resuming from" in train(tokenized, tmp_path).stdout  # on one process, which changes no loss
    assert_close(metrics(tmp_path), metrics(undisturbed))


def test_stops_on_request_and_goes_on_with_other_processes(tokenized, undisturbed, tmp_path):
    """Each layer's weights on two processes, then on one."""
    process = start(tokenized, tmp_path, "--tp_size", "2", fsdp=True)
    wait_for_step(process, tmp_path, 2)
    (tmp_path / "stop").touch()
    assert process.wait(timeout=120) == 75
    assert not (tmp_path / "stop").exists() and not (tmp_path / "final_model").exists()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "to be continued"
    divide(tokenized, tmp_path, processes=1, fsdp=True)
    assert_close(metrics(tmp_path), metrics(undisturbed))


HANGING = """
import os, runpy, signal, subprocess, sys, time
sys.path.insert(0, ".")
from esm2_hyperpod.imports import leave_out
leave_out("peft", "datasets", "scipy", "sklearn")
import psutil
from torch.distributed.checkpoint import FileSystemWriter
from esm2_hyperpod.pretraining.trainer import PretrainingTrainer

step, write = PretrainingTrainer.training_step, FileSystemWriter.write_data

def slow(self, *rest):
    FileSystemWriter.write_data = write
    time.sleep(13)
    return write(self, *rest)

def stopped(self, *rest):
    if self.state.global_step == 4:
        me = psutil.Process()
        (other,) = (one for one in me.parent().children() if one != me)
        end = "while grep -qs . /proc/$0/cmdline; do sleep 0.1; done; kill -KILL $1"
        subprocess.Popen(["sh", "-c", end, str(other.pid), str(me.pid)])
        me.suspend()
    return step(self, *rest)

if os.environ["RANK"] == "1":
    FileSystemWriter.write_data, PretrainingTrainer.training_step = slow, stopped
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""


def test_a_process_that_hangs_ends_the_run_and_a_slow_save_does_not(tokenized, tmp_path):
    """Rank 1 takes 13 s to write its part of checkpoint-3 and is stopped in step 5; a step waits for 10 s."""
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    folders = "--dataset_dir", tokenized, "--output_dir", tmp_path / "run"
    flags = *SMALL, "--eval_strategy", "no", "--step_timeout", 10
    result = run(*fsdp_launcher(2), script, *folders, *flags, check=False, **CPU, PYTHONPATH=str(ROOT))
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("train.py: error")]
    assert line.startswith(
        "train.py: error: step 5: another process has not answered for 10 s (--step_timeout"
    )
    assert re.search(r"rank 0 \(process \d+\) exited with 134", result.stderr)
    assert result.returncode > 128  # the wrappers start it again


@on_demand
def test_sigterm_saves(tokenized, undisturbed, tmp_path):
    process = start(tokenized, tmp_path, processes=1)
    wait_for_step(process, tmp_path, 2)
    process.terminate()
    assert process.wait(timeout=120) == 75
    train(tokenized, tmp_path)
    assert metrics(tmp_path) == metrics(undisturbed)


@on_demand
@pytest.mark.parametrize("fsdp", [False, True])
def test_compiled_layers_compute_the_same_and_are_compiled_once(tokenized, undisturbed, tmp_path, fsdp):
    log = launch(tokenized, tmp_path, "--torch_compile", fsdp=fsdp, TORCH_LOGS="recompiles,graph_breaks")
    assert_close(metrics(tmp_path), metrics(undisturbed))
    assert set(re.findall(r"Skip calling function `<function (\w+)", log.stderr)) == {
        "_one_by_one"
    }  # the CPU's
    why = re.findall(r"__recompiles\]  +- (.*)", log.stderr)
    assert why and all("grad_mode" in reason for reason in why)  # once more, for validation
    assert "view tensor" not in log.stderr
