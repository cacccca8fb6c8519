"""What a person looks at before training: how long the proteins are, what they are made of, what is cut."""

import itertools

import numpy as np

from esm2_hyperpod.alphabet import AMINO_ACIDS

EDGES = (128, 256, 512, 1024, 2048)
"""Residues at which the columns of lengths begin; multiples of the histogram's bins."""
CUT = {
    "keep": "cropped at random in training",
    "truncate": "truncated",
    "chunk": "cut into chunks",
}


def describe(manifest: dict) -> list[str]:
    """The lines that step 1 ends with, from its manifest."""
    bins, width = (
        np.array(manifest["length_histogram"]["records"]),
        manifest["length_histogram"]["residues_per_bin"],
    )
    starts = np.arange(len(bins)) * width
    column = np.searchsorted(EDGES, starts, side="right")
    shares = 100 * np.bincount(column, weights=bins, minlength=len(EDGES) + 1) / max(bins.sum(), 1)
    names = ["0", *(str(edge) for edge in EDGES)]
    names = [f"{first}-{int(last) - 1}" for first, last in itertools.pairwise(names)] + [f"{names[-1]}-"]
    counts = {
        residue: sum(split[residue] for split in manifest["token_counts"].values()) for residue in AMINO_ACIDS
    }
    total = max(sum(counts.values()), 1)
    common = sorted(counts, key=lambda residue: -counts[residue])
    options, proteins = manifest["options"], max(int(bins.sum()), 1)
    longer = manifest["longer_than_max_length"]
    return [
        "residues: " + "  ".join(f"{name:>9}" for name in names),
        "proteins: " + "  ".join(f"{share:8.1f}%" for share in shares),
        "residue frequencies, %: "
        + "  ".join(f"{residue} {100 * counts[residue] / total:.1f}" for residue in common),
        f"{longer:,} proteins ({100 * longer / proteins:.1f}%) are longer than "
        f"{options['max_length'] - 2:,} residues: {CUT[options['long_sequences']]}",
        f"{manifest['too_short_left_out']:,} records were too short and left out",
    ]
