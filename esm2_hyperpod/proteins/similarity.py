"""Which proteins are similar, so that homologues do not sit on both sides of a train/test split.

Two proteins are taken for homologues when they share at least `SHARED_FRACTION` of the distinct 5-mers of
the one that has fewer, at least `SHARED_AT_LEAST`, and more than two random sequences of their lengths would
share once in `1 / CHANCE` pairs. Left out are

- 5-mers of fewer than four different residues, or without a polar one: poly-Q, SR repeats and membrane
  helices look alike without kinship;
- motifs: what overlaps a 5-mer found in over `COMMON` of all proteins, unless a good part of the protein is
  made of such, as in a set of close variants.

On the 1,678 proteins of a DeepLoc sample, chains of such similarities connect 90% of the pairs that MMseqs2
(30% identity, connected components) puts into one cluster.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from esm2_hyperpod.alphabet import AMINO_ACIDS
from esm2_hyperpod.console import counted, in_progress
from esm2_hyperpod.errors import UserError

K = 5
SHARED_FRACTION = 0.02
SHARED_AT_LEAST = 3
CHANCE = 1e-8
SAME_RESIDUE = (
    0.0615  # chance that two residues are equal: sum of the squares of their frequencies in UniProt
)
COMMON, COMMON_AT_LEAST, MADE_OF_COMMON = 0.05, 20, 0.2
DIFFERENT_RESIDUES = 4
RESIDUE_NUMBER = np.full(256, -1, dtype=np.int64)
RESIDUE_NUMBER[np.frombuffer(AMINO_ACIDS.encode(), dtype=np.uint8)] = np.arange(len(AMINO_ACIDS))
RESIDUE_IS_POLAR = np.array([residue in "DEHKNPQRSTY" for residue in AMINO_ACIDS])
FAMILY = 200  # variants of one protein, from which on it stands for them
CANDIDATES = 50  # proteins that are looked at; a family of a twentieth of all is missed once in ten data sets
CHUNK = 2_000  # proteins whose pairs are counted at a time; bounds the memory

KMERS_METHOD = f"shared {K}-mers (at least {SHARED_FRACTION:.0%} of the shorter protein's)"
MMSEQS_METHOD = "MMseqs2 clusters, 30% identity over half of both sequences"


def group_similar(sequences: Sequence[str], pairs: sparse.csr_array) -> tuple[np.ndarray, str]:
    """Group number of each sequence, int[n], and the method in words.

    By MMseqs2 where it is on the PATH. Otherwise the protein with the most similar ones makes a group with
    them, then the next among those left (greedy set cover, as MMseqs2 does): no chains of chance
    similarities, but a group may have a relative in another one.

    Args:
        pairs: `similar_pairs` of the sequences.

    Raises `UserError` if MMseqs2 is installed and fails.
    """
    if shutil.which("mmseqs"):
        return _mmseqs_groups(sequences), MMSEQS_METHOD
    groups = np.full(len(sequences), -1)
    neighbours = np.diff(pairs.indptr)
    for protein in np.argsort(-neighbours, kind="stable"):
        if groups[protein] < 0:
            similar = pairs.indices[pairs.indptr[protein] : pairs.indptr[protein + 1]]
            groups[similar[groups[similar] < 0]] = protein
            groups[protein] = protein
    return groups, KMERS_METHOD


def similar_pairs(sequences: Sequence[str]) -> sparse.csr_array:
    """Symmetric bool[n, n], true where two sequences share enough 5-mers to be taken for homologues."""
    return _pairs(*_kmer_table(sequences))


def similar_families(sequences: Sequence[str]) -> tuple[np.ndarray, sparse.csr_array]:
    """For each sequence the one that stands for it, int[n], and `similar_pairs` of those that do.

    A sequence stands for itself, unless it is one of `FAMILY` or more variants of another, which have half of
    their 5-mers in common with it: all pairs of 50,000 variants would take hours and fill the memory. Of the
    pairs, bool[n, n], rows and columns of sequences that stand for none are empty.
    """
    kmers, distinct = _kmer_table(sequences)
    leader = np.arange(len(sequences))
    alone = distinct > 0
    for candidate in np.random.default_rng(0).permutation(len(sequences))[:CANDIDATES]:
        if alone[candidate]:
            shared = (kmers @ kmers[[candidate]].T).toarray()[:, 0]
            close = alone & (shared >= 0.5 * np.maximum(distinct, distinct[candidate]))
            if close.sum() >= FAMILY:
                leader[close], alone[close] = candidate, False
    kept = np.unique(leader)
    pairs = _pairs(kmers[kept], distinct[kept]).tocoo()
    places = kept[pairs.row], kept[pairs.col]
    return leader, sparse.csr_array((pairs.data, places), shape=(len(sequences),) * 2)


def _pairs(kmers: sparse.csr_array, distinct: np.ndarray) -> sparse.csr_array:
    from scipy.stats import poisson  # slow to import

    blocks = []
    starts = range(0, len(distinct), CHUNK)
    for start in counted(starts, len(starts), "comparing proteins", f" x {CHUNK:,} proteins"):
        shared = (kmers[start : start + CHUNK] @ kmers.T).tocoo()
        row, column, count = shared.row + start, shared.col, shared.data
        enough = np.maximum(SHARED_AT_LEAST, SHARED_FRACTION * np.minimum(distinct[row], distinct[column]))
        likely = (count >= enough) & (row != column)
        row, column, count = row[likely], column[likely], count[likely]
        by_chance = poisson.isf(CHANCE, distinct[row] * distinct[column] * SAME_RESIDUE**K)
        blocks.append((row[count > by_chance], column[count > by_chance]))
    rows, columns = (np.concatenate(part) for part in zip(*blocks, strict=True))
    ones = np.ones(len(rows), dtype=bool)
    return sparse.csr_array((ones, (rows, columns)), shape=(len(distinct),) * 2)


def _kmer_table(sequences: Sequence[str]) -> tuple[sparse.csr_array, np.ndarray]:
    """Which protein holds which 5-mer, int32[n, kmers] of ones, and the number of 5-mers of each, int[n]."""
    title = f"listing {K}-mers"
    codes = [_kmer_codes(text) for text in counted(sequences, len(sequences), title, " proteins")]
    protein = np.repeat(np.arange(len(sequences)), [len(part) for part in codes])
    known, kmer = np.unique(np.concatenate(codes), return_inverse=True)
    usable = known[kmer] >= 0
    holders = np.bincount(_distinct(protein[usable], kmer[usable])[1], minlength=len(known))

    common = usable & (holders[kmer] > max(COMMON_AT_LEAST, COMMON * len(sequences)))
    length = np.bincount(protein, minlength=len(sequences))
    made_of_common = np.bincount(protein, common, len(sequences)) > MADE_OF_COMMON * length
    usable &= ~_overlapping(common & ~made_of_common[protein], protein)

    protein, kmer = _distinct(protein[usable], kmer[usable])
    table = sparse.csr_array(
        (np.ones(len(protein), dtype=np.int32), (protein, kmer)), shape=(len(sequences), len(known))
    )
    return table, np.bincount(protein, minlength=len(sequences))


def _kmer_codes(sequence: str) -> np.ndarray:
    """A number for each 5-mer of the sequence, in order; -1 where it is of low complexity or has an X."""
    residues = RESIDUE_NUMBER[np.frombuffer(sequence.encode(), dtype=np.uint8)]
    if len(residues) < K:
        return np.empty(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(residues, K)
    ordered = np.sort(windows, axis=1)
    different = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    polar = RESIDUE_IS_POLAR[windows].any(axis=1)
    usable = (different >= DIFFERENT_RESIDUES) & (ordered[:, 0] >= 0) & polar
    return np.where(usable, windows @ len(AMINO_ACIDS) ** np.arange(K), -1)


def _distinct(protein: np.ndarray, kmer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each (protein, k-mer) pair once."""
    width = kmer.max(initial=0) + 1
    return np.divmod(np.unique(protein * width + kmer), width)


def _overlapping(marked: np.ndarray, protein: np.ndarray) -> np.ndarray:
    """The marked 5-mers and all of the same protein that share a residue with one: bool[5-mers]."""
    result = marked.copy()
    for shift in range(1, K):
        same = protein[shift:] == protein[:-shift]
        result[shift:] |= marked[:-shift] & same
        result[:-shift] |= marked[shift:] & same
    return result


def _mmseqs_groups(sequences: Sequence[str]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        fasta, result = Path(folder) / "proteins.fasta", Path(folder) / "result"
        fasta.write_text("".join(f">{number}\n{text}\n" for number, text in enumerate(sequences)))
        command = ["mmseqs", "easy-cluster", str(fasta), str(result), str(Path(folder) / "work")]
        command += ["--min-seq-id", "0.3", "-c", "0.5", "--cov-mode", "0", "-v", "1"]
        with in_progress("clustering by MMseqs2"):
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last_line = ((done.stdout + done.stderr).strip().splitlines() or ["no message"])[-1]
            raise UserError(f"mmseqs failed ({last_line}); fix it or take it off the PATH to group by k-mers")
        table = Path(f"{result}_cluster.tsv").read_text()
    groups = np.empty(len(sequences), dtype=np.int64)
    for line in table.splitlines():
        representative, member = line.split("\t")
        groups[int(member)] = int(representative)
    return groups
