"""What a finished run says of itself: metrics.json, pictures, report.md and the model card."""

from pathlib import Path
from typing import Any

import numpy as np

from esm2_hyperpod.artifacts import write_text_atomically
from esm2_hyperpod.figures import new_figure, save_figure
from esm2_hyperpod.localization.baselines import KMER_BASELINE, kmer_predictions, majority_predictions
from esm2_hyperpod.localization.encoding import EncodedProteins
from esm2_hyperpod.localization.metrics import (
    bootstrap_intervals,
    decide,
    expected_calibration_error,
    per_class,
    probabilities,
    reliability,
    scores_of_confusion,
)
from esm2_hyperpod.localization.model import ADAPTER_TUNINGS, Settings
from esm2_hyperpod.localization.multilabel import multilabel_intervals, multilabel_scores
from esm2_hyperpod.proteins.splits import Splits

LINE = "\n"
SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1", "mcc": "MCC (Gorodkin's R_K)"}
MULTILABEL_SCORES = {
    "accuracy": "the very set",
    "jaccard": "Jaccard",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "mcc": "mean MCC",
}


def evaluate_test(
    logits: np.ndarray,
    splits: Splits,
    settings: Settings,
    train: EncodedProteins,
    test: EncodedProteins,
    seed: int,
) -> dict[str, Any]:
    """Scores of the test proteins with 95% intervals, beside those of the baselines; calibration.

    Args:
        logits: float[test proteins, labels].
        seed: of the bootstrap.
    """
    several = settings.multi_label
    truth = test.targets.astype(int) if several else np.eye(len(settings.labels), dtype=int)[test.targets]
    given = {
        name: probabilities(logits, temperature, several)
        for name, temperature in (("uncalibrated", 1.0), ("calibrated", settings.temperature))
    }
    predicted = decide(given["calibrated"], several)
    sequences = [[protein.sequence for protein in part] for part in (splits.train, splits.test)]
    by_kmers = decide(kmer_predictions(sequences[0], train.targets, sequences[1]), several)
    by_majority = majority_predictions(truth)
    names = [label for label, inside in zip(settings.labels, by_majority[0]) if inside]
    calibration = {name: _judged(p, truth, predicted, several) for name, p in given.items()}
    return {
        "proteins": len(truth),
        "model": _scores_with_intervals(truth, predicted, several, seed),
        "baselines": {
            "majority_class": {
                "label": "|".join(names),
                **_scores_with_intervals(truth, by_majority, several, seed),
            },
            "kmer_logistic_regression": {
                "what": KMER_BASELINE,
                **_scores_with_intervals(truth, by_kmers, several, seed),
            },
        },
        "calibration": {
            "temperature": settings.temperature,
            "expected_calibration_error": {
                name: expected_calibration_error(*judged) for name, judged in calibration.items()
            },
            "reliability": {name: reliability(*judged) for name, judged in calibration.items()},
        },
        "per_class": per_class(truth, predicted, settings.labels),
        "confusion_matrix": (truth.T @ predicted).tolist(),
    }


def _scores_with_intervals(
    truth: np.ndarray, predicted: np.ndarray, several: bool, seed: int
) -> dict[str, Any]:
    if several:
        return {
            **multilabel_scores(truth, predicted),
            "intervals_95": multilabel_intervals(truth, predicted, seed),
        }
    confusion = truth.T @ predicted
    scores = {name: float(value) for name, value in scores_of_confusion(confusion).items()}
    return {**scores, "intervals_95": bootstrap_intervals(confusion, seed)}


def _judged(
    probability: np.ndarray, truth: np.ndarray, predicted: np.ndarray, several: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the predicted label (or of every label), and whether that label is true."""
    if several:
        return probability.ravel(), truth.ravel() == 1
    return probability.max(axis=1), (truth & predicted).any(axis=1)


def draw_confusion_matrix(path: Path, confusion: np.ndarray, labels: list[str], title: str) -> None:
    """A picture of the confusion matrix: counts, coloured by the share of the true label."""
    from sklearn.metrics import ConfusionMatrixDisplay

    size = 3 + 0.6 * len(labels)
    figure, (axes,) = new_figure(size, size)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(shares, display_labels=labels)
    display.plot(
        ax=axes, include_values=False, cmap="Blues", xticks_rotation="vertical", im_kw={"vmin": 0, "vmax": 1}
    )
    for row, column in np.ndindex(*confusion.shape):
        dark = shares[row, column] > 0.5
        axes.text(
            column, row, confusion[row, column], ha="center", va="center", color="white" if dark else "black"
        )
    axes.set(title=title, xlabel="predicted", ylabel="true")
    save_figure(figure, path)


def draw_reliability(path: Path, bins: dict[str, list[tuple[int, float, float]]], title: str) -> None:
    """Share of correct predictions against the probability they were given, with and without calibration."""
    figure, (axes,) = new_figure(5, 5)
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfectly calibrated")
    for name, points in bins.items():
        axes.plot([given for _, given, _ in points], [share for _, _, share in points], "o-", label=name)
    axes.set(
        title=title, xlabel="probability of the prediction", ylabel="share correct", xlim=(0, 1), ylim=(0, 1)
    )
    axes.legend()
    save_figure(figure, path)


def write_report(path: Path, metrics: dict[str, Any], settings: Settings) -> None:
    """`report.md`: the scores beside the baselines, per label, and how to read them."""
    write_text_atomically(path, "# Subcellular localization\n\n" + _body(metrics, settings))


def write_model_card(path: Path, metrics: dict[str, Any], settings: Settings) -> None:
    """`README.md` of the tuned model: what it is, how to use it, how good it is, what it is not."""
    library = "peft" if settings.tuning in ADAPTER_TUNINGS else "transformers"
    card = f"""---
base_model: {settings.base}
library_name: {library}
---

# Where in the cell a protein lives

{"Any" if settings.multi_label else "One"} of {len(settings.labels)} localizations from the sequence: \
{", ".join(settings.labels)}.

    python finetune_localization.py --model_name_or_path THIS_FOLDER \\
        --predict_file proteins.fasta --output_dir OUT

{_body(metrics, settings)}
## Limits

The model gives one of its labels to any sequence, also to what lives elsewhere, in several places, or
is no protein. It was measured on proteins like those above; on other organisms, or on fragments, it may do
worse.
"""
    write_text_atomically(path, card)


def _body(metrics: dict[str, Any], settings: Settings) -> str:
    split, test = metrics["split"], metrics["test"]
    origin, proteins = split["origin"], split["proteins"]
    error = test["calibration"]["expected_calibration_error"]
    scores = MULTILABEL_SCORES if settings.multi_label else SCORES
    rows = {"this model": test["model"]}
    rows |= {name.replace("_", " "): row for name, row in test["baselines"].items()}
    table = [
        "| " + " | ".join([name, *(_with_interval(row, score) for score in scores)]) + " |"
        for name, row in rows.items()
    ]
    labels = [
        f"| {label} | {row['precision']:.2f} | {row['recall']:.2f} | {row['f1']:.2f} | {row['support']} |"
        for label, row in test["per_class"].items()
    ]
    warning = "**The proteins are synthetic: these figures show that the program works, not biology.**\n\n"
    return f"""{warning if metrics["synthetic_data"] else ""}\
- Base `{settings.base}`, tuning `{settings.tuning}`, pooling `{settings.pooling}`, seed {metrics["seed"]}.
- Proteins: {proteins["train"]:,} train, {proteins["validation"]:,} validation ({origin["validation"]}), \
{proteins["test"]:,} test ({origin["test"]}); {metrics["rejected_rows"]:,} rows not used, see \
splits/rejected.csv.
- Grouping of similar proteins: {split["grouping"]}.
- Test proteins with a similar training protein: {split["test_proteins_like_a_training_protein"]:,} of \
{proteins["test"]:,}, judged by {split["leak_measured_by"]}.
- At most {settings.max_seq_length:,} tokens a protein (crop: {settings.crop}); \
{metrics["cropped_proteins"]:,} proteins were longer.

| test set | {" | ".join(scores.values())} |
|---|{"---|" * len(scores)}
{LINE.join(table)}

The majority class is the most frequent label of the test proteins. In brackets: 95% interval over resampled
test proteins; it covers the choice of test proteins, not that of the seed or of the training proteins.
The k-mer baseline is {KMER_BASELINE}.

Logits are divided by a temperature of {settings.temperature:.2f}, fitted on validation: expected \
calibration error {error["calibrated"]:.3f} (without it {error["uncalibrated"]:.3f}).

| label | precision | recall | F1 | test proteins |
|---|---|---|---|---|
{LINE.join(labels)}
"""


def _with_interval(row: dict[str, Any], score: str) -> str:
    low, high = row["intervals_95"][score]
    return f"{row[score]:.3f} [{low:.3f}, {high:.3f}]"
