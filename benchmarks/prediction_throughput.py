#!/usr/bin/env python3
"""Localization prediction: batches of like length against one protein at a time; memory against file size.

    python benchmarks/prediction_throughput.py --model_size 8M --records 10000

The model has random 4-bit weights: speed does not depend on what they say. Input: synthetic proteins. Prints
Markdown: real residues a second of `predict_file` and of one protein at a time (on the first --alone records,
with the same model, in the same process), and the peak memory of the whole command for 1,000 records and for
--records.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import EsmForMaskedLM
from transformers import logging as transformers_logging

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from esm2_hyperpod.alphabet import encode  # noqa: E402
from esm2_hyperpod.fasta_records import read_records  # noqa: E402
from esm2_hyperpod.localization_encoding import crop  # noqa: E402
from esm2_hyperpod.localization_model import Lora, Settings, build  # noqa: E402
from esm2_hyperpod.localization_prediction import predict_file, predict_logits  # noqa: E402
from esm2_hyperpod.model import build_config  # noqa: E402
from esm2_hyperpod.synthetic import LOCALIZATIONS, fasta_chunks  # noqa: E402
from esm2_hyperpod.throughput import device_name  # noqa: E402

SMALL = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_size", default="8M")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--alone", type=int, default=200, help="records predicted one at a time")
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
    model = build(settings, Lora(8, 16, 0.0, "all"), device).eval()
    model.save_pretrained(folder / "adapter")
    settings.save(folder / "adapter")
    for records in {args.alone, SMALL, args.records}:
        write_fasta(folder / f"{records}.fasta", records)

    alone = one_at_a_time(model, settings, folder / f"{args.alone}.fasta")
    start = time.perf_counter()
    predict_file(model, settings, folder / f"{SMALL}.fasta", folder / "timed.csv", folder / "adapter")
    batched = residues_read(folder / f"{SMALL}.fasta", settings) / (time.perf_counter() - start)
    print(f"{device_name(device)}, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print(f"{args.model_size}, 4-bit weights, at most {settings.max_seq_length:,} tokens a protein\n")
    print("| way | real residues/s | ratio |\n|---|---|---|")
    print(f"| one protein at a time | {alone:,.0f} | 1.0 |")
    print(f"| predict_file | {batched:,.0f} | {batched / alone:.1f} |\n")

    print("| proteins | peak memory of the command, MB |\n|---|---|")
    for records in (SMALL, args.records):
        print(f"| {records:,} | {peak_megabytes(folder, records):,.0f} |", flush=True)


def write_fasta(path: Path, records: int) -> None:
    """Synthetic proteins, the same ones first whatever the number."""
    with open(path, "wb") as file:
        file.writelines(fasta_chunks(records, seed=0, labelled=io.StringIO()))


def residues_read(path: Path, settings: Settings) -> int:
    """Residues of a file that reach the model after cropping."""
    return sum(len(crop(r.sequence, settings.max_seq_length, settings.crop)) for r in read_records(path))


def one_at_a_time(model: torch.nn.Module, settings: Settings, path: Path) -> float:
    """Residues a second when each protein is a batch of its own."""
    start = time.perf_counter()
    for record in read_records(path):
        predict_logits(
            model, [encode(crop(record.sequence, settings.max_seq_length, settings.crop).encode())]
        )
    return residues_read(path, settings) / (time.perf_counter() - start)


def peak_megabytes(folder: Path, records: int) -> float:
    """Peak resident memory of the prediction command on a file of so many records."""
    words = ["--model_name_or_path", folder / "adapter", "--predict_file", folder / f"{records}.fasta"]
    words += ["--output_dir", folder / f"out-{records}"]
    command = [sys.executable, ROOT / "finetune_localization.py", *words]
    process = os.posix_spawn(sys.executable, [str(word) for word in command], os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"prediction of {records:,} records failed")
    return usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
