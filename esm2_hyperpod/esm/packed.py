"""Hugging Face's ESM for masked-LM training, over packs: same weights, same numbers, no padding."""

import copy

import torch
from torch.nn.functional import cross_entropy, gelu
from transformers import EsmConfig, EsmForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.esm.modeling_esm import EsmIntermediate

from esm2_hyperpod.alphabet import MASK
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.esm.attention import PACKED

# Share of `<mask>` among ESM-2's training tokens, which its token dropout is scaled to
# (fair-esm 2.0.0, esm/model/esm2.py: 15% chosen, 80% of them masked).
TRAINING_MASK_RATIO = 0.15 * 0.8


class _FusedIntermediate(EsmIntermediate):
    """The feed-forward's first half with torch's gelu: the same function as transformers' five
    elementwise operations, in one (4 times as fast on a CPU; a third of a small model's step)."""

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
        super().__init__(copy.deepcopy(config))  # the caller's keeps its own kind of attention
        self.set_attn_implementation(PACKED)
        for layer in self.esm.encoder.layer:
            layer.intermediate.__class__ = _FusedIntermediate

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
