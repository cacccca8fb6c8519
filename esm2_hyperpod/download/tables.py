"""Tables of proteins: Parquet files and folders, data sets of the hub, BioNeMo's SQLite.

A table has a column `sequence`, and ids in `ur90_id`, `id` or `ur50_id`, the first that is there. One with
both `ur50_id` and `ur90_id` (as nvidia/esm2_uniref_pretraining_data) also says which cluster a record is of.
"""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from esm2_hyperpod.arrow import as_type, lengths_of
from esm2_hyperpod.download.fasta import Records, csv_rows
from esm2_hyperpod.errors import UserError

HUB = "hf:"
SEQUENCE, CLUSTER, MEMBER = "sequence", "ur50_id", "ur90_id"
ID_COLUMNS = (MEMBER, "id", CLUSTER)
CLUSTERS = "clusters.parquet"
_BATCH_ROWS = 8_192
_SQLITE_MAGIC = b"SQLite format 3\0"


@dataclass
class Table:
    """Rows of proteins.

    Attributes:
        name: what errors call it.
        columns: of its rows.
        batches: makes an iterator over Arrow tables of its rows, from the first.
        rows: how many there are, None where counting would mean fetching them.
    """

    name: str
    columns: list[str]
    batches: Callable[[], Iterator[pa.Table]]
    rows: int | None

    def __post_init__(self):
        if SEQUENCE not in self.columns:
            held = ", ".join(self.columns)[:80]
            raise UserError(f"{self.name}: has no column {SEQUENCE} (it has: {held}); rename the one it is")

    @property
    def has_clusters(self) -> bool:
        """Whether it says which cluster a record is of."""
        return {CLUSTER, MEMBER} <= set(self.columns)

    def records(self, clusters: "ClusterWriter | None" = None) -> Iterator[Records]:
        """Its rows as the FASTA reader gives them; `clusters` is given the cluster columns on the way.

        Raises `UserError`, naming the row, for one without id or sequence, or that is no text.
        """
        identifier = next((name for name in ID_COLUMNS if name in self.columns), None)
        first = 0
        for table in self.batches():
            if not len(table):
                continue
            sequences = _strings(table, SEQUENCE)
            if identifier:
                ids = _strings(table, identifier)
            else:
                ids = pa.array([f"row{number}" for number in range(first + 1, first + len(table) + 1)])
            yield self._records(ids, sequences, first)
            if clusters:
                clusters.add(_strings(table, CLUSTER), ids)
            first += len(table)

    def _records(self, ids: pa.Array, sequences: pa.Array, first: int) -> Records:
        sequences = pc.replace_substring_regex(sequences, r"\s+", "")
        for values, what in ((ids, "id"), (sequences, "sequence")):
            empty = pc.fill_null(pc.equal(pc.utf8_length(values), 0), True).to_numpy(zero_copy_only=False)
            if empty.any():
                raise UserError(f"{self.name}: row {first + int(empty.argmax()) + 1:,} has no {what}")
        strange = pc.match_substring_regex(sequences, "[^!-~]").to_numpy(zero_copy_only=False)
        if strange.any():
            row = first + int(strange.argmax()) + 1
            raise UserError(
                f"{self.name}: row {row:,} holds what is not text in its sequence: is it corrupt?"
            )
        return Records(csv_rows(ids, sequences), lengths_of(as_type(sequences, pa.binary())))


class ClusterWriter:
    """`clusters.parquet`, the table that step 1 takes as --clusters, as its rows come by."""

    def __init__(self, path: Path):
        self._schema = pa.schema([(CLUSTER, pa.string()), (MEMBER, pa.string())])
        self._writer = parquet.ParquetWriter(path, self._schema)

    def add(self, clusters: pa.Array, members: pa.Array) -> None:
        """Rows: the UniRef50 cluster of each record."""
        self._writer.write_batch(pa.record_batch([clusters, members], schema=self._schema))

    def close(self) -> None:
        """Make the file whole."""
        self._writer.close()


def open_table(source: str) -> Table | None:
    """What `source` holds if that is a table, None if it is something else (a FASTA, an address).

    Raises `UserError` if it is a table that cannot be read.
    """
    if source.startswith(HUB):
        return _hub(source.removeprefix(HUB))
    path = Path(source).expanduser()
    if path.is_dir():
        everything = (file.relative_to(path) for file in path.rglob("*.parquet"))
        files = sorted(path / file for file in everything if not f"/{file}".count("/."))  # hidden ones
        if not files:
            raise UserError(
                f"{source}: a folder without Parquet files; --source takes a FASTA, or such a folder"
            )
        return _parquet(source, files)
    if path.is_file():
        with open(path, "rb") as file:
            start = file.read(16)
        if start.startswith(b"PAR1"):
            return _parquet(source, [path])
        if start == _SQLITE_MAGIC:
            return _sqlite(source, path)
    return None


def _parquet(name: str, paths: list[Path]) -> Table:
    try:
        files = [parquet.ParquetFile(path) for path in paths]
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or ["empty"])[0]
        raise UserError(f"{name}: not a complete Parquet file ({reason}); fetch it again") from None
    columns = files[0].schema_arrow.names
    for path, file in zip(paths, files):
        if set(file.schema_arrow.names) != set(columns):
            raise UserError(f"{path}: has other columns than {paths[0]}; give tables of one kind")

    def batches() -> Iterator[pa.Table]:
        for path, file in zip(paths, files):
            try:
                for batch in file.iter_batches(_BATCH_ROWS, columns=_wanted(columns)):
                    yield pa.Table.from_batches([batch])
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{path}: corrupt ({str(error).splitlines()[0]}); fetch it again") from None

    return Table(name, columns, batches, sum(file.metadata.num_rows for file in files))


def _sqlite(name: str, path: Path) -> Table:
    """BioNeMo's: a table `protein` of `id` and `sequence`."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)

    def batches() -> Iterator[pa.Table]:
        try:
            cursor = connect().execute("SELECT id, sequence FROM protein ORDER BY rowid")
            while rows := cursor.fetchmany(_BATCH_ROWS):
                ids, sequences = zip(*rows)
                yield pa.table({"id": pa.array(ids, pa.string()), SEQUENCE: pa.array(sequences, pa.string())})
        except (sqlite3.Error, pa.ArrowException) as error:
            raise UserError(f"{name}: corrupt ({error}); fetch it again") from None

    try:
        (count,) = connect().execute("SELECT count(*) FROM protein").fetchone()
        columns = [row[1] for row in connect().execute("PRAGMA table_info(protein)")]
    except sqlite3.Error as error:
        raise UserError(f"{name}: no SQLite of proteins ({error}); it needs a table protein") from None
    return Table(name, columns, batches, count)


def _hub(name: str) -> Table:
    """The train split of a data set of the hub, or of a folder like one, as it streams in."""
    import datasets  # slow to import, and most runs read a file

    try:
        stream = datasets.load_dataset(name, split="train", streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--source {HUB}{name}: {reason}; check the name and the network") from None
    columns = stream.column_names or list(next(iter(stream.take(1)), {}))

    def batches() -> Iterator[pa.Table]:
        wanted = stream.select_columns(_wanted(columns)).with_format("arrow")
        yield from wanted.iter(batch_size=_BATCH_ROWS)

    return Table(f"{HUB}{name}", columns, batches, None)


def _wanted(columns: list[str]) -> list[str]:
    return [name for name in (SEQUENCE, *ID_COLUMNS) if name in columns]


def _strings(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name).cast(pa.string()).combine_chunks()
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
