"""Log-probabilities of all 33 tokens at some positions of proteins, masked or not."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from esm2_hyperpod.alphabet import MASK, TOKENS, UNK, encode
from esm2_hyperpod.esm.packed import PackedEsmForMaskedLM
from esm2_hyperpod.inference.packs import device_of, packs
from esm2_hyperpod.streaming.batches import in_turns
from esm2_hyperpod.streaming.windows import window_of, windows

TOKEN = {token: number for number, token in enumerate(TOKENS)}
MASK_LETTER = "#"
"""Stands for `<mask>` in a sequence, so that it is one letter as a residue is."""


def with_mask_letters(sequence: str) -> str:
    """A sequence in upper case, with `#` for each `<mask>`."""
    return sequence.upper().replace("<MASK>", MASK_LETTER)


def encode_masked(sequence: str) -> np.ndarray:
    """`<cls>` + residues + `<eos>`, uint8[len + 2]; `#` is `<mask>`."""
    ids = encode(sequence.encode())
    ids[1:-1][np.frombuffer(sequence.encode(), dtype=np.uint8) == ord(MASK_LETTER)] = MASK
    return ids


def masked_log_probabilities(
    model: PackedEsmForMaskedLM, places: Iterable[tuple[str, int]], max_length: int
) -> np.ndarray:
    """float32[places, 33]: for each sequence and position (from 0), that position masked and nothing else.

    All ranks take part. In a sequence longer than `max_length` tokens the window of the position is read.
    """
    rows, tokens = [], []
    for sequence, position in places:
        window = window_of(position, len(sequence), max_length)
        ids = encode_masked(sequence[window.start : window.stop])
        token = position - window.start + 1
        ids[token] = MASK
        rows.append(ids)
        tokens.append(np.array([token]))
    return _log_probabilities(model, rows, tokens)


def log_probabilities(
    model: PackedEsmForMaskedLM, sequences: Sequence[str], max_length: int
) -> list[np.ndarray]:
    """float32[residues, 33] a sequence: at each of its positions, as it stands. All ranks take part."""
    read = [(text, window) for text in sequences for window in windows(len(text), max_length)]
    rows = [encode_masked(text[window.start : window.stop]) for text, window in read]
    tokens = [np.arange(window.first, window.last) - window.start + 1 for _, window in read]
    found = _log_probabilities(model, rows, tokens)
    return np.split(found, np.cumsum([len(text) for text in sequences])[:-1])


def residue_log_likelihoods(
    model: PackedEsmForMaskedLM, sequences: Sequence[str], max_length: int
) -> list[np.ndarray]:
    """log p of each residue, masked alone: float64[residues] a sequence. All ranks take part."""
    places = [(sequence, position) for sequence in sequences for position in range(len(sequence))]
    table = masked_log_probabilities(model, places, max_length).astype(np.float64)
    own = [TOKEN.get(sequence[position], UNK) for sequence, position in places]
    likelihoods = table[np.arange(len(places)), own]
    return np.split(likelihoods, np.cumsum([len(sequence) for sequence in sequences])[:-1])


def _log_probabilities(
    model: PackedEsmForMaskedLM, rows: Sequence[np.ndarray], tokens: Sequence[np.ndarray]
) -> np.ndarray:
    """float32[all tokens, 33] at `tokens` of each of the rows of token ids."""
    device = device_of(model)
    first = np.cumsum([0, *(len(chosen) for chosen in tokens)])
    found = torch.zeros(int(first[-1]), model.config.vocab_size, device=device)
    with torch.inference_mode():
        for pack in in_turns(packs(rows, device), found):
            chosen = [tokens[row] + start for row, (start, _) in zip(pack.rows, pack.spans)]
            places = torch.from_numpy(np.concatenate(chosen)).to(device)
            logits = model(**pack.inputs(device), predict=places).logits
            found[first[pack.rows[0]] : first[pack.rows[-1] + 1]] = logits.log_softmax(dim=-1)
    return found.cpu().numpy()
