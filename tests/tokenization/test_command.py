"""Step 1 through its real command: exact splits, and refusals, kills and full disks that break nothing."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.commands import ROOT, run
from helpers.kill_at_random import killed_runs
from helpers.proteins import digests, fasta, longest_first, some_proteins, write_fasta
from helpers.steps import error_line, here, load, manifest, small_disk, step_0, step_1

from esm2_hyperpod.alphabet import CLS, EOS, TOKENS, build_tokenizer, encode


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Proteins, sorted longest first, and a folder with both steps' output."""
    folder, proteins = tmp_path_factory.mktemp("made"), longest_first(some_proteins(3000))
    step_0(write_fasta(folder / "a.fasta", proteins), folder / "csv", "--num_partitions", 7)
    step_1(folder / "csv", folder / "arrow")
    return proteins, folder


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder with csv/, enough for 4 processes, and two_processes/ made of it by as many."""
    folder, text = tmp_path_factory.mktemp("large"), "".join(some_proteins(500).values())
    proteins = {f"P{index}": text[index : index + 9000] for index in range(3800)}
    source = write_fasta(folder / "a.fasta", proteins, line=9000)
    step_0(source, folder / "csv", "--num_partitions", 40)
    step_1(folder / "csv", folder / "two_processes", "--num_proc", 2, by=run)
    return folder


def test_splits_load_with_datasets_and_hold_every_record_once(made):
    from datasets import load_from_disk

    proteins, folder = made
    data = load_from_disk(str(folder / "arrow"))
    assert {name: len(split) for name, split in data.items()} == {
        name: split["records"] for name, split in manifest(folder / "arrow")["splits"].items()
    }
    assert str(data["train"].features["input_ids"].feature.dtype) == "uint8"
    assert sum(map(len, data.values())) == 3000
    for rows in load(folder / "arrow").values():
        for identifier, ids in rows.items():
            assert (ids[0], ids[-1]) == (CLS, EOS)
            assert "".join(TOKENS[token] for token in ids[1:-1]) == proteins[identifier]
    for split in ("validation", "test"):
        assert abs(len(data[split]) - 150) < 4 * 150**0.5  # 5% of 3,000, within sampling error


def test_manifest_counts_are_those_of_the_data(made):
    _, folder = made
    written = manifest(folder / "arrow")
    for name, split in load(folder / "arrow").items():
        counted = Counter(token for ids in split.values() for token in ids)
        counts = written["token_counts"][name]
        assert [counts[token] for token in TOKENS[4:]] == [counted[index] for index in range(4, len(TOKENS))]
        assert written["splits"][name]["tokens"] == sum(counted.values())
        assert written["splits"][name]["residues"] == sum(counts.values())
    assert written["synthetic"] is False


def test_a_record_keeps_its_split_when_partitions_or_data_change(made, tmp_path):
    proteins, folder = made
    more = {**proteins, **{f"new_{k}": v for k, v in some_proteins(500, seed=9).items()}}
    flags = ("--validation_size", "0.1", "--test_size", "0.2")
    step_1(folder / "csv", tmp_path / "arrow", *flags)
    step_0(write_fasta(tmp_path / "more.fasta", more), tmp_path / "more_csv", "--num_partitions", 3)
    step_1(tmp_path / "more_csv", tmp_path / "more_arrow", *flags)
    before, after = load(tmp_path / "arrow"), load(tmp_path / "more_arrow")
    for name in before:
        assert set(before[name]) == set(after[name]) & set(proteins)
        assert before[name]


def test_bytes_do_not_depend_on_the_number_of_processes(large, tmp_path):
    step_1(large / "csv", tmp_path / "1", "--num_proc", 1)
    step_1(large / "csv", tmp_path / "4", "--num_proc", 4, by=run)
    two = digests(large / "two_processes")
    assert digests(tmp_path / "1") == two == digests(tmp_path / "4")
    assert "train/data-00039-of-00040.arrow" in two


@pytest.mark.parametrize(("mode", "longest"), [("truncate", 100), ("chunk", 100), ("chunk", 7)])
def test_long_sequences(made, tmp_path, mode, longest):
    proteins, folder = made
    step_1(folder / "csv", tmp_path, "--long_sequences", mode, "--max_length", longest)
    rows = {identifier: ids for split in load(tmp_path).values() for identifier, ids in split.items()}
    assert max(map(len, rows.values())) <= longest
    tokenizer = build_tokenizer()
    some = list(proteins.items())[:50] + list(proteins.items())[-50:]
    if mode == "truncate":
        for identifier, sequence in some:
            assert rows[identifier] == tokenizer(sequence, truncation=True, max_length=longest)["input_ids"]
        assert rows == {
            name: encode(text[: longest - 2].encode()).tolist() for name, text in proteins.items()
        }
        return
    pieces_of: dict[str, list] = {}
    for name, ids in rows.items():
        identifier, _, span = name.partition("/")
        start, end = map(int, span.split("-")) if span else (1, len(proteins[identifier]))
        pieces_of.setdefault(identifier, []).append(((start, end), ids))
    assert pieces_of.keys() == proteins.keys()
    for identifier, sequence in some:
        pieces = sorted(pieces_of[identifier])
        assert [token for _, ids in pieces for token in ids] == tokenizer(sequence)["input_ids"]
        assert max(len(ids) for _, ids in pieces) - min(len(ids) for _, ids in pieces) <= 1
        for (start, end), ids in pieces:
            assert [TOKENS[token] for token in ids if token not in (CLS, EOS)] == list(
                sequence[start - 1 : end]
            )


def test_run_again_it_says_so_and_other_options_are_refused(made):
    _, folder = made
    before = digests(folder)
    assert "already made" in step_1(folder / "csv", folder / "arrow").stdout
    line = error_line(step_1(folder / "csv", folder / "arrow", "--seed", 5, check=False))
    assert "seed=42" in line
    assert digests(folder) == before


def test_overwrite_leaves_nothing_of_the_run_before(made, tmp_path):
    csv = made[1] / "csv"
    step_1(csv, tmp_path)
    step_1(csv, tmp_path, "--test_size", 0, "--seed", 2, "--overwrite", "--plot")
    assert sorted(load(tmp_path)) == ["train", "validation"]
    assert not (tmp_path / "test").exists()
    assert (tmp_path / "data.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("by", "umask"), [(run, 0o002), (here, 0o022)])
def test_files_of_both_steps_have_the_mode_that_the_umask_gives(tmp_path, by, umask):
    table = tmp_path / "clusters.tsv"
    table.write_text("cluster\tmember\n")
    before = os.umask(umask)
    try:
        step_0(
            "synthetic", tmp_path / "out/csv", "--max_records", 300, "--num_partitions", 2, "--plot", by=by
        )
        sizes = ("--validation_size", "0.2", "--test_size", "0.2")
        step_1(tmp_path / "out/csv", tmp_path / "out/arrow", *sizes, "--clusters", table, "--plot", by=by)
    finally:
        os.umask(before)
    made = list((tmp_path / "out").rglob("*"))
    assert {"localization.csv", "data.png", "manifest.json", "cluster_of_row.npy"} <= {
        path.name for path in made
    }
    for path in made:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_odd_sequences_are_cleaned_up_as_documented_and_counted(tmp_path):
    text = (
        fasta(some_proteins(200))
        + b'>one, "two" three\nacdJ*kUZ\nOX*\n>stop\n***\n>short\nMK\n>B12\nMK1VLLA.-\n'
    )
    (tmp_path / "odd.fasta").write_bytes(text)
    step_0(tmp_path / "odd.fasta", tmp_path / "csv", "--num_partitions", 2)
    flags = ("--min_length", 3, "--validation_size", "0.2", "--test_size", 0)
    result = step_1(tmp_path / "csv", tmp_path / "arrow", *flags)
    as_text = {
        name: "".join(TOKENS[token] for token in ids)
        for split in load(tmp_path / "arrow").values()
        for name, ids in split.items()
    }
    assert as_text["one,"] == "<cls>ACD<unk><unk>KUZOX<eos>"
    assert as_text["B12"] == "<cls>MK<unk>VLLA<eos>"
    assert {"stop", "short"}.isdisjoint(as_text)
    written = manifest(tmp_path / "arrow")
    assert written["too_short_left_out"] == 2
    assert written["changed_residues"] == {
        "gaps_dropped": 2,
        "end_stops_dropped": 1,
        "lower_case": 4,
        "J to <unk>": 1,
        "* to <unk>": 1,
        "1 to <unk>": 1,
    }
    assert "1 J to <unk>" in result.stdout


def test_killed_anywhere_it_ends_in_the_same_bytes(tmp_path):
    step_0(write_fasta(tmp_path / "a.fasta", some_proteins(600)), tmp_path / "csv", "--num_partitions", 6)
    flags = ("1.tokenize_uniref_csv.py", "--input_dir", tmp_path / "csv", "--output_dir", "{}")
    undisturbed, *runs = killed_runs(25, 2, tmp_path / "arrow", *flags)
    assert any(one["killed"] for one in runs)
    assert set(undisturbed["digests"]) >= {"manifest.json", "train/data-00005-of-00006.arrow"}
    for one in runs:
        assert one["digests"] == undisturbed["digests"]


def test_a_killed_run_leaves_no_worker_behind_and_keeps_finished_partitions(large, tmp_path):
    script, flags = "1.tokenize_uniref_csv.py", ("--input_dir", large / "csv", "--num_proc", 2)
    command = [sys.executable, script, *map(str, flags), "--output_dir", str(tmp_path / "arrow")]
    process = subprocess.Popen(command, cwd=ROOT)
    notes = tmp_path / "arrow" / ".parts"
    while process.poll() is None and len(list(notes.glob("[0-9]*.json"))) < 3:
        time.sleep(0.005)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    while any(Path(f"/proc/{worker}/exe").exists() for worker in workers):
        time.sleep(0.01)  # they notice at once; the test's own time limit is the runner's
    index = min(notes.glob("[0-9]*.json")).stem
    finished = tmp_path / "arrow" / "train" / f"data-{index}-of-00040.arrow"
    before = finished.stat().st_mtime_ns
    here(script, *flags[:2], "--num_proc", 1, "--output_dir", tmp_path / "arrow")
    assert finished.stat().st_mtime_ns == before
    assert digests(tmp_path / "arrow") == digests(large / "two_processes")


def test_a_damaged_shard_of_a_killed_run_is_made_again(made, tmp_path):
    folder = made[1]
    step_1(folder / "csv", tmp_path, "--test_size", 2900, "--train_size", 10, "--validation_size", 10)
    # As after a kill just before the manifest, with notes of other options and a shard cut short.
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "train" / "data-00000-of-00007.arrow").write_bytes(b"damaged")
    step_1(folder / "csv", tmp_path)
    assert digests(tmp_path) == digests(folder / "arrow")


def test_a_full_disk_is_one_line_before_and_during(made, tmp_path):
    csv = made[1] / "csv"
    with small_disk(tmp_path) as disk:
        (disk / "filler").write_bytes(bytes(700_000))
        line = error_line(step_1(csv, disk / "arrow", check=False))
        assert "needs about 764 KB and has 348 KB free" in line
        (disk / "arrow" / ".parts").mkdir()  # as after a kill: then the rest must only fit
        line = error_line(step_1(csv, disk / "arrow", check=False, by=run))
        assert "No space left on device" in line
        assert str(disk / "arrow") in line
        (disk / "filler").unlink()
        step_1(csv, disk / "arrow")
