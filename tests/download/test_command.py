"""Step 0 through its real command: exact partitions, and refusals, kills and full disks break nothing."""

import gzip
import subprocess

import numpy as np
import pytest
from helpers.commands import run
from helpers.kill_at_random import killed_runs
from helpers.proteins import digests, fasta, longest_first, read_partitions, some_proteins, write_fasta
from helpers.steps import error_line, manifest, small_disk, step_0

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


def test_another_seed_deals_otherwise_and_max_records_takes_a_sample(made, tmp_path):
    proteins, folder = made
    step_0(folder / "sorted.fasta.gz", tmp_path, "--num_partitions", 7, "--seed", 1, "--max_records", 100)
    partitions = read_partitions(tmp_path)
    rows = [row for rows in partitions for row in rows]
    assert len(rows) == len(set(rows)) == 100 and set(rows) <= set(proteins.items())
    lengths = [np.mean([len(sequence) for _, sequence in some]) for some in (rows, proteins.items())]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.02)  # the first 100 have twice the mean
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


def test_gzip_of_several_members_and_padding_is_read_whole(made, tmp_path):
    proteins, folder = made
    parts = [gzip.compress(fasta(dict(list(proteins.items())[at : at + 1000]))) for at in (0, 1000, 2000)]
    (tmp_path / "a.fasta.gz").write_bytes(bytes(512).join(parts) + bytes(100))
    step_0(tmp_path / "a.fasta.gz", tmp_path / "csv", "--num_partitions", 7)
    assert manifest(tmp_path / "csv")["content_digest"] == manifest(folder / "csv")["content_digest"]


def test_a_full_disk_is_one_line_before_and_during(tmp_path):
    large = write_fasta(tmp_path / "large.fasta", {f"P{index}": "M" * 900 for index in range(2000)})
    repeats = write_fasta(tmp_path / "repeats.fasta.gz", {f"P{index}": "M" * 900 for index in range(9000)})
    with small_disk(tmp_path) as disk:
        line = error_line(step_0(large, disk / "csv", check=False, by=run))
        assert "needs about 1.91 MB and has 1.05 MB free; free some space, choose another" in line
        line = error_line(step_0(repeats, disk / "csv", check=False, by=run))
        assert "No space left on device" in line
        assert str(disk / "csv") in line
        assert [path.name for path in (disk / "csv").iterdir()] == [".lock"]


def test_a_read_only_disk_is_one_line(tmp_path):
    with small_disk(tmp_path) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        line = error_line(step_0("synthetic", disk / "csv", "--max_records", 10, check=False))
    assert "Read-only file system" in line
