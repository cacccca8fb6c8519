"""Token ids equal those of `EsmTokenizer`, for the real sample and for arbitrary bytes."""

import gzip
import itertools

import numpy as np
import pyarrow as pa
import pytest
from helpers.proteins import RESIDUES
from hypothesis import given, settings
from hypothesis import strategies as st

from esm2_hyperpod.alphabet import TOKENS, build_tokenizer
from esm2_hyperpod.arrow import hash_ids
from esm2_hyperpod.errors import UserError
from esm2_hyperpod.tokenization.dataset import as_lists
from esm2_hyperpod.tokenization.partition import (
    balanced_chunks,
    byte_counts,
    changed_residues,
    token_counts,
    tokens_of,
    without_end_stops,
)
from esm2_hyperpod.tokenization.splits import Fractions, resolve, split_of

TOKENIZER = build_tokenizer()
byte_strings = st.one_of(
    st.binary(max_size=60), st.text(RESIDUES + "acXBJUZO*.-", max_size=60).map(str.encode)
)


def cleaned(sequence: bytes) -> str:
    """The documented clean-up, a residue at a time."""
    residues = [chr(byte).upper() if byte < 128 else "?" for byte in sequence.strip(b"*")]
    return "".join(residue if residue in TOKENS else "<unk>" for residue in residues)


@settings(max_examples=150, deadline=None)
@given(st.lists(byte_strings, max_size=12), st.integers(0, 3))
def test_equals_the_tokenizer_for_arbitrary_bytes(sequences, skipped):
    array = pa.array([b"AC"] * skipped + sequences, type=pa.binary()).slice(skipped)
    stripped = without_end_stops(array)
    ours = as_lists(tokens_of(stripped)).to_pylist()
    assert ours == [TOKENIZER(cleaned(sequence))["input_ids"] for sequence in sequences]
    counts = byte_counts(stripped)
    residues = [token for ids in ours for token in ids[1:-1]]
    assert token_counts(counts) == {token: residues.count(i) for i, token in enumerate(TOKENS)}
    changed = changed_residues(counts, gaps=0, end_stops=0)
    assert sum(n for kind, n in changed.items() if kind.endswith("<unk>")) == residues.count(
        TOKENS.index("<unk>")
    )


def test_equals_the_tokenizer_for_real_records(real_data):
    text = gzip.decompress((real_data / "uniref_sample.fasta.gz").read_bytes()).decode()
    sequences = ["".join(record.split("\n")[1:]) for record in text[1:].split("\n>")]
    assert len(sequences) == 8000
    some = sequences[::5]  # the tokenizer takes 2 ms a record
    ours = as_lists(tokens_of(pa.array([sequence.encode() for sequence in some], type=pa.binary())))
    assert ours.to_pylist() == [TOKENIZER(sequence)["input_ids"] for sequence in some]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(4, 30))
def test_chunks_are_balanced_and_lose_nothing(lengths, longest):
    sequences = [(RESIDUES * 3)[:length] for length in lengths]
    ids = pa.array([f"P{index}" for index in range(len(lengths))])
    tokens = tokens_of(pa.array([sequence.encode() for sequence in sequences], type=pa.binary()))
    names, pieces, source = balanced_chunks(ids, tokens, longest)
    rows = list(zip(names.to_pylist(), as_lists(pieces).to_pylist(), source.tolist()))
    for index, sequence in enumerate(sequences):
        mine = [(name, piece) for name, piece, row in rows if row == index]
        assert [token for _, piece in mine for token in piece] == TOKENIZER(sequence)["input_ids"]
        sizes = [len(piece) for _, piece in mine]
        assert max(sizes) <= longest
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == -(-(len(sequence) + 2) // longest)
        if len(mine) == 1:
            assert mine[0][0] == f"P{index}"
        else:
            spans = [tuple(map(int, name.split("/")[1].split("-"))) for name, _ in mine]
            assert spans[0][0] == 1
            assert spans[-1][1] == len(sequence)
            assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("records", "sizes", "expected", "notes"),
    [
        (4_000_000, (None, None, None), (0.975, 0.0125, 0.0125), False),
        (10_000, (None, None, None), (0.9, 0.05, 0.05), True),
        (10_000, (None, 100, 200), (0.97, 0.01, 0.02), False),
        (10_000, (5000, 0.1, 0), (0.5, 0.1, 0.0), False),
        (1_000, (100_000, 50_000, 50_000), (0.9, 0.05, 0.05), True),
        (1_000, (None, 0.25, 0.25), (0.5, 0.25, 0.25), False),
    ],
)
def test_sizes_become_fractions(records, sizes, expected, notes):
    fractions, note = resolve(records, *sizes)
    assert (fractions.train, fractions.validation, fractions.test) == pytest.approx(expected)
    assert bool(note) == notes


def test_fractions_above_one_are_refused():
    with pytest.raises(UserError, match="add up to more than 1"):
        resolve(1000, None, 0.6, 0.6)


def test_splits_have_the_sizes_asked_for():
    hashes = hash_ids(pa.array([f"UniRef50_{index}" for index in range(100_000)]), seed=3)
    counts = np.bincount(split_of(hashes, Fractions(0.5, 0.2, 0.1)), minlength=4)
    for count, share in zip(counts, (0.5, 0.2, 0.1, 0.2)):
        assert abs(count - share * 100_000) < 4 * (share * 100_000) ** 0.5
