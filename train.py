"""Pretrain ESM-2 by masked-language modelling on what 1.tokenize_uniref_csv.py wrote.

    python train.py --dataset_dir processed/arrow --output_dir runs/tiny --model_size tiny --max_steps 100
    torchrun --nproc_per_node 8 train.py ...         (2.train_ddp.sh does this, on any number of nodes)
    accelerate launch --config_file accelerate_fsdp.yaml train.py ...                 (3.train_fsdp.sh)

Writes to --output_dir: checkpoint-N/, final_model/, metrics.jsonl, training_curve.png, run.json,
run_report.md. The same command again goes on from the newest whole checkpoint. Exit code 75: saved, to be
continued.
"""

# ruff: noqa: E402
import hashlib
import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

sys.modules["peft"] = None  # transformers would import it, and bitsandbytes: 2 s more before every start

from accelerate import PartialState
from transformers import EarlyStoppingCallback, set_seed

from esm2_hyperpod.artifacts import check_same_options, only_writer, package_versions, read_manifest
from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.esm.final_model import FINAL_MODEL, save_final_model
from esm2_hyperpod.pretraining.arguments import PretrainingArguments
from esm2_hyperpod.pretraining.sharding import SaySharding, enable_fsdp_on_cpu
from esm2_hyperpod.pretraining.trainer import PretrainingTrainer, build_model, open_split
from esm2_hyperpod.pretraining.validation import SEED as VALIDATION_SEED
from esm2_hyperpod.pretraining.validation import residue_frequency_entropy
from esm2_hyperpod.runs import record as run_record
from esm2_hyperpod.training.arguments import parse
from esm2_hyperpod.training.stopping import StopAfter, StopRequests, end_with_launcher, leave
from esm2_hyperpod.training.throughput import device_name


def main() -> int | None:
    end_with_launcher()
    enable_fsdp_on_cpu()
    (args,) = parse(PretrainingArguments)
    if args.n_gpu > 1:
        raise UserError(
            f"{args.n_gpu} GPUs but one process: bash 2.train_ddp.sh uses all, CUDA_VISIBLE_DEVICES=0 one"
        )
    with only_writer(Path(args.output_dir)) if args.process_index == 0 else nullcontext():
        exit_code = pretrain(args)
    PartialState().destroy_process_group()
    return exit_code


def pretrain(args: PretrainingArguments) -> int | None:
    output_dir, dataset_dir = Path(args.output_dir), Path(args.dataset_dir)
    is_main = args.process_index == 0
    tokenize = "python 1.tokenize_uniref_csv.py"

    # The data, and the packs that an epoch visits.
    manifest = read_manifest(dataset_dir, made_by=tokenize)
    asked = {**args.identity(), "dataset": manifest["content_digest"]}
    plans = output_dir / ".plans" / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    train = open_split(dataset_dir / "train", args, args.seed, plans)
    validation = open_split(dataset_dir / "validation", args, VALIDATION_SEED, plans)
    if train is None:
        raise UserError(f"{dataset_dir}/train: no sequences; make them with: {tokenize}")
    if validation is None:
        args.eval_strategy = "no"
    counts = manifest["token_counts"]
    entropy = residue_frequency_entropy(counts["train"], counts.get("validation", {}))
    args.set_steps(train.packs.packs_per_epoch)

    # Is this the run that the folder holds, and is there anything left to do?
    options = {**asked, **args.identity()}
    earlier = run_record.read_run(output_dir)
    if earlier is not None:
        check_same_options(output_dir, earlier["options"], options, start_over=f"rm -r {output_dir}")
        if run_record.is_finished(earlier, args.last_step):
            if is_main:
                print(f"{output_dir}: finished already, {earlier['steps']} steps; see {FINAL_MODEL}/")
            return None

    set_seed(args.seed)
    model = build_model(args)
    stop = StopRequests(output_dir, args.max_minutes, args.save_minutes)
    callbacks = [SaySharding(), stop, StopAfter(args.last_step)]
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    trainer = PretrainingTrainer(model, args, train, validation, entropy, callbacks)
    checkpoint = trainer.resume_point()
    if is_main:
        start = facts(args, manifest)
        run_record.begin_run(output_dir, options, start, trainer.first_step, trainer.saved_at)
        epochs = args.last_step * args.packs_per_step / train.packs.packs_per_epoch
        trainer.say(
            f"{model.num_parameters():,} parameters; {len(train.store):,} sequences in "
            f"{train.packs.packs_per_epoch:,} packs of {args.tokens_per_device:,} tokens; "
            f"{args.world_size} process(es), {device_name(args.device)}; {args.last_step:,} steps of "
            f"{args.global_batch_tokens:,} tokens ({epochs:.2f} epochs), warm-up {args.warmup_steps:,.0f}"
        )

    stop.listen()
    trainer.train_from(checkpoint)
    if stop.stopped:
        trainer.end_run(run_record.CONTINUED)
        return leave(stop)

    metrics = trainer.evaluate_once() if validation is not None else {}
    save_final_model(trainer.model, model.config, output_dir)
    stopped_early = trainer.state.global_step < args.last_step
    trainer.end_run(run_record.FINISHED, stopped_early=stopped_early, frequency_entropy=entropy, **metrics)
    if is_main:
        shutil.rmtree(output_dir / ".plans", ignore_errors=True)
        trainer.say(f"done: {output_dir / FINAL_MODEL}")
    return None


def facts(args: PretrainingArguments, manifest: dict) -> dict:
    """What is worth knowing about this start of the run, beyond its options."""
    return {
        **run_record.place(),
        "processes": args.world_size,
        "device": device_name(args.device),
        "precision": args.precision if args.precision != "auto" else "bf16" if args.bf16 else "fp32",
        "torch_compile": args.torch_compile,
        "synthetic_data": manifest.get("synthetic", False),
        "versions": package_versions("torch", "transformers", "accelerate", "datasets"),
    }


if __name__ == "__main__":
    run_script(main)
