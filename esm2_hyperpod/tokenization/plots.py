"""Pictures of a data set: how long its proteins are, and which residues they are made of."""

from pathlib import Path

import numpy as np

from esm2_hyperpod.alphabet import AMINO_ACIDS
from esm2_hyperpod.arrow import lengths_of
from esm2_hyperpod.artifacts import read_manifest
from esm2_hyperpod.figures import new_figure, save_figure
from esm2_hyperpod.tokenization.partition import byte_counts, read_partition, token_counts

PICTURE = "data.png"
_BIN = 64


def plot_partitions(folder: Path) -> Path:
    """Draw all CSV partitions; returns the picture's path."""
    manifest = read_manifest(folder, "python 0.download_data.py")
    seen, histogram = np.zeros(256, dtype=np.int64), np.zeros(manifest["longest"] // _BIN + 1, dtype=np.int64)
    for file in manifest["files"]:
        for _, sequences in read_partition(folder / file["name"], manifest["longest"], file["sha256"]):
            seen += byte_counts(sequences)
            histogram += np.bincount(lengths_of(sequences) // _BIN, minlength=len(histogram))
    title = f"{manifest['records']:,} records"
    return _draw(folder, title, manifest["synthetic"], histogram, _BIN, token_counts(seen))


def plot_dataset(folder: Path) -> Path:
    """Draw the splits of step 1 from their manifest; returns the picture's path."""
    manifest = read_manifest(folder, "python 1.tokenize_uniref_csv.py")
    bins = manifest["length_histogram"]
    counts = manifest["token_counts"].values()
    total = {token: sum(count[token] for count in counts) for token in AMINO_ACIDS}
    records = sum(split["proteins"] for split in manifest["splits"].values())
    return _draw(
        folder,
        f"{records:,} records",
        manifest["synthetic"],
        np.array(bins["records"]),
        bins["residues_per_bin"],
        total,
    )


def _draw(
    folder: Path, title: str, synthetic: bool, histogram: np.ndarray, width: int, counts: dict[str, int]
) -> Path:
    figure, (left, right) = new_figure(11, 4, columns=2)
    figure.suptitle(title + (" (synthetic)" if synthetic else ""))
    left.bar(np.arange(len(histogram)) * width, histogram, width=width, align="edge")
    left.set(xlabel="length (residues)", ylabel="records", yscale="log", xlim=(0, None))
    total = max(sum(counts[residue] for residue in AMINO_ACIDS), 1)
    right.bar(list(AMINO_ACIDS), [100 * counts[residue] / total for residue in AMINO_ACIDS])
    right.set(xlabel="residue", ylabel="% of standard residues")
    save_figure(figure, folder / PICTURE)
    return folder / PICTURE
