"""Hugging Face's ESM for masked-LM training, over packs: same weights, same numbers, no padding.

A pack is one row of sequences laid end to end. Attention, rotary positions and token dropout stay within
each sequence. transformers takes an attention function by name (`AttentionInterface`), so the model is a
subclass and its layers are transformers' own.
"""

import copy

import torch
from torch.nn.attention import varlen
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, EsmConfig, EsmForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from esm2_hyperpod.alphabet import MASK
from esm2_hyperpod.errors import UserError

# Share of `<mask>` among ESM-2's training tokens, which its token dropout is scaled to
# (fair-esm 2.0.0, esm/model/esm2.py: 15% chosen, 80% of them masked).
TRAINING_MASK_RATIO = 0.15 * 0.8

PACKED = "packed"
"""The name under which transformers finds `packed_attention`."""


class _FusedIntermediate(torch.nn.Module):
    """The feed-forward's first half with torch's gelu: the same function as transformers' five elementwise
    operations, in one (4 times as fast on a CPU; a third of a small model's step). Takes over the weights."""

    def __init__(self, dense: torch.nn.Linear):
        super().__init__()
        self.dense = dense

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return gelu(self.dense(hidden_states))


class PackedEsmForMaskedLM(EsmForMaskedLM):
    """`EsmForMaskedLM` whose row holds several sequences, each computed as if it were alone.

    Its state dict is `EsmForMaskedLM`'s, so checkpoints load both ways.
    """

    def __init__(self, config: EsmConfig):
        if config.position_embedding_type != "rotary" or config.emb_layer_norm_before:
            raise UserError(
                "packing needs an ESM-2 model (rotary positions); use --packing false for this one"
            )
        if config.attention_probs_dropout_prob:
            raise UserError(
                f"attention_probs_dropout_prob {config.attention_probs_dropout_prob}: packing has no dropout "
                "of attention; set it to 0 in the model's config.json, or use --packing false"
            )
        super().__init__(copy.deepcopy(config))  # the caller's keeps its own kind of attention
        AttentionInterface.register(PACKED, packed_attention)
        AttentionMaskInterface.register(PACKED, lambda *_, **__: None)  # the sequence borders are the mask
        self.set_attn_implementation(PACKED)
        for layer in self.esm.encoder.layer:
            layer.intermediate = _FusedIntermediate(layer.intermediate.dense)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
    ) -> MaskedLMOutput:
        """Logits [1, tokens, 33] of one pack; `masked_lm_loss` makes the loss of them.

        Args:
            input_ids, position_ids: [1, tokens]; positions restart at each sequence.
            cu_seqlens, max_seqlen: the sequences' borders, see `packed_attention`.
        """
        embeddings = self.esm.embeddings.word_embeddings(input_ids)
        if self.config.token_dropout:
            embeddings = embeddings * token_dropout_scale(input_ids, cu_seqlens)
        hidden = self.esm(
            inputs_embeds=embeddings, position_ids=position_ids, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen
        ).last_hidden_state
        return MaskedLMOutput(logits=self.lm_head(hidden))


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    **_,
) -> tuple[torch.Tensor, None]:
    """Attention within each sequence of a pack.

    `torch.nn.attention.varlen` is the CUDA kernel. Elsewhere, and in fp32, which that kernel does not take,
    each sequence has a scaled-dot-product attention of its own.

    Args:
        query, key, value: [1, heads, tokens, head size].
        scaling: factor of the scores; 1.0 for ESM, whose queries are scaled before the rotation.
        cu_seqlens: int32[sequences + 1], where each sequence begins; the last entry is `tokens`.
            Empty sequences (repeated entries) are allowed and keep the shape static.
        max_seqlen: an upper bound of the sequences' lengths.

    Returns:
        [1, tokens, heads, head size], and None for the attention weights.
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _by_kernel(query, key, value, scaling, cu_seqlens, max_seqlen), None
    return _one_by_one(query, key, value, scaling, cu_seqlens), None


def _by_kernel(query, key, value, scaling, cu_seqlens, max_seqlen):
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    output = varlen.varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scaling)
    return output.unsqueeze(0)


@torch.compiler.disable  # its loop depends on the data; the layers around it still compile
def _one_by_one(query, key, value, scaling, cu_seqlens):
    lengths = [length for length in cu_seqlens.diff().tolist() if length]
    # One split instead of slices: its gradient is one concatenation, a slice's is a pack of zeros each.
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)))
    outputs = [scaled_dot_product_attention(q, k, v, scale=scaling) for q, k, v in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def token_dropout_scale(input_ids: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """ESM-2's token dropout for each sequence of a pack: 0 at `<mask>`, else a scale that makes up for it.

    (1 - 0.12) / (1 - the sequence's own share of `<mask>`), fair-esm 2.0.0 `ESM2.forward`.

    Args:
        input_ids: [1, tokens]; cu_seqlens: int32[sequences + 1].

    Returns:
        float32 [1, tokens, 1].
    """
    is_mask = input_ids[0] == MASK
    before = torch.nn.functional.pad(is_mask.cumsum(0), (1, 0))  # number of masks before each token
    borders = cu_seqlens.long()
    share = before[borders].diff().float() / borders.diff().clamp(min=1)
    scale = (1 - TRAINING_MASK_RATIO) / (1 - share)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device, dtype=cu_seqlens.dtype)
    sequence = torch.searchsorted(cu_seqlens[1:], positions, right=True)
    return (scale[sequence] * ~is_mask)[None, :, None]


def masked_lm_loss(
    logits: torch.Tensor, labels: torch.Tensor, masked_tokens: torch.Tensor | int
) -> torch.Tensor:
    """Cross entropy summed over the labelled tokens, in fp32, divided by `masked_tokens`.

    Dividing by the labels of the whole global batch, not of one pack, makes the loss and its
    gradients independent of how the batch is divided over packs and processes.
    """
    return cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="sum") / masked_tokens
