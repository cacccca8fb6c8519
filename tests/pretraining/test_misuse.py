"""What a user may get wrong about train.py: one line each, and no checkpoint."""

import json
import shutil
import sys

import pytest
from helpers.commands import run
from helpers.misuse import refusal, table
from helpers.pretraining import SMALL

from esm2_hyperpod.artifacts import only_writer
from esm2_hyperpod.esm.model import build_config

STEP_1 = "make it with: python 1.tokenize_uniref_csv.py"

ROWS = [
    # the data
    ("no dataset named", "--output_dir OUT", "--dataset_dir and --output_dir are needed"),
    ("step 1 left out", "--dataset_dir gone", f"gone: no such folder; {STEP_1}"),
    ("step 1 unfinished", "--dataset_dir begun",
     "begun: unfinished (it has no manifest.json); finish it with"),
    ("step 0's folder", "--dataset_dir csv",
     "csv: holds what another step made; give the folder of: python 1."),
    ("a split", "--dataset_dir arrow/train",
     "arrow/train: a part of what is whole in the folder above; give"),
    ("a file", "--dataset_dir words.txt", f"words.txt: no such folder; {STEP_1}"),
    ("a shard gone", "--dataset_dir less", "less/train: cannot be read"),
    ("a torn shard", "--dataset_dir torn", "torn/train: cannot be read"),
    # the model
    ("a size that is none", "--model_size 7B", "--model_size 7B: not one of tiny, 8M"),
    ("a published name for a size", "--model_size esm2_t6_8M_UR50D",
     "--model_size 8M trains that size from scratch, --model_name_or_path facebook/esm2_t6_8M_UR50D starts"),
    ("a size for a name", "--model_name_or_path 650m", "did you mean facebook/esm2_t33_650M_UR50D?"),
    ("hub name misspelt", "--model_name_or_path facebook/esm2_t33_650_UR50D",
     "no model of that name; did you"),
    ("hub name unknown", "--model_name_or_path somebody/bert", "check the name and the network, or give"),
    ("a folder without a model", "--model_name_or_path ./nowhere", "no model there (no config.json)"),
    ("another model", "--model_name_or_path bert", "no ESM-2 model (model type bert"),
    ("another architecture", "--config_name bert", "bert: no ESM-2 model (model type bert"),
    ("a torn config", "--model_name_or_path broken", "broken: cannot be loaded"),
    # what is known from elsewhere
    ("rows a device", "--per_device_train_batch_size 8",
     "8 sequences of up to 256 tokens are --tokens_per_device 2048"),
    ("accumulation", "--gradient_accumulation_steps 4",
     "4 micro-batches of 512 tokens on 1 process(es) are --global_batch_tokens 2048"),
    ("rows and accumulation", "--per_device_train_batch_size=2 --gradient_accumulation_steps=3",
     "--tokens_per_device 512; --gradient_accumulation_steps 3 has no meaning here: 3 micro-batches of 512 "
     "tokens on 1 process(es) are --global_batch_tokens 1536"),
    ("bf16", "--bf16", "--bf16 has no meaning here: use --precision bf16"),
    ("no bf16", "--bf16 false", "--bf16 false has no meaning here: use --precision fp32"),
    ("fp16", "--fp16 true", "use --precision bf16 (it needs no loss scaling)"),
    ("dashes", "--per-device-eval-batch-size 8", "use --tokens_per_device, also for evaluation"),
    ("resuming by hand", "--resume_from_checkpoint checkpoint-5", "use the same command, which resumes"),
    ("gradient checkpointing", "--gradient_checkpointing", "--activation_checkpointing"),
    ("FSDP by flag", "--fsdp full_shard", "use bash 3.train_fsdp.sh"),
    ("another seed for the data", "--data_seed 3", "use --seed"),
    ("deepspeed", "--deepspeed zero.json",
     "--deepspeed zero.json has no meaning here: use bash 3.train_fsdp.sh"),
    ("smoothed labels", "--label_smoothing_factor 0.1", "has no meaning here: --help lists what has"),
    ("weights alone", "--save_only_model true", "--save_only_model true has no meaning here"),
    ("a batch size to be found", "--auto_find_batch_size", "use a smaller batch"),
    ("overwriting", "--overwrite_output_dir", "use another --output_dir, or delete that one first"),
    ("steps and epochs", "--num_train_epochs 3", "--max_steps 8 and --num_train_epochs 3: give one"),
    # flags
    ("misspelt flag", "--tokens_per_devise 512", "(did you mean --tokens_per_device?)"),
    ("a value without its flag", "tiny", "unknown: tiny (a value follows its flag)"),
    ("a choice that is none", "--mask_replace letters", "--mask_replace letters: not one of"),
    ("a word for a number", "--learning_rate fast", "--learning_rate fast: not a number"),
    ("a number for yes or no", "--packing 8", "--packing 8: must be true or false"),
    ("a flag without its value", "--max_steps", "--max_steps needs a value"),
    ("a batch that does not divide", "--global_batch_tokens 2000", "the nearest that do: 1,536 or 2,048"),
    ("tokens not by 64", "--tokens_per_device 500", "--tokens_per_device 500: must be a multiple of 64"),
    ("too long", "--max_seq_length 4096", "must lie between 3 and --tokens_per_device 512"),
    ("a rate below none", "--min_lr_ratio -0.1", "--min_lr_ratio -0.1: must lie between 0 and 1"),
    ("a floor of Trainer's schedule", "--min_lr_ratio 0.2 --lr_schedule trainer",
     "--min_lr_ratio 0.2: does nothing with --lr_schedule trainer"),
    ("the best without evaluations", "--final_model best --eval_strategy no",
     "--final_model best: needs evaluations; leave out --eval_strategy no"),
    ("early stopping without evaluations", "--early_stopping_patience 2 --eval_strategy no",
     "--early_stopping_patience: needs evaluations"),
    ("the best of no validation", "--dataset_dir unjudged --final_model best",
     "unjudged/validation: no sequences, so no step is the best"),
    ("masking all", "--mlm_probability 1", "--mlm_probability 1.0: must lie between 0 and 1"),
    ("fp8 without packs", "--precision fp8 --packing false", "--precision fp8 needs packs"),
    ("fp8 without its GPU", "--precision fp8", "fp8"),
    ("a recipe without fp8", "--fp8_recipe rowwise", "does nothing without --precision fp8"),
    ("compiled without packs", "--torch_compile --packing false", "--torch_compile needs packs"),
    ("no patience", "--step_timeout 0", "--step_timeout 0: must be a number of seconds from 1 up"),
    ("a tracker that is not there", "--report_to comet_ml", "python -m pip install comet_ml"),
    # the output
    # a file of flags
    ("no config", "--config gone.yaml", "gone.yaml: cannot be read ([Errno 2] No such file"),
    ("a config of another kind", "--config words.txt", "words.txt: name a YAML file; presets/ has some"),
    ("a config that is no mapping", "--config list.yaml", "list.yaml: must be lines such as `model_size"),
    ("a torn config file", "--config torn.yaml", "torn.yaml: cannot be read (while parsing"),
    ("a flag that is none, in a config", "--config flag.yaml", "did you mean --learning_rate"),
    ("no batches, in a config", "--config size.yaml", "--overfit_batches 0: must be a number from"),
    ("output is a file", "--output_dir words.txt", "words.txt: File exists; choose another folder"),
    ("output below a file", "--output_dir words.txt/run", "a part of it is a file"),
    ("a torn record", "--output_dir damaged", "damaged: run.json is corrupt"),
    ("another run's folder", "--output_dir run",
     "run: was made with seed=7, this run asks for 42; use another"),
    ("a record older than the flag", "--output_dir older --lr_schedule wsd",
     "older: was made with lr_schedule='esm2', this run asks for 'wsd'"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(synthetic, tokenized, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    (folder / "words.txt").write_text("MKV\n")
    (folder / "list.yaml").write_text("- tiny\n")
    (folder / "torn.yaml").write_text("model_size: [tiny\n")
    (folder / "flag.yaml").write_text("learning_rat: 1e-3\n")
    (folder / "size.yaml").write_text("overfit_batches: 0\n")
    (folder / "csv").symlink_to(synthetic / "csv")
    for name in ("arrow", "begun", "less", "torn"):
        shutil.copytree(tokenized, folder / name)
    (folder / "begun/manifest.json").unlink()
    shutil.copytree(tokenized, folder / "unjudged", ignore=shutil.ignore_patterns("validation"))
    shard = "train/data-00001-of-00004.arrow"
    (folder / "less" / shard).unlink()
    (folder / "torn" / shard).write_bytes((folder / "torn" / shard).read_bytes()[:1000])
    for name in ("bert", "broken"):
        (folder / name).mkdir()
    (folder / "bert/config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "broken/config.json").write_text(json.dumps(build_config("tiny").to_dict())[:100])
    for name in ("run", "damaged", "older"):
        (folder / name).mkdir()
    (folder / "damaged/run.json").write_text('{"options": ')
    options = {"model_size": "tiny", "max_seq_length": 256, "tokens_per_device": 512}
    (folder / "older/run.json").write_text(json.dumps({"options": {**options, "global_batch_tokens": 2048}}))
    (folder / "run/run.json").write_text(json.dumps({"options": {"model_size": "tiny", "seed": 7}}))
    return folder


@table(ROWS)
def test_misuse(words, message, folder):
    given = f"{' '.join(SMALL)} {words}"
    for flag, place in (("--dataset_dir", "arrow"), ("--output_dir", "OUT")):
        if flag not in words:
            given = f"{flag} {place} {given}"
    if message.startswith("--dataset_dir and"):
        given = words
    assert message in refusal("train.py", given, folder)


def test_two_jobs_into_one_folder(folder, tmp_path):
    with only_writer(tmp_path / "OUT"):
        line = refusal(
            "train.py", f"--dataset_dir {folder}/arrow --output_dir OUT {' '.join(SMALL)}", tmp_path
        )
    assert "OUT: another process is writing there; wait for it to end" in line


def test_without_arguments_it_says_at_once_what_it_does():
    result = run(sys.executable, "-S", "train.py", check=False)  # no package is there to be imported
    assert result.returncode == 1 and result.stderr.startswith("Pretrain ESM-2 by masked-language modelling")
    assert "    python train.py --dataset_dir processed/arrow --output_dir" in result.stderr
