#!/usr/bin/env python3
"""Embeddings: packs against one protein at a time and against padded batches; memory against file size.

    python benchmarks/embedding_throughput.py --model_size 8M --records 10000 --kills 10

The model has random weights: speed does not depend on what they say. Input: synthetic proteins. Prints
Markdown: real residues a second of transformers with one protein at a time, of a loop as in fair-esm's
scripts/extract.py (its model, batches of proteins of like length up to 4,096 tokens, padded; a file a
protein), and of embed.py's loop, on the first --timed records, in one process, taking turns, medians. Then
the peak memory of the whole command for 1,000 records and for --records, and whether that command, killed at
random instants and started again each time, ends with the same bytes.
"""

import argparse
import hashlib
import io
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import EsmForMaskedLM
from transformers import logging as transformers_logging

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.results import record  # noqa: E402
from esm2_hyperpod.alphabet import build_tokenizer, encode  # noqa: E402
from esm2_hyperpod.download.synthetic import fasta_chunks  # noqa: E402
from esm2_hyperpod.esm.model import build_config  # noqa: E402
from esm2_hyperpod.inference.hidden_states import embed  # noqa: E402
from esm2_hyperpod.inference.model import load_masked_lm  # noqa: E402
from esm2_hyperpod.proteins.records import read_records  # noqa: E402
from esm2_hyperpod.training.throughput import device_name  # noqa: E402

SMALL, TURNS, LONGEST = 1_000, 5, 1022
PADDED_TOKENS = 4096  # fair-esm's --toks_per_batch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_size", default="8M")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--timed", type=int, default=200, help="records that the speed is measured on")
    parser.add_argument("--kills", type=int, default=10, help="of the command on --records")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        measure(args, Path(name))


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Make a model and the input files, measure, and print the tables."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = EsmForMaskedLM(build_config(args.model_size)).eval()
    model.save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    for count in {args.timed, min(SMALL, args.records), args.records}:
        with open(folder / f"{count}.fasta", "wb") as file:
            file.writelines(fasta_chunks(count, seed=0, labelled=io.StringIO()))
    # What is longer than a window is left to the test of the windows: the other ways cut it off.
    proteins = [text.sequence[:LONGEST] for text in read_records(folder / f"{args.timed}.fasta")]

    ways = {"transformers, one protein at a time": one_at_a_time(model.to(device))}
    if padded := padded_batches(model, folder, device):
        ways["fair-esm, padded batches"] = padded
    ways["embed.py"] = packed(folder / "model", device)
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        ways["embed.py, bf16"] = packed(folder / "model", device, bf16=True)
    seconds = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, work in ways.items():
            start = time.perf_counter()
            work(proteins)
            seconds[name].append(time.perf_counter() - start)
    residues = sum(map(len, proteins))
    rates = {name: residues / statistics.median(times) for name, times in seconds.items()}
    print(f"{device_name(device)}, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    print(
        f"{args.model_size}, fp32 but where it says bf16, the mean of the last layer; {args.timed} proteins\n"
    )
    print("| way | real residues/s | ratio |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / next(iter(rates.values())):.2f} |")

    rows = {name: {"residues_per_second": rate} for name, rate in rates.items()}
    print("\n| proteins | peak memory of the command, MB | s |\n|---|---|---|")
    for count in sorted({min(SMALL, args.records), args.records}):
        start = time.perf_counter()
        megabytes = peak_megabytes(start_command(folder, count, f"out-{count}"))
        took = time.perf_counter() - start
        rows[f"{count:,} proteins"] = {"peak_mb_of_the_command": megabytes, "seconds": took}
        print(f"| {count:,} | {megabytes:,.0f} | {took:.0f} |", flush=True)
    if args.kills:
        killed = kill_at_random(folder, args.records, args.kills, took)
        same = digest(folder / "killed") == digest(folder / f"out-{args.records}")
        rows["killed"] = {"kills": killed, "same_bytes": str(same)}
        print(f"\nkilled {killed} times and started again: {'the same bytes' if same else 'OTHER BYTES'}")
    if args.json:
        facts = {"task": "embedding", "device": device_name(device), "model_size": args.model_size}
        record(args.json, facts, rows)


Work = Callable[[list[str]], None]


def one_at_a_time(model: EsmForMaskedLM) -> Work:
    """transformers as its documentation shows it."""

    @torch.inference_mode()
    def work(proteins: list[str]) -> None:
        for protein in proteins:
            ids = torch.from_numpy(encode(protein.encode()).astype("int64"))[None].to(model.device)
            model.esm(ids).last_hidden_state[0, 1:-1].mean(dim=0).cpu()

    return work


def padded_batches(model: EsmForMaskedLM, folder: Path, device: torch.device) -> Work | None:
    """fair-esm's own model, data set, and batches, and a file a protein; None where it is not installed."""
    try:
        from esm import FastaBatchedDataset
        from helpers.fair_esm import fair_esm_copy
    except ImportError:
        return None
    theirs = fair_esm_copy(model).to(device)
    last = theirs.num_layers

    @torch.no_grad()
    def work(proteins: list[str]) -> None:
        data = FastaBatchedDataset([str(number) for number in range(len(proteins))], proteins)
        batches = data.get_batch_indices(PADDED_TOKENS, extra_toks_per_seq=1)
        convert = theirs.alphabet.get_batch_converter(LONGEST)
        for labels, texts, tokens in torch.utils.data.DataLoader(
            data, collate_fn=convert, batch_sampler=batches
        ):
            states = theirs(tokens.to(device), repr_layers=[last])["representations"][last].cpu()
            for row, label in enumerate(labels):
                mean = states[row, 1 : len(texts[row]) + 1].mean(0).clone()
                torch.save({"label": label, "mean_representations": {last: mean}}, folder / f"{label}.pt")

    return work


def packed(model_folder: Path, device: torch.device, bf16: bool = False) -> Work:
    """What embed.py does with a chunk."""
    model = load_masked_lm(str(model_folder), device, bf16)
    last = model.config.num_hidden_layers

    def work(proteins: list[str]) -> None:
        embed(model, proteins, [last], ["mean"], LONGEST + 2)

    return work


def start_command(folder: Path, records: int, output: str) -> subprocess.Popen:
    """embed.py on a file of so many records."""
    words = ["--model_name_or_path", folder / "model", "--fasta", folder / f"{records}.fasta"]
    words = [sys.executable, ROOT / "embed.py", *words, "--output_dir", folder / output]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def peak_megabytes(process: subprocess.Popen) -> float:
    """Peak resident memory of a process, which must succeed."""
    peak = 0.0
    while process.poll() is None:
        # Not wait4's ru_maxrss: that counts this process, of which the child was a copy before its exec.
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        peak = max(peak, int(found[1]) / 1024) if found else peak
        time.sleep(0.1)
    if process.returncode:
        sys.exit("embed.py failed")
    return peak


def kill_at_random(folder: Path, records: int, kills: int, seconds: float) -> int:
    """Kill the command at random instants of its whole time, then let it finish; how often it was killed."""
    source, killed = random.Random(0), 0
    for _ in range(kills):
        process = start_command(folder, records, "killed")
        try:
            process.wait(source.uniform(0, 2 * seconds / kills))
        except subprocess.TimeoutExpired:
            process.kill()
            killed += 1
        process.wait()
    peak_megabytes(start_command(folder, records, "killed"))
    return killed


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, but for the lock."""
    files = [path for path in sorted(folder.iterdir()) if path.name != ".lock"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    main()
