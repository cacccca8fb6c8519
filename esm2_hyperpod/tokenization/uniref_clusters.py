"""Clusters of related proteins, for sampling as ESM-2 was trained and for splits without leaks.

The table names the UniRef50 cluster of each UniRef90 member. All members of a cluster fall in the same
split, and every split folder gets `cluster_of_row.npy`: int32, one number a row in row order, dense from
0 within the split; rows with equal numbers are members of one cluster (pieces of one long protein share
its number). Training visits each cluster once an epoch and takes one of its rows.

A record whose id the table does not list is a cluster of its own. Memory: 24 bytes a row of the table.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from esm2_hyperpod.arrow import hash_ids
from esm2_hyperpod.artifacts import file_digest
from esm2_hyperpod.console import in_progress
from esm2_hyperpod.errors import UserError

CLUSTER_COLUMN, MEMBER_COLUMN = "ur50_id", "ur90_id"  # as in nvidia/esm2_uniref_pretraining_data
_MEMBERS, _CLUSTER_OF_MEMBER, _CLUSTER_HASH = "members.npy", "cluster_of_member.npy", "cluster_hash.npy"
_READ_BYTES = 16 << 20


def table_digest(path: Path) -> str:
    """SHA-256 of the table. Raises `UserError` if there is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; --clusters takes a TSV or Parquet of clusters and members")
    with in_progress(f"reading {path.name}"):
        return file_digest(path)


class ClusterTable:
    """Looks up the cluster of ids; the arrays are memory-mapped, so that processes share them."""

    def __init__(self, folder: Path):
        load = [
            np.load(folder / name, mmap_mode="r") for name in (_MEMBERS, _CLUSTER_OF_MEMBER, _CLUSTER_HASH)
        ]
        self._members, self._cluster_of_member, self._cluster_hash = load

    def __len__(self) -> int:
        return len(self._cluster_hash)

    def clusters_of(self, ids: pa.Array) -> np.ndarray:
        """int64[n]: the number of each id's cluster, or -1 where the table does not list the id."""
        wanted = hash_ids(ids, seed=0)
        at = np.minimum(np.searchsorted(self._members, wanted), len(self._members) - 1)
        return np.where(self._members[at] == wanted, self._cluster_of_member[at], -1)

    def hashes_of(self, clusters: np.ndarray, ids: pa.Array, seed: int) -> np.ndarray:
        """uint64[n]: what decides the split: the cluster's hash, or the id's own where it has no cluster."""
        return np.where(clusters >= 0, self._cluster_hash[clusters], hash_ids(ids, seed))


def build_table(path: Path, folder: Path, seed: int) -> ClusterTable:
    """Index the table at `path` (TSV or Parquet) into arrays below `folder`.

    Two columns count: `ur50_id` and `ur90_id`, or else the first two. A member cell holds one id, several
    separated by commas, or a list. The UniRef50 id itself counts as a member. Raises `UserError` if the
    table cannot be read or lists a member in two clusters.
    """
    clusters, members = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for cluster_ids, member_ids in _pairs(path):
        hashed = hash_ids(cluster_ids, seed)
        clusters += [hashed, hashed]
        members += [hash_ids(member_ids, seed=0), hash_ids(cluster_ids, seed=0)]
    cluster_hash, numbers = np.unique(np.concatenate(clusters), return_inverse=True)
    if not len(cluster_hash):
        raise UserError(f"{path}: holds no clusters; give a table of UniRef50 ids and UniRef90 members")
    keys = np.concatenate(members)
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], numbers[order].astype(np.int32)
    again = keys[1:] == keys[:-1]
    if conflicts := int((again & (numbers[1:] != numbers[:-1])).sum()):
        raise UserError(f"{path}: {conflicts:,} ids are members of more than one cluster; fix the table")
    first = np.append(True, ~again)
    for name, array in (
        (_MEMBERS, keys[first]),
        (_CLUSTER_OF_MEMBER, numbers[first]),
        (_CLUSTER_HASH, cluster_hash),
    ):
        np.save(folder / name, array)
    return ClusterTable(folder)


def dense_numbers(parts: list[np.ndarray], clusters: int) -> tuple[np.ndarray, int]:
    """Number the clusters of a split's rows from 0; returns int32[rows] and how many clusters there are.

    `parts` hold, shard by shard, the table's number of each row's cluster, or -1 - k for the k-th record
    of the shard's partition that the table does not list.
    """
    numbered, unlisted = [np.zeros(0, np.int64)], clusters
    for part in parts:
        numbered.append(np.where(part >= 0, part, unlisted - 1 - part))
        unlisted += int(max(-part.min(), 0)) if len(part) else 0
    rows = np.concatenate(numbered)
    present = np.zeros(unlisted, dtype=bool)
    present[rows] = True
    dense = np.cumsum(present) - 1
    return dense[rows].astype(np.int32), int(present.sum())


def _pairs(path: Path) -> Iterator[tuple[pa.Array, pa.Array]]:
    """(cluster ids, member ids), one pair a member, batch by batch."""
    try:
        for batch in _batches(path):
            names = batch.schema.names
            named = {CLUSTER_COLUMN, MEMBER_COLUMN} <= set(names)
            cluster, member = (
                batch.column(name) for name in ((CLUSTER_COLUMN, MEMBER_COLUMN) if named else names[:2])
            )
            if not pa.types.is_list(member.type):
                member = pc.split_pattern(member.cast(pa.string()), ",")
            rows = pc.list_parent_indices(member)
            yield cluster.cast(pa.string()).take(rows), pc.utf8_trim_whitespace(pc.list_flatten(member))
    except (pa.ArrowException, IndexError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        problem = (str(error).splitlines() or ["not two columns"])[0]
        raise UserError(
            f"{path}: not a table of clusters ({problem}); it needs the columns {CLUSTER_COLUMN} and "
            f"{MEMBER_COLUMN}, as TSV or Parquet"
        ) from None


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with open(path, "rb") as file:
        is_parquet = file.read(4) == b"PAR1"
        first_line = b"" if is_parquet else file.seek(0) or file.readline()
    if is_parquet:
        table = parquet.ParquetFile(path)
        names = table.schema_arrow.names
        wanted = [CLUSTER_COLUMN, MEMBER_COLUMN] if CLUSTER_COLUMN in names else names[:2]
        yield from table.iter_batches(columns=wanted)
        return
    columns = len(first_line.split(b"\t"))
    if columns < 2:
        raise UserError(f"{path}: its lines hold no tab; a TSV has a UniRef50 id, a tab, and member ids")
    has_header = CLUSTER_COLUMN.encode() in first_line
    names = None if has_header else [f"column_{index}" for index in range(columns)]
    yield from csv.open_csv(
        path,
        read_options=csv.ReadOptions(column_names=names, block_size=_READ_BYTES),
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names or [CLUSTER_COLUMN, MEMBER_COLUMN], pa.string())
        ),
    )
