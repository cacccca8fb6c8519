"""Predictions: of proteins in memory, and of a FASTA file of any size in constant memory."""

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from esm2_hyperpod.artifacts import file_digest, write_json_atomically
from esm2_hyperpod.console import counted
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.localization.attribution import Attribution, integrated_gradients
from esm2_hyperpod.localization.attribution_files import write_attributions
from esm2_hyperpod.localization.encoding import collate, crop, encode_cropped
from esm2_hyperpod.localization.metrics import decide
from esm2_hyperpod.localization.model import judges_residues, load_tuned
from esm2_hyperpod.localization.settings import SETTINGS, read_settings
from esm2_hyperpod.localization.tasks import task_of
from esm2_hyperpod.proteins.records import Record, read_records, refuse_nucleotides, residues_of
from esm2_hyperpod.streaming.batches import BATCH_TOKENS, in_turns, length_batches
from esm2_hyperpod.streaming.resumable import CHUNK, ResumableFile, chunks, csv_bytes


def predict_logits(
    model: torch.nn.Module, ids: Sequence[np.ndarray], bf16: bool, alone: bool = False
) -> np.ndarray:
    """Logits float32[proteins, labels] of encoded proteins, in their order, on every rank.

    Of a model that judges residues, float32[tokens, labels]: the tokens of one protein after the other.
    Proteins of like length share a batch; ranks take batches in turn, unless this one predicts `alone`. With
    `bf16` under autocast, as training in bf16 is.
    """
    device = next(model.parameters()).device
    batches = length_batches([len(row) for row in ids], BATCH_TOKENS[device.type])
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        # One tensor for all: small results kept between large temporaries would leave holes in the heap.
        tokens = judges_residues(model)
        rows = np.cumsum([0, *(len(row) if tokens else 1 for row in ids)])
        logits = torch.zeros(int(rows[-1]), model.config.num_labels, device=device)
        longest_first = batches[::-1]  # no later one needs more memory
        for batch in in_turns(longest_first, logits, alone=alone):
            inputs = collate([{"input_ids": ids[index]} for index in batch])
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            given = model(**inputs).logits.float()
            if tokens:
                for index, row in zip(batch, given):
                    logits[rows[index] : rows[index + 1]] = row[: len(ids[index])]
            else:
                logits[torch.from_numpy(batch).to(device)] = given
    return logits.cpu().numpy()


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
        self.task = task_of(self.settings)
        self._folder, self._device, self._bf16 = folder, device, bf16

    @functools.cached_property
    def model(self) -> torch.nn.Module:
        """The model, frozen and in evaluation mode."""
        return load_tuned(self._folder, self._device, self._bf16)

    def logits(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """`predict_logits` of encoded proteins. All ranks take part."""
        return predict_logits(self.model, ids, self._bf16)

    def is_current(self, output: Path, fasta: Path, explained: int = 0) -> bool:
        """Whether `output` holds the predictions of this file by this model, in this precision.

        With `explained`, the attributions of so many proteins.

        Raises `UserError` if there is no such FASTA file, or it holds DNA or RNA.
        """
        if not fasta.is_file():
            raise UserError(f"--predict_file {fasta}: no such file; give the proteins as FASTA (.gz too)")
        refuse_nucleotides((record.sequence for record in read_records(fasta)), f"--predict_file {fasta}")
        return ResumableFile(output, self._identity(fasta, explained)).is_current()

    def predict_file(
        self, fasta: Path, output: Path, stop_asked: Callable[[], bool] = lambda: False
    ) -> int | None:
        """Write `output` (id, and the task's columns): a row a record of `fasta`, in its order.

        Memory does not grow with the file. It is a `ResumableFile`: interrupted, it is resumed provided that
        file, model and precision are the same. All ranks take part. Returns the number of proteins in
        `output`; None if rank 0's `stop_asked`, looked at after each chunk, ended it early.

        Raises `UserError` if `fasta` is no FASTA file.
        """
        file = ResumableFile(output, self._identity(fasta))
        done = file.grow(
            read_records(fasta),
            csv_bytes([["id", *self.task.columns(self.settings)]]),
            self._rows,
            lambda records: chunks(records, CHUNK),
            title=f"predicting {fasta.name}",
            stop_asked=stop_asked,
        )
        if done is not None:
            file.finish()
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
        chosen = itertools.islice(with_residues, proteins)
        for record in counted(chosen, proteins, "explaining", " proteins"):
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

    def _rows(self, chunk: Sequence[Record]) -> bytes:
        """The CSV rows of some records; a record without residues has its id only."""
        sequences = [residues_of(record.sequence) for record in chunk]
        logits = self.logits(self.task.inputs(sequences, self.settings))
        empty = [""] * len(self.task.columns(self.settings))
        given = zip(chunk, sequences, self.task.cells(sequences, logits, self.settings))
        return csv_bytes([record.id, *(cells if text else empty)] for record, text, cells in given)
