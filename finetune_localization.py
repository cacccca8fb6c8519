r"""Fine-tune ESM-2 to say where in the cell a protein lives, and predict with the result.

    python finetune_localization.py --model_name_or_path runs/ddp/final_model \
        --train_file deeploc.fasta --output_dir runs/localization
    python finetune_localization.py --model_name_or_path runs/localization/adapter \
        --predict_file new.fasta.gz --output_dir runs/new
    python finetune_localization.py --task residue --model_name_or_path runs/ddp/final_model \
        --train_file secondary_structure.csv --output_dir runs/residue

--task residue labels each residue (secondary structure, binding sites, disorder), --task regression gives
each protein a number (stability, fluorescence). --estimate_memory says what training takes on a 24 GB GPU,
with neither data nor weights. 4.finetune_qlora.sh starts it with torchrun, one process a GPU.

Writes to --output_dir: splits/, checkpoint-N/, adapter/ (model/ for --tuning head and full), metrics.json,
report.md, confusion_matrix.png and reliability.png (predicted_against_true.png for numbers),
test_predictions.csv, predictions.csv, attributions.csv and .png (--explain), metrics.jsonl, run.json,
run_report.md. The same command again resumes from the newest whole checkpoint. Exit code 75: saved, to be
continued.
"""

# ruff: noqa: E402
import resource
from dataclasses import replace
from pathlib import Path

from esm2_hyperpod.command_line import begin
from esm2_hyperpod.imports import leave_out, without_kernels_warning

if __name__ == "__main__":
    begin(__doc__)  # the imports below take seconds
leave_out("datasets", "scipy", "sklearn")
without_kernels_warning()

import torch
from transformers import set_seed

from esm2_hyperpod.artifacts import MANIFEST, read_manifest
from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.esm.model import find_size, read_config
from esm2_hyperpod.localization import memory as localization_memory
from esm2_hyperpod.localization.arguments import FinetuningArguments
from esm2_hyperpod.localization.encoding import Encoded
from esm2_hyperpod.localization.model import build, four_bit_weights
from esm2_hyperpod.localization.prediction import Predictor
from esm2_hyperpod.localization.report import write_results
from esm2_hyperpod.localization.saving import merge_adapter, save_tuned
from esm2_hyperpod.localization.settings import (
    Lora,
    Settings,
    is_tuned,
    read_adapter_settings,
    read_settings,
    saved_in,
)
from esm2_hyperpod.localization.tasks import task_of
from esm2_hyperpod.localization.trainer import FinetuningTrainer, balanced_weights, plan_batches
from esm2_hyperpod.proteins.labelled import read_hub_dataset, read_proteins
from esm2_hyperpod.proteins.splits import Splits, make_splits, read_splits, write_splits
from esm2_hyperpod.runs.record import CONTINUED, FINISHED
from esm2_hyperpod.training.parsing import parse
from esm2_hyperpod.training.script import facts, is_done, leave, run_on_all_ranks
from esm2_hyperpod.training.stopping import StopRequests, StopWhenStale, end_with_launcher
from esm2_hyperpod.training.throughput import device_name


def main() -> int | None:
    end_with_launcher()
    args = parse(FinetuningArguments)
    if not args.estimate_memory:
        return run_on_all_ranks(args, "4.finetune_qlora.sh", lambda: run(args))
    if args.process_index == 0:
        print(localization_memory.describe(args.model_name_or_path, memory_plan(args)))
    return None


def memory_plan(args: FinetuningArguments) -> localization_memory.Plan:
    """What --estimate_memory is about: the largest micro-batch, in bf16 unless --precision fp32."""
    base = args.model_name_or_path
    if is_tuned(base):
        adapter = read_adapter_settings(Path(base))
        base, args.tuning, args.pooling = adapter.base, adapter.tuning, adapter.pooling
    most = args.per_device_train_batch_size
    batches = plan_batches(args.global_batch_size, args.global_batch_size, most, args.world_size)
    return localization_memory.Plan(
        find_size(base),
        args.tuning,
        args.pooling,
        args.lora_rank,
        args.lora_targets,
        batches.micro_batch,
        args.max_seq_length,
        half=args.precision != "fp32",
        checkpointing=args.activation_checkpointing,
    )


def run(args: FinetuningArguments) -> int | None:
    tuned = Path(args.model_name_or_path)
    stop = StopRequests(Path(args.output_dir), args.max_minutes, args.save_minutes)
    stop.listen()
    if args.train_file or args.dataset_name:
        if is_tuned(args.model_name_or_path):
            args.continue_adapter(read_adapter_settings(tuned))
        exit_code = finetune(args, stop)
        if exit_code:
            return exit_code
        tuned = saved_in(Path(args.output_dir), args.tuning)
    if args.merge_adapter and args.process_index == 0:
        merged = Path(args.output_dir) / "merged"
        merge_adapter(tuned, merged)
        print(f"{merged}: loads with {task_of(read_settings(merged)).loads_with}, no peft needed", flush=True)
    return predict(args, tuned, stop) if args.predict_file else None


def finetune(args: FinetuningArguments, stop: StopRequests) -> int | None:
    output_dir, is_main = Path(args.output_dir), args.process_index == 0

    # Is this the run that the folder holds, and is there anything left to do?
    options = {**args.data_identity(), **args.identity()}
    if is_done(args, options, "report.md"):
        return None

    # A wrong name of the base is said before the data are read.
    name = args.model_name_or_path
    read_config(read_adapter_settings(Path(name)).base if is_tuned(name) else name)

    # The data: rank 0 splits it, the others read what it wrote.
    with args.main_process_first(local=False, desc="splitting the proteins"):
        splits = read_or_make_splits(args, output_dir / "splits")
    settings, adapter = start_from(args, splits)
    task = task_of(settings)
    parts = [task.encode(part, settings) for part in (splits.train, splits.validation, splits.test)]
    train, validation, test = parts
    plan = plan_batches(len(train), args.global_batch_size, args.per_device_train_batch_size, args.world_size)
    args.set_steps(plan.steps_per_epoch, plan.accumulation)

    set_seed(args.seed)
    lora = Lora(args.lora_rank, args.lora_alpha, args.lora_dropout, args.lora_targets)
    model = build(settings, lora, args.device, args.bf16, adapter)
    weights = balanced_weights(task.flat_targets(train)) if args.class_weights == "balanced" else None
    callbacks = [stop, StopWhenStale(args.early_stopping_patience * args.eval_steps)]
    trainer = FinetuningTrainer(model, args, settings, train, validation, plan, weights, callbacks)
    checkpoint = trainer.resume_point()
    if is_main:
        start = facts(args, splits.facts["synthetic_data"], "peft", "bitsandbytes")
        trainer.begin_run(options, start)
        describe(trainer, splits, settings, parts)

    trainer.train_from(checkpoint)
    if stop.stopped:
        trainer.end_run(CONTINUED)
        return leave(stop, "a checkpoint is written")

    validation_logits, test_logits = trainer.logits(validation), trainer.logits(test)
    if is_main:
        task.calibrate(settings, validation_logits, validation)
        metrics = write_results(output_dir, splits, settings, train, test, test_logits, args.seed)
        save_tuned(trainer.model, settings, metrics, saved_in(output_dir, args.tuning))
        trainer.say((output_dir / "report.md").read_text(encoding="utf-8"))
        memory, best = peak_memory_gb(args.device), trainer.state.best_global_step
        trainer.end_run(FINISHED, best_step=best, peak_memory_gb=memory)
        trainer.say(f"done: {saved_in(output_dir, args.tuning)}; peak memory {memory:.1f} GB")
    trainer.barrier()
    return None


def start_from(args: FinetuningArguments, splits: Splits) -> tuple[Settings, Path | None]:
    """What is trained, and the adapter to continue where --model_name_or_path is one."""
    labels = list(splits.facts["labels"]) or ["target"]
    several = args.task == "localization" and any(
        "|" in protein.label for protein in [*splits.train, *splits.validation, *splits.test]
    )
    folder = Path(args.model_name_or_path)
    base = str(folder.resolve()) if folder.exists() else args.model_name_or_path
    if not is_tuned(base):
        settings = Settings(base, labels, several, args.tuning, args.pooling, args.max_seq_length, args.crop)
        target = splits.facts.get("target", {"mean": 0.0, "sd": 1.0})
        return replace(settings, task=args.task, mean=target["mean"], scale=target["sd"]), None
    old = read_adapter_settings(folder)
    if (old.labels, old.multi_label) != (labels, several):
        raise UserError(
            f"{folder}: knows the labels {', '.join(old.labels)}; these proteins have {', '.join(labels)}; "
            f"start from {old.base} instead"
        )
    return replace(old, max_seq_length=args.max_seq_length, crop=args.crop, temperature=1.0), folder


def read_or_make_splits(args: FinetuningArguments, folder: Path) -> Splits:
    """The splits of this run. Made once, so that a resumed run has the same proteins."""
    asked = args.data_identity()
    there = (folder / MANIFEST).is_file() and read_manifest(folder, made_by="the same command again")
    made_with = {name: getattr(FinetuningArguments, name) for name in asked}  # an older folder lacks some
    # The folder holds no run yet, or one of these options.
    if not there or {**made_with, **there["options"]} != asked:
        if args.dataset_name:
            given = read_hub_dataset(args.dataset_name, args.kind)
        else:
            files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
            given = {name: read_proteins(Path(file), args.kind) for name, file in files.items() if file}
        splits = make_splits(given, args.split, args.seed, args.kind)
        splits.facts["synthetic_data"] = args.train_file is not None and is_synthetic(Path(args.train_file))
        write_splits(splits, folder, asked)
    return read_splits(folder, made_by="the same command again")


def is_synthetic(train_file: Path) -> bool:
    """Whether the file lies in a folder that 0.download_data.py filled with generated proteins."""
    folder = train_file.parent
    if not (folder / MANIFEST).is_file():
        return False
    return read_manifest(folder, made_by="python 0.download_data.py").get("synthetic") is True


def describe(trainer: FinetuningTrainer, splits: Splits, settings: Settings, parts: list[Encoded]):
    """Say what is about to run."""
    args, proteins = trainer.args, splits.facts["proteins"]
    for row in splits.rejected[:5]:
        trainer.say(f"not used: {row.where} {row.id}: {row.reason}")
    if len(splits.rejected) > 5:
        rest = len(splits.rejected) - 5
        trainer.say(f"not used: {rest:,} more rows, see {trainer.output_dir / 'splits' / 'rejected.csv'}")
    trainer.say(
        f"{proteins['train']:,} train, {proteins['validation']:,} validation, {proteins['test']:,} test "
        f"proteins, {task_of(settings).amount(settings, sum(part.cropped for part in parts))}"
        + ("; SYNTHETIC proteins" if splits.facts["synthetic_data"] else "")
    )
    quantized, size = four_bit_weights(trainer.model)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    base = f"{quantized} linear layers in 4 bits ({size / 1e6:.1f} MB)" if quantized else "fp32 weights"
    trainer.say(
        f"{settings.tuning} of {settings.base}: {base}, {trained:,} trained parameters; {args.world_size} "
        f"process(es) on {device_name(args.device)}; at most {args.max_steps:,} steps of "
        f"{args.global_batch_size} proteins"
    )


def peak_memory_gb(device: torch.device) -> float:
    """Most memory this process has used, in GB: of the GPU, or resident where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def predict(args: FinetuningArguments, tuned: Path, stop: StopRequests) -> int | None:
    """Predict every protein of --predict_file with the model in `tuned`; explain the first --explain."""
    fasta, output_dir, is_main = Path(args.predict_file), Path(args.output_dir), args.process_index == 0
    predictions, attributions = output_dir / "predictions.csv", output_dir / "attributions.csv"
    predictor = Predictor(tuned, args.device, args.bf16)
    predicted = predictor.is_current(predictions, fasta)
    explained = predictor.is_current(attributions, fasta, args.explain) if args.explain else None

    def stop_asked() -> bool:
        return stop.reason is not None

    messages = [f"{predictions}: finished already"] if predicted else []
    if not predicted:
        count = predictor.predict_file(fasta, predictions, stop_asked)
        if count is None:
            return leave(stop, "what is predicted is kept")
        messages.append(f"{predictions}: {count:,} proteins")
    if explained:
        messages.append(f"{attributions}: finished already")
    elif args.explain and is_main:
        found = predictor.explain_file(fasta, attributions, args.explain, stop_asked)
        if found is None:
            return leave(stop, "predictions are kept, attributions start again")
        gap = max((abs(one.gap) for one in found), default=0.0)
        messages.append(f"{attributions}: {len(found):,} predictions explained, each to {gap:.3f} logits")
    if is_main:
        print("\n".join(messages), flush=True)
    return None


if __name__ == "__main__":
    run_script(
        main,
        if_out_of_memory="halve --per_device_train_batch_size (--global_batch_size stays), or give "
        "--activation_checkpointing true or a smaller --max_seq_length; --estimate_memory says what fits",
    )
