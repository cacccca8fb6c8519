"""Which residues a prediction rests on.

Method: integrated gradients (Sundararajan, Taly & Yan 2017, arXiv:1703.01365) over the output of the
embedding layer. All residues go in a straight line from the baseline, the mean embedding of the twenty amino
acids at every position, to their own embeddings; `<cls>`, `<eos>` and the positions stay. Attributions are
exact in the sense of completeness: those of a protein sum to the logit of the protein less the logit of its
baseline. The baseline is not zero, because ESM-2 normalises its input in the first layer, which blows up
the smallest vector to full size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel

from esm2_hyperpod.alphabet import AMINO_ACID_IDS

TOLERANCE = 0.01  # logits by which a sum of attributions may miss the difference it stands for
POINTS = (16, 32, 64, 128, 256, 512)  # of the path; as many as the tolerance takes
PATH_TOKENS = 1_024  # of the points that share a batch: a backward pass is held for each


@dataclass(frozen=True)
class Attribution:
    """Why one protein was given one label.

    `position` int[n] counts the residues of the whole sequence from 1 and skips what was cropped; `value`
    float[n] is in logits; `gap` is what their sum misses.
    """

    id: str
    label: str
    probability: float
    position: np.ndarray
    residues: str
    value: np.ndarray
    gap: float


def integrated_gradients(model: torch.nn.Module, ids: np.ndarray, label: int) -> tuple[np.ndarray, float]:
    """Attributions float64[residues] of the logit of `label`, and by how much their sum misses completeness.

    The path's integral is by Gauss-Legendre quadrature with ever more points until that gap is within
    `TOLERANCE`, which fp32 reaches; 4-bit layers that compute in bf16 may not.

    Args:
        ids: one encoded protein, `<cls>` and `<eos>` included.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    device = next(model.parameters()).device
    with torch.no_grad():
        end = _embed(model, torch.from_numpy(ids.astype(np.int64)).to(device))
        start = end.clone()
        start[1:-1] = _embed(model, torch.tensor(list(AMINO_ACID_IDS), device=device)).mean(dim=0)
        first, last = (float(_logits(model, point[None])[0, label]) for point in (start, end))
    for count in POINTS:
        nodes, weights = np.polynomial.legendre.leggauss(count)
        gradient = torch.zeros_like(end)
        rows = max(1, PATH_TOKENS // len(ids))
        for begin in range(0, count, rows):
            share = torch.tensor((nodes[begin : begin + rows] + 1) / 2, dtype=end.dtype, device=device)
            points = torch.lerp(start, end, share[:, None, None]).requires_grad_()
            (slope,) = torch.autograd.grad(_logits(model, points)[:, label].sum(), points)
            weight = torch.tensor(weights[begin : begin + rows] / 2, dtype=end.dtype, device=device)
            gradient += torch.einsum("p,pth->th", weight, slope)
        value = ((end - start) * gradient).double().sum(dim=-1)[1:-1].cpu().numpy()
        gap = float(value.sum()) - (last - first)
        if abs(gap) <= TOLERANCE:
            break
    return value, gap


def _embed(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """What the first layer receives for token ids int64[tokens]: float[tokens, width]."""
    return model.esm.embeddings(ids[None], attention_mask=torch.ones_like(ids[None]))[0]


def _logits(model: torch.nn.Module, embeddings: torch.Tensor) -> torch.Tensor:
    """Logits [rows, labels] of embeddings [rows, tokens, width]."""
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
    return model(inputs_embeds=embeddings, attention_mask=mask).logits.float()
