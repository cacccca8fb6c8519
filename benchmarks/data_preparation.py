#!/usr/bin/env python3
"""Steps 0 and 1 against the plain way, whole processes, in one run on one machine.

    python benchmarks/data_preparation.py --records 400000
    python benchmarks/data_preparation.py --records 4000000 --plain_records 400000

The plain way is what a sample does with the usual tools: a FASTA iterator over `gzip`, `csv.writer`, then
`datasets.map` with `EsmTokenizer`, padding to 512, two processes. Input: synthetic proteins, gzipped.
Prints Markdown: the best wall time of each over the repeats, the CPU time of that run, peak memory of the
whole process tree (shared pages counted once a process) and output size; then what the hardware allows.
"""

import argparse
import contextlib
import csv
import gzip
import itertools
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from isal import igzip

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
UNIREF50_RECORDS = 65_672_468  # release 2024_01
PARTITIONS, PADDED, PROCESSES = 50, 512, 2


@dataclass
class Measured:
    """One whole process: seconds, CPU seconds, bytes at most in memory, bytes written."""

    wall: float
    cpu: float
    memory: int
    output: int

    def followed_by(self, other: "Measured") -> "Measured":
        """Both, one after the other; the output is the second's, which is what training reads."""
        memory = max(self.memory, other.memory)
        return Measured(self.wall + other.wall, self.cpu + other.cpu, memory, other.output)


def main() -> None:
    arguments = parse_arguments()
    if arguments.plain_step is not None:
        source, output = arguments.plain_paths
        return (plain_step_0, plain_step_1)[arguments.plain_step](source, output)
    with tempfile.TemporaryDirectory(dir=arguments.work_dir, prefix="data_preparation_") as scratch:
        compare(arguments, Path(scratch))
    return None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--records", type=int, default=400_000)
    parser.add_argument("--plain_records", type=int, help="records of the plain runs; default: all")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours; the plain way runs once")
    parser.add_argument("--work_dir", type=Path, help="where the scratch folder goes; default: the system's")
    parser.add_argument("--plain_step", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    parser.add_argument("plain_paths", type=Path, nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(arguments: argparse.Namespace, scratch: Path) -> None:
    records, plain_records = arguments.records, arguments.plain_records or arguments.records
    fasta = make_input(records, scratch / "input.fasta.gz")
    few = fasta if plain_records == records else make_input(plain_records, scratch / "few.fasta.gz")
    ours: list[tuple[Measured, Measured]] = []
    plain: tuple[Measured, Measured] | None = None
    for _ in range(arguments.repeats):
        ours.append(run_ours(fasta, scratch / "ours"))
        plain = plain or run_plain(few, scratch / "plain")
    scale = records / plain_records
    rows = [
        ("step 0", plain[0], min((run[0] for run in ours), key=lambda run: run.wall)),
        ("step 1", plain[1], min((run[1] for run in ours), key=lambda run: run.wall)),
    ]
    print_report(records, plain_records, scale, rows, limits(fasta, scratch))


def make_input(records: int, path: Path) -> Path:
    from esm2_hyperpod.download.synthetic import fasta_chunks

    with igzip.open(path, "wb", compresslevel=3) as file, open(os.devnull, "w") as labelled:
        for chunk in fasta_chunks(records, 1, labelled):
            file.write(chunk)
    return path


def run_ours(fasta: Path, folder: Path) -> tuple[Measured, Measured]:
    shutil.rmtree(folder, ignore_errors=True)
    step_0 = ["0.download_data.py", "--source", fasta, "--output_dir", folder / "csv"]
    step_1 = ["1.tokenize_uniref_csv.py", "--input_dir", folder / "csv", "--output_dir", folder / "arrow"]
    step_1 += ["--num_proc", PROCESSES]
    return measured([sys.executable, *step_0], folder / "csv"), measured(
        [sys.executable, *step_1], folder / "arrow"
    )


def run_plain(fasta: Path, folder: Path) -> tuple[Measured, Measured]:
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, __file__, "--plain_step"]
    first = measured([*command, "0", fasta, folder / "csv"], folder / "csv")
    second = measured([*command, "1", folder / "csv", folder / "arrow"], folder / "arrow")
    shutil.rmtree(folder)
    return first, second


def measured(command: list[object], output: Path) -> Measured:
    """Run a command to its end, watching the memory of its process tree."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{output}.cache"},
    )
    memory, tree = 0, psutil.Process(process.pid)
    while process.poll() is None:
        memory = max(memory, tree_memory(tree))
        time.sleep(0.02)
    wall = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{process.stderr.read().decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    shutil.rmtree(f"{output}.cache", ignore_errors=True)
    return Measured(wall, cpu, memory, sum(f.stat().st_size for f in output.rglob("*") if f.is_file()))


def tree_memory(process: psutil.Process) -> int:
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            total += member.memory_info().rss
    except psutil.NoSuchProcess:  # it ended while we looked
        pass
    return total


def limits(fasta: Path, scratch: Path) -> dict[str, float]:
    """Seconds that the hardware needs for the unavoidable parts."""
    began = time.perf_counter()
    with igzip.open(fasta, "rb") as file:
        while file.read(4 << 20):
            pass
    decoded = time.perf_counter()
    shutil.copytree(scratch / "ours" / "csv", scratch / "copy")
    for path in (scratch / "copy").iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return {"gzip decode alone": decoded - began, "copy of the CSV, synced": time.perf_counter() - decoded}


def plain_step_0(source: Path, output: Path) -> None:
    """A FASTA iterator and `csv.writer`."""
    output.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        paths = [output / f"x{index:03d}.csv" for index in range(PARTITIONS)]
        writers = [csv.writer(stack.enter_context(open(path, "w", newline=""))) for path in paths]
        for writer in writers:
            writer.writerow(("id", "text"))
        for writer, record in zip(itertools.cycle(writers), plain_fasta(source)):
            writer.writerow(record)


def plain_fasta(source: Path) -> Iterator[tuple[str, str]]:
    name, parts = None, []
    with gzip.open(source, "rt") as lines:
        for line in lines:
            if line.startswith(">"):
                if name:
                    yield name, "".join(parts)
                name, parts = line[1:].split(maxsplit=1)[0], []
            else:
                parts.append(line.rstrip())
    if name:
        yield name, "".join(parts)


def plain_step_1(source: Path, output: Path) -> None:
    """`datasets.map` with the ESM tokenizer, padded to 512."""
    import datasets

    from esm2_hyperpod.alphabet import build_tokenizer

    tokenizer = build_tokenizer()
    data = datasets.load_dataset("csv", data_files=sorted(str(path) for path in source.glob("*.csv")))[
        "train"
    ]
    first = data.train_test_split(test_size=0.1, seed=42)
    second = first["test"].train_test_split(test_size=0.5, seed=42)
    splits = datasets.DatasetDict(train=first["train"], validation=second["train"], test=second["test"])
    splits.map(
        lambda rows: tokenizer(rows["text"], padding="max_length", truncation=True, max_length=PADDED),
        batched=True,
        num_proc=PROCESSES,
        remove_columns=["text"],
    ).save_to_disk(output)


def print_report(
    records: int,
    plain_records: int,
    scale: float,
    rows: list[tuple[str, Measured, Measured]],
    seconds_of: dict[str, float],
) -> None:
    (_, *first), (_, *second) = rows
    both = ("both", *(a.followed_by(b) for a, b in zip(first, second)))
    print(f"\n### {records:,} records\n")
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {cpu_name()}.")
    if scale != 1:
        print(f"The plain way ran on {plain_records:,} records; its times and sizes are scaled by {scale:g}.")
    print(
        "\n| | plain, s (CPU) | ours, s (CPU) | records/s | faster (CPU) | plain, MB | ours, MB | smaller |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, plain, ours in [*rows, both]:
        output = f"{plain.output * scale / 1e6:,.0f} | {ours.output / 1e6:,.0f} | "
        output += f"{plain.output * scale / ours.output:.1f}"
        print(
            f"| {name} | {plain.wall * scale:.1f} ({plain.cpu * scale:.1f}) | "
            f"{ours.wall:.2f} ({ours.cpu:.2f}) | "
            f"{records / ours.wall:,.0f} | {plain.wall * scale / ours.wall:.1f} "
            f"({plain.cpu * scale / ours.cpu:.1f}) | {output} |"
        )
    print("\n| peak memory, MB | plain | ours |\n|---|---|---|")
    for name, plain, ours in rows:
        print(f"| {name} | {plain.memory / 1e6:,.0f} | {ours.memory / 1e6:,.0f} |")
    print("\n| what the hardware needs for | s |\n|---|---|")
    for name, seconds in seconds_of.items():
        print(f"| {name} | {seconds:.2f} |")
    minutes = both[2].wall / records * UNIREF50_RECORDS / 60
    print(
        f"\nAt this rate both steps take {minutes:.1f} minutes for UniRef50's {UNIREF50_RECORDS:,} records."
    )


def cpu_name() -> str:
    with open("/proc/cpuinfo") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


if __name__ == "__main__":
    main()
