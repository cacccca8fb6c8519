"""From the notes of all partitions to what step 1 says of its whole output."""

from pathlib import Path

import numpy as np

from esm2_hyperpod.artifacts import CLUSTER_OF_ROW, content_digest, package_versions, whole_file
from esm2_hyperpod.tokenization.partition import changed_residues, token_counts
from esm2_hyperpod.tokenization.tasks import LENGTH_BINS, cluster_part
from esm2_hyperpod.tokenization.uniref_clusters import dense_numbers


def summary(
    options: dict, source: dict, fractions: dict, notes: list[dict], shards: dict[str, list[dict]]
) -> dict:
    """The manifest of step 1.

    `source` is the manifest of step 0, `notes` those of the partitions in order, `shards` the files of
    each split. A record is a row on disk, a protein a record of the source: they differ in number where
    long sequences are cut into chunks.
    """
    seen = {split: np.sum([note["bytes_seen"][split] for note in notes], axis=0) for split in shards}
    splits = {}
    for split, files in shards.items():
        splits[split] = {
            "records": sum(file["records"] for file in files),
            "proteins": sum(note["proteins"][split] for note in notes),
            "residues": int(seen[split].sum()),
            "tokens": sum(file["tokens"] for file in files),
            "bytes": sum(file["bytes"] for file in files),
            "files": files,
        }
    lengths = np.zeros(max(len(note["lengths_seen"]) for note in notes), dtype=np.int64)
    for note in notes:
        lengths[: len(note["lengths_seen"])] += np.array(note["lengths_seen"], dtype=np.int64)
    return {
        "options": options,
        "synthetic": source["synthetic"],
        "fractions": fractions,
        "longest": max(note["longest"] for note in notes),
        "too_short_left_out": sum(note["too_short"] for note in notes),
        "longer_than_max_length": sum(note["too_long"] for note in notes),
        "in_no_split": sum(note["unassigned"] for note in notes),
        "changed_residues": changed_residues(
            sum(seen.values()),
            gaps=sum(note["gaps"] for note in notes),
            end_stops=sum(note["end_stops"] for note in notes),
        ),
        "token_counts": {split: token_counts(counts) for split, counts in seen.items()},
        "length_histogram": {"residues_per_bin": LENGTH_BINS, "records": lengths.tolist()},
        "splits": splits,
        "content_digest": content_digest([file for files in shards.values() for file in files]),
        "versions": package_versions("numpy", "pyarrow"),
    }


def write_cluster_of_row(folder: Path, split: str, partitions: int, clusters: int) -> int:
    """Join the shards' cluster numbers to one file beside them; returns how many clusters the split has."""
    paths = (cluster_part(folder, split, index) for index in range(partitions))
    numbers, count = dense_numbers([np.load(path) for path in paths], clusters)
    with whole_file(folder / split / CLUSTER_OF_ROW) as temporary, open(temporary, "wb") as file:
        np.save(file, numbers)
    return count
