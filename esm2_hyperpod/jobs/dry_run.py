"""What a wrapper would run, and what can be known to be wrong before a cluster is waited for.

    DRY_RUN=1 bash 2.train_ddp.sh ...

Reads arguments, dataset and output folder as the training script will, and writes nothing. The exit
code is 1 if something is wrong; every problem is one line.
"""

# ruff: noqa: E402
import argparse
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from esm2_hyperpod.imports import leave_out

leave_out("peft", "datasets", "scipy", "sklearn")

from esm2_hyperpod.artifacts import read_manifest, size_text
from esm2_hyperpod.command_line import Parser
from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.localization.arguments import FinetuningArguments
from esm2_hyperpod.planner.answer import Question, answer, describe
from esm2_hyperpod.planner.machines import find_machine
from esm2_hyperpod.planner.models import find_model
from esm2_hyperpod.pretraining.arguments import PretrainingArguments
from esm2_hyperpod.pretraining.data import open_split
from esm2_hyperpod.runs.checkpoints import list_checkpoints, newest_whole_checkpoint
from esm2_hyperpod.runs.record import is_finished
from esm2_hyperpod.sizes import MB_PER_SECOND, SHAPE, SIZES, Size
from esm2_hyperpod.training.arguments import RunArguments
from esm2_hyperpod.training.parsing import parse
from esm2_hyperpod.training.script import earlier_run


def main() -> int:
    """Print the plan and the problems; return 1 if there are any."""
    parser = Parser(prog="dry_run")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", type=int, required=True, help="on each node")
    parser.add_argument("--instance", default="", help="the nodes' type, such as g5.24xlarge")
    parser.add_argument("--launcher", default="torchrun", choices=["torchrun", "accelerate"])
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    world = asked.nodes * asked.processes
    say("processes", f"{asked.nodes} node(s) x {asked.processes} = {world}")
    sys.argv = [asked.script, *asked.arguments]
    check = check_pretraining if asked.script == "train.py" else check_finetuning
    problems = check(world, asked)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


def check_pretraining(world: int, asked: argparse.Namespace) -> list[str]:
    """Check what `train.py` would be given on `world` processes of `asked.nodes`; returns the problems."""
    args = planned(PretrainingArguments, world, asked.launcher == "accelerate")
    dataset_dir = Path(args.dataset_dir)
    try:
        manifest = read_manifest(dataset_dir, made_by="python 1.tokenize_uniref_csv.py", holds="token_counts")
    except UserError as error:
        return [str(error)]
    say("dataset", f"{dataset_dir}: complete")
    epochs_asked = args.max_steps <= 0
    train = open_split(dataset_dir / "train", args, args.seed, plans_folder=None) if epochs_asked else None
    try:
        args.set_steps(train.packs.packs_per_epoch if train else 0)
    except UserError as error:
        return [str(error)]
    micro_batches = f"{args.tokens_per_device:,} x {args.gradient_accumulation_steps} accumulated"
    say(
        "global batch",
        f"{args.global_batch_tokens:,} tokens = {args.data_ranks} process(es) x {micro_batches}",
    )
    say("steps", f"{args.last_step:,}")
    if args.model_name_or_path is None and args.model_size in SIZES:
        say_checkpoints(SIZES[args.model_size], args.save_total_limit, Path(args.output_dir))
    say_plan(args, asked)
    return check_output(args, {**args.identity(), "dataset": manifest["content_digest"]}, args.last_step)


def say_plan(args: PretrainingArguments, asked: argparse.Namespace) -> None:
    """What the planner says of this model on these nodes, where it knows them; no problem if it does not."""
    name = "model_name_or_path" if args.model_name_or_path else "config_name"
    shape = {flag: vars(args).get(flag) for flag in SHAPE}
    try:
        machine = replace(find_machine(asked.instance, asked.nodes), gpus_per_node=asked.processes)
        model = find_model(args.model_size, vars(args).get(name), shape, name)
        tokens = args.last_step * args.global_batch_tokens
        plan = describe(answer(Question(model, machine, tokens, args.global_batch_tokens)))
    except UserError as error:
        say("planner", f"{error}" if asked.instance else "says nothing of machines other than AWS's")
    else:
        print(f"\n{plan}\n")


def say_checkpoints(size: Size, kept: int | None, output_dir: Path) -> None:
    """How large a checkpoint is, how long it takes, and what the kept ones and the one being written need."""
    seconds = 1000 * size.checkpoint_gb / MB_PER_SECOND
    each = f"{size_text(1e9 * size.checkpoint_gb)} each, {seconds:.0f} s at {MB_PER_SECOND} MB/s"
    if kept is None:
        say("checkpoints", f"{each}, all kept")
        return
    there = len(list_checkpoints(output_dir))
    needed = 1e9 * max(kept + 1 - there, 1) * size.checkpoint_gb
    folder = next(
        parent for parent in (output_dir.absolute(), *output_dir.absolute().parents) if parent.exists()
    )
    free = shutil.disk_usage(folder).free
    verdict = "" if free > needed else ": too little: add --save_total_limit 1, or make space"
    say("checkpoints", f"{each}, {kept} kept: {size_text(needed)} to come, {size_text(free)} free{verdict}")


def check_finetuning(world: int, _) -> list[str]:
    """Check what `finetune_localization.py` would be given; returns the problems."""
    args = planned(FinetuningArguments, world)
    say("global batch", f"{args.global_batch_size} proteins over {world} process(es)")
    problems = []
    for flag in ("train_file", "validation_file", "test_file", "predict_file"):
        path = getattr(args, flag)
        if path and not Path(path).is_file():
            problems.append(f"--{flag} {path}: no such file")
    base = Path(args.model_name_or_path)
    if base.is_absolute() and not base.is_dir():
        problems.append(f"--model_name_or_path {base}: no such folder; make it with: sbatch 2.train_ddp.sh")
    return problems or check_output(args, {**args.data_identity(), **args.identity()})


def check_output(args: RunArguments, options: dict, last_step: int | None = None) -> list[str]:
    """Say where the run would start; returns why its output folder would be refused."""
    output_dir = Path(args.output_dir)
    try:
        earlier = earlier_run(args, options)
    except UserError as error:
        return [str(error)]
    if earlier is not None and is_finished(earlier, last_step):
        say("output", f"{output_dir}: finished already, {earlier['steps']:,} steps")
        return []
    checkpoint, skipped = newest_whole_checkpoint(output_dir)
    for line in skipped:
        say("checkpoint", line)
    say("output", f"{output_dir}: starts from {checkpoint.name if checkpoint else 'the beginning'}")
    return []


def planned(arguments: type[RunArguments], world: int, is_fsdp: bool = False) -> RunArguments:
    """The script's own arguments, from `sys.argv`, as they would be among `world` processes."""
    there = {"world_size": world, "launched_with": lambda _: (world, is_fsdp)}
    return parse(dataclass(type(arguments.__name__, (arguments,), there)))


def say(what: str, text: str) -> None:
    """One line of the plan."""
    print(f"{what:<13} {text}")


if __name__ == "__main__":
    run_script(main)
