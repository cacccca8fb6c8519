"""Attention within each sequence of a pack, behind transformers' attention interface.

`torch.nn.attention.varlen` is the CUDA kernel; elsewhere, and in fp32 where that kernel does not
go, each sequence has a scaled-dot-product attention of its own. Importing this module registers both
under the name "packed"; the model passes `cu_seqlens` and `max_seqlen` down as keyword arguments.
"""

import torch
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

PACKED = "packed"


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
    """Attention over one row of sequences laid end to end.

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


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, lambda *_, **__: None)  # the sequence borders are the mask
