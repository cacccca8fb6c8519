"""Predictions: of proteins in memory, and of a FASTA file of any size in constant memory."""

import csv
import functools
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from esm2_hyperpod.artifacts import file_digest, write_json_atomically
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.localization.attribution import Attribution, integrated_gradients, write_attributions
from esm2_hyperpod.localization.encoding import collate, crop, encode_cropped
from esm2_hyperpod.localization.metrics import decide
from esm2_hyperpod.localization.model import load_tuned
from esm2_hyperpod.localization.settings import SETTINGS, read_settings
from esm2_hyperpod.proteins.records import Record, read_records, refuse_nucleotides, residues_of

CHUNK = 1_024  # proteins that are sorted by length together, and written together
BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}
"""Padding included; a longer protein is a batch of its own. More would fall out of a CPU's cache, and
would not fit into 24 GB beside 15B's weights."""


def rank() -> int:
    """This process's number, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def predict_logits(
    model: torch.nn.Module, ids: Sequence[np.ndarray], bf16: bool, alone: bool = False
) -> np.ndarray:
    """Logits float32[proteins, labels] of encoded proteins, in their order, on every rank.

    Proteins of like length share a batch; ranks take batches in turn, unless this one predicts `alone`. With
    `bf16` under autocast, as training in bf16 is.
    """
    device = next(model.parameters()).device
    batches = length_batches([len(row) for row in ids], BATCH_TOKENS[device.type])
    processes = dist.get_world_size() if dist.is_initialized() and not alone else 1
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        # One tensor for all: small results kept between large temporaries would leave holes in the heap.
        logits = torch.zeros(len(ids), model.config.num_labels, device=device)
        longest_first = batches[::-1]  # no later one needs more memory
        for batch in longest_first[rank() % processes :: processes]:
            inputs = collate([{"input_ids": ids[index]} for index in batch])
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            logits[torch.from_numpy(batch).to(device)] = model(**inputs).logits.float()
        if processes > 1:
            dist.all_reduce(logits)  # exact: of each row, all ranks but one hold zeros
    return logits.cpu().numpy()


def length_batches(lengths: Sequence[int], tokens: int) -> list[np.ndarray]:
    """Indices in order of length, cut so that (rows x longest row) stays within `tokens`."""
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end - start + 1) > tokens:
            batches.append(order[start:end])
            start = end
    return batches


class Predictor:
    """A tuned model, and the files that it makes of FASTA files.

    The model is loaded when it is first needed: to know whether a file is current takes no loading.

    Args:
        folder: the tuned model: adapter/, model/ or merged/.
        bf16: predict in bf16, as training in bf16 does; else in fp32.

    Raises `UserError` if `folder` holds no tuned model, and later if the model is corrupt.
    """

    def __init__(self, folder: Path, device: torch.device, bf16: bool):
        self.settings = read_settings(folder)
        self._folder, self._device, self._bf16 = folder, device, bf16

    @functools.cached_property
    def model(self) -> torch.nn.Module:
        """The model, frozen and in evaluation mode."""
        return load_tuned(self._folder, self._device, self._bf16)

    def logits(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """`predict_logits` of encoded proteins: float32[proteins, labels]. All ranks take part."""
        return predict_logits(self.model, ids, self._bf16)

    def is_current(self, output: Path, fasta: Path, explained: int = 0) -> bool:
        """Whether `output` holds the predictions of this file by this model, in this precision.

        With `explained`, the attributions of so many proteins.

        Raises `UserError` if there is no such FASTA file, or it holds DNA or RNA.
        """
        if not fasta.is_file():
            raise UserError(f"--predict_file {fasta}: no such file; give the proteins as FASTA (.gz too)")
        refuse_nucleotides((record.sequence for record in read_records(fasta)), f"--predict_file {fasta}")
        return output.is_file() and _holds(output.with_suffix(".json"), self._identity(fasta, explained))

    def predict_file(
        self, fasta: Path, output: Path, stop_asked: Callable[[], bool] = lambda: False
    ) -> int | None:
        """Write `output` (id, label, the probability of each label): a row a record of `fasta`, in its order.

        Memory does not grow with the file. Rows go to `OUTPUT.partial`, a whole chunk at a time, and an
        interrupted run resumes after the last whole chunk, provided that file, model and precision are the
        same. All ranks take part. Returns the number of proteins in `output`; None if rank 0's `stop_asked`,
        looked at after each chunk, ended it early.

        Raises `UserError` if `fasta` is no FASTA file.
        """
        partial = output.with_name(output.name + ".partial")
        done = _shared(self._resume(partial, fasta) if rank() == 0 else None)
        records = itertools.islice(read_records(fasta), done, None)
        bar = tqdm(initial=done, unit=" proteins", desc=f"predicting {fasta.name}", disable=rank() > 0)
        for chunk in _chunks(records):
            rows = self._rows(chunk)
            if rank() == 0:
                _append(partial, rows)
            done += len(chunk)
            bar.update(len(chunk))
            if _shared(stop_asked() if rank() == 0 else None):
                return None
        bar.close()
        if rank() == 0:
            partial.replace(output)
            _progress_file(partial).replace(output.with_suffix(".json"))
        if dist.is_initialized():
            dist.barrier()
        return done

    def explain_file(
        self, fasta: Path, output: Path, proteins: int, stop_asked: Callable[[], bool] = lambda: False
    ) -> list[Attribution] | None:
        """Write the attributions of the first `proteins` records of `fasta` that have residues.

        Each label predicted for a protein is explained: `output` (id, label, position, residue, attribution)
        and a picture of the same name. Returns what was written; None, with nothing written, if
        `stop_asked`, looked at after each protein, ended it early. No other rank takes part.
        """
        found: list[Attribution] = []
        with_residues = (record for record in read_records(fasta) if residues_of(record.sequence))
        for record in itertools.islice(with_residues, proteins):
            found += self.explain(record)
            if stop_asked():
                return None
        write_attributions(output, found)
        write_json_atomically(output.with_suffix(".json"), self._identity(fasta, proteins))
        return found

    def explain(self, record: Record) -> list[Attribution]:
        """The attributions, computed in fp32, of each label predicted for one protein."""
        sequence, settings = residues_of(record.sequence), self.settings
        numbers = list(range(1, len(sequence) + 1))
        kept, position = (crop(of, settings.max_seq_length, settings.crop) for of in (sequence, numbers))
        ids = encode_cropped(sequence, settings)
        given = settings.probabilities(predict_logits(self.model, [ids], self._bf16, alone=True))
        found = []
        for label in np.flatnonzero(decide(given, settings.multi_label)[0]):
            name, probability = settings.labels[label], float(given[0, label])
            value, gap = integrated_gradients(self.model, ids, int(label))
            found.append(Attribution(record.id, name, probability, np.array(position), kept, value, gap))
        return found

    def _identity(self, fasta: Path, explained: int = 0) -> dict:
        """What a file depends on: FASTA file, model, precision, and the number of proteins explained."""
        facts = fasta.stat()
        file = {"path": str(fasta.resolve()), "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}
        identity = {"file": file, "model": self._digests, "bf16": self._bf16}
        return {**identity, "proteins": explained} if explained else identity

    @functools.cached_property
    def _digests(self) -> dict[str, str]:
        parts = [*sorted(self._folder.glob("*.safetensors")), self._folder / SETTINGS]
        return {path.name: file_digest(path) for path in parts}

    def _rows(self, chunk: Sequence[Record]) -> str:
        """The CSV rows of some records; a record without residues has no label and no probabilities."""
        sequences = [residues_of(record.sequence) for record in chunk]
        logits = self.logits([encode_cropped(sequence, self.settings) for sequence in sequences])
        empty = [""] * (1 + len(self.settings.labels))
        given = zip(chunk, sequences, self.settings.probabilities(logits))
        return _csv(
            [record.id, *(self.settings.cells(row) if text else empty)] for record, text, row in given
        )

    def _resume(self, partial: Path, fasta: Path) -> int:
        """Prepare `partial`; the number of proteins it already holds in whole chunks."""
        asked = self._identity(fasta)
        if partial.is_file() and _holds(_progress_file(partial), asked):
            kept = _keep_whole_chunks(partial)
            if kept:
                return kept
        partial.unlink(missing_ok=True)
        write_json_atomically(_progress_file(partial), asked)
        _append(partial, _csv([["id", "label", *self.settings.labels]]))
        return 0


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _holds(path: Path, asked: dict) -> bool:
    """Whether a JSON file says just what was asked."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) == asked
    except (OSError, ValueError):
        return False


def _keep_whole_chunks(partial: Path) -> int:
    with open(partial, "rb+") as file:
        whole_rows = sum(line.endswith(b"\n") for line in file) - 1
        kept = max(whole_rows, 0) // CHUNK * CHUNK
        file.seek(0)
        for _ in range(1 + kept):
            file.readline()
        file.truncate(file.tell())
    return kept


def _append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _progress_file(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    iterator = iter(records)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk


def _shared(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]
