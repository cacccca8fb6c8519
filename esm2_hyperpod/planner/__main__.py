"""Will it fit, how long will it take, what will it cost, and which command runs it?

    python -m esm2_hyperpod.planner --model_size 650M --instance ml.g5.24xlarge --nodes 2 --tokens 100B

Figures by formula, in bf16 over packs, compiled. They have not been compared with a GPU yet.
"""

import argparse
import json
import re
from pathlib import Path

from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.planner.answer import GLOBAL_TOKENS, Question, answer, describe
from esm2_hyperpod.planner.machines import find_machine
from esm2_hyperpod.sizes import MB_PER_SECOND, SHAPE, SIZES, Size

UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def main() -> None:
    args = parse_arguments()
    size, flags = find_model(args)
    question = Question(
        size,
        flags,
        find_machine(args.instance, args.nodes),
        args.tokens,
        args.global_batch_tokens,
        args.dollars_per_node_hour,
        args.file_system_mb_s,
    )
    found = answer(question)
    print(json.dumps(found, indent=1) if args.json else describe(found))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m esm2_hyperpod.planner",
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n")[2],
    )
    parser.add_argument("--model_size", choices=list(SIZES), help="default: 8M, as train.py's")
    parser.add_argument("--config_name", help="a folder with a config.json, or facebook/esm2_*, instead")
    for flag in SHAPE:
        parser.add_argument(f"--{flag}", type=int, help="as train.py's")
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


def find_model(args: argparse.Namespace) -> tuple[Size, dict[str, object]]:
    """The size that is asked about, and the flags of `train.py` that ask for it."""
    shape = {flag: getattr(args, flag) for flag in SHAPE if getattr(args, flag) is not None}
    if args.config_name and args.model_size:
        raise UserError("--model_size and --config_name: give one of them")
    if args.config_name:
        return Size.from_config(read_config(args.config_name) | shape), {"config_name": args.config_name, **shape}
    name = args.model_size or "8M"
    size = SIZES[name]
    given = dict(zip(SHAPE, (size.layers, size.width, size.heads))) | shape
    if min(given.values()) < 1 or given["hidden_size"] % (2 * given["num_attention_heads"]):
        raise UserError(
            f"--hidden_size {given['hidden_size']} --num_attention_heads {given['num_attention_heads']}: "
            "the width must be an even multiple of the heads"
        )
    return Size.from_config(given), {"model_size": name, **shape}


def read_config(name: str) -> dict[str, int]:
    """The architecture of a model folder, or of facebook/esm2_* by its name; fetches nothing."""
    path = Path(name) / "config.json"
    if known := re.fullmatch(r"facebook/esm2_t\d+_(\w+)_UR50D", name):
        size = SIZES.get(known[1])
        return dict(zip(SHAPE, (size.layers, size.width, size.heads, size.feed_forward))) if size else {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return {flag: read[flag] for flag in SHAPE}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--config_name {name}: no ESM-2 config.json there ({type(error).__name__}); give a model folder or "
            "facebook/esm2_t33_650M_UR50D"
        ) from None


if __name__ == "__main__":
    run_script(main)
