"""Steps 0 and 1 through their real commands: what they write, that it is exact, and that it repeats."""

import json
import time
from collections import Counter

import numpy as np
import pytest
from helpers.commands import run
from helpers.proteins import digests, fasta, read_partitions, some_proteins, write_fasta

from esm2_hyperpod.alphabet import CLS, EOS, TOKENS, build_tokenizer
from esm2_hyperpod.download.partitions import partition_of


def step_0(source, output, *flags, **kwargs):
    return run("0.download_data.py", "--source", source, "--output_dir", output, *flags, **kwargs)


def step_1(csv, output, *flags, **kwargs):
    return run("1.tokenize_uniref_csv.py", "--input_dir", csv, "--output_dir", output, *flags, **kwargs)


def load(folder):
    from datasets import load_from_disk

    return load_from_disk(str(folder))


def manifest(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Proteins, sorted longest first as UniRef50 is, through both steps."""
    folder = tmp_path_factory.mktemp("made")
    proteins = dict(sorted(some_proteins(3000).items(), key=lambda item: -len(item[1])))
    source = write_fasta(folder / "sorted.fasta.gz", proteins)
    step_0(source, folder / "csv", "--num_partitions", 7)
    step_1(folder / "csv", folder / "arrow")
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
    first = [row for row in read_partitions(made[1] / "csv")[0] if row in {r for p in partitions for r in p}]
    assert partitions[0] != first


def test_splits_load_with_datasets_and_hold_every_record_once(made):
    proteins, folder = made
    data = load(folder / "arrow")
    rows = [row for split in data.values() for row in split]
    assert {name: len(split) for name, split in data.items()} == {
        name: split["records"] for name, split in manifest(folder / "arrow")["splits"].items()
    }
    assert str(data["train"].features["input_ids"].feature.dtype) == "uint8"
    assert len(rows) == 3000
    for row in rows:
        ids = row["input_ids"]
        assert (ids[0], ids[-1]) == (CLS, EOS)
        assert "".join(TOKENS[token] for token in ids[1:-1]) == proteins[row["id"]]
    for split in ("validation", "test"):
        assert abs(len(data[split]) - 150) < 4 * 150**0.5  # 5% of 3,000, within sampling error


def test_manifest_counts_are_those_of_the_data(made):
    _, folder = made
    written = manifest(folder / "arrow")
    for name, split in load(folder / "arrow").items():
        counted = Counter(TOKENS[token] for ids in split["input_ids"] for token in ids)
        counts = written["token_counts"][name]
        assert {token: counts[token] for token in TOKENS[4:]} == {
            token: counted[token] for token in TOKENS[4:]
        }
        assert written["splits"][name]["tokens"] == sum(counted.values())
        assert written["splits"][name]["residues"] == sum(counts.values())
    assert written["synthetic"] is False


def test_a_record_keeps_its_split_when_partitions_or_data_change(made, tmp_path):
    proteins, folder = made
    more = {**proteins, **{f"new_{k}": v for k, v in some_proteins(500, seed=9).items()}}
    source = write_fasta(tmp_path / "more.fasta", more)
    flags = ("--validation_size", "0.1", "--test_size", "0.2")
    step_1(folder / "csv", tmp_path / "arrow", *flags)
    step_0(source, tmp_path / "more_csv", "--num_partitions", 3)
    step_1(tmp_path / "more_csv", tmp_path / "more_arrow", *flags)
    before = {name: set(split["id"]) for name, split in load(tmp_path / "arrow").items()}
    after = {name: set(split["id"]) for name, split in load(tmp_path / "more_arrow").items()}
    for name in before:
        assert before[name] == after[name] & set(proteins)
        assert before[name]


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    text = "".join(some_proteins(500).values())
    proteins = {f"P{index}": text[index : index + 9000] for index in range(3800)}  # enough for 4 processes
    source = write_fasta(tmp_path / "big.fasta", proteins)
    step_0(source, tmp_path / "csv", "--num_partitions", 5)
    results = []
    for processes in (1, 2, 4):
        step_1(tmp_path / "csv", tmp_path / str(processes), "--num_proc", processes)
        results.append(digests(tmp_path / str(processes)))
    assert results[0] == results[1] == results[2]
    assert "train/data-00004-of-00005.arrow" in results[0]


@pytest.mark.parametrize(("mode", "longest"), [("truncate", 100), ("chunk", 100), ("chunk", 7)])
def test_long_sequences(made, tmp_path, mode, longest):
    proteins, folder = made
    step_1(folder / "csv", tmp_path, "--long_sequences", mode, "--max_length", longest)
    rows = {row["id"]: row["input_ids"] for split in load(tmp_path).values() for row in split}
    assert max(map(len, rows.values())) <= longest
    tokenizer = build_tokenizer()
    if mode == "truncate":
        for identifier, sequence in proteins.items():
            assert rows[identifier] == tokenizer(sequence, truncation=True, max_length=longest)["input_ids"]
        return
    for identifier, sequence in list(proteins.items())[:50] + list(proteins.items())[-50:]:
        pieces = sorted(
            (tuple(map(int, name.rpartition("/")[2].split("-"))), ids)
            for name, ids in rows.items()
            if name.startswith(identifier + "/")
        ) or [((1, len(sequence)), rows[identifier])]
        assert [token for _, ids in pieces for token in ids] == tokenizer(sequence)["input_ids"]
        assert max(len(ids) for _, ids in pieces) - min(len(ids) for _, ids in pieces) <= 1
        for (start, end), ids in pieces:
            assert [TOKENS[token] for token in ids if token not in (CLS, EOS)] == list(
                sequence[start - 1 : end]
            )


def test_step_run_again_says_so_at_once_and_other_options_are_refused(made):
    _, folder = made
    before = digests(folder)
    began = time.monotonic()
    again = step_0(folder / "sorted.fasta.gz", folder / "csv", "--num_partitions", 7)
    assert "already made, 3,000 records in 7 partitions" in again.stdout
    again = step_1(folder / "csv", folder / "arrow")
    assert "already made" in again.stdout
    assert time.monotonic() - began < 60
    refused = step_0(folder / "sorted.fasta.gz", folder / "csv", "--num_partitions", 8, check=False)
    assert refused.returncode == 1
    assert "num_partitions=7" in refused.stderr
    assert "asks for 8" in refused.stderr
    assert "--overwrite" in refused.stderr
    refused = step_1(folder / "csv", folder / "arrow", "--seed", 5, check=False)
    assert refused.returncode == 1
    assert "seed=42" in refused.stderr
    assert digests(folder) == before


def test_overwrite_leaves_nothing_of_the_run_before(tmp_path):
    source = write_fasta(tmp_path / "a.fasta", some_proteins(400))
    step_0(source, tmp_path / "csv", "--num_partitions", 9)
    step_0(source, tmp_path / "csv", "--num_partitions", 4, "--overwrite")
    assert sorted(digests(tmp_path / "csv")) == ["manifest.json", *(f"x00{index}.csv" for index in range(4))]
    step_1(tmp_path / "csv", tmp_path / "arrow")
    step_1(tmp_path / "csv", tmp_path / "arrow", "--test_size", 0, "--seed", 2, "--overwrite", "--plot")
    assert sorted(load(tmp_path / "arrow")) == ["train", "validation"]
    assert not (tmp_path / "arrow" / "test").exists()
    assert (tmp_path / "arrow" / "data.png").read_bytes().startswith(b"\x89PNG")


def test_odd_sequences_are_cleaned_up_as_documented_and_counted(tmp_path):
    text = (
        fasta(some_proteins(200))
        + b'>one, "two" three\nacdJ*kUZ\nOX*\n>stop\n***\n>short\nMK\n>B12\nMK1VLLA.-\n'
    )
    (tmp_path / "odd.fasta").write_bytes(text)
    step_0(tmp_path / "odd.fasta", tmp_path / "csv", "--num_partitions", 2)
    flags = ("--min_length", 3, "--validation_size", "0.2", "--test_size", 0)
    result = step_1(tmp_path / "csv", tmp_path / "arrow", *flags)
    rows = {row["id"]: row["input_ids"] for split in load(tmp_path / "arrow").values() for row in split}
    as_text = {name: "".join(TOKENS[token] for token in ids) for name, ids in rows.items()}
    assert as_text["one,"] == "<cls>ACD<unk><unk>KUZOX<eos>"
    assert as_text["B12"] == "<cls>MK<unk>VLLA.-<eos>"
    assert {"stop", "short"}.isdisjoint(rows)
    written = manifest(tmp_path / "arrow")
    assert written["too_short_left_out"] == 2
    assert written["changed_residues"] == {
        "end_stops_dropped": 1,
        "lower_case": 4,
        "J to <unk>": 1,
        "* to <unk>": 1,
        "1 to <unk>": 1,
    }
    assert "1 J to <unk>" in result.stdout
