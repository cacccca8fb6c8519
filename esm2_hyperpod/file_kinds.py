"""What a file is that is not the one asked for, told by how it begins."""

import itertools
from collections.abc import Iterable

_NUCLEOTIDES = b"ACGTUNacgtun-."
_KINDS = (  # beginning; what it is; what to do
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"),
    (b"PK\x03\x04", "a zip archive or an Excel sheet", "unzip it, or save the sheet as FASTA or CSV"),
    (b"\xd0\xcf\x11\xe0", "an Excel or Word file", "save it as text"),
    (b"BZh", "compressed with bzip2", "bunzip2 it"),
    (b"\xfd7zXZ", "compressed with xz", "unxz it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unzstd it"),
    (b"\x1f\x8b", "gzip within gzip", "gunzip it once"),
    (b"PAR1", "a Parquet file", "give it a name that ends in .parquet, or write it as FASTA"),
    (b"%PDF", "a PDF", "fetch the sequences themselves"),
    (b"HEADER    ", "a PDB structure", "fetch its sequences as FASTA"),
    (b"ATOM  ", "a PDB structure", "fetch its sequences as FASTA"),
    (b"data_", "an mmCIF structure", "fetch its sequences as FASTA"),
    (b"LOCUS ", "a GenBank file", "fetch its proteins as FASTA"),
    (b"ID   ", "an EMBL or UniProt text file", "fetch it as FASTA"),
    (b"# STOCKHOLM", "a Stockholm alignment", "convert it to FASTA: esl-reformat fasta FILE > NEW"),
    (b"CLUSTAL", "a Clustal alignment", "convert it to FASTA"),
    (b"@", "a FASTQ file of sequencing reads", "these are DNA, and proteins are needed"),
    (b"<", "a web page or XML", "does a login page stand in between? Open the address in a browser"),
)  # fmt: skip


def kind_of(beginning: bytes) -> str | None:
    """`a GenBank file; fetch its proteins as FASTA`, or None where the first bytes tell nothing."""
    for start, kind, remedy in _KINDS:
        if beginning.startswith(start):
            return f"{kind}; {remedy}"
    return None


def are_nucleotides(sequences: Iterable[bytes]) -> bool:
    """Whether sequences are DNA or RNA by mistake, by the first thousand of them.

    They are if in nine of ten at least 95% of the letters are A, C, G, T, U or N, which are a quarter of a
    protein's. Fewer than 50 letters in all tell nothing.
    """
    first = list(itertools.islice(sequences, 1000))
    like = sum(len(sequence.translate(None, _NUCLEOTIDES)) <= 0.05 * len(sequence) for sequence in first)
    return sum(map(len, first)) >= 50 and like >= 0.9 * len(first)
