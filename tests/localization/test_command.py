"""finetune_localization.py as a user runs it: results, resuming, processes, prediction, merging."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import ROOT, on_demand, run, run_ranks
from helpers.localization_example import COUNTS, FAVOURITES, skip_if_torch_cannot, write_fasta, write_labelled
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from esm2_hyperpod.localization.model import load_base
from esm2_hyperpod.localization.settings import read_settings

FLAGS = (
    "--max_seq_length 64 --global_batch_size 12 --per_device_train_batch_size 6 --num_train_epochs 5 "
    "--learning_rate 0.01 --logging_steps 1 --seed 3"
).split()


@pytest.fixture(scope="module")
def example(tmp_path_factory, base) -> Path:
    folder = tmp_path_factory.mktemp("finetuning")
    (folder / "base").symlink_to(base)
    write_labelled(folder / "labelled.csv")
    write_fasta(folder / "new.fasta", 40)
    return folder


def command(example: Path, output: Path, *more: object) -> list[str]:
    words = ["finetune_localization.py", "--model_name_or_path", example / "base", "--output_dir", output]
    return [str(word) for word in [*words, "--train_file", example / "labelled.csv", *FLAGS, *more]]


@pytest.fixture(scope="module")
def finished(example) -> tuple[Path, str]:
    """An undisturbed run with everything it can do, and what it printed."""
    more = ["--do_predict", "--predict_file", example / "new.fasta", "--merge_adapter", "--explain", 20]
    result = run(*command(example, example / "out", *more))
    return example / "out", result.stdout


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def losses(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def numbers(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(row[label]) for label in COUNTS] for row in rows])


def test_it_learns_in_4_bits_and_says_against_what(finished):
    output, printed = finished
    metrics = json.loads((output / "metrics.json").read_text())
    assert "12 linear layers in 4 bits" in printed  # 2 layers of 6
    assert metrics["accuracy"] > metrics["majority_class_accuracy"] + 0.2
    assert metrics["split"]["origin"]["test"] == "similarity"
    assert not metrics["synthetic_data"]
    test = metrics["test"]
    low, high = test["model"]["intervals_95"]["accuracy"]
    assert metrics["majority_class_accuracy"] < low <= metrics["accuracy"] <= high
    assert test["baselines"]["majority_class"]["accuracy"] == metrics["majority_class_accuracy"]
    assert test["baselines"]["kmer_logistic_regression"]["accuracy"] > metrics["majority_class_accuracy"]
    assert (
        sum(map(sum, test["confusion_matrix"]))
        == test["proteins"]
        == len(read_csv(output / "splits/test.csv"))
    )
    for picture in ("confusion_matrix.png", "reliability.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")
    report = (output / "report.md").read_text()
    assert "majority class" in report and "kmer logistic regression" in report and "similarity" in report
    assert report.splitlines()[-1] in (output / "adapter" / "README.md").read_text()


def test_other_people_can_read_what_a_run_leaves(finished):
    """As the umask says; safetensors makes files that only their owner can read."""
    umask = os.umask(0)
    os.umask(umask)
    files = [path for path in finished[0].rglob("*") if path.is_file()]
    modes = {str(path.relative_to(finished[0])): path.stat().st_mode & 0o777 for path in files}
    assert {"adapter/adapter_model.safetensors", "merged/model.safetensors", "predictions.csv"} < set(modes)
    assert {name: oct(mode) for name, mode in modes.items() if mode != 0o666 & ~umask} == {}


def test_test_predictions_are_what_the_metrics_say(finished):
    output, _ = finished
    rows = read_csv(output / "test_predictions.csv")
    hits = np.mean([row["label"] == row["true_label"] for row in rows])
    assert hits == pytest.approx(json.loads((output / "metrics.json").read_text())["accuracy"])
    assert numbers(rows).sum(axis=1) == pytest.approx(1.0, abs=1e-5)


def test_predictions_keep_the_order_of_the_file(finished):
    rows = read_csv(finished[0] / "predictions.csv")
    assert [row["id"] for row in rows] == [f"q{number}" for number in range(40)]
    assert list(rows[0]) == ["id", "label", *COUNTS]
    expected = ["Cytoplasm", "Extracellular", "Nucleus"]
    assert np.mean([row["label"] == expected[n % 3] for n, row in enumerate(rows)]) > 0.6


def test_attributions_point_at_the_residues_that_make_the_label(finished):
    output, printed = finished
    rows = read_csv(output / "attributions.csv")
    assert "20 predictions explained" in printed
    assert (output / "attributions.png").read_bytes().startswith(b"\x89PNG")
    predicted = {row["id"]: row["label"] for row in read_csv(output / "predictions.csv")}
    assert {row["id"]: row["label"] for row in rows} == dict(list(predicted.items())[:20])
    for label, favourites in FAVOURITES.items():
        signal, rest = (
            np.mean(
                [
                    float(row["attribution"])
                    for row in rows
                    if row["label"] == label and (row["residue"] in favourites) == inside
                ]
            )
            for inside in (True, False)
        )
        assert signal > rest + 0.001, label
        assert label != "Extracellular" or signal > 2 * rest + 0.01


def test_run_again_it_has_nothing_to_do(example, finished):
    output, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    more = ["--predict_file", example / "new.fasta", "--explain", 20]
    again = run(*command(example, output, *more))
    assert again.stdout.count("finished already") == 3
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


def test_other_options_are_refused_in_a_finished_folder(example, finished):
    result = run(*command(example, finished[0], "--lora_rank", 4), check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("finetune_localization.py: error: ")
    assert "was made with lora_rank=8, this run asks for 4" in last and "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def held_out(example, finished) -> Path:
    """The test proteins of `finished`, and of every run with its data and seed, as FASTA."""
    rows = read_csv(finished[0] / "splits" / "test.csv")
    fasta = example / "test.fasta"
    fasta.write_text("".join(f">{row['id']}\n{row['sequence']}\n" for row in rows))
    return fasta


def assert_same_predictions(again: Path, first: Path) -> None:
    rows = read_csv(again), read_csv(first)
    assert [row["label"] for row in rows[0]] == [row["label"] for row in rows[1]]
    assert numbers(rows[0]) == pytest.approx(numbers(rows[1]), abs=2e-6)


def test_the_adapter_alone_gives_the_same_probabilities_in_a_fresh_process(finished, held_out, tmp_path):
    words = ["--model_name_or_path", finished[0] / "adapter", "--predict_file", held_out]
    run("finetune_localization.py", *words, "--output_dir", tmp_path / "out")
    assert_same_predictions(tmp_path / "out/predictions.csv", finished[0] / "test_predictions.csv")


def test_predictions_are_made_in_the_precision_of_training(example, held_out, tmp_path):
    more = ["--max_steps", 2, "--precision", "bf16", "--predict_file", held_out]
    result = run(*command(example, tmp_path / "out", *more), check=False)
    skip_if_torch_cannot(result.stderr)
    assert result.returncode == 0, result.stderr
    assert_same_predictions(tmp_path / "out/predictions.csv", tmp_path / "out/test_predictions.csv")


def test_peft_loads_the_adapter_without_us_and_the_merged_model_needs_no_peft(finished):
    output, _ = finished
    rows = read_csv(output / "test_predictions.csv")
    sequences = {row["id"]: row["sequence"] for row in read_csv(output / "splits" / "test.csv")}
    merged = AutoModelForSequenceClassification.from_pretrained(output / "merged").eval()
    assert type(merged).__name__ == "EsmForSequenceClassification"
    assert list(merged.config.id2label.values()) == list(COUNTS)
    tokenizer = AutoTokenizer.from_pretrained(output / "merged")
    settings = read_settings(output / "adapter")
    fresh = load_base(settings, torch.device("cpu"), bf16=False)
    with_peft = PeftModel.from_pretrained(fresh, output / "adapter").eval()
    for row in rows:
        sequence = sequences[row["id"]]
        if len(sequence) > 62:
            sequence = sequence[:31] + sequence[-31:]
        inputs = tokenizer(sequence, return_tensors="pt")
        with torch.no_grad():
            plain = merged(**inputs).logits.softmax(-1)[0]
            adapted = (with_peft(**inputs).logits / settings.temperature).softmax(-1)[0]
        assert plain.numpy() == pytest.approx(numbers([row])[0], abs=1e-5)
        assert adapted.numpy() == pytest.approx(numbers([row])[0], abs=1e-5)


def test_two_processes_give_what_one_gives(example, finished, tmp_path):
    more = ["--predict_file", example / "new.fasta", "--explain", 1]
    result = run_ranks(*command(example, tmp_path / "two", *more))
    assert "kernels-community" not in result.stderr  # see imports.without_kernels_warning
    one, two = losses(finished[0]), losses(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for first, second in zip(one, two):
        assert set(first) == set(second)
        for name, value in first.items():
            # A score moves by whole proteins, of which validation has twelve.
            close = 0.2 if name in ("eval_accuracy", "eval_macro_f1", "eval_mcc") else 1e-4
            assert second[name] == pytest.approx(value, abs=close), (first["step"], name)
    for file in ("test_predictions.csv", "predictions.csv"):
        expected = numbers(read_csv(finished[0] / file))
        assert numbers(read_csv(tmp_path / "two" / file)) == pytest.approx(expected, abs=1e-3)
    assert {row["id"] for row in read_csv(tmp_path / "two" / "attributions.csv")} == {"q0"}


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=on_demand), signal.SIGKILL])
def test_interrupted_it_is_resumed_to_the_same_result(example, finished, tmp_path, number):
    words = command(example, tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-u", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 10/"):  # after the first epoch's checkpoint (7 steps), before the second's
            process.send_signal(number)
            break
    process.stdout.read()
    assert process.wait() == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    again = run(*words)
    assert "resuming from" in again.stdout
    assert losses(tmp_path / "out") == losses(finished[0])
    assert read_csv(tmp_path / "out/test_predictions.csv") == read_csv(finished[0] / "test_predictions.csv")


def test_proteins_in_several_places_from_a_dataset_with_a_whole_model(example, tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    rows = read_csv(example / "labelled.csv")
    with open(folder / "train.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ["sequence", "label"], extrasaction="ignore")
        table.writeheader()
        for number, row in enumerate(rows):
            places = {row["label"], "Cytoplasm"} if number % 3 == 0 else {row["label"]}
            table.writerow({**row, "label": "|".join(sorted(places))})
    words = ["--model_name_or_path", example / "base", "--output_dir", tmp_path / "out"]
    words += ["--dataset_name", folder, "--split", "random"]
    words += "--tuning full --pooling attention --class_weights balanced --max_steps 4".split()
    run("finetune_localization.py", *words, *FLAGS)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {"accuracy", "jaccard", "micro_f1", "macro_f1", "mcc"} < set(metrics)
    assert metrics["split"]["origin"]["test"] == "random"
    predicted = read_csv(tmp_path / "out" / "test_predictions.csv")
    exact = np.mean([row["label"] == row["true_label"] for row in predicted])
    assert exact == pytest.approx(metrics["accuracy"])
    assert (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model").config.problem_type
        == "multi_label_classification"
    )


def test_an_adapter_is_trained_further(example, finished, tmp_path):
    words = ["--model_name_or_path", finished[0] / "adapter", "--output_dir", tmp_path / "out"]
    words += ["--train_file", example / "labelled.csv", *FLAGS, "--max_steps", 2, "--learning_rate", "1e-6"]
    words += ["--activation_checkpointing", "true"]
    run("finetune_localization.py", *words)
    first, further = (
        json.loads((out / "metrics.json").read_text()) for out in (finished[0], tmp_path / "out")
    )
    assert further["accuracy"] == pytest.approx(
        first["accuracy"], abs=0.05
    )  # it started from what was learned
