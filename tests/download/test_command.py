"""Step 0 through its real command: exact partitions, and refusals, kills and full disks break nothing."""

import fcntl
import gzip
import subprocess

import numpy as np
import pytest
from helpers.commands import run
from helpers.kill_at_random import killed_runs
from helpers.proteins import digests, fasta, longest_first, read_partitions, some_proteins, write_fasta
from helpers.steps import error_line, manifest, small_disk, step_0, step_1

from esm2_hyperpod.download.partitions import partition_of


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Proteins, sorted longest first, and a folder with their FASTA and its partitions."""
    folder, proteins = tmp_path_factory.mktemp("made"), longest_first(some_proteins(3000))
    step_0(write_fasta(folder / "sorted.fasta.gz", proteins), folder / "csv", "--num_partitions", 7)
    return proteins, folder


def test_partitions_hold_every_record_once_and_are_unbiased(made):
    proteins, folder = made
    partitions = read_partitions(folder / "csv")
    assert sorted(row for rows in partitions for row in rows) == sorted(proteins.items())
    assert {len(rows) for rows in partitions} == {428, 429}
    mean = np.mean([len(sequence) for sequence in proteins.values()])
    for rows in partitions:  # cut in file order, the first would have twice the mean and the last a tenth
        assert abs(np.mean([len(sequence) for _, sequence in rows]) / mean - 1) < 0.02
    written = manifest(folder / "csv")
    assert written["records"] == 3000
    assert written["residues"] == sum(map(len, proteins.values()))
    assert [file["records"] for file in written["files"]] == [len(rows) for rows in partitions]


def test_dealing_is_not_a_fixed_order():
    """Dealt in turn, the first partition would get the longest of every group of a sorted file."""
    dealt = partition_of(0, 7 * 500, 7, seed=0).reshape(500, 7)
    assert (np.sort(dealt, axis=1) == np.arange(7)).all()
    for place in range(7):  # every partition is as often first, second, ... as any other
        assert np.bincount(dealt[:, place], minlength=7).min() > 40
    assert np.array_equal(partition_of(10, 90, 7, seed=0), dealt.ravel()[10:100])


def test_max_records_per_partition_gives_the_same_files(made, tmp_path):
    _, folder = made
    step_0(folder / "sorted.fasta.gz", tmp_path / "csv", "--max_records_per_partition", 429)
    ours, theirs = digests(tmp_path / "csv"), digests(folder / "csv")
    assert {name: ours[name] for name in ours if name != "manifest.json"} == {
        name: theirs[name] for name in theirs if name != "manifest.json"
    }


def test_another_seed_deals_otherwise_and_max_records_takes_the_first(made, tmp_path):
    proteins, folder = made
    step_0(folder / "sorted.fasta.gz", tmp_path, "--num_partitions", 7, "--seed", 1, "--max_records", 100)
    partitions = read_partitions(tmp_path)
    assert sorted(row for rows in partitions for row in rows) == sorted(list(proteins.items())[:100])
    first = [row for row in read_partitions(folder / "csv")[0] if row in {r for p in partitions for r in p}]
    assert partitions[0] != first


def test_run_again_it_says_so_and_other_options_are_refused(made):
    _, folder = made
    before = digests(folder)
    again = step_0(folder / "sorted.fasta.gz", folder / "csv", "--num_partitions", 7)
    assert "already made, 3,000 records in 7 partitions" in again.stdout
    refused = step_0(folder / "sorted.fasta.gz", folder / "csv", "--num_partitions", 8, check=False)
    line = error_line(refused)
    assert "num_partitions=7" in line
    assert "asks for 8" in line
    assert "--overwrite" in line
    assert digests(folder) == before


def test_overwrite_leaves_nothing_of_the_run_before(tmp_path):
    source = write_fasta(tmp_path / "a.fasta", some_proteins(400))
    step_0(source, tmp_path / "csv", "--num_partitions", 9)
    step_0(source, tmp_path / "csv", "--num_partitions", 4, "--overwrite")
    assert sorted(digests(tmp_path / "csv")) == ["manifest.json", *(f"x00{index}.csv" for index in range(4))]


def test_repeated_ids_are_kept_and_lines_may_end_as_on_windows(tmp_path):
    proteins, again = some_proteins(100), {"UniRef50_P00041": "MKV"}
    (tmp_path / "a.fasta").write_bytes((fasta(proteins) + fasta(again)).replace(b"\n", b"\r\n"))
    step_0(tmp_path / "a.fasta", tmp_path / "csv", "--num_partitions", 7)
    rows = [row for rows in read_partitions(tmp_path / "csv") for row in rows]
    assert sorted(rows) == sorted([*proteins.items(), *again.items()])
    assert manifest(tmp_path / "csv")["records"] == 101


@pytest.mark.parametrize("partitions", [("--num_partitions", 8), ("--max_records_per_partition", 75)])
def test_killed_anywhere_it_ends_in_the_same_bytes(tmp_path, partitions):
    source = write_fasta(tmp_path / "a.fasta.gz", some_proteins(600))
    flags = ("0.download_data.py", "--source", source, *partitions, "--output_dir", "{}")
    undisturbed, *runs = killed_runs(15, 1, tmp_path / "csv", *flags)
    assert any(one["killed"] for one in runs)
    for one in runs:
        assert one["digests"] == undisturbed["digests"]
        assert "manifest.json" not in one["left"] or one["left"] == sorted(undisturbed["digests"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; a FASTA file starts with '>'"),
        (b"PK\x03\x04 a zip", "not a FASTA: it starts with"),
        (gzip.compress(fasta(some_proteins(300)))[:-500], "incomplete gzip, it ends after"),
        (gzip.compress(fasta(some_proteins(300)))[:-8] + bytes(8), "corrupt gzip near compressed byte"),
        (fasta(some_proteins(3)) + b">last one\n", "record 4 (last) at byte offset"),
        (fasta(some_proteins(3)) + bytes(range(32)), "record 3 (UniRef50_P00002) at byte offset"),
        (gzip.compress(b"\x7fELF\x00\x01binary"), "not a FASTA: it starts with b'\\x7fELF"),
    ],
)
def test_broken_input_is_one_clear_line_and_nothing_is_taken_for_whole(tmp_path, content, message):
    source = tmp_path / "broken.fasta"
    source.write_bytes(content)
    line = error_line(step_0(source, tmp_path / "csv", "--num_partitions", 2, check=False))
    assert str(source) in line
    assert message in line
    assert not list((tmp_path / "csv").glob("x*.csv"))
    line = error_line(step_1(tmp_path / "csv", tmp_path / "arrow", check=False))
    assert "unfinished (it has no manifest.json); finish it with: python 0.download_data.py" in line


def test_gzip_of_several_members_and_padding_is_read_whole(made, tmp_path):
    proteins, folder = made
    parts = [gzip.compress(fasta(dict(list(proteins.items())[at : at + 1000]))) for at in (0, 1000, 2000)]
    (tmp_path / "a.fasta.gz").write_bytes(bytes(512).join(parts) + bytes(100))
    step_0(tmp_path / "a.fasta.gz", tmp_path / "csv", "--num_partitions", 7)
    assert manifest(tmp_path / "csv")["content_digest"] == manifest(folder / "csv")["content_digest"]


def test_wrong_flags_and_places_are_refused(tmp_path):
    source = write_fasta(tmp_path / "a.fasta", some_proteins(5))
    absent = step_0(tmp_path / "absent.fasta", tmp_path / "csv", check=False, by=run)
    assert "no such file" in error_line(absent)
    assert "Not a directory" in error_line(step_0(source, source / "csv", check=False))
    for flags in (
        ["--num_partition", 3],
        ["--num_partitions", 0],
        ["--num_partitions", 1001],
        ["--checksum", "md5:1"],
    ):
        result = step_0(source, tmp_path / "csv", *flags, check=False)
        assert result.returncode == 2
        assert flags[0] in result.stderr
    assert not list(tmp_path.glob("csv/x*"))


def test_a_second_writer_is_refused(tmp_path):
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = error_line(step_0("synthetic", tmp_path, "--max_records", 10, check=False))
    assert "another process is writing there" in line


def test_a_full_disk_is_one_line_before_and_during(tmp_path):
    large = write_fasta(tmp_path / "large.fasta", {f"P{index}": "M" * 900 for index in range(2000)})
    repeats = write_fasta(tmp_path / "repeats.fasta.gz", {f"P{index}": "M" * 900 for index in range(9000)})
    with small_disk(tmp_path) as disk:
        line = error_line(step_0(large, disk / "csv", check=False, by=run))
        assert "needs about 0.00" in line
        assert "GB free" in line
        line = error_line(step_0(repeats, disk / "csv", check=False, by=run))
        assert "No space left on device" in line
        assert str(disk / "csv") in line
        assert not (disk / "csv" / "manifest.json").exists()


def test_a_read_only_disk_is_one_line(tmp_path):
    with small_disk(tmp_path) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        line = error_line(step_0("synthetic", disk / "csv", "--max_records", 10, check=False))
    assert "Read-only file system" in line
