"""The parts of fine-tuning: batches, pooling, tunings, old checkpoints, prediction files, refusals."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from localization_example import CPU, LORA, settings_of, write_fasta, write_labelled
from safetensors.torch import load_file, save_file
from transformers import EsmModel, TrainerControl, TrainerState

from esm2_hyperpod import localization_prediction
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.localization_encoding import collate
from esm2_hyperpod.localization_merge import merge_adapter
from esm2_hyperpod.localization_model import build, four_bit_weights, load_tuned
from esm2_hyperpod.localization_prediction import length_batches, predict_file, predict_logits
from esm2_hyperpod.localization_training import (
    BatchPlan,
    MicroBatches,
    StopWhenStale,
    balanced_weights,
    classification_loss,
    plan_batches,
)


def batch(*sequences: bytes) -> dict[str, torch.Tensor]:
    from esm2_hyperpod.alphabet import encode

    return collate([{"input_ids": encode(sequence)} for sequence in sequences])


# ---- batches ----------------------------------------------------------------------------------------


@given(st.integers(24, 200), st.sampled_from([4, 8, 12, 24]), st.integers(1, 8), st.integers(0, 99))
def test_any_number_of_processes_takes_the_same_proteins_in_a_step(proteins, size, most, seed):
    lengths = np.arange(proteins) * 7 % 50
    steps = {}
    for processes in (1, 2, 4):
        plan = plan_batches(proteins, size, most, processes)
        assert plan.micro_batch * plan.accumulation * processes == size and plan.micro_batch <= most
        total = 2 * plan.steps_per_epoch
        ranks = [
            list(MicroBatches(lengths, plan, seed, total, 0, rank, processes)) for rank in range(processes)
        ]
        taken = [
            [
                i
                for rank in ranks
                for part in rank[s * plan.accumulation : (s + 1) * plan.accumulation]
                for i in part
            ]
            for s in range(total)
        ]
        steps[processes] = [sorted(step) for step in taken]
        first_epoch = sorted(i for step in steps[processes][: plan.steps_per_epoch] for i in step)
        assert len(set(first_epoch)) == len(first_epoch) == plan.steps_per_epoch * size
    assert steps[1] == steps[2] == steps[4]


def test_going_on_at_a_step_gives_the_rest():
    lengths, plan = np.arange(100) % 13, BatchPlan(4, 2, 12)
    whole = list(MicroBatches(lengths, plan, 5, 30, 0, 0, 1))
    assert list(MicroBatches(lengths, plan, 5, 30, 17, 0, 1)) == whole[17 * plan.accumulation :]


def test_batches_that_processes_cannot_share():
    with pytest.raises(UserError, match="does not divide over 3 processes; the next that does: 33"):
        plan_batches(100, 32, 8, 3)
    with pytest.raises(UserError, match="larger than the 20 training proteins"):
        plan_batches(20, 32, 8, 1)


def test_weighted_loss_does_not_depend_on_the_micro_batches():
    random = np.random.default_rng(0)
    targets = np.array([0] * 18 + [1] * 4 + [2] * 2)
    weights = balanced_weights(targets)
    assert weights[targets].mean() == pytest.approx(1.0)
    logits, order = torch.tensor(random.normal(size=(24, 3))), random.permutation(24)
    whole = classification_loss(logits, torch.tensor(targets), weights)
    parts = [
        classification_loss(logits[part], torch.tensor(targets[part]), weights) for part in np.split(order, 4)
    ]
    assert torch.stack(parts).mean() == pytest.approx(whole.item())


# ---- the model --------------------------------------------------------------------------------------


def test_mean_pooling_is_the_mean_and_attention_starts_as_it(base):
    inputs = batch(b"MKVLLAAGG", b"MCW", b"MDEDEDEKRKRKRHHH")
    plain = EsmModel.from_pretrained(base, add_pooling_layer=False).eval()
    with torch.no_grad():
        states = plain(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        expected = plain.encoder.emb_layer_norm_after((states * mask).sum(1) / mask.sum(1))
        for pooling in ("mean", "attention"):
            model = build(settings_of(base, tuning="full", pooling=pooling), LORA, CPU).eval()
            pooled = model.esm(**inputs).last_hidden_state[:, 0]
            assert pooled.numpy() == pytest.approx(expected.numpy(), abs=2e-3)
        cls = build(settings_of(base, tuning="full", pooling="cls"), LORA, CPU).eval()
        assert cls.esm(**inputs).last_hidden_state[:, 0].numpy() == pytest.approx(
            states[:, 0].numpy(), abs=1e-5
        )


@pytest.mark.parametrize(
    ("tuning", "pooling", "trained"),
    [
        ("qlora", "cls", {"lora_A", "lora_B", "classifier"}),
        ("lora", "attention", {"lora_A", "lora_B", "classifier", "query", "key", "value"}),
        ("head", "mean", {"classifier"}),
        ("full", "cls", {"everything"}),
    ],
)
def test_what_each_tuning_trains(base, tuning, pooling, trained):
    model = build(settings_of(base, tuning=tuning, pooling=pooling), LORA, CPU)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trained == {"everything"}:
        assert names == {n for n, _ in model.named_parameters() if "contact_head" not in n}
    else:
        found = {part for name in names for part in trained if f".{part}" in f".{name}"}
        assert found == trained
        assert all(any(f".{part}" in f".{name}" for part in trained) for name in names)
    inputs = batch(b"MKVLLAAGG", b"MCW")
    model.train()
    model(**inputs).logits.square().sum().backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle  # DDP would wait for a gradient that never comes


def test_four_bits_are_four_bits_in_memory(base):
    quantized, plain = (build(settings_of(base, tuning=tuning), LORA, CPU) for tuning in ("qlora", "lora"))
    count, size = four_bit_weights(quantized)
    # 2 layers: 4 matrices of 32 x 32 and 2 of 32 x 128, half a byte a weight.
    assert (count, size) == (12, 2 * (4 * 32 * 32 + 2 * 32 * 128) // 2)
    assert four_bit_weights(plain) == (0, 0)
    head = [p for n, p in quantized.named_parameters() if "classifier" in n]
    assert {p.dtype for p in head} == {torch.float32}


def test_gradients_survive_an_evaluation_on_any_cpu(base, monkeypatch):
    """On CPUs with AVX512-BF16, bitsandbytes repacks the weights it evaluates with, for good."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = build(settings_of(base, tuning="qlora"), LORA, CPU)
    repacks = [m.support_avx512bf16_for_cpu for m in model.modules() if isinstance(m, Linear4bit)]
    assert len(repacks) == 12 and not any(repacks)


def test_a_checkpoint_as_facebook_publishes_it(base, tmp_path):
    """Old key names: rotary frequencies in each layer, a table of positions (Hugging Face, 2022)."""
    weights = load_file(base / "model.safetensors")
    frequencies = 1.0 / 10000 ** (torch.arange(0, 8, 2) / 8)
    old = {name: value for name, value in weights.items() if "inv_freq" not in name}
    for layer in range(2):
        old[f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"] = frequencies.clone()
    old["esm.embeddings.position_embeddings.weight"] = torch.zeros(1026, 32)
    old["esm.embeddings.position_ids"] = torch.arange(1026)[None]
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    inputs = batch(b"MKVLLAAGG", b"MCWYY")
    logits = []
    for folder in (base, tmp_path):
        torch.manual_seed(0)
        logits.append(build(settings_of(folder, tuning="qlora"), LORA, CPU).eval()(**inputs).logits)
    assert torch.equal(*logits)


def test_training_stops_after_the_patience_and_not_at_the_evaluation():
    """At the step that ends the patience an evaluation is still to come; at the next one all is known."""
    callback, control = StopWhenStale(steps=14), TrainerControl()
    state = TrainerState(best_global_step=7, global_step=21)
    assert not callback.on_step_end(None, state, control).should_training_stop
    state.global_step = 22
    assert callback.on_step_end(None, state, control).should_training_stop
    state = TrainerState(global_step=100)  # no evaluation yet
    assert not callback.on_step_end(None, state, TrainerControl()).should_training_stop


# ---- prediction -------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(50, 600))
def test_batches_by_length_hold_everything_once_within_the_budget(lengths, tokens):
    batches = length_batches(lengths, tokens)
    assert sorted(i for part in batches for i in part) == list(range(len(lengths)))
    for part in batches:
        assert len(part) == 1 or len(part) * max(lengths[i] for i in part) <= tokens


def test_prediction_does_not_depend_on_the_company(base):
    model = build(settings_of(base, tuning="head"), LORA, CPU).eval()
    from esm2_hyperpod.alphabet import encode

    ids = [encode(text) for text in (b"MKV", b"MKVLLAAGGDDEEKK" * 5, b"MW", b"MCCCCWWW" * 3)]
    together = predict_logits(model, ids)
    alone = np.concatenate([predict_logits(model, [row]) for row in ids])
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_prediction_asked_to_stop_leaves_whole_chunks(base, tmp_path, monkeypatch):
    monkeypatch.setattr(localization_prediction, "CHUNK", 8)
    settings = settings_of(base, tuning="head")
    model = build(settings, LORA, CPU).eval()
    model.save_pretrained(tmp_path / "model")
    settings.save(tmp_path / "model")
    write_fasta(tmp_path / "a.fasta", 20)
    words = (model, settings, tmp_path / "a.fasta", tmp_path / "out.csv", tmp_path / "model")
    assert predict_file(*words, stop_asked=lambda: True) is None
    assert len((tmp_path / "out.csv.partial").read_text().splitlines()) == 1 + 8
    assert predict_file(*words) == 20
    assert [row.split(",")[0] for row in (tmp_path / "out.csv").read_text().splitlines()[1:]] == [
        f"q{number}" for number in range(20)
    ]


def test_an_interrupted_prediction_goes_on_to_the_same_bytes(base, tmp_path, monkeypatch):
    monkeypatch.setattr(localization_prediction, "CHUNK", 8)
    settings = settings_of(base, tuning="head")
    model = build(settings, LORA, CPU).eval()
    model.save_pretrained(tmp_path / "model")
    settings.save(tmp_path / "model")
    fasta = tmp_path / "a.fasta"
    write_fasta(fasta, 30)
    fasta.write_text(fasta.read_text() + ">empty\n>lower case\nmkvllaX*\n")
    whole, torn = tmp_path / "whole.csv", tmp_path / "torn.csv"
    assert predict_file(model, settings, fasta, whole, tmp_path / "model") == 32
    rows = whole.read_text().splitlines()
    assert rows[31] == "empty,,,," and rows[32].startswith("lower,")

    calls = []

    def interrupted(model, ids):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(ids))
        return predict_logits(model, ids)

    with monkeypatch.context() as patch:
        patch.setattr(localization_prediction, "predict_logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict_file(model, settings, fasta, torn, tmp_path / "model")
    assert not torn.exists()
    partial = tmp_path / "torn.csv.partial"
    partial.write_bytes(partial.read_bytes()[:-5])  # the last row did not reach the disk
    monkeypatch.setattr(
        localization_prediction,
        "predict_logits",
        lambda m, ids: (calls.append(len(ids)), predict_logits(m, ids))[1],
    )
    predict_file(model, settings, fasta, torn, tmp_path / "model")
    assert torn.read_bytes() == whole.read_bytes()
    assert calls == [8, 8, 8, 8, 8]  # the first chunk was kept, the torn second one done again


# ---- what a user may get wrong ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("finetune_localization", ROOT / "finetune_localization.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFUSALS = {
    "no output": (
        "--model_name_or_path BASE --train_file DATA",
        "--output_dir and --model_name_or_path are needed",
    ),
    "nothing to do": ("--model_name_or_path BASE --output_dir OUT", "nothing to do"),
    "two sources": ("RUN --dataset_name x", "give one of them"),
    "no such file": (
        "--model_name_or_path BASE --output_dir OUT --train_file gone.csv",
        "gone.csv: no such file",
    ),
    "no model": ("--model_name_or_path DATA --output_dir OUT --train_file DATA", "no model there"),
    "batch": ("RUN --global_batch_size 500", "larger than the 84 training proteins"),
    "no fasta to predict": (
        "--model_name_or_path BASE --output_dir OUT --do_predict",
        "--predict_file FASTA",
    ),
    "untuned": ("--model_name_or_path BASE --output_dir OUT --predict_file NEW", "no tuned model"),
    "accumulation": ("RUN --gradient_accumulation_steps 2", "use --global_batch_size"),
    "16 bits": ("RUN --fp16 true", "use --precision"),
    "training flag": ("RUN --do_train", "use --train_file"),
    "rate": ("RUN --learning_rate -1", "must be above 0"),
    "explain": ("RUN --explain 3", "--predict_file FASTA"),
    "length": ("RUN --max_seq_length 3", "must be at least 4"),
    "merge": ("--model_name_or_path BASE --output_dir OUT --merge_adapter", "no tuned model"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case, script, base, tmp_path, monkeypatch):
    words, expected = REFUSALS[case]
    write_labelled(tmp_path / "data.csv")
    write_fasta(tmp_path / "new.fasta", 2)
    words = words.replace("RUN", "--model_name_or_path BASE --output_dir OUT --train_file DATA")
    places = {
        "BASE": base,
        "OUT": tmp_path / "out",
        "DATA": tmp_path / "data.csv",
        "NEW": tmp_path / "new.fasta",
    }
    monkeypatch.setattr(sys, "argv", ["x", *(str(places.get(word, word)) for word in words.split())])
    with pytest.raises(UserError, match=expected) as refusal:
        script.main()
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "out").glob("adapter"))


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


def test_a_torn_base_is_refused_in_one_line(base, tmp_path):
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        build(settings_of(tmp_path), LORA, CPU)
    lacking = load_file(base / "model.safetensors")
    del lacking["esm.encoder.layer.1.output.dense.weight"]
    save_file(lacking, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 of its weights are missing .*layer.1.output.dense.weight"):
        build(settings_of(tmp_path), LORA, CPU)


def test_a_torn_adapter_is_refused_in_one_line_whatever_it_is_wanted_for(base, tmp_path):
    settings = settings_of(base)
    build(settings, LORA, CPU).save_pretrained(tmp_path)
    settings.save(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    wanted = (
        lambda: load_tuned(tmp_path, CPU),
        lambda: build(settings, LORA, CPU, adapter=tmp_path),
        lambda: merge_adapter(tmp_path, tmp_path / "merged"),
    )
    for use in wanted:
        with pytest.raises(UserError, match="the tuned model cannot be loaded"):
            use()
    weights.unlink()
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors"):
        load_tuned(tmp_path, CPU)
