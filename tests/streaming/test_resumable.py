"""A file that grows by chunks: cut anywhere, it is resumed to the same bytes."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm2_hyperpod.streaming.resumable import ResumableFile, chunks


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 9), st.integers(1, 90))
def test_chunks_hold_everything_in_order_within_their_limits(weights, most, limit):
    cut = list(chunks(weights, most, lambda weight: weight, limit))
    assert [weight for chunk in cut for weight in chunk] == weights
    assert all(len(chunk) <= most and (len(chunk) == 1 or sum(chunk) <= limit) for chunk in cut)


def write(folder: Path, made_of: dict, dies_after: int | None = None) -> list[int]:
    """Write the numbers to 19 in chunks of five; returns how many were worked on."""
    worked = []

    def content(chunk: list[int]) -> bytes:
        if dies_after == len(worked) // 5:
            raise KeyboardInterrupt
        worked.extend(chunk)
        return "".join(f"{number}\n" * number for number in chunk).encode()

    file = ResumableFile(folder / "out.txt", made_of)
    try:
        done = file.grow(range(20), b"header\n", content, lambda items: chunks(items, 5))
    except KeyboardInterrupt:
        return worked
    assert done == 20
    file.finish()
    return worked


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 4), st.integers(0, 250), st.integers(0, 30))
def test_whatever_reached_the_disk_the_rest_is_done_again(dies_after, content_bytes, journal_bytes):
    """Each of both files is cut where it may be when the machine loses power."""
    with tempfile.TemporaryDirectory() as name:
        folder, other = Path(name), Path(name) / "other"
        other.mkdir()
        write(other, {"a": 1})
        write(folder, {"a": 1}, dies_after)
        if dies_after < 4:
            for file, size in (("out.txt.partial", content_bytes), ("out.txt.partial.chunks", journal_bytes)):
                path = folder / file
                if path.exists():
                    os.truncate(path, min(path.stat().st_size, size))
            assert len(write(folder, {"a": 1})) >= 20 - 5 * dies_after
        assert (folder / "out.txt").read_bytes() == (other / "out.txt").read_bytes()
        assert sorted(path.name for path in folder.iterdir()) == ["other", "out.json", "out.txt"]


def test_what_is_whole_is_kept_and_what_is_of_something_else_is_not(tmp_path):
    write(tmp_path, {"a": 1}, dies_after=2)
    assert write(tmp_path, {"a": 1}, dies_after=1) == [10, 11, 12, 13, 14]
    assert write(tmp_path, {"a": 2}) == list(range(20))
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": 2}
    file = ResumableFile(tmp_path / "out.txt", {"a": 2})
    assert file.is_current() and not ResumableFile(tmp_path / "out.txt", {"a": 1}).is_current()


def test_asked_to_stop_it_ends_after_a_chunk(tmp_path):
    file = ResumableFile(tmp_path / "out.txt", {})
    stopped = file.grow(
        range(20),
        b"",
        lambda chunk: b"x" * len(chunk),
        lambda items: chunks(items, 5),
        stop_asked=lambda: True,
    )
    assert stopped is None
    assert (tmp_path / "out.txt.partial").read_bytes() == b"x" * 5


def test_an_item_that_cannot_be_done_leaves_what_is_done(tmp_path):
    def items():
        yield from range(7)
        raise ValueError

    file = ResumableFile(tmp_path / "out.txt", {})
    with pytest.raises(ValueError):
        file.grow(items(), b"", lambda chunk: b"x" * len(chunk), lambda items: chunks(items, 5))
    assert (tmp_path / "out.txt.partial").read_bytes() == b"x" * 5
