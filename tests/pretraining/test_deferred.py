"""Deferred initialisation gives the weights that the plain one gives, and takes the memory of few of them."""

import pytest
import torch
from helpers.memory import LiveBytes
from transformers import EsmForMaskedLM

from esm2_hyperpod.esm.model import build_config, save_final_model
from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM
from esm2_hyperpod.pretraining.deferred import build_deferred


@pytest.mark.parametrize("model_class", [PackedEsmForMaskedLM, EsmForMaskedLM])
def test_weights_are_drawn_later_and_equal_the_plain_ones(model_class):
    config = build_config("tiny")
    torch.manual_seed(7)
    plain = model_class(config)
    torch.manual_seed(7)
    with LiveBytes() as live:
        model, weights = build_deferred(lambda: model_class(config))
        torch.randn(3)  # draws of others change nothing
        state = torch.get_rng_state()
        drawn = [(name, torch.equal(plain.get_parameter(name), value)) for name, value in weights]
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(drawn) == sorted((name, True) for name, _ in plain.named_parameters())
    largest = max(parameter.nbytes for parameter in plain.parameters())
    assert live.peak < 3 * largest < plain.num_parameters()  # bytes: of the whole model a quarter
    assert model.lm_head.decoder.weight is model.esm.embeddings.word_embeddings.weight
    for name, buffer in plain.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer)


def test_the_final_model_is_saved_without_a_second_copy(tmp_path):
    plain = EsmForMaskedLM(build_config("tiny"))
    with LiveBytes() as live:
        save_final_model(plain.state_dict(), plain.config, tmp_path, "a card")
    assert live.peak < plain.num_parameters() / 4  # bytes: a sixteenth of the model
    again = EsmForMaskedLM.from_pretrained(tmp_path / "final_model").state_dict()
    assert all(torch.equal(again[name], value) for name, value in plain.state_dict().items())
