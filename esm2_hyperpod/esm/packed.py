"""ESM-2 for masked-LM training, over packs: Hugging Face's weights and numbers, no padding.

A pack is one row of sequences laid end to end. Attention, rotary positions and token dropout stay within
each sequence. The parameters are transformers' own, under their names; what is computed with them is here.

In bf16 all weights enter rounded to bf16 and matrix products are bf16; the residual stream, the LayerNorms,
the rotation and the loss are fp32. The model does this by itself, so DDP, whose weights are fp32, and FSDP2,
which gathers them in bf16, compute the same. A pack may be divided over several processes: `parallel.py`.
"""

import copy
from functools import cache
from importlib.util import find_spec

import torch
from torch import nn
from torch.nn.attention import activate_flash_attention_impl, varlen
from torch.nn.functional import (
    cross_entropy,
    embedding,
    gelu,
    layer_norm,
    linear,
    pad,
    scaled_dot_product_attention,
)
from transformers import EsmConfig, EsmForMaskedLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.esm.modeling_esm import EsmLayer

from esm2_hyperpod.alphabet import MASK
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.esm.parallel import Parallel, own_values

# Share of `<mask>` among ESM-2's training tokens, which its token dropout is scaled to
# (fair-esm 2.0.0, esm/model/esm2.py: 15% chosen, 80% of them masked).
TRAINING_MASK_RATIO = 0.15 * 0.8

JOINED_WIDTH = 1024
"""Up to this width query, key and value are one matrix product: 8M, 35M, 150M."""


class PackedEsmForMaskedLM(EsmForMaskedLM):
    """`EsmForMaskedLM` whose row holds several sequences, each computed as if it were alone.

    Its state dict is `EsmForMaskedLM`'s, so checkpoints load both ways.

    Attributes:
        compute_dtype: of the matrix products: float32 or bfloat16.
        parallel: the processes that share a pack.
    """

    def __init__(self, config: EsmConfig):
        if config.position_embedding_type != "rotary" or config.emb_layer_norm_before:
            raise UserError(
                "packing needs an ESM-2 model (rotary positions); use --packing false for this one"
            )
        for name in ("attention_probs_dropout_prob", "hidden_dropout_prob"):
            if value := getattr(config, name):
                raise UserError(
                    f"{name} {value}: packing has no dropout; set it to 0 in the model's config.json, or use "
                    "--packing false"
                )
        super().__init__(copy.deepcopy(config))  # the caller's stays as it is
        layers = self.esm.encoder.layer
        self.esm.encoder.layer = nn.ModuleList(PackedLayer(layer, config) for layer in layers)
        self._no_split_modules = [PackedLayer.__name__]  # FSDP's units
        self.compute_dtype = torch.float32
        self.parallel = Parallel()

    def compile_layers(self) -> None:
        """Have `torch.compile` fuse each layer, when it is first used; all layers share what it makes.

        By layers, because the whole graph takes minutes, and because DDP and FSDP2 send a layer's gradients
        when its own backward pass is done.
        """
        for layer in self.esm.encoder.layer:
            layer.compiled = True

    # accelerate (1.15) would make an FSDP unit of the embeddings and the decoder, whose weight is then there
    # only while they are called as modules. None: it belongs to the root's unit, and is there for `forward`.
    # Both or neither: of one alone accelerate makes two weights.
    def get_input_embeddings(self) -> None:
        """None, for FSDP."""

    def get_output_embeddings(self) -> None:
        """None, for FSDP."""

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        predict: torch.Tensor | None = None,
    ) -> MaskedLMOutput:
        """Logits of one pack; `masked_lm_loss` makes the loss of them.

        Args:
            input_ids, position_ids: [1, tokens], of the whole pack; positions restart at each sequence.
            cu_seqlens, max_seqlen: the sequences' borders, see `packed_attention`.
            predict: int64[n], which of this process's tokens are wanted; None for all. Training wants 15%.

        Returns:
            Logits, float32 [n, 33].
        """
        dtype, parallel = self.compute_dtype, self.parallel
        table = _weight(self.esm.embeddings.word_embeddings, dtype)
        hidden = embedding(parallel.own(input_ids[0]), table.float())  # its gradient is summed in fp32
        if self.config.token_dropout:
            hidden = hidden * parallel.own(token_dropout_scale(input_ids[0], cu_seqlens))
        positions = parallel.own_context(position_ids[0])
        angles = positions[:, None].float() * self.esm.rotary_embeddings.inv_freq.float()
        cos, sin = angles.cos(), angles.sin()
        for layer in self.esm.encoder.layer:
            hidden = layer(hidden, cos, sin, cu_seqlens, max_seqlen, dtype, parallel)
        if predict is not None:
            hidden = hidden[predict]
        hidden = _normalized(self.esm.encoder.emb_layer_norm_after, hidden, dtype)
        hidden = gelu(_product(self.lm_head.dense, hidden))
        hidden = _normalized(self.lm_head.layer_norm, hidden, dtype)
        logits = linear(
            hidden, table, own_values(self.lm_head.bias).to(dtype)
        )  # the decoder is the embeddings' table
        return MaskedLMOutput(logits=logits.float())


class PackedLayer(GradientCheckpointingLayer):
    """A transformer layer over a pack. Takes over the parameters of transformers' layer, names and all."""

    def __init__(self, layer: EsmLayer, config: EsmConfig):
        super().__init__()
        # In transformers' order, by which an optimizer's state finds its parameter.
        self.attention, self.intermediate = layer.attention, layer.intermediate
        self.output, self.LayerNorm = layer.output, layer.LayerNorm
        self.head_size = config.hidden_size // config.num_attention_heads
        self.compiled = False

    def forward(self, hidden, cos, sin, cu_seqlens, max_seqlen, dtype, parallel) -> torch.Tensor:
        """The residual stream after this layer: float32 [tokens, width], as `hidden` is."""
        compute = _compiled_layer() if self.compiled else _layer
        return compute(self, hidden, cos, sin, cu_seqlens, max_seqlen, dtype, parallel)


def _layer(layer: PackedLayer, hidden, cos, sin, cu_seqlens, max_seqlen, dtype, parallel: Parallel):
    attention = layer.attention
    normalized = parallel.gather(_normalized(attention.LayerNorm, hidden, dtype))
    query, key, value = (
        part.unflatten(-1, (-1, layer.head_size)) for part in _query_key_value(attention.self, normalized)
    )
    # ESM scales the query before the rotation, so the scores are not scaled any more.
    query, key = _rotated(query * layer.head_size**-0.5, cos, sin), _rotated(key, cos, sin)
    if parallel.context:
        query, key, value = parallel.to_heads(torch.stack([query, key, value], dim=1)).unbind(1)
    mixed = parallel.to_tokens(packed_attention(query, key, value, cu_seqlens, max_seqlen)).flatten(1)
    hidden = hidden + _summed_product(attention.output.dense, mixed, parallel)
    normalized = parallel.gather(_normalized(layer.LayerNorm, hidden, dtype))
    wide = gelu(_product(layer.intermediate.dense, normalized))
    return hidden + _summed_product(layer.output.dense, wide, parallel)


@cache
def _compiled_layer():
    return torch.compile(_layer, dynamic=False)


def _normalized(norm: nn.LayerNorm, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """LayerNorm in fp32, by weights rounded to `dtype`, rounded to `dtype`."""
    weight, bias = _weight(norm, dtype).float(), _bias(norm, dtype).float()
    return layer_norm(hidden.float(), norm.normalized_shape, weight, bias, norm.eps).to(dtype)


def _product(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """A linear layer in its inputs' precision."""
    if type(module) is nn.Linear:
        return linear(inputs, _weight(module, inputs.dtype), _bias(module, inputs.dtype))
    return module(inputs)  # torchao's, in FP8


def _summed_product(module: nn.Module, inputs: torch.Tensor, parallel: Parallel) -> torch.Tensor:
    """A linear layer, of whose inputs each tensor-parallel process has a part."""
    if parallel.tensor is None:
        return _product(module, inputs)
    sums = parallel.sum_and_scatter(linear(inputs, _weight(module, inputs.dtype)))
    return sums + _bias(module, inputs.dtype)


def _weight(module: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    return own_values(module.weight).to(dtype)


def _bias(module: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    return own_values(module.bias).to(dtype)


def _query_key_value(attention: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Three linear layers of the same inputs [tokens, width]: one product where each would be small.

    In larger models a product fills the GPU by itself, and the joined weights, which autograd keeps, would be
    whole on each GPU under FSDP2: 7.5 GB at 15B.
    """
    modules = attention.query, attention.key, attention.value
    if type(modules[0]) is not nn.Linear or inputs.shape[-1] > JOINED_WIDTH:
        return tuple(_product(module, inputs) for module in modules)
    weight = torch.cat([_weight(module, inputs.dtype) for module in modules])
    bias = torch.cat([_bias(module, inputs.dtype) for module in modules])
    return linear(inputs, weight, bias).chunk(3, dim=-1)


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, head size] turned by the angles of each token's position, in fp32 (Su et al. 2021)."""
    first, second = heads.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(heads.dtype)


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int
) -> torch.Tensor:
    """Attention within each sequence of a pack, of queries that are already scaled.

    `torch.nn.attention.varlen` is the CUDA kernel. Elsewhere, and in fp32, which that kernel does not take,
    each sequence has a scaled-dot-product attention of its own.

    Args:
        query, key, value: [tokens, heads, head size].
        cu_seqlens: int32[sequences + 1], where each sequence begins; the last entry is `tokens`.
            Empty sequences (repeated entries) are allowed and keep the shape static.
        max_seqlen: an upper bound of the sequences' lengths.

    Returns:
        [tokens, heads, head size].
    """
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _by_kernel(query, key, value, cu_seqlens, max_seqlen)
    return _one_by_one(query, key, value, cu_seqlens)


def use_flash_attention_3(device: torch.device) -> bool:
    """Have the kernel be FlashAttention 3, where that is installed and the GPU is a Hopper; says whether."""
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    if not (hopper and find_spec("flash_attn_interface")):
        return False
    activate_flash_attention_impl("FA3")
    return True


def _by_kernel(query, key, value, cu_seqlens, max_seqlen):
    borders = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
    return varlen.varlen_attn(query, key, value, *borders, scale=1.0)


@torch.compiler.disable  # its loop depends on the data; the layer around it still compiles
def _one_by_one(query, key, value, cu_seqlens):
    lengths = [length for length in cu_seqlens.diff().tolist() if length]
    # One split instead of slices: its gradient is one concatenation, a slice's is a pack of zeros each.
    parts = zip(*(tensor.transpose(0, 1).split(lengths, dim=1) for tensor in (query, key, value)))
    outputs = [scaled_dot_product_attention(q[None], k[None], v[None], scale=1.0)[0] for q, k, v in parts]
    return torch.cat(outputs, dim=1).transpose(0, 1)


def token_dropout_scale(input_ids: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """ESM-2's token dropout for each sequence of a pack: 0 at `<mask>`, else a scale that makes up for it.

    (1 - 0.12) / (1 - the sequence's own share of `<mask>`), fair-esm 2.0.0 `ESM2.forward`.

    Args:
        input_ids: [tokens]; cu_seqlens: int32[sequences + 1].

    Returns:
        float32 [tokens, 1].
    """
    is_mask = input_ids == MASK
    before = pad(is_mask.cumsum(0), (1, 0))  # number of masks before each token
    borders = cu_seqlens.long()
    share = before[borders].diff().float() / borders.diff().clamp(min=1)
    scale = (1 - TRAINING_MASK_RATIO) / (1 - share)
    positions = torch.arange(len(input_ids), device=input_ids.device, dtype=cu_seqlens.dtype)
    sequence = torch.searchsorted(cu_seqlens[1:], positions, right=True)
    return (scale[sequence] * ~is_mask)[:, None]


def masked_lm_loss(
    logits: torch.Tensor, labels: torch.Tensor, masked_tokens: torch.Tensor | int
) -> torch.Tensor:
    """Cross entropy summed over the labelled tokens, in fp32, divided by `masked_tokens`.

    Dividing by the labels of the whole global batch, not of one pack, makes the loss and its
    gradients independent of how the batch is divided over packs and processes.
    """
    return cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="sum") / masked_tokens
