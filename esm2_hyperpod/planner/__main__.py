"""Will it fit, how long will it take, what will it cost, and which command runs it?

    python -m esm2_hyperpod.planner --model_size 650M --instance ml.g5.24xlarge --nodes 2 --tokens 100B

Figures by formula, in bf16 over packs, compiled. They have not been compared with a GPU yet.
"""

import argparse
import json
import re
from dataclasses import dataclass

from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.planner.machines import Machine, find_machine
from esm2_hyperpod.planner.speed import RESIDUES, Step, step
from esm2_hyperpod.pretraining.memory import Strategy, largest_micro_batch, memory
from esm2_hyperpod.sizes import MB_PER_SECOND, SIZES, Size

GLOBAL_TOKENS = 2_097_152  # ESM-2's, and train.py's default
SCRIPTS = {"ddp": "2.train_ddp.sh", "fsdp": "3.train_fsdp.sh"}
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Row:
    """One way to train: the largest micro-batch that fits, and what follows from it."""

    strategy: Strategy
    tokens: int
    memory: dict[str, float]
    step: Step | None

    @property
    def name(self) -> str:
        """For people."""
        kind = {"ddp": "DDP", "fsdp": "FSDP2"}[self.strategy.name]
        return kind + (", activation checkpointing" if self.strategy.checkpointing else "")

    @property
    def gigabytes(self) -> float:
        """On one GPU."""
        return sum(self.memory.values()) / 1e9


def main() -> None:
    args = parse_arguments()
    size, machine = SIZES[args.model_size], find_machine(args.instance, args.nodes)
    rows = [plan(size, machine, Strategy(name, machine.gpus, again), args.global_batch_tokens)
            for name in SCRIPTS for again in (False, True)]  # fmt: skip
    fitting = [row for row in rows if row.step]
    if not fitting:
        raise UserError(
            f"{args.model_size} does not fit on {args.nodes} x {machine.instance}: the least is "
            f"{min(row.gigabytes for row in rows):,.0f} GB on a GPU of {machine.memory_gb} GB; "
            "take more nodes or a larger GPU"
        )
    best = min(fitting, key=lambda row: row.step.seconds / row.step.tokens)
    answer = {
        "model_size": args.model_size,
        "machine": f"{args.nodes} x {machine.instance}",
        "gpus": f"{machine.gpus} x {machine.gpu}",
        "ways": [figures(row, machine, args) for row in rows],
        "recommended": best.name,
        "memory_gb": {part: round(number / 1e9, 2) for part, number in best.memory.items()},
        "checkpoint_gb": round(size.checkpoint_gb, 2),
        "checkpoint_seconds": round(1000 * size.checkpoint_gb / args.file_system_mb_s, 1),
        "command": command(args, best),
    }
    print(json.dumps(answer, indent=1) if args.json else describe(answer, machine, args))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m esm2_hyperpod.planner",
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n")[2],
    )
    parser.add_argument("--model_size", required=True, choices=list(SIZES))
    parser.add_argument("--instance", required=True, help="such as ml.g5.24xlarge")
    parser.add_argument("--nodes", type=int, default=1, help="default: 1")
    parser.add_argument("--tokens", type=count, default=count("100B"), help="to train on; default: 100B")
    parser.add_argument(
        "--global_batch_tokens", type=count, default=GLOBAL_TOKENS, help="of a step; default: %(default)s"
    )
    parser.add_argument("--dollars_per_node_hour", type=float, help="for the cost of the run")
    parser.add_argument(
        "--file_system_mb_s", type=float, default=MB_PER_SECOND, help="for checkpoints; default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser.parse_args()


def count(text: str) -> int:
    """`100B` as a number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", text.upper().replace(",", ""))
    if not found or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text}: not a number such as 2097152, 500M or 100B")
    return round(float(found[1]) * UNITS[found[2]])


def plan(size: Size, machine: Machine, strategy: Strategy, global_tokens: int) -> Row:
    """The largest micro-batch that fits, and its step; without one, the memory of the smallest."""
    tokens = largest_micro_batch(size, strategy, machine.memory_gb, global_tokens)
    if not tokens:
        return Row(strategy, 0, memory(size, strategy, 1024, 2), None)
    accumulated = global_tokens // (tokens * strategy.gpus)
    parts = memory(size, strategy, tokens, accumulated)
    return Row(strategy, tokens, parts, step(size, strategy, machine, tokens, accumulated))


def figures(row: Row, machine: Machine, args: argparse.Namespace) -> dict:
    """What is said of one way to train."""
    if row.step is None:
        return {"way": row.name, "fits": False, "memory_gb": round(row.gigabytes, 1)}
    rate = row.step.tokens / row.step.seconds
    hours = args.tokens / rate / 3600
    said = {
        "way": row.name,
        "fits": True,
        "tokens_per_device": row.tokens,
        "memory_gb": round(row.gigabytes, 1),
        "step_seconds": round(row.step.seconds, 3),
        "residues_per_second": round(RESIDUES * rate),
        "mfu": round(row.step.flops / row.step.seconds / (machine.tflops * 1e12), 3),
        "bound_by": row.step.bound_by,
        "hours": round(hours, 1),
    }
    if args.dollars_per_node_hour is not None:
        said["dollars"] = round(hours * machine.nodes * args.dollars_per_node_hour)
    return said


def command(args: argparse.Namespace, best: Row) -> str:
    """The command line that trains this way."""
    flags = f"--tokens_per_device {best.tokens} --max_steps {max(1, round(args.tokens / best.step.tokens))}"
    if best.step.tokens != GLOBAL_TOKENS:
        flags += f" --global_batch_tokens {best.step.tokens}"
    if best.strategy.checkpointing:
        flags += " --activation_checkpointing true"
    script = SCRIPTS[best.strategy.name]
    return f"MODEL_SIZE={args.model_size} sbatch --nodes={args.nodes} {script} {flags}"


def describe(answer: dict, machine: Machine, args: argparse.Namespace) -> str:
    """The answer for people."""
    lines = [
        f"{args.model_size} on {answer['machine']} ({answer['gpus']}, {machine.memory_gb} GB each), "
        f"{args.tokens:,} tokens in steps of {args.global_batch_tokens:,}; by formula, not measured",
        "",
        f"{'way to train':32} {'tokens/GPU':>10} {'GB/GPU':>7} {'residues/s':>11} {'MFU':>5} {'hours':>9} "
        f"{'dollars':>9}  bound by",
    ]
    for way in answer["ways"]:
        if not way["fits"]:
            lines.append(f"{way['way']:32} {'-':>10} {way['memory_gb']:>7}  does not fit")
            continue
        dollars = f"{way['dollars']:,}" if "dollars" in way else "-"
        lines.append(
            f"{way['way']:32} {way['tokens_per_device']:>10,} {way['memory_gb']:>7} "
            f"{way['residues_per_second']:>11,} {way['mfu']:>5.0%} {way['hours']:>9,} {dollars:>9}  "
            f"{way['bound_by']}"
        )
    parts = ", ".join(f"{part} {number:,}" for part, number in answer["memory_gb"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{answer['recommended']}, GB on a GPU: {parts}",
            f"a checkpoint: {answer['checkpoint_gb']:,} GB, {answer['checkpoint_seconds']:,} s at "
            f"{args.file_system_mb_s:,} MB/s; keep room for {4 * answer['checkpoint_gb']:,.1f} GB",
            "",
            answer["command"],
        ]
    )


if __name__ == "__main__":
    run_script(main)
