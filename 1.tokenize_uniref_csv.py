#!/usr/bin/env python3
"""Step 1: csv/ of step 0 -> processed/arrow/{train,validation,test}, token ids that training reads in place.

    python 1.tokenize_uniref_csv.py                               # $FSX_DIR/csv -> $FSX_DIR/processed/arrow
    python 1.tokenize_uniref_csv.py --input_dir csv --output_dir processed/arrow --validation_size 1000

Columns: `id` and `input_ids` (uint8: <cls>, residues, <eos>; no padding). Read them with
`datasets.load_from_disk`. If a run is killed, run the same command again: finished partitions are kept.
"""

import argparse
import contextlib
import math
import os
import shlex
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from esm2_hyperpod.artifacts import (
    MANIFEST,
    check_free_space,
    check_same_options,
    only_writer,
    read_manifest,
    remove_temporaries,
    write_json_atomically,
)
from esm2_hyperpod.command_line import say_what_for
from esm2_hyperpod.console import (
    a_path,
    amounts,
    byte_bar,
    fsx_dir,
    in_progress,
    mark,
    positive,
    step_parser,
    whole_number,
)
from esm2_hyperpod.errors import UserError, run_script
from esm2_hyperpod.tokenization.dataset import describe_dataset
from esm2_hyperpod.tokenization.manifest import summary, write_cluster_of_row
from esm2_hyperpod.tokenization.partition import GAPS, LONG_SEQUENCES, Cleaning
from esm2_hyperpod.tokenization.report import describe
from esm2_hyperpod.tokenization.splits import SPLITS, Fractions, resolve
from esm2_hyperpod.tokenization.tasks import NOTES, Task, run_all
from esm2_hyperpod.tokenization.uniref_clusters import build_table, table_digest

ARROW_TO_CSV = 1.1  # bytes out for bytes in, at most
BYTES_WORTH_A_PROCESS = 8 << 20  # less is done before another process has started


def main() -> None:
    if not (fsx_dir() / "csv" / MANIFEST).is_file():
        say_what_for(__doc__, f"{fsx_dir()}/csv holds nothing of step 0, and no --input_dir is given")
    arguments = parser().parse_args()
    if arguments.input_dir.is_file():
        raise UserError(
            f"{arguments.input_dir}: a file; --input_dir takes a folder that step 0 makes, of a FASTA with: "
            "python 0.download_data.py --source FASTA --output_dir FOLDER"
        )
    source = read_manifest(
        arguments.input_dir,
        f"python 0.download_data.py --output_dir {shlex.quote(str(arguments.input_dir))}",
        holds="files",
    )
    with only_writer(arguments.output_dir):
        remove_temporaries(arguments.output_dir)
        if arguments.overwrite:
            remove_output(arguments.output_dir)
        try:
            if (arguments.output_dir / MANIFEST).is_file():
                report_finished(arguments, source)
            else:
                tokenize(arguments, source)
        finally:
            remove_temporaries(arguments.output_dir)  # those of a full disk fill it
        if arguments.plot:
            from esm2_hyperpod.tokenization.plots import plot_dataset

            print(f"picture: {plot_dataset(arguments.output_dir)}")


def parser() -> argparse.ArgumentParser:
    parser = step_parser(__doc__.split("\n\n")[0], output="processed/arrow")
    parser.add_argument("--input_dir", type=a_path, default=fsx_dir() / "csv", help="default: %(default)s")
    sizes = "records (500) or a fraction of them (0.05); default: "
    parser.add_argument("--train_size", type=size, help=f"{sizes}all the rest")
    parser.add_argument("--validation_size", type=size, help=f"{sizes}50000, but 5%% at most")
    parser.add_argument("--test_size", type=size, help=f"{sizes}50000, but 5%% at most")
    parser.add_argument("--seed", type=whole_number, default=42, help="draws the splits; default: 42")
    parser.add_argument(
        "--long_sequences",
        choices=LONG_SEQUENCES,
        default="keep",
        help="keep them whole (training crops at random), truncate, or chunk evenly; default: keep",
    )
    parser.add_argument(
        "--max_length", type=tokens, default=1024, help="tokens, <cls> and <eos> included; default: 1024"
    )
    parser.add_argument(
        "--gaps",
        choices=GAPS,
        default="drop",
        help="- and . of an alignment: drop, or keep as tokens; default: drop",
    )
    parser.add_argument(
        "--min_length", type=positive, default=1, help="residues; shorter records are left out"
    )
    parser.add_argument(
        "--clusters",
        type=a_path,
        help="TSV or Parquet of UniRef50 ids and UniRef90 members: split by cluster",
    )
    parser.add_argument(
        "--num_proc", type=positive, default=len(os.sched_getaffinity(0)), help="default: all cores"
    )
    return parser


def tokens(text: str) -> int:
    value = whole_number(text)
    if value < 4:
        raise argparse.ArgumentTypeError(f"{text}: must be 4 or more: <cls>, <eos> and some residues")
    return value


def size(text: str) -> int | float:
    with contextlib.suppress(ValueError):
        value = float(text) if "." in text else int(text)
        if value >= 0 and (isinstance(value, int) or value < 1):
            return value
    raise argparse.ArgumentTypeError(f"{text}: takes a count such as 500, or a fraction such as 0.05")


def command(arguments: argparse.Namespace, *more: str) -> str:
    folders = ["--input_dir", arguments.input_dir, "--output_dir", arguments.output_dir]
    return " ".join(["python 1.tokenize_uniref_csv.py", *(shlex.quote(str(word)) for word in folders), *more])


def options_of(arguments: argparse.Namespace, source: dict) -> dict:
    """What the output depends on."""
    names = "train_size validation_size test_size seed long_sequences max_length min_length gaps".split()
    return {
        "input_content_digest": source["content_digest"],
        "clusters": arguments.clusters and table_digest(arguments.clusters),
        **{name: getattr(arguments, name) for name in names},
    }


def report_finished(arguments: argparse.Namespace, source: dict) -> None:
    folder = arguments.output_dir
    start_over = command(arguments, "--overwrite")
    manifest = read_manifest(folder, start_over, holds="splits")
    asked = options_of(arguments, source)
    defaults = vars(parser().parse_args([]))
    if gaps_in(manifest):
        defaults["gaps"] = "keep"  # they were tokens before there was a choice
    check_same_options(folder, manifest["options"], asked, f"{start_over} (and this run's flags)", defaults)
    shutil.rmtree(folder / NOTES, ignore_errors=True)
    print(f"{folder}: already made, {counts(manifest)}{mark(manifest['synthetic'])}")


def gaps_in(manifest: dict) -> int:
    """Gaps that became tokens."""
    return sum(split[gap] for split in manifest["token_counts"].values() for gap in "-.")


def counts(manifest: dict) -> str:
    """Records by split."""
    return ", ".join(f"{split['records']:,} {name}" for name, split in manifest["splits"].items())


def remove_output(folder: Path) -> None:
    """Delete what an earlier run made, the manifest first so that no moment shows a broken whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / "dataset_dict.json").unlink(missing_ok=True)
    for name in (*SPLITS, NOTES):
        shutil.rmtree(folder / name, ignore_errors=True)


def tokenize(arguments: argparse.Namespace, source: dict) -> None:
    began, folder = time.monotonic(), arguments.output_dir
    options = options_of(arguments, source)
    fractions, note = resolve(
        source["records"], arguments.train_size, arguments.validation_size, arguments.test_size
    )
    if note:
        print(note)
    cleaning = Cleaning(arguments.long_sequences, arguments.max_length, arguments.min_length, arguments.gaps)
    tasks = [
        Task(
            csv=arguments.input_dir / file["name"],
            csv_sha256=file["sha256"],
            output=folder,
            index=index,
            count=len(source["files"]),
            longest=source["longest"],
            fractions=fractions,
            seed=arguments.seed,
            cleaning=cleaning,
            clusters=options["clusters"],
        )
        for index, file in enumerate(source["files"])
    ]
    total = sum(file["bytes"] for file in source["files"])
    if not (folder / NOTES).is_dir():  # else some of it is there already
        check_free_space(folder, ARROW_TO_CSV * total, "")
    for name in (*fractions.asked_for(), NOTES):
        (folder / name).mkdir(exist_ok=True)
    processes = max(1, min(arguments.num_proc, len(tasks), total // BYTES_WORTH_A_PROCESS))
    table = ()
    if arguments.clusters:
        with in_progress("indexing the clusters"):
            table = build_table(arguments.clusters, folder / NOTES, arguments.seed)
    notes: list[dict] = [{}] * len(tasks)
    with byte_bar(total, "CSV") as move_bar:
        for index, done in run_all(tasks, processes):
            notes[index] = done
            move_bar(source["files"][index]["bytes"])

    shards = {
        split: [done["shards"][split] for done in notes if split in done["shards"]]
        for split in fractions.asked_for()
    }
    left_out = sum(note["too_short"] for note in notes)
    if left_out == source["records"]:
        raise UserError(
            f"{folder}: all {left_out:,} records have fewer residues than --min_length {arguments.min_length}"
            "; give a smaller one, or other data"
        )
    for split, files in shards.items():
        if not files:
            raise UserError(f"{folder}: {too_few(split, source['records'], fractions)}")
    describe_dataset(folder, shards)
    manifest = summary(options, source, asdict(fractions), notes, shards)
    if arguments.clusters:
        manifest["in_no_cluster"] = sum(note["unlisted"] for note in notes)
        for split in shards:
            manifest["splits"][split]["clusters"] = write_cluster_of_row(
                folder, split, len(tasks), len(table)
            )
    write_json_atomically(folder / MANIFEST, manifest)
    shutil.rmtree(folder / NOTES)
    report(manifest, folder, time.monotonic() - began)


def too_few(split: str, records: int, fractions: Fractions) -> str:
    """Why a split may come out empty, and what to do."""
    shares = {name: getattr(fractions, name) for name in fractions.asked_for()}
    needed = 10 ** math.ceil(math.log10(3 / min(shares.values())))
    return (
        f"the {split} split came out empty of {records:,} record(s); shares of "
        f"{', '.join(f'{share:.3g} {name}' for name, share in shares.items())} need about {needed:,} "
        "records: take more, ask for larger shares (--validation_size 0.3), or go without "
        "(--validation_size 0 --test_size 0)"
    )


def report(manifest: dict, folder: Path, seconds: float) -> None:
    changed = {kind: count for kind, count in manifest["changed_residues"].items() if count}
    if changed:
        print("changed residues: " + ", ".join(f"{count:,} {kind}" for kind, count in changed.items()))
    if gaps := changed.get("gaps_dropped"):
        print(
            f"{gaps:,} gaps (- and .) were dropped: the sequences seem to come from an alignment; "
            "--gaps keep makes tokens of them"
        )
    print("\n".join(describe(manifest)))
    proteins = sum(split["proteins"] for split in manifest["splits"].values())
    residues = sum(split["residues"] for split in manifest["splits"].values())
    measured = amounts(proteins, residues, manifest["longest"], seconds)
    print(f"{folder}: {counts(manifest)}; {measured}{mark(manifest['synthetic'])}")


if __name__ == "__main__":
    run_script(main)
