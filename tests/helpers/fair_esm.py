"""A random model, and the same weights in Meta's own implementation (fair-esm 2.0.0): an oracle."""

import pytest
import torch
from transformers import EsmForMaskedLM

from esm2_hyperpod.esm.model import build_config


def random_model() -> EsmForMaskedLM:
    """A tiny ESM-2 whose every parameter counts."""
    torch.manual_seed(0)
    model = EsmForMaskedLM(build_config("tiny"))
    for parameter in model.parameters():  # biases start at zero, where they would hide mistakes
        parameter.data.normal_(std=0.1)
    return model.eval()


def fair_esm_copy(model: EsmForMaskedLM):
    """Meta's own implementation with the same weights."""
    esm = pytest.importorskip("esm")
    config = model.config
    reference = esm.ESM2(
        num_layers=config.num_hidden_layers,
        embed_dim=config.hidden_size,
        attention_heads=config.num_attention_heads,
        alphabet=esm.data.Alphabet.from_architecture("ESM-1b"),
        token_dropout=True,
    )
    weights = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("esm.").replace("encoder.layer.", "layers.")
        for ours, theirs in {
            "encoder.emb_layer_norm_after": "emb_layer_norm_after",
            "embeddings.word_embeddings": "embed_tokens",
            "attention.self.query": "self_attn.q_proj",
            "attention.self.key": "self_attn.k_proj",
            "attention.self.value": "self_attn.v_proj",
            "attention.output.dense": "self_attn.out_proj",
            "attention.LayerNorm": "self_attn_layer_norm",
            "intermediate.dense": "fc1",
            "output.dense": "fc2",
            "LayerNorm": "final_layer_norm",
            "lm_head.decoder": "lm_head",
        }.items():
            name = name.replace(ours, theirs)
        weights[name] = value
    weights.pop("rotary_embeddings.inv_freq")
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not unexpected and all("inv_freq" in name for name in missing)
    return reference.eval()
