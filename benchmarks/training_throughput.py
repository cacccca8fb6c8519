"""Real residues a second of a training step: packed against padded, side by side in one run.

    python benchmarks/training_throughput.py --model_size 150M                       one GPU, or the CPU
    torchrun --nproc_per_node 2 benchmarks/training_throughput.py --model_size 8M --tokens 4096

Every variant trains on the same sequences, cut to 512 tokens, with forward, backward and fused AdamW:
bf16 autocast on CUDA, fp32 on a CPU. Variants take turns, so that a noisy machine is noisy for all, and
the median turn counts. Needs torch and transformers (5.17 or newer) alone. The sequences come from a
seeded log-normal distribution of lengths like UniRef50's, or from --fasta.
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
from esm2_hyperpod.alphabet import AMINO_ACID_IDS, PAD, encode
from esm2_hyperpod.esm.model import SIZES, build_config
from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM, masked_lm_loss
from esm2_hyperpod.pretraining.batches import BatchMaker
from esm2_hyperpod.pretraining.masking import IGNORED
from esm2_hyperpod.pretraining.packing import packed_layout, plan_epoch
from esm2_hyperpod.training.throughput import device_name, peak_tflops, training_flops

LONGEST = 512
VARIANTS = {
    "padded, eager": "Hugging Face ESM, eager attention, padded to 512",
    "padded, SDPA": "Hugging Face ESM, SDPA, padded to 512",
    "packed": "this project",
    "packed, compiled": "this project with torch.compile",
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
    runs = {name: Variant(name, args.model_size, batches, device, ranks) for name in args.variants}
    for _ in range(args.rounds):
        for run in runs.values():
            run.take_turn(args.steps)
    if rank == 0:
        print_table(args, runs, device, ranks)
    if ranks > 1:
        dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model_size", default="8M", choices=SIZES)
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens of a micro-batch, multiple of 512")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each variant; the first warms up")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
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
        packed = name.startswith("packed")
        if packed:
            model = PackedEsmForMaskedLM(config)
        else:
            config._attn_implementation = "eager" if "eager" in name else "sdpa"
            model = EsmForMaskedLM(config)
        model.esm.contact_head.requires_grad_(False)
        self.config, self.device, self.ranks = config, device, ranks
        model.to(device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        self.model = DistributedDataParallel(model) if ranks > 1 else model
        if "compiled" in name:
            self.model = torch.compile(self.model)
        self.batches = batches["packed" if packed else "padded"]
        self.position = 0
        self.turns: list[dict] = []

    def take_turn(self, steps: int) -> None:
        """Train some steps and keep the figures."""
        synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        counts = np.zeros(4)
        start = time.perf_counter()
        for _ in range(steps):
            batch = dict(self.batches[self.position % len(self.batches)])
            self.position += 1
            counts += batch.pop("counts")
            self.step(batch)
        synchronize(self.device)
        seconds = time.perf_counter() - start
        residues, tokens, slots, squared = counts
        memory = torch.cuda.max_memory_allocated() / 1e9 if self.device.type == "cuda" else float("nan")
        self.turns.append(
            {
                "residues": residues / seconds * self.ranks,
                "padding": 1 - tokens / slots,
                "tflops": training_flops(self.config, tokens, squared) / seconds / 1e12,
                "memory": memory,
            }
        )

    def step(self, batch: dict) -> None:
        labels = batch.pop("labels")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model(**batch).logits
        masked_lm_loss(logits, labels, labels.ne(IGNORED).sum()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def figure(self, name: str) -> float:
        """Median over the turns after the warm-up."""
        return statistics.median(turn[name] for turn in self.turns[1:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    if dist.is_initialized():
        dist.barrier()


def print_table(args: argparse.Namespace, runs: dict[str, Variant], device: torch.device, ranks: int) -> None:
    base = next(iter(runs.values())).figure("residues")
    peak = peak_tflops(device_name(device))
    print(
        f"{args.model_size}, {args.tokens:,} tokens, {ranks} process(es) on {device_name(device)}, "
        f"{'bf16' if device.type == 'cuda' else 'fp32'}, torch {torch.__version__}; "
        f"sequences: {args.fasta.name if args.fasta else 'random, seeded'}; "
        f"median of {args.rounds - 1} turns of {args.steps} steps"
    )
    print("| variant | real residues/s | ratio | padding | TFLOPS/device | MFU | peak GB |")
    print("|---|---|---|---|---|---|---|")
    for name, run in runs.items():
        residues, tflops = run.figure("residues"), run.figure("tflops")
        figures = [
            f"{residues:,.0f}",
            f"{residues / base:.2f}",
            f"{run.figure('padding'):.1%}",
            f"{tflops:.3g}",
        ]
        figures.append(f"{tflops / peak:.1%}" if peak else "-")
        figures.append(f"{run.figure('memory'):.1f}" if device.type == "cuda" else "-")
        print(f"| {name} ({VARIANTS[name]}) | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
