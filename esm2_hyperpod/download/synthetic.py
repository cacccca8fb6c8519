"""Synthetic proteins that look like UniRef50 and hold something to learn: no download, no licence, any size.

Each record belongs to a family: a domain of 24 to 47 residues repeated in tandem from a random phase, a
tenth of its residues mutated. Families live in one of ten places in the cell, most members stay at home,
and each place leaves the sorting signal that biology uses for it (von Heijne 1990; Emanuelsson et al. 2007;
Almagro Armenteros et al. 2017): signal peptide, transit peptides, nuclear localization signal,
transmembrane stretch, KDEL, SKL. Nothing else about them is real.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp
from statistics import NormalDist
from typing import TextIO

import numpy as np

from esm2_hyperpod.hashing import key64

LOCALIZATIONS = (
    "Cell.membrane", "Cytoplasm", "Endoplasmic.reticulum", "Extracellular", "Golgi.apparatus",
    "Lysosome/Vacuole", "Mitochondrion", "Nucleus", "Peroxisome", "Plastid",
)  # fmt: skip
_MEMBRANE, _CYTOPLASM, _ER, _OUTSIDE, _GOLGI, _LYSOSOME, _MITOCHONDRION, _NUCLEUS, _PEROXISOME, _PLASTID = (
    range(10)
)

# Percent of each residue in UniProtKB/Swiss-Prot, after its release statistics.
RESIDUE_PERCENT = {
    "A": 8.25, "R": 5.52, "N": 4.06, "D": 5.46, "C": 1.38, "Q": 3.93, "E": 6.71, "G": 7.07, "H": 2.27,
    "I": 5.91, "L": 9.64, "K": 5.80, "M": 2.41, "F": 3.86, "P": 4.74, "S": 6.65, "T": 5.36, "W": 1.10,
    "Y": 2.92, "V": 6.85,
}  # fmt: skip
FAMILIES = 30
_BATCH_RECORDS = 8192
_SHORTEST, _MEDIAN, _LONGEST, _SPREAD = 60, 220, 8000, 0.7
_MUTATED_OF_256 = 26
_STRAYED_OF_256 = 64
_LABELLED_SHARE, _LEAST_LABELLED = 10, 500
_ORGANISMS = (
    ("Homo sapiens", 9606, "HUMAN"), ("Arabidopsis thaliana", 3702, "ARATH"),
    ("Saccharomyces cerevisiae", 559292, "YEAST"), ("Escherichia coli", 562, "ECOLX"),
    ("Corticium candelabrum", 121492, "CORCA"), ("Danio rerio", 7955, "DANRE"),
)  # fmt: skip


def _residue_table(percent: dict[str, float]) -> np.ndarray:
    """uint8[256]: residues in proportion, so that a random byte draws one."""
    edges = np.round(np.cumsum(list(percent.values())) / sum(percent.values()) * 256).astype(int)
    return np.repeat(np.frombuffer("".join(percent).encode(), dtype=np.uint8), np.diff(edges, prepend=0))


_BACKGROUND = _residue_table(RESIDUE_PERCENT)
_HYDROPHOBIC = _residue_table({"L": 40, "A": 20, "V": 15, "I": 12, "F": 8, "G": 5})
_AMPHIPATHIC = _residue_table({"R": 25, "A": 20, "L": 20, "S": 15, "K": 8, "T": 7, "V": 5})
_HYDROXYLATED = _residue_table({"S": 40, "T": 15, "A": 15, "P": 10, "V": 8, "K": 7, "R": 5})


def _length_table() -> np.ndarray:
    """int64[4096]: quantiles of a log-normal distribution of lengths, so that 12 random bits draw one."""
    quantiles = [NormalDist().inv_cdf((i + 0.5) / 4096) for i in range(4096)]
    return np.array([min(max(round(_MEDIAN * exp(_SPREAD * z)), _SHORTEST), _LONGEST) for z in quantiles])


_LENGTHS = _length_table()


@dataclass
class _Random:
    """Draws from PCG64's raw stream, which numpy promises not to change (its distributions may)."""

    bits: np.random.PCG64

    def bytes(self, *shape: int) -> np.ndarray:
        """uint8 of `shape`, uniform."""
        count = int(np.prod(shape))
        return self.bits.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count].reshape(shape)

    def below(self, limit: int | np.ndarray, count: int) -> np.ndarray:
        """int64[count] in [0, limit); the bias of the modulo is under 2^-48."""
        return (self.bits.random_raw(count) % np.asarray(limit, dtype=np.uint64)).astype(np.int64)


def fasta_chunks(records: int, seed: int, labelled: TextIO) -> Iterator[bytes]:
    """FASTA text of `records` proteins; every tenth (500 at least) also goes to `labelled` with its place.

    `labelled` receives CSV with the columns id, sequence, label (DeepLoc's names). Equal arguments give
    equal bytes.
    """
    rows = csv.writer(labelled, lineterminator="\n")
    rows.writerow(("id", "sequence", "label"))
    wanted = min(records, max(_LEAST_LABELLED, records // _LABELLED_SHARE))
    random = _Random(np.random.PCG64(int(key64(seed))))
    domains = _BACKGROUND[random.bytes(FAMILIES, 48)]
    periods = 24 + random.below(24, FAMILIES)
    for first in range(0, records, _BATCH_RECORDS):
        count = min(_BATCH_RECORDS, records - first)
        sequences, families, places = _batch(random, domains, periods, count)
        text = []
        for index, (sequence, family, place) in enumerate(zip(sequences, families, places), first):
            accession = _accession(index, seed)
            text.append(_header(accession, index, family))
            text.extend(sequence[at : at + 60] for at in range(0, len(sequence), 60))
            if (index + 1) * wanted // records > index * wanted // records:
                rows.writerow((f"UniRef50_{accession}", sequence.decode(), LOCALIZATIONS[place]))
        text.append(b"")
        yield b"\n".join(text)


def _batch(
    random: _Random, domains: np.ndarray, periods: np.ndarray, count: int
) -> tuple[list[bytes], list[int], list[int]]:
    """`count` sequences, and the family and the place of each.

    `domains`: uint8[FAMILIES, 48], residues; `periods`: int64[FAMILIES], how many of them a family repeats.
    """
    lengths = _LENGTHS[random.below(len(_LENGTHS), count)]
    family = random.below(FAMILIES, count)
    strayed = random.bytes(count) < _STRAYED_OF_256
    place = np.where(strayed, random.below(len(LOCALIZATIONS), count), family % len(LOCALIZATIONS))

    ends = np.cumsum(lengths)
    starts = ends - lengths
    phase = random.below(periods[family], count)
    within = np.arange(ends[-1]) + np.repeat(phase - starts, lengths)
    flat = domains.ravel()[
        np.repeat(family * domains.shape[1], lengths) + within % np.repeat(periods[family], lengths)
    ]
    mutated = np.flatnonzero(random.bytes(len(flat)) < _MUTATED_OF_256)
    flat[mutated] = _BACKGROUND[random.bytes(len(mutated))]
    flat[starts] = ord("M")
    _add_signals(random, flat, starts, lengths, place)
    text = flat.tobytes()
    sequences = [text[start:end] for start, end in zip(starts.tolist(), ends.tolist())]
    return sequences, family.tolist(), place.tolist()


def _add_signals(random: _Random, flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, place) -> None:
    """Write the sorting signal of each record's place over its residues."""

    def of(*places: int) -> np.ndarray:
        return np.flatnonzero(np.isin(place, places))

    def put(at: np.ndarray, residues: np.ndarray) -> None:
        flat[at[:, None] + np.arange(residues.shape[1])] = residues

    def fixed(text: bytes, count: int) -> np.ndarray:
        return np.tile(np.frombuffer(text, dtype=np.uint8), (count, 1))

    secreted = of(_ER, _OUTSIDE, _LYSOSOME)
    put(starts[secreted] + 1, fixed(b"KR", len(secreted)))
    put(starts[secreted] + 3, _HYDROPHOBIC[random.bytes(len(secreted), 14)])
    put(starts[secreted] + 17, fixed(b"ASA", len(secreted)))
    for at_home, table, size in ((_MITOCHONDRION, _AMPHIPATHIC, 28), (_PLASTID, _HYDROXYLATED, 45)):
        targeted = of(at_home)
        put(starts[targeted] + 1, table[random.bytes(len(targeted), size)])
    for at_home, tail in ((_ER, b"KDEL"), (_PEROXISOME, b"SKL")):
        ending = of(at_home)
        put(starts[ending] + lengths[ending] - len(tail), fixed(tail, len(ending)))

    def inside(records: np.ndarray, size: int) -> np.ndarray:
        """A random position for `size` residues, clear of both ends."""
        return starts[records] + 25 + random.below(lengths[records] - size - 29, len(records))

    golgi, nuclear, glycosylated, outside, membrane = map(
        of, (_GOLGI, _NUCLEUS, _LYSOSOME, _OUTSIDE, _MEMBRANE)
    )
    put(starts[golgi] + 8, _HYDROPHOBIC[random.bytes(len(golgi), 18)])  # type II: one stretch near the start
    for _ in range(3):
        put(inside(nuclear, 7), fixed(b"PKKKRKV", len(nuclear)))
        put(inside(glycosylated, 3), fixed(b"NGT", len(glycosylated)))
        put(inside(outside, 6), fixed(b"CGCSPC", len(outside)))
        put(inside(membrane, 21), _HYDROPHOBIC[random.bytes(len(membrane), 21)])


def _accession(index: int, seed: int) -> str:
    """A ten-character accession like UniProt's; different for every index below 36^7."""
    number = (index * 48_271_073_909 + seed) % 36**7  # coprime to 36: a bijection
    return f"A0A{np.base_repr(number, 36)[::-1].ljust(7, '0')}"


def _header(accession: str, index: int, family: int) -> bytes:
    organism, taxon, code = _ORGANISMS[index % len(_ORGANISMS)]
    return (
        f">UniRef50_{accession} Synthetic family {family + 1} protein n={1 + index % 7} "
        f"Tax={organism} TaxID={taxon} RepID={accession}_{code}"
    ).encode()
