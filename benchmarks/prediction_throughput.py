#!/usr/bin/env python3
"""Localization prediction: batches of like length against one protein at a time; memory against file size.

    python benchmarks/prediction_throughput.py --model_size 8M --records 10000

The model has random 4-bit weights: speed does not depend on what they say. Input: synthetic proteins. Prints
Markdown: real residues a second of one protein at a time, of `predict_file`, and of `predict_file` with the
adapter merged (on the first --timed records, in one process, taking turns; medians), and the peak memory of
the whole command for 1,000 records and for --records.
"""

import argparse
import io
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import EsmForMaskedLM
from transformers import logging as transformers_logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.results import record  # noqa: E402
from esm2_hyperpod.download.synthetic import LOCALIZATIONS, fasta_chunks  # noqa: E402
from esm2_hyperpod.esm.model import build_config  # noqa: E402
from esm2_hyperpod.localization.encoding import encode_cropped  # noqa: E402
from esm2_hyperpod.localization.model import build  # noqa: E402
from esm2_hyperpod.localization.prediction import Predictor  # noqa: E402
from esm2_hyperpod.localization.saving import merge_adapter  # noqa: E402
from esm2_hyperpod.localization.settings import Lora, Settings  # noqa: E402
from esm2_hyperpod.proteins.records import read_records  # noqa: E402
from esm2_hyperpod.training.throughput import device_name  # noqa: E402

SMALL = 1_000
TURNS = 5
BF16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_size", default="8M")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--timed", type=int, default=100, help="records that the speed is measured on")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        measure(args, Path(name))


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Make a model and the input files, measure, and print the tables."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    EsmForMaskedLM(build_config(args.model_size)).save_pretrained(folder / "base")
    settings = Settings(str(folder / "base"), list(LOCALIZATIONS), False, "qlora", "attention", 1024, "ends")
    build(settings, Lora(8, 16, 0.0, "all"), device, BF16).save_pretrained(folder / "adapter")
    settings.save(folder / "adapter")
    merge_adapter(folder / "adapter", folder / "merged")
    adapted, merged = (Predictor(folder / name, device, BF16) for name in ("adapter", "merged"))
    for records in {args.timed, min(SMALL, args.records), args.records}:
        write_fasta(folder / f"{records}.fasta", records)

    fasta = folder / f"{args.timed}.fasta"
    ways = {
        "one protein at a time": lambda: one_at_a_time(adapted, fasta),
        "predict_file": lambda: in_batches(adapted, fasta),
        "predict_file, adapter merged": lambda: in_batches(merged, fasta),
    }
    seconds = {name: [] for name in ways}  # the first turn loads the models; medians leave it out
    for _ in range(TURNS):
        for name, predict in ways.items():
            start = time.perf_counter()
            predict()
            seconds[name].append(time.perf_counter() - start)
    residues = residues_read(fasta, settings)
    rates = {name: residues / statistics.median(times) for name, times in seconds.items()}
    print(f"{device_name(device)}, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    precision, most = "bf16" if BF16 else "fp32", settings.max_seq_length
    print(f"{args.model_size}, 4-bit weights, {precision}, at most {most:,} tokens a protein\n")
    print("| way | real residues/s | ratio |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / rates['one protein at a time']:.2f} |")
    print()

    rows = {name: {"residues_per_second": rate} for name, rate in rates.items()}
    print("| proteins | peak memory of the command, MB |\n|---|---|")
    for records in sorted({min(SMALL, args.records), args.records}):
        megabytes = peak_megabytes(folder, records)
        rows[f"{records:,} proteins"] = {"peak_mb_of_the_command": megabytes}
        print(f"| {records:,} | {megabytes:,.0f} |", flush=True)
    if args.json:
        facts = {"task": "prediction", "device": device_name(device), "model_size": args.model_size}
        record(args.json, {**facts, "precision": precision}, rows)


def write_fasta(path: Path, records: int) -> None:
    """Synthetic proteins, the same ones first whatever the number."""
    with open(path, "wb") as file:
        file.writelines(fasta_chunks(records, seed=0, labelled=io.StringIO()))


def residues_read(path: Path, settings: Settings) -> int:
    """Residues of a file that reach the model after cropping."""
    return sum(len(encode_cropped(record.sequence, settings)) - 2 for record in read_records(path))


def one_at_a_time(predictor: Predictor, path: Path) -> None:
    """Predict each protein as a batch of its own."""
    for protein in read_records(path):
        predictor.logits([encode_cropped(protein.sequence, predictor.settings)])


def in_batches(predictor: Predictor, path: Path) -> None:
    """Predict the file from its start."""
    with tempfile.TemporaryDirectory() as name:
        predictor.predict_file(path, Path(name) / "predictions.csv")


def peak_megabytes(folder: Path, records: int) -> float:
    """Peak resident memory of the prediction command on a file of so many records."""
    words = ["--model_name_or_path", folder / "adapter", "--predict_file", folder / f"{records}.fasta"]
    words += ["--output_dir", folder / f"out-{records}"]
    process = subprocess.Popen([sys.executable, ROOT / "finetune_localization.py", *words])
    peak = 0.0
    while process.poll() is None:
        # Not wait4's ru_maxrss: that counts this process, of which the child was a copy before its exec.
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        peak = max(peak, int(found[1]) / 1024) if found else peak
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"prediction of {records:,} records failed")
    return peak


if __name__ == "__main__":
    main()
