"""What a user may get wrong about fine-tuning: one line each."""

import importlib.util
import sys

import pytest
from helpers.commands import ROOT
from helpers.localization_example import save, settings_of, untuned, write_fasta, write_labelled

from esm2_hyperpod.errors import UserError


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("finetune_localization", ROOT / "finetune_localization.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = {"OUT": "out", "DATA": "data.csv", "NEW": "new.fasta"}
TRAIN = "--model_name_or_path BASE --output_dir OUT --train_file DATA"
PREDICT = "--model_name_or_path BASE --output_dir OUT"
REFUSALS = {
    "no output": ("--model_name_or_path BASE --train_file DATA", "--output_dir and --model_name_or_path are"),
    "nothing to do": (PREDICT, "nothing to do"),
    "two sources": (f"{TRAIN} --dataset_name x", "give one of them"),
    "no such file": (f"{PREDICT} --train_file gone.csv", "gone.csv: no such file"),
    "no model": ("--model_name_or_path DATA --output_dir OUT --train_file DATA", "no model there"),
    "batch": (f"{TRAIN} --global_batch_size 500", "larger than the 84 training proteins"),
    "no fasta to predict": (f"{PREDICT} --do_predict", "--predict_file FASTA"),
    "untuned": (f"{PREDICT} --predict_file NEW", "no tuned model"),
    "accumulation": (f"{TRAIN} --gradient_accumulation_steps 2", "use --global_batch_size"),
    "16 bits": (f"{TRAIN} --fp16 true", "use --precision"),
    "training flag": (f"{TRAIN} --do_train", "use --train_file"),
    "rate": (f"{TRAIN} --learning_rate -1", "must be above 0"),
    "explain": (f"{TRAIN} --explain 3", "--predict_file FASTA"),
    "length": (f"{TRAIN} --max_seq_length 3", "must be at least 4"),
    "training flag to predict": (f"{PREDICT} --predict_file NEW --crop start", "--crop is for training"),
    "merge": (f"{PREDICT} --merge_adapter", "no tuned model"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case, script, base, tmp_path, monkeypatch):
    words, expected = REFUSALS[case]
    write_labelled(tmp_path / "data.csv")
    write_fasta(tmp_path / "new.fasta", 2)
    places = {"BASE": base, **{name: tmp_path / file for name, file in FILES.items()}}
    monkeypatch.setattr(sys, "argv", ["x", *(str(places.get(word, word)) for word in words.split())])
    with pytest.raises(UserError, match=expected) as refusal:
        script.main()
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "out").glob("adapter"))


@pytest.mark.parametrize("flag", ["--tuning full", "--pooling cls", "--lora_rank 4"])
def test_what_an_adapter_fixes_cannot_be_asked_otherwise(flag, script, base, tmp_path, monkeypatch):
    settings = settings_of(base, pooling="attention")
    save(untuned(settings), settings, tmp_path)
    words = f"x --output_dir {tmp_path / 'out'} --model_name_or_path {tmp_path} --train_file t.csv {flag}"
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(UserError, match=f"{flag}: .* is continued as it is"):
        script.main()


def test_the_memory_estimate_needs_no_weights_no_data_and_no_output(script, monkeypatch, capsys):
    words = "--model_name_or_path facebook/esm2_t36_3B_UR50D --estimate_memory --max_seq_length 512"
    monkeypatch.setattr(sys, "argv", ["x", *words.split()])
    assert script.main() is None
    printed = capsys.readouterr().out
    assert "8 x 512 tokens, bf16" in printed and "the layers in 4 bits" in printed
    fits = next(line for line in printed.splitlines() if line.startswith("fits on 24 GB"))
    assert fits.split()[-2:] == ["no", "yes"]


def test_an_unknown_flag_is_refused_and_a_shortened_one_too(script, monkeypatch):
    words = "x --output_dir o --model_name_or_path m --train_file t --learning_rat 1"
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(UserError, match="unknown: --learning_rat 1"):
        script.main()
