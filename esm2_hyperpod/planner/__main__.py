"""Will it fit, how long will it take, what will it cost, and which command runs it?

    python -m esm2_hyperpod.planner --model_size 650M --instance ml.g5.24xlarge --nodes 2 --tokens 100B

Figures by formula, in bf16 over packs, compiled. They have not been compared with a GPU yet.
"""

import argparse
import json

from esm2_hyperpod.command_line import Parser, say_what_for
from esm2_hyperpod.console import positive
from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.planner.answer import GLOBAL_TOKENS, Question, answer, count, describe
from esm2_hyperpod.planner.machines import find_machine
from esm2_hyperpod.planner.models import find_model
from esm2_hyperpod.sizes import MB_PER_SECOND, SHAPE, SIZES, size_in


def main() -> None:
    say_what_for(__doc__)
    args = parse_arguments()
    if args.config_name and args.model_size:
        raise UserError("--model_size and --config_name: give one of them")
    shape = {flag: getattr(args, flag) for flag in SHAPE}
    question = Question(
        find_model(args.model_size or "8M", args.config_name, shape),
        find_machine(args.instance, args.nodes),
        args.tokens,
        args.global_batch_tokens,
        args.dollars_per_node_hour,
        args.file_system_mb_s,
        args.optim == "muon",
    )
    found = answer(question)
    print(json.dumps(found, indent=1) if args.json else describe(found))


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        prog="python -m esm2_hyperpod.planner",
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n")[2],
    )
    parser.add_argument("--model_size", type=a_size, help=f"{', '.join(SIZES)}; default: 8M, as train.py's")
    parser.add_argument("--config_name", help="a folder with a config.json, or facebook/esm2_*, instead")
    for flag in SHAPE:
        parser.add_argument(f"--{flag}", type=int, help="as train.py's")
    parser.add_argument("--instance", required=True, help="such as ml.g5.24xlarge")
    parser.add_argument("--nodes", type=positive, default=1, help="default: 1")
    parser.add_argument("--tokens", type=count, default=count("100B"), help="to train on; default: 100B")
    parser.add_argument(
        "--global_batch_tokens", type=count, default=GLOBAL_TOKENS, help="of a step; default: %(default)s"
    )
    parser.add_argument("--dollars_per_node_hour", type=float, help="for the cost of the run")
    parser.add_argument(
        "--file_system_mb_s", type=float, default=MB_PER_SECOND, help="for checkpoints; default: %(default)s"
    )
    parser.add_argument(
        "--optim", choices=["muon"], help="as train.py's: less memory; its time is not planned"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser.parse_args()


def a_size(text: str) -> str:
    """The type of a flag that takes a size, also by a published model's name."""
    found = size_in(text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: not one of {', '.join(SIZES)}")
    return found


if __name__ == "__main__":
    run_script(main)
