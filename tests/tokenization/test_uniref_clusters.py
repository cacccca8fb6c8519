"""Splits by cluster: no cluster has members in two splits, and a file says which rows belong together."""

import random

import numpy as np
import pyarrow as pa
import pytest
from helpers.proteins import some_proteins, write_fasta
from helpers.steps import error_line, manifest, step_0, step_1
from pyarrow import parquet

MEMBERS = 1500


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """CSV partitions, and the cluster of each member; 100 records are in no cluster."""
    folder = tmp_path_factory.mktemp("clusters")
    proteins = some_proteins(MEMBERS + 100)
    source = write_fasta(folder / "a.fasta", proteins)
    step_0(source, folder / "csv", "--num_partitions", 5)
    draw = random.Random(0)
    cluster_of = {name: f"UniRef50_C{draw.randrange(400)}" for name in list(proteins)[:MEMBERS]}
    return folder, cluster_of, list(proteins)[MEMBERS:]


def write_table(kind, path, cluster_of):
    names, clusters = list(cluster_of), list(cluster_of.values())
    if kind == "parquet_pairs":
        columns = {"ur50_id": clusters, "ur90_id": names, "sequence": ["MKV"] * len(names)}
        parquet.write_table(pa.table(columns), path)
        return path
    groups = {}
    for name, cluster in cluster_of.items():
        groups.setdefault(cluster, []).append(name)
    if kind == "parquet_lists":
        parquet.write_table(pa.table({"cluster": list(groups), "members": list(groups.values())}), path)
    elif kind == "tsv_pairs_with_header":
        path.write_text("".join(f"{c}\t{n}\n" for c, n in [("ur50_id", "ur90_id"), *zip(clusters, names)]))
    else:
        path.write_text("".join(f"{cluster}\t{','.join(members)}\n" for cluster, members in groups.items()))
    return path


def step_1_with(table, folder, output, *flags, **kwargs):
    sizes = ("--validation_size", "0.2", "--test_size", "0.2")
    return step_1(folder / "csv", output, "--clusters", table, *sizes, *flags, **kwargs)


@pytest.mark.parametrize("kind", ["parquet_pairs", "parquet_lists", "tsv_pairs_with_header", "tsv_groups"])
def test_no_cluster_is_in_two_splits_and_rows_name_their_cluster(data, tmp_path, kind):
    from datasets import load_from_disk

    folder, cluster_of, unlisted = data
    flags = ("--long_sequences", "chunk", "--max_length", 150) if kind == "tsv_groups" else ()
    step_1_with(write_table(kind, tmp_path / "table", cluster_of), folder, tmp_path / "arrow", *flags)
    split_of_cluster: dict[str, str] = {}
    written = manifest(tmp_path / "arrow")
    seen = set()
    for split, rows in load_from_disk(str(tmp_path / "arrow")).items():
        numbers = np.load(tmp_path / "arrow" / split / "cluster_of_row.npy")
        assert numbers.dtype == np.int32
        assert len(numbers) == len(rows)
        number_of: dict[str, int] = {}
        for identifier, number in zip(rows["id"], numbers.tolist()):
            identifier = identifier.partition("/")[0]
            seen.add(identifier)
            cluster = cluster_of.get(identifier, identifier)
            assert split_of_cluster.setdefault(cluster, split) == split  # the leak that must not be
            assert number_of.setdefault(cluster, number) == number
        assert sorted(number_of.values()) == list(range(len(number_of)))  # dense, one number a cluster
        assert written["splits"][split]["clusters"] == len(number_of)
    assert seen == set(cluster_of) | set(unlisted)
    assert written["in_no_cluster"] == 100


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no tabs here\n", "its lines hold no tab"),
        ("", "its lines hold no tab"),
        ("A\tm1\nB\tm1\n", "1 ids are members of more than one cluster"),
        ("A\tm1\nB\n", "not a table of clusters"),
    ],
)
def test_a_broken_table_is_one_clear_line(data, tmp_path, content, message):
    (tmp_path / "table.tsv").write_text(content)
    line = error_line(step_1_with(tmp_path / "table.tsv", data[0], tmp_path / "arrow", check=False))
    assert message in line
    assert str(tmp_path / "table.tsv") in line
    assert not (tmp_path / "arrow" / "manifest.json").exists()


def test_another_table_is_noticed(data, tmp_path):
    folder, cluster_of, _ = data
    step_1_with(write_table("tsv_groups", tmp_path / "a.tsv", cluster_of), folder, tmp_path / "arrow")
    other = write_table("tsv_groups", tmp_path / "b.tsv", dict(list(cluster_of.items())[:50]))
    refused = step_1_with(other, folder, tmp_path / "arrow", check=False)
    assert "was made with clusters=" in error_line(refused)
