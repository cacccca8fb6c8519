"""Predictions: of proteins in memory, and of a FASTA file of any size in constant memory."""

import csv
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

from esm2_hyperpod.alphabet import encode
from esm2_hyperpod.artifacts import file_digest, write_json_atomically
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.localization.encoding import collate, crop
from esm2_hyperpod.localization.metrics import decide, probabilities
from esm2_hyperpod.localization.model import SETTINGS, Settings
from esm2_hyperpod.proteins.records import Record, read_records

CHUNK = 1_024  # proteins that are sorted by length together, and written together
BATCH_TOKENS = {"cpu": 2_048, "cuda": 16_384}
"""Padding included; a longer protein is a batch of its own. More would fall out of a CPU's cache, and
would not fit into 24 GB beside 15B's weights."""


def rank() -> int:
    """This process's number, 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def predict_logits(model: torch.nn.Module, ids: Sequence[np.ndarray], bf16: bool) -> np.ndarray:
    """Logits float32[proteins, labels] of encoded proteins, in their order, on every rank.

    Proteins of like length share a batch; ranks take batches in turn. With `bf16` under autocast, as training
    in bf16 is.
    """
    device = next(model.parameters()).device
    batches = length_batches([len(row) for row in ids], BATCH_TOKENS[device.type])
    processes = dist.get_world_size() if dist.is_initialized() else 1
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        # One tensor for all: small results kept between large temporaries would leave holes in the heap.
        logits = torch.zeros(len(ids), model.config.num_labels, device=device)
        for batch in batches[::-1][rank() :: processes]:  # the longest first: no later one needs more memory
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


def already_predicted(fasta: Path, output: Path, weights: Path, bf16: bool) -> bool:
    """Whether `output` holds the predictions of this file by the model in `weights`, in this precision.

    Raises `UserError` if there is no such FASTA file.
    """
    if not fasta.is_file():
        raise UserError(f"--predict_file {fasta}: no such file; give the proteins as FASTA (.gz too)")
    return output.is_file() and holds(output.with_suffix(".json"), identity(fasta, weights, bf16))


def predict_file(
    model: torch.nn.Module,
    settings: Settings,
    fasta: Path,
    output: Path,
    weights: Path,
    bf16: bool,
    stop_asked: Callable[[], bool] = lambda: False,
) -> int | None:
    """Write `output` (id, label, the probability of each label), one row a record of `fasta`, in its order.

    Memory does not grow with the file. Rows go to `OUTPUT.partial`, a whole chunk at a time, and an
    interrupted run goes on after the last whole chunk, provided that file, model and precision are the same.
    `weights` is the folder the model was loaded from, `bf16` as in `predict_logits`. All ranks take part.
    Returns the number of proteins in `output`; None if rank 0's `stop_asked`, looked at after each chunk,
    ended it early.

    Raises `UserError` if `fasta` is no FASTA file.
    """
    partial = output.with_name(output.name + ".partial")
    done = _shared(_resume(partial, identity(fasta, weights, bf16), settings) if rank() == 0 else None)
    records = itertools.islice(read_records(fasta), done, None)
    bar = tqdm(initial=done, unit=" proteins", desc=f"predicting {fasta.name}", disable=rank() > 0)
    for chunk in _chunks(records):
        sequences = [residues_of(record) for record in chunk]
        ids = [encode(crop(text, settings.max_seq_length, settings.crop).encode()) for text in sequences]
        logits = predict_logits(model, ids, bf16)
        rows = probabilities(logits, settings.temperature, settings.multi_label)
        if rank() == 0:
            _append(partial, _csv_rows(chunk, sequences, rows, settings))
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


def identity(fasta: Path, weights: Path, bf16: bool) -> dict:
    """What predictions depend on: the FASTA file, the model in the folder `weights`, and the precision."""
    facts = fasta.stat()
    file = {"path": str(fasta.resolve()), "bytes": facts.st_size, "modified_ns": facts.st_mtime_ns}
    parts = [*sorted(weights.glob("*.safetensors")), weights / SETTINGS]
    return {"file": file, "model": {path.name: file_digest(path) for path in parts}, "bf16": bf16}


def residues_of(record: Record) -> str:
    """A record's sequence as the model reads it: upper case, no blanks, no stop codon at the end."""
    return "".join(record.sequence.split()).upper().rstrip("*")


def csv_header(settings: Settings) -> list[str]:
    """Column names of a predictions file."""
    return ["id", "label", *settings.labels]


def named_labels(row: np.ndarray, settings: Settings) -> str:
    """What the probabilities float[labels] of one protein predict; several labels are joined by `|`."""
    chosen = decide(row[None], settings.multi_label)[0]
    return "|".join(label for label, inside in zip(settings.labels, chosen) if inside)


def _csv_rows(chunk: Sequence[Record], sequences: Sequence[str], rows: np.ndarray, settings: Settings) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for record, sequence, row in zip(chunk, sequences, rows):
        if sequence:
            values = [named_labels(row, settings), *(f"{p:.6f}" for p in row)]
        else:
            values = ["", *("" for _ in row)]  # a record without residues has no place
        writer.writerow([record.id, *values])
    return text.getvalue()


def _resume(partial: Path, asked: dict, settings: Settings) -> int:
    """Prepare `partial`; the number of proteins it already holds in whole chunks."""
    if partial.is_file() and holds(_progress_file(partial), asked):
        kept = _keep_whole_chunks(partial)
        if kept:
            return kept
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(csv_header(settings))
    partial.unlink(missing_ok=True)
    write_json_atomically(_progress_file(partial), asked)
    _append(partial, header.getvalue())
    return 0


def holds(path: Path, asked: dict) -> bool:
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
