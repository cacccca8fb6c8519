"""Step 0 from Parquet, SQLite and a data set like the hub's: the same partitions and splits as from FASTA."""

import gzip
import sqlite3

import numpy as np
import pyarrow as pa
import pytest
from helpers.proteins import digests, longest_first, read_partitions, some_proteins, write_fasta
from helpers.steps import error_line, manifest, step_0, step_1
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from esm2_hyperpod.download.sampling import chosen, count_fasta

PARTITIONS = ("--num_partitions", 3)


def cluster_of(number: int) -> str:
    return f"UniRef50_C{number // 3}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The same proteins as FASTA, Parquet in one file and in two, SQLite and a hub-like folder."""
    folder, proteins = tmp_path_factory.mktemp("tables"), longest_first(some_proteins(300))
    write_fasta(folder / "a.fasta.gz", proteins)
    ids, sequences = list(proteins), list(proteins.values())
    parquet.write_table(
        pa.table({"id": ids, "sequence": sequences, "taxon": [1] * 300}), folder / "a.parquet"
    )
    clusters = [cluster_of(number) for number in range(300)]
    hub = pa.table({"ur50_id": clusters, "ur90_id": ids, "sequence": sequences})
    for place in ("parts/deep", "hub/data"):
        (folder / place).mkdir(parents=True)
        for number, part in enumerate((hub.slice(0, 200), hub.slice(200))):
            parquet.write_table(part, folder / place / f"train-{number:05d}-of-00002.parquet")
    with sqlite3.connect(folder / "a.db") as database:
        database.execute("CREATE TABLE protein (id TEXT PRIMARY KEY, sequence TEXT)")
        database.executemany("INSERT INTO protein VALUES (?, ?)", proteins.items())
    database.close()
    step_0(folder / "a.fasta.gz", folder / "csv", *PARTITIONS)
    return proteins, folder


def csv_digests(folder):
    return {name: digest for name, digest in digests(folder).items() if name.endswith(".csv")}


@pytest.mark.parametrize("source", ["a.parquet", "parts", "a.db", "hub"])
def test_every_source_gives_the_partitions_and_splits_of_the_fasta(made, tmp_path, source):
    _, folder = made
    address = f"hf:{folder / 'hub'}" if source == "hub" else folder / source
    step_0(address, tmp_path / "csv", *PARTITIONS)
    assert csv_digests(tmp_path / "csv") == csv_digests(folder / "csv")
    assert manifest(tmp_path / "csv")["content_digest"] == manifest(folder / "csv")["content_digest"]
    sizes = ("--validation_size", 0.1, "--test_size", 0.1)
    for csv in (folder / "csv", tmp_path / "csv"):
        step_1(csv, tmp_path / csv.parent.name, *sizes)
    ours, theirs = digests(tmp_path / tmp_path.name), digests(tmp_path / folder.name)
    assert ours == theirs and any(name.startswith("test/") for name in ours)


def test_cluster_columns_make_the_table_that_step_1_takes(made, tmp_path):
    proteins, folder = made
    printed = step_0(folder / "parts", tmp_path / "csv", *PARTITIONS).stdout
    assert "clusters.parquet: the clusters, for 1.tokenize_uniref_csv.py --clusters" in printed
    table = parquet.read_table(tmp_path / "csv" / "clusters.parquet").to_pydict()
    assert table == {"ur50_id": [cluster_of(n) for n in range(300)], "ur90_id": list(proteins)}
    sizes = ("--validation_size", 0.2, "--test_size", 0.2)
    step_1(tmp_path / "csv", tmp_path / "arrow", "--clusters", tmp_path / "csv" / "clusters.parquet", *sizes)
    splits = manifest(tmp_path / "arrow")["splits"]
    assert sum(split["clusters"] for split in splits.values()) == 100
    assert manifest(tmp_path / "arrow")["in_no_cluster"] == 0


@pytest.mark.parametrize("source", ["a.parquet", "a.db", "a.fasta.gz"])
def test_max_records_is_the_same_sample_from_every_file(made, tmp_path, source):
    proteins, folder = made
    step_0(folder / source, tmp_path, "--max_records", 40, *PARTITIONS)
    rows = [row for rows in read_partitions(tmp_path) for row in rows]
    kept = chosen(0, 300, 300, 40, seed=42)
    assert sorted(rows) == sorted(list(proteins.items())[number] for number in kept)


def test_a_sample_is_of_the_source_with_the_checksum_that_was_given(made, tmp_path):
    flags = ("--max_records", 5, "--checksum", f"md5:{'0' * 32}")
    line = error_line(step_0(made[1] / "a.fasta.gz", tmp_path, *flags, check=False))
    assert f"not {'0' * 32}: it is corrupt, or another release" in line


def test_the_start_of_a_stream_says_that_it_is_no_sample(made, tmp_path):
    proteins, folder = made
    printed = step_0(f"hf:{folder / 'hub'}", tmp_path, "--max_records", 40, *PARTITIONS).stdout
    lengths = [len(sequence) for sequence in list(proteins.values())[:40]]
    assert f"the first 40 records, not a sample; their mean length is {np.mean(lengths):,.0f}" in printed
    assert f"falling from {lengths[0]} to {lengths[-1]}: the source is sorted longest first" in printed


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 5), st.integers(1, 90))
def test_a_sample_takes_one_of_each_run_however_it_is_read(total, sample, seed, batch):
    sample = min(sample, total)
    found = np.concatenate(
        [
            first + chosen(first, min(batch, total - first), total, sample, seed)
            for first in range(0, total, batch)
        ]
    )
    assert len(found) == sample and found.tolist() == sorted(set(found.tolist()))
    assert (found * sample // total).tolist() == list(range(sample))


@given(st.lists(st.sampled_from([b">", b"\n", b"A", b">a\nM>K\n"]), max_size=30), st.integers(1, 7))
def test_records_are_counted_however_the_bytes_arrive(words, size):
    text = b"".join(words)
    expected = sum(line.startswith(b">") for line in text.split(b"\n"))
    assert count_fasta(text[at : at + size] for at in range(0, len(text), size)) == expected


def test_strange_ids_are_quoted_as_from_fasta(tmp_path):
    names = ['a,b"c', "plain", "été"]
    parquet.write_table(pa.table({"id": names, "sequence": ["MKV", "m k\nv*", "MX"]}), tmp_path / "a.parquet")
    step_0(tmp_path / "a.parquet", tmp_path / "csv", "--num_partitions", 1)
    assert sorted(read_partitions(tmp_path / "csv")[0]) == sorted(zip(names, ["MKV", "mkv*", "MX"]))


def bad_sources(folder) -> dict:
    """What is wrong -> (source, what the line says)."""
    parquet.write_table(pa.table({"id": ["a"], "seq": ["M"]}), folder / "columns.parquet")
    parquet.write_table(pa.table({"id": ["a", "b"], "sequence": ["M", None]}), folder / "hollow.parquet")
    parquet.write_table(pa.table({"id": ["a", ""], "sequence": ["M", "K"]}), folder / "nameless.parquet")
    parquet.write_table(pa.table({"id": ["a"], "sequence": ["M\x00K"]}), folder / "binary.parquet")
    whole = (folder / "columns.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "nothing").mkdir()
    with sqlite3.connect(folder / "other.db") as database:
        database.execute("CREATE TABLE genes (id TEXT)")
    database.close()
    return {
        "columns": ("columns.parquet", "has no column sequence .it has: id, seq"),
        "no sequence": ("hollow.parquet", "row 2 has no sequence"),
        "no id": ("nameless.parquet", "row 2 has no id"),
        "binary": ("binary.parquet", "row 1 holds what is not text"),
        "cut": ("cut.parquet", "not a complete Parquet file"),
        "empty folder": ("nothing", "a folder without Parquet files"),
        "another database": ("other.db", "no SQLite of proteins"),
        "no data set": ("hf:nobody/nothing", "check the name and the network"),
    }


def test_a_table_that_is_none_is_one_line(tmp_path):
    for source, expected in bad_sources(tmp_path).values():
        address = source if source.startswith("hf:") else tmp_path / source
        line = error_line(step_0(address, tmp_path / "csv", check=False))
        assert expected.replace(".it", "(it") in line
        assert not [path for path in (tmp_path / "csv").iterdir() if not path.name.startswith(".")]


def test_a_gzip_of_a_fasta_is_still_one(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b">a\nMKV\n"))
    step_0(tmp_path / "a.gz", tmp_path / "csv", "--num_partitions", 1)
    assert read_partitions(tmp_path / "csv") == [[("a", "MKV")]]
