"""Proteins as the classifier reads them: cropped, encoded, padded into batches."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from esm2_hyperpod.alphabet import PAD, encode
from esm2_hyperpod.localization.settings import Settings
from esm2_hyperpod.proteins.kinds import targets
from esm2_hyperpod.proteins.labelled import Protein
from esm2_hyperpod.streaming.windows import windows

NO_LABEL = -100  # what PyTorch's cross entropy leaves out
Residues = TypeVar("Residues", str, list)


def crop(sequence: Residues, max_seq_length: int, how: str) -> Residues:
    """At most `max_seq_length` - 2 residues (room for `<cls>` and `<eos>`): both ends, the start or the end.

    Sorting signals sit at both termini, so `ends` keeps half of the residues from each and drops the middle,
    as DeepLoc does (Almagro Armenteros et al. 2017).
    """
    residues = max_seq_length - 2
    if len(sequence) <= residues:
        return sequence
    if how == "start":
        return sequence[:residues]
    if how == "end":
        return sequence[-residues:]
    return sequence[: residues - residues // 2] + sequence[-(residues // 2) :]


def encode_cropped(sequence: str, settings: Settings) -> np.ndarray:
    """Token ids uint8[tokens] of one protein as the model reads it, `<cls>` and `<eos>` included."""
    return encode(crop(sequence, settings.max_seq_length, settings.crop).encode())


class EncodedProteins(Dataset):
    """Proteins as token ids (uint8) and targets: a label number, a 0/1 vector where `multi_label`, or a
    number less the mean, in standard deviations."""

    def __init__(self, proteins: Sequence[Protein], settings: Settings):
        number = {label: index for index, label in enumerate(settings.labels)}
        self.cropped = sum(len(protein.sequence) > settings.max_seq_length - 2 for protein in proteins)
        self.ids = [encode_cropped(protein.sequence, settings) for protein in proteins]
        if settings.multi_label:
            self.targets = np.zeros((len(proteins), len(number)), dtype=np.float32)
            for row, protein in enumerate(proteins):
                self.targets[row, [number[label] for label in protein.label.split("|")]] = 1.0
        elif settings.task == "regression":
            self.targets = ((targets(proteins) - settings.mean) / settings.scale).astype(np.float32)
        else:
            self.targets = np.array([number[protein.label] for protein in proteins], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.ids[index], "labels": self.targets[index]}


class EncodedResidues(Dataset):
    """Proteins with a label a residue. A long one is read in windows, and each residue is judged once.

    `ids` are the windows' token ids (uint8), `targets` their tokens' label numbers (int64): `NO_LABEL` at
    `<cls>`, `<eos>`, residues without a label and those that another window judges. `protein` int64[windows];
    `cropped` counts the long proteins.
    """

    def __init__(self, proteins: Sequence[Protein], settings: Settings):
        number = {label: index for index, label in enumerate(settings.labels)}
        self.cropped = sum(len(protein.sequence) > settings.max_seq_length - 2 for protein in proteins)
        self.ids, self.targets, owners = [], [], []
        for owner, protein in enumerate(proteins):
            labels = [number.get(letter, NO_LABEL) for letter in protein.label]
            for window in windows(len(protein.sequence), settings.max_seq_length):
                row = np.full(window.stop - window.start + 2, NO_LABEL, dtype=np.int64)
                first, last = window.first - window.start + 1, window.last - window.start + 1
                row[first:last] = labels[window.first : window.last]
                self.ids.append(encode(protein.sequence[window.start : window.stop].encode()))
                self.targets.append(row)
                owners.append(owner)
        self.protein = np.array(owners)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"input_ids": self.ids[index], "labels": self.targets[index]}


Encoded = EncodedProteins | EncodedResidues


def collate(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` int64[rows, longest], and `labels` where the rows have them.

    Labels of tokens are padded with `NO_LABEL`.
    """
    ids = np.full((len(rows), max(len(row["input_ids"]) for row in rows)), PAD, dtype=np.int64)
    for line, row in zip(ids, rows):
        line[: len(row["input_ids"])] = row["input_ids"]
    input_ids = torch.from_numpy(ids)
    batch = {"input_ids": input_ids, "attention_mask": (input_ids != PAD).long()}
    if "labels" in rows[0]:
        labels = [row["labels"] for row in rows]
        if labels[0].dtype == np.int64 and labels[0].ndim:  # of tokens
            labels = [np.pad(row, (0, ids.shape[1] - len(row)), constant_values=NO_LABEL) for row in labels]
        batch["labels"] = torch.from_numpy(np.stack(labels))
    return batch
