"""What a finished run says of itself: metrics.json, test_predictions.csv, pictures, report.md, model card."""

from pathlib import Path
from typing import Any

import numpy as np

from esm2_hyperpod.artifacts import write_csv, write_json_atomically, write_text_atomically
from esm2_hyperpod.figures import new_figure, save_figure
from esm2_hyperpod.localization.encoding import EncodedProteins
from esm2_hyperpod.localization.evaluation import KMER_BASELINE, evaluate_test
from esm2_hyperpod.localization.settings import ADAPTER_TUNINGS, Settings
from esm2_hyperpod.proteins.splits import Splits

LINE = "\n"
SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1", "mcc": "MCC (Gorodkin's R_K)"}
MULTILABEL_SCORES = {
    "accuracy": "all labels right",
    "jaccard": "Jaccard",
    "micro_f1": "micro F1",
    "macro_f1": "macro F1",
    "mcc": "mean MCC",
}


def write_results(
    output_dir: Path,
    splits: Splits,
    settings: Settings,
    train: EncodedProteins,
    test: EncodedProteins,
    logits: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Write metrics.json, report.md, the pictures and test_predictions.csv; return the metrics.

    Args:
        logits: float[test proteins, labels].
    """
    results = evaluate_test(logits, splits, settings, train, test, seed)
    scores = {name: value for name, value in results["model"].items() if name != "intervals_95"}
    metrics = {
        **scores,
        "majority_class_accuracy": results["baselines"]["majority_class"]["accuracy"],
        "synthetic_data": splits.facts["synthetic_data"],
        "seed": seed,
        "rejected_rows": len(splits.rejected),
        "cropped_proteins": train.cropped + test.cropped,
        "split": {name: value for name, value in splits.facts.items() if name != "options"},
        "test": results,
    }
    write_json_atomically(output_dir / "metrics.json", metrics)
    report = "# Subcellular localization\n\n" + _body(metrics, settings)
    write_text_atomically(output_dir / "report.md", report)
    title = f"{len(test)} test proteins, split: {splits.facts['origin']['test']}"
    title += ", synthetic" if metrics["synthetic_data"] else ""
    confusion = np.array(results["confusion_matrix"])
    draw_confusion_matrix(output_dir / "confusion_matrix.png", confusion, settings.labels, title)
    draw_reliability(output_dir / "reliability.png", results["calibration"]["reliability"], title)
    header = ["id", "true_label", "label", *settings.labels]
    rows = zip(splits.test, settings.probabilities(logits))
    cells = ([protein.id, protein.label, *settings.cells(row)] for protein, row in rows)
    write_csv(output_dir / "test_predictions.csv", header, cells)
    return metrics


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


def model_card(metrics: dict[str, Any], settings: Settings) -> str:
    """`README.md` of the tuned model: what it is, how to use it, how good it is, what it is not."""
    library = "peft" if settings.tuning in ADAPTER_TUNINGS else "transformers"
    return f"""---
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
