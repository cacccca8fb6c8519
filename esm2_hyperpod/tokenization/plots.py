"""Pictures of a data set: how long its proteins are, and which residues they are made of."""

from pathlib import Path

import numpy as np

from esm2_hyperpod.alphabet import AMINO_ACIDS
from esm2_hyperpod.arrow import lengths_of
from esm2_hyperpod.artifacts import read_manifest
from esm2_hyperpod.console import counted
from esm2_hyperpod.figures import BLUE, GREEN, GREY, WIDTH, add_title, count_axis, new_figure, save_figure
from esm2_hyperpod.tokenization.partition import byte_counts, read_partition, token_counts

PICTURE = "data.png"
SHOWN = 0.995
"""The share of the records whose lengths are drawn: the longest protein has 45,000 residues."""
_BIN = 64


def plot_partitions(folder: Path) -> Path:
    """Draw all CSV partitions; returns the picture's path."""
    manifest = read_manifest(folder, "python 0.download_data.py")
    seen, histogram = np.zeros(256, dtype=np.int64), np.zeros(manifest["longest"] // _BIN + 1, dtype=np.int64)
    for file in counted(manifest["files"], len(manifest["files"]), "drawing", " files"):
        for _, sequences in read_partition(folder / file["name"], manifest["longest"], file["sha256"]):
            seen += byte_counts(sequences)
            histogram += np.bincount(lengths_of(sequences) // _BIN, minlength=len(histogram))
    title = f"{manifest['records']:,} records"
    return _draw(folder, title, manifest, histogram, _BIN, token_counts(seen))


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
        manifest,
        np.array(bins["records"]),
        bins["residues_per_bin"],
        total,
    )


def _draw(
    folder: Path, title: str, manifest: dict, histogram: np.ndarray, width: int, counts: dict[str, int]
) -> Path:
    figure, (lengths, residues) = new_figure(WIDTH, 5.5, rows=2)
    add_title(figure, title + (" (synthetic)" if manifest["synthetic"] else ""))
    shown = 1 + int(np.searchsorted(np.cumsum(histogram), SHOWN * histogram.sum()))
    longer = int(histogram[shown:].sum())
    lengths.bar(np.arange(shown) * width, histogram[:shown], width=width, align="edge", color=BLUE)
    lengths.set(xlabel="length (residues)", ylabel="records", xlim=(0, None))
    count_axis(lengths.yaxis)
    half = int(np.searchsorted(np.cumsum(histogram), histogram.sum() / 2)) * width
    notes = [f"median {half:,} to {half + width - 1:,}, longest {manifest['longest']:,}"]
    if longer:
        notes.append(f"not shown: {longer:,} of {shown * width:,} or more")
    lengths.text(0.99, 0.95, "\n".join(notes), transform=lengths.transAxes, ha="right", va="top", color=GREY)
    total = max(sum(counts[residue] for residue in AMINO_ACIDS), 1)
    ordered = sorted(AMINO_ACIDS, key=lambda residue: -counts[residue])
    residues.bar(ordered, [100 * counts[residue] / total for residue in ordered], color=GREEN)
    residues.set(xlabel="residue", ylabel="% of standard residues")
    for axes in (lengths, residues):
        axes.grid(axis="x", visible=False)
    save_figure(figure, folder / PICTURE)
    return folder / PICTURE
