"""What a finished run says of itself: metrics.json, test_predictions.csv, pictures, report.md, model card."""

from pathlib import Path
from typing import Any

import numpy as np

from esm2_hyperpod.artifacts import write_csv, write_json_atomically, write_text_atomically
from esm2_hyperpod.localization.encoding import Encoded
from esm2_hyperpod.localization.pictures import title_of
from esm2_hyperpod.localization.settings import ADAPTER_TUNINGS, Settings
from esm2_hyperpod.localization.tasks import task_of
from esm2_hyperpod.proteins.splits import Splits

LINE = "\n"


def write_results(
    output_dir: Path,
    splits: Splits,
    settings: Settings,
    train: Encoded,
    test: Encoded,
    logits: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Write metrics.json, report.md, the pictures and test_predictions.csv; return the metrics.

    Args:
        logits: of the test proteins, as the task has them.
    """
    task = task_of(settings)
    results = task.evaluate(logits, splits, settings, train, test, seed)
    scores = {name: value for name, value in results["model"].items() if name != "intervals_95"}
    majority = results["baselines"].get("majority_class")
    metrics = {
        **scores,
        **({"majority_class_accuracy": majority["accuracy"]} if majority else {}),
        "synthetic_data": splits.facts["synthetic_data"],
        "seed": seed,
        "rejected_rows": len(splits.rejected),
        "cropped_proteins": train.cropped + test.cropped,
        "split": {name: value for name, value in splits.facts.items() if name != "options"},
        "test": results,
    }
    write_json_atomically(output_dir / "metrics.json", metrics)
    report = f"# {task.title}\n\n" + _body(metrics, settings)
    write_text_atomically(output_dir / "report.md", report)
    task.draw(output_dir, results, settings, title_of(metrics))
    cells = task.cells([protein.sequence for protein in splits.test], logits, settings)
    rows = ([protein.id, protein.label, *row] for protein, row in zip(splits.test, cells))
    header = ["id", task.truth_column, *task.columns(settings)]
    write_csv(output_dir / "test_predictions.csv", header, rows)
    return metrics


def model_card(metrics: dict[str, Any], settings: Settings) -> str:
    """`README.md` of the tuned model: what it is, how to use it, how good it is, what it is not."""
    library = "peft" if settings.tuning in ADAPTER_TUNINGS else "transformers"
    task = task_of(settings)
    return f"""---
base_model: {settings.base}
library_name: {library}
---

# {task.title}

{task.what(settings)}.

    python finetune_localization.py --model_name_or_path THIS_FOLDER \\
        --predict_file proteins.fasta --output_dir OUT

{_body(metrics, settings)}
## Limits

{task.limits} It was measured on proteins like those above; on other organisms, or on fragments, it may do
worse.
"""


def _body(metrics: dict[str, Any], settings: Settings) -> str:
    split, test, task = metrics["split"], metrics["test"], task_of(settings)
    origin, proteins, scores = split["origin"], split["proteins"], task.scores(settings)
    rows = {"this model": test["model"]}
    rows |= {name.replace("_", " "): row for name, row in test["baselines"].items()}
    table = [
        "| " + " | ".join([name, *(_with_interval(row, score) for score in scores)]) + " |"
        for name, row in rows.items()
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
- {task.reading(settings, metrics["cropped_proteins"])}

| test set | {" | ".join(scores.values())} |
|---|{"---|" * len(scores)}
{LINE.join(table)}

In brackets: 95% interval over resampled test proteins; it covers the choice of test proteins, not that of the
seed or of the training proteins.

{task.notes(test, settings)}
"""


def _with_interval(row: dict[str, Any], score: str) -> str:
    low, high = row["intervals_95"][score]
    return f"{row[score]:.3f} [{low:.3f}, {high:.3f}]"
