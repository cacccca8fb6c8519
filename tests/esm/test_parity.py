"""The numbers are ESM-2's: against Meta's fair-esm, and packed against one sequence at a time."""

import inspect

import numpy as np
import pytest
import torch
from helpers.fair_esm import fair_esm_copy, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EsmForMaskedLM

from esm2_hyperpod.alphabet import AMINO_ACIDS, EOS, MASK, TOKENS, build_tokenizer, encode
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.esm import packed
from esm2_hyperpod.esm.model import build_config
from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM, masked_lm_loss

SEQUENCES = [b"MKTAYIAKQR", b"GAVLIMFWPSTCYNQDEKRH" * 4, b"MBXUZO.-ACD", b"W", b"MSTNPKPQRKTKRNTNRRPQDVK" * 3]


def masked_tokens(seed: int) -> list[torch.Tensor]:
    """The sequences as token ids with some `<mask>`, a different share in each."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, sequence in enumerate(SEQUENCES):
        ids = torch.from_numpy(encode(sequence).astype(np.int64))
        chosen = torch.rand(len(ids), generator=generator) < 0.1 * number
        chosen[0] = chosen[-1] = False
        rows.append(torch.where(chosen, MASK, ids))
    return rows


def packed_inputs(rows: list[torch.Tensor], padding: int = 5) -> dict:
    lengths = [len(row) for row in rows] + [padding]
    borders = np.concatenate([[0], np.cumsum(lengths)])
    return {
        "input_ids": torch.cat([*rows, torch.ones(padding, dtype=torch.long)])[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seqlens": torch.tensor([*borders, borders[-1], borders[-1]], dtype=torch.int32),
        "max_seqlen": max(lengths),
    }


def packed_copy(model: EsmForMaskedLM) -> PackedEsmForMaskedLM:
    packed = PackedEsmForMaskedLM(model.config)
    packed.load_state_dict(model.state_dict())
    return packed.eval()


def test_alphabet_is_metas():
    esm = pytest.importorskip("esm")
    assert list(TOKENS) == esm.data.Alphabet.from_architecture("ESM-1b").all_toks


@torch.no_grad()
def test_logits_equal_fair_esm():
    model = random_model()
    reference, packed = fair_esm_copy(model), packed_copy(model)
    rows = masked_tokens(1)
    ours = packed(**packed_inputs(rows)).logits
    start = 0
    for row in rows:
        theirs = reference(row[None])["logits"][0]
        torch.testing.assert_close(ours[start : start + len(row)], theirs, atol=1e-4, rtol=0)
        torch.testing.assert_close(model(row[None]).logits[0], theirs, atol=1e-4, rtol=0)
        start += len(row)


@pytest.mark.parametrize("joined", [0, 1024])
def test_packed_logits_and_gradients_equal_one_sequence_at_a_time(monkeypatch, joined):
    monkeypatch.setattr("esm2_hyperpod.esm.packed.JOINED_WIDTH", joined)
    model = random_model()
    packed, rows = packed_copy(model), masked_tokens(2)
    labels = [torch.where(row == MASK, torch.randint(4, 24, row.shape), -100) for row in rows]

    logits = packed(**packed_inputs(rows)).logits
    masked_lm_loss(logits[: sum(map(len, rows))], torch.cat(labels), 10).backward()
    start = 0
    for row, label in zip(rows, labels):
        alone = model(row[None]).logits
        torch.testing.assert_close(logits[start : start + len(row)], alone[0], atol=1e-5, rtol=1e-5)
        masked_lm_loss(alone, label[None], 10).backward()
        start += len(row)
    some = torch.tensor([3, 50, 7, 0])
    chosen = packed(**packed_inputs(rows), predict=some).logits
    torch.testing.assert_close(chosen, logits[some], atol=1e-6, rtol=1e-6)  # the head on chosen tokens alone
    gradients = dict(packed.named_parameters())
    assert list(gradients) == [name for name, _ in model.named_parameters()]  # an optimizer counts them
    for name, parameter in model.named_parameters():
        if not name.startswith("esm.contact_head"):
            torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_cuda_kernel_is_given_what_its_signature_asks(monkeypatch):
    """The kernel has no CPU version: a plain one with its signature stands in and must agree."""

    def plain(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale):
        lengths = cu_seq_q.diff().tolist()
        assert query.shape == (sum(lengths), 4, 8) and max(lengths) <= max_q and cu_seq_q.dtype == torch.int32
        outputs = []
        for q, k, v in zip(*(tensor.split(lengths) for tensor in (query, key, value))):
            scores = torch.einsum("qhd,khd->hqk", q, k) * scale
            outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        return torch.cat(outputs)

    real = inspect.signature(packed.varlen.varlen_attn).parameters
    assert list(inspect.signature(plain).parameters)[:7] == list(real)[:7] and "scale" in real
    monkeypatch.setattr(packed.varlen, "varlen_attn", plain)
    query, key, value = torch.randn(3, 30, 4, 8).unbind()
    borders = torch.tensor([0, 12, 13, 30, 30], dtype=torch.int32)
    by_kernel = packed._by_kernel(query, key, value, borders, 17)
    torch.testing.assert_close(by_kernel, packed._one_by_one(query, key, value, borders))


@pytest.mark.parametrize("name", ["attention_probs_dropout_prob", "hidden_dropout_prob"])
def test_a_model_with_dropout_is_refused(name):
    config = build_config("tiny")
    setattr(config, name, 0.1)
    with pytest.raises(UserError, match=f"{name} 0.1: packing has no dropout"):
        PackedEsmForMaskedLM(config)


def test_a_compiled_layer_with_the_cuda_kernel_is_one_graph(monkeypatch):
    """Traced over tensors without data, forward and backward: `fullgraph` raises where it would be cut."""
    compiled = torch.compile(packed._layer, backend="aot_eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(packed, "_compiled_layer", lambda: compiled)
    monkeypatch.setattr(packed, "packed_attention", packed._by_kernel)
    model = PackedEsmForMaskedLM(build_config("tiny")).to("meta")
    model.compute_dtype = torch.bfloat16
    model.compile_layers()
    inputs = {
        name: value.to("meta")
        for name, value in packed_inputs(masked_tokens(3)).items()
        if name != "max_seqlen"
    }
    logits = model(**inputs, max_seqlen=82, predict=torch.zeros(64, dtype=torch.long, device="meta")).logits
    logits.sum().backward()
    assert (logits.shape, logits.dtype) == ((64, 33), torch.float32)
    assert all(weight.grad.dtype == torch.float32 for weight in model.esm.encoder.parameters())


@pytest.mark.parametrize(
    "installed, capability, used", [(True, 9, True), (True, 8, False), (False, 9, False)]
)
def test_flash_attention_3_is_used_where_it_is_installed_on_a_hopper(
    monkeypatch, installed, capability, used
):
    activated = []
    monkeypatch.setattr(packed, "find_spec", lambda name: installed and name == "flash_attn_interface")
    monkeypatch.setattr(packed, "activate_flash_attention_impl", activated.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    assert packed.use_flash_attention_3(torch.device("cuda")) == used
    assert activated == (["FA3"] if used else [])
    assert "FA3" in torch.nn.attention.list_flash_attention_impls()


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=AMINO_ACIDS + "XBUZO.-", max_size=60))
def test_token_ids_equal_the_tokenizers(sequence):
    assert encode(sequence.encode()).tolist() == TOKENIZER(sequence)["input_ids"]
    assert encode(sequence.lower().encode()).tolist() == TOKENIZER(sequence)["input_ids"]


TOKENIZER = build_tokenizer()


def test_what_is_not_in_the_alphabet_is_unknown():
    assert encode(b"J*1\xff")[1:-1].tolist() == [3, 3, 3, 3]
    assert encode(b"")[-1] == EOS
