"""The classifier: pooling, what each tuning trains, 4-bit weights, old checkpoints, corrupt files."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from helpers.localization_example import CPU, LORA, save, settings_of, untuned
from safetensors.torch import load_file, save_file
from transformers import EsmModel

from esm2_hyperpod.alphabet import encode
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.localization.encoding import collate
from esm2_hyperpod.localization.model import build, four_bit_weights, load_tuned
from esm2_hyperpod.localization.saving import merge_adapter


def batch(*sequences: bytes) -> dict[str, torch.Tensor]:
    return collate([{"input_ids": encode(sequence)} for sequence in sequences])


def test_mean_pooling_is_the_mean_and_attention_starts_as_it(base):
    inputs = batch(b"MKVLLAAGG", b"MCW", b"MDEDEDEKRKRKRHHH")
    plain = EsmModel.from_pretrained(base, add_pooling_layer=False).eval()
    with torch.no_grad():
        states = plain(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        expected = plain.encoder.emb_layer_norm_after((states * mask).sum(1) / mask.sum(1))
        for pooling in ("mean", "attention"):
            model = untuned(settings_of(base, tuning="full", pooling=pooling)).eval()
            pooled = model.esm(**inputs).last_hidden_state[:, 0]
            assert pooled.numpy() == pytest.approx(expected.numpy(), abs=2e-3)
        cls = untuned(settings_of(base, tuning="full", pooling="cls")).eval()
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
    model = untuned(settings_of(base, tuning=tuning, pooling=pooling))
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
    quantized, plain = (untuned(settings_of(base, tuning=tuning)) for tuning in ("qlora", "lora"))
    count, size = four_bit_weights(quantized)
    # 2 layers: 4 matrices of 32 x 32 and 2 of 32 x 128, half a byte a weight.
    assert (count, size) == (12, 2 * (4 * 32 * 32 + 2 * 32 * 128) // 2)
    assert four_bit_weights(plain) == (0, 0)
    head = [p for n, p in quantized.named_parameters() if "classifier" in n]
    assert {p.dtype for p in head} == {torch.float32}


def test_gradients_survive_an_evaluation_on_any_cpu(base, monkeypatch):
    """On CPUs with AVX512-BF16, bitsandbytes repacks the weights it evaluates with, for good."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = untuned(settings_of(base, tuning="qlora"))
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
        logits.append(untuned(settings_of(folder, tuning="qlora")).eval()(**inputs).logits)
    assert torch.equal(*logits)


def test_a_corrupt_base_is_refused_in_one_line(base, tmp_path):
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        untuned(settings_of(tmp_path))
    lacking = load_file(base / "model.safetensors")
    del lacking["esm.encoder.layer.1.output.dense.weight"]
    save_file(lacking, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 of its weights are missing .*layer.1.output.dense.weight"):
        untuned(settings_of(tmp_path))


def test_a_corrupt_adapter_is_refused_in_one_line_whatever_it_is_wanted_for(base, tmp_path):
    settings = settings_of(base)
    save(untuned(settings), settings, tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    wanted = (
        lambda: load_tuned(tmp_path, CPU, False),
        lambda: build(settings, LORA, CPU, False, adapter=tmp_path),
        lambda: merge_adapter(tmp_path, tmp_path / "merged"),
    )
    for use in wanted:
        with pytest.raises(UserError, match="the tuned model cannot be loaded"):
            use()
    weights.unlink()
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors"):
        load_tuned(tmp_path, CPU, False)
