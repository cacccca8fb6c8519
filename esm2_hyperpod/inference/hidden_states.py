"""Hidden states of any layer, and what is made of them: a vector a protein or one a residue.

Layer 0 is what the first layer receives, layer i what the i-th gives; that of the last layer goes through the
final LayerNorm, as in fair-esm's `representations`.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn.functional import layer_norm

from esm2_hyperpod.alphabet import encode
from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM
from esm2_hyperpod.inference.packs import device_of, packs
from esm2_hyperpod.streaming.batches import in_turns
from esm2_hyperpod.streaming.windows import windows

KINDS = ("mean", "cls", "residues")


def embed(
    model: PackedEsmForMaskedLM,
    proteins: Sequence[str],
    layers: Sequence[int],
    kinds: Sequence[str],
    length: int,
) -> dict[str, np.ndarray]:
    """Embeddings of proteins that have residues, float32, layer by layer. All ranks take part.

    `mean` [proteins, layers, width] is over the residues, without `<cls>` and `<eos>`; `cls` [proteins,
    layers, width] is `<cls>`, of a protein in several windows their mean; `residues` [residues of all
    proteins, layers, width]. `length` is the window in tokens.
    """
    read = [(number, window) for number, text in enumerate(proteins) for window in windows(len(text), length)]
    ids = [encode(proteins[number][window.start : window.stop].encode()) for number, window in read]
    device, shape = device_of(model), (len(layers), model.config.hidden_size)
    first = np.cumsum([0, *(window.last - window.first for _, window in read)])
    rows = {"mean": len(read), "cls": len(read), "residues": first[-1]}
    found = {kind: torch.zeros(rows[kind], *shape, device=device) for kind in kinds}
    with torch.inference_mode():
        for pack in in_turns(packs(ids, device), *found.values()):
            states = hidden_states(model, pack.inputs(device), layers)
            for row, (start, _) in zip(pack.rows, pack.spans):
                window = read[row][1]
                begin = start + 1 + window.first - window.start
                own = states[:, begin : begin + window.last - window.first].transpose(0, 1)
                if "mean" in kinds:
                    found["mean"][row] = own.sum(dim=0)
                if "cls" in kinds:
                    found["cls"][row] = states[:, start]
                if "residues" in kinds:
                    found["residues"][first[row] : first[row + 1]] = own
    arrays = {kind: tensor.cpu().numpy() for kind, tensor in found.items()}
    owner = np.array([number for number, _ in read], dtype=np.int64)
    each = {"mean": np.array([len(text) for text in proteins]), "cls": np.bincount(owner)}
    for kind in set(kinds) & set(each):  # windows into proteins, in their order on any number of processes
        together = np.zeros((len(proteins), *shape), dtype=np.float32)
        np.add.at(together, owner, arrays[kind])
        arrays[kind] = together / each[kind][:, None, None].astype(np.float32)
    return arrays


def hidden_states(model: PackedEsmForMaskedLM, inputs: dict, layers: Sequence[int]) -> torch.Tensor:
    """float32[layers, tokens, width] of one pack."""
    with _captured(model, set(layers)) as states:
        model(**inputs, predict=torch.zeros(1, dtype=torch.long, device=inputs["input_ids"].device))
    last = model.config.num_hidden_layers
    if last in states:
        norm = model.esm.encoder.emb_layer_norm_after
        weight, bias = norm.weight.float(), norm.bias.float()
        states[last] = layer_norm(states[last], norm.normalized_shape, weight, bias, norm.eps)
    return torch.stack([states[layer].float() for layer in layers])


@contextlib.contextmanager
def _captured(model: PackedEsmForMaskedLM, layers: set[int]) -> Iterator[dict[int, torch.Tensor]]:
    """The hidden states of these layers, once the model has been called."""
    states: dict[int, torch.Tensor] = {}

    def keep(number: int, hidden: torch.Tensor) -> None:
        states[number] = hidden

    modules, hooks = model.esm.encoder.layer, []
    for number in layers:
        if number == 0:
            hook = modules[0].register_forward_pre_hook(lambda _, given: keep(0, given[0]))
        else:
            hook = modules[number - 1].register_forward_hook(
                lambda _, given, hidden, number=number: keep(number, hidden)
            )
        hooks.append(hook)
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
