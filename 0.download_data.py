#!/usr/bin/env python3
"""Step 0: proteins from the web, S3, a file or a data set (or synthetic ones) -> csv/x000.csv, x001.csv, ...

    python 0.download_data.py                                     # UniRef50 to $FSX_DIR/csv, 50 partitions
    python 0.download_data.py --max_records 100000                # a first look
    python 0.download_data.py --source my.fasta.gz --output_dir csv          # or Parquet, or SQLite
    python 0.download_data.py --source hf:nvidia/esm2_uniref_pretraining_data
    python 0.download_data.py --source synthetic --max_records 20000 --output_dir csv

One streaming pass: bytes are decompressed, parsed and dealt to all partitions as they arrive. Every
partition is an unbiased sample of the whole. `csv/manifest.json` is written last. If a run is killed, run
the same command again; with --keep_fasta it resumes from the bytes it has.

Tables have columns sequence and ur90_id or id; with ur50_id they also leave `csv/clusters.parquet`, which
step 1 takes as --clusters. --max_records draws a sample of a file, but of what comes over a network it takes
the start.
"""

import argparse
import contextlib
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator

from esm2_hyperpod.artifacts import (
    MANIFEST,
    check_free_space,
    check_same_options,
    content_digest,
    only_writer,
    package_versions,
    read_manifest,
    remove_temporaries,
    whole_file,
    write_json_atomically,
)
from esm2_hyperpod.command_line import say_what_for
from esm2_hyperpod.console import (
    amounts,
    byte_bar,
    fsx_dir,
    mark,
    positive,
    step_parser,
    whole_number,
)
from esm2_hyperpod.download import sources, synthetic
from esm2_hyperpod.download.fasta import Records, proteins_only, read_records
from esm2_hyperpod.download.partitions import (
    MAX_PARTITIONS,
    remove_partitions,
    spool,
    unspool,
    write_partitions,
)
from esm2_hyperpod.download.prefetch import prefetch
from esm2_hyperpod.download.sampling import count_fasta, sampled
from esm2_hyperpod.download.tables import CLUSTERS, HUB, ClusterWriter, Table, open_table
from esm2_hyperpod.download.tally import Tally
from esm2_hyperpod.errors import UserError, run_script

SYNTHETIC_RECORDS = 20_000
LOCALIZATION = "localization.csv"
GZIP_RATIO = 2.2  # a protein FASTA shrinks to half at best; its CSV is never larger than the FASTA


def main() -> None:
    if not fsx_dir().parent.is_dir():
        say_what_for(__doc__, f"{fsx_dir().parent} is not here, and no --output_dir is given")
    arguments = parse_arguments()
    folder = arguments.output_dir
    with only_writer(folder):
        remove_temporaries(folder)
        try:
            if (folder / MANIFEST).is_file() and not arguments.overwrite:
                report_finished(arguments)
            else:
                make_partitions(arguments)
        finally:
            remove_temporaries(folder)  # those of a full disk fill it
        if arguments.plot:
            from esm2_hyperpod.tokenization.plots import plot_partitions

            print(f"picture: {plot_partitions(folder)}")


def parser() -> argparse.ArgumentParser:
    parser = step_parser(__doc__.split("\n\n")[0], output="csv")
    parser.add_argument(
        "--source",
        default=sources.UNIREF50,
        help="https://, http://, s3://, a path (FASTA, gzip too; Parquet file or folder; SQLite),\n"
        "hf:NAME of a data set of the hub, or synthetic; default: UniRef50",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--num_partitions", type=positive, help=f"default: 50, at most {MAX_PARTITIONS}")
    size.add_argument("--max_records_per_partition", type=positive, help="as many partitions as that takes")
    parser.add_argument(
        "--max_records", type=positive, help="a sample of so many records; over a network the first ones"
    )
    parser.add_argument(
        "--seed", type=whole_number, default=42, help="deals records to partitions; default: 42"
    )
    parser.add_argument("--checksum", type=checksum, help="md5:HEX or sha256:HEX of the source as it is sent")
    parser.add_argument(
        "--allow_nucleotides", action="store_true", help="take DNA and RNA, which are refused otherwise"
    )
    parser.add_argument(
        "--keep_fasta", action="store_true", help="keep the downloaded file in the output folder"
    )
    return parser


def parse_arguments() -> argparse.Namespace:
    flags = parser()
    arguments = flags.parse_args()
    if arguments.num_partitions is None and arguments.max_records_per_partition is None:
        arguments.num_partitions = 50
    if (arguments.num_partitions or 0) > MAX_PARTITIONS:
        flags.error(f"--num_partitions: at most {MAX_PARTITIONS}")
    if arguments.source == sources.SYNTHETIC and arguments.max_records is None:
        arguments.max_records = SYNTHETIC_RECORDS
    return arguments


def checksum(text: str) -> str:
    kind, _, digest = text.lower().partition(":")
    digits = {"md5": 32, "sha256": 64}.get(kind)
    if digits != len(digest) or set(digest) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError("takes md5: and 32, or sha256: and 64, hexadecimal digits")
    return f"{kind}:{digest}"


def options_of(arguments: argparse.Namespace) -> dict:
    """What the output depends on."""
    names = ("source", "num_partitions", "max_records_per_partition", "max_records", "seed", "checksum")
    return {name: getattr(arguments, name) for name in names}


def command(arguments: argparse.Namespace, *more: str) -> str:
    return " ".join(["python 0.download_data.py --output_dir", shlex.quote(str(arguments.output_dir)), *more])


def report_finished(arguments: argparse.Namespace) -> None:
    folder = arguments.output_dir
    start_over = command(arguments, "--overwrite")
    manifest = read_manifest(folder, start_over, holds="files")
    check_same_options(
        folder,
        manifest["options"],
        options_of(arguments),
        f"{start_over} (and this run's flags)",
        defaults=vars(parser().parse_args([])),
    )
    print(
        f"{folder}: already made, {manifest['records']:,} records in {len(manifest['files'])} partitions"
        + mark(manifest["synthetic"])
    )


def make_partitions(arguments: argparse.Namespace) -> None:
    began, folder, limit = time.monotonic(), arguments.output_dir, arguments.max_records
    is_synthetic = arguments.source == sources.SYNTHETIC
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / LOCALIZATION).unlink(missing_ok=True)
    remove_partitions(folder)
    (folder / CLUSTERS).unlink(missing_ok=True)
    tally = Tally()

    with contextlib.ExitStack() as stack:
        if is_synthetic:
            print(
                "The data are SYNTHETIC: families, repeats and sorting signals made by a program.", flush=True
            )
            labels = stack.enter_context(whole_file(folder / LOCALIZATION))
            labelled = stack.enter_context(open(labels, "w", encoding="ascii"))
            chunks = synthetic.fasta_chunks(limit, arguments.seed, labelled)
            batches = read_records(prefetch(chunks), "synthetic proteins")
        elif table := open_table(arguments.source):
            batches = table_records(table, arguments, stack)
        else:
            batches = fasta_records(arguments, stack)
        if not (is_synthetic or arguments.allow_nucleotides):
            batches = proteins_only(batches, arguments.source)
        # A sample is as large as it should be, and read to the end of its source, whose checksum counts.
        rows = tally.rows(first_records(batches, None if is_sampled(arguments) else limit))
        count = arguments.num_partitions
        if count is None:
            spooled = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            count = partitions_for(spool(rows, spooled), arguments.max_records_per_partition)
            spooled.seek(0)
            rows = unspool(spooled)
        files = write_partitions(rows, folder, count, arguments.seed)

    write_json_atomically(
        folder / MANIFEST,
        {
            "options": options_of(arguments),
            "synthetic": is_synthetic,
            "records": tally.records,
            "residues": tally.residues,
            "longest": tally.longest,
            "files": files,
            "content_digest": content_digest(files),
            "versions": package_versions("numpy", "pyarrow", "isal"),
        },
    )
    seconds = time.monotonic() - began
    measured = amounts(tally.records, tally.residues, tally.longest, seconds)
    if (folder / CLUSTERS).is_file():
        print(f"{folder / CLUSTERS}: the clusters, for 1.tokenize_uniref_csv.py --clusters")
    if limit and not is_synthetic and not is_sampled(arguments):
        print(tally.bias())
    print(f"{folder}: {tally.records:,} records in {count} partitions, {measured}{mark(is_synthetic)}")


def is_sampled(arguments: argparse.Namespace) -> bool:
    """Whether --max_records is a sample: the source is on this machine, and can be counted first."""
    return not sources.is_remote(arguments.source) and not arguments.source.startswith(HUB)


def fasta_records(arguments: argparse.Namespace, stack: contextlib.ExitStack) -> Iterator[Records]:
    """The records of a FASTA, or the sample of them that was asked for."""
    limit, total = arguments.max_records, None
    if not sources.is_remote(arguments.source):
        source, expected = sources.open_file(arguments.source), arguments.checksum
        if limit:
            plain = sources.decompressed(prefetch(sources.open_file(arguments.source).chunks), source.name)
            total = count_fasta(plain)
    else:
        source = sources.open_remote(arguments.source, arguments.output_dir if arguments.keep_fasta else None)
        expected = arguments.checksum or sources.published_checksum(arguments.source)
    if expected and limit and total is None:
        print("--max_records stops before the end of the source, so its checksum is not checked")
    elif expected:
        source.chunks = sources.checked(source.chunks, expected, source.name)
    if source.size and not limit:
        needed = space_needed(source, arguments)
        check_free_space(arguments.output_dir, needed, ", or take less with --max_records")
    bar = stack.enter_context(byte_bar(source.size if total or not limit else None, "FASTA"))
    plain = prefetch(sources.decompressed(prefetch(counted(source.chunks, bar)), source.name))
    batches = read_records(plain, source.name)
    return sampled(batches, total, limit, arguments.seed) if total else batches


def table_records(
    table: Table, arguments: argparse.Namespace, stack: contextlib.ExitStack
) -> Iterator[Records]:
    """The records of a table, or the sample of them that was asked for; its clusters go into a file."""
    if arguments.checksum:
        raise UserError("--checksum is for a FASTA; leave it out for a table")
    clusters = None
    if table.has_clusters:
        path = stack.enter_context(whole_file(arguments.output_dir / CLUSTERS))
        clusters = stack.enter_context(contextlib.closing(ClusterWriter(path)))
    batches = table.records(clusters)
    move_bar = stack.enter_context(byte_bar(table.rows, table.name, " records"))
    batches = passed(batches, move_bar)
    if arguments.max_records and table.rows is not None:
        return sampled(batches, table.rows, arguments.max_records, arguments.seed)
    return batches


def passed(batches: Iterator[Records], move_bar: Callable[[int], object]) -> Iterator[Records]:
    for batch in batches:
        move_bar(len(batch))
        yield batch


def space_needed(source: sources.Source, arguments: argparse.Namespace) -> float:
    """Bytes that the output folder must have room for, at most."""
    rows = source.size * (GZIP_RATIO if source.name.endswith(".gz") else 1)
    copies = 2 if arguments.max_records_per_partition else 1  # all rows wait on disk until they are counted
    return copies * rows + (source.size if arguments.keep_fasta else 0)


def counted(chunks: Iterator[bytes], move_bar: Callable[[int], object]) -> Iterator[bytes]:
    for chunk in chunks:
        move_bar(len(chunk))
        yield chunk


def first_records(batches: Iterator[Records], limit: int | None) -> Iterator[Records]:
    """The batches up to `limit` records in all."""
    for batch in batches:
        if limit is not None:
            batch = batch.head(limit)
            limit -= len(batch)
        yield batch
        if limit == 0:
            return


def partitions_for(records: int, each: int) -> int:
    count = -(-records // each)
    if count > MAX_PARTITIONS:
        raise UserError(
            f"--max_records_per_partition {each} makes {count:,} partitions of {records:,} records, "
            f"more than {MAX_PARTITIONS}; take {-(-records // MAX_PARTITIONS):,} or more"
        )
    return count


if __name__ == "__main__":
    run_script(main)
