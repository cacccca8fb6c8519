"""The vectorised FASTA parser against a plain one, on arbitrary files cut in arbitrary places."""

import csv
import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm2_hyperpod.download import fasta
from esm2_hyperpod.errors import UserError

identifiers = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
descriptions = st.text(
    st.characters(codec="utf-8", exclude_categories=("C",), exclude_characters="\u2028\u2029")
)
lines = st.lists(st.text('ACDEFacdefXJ*-., "', min_size=0, max_size=9), min_size=0, max_size=4)
records = st.tuples(identifiers, descriptions, st.sampled_from(["A", "MK", "X,", 'L"']), lines)
line_ends = st.sampled_from(["\n", "\r\n"])


def plain_rows(wanted: list[tuple[str, str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(wanted)
    return text.getvalue().encode()


def parse(content: bytes, cuts: int = 1) -> tuple[bytes, list[int]]:
    chunks = [content[at : at + cuts] for at in range(0, len(content), cuts)]
    batches = list(fasta.read_records(iter(chunks), "test.fasta"))
    rows = b"".join(b"".join(batch.rows.to_pylist()) for batch in batches)
    return rows, [length for batch in batches for length in batch.lengths.tolist()]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(records, min_size=1, max_size=8),
    line_ends,
    st.integers(1, 50),
    st.integers(1, 60),
    st.booleans(),
)
def test_equals_a_plain_parser(entries, line_end, cuts, block, final_line_end):
    original = fasta.BLOCK_BYTES
    fasta.BLOCK_BYTES = block
    try:
        text, wanted = [], []
        for identifier, description, first, more in entries:
            text += [f">{identifier} {description}", first, *more]
            wanted.append((identifier, "".join("".join([first, *more]).split())))
        content = line_end.join(text) + (line_end if final_line_end else "")
        rows, lengths = parse(content.encode(), cuts)
    finally:
        fasta.BLOCK_BYTES = original
    assert rows == plain_rows(wanted)
    assert lengths == [len(sequence) for _, sequence in wanted]


def test_real_sample_equals_a_plain_parser(real_data):
    import gzip

    content = gzip.decompress((real_data / "uniref_sample.fasta.gz").read_bytes())
    wanted = [
        (record.split(b"\n", 1)[0].decode(), record.split(b"\n", 1)[1].replace(b"\n", b"").decode())
        for record in content[1:].split(b"\n>")
    ]
    rows, _ = parse(content, cuts=100_003)
    assert len(wanted) == 8000
    assert rows == plain_rows(wanted)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b">A\nMKV\n>B desc\n>C\nMK\n", "record 2 (B) at byte offset 7 has no sequence"),
        (b">A\r\nMKV\r\n>B desc\r\n>C\r\nMK\r\n", "record 2 (B) at byte offset 9 has no sequence"),
        (b">A\nMKV\n> desc only\nMK\n", "record 2 (no id) at byte offset 7 has no id"),
        (b">A\nMKV\n>B x\nM\x00K\n", "record 2 (B) at byte offset 7 holds the control character 0x00"),
        (b">A\nMKV\n>B\xff\nMK\n", "has an id that is not UTF-8"),
        (b">A\nMKV\n>B x\nM\xc3\xa9K\n", "record 2 (B) at byte offset 7 holds bytes that are not text"),
        (b">A\nMKV\n>B", "record 2 (B) at byte offset 7 has no sequence"),
    ],
)
def test_what_is_no_fasta_is_named(content, message):
    with pytest.raises(UserError) as error:
        parse(content, cuts=5)
    assert "test.fasta: " in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_with_no_second_record_is_not_read_into_memory(monkeypatch):
    monkeypatch.setattr(fasta, "LONGEST_RECORD_BYTES", 10_000)
    monkeypatch.setattr(fasta, "BLOCK_BYTES", 100)
    endless = (bytes(random.Random(0).choices(b"ACDE", k=1000)) for _ in iter(int, 1))
    with pytest.raises(UserError, match="no record ends"):
        list(
            fasta.read_records((part if index else b">A\n" + part for index, part in enumerate(endless)), "x")
        )
