"""Real residues a second of a training step: packed against padded, side by side in one run.

    python benchmarks/training_throughput.py --model_size 150M                       one GPU, or the CPU
    torchrun --nproc_per_node 2 benchmarks/training_throughput.py --model_size 8M --tokens 4096

Every variant trains on the same sequences, cut to 512 tokens, with forward, backward and fused AdamW: in bf16
on a GPU, in fp32 on a CPU. On a CPU the variants take turns, so that a noisy machine is noisy for all; on a
GPU each is built, measured and freed alone. The median turn counts. Needs torch and transformers (5.17 or
newer) alone, and torchao for FP8. The sequences come from a seeded log-normal distribution of lengths like
UniRef50's, or from --fasta.
"""

import argparse
import gzip
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import EsmForMaskedLM

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.results import record
from esm2_hyperpod.alphabet import AMINO_ACID_IDS, PAD, encode
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.esm.fp8 import use_fp8
from esm2_hyperpod.esm.model import SIZES, build_config
from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM, masked_lm_loss
from esm2_hyperpod.pretraining.batches import BatchMaker
from esm2_hyperpod.pretraining.masking import IGNORED
from esm2_hyperpod.pretraining.packing import packed_layout, plan_epoch
from esm2_hyperpod.training.throughput import Counts, device_name, peak_tflops, training_flops

LONGEST = 512
VARIANTS = {
    "padded, eager": "Hugging Face ESM, eager attention, padded to 512",
    "padded, SDPA": "Hugging Face ESM, SDPA, padded to 512",
    "packed": "this project",
    "packed, compiled": "this project with torch.compile",
    "packed, compiled, FP8": "and FP8, by torchao",
}


def main() -> None:
    args = parse_arguments()
    ranks, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if ranks > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo")

    sequences = read_fasta(args.fasta) if args.fasta else random_sequences(6000)
    batches = make_batches(sequences, args.tokens, rank, ranks, device)
    rows = {}
    for name, row in measured(args, batches, device, ranks):
        rows[name] = row
        if rank == 0 and args.json:
            record(args.json, {"task": "training", **about(args, device, ranks)}, rows)
    if rank == 0:
        print_table(args, rows, device, ranks)
    if ranks > 1:
        dist.destroy_process_group()


def measured(args: argparse.Namespace, batches: dict, device: torch.device, ranks: int):
    """(name, figures) of each variant; figures of one that cannot run here say why."""
    if device.type == "cuda":
        for name in args.variants:
            try:
                run = Variant(name, args.model_size, batches, device, ranks)
                for _ in range(args.rounds):
                    run.take_turn(args.steps)
                yield name, run.figures()
            except (torch.OutOfMemoryError, UserError) as error:
                yield name, {"failed": str(error).splitlines()[0]}
            run = None
            torch.cuda.empty_cache()
        return
    runs = {name: Variant(name, args.model_size, batches, device, ranks) for name in args.variants}
    for _ in range(args.rounds):
        for run in runs.values():
            run.take_turn(args.steps)
    yield from ((name, run.figures()) for name, run in runs.items())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model_size", default="8M", choices=SIZES)
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens of a micro-batch, multiple of 512")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each variant; the first warms up")
    usual = [name for name in VARIANTS if "FP8" not in name]
    parser.add_argument("--variants", nargs="+", default=usual, choices=VARIANTS)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--fasta", type=Path, help="real sequences instead of random ones")
    args = parser.parse_args()
    if args.tokens % LONGEST or args.rounds < 2:
        parser.error("--tokens must be a multiple of 512, --rounds at least 2")
    return args


def random_sequences(count: int) -> list[np.ndarray]:
    """Random residues; lengths log-normal with median 230 and mean 300, as UniRef50's are."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(20, rng.lognormal(np.log(230), 0.73, count).astype(int))
    return [encode_ids(rng.choice(np.asarray(AMINO_ACID_IDS, dtype=np.uint8), length)) for length in lengths]


def encode_ids(residues: np.ndarray) -> np.ndarray:
    ids = encode(b"A" * len(residues))
    ids[1:-1] = residues
    return ids


def read_fasta(path: Path) -> list[np.ndarray]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        records = file.read().split(b">")[1:]
    return [encode(b"".join(record.split(b"\n")[1:]).strip()) for record in records]


def make_batches(sequences, tokens: int, rank: int, ranks: int, device: torch.device) -> dict[str, list]:
    """This rank's micro-batches, packed and padded, made of the same sequences in the same order."""
    lengths = np.asarray([len(sequence) for sequence in sequences], dtype=np.int32)
    layout = packed_layout(np.minimum(lengths, LONGEST), tokens, seed=0)
    plan = plan_epoch(layout, 0, 0)
    common = {
        "store": sequences,
        "tokens": tokens,
        "longest": LONGEST,
        "most_sequences": layout.most_sequences + tokens // LONGEST,
        "seed": 0,
        "mask_probability": 0.15,
        "mask_replace": "all_tokens",
    }
    packer, padder = BatchMaker(**common, packing=True), BatchMaker(**common, packing=False)
    packs = [plan[position] for position in range(rank, len(plan) - len(plan) % ranks, ranks)]
    order = np.concatenate(packs)
    rows = tokens // LONGEST
    groups = [order[start : start + rows] for start in range(0, len(order) - rows + 1, rows)]
    return {
        "packed": [to_device(packer[(0, pack)], device) for pack in packs[:16]],
        "padded": [to_device(pad_to_longest(padder[(0, group)]), device) for group in groups[:16]],
    }


def pad_to_longest(batch: dict) -> dict:
    """Pad rows to 512, as a data set that was tokenized with padding has them."""
    fill = {"input_ids": PAD, "attention_mask": 0, "labels": IGNORED}
    for name, value in fill.items():
        missing = LONGEST - batch[name].shape[1]
        batch[name] = torch.nn.functional.pad(batch[name], (0, missing), value=value)
    batch["counts"] = batch["counts"]._replace(slots=batch["labels"].numel())
    return batch


def to_device(batch: dict, device: torch.device) -> dict:
    return {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}


class Variant:
    """One way to train: its model, its optimizer, its batches, and what its turns took."""

    def __init__(self, name: str, model_size: str, batches: dict, device: torch.device, ranks: int):
        torch.manual_seed(0)
        config = build_config(model_size)
        self.packed = name.startswith("packed")
        if self.packed:
            model = PackedEsmForMaskedLM(config)
            model.compute_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            if "compiled" in name:
                model.compile_layers()
        else:
            config._attn_implementation = "eager" if "eager" in name else "sdpa"
            model = EsmForMaskedLM(config)
        model.esm.contact_head.requires_grad_(False)
        self.config, self.device, self.ranks = config, device, ranks
        model.to(device)
        if "FP8" in name:
            use_fp8(model, device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.model = DistributedDataParallel(model) if ranks > 1 else model
        self.batches = batches["packed" if self.packed else "padded"]
        self.position = 0
        self.turns: list[dict] = []

    def take_turn(self, steps: int) -> None:
        """Train some steps and keep the figures."""
        synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        counts = np.zeros(len(Counts._fields))
        start = time.perf_counter()
        for _ in range(steps):
            batch = dict(self.batches[self.position % len(self.batches)])
            self.position += 1
            one = batch.pop("counts")
            counts += one
            self.step(batch, one.masked)
        synchronize(self.device)
        seconds = time.perf_counter() - start
        counts = Counts(*counts)
        flops = training_flops(self.config, counts.tokens, counts.squared_lengths, counts.masked)
        turn = {
            "residues_per_second": counts.residues / seconds * self.ranks,
            "padding": 1 - counts.tokens / counts.slots,
            "tflops_per_device": flops / seconds / 1e12,
        }
        if self.device.type == "cuda":
            turn["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self.turns.append(turn)

    def step(self, batch: dict, masked: int) -> None:
        """One optimizer step of one micro-batch."""
        labels = batch.pop("labels")
        autocast = self.device.type == "cuda" and not self.packed  # a packed model rounds by itself
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            logits = self.model(**batch).logits
        masked_lm_loss(logits, labels, masked).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def figures(self) -> dict[str, float]:
        """Medians over the turns after the warm-up."""
        names = self.turns[0]
        figures = {name: statistics.median(turn[name] for turn in self.turns[1:]) for name in names}
        if peak := peak_tflops(device_name(self.device)):
            figures["mfu"] = figures["tflops_per_device"] / peak
        return figures


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    if dist.is_initialized():
        dist.barrier()


def about(args: argparse.Namespace, device: torch.device, ranks: int) -> dict:
    return {
        "model_size": args.model_size,
        "tokens": args.tokens,
        "processes": ranks,
        "device": device_name(device),
        "precision": "bf16" if device.type == "cuda" else "fp32",
        "torch": torch.__version__,
        "sequences": args.fasta.name if args.fasta else "random, seeded",
    }


def print_table(args: argparse.Namespace, rows: dict[str, dict], device: torch.device, ranks: int) -> None:
    facts = ", ".join(f"{name} {value}" for name, value in about(args, device, ranks).items())
    print(f"{facts}; median of {args.rounds - 1} turns of {args.steps} steps")
    print("| variant | real residues/s | ratio | padding | TFLOPS/device | MFU | peak GB |")
    print("|---|---|---|---|---|---|---|")
    base = next((row["residues_per_second"] for row in rows.values() if "failed" not in row), 1.0)
    for name, row in rows.items():
        if "failed" in row:
            print(f"| {name} ({VARIANTS[name]}) | {row['failed']} | | | | | |")
            continue
        cells = [
            f"{row['residues_per_second']:,.0f}",
            f"{row['residues_per_second'] / base:.2f}",
            f"{row['padding']:.1%}",
            f"{row['tflops_per_device']:.3g}",
            f"{row['mfu']:.1%}" if "mfu" in row else "-",
            f"{row['peak_gb']:.1f}" if "peak_gb" in row else "-",
        ]
        print(f"| {name} ({VARIANTS[name]}) | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
