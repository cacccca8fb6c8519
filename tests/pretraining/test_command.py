"""train.py through its launchers: the same run on any number of processes, interrupted or not."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from helpers.commands import ROOT, run, run_each
from transformers import AutoModelForMaskedLM, AutoTokenizer

from esm2_hyperpod.artifacts import only_writer
from esm2_hyperpod.pretraining.sharding import sum_gradients_in_fp32

SMALL = (
    "--model_size tiny --max_steps 8 --tokens_per_device 512 --global_batch_tokens 2048 --max_seq_length 256 "
    "--logging_steps 2 --save_steps 3 --eval_steps 4 --precision fp32 --report_to none"
).split()
CPU = {"CUDA_VISIBLE_DEVICES": ""}


def train(
    dataset: Path, output: Path, *flags: str, processes: int = 1, fsdp: bool = False, check: bool = True
):
    """Pretrain through the wrapper a user runs."""
    script = "3.train_fsdp.sh" if fsdp else "2.train_ddp.sh"
    places = {"DATASET_DIR": str(dataset), "OUTPUT_DIR": str(output), "GPUS_PER_NODE": str(processes)}
    return run("bash", script, *SMALL, *flags, check=check, **places, **CPU)


def metrics(output: Path) -> list[tuple]:
    """What a run logged and can repeat: step, losses, gradient norm, learning rate."""
    names = "step loss grad_norm learning_rate eval_loss eval_accuracy".split()
    path = output / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return [tuple(line.get(name, 0.0) for name in names) for line in lines]


def assert_close(some: list[tuple], others: list[tuple], tolerance: float = 1e-4) -> None:
    assert [line[0] for line in some] == [line[0] for line in others]
    for one, other in zip(some, others):
        assert one == pytest.approx(other, abs=tolerance, rel=tolerance)


@pytest.fixture(scope="module")
def undisturbed(tokenized, tmp_path_factory) -> Path:
    """A run of one process from beginning to end."""
    output = tmp_path_factory.mktemp("undisturbed")
    train(tokenized, output)
    return output


@pytest.fixture(scope="module")
def undisturbed_by(tokenized, tmp_path_factory):
    """The output folder and the log of the same run on several processes, made when first asked for."""

    @functools.cache
    def divided(processes: int, fsdp: bool) -> tuple[Path, str]:
        output = tmp_path_factory.mktemp("divided")
        return output, train(tokenized, output, processes=processes, fsdp=fsdp).stdout

    return divided


@pytest.mark.parametrize("processes, fsdp", [(2, False), (4, False), (2, True)])
def test_losses_do_not_depend_on_how_the_work_is_divided(undisturbed, undisturbed_by, processes, fsdp):
    output, log = undisturbed_by(processes, fsdp)
    assert_close(metrics(output), metrics(undisturbed))
    if fsdp:  # the run says what its parameters are: half of each is here
        here, whole = re.search(r"FSDP2: .* is \[(\d+), \d+\] here of \[(\d+), \d+\]", log).groups()
        assert int(whole) == processes * int(here)
        assert list(output.glob("checkpoint-*/pytorch_model_fsdp_0/*.distcp"))
    else:
        assert "DDP: each process holds all parameters" in log


def test_data_workers_and_checkpoints_by_the_minute_change_nothing(tokenized, undisturbed, tmp_path):
    saving = ("--save_steps", "100", "--save_minutes", "0.0001", "--save_total_limit", "9")
    train(tokenized, tmp_path, "--dataloader_num_workers", "2", *saving)
    assert metrics(tmp_path) == metrics(undisturbed)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} >= {"checkpoint-2", "checkpoint-5"}


def start(dataset: Path, output: Path, processes: int = 1, fsdp: bool = False) -> subprocess.Popen:
    """The same run as `train`, in the background, as a process group of its own."""
    places = {"DATASET_DIR": str(dataset), "OUTPUT_DIR": str(output), "GPUS_PER_NODE": str(processes)}
    return subprocess.Popen(
        ["bash", "3.train_fsdp.sh" if fsdp else "2.train_ddp.sh", *SMALL],
        cwd=ROOT,
        env={**os.environ, "VENV": sys.prefix, **places, **CPU},
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


@pytest.mark.parametrize("fsdp", [False, True])
def test_killed_and_started_again_repeats_every_digit(tokenized, undisturbed_by, tmp_path, fsdp):
    process = start(tokenized, tmp_path, processes=2, fsdp=fsdp)
    wait_for_step(process, tmp_path, 4)
    kill_all(process)
    log = train(tokenized, tmp_path, processes=2, fsdp=fsdp).stdout
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
    process = start(tokenized, tmp_path, processes=2)
    wait_for_step(process, tmp_path, 2)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert not alive
    train(tokenized, tmp_path, processes=2)
    assert_close(metrics(tmp_path), metrics(undisturbed))


def test_stops_on_request_and_goes_on_with_other_processes(tokenized, undisturbed, tmp_path):
    process = start(tokenized, tmp_path, processes=2, fsdp=True)
    wait_for_step(process, tmp_path, 2)
    (tmp_path / "stop").touch()
    assert process.wait(timeout=120) == 75
    assert not (tmp_path / "stop").exists() and not (tmp_path / "final_model").exists()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "to be continued"
    train(tokenized, tmp_path, processes=1, fsdp=True)
    assert_close(metrics(tmp_path), metrics(undisturbed))


def test_sigterm_saves(tokenized, undisturbed, tmp_path):
    process = start(tokenized, tmp_path)
    wait_for_step(process, tmp_path, 2)
    process.terminate()
    assert process.wait(timeout=120) == 75
    train(tokenized, tmp_path)
    assert metrics(tmp_path) == metrics(undisturbed)


def test_time_limit_and_stop_after_steps_change_nothing_but_the_stops(tokenized, undisturbed, tmp_path):
    result = train(tokenized, tmp_path, "--max_minutes", "0.0001", check=False)
    assert result.returncode == 75 and "--max_minutes" in result.stdout
    assert (tmp_path / "checkpoint-1").is_dir()
    train(tokenized, tmp_path, "--stop_after_steps", "4")
    assert not list(tmp_path.glob("checkpoint-[5-8]"))
    train(tokenized, tmp_path)
    assert metrics(tmp_path) == metrics(undisturbed)


def test_torn_checkpoints_are_passed_over(tokenized, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "final_model")
    run_json = tmp_path / "run" / "run.json"
    run_json.write_text(json.dumps({**json.loads(run_json.read_text()), "status": "running"}))
    torn = tmp_path / "run" / "checkpoint-8" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:1000])
    (tmp_path / "run" / "checkpoint-6" / "complete.json").unlink()
    log = train(tokenized, tmp_path / "run").stdout
    assert "checkpoint-8: skipped, optimizer.pt has 1,000 bytes" in log
    assert "checkpoint-6: skipped, it has no complete.json" in log
    assert "resuming from" in log and "checkpoint-3" in log
    assert metrics(tmp_path / "run") == metrics(undisturbed)


def test_old_checkpoints_go_and_the_best_stays(tokenized, tmp_path):
    train(tokenized, tmp_path, "--save_steps", "1", "--eval_steps", "1", "--save_total_limit", "2",
          "--early_stopping_patience", "9", "--learning_rate", "0.3")  # fmt: skip
    losses = {line[0]: line[4] for line in metrics(tmp_path) if line[4]}
    best = min(losses, key=losses.get)
    kept = {int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")}
    assert kept == {7, 8, best}


def test_final_model_is_an_ordinary_one_and_padding_sees_the_same_loss(tokenized, undisturbed, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(undisturbed / "final_model")
    tokenizer = AutoTokenizer.from_pretrained(undisturbed / "final_model")
    assert type(model).__name__ == "EsmForMaskedLM" and model.dtype == torch.float32
    assert tokenizer("MK<mask>J")["input_ids"] == [0, 20, 15, 32, 3, 2]
    still = (
        "--model_name_or_path",
        str(undisturbed / "final_model"),
        "--learning_rate",
        "0",
        "--max_steps",
        "1",
    )
    for packing in ("true", "false"):
        train(tokenized, tmp_path / packing, *still, "--packing", packing)
        *_, loss, accuracy = metrics(tmp_path / packing)[-1]
        *_, loss_then, accuracy_then = metrics(undisturbed)[-1]
        assert (loss, accuracy) == pytest.approx((loss_then, accuracy_then), abs=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_sequences(tokenized, tmp_path):
    result = train(tokenized, tmp_path, "--learning_rate", "1e36", check=False)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("train.py: error")]
    step = int(re.search(r"the loss of step (\d+) is", line)[1])
    assert all(int(path.name.split("-")[1]) < step for path in tmp_path.glob("checkpoint-*"))
    ids = (tmp_path / f"sequences_of_step_{step}.txt").read_text().split()
    assert ids and all("UniRef50_" in name for name in ids)


def test_a_folder_belongs_to_one_run(tokenized, undisturbed):
    assert "finished already, 8 steps" in train(tokenized, undisturbed).stdout
    other = train(tokenized, undisturbed, "--seed", "1", check=False)
    assert other.returncode == 1 and "seed=42, this run asks for 1" in other.stderr
    with only_writer(undisturbed):
        second = train(tokenized, undisturbed, check=False)
    assert second.returncode == 1 and "another process is writing there" in second.stderr


WRONG = {
    "--global_batch_tokens 2000": "the nearest that do: 1,536 or 2,048",
    "--tokens_per_device 500": "must be a multiple of 64",
    "--max_seq_length 4096": "must lie between 3 and --tokens_per_device 512",
    "--model_size 7B": "not one of tiny, 8M",
    "--model_name_or_path ./nowhere": "no model there",
    "--fp16 true": "use --precision",
    "--gradient_accumulation_steps 4": "use --global_batch_tokens",
    "--dataset_dir /nowhere": "make it with: python 1.tokenize_uniref_csv.py",
    "--mask_replace letters": "invalid choice",
    "--tokens_per_devise 512": "unknown: --tokens_per_devise",
}


def test_wrong_flags_get_one_clear_line(tokenized, tmp_path):
    places = ["--dataset_dir", str(tokenized), "--output_dir", str(tmp_path)]
    results = run_each("train.py", [[*places, *SMALL, *flags.split()] for flags in WRONG], **CPU)
    for (flags, message), (code, errors) in zip(WRONG.items(), results, strict=True):
        assert code and message in errors, (flags, errors)
        assert errors.rstrip().count("\n") == 0 or "usage: " in errors, errors
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("flag", ["--activation_checkpointing", "--torch_compile"])
def test_ways_to_compute_agree(tokenized, undisturbed, tmp_path, flag):
    train(tokenized, tmp_path, flag, "true")
    assert_close(metrics(tmp_path), metrics(undisturbed), 1e-3)


def test_bf16_under_fsdp_is_near_fp32(tokenized, undisturbed, tmp_path):
    train(tokenized, tmp_path, "--precision", "bf16", processes=2, fsdp=True)
    assert metrics(tmp_path) != metrics(undisturbed)
    assert_close(metrics(tmp_path), metrics(undisturbed), 2e-2)


def test_gradients_in_bf16_are_summed_in_fp32():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    state = SimpleNamespace(fsdp_plugin=plugin)
    sum_gradients_in_fp32(SimpleNamespace(is_fsdp2=True, mixed_precision="bf16", state=state))
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)


@pytest.fixture(scope="session")
def torchao(tmp_path_factory) -> Path:
    """torchao in a folder of its own: where it is installed, transformers imports it in every process."""
    folder = tmp_path_factory.mktemp("torchao")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "torchao==0.18.0")
    return folder


def test_fp8_trains_nearly_alike_and_leaves_an_ordinary_model(tokenized, undisturbed, tmp_path, torchao):
    flags = ("--dataset_dir", tokenized, "--output_dir", tmp_path, *SMALL, "--precision", "fp8")
    missing = run("train.py", *flags, check=False, **CPU)
    assert missing.returncode == 1 and "pip install torchao" in missing.stderr
    run("train.py", *flags, PYTHONPATH=str(torchao), **CPU)
    assert metrics(tmp_path) != metrics(undisturbed)
    assert_close(metrics(tmp_path)[:1], metrics(undisturbed)[:1], 0.1)
    AutoModelForMaskedLM.from_pretrained(tmp_path / "final_model")
