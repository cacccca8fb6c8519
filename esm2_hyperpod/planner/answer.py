"""What the planner says: a table of the ways to train, the one that it recommends, and its command."""

import argparse
import re
import shlex
from dataclasses import dataclass

from esm2_hyperpod.errors import UserError
from esm2_hyperpod.planner.machines import Machine
from esm2_hyperpod.planner.models import Model
from esm2_hyperpod.planner.ways import Way, all_ways, best_way
from esm2_hyperpod.pretraining.memory import MARGIN
from esm2_hyperpod.sizes import MB_PER_SECOND

GLOBAL_TOKENS = 2_097_152  # ESM-2's, and train.py's default
CHECKPOINTS = 4  # three kept and the one being written
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Question:
    """A model on a machine, for so many tokens."""

    model: Model
    machine: Machine
    tokens: int
    global_tokens: int = GLOBAL_TOKENS
    dollars_per_node_hour: float | None = None
    file_system_mb_s: float = MB_PER_SECOND
    muon: bool = False


def count(text: str) -> int:
    """`100B` as a number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", text.upper().replace(",", ""))
    if not found or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text}: not a number such as 2097152, 500M or 100B")
    return round(float(found[1]) * UNITS[found[2]])


def answer(asked: Question) -> dict:
    """Everything that is said, for programs. Raises `UserError` where the model does not fit."""
    machine, size, name = asked.machine, asked.model.size, asked.model.name
    ways = all_ways(size, machine, asked.global_tokens, asked.muon)
    best = best_way(ways, machine)
    if best is None:
        raise UserError(
            f"{name} does not fit on {machine.nodes} x {machine.instance}: the least is "
            f"{min(way.gigabytes for way in ways):,.0f} GB on a GPU of {machine.gpu.memory_gb} GB; "
            "take more nodes or a larger GPU"
        )
    return {
        "model": name,
        "parameters": size.parameters,
        "machine": f"{machine.nodes} x {machine.instance}",
        "gpus": f"{machine.gpus} x {machine.gpu.name}",
        "gpu_memory_gb": machine.gpu.memory_gb,
        "planned_share_of_memory": MARGIN,
        "tokens": asked.tokens,
        "global_batch_tokens": asked.global_tokens,
        "ways": [figures(way, asked) for way in ways],
        "recommended": best.name,
        "memory_gb": {part: round(number / 1e9, 2) for part, number in best.memory.items()},
        "checkpoint_gb": round(size.checkpoint_gb, 2),
        "checkpoint_seconds": round(1000 * size.checkpoint_gb / asked.file_system_mb_s, 1),
        "checkpoints_gb": round(CHECKPOINTS * size.checkpoint_gb, 1),
        "command": command(asked, best),
    }


def figures(way: Way, asked: Question) -> dict:
    """What is said of one way to train."""
    if way.step is None:
        return {"way": way.name, "fits": False, "memory_gb": round(way.gigabytes, 1)}
    hours = asked.tokens / way.tokens_per_second / 3600
    said = {
        "way": way.name,
        "fits": True,
        "tokens_per_device": way.tokens,
        "memory_gb": round(way.gigabytes, 1),
        "step_seconds": round(way.step.seconds, 3),
        "residues_per_second": round(way.residues_per_second),
        "mfu": round(way.mfu(asked.machine), 3),
        "bound_by": way.step.bound_by,
        "hours": round(hours, 1 if hours > 10 else 3),
    }
    if asked.dollars_per_node_hour is not None:
        said["dollars"] = round(hours * asked.machine.nodes * asked.dollars_per_node_hour)
    return said


def command(asked: Question, way: Way) -> str:
    """The command line that trains this way."""
    model = dict(asked.model.flags)
    words = [f"MODEL_SIZE={model.pop('model_size')}"] if "model_size" in model else []
    words += ["sbatch", f"--nodes={asked.machine.nodes}", way.script, *way.flags(asked.machine.nodes)]
    for name, value in model.items():
        words += [f"--{name}", str(value)]
    words += ["--max_steps", str(max(1, round(asked.tokens / way.step.tokens)))]
    if way.step.tokens != GLOBAL_TOKENS:
        words += ["--global_batch_tokens", str(way.step.tokens)]
    return shlex.join(words)


def describe(found: dict) -> str:
    """The answer for people."""
    lines = [
        f"{found['model']} on {found['machine']} ({found['gpus']}, {found['gpu_memory_gb']} GB each, "
        f"{found['planned_share_of_memory']:.0%} of it planned with), {found['tokens']:,} tokens in steps of "
        f"{found['global_batch_tokens']:,}; by formula, not measured",
        "",
        f"{'way to train':42} {'tokens/GPU':>10} {'GB/GPU':>7} {'s/step':>8} {'residues/s':>11} {'MFU':>5} "
        f"{'hours':>9} {'dollars':>11}  bound by",
    ]
    for way in found["ways"]:
        if not way["fits"]:
            lines.append(f"{way['way']:42} {'-':>10} {way['memory_gb']:>7,}  does not fit")
            continue
        dollars = f"{way['dollars']:,}" if "dollars" in way else "-"
        lines.append(
            f"{way['way']:42} {way['tokens_per_device']:>10,} {way['memory_gb']:>7} "
            f"{way['step_seconds']:>8,} {way['residues_per_second']:>11,} {way['mfu']:>5.0%} "
            f"{way['hours']:>9,} {dollars:>11}  {way['bound_by']}"
        )
    parts = ", ".join(f"{part} {number:,}" for part, number in found["memory_gb"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{found['recommended']}, GB on a GPU: {parts}",
            f"a checkpoint: {found['checkpoint_gb']:,} GB, {found['checkpoint_seconds']:,} s to write; "
            f"keep room for {found['checkpoints_gb']:,} GB",
            "",
            found["command"],
        ]
    )
