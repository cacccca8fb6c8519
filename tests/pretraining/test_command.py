"""train.py in one process: stops, checkpoints, refusals, ways to compute, and what it leaves."""

import json
import re
import shutil
import sys

import pytest
import torch
import yaml
from helpers.commands import ROOT, on_demand, run, run_ranks
from helpers.pretraining import CPU, assert_close, metrics, train
from helpers.steps import error_line
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from esm2_hyperpod.errors import is_out_of_memory
from esm2_hyperpod.esm.model import FINAL_MODEL
from esm2_hyperpod.pretraining.arguments import PretrainingArguments
from esm2_hyperpod.training.parsing import parse

PRESETS = [path for path in sorted((ROOT / "presets").glob("*.yaml")) if "finetuning" not in path.stem]


def test_data_workers_and_checkpoints_by_the_minute_change_nothing(tokenized, undisturbed, tmp_path):
    saving = ("--save_steps", "100", "--save_minutes", "0.0001", "--save_total_limit", "9")
    train(tokenized, tmp_path, "--dataloader_num_workers", "2", *saving)
    assert metrics(tmp_path) == metrics(undisturbed)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} >= {"checkpoint-2", "checkpoint-5"}


def test_time_limit_and_stop_after_steps_change_nothing_but_the_stops(tokenized, undisturbed, tmp_path):
    result = train(tokenized, tmp_path, "--max_minutes", "0.0001", check=False)
    assert result.returncode == 75 and "--max_minutes" in result.stdout
    assert (tmp_path / "checkpoint-1").is_dir()
    train(tokenized, tmp_path, "--stop_after_steps", "4")
    assert not list(tmp_path.glob("checkpoint-[5-8]"))
    train(tokenized, tmp_path)
    assert metrics(tmp_path) == metrics(undisturbed)


@on_demand
def test_one_constant_rate_ends_in_runs_of_any_length(tokenized, tmp_path):
    """A checkpoint from before the decay of a long run with wsd is that of a short run."""
    flags = "--lr_schedule wsd --min_lr_ratio 0 --warmup_steps 1 --eval_strategy no".split()
    train(tokenized, tmp_path / "long", *flags, "--max_steps", 99, "--stop_after_steps", 8)
    (tmp_path / "branch").mkdir()
    shutil.copytree(tmp_path / "long" / "checkpoint-8", tmp_path / "branch" / "checkpoint-8")
    short = (*flags, "--max_steps", 10, "--logging_steps", 1)
    train(tokenized, tmp_path / "branch", *short)
    train(tokenized, tmp_path / "short", *short)
    assert metrics(tmp_path / "branch")[-1] == metrics(tmp_path / "short")[-1]
    assert [line[3] for line in metrics(tmp_path / "short")][:10] == pytest.approx([4e-4] * 9 + [2e-4])


def perplexity(dataset, *words, by=run, **environment):
    """What perplexity.py prints."""
    words = "--dataset_dir", dataset, "--max_seq_length", 256, *words
    return by("perplexity.py", *words, **CPU, **environment).stdout.splitlines()


def test_models_are_judged_by_a_split_as_validation_judges_them(tokenized, undisturbed, tmp_path):
    model = undisturbed / FINAL_MODEL
    final = json.loads((undisturbed / "run.json").read_text())
    judged = f"loss {final['eval_loss']:.4f}  perplexity {final['eval_perplexity']:.3f}  "
    head, *lines = perplexity(tokenized, "--model_name_or_path", model, model, "--split", "validation")
    assert f"{final['frequency_entropy']:.4f}" in head and len(lines) == 2
    assert all(line.startswith(f"{model}: {judged}") for line in lines)
    one, two = (perplexity(tokenized, "--model_name_or_path", model, by=by) for by in (run, run_ranks))
    assert one == two and "/test: " in one[0]
    (limited,) = perplexity(tokenized, "--model_name_or_path", model, "--limit_tokens", 1)[1:]
    assert int(limited.split()[-2].replace(",", "")) < int(one[1].split()[-2].replace(",", ""))


def test_a_split_without_sequences_judges_nobody(tokenized, undisturbed, tmp_path):
    shutil.copytree(tokenized, tmp_path / "arrow")
    shutil.rmtree(tmp_path / "arrow" / "test")
    words = "--dataset_dir", tmp_path / "arrow", "--model_name_or_path", undisturbed / FINAL_MODEL
    assert "--test_size" in error_line(run("perplexity.py", *words, check=False, **CPU))


def test_a_resumed_run_saves_and_evaluates_as_it_is_told_now(tokenized, tmp_path):
    train(tokenized, tmp_path, "--stop_after_steps", "4")
    train(tokenized, tmp_path, "--save_steps", "5", "--eval_steps", "3")
    saved = {int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")}
    assert saved == {4, 5, 8}
    assert [line[0] for line in metrics(tmp_path) if line[4]] == [4, 6, 8]


def test_corrupt_checkpoints_are_skipped(tokenized, undisturbed, tmp_path):
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


def test_old_checkpoints_go_and_the_best_stays_and_is_exported(tokenized, tmp_path):
    flags = (
        "--save_steps 1 --eval_steps 1 --save_total_limit 2 --final_model best --learning_rate 0.3"
    ).split()
    train(tokenized, tmp_path, *flags)
    losses = {line[0]: line[4] for line in metrics(tmp_path) if line[4]}
    best = min(losses, key=losses.get)
    kept = {int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")}
    assert kept == {7, 8, best} and best < 7
    assert_final_model_is_of(best, losses[best], tmp_path)
    made, saved = (
        load_file(tmp_path / name / "model.safetensors") for name in (FINAL_MODEL, f"checkpoint-{best}")
    )
    assert made.keys() == saved.keys() and all(torch.equal(made[name], saved[name]) for name in made)

    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**run, "status": "running"}))
    (tmp_path / f"checkpoint-{best}" / "optimizer.pt").write_bytes(b"")
    log = train(tokenized, tmp_path, *flags).stdout
    assert f"checkpoint-{best}: optimizer.pt has 0 bytes of " in log and "those of the last step" in log
    assert "| weights | of step 8, the last |" in (tmp_path / FINAL_MODEL / "README.md").read_text()


def assert_final_model_is_of(step, loss, output):
    run = json.loads((output / "run.json").read_text())
    assert run["final_model_step"] == step and run["eval_loss"] == pytest.approx(loss, abs=1e-5)
    card, report = (output / FINAL_MODEL / "README.md").read_text(), (output / "run_report.md").read_text()
    assert f"| weights | of step {step}, the lowest validation loss of the run |" in card
    assert f"| validation | loss {loss:.4f} nats" in card
    assert f"| final model | weights of step {step}, the best: validation loss {loss:.4f} |" in report


@on_demand
def test_early_stopping_saves_what_is_best_and_exports_it(tokenized, tmp_path):
    train(tokenized, tmp_path, "--save_steps", "100", "--eval_steps", "1", "--learning_rate", "0.3",
          "--early_stopping_patience", "2")  # fmt: skip
    losses = {line[0]: line[4] for line in metrics(tmp_path) if line[4]}
    best = min(losses, key=losses.get)
    assert_final_model_is_of(best, losses[best], tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["stopped_early"] and run["steps"] == best + 3


def test_final_model_is_an_ordinary_one_and_padding_sees_the_same_loss(tokenized, undisturbed, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(undisturbed / "final_model")
    tokenizer = AutoTokenizer.from_pretrained(undisturbed / "final_model")
    card = (undisturbed / "final_model" / "README.md").read_text()
    assert "of size tiny" in card and "| validation | loss " in card and "UniProt" not in card
    assert type(model).__name__ == "EsmForMaskedLM" and model.dtype == torch.float32
    assert tokenizer("MK<mask>J")["input_ids"] == [0, 20, 15, 32, 3, 2]
    still = "--model_name_or_path", undisturbed / "final_model", "--learning_rate", 0, "--max_steps", 1
    for packing in ("true", "false"):
        train(tokenized, tmp_path / packing, *still, "--packing", packing)
        *_, loss, accuracy = metrics(tmp_path / packing)[-1]
        *_, loss_then, accuracy_then = metrics(undisturbed)[-1]
        assert loss == pytest.approx(loss_then, abs=1e-5)
        assert accuracy == pytest.approx(accuracy_then, abs=0.01)  # a tie may go either way


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


def test_activation_checkpointing_computes_the_same(tokenized, undisturbed, tmp_path):
    train(tokenized, tmp_path, "--activation_checkpointing")
    assert_close(metrics(tmp_path), metrics(undisturbed))


POISONED = """
from esm2_hyperpod.pretraining.trainer import PretrainingTrainer

plain = PretrainingTrainer.training_step

def poisoned(self, model, *rest):
    loss = plain(self, model, *rest)
    if self.state.global_step == 5:
        next(model.parameters()).grad[0, 0] = float("nan")
    return loss

PretrainingTrainer.training_step = poisoned
"""


def test_a_gradient_that_is_not_finite_reaches_no_checkpoint(tokenized, undisturbed, tmp_path):
    """The loss of step 6 is finite, its update is not, and step 6 is a step to save after."""
    result = train(tokenized, tmp_path, check=False, before=POISONED)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("train.py: error")]
    assert "the gradient norm of step 6 is nan; the last checkpoint is from before it" in line
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    train(tokenized, tmp_path)
    assert metrics(tmp_path) == metrics(undisturbed)


EXHAUSTED = """
import torch
from esm2_hyperpod.pretraining.trainer import PretrainingTrainer

plain = PretrainingTrainer.training_step

def exhausted(self, *rest):
    if self.state.global_step == 5:
        torch.empty(1 << 60)
    return plain(self, *rest)

PretrainingTrainer.training_step = exhausted
"""


def test_too_little_memory_is_one_line_that_says_what_takes_less(tokenized, tmp_path):
    result = train(tokenized, tmp_path, check=False, before=EXHAUSTED)
    assert "can't allocate memory" in error_line(result) and "--tokens_per_device" in error_line(result)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.parametrize(
    "error, is_so",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_cudas_words_for_too_little_memory_are_known(error, is_so):
    assert is_out_of_memory(error) == is_so


@on_demand
@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_trains_and_flags_win(tokenized, tmp_path, preset):
    tiny = "--tokens_per_device", 1024, "--global_batch_tokens", 1024, "--max_steps", 1
    places = "--dataset_dir", tokenized, "--output_dir", tmp_path
    run("train.py", "--config", preset, *places, "--model_size", "tiny", *tiny, **CPU)
    asked = yaml.safe_load(preset.read_text())
    options = json.loads((tmp_path / "run.json").read_text())["options"]
    assert options["model_size"] == "tiny" and options["tokens_per_device"] == 1024
    assert options["learning_rate"] == float(asked.get("learning_rate", 4e-4))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_flags_that_are_known(monkeypatch, preset):
    places = "--dataset_dir", "data", "--output_dir", "run"
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(preset), *places])
    filled = parse(PretrainingArguments)
    for name, value in yaml.safe_load(preset.read_text()).items():
        found = "muon" if name == "optim" and filled.muon else getattr(filled, name)  # `optim` is Trainer's
        assert found == type(found)(value)


def test_one_batch_is_learned_by_heart(tokenized, tmp_path):
    flags = (
        "--overfit_batches 1 --max_steps 60 --learning_rate 3e-3 --global_batch_tokens 512 --logging_steps 60"
    )
    train(tokenized, tmp_path, *flags.split(), "--limit_validation_tokens", 512)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] > 3 and losses[-1] < losses[0] / 2
    assert {line["eval_masked_tokens"] for line in lines if "eval_loss" in line} < {*range(512)}
