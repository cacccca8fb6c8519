"""Steps 0 and 1 cannot be broken: kills at random instants, broken input, full and forbidden disks."""

import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import ROOT, run
from helpers.proteins import digests, fasta, some_proteins, write_fasta

KILL = ROOT / "tests" / "helpers" / "kill_at_random.py"


def step_0(source, output, *flags, **kwargs):
    return run("0.download_data.py", "--source", source, "--output_dir", output, *flags, **kwargs)


def step_1(csv, output, *flags, **kwargs):
    return run("1.tokenize_uniref_csv.py", "--input_dir", csv, "--output_dir", output, *flags, **kwargs)


def error_line(result) -> str:
    """The one line of a refusal."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def csv_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("csv")
    step_0(write_fasta(folder / "a.fasta", some_proteins(2000)), folder / "csv", "--num_partitions", 6)
    return folder / "csv"


def killed_runs(instants: int, seed: int, folder: Path, *command: object) -> list[dict]:
    result = run(sys.executable, KILL, instants, seed, folder, *command)
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("partitions", [("--num_partitions", 8), ("--max_records_per_partition", 250)])
def test_step_0_killed_anywhere_ends_in_the_same_bytes(tmp_path, partitions):
    source = write_fasta(tmp_path / "a.fasta.gz", some_proteins(2000))
    flags = ("0.download_data.py", "--source", source, *partitions, "--output_dir", "{}")
    undisturbed, *runs = killed_runs(15, 1, tmp_path / "csv", *flags)
    assert any(one["killed"] for one in runs)
    for one in runs:
        assert one["digests"] == undisturbed["digests"]
        assert "manifest.json" not in one["left"] or one["left"] == sorted(undisturbed["digests"])


def test_step_1_killed_anywhere_ends_in_the_same_bytes(csv_folder, tmp_path):
    flags = ("1.tokenize_uniref_csv.py", "--input_dir", csv_folder, "--output_dir", "{}")
    undisturbed, *runs = killed_runs(25, 2, tmp_path / "arrow", *flags)
    assert any(one["killed"] for one in runs)
    assert set(undisturbed["digests"]) >= {"manifest.json", "train/data-00005-of-00006.arrow"}
    for one in runs:
        assert one["digests"] == undisturbed["digests"]


def test_a_killed_run_leaves_no_worker_behind_and_keeps_finished_partitions(tmp_path):
    text = "".join(some_proteins(500).values())
    proteins = {f"P{index}": text[index : index + 9000] for index in range(4000)}
    step_0(write_fasta(tmp_path / "a.fasta", proteins), tmp_path / "csv", "--num_partitions", 40)
    command = ["1.tokenize_uniref_csv.py", "--input_dir", tmp_path / "csv", "--num_proc", "2", "--output_dir"]
    run(*command, tmp_path / "undisturbed")
    process = subprocess.Popen([sys.executable, *map(str, command), str(tmp_path / "arrow")], cwd=ROOT)
    notes = tmp_path / "arrow" / ".parts"
    while process.poll() is None and len(list(notes.glob("[0-9]*.json"))) < 3:
        time.sleep(0.005)
    workers = [int(child) for child in _children(process.pid)]
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    while any(Path(f"/proc/{worker}/exe").exists() for worker in workers):
        time.sleep(0.01)  # they notice at once; the test's own time limit is the runner's
    index = min(notes.glob("[0-9]*.json")).stem
    finished = tmp_path / "arrow" / "train" / f"data-{index}-of-00040.arrow"
    before = finished.stat().st_mtime_ns
    run(*command, tmp_path / "arrow")
    assert finished.stat().st_mtime_ns == before
    assert digests(tmp_path / "arrow") == digests(tmp_path / "undisturbed")


def _children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def test_a_damaged_shard_of_a_killed_run_is_made_again(csv_folder, tmp_path):
    step_1(csv_folder, tmp_path / "whole")
    step_1(csv_folder, tmp_path / "arrow", "--test_size", 1900, "--train_size", 10, "--validation_size", 10)
    # As after a kill just before the manifest, with notes of other options and a shard cut short.
    (tmp_path / "arrow" / "manifest.json").unlink()
    shard = tmp_path / "arrow" / "train" / "data-00000-of-00006.arrow"
    shard.write_bytes(b"damaged")
    step_1(csv_folder, tmp_path / "arrow")
    assert digests(tmp_path / "arrow") == digests(tmp_path / "whole")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; a FASTA file starts with '>'"),
        (b"PK\x03\x04 a zip", "not a FASTA: it starts with"),
        (gzip.compress(fasta(some_proteins(300)))[:-500], "the gzip is cut short after"),
        (gzip.compress(fasta(some_proteins(300)))[:-8] + bytes(8), "damaged gzip near compressed byte"),
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


def test_repeated_ids_are_named_and_kept(tmp_path):
    proteins = some_proteins(100)
    text = fasta(proteins) + fasta({"UniRef50_P00041": "MKV"})
    (tmp_path / "a.fasta").write_bytes(text.replace(b"\n", b"\r\n"))
    result = step_0(tmp_path / "a.fasta", tmp_path / "csv", "--num_partitions", 7)
    assert (
        "1 records have the id of an earlier one (for example UniRef50_P00041: records 42 and 101)"
        in result.stdout
    )
    assert json.loads((tmp_path / "csv" / "manifest.json").read_text())["records"] == 101


def test_wrong_flags_and_places_are_refused(csv_folder, tmp_path):
    source = write_fasta(tmp_path / "a.fasta", some_proteins(5))
    assert "no such file" in error_line(step_0(tmp_path / "absent.fasta", tmp_path / "csv", check=False))
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
    for size in ("1.5", "-3", "many"):
        assert step_1(csv_folder, tmp_path / "arrow", "--test_size", size, check=False).returncode == 2
    both = ("--train_size", "0.8", "--validation_size", "0.2", "--test_size", "0.1")
    assert "add up to more than 1" in error_line(step_1(csv_folder, tmp_path / "arrow", *both, check=False))


def test_a_split_that_comes_out_empty_is_an_error(tmp_path):
    step_0(write_fasta(tmp_path / "a.fasta", some_proteins(4)), tmp_path / "csv", "--num_partitions", 6)
    line = error_line(step_1(tmp_path / "csv", tmp_path / "arrow", check=False))
    assert "split came out empty of 4 records" in line
    assert not (tmp_path / "arrow" / "manifest.json").exists()


def test_a_csv_that_changed_since_is_refused(csv_folder, tmp_path):
    import shutil

    copy = Path(shutil.copytree(csv_folder, tmp_path / "csv"))
    text = (copy / "x003.csv").read_bytes()
    (copy / "x003.csv").write_bytes(text[:-20])
    line = error_line(step_1(copy, tmp_path / "arrow", check=False))
    assert "x003.csv: is not the file that the manifest beside it describes" in line
    (copy / "x003.csv").unlink()
    assert "x003.csv: No such file" in error_line(step_1(copy, tmp_path / "arrow", check=False))


@pytest.mark.parametrize("step", [0, 1])
def test_a_second_writer_is_refused(csv_folder, tmp_path, step):
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if step == 0:
            result = step_0("synthetic", tmp_path, "--max_records", 10, check=False)
        else:
            result = step_1(csv_folder, tmp_path, check=False)
    assert "another process is writing there" in error_line(result)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB; only root may make one."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path]).returncode:
        pytest.skip("mounting a small file system takes root")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_is_one_line_before_and_during(small_disk, csv_folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    large = write_fasta(elsewhere / "large.fasta", some_proteins(8000))
    line = error_line(step_0(large, small_disk / "csv", check=False))
    assert "needs about 0.00" in line
    assert "GB free" in line
    repeats = write_fasta(elsewhere / "repeats.fasta.gz", {f"P{index}": "M" * 900 for index in range(9000)})
    line = error_line(step_0(repeats, small_disk / "csv", check=False))
    assert "No space left on device" in line
    assert str(small_disk / "csv") in line
    assert not (small_disk / "csv" / "manifest.json").exists()
    run("rm", "-rf", small_disk / "csv")
    (small_disk / "filler").write_bytes(bytes(700_000))
    line = error_line(step_1(csv_folder, small_disk / "arrow", check=False))
    assert "needs about 0.000" in line
    (small_disk / "arrow" / ".parts").mkdir()  # as after a kill: then the rest must only fit
    line = error_line(step_1(csv_folder, small_disk / "arrow", check=False))
    assert "No space left on device" in line
    assert str(small_disk / "arrow") in line
    (small_disk / "filler").unlink()
    step_1(csv_folder, small_disk / "arrow")


def test_a_read_only_disk_is_one_line(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    line = error_line(step_0("synthetic", small_disk / "csv", "--max_records", 10, check=False))
    assert "Read-only file system" in line
