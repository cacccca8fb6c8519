"""Pretrain ESM-2 by masked-language modelling on what 1.tokenize_uniref_csv.py wrote.

    python train.py --dataset_dir processed/arrow --output_dir runs/tiny --model_size tiny --max_steps 100
    torchrun --nproc_per_node 8 train.py ...         (2.train_ddp.sh does this, on any number of nodes)
    accelerate launch --config_file accelerate_fsdp.yaml train.py ...                 (3.train_fsdp.sh)

Writes to --output_dir: checkpoint-N/, final_model/, metrics.jsonl, training_curve.png, run.json,
run_report.md. The same command again resumes from the newest whole checkpoint. Exit code 75: saved, to be
continued.
"""

# ruff: noqa: E402
import hashlib
import json
import shutil
from pathlib import Path

from esm2_hyperpod.command_line import begin
from esm2_hyperpod.imports import leave_out

if __name__ == "__main__":
    begin(__doc__)  # the imports below take seconds
leave_out("peft", "datasets", "scipy", "sklearn")

from transformers import set_seed

from esm2_hyperpod.artifacts import read_manifest
from esm2_hyperpod.console import in_progress
from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.esm.model import FINAL_MODEL, read_config
from esm2_hyperpod.pretraining.arguments import PretrainingArguments
from esm2_hyperpod.pretraining.data import open_split
from esm2_hyperpod.pretraining.local_copy import local_copy
from esm2_hyperpod.pretraining.model_card import model_card
from esm2_hyperpod.pretraining.sharding import SaySharding, enable_fsdp_on_cpu
from esm2_hyperpod.pretraining.trainer import PretrainingTrainer, build_model
from esm2_hyperpod.pretraining.validation import SEED as VALIDATION_SEED
from esm2_hyperpod.pretraining.validation import residue_frequency_entropy
from esm2_hyperpod.runs.record import CONTINUED, FINISHED
from esm2_hyperpod.training.parsing import parse
from esm2_hyperpod.training.script import facts, is_done, leave, run_on_all_ranks
from esm2_hyperpod.training.stopping import StopAfter, StopRequests, StopWhenStale, end_with_launcher
from esm2_hyperpod.training.throughput import device_name


def main() -> int | None:
    end_with_launcher()
    enable_fsdp_on_cpu()
    args = parse(PretrainingArguments)
    return run_on_all_ranks(args, "2.train_ddp.sh", lambda: pretrain(args))


def pretrain(args: PretrainingArguments) -> int | None:
    output_dir, dataset_dir = Path(args.output_dir), Path(args.dataset_dir)
    is_main = args.process_index == 0
    tokenize = "python 1.tokenize_uniref_csv.py"
    if args.model_name_or_path:
        read_config(args.model_name_or_path)  # a wrong name is said before the data are read

    # The data, and the packs that an epoch visits.
    manifest = read_manifest(dataset_dir, made_by=tokenize, holds="token_counts")
    asked = {**args.identity(), "dataset": manifest["content_digest"]}
    plans = output_dir / ".plans" / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    nearest_dir, line = local_copy(dataset_dir, manifest, args.local_disk)
    if line and args.local_process_index == 0:
        print(line, flush=True)
    train = open_split(nearest_dir / "train", args, args.seed, plans)
    validation = open_split(nearest_dir / "validation", args, VALIDATION_SEED, plans)
    if train is None:
        raise UserError(f"{dataset_dir}/train: no sequences; make them with: {tokenize}")
    if validation is None:
        if args.metric_for_best_model:
            raise UserError(
                f"{dataset_dir}/validation: no sequences, so no step is the best: leave out "
                "--final_model best and --early_stopping_patience, or make some with: "
                f"{tokenize} --validation_size 0.01"
            )
        args.eval_strategy = "no"
    counts = manifest["token_counts"]
    entropy = residue_frequency_entropy(counts["train"], counts.get("validation", {}))
    args.set_steps(train.packs.packs_per_epoch)

    # Is this the run that the folder holds, and is there anything left to do?
    options = {**asked, **args.identity()}
    if is_done(args, options, f"{FINAL_MODEL}/", args.last_step):
        return None

    set_seed(args.seed)
    with in_progress("making the model"):
        model, shards = build_model(args)
    stop = StopRequests(output_dir, args.max_minutes, args.save_minutes)
    callbacks = [SaySharding(), stop, StopAfter(args.last_step)]
    if args.early_stopping_patience is not None:
        callbacks.append(StopWhenStale(args.early_stopping_patience * args.eval_steps))
    trainer = PretrainingTrainer(model, args, train, validation, entropy, callbacks, shards)
    checkpoint = trainer.resume_point()
    if is_main:
        start = facts(args, manifest["synthetic"], "datasets", torch_compile=args.compile_layers)
        trainer.begin_run(options, start)
        epochs = args.last_step * args.packs_per_step / train.packs.packs_per_epoch
        where = device_name(args.device) + (
            ", compiled in the first step, which takes minutes" if args.compile_layers else ""
        )
        where += ", activations recomputed" if args.activation_checkpointing else ""
        trainer.say(
            f"{model.num_parameters():,} parameters; {len(train.store):,} sequences in "
            f"{train.packs.packs_per_epoch:,} packs of {args.tokens_per_device:,} tokens; "
            f"{args.world_size} process(es), {where}; {args.last_step:,} steps of "
            f"{args.global_batch_tokens:,} tokens ({epochs:.2f} epochs), warm-up {args.warmup_steps:,.0f}"
        )

    stop.listen()
    trainer.train_from(checkpoint)
    if stop.stopped:
        trainer.end_run(CONTINUED)
        return leave(stop, "a checkpoint is written")

    metrics = trainer.evaluate_once() if validation is not None else {}
    steps = trainer.state.global_step
    weights_of, metrics = trainer.load_best(metrics) if args.keeps_best else (steps, metrics)
    card = model_card(args, manifest, model.num_parameters(), steps, weights_of, metrics)
    trainer.save_final_model(card)
    ended = {"stopped_early": steps < args.last_step, "final_model_step": weights_of}
    trainer.end_run(FINISHED, **ended, frequency_entropy=entropy, **metrics)
    if is_main:
        shutil.rmtree(output_dir / ".plans", ignore_errors=True)
        trainer.say(f"done: {output_dir / FINAL_MODEL}")
    return None


if __name__ == "__main__":
    run_script(
        main,
        if_out_of_memory="halve --tokens_per_device (the losses stay the same), or give "
        "--activation_checkpointing true, or use 3.train_fsdp.sh; DRY_RUN=1 says what fits",
    )
