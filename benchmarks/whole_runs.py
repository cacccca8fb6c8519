"""The numbered scripts as they are run, and the figures that they log: DDP, FSDP2, Muon, 4-bit fine-tuning.

    python benchmarks/whole_runs.py --model_sizes 150M 650M [--json benchmarks/out/runs.json]

Pretraining: 2.train_ddp.sh and 3.train_fsdp.sh on all GPUs of this machine, or on two CPU processes, over
synthetic proteins; the figures of the last log, which leave out start and compilation. Fine-tuning:
4.finetune_qlora.sh with few and with many steps, whose difference in time and residues counts.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import EsmForMaskedLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.results import record  # noqa: E402
from esm2_hyperpod.esm.model import build_config  # noqa: E402
from esm2_hyperpod.runs.record import read_metrics  # noqa: E402
from esm2_hyperpod.training.throughput import device_name  # noqa: E402

PRETRAINING = {
    "DDP": ["2.train_ddp.sh"],
    "DDP, Muon": ["2.train_ddp.sh", "--optim", "muon"],
    "FSDP2": ["3.train_fsdp.sh"],
    "FSDP2, Muon": ["3.train_fsdp.sh", "--optim", "muon"],
}
FIGURES = "residues_per_second residues_per_second_per_device mfu peak_memory_gb data_wait_share".split()
ON_GPU = torch.cuda.is_available()
PROCESSES = torch.cuda.device_count() or 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_sizes", nargs="+", default=["150M", "650M"] if ON_GPU else ["tiny"])
    parser.add_argument("--steps", type=int, default=20 if ON_GPU else 4, help="optimizer steps of a run")
    parser.add_argument("--tokens", type=int, default=16_384 if ON_GPU else 1024, help="of a micro-batch")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    device = device_name(torch.device("cuda" if ON_GPU else "cpu"))
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, row in measured(args, Path(folder)):
            rows[name] = row
            print(name, row, flush=True)
            if args.json:
                record(args.json, {"task": "runs", "device": device, "processes": PROCESSES}, rows)
    if any("failed" in row for row in rows.values()):
        sys.exit("whole_runs.py: error: a run failed")


def measured(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, dict]]:
    """(name, figures) of each run."""
    records = 20_000 if ON_GPU else 1_000
    run(sys.executable, "0.download_data.py", *"--source synthetic --num_partitions 4".split(),
        "--max_records", records, "--output_dir", folder / "csv")  # fmt: skip
    run(sys.executable, "1.tokenize_uniref_csv.py", "--input_dir", folder / "csv",
        "--output_dir", folder / "arrow")  # fmt: skip
    for size in args.model_sizes:
        for name, words in PRETRAINING.items():
            output = folder / f"{name.replace(', ', '-')}-{size}"
            yield f"{name}, {size}", pretraining(words, size, args, output, folder)
        yield f"4-bit fine-tuning, {size}", finetuning(size, args, folder)


def pretraining(words: list[str], size: str, args: argparse.Namespace, output: Path, folder: Path) -> dict:
    """Figures of the last log of a run: `words` are a wrapper and flags for it."""
    flags = [
        *("--model_size", size, "--max_steps", args.steps, "--logging_steps", args.steps // 2),
        *("--tokens_per_device", args.tokens, "--global_batch_tokens", 2 * PROCESSES * args.tokens),
        *("--save_steps", 10**6, "--eval_strategy", "no", "--report_to", "none"),
    ]
    places = {"DATASET_DIR": str(folder / "arrow"), "OUTPUT_DIR": str(output)}
    failed = run("bash", *words, *flags, **places)
    if failed:
        return {"failed": failed}
    last = [line for line in read_metrics(output) if "loss" in line][-1]
    return {name: last[name] for name in FIGURES if name in last}


def finetuning(size: str, args: argparse.Namespace, folder: Path) -> dict:
    """Residues a second of 4-bit fine-tuning with batches of 8 proteins of up to 512 tokens."""
    base = folder / f"base-{size}"
    EsmForMaskedLM(build_config(size)).save_pretrained(base)
    took, seen = [], []
    for steps in (args.steps // 2, 2 * args.steps):
        output = folder / f"localization-{size}-{steps}"
        flags = [
            "--train_file",
            folder / "csv" / "localization.csv",
            "--max_steps",
            steps,
            "--split",
            "random",
        ]
        flags += ["--max_seq_length", 512, "--global_batch_size", 8 * PROCESSES, "--logging_steps", steps]
        start = time.monotonic()
        failed = run("bash", "4.finetune_qlora.sh", *flags, "--report_to", "none",
                     OUTPUT_DIR=str(output), MODEL_NAME_OR_PATH=str(base))  # fmt: skip
        if failed:
            return {"failed": failed}
        took.append(time.monotonic() - start)
        seen.append(max(line.get("residues_seen", 0) for line in read_metrics(output)))
    if took[1] - took[0] < took[0] / 10:
        return {"residues_per_second": "too few steps to tell"}
    return {"residues_per_second": (seen[1] - seen[0]) / (took[1] - took[0])}


def run(*words: object, **environment: str) -> str:
    """Run a command; returns the last line of its complaint if it fails."""
    python_folder = str(Path(sys.executable).parent)
    environment |= {"PATH": f"{python_folder}:{os.environ['PATH']}", "VENV": sys.prefix}
    environment |= {"GPUS_PER_NODE": str(PROCESSES)}
    result = subprocess.run(
        list(map(str, words)), cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    if not result.returncode:
        return ""
    lines = [line for line in result.stderr.splitlines() if "rror" in line]
    return lines[-1] if lines else f"exit code {result.returncode}"


if __name__ == "__main__":
    main()
