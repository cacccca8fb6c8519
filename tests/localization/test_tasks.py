"""--task residue and --task regression as a user runs them, and what they are made of."""

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.commands import ROOT, on_demand, run
from helpers.labelled_example import number_of, proteins, residue_labels, write_numbers, write_residue_labels
from helpers.localization_example import settings_of
from helpers.misuse import own_process
from helpers.steps import here
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from esm2_hyperpod.localization import baselines
from esm2_hyperpod.localization.arguments import FinetuningArguments
from esm2_hyperpod.localization.encoding import NO_LABEL, EncodedResidues, collate
from esm2_hyperpod.localization.metrics import intervals_over_proteins
from esm2_hyperpod.localization.regression import intervals_of_numbers, scores_of_numbers
from esm2_hyperpod.localization.residues import Residues, confusions
from esm2_hyperpod.proteins.labelled import Protein
from esm2_hyperpod.training.parsing import parse

FLAGS = (
    "--max_seq_length 40 --global_batch_size 12 --per_device_train_batch_size 6 --learning_rate 0.01 "
    "--logging_steps 1 --seed 3"
).split()
EPOCHS = {"residue": 3, "regression": 4}
WRITE = {"residue": write_residue_labels, "regression": write_numbers}


@pytest.fixture(scope="module")
def example(tmp_path_factory, base) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "base").symlink_to(base)
    for task, write in WRITE.items():
        write(folder / f"{task}.csv")
    new = "".join(f">{name} x\n{sequence}\n" for name, sequence in proteins(20, 1))
    (folder / "new.fasta").write_text(f"{new}>empty\n>gapped\nmk-v*\n")
    return folder


def command(example: Path, task: str, output: Path, *more: object) -> list[str]:
    words = ["--task", task, "--model_name_or_path", example / "base", "--output_dir", output, "--train_file"]
    words += [example / f"{task}.csv", *FLAGS, "--num_train_epochs", EPOCHS[task], *more]
    return ["finetune_localization.py", *map(str, words)]


@pytest.fixture(scope="module", params=list(EPOCHS))
def finished(request, example) -> tuple[str, Path, str]:
    """The task, an undisturbed run in 4 bits with everything it can do, and what it printed."""
    output = example / request.param
    words = command(example, request.param, output, "--predict_file", example / "new.fasta")
    result = run(*words, "--merge_adapter")
    return request.param, output, result.stdout


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_it_learns_in_4_bits_and_says_against_what(finished):
    task, output, printed = finished
    metrics = json.loads((output / "metrics.json").read_text())
    test, report = metrics["test"], (output / "report.md").read_text()
    baselines, name = {
        "residue": (("majority_class", "window_logistic_regression"), "accuracy"),
        "regression": (("mean_of_training", "kmer_ridge_regression"), "spearman"),
    }[task]
    assert "12 linear layers in 4 bits" in printed  # 2 layers of 6
    assert tuple(test["baselines"]) == baselines
    simple, better = (test["baselines"][baseline] for baseline in baselines)
    low, high = test["model"]["intervals_95"][name]
    assert simple[name] < low <= metrics[name] <= high
    assert better[name] > simple[name]
    assert all(baseline.replace("_", " ") in report for baseline in baselines) and "similarity" in report
    picture = "reliability" if task == "residue" else "predicted_against_true"
    assert (output / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert report.splitlines()[-1] in (output / "adapter" / "README.md").read_text()


def test_test_predictions_are_what_the_metrics_say(finished):
    task, output, _ = finished
    rows = read_csv(output / "test_predictions.csv")
    metrics = json.loads((output / "metrics.json").read_text())
    if task == "residue":
        assert all(len(row["labels"]) == len(row["true_labels"]) for row in rows)
        pairs = [pair for row in rows for pair in zip(row["true_labels"], row["labels"]) if pair[0] != "-"]
        assert len(pairs) == metrics["test"]["residues"]
        assert np.mean([true == given for true, given in pairs]) == pytest.approx(metrics["accuracy"])
    else:
        true, predicted = (np.array([float(row[name]) for row in rows]) for name in ("target", "prediction"))
        assert stats.spearmanr(true, predicted)[0] == pytest.approx(metrics["spearman"], abs=1e-6)
        assert stats.pearsonr(true, predicted)[0] == pytest.approx(metrics["pearson"], abs=1e-5)
        assert np.sqrt(np.square(true - predicted).mean()) == pytest.approx(metrics["rmse"], abs=1e-5)


def test_predictions_of_new_proteins(finished):
    """Most are longer than the model's 38 residues: a residue's label comes from a window."""
    task, output, _ = finished
    rows = read_csv(output / "predictions.csv")
    new = proteins(20, 1)
    assert [row["id"] for row in rows] == [*(name for name, _ in new), "empty", "gapped"]
    assert set(rows[20].values()) == {"empty", ""}
    if task == "residue":
        assert [len(row["labels"]) for row in rows] == [*(len(sequence) for _, sequence in new), 0, 3]
        pairs = [
            p for row, (_, sequence) in zip(rows, new) for p in zip(row["labels"], residue_labels(sequence))
        ]
        metrics = json.loads((output / "metrics.json").read_text())
        assert np.mean([a == b for a, b in pairs]) > metrics["majority_class_accuracy"]
        assert all(1 / 3 < float(row["confidence"]) <= 1 for row in rows if row["labels"])
    else:
        predicted = [float(row["prediction"]) for row in rows[:20]]
        assert stats.spearmanr(predicted, [number_of(sequence) for _, sequence in new])[0] > 0.4


def test_the_merged_model_needs_neither_us_nor_peft(finished):
    task, output, _ = finished
    auto = AutoModelForTokenClassification if task == "residue" else AutoModelForSequenceClassification
    model = auto.from_pretrained(output / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(output / "merged")
    sequences = dict(proteins(20, 1))
    rows = [
        row for row in read_csv(output / "predictions.csv") if len(sequences.get(row["id"], 99 * "A")) < 39
    ]
    assert len(rows) > 3
    for row in rows:
        with torch.no_grad():
            logits = model(**tokenizer(sequences[row["id"]], return_tensors="pt")).logits[0]
        if task == "residue":
            given = logits[1:-1].softmax(-1)
            assert "".join(model.config.id2label[int(n)] for n in given.argmax(-1)) == row["labels"]
            assert float(given.max(-1).values.mean()) == pytest.approx(float(row["confidence"]), abs=1e-4)
        else:
            assert float(logits) == pytest.approx(float(row["prediction"]), abs=1e-3)


@on_demand
def test_an_adapter_brings_its_task(finished, example, tmp_path):
    """The adapter alone predicts what it predicted, and is trained further without --task."""
    task, output, _ = finished
    words = ["--model_name_or_path", output / "adapter", "--output_dir", tmp_path]
    words += ["--train_file", example / f"{task}.csv", *FLAGS, "--max_steps", 1, "--learning_rate", "1e-9"]
    run("finetune_localization.py", *words)
    first, again = (json.loads((out / "metrics.json").read_text()) for out in (output, tmp_path))
    name = "accuracy" if task == "residue" else "spearman"
    assert again[name] == pytest.approx(first[name], abs=1e-4)


def test_the_preset_for_a_laptop_has_flags_that_are_known(monkeypatch):
    preset = ROOT / "presets" / "laptop_finetuning.yaml"
    places = ["--model_name_or_path", "base", "--train_file", "a.csv", "--output_dir", "run"]
    monkeypatch.setattr(sys, "argv", ["finetune_localization.py", "--config", str(preset), *places])
    filled = parse(FinetuningArguments)
    for name, value in yaml.safe_load(preset.read_text()).items():
        assert getattr(filled, name) == type(getattr(filled, name))(value)


# ---- as for localization ----------------------------------------------------------------------------


def losses(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@on_demand
def test_two_processes_give_what_one_gives(example, finished, tmp_path):
    task, output, _ = finished
    words = ["-m", "esm2_hyperpod.jobs.launch", "torchrun", "--standalone", "--nproc_per_node", "2"]
    more = ["--predict_file", example / "new.fasta"]
    run(sys.executable, *words, *command(example, task, tmp_path / "two", *more))
    one, two = losses(output), losses(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for first, second in zip(one, two):
        for name in {"loss", "eval_loss", "grad_norm"} & set(first):
            assert second[name] == pytest.approx(first[name], rel=2e-3), (first["step"], name)
    column = "confidence" if task == "residue" else "prediction"
    expected = [float(row[column] or 0) for row in read_csv(output / "predictions.csv")]
    found = [float(row[column] or 0) for row in read_csv(tmp_path / "two" / "predictions.csv")]
    assert found == pytest.approx(expected, abs=2e-3)


@on_demand
def test_killed_it_is_resumed_to_the_same_result(example, finished, tmp_path):
    task, output, _ = finished
    words = command(example, task, tmp_path / "out", "--predict_file", example / "new.fasta")
    process = subprocess.Popen(
        [sys.executable, "-u", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for line in process.stdout:
        if line.startswith("step 12/"):  # after the first epoch's checkpoint, before the second's
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.read()
    assert process.wait() == -signal.SIGKILL
    assert "resuming from" in run(*words).stdout
    assert losses(tmp_path / "out") == losses(output)
    for file in ("test_predictions.csv", "predictions.csv"):
        assert (tmp_path / "out" / file).read_bytes() == (output / file).read_bytes()


@on_demand
def test_a_whole_model_is_tuned_and_balanced(example, tmp_path):
    words = command(example, "residue", tmp_path, "--tuning", "full", "--class_weights", "balanced")
    run(*words, "--max_steps", 3, "--learning_rate", "1e-3")
    assert AutoModelForTokenClassification.from_pretrained(tmp_path / "model").config.num_labels == 3


def test_other_labels_in_the_same_folder_are_split_anew(example, tmp_path):
    """Splits that a refused run left do not serve a run of another task."""
    table = [(name, s, residue_labels(s), number_of(s)) for name, s in proteins(60, 0)]
    with open(tmp_path / "both.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "sequence", "labels", "target"), *table])
    words = ["--model_name_or_path", example / "base", "--output_dir", tmp_path / "out"]
    words += ["--train_file", tmp_path / "both.csv", "--global_batch_size", 500]
    labels = []
    for task in ("residue", "regression"):
        with own_process():
            assert here("finetune_localization.py", *words, "--task", task, check=False).returncode == 1
        labels.append(read_csv(tmp_path / "out" / "splits" / "test.csv")[0]["label"])
    assert set(labels[0]) <= set("HEC") and 40 < float(labels[1]) < 70
    shutil.rmtree(tmp_path / "out")


def test_splits_that_are_older_than_an_option_stay(example, tmp_path):
    with open(tmp_path / "old.csv", "w", newline="") as file:
        rows = [(name, s, "AB"[len(s) % 2]) for name, s in proteins(60, 0)]
        csv.writer(file).writerows([("id", "sequence", "label"), *rows])
    words = ["--model_name_or_path", example / "base", "--output_dir", tmp_path / "out"]
    words += ["--train_file", tmp_path / "old.csv", "--global_batch_size", 500]
    manifest, made = tmp_path / "out" / "splits" / "manifest.json", []
    for _ in range(2):
        with own_process():
            assert here("finetune_localization.py", *words, check=False).returncode == 1
        made.append(manifest.with_name("test.csv").stat().st_mtime_ns)
        facts = json.loads(manifest.read_text())
        facts["options"] = {k: v for k, v in facts["options"].items() if k not in ("task", "unlabelled")}
        manifest.write_text(json.dumps(facts))
    assert made[0] == made[1]


# ---- parts ------------------------------------------------------------------------------------------


def encoded(base: Path, *rows: tuple[str, str], longest: int = 12) -> EncodedResidues:
    settings = settings_of(base, task="residue", labels=["C", "E", "H"], max_seq_length=longest)
    return EncodedResidues([Protein("x", str(n), *row) for n, row in enumerate(rows)], settings)


def test_each_labelled_residue_counts_once_and_nothing_else_does(base):
    long = "MKVLLAAGGDDEEKKRRWWFFYYPPSSTTMKVLLAAGG"
    labels = "".join("CEH-"[n % 4] for n in range(len(long)))
    data = encoded(base, (long, labels), ("MKV", "HHH"))
    assert data.cropped == 1 and len(data) > 3 and data.protein.tolist() == [0] * (len(data) - 1) + [1]
    counts = np.bincount(np.concatenate(data.targets)[np.concatenate(data.targets) != NO_LABEL])
    assert counts.tolist() == [labels.count("C"), labels.count("E"), labels.count("H") + 3]
    assert all(row[0] == row[-1] == NO_LABEL for row in data.targets)
    batch = collate([data[0], data[len(data) - 1]])
    assert batch["labels"].shape == batch["input_ids"].shape
    assert batch["labels"][1].tolist() == [NO_LABEL, 2, 2, 2] + [NO_LABEL] * 8
    assert Residues().counted(data).sum() == counts.sum()


def test_the_loss_of_a_step_does_not_depend_on_its_cut(base):
    data = encoded(base, ("MKVLLA", "CEHCEH"), ("MKV", "H-H"), ("MKVW", "CC--"))
    task, random = Residues(), torch.Generator().manual_seed(0)
    batch = collate([data[n] for n in range(3)])
    logits = torch.randn(3, 8, 3, generator=random)
    whole = task.loss(logits, batch["labels"], None)
    parts = [task.loss(logits[n : n + 1], batch["labels"][n : n + 1], None) for n in range(3)]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-6)
    flat = logits[batch["labels"] != NO_LABEL]
    mean = torch.nn.functional.cross_entropy(flat, batch["labels"][batch["labels"] != NO_LABEL])
    assert float(whole) / task.counted(data).sum() == pytest.approx(float(mean), rel=1e-5)


def test_the_window_baseline_sees_the_neighbours(base):
    rows = [(sequence, "".join("H" if b == "W" else "C" for b in sequence[1:] + "A")) for _, sequence in
            proteins(60, 0)]  # fmt: skip
    train, test = encoded(base, *rows[:40], longest=100), encoded(base, *rows[40:], longest=100)
    found = confusions(baselines.window_predictions(train, test, seed=0), test, 3).sum(axis=0)
    assert found[2, 2] > 10 and found.trace() == found.sum() == sum(len(s) for s, _ in rows[40:])


def test_intervals_are_wider_where_residues_of_a_protein_err_together():
    together = np.array([[[20, 0], [0, 0]]] * 20 + [[[0, 20], [0, 0]]] * 20)
    apart = np.array([[[10, 10], [0, 0]]] * 40)
    wide, narrow = (intervals_over_proteins(one, seed=0)["accuracy"] for one in (together, apart))
    assert narrow == [0.5, 0.5]
    assert np.diff(wide)[0] == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 40), rel=0.15)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=40))
def test_scores_of_numbers_are_scipys(pairs):
    truth, predicted = (np.array(column, dtype=float) for column in zip(*pairs))
    ours = scores_of_numbers(truth, predicted)
    if np.ptp(truth) and np.ptp(predicted):
        assert ours["spearman"] == pytest.approx(stats.spearmanr(truth, predicted)[0], abs=1e-9)
        assert ours["pearson"] == pytest.approx(stats.pearsonr(truth, predicted)[0], abs=1e-9)
    else:
        assert ours["spearman"] == ours["pearson"] == 0
    assert ours["rmse"] == pytest.approx(np.sqrt(np.mean((truth - predicted) ** 2)))


def test_intervals_of_numbers_are_those_of_resampled_proteins():
    random = np.random.default_rng(0)
    truth = random.normal(size=150).round(1)  # ties
    predicted = truth + random.normal(size=150)
    drawn = [random.integers(0, 150, 150) for _ in range(400)]
    expected = np.percentile([stats.spearmanr(truth[n], predicted[n])[0] for n in drawn], [2.5, 97.5])
    found = intervals_of_numbers(truth, predicted, seed=0)
    assert found["spearman"] == pytest.approx(expected, abs=0.03)
    assert found["rmse"][0] < scores_of_numbers(truth, predicted)["rmse"] < found["rmse"][1]
