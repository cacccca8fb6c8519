"""The pictures of the pages, made from what real runs left.

    bash quickstart.sh --source my.fasta.gz --labels labels.fasta --model_size 8M --output_dir runs/pictures
    python docs/pictures.py --runs runs/pictures

Reads the folders ddp/ and localization/ of the quickstart; scans ubiquitin with the model of ddp/. Writes
docs/pictures/training_curve.png, confusion_matrix.png and scan.png.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from esm2_hyperpod.artifacts import whole_file  # noqa: E402
from esm2_hyperpod.errors import UserError, run_script  # noqa: E402
from esm2_hyperpod.localization.pictures import draw_confusion_matrix, title_of  # noqa: E402
from esm2_hyperpod.runs.curve import plot_training_curve  # noqa: E402
from esm2_hyperpod.runs.record import read_run  # noqa: E402

UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"  # P0CG48, 1 to 76
COLOURS = 128  # enough for these; a picture of so many is a third as large


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="the --output_dir of a quickstart")
    parser.add_argument("--output_dir", type=Path, default=HERE / "pictures", help="default: %(default)s")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, draw in {
        "training_curve.png": lambda path: training_curve(args.runs / "ddp", path),
        "confusion_matrix.png": lambda path: confusion_matrix(args.runs / "localization", path),
        "scan.png": lambda path: scan(args.runs / "ddp" / "final_model", path),
    }.items():
        draw(args.output_dir / name)
        size = make_small(args.output_dir / name)
        print(f"{args.output_dir / name}: {size / 1000:.0f} KB")


def training_curve(run_dir: Path, path: Path) -> None:
    """Of a pretraining run that has finished."""
    run = read_run(run_dir)
    if run is None or "frequency_entropy" not in run:
        raise UserError(f"{run_dir}: no finished run; make it with: bash quickstart.sh --output_dir DIR")
    plot_training_curve(run_dir, run["frequency_entropy"], path)


def confusion_matrix(run_dir: Path, path: Path) -> None:
    """Of a fine-tuning run."""
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    confusion = np.array(metrics["test"]["confusion_matrix"])
    draw_confusion_matrix(path, confusion, list(metrics["test"]["per_class"]), title_of(metrics))


def scan(model: Path, path: Path) -> None:
    """The heat map of score_variants.py."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ubiquitin.fasta").write_text(f">ubiquitin\n{UBIQUITIN}\n")
        words = ["--model_name_or_path", model.resolve(), "--fasta", f"{folder}/ubiquitin.fasta", "--scan"]
        words += ["--output_dir", folder]
        subprocess.run([sys.executable, "score_variants.py", *map(str, words)], cwd=ROOT, check=True)
        path.write_bytes((Path(folder) / "heatmap.png").read_bytes())


def make_small(path: Path) -> int:
    """Keep so few colours that a page loads fast; returns the size in bytes."""
    with whole_file(path) as temporary:
        Image.open(path).convert("RGB").quantize(COLOURS).save(temporary, format="png", optimize=True)
    return path.stat().st_size


if __name__ == "__main__":
    run_script(main)
