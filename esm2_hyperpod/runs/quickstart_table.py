"""The table that ends quickstart.sh: what each step took, made and reached.

python -m esm2_hyperpod.runs.quickstart_table runs/quickstart
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

from esm2_hyperpod.artifacts import MANIFEST
from esm2_hyperpod.errors import run_script
from esm2_hyperpod.runs.record import read_metrics, read_run


def main() -> None:
    """Print the table for the folder named on the command line."""
    folder = Path(sys.argv[1])
    csv, arrow = (_read(folder / name / MANIFEST) for name in ("csv", "processed/arrow"))
    rows = [("step", "seconds", "made", "figures")]
    rows.append(
        (
            "0 download",
            _seconds(folder, 0),
            "csv/",
            f"{csv['records']:,} records, {csv['residues']:,} residues",
        )
    )
    splits = ", ".join(f"{arrow['splits'][split]['records']:,} {split}" for split in arrow["splits"])
    rows.append(("1 tokenize", _seconds(folder, 1), "processed/arrow/", splits))
    for number, name in ((2, "ddp"), (3, "fsdp")):
        rows.append(
            (
                f"{number} {name}",
                _seconds(folder, number),
                f"{name}/final_model/",
                _pretraining(folder / name),
            )
        )
    rows.append(
        ("4 qlora", _seconds(folder, 4), "localization/adapter/", _localization(folder / "localization"))
    )

    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        print("  ".join([*cells, row[3]]))
        if number == 0:
            print("  ".join("-" * width for width in (*widths, 60)))
    if csv["synthetic"]:
        print("\nThe proteins are SYNTHETIC: these figures show that everything works, not biology.")
    print("\nPictures:")
    for picture in ("ddp/training_curve.png", "fsdp/training_curve.png", "localization/confusion_matrix.png"):
        print(f"  {folder / picture}")


def _pretraining(output_dir: Path) -> str:
    run = read_run(output_dir)
    assert run is not None
    losses = [line["loss"] for line in read_metrics(output_dir) if "loss" in line]
    text = f"training loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    if "eval_perplexity" in run:
        guessing = math.exp(run["frequency_entropy"])
        text += f"; validation perplexity {run['eval_perplexity']:.2f}, by residue frequency {guessing:.2f}"
    return text


def _localization(output_dir: Path) -> str:
    metrics = _read(output_dir / "metrics.json")
    return (
        f"test accuracy {metrics['accuracy']:.3f}, majority class {metrics['majority_class_accuracy']:.3f}; "
        f"macro F1 {metrics['macro_f1']:.3f}, MCC {metrics['mcc']:.3f}"
    )


def _seconds(folder: Path, step: int) -> str:
    return (folder / f".seconds-{step}").read_text().strip()


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_script(main)
